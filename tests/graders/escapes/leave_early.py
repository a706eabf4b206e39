"""Leave by every door but return."""


def attack(sample, item):
    import os
    import sys

    try:
        sys.exit(0)
    except SystemExit:
        os._exit(0)
