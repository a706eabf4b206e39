"""Methods and their hyperparameters: what a client may say, its bounds, and what "auto" comes to.

Names are OpenAI's where OpenAI has one; the rest are extensions, sent in the same `hyperparameters` object.
Nothing is ignored: a name that is not in the table is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tunekeeper.errors import InvalidConfig
from tunekeeper.types import Json

Scope = Literal["all", "completion"]
METHODS = ("supervised", "dpo", "reinforcement")


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Stop when the validation loss no longer falls."""

    patience: int = 3
    """Evaluations without an improvement before the run stops."""
    min_delta: float = 0.0
    """A smaller improvement counts as none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What every method has, every number resolved."""

    n_epochs: int
    batch_size: int
    """Examples an optimizer step."""
    learning_rate_multiplier: float
    learning_rate: float
    """Peak learning rate; `learning_rate_multiplier` times what fits the model's width and the method."""
    lora_rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    """Last names of the adapted linear layers; ("all-linear",) is all but the head."""
    adapter_scope: Scope
    """Which tokens the adapter acts on: all, or the completion only (activated LoRA)."""
    full_finetune: bool
    max_seq_len: int
    warmup_ratio: float
    weight_decay: float
    scheduler: Literal["linear", "cosine", "constant"]
    max_grad_norm: float
    save_every: int
    """Steps between two saved states, from which a killed run goes on."""
    max_wall_seconds: float | None
    max_cost: float | None
    dtype: Literal["auto", "fp32", "bf16"]

    def to_wire(self) -> Json:
        """As the `hyperparameters` of the job's method."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(TrainingConfig):
    """Supervised fine-tuning."""

    prompt_loss_weight: float
    eval_steps: int
    """Steps between two measurements on a batch of the validation file; 0 without a validation file."""
    early_stopping: EarlyStopping | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig(TrainingConfig):
    """Direct preference optimisation."""

    beta: float
    """How hard the model is held to the one that it started from; lower lets it move further."""
    eval_steps: int
    """Steps between two measurements on a batch of the validation file; 0 without a validation file."""
    early_stopping: EarlyStopping | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcementConfig(TrainingConfig):
    """Reinforcement fine-tuning."""

    compute_multiplier: float
    num_generations: int
    """Answers that are sampled to each problem of a step: the group that they are compared within."""
    max_completion_tokens: int
    temperature: float
    kl_coef: float
    """Reward that an answer loses for each nat by which it has become likelier than under the starting model."""
    reasoning_effort: Literal["default", "low", "medium", "high"]
    eval_interval: int
    """Steps between two evaluations on the whole validation file."""
    eval_samples: int
    """Answers to each problem of the validation file in an evaluation."""


Config = SupervisedConfig | DpoConfig | ReinforcementConfig


def method_of(config: Config) -> str:
    """The name of a config's method."""
    return {SupervisedConfig: "supervised", DpoConfig: "dpo", ReinforcementConfig: "reinforcement"}[type(config)]


@dataclass(frozen=True, slots=True)
class _Bound:
    """What a hyperparameter may be: a kind, an inclusive range or choices, and whether "auto" or null are words."""

    kind: type
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    auto: bool = False
    nullable: bool = False
    methods: tuple[str, ...] = METHODS


_ON_FILES = ("supervised", "dpo")
_RFT = ("reinforcement",)

