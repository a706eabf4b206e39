"""Leave something for the next item in this module, in others and in builtins."""

kept = []


def attack(sample, item):
    kept.append(item)
    try:
        import json
        import math

        json.loads = None
        math.left = True
    except Exception:
        pass
    try:
        import builtins

        builtins.left = True
        builtins.float = lambda value: 0.75
    except Exception:
        pass
    return False


def leftover():
    import json
    import math

    try:
        left
    except NameError:
        return bool(kept) or json.loads is None or hasattr(math, "left")
    return True
