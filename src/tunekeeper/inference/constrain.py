"""Answers that must parse: JSON, JSON of a schema, or calls of given functions.

A grammar is text (llguidance's own format); `Matcher` follows one answer through it and says, before each
token, which tokens may come. `Grammars` holds what is shared by all answers of one tokenizer. The package
llguidance is imported when the first grammar is made.

Whitespace between JSON tokens is limited: a model that is unsure would write blanks without end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekeeper.errors import InvalidRequest, Unavailable
from tunekeeper.inference.tools import Style
from tunekeeper.types import Json

if TYPE_CHECKING:
    import llguidance

WHITESPACE = r" ?|\n[ \t]{0,16}"
MOST_CALLS = 16
"""Function calls that one answer may hold."""

NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}

SCHEMA_PARAM = "response_format.json_schema.schema"


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, param="response_format")


def json_schema(schema: Json, *, strict: bool = True, param: str = SCHEMA_PARAM) -> str:
    """JSON that the schema accepts; raises InvalidRequest for a schema that cannot be enforced.

    Not strict: keywords that cannot be enforced are passed over.
    """
    return _checked([f"start: {_json(schema, strict=strict)}"], param)


def tool_calls(functions: Sequence[Mapping[str, Any]], *, style: Style, several: bool, words_too: bool = False) -> str:
    """Calls of these functions in the model's style, with arguments that fit their parameters.

    `functions`: name, parameters, strict. `several`: more than one call may be written. `words_too`: so may an
    answer without a call, or words before tagged calls.
    """
    rules = _STYLES[style](functions, several)
    if not words_too:
        start = "calls"
    elif style == "tagged":
        start = "WORDS | head object AFTER more"
        rules += ["WORDS: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/", r"head[lazy]: /(?s:.*)<tool_call>\n/"]
    else:
        start = "calls | WORDS"
        rules.append(r"WORDS: /([^{\[ \n](?s:.*))?/")
    return _checked([*rules, f"start: {start}"], "tools")


def calls_or_json(
    functions: Sequence[Mapping[str, Any]], schema: Json, *, strict: bool, style: Style, several: bool
) -> str:
    """Calls as `tool_calls` has them, or JSON that the schema accepts; of bare calls there is only one."""
    if style == "bare":
        return _checked([f"start: {_call_or_json(functions, schema, strict=strict)}"], "tools")
    rules = _STYLES[style](functions, several)
    return _checked([*rules, "start: calls | other", f"other: {_json(schema, strict=strict)}"], "tools")


def _tagged_calls(functions: Sequence[Mapping[str, Any]], several: bool) -> list[str]:
    return [
        "calls: BEFORE object AFTER more",
        f"more: {_repeated('NEWLINE BEFORE object AFTER', several)}",
        r'BEFORE: "<tool_call>\n"',
        r'AFTER: "\n</tool_call>"',
        r'NEWLINE: "\n"',
        *_objects(functions),
    ]


def _bare_calls(functions: Sequence[Mapping[str, Any]], several: bool) -> list[str]:
    repeated = _repeated('"; " object', several)
    return [f"calls: object {repeated}", *_objects(functions)]


def _pythonic_calls(functions: Sequence[Mapping[str, Any]], several: bool) -> list[str]:
    repeated = _repeated('", " call', several)
    rules = [f'calls: "[" call {repeated} "]"', f"call: {_any_of('call', functions)}"]
    for n, function in enumerate(functions):
        rules.append(f'call_{n}: {json.dumps(function["name"] + "(")} arguments_{n}_0 ")"')
        rules += _pythonic_arguments(f"arguments_{n}", function)
    return rules


def _pythonic_arguments(name: str, function: Mapping[str, Any]) -> list[str]:
    """Rules for key=value pairs in the order of the parameters, without those that may be left out.

    `name_i` is what may follow from the i-th parameter on before any was written, `name_i_more` after one was.
    """
    schema, strict = _parameters(function), bool(function.get("strict"))
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return _any_arguments(name, function["name"], strict=strict)
    shared: Json = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules = [f'{name}_{len(properties)}: ""', f'{name}_{len(properties)}_more: ""']
    for i, (key, of) in enumerate(properties.items()):
        rest = f"{name}_{i}_value {name}_{i + 1}_more"
        skip, skip_more = (
            ("", "") if key in schema.get("required", ()) else (f" | {name}_{i + 1}", f" | {name}_{i + 1}_more")
        )
        rules.append(f"{name}_{i}: {json.dumps(key + '=')} {rest}{skip}")
        rules.append(f"{name}_{i}_more: {json.dumps(', ' + key + '=')} {rest}{skip_more}")
        is_boolean = isinstance(of, dict) and of.get("type") == "boolean"
        value = (
            '"True" | "False"'
            if is_boolean
            else _json({**shared, **(of if isinstance(of, dict) else {})}, strict=strict)
        )
        rules.append(f"{name}_{i}_value: {value}")
    return rules


def _any_arguments(name: str, function: str, *, strict: bool) -> list[str]:
    if strict:
        raise InvalidRequest(
            f"The parameters of {function!r} are no object with properties, so they cannot be enforced. "
            "List its properties, or leave strict out.",
            param="tools",
        )
    return [
        f'{name}_0: (pair (", " pair)*)?',
        "pair: KEY value",
        "KEY: /[a-zA-Z_]+=/",
        f"value: {_json({}, strict=False)}",
    ]


def _objects(functions: Sequence[Mapping[str, Any]]) -> list[str]:
    rules = [f"object: {_any_of('object', functions)}"]
    for n, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function["name"])}, "arguments": '
        rules.append(f'object_{n}: {json.dumps(head)} arguments_{n} "}}"')
        rules.append(f"arguments_{n}: {_json(_parameters(function), strict=bool(function.get('strict')))}")
    return rules


def _any_of(name: str, functions: Sequence[Mapping[str, Any]]) -> str:
    return " | ".join(f"{name}_{n}" for n in range(len(functions)))


def _repeated(rule: str, several: bool) -> str:
    return f"({rule}){{0,{MOST_CALLS - 1}}}" if several else '""'


_STYLES = {"tagged": _tagged_calls, "bare": _bare_calls, "pythonic": _pythonic_calls}


def _call_or_json(functions: Sequence[Mapping[str, Any]], schema: Json, *, strict: bool) -> str:
    """One schema for all: only so may a bare call and other JSON begin alike."""
    schemas = [*(_parameters(function) for function in functions), schema]
    places = [f"#/$defs/given_{n}" for n in range(len(schemas))]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": place}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function, place in zip(functions, places, strict=False)
    ]
    whole = {
        "anyOf": [*calls, {"$ref": places[-1]}],
        "$defs": {f"given_{n}": _moved(each, places[n]) for n, each in enumerate(schemas)},
    }
    return _json(whole, strict=strict and all(function.get("strict") for function in functions))


def _moved(schema: Any, place: str) -> Any:
    """The schema with its references as they must be once it stands at `place`."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _parameters(function: Mapping[str, Any]) -> Json:
    """The schema of a function's arguments: those that are listed and no others, unless it says otherwise."""
    schema: Json = function.get("parameters") or NO_PARAMETERS
    return {"additionalProperties": False, **schema} if "properties" in schema else schema


