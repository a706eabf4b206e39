"""The nouns of Tunekeeper, as frozen dataclasses: what storage keeps and every layer speaks of.

Times are whole Unix seconds. `dict` fields hold JSON as the client sent it.
"""

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Message = dict[str, Any]
"""A chat message in OpenAI's form: role, content, and what belongs to the role."""

Purpose = Literal[
    "assistants", "batch", "fine-tune", "vision", "user_data", "evals", "fine-tune-results", "batch_output"
]
FileStatus = Literal["uploaded", "processed", "error"]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]
ModelKind = Literal["base", "adapter", "full"]
EventLevel = Literal["info", "warn", "error"]
JobRequest = Literal["cancel", "pause"]
EvalRunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
EvalItemStatus = Literal["pass", "fail", "error"]

_ALPHABET = string.ascii_letters + string.digits

TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""Job states that no longer change."""


def new_id(prefix: str, length: int = 24) -> str:
    """A fresh id in OpenAI's form: `new_id("file-")`."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """An uploaded or produced file; its bytes lie in the blob store under `sha256`."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sha256: str
    status: FileStatus = "uploaded"
    status_details: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file that arrives in parts."""

    id: str
    created_at: int
    filename: str
    bytes: int
    purpose: str
    mime_type: str
    status: UploadStatus
    expires_at: int
    file_id: str | None = None
    file_expires_after_s: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadPart:
    """One part of an upload; parts may arrive in any order."""

    id: str
    upload_id: str
    created_at: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A base model, or one that a job made, under the id that requests name."""

    id: str
    created_at: int
    kind: ModelKind
    path: str
    """Directory, relative to the home directory or absolute: weights of a base, adapter files of an adapter."""
    base: str
    """Id of the base model under it; a base names itself."""
    owned_by: str = "tunekeeper"
    parent: str | None = None
    """The model that the job started from."""
    job_id: str | None = None
    step: int | None = None
    """Set for a checkpoint: the training step that it was taken at."""
    info: Json = field(default_factory=dict)
    """What else is known: context_window, license, architecture, parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One fine-tuning run. `method` holds what was asked; `resolved` the numbers that it came to."""

    id: str
    created_at: int
    model: str
    training_file: str
    method: Json
    seed: int
    status: JobStatus = "validating_files"
    validation_file: str | None = None
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Json] | None = None
    resolved: Json | None = None
    estimate: Json | None = None
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    result_file: str | None = None
    trained_tokens: int | None = None
    error: Json | None = None
    """`{code, message, param, details?}` of a failed job."""
    estimated_finish: int | None = None
    request: JobRequest | None = None
    """What a client asked of a running job; the worker answers it between two steps."""
    step: int = 0
    total_steps: int | None = None
    attempts: int = 0
    lease_owner: str | None = None
    lease_expires_at: float | None = None
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of a job's history; `data` holds the numbers of a metrics event."""

    id: str
    job_id: str
    created_at: int
    level: EventLevel
    message: str
    type: Literal["message", "metrics"] = "message"
    data: Json | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model that a running job left behind at a step."""

    id: str
    job_id: str
    created_at: int
    model: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """A project that may use a checkpoint."""

    id: str
    checkpoint: str
    created_at: int
    project_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Eval:
    """What is asked of a model: the form of the items, and the graders that must all pass."""

    id: str
    created_at: int
    name: str
    data_source_config: Json
    """`{type, schema, metadata?}`: the schema of a line, an object with `item` and perhaps `sample`."""
    testing_criteria: list[Json]
    """Graders, checked."""
    metadata: dict[str, str] | None = None
    revision: int = 0
    """Rises with each change of any eval; lists by time of change follow it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRun:
    """One model, or given answers, over frozen items."""

    id: str
    eval_id: str
    created_at: int
    name: str
    data_source: Json
    """As asked, without the content of a file_content source: that is the data."""
    sha256: str
    """The data, a blob: a line an item, {"item", "sample"?}."""
    total: int
    """Lines of the data."""
    model: str = ""
    """Empty: answers are graded that came with the items."""
    metadata: dict[str, str] | None = None
    status: EvalRunStatus = "queued"
    error: Json | None = None
    """`{code, message}` of a failed run."""
    finished_at: int | None = None
    tally: Json = field(default_factory=dict)
    """What the stored items add up to: passed, failed, errored, criteria, usage by model, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalItem:
    """What came of one item in one run."""

    id: str
    run_id: str
    eval_id: str
    created_at: int
    datasource_item_id: int
    """The line of the data, from 0."""
    status: EvalItemStatus
    datasource_item: Json
    results: list[Json]
    """`{name, type, score, passed, …}` of each criterion in order; empty where there was nothing to grade."""
    sample: Json
    usage: Json = field(default_factory=dict)
    """Tokens by model, the judges' among them."""
    latency_s: float | None = None
    """From the request to the whole answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is stored: the hash, never the key."""

    id: str
    name: str
    created_at: int
    hash: str
    hint: str
    """The first and last characters, to recognise it by."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion: its tokens, and the loss weight of each (0: not learned)."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt (the trunk) and its completions (the branches), tokenised.

    SFT has one branch, DPO two, RFT a group. A branch sees its trunk and itself, never a sibling.
    """

    trunk: tuple[int, ...]
    branches: tuple[Branch, ...]
    trunk_weights: tuple[float, ...] = ()
    """Loss weight of each trunk token; empty: none is learned."""
    line: int = 0
    """Line of the training file that it came from, from 1."""

    @property
    def size(self) -> int:
        """Tokens that the forward pass computes."""
        return len(self.trunk) + sum(len(branch.tokens) for branch in self.branches)


