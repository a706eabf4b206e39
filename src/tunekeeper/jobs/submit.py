"""From a request to a job: everything that can be refused before any work is done is refused here.

    job = submit(Submission(model="smollm2-135m", training_file="file-…"), store, settings)

What needs the data itself (its lines, its size, what "auto" comes to) is settled by the job's first phase.
"""

import datetime
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunekeeper.errors import (
    InvalidConfig,
    InvalidData,
    InvalidRequest,
    InvalidState,
    ModelNotFound,
    NotFound,
    Unavailable,
    Unsupported,
)
from tunekeeper.graders.build import build_here
from tunekeeper.graders.spec import parse as parse_grader
from tunekeeper.inference.answers import Answers
from tunekeeper.inference.sampler import in_background
from tunekeeper.jobs.tool_servers import PARAM, read_tools
from tunekeeper.lifecycle.catalog import Catalog
from tunekeeper.lifecycle.policy import stand
from tunekeeper.settings import Settings, Upstream
from tunekeeper.storage.store import Store
from tunekeeper.trainer.config import ReinforcementConfig, hyperparameters_of, resolve, validate_method
from tunekeeper.trainer.sweep import points, read_sweep, with_values
from tunekeeper.types import File, Job, Json, Model, new_id

TRAINING_TYPES = ("standard", "globalstandard", "datazonestandard", "developer", "developertier")
"""Azure's queue classes; a machine of one's own has one queue, so they are kept and change nothing."""

_SUFFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a client asks for, in its own words."""

    model: str
    training_file: str
    validation_file: str | None = None
    method: Json | None = None
    hyperparameters: Json | None = None
    """The deprecated place of the supervised method's hyperparameters."""
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Json] | None = None
    training_type: str | int | None = None
    sweep: Json | None = None
    """Train many trials and keep the best: an extension, see `trainer.sweep`."""
    distill: Json | None = None
    """Where the training file's examples came from: see `jobs.distill`."""


def submit(submission: Submission, store: Store, settings: Settings) -> Job:
    """Check the request and queue the job; raises what `draft` raises."""
    job = store.add_job(draft(submission, store, settings))
    if "eval_id" in job.extra:
        from tunekeeper.jobs.rft_evals import add_eval

        add_eval(job, store)
    store.add_event(job.id, "info", f"Created fine-tuning job: {job.id}", key="created")
    store.add_event(job.id, "info", f"Validating training file: {job.training_file}", key="validating")
    if job.validation_file:
        text = f"Validating validation file: {job.validation_file}"
        store.add_event(job.id, "info", text, key="validating-2")
    if job.suffix and len(job.suffix) > 40:
        text = f"The suffix has {len(job.suffix)} characters; Azure takes at most 40."
        store.add_event(job.id, "warn", text, key="suffix")
    return job


def draft(submission: Submission, store: Store, settings: Settings) -> Job:
    """The job that a request comes to, not yet stored; raises ModelNotFound or an InvalidRequest."""
    model = find_trainable(submission.model, store, settings)
    _check_life(submission.model, model, store, settings)
    for param in ("training_file", "validation_file"):
        file_id = getattr(submission, param)
        if file_id is not None:
            _check_file(store, file_id, param)
    _check_suffix(submission.suffix)
    check_metadata(submission.metadata)
    _check_integrations(submission.integrations)
    validated = submission.validation_file is not None or submission.sweep is not None
    with _named_as_sent(submission):
        method = validate_method(_method_of(submission))
        _check_method(method, model, store, settings, validated=validated)
        if method["type"] == "reinforcement":
            _check_grader(method["reinforcement"]["grader"], store, settings)
    seed = _seed(submission.seed)
    sweep = _checked_sweep(submission, method, seed, model, store, settings)
    return Job(
        id=new_id("ftjob-"),
        created_at=store.now(),
        model=model.id,
        training_file=submission.training_file,
        validation_file=submission.validation_file,
        method=method,
        seed=seed,
        suffix=submission.suffix,
        metadata=submission.metadata,
        integrations=submission.integrations or None,
        extra={
            # Settled now: however often the job is run again, its model has this name.
            "tuned_model": tuned_model_id(root_of(model, store).id, settings.organization, submission.suffix),
            **_training_type(submission),
            **({"eval_id": new_id("eval_", 32)} if method["type"] == "reinforcement" else {}),
            **sweep,
            **({} if submission.distill is None else {"distill": submission.distill}),
        },
    )


def find_trainable(name: str, store: Store, settings: Settings) -> Model:
    """The model under a name or an alias, whose weights are on this machine."""
    try:
        model = store.get_model(settings.aliases.get(name, name))
    except ModelNotFound as error:
        if any(name in upstream.models for upstream in settings.upstreams):
            raise InvalidRequest(
                f"The model {name!r} is served by another server, so its weights cannot be trained here. "
                "Pull its base model: tunekeeper models pull.",
                param="model",
            ) from error
        raise
    if not (settings.home / model.path).is_dir():
        raise Unavailable(
            f"The weights of {model.id!r} are not in {settings.home / model.path}. "
            "Pull the base model again: tunekeeper models pull.",
            param="model",
        )
    return model


