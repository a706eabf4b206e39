"""Distillation from stored traffic: a small model learns from what a teacher answered to users.

    pip download --no-deps bfcl-eval==2026.3.23
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/stored_traffic.py bfcl_eval-2026.3.23-py3-none-any.whl --teacher MODEL

The application asks the teacher which of twelve functions a question needs, with all of them described in the prompt,
and says `store=True` and a metadata. Later its traffic is listed by that metadata, what is cut off, twice there, or no
function's name is left out, and the rest trains the student: an adapter of rank 4 on the untuned base, and no
descriptions in the prompt. The student never sees a label.

--teacher is any model that the server answers for, an upstream's too. Without it one is tuned on a hundred labelled
questions first, at rank 16: it is no larger than the student, and knows more. The questions are real ones of the
Berkeley Function Calling Leaderboard; those for the teacher, for the traffic and held out are three parts without a
question in common.
"""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bfcl
import trial
from openai import OpenAI

STUDENT = {"lora_rank": 4}
TAUGHT = 100
"""Labelled questions for a teacher of our own."""


def main() -> None:
    parser = trial.parser(__doc__, examples=160, items=60)
    parser.add_argument("wheel", type=Path, help="bfcl_eval-….whl")
    parser.add_argument("--teacher", help="Whose traffic it is; without it one is tuned.")
    parser.add_argument("--tools", type=int, default=12)
    arguments = parser.parse_args()
    client = trial.connect()
    tools, questions = bfcl.read(arguments.wheel, arguments.tools, arguments.seed)
    held_out, rest = questions[: arguments.items], questions[arguments.items :]
    asked_for, labelled = rest[: arguments.examples], rest[arguments.examples :][:TAUGHT]
    described = [f"{each['function']['name']}: {each['function']['description']}" for each in tools]
    asked = [trial.system("Which function does the user need? Answer with its name alone.\n" + "\n".join(described))]

    teacher = arguments.teacher
    if not teacher:
        lines = [{"messages": [*asked, *trial.turns([(each.text, each.name)])]} for each in labelled]
        teacher = trial.tune(client, arguments, lines, "teacher")
    student = arguments.tuned
    if not student:
        tag = uuid.uuid4().hex
        serve_users(client, teacher, asked, asked_for, tag)
        pairs = traffic(client, tag, known={tool["function"]["name"] for tool in tools})
        lines = [{"messages": trial.turns([pair])} for pair in pairs]
        student = trial.tune(client, arguments, lines, "student", **STUDENT)

    shown = trial.turns((each.text, each.name) for each in labelled[:8])
    items = []
    for question in held_out:
        last = trial.user(question.text)
        prompts = {"base": [*asked, last], "few": [*asked, *shown, last], "student": [last]}
        items.append({"name": question.name, "prompts": prompts})
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base"),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few"),
        trial.Row(name="teacher", model=teacher, prompt="base"),
        trial.Row(name="student (tuned)", model=student, prompt="student"),
    ]
    grader = {
        "type": "string_check", "name": "function", "operation": "like",
        "input": "{{ sample.output_text }}", "reference": "{{ item.name }}",
    }  # fmt: skip
    measured = trial.measure(client, "traffic", items, rows, [grader], max_tokens=20)
    trial.finish(
        client, arguments, measured, student, after="student (tuned)", before=("base, few-shot", "teacher"), margin=0.1
    )


def serve_users(
    client: OpenAI, teacher: str, asked: Sequence[trial.Json], questions: Sequence[bfcl.Question], tag: str
) -> None:
    """What the application does all day: ask, and keep what was answered."""

    def ask(question: bfcl.Question) -> None:
        messages: list[trial.Json] = [*asked, trial.user(question.text)]
        client.chat.completions.create(
            model=teacher,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_completion_tokens=20,
            store=True,
            metadata={"use": "routing", "run": tag},
        )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, questions))


def traffic(client: OpenAI, tag: str, known: set[str]) -> list[tuple[str, str]]:
    """Questions of users with the teacher's answers, from what was stored."""
    pairs: dict[str, str] = {}
    stored = list(client.chat.completions.list(metadata={"run": tag}, limit=100))
    for completion in stored:
        choice = completion.choices[0]
        answer = (choice.message.content or "").strip()
        if choice.finish_reason != "stop" or answer not in known:
            continue
        last = next(iter(client.chat.completions.messages.list(completion.id, order="desc", limit=1)))
        pairs.setdefault(str(last.content), answer)
    print(f"{len(stored)} stored completions, {len(pairs)} to learn from", flush=True)
    return list(pairs.items())


if __name__ == "__main__":
    main()