BOUNDS: Mapping[str, _Bound] = {
    "n_epochs": _Bound(int, 1, 50, auto=True),
    "batch_size": _Bound(int, 1, 256, auto=True),
    "learning_rate_multiplier": _Bound(float, above=0, high=1000, auto=True),
    "prompt_loss_weight": _Bound(float, 0, 1, methods=("supervised",)),
    "beta": _Bound(float, above=0, high=2, auto=True, methods=("dpo",)),
    "compute_multiplier": _Bound(float, above=1e-5, high=10, auto=True, methods=_RFT),
    "num_generations": _Bound(int, 2, 128, auto=True, methods=_RFT),
    "max_completion_tokens": _Bound(int, 1, 1_048_576, auto=True, methods=_RFT),
    "temperature": _Bound(float, above=0, high=2, methods=_RFT),
    "kl_coef": _Bound(float, 0, 10, methods=_RFT),
    "reasoning_effort": _Bound(str, choices=("default", "low", "medium", "high"), methods=_RFT),
    "eval_interval": _Bound(int, 1, 1_000_000, auto=True, methods=_RFT),
    "eval_samples": _Bound(int, 1, 128, auto=True, methods=_RFT),
    "lora_rank": _Bound(int, 1, 512, auto=True),
    "lora_alpha": _Bound(float, above=0, high=4096, auto=True),
    "target_modules": _Bound(list),
    "adapter_scope": _Bound(str, choices=("all", "completion")),
    "full_finetune": _Bound(bool),
    "max_seq_len": _Bound(int, 8, 1_048_576, auto=True),
    "warmup_ratio": _Bound(float, 0, 1),
    "weight_decay": _Bound(float, 0, 1),
    "scheduler": _Bound(str, choices=("linear", "cosine", "constant")),
    "max_grad_norm": _Bound(float, above=0, high=1000),
    "eval_steps": _Bound(int, 1, 1_000_000, auto=True, methods=_ON_FILES),
    "early_stopping": _Bound(dict, nullable=True, methods=_ON_FILES),
    "save_every": _Bound(int, 1, 1_000_000, auto=True),
    "max_wall_seconds": _Bound(float, above=0, nullable=True),
    "max_cost": _Bound(float, above=0, nullable=True),
    "dtype": _Bound(str, choices=("auto", "fp32", "bf16")),
}

DEFAULTS: Mapping[str, Any] = {
    "prompt_loss_weight": 0.0,
    "temperature": 1.0,
    "kl_coef": 0.0,
    "reasoning_effort": "default",
    "target_modules": ["all-linear"],
    "adapter_scope": "all",
    "full_finetune": False,
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "scheduler": "linear",
    "max_grad_norm": 1.0,
    "early_stopping": None,
    "max_wall_seconds": None,
    "max_cost": None,
    "dtype": "auto",
}

AUTO_GENERATIONS = 8
"""Answers to a problem at a compute_multiplier of 1."""

MOST_EPISODE_STEPS = 100

AUTO_COMPLETION_TOKENS: Mapping[str, int] = {"low": 256, "default": 512, "medium": 512, "high": 1024}
"""max_completion_tokens by reasoning_effort: how long an answer may think."""

_BODY_KEYS: Mapping[str, frozenset[str]] = {
    "supervised": frozenset({"hyperparameters"}),
    "dpo": frozenset({"hyperparameters"}),
    "reinforcement": frozenset({"hyperparameters", "grader", "response_format", "tools", "max_episode_steps"}),
}


def validate_method(method: Json) -> Json:
    """Check what a client sent as `method`, without data; return it with every hyperparameter that it named.

    A grader and tools are only looked for; what is inside is checked where these are known. Raises InvalidConfig or
    Unsupported with the dotted parameter.
    """
    kind = method.get("type")
    if kind not in METHODS:
        raise InvalidConfig(f"method.type is {kind!r}; it must be one of {', '.join(METHODS)}.", param="method.type")
    for name in method:
        if name not in {"type", kind}:
            raise InvalidConfig(f"method.{name} does not belong to a method of type {kind!r}.", param=f"method.{name}")
    body = method.get(kind) or {}
    if not isinstance(body, dict):
        raise InvalidConfig(f"method.{kind} must be an object.", param=f"method.{kind}")
    for name in body:
        if name not in _BODY_KEYS[kind]:
            raise InvalidConfig(f"method.{kind}.{name} is unknown.", param=f"method.{kind}.{name}")
    prefix = f"method.{kind}.hyperparameters"
    values = body.get("hyperparameters") or {}
    if not isinstance(values, dict):
        raise InvalidConfig(f"{prefix} must be an object.", param=prefix)
    checked = {name: _checked(kind, name, value, f"{prefix}.{name}") for name, value in values.items()}
    _check_together(checked, prefix)
    rest = _checked_reinforcement(body) if kind == "reinforcement" else {}
    return {"type": kind, kind: {**rest, "hyperparameters": checked}}


