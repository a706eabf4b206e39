"""The formula of a multi grader, `0.7 * accuracy + 0.3 * min(style, 1)`: parsed by us, never evaluated as code.

sum     = product (("+" | "-") product)*
product = signed (("*" | "/") signed)*
signed  = ("-" | "+") signed | power
power   = atom ["^" signed]                      2^-1 is 0.5, -2^2 is -4, 2^3^2 is 2^9
atom    = number | name | function "(" sum ("," sum)* ")" | "(" sum ")"
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_LENGTH = 4096
MAX_DEPTH = 64

Values = Mapping[str, float]
Term = Callable[[Values], float]

# function -> fewest and most arguments
FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    "min": (min, 1, 64),
    "max": (max, 1, 64),
    "abs": (abs, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/^(),]))"
)


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula."""

    names: frozenset[str]
    """The scores that it speaks of."""
    _value: Term

    @classmethod
    def parse(cls, text: str) -> "Formula":
        """Read a formula; raises ValueError with the place of what is wrong."""
        parser = _Parser(text)
        value = parser.whole()
        return cls(frozenset(parser.names), value)

    def __call__(self, values: Values) -> float:
        """Its value; raises ArithmeticError or ValueError where there is none: x/0, log(0), sqrt(-1), overflow."""
        value = float(self._value(values))
        if not math.isfinite(value):
            raise OverflowError(f"the result is {value}")
        return value


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"the formula is longer than {MAX_LENGTH} characters")
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0
        self.names: set[str] = set()

    def whole(self) -> Term:
        value = self._sum()
        if self._peek() is not None:
            raise self._unexpected("an operator")
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        token = self._peek()
        if token is None or token not in wanted:
            return None
        self._at += 1
        return token

    def _unexpected(self, wanted: str) -> ValueError:
        if self._peek() is None:
            return ValueError(f"the formula ends where {wanted} should come")
        place, token = self._tokens[self._at]
        return ValueError(f"the formula has {token!r} at character {place + 1}, where {wanted} should come")

    def _sum(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"the formula is nested deeper than {MAX_DEPTH} levels")
        terms = [self._product()]
        while sign := self._take("+", "-"):
            term = self._product()
            terms.append(term if sign == "+" else _negative(term))
        self._depth -= 1
        return terms[0] if len(terms) == 1 else _sum(terms)

    def _product(self) -> Term:
        first = self._signed()
        factors: list[tuple[str, Term]] = []
        while sign := self._take("*", "/"):
            factors.append((sign, self._signed()))
        return _product(first, factors) if factors else first

    def _signed(self) -> Term:
        signs = 0
        begins = self._at
        while sign := self._take("-", "+"):
            signs += sign == "-"
            if self._at - begins > MAX_DEPTH:
                raise ValueError(f"the formula has more than {MAX_DEPTH} signs in a row")
        value = self._power()
        return _negative(value) if signs % 2 else value

    def _power(self) -> Term:
        base = self._atom()
        if self._take("^") is None:
            return base
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"the formula is nested deeper than {MAX_DEPTH} levels")
        exponent = self._signed()
        self._depth -= 1
        return lambda values: math.pow(base(values), exponent(values))

    def _atom(self) -> Term:
        token = self._peek()
        if token is None or token in ")*/^,":
            raise self._unexpected("a number, a grader's name or (")
        self._at += 1
        if token == "(":
            value = self._sum()
            self._close()
            return value
        if token[0].isalpha() or token[0] == "_":
            return self._call(token) if token in FUNCTIONS else self._name(token)
        number = float(token)
        return lambda values: number

    def _name(self, name: str) -> Term:
        if self._peek() == "(":
            raise ValueError(f"there is no function {name!r}: there are {', '.join(FUNCTIONS)}")
        self.names.add(name)
        return lambda values: values[name]

    def _call(self, name: str) -> Term:
        function, fewest, most = FUNCTIONS[name]
        if self._take("(") is None:
            raise self._unexpected(f"the ( of {name}")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._close()
        if not fewest <= len(arguments) <= most:
            takes = "one value" if most == 1 else f"{fewest} to {most} values"
            raise ValueError(f"{name} takes {takes}, not {len(arguments)}")
        return lambda values: float(function(*(argument(values) for argument in arguments)))

    def _close(self) -> None:
        if self._take(")") is None:
            raise self._unexpected(")")


def _negative(term: Term) -> Term:
    return lambda values: -term(values)


# Loops, for a long chain of closures in closures would run out of stack.
def _sum(terms: Sequence[Term]) -> Term:
    def value(values: Values) -> float:
        total = terms[0](values)
        for term in terms[1:]:
            total += term(values)
        return total

    return value


def _product(first: Term, factors: Sequence[tuple[str, Term]]) -> Term:
    def value(values: Values) -> float:
        product = first(values)
        for sign, factor in factors:
            product = product * factor(values) if sign == "*" else product / factor(values)
        return product

    return value


def _tokens(text: str) -> list[tuple[int, str]]:
    """Each token with its place; raises ValueError for a character that begins none."""
    text = text.rstrip()
    tokens = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            place = at + len(text[at:]) - len(text[at:].lstrip())
            raise ValueError(f"the formula has {text[place]!r} at character {place + 1}, which means nothing there")
        tokens.append((match.start(match.lastgroup or 0), match[match.lastgroup or 0]))
        at = match.end()
    return tokens
