"""Take the control socket's messages: the next items' connections."""


def attack(sample, item):
    import socket

    for descriptor in range(64):
        channel = None
        try:
            channel = socket.socket(fileno=descriptor)
            channel.settimeout(0.2)
            data, descriptors, _, _ = socket.recv_fds(channel, 65536, 8)
            if data or descriptors:
                return True
        except Exception:
            pass
        if channel is not None:
            channel.detach()
    return False
