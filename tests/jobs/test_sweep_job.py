"""Sweeps as jobs: each trial is a job of its own in all but name, and a kill costs nothing."""

import csv
import io
import multiprocessing
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jobshop import BASE, add_data, add_job, events_of, examples, finetune_until_killed, model_bytes, outcome_of, pairs
from tunekeeper.errors import InvalidConfig, NotFound, Unsupported
from tunekeeper.jobs import queue
from tunekeeper.jobs.finetune import run
from tunekeeper.jobs.prepare import Desk
from tunekeeper.jobs.submit import Submission, submit
from tunekeeper.jobs.trials import report
from tunekeeper.jobs.worker import bury
from tunekeeper.models.load import load_adapter, load_decoder
from tunekeeper.models.lora import AdapterRows
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import TERMINAL, Job, Model, Tree

pytestmark = pytest.mark.usefixtures("threads")

RATES = {"learning_rate_multiplier": [1, 30]}
COMMON = {"n_epochs": 2, "batch_size": 4, "save_every": 1, "lora_rank": 4}


def add_sweep(desk: Desk, sweep, *, method="supervised", model=BASE, validation=True, common=COMMON) -> Job:
    make = {"supervised": examples, "dpo": pairs}[method]
    searched = sweep["space"]
    hyperparameters = {name: value for name, value in common.items() if name not in searched}
    submission = Submission(
        model=model,
        training_file=add_data(desk, make(12)),
        validation_file=add_data(desk, make(4, first=100)) if validation else None,
        method={"type": method, method: {"hyperparameters": hyperparameters}},
        seed=7,
        suffix="test",
        sweep=sweep,
    )
    return submit(submission, desk.store, desk.settings)


def run_through(desk: Desk, job: Job) -> Job:
    run(job.id, desk)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert job.status == "succeeded", job.error
    return job


def content(desk: Desk, file_id: str) -> bytes:
    with desk.open(file_id) as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("method", "space"),
    [("supervised", {**RATES, "lora_rank": [2, 4]}), ("dpo", {"beta": [0.05, 0.5], "learning_rate_multiplier": [20]})],
)
def test_the_winner_is_the_model_that_a_job_with_its_hyperparameters_gives(desk, method, space):
    job = run_through(desk, add_sweep(desk, {"space": space}, method=method))
    found = report(job)
    best = found["trials"][0]
    assert best["trial"] == found["best_trial"]
    assert best["status"] == "completed"
    make = {"supervised": examples, "dpo": pairs}[method]
    alone = add_job(desk, method=method, validation=make(4, first=100), **{**COMMON, **best["hyperparameters"]})
    alone = run_through(desk, alone)
    assert model_bytes(desk, job.fine_tuned_model) == model_bytes(desk, alone.fine_tuned_model)
    assert job.resolved == alone.resolved
    recipe = desk.store.get_model(job.fine_tuned_model).info["recipe"]
    assert recipe["sweep"] == {"trial": best["trial"]}
    assert recipe["method"] == desk.store.get_model(alone.fine_tuned_model).info["recipe"]["method"]
    last = [e.data for e in events_of(desk, alone) if e.type == "metrics"][-1]
    assert best["valid_loss"] == last["full_valid_loss"]


def test_the_loser_of_two_is_stopped_half_way_and_all_of_it_is_told(desk):
    job = run_through(desk, add_sweep(desk, {"space": RATES}))
    found = report(job)
    assert [(t["trial"], t["status"], t["step"]) for t in found["trials"]] == [(2, "completed", 6), (1, "stopped", 3)]
    winner, loser = found["trials"]
    assert winner["measures"][0]["valid_loss"] < loser["measures"][0]["valid_loss"]
    assert (job.step, job.total_steps) == (9, 9)
    assert job.trained_tokens == winner["trained_tokens"] + loser["trained_tokens"]
    assert found["metric"] == "valid_loss"
    assert found["note"] == ""
    messages = [event.message for event in events_of(desk, job)]
    assert "The best of 2 trials is 2: learning_rate_multiplier=30" in messages
    assert any("Trial 1/2" in text and "is stopped after step 3/6" in text for text in messages)
    rows = [*csv.DictReader(io.StringIO(content(desk, job.result_file).decode()))]
    assert [(row["trial"], row["trial_step"]) for row in rows] == [("1", s) for s in "123"] + [
        ("2", s) for s in "123456"
    ]
    table, picture = (content(desk, file) for file in job.extra["sweep_files"])
    assert table.decode().splitlines()[1].startswith("2,30,completed,6,6,")
    assert picture.startswith(b"<?xml")
    assert b"learning_rate" in picture or b"<svg" in picture


