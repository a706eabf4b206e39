"""What an eval run works on: its data source, checked, the lines frozen at its creation, and each line's request.

A line is {"item": {…}, "sample"?: …}; a file may hold bare items too. Everything that can be known before a model
is asked is checked here: the schema, every variable of a template, the form of every request.

    source = data_source({"type": "completions", "model": "tiny", "source": …, "input_messages": …})
    total = freeze(lines, eval_, source, writer)
    body = request_of(source, item)                     # for POST /chat/completions
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, BinaryIO, Literal, Protocol, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from tunekeeper.datasets.formats import Fault, read_lines
from tunekeeper.errors import InvalidData, InvalidRequest, TunekeeperError, Unsupported
from tunekeeper.graders.model import filled_message
from tunekeeper.graders.rows import as_sample
from tunekeeper.graders.spec import (
    InputMessage,
    ScoreModel,
    Spec,
    TextSimilarity,
    item_faults,
    message_templates,
    parse,
    parts_of,
    templates_of,
)
from tunekeeper.graders.template import Ungradable, Variable, template
from tunekeeper.inference.request import ChatBody, ResponseFormat, Timestamp, Tool, chat_request
from tunekeeper.types import Eval, Json, Message, StoredCompletion
from tunekeeper.validation import shape

SEED = 42
"""Of a run whose sampling_params name none."""
MOST_FAULTS = 1000
"""Lines that a refusal names."""

_ROW_KEYS = {"item", "sample"}
_ANY: Json = {"type": "object"}


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class ContentRow(_Shape):
    """One line of a file_content source."""

    item: Json
    sample: Any = None


class FileContent(_Shape):
    """The data in the request itself."""

    type: Literal["file_content"]
    content: Annotated[list[ContentRow], Field(min_length=1)]


class FileId(_Shape):
    """The data in an uploaded file."""

    type: Literal["file_id"]
    id: Annotated[str, Field(min_length=1)]


class StoredSource(_Shape):
    """The data in stored completions."""

    type: Literal["stored_completions"]
    metadata: dict[str, str] | None = None
    model: str | None = None
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None
    limit: Annotated[int, Field(ge=1, lt=2**63)] | None = None


class Templates(_Shape):
    """Messages with variables of the item."""

    type: Literal["template"]
    template: Annotated[list[InputMessage], Field(min_length=1)]

    @field_validator("template")
    @classmethod
    def _reads_the_item(cls, messages: list[InputMessage]) -> list[InputMessage]:
        for variable in _variables(messages):
            if variable.namespace != "item":
                raise ValueError(f"{{{{ {variable} }}}} is not there before the model has answered")
        return messages


class ItemReference(_Shape):
    """Messages that the item holds."""

    type: Literal["item_reference"]
    item_reference: str

    @field_validator("item_reference")
    @classmethod
    def _is_of_the_item(cls, text: str) -> str:
        if _reference(text).namespace != "item":
            raise ValueError("a reference begins with item.: item.messages")
        return text


Messages: TypeAlias = Annotated[Templates | ItemReference, Field(discriminator="type")]


class _Params(_Shape):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, validation_alias=AliasChoices("max_completion_tokens", "max_completions_tokens", "max_tokens")
    )
    reasoning_effort: str | None = None


class ChatParams(_Params):
    """How a completions run samples."""

    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class Text(_Shape):
    """What text a responses run asks for."""

    format: Json


class ResponsesParams(_Params):
    """How a responses run samples; formats and tools are flat there."""

    text: Text | None = None
    tools: Annotated[list[Json], Field(max_length=128)] | None = None


class Jsonl(_Shape):
    """Lines that are graded as they are."""

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class Completions(_Shape):
    """Lines that a model answers; without a model they are graded as they are."""

    type: Literal["completions"]
    source: Annotated[FileContent | FileId | StoredSource, Field(discriminator="type")]
    input_messages: Messages | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    sampling_params: ChatParams | None = None


class Responses(_Shape):
    """The same in the words of the Responses API."""

    type: Literal["responses"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]
    input_messages: Messages | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    sampling_params: ResponsesParams | None = None


DataSource: TypeAlias = Jsonl | Completions | Responses
_SOURCES: Mapping[str, type[Jsonl | Completions | Responses]] = {
    "jsonl": Jsonl,
    "completions": Completions,
    "responses": Responses,
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it came, and where its item lies in it."""

    number: int
    item: Json
    sample: Any = None
    pointer: str = "/item"

    def to_json(self) -> Json:
        """The line as it is kept."""
        return {"item": self.item} if self.sample is None else {"item": self.item, "sample": self.sample}


