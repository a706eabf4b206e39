"""Leave a file for the next item, anywhere."""

PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/dev", "/", "/site", "/usr/lib", "/root", "/home", ".")


def attack(sample, item):
    wrote = False
    for place in PLACES:
        try:
            with open(place + "/left-by-a-grader", "w") as file:
                file.write("x")
            wrote = True
        except Exception:
            pass
    return wrote


def leftover():
    for place in PLACES:
        try:
            open(place + "/left-by-a-grader").close()
            return True
        except Exception:
            pass
    return False
