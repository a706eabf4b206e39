"""The reference names all there is, links lead somewhere, and the README lists the source."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from fastapi import APIRouter

import tunekeeper
import tunekeeper.api
from tunekeeper import errors
from tunekeeper.api.azure import PREFIXES
from tunekeeper.cli.app import app as cli
from tunekeeper.datasets import validate
from tunekeeper.jobs.results import COLUMNS
from tunekeeper.settings import Lifecycle, ModelLife, Recording, Settings, Upstream
from tunekeeper.trainer.config import BOUNDS, DEFAULTS, EarlyStopping

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SOURCE = Path(tunekeeper.__file__).parent

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reference() -> str:
    return (DOCS / "reference.md").read_text("utf-8")


def section(reference: str, heading: str) -> str:
    """The text below a heading of the second level."""
    return reference.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def row_of(text: str, name: str) -> list[str]:
    """The cells of the table row that begins with `name`."""
    rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert rows, f"{name} has no row in docs/reference.md"
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_each_setting_is_in_the_reference_with_its_variable_and_default(reference, name):
    _, variable, default, _ = row_of(section(reference, "Settings"), name)
    if name in ("aliases", "upstreams", "lifecycle", "recording"):
        assert default == "none"
        return
    assert variable == f"`TUNEKEEPER_{name.upper()}`"
    value = {f.name: f.default for f in fields(Settings)}[name]
    shown = default.split("`")[1]
    assert shown == "~/.tunekeeper" if name == "home" else type(value)(shown) == value


@pytest.mark.parametrize("name", [f.name for kind in (Upstream, Lifecycle, ModelLife, Recording) for f in fields(kind)])
def test_each_field_of_a_section_is_in_the_reference(reference, name):
    row_of(section(reference, "Settings"), name)


def commands() -> Iterator[str]:
    def walk(group: typer.Typer, path: str) -> Iterator[str]:
        for command in group.registered_commands:
            yield f"{path} {command.name}"
        for inner in group.registered_groups:
            assert inner.typer_instance is not None
            yield from walk(inner.typer_instance, f"{path} {inner.name}")

    yield from walk(cli, "tunekeeper")


@pytest.mark.parametrize("command", [*commands()])
def test_each_command_is_in_the_reference(reference, command):
    assert re.search(rf"\| `{command}[ `]", section(reference, "Commands"))


def test_each_option_of_the_command_line_is_in_the_reference(reference):
    from typer.main import get_command

    def options(command) -> Iterator[str]:
        for parameter in command.params:
            yield from (option for option in parameter.opts if option.startswith("--"))
        for inner in getattr(command, "commands", {}).values():
            yield from options(inner)

    own = {"--install-completion", "--show-completion", "--help"}
    text = section(reference, "Commands")
    short = {"--output": "-o FILE"}
    missing = [name for name in {*options(get_command(cli))} - own if short.get(name, name) not in text]
    assert not missing


@pytest.mark.parametrize("name", BOUNDS)
def test_each_hyperparameter_is_in_the_reference_with_its_bounds_and_default(reference, name):
    _, values, default, _ = row_of(section(reference, "Hyperparameters"), name)
    bound = BOUNDS[name]
    for limit in (bound.low, bound.high, bound.above):
        assert limit is None or f"{limit:g}" in values or str(limit) in values
    assert all(choice in values for choice in bound.choices)
    assert ('"auto"' in values) == bound.auto
    assert ("null" in values) == bound.nullable
    expected = DEFAULTS.get(name, "auto")
    words = {"None": "null", "False": "false", "['all-linear']": '["all-linear"]'}
    shown = default.strip("`").strip('"')
    assert shown == words.get(str(expected), f"{expected:g}" if isinstance(expected, float) else str(expected))


@pytest.mark.parametrize("name", [f.name for f in fields(EarlyStopping)])
def test_each_part_of_early_stopping_is_in_the_reference(reference, name):
    assert name in section(reference, "Hyperparameters")


def codes() -> set[str]:
    """The codes of the tree of errors, and those that are given where an error is raised."""
    tree = {vars(cls)["code"] for cls in vars(errors).values() if isinstance(cls, type) and "code" in vars(cls)}
    raised = {
        code for path in SOURCE.rglob("*.py") for code in re.findall(r'\bcode="([a-z_]+)"', path.read_text("utf-8"))
    }
    return tree | raised


@pytest.mark.parametrize("code", sorted(codes()))
def test_each_error_code_is_in_the_reference(reference, code):
    assert f"`{code}`" in section(reference, "Errors")


@pytest.mark.parametrize("code", [check.__name__ for check in validate.CHECKS])
def test_each_check_of_training_data_is_in_the_reference(reference, code):
    assert f"`{code}`" in section(reference, "Training files")


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_of_the_result_file_is_in_the_reference(reference, column):
    assert f"`{column}`" in section(reference, "Events, metrics and results")


def routes() -> Iterator[str]:
    for module in pkgutil.iter_modules(tunekeeper.api.__path__, "tunekeeper.api."):
        router = getattr(importlib.import_module(module.name), "router", None)
        if isinstance(router, APIRouter):
            for route in router.routes:
                yield from (f"{method} {route.path}" for method in sorted(route.methods))


@pytest.mark.parametrize("route", [*routes()])
def test_each_route_is_in_the_reference(reference, route):
    assert f"| `{route}` |" in section(reference, "Endpoints")


def test_the_reference_has_no_route_that_is_gone(reference):
    documented = re.findall(r"^\| `((?:GET|POST|DELETE) /[^`]*)` \|", reference, re.MULTILINE)
    assert sorted(documented) == sorted(routes())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_prefix_is_in_the_reference(reference, prefix):
    assert f"`{prefix}`" in section(reference, "Endpoints")


def anchors(page: Path) -> set[str]:
    headings = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_sentence_has_a_line_of_its_own(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    crowded = [line for line in prose if re.search(r"[a-z`)]\. [A-Z][a-z]", line)]
    assert not crowded


def test_the_readme_names_every_file_and_package_of_the_source():
    readme = (ROOT / "README.md").read_text("utf-8")
    entries = [path for path in sorted(SOURCE.iterdir()) if not path.name.startswith(("_", "."))]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    listed = {line.split()[0] for line in readme.splitlines() if line.split()}
    assert [name for name in names if name not in listed] == []


def test_each_example_is_mentioned_in_the_documentation():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f"examples/{path.name}" not in text] == []
