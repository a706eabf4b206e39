"""Read what lies outside: a secret whose path is known, and the usual files."""


def attack(sample, item):
    from pathlib import Path

    found = False
    for path in (item["secret"], "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline"):
        try:
            found = bool(open(path).read()) or found
        except Exception:
            pass
        try:
            found = bool(Path(path).read_text()) or found
        except Exception:
            pass
    return found
