"""Settings: `tunekeeper.toml` in the home directory, overridden by TUNEKEEPER_* variables; read once, passed down.

[server]
port = 8000
[aliases]
"gpt-4o-mini-2024-07-18" = "smollm2-135m"
[[upstreams]]
name = "vllm"
base_url = "http://127.0.0.1:8001/v1"
models = ["qwen3-8b"]          # empty: ask the upstream
rollouts = ["qwen3-8b"]        # reinforcement jobs on this base sample there
[lifecycle.models."smollm2-135m"]
shutdown_date = 2027-06-30
replacement = "qwen3-0.6b"
[recording]
models = ["qwen3-8b"]          # "*": every one
"""

import datetime
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tunekeeper.errors import InvalidConfig

_SECTIONS = ("aliases", "upstreams", "lifecycle", "recording")
"""The sections of the file beside [server]; they have no variables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """An OpenAI-compatible server whose models are served as ours."""

    name: str
    base_url: str
    models: tuple[str, ...] = ()
    """Empty: every model that the upstream lists."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never in a file."""
    timeout_s: float = 600.0
    rollouts: tuple[str, ...] = ()
    """Base models whose reinforcement jobs have their answers sampled there: a vLLM that may load adapters."""
    home: str = ""
    """The home directory as that server sees it, from where it loads adapters; empty: under the same path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLife:
    """When a model that is served here ends, because its operator says so."""

    shutdown_date: datetime.date | None = None
    """From this day requests are answered with 410. The weights stay."""
    training_retirement_date: datetime.date | None = None
    """From this day no new job starts on it; None: from `shutdown_date`."""
    tuned_shutdown_date: datetime.date | None = None
    """From this day the models that were tuned on it are answered with 410; None: they go on."""
    replacement: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifecycle:
    """What the retirement of models means here; [lifecycle] in tunekeeper.toml."""

    enforce: tuple[str, ...] = ()
    """Names of models that also end on the catalog's dates; "*" means every one. Without it the catalog informs."""
    legacy_days: int = 0
    """A model is legacy for so many days before its end, where no date says more; 0: never."""
    deprecated_days: int = 180
    """A model is deprecated for so many days before its end, where no date says more; 0: never."""
    notice_days: tuple[int, ...] = (180, 90, 60, 30, 7)
    """A notice is due so many days before something ends."""
    models: Mapping[str, ModelLife] = field(default_factory=dict)
    """By id or alias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """Which answered chats are kept, and how much of them; [recording] in tunekeeper.toml."""

    models: tuple[str, ...] = ()
    """Ids or aliases of models whose chats are kept unless the client says `store: false`; "*" means every one.
    Of the others those are kept whose client says `store: true`."""
    max_bytes: int = 10 * 1024**3
    """Above it the oldest make room; 0: no limit."""
    retention_days: int = 0
    """Older ones are removed; 0: none."""

    def records(self, *names: str) -> bool:
        """Whether chats with a model of these names are kept without being asked to."""
        return "*" in self.models or any(name in self.models for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that an operator can set. Each field: TUNEKEEPER_<NAME>, or [server] <name> in tunekeeper.toml."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    organization: str = "tunekeeper"
    """The `org` part of a tuned model's id, and `organization_id` of a job."""
    max_file_bytes: int = 512 * 1024**2
    """Largest file through POST /files."""
    max_upload_bytes: int = 8 * 1024**3
    """Largest file through /uploads."""
    max_part_bytes: int = 64 * 1024**2
    max_body_bytes: int = 16 * 1024**2
    """Largest JSON body."""
    min_examples: int = 10
    lease_s: float = 30.0
    """A worker that is silent for so long has lost its job to the next one."""
    keep_checkpoints: int = 0
    """How many checkpoints of a job are kept as models; 0 keeps all."""
    max_concurrent_requests: int = 32
    """Sequences that the embedded engine decodes together."""
    max_waiting_requests: int = 256
    """Requests that may wait for the engine; above it, 429."""
    eval_concurrency: int = 0
    """Items of an eval run that are sampled together; 0: as many as the engine decodes together."""
    max_loaded_bases: int = 2
    cache_tokens: int = 65536
    """Tokens in the engine's key-value cache."""
    dtype: str = "auto"
    """fp32, bf16, or auto: bf16 only where this processor multiplies it faster."""
    threads: int = 0
    """CPU threads of the engine and of training; 0: all cores."""
    price_per_hour: float = 0.0
    """What an hour of this machine costs, for estimates."""
    currency: str = "USD"
    embedding_model: str = ""
    """What the grader metric cosine embeds with: a model of an upstream."""
    grader_hosts: str = ""
    """Hosts that an endpoint grader and a job's tool servers may be at, with commas between; * for any. Empty: any, as
    long as only this machine can reach the server."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    upstreams: tuple[Upstream, ...] = ()
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    recording: Recording = field(default_factory=Recording)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in {"127.0.0.1", "::1", "localhost"}

    def sampler_of(self, base_id: str) -> Upstream | None:
        """The upstream that samples the answers of reinforcement jobs on this base; None: the embedded engine does."""
        return next((upstream for upstream in self.upstreams if base_id in upstream.rollouts), None)

    @property
    def endpoint_hosts(self) -> frozenset[str] | None:
        """`grader_hosts` as a set; None: any."""
        hosts = frozenset(host.strip().lower() for host in self.grader_hosts.split(",") if host.strip())
        return None if "*" in hosts or (not hosts and self.is_loopback) else hosts


def default_home() -> Path:
    """TUNEKEEPER_HOME, or ~/.tunekeeper."""
    return Path(os.environ.get("TUNEKEEPER_HOME") or Path.home() / ".tunekeeper").expanduser()


def load_settings(home: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the home directory's tunekeeper.toml, then the environment, then `overrides`; raises InvalidConfig."""
    home = (home or default_home()).expanduser().resolve()
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    path = home / "tunekeeper.toml"
    if path.exists():
        values = _from_toml(path)
    for f in fields(Settings):
        raw = environ.get(f"TUNEKEEPER_{f.name.upper()}")
        if raw is not None and f.name not in {"home", *_SECTIONS}:
            values[f.name] = _convert(f.name, raw, f"the variable TUNEKEEPER_{f.name.upper()}")
    values.update({name: value for name, value in overrides.items() if value is not None})
    return Settings(home=home, **values)


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}. Correct the file.") from error
    unknown = sorted(set(data) - {"server", *_SECTIONS})
    if unknown:
        raise InvalidConfig(
            f"{path} has an unknown section [{unknown[0]}]; known are server, {', '.join(_SECTIONS)}.",
            param=unknown[0],
        )
    server: dict[str, Any] = data.get("server", {})
    values = {name: _convert(name, value, f"[server] in {path}") for name, value in server.items()}
    values["aliases"] = {str(name): str(target) for name, target in data.get("aliases", {}).items()}
    values["upstreams"] = tuple(_upstream(entry, path) for entry in data.get("upstreams", []))
    if "lifecycle" in data:
        values["lifecycle"] = _lifecycle(data["lifecycle"], path)
    if "recording" in data:
        values["recording"] = _recording(data["recording"], path)
    return values