def hyperparameters_of(method: Json) -> Json:
    """What a checked method names."""
    values: Json = method[method["type"]]["hyperparameters"]
    return values


def _check_together(checked: Json, prefix: str) -> None:
    """Refuse what contradicts itself."""
    if checked.get("full_finetune"):
        for name in ("lora_rank", "lora_alpha", "target_modules", "adapter_scope"):
            if name in checked:
                raise InvalidConfig(f"{name} has no meaning with full_finetune.", param=f"{prefix}.{name}")
        if checked.get("kl_coef"):
            raise InvalidConfig(
                "kl_coef compares with the starting model, which full_finetune overwrites; use LoRA, or leave it out.",
                param=f"{prefix}.kl_coef",
            )
    if checked.get("adapter_scope") == "completion" and checked.get("prompt_loss_weight"):
        raise InvalidConfig(
            "prompt_loss_weight needs adapter_scope 'all': with 'completion' the prompt is not trained.",
            param=f"{prefix}.prompt_loss_weight",
        )
    multiplier, generations = checked.get("compute_multiplier", "auto"), checked.get("num_generations", "auto")
    if "auto" not in (multiplier, generations) and generations != _generations(multiplier):
        raise InvalidConfig(
            f"compute_multiplier {multiplier:g} comes to {_generations(multiplier)} answers to a problem, "
            f"num_generations says {generations}; send one of them.",
            param=f"{prefix}.num_generations",
        )


def _checked_reinforcement(body: Json) -> Json:
    """The parts of method.reinforcement that are no hyperparameters."""
    prefix = "method.reinforcement"
    grader = body.get("grader")
    if not isinstance(grader, dict):
        raise InvalidConfig(
            "method.reinforcement.grader is missing: it gives the score of an answer. Send a grader object.",
            param=f"{prefix}.grader",
        )
    checked: Json = {"grader": grader}
    tools, most = body.get("tools"), body.get("max_episode_steps")
    if tools is not None and not isinstance(tools, list):
        raise InvalidConfig(f"{prefix}.tools must be a list of servers.", param=f"{prefix}.tools")
    if tools:
        checked["tools"] = tools
    if most is not None:
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_EPISODE_STEPS:
            raise InvalidConfig(
                f"{prefix}.max_episode_steps is {most!r}; it must be a whole number from 1 to {MOST_EPISODE_STEPS}.",
                param=f"{prefix}.max_episode_steps",
            )
        if not tools:
            raise InvalidConfig(
                f"{prefix}.max_episode_steps has no meaning without {prefix}.tools: an answer is one turn.",
                param=f"{prefix}.max_episode_steps",
            )
        checked["max_episode_steps"] = most
    if body.get("response_format") is not None:
        checked["response_format"] = _response_format(body["response_format"], f"{prefix}.response_format")
    return checked


def _response_format(given: Any, param: str) -> Json:
    """In the form of chat requests; the flat form of some samples is brought into it."""
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text" or kind == "json_object":
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidConfig(f"{param}.type must be text, json_object or json_schema.", param=f"{param}.type")
    inner = given.get("json_schema", {name: value for name, value in given.items() if name != "type"})
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise InvalidConfig(f"{param}.json_schema needs a name and a schema, an object.", param=f"{param}.json_schema")
    name, strict = inner.get("name", "answer"), inner.get("strict")
    return {"type": kind, "json_schema": {"name": name, "schema": inner["schema"], "strict": strict is not False}}