def _json(schema: Json, *, strict: bool) -> str:
    """The schema as a rule's right side; a root of its own, so that its references hold."""
    options = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _checked(rules: Sequence[str], param: str) -> str:
    matcher = _llguidance().LLMatcher
    grammar: str = matcher.grammar_from_lark("\n".join(rules))
    fault = matcher.validate_grammar(grammar)
    if fault:
        reason = fault.splitlines()[0].rpartition("failed to compile JSON schema: ")[2]
        raise InvalidRequest(f"This schema cannot be enforced: {reason}. Simplify the schema.", param=param)
    return grammar


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise Unavailable(
            "Constrained answers need the package llguidance: pip install 'tunekeeper[train]'."
        ) from error
    return llguidance


class Grammars:
    """Makes matchers for the tokenizer in a model directory."""

    def __init__(self, directory: Path, *, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._path = directory / "tokenizer.json"
        self._vocab_size, self._eos_ids = vocab_size, list(eos_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None

    def matcher(self, grammar: str) -> "Matcher":
        """Follow one answer through the grammar."""
        llguidance = _llguidance()
        if self._tokenizer is None:
            bare = _bare_tokenizer(self._path)
            self._tokenizer = llguidance.LLTokenizer(bare, self._vocab_size, self._eos_ids)
        return Matcher(llguidance.LLMatcher(self._tokenizer, grammar), self._vocab_size)


def _bare_tokenizer(path: Path) -> str:
    """The tokenizer's JSON without truncation and padding, which llguidance does not want."""
    data = json.loads(path.read_text("utf-8"))
    return json.dumps({**data, "truncation": None, "padding": None})


class Matcher:
    """One answer's place in its grammar."""

    def __init__(self, inner: "llguidance.LLMatcher", vocab_size: int) -> None:
        self._inner = inner
        self._words = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
        self._raise_fault()

    def allowed(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
        """The tokens that may come next, one bit each; valid until the next call."""
        self._inner.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._raise_fault()
        return self._words

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._inner.consume_token(token)
        self._raise_fault()

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever the model says; they are not yet accepted."""
        return list(self._inner.compute_ff_tokens())

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may come."""
        return bool(self._inner.is_stopped())

    def _raise_fault(self) -> None:
        if self._inner.is_error():
            raise InvalidRequest(
                f"The answer could not be held to its grammar: {self._inner.get_error().splitlines()[0]}. "
                "Simplify the schema.",
                param="response_format",
            )
