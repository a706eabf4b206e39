"""Wait without using the processor, with every signal handler replaced."""


def attack(sample, item):
    import signal
    import time

    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except Exception:
            pass
    while True:
        time.sleep(1000)
