"""Reach a listening port of the machine, a name server, and the listener of a UNIX and of an abstract socket."""


def attack(sample, item):
    import socket

    targets = [
        (socket.AF_INET, ("127.0.0.1", item["port"])),
        (socket.AF_UNIX, item["unix"]),
        (socket.AF_UNIX, "\0" + item["abstract"]),
    ]
    reached = False
    for family, address in targets:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as client:
                client.settimeout(2)
                client.connect(address)
                reached = True
        except Exception:
            pass
    return reached
