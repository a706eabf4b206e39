"""Templates: what a variable finds, what is not there by name, and that nothing is read twice."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.graders.template import MAX_TEMPLATE, Ungradable, sample_of, template

CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ITEM = {"answer": "42", "n": 3, "deep": {"list": [{"x": 1.5}, None]}, "with-dash": "d", "odd key": "o", "日本": "東京"}


def rendered(text, sample=None, item=ITEM):
    return template(text).render(sample or sample_of("hi"), item)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no variable { } }}", "no variable { } }}"),
        ("{{item.answer}}", "42"),
        ("<{{ item.answer }}|{{ sample.output_text }}>", "<42|hi>"),
        ("{{ item.n }}", "3"),
        ("{{ item.deep.list[0].x }}", "1.5"),
        ("{{ item.deep.list[1] }}", "null"),
        ("{{ item.deep }}", '{"list": [{"x": 1.5}, null]}'),
        ("{{ item.with-dash }}", "d"),
        ("{{ item['odd key'] }}{{ item[\"odd key\"] }}", "oo"),
        ("{{ item.日本 }}", "東京"),
        ("{{ sample.choices[0].message.content }}", "hi"),
        ("{{ unclosed", "{{ unclosed"),
    ],
)
def test_a_variable_is_what_lies_under_its_path(text, expected):
    assert rendered(text) == expected


def test_tool_calls_and_json_of_a_sample_are_found():
    sample = sample_of('{"steps": [1, 2]}', tool_calls=[CALL])
    assert rendered("{{ sample.output_json.steps[1] }}", sample) == "2"
    assert rendered("{{ sample.output_tools[0].function.arguments }}", sample) == '{"a": 1}'
    assert json.loads(rendered("{{ sample.output_tools }}", sample)) == [CALL]


@pytest.mark.parametrize(
    ("text", "kind", "by_sample"),
    [
        ("{{ item.nothing }}", "invalid_variable_error", False),
        ("{{ item.answer.deeper }}", "invalid_variable_error", False),
        ("{{ item.deep.list[2] }}", "invalid_variable_error", False),
        ("{{ item.deep[0] }}", "invalid_variable_error", False),
        ("{{ item.deep.list.x }}", "invalid_variable_error", False),
        ("{{ sample.output_json.x }}", "sample_parse_error", True),
        ("{{ sample.output_tools[0] }}", "invalid_variable_error", True),
    ],
)
def test_what_is_not_there_is_an_error_by_name(text, kind, by_sample):
    with pytest.raises(Ungradable) as caught:
        rendered(text)
    assert (caught.value.kind, caught.value.by_sample) == (kind, by_sample)
    assert text[3:-3] in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["{{}}", "{{ answer }}", "{{ items.x }}", "{{ item }}", "{{ item. }}", "{{ item.a b }}", "{{ item[-1] }}",
     "{{ item.a | upper }}", "{{ sample.text }}", "{{ sample.output_txt.x }}", "a {{{{ item.x }}}}"],
)  # fmt: skip
def test_what_is_no_variable_is_refused_before_anything_is_graded(text):
    with pytest.raises(ValueError, match=r"variable|sample has no"):
        template(text)


def test_a_sample_cannot_write_a_template_into_its_answer():
    text = "{{ sample.output_text }} {{ item.answer }}"
    assert rendered(text, sample_of("{{ item.answer }}")) == "{{ item.answer }} 42"


def test_hostile_texts_take_no_long_time_and_no_memory():
    assert not list(template("{{" * (MAX_TEMPLATE // 2)).variables)
    with pytest.raises(ValueError, match="is the most"):
        template("x" * (MAX_TEMPLATE + 1))
    with pytest.raises(ValueError, match="no variable"):
        template("{{ item.a[" + "1" * 5000 + "] }}")
    with pytest.raises(Ungradable, match="longer than"):
        template("{{ item.x }}" * 20_000).render({}, {"x": "x" * 100_000})


@pytest.mark.parametrize("text", ["", "no json", "NaN", '{"a": Infinity}', "[" * 100_000, "{'a': 1}"])
def test_text_that_is_not_json_has_no_output_json(text):
    assert "output_json" not in sample_of(text)


@settings(deadline=None)
@given(st.text())
def test_every_text_is_a_template_or_refused(text):
    try:
        found = template(text)
    except ValueError:
        assert "{{" in text
        return
    if not list(found.variables):
        assert found.render({}, {}) == text


@settings(deadline=None)
@given(st.text())
def test_text_is_put_in_as_it_is(text):
    assert template("a{{ item.x }}b").render({}, {"x": text}) == f"a{text}b"
