"""The eval of a reinforcement job: its grader, and a run for each evaluation of the validation file.

The job makes it when it is created and links it as `eval_id`; a run holds the first answer to each problem, as it
was sampled and graded while the job trained. The name of a run says the step, 0 before training.
"""

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from typing import TYPE_CHECKING

from tunekeeper.errors import NotFound
from tunekeeper.graders.spec import parse, to_json
from tunekeeper.graders.template import sample_of
from tunekeeper.jobs.eval_data import data_source_config
from tunekeeper.jobs.evals import graded, tallied
from tunekeeper.types import Eval, EvalItem, EvalRun, Job, Json, new_id

if TYPE_CHECKING:
    from tunekeeper.jobs.prepare import Desk
    from tunekeeper.jobs.rollouts import Evaluated
    from tunekeeper.storage.store import Store


def add_eval(job: Job, store: "Store") -> None:
    """Make the eval that the job names."""
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    store.add_eval(
        Eval(
            id=job.extra["eval_id"],
            created_at=job.created_at,
            name=f"Validation of {job.id}",
            data_source_config=data_source_config(config),
            testing_criteria=[to_json(parse(job.method["reinforcement"]["grader"]))],
            metadata={"job": job.id},
        )
    )


def add_run(job: Job, desk: "Desk", step: int, evaluated: "Sequence[Evaluated]", seconds: float) -> None:
    """Keep an evaluation as a run of the job's eval; a resumed job repeats steps, and the first stays."""
    eval_id = job.extra.get("eval_id")
    if eval_id is None or not evaluated:
        return
    run_id = f"evalrun_{job.id.removeprefix('ftjob-')}-{step}"
    lines = [{**each.problem.item, "messages": list(each.problem.messages)} for each in evaluated]
    data = b"".join(json.dumps({"item": line}, ensure_ascii=False).encode(errors="replace") + b"\n" for line in lines)
    sha256, _ = desk.blobs.put(io.BytesIO(data))
    items = [
        _item(job, run_id, number, line, each) for number, (line, each) in enumerate(zip(lines, evaluated, strict=True))
    ]
    tally: Json = reduce(tallied, items, {"seconds": seconds})
    run = EvalRun(
        id=run_id,
        eval_id=eval_id,
        created_at=desk.store.now(),
        name=f"step {step}",
        data_source={"type": "jsonl", "source": {"type": "file_id", "id": job.validation_file}},
        sha256=sha256,
        total=len(items),
        model=job.extra["tuned_model"] if step else job.model,
        metadata={"job": job.id, "step": str(step)},
        status="completed",
        finished_at=desk.store.now(),
        tally=tally,
    )
    with suppress(NotFound):  # somebody deleted the eval: they do not want it
        desk.store.add_ended_eval_run(run, items)


def _item(job: Job, run_id: str, number: int, line: Json, each: "Evaluated") -> EvalItem:
    rollout = each.rollout
    spec = parse(job.method["reinforcement"]["grader"])
    result, status = graded(spec, rollout.grade)
    model = job.extra["tuned_model"]
    n_prompt, n_sampled = each.n_prompt + rollout.n_read, len(rollout.tokens) - rollout.n_read
    tokens = {"prompt_tokens": n_prompt, "completion_tokens": n_sampled, "cached_tokens": 0}
    used = {**tokens, "total_tokens": n_prompt + n_sampled}
    reason = "length" if rollout.is_cut else "stop"
    return EvalItem(
        id=new_id("outputitem_", 32),
        run_id=run_id,
        eval_id=job.extra["eval_id"],
        created_at=job.created_at,
        datasource_item_id=number,
        status=status,
        datasource_item=line,
        results=[result],
        sample={
            "input": list(each.problem.messages),
            "output": list(rollout.messages) or [choice["message"] for choice in sample_of(rollout.text)["choices"]],
            "finish_reason": reason,
            "model": model,
            "usage": used,
            "error": None,
            "temperature": None,
            "top_p": None,
            "seed": None,
            "max_completion_tokens": None,
        },
        usage={model: {"invocation_count": 1, **used}},
    )
