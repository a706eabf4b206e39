"""`python -m tunekeeper`, the same as `tunekeeper`."""

import sys

from tunekeeper.cli import main

sys.exit(main())
