"""Run out of stack, in Python and in C."""


def attack(sample, item):
    import sys

    sys.setrecursionlimit(10**9)

    class Endless:
        def __repr__(self):
            return repr([self])

    def down(n):
        return down(n + 1)

    try:
        down(0)
    except RecursionError:
        pass
    repr(Endless())
    return False
