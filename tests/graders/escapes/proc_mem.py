"""Write into a process's memory through /proc, its own to begin with."""


def attack(sample, item):
    for path in ("/proc/self/mem", "/proc/1/mem", f"/proc/{item['pid']}/mem"):
        try:
            open(path, "r+b").close()
            return True
        except Exception:
            pass
    return False
