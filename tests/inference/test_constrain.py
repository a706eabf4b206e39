import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest
from tunekeeper.inference import constrain
from tunekeeper.inference.constrain import Grammars
from tunekeeper.inference.pythonic import PythonicStream
from tunekeeper.inference.tools import CallBegins, CallStream, Words

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PING = {"name": "ping"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return Tokenizer.load(tiny_base)


@pytest.fixture(scope="module")
def grammars(tiny_base, tokenizer):
    return Grammars(tiny_base, vocab_size=tokenizer.vocab_size, eos_ids=tokenizer.eos_ids)


@pytest.fixture
def accepts(grammars, tokenizer):
    """Whether a grammar takes the whole text, and may end there."""

    def check(grammar: str, text: str) -> bool:
        matcher = grammars.matcher(grammar)
        for token in [*tokenizer.encode(text), tokenizer.eos_ids[0]]:
            if not matcher.allowed()[token // 32] >> (token % 32) & 1:
                return False
            matcher.accept(token)
        return True

    return check


def write(grammars: Grammars, tokenizer: Tokenizer, grammar: str, seed: int) -> str:
    """What a model that knows nothing writes within the grammar: any allowed token, ends as soon as it may."""
    matcher, source, tokens = grammars.matcher(grammar), random.Random(seed), []
    for _ in range(400):
        words = matcher.allowed()
        allowed = [n for n in range(tokenizer.vocab_size) if words[n // 32] >> (n % 32) & 1]
        ends = set(allowed) & set(tokenizer.eos_ids)
        if ends and (len(tokens) > 60 or len(ends) == len(allowed)):
            break
        # Whatever closes is likelier, or strings and lists would go on to the end of time.
        closing = [n for n in allowed if tokenizer.token_bytes(n)[:1] in b'"}],0123456789'] or allowed
        token = source.choice([n for n in (closing if len(tokens) > 30 else allowed) if n not in ends] or allowed)
        matcher.accept(token)
        tokens.append(token)
        if matcher.is_complete:
            break
    return tokenizer.decode(tokens)


def test_json_object_takes_objects_only(accepts):
    grammar = constrain.json_object()
    assert accepts(grammar, '{\n  "a": [1, {"b": null}]\n}')
    assert not accepts(grammar, "[1]")
    assert not accepts(grammar, "hello")


def test_a_schema_is_held_to(accepts):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    grammar = constrain.json_schema(schema)
    assert accepts(grammar, '{"name": "a", "age": 3}')
    assert not accepts(grammar, '{"name": "a"}')
    assert not accepts(grammar, '{"name": "a", "age": "x"}')
    assert not accepts(grammar, '{"name": "a", "age": 3, "more": 1}')


def test_blanks_without_end_are_refused(accepts):
    assert not accepts(constrain.json_object(), '{"a":' + " " * 9 + "1}")


@pytest.mark.parametrize("schema", [{"type": "nope"}, {"$ref": "#/$defs/missing"}, {"not": {"type": "string"}}])
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_parameter(schema):
    with pytest.raises(InvalidRequest, match="cannot be enforced") as caught:
        constrain.json_schema(schema)
    assert caught.value.param == "response_format.json_schema.schema"


def test_a_schema_that_need_not_be_strict_loses_what_cannot_be_enforced(accepts):
    grammar = constrain.json_schema({"type": "object", "not": {"required": ["x"]}}, strict=False)
    assert accepts(grammar, '{"y": 1}')


@pytest.mark.parametrize("style", ["tagged", "bare"])
def test_a_call_fits_its_functions_parameters(accepts, style):
    grammar = constrain.tool_calls([WEATHER, PING], style=style, several=False)

    def call(text: str) -> str:
        return f"<tool_call>\n{text}\n</tool_call>" if style == "tagged" else text

    assert accepts(grammar, call('{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}'))
    assert accepts(grammar, call('{"name": "ping", "arguments": {}}'))
    assert not accepts(grammar, call('{"name": "get_weather", "arguments": {"town": "Paris"}}'))
    assert not accepts(grammar, call('{"name": "pong", "arguments": {}}'))
    assert not accepts(grammar, "It is sunny.")


def test_a_pythonic_call_has_its_arguments_in_order_and_all_that_are_required(accepts):
    grammar = constrain.tool_calls([WEATHER, PING], style="pythonic", several=False)
    assert accepts(grammar, '[get_weather(city="Paris", days=2)]')
    assert accepts(grammar, '[get_weather(city="Paris")]')
    assert accepts(grammar, "[ping()]")
    assert not accepts(grammar, "[get_weather(days=2)]")
    assert not accepts(grammar, '[get_weather(city="Paris", days="two")]')
    assert not accepts(grammar, '[get_weather(town="Paris")]')
    assert not accepts(grammar, "[ping(), ping()]")
    assert accepts(constrain.tool_calls([WEATHER, PING], style="pythonic", several=True), "[ping(), ping()]")


def test_pythonic_truth_values_are_pythons(accepts):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}}}
    grammar = constrain.tool_calls([function], style="pythonic", several=False)
    assert accepts(grammar, "[f(x=True)]")
    assert accepts(grammar, "[f()]")
    assert not accepts(grammar, "[f(x=true)]")


def test_a_function_without_listed_properties_takes_any_arguments_unless_strict(accepts):
    function = {"name": "f", "parameters": {"type": "object"}}
    assert accepts(constrain.tool_calls([function], style="pythonic", several=False), '[f(a=1, b={"c": [true]})]')
    with pytest.raises(InvalidRequest, match="no object with properties"):
        constrain.tool_calls([{**function, "strict": True}], style="pythonic", several=False)


def test_pythonic_words_may_stand_for_a_call(accepts):
    grammar = constrain.tool_calls([WEATHER], style="pythonic", several=False, words_too=True)
    assert accepts(grammar, "It is [sunny].")
    assert not accepts(grammar, "[get_weather()]")


def test_several_calls_only_where_they_are_wanted(accepts):
    two = '{"name": "ping", "arguments": {}}; {"name": "ping", "arguments": {}}'
    assert accepts(constrain.tool_calls([PING], style="bare", several=True), two)
    assert not accepts(constrain.tool_calls([PING], style="bare", several=False), two)


@pytest.mark.parametrize("style", ["tagged", "bare"])
def test_words_may_stand_for_a_call_but_a_call_must_fit(accepts, style):
    grammar = constrain.tool_calls([WEATHER], style=style, several=False, words_too=True)
    good, bad = '{"name": "get_weather", "arguments": {"city": "P"}}', '{"name": "get_weather", "arguments": {}}'
    assert accepts(grammar, "It is {sunny}.")
    if style == "tagged":
        assert accepts(grammar, f"Let me see.\n<tool_call>\n{good}\n</tool_call>")
        assert not accepts(grammar, f"Let me see.\n<tool_call>\n{bad}\n</tool_call>")
    else:
        assert accepts(grammar, good)
        assert not accepts(grammar, bad)


@pytest.mark.parametrize("style", ["tagged", "bare"])
def test_json_may_stand_for_a_call(accepts, style):
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"A": {"type": "integer"}},
    }
    grammar = constrain.calls_or_json([PING, WEATHER], schema, strict=True, style=style, several=False)
    call = '{"name": "ping", "arguments": {}}'
    assert accepts(grammar, '{"a": 1}')
    assert accepts(grammar, f"<tool_call>\n{call}\n</tool_call>" if style == "tagged" else call)
    assert not accepts(grammar, "words")
    assert not accepts(grammar, '{"a": "x"}')