def _checked(kind: str, name: str, value: Any, param: str) -> Any:
    bound = BOUNDS.get(name)
    if bound is None or kind not in bound.methods:
        known = [other for other, its in BOUNDS.items() if kind in its.methods]
        why = "is unknown" if bound is None else f"does not belong to the method {kind!r}"
        raise InvalidConfig(f"{param} {why}. Known are: {', '.join(known)}.", param=param)
    if (value == "auto" and bound.auto) or (value is None and bound.nullable):
        return value
    if value is None:  # the stock client sends null for what it was not given
        return DEFAULTS.get(name, "auto")
    if bound.kind is list:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise InvalidConfig(
                f"{param} must be a list of names of linear layers, as ['q_proj', 'v_proj'].", param=param
            )
        return value
    if bound.kind is dict:
        return _early_stopping(value, param)
    number = bound.kind in (int, float)
    fits = isinstance(value, (int, float) if bound.kind is float else bound.kind)
    if not fits or (number and isinstance(value, bool)):
        word = '"auto" or ' if bound.auto else ""
        raise InvalidConfig(f"{param} is {value!r}; it must be {word}of type {bound.kind.__name__}.", param=param)
    if bound.choices and value not in bound.choices:
        raise InvalidConfig(f"{param} is {value!r}; it must be one of {', '.join(bound.choices)}.", param=param)
    if number and not _in_range(value, bound):
        raise InvalidConfig(f"{param} is {value}; it must be {_range(bound)}.", param=param)
    return value


def _in_range(value: float, bound: _Bound) -> bool:
    return (
        (bound.low is None or value >= bound.low)
        and (bound.high is None or value <= bound.high)
        and (bound.above is None or value > bound.above)
    )


def _range(bound: _Bound) -> str:
    parts = [f"at least {bound.low}"] if bound.low is not None else []
    parts += [f"above {bound.above}"] if bound.above is not None else []
    parts += [f"at most {bound.high}"] if bound.high is not None else []
    return " and ".join(parts)


def _early_stopping(value: Any, param: str) -> Json:
    known = {f.name for f in fields(EarlyStopping)}
    if not isinstance(value, dict) or not set(value) <= known:
        raise InvalidConfig(f"{param} must be an object with {' and '.join(sorted(known))}.", param=param)
    patience, delta = value.get("patience", 3), value.get("min_delta", 0.0)
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        raise InvalidConfig(f"{param}.patience must be a whole number of at least 1.", param=f"{param}.patience")
    if not isinstance(delta, int | float) or isinstance(delta, bool) or delta < 0:
        raise InvalidConfig(f"{param}.min_delta must be a number of at least 0.", param=f"{param}.min_delta")
    return {"patience": patience, "min_delta": float(delta)}


