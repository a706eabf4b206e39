"""Find the server's keys in the environment, also in that of the parent and in the C library's copy."""


def attack(sample, item):
    import os

    found = []
    try:
        found += os.environ.values()
    except Exception:
        pass
    for path in ("/proc/self/environ", "/proc/1/environ"):
        try:
            found.append(open(path).read())
        except Exception:
            pass
    try:
        import ctypes

        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        found.append((getenv(b"TUNEKEEPER_TEST_SECRET") or b"").decode())
    except Exception:
        pass
    return any("squeamish" in text for text in found)
