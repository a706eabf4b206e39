import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunekeeper.datasets.formats import Line, parse
from tunekeeper.datasets.quality import find_personal_data, find_secrets, texts
from tunekeeper.datasets.scrub import NAMES, scrub, scrub_text

EMAIL, PHONE, CARD = "eve@corp.io", "+49 30 1234567", "4111 1111 1111 1111"
KEY, IP, IBAN, SSN = "sk-proj-abcdefghij0123456789", "81.2.69.160", "DE89 3704 0044 0532 0130 00", "219-09-9999"
PRIVATE = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7+abc/def\nx1==\n-----END RSA PRIVATE KEY-----"
SENSITIVE = (EMAIL, PHONE, CARD, KEY, IP, IBAN, SSN, PRIVATE, "password=Tr0ub4dor3xyz", "Bearer abcdefghij0123456789")
TOOL = {
    "type": "function",
    "function": {"name": "mail", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
}

pieces = st.one_of(st.sampled_from(SENSITIVE), st.text(max_size=8), st.sampled_from([" ", ", ", "\n", '"', "key: "]))
written = st.lists(pieces, max_size=6).map("".join)
values = st.recursive(
    st.one_of(written, st.integers(), st.just(4111111111111111), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["to", "password"]), inner)),
    max_leaves=5,
)


def sensitive(text: str) -> list[str]:
    return [item.kind for item in (*find_secrets(text), *find_personal_data(text))]


def chat(question: str, answer: str, **more: object) -> dict[str, object]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said, **more}


def test_a_value_has_one_placeholder_wherever_it_stands_in_a_line():
    line, counts = scrub(chat(f"Mail {EMAIL} or bob@corp.io.", f"I mailed Eve@corp.io, then called {PHONE}."))
    assert [message["content"] for message in line["messages"]] == [
        "Mail <EMAIL_1> or <EMAIL_2>.",
        "I mailed <EMAIL_1>, then called <PHONE_1>.",
    ]
    assert counts == {"email": 3, "phone": 1}


def test_each_kind_has_a_placeholder_that_says_what_was_there():
    shown = {text: scrub_text(f"see {text} there") for text in SENSITIVE}
    assert shown == {
        EMAIL: "see <EMAIL_1> there",
        PHONE: "see <PHONE_1> there",
        CARD: "see <CARD_1> there",
        KEY: "see <KEY_1> there",
        IP: "see <IP_1> there",
        IBAN: "see <ACCOUNT_1> there",
        SSN: "see <SSN_1> there",
        PRIVATE: "see <KEY_1> there",
        "password=Tr0ub4dor3xyz": "see password=<PASSWORD_1> there",
        "Bearer abcdefghij0123456789": "see Bearer <KEY_1> there",
    }


def test_a_private_key_goes_to_its_end_even_where_that_is_missing():
    cut = PRIVATE.partition("-----END")[0]
    assert scrub_text(f"{cut}") == "<KEY_1>"
    assert scrub_text(f"{PRIVATE}\nand {PRIVATE}") == "<KEY_1>\nand <KEY_1>"


def test_what_belongs_to_nobody_stays():
    text = "ask root@example.com at 192.168.0.1, 127.0.0.1 or 10.0.0.7; version 1.2.3; call 4711; <EMAIL_1>"
    assert scrub_text(text) == text


def test_arguments_stay_json_and_their_names_tell_what_a_value_is():
    arguments = {"to": EMAIL, "card": 4111111111111111, "auth": {"password": "Tr0ub4dor3xyz"}, "n": 3}
    call = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": json.dumps(arguments)}}
    said = {"role": "assistant", "tool_calls": [call]}
    line, counts = scrub({"messages": [{"role": "user", "content": f"for {EMAIL}"}, said], "tools": [TOOL]})
    found = json.loads(line["messages"][1]["tool_calls"][0]["function"]["arguments"])
    assert found == {"to": "<EMAIL_1>", "card": "<CARD_1>", "auth": {"password": "<PASSWORD_1>"}, "n": 3}
    assert counts == {"email": 2, "card": 1, "password": 1}
    assert line["tools"] == [TOOL]


def test_functions_that_lines_share_are_the_same_in_all_of_them():
    tool = {"type": "function", "function": {"name": "mail", "description": "As help@corp.io does."}}
    first, _ = scrub(chat("a@corp.io", "b", tools=[tool]))
    second, _ = scrub(chat("nobody", "b", tools=[tool]))
    assert first["tools"] == second["tools"]
    assert first["messages"][0]["content"] == "<EMAIL_2>"


def test_what_is_clean_stays_as_it_was():
    line = chat("What is 2 + 2?", "4", tools=[TOOL], parallel_tool_calls=False)
    assert scrub(line) == (line, {})
    spaced = {"function": {"name": "mail", "arguments": '{ "to" :"bob" }'}}
    assert scrub(spaced)[0] == spaced


@settings(deadline=None)
@given(written)
def test_scrubbing_twice_equals_once_and_nothing_detected_remains(text):
    clean = scrub_text(text)
    assert scrub_text(clean) == clean
    assert sensitive(clean) == []


@settings(deadline=None)
@example("", "", {"password": 'eve@corp.io0"'})
@given(written, written, values)
def test_nothing_detected_remains_in_a_line(question, answer, arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": json.dumps({"to": arguments})}}
    said = {"role": "assistant", "content": answer, "tool_calls": [call]}
    line, counts = scrub({"messages": [{"role": "user", "content": question + "?"}, said], "tools": [TOOL]})
    parsed = parse(Line(1, line))
    assert parsed.example is not None
    for _, text in texts(parsed.example):
        assert sensitive(text) == []
    assert scrub(line) == (line, {})
    assert set(counts) <= {name.lower() for name in NAMES.values()}
