"""A socket of any kind is a way out or a way into the kernel."""


def attack(sample, item):
    import ctypes

    libc = ctypes.CDLL(None)
    return any(libc.socket(family, kind, 0) >= 0 for family in (1, 2, 10, 16, 17, 38, 40) for kind in (1, 2, 3))
