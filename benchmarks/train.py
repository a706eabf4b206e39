"""Training speed and peak memory beside TRL's SFTTrainer: same weights, same batches, same LoRA, one run.

    python -m benchmarks.train [--model DIR] [--steps 6] [--rounds 3] [--batch 8] [--json]

Each side runs in a process of its own, in turn, round by round; figures are medians over all steps but each
process's first. TRL is tuned as far as it goes on a processor: no gradient checkpointing, an allocator that keeps
its pages, and both dtypes, of which the faster counts. Stock TRL is shown too.

The batches are summaries of functions of Python's standard library, unpadded on our side, padded to the longest
on TRL's, as each does by itself.
"""

import argparse
import ast
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from tunekeeper.models.process import prepare_process

RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def examples(directory: Path, n: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and completions: a function's signature and description, and its first sentence."""
    from tunekeeper.datasets import Tokenizer

    tokenizer = Tokenizer.load(directory)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    found: list[tuple[list[int], list[int]]] = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            first, _, body = (text or "").partition("\n\n")
            if isinstance(node, ast.FunctionDef) and 20 <= len(first) <= 300 and len(body) >= 80:
                signature = f"{node.name}({ast.unparse(node.args)})"
                ask = f"Summarise this function in one sentence.\n\n{signature}\n{body[:1500]}"
                chat = [{"role": "user", "content": ask}]
                prompt = tokenizer.encode(tokenizer.render_chat(chat, add_generation_prompt=True))
                completion = tokenizer.encode(" ".join(first.split()) + "<|im_end|>")
                if len(prompt) + len(completion) <= 512:
                    found.append((prompt, completion))
    random.Random(1).shuffle(found)
    if len(found) < n:
        raise SystemExit(f"only {len(found)} examples on this machine, {n} are needed")
    return found[:n]


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Our trainer on the batches."""
    import torch

    from tunekeeper.models.load import load_decoder
    from tunekeeper.trainer.config import resolve, validate_method
    from tunekeeper.trainer.loop import Trainer
    from tunekeeper.types import Branch, Tree

    torch.set_num_threads(args.threads)
    pairs = examples(args.model, args.steps * args.batch)
    trees = [Tree(tuple(p), (Branch(tuple(c), (1.0,) * len(c)),)) for p, c in pairs]
    said = {"n_epochs": 1, "batch_size": args.batch, "lora_rank": RANK, "lora_alpha": ALPHA, "scheduler": "constant"}
    method = validate_method({"type": "supervised", "supervised": {"hyperparameters": said}})
    config = resolve(method, n_examples=len(trees), n_valid=0, context=8192, hidden_size=576)
    trainer = Trainer(load_decoder(args.model, dtype=args.dtype), trees, [], config, seed=0)
    seconds, losses = [], []
    for step in range(args.steps):
        began = time.perf_counter()
        sums, _ = trainer.optimize(range(step * args.batch, (step + 1) * args.batch), LEARNING_RATE)
        seconds.append(time.perf_counter() - began)
        losses.append(sums.means()[0])
    return {"seconds": seconds[1:], "losses": losses, "tokens": _tokens(pairs, args)}


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer on the same batches."""
    import torch
    import trl
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from datasets import Dataset

    torch.set_num_threads(args.threads)
    pairs = examples(args.model, args.steps * args.batch)
    rows = [{"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in pairs]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []
            self.losses: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    class InOrder(trl.SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    bf16 = args.dtype == "bf16"
    settings = trl.SFTConfig(
        output_dir=str(args.out), report_to=[], use_cpu=True, bf16=bf16, gradient_checkpointing=args.stock,
        per_device_train_batch_size=args.batch, max_steps=args.steps, logging_steps=1, save_strategy="no",
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", seed=0, disable_tqdm=True, max_length=1024,
        completion_only_loss=True, weight_decay=0.0,
    )  # fmt: skip
    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEAR, task_type="CAUSAL_LM")
    InOrder(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), peft_config=lora,
        processing_class=AutoTokenizer.from_pretrained(args.model), callbacks=[clock],
    ).train()  # fmt: skip
    seconds = [b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]
    return {"seconds": seconds[1:], "losses": clock.losses, "tokens": _tokens(pairs, args)}


def _tokens(pairs: list[tuple[list[int], list[int]]], args: argparse.Namespace) -> float:
    return sum(len(p) + len(c) for p, c in pairs[args.batch :]) / max(1, args.steps - 1)


def child(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """One side's run in a process of its own; its peak memory is the process's."""
    name, _, dtype = side.partition(" ")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train", "--child", name, "--dtype", dtype or "fp32"]
    command += ["--model", str(args.model), "--steps", str(args.steps), "--batch", str(args.batch)]
    command += ["--threads", str(args.threads)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of every side; the stock one in the first round only."""
    from tunekeeper.models.load import DTYPES, compute_dtype

    own = next(name for name, dtype in DTYPES.items() if dtype == compute_dtype("auto"))
    sides = [f"ours {own}", "trl fp32"] + (["trl bf16"] if own == "bf16" or args.all else []) + ["stock fp32"]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides if number == 0 else sides[:-1]:  # the stock run is slow, and shown for orientation
            runs[side].append(child(args, side))
            last = runs[side][-1]
            print(f"round {number + 1}, {side}: {statistics.median(last['seconds']):.2f} s a step", file=sys.stderr)
    rows = {
        side: {
            "seconds_per_step": statistics.median(s for run in found for s in run["seconds"]),
            "tokens_per_second": found[0]["tokens"] / statistics.median(s for run in found for s in run["seconds"]),
            "peak_gb": statistics.median(run["peak_gb"] for run in found),
            "losses": found[0]["losses"],
        }
        for side, found in runs.items()
    }
    ours = rows[sides[0]]
    rival_name = min((s for s in sides if s.startswith("trl")), key=lambda s: rows[s]["seconds_per_step"])
    rival = rows[rival_name]
    return {
        "sft": {
            "speed_ratio": rival["seconds_per_step"] / ours["seconds_per_step"],
            "memory_ratio": ours["peak_gb"] / rival["peak_gb"],
            "rival": rival_name,
            "stock_speed_ratio": rows["stock fp32"]["seconds_per_step"] / ours["seconds_per_step"],
            "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], rival["losses"], strict=False)),
        },
        "sides": rows,
        "settings": {"batch": args.batch, "steps": args.steps, "rounds": args.rounds, "threads": args.threads},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path.home() / ".tunekeeper/bases/smollm2-135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--all", action="store_true", help="also TRL in bf16 where this processor has no bf16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("ours", "trl", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="fp32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.stock = args.child == "stock"
    args.out = Path(os.environ.get("TMPDIR", "/tmp")) / "tunekeeper-benchmark"
    if args.child:
        if args.child != "stock":
            prepare_process()
        result = (run_ours if args.child == "ours" else run_trl)(args)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(result))
        return
    result = compare(args)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'':<12}{'s a step':>10}{'tokens/s':>10}{'peak GB':>9}")
    for side, row in result["sides"].items():
        print(f"{side:<12}{row['seconds_per_step']:>10.2f}{row['tokens_per_second']:>10.0f}{row['peak_gb']:>9.2f}")
    sft = result["sft"]
    print(
        f"SFT: {sft['speed_ratio']:.2f} times the speed of {sft['rival']}, {sft['memory_ratio']:.2f} of its memory; "
        f"losses differ by at most {sft['largest_loss_difference']:.4f}"
    )


if __name__ == "__main__":
    main()
