"""The shape of a chat request, and what it means to the engine.

For our own models a field that is not here is refused by name; a field that is here does what the API says, is
refused where we do not have it, or is one of the hints that change no answer: user, safety_identifier,
prompt_cache_key, prompt_cache_retention, service_tier, prediction.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from tunekeeper.errors import InvalidRequest, Unsupported
from tunekeeper.inference.answers import ChatRequest
from tunekeeper.inference.params import Sampling
from tunekeeper.types import Json, Message

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]

Timestamp = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""Seconds since 1970; the database holds no longer number."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(_Shape):
    """One part of a message's content; only text can be read here, an upstream may take more."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> "Part":
        if self.type in {"text", "refusal"} and getattr(self, self.type) is None:
            raise ValueError(f"a part of the type {self.type!r} needs {self.type!r}")
        return self


Content = str | list[Part]


class Called(_Shape):
    """The function of a call that the model made earlier."""

    name: str
    arguments: str
    parsed_arguments: Any = Field(default=None, exclude=True)
    """What the official client's `.parse()` and `.stream()` add, and send back."""


class ToolCall(_Shape):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: Called
    index: int | None = Field(default=None, exclude=True)


class Instruction(_Shape):
    """A system or developer message."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class Said(_Shape):
    """A user's message."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class Answered(_Shape):
    """An assistant's message; what the official client sends back of a response is accepted whole."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Called | None = None
    audio: None = None
    annotations: list[Json] | None = None
    parsed: Any = None
    # Servers of models that think send their thoughts so, null where there are none.
    reasoning_content: None = None
    reasoning: None = None

    @property
    def says_something(self) -> bool:
        """Whether there is anything in it."""
        return any((self.content is not None, self.tool_calls, self.function_call, self.refusal))


class ToolResult(_Shape):
    """What a function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


class FunctionResult(_Shape):
    """What a function returned, in the older form."""

    role: Literal["function"]
    content: str | None
    name: str


AnyMessage = Annotated[Instruction | Said | Answered | ToolResult | FunctionResult, Field(discriminator="role")]


class Function(_Shape):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Json | None = None
    strict: StrictBool | None = None


class Tool(_Shape):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class Named(_Shape):
    """A function's name."""

    name: str


class ToolChoice(_Shape):
    """The function that must be called."""

    type: Literal["function"] = "function"
    function: Named


class SchemaFormat(_Shape):
    """The schema that an answer must fit."""

    name: FunctionName
    description: str | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(_Shape):
    """What an answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and is needed there")
        return self


class StreamOptions(_Shape):
    """What a stream holds beside the answer."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None


class PassedStreamOptions(BaseModel):
    """What a stream of an upstream holds beside the answer, as far as it concerns us."""

    include_usage: StrictBool = False