GradeFaultKind = Literal[
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
]
"""What can go wrong while grading, in OpenAI's words: the flags of `metadata.errors`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradeFault:
    """Why a grader has no score for a sample; it is counted and shown, never taken for a score of 0."""

    kind: GradeFaultKind
    message: str
    """What happened and what to do, for a person; a traceback's last lines where a grader's code failed."""
    grader: str = ""
    """The grader's name; under a multi grader the key. Filled in by `graders.build`."""
    type: str | None = None
    """With python_grader_server_error: what the runner ran into (timeout, memory, …)."""
    by_sample: bool = False
    """The sample is to blame (it is not JSON, a key or a call is missing): its 0 is earned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What one grader says of one sample."""

    score: float
    """Finite. 0.0 where there are faults, as OpenAI answers; look at `faults` before you trust a 0."""
    faults: tuple[GradeFault, ...] = ()
    sub_scores: Mapping[str, float] = field(default_factory=dict)
    """Of a multi grader: each part's score by its key; a part whose fault is not the sample's has none."""
    execution_time_s: float = 0.0
    token_usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens, prompt and completion, by the judge model that took them."""
    sampled_model: str | None = None
    """The judge model."""
    details: Json = field(default_factory=dict)
    """What else the grader says: a judge's steps or label."""

    @property
    def is_valid(self) -> bool:
        """Whether the score says something about the sample: learn from no other."""
        return all(fault.by_sample for fault in self.faults)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCompletion:
    """A chat that was answered here and kept: what was asked, and the whole answer."""

    id: str
    created: int
    model: str
    """Who answered, as the answer says; `request["model"]` is the name that was asked for."""
    request: Json
    """As the client sent it, without store, metadata and how it was streamed."""
    response: Json
    """The answer's choices, usage and whatever else it said."""
    source: str
    """Name of the upstream that answered; "own": a model of this server."""
    metadata: dict[str, str] = field(default_factory=dict)
    request_id: str | None = None
    latency_s: float | None = None
    """From the request's arrival to the end of the answer."""
    bytes: int = 0
    """What request, response and metadata take as JSON; the store fills it in."""
    pinned: bool = False
    """Kept when older ones make room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionFilter:
    """Which stored completions are meant: those that fit everything that is set."""

    model: str | None = None
    """The model that answered, or the name under which it was asked for."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Pairs that it must carry, all of them."""
    created_after: int | None = None
    """Unix seconds; from then on."""
    created_before: int | None = None
    """Unix seconds; up to then."""
    source: str | None = None
    tools: bool | None = None
    """Whether the request offered tools."""
    pinned: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionTotals:
    """What is kept of completions, and what was not kept or went."""

    completions: int = 0
    bytes: int = 0
    pinned: int = 0
    pinned_bytes: int = 0
    evicted: int = 0
    """Made room for newer ones, since the home directory was made."""
    expired: int = 0
    """Were older than `retention_days`."""
    refused: int = 0
    """Found no room, because everything that would have made room is pinned."""
