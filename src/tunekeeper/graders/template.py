"""Templates of graders: `{{ item.answer }}`, `{{ sample.output_json.steps[0] }}`, filled in once, never twice.

A variable is a namespace and a path of keys and indexes. Text is put in as it is, everything else as JSON. What
is not there is an error by name, never an empty text; what a variable's text itself says is not read again, so
that a model cannot write a template into its answer.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunekeeper.types import Grade, GradeFault, GradeFaultKind, Json

SAMPLE_KEYS = ("output_text", "output_json", "output_tools", "output_audio", "output_messages", "choices")
"""What a sample may hold."""

MAX_TEMPLATE = 256 * 1024
"""Characters of a template."""
MAX_RENDERED = 16 * 1024**2
"""Characters of what a template becomes."""

_PATH = re.compile(
    r"""\s* (?P<namespace>item|sample)
        (?P<steps> (?: \.[^\W\d][\w-]* | \[\d{1,9}\] | \["[^"\]]+"\] | \['[^'\]]+'\] )+ ) \s*""",
    re.VERBOSE,
)
_STEP = re.compile(r"""\.(?P<key>[^\W\d][\w-]*) | \[(?P<index>\d+)\] | \[["'](?P<quoted>[^"'\]]+)["']\]""", re.VERBOSE)


class Ungradable(Exception):
    """A sample that a grader has no score for; becomes the Grade's fault."""

    def __init__(self, kind: GradeFaultKind, message: str, *, by_sample: bool = False, **known: Any) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message
        self.by_sample = by_sample
        self.known = known
        """What is known all the same, as fields of Grade: token_usage, sampled_model, sub_scores."""

    def grade(self) -> Grade:
        """The grade that says so."""
        fault = GradeFault(kind=self.kind, message=self.message, by_sample=self.by_sample)
        return Grade(score=0.0, faults=(fault,), **self.known)


@dataclass(frozen=True, slots=True)
class Variable:
    """One `{{ … }}`."""

    namespace: str
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.namespace + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)

    @property
    def pointer(self) -> str:
        """Its place below the namespace, as a JSON pointer."""
        return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in self.path)

    def find(self, value: Any) -> Any:
        """What is there below the namespace's value; raises LookupError."""
        for step in self.path:
            fits = isinstance(value, list) if isinstance(step, int) else isinstance(value, dict)
            if not fits:
                raise LookupError(step)
            value = value[step]
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A text with variables: texts at even places, variables between them."""

    parts: tuple[str | Variable, ...]

    @property
    def variables(self) -> Iterator[Variable]:
        """Its variables, in order."""
        return (part for part in self.parts if isinstance(part, Variable))

    def render(self, sample: Json, item: Json) -> str:
        """The text with its variables filled in; raises Ungradable for one that is not there, or too long a text."""
        texts, size = [], 0
        for part in self.parts:
            texts.append(part if isinstance(part, str) else _value(part, sample, item))
            size += len(texts[-1])
            if size > MAX_RENDERED:  # a few variables often repeated would fill the memory
                raise Ungradable("other_error", f"A template becomes longer than {MAX_RENDERED:,} characters.")
        return "".join(texts)


@lru_cache(maxsize=256)
def template(text: str) -> Template:
    """The template that a text is; raises ValueError for what is no variable."""
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"the text has {len(text):,} characters; {MAX_TEMPLATE:,} is the most")
    parts: list[str | Variable] = []
    at = 0
    while (begin := text.find("{{", at)) >= 0 and (end := text.find("}}", begin + 2)) >= 0:
        parts += [text[at:begin], _variable(text[begin + 2 : end])]
        at = end + 2
    return Template((*parts, text[at:]))


def sample_of(
    text: str, *, tool_calls: list[Json] | None = None, finish_reason: str = "stop", model: str | None = None
) -> Json:
    """The sample of an answer; output_json is there if the text is JSON."""
    message: Json = {"role": "assistant", "content": text}
    if tool_calls:
        message["tool_calls"] = tool_calls
    sample: Json = {
        "output_text": text,
        "output_tools": tool_calls or [],
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if model is not None:
        sample["model"] = model
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text, parse_constant=_no_constant)
    return sample


def _variable(text: str) -> Variable:
    match = _PATH.fullmatch(text)
    if match is None:
        raise ValueError(
            f"'{{{{{text[:100]}}}}}' is no variable: write {{{{ item.key }}}} or {{{{ sample.output_text }}}}, "
            "with .key and [0] for what lies deeper"
        )
    steps = _STEP.finditer(match["steps"])
    path = tuple(int(step["index"]) if step["index"] else step["key"] or step["quoted"] for step in steps)
    if match["namespace"] == "sample" and path[0] not in SAMPLE_KEYS:
        raise ValueError(f"a sample has no {path[0]!r}: it has {', '.join(SAMPLE_KEYS)}")
    return Variable(match["namespace"], path)


def _value(variable: Variable, sample: Json, item: Json) -> str:
    try:
        value = variable.find(sample if variable.namespace == "sample" else item)
    except LookupError:
        raise _missing(variable, sample) from None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _missing(variable: Variable, sample: Json) -> Ungradable:
    if variable.namespace == "item":
        return Ungradable("invalid_variable_error", f"{variable}: the item has nothing there.")
    if variable.path[0] == "output_json" and "output_json" not in sample:
        return Ungradable("sample_parse_error", f"{variable}: the sample's text is not JSON.", by_sample=True)
    return Ungradable("invalid_variable_error", f"{variable}: the sample has nothing there.", by_sample=True)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