def base_under(model: Model, store: Store) -> Model:
    """The weights that a job on this model loads: a base model's, or those of full fine-tuning."""
    return store.get_model(model.base) if model.kind == "adapter" else model


def root_of(model: Model, store: Store) -> Model:
    """The base model that everything below came from."""
    while model.kind != "base":
        model = store.get_model(model.base)
    return model


def tuned_model_id(base_id: str, organization: str, suffix: str | None) -> str:
    """A new name for the model that a job will make, in OpenAI's form."""
    return new_id(f"ft:{base_id}:{organization}:{suffix or ''}:", 8)


def _check_life(name: str, model: Model, store: Store, settings: Settings) -> None:
    """Refuse what the operator's policy has retired for training, itself or its base model."""
    policy = settings.lifecycle
    if not policy.models and not policy.enforce:
        return
    catalog = store.catalog() if policy.enforce else Catalog(())
    today = datetime.datetime.fromtimestamp(store.now(), datetime.UTC).date()
    for names in ([name, model.id], [root_of(model, store).id]):
        standing = stand(names, policy, catalog, today)
        if standing.is_closed_for_training:
            instead = standing.replacement or "another base model (GET /models)"
            raise InvalidState(
                f"No job starts on {names[-1]!r} any more: it was retired for training on {standing.training_end}. "
                f"Train {instead} instead.",
                param="model",
                code="model_retired_for_training",
            )


def _check_file(store: Store, file_id: str, param: str) -> None:
    try:
        file = store.get_file(file_id)
    except NotFound as error:
        raise InvalidRequest(f"There is no file {file_id!r}; upload it first.", param=param) from error
    if file.expires_at is not None and file.expires_at <= store.now():
        raise InvalidRequest(f"The file {file_id} has expired; upload it again.", param=param)
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f"The file {file_id} has the purpose {file.purpose!r}; upload it with the purpose 'fine-tune'.",
            param=param,
        )
    if file.status == "error":
        raise InvalidData(
            f"The file {file_id} ({file.filename}) has faults; correct them and upload it again.",
            param=param,
            code=f"invalid_{param}",
            details=_faults(file),
        )


def _faults(file: File) -> list[Json]:
    try:
        found = json.loads(file.status_details or "[]")
    except ValueError:
        found = file.status_details
    entries = found if isinstance(found, list) else [found]
    return [entry if isinstance(entry, dict) else {"message": str(entry)} for entry in entries]


