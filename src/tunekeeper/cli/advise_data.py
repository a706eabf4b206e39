"""A data set as `advise` sees it: read, split, looked at, and with a grader that fits its answers."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekeeper.cli.options import Options
from tunekeeper.errors import InvalidData, Unsupported

if TYPE_CHECKING:
    from tunekeeper.datasets.report import Report
    from tunekeeper.evals.default_grader import Chosen
    from tunekeeper.evals.signs import Record, Remark
    from tunekeeper.types import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The data, read and looked at."""

    method: str
    training: "list[Record]"
    """Shuffled, so that a beginning of it is a fair sample."""
    held_out: "list[Record]"
    chosen: "Chosen | None"
    remarks: "list[Remark]"
    ceiling: float

    @property
    def stops(self) -> bool:
        """Whether nothing needs to be measured to say no."""
        return any(remark.level == "stop" for remark in self.remarks)


def read_task(
    options: Options, data: Path, held_out: Path | None, share: float, grader: Path | None, seed: int
) -> Task:
    """Read and split the data, choose the grader, and collect what can be said without a model."""
    from tunekeeper.cli.tune import _checked, _json_of
    from tunekeeper.datasets.formats import detect_method
    from tunekeeper.evals.advice import readiness
    from tunekeeper.evals.default_grader import default_grader
    from tunekeeper.evals.signs import Remark, contradictions, has_passages, shift, single_passages, split

    with data.open("rb") as stream:
        method = detect_method(stream)
    given = None if grader is None else _json_of(grader)
    report = _checked(options, data, held_out, method)
    if errors := [fault for fault in report.faults if fault.level == "error" and fault.code != "too_few_examples"]:
        raise InvalidData(
            f"{data}: {errors[0].message} `tunekeeper check {data}` shows everything.",
            param="data",
            details=[fault.to_json() for fault in errors],
        )
    records = _records(data, method)
    training, held = (records, _records(held_out, method)) if held_out else split(records, share, seed=seed)
    random.Random(seed).shuffle(training)
    random.Random(seed).shuffle(held)
    chosen = default_grader(records) if given is None else _given(given)
    found = contradictions(records)
    remarks = _remarks(report)
    remarks += readiness(
        n_training=len(training),
        n_held_out=len(held),
        found=found,
        free_text=chosen is not None and chosen.kind in ("long text", "pair"),
        min_examples=options.settings.min_examples,
    )
    remarks += shift(training, held)
    if chosen is None or (method == "reinforcement" and given is None and chosen.kind == "long text"):
        remarks.append(
            Remark(
                "no_grader",
                level="stop",
                text="Nothing says what a right answer is: the lines have no answer that a program can compare. Give a "
                "grader (--grader FILE.json).",
            )
        )
    if has_passages(records):
        remarks.append(_passages(single_passages(records)))
    ceiling = contradictions([*training, *held]).ceiling
    return Task(method=method, training=training, held_out=held, chosen=chosen, remarks=remarks, ceiling=ceiling)


def _records(path: Path, method: str) -> "list[Record]":
    """The file's lines as what is asked and answered; raises Unsupported for lines without messages."""
    from tunekeeper.datasets.formats import Fault, parse, read_lines

    records = []
    with path.open("rb") as stream:
        for line in read_lines(stream):
            parsed = None if isinstance(line, Fault) else parse(line, method=method)
            if isinstance(line, Fault) or parsed is None or parsed.example is None:
                fault = line if isinstance(line, Fault) else parsed.faults[0] if parsed else None
                raise InvalidData(f"{path}: {fault.message if fault else 'a line cannot be read'}", param="data")
            records.append(_record(parsed.example, line.value))
    return records


def _record(example: Any, value: "Json") -> "Record":
    from tunekeeper.datasets.formats import ChatExample, CompletionExample, PreferenceExample
    from tunekeeper.evals.signs import Record

    if isinstance(example, CompletionExample):
        raise Unsupported(
            "Lines of prompt and completion are for models that take no messages, and these cannot be asked here. "
            "Write them as messages.",
            param="data",
        )
    messages, answer, item = example.messages, {"role": "assistant", "content": ""}, {}
    if isinstance(example, ChatExample):
        last = max(n for n in range(len(messages)) if example.is_trained(n))
        messages, answer = messages[:last], messages[last]
    elif isinstance(example, PreferenceExample):
        answer, item = example.preferred[-1], {"rejected": _said(example.rejected[-1])}
        messages = (*messages, *example.preferred[:-1])
    else:
        item = example.item
    plain = [{key: part for key, part in message.items() if key != "weight"} for message in (*messages, answer)]
    return Record(
        line=example.line,
        messages=tuple(plain[:-1]),
        answer=plain[-1],
        value=value,
        tools=tuple(example.tools or ()),
        item=item,
    )


def _said(message: "Json") -> str:
    from tunekeeper.datasets.tokenizer import text_of

    return text_of(message.get("content"))


def _given(spec: "Json") -> "Chosen":
    """The user's own grader; a score passes from its threshold on, else from half of its range on."""
    from tunekeeper.evals.default_grader import Chosen
    from tunekeeper.graders.spec import LabelModel, ScoreModel, StringCheck, parse

    parsed = parse(spec)
    declared = getattr(parsed, "pass_threshold", None)
    low, high = parsed.range if isinstance(parsed, ScoreModel) else (0.0, 1.0)
    return Chosen(
        kind="given",
        spec=spec,
        threshold=(low + high) / 2 if declared is None else declared,
        graded=not isinstance(parsed, StringCheck | LabelModel) and (low, high) == (0.0, 1.0) and declared is None,
        why="the grader that was given",
    )


def _remarks(report: "Report") -> "list[Remark]":
    """What the check of the file found; contradictions are counted in their own way."""
    from tunekeeper.evals.signs import Remark

    return [
        Remark(found.code, level=found.level, text=found.message, figures={"count": found.count})
        for found in report.findings
        if found.code != "contradictory_answers"
    ]


def _passages(single: float) -> "Remark":
    from tunekeeper.evals.signs import Remark

    text = "The prompts bring passages to answer from; whether answers stay within them is measured."
    if single > 0.5:
        text += (
            f" {single:.0%} of the prompts have a single passage: add passages that do not answer the question "
            "(distractors) to the training prompts, or the model learns to trust whatever it is given."
        )
    return Remark("passages", level="hint" if single > 0.5 else "info", text=text, figures={"single": single})