class PassedBody(BaseModel):
    """POST /chat/completions as far as it concerns us where an upstream answers; what else it takes, it knows best."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    stream_options: PassedStreamOptions | None = None
    store: StrictBool | None = None
    metadata: Metadata | None = None


class ChatBody(_Shape):
    """POST /chat/completions, where a model of our own answers."""

    model: str
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Annotated[list[str], Field(max_length=4)] | str | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    functions: Annotated[list[Function], Field(min_length=1, max_length=128)] | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    response_format: ResponseFormat | None = None
    store: StrictBool | None = None
    metadata: Metadata | None = None
    modalities: list[str] | None = None
    audio: Json | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: Json | None = None
    # Hints: they change no answer here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    prediction: Json | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, sent: Any) -> Any:
        """Refuse by name what the API has beside functions; raises Unsupported."""
        if isinstance(sent, dict):
            tools = sent.get("tools")
            for n, tool in enumerate(tools if isinstance(tools, list) else ()):
                _refuse_kind(tool, "custom", param=f"tools.{n}.type")
            for kind in ("custom", "allowed_tools"):
                _refuse_kind(sent.get("tool_choice"), kind, param="tool_choice.type")
        return sent

    @property
    def uses_functions(self) -> bool:
        """Whether the older form of tools is used, and is to be answered in."""
        return self.functions is not None


def _refuse_kind(value: Any, kind: str, *, param: str) -> None:
    if isinstance(value, dict) and value.get("type") == kind:
        raise Unsupported(f"{kind!r} is not supported here: tools can only be functions.", param=param)


_UNSUPPORTED = ("audio", "web_search_options")
_ONLY = {"modalities": ["text"], "reasoning_effort": "none", "verbosity": "medium"}


def chat_request(body: ChatBody) -> ChatRequest:
    """What the engine is asked; raises for what contradicts itself or is not to be had."""
    _check_supported(body)
    _check_consistent(body)
    functions, choice, named = _functions(body)
    schema, strict = _schema(body.response_format)
    return ChatRequest(
        messages=[_message(message, f"messages.{n}") for n, message in enumerate(body.messages)],
        sampling=Sampling(
            max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
            temperature=_or(body.temperature, 1.0),
            top_p=_or(body.top_p, 1.0),
            seed=body.seed,
            presence_penalty=_or(body.presence_penalty, 0.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            logit_bias=body.logit_bias or {},
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        n=body.n or 1,
        functions=functions,
        tool_choice=choice,
        named_function=named,
        parallel_tool_calls=body.parallel_tool_calls is not False and not body.uses_functions,
        json_schema=schema,
        strict_schema=strict,
        streamed=bool(body.stream),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_supported(body: ChatBody) -> None:
    for name in _UNSUPPORTED:
        if getattr(body, name):
            raise Unsupported(f"{name} is not supported here. Remove it.", param=name)
    for name, value in _ONLY.items():
        if getattr(body, name) not in (None, value):
            raise Unsupported(f"{name} can only be {value!r} here. Remove it.", param=name)


def _check_consistent(body: ChatBody) -> None:
    given = body.model_fields_set
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest(
            "max_tokens is the old name of max_completion_tokens: send one of them.", param="max_tokens"
        )
    if {"tools", "functions"} <= given and body.tools and body.functions:
        raise InvalidRequest("functions is the old form of tools: send one of them.", param="functions")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise InvalidRequest("tool_choice needs tools.", param="tool_choice")
    if body.function_call not in (None, "none", "auto") and not body.functions:
        raise InvalidRequest("function_call needs functions.", param="function_call")


def _functions(body: ChatBody) -> tuple[list[Json], Literal["none", "auto", "required"], str | None]:
    declared = body.functions or [tool.function for tool in body.tools or []]
    functions = [function.model_dump(exclude_none=True) for function in declared]
    names = [function["name"] for function in functions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"Two functions have the name {twice!r}.", param="tools")
    choice = body.function_call if body.functions else body.tool_choice
    if choice is None or isinstance(choice, str):
        return functions, choice or "auto", None
    name = choice.name if isinstance(choice, Named) else choice.function.name
    if name not in names:
        param = "function_call" if body.functions else "tool_choice"
        raise InvalidRequest(f"There is no function {name!r} among the given ones.", param=param)
    return functions, "required", name


def _schema(format_: ResponseFormat | None) -> tuple[Json | None, bool]:
    if format_ is None or format_.type == "text":
        return None, True
    if format_.json_schema is None:
        return {"type": "object"}, True
    schema = format_.json_schema.schema_
    return {"type": "object"} if schema is None else schema, bool(format_.json_schema.strict)


def _message(message: AnyMessage, place: str) -> Message:
    """The message in the form that chat templates know: function calls as tool calls."""
    plain = message.model_dump(exclude_none=True, exclude={"annotations", "audio", "parsed"})
    if isinstance(message, FunctionResult):
        return {"role": "tool", "content": message.content or "", "name": message.name}
    if isinstance(message, Answered) and not message.says_something:
        raise InvalidRequest(
            "An assistant's message needs content, tool_calls or refusal.",
            param=f"{place}.content",
            code="missing_required_parameter",
        )
    if isinstance(message, Answered) and message.function_call is not None:
        plain["tool_calls"] = [{"type": "function", "function": plain.pop("function_call")}]
    return plain
