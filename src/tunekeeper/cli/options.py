"""What every command takes, and where on the command line it may stand: anywhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tunekeeper.errors import InvalidRequest

if TYPE_CHECKING:
    from tunekeeper.settings import Settings

WITH_VALUE = ("--home", "--url", "--api-key")
FLAGS = ("--json",)

CANNOT_CONNECT = "cannot_connect"
"""Code of the errors that exit with 4."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options that every command shares."""

    home: Path | None
    url: str | None
    """Of a server elsewhere; None: the server of this home directory."""
    api_key: str | None
    as_json: bool

    @property
    def settings(self) -> "Settings":
        """The settings of the home directory; raises InvalidConfig."""
        from tunekeeper.settings import load_settings

        return load_settings(self.home)


def options_of(context: typer.Context) -> Options:
    """The shared options of the command that is running."""
    options = context.obj
    assert isinstance(options, Options)
    return options


def grader_of(path: Path) -> Any:
    """What a --grader file holds; raises InvalidRequest where it is not JSON."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not JSON: {error}.", param="grader") from error


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The shared options moved to the front, where the parser wants them: people write them last."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument in FLAGS or argument.startswith(tuple(f"{name}=" for name in WITH_VALUE)):
            front.append(argument)
        elif argument in WITH_VALUE:
            front += [argument, *[value for value in [next(remaining, None)] if value is not None]]
        else:
            rest.append(argument)
    return front + rest
