"""One allocation far beyond the limit, inside C."""


def attack(sample, item):
    return len(bytearray(1 << 40)) > 0
