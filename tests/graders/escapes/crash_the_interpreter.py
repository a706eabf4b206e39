"""Write to address 0."""


def attack(sample, item):
    import ctypes

    ctypes.memset(0, 0, 1)
    return False