def test_a_fast_sweep_keeps_an_adapter_of_the_top_layers_that_peft_loads(desk, tiny_base):
    job = run_through(desk, add_sweep(desk, {"space": RATES, "fast": True, "stopping": "none"}))
    found = report(job)
    assert {trial["status"] for trial in found["trials"]} == {"completed"}
    assert found["trained_layers"] == [1]
    assert "only layers 1 to 1" in found["note"]
    model = desk.store.get_model(job.fine_tuned_model)
    assert model.info["recipe"]["sweep"]["trained_layers"] == [1]
    directory = desk.settings.home / model.path
    decoder = load_decoder(tiny_base, dtype="fp32")
    adapter = load_adapter(directory, decoder)
    assert {name.split(".")[2] for name in adapter.pairs} == {"1"}
    tokens = [1, 7, 9, 30, 12]
    packed = pack([Tree(tuple(tokens), ())])
    with torch.no_grad():
        hidden = decoder.hidden(
            packed.tokens_T,
            packed.positions_T,
            TreeAttention(packed.spans),
            adapters=(AdapterRows(adapter, 0, packed.size),),
        )
        ours = decoder.logits(hidden)
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), directory)
        theirs = peft(torch.tensor([tokens])).logits[0]
        assert not [name for name, _ in peft.named_parameters() if "lora" in name and "layers.0." in name]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_a_validation_file_some_lines_are_held_out_and_that_is_said(desk):
    job = run_through(desk, add_sweep(desk, {"space": RATES, "validation_split": 0.25}, validation=False))
    assert job.extra["counts"] == {"n_examples": 9, "n_valid": 3}
    found = report(job)
    assert "0.25 of the training file was held out" in found["note"]
    assert desk.store.get_model(job.fine_tuned_model).info["recipe"]["sweep"]["validation_split"] == 0.25
    assert all(trial["valid_loss"] > 0 for trial in found["trials"])


def test_a_paused_sweep_goes_on_to_the_same_model(desk):
    whole = outcome_of(desk, run_through(desk, add_sweep(desk, {"space": RATES})))

    class Pausing:
        def __getattr__(self, name):
            return getattr(desk.store, name)

        def update_job(self, job_id, **changes):
            if changes.get("step") == 4:
                queue.pause(desk.store, job_id)
            return desk.store.update_job(job_id, **changes)

    job = add_sweep(desk, {"space": RATES})
    run(job.id, desk)
    run(job.id, replace(desk, store=Pausing()))
    assert desk.store.get_job(job.id).status == "paused"
    assert report(desk.store.get_job(job.id))["trials"][0]["measures"]
    queue.resume(desk.store, job.id)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert outcome_of(desk, job).models == whole.models


@pytest.mark.parametrize("moments", [(9, 26, 33), (14, 47, 21)])
def test_a_sweep_that_is_killed_again_and_again_gives_the_same_bytes(desk, moments):
    undisturbed = outcome_of(desk, run_through(desk, add_sweep(desk, {"space": RATES, "fast": moments[0] == 9})))
    job = add_sweep(desk, {"space": RATES, "fast": moments[0] == 9})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobshop", "tunekeeper.trainer.loop", "tunekeeper.models.load", "torch._dynamo"])
    killed = 0
    for moment in (*moments, 10_000):
        process = context.Process(target=finetune_until_killed, args=(desk.settings.home, job.id, moment))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode != 0
        process.close()
    assert killed == 3
    assert desk.store.get_job(job.id).status in TERMINAL
    bury(desk.store, desk.settings)
    disturbed = outcome_of(desk, job)
    assert disturbed.models == undisturbed.models
    assert replace(disturbed, files=undisturbed.files) == undisturbed


def test_when_every_trial_diverges_the_job_fails_and_shows_them(desk, tiny_base, tmp_path):
    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors")
    desk.store.add_model(Model(id="broken", created_at=1, kind="base", path=str(broken), base="broken"))
    job = add_sweep(desk, {"space": RATES}, model="broken")
    run(job.id, desk)
    run(job.id, desk)
    job = desk.store.get_job(job.id)
    assert (job.status, job.error["code"]) == ("failed", "diverged")
    found = report(job)
    assert [(t["status"], t["step"], t["valid_loss"]) for t in found["trials"]] == [("diverged", 1, None)] * 2
    assert found["best_trial"] is None


def test_a_plain_job_has_no_trials(desk):
    with pytest.raises(NotFound, match="is no sweep"):
        report(add_job(desk))


def test_the_trials_are_known_before_the_first_is_trained(desk):
    found = report(add_sweep(desk, {"space": RATES}))
    assert [(t["trial"], t["status"], t["step"]) for t in found["trials"]] == [(1, "waiting", 0), (2, "waiting", 0)]
    assert found["best_trial"] is None


def test_a_sweep_that_cannot_be_is_refused_before_it_is_a_job(desk, tiny_base):
    with pytest.raises(InvalidConfig) as caught:
        add_sweep(desk, {"space": RATES, "trials": 4})
    assert caught.value.param == "sweep.trials"
    tuned = run_through(desk, add_job(desk, n_epochs=1)).fine_tuned_model
    common = {"n_epochs": 1, "batch_size": 4}
    with pytest.raises(InvalidConfig, match="lora_rank"):
        add_sweep(desk, {"space": {"lora_rank": [4, 8]}}, model=tuned, common=common)
    with pytest.raises(Unsupported, match="leave fast out"):
        add_sweep(desk, {"space": RATES, "fast": True}, model=tuned, common=common)
    child = run_through(desk, add_sweep(desk, {"space": RATES}, model=tuned, common=common))
    assert desk.store.get_model(child.fine_tuned_model).parent == tuned
