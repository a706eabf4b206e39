"""Objects of earlier items that a kept interpreter might still hold."""


def attack(sample, item):
    import gc

    for found in gc.get_objects():
        if isinstance(found, dict) and found.get("marker") == "earlier":
            return True
    return False
