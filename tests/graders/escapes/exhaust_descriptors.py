"""Open until nothing can be opened any more."""


def attack(sample, item):
    import os

    held = []
    try:
        while len(held) < 100_000:
            held += os.pipe()
    except OSError:
        pass
    return len(held) > 1024
