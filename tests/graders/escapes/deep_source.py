"""Crash the compiler with what a grade compiles."""


def attack(sample, item):
    for text in ("(" * 50_000, "-" * 200_000 + "1", "a" + ".b" * 100_000, "[" * 90 + "]" * 90, "1" + "+1" * 100_000):
        try:
            exec("def f(a): " + text)
        except (SyntaxError, RecursionError, MemoryError):
            pass
    return False
