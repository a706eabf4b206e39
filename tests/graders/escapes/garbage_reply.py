"""End the process with something else than an answer on the answer's descriptor."""


def attack(sample, item):
    import os

    os.write(3, b'{"score": NaN, "fault": ["x"]}' + b"[" * 100_000)
    os._exit(0)
