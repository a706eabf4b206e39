"""Text to token ids and back, and chats to text, from the files that a model directory holds.

Needs `tokenizers` and `jinja2`, never `transformers`: the API process renders prompts with this.
Knows nothing of training; `render.py` turns examples into trees with it.

    tokenizer = Tokenizer.load(Path("bases/smollm2-135m"))
    tokenizer.encode(tokenizer.render_chat(messages, add_generation_prompt=True))
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunekeeper.errors import InvalidRequest, Unavailable, Unsupported
from tunekeeper.types import Json, Message

_PROBE = "Zq7"
"""Text that no template contains: what stands around it in a rendering is the template's."""

_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str],
        eos_ids: Sequence[int] = (),
        templates: Mapping[str, str] | None = None,
        add_bos: bool | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._core = core
        self._special = dict(special)
        self._eos_ids = tuple(eos_ids)
        self._templates = dict(templates or {})
        self._now = now
        self._compiled: dict[str, jinja2.Template] = {}
        core.no_truncation()
        core.no_padding()
        self._declare_special()
        self._added = {n: str(token.content) for n, token in core.get_added_tokens_decoder().items()}
        self.bos_id: int | None = self._id(self._special.get("bos_token"))
        starts = core.encode("", add_special_tokens=True).ids
        self.add_bos: bool = (self.bos_id in starts) if add_bos is None else add_bos and self.bos_id is not None
        self.vocab_size: int = max(core.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, directory: Path, *, now: Callable[[], datetime] = datetime.now) -> "Tokenizer":
        """Read tokenizer.json and the files beside it; raises Unavailable when they are missing or broken.

        Some templates write the date: `now` says which, so that a job resumed tomorrow sees the same text.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise Unavailable(f"{directory} has no tokenizer.json. Fetch the model again.")
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise Unavailable(f"{path} cannot be read: {error}. Fetch the model again.") from error
        config = _read_json(directory / "tokenizer_config.json")
        special = _token_names(_read_json(directory / "special_tokens_map.json")) | _token_names(config)
        add_bos = config.get("add_bos_token")
        return cls(
            core,
            special=special,
            eos_ids=[
                *_ids(_read_json(directory / "generation_config.json").get("eos_token_id")),
                *_ids(_read_json(directory / "config.json").get("eos_token_id")),
            ],
            templates=_templates(directory, config),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            now=now,
        )

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of the text; no BOS is added, special tokens written in it are parsed.

        `continues`: the text goes on where other tokens ended, so it gets no space in front where the
        tokenizer would give one to a new text.
        """
        return [token_id for token_id, _ in self._pieces(text, continues=continues)]

    def offsets(self, text: str, *, continues: bool = False) -> list[tuple[int, int]]:
        """For each token of `encode(text)`, the characters that it stands for: (start, end)."""
        return [span for _, span in self._pieces(text, continues=continues)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, special tokens written out."""
        return str(self._core.decode(list(ids), skip_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; perhaps a part of a character; an unknown id gives none."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._core.id_to_token(token_id)
        if token is None:
            return b""
        return _byte_level(token) if self._is_byte_level else _sentencepiece(token)

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Texts that are read as one token with a meaning of its own."""
        added = self._core.get_added_tokens_decoder().values()
        return frozenset(str(token.content) for token in added if token.special)

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The special tokens that start or end a text or a turn; in a message they would forge one."""
        written = "".join(self._templates.values())
        named = {*self._special.values(), *(self._added.get(n) for n in self.eos_ids)}
        return frozenset(text for text in self.special_tokens if text in named or text in written)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's, the model's, and the chat template's."""
        found = [self._id(self._special.get("eos_token")), *self._eos_ids]
        known = tuple(dict.fromkeys(n for n in found if n is not None))
        end = self._turn_end(known)
        return known if end is None else (*known, end)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that writes a chat as text."""
        return self._templates.get("default")

    @property
    def supports_tools(self) -> bool:
        """Whether the chat template can show functions to the model."""
        return "tool_use" in self._templates or _mentions_tools(self.chat_template or "")

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Json] | None = None,
        add_generation_prompt: bool = False,
        parallel_tool_calls: bool | None = None,
    ) -> str:
        """The chat as the model reads it; raises InvalidRequest where the template cannot write it."""
        self._check_renderable(messages, tools)
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        extra = {} if parallel_tool_calls is None else {"parallel_tool_calls": parallel_tool_calls}
        try:
            return self._template(name).render(
                messages=_plain(messages),
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special, **extra},
            )
        except (*_TEMPLATE_FAULTS, RecursionError) as error:
            raise InvalidRequest(
                f"The model's chat template cannot write these messages: {error}. "
                "Change their roles or order to what the model knows.",
                param="messages",
            ) from error

    def _check_renderable(self, messages: Sequence[Message], tools: Sequence[Json] | None) -> None:
        if self.chat_template is None:
            raise InvalidRequest(
                "The model has no chat template, so it cannot take messages. Use a chat model, or put a "
                "chat_template.jinja into its directory.",
                param="messages",
            )
        if self.supports_tools:
            return
        if tools or any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
            raise InvalidRequest(
                "The model's chat template knows no tools. Leave out tools, tool_calls and tool messages, "
                "or use a model whose template has them.",
                param="tools",
            )

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            self._compiled[name] = _environment(self._now).from_string(self._templates[name])
        return self._compiled[name]

    def _pieces(self, text: str, *, continues: bool) -> list[tuple[int, tuple[int, int]]]:
        if continues and self._prefixes_space:
            # A newline merges with nothing in these vocabularies: it takes the space, then is cut off.
            anchor = self._encoding("\n").ids
            whole = self._encoding("\n" + text)
            if whole.ids[: len(anchor)] == anchor:
                spans = [(max(start - 1, 0), end - 1) for start, end in whole.offsets[len(anchor) :]]
                return list(zip(whole.ids[len(anchor) :], spans, strict=True))
        encoding = self._encoding(text)
        return list(zip(encoding.ids, encoding.offsets, strict=True))

    def _encoding(self, text: str) -> tokenizers.Encoding:
        try:
            text.encode()  # the library says only that this is no str
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"The text has half of a surrogate pair at character {error.start}, which no character is. "
                "Write the whole pair, or the character itself."
            ) from error
        return self._core.encode(text, add_special_tokens=False)

    def _declare_special(self) -> None:
        """Parse the named special tokens as one token, also where tokenizer.json forgets to say so."""
        added = {str(token.content) for token in self._core.get_added_tokens_decoder().values()}
        forgotten = {text for text in self._special.values() if text not in added and self._id(text) is not None}
        self._core.add_special_tokens(
            [tokenizers.AddedToken(text, special=True, normalized=False) for text in sorted(forgotten)]
        )

    def _turn_end(self, known: Sequence[int]) -> int | None:
        """The special token that the template writes after an answer, unless it writes a known one."""
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        try:
            after = self.render_chat(turn).rpartition(_PROBE)[2]
        except InvalidRequest:
            return None
        ids = [n for n in self._encoding(after).ids if self._added.get(n) in self.special_tokens]
        return ids[0] if ids and not set(ids) & set(known) else None

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._core.token_to_id(text)

    @cached_property
    def _prefixes_space(self) -> bool:
        tokens = self._core.encode("a", add_special_tokens=False).tokens
        return bool(tokens) and tokens[0][:1] in {"▁", "Ġ"}

    @cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(json.loads(self._core.to_str()).get("decoder"))


def _read_json(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Unavailable(f"{path} is not valid JSON: {error}. Fetch the model again.") from error
    return value if isinstance(value, dict) else {}


def _token_names(config: Json) -> dict[str, str]:
    """`bos_token` and its like; a value is the text, or an object that holds it."""
    texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in config.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def _ids(value: Any) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]


def _templates(directory: Path, config: Json) -> dict[str, str]:
    """Chat templates by name: a file beats the config, whose template is one text or a list with names."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text("utf-8")}
    given = config.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    return {entry["name"]: entry["template"] for entry in given} if isinstance(given, list) else {}


def _mentions_tools(template: str) -> bool:
    return re.search(r"\btools\b", re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)) is not None


