"""Secrets and personal data in a chat replaced by placeholders: what `quality` finds, and nothing else.

    >>> scrub({"messages": [{"role": "user", "content": "Write to eve@corp.io, not to bob@corp.io"}]})[0]
    {'messages': [{'role': 'user', 'content': 'Write to <EMAIL_1>, not to <EMAIL_2>'}]}

The same value gets the same placeholder wherever it stands in the line, so that an answer still fits its question.
Names, postal addresses and whatever else has no form that a pattern could know stay as they are.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tunekeeper.datasets.quality import Sensitive, find_personal_data, find_secrets
from tunekeeper.types import Json

NAMES: Mapping[str, str] = {
    "an AWS access key": "KEY",
    "an API key": "KEY",
    "a GitHub token": "KEY",
    "a Slack token": "KEY",
    "a Google API key": "KEY",
    "a Hugging Face token": "KEY",
    "a JSON web token": "KEY",
    "a private key": "KEY",
    "a bearer token": "KEY",
    "a password or key": "PASSWORD",
    "an e-mail address": "EMAIL",
    "a telephone number": "PHONE",
    "a card number": "CARD",
    "an account number": "ACCOUNT",
    "a social security number": "SSN",
    "an IP address": "IP",
}
"""Kinds of `quality`, and the names of their placeholders. No pattern sees anything in <EMAIL_1>."""


def scrub(line: Json) -> tuple[Json, Counter[str]]:
    """The line of a data file without what is sensitive, and how many places were replaced, by kind."""
    scrubber = _Scrubber()
    # Functions first: those that many lines share are then the same in all of them afterwards.
    order = sorted(line, key=lambda key: key not in ("tools", "functions"))
    clean = {key: scrubber.value({key: line[key]})[key] for key in order}
    return {key: clean[key] for key in line}, scrubber.counts


def scrub_text(text: str) -> str:
    """The text without what is sensitive."""
    return _Scrubber().text(text)


class _Scrubber:
    """Replaces within one line."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()

    def value(self, value: Any) -> Any:
        """The value with every text in it replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, dict):
            return {key: self._field(key, each) for key, each in value.items()}
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = self.text(str(value))
            return value if text == str(value) else text
        return value

    def text(self, text: str) -> str:
        """The text with placeholders; what remains is looked at again, for it may have been hidden before."""
        while found := _apart([*find_secrets(text), *find_personal_data(text)]):
            pieces, end = [], 0
            for item in found:
                pieces += [text[end : item.start], self._placeholder(item.kind, text[item.start : item.end])]
                end = item.end
            text = "".join([*pieces, text[end:]])
        return text

    def _field(self, key: str, value: Any) -> Any:
        if key == "arguments" and isinstance(value, str):
            try:
                given = json.loads(value)
            except (ValueError, RecursionError):
                return self.text(value)
            clean = self._whole(given)
            return value if clean == given else json.dumps(clean, ensure_ascii=False)
        if key in ("tools", "functions") and isinstance(value, list):
            return [self._whole(tool) for tool in value]
        return self.value(value)

    def _whole(self, value: Any) -> Any:
        """A value that is shown to models as JSON, where a name such as "password" tells what its value is."""
        clean = self.value(value)
        text = json.dumps(clean, ensure_ascii=False, sort_keys=True)
        found = self.text(text)
        try:
            return clean if found == text else json.loads(found)
        except ValueError:
            return clean

    def _placeholder(self, kind: str, value: str) -> str:
        name = NAMES[kind]
        self.counts[name.lower()] += 1
        known = (name, " ".join(value.split()).lower() if name == "EMAIL" else value)
        if known not in self._placeholders:
            self._numbers[name] += 1
            self._placeholders[known] = f"<{name}_{self._numbers[name]}>"
        return self._placeholders[known]


def _apart(found: list[Sensitive]) -> list[Sensitive]:
    """In the order of the text, without those that lie within an earlier, longer one."""
    kept: list[Sensitive] = []
    for item in sorted(found, key=lambda item: (item.start, -item.end)):
        if not kept or item.start >= kept[-1].end:
            kept.append(item)
    return kept
