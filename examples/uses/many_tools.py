"""Tool calls with many tools: fewer tokens, and fewer calls to what is not there.

    pip download --no-deps bfcl-eval==2026.3.23
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    python examples/uses/many_tools.py bfcl_eval-2026.3.23-py3-none-any.whl

The base gets every function with its description and parameters; the tuned model gets the names only, and has learned
the rest. The questions are real ones of the Berkeley Function Calling Leaderboard; no question is in both parts. A call
is right when function and arguments are among the accepted ones, and "known" when it names nothing that the functions
do not have (an answer without a call invents nothing either: look at both columns).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import bfcl
import trial

CALL = """
import json

def right(given, values):
    return any(given == value or str(given).lower() == str(value).lower() for value in values)

def grade(sample, item):
    calls = sample['output_tools']
    if len(calls) != 1 or calls[0]['function']['name'] != item['name']:
        return 0.0
    try:
        given = json.loads(calls[0]['function']['arguments'])
    except ValueError:
        return 0.0
    accepted = item['accepted']
    if not isinstance(given, dict) or not all(name in accepted for name in given):
        return 0.0
    return 1.0 if all(
        right(given[name], values) if name in given else '' in values for name, values in accepted.items()
    ) else 0.0
"""
NAME = """
def grade(sample, item):
    calls = sample['output_tools']
    return 1.0 if len(calls) == 1 and calls[0]['function']['name'] == item['name'] else 0.0
"""
# A call of a function that is not there stays in the text: nothing recognises it.
KNOWN = """
import json

PARAMETERS = json.loads(%r)

def called(text):
    names = []
    for before in text.split('(')[:-1]:
        words = ''.join(c if c.isalnum() or c == '_' else ' ' for c in before)
        if words and words[-1] != ' ' and '_' in words.split()[-1]:
            names.append(words.split()[-1])
    return names

def grade(sample, item):
    if any(name not in PARAMETERS for name in called(sample['output_text'])):
        return 0.0
    for call in sample['output_tools']:
        known = PARAMETERS.get(call['function']['name'])
        if known is None:
            return 0.0
        try:
            given = json.loads(call['function']['arguments'])
        except ValueError:
            return 0.0
        if not isinstance(given, dict) or not all(name in known for name in given):
            return 0.0
    return 1.0
"""


def said(question: bfcl.Question) -> trial.Json:
    call = {"name": question.name, "arguments": json.dumps(question.arguments, ensure_ascii=False)}
    return {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}


def turns(questions: Sequence[bfcl.Question]) -> list[trial.Json]:
    return [message for each in questions for message in (trial.user(each.text), said(each))]


def main() -> None:
    parser = trial.parser(__doc__, examples=400, items=60)
    parser.add_argument("wheel", type=Path, help="bfcl_eval-….whl")
    parser.add_argument("--tools", type=int, default=16)
    arguments = parser.parse_args()
    client = trial.connect()
    tools, questions = bfcl.read(arguments.wheel, arguments.tools, arguments.seed)
    held_out, train = questions[: arguments.items], questions[arguments.items :][: arguments.examples]
    names = [{"type": "function", "function": {"name": tool["function"]["name"]}} for tool in tools]

    lines = [{"messages": turns([question]), "tools": names} for question in train]
    tuned = arguments.tuned or trial.tune(client, arguments, lines, "tools")

    shortest = {each.name: each for each in sorted(train, key=lambda each: -len(each.text))}  # of each function
    shown = turns(sorted(shortest.values(), key=lambda each: len(each.text))[:4])
    items = []
    for question in held_out:
        asked = trial.user(question.text)
        prompts = {"base": [asked], "few": [*shown, asked], "tuned": [asked]}
        items.append({"name": question.name, "accepted": question.accepted, "prompts": prompts})
    rows = [
        trial.Row(name="base, zero-shot", model=arguments.model, prompt="base", params={"tools": tools}),
        trial.Row(name="base, few-shot", model=arguments.model, prompt="few", params={"tools": tools}),
        trial.Row(name="tuned", model=tuned, prompt="tuned", params={"tools": names}),
    ]
    parameters = {tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in tools}
    graders = [
        {"type": "python", "name": name, "source": source}
        for name, source in (("call", CALL), ("function", NAME), ("known", KNOWN % json.dumps(parameters)))
    ]
    measured = trial.measure(client, "tools", items, rows, graders, max_tokens=56)
    trial.finish(client, arguments, measured, tuned)


if __name__ == "__main__":
    main()