def _plain(messages: Sequence[Message]) -> list[Message]:
    """The messages as templates expect them: system for developer, text for parts, objects for arguments."""
    return [_plain_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _plain_message(message: Message, where: str) -> Message:
    plain = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if plain.get("role") == "developer":
        plain["role"] = "system"
    plain["content"] = text_of(message.get("content"), where=f"{where}.content") or plain.get("refusal", "")
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [{**call, "function": _plain_call(call.get("function", {}))} for call in calls]
    return plain


def _plain_call(function: Json) -> Json:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        return {**function, "arguments": json.loads(arguments) if arguments.strip() else {}}
    except (ValueError, RecursionError):
        return function  # what a model once wrote badly is shown as it was


def text_of(content: Any, *, where: str = "content") -> str:
    """A message's content as one text, its parts joined by newlines; raises Unsupported for an image."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_part_text(part, f"{where}[{n}]") for n, part in enumerate(content))


def _part_text(part: Json, where: str) -> str:
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise Unsupported(f"{where} has the type {kind!r}; only text can be read here.", param=where)
    return str(part.get(kind, ""))


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote; for the text it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Keep what stands between the tags, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """Where templates run: sandboxed, for they come with the weights and may be anyone's."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


@cache
def _byte_of() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character; this is the way back."""
    printable: Iterable[int] = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(n): n for n in printable}
    hidden = [n for n in range(256) if chr(n) not in table]
    return table | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _byte_level(token: str) -> bytes:
    table = _byte_of()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _sentencepiece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