class BlobWriter(Protocol):
    """Where frozen lines go."""

    def write(self, data: bytes) -> None:
        """Add bytes."""
        ...


# The eval


def data_source_config(asked: Json) -> Json:
    """An eval's config as the API shows it, with the schema of a line; raises InvalidRequest."""
    kind = str(asked.get("type"))
    known = {
        "custom": {"item_schema", "include_sample_schema"},
        "logs": {"metadata"},
        "stored_completions": {"metadata"},
    }
    if kind not in known:
        raise InvalidRequest(
            f"data_source_config.type is {kind!r}; it is one of {', '.join(known)}.", param="data_source_config.type"
        )
    if unknown := sorted(set(asked) - known[kind] - {"type"}):
        raise InvalidRequest(
            f"Unknown parameter: 'data_source_config.{unknown[0]}'. Remove it: it would have no effect.",
            param=f"data_source_config.{unknown[0]}",
            code="unknown_parameter",
        )
    if kind != "custom":
        metadata = asked.get("metadata")
        if metadata is not None and not _is_text_map(metadata):
            raise InvalidRequest("metadata must be a map of texts.", param="data_source_config.metadata")
        return {"type": kind, "schema": _line_schema(_ANY, with_sample=True), "metadata": metadata}
    with_sample = asked.get("include_sample_schema", False)
    if not isinstance(with_sample, bool):
        raise InvalidRequest("It must be true or false.", param="data_source_config.include_sample_schema")
    item_schema = _checked_schema(asked.get("item_schema"))
    return {"type": kind, "schema": _line_schema(item_schema, with_sample=with_sample)}


def criteria(asked: Sequence[Any], config: Json) -> list[Spec]:
    """The graders of an eval, checked against each other and the schema; raises InvalidRequest."""
    if not asked:
        raise InvalidRequest("An eval needs at least one grader that says what passes.", param="testing_criteria")
    specs: list[Spec] = []
    for n, value in enumerate(asked):
        param = f"testing_criteria[{n}]"
        spec = parse(value, param=param)
        if any(other.name == spec.name for other in specs):
            raise InvalidRequest(
                f"Two testing criteria have the name {spec.name!r}. Rename one.", param=f"{param}.name"
            )
        if isinstance(spec, TextSimilarity) and spec.pass_threshold is None:
            raise InvalidRequest(
                f"Missing required parameter: '{param}.pass_threshold'. From which score on does an item pass?",
                param=f"{param}.pass_threshold",
                code="missing_required_parameter",
            )
        for variable in _grader_variables(spec):
            _check_declared(variable, config, f"{param} ({spec.name})", param)
        specs.append(spec)
    return specs


def threshold_of(spec: Spec) -> float:
    """The score from which on an item passes: as declared, else half of the way from nothing to all."""
    declared: float | None = getattr(spec, "pass_threshold", None)
    if declared is not None:
        return declared
    return sum(spec.range) / 2 if isinstance(spec, ScoreModel) else 0.5


# The run


def data_source(asked: Json) -> DataSource:
    """A run's data source in its shape; raises InvalidRequest and Unsupported."""
    kind = str(asked.get("type"))
    if kind not in _SOURCES:
        raise InvalidRequest(
            f"data_source.type is {kind!r}; it is one of {', '.join(_SOURCES)}.", param="data_source.type"
        )
    inner = asked.get("source")
    if kind == "responses" and isinstance(inner, dict) and inner.get("type") == "responses":
        raise Unsupported(
            "Responses are not stored here, so they cannot be a run's data. Give file_content or file_id, or a "
            "completions run with stored_completions.",
            param="data_source.source.type",
        )
    source = shape(_SOURCES[kind], asked, param="data_source")
    if isinstance(source, Jsonl):
        return source
    if source.model is None and source.input_messages is not None and not isinstance(source.source, StoredSource):
        raise InvalidRequest(
            "Missing required parameter: 'data_source.model'. Which model is to answer the input_messages?",
            param="data_source.model",
            code="missing_required_parameter",
        )
    if source.model is not None and source.input_messages is None:
        raise InvalidRequest(
            "Missing required parameter: 'data_source.input_messages'. What is the model to be asked?",
            param="data_source.input_messages",
            code="missing_required_parameter",
        )
    _params(source)
    return source


