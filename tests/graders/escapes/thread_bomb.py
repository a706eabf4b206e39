"""Threads take process ids of the whole machine."""


def attack(sample, item):
    import threading
    import time

    started = 0
    for _ in range(1000):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            started += 1
        except Exception:
            pass
    return started > 0