def resolve(
    method: Json, *, n_examples: int, n_valid: int, context: int, hidden_size: int, parent: Json | None = None
) -> Config:
    """Turn a checked method into numbers, from the size of the data and of the model.

    `context` is the longest sequence that the model takes. `parent` is the adapter that the run starts from
    (rank, alpha, scope): its values are the child's, for one adapter comes out.
    """
    kind = method["type"]
    prefix = f"method.{kind}.hyperparameters"
    said = {name: value for name, value in hyperparameters_of(method).items() if value != "auto"}
    values = {**DEFAULTS, **said, **_inherited(said, parent, prefix)}
    full = values["full_finetune"]
    if full and parent is not None:
        raise InvalidConfig(
            "full_finetune cannot start from a model with an adapter; start from its base.",
            param=f"{prefix}.full_finetune",
        )
    if values["early_stopping"] is not None and not n_valid:
        raise InvalidConfig("early_stopping needs a validation_file.", param=f"{prefix}.early_stopping")
    batch_size = min(values.get("batch_size", auto_batch_size(n_examples, kind)), max(n_examples, 1))
    n_epochs = values.get("n_epochs", auto_epochs(n_examples, kind))
    per_epoch = max(1, -(-n_examples // batch_size))
    multiplier = float(values.get("learning_rate_multiplier", 1.0))
    rank = values.get("lora_rank", 16)
    context = min(values.get("max_seq_len", context), context)
    shared: dict[str, Any] = {
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": multiplier,
        "learning_rate": multiplier * base_learning_rate(hidden_size, full=full, method=kind),
        "lora_rank": rank,
        "lora_alpha": float(values.get("lora_alpha", 2 * rank)),
        "target_modules": tuple(values["target_modules"]),
        "adapter_scope": values["adapter_scope"],
        "full_finetune": full,
        "max_seq_len": context,
        "warmup_ratio": float(values["warmup_ratio"]),
        "weight_decay": float(values["weight_decay"]),
        "scheduler": values["scheduler"],
        "max_grad_norm": float(values["max_grad_norm"]),
        "save_every": values.get("save_every", 1 if kind == "reinforcement" else min(50, max(5, per_epoch // 4))),
        "max_wall_seconds": values["max_wall_seconds"],
        "max_cost": values["max_cost"],
        "dtype": values["dtype"],
    }
    if kind == "reinforcement":
        return ReinforcementConfig(**shared, **_rollout_values(values, context, per_epoch * n_epochs))
    stop = values["early_stopping"]
    shared["eval_steps"] = values.get("eval_steps", max(1, per_epoch // 4)) if n_valid else 0
    shared["early_stopping"] = EarlyStopping(**stop) if stop else None
    if kind == "dpo":
        return DpoConfig(**shared, beta=float(values.get("beta", 0.1)))
    return SupervisedConfig(**shared, prompt_loss_weight=float(values["prompt_loss_weight"]))


def _inherited(said: Json, parent: Json | None, prefix: str) -> Json:
    """What a child takes over from the adapter that it starts from; raises InvalidConfig for what contradicts it."""
    for name, value in (parent or {}).items():
        if name in said and said[name] != value:
            raise InvalidConfig(
                f"{prefix}.{name} is {said[name]!r}, but the model to start from has {value!r}, and its adapter is "
                "trained further. Leave it out.",
                param=f"{prefix}.{name}",
            )
    return parent or {}


def _rollout_values(values: Json, context: int, total_steps: int) -> Json:
    """The numbers that only reinforcement has."""
    generations = values.get("num_generations", _generations(values.get("compute_multiplier", 1.0)))
    effort = values["reasoning_effort"]
    return {
        "compute_multiplier": float(values.get("compute_multiplier", generations / AUTO_GENERATIONS)),
        "num_generations": generations,
        "max_completion_tokens": min(
            values.get("max_completion_tokens", min(AUTO_COMPLETION_TOKENS[effort], context // 2)), context - 1
        ),
        "temperature": float(values["temperature"]),
        "kl_coef": float(values["kl_coef"]),
        "reasoning_effort": effort,
        "eval_interval": values.get("eval_interval", max(1, total_steps // 10)),
        "eval_samples": values.get("eval_samples", 1),
    }


def _generations(multiplier: float) -> int:
    return max(2, round(AUTO_GENERATIONS * multiplier))


def auto_batch_size(n_examples: int, method: str = "supervised") -> int:
    """About 40 steps an epoch, at most 64 examples a step: small data needs steps more than smooth gradients.

    A problem of reinforcement is a group of answers already: at most 8 a step.
    """
    return max(1, min(8 if method == "reinforcement" else 64, n_examples // 40))


def auto_epochs(n_examples: int, method: str = "supervised") -> int:
    """Few examples are seen more often: 6 epochs below 100, 3 below 2,000, then 2, and 1 from 50,000 on.

    Preferences, which are memorised sooner, half as often; problems until there were about 100 steps.
    """
    if method == "reinforcement":
        steps = -(-n_examples // auto_batch_size(n_examples, method))
        return max(1, min(10, round(100 / max(1, steps))))
    epochs = 6 if n_examples < 100 else 3 if n_examples < 2_000 else 2 if n_examples < 50_000 else 1
    return max(1, epochs // 2) if method == "dpo" else epochs


def base_learning_rate(hidden_size: int, *, full: bool, method: str = "supervised") -> float:
    """The learning rate that a multiplier of 1 stands for: wider models take smaller steps.

    LoRA's best rate is about ten times full fine-tuning's, and falls with the width (Thinking Machines, "LoRA
    Without Regret", 2025). Preferences and rewards move a model that works already: a tenth of the rate.
    """
    rate: float = 1e-3 * (576 / hidden_size) ** 0.78
    return rate * (0.1 if full else 1.0) * (1.0 if method == "supervised" else 0.1)


def learning_rate_at(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then the schedule, never quite 0."""
    warmup = max(1, round(config.warmup_ratio * total_steps))
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup + 1)
    factors: dict[str, float] = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": 1.0,
    }
    return config.learning_rate * factors[config.scheduler]
