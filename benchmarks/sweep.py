"""A sweep of four learning rates, fast and full, beside four runs one by one: same weights, same examples.

    python -m benchmarks.sweep [--model DIR] [--steps 6] [--epochs 1] [--rounds 3] [--trl SECONDS] [--json]

fast        one process, four trials of the top third of the layers over activations that are computed once
together    one process, four full trials on one loaded base: what `stopping` none trains
separate    four processes, each a full run

Counted is training alone: no loading, no validation, no early stopping. What is trained differs: `fast` leaves two
thirds of the layers as they are, and its losses are shown beside the full ones. `--trl` is TRL's time for a step of
the same batch (`python -m benchmarks.train --only sft` prints it): then the ratio to four such runs is printed too.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.train import ALPHA, RANK, examples

from tunekeeper.models.process import prepare_process

MULTIPLIERS = (0.1, 0.3, 1.0, 3.0)
SIDES = ("fast", "together", "separate")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One side's trials in this process; with `trial` only that one."""
    import torch

    from tunekeeper.models.load import load_decoder
    from tunekeeper.trainer.config import resolve, validate_method
    from tunekeeper.trainer.fast import FastTrainer
    from tunekeeper.trainer.loop import Trainer
    from tunekeeper.types import Branch, Tree

    torch.set_num_threads(args.threads)
    found = examples(args)
    trees = [Tree(tuple(e.prompt), (Branch(tuple(e.completion), (1.0,) * len(e.completion)),)) for e in found]
    decoder = load_decoder(args.model, dtype=args.dtype)
    multipliers = MULTIPLIERS if args.trial is None else MULTIPLIERS[args.trial : args.trial + 1]
    seconds, cpu_seconds, losses = [], [], []
    before: Trainer | None = None
    for multiplier in multipliers:
        began, cpu_began = time.perf_counter(), time.process_time()
        said = {"n_epochs": args.epochs, "batch_size": args.batch, "lora_rank": RANK, "lora_alpha": ALPHA}
        said["learning_rate_multiplier"] = multiplier
        method = validate_method({"type": "supervised", "supervised": {"hyperparameters": said}})
        config = resolve(method, n_examples=len(trees), n_valid=0, context=8192, hidden_size=576)
        trainer = (FastTrainer if args.child == "fast" else Trainer)(decoder, trees, [], config, seed=0)
        if before is not None:
            trainer.share(before)
        steps = [step.train_loss for step in trainer.steps()]
        before = trainer
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
        losses.append(statistics.mean(steps[-args.steps :]))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "last_epoch_losses": losses}


def child(args: argparse.Namespace, side: str, trial: int | None = None) -> dict[str, Any]:
    """One process; its peak memory is the process's."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sweep", "--child", side, "--dtype", args.dtype]
    command += ["--model", str(args.model), "--steps", str(args.steps), "--batch", str(args.batch)]
    command += ["--epochs", str(args.epochs), "--threads", str(args.threads)]
    command += [] if trial is None else ["--trial", str(trial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one_round(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """All four trials of a side."""
    if side != "separate":
        return child(args, side)
    runs = [child(args, side, trial) for trial in range(len(MULTIPLIERS))]
    lists = {name: [run[name][0] for run in runs] for name in ("seconds", "cpu_seconds", "last_epoch_losses")}
    return {**lists, "peak_gb": max(run["peak_gb"] for run in runs)}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of every side."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES:
            runs[side].append(one_round(args, side))
            print(f"round {number + 1}, {side}: {sum(runs[side][-1]['seconds']):.1f} s", file=sys.stderr)
    sides = {
        side: {
            "seconds": statistics.median(sum(one["seconds"]) for one in found),
            "cpu_seconds": statistics.median(sum(one["cpu_seconds"]) for one in found),
            "seconds_of_trials": found[-1]["seconds"],
            "peak_gb": statistics.median(one["peak_gb"] for one in found),
            "last_epoch_losses": found[-1]["last_epoch_losses"],
        }
        for side, found in runs.items()
    }
    result: dict[str, Any] = {
        "speed_ratio_to_separate": sides["separate"]["seconds"] / sides["fast"]["seconds"],
        "memory_ratio_to_separate": sides["fast"]["peak_gb"] / sides["separate"]["peak_gb"],
        "trained": "fast: LoRA on the top third of the layers; together and separate: on all layers",
        "multipliers": MULTIPLIERS,
        "sides": sides,
        "settings": {name: getattr(args, name) for name in ("steps", "epochs", "batch", "rounds", "threads", "dtype")},
    }
    if args.trl is not None:
        trl = len(MULTIPLIERS) * args.steps * args.epochs * args.trl
        result["speed_ratio_to_trl"] = trl / sides["fast"]["seconds"]
        result["together_speed_ratio_to_trl"] = trl / sides["together"]["seconds"]
    return {"sweep": result}


def main() -> None:
    prepare_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path.home() / ".tunekeeper/bases/smollm2-135m")
    parser.add_argument("--steps", type=int, default=6, help="steps of an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--trl", type=float, help="TRL's seconds a step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--trial", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.method = "sft"
    if args.child:
        result = run(args)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(result))
        return
    result = compare(args)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    found = result["sweep"]
    print(f"{'':<10}{'s, 4 trials':>12}{'CPU s':>8}{'peak GB':>9}  mean loss of the last epoch, at {MULTIPLIERS}")
    for side, row in found["sides"].items():
        losses = "  ".join(f"{loss:.3f}" for loss in row["last_epoch_losses"])
        print(f"{side:<10}{row['seconds']:>12.1f}{row['cpu_seconds']:>8.1f}{row['peak_gb']:>9.2f}  {losses}")
    print(f"fast: {found['speed_ratio_to_separate']:.2f} times the speed of four runs of ours. {found['trained']}.")
    if "speed_ratio_to_trl" in found:
        print(
            f"four TRL runs at {args.trl} s a step: fast {found['speed_ratio_to_trl']:.1f} times their speed, "
            f"together {found['together_speed_ratio_to_trl']:.1f} times"
        )


if __name__ == "__main__":
    main()