def model_of(source: DataSource) -> str:
    """The model that is asked; empty: none is."""
    return "" if isinstance(source, Jsonl) else source.model or ""


def without_content(asked: Json) -> Json:
    """A data source without the lines that came in it: they are the run's data."""
    source = asked["source"]
    return {**asked, "source": {key: value for key, value in source.items() if key != "content"}}


def sampling_of(source: DataSource) -> Json:
    """What an output item says of how its sample was made."""
    params = None if isinstance(source, Jsonl) else source.sampling_params
    if params is None:
        return {"temperature": 1.0, "top_p": 1.0, "seed": SEED, "max_completion_tokens": None}
    return {
        "temperature": 1.0 if params.temperature is None else params.temperature,
        "top_p": 1.0 if params.top_p is None else params.top_p,
        "seed": SEED if params.seed is None else params.seed,
        "max_completion_tokens": params.max_completion_tokens,
    }


def request_of(source: Completions | Responses, item: Json) -> Json:
    """The body of POST /chat/completions that an item comes to; raises InvalidRequest."""
    assert source.model
    assert source.input_messages
    body = {"seed": SEED, **_params(source), "model": source.model, "messages": _messages(source.input_messages, item)}
    if isinstance(source.source, StoredSource) or isinstance(source.input_messages, ItemReference):
        for name in ("tools", "response_format"):  # an item that is asked as it is brings its own
            if name not in body and item.get(name):
                body[name] = item[name]
    return body


def lines_of_content(source: FileContent) -> Iterator[Line]:
    """The lines of a request's own data."""
    for number, row in enumerate(source.content, start=1):
        yield Line(number, row.item, row.sample)


def lines_of_file(stream: BinaryIO) -> Iterator[Line | Fault]:
    """The lines of a file: {"item", "sample"?}, or bare items."""
    for line in read_lines(stream):
        if isinstance(line, Fault):
            yield line
        elif isinstance(line.value.get("item"), dict) and set(line.value) <= _ROW_KEYS:
            yield Line(line.number, line.value["item"], line.value.get("sample"))
        else:
            yield Line(line.number, line.value, pointer="")


def lines_of_completions(completions: Iterable[StoredCompletion], limit: int | None = None) -> Iterator[Line]:
    """Of stored completions: what was asked, as item.input, and what was answered, as the sample."""
    for number, stored in enumerate(islice(completions, limit), start=1):
        asked = {name: stored.request[name] for name in ("tools", "response_format") if stored.request.get(name)}
        item = {"input": stored.request["messages"], **asked, "metadata": dict(stored.metadata), "id": stored.id}
        sample = {
            "choices": stored.response["choices"],
            "model": stored.model,
            "usage": stored.response.get("usage"),
            "latency_seconds": stored.latency_s,
        }
        yield Line(number, item, {name: value for name, value in sample.items() if value is not None})


def frozen_lines(stream: BinaryIO) -> Iterator[Line]:
    """The lines of a run's data, from 0."""
    for number, raw in enumerate(stream):
        value = json.loads(raw)
        yield Line(number, value["item"], value.get("sample"))


