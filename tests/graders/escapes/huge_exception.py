"""An error whose text fills the server."""


def attack(sample, item):
    raise ValueError("x" * (64 << 20))
