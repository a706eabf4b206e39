"""The commands put together, and what becomes of an error: a sentence on stderr and an exit code.

0 done    1 failed    2 wrong use of the command line    3 not found    4 no server to talk to
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tunekeeper.cli import (
    advise,
    chat,
    completions,
    distill,
    eval,
    files,
    grade,
    jobs,
    keys,
    models,
    report,
    retirements,
    serve,
    site,
    sweep,
    tune,
)
from tunekeeper.cli.options import CANNOT_CONNECT, Options, hoisted
from tunekeeper.errors import NotFound, TunekeeperError

app = typer.Typer(
    name="tunekeeper",
    help="Fine-tune models on this machine behind the OpenAI API, and keep them alive.",
    epilog="--home, --url, --api-key and --json may stand anywhere on the line. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 cannot connect.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain help: importing rich takes longer than all the rest
    pretty_exceptions_enable=False,
)

app.command("serve")(serve.serve)
app.command("tune")(tune.tune)
app.command("sweep")(sweep.sweep)
app.command("distill")(distill.distill)
app.command("check")(tune.check)
app.command("estimate")(tune.estimate)
app.command("grade")(grade.grade)
app.command("advise")(advise.advise)
app.command("chat")(chat.chat)
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(completions.app, name="completions")
app.add_typer(jobs.app, name="jobs")
app.add_typer(eval.app, name="eval")
app.add_typer(keys.app, name="keys")
app.add_typer(retirements.app, name="retirements")
app.command("demo")(serve.demo)
app.command("report")(report.report)
app.command("watch")(report.watch)
app.command("site")(site.site)


@app.callback()
def shared(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Directory of models, files and jobs.",
            envvar="TUNEKEEPER_HOME",
            show_default="~/.tunekeeper",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Server to talk to; without it the one that runs on this home directory, or one that is "
            "started for the command.",
            envvar="TUNEKEEPER_URL",
        ),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for that server.", envvar="TUNEKEEPER_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Fine-tune models on this machine behind the OpenAI API, and keep them alive."""
    context.obj = Options(home=home, url=url, api_key=api_key, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = hoisted(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=arguments, prog_name="tunekeeper")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except TunekeeperError as error:
        _say(error, as_json=bool(arguments) and "--json" in arguments)
        return exit_code(error)
    except BrokenPipeError:
        # The reader of our output has seen enough (`tunekeeper jobs list | head`); closing would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def exit_code(error: TunekeeperError) -> int:
    """What a script sees of an error."""
    if isinstance(error, NotFound):
        return 3
    return 4 if error.code == CANNOT_CONNECT else 1


def _say(error: TunekeeperError, *, as_json: bool) -> None:
    if as_json:
        body = {
            "message": error.message,
            "code": error.code,
            "param": error.param,
            "details": list(error.details),
        }
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
        return
    print(f"Error: {error.message}", file=sys.stderr)
    for detail in error.details[:10]:
        where = f"line {detail['line']}: " if detail.get("line") else ""
        print(f"  {where}{detail.get('message', detail)}", file=sys.stderr)
    if len(error.details) > 10:
        print(f"  … and {len(error.details) - 10} more", file=sys.stderr)
