"""`tunekeeper chat`: talk to a model, one question or many."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunekeeper.cli.options import Options, options_of

if TYPE_CHECKING:
    from tunekeeper.cli.client import Client
    from tunekeeper.types import Json, Message


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id or alias of the model.")],
    prompt: Annotated[
        str | None,
        typer.Argument(help="The question; `-` or nothing reads it from a pipe, or starts a conversation."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
) -> None:
    """Ask a model a question, or talk with it."""
    from tunekeeper.cli.client import connect

    options = options_of(context)
    body: Json = {
        "model": model,
        "temperature": temperature,
        "top_p": top_p,
        "max_completion_tokens": max_tokens,
        "seed": seed,
    }
    body = {name: value for name, value in body.items() if value is not None}
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read().rstrip("\n")
    if prompt == "":
        raise typer.BadParameter("the question is empty.")
    if prompt is None and options.as_json:
        raise typer.BadParameter("with --json, give the question as an argument or through a pipe.")
    with connect(options) as client:
        if prompt is not None:
            _answer(options, client, body, [*messages, {"role": "user", "content": prompt}])
        else:
            _converse(options, client, body, messages)


def _answer(options: Options, client: "Client", body: "Json", messages: "list[Message]") -> str:
    """Print the answer as it comes; return it."""
    if options.as_json:
        import json

        whole = client.post("/chat/completions", {**body, "messages": messages})
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return str(whole["choices"][0]["message"]["content"])
    text = ""
    for chunk in client.stream("/chat/completions", {**body, "messages": messages, "stream": True}):
        for choice in chunk.get("choices", ()):
            piece = choice["delta"].get("content") or ""
            print(piece, end="", flush=True)
            text += piece
    print()
    return text


def _converse(options: Options, client: "Client", body: "Json", messages: "list[Message]") -> None:
    from tunekeeper.cli.output import note
    from tunekeeper.errors import TunekeeperError

    note(f"Talking to {body['model']}. An empty line or Ctrl-D ends it, Ctrl-C ends an answer.")
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            note("")
            return
        if not question:
            return
        asked: list[Message] = [*messages, {"role": "user", "content": question}]
        try:
            answer = _answer(options, client, body, asked)
        except KeyboardInterrupt:
            note("\n(stopped; the question is forgotten)")
        except TunekeeperError as error:
            if len(asked) <= 2:  # nothing has worked yet: the model or the server is at fault, not the question
                raise
            note(f"Error: {error.message}")
        else:
            messages = [*asked, {"role": "assistant", "content": answer}]
