"""Send descriptors to the server over the connection, until it has no more."""

import os
import socket


def attack(sample, item):
    with socket.socket(fileno=os.dup(3)) as connection:
        pipes = [end for _ in range(10) for end in os.pipe()]
        for _ in range(100):
            socket.send_fds(connection, [b" "], pipes)
    return False
