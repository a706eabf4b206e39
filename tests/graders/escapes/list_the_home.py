"""Look for the project and for people's directories."""


def attack(sample, item):
    import os

    for path in (item["project"], "/home", "/root", "/tmp", "/etc", "/var", "/sys"):
        try:
            names = [name for name in os.listdir(path) if name != ".pyenv"]
            if (names and path == item["project"]) or "passwd" in names or len(names) > 3:
                return True
        except Exception:
            pass
    return False