def freeze(
    lines: Iterator[Line | Fault], eval_: Eval, source: DataSource, writer: BlobWriter, *, is_own_model: bool = False
) -> int:
    """Write the lines that a run will work on, and say how many; raises InvalidData with every fault of every line."""
    if is_own_model:
        _check_params(source)
    check = _Checks(eval_, source, is_own_model=is_own_model)
    faults: list[Fault] = []
    total = n_faults = 0
    for line in lines:
        total += 1
        found = [line] if isinstance(line, Fault) else check(line)
        n_faults += len(found)
        faults += found[: MOST_FAULTS - len(faults)]
        if isinstance(line, Line) and not n_faults:
            writer.write(json.dumps(line.to_json(), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    if n_faults:
        where = f"line {faults[0].line}" + (f" at {faults[0].pointer}" if faults[0].pointer else "")
        more = f" There are {n_faults:,} faults in all." if n_faults > 1 else ""
        raise InvalidData(
            f"The data does not fit the eval, {where}: {faults[0].message}{more}",
            param="data_source.source",
            code="invalid_eval_data",
            details=[{k: v for k, v in fault.to_json().items() if k != "file"} for fault in faults],
        )
    if not total:
        raise InvalidData("The data has no line.", param="data_source.source", code="invalid_eval_data")
    return total


class _Checks:
    """What is asked of each line."""

    def __init__(self, eval_: Eval, source: DataSource, *, is_own_model: bool) -> None:
        self._source = source
        self._is_own_model = is_own_model
        self._specs = [parse(spec) for spec in eval_.testing_criteria]
        schema = eval_.data_source_config["schema"]
        self._validator = _validator(schema["properties"]["item"])
        reads_sample = any(v.namespace == "sample" for spec in self._specs for v in _grader_variables(spec))
        self._needs_sample = not model_of(source) and (reads_sample or "sample" in schema["required"])

    def __call__(self, line: Line) -> list[Fault]:
        """Its faults."""
        return [
            *self._schema(line),
            *self._sample(line),
            *(
                replace(fault, pointer=line.pointer + fault.pointer)
                for spec in self._specs
                for fault in item_faults(spec, line.number, line.item)
                if fault.level == "error"
            ),
            *self._request(line),
        ]

    def _schema(self, line: Line) -> Iterator[Fault]:
        from referencing.exceptions import Unresolvable

        try:
            for error in self._validator.iter_errors(line.item):
                pointer = line.pointer + "".join(f"/{_escaped(step)}" for step in error.absolute_path)
                yield Fault(line.number, pointer, "not_in_schema", "error", f"{error.message[:300]}.")
        except (Unresolvable, RecursionError) as error:
            message = f"the item_schema cannot be followed: {error}."[:300]
            yield Fault(line.number, line.pointer, "not_in_schema", "error", message)

    def _sample(self, line: Line) -> Iterator[Fault]:
        if line.sample is not None and as_sample(line.sample) is None:
            message = "a sample must be a text, an object with output_text, or a chat completion."
            yield Fault(line.number, "/sample", "bad_sample", "error", message)
        elif line.sample is None and self._needs_sample:
            message = "there is no sample to grade. Add one, or make a completions run that names a model."
            yield Fault(line.number, "/sample", "bad_sample", "error", message)

    def _request(self, line: Line) -> Iterator[Fault]:
        if isinstance(self._source, Jsonl) or not self._source.model:
            return
        try:
            body = shape(ChatBody, request_of(self._source, line.item))
            if self._is_own_model:
                chat_request(body)
        except TunekeeperError as error:
            yield Fault(line.number, line.pointer, "bad_request", "error", f"no request comes of it: {error.message}")


def _check_params(source: DataSource) -> None:
    """Raises what our own models do not have, once for all lines and at its place."""
    if isinstance(source, Jsonl):
        return
    hello = [{"role": "user", "content": ""}]
    try:
        chat_request(shape(ChatBody, {**_params(source), "model": source.model, "messages": hello}))
    except TunekeeperError as error:
        if error.param and not error.param.startswith("data_source"):
            error.param = f"data_source.sampling_params.{error.param}"
        raise


def _params(source: Completions | Responses) -> Json:
    """The sampling parameters as a chat request has them."""
    params = source.sampling_params
    if params is None:
        return {}
    given = params.model_dump(exclude_none=True, by_alias=True)
    if isinstance(params, ChatParams):
        return given
    place = "data_source.sampling_params"
    given.pop("text", None)
    if params.text is not None:
        given["response_format"] = _chat_format(params.text.format, f"{place}.text.format")
    if params.tools is not None:
        given["tools"] = [_chat_tool(tool, f"{place}.tools[{n}]") for n, tool in enumerate(params.tools)]
    return given


def _chat_format(flat: Json, param: str) -> Json:
    """{"type", "name", "schema", "strict"} as a chat request's response_format."""
    inner = {key: value for key, value in flat.items() if key != "type"}
    nested = {"type": flat.get("type"), **({"json_schema": inner} if inner else {})}
    shape(ResponseFormat, nested, param=param)
    return nested


def _chat_tool(flat: Json, param: str) -> Json:
    """A flat function as a chat request's tool."""
    if flat.get("type") != "function":
        raise Unsupported(
            f"The tool {flat.get('type')!r} is not to be had here: functions are the only kind.", param=f"{param}.type"
        )
    nested = {"type": "function", "function": {key: value for key, value in flat.items() if key != "type"}}
    shape(Tool, nested, param=param)
    return nested


def _messages(asked: Templates | ItemReference, item: Json) -> list[Message]:
    try:
        if isinstance(asked, Templates):
            return [filled_message(message, {}, item) for message in asked.template]
        reference = _reference(asked.item_reference)
        found = reference.find(item)
    except Ungradable as error:
        raise InvalidRequest(error.message, param="input_messages") from error
    except LookupError:
        raise InvalidRequest(f"{reference}: the item has nothing there.", param="input_messages") from None
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise InvalidRequest(f"{reference} is no list of messages.", param="input_messages")
    return [_trajectory_message(message) for message in found]


def _trajectory_message(message: Message) -> Message:
    """A message of an item: that of a chat, or one whose parts are named as the Responses API names them."""
    kinds = {"input_text": "text", "output_text": "text"}
    content = message.get("content")
    message = {key: value for key, value in message.items() if (key, value) != ("type", "message")}
    if not isinstance(content, list):
        return message
    parts = [
        {**part, "type": kinds.get(str(part.get("type")), part.get("type"))} if isinstance(part, dict) else part
        for part in content
    ]
    return {**message, "content": parts}


def _reference(text: str) -> Variable:
    found = list(template("{{" + text.strip().removeprefix("{{").removesuffix("}}") + "}}").variables)
    if len(found) != 1:
        raise ValueError(f"{text!r} is no reference")
    return found[0]


def _variables(messages: Sequence[InputMessage]) -> Iterator[Variable]:
    return (variable for each in message_templates(messages) for variable in each.variables)


def _grader_variables(spec: Spec) -> Iterator[Variable]:
    return (v for part in parts_of(spec).values() for each in templates_of(part) for v in each.variables)


def _check_declared(variable: Variable, config: Json, where: str, param: str) -> None:
    """Raise InvalidRequest for a variable that no line of this schema can have."""
    schema: Any = config["schema"]["properties"]["item"]
    if variable.namespace != "item":
        return
    for step in variable.path:
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if not isinstance(properties, dict) or isinstance(step, int):
            return
        if step not in properties:
            if schema.get("additionalProperties") is False and not schema.get("patternProperties"):
                raise InvalidRequest(
                    f"{where} reads {{{{ {variable} }}}}, which the item_schema has no room for: it knows "
                    f"{', '.join(properties) or 'nothing'}.",
                    param=param,
                )
            return
        schema = properties[step]


def _line_schema(item_schema: Json, *, with_sample: bool) -> Json:
    properties = {"item": item_schema, **({"sample": _SAMPLE} if with_sample else {})}
    return {"type": "object", "properties": properties, "required": list(properties)}


_SAMPLE: Json = {
    "type": "object",
    "properties": {
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array", "items": {"type": "object"}},
        "choices": {"type": "array", "items": {"type": "object"}},
    },
}


def _checked_schema(schema: Any) -> Json:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    param = "data_source_config.item_schema"
    if not isinstance(schema, dict):
        raise InvalidRequest("item_schema must be a JSON schema: an object.", param=param)
    try:
        kind: Any = validator_for(schema, default=_default_validator())
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)  # which knows regular expressions
    except SchemaError as error:
        pointer = "".join(f"/{_escaped(step)}" for step in error.absolute_path)
        raise InvalidRequest(
            f"item_schema is no JSON schema, at {pointer or 'its top'}: {error.message[:300]}.", param=param
        ) from error
    except RecursionError as error:
        raise InvalidRequest("item_schema is nested too deeply.", param=param) from error
    if schema.get("type") not in (None, "object") and "object" not in schema["type"]:
        raise InvalidRequest(f"An item is an object, and item_schema wants {schema['type']!r}.", param=f"{param}.type")
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InvalidRequest(
                f"item_schema refers to {reference!r}: no schema is fetched from elsewhere. Put it into $defs.",
                param=param,
            )
    return schema


def _validator(schema: Json) -> Any:
    """A validator that fetches nothing."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    registry: Registry[Any] = Registry()
    return validator_for(schema, default=_default_validator())(schema, registry=registry)


def _default_validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")
