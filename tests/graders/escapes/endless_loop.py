"""Never return, and catch what would end it."""


def attack(sample, item):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
