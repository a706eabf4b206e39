"""Never return, inside one arithmetic operation."""


def attack(sample, item):
    return (10**10**9) % 7 == 1 and 7 ** (7**99) > 0
