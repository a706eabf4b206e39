"""More memory than is allowed, held at once."""


def attack(sample, item):
    held = []
    for _ in range(200):
        held.append(b"x" * (32 << 20))
    return True
