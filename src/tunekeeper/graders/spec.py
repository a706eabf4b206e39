"""What a grader is told to do: its JSON, checked; and what every grader is.

    spec = parse({"type": "string_check", "name": "exact", "operation": "eq", "input": …, "reference": …})
    grader = build(spec, sampler=sampler)              # graders.build
    grade = grader.grade(sample, item)                 # -> types.Grade; never raises for what a sample or judge did
    grader.close()                                     # ends what it started: interpreters, pools

`sample` is what the model said: output_text, output_json (where it is JSON), output_tools, choices. `item` is
the line of the data file. Both are plain JSON. `grade` may be called from many threads at once.

The Python grader lives in `graders.code`, behind one function:

    python_grader(source: str, image_tag: str | None) -> Grader
        raises InvalidRequest(param="source") for source that cannot be a grader (syntax, no `grade(sample, item)`),
        Unavailable where nothing here can run it; its grades carry faults of the kinds
        python_grader_runtime_error (it raised, returned text, nothing, NaN; message: the last lines of the
        traceback) and python_grader_server_error (`type`: timeout, memory, …); `GradeFault.grader` is left empty.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import httpx
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tunekeeper.datasets.formats import Fault
from tunekeeper.errors import InvalidRequest, PermissionDenied
from tunekeeper.graders.formula import FUNCTIONS, Formula
from tunekeeper.graders.template import Template, Variable, template
from tunekeeper.types import Grade, Json

METRICS = (
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
)  # fmt: skip
Metric = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]

MAX_SOURCE_BYTES = 256 * 1024
MAX_GRADERS = 64
"""Parts of one multi grader."""

_TEXT_PARTS = ("input_text", "output_text", "text")


class Grader(Protocol):
    """Anything that scores a sample."""

    def grade(self, sample: Json, item: Json) -> Grade:
        """Score one sample; safe to call from many threads at once."""
        ...

    def close(self) -> None:
        """End what was started for it; it grades no more."""
        ...


def _is_template(text: str) -> str:
    template(text)
    return text


def _is_content(content: Any) -> Any:
    """A text, a part or a list of them; raises ValueError."""
    for n, part in enumerate(content if isinstance(content, list) else [content]):
        where = f"part {n} of the content" if isinstance(content, list) else "the content"
        if isinstance(part, str):
            template(part)
            continue
        kind = part.get("type") if isinstance(part, dict) and _is_flat({**part, "input_audio": None}) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            template(part["text"])
        elif kind == "input_image" and isinstance(part.get("image_url"), str):
            template(part["image_url"])
        elif not (kind == "input_audio" and _is_flat(part.get("input_audio"))):
            raise ValueError(f"{where} must be a text, or an input_text, output_text, input_image or input_audio")
    if not content:
        raise ValueError("the content is empty")
    return content


def _is_flat(value: Any) -> bool:
    """Whether it is an object of texts."""
    return isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values())


def is_url(url: str) -> str:
    """The address, if it is one of http or https; raises ValueError."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host or (parts.port or 0) > 65535:
        raise ValueError(f"{url!r} is no http or https address")
    return url


def check_host(url: str, hosts: Collection[str] | None, *, what: str, param: str) -> None:
    """Refuse to let `what` ask a host that the operator has not named; None: any may be asked."""
    host = httpx.URL(url).host  # as the client that asks reads it
    if hosts is not None and host not in hosts:
        raise PermissionDenied(
            f"This server does not let {what} ask {host}. Its operator can: grader_hosts = {host!r}.", param=param
        )


def are_headers(headers: dict[str, str]) -> dict[str, str]:
    """The headers, if HTTP can send them; raises ValueError."""
    for name, value in headers.items():
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or not re.fullmatch(r"[\t -~]*", value):
            raise ValueError(f"the header {name!r} must be of one line and of ASCII")
    return headers


def _is_range(range_: list[float]) -> list[float]:
    if range_[0] >= range_[1]:
        raise ValueError("the range needs its lower bound first, then the upper")
    return range_


