"""Fill the reader's memory or its pipe."""


def attack(sample, item):
    import os
    import sys

    for _ in range(2000):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
        for descriptor in range(3):
            os.write(descriptor, b"z" * 100_000)
    return False
