"""Methods and their hyperparameters: what a client may say, its bounds, and what "auto" comes to.

Names are OpenAI's where OpenAI has one; the rest are extensions, sent in the same `hyperparameters` object.
Nothing is ignored: a name that is not in the table is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tunekeeper.errors import InvalidConfig, Unsupported
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
class SupervisedConfig:
    """Supervised fine-tuning, every number resolved."""

    n_epochs: int
    batch_size: int
    """Examples an optimizer step."""
    learning_rate_multiplier: float
    learning_rate: float
    """Peak learning rate; `learning_rate_multiplier` times what fits the model's width."""
    prompt_loss_weight: float
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
    eval_steps: int
    """Steps between two measurements on a batch of the validation file; 0 without a validation file."""
    early_stopping: EarlyStopping | None
    save_every: int
    """Steps between two saved states, from which a killed run goes on."""
    max_wall_seconds: float | None
    max_cost: float | None
    dtype: Literal["auto", "fp32", "bf16"]

    def to_wire(self) -> Json:
        """As the job's `method.supervised.hyperparameters`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


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


BOUNDS: Mapping[str, _Bound] = {
    "n_epochs": _Bound(int, 1, 50, auto=True),
    "batch_size": _Bound(int, 1, 256, auto=True),
    "learning_rate_multiplier": _Bound(float, above=0, high=1000, auto=True),
    "prompt_loss_weight": _Bound(float, 0, 1),
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
    "eval_steps": _Bound(int, 1, 1_000_000, auto=True),
    "early_stopping": _Bound(dict, nullable=True),
    "save_every": _Bound(int, 1, 1_000_000, auto=True),
    "max_wall_seconds": _Bound(float, above=0, nullable=True),
    "max_cost": _Bound(float, above=0, nullable=True),
    "dtype": _Bound(str, choices=("auto", "fp32", "bf16")),
}

DEFAULTS: Mapping[str, Any] = {
    "prompt_loss_weight": 0.0,
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


def validate_method(method: Json) -> Json:
    """Check what a client sent as `method`, without data; return it with every hyperparameter that it named.

    Raises InvalidConfig or Unsupported with the dotted parameter.
    """
    kind = method.get("type")
    if kind not in METHODS:
        raise InvalidConfig(f"method.type is {kind!r}; it must be one of {', '.join(METHODS)}.", param="method.type")
    if kind != "supervised":
        raise Unsupported(f"The method {kind!r} is not supported by this server yet.", param="method.type")
    for name in method:
        if name not in {"type", kind}:
            raise InvalidConfig(f"method.{name} does not belong to a method of type {kind!r}.", param=f"method.{name}")
    body = method.get(kind) or {}
    if not isinstance(body, dict):
        raise InvalidConfig(f"method.{kind} must be an object.", param=f"method.{kind}")
    for name in body:
        if name != "hyperparameters":
            raise InvalidConfig(f"method.{kind}.{name} is unknown.", param=f"method.{kind}.{name}")
    prefix = f"method.{kind}.hyperparameters"
    values = body.get("hyperparameters") or {}
    if not isinstance(values, dict):
        raise InvalidConfig(f"{prefix} must be an object.", param=prefix)
    checked = {name: _checked(name, value, f"{prefix}.{name}") for name, value in values.items()}
    if checked.get("full_finetune"):
        for name in ("lora_rank", "lora_alpha", "target_modules", "adapter_scope"):
            if name in checked:
                raise InvalidConfig(f"{name} has no meaning with full_finetune.", param=f"{prefix}.{name}")
    if checked.get("adapter_scope") == "completion" and checked.get("prompt_loss_weight"):
        raise InvalidConfig(
            "prompt_loss_weight needs adapter_scope 'all': with 'completion' the prompt is not trained.",
            param=f"{prefix}.prompt_loss_weight",
        )
    return {"type": kind, kind: {"hyperparameters": checked}}


def _checked(name: str, value: Any, param: str) -> Any:
    bound = BOUNDS.get(name)
    if bound is None:
        raise InvalidConfig(f"{param} is unknown. Known are: {', '.join(BOUNDS)}.", param=param)
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
) -> SupervisedConfig:
    """Turn a checked method into numbers, from the size of the data and of the model.

    `context` is the longest sequence that the model takes. `parent` is the adapter that the run starts from
    (rank, alpha, scope): its values are the child's, for one adapter comes out.
    """
    said = {name: value for name, value in method["supervised"]["hyperparameters"].items() if value != "auto"}
    values: dict[str, Any] = {**DEFAULTS, **said}
    prefix = "method.supervised.hyperparameters"
    inherited = parent or {}
    for name, value in inherited.items():
        if name in said and said[name] != value:
            raise InvalidConfig(
                f"{prefix}.{name} is {said[name]!r}, but the model to start from has {value!r}, and its adapter is "
                "trained further. Leave it out.",
                param=f"{prefix}.{name}",
            )
        values[name] = value
    full = values["full_finetune"]
    if full and parent is not None:
        raise InvalidConfig(
            "full_finetune cannot start from a model with an adapter; start from its base.",
            param=f"{prefix}.full_finetune",
        )
    if values["early_stopping"] is not None and not n_valid:
        raise InvalidConfig("early_stopping needs a validation_file.", param=f"{prefix}.early_stopping")
    batch_size = min(values.get("batch_size", auto_batch_size(n_examples)), max(n_examples, 1))
    n_epochs = values.get("n_epochs", auto_epochs(n_examples))
    per_epoch = max(1, -(-n_examples // batch_size))
    multiplier = float(values.get("learning_rate_multiplier", 1.0))
    rank = values.get("lora_rank", 16)
    stop = values["early_stopping"]
    return SupervisedConfig(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        learning_rate=multiplier * base_learning_rate(hidden_size, full=full),
        prompt_loss_weight=float(values["prompt_loss_weight"]),
        lora_rank=rank,
        lora_alpha=float(values.get("lora_alpha", 2 * rank)),
        target_modules=tuple(values["target_modules"]),
        adapter_scope=values["adapter_scope"],
        full_finetune=full,
        max_seq_len=min(values.get("max_seq_len", context), context),
        warmup_ratio=float(values["warmup_ratio"]),
        weight_decay=float(values["weight_decay"]),
        scheduler=values["scheduler"],
        max_grad_norm=float(values["max_grad_norm"]),
        eval_steps=values.get("eval_steps", max(1, per_epoch // 4)) if n_valid else 0,
        early_stopping=EarlyStopping(**stop) if stop else None,
        save_every=values.get("save_every", min(50, max(5, per_epoch // 4))),
        max_wall_seconds=values["max_wall_seconds"],
        max_cost=values["max_cost"],
        dtype=values["dtype"],
    )


def auto_batch_size(n_examples: int) -> int:
    """About 40 steps an epoch, at most 64 examples a step: small data needs steps more than smooth gradients."""
    return max(1, min(64, n_examples // 40))


def auto_epochs(n_examples: int) -> int:
    """Few examples are seen more often: 6 epochs below 100, 3 below 2,000, then 2, and 1 from 50,000 on."""
    return 6 if n_examples < 100 else 3 if n_examples < 2_000 else 2 if n_examples < 50_000 else 1


def base_learning_rate(hidden_size: int, *, full: bool) -> float:
    """The learning rate that a multiplier of 1 stands for: wider models take smaller steps.

    LoRA's best rate is about ten times full fine-tuning's, and falls with the width (Thinking Machines, "LoRA
    Without Regret", 2025).
    """
    rate: float = 1e-3 * (576 / hidden_size) ** 0.78
    return rate / 10 if full else rate


def learning_rate_at(config: SupervisedConfig, step: int, total_steps: int) -> float:
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