def _upstream(entry: Mapping[str, Any], path: Path) -> Upstream:
    known = {f.name for f in fields(Upstream)}
    unknown = sorted(set(entry) - known)
    if unknown or not {"name", "base_url"} <= set(entry):
        raise InvalidConfig(f"{path}: an [[upstreams]] entry needs name and base_url, and knows only {sorted(known)}.")
    listed = {key: tuple(entry.get(key, ())) for key in ("models", "rollouts")}
    return Upstream(**{**entry, **listed})


def _lifecycle(entry: Mapping[str, Any], path: Path) -> Lifecycle:
    where = f"[lifecycle] in {path}"
    kinds: Mapping[str, type | tuple[type, type]] = {
        "enforce": (list, str),
        "legacy_days": int,
        "deprecated_days": int,
        "notice_days": (list, int),
    }
    values = {name: _typed(name, value, kinds, where) for name, value in entry.items() if name != "models"}
    models = entry.get("models", {})
    if not isinstance(models, dict):
        raise InvalidConfig(f'{where}: models must be tables, each [lifecycle.models."NAME"].', param="models")
    return Lifecycle(**values, models={name: _model_life(life, name, path) for name, life in models.items()})


def _recording(entry: Mapping[str, Any], path: Path) -> Recording:
    kinds: Mapping[str, type | tuple[type, type]] = {"models": (list, str), "max_bytes": int, "retention_days": int}
    if entry.get("models") == "*":
        entry = {**entry, "models": ["*"]}
    return Recording(**{name: _typed(name, value, kinds, f"[recording] in {path}") for name, value in entry.items()})


def _model_life(entry: Any, name: str, path: Path) -> ModelLife:
    where = f'[lifecycle.models."{name}"] in {path}'
    if not isinstance(entry, dict):
        raise InvalidConfig(f"{where} must be a table.", param=name)
    kinds = {f.name: str if f.name == "replacement" else datetime.date for f in fields(ModelLife)}
    return ModelLife(**{key: _typed(key, value, kinds, where) for key, value in entry.items()})


def _typed(name: str, value: Any, kinds: Mapping[str, type | tuple[type, type]], where: str) -> Any:
    """A TOML value of the right kind; a list of one kind as a tuple, a date also from its ISO text."""
    kind = kinds.get(name)
    if kind is None:
        raise InvalidConfig(f"{where} has an unknown setting {name!r}; known are {', '.join(kinds)}.", param=name)
    if isinstance(kind, tuple):
        inner = kind[1]
        if isinstance(value, list) and all(type(item) is inner for item in value):
            return tuple(value)
        raise InvalidConfig(f"{where}: {name} must be a list of {inner.__name__}.", param=name)
    if kind is datetime.date and isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError as error:
            raise InvalidConfig(f"{where}: {name} is {value!r}, which is no date YYYY-MM-DD.", param=name) from error
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        kind_name = (
            "date YYYY-MM-DD" if kind is datetime.date else "whole number of at least 0" if kind is int else "text"
        )
        raise InvalidConfig(f"{where}: {name} is {value!r}; it must be a {kind_name}.", param=name)
    return value


def _convert(name: str, value: Any, where: str) -> Any:
    kinds = {f.name: f.type for f in fields(Settings)}
    kind = kinds.get(name)
    if kind not in (int, float, str):
        raise InvalidConfig(f"{where} has an unknown setting {name!r}.", param=name)
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidConfig(f"{where}: {name} is {value!r}, which is no {kind.__name__}.", param=name) from error
