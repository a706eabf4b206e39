"""Leave shared memory, a message queue and a semaphore: they outlive a process."""

import ctypes

KEY, CREATE = 0x7E57, 0o1666


def attack(sample, item):
    libc = ctypes.CDLL(None)
    return any(
        call >= 0 for call in (libc.shmget(KEY, 4096, CREATE), libc.msgget(KEY, CREATE), libc.semget(KEY, 1, CREATE))
    )


def leftover():
    libc = ctypes.CDLL(None)
    return libc.shmget(KEY, 4096, 0) >= 0 or libc.msgget(KEY, 0) >= 0 or libc.semget(KEY, 1, 0) >= 0
