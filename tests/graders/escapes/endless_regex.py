"""Never return, inside one C call."""


def attack(sample, item):
    import re

    re.match(r"(a|aa|a?)+$", "a" * 4000 + "b")
    while True:
        pass