def _check_suffix(suffix: str | None) -> None:
    if suffix is not None and not _SUFFIX.fullmatch(suffix):
        raise InvalidRequest(f"suffix is {suffix!r}; it must be 1 to 64 letters, digits, '-' or '_'.", param="suffix")


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raises InvalidRequest for more pairs, or longer ones, than are kept."""
    if metadata is None:
        return
    if len(metadata) > 16:
        raise InvalidRequest(f"metadata has {len(metadata)} pairs; at most 16 are kept.", param="metadata")
    for key, value in metadata.items():
        if not 0 < len(key) <= 64 or len(value) > 512:
            raise InvalidRequest(
                f"metadata[{key[:64]!r}] is too long: a key has 1 to 64 characters, a value at most 512.",
                param=f"metadata.{key[:64]}",
            )


def _check_integrations(integrations: list[Json] | None) -> None:
    for n, integration in enumerate(integrations or ()):
        raise Unsupported(
            f"The integration {integration.get('type')!r} is not supported; a job's metrics are in "
            "its events and its result file.",
            param=f"integrations[{n}].type",
        )


@contextmanager
def _named_as_sent(submission: Submission) -> Iterator[None]:
    """Let faults name the deprecated top-level hyperparameters where the client has put them there."""
    try:
        yield
    except InvalidRequest as error:
        if submission.hyperparameters is None:
            raise
        raise _renamed(error, "method.supervised.hyperparameters", "hyperparameters") from error


def _renamed(error: InvalidRequest, place: str, name: str) -> InvalidRequest:
    message, param = (text.replace(place, name) for text in (error.message, error.param or ""))
    return type(error)(message, param=param or None, code=error.code, details=error.details)


def _method_of(submission: Submission) -> Json:
    """The method as asked, with the deprecated top-level hyperparameters in their place."""
    old = submission.hyperparameters
    if submission.method is None:
        return {"type": "supervised", "supervised": {"hyperparameters": old or {}}}
    method = submission.method
    for kind in ("supervised", "dpo", "reinforcement"):
        if kind != method["type"] and method.get(kind) is not None:
            raise InvalidRequest(
                f"method.type is {method['type']!r}, but method.{kind} is given too; send one of them.",
                param=f"method.{kind}",
            )
    if old is None:
        return method
    new = (method.get("supervised") or {}).get("hyperparameters")
    if method["type"] != "supervised" or (new is not None and new != old):
        raise InvalidRequest(
            "hyperparameters and method say different things; send them in method alone.",
            param="hyperparameters",
        )
    return {"type": "supervised", "supervised": {"hyperparameters": old}}


def parent_shape(model: Model, home: Path) -> Json | None:
    """What a job on this model inherits, when it goes on with an adapter: the adapter's shape; else None."""
    if model.kind != "adapter":
        return None
    directory = home / model.path
    try:
        config = json.loads((directory / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unavailable(f"The adapter in {directory} cannot be read: {error}.", param="model") from error
    return {
        "lora_rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": sorted(config["target_modules"]),
        "adapter_scope": "completion" if config.get("alora_invocation_tokens") else "all",
    }


def _check_method(method: Json, model: Model, store: Store, settings: Settings, *, validated: bool) -> None:
    """Refuse now what can be seen without the data: it is resolved as it would be for a small file."""
    limit = hyperparameters_of(method).get("max_cost")
    if limit is not None and not settings.price_per_hour:
        raise InvalidConfig(
            "max_cost needs to know what this machine costs: set price_per_hour in tunekeeper.toml, or use "
            "max_wall_seconds.",
            param=f"method.{method['type']}.hyperparameters.max_cost",
        )
    if method["type"] == "reinforcement":
        tools = read_tools(method["reinforcement"].get("tools", ()), settings.endpoint_hosts)
    config = read_config(settings.home / base_under(model, store).path)
    resolved = resolve(
        method,
        n_examples=settings.min_examples,
        n_valid=int(validated),
        context=context_of(config),
        hidden_size=hidden_size_of(config),
        parent=parent_shape(model, settings.home),
    )
    if not isinstance(resolved, ReinforcementConfig):
        return
    if tools and resolved.adapter_scope == "completion":
        raise Unsupported(
            "With adapter_scope 'completion' the adapter acts from the last turn on only, so an answer of several "
            "turns cannot be learned from as it was sampled. Use adapter_scope 'all', or leave tools out.",
            param=PARAM,
        )
    upstream = settings.sampler_of(base_under(model, store).id)
    if upstream is not None:
        check_sampled_elsewhere(resolved, upstream)


def _check_grader(grader: Json, store: Store, settings: Settings) -> None:
    """Build it and let it go: what keeps it from grading here is known before anything waits for it."""
    param = "method.reinforcement.grader"
    spec = parse_grader(grader, param=param)
    with in_background(Answers(settings, store), embedding_model=settings.embedding_model) as judge:
        build_here(spec, settings, judge, param=param).close()


def check_sampled_elsewhere(config: ReinforcementConfig, upstream: Upstream) -> None:
    """Raises Unsupported for what a server that is given adapters cannot sample."""
    where = f"This job's answers are sampled by the upstream {upstream.name}, "
    refused = {
        "full_finetune": config.full_finetune and "which can be given adapters only",
        "adapter_scope": config.adapter_scope != "all" and "which knows no adapters of completions alone",
        "temperature": config.temperature != 1 and "whose log-probabilities are those of temperature 1",
    }
    for name, why in refused.items():
        if why:
            raise Unsupported(
                f"{where}{why}. Leave {name} out, or take the base out of the upstream's rollouts.",
                param=f"method.reinforcement.hyperparameters.{name}",
            )


def _checked_sweep(
    submission: Submission, method: Json, seed: int, model: Model, store: Store, settings: Settings
) -> Json:
    """What a job keeps of its sweep: nothing where it has none; every trial is checked as a job of its own."""
    if submission.sweep is None:
        return {}
    sweep = read_sweep(submission.sweep, method, validated=submission.validation_file is not None)
    if sweep.fast and model.kind == "adapter":
        raise Unsupported(
            f"sweep.fast trains new adapters on the top layers, but {model.id} has one on all; leave fast out.",
            param="sweep.fast",
        )
    for point in points(sweep, seed):
        try:
            _check_method(with_values(method, point), model, store, settings, validated=True)
        except InvalidRequest as error:
            place = f"method.{method['type']}.hyperparameters."
            if (error.param or "").removeprefix(place) not in point:
                raise
            raise _renamed(error, place, "sweep.space.") from error
    return {"sweep": sweep.to_wire()}


def read_config(directory: Path) -> Json:
    """A base model's config.json; raises Unavailable."""
    try:
        config: Json = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"The model in {directory} cannot be read: {error}. Pull it again: tunekeeper models pull.",
            param="model",
        ) from error
    return config


def context_of(config: Json) -> int:
    """The longest sequence that a model takes, in tokens."""
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)


def hidden_size_of(config: Json) -> int:
    """How wide a model is."""
    return int(config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 576)


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(_MAX_SEED + 1)
    if not 0 <= seed <= _MAX_SEED:
        raise InvalidRequest(f"seed is {seed}; it must be from 0 to {_MAX_SEED}.", param="seed")
    return seed


def _training_type(submission: Submission) -> Json:
    asked = submission.training_type
    if asked is None:
        return {}
    if asked != 1 and str(asked).lower() not in TRAINING_TYPES:
        raise InvalidRequest(f"trainingType is {asked!r}; known are {', '.join(TRAINING_TYPES)}.", param="trainingType")
    return {"training_type": asked}