def test_references_hold_within_each_functions_parameters(accepts):
    def function(name: str, kind: str) -> dict:
        return {
            "name": name,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/X"}},
                "required": ["x"],
                "$defs": {"X": {"type": kind}},
            },
        }

    grammar = constrain.tool_calls([function("f", "integer"), function("g", "boolean")], style="bare", several=False)
    assert accepts(grammar, '{"name": "f", "arguments": {"x": 1}}')
    assert accepts(grammar, '{"name": "g", "arguments": {"x": true}}')
    assert not accepts(grammar, '{"name": "g", "arguments": {"x": 1}}')


scalars = st.sampled_from(
    [{"type": "integer"}, {"type": "boolean"}, {"type": "string", "maxLength": 5}, {"enum": ["a", 1, None]}]
)


def objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": sorted(fields),
            "additionalProperties": False,
        }
    )


schemas = objects(
    st.recursive(
        scalars,
        lambda inner: objects(inner) | inner.map(lambda item: {"type": "array", "items": item, "maxItems": 2}),
        max_leaves=4,
    )
)


def fits(value: object, schema: dict) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and len(value) <= 5
        case "array":
            return isinstance(value, list) and all(fits(item, schema["items"]) for item in value)
        case _:
            fields = schema["properties"]
            return (
                isinstance(value, dict)
                and value.keys() == fields.keys()
                and all(fits(value[k], fields[k]) for k in fields)
            )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 1000))
def test_whatever_is_written_within_a_schema_parses_and_fits(grammars, tokenizer, schema, seed):
    text = write(grammars, tokenizer, constrain.json_schema(schema), seed)
    assert fits(json.loads(text), schema)


@settings(max_examples=15, deadline=None)
@given(schema=schemas, seed=st.integers(0, 1000), style=st.sampled_from(["tagged", "bare", "pythonic"]))
def test_whatever_is_written_as_a_call_is_read_as_one(grammars, tokenizer, schema, seed, style):
    function = {"name": "f", "parameters": schema, "strict": True}
    text = write(grammars, tokenizer, constrain.tool_calls([function], style=style, several=False), seed)
    stream = PythonicStream(["f"]) if style == "pythonic" else CallStream(["f"])
    parts = stream.push(text) + stream.finish()
    assert [part for part in parts if isinstance(part, CallBegins | Words)] == [CallBegins(0, "f")]
    assert fits(json.loads("".join(part.text for part in parts[1:])), schema)
