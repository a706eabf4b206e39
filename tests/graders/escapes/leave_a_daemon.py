"""Stay behind: a process that outlives the grade, in a session of its own."""


def attack(sample, item):
    import os
    import time

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return True
