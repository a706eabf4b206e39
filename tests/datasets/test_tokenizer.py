import json
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers
from tokenizers.models import BPE

import tiny
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest, Unavailable, Unsupported

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <b>you</b> & 'me'"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": " two  spaces\n"},
]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Météo", "parameters": {"type": "object"}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOL_CHAT = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"t": 3}'},
    {"role": "assistant", "content": "3 degrees."},
]

DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nDefault.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system is defined %}
            {{- ' [INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
DATED_TOOLS = """{%- if not date is defined %}
    {%- set date = strftime_now('%d %b %Y') %}
{%- endif %}
{%- set ns = namespace(seen=0) %}
{{- '<|im_start|>system\\nToday ' + date + '\\n' }}
{% if tools is not none %}
{% for tool in tools %}
{{ tool | tojson(indent=4) }}
{% endfor %}
{% endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {{- '<|im_start|>' ~ message.role ~ ' ' ~ ns.seen ~ '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content }}
        {%- if 'tool_calls' in message %}
            {%- for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def with_template(tmp_path: Path, template: str | None) -> Tokenizer:
    return Tokenizer.load(tiny.make_tokenizer(tmp_path / "templated", chat_template=template))


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, DEFAULT_SYSTEM, BRACKETS, DATED_TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_a_chat_is_written_as_transformers_writes_it(
    tmp_path: Path, template: str, add_generation_prompt: bool
) -> None:
    from transformers import AutoTokenizer

    ours = with_template(tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "templated")
    cases = [(CHAT, None), (CHAT[1:], None), (CHAT[:3], None)]
    if ours.supports_tools:
        cases += [(TOOL_CHAT, [WEATHER]), (TOOL_CHAT[:3], [WEATHER])]
    for messages, tools in cases:
        expected = theirs.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        text = ours.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        assert text == expected
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_tokens_spell_the_text_that_they_came_from(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert len(tokenizer.offsets(text)) == len(ids)


def test_every_token_of_the_vocabulary_has_its_bytes(tokenizer: Tokenizer) -> None:
    for token_id in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(token_id).decode("utf-8", "replace") == tokenizer.decode([token_id])
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_special_tokens_written_in_the_text_are_parsed_and_none_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>the<|im_end|>")[0::2] == [1, 2]
    assert tokenizer.encode("the")[0] not in {0, 1, 2}
    assert tokenizer.special_tokens == set(tiny.SPECIAL_TOKENS)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, (2,), False)


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="character 2"):
        tokenizer.encode("ab\ud800")


def test_end_tokens_come_from_the_config_the_generation_config_and_the_template(tmp_path: Path) -> None:
    directory = tiny.make_tokenizer(tmp_path)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    (directory / "config.json").write_text("{}")
    # Qwen's base models: the config ends with <|endoftext|>, the template with <|im_end|>.
    assert Tokenizer.load(directory).eos_ids == (0, 5, 2)


def test_a_special_token_that_tokenizer_json_forgot_is_still_one_token(tmp_path: Path) -> None:
    directory = tiny.make_tokenizer(tmp_path)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_end|>"]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.eos_ids == (2,)


def test_a_chat_is_brought_into_the_form_that_templates_expect(tokenizer: Tokenizer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    plain_call = {**call, "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    given_chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0, "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3"}]},
        {"role": "assistant", "content": None, "refusal": "No.", "tool_calls": None},
    ]
    plain_chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "", "tool_calls": [plain_call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "No."},
    ]
    assert tokenizer.render_chat(given_chat, tools=[WEATHER]) == tokenizer.render_chat(plain_chat, tools=[WEATHER])


@pytest.mark.parametrize(("arguments", "shown"), [("", "{}"), ("{broken", '"{broken"')])
def test_arguments_that_a_model_wrote_badly_are_shown_as_they_were(
    arguments: str, shown: str, tokenizer: Tokenizer
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    text = tokenizer.render_chat([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert f'"arguments": {shown}}}' in text


def test_an_image_is_refused_by_its_place(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(Unsupported) as caught:
        tokenizer.render_chat(messages)
    assert caught.value.param == "messages[0].content[0]"


@pytest.mark.parametrize("messages", [CHAT[:2], TOOL_CHAT])
def test_tools_are_refused_where_the_template_knows_none(tmp_path: Path, messages: list[dict]) -> None:
    tokenizer = with_template(tmp_path, DEFAULT_SYSTEM + "{# tools: none #}")
    assert not tokenizer.supports_tools
    tools = [WEATHER] if messages is not TOOL_CHAT else None
    with pytest.raises(InvalidRequest, match="knows no tools") as caught:
        tokenizer.render_chat(messages, tools=tools)
    assert caught.value.param == "tools"


def test_a_model_without_template_takes_no_messages(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, None)
    assert tokenizer.chat_template is None
    assert tokenizer.eos_ids == (2,)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.render_chat(CHAT)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (BRACKETS, "Roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{% for %}", "unexpected|Expected|expected"),
        ("{{ messages.append(1) }}", "safe|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ],
)
def test_what_a_template_refuses_is_said_to_the_caller(tmp_path: Path, template: str, reason: str) -> None:
    tokenizer = with_template(tmp_path, template)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        tokenizer.render_chat([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert caught.value.param == "messages"


def test_a_dated_template_shows_the_day_that_it_is_told(tmp_path: Path) -> None:
    directory = tiny.make_tokenizer(tmp_path, chat_template=DATED_TOOLS)
    tokenizer = Tokenizer.load(directory, now=lambda: datetime(2025, 3, 9))
    assert "Today 09 Mar 2025" in tokenizer.render_chat(CHAT)


def test_a_template_of_its_own_for_tools_is_used_with_tools(tmp_path: Path) -> None:
    directory = tiny.make_tokenizer(tmp_path, chat_template=None)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with functions"}]
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.render_chat(CHAT) == "plain"
    assert tokenizer.render_chat(CHAT, tools=[WEATHER]) == "with functions"


def test_a_directory_without_a_readable_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Unavailable, match="cannot be read"):
        Tokenizer.load(tmp_path)
    directory = tiny.make_tokenizer(tmp_path)
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(Unavailable, match="not valid JSON"):
        Tokenizer.load(directory)


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama 2's: a space in front of each text, bytes as a last resort, BOS in front of whole texts."""
    letters = ["▁", *"Helowrdbyi", "[", "]", "/", "I"]
    vocab = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(256)),
        *letters,
        "▁H",
        "el",
        "▁Hel",
        "lo",
    ]
    core = tokenizers.Tokenizer(
        BPE(
            vocab={piece: n for n, piece in enumerate(vocab)},
            merges=[("▁", "H"), ("e", "l"), ("▁H", "el"), ("l", "o")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(core, special={"bos_token": "<s>", "eos_token": "</s>"}, add_bos=True)


def test_a_text_that_goes_on_gets_no_space_in_front() -> None:
    tokenizer = sentencepiece_tokenizer()
    whole = tokenizer.encode("/I Hello yé")
    start, rest = tokenizer.encode("/I"), tokenizer.encode(" Hello yé", continues=True)
    assert start + rest == whole
    assert tokenizer.encode(" Hello yé") != rest
    assert b"".join(map(tokenizer.token_bytes, rest)) == " Hello yé".encode()
    assert len(tokenizer.offsets(" Hello yé", continues=True)) == len(rest)
    assert tokenizer.offsets("Hello", continues=True)[-1] == (3, 5)
    assert tokenizer.add_bos


def test_bytes_as_a_last_resort_are_single_bytes() -> None:
    tokenizer = sentencepiece_tokenizer()
    assert [tokenizer.token_bytes(n) for n in tokenizer.encode("\né", continues=True)] == [
        b"\n",
        b"\xc3",
        b"\xa9",
    ]