Text = Annotated[str, AfterValidator(_is_template)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Named(_Shape):
    name: str = ""
    """Empty: the key under a multi grader, else the type."""


class StringCheck(_Named):
    """Compares two texts: eq, ne; like: the input contains the reference; ilike: whatever the case."""

    type: Literal["string_check"]
    input: Text
    reference: Text
    operation: Annotated[
        Literal["eq", "ne", "like", "ilike"],
        BeforeValidator(lambda value: "ne" if value == "neq" else value),  # the guide's other spelling
    ]


class TextSimilarity(_Named):
    """How alike two texts are."""

    type: Literal["text_similarity"]
    input: Text
    reference: Text
    evaluation_metric: Metric
    pass_threshold: Finite | None = None


class InputMessage(_Shape):
    """One message to a judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Any, AfterValidator(_is_content)]
    type: Literal["message"] = "message"


class SamplingParams(_Shape):
    """How a judge samples."""

    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, validation_alias=AliasChoices("max_completions_tokens", "max_completion_tokens", "max_tokens")
    )
    reasoning_effort: str | None = None


class ScoreModel(_Named):
    """A judge says a number."""

    type: Literal["score_model"]
    model: Annotated[str, Field(min_length=1)]
    input: Annotated[list[InputMessage], Field(min_length=1)]
    range: Annotated[list[Finite], Field(min_length=2, max_length=2), AfterValidator(_is_range)] = [0.0, 1.0]
    sampling_params: SamplingParams | None = None
    pass_threshold: Finite | None = None


class LabelModel(_Named):
    """A judge chooses a label; the score is 1 for the passing ones."""

    type: Literal["label_model"]
    model: Annotated[str, Field(min_length=1)]
    input: Annotated[list[InputMessage], Field(min_length=1)]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    passing_labels: list[str]
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _labels_agree(self) -> "LabelModel":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label stands in labels twice")
        if strange := sorted({*self.passing_labels} - {*self.labels}):
            raise ValueError(f"passing_labels has {strange[0]!r}, which is none of the labels")
        return self


class Python(_Named):
    """Python code with a function `grade(sample, item)`."""

    type: Literal["python"]
    source: str
    image_tag: str | None = None
    pass_threshold: Finite | None = None

    @model_validator(mode="after")
    def _is_short(self) -> "Python":
        if len(self.source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
            raise ValueError(f"the source is longer than {MAX_SOURCE_BYTES:,} bytes")
        return self


class Endpoint(_Named):
    """A server elsewhere that is posted the sample and the item, and answers {"score": number}."""

    type: Literal["endpoint"]
    url: Annotated[str, AfterValidator(is_url)]
    headers: Annotated[dict[str, str], AfterValidator(are_headers)] | None = None
    rate_limit: Annotated[int, Field(ge=1)] | None = None
    """Requests a second, at most."""
    pass_threshold: Finite | None = None


SingleSpec: TypeAlias = StringCheck | TextSimilarity | ScoreModel | LabelModel | Python | Endpoint


def _parts(value: Any, info: ValidationInfo) -> dict[str, SingleSpec]:
    """The graders of a multi grader: a map; the API's types also know a list, and a single one."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = [value]
    if isinstance(value, list):
        names = [part.get("name") if isinstance(part, dict) else None for part in value]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("each of the graders needs a name, by which calculate_output calls it")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two graders have the name {twice!r}")
        value = dict(zip(names, value, strict=True))
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_GRADERS:
        raise ValueError(f"graders must be a map of 1 to {MAX_GRADERS} graders by their names in calculate_output")
    param = (info.context or {}).get("param", "grader")
    return {key: _part(key, spec, f"{param}.graders.{key}") for key, spec in value.items()}


def _part(key: str, spec: Any, param: str) -> SingleSpec:
    if not re.fullmatch(r"[A-Za-z_]\w*", key) or key in FUNCTIONS:
        reason = "is a function's" if key in FUNCTIONS else "must begin with a letter, then letters, digits and _"
        raise InvalidRequest(f"The name {key!r} of a grader in a formula {reason}. Rename it.", param=param)
    if isinstance(spec, dict) and spec.get("type") == "multi":
        raise InvalidRequest(f"{param} is a multi grader: one cannot hold another. Join the two formulas.", param=param)
    parsed = parse(spec, param=param)
    assert not isinstance(parsed, Multi)
    return parsed.model_copy(update={"name": _name_of(spec) or key})


class Multi(_Named):
    """Several graders, and a formula of their scores."""

    type: Literal["multi"]
    graders: Annotated[dict[str, SingleSpec], BeforeValidator(_parts)]
    calculate_output: str
    pass_threshold: Finite | None = None

    @field_validator("calculate_output")
    @classmethod
    def _fits(cls, text: str, info: ValidationInfo) -> str:
        formula = Formula.parse(text)
        graders = info.data.get("graders", formula.names)  # what is wrong with the graders is said already
        if unknown := sorted(formula.names - set(graders)):
            raise ValueError(
                f"the formula speaks of {unknown[0]!r}, which is none of the graders: {', '.join(graders)}"
            )
        return text


Spec: TypeAlias = SingleSpec | Multi
_KINDS: dict[str, type[StringCheck | TextSimilarity | ScoreModel | LabelModel | Python | Endpoint | Multi]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "score_model": ScoreModel,
    "label_model": LabelModel,
    "python": Python,
    "multi": Multi,
    "endpoint": Endpoint,
}
TYPES = tuple(_KINDS)


def parse(value: Any, *, param: str = "grader") -> Spec:
    """The checked grader; raises InvalidRequest, whose `param` is the place of the first fault."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object with a type.", param=param)
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        asked = f"has the type {kind!r}" if kind is not None else "has no type"
        raise InvalidRequest(f"{param} {asked}; there are {', '.join(TYPES)}.", param=f"{param}.type")
    try:
        spec = _KINDS[kind].model_validate(value, context={"param": param})
    except ValidationError as error:
        raise explained(error, param) from error
    return spec if spec.name else spec.model_copy(update={"name": kind})


def to_json(spec: Spec) -> Json:
    """The grader as the API shows it."""
    return spec.model_dump(exclude_none=True)


def parts_of(spec: Spec) -> Mapping[str, SingleSpec]:
    """The graders that look at a sample: of a multi grader its parts, else the grader itself, by name."""
    return spec.graders if isinstance(spec, Multi) else {spec.name: spec}


def templates_of(spec: SingleSpec) -> Iterator[Template]:
    """The templates of a grader."""
    if isinstance(spec, StringCheck | TextSimilarity):
        yield template(spec.input)
        yield template(spec.reference)
    elif isinstance(spec, ScoreModel | LabelModel):
        yield from message_templates(spec.input)


def message_templates(messages: Sequence[InputMessage]) -> Iterator[Template]:
    """The templates of messages."""
    for message in messages:
        for part in message.content if isinstance(message.content, list) else [message.content]:
            text = part if isinstance(part, str) else part.get("text") or part.get("image_url")
            if text:
                yield template(text)


def item_faults(spec: Spec, line: int, item: Json) -> list[Fault]:
    """What a line of a data file lacks for this grader: each variable that is not there, once a grader."""
    missing = [
        Fault(
            line,
            variable.pointer,
            "missing_grader_variable",
            "error",
            f"the grader {name!r} reads {{{{ {variable} }}}}, which is not there. Add it, or correct the template.",
        )
        for name, part in parts_of(spec).items()
        for variable in _item_variables(part)
        if not _is_there(variable, item)
    ]
    return missing or [
        Fault(
            line,
            "",
            "reference_without_words",
            "warn",
            f"the grader {name!r} compares by {part.evaluation_metric}, which reads only a-z and 0-9, and nothing is "
            "left of the reference: every score is 0. Take fuzzy_match or bleu.",
        )
        for name, part in parts_of(spec).items()
        if isinstance(part, TextSimilarity)
        and part.evaluation_metric.startswith("rouge_")
        and not _has_rouge_words(template(part.reference), item)
    ]


def _item_variables(spec: SingleSpec) -> Sequence[Variable]:
    found = (variable for each in templates_of(spec) for variable in each.variables)
    return list(dict.fromkeys(variable for variable in found if variable.namespace == "item"))


def _is_there(variable: Variable, item: Json) -> bool:
    try:
        variable.find(item)
    except LookupError:
        return False
    return True


def _has_rouge_words(reference: Template, item: Json) -> bool:
    if any(variable.namespace == "sample" for variable in reference.variables):
        return True  # nobody knows yet
    return re.search(r"[a-z0-9]", reference.render({}, item).lower()) is not None


def _name_of(spec: Any) -> str:
    return str(spec.get("name") or "")


def explained(error: ValidationError, param: str) -> InvalidRequest:
    """Our error for pydantic's; further faults are its details."""
    codes = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    found = []
    for fault in error.errors():
        place = ".".join([param, *map(str, fault["loc"])])
        reason = fault["msg"].removeprefix("Value error, ").rstrip(".")
        messages = {
            "missing": f"Missing required parameter: '{place}'.",
            "extra_forbidden": f"Unknown parameter: '{place}'. Remove it: it would have no effect.",
        }
        message = messages.get(fault["type"], f"Invalid value for '{place}': {reason}.")
        found.append({"message": message, "param": place, "code": codes.get(fault["type"], "invalid_value")})
    first = found[0]
    return InvalidRequest(
        first["message"], param=first["param"], code=first["code"], details=found if len(found) > 1 else ()
    )


def is_score(value: Any) -> bool:
    """Whether a value can be a score: a finite number, and no truth value."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False
