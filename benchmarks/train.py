"""Training speed and peak memory beside TRL: same weights, same tokens, same LoRA, each method one run.

    python -m benchmarks.train [--only sft,dpo,rft] [--model DIR] [--steps 6] [--rounds 3] [--batch 8] [--json]
    python -m benchmarks.train --only rft --profile        # where our own step's time goes; TRL does not run

Each side runs in a process of its own, in turn, round by round; figures are medians over all steps but each
process's first. TRL is tuned as far as it goes on a processor: no gradient checkpointing, an allocator that keeps
its pages, and both dtypes, of which the faster counts. Stock TRL is shown too, once.

The data are summaries of functions of Python's standard library. A step is `batch` sequences: so many examples
(sft), half as many pairs whose other output is another function's summary (dpo), or a group of so many answers to
one problem (rft). They are unpadded on our side, padded to the longest on TRL's, as each does by itself.

dpo   TRL computes the reference in each step, or before the first (`precompute_ref_log_probs`). We compute it before
      the first: beside the former, `speed_ratio`, its time a step is added to ours, as in a run of one epoch, or not,
      `later_epochs_speed_ratio`; beside the latter, `precomputed`, it counts on neither side.
rft   A step is rollout, grades and update, with the same grader. All answers have `new_tokens` tokens: nothing ends
      them. TRL's loss is that of Dr. GRPO with beta 0, as ours is.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekeeper.models.process import prepare_process

if TYPE_CHECKING:
    from tunekeeper.models.decoder import Decoder
    from tunekeeper.types import Json

RANK, ALPHA = 16, 32
LEARNING_RATES = {"sft": 2e-4, "dpo": 2e-5, "rft": 2e-5}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RIVALS = {"sft": ("trl",), "dpo": ("trl", "precomputed"), "rft": ("trl",)}
GRADER = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference }}",
    "evaluation_metric": "rouge_l",
}
SHOWN_OPERATORS = 25

Measured = dict[str, float]
"""What a step measured: the loss; log-probabilities in nats a token; seconds of its parts."""


@dataclass(frozen=True, slots=True)
class Example:
    """A function to summarise, as text and as tokens."""

    ask: str
    summary: str
    prompt: list[int]
    completion: list[int]


def examples(args: argparse.Namespace) -> list[Example]:
    """All that a run needs: prompts are a function's signature and description, completions its first sentence."""
    from tunekeeper.datasets import Tokenizer

    tokenizer = Tokenizer.load(args.model)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    found: list[Example] = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            first, _, body = (text or "").partition("\n\n")
            if isinstance(node, ast.FunctionDef) and 20 <= len(first) <= 300 and len(body) >= 80:
                signature = f"{node.name}({ast.unparse(node.args)})"
                ask = f"Summarise this function in one sentence.\n\n{signature}\n{body[:1500]}"
                chat = [{"role": "user", "content": ask}]
                prompt = tokenizer.encode(tokenizer.render_chat(chat, add_generation_prompt=True))
                summary = " ".join(first.split())
                completion = tokenizer.encode(summary + "<|im_end|>")
                if len(prompt) + len(completion) <= 512:
                    found.append(Example(ask, summary, prompt, completion))
    random.Random(1).shuffle(found)
    n = args.steps * per_step(args)
    if len(found) < n:
        raise SystemExit(f"only {len(found)} examples on this machine, {n} are needed")
    return found[:n]


def per_step(args: argparse.Namespace) -> int:
    """Examples that make up a step's `batch` sequences."""
    return {"sft": args.batch, "dpo": args.batch // 2, "rft": 1}[args.method]


def others(found: Sequence[Example]) -> list[list[int]]:
    """The output that is not preferred, for each example: the next one's."""
    return [example.completion for example in [*found[1:], found[0]]]


def tokens_per_step(args: argparse.Namespace, found: Sequence[Example]) -> float:
    """Tokens of a step's sequences, a prompt counted in each, without padding; the first step left out."""
    both = {
        "sft": lambda n: len(found[n].prompt) + len(found[n].completion),
        "dpo": lambda n: 2 * len(found[n].prompt) + len(found[n].completion) + len(others(found)[n]),
        "rft": lambda n: args.batch * (len(found[n].prompt) + args.new_tokens),
    }[args.method]
    return sum(both(n) for n in range(per_step(args), len(found))) / max(1, args.steps - 1)


def method_of(args: argparse.Namespace) -> "Json":
    """Our job's method."""
    said: Json = {"lora_rank": RANK, "lora_alpha": ALPHA, "scheduler": "constant", "n_epochs": 1}
    said["batch_size"] = per_step(args)
    if args.method == "rft":
        said |= {"num_generations": args.batch, "max_completion_tokens": args.new_tokens}
        return {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": said}}
    kind = {"sft": "supervised", "dpo": "dpo"}[args.method]
    return {"type": kind, kind: {"hyperparameters": said}}


def our_sft(args: argparse.Namespace, found: Sequence[Example]) -> Iterator[Measured]:
    from tunekeeper.models.load import load_decoder
    from tunekeeper.trainer.loop import Trainer
    from tunekeeper.types import Branch, Tree

    trees = [Tree(tuple(e.prompt), (Branch(tuple(e.completion), (1.0,) * len(e.completion)),)) for e in found]
    trainer = Trainer(load_decoder(args.model, dtype=args.dtype), trees, [], resolved(args, len(trees)), seed=0)
    for step in range(args.steps):
        sums, _ = trainer.optimize(batch_of(step, args), LEARNING_RATES["sft"])
        yield {"loss": sums.means().loss}


def our_dpo(args: argparse.Namespace, found: Sequence[Example]) -> Iterator[Measured]:
    import torch

    from tunekeeper.models.load import load_decoder
    from tunekeeper.trainer.loop import Trainer
    from tunekeeper.trainer.losses import LossInputs, branch_logprobs
    from tunekeeper.types import Branch, Tree

    trees = [
        Tree(tuple(e.prompt), tuple(Branch(tuple(output), (1.0,) * len(output)) for output in (e.completion, other)))
        for e, other in zip(found, others(found), strict=True)
    ]
    trainer = Trainer(load_decoder(args.model, dtype=args.dtype), trees, [], resolved(args, len(trees)), seed=0)
    began = time.perf_counter()
    trainer.prepare()
    reference_seconds = (time.perf_counter() - began) / args.steps
    first = list(batch_of(0, args))
    with torch.no_grad():
        packed, logprob_N, _ = trainer.train.logprobs(first)
    sums_B = branch_logprobs(LossInputs(logprob_N, packed.weight_N, packed.branch_N), 2 * len(first))
    logprobs = a_token(args, found, float(sums_B[0::2].mean()), float(sums_B[1::2].mean()))
    for step in range(args.steps):
        sums, _ = trainer.optimize(batch_of(step, args), LEARNING_RATES["dpo"])
        known = {"loss": sums.means().loss, "reference_seconds": reference_seconds}
        yield known if step else {**known, **logprobs}


def our_rft(args: argparse.Namespace, found: Sequence[Example]) -> Iterator[Measured]:
    from tunekeeper.datasets import Tokenizer
    from tunekeeper.datasets.formats import ProblemExample
    from tunekeeper.graders.build import build
    from tunekeeper.inference.engine import Engine
    from tunekeeper.inference.packed import packed_view
    from tunekeeper.jobs.prepare import Data
    from tunekeeper.jobs.rollouts import PROMPT_CHUNK, EngineSampler, ProblemPlayer
    from tunekeeper.models.load import load_decoder
    from tunekeeper.settings import Settings
    from tunekeeper.trainer.reinforce import Reinforcer
    from tunekeeper.trainer.rollouts import Ask, Played, seed_of
    from tunekeeper.types import Tree

    class Endless(Tokenizer):
        eos_ids = ()

    settings = Settings(home=args.out)
    trees = tuple(Tree(tuple(e.prompt), (), (), line) for line, e in enumerate(found, start=1))
    problems = tuple(
        ProblemExample(line, ({"role": "user", "content": e.ask},), {"reference": e.summary})
        for line, e in enumerate(found, start=1)
    )
    data = Data(trees, len(trees), (), (), problems)
    config = resolved(args, len(trees))
    decoder = load_decoder(args.model, dtype=args.dtype)
    tokenizer = Endless.load(args.model)
    warm(decoder)
    grader = build(GRADER)
    with Engine(
        packed_view(decoder),
        tokenizer,
        args.model,
        cache_tokens=settings.cache_tokens,
        max_batch=settings.max_concurrent_requests,
        chunk_tokens=PROMPT_CHUNK,
        in_background=False,
    ) as engine:
        player = ProblemPlayer(EngineSampler(engine, decoder), tokenizer, grader, [], config, data, data)
        trainer = Reinforcer(decoder, trees, [], config, player, seed=0)
        for step in range(args.steps):
            began = time.perf_counter()
            asks = [Ask(step, index, seed_of(step, index)) for index in range(args.batch)]
            played = Played(asks, player.play(asks, trainer.adapter, valid=False))
            sampled_at = time.perf_counter()
            sampled = trainer.compare(played)
            trainer.optimize(sampled, LEARNING_RATES["rft"], n_answers=len(asks))
            lengths = {len(rollout.tokens) for rollout in played.rollouts}
            if lengths != {args.new_tokens} or not sampled.trees:
                raise SystemExit(f"answers of {sorted(lengths)} tokens, {len(sampled.trees)} trees: no whole step")
            ended = time.perf_counter()
            yield {"sampling_seconds": sampled_at - began, "training_seconds": ended - sampled_at}
        player.close()


def warm(decoder: "Decoder") -> None:
    """Let the decoder make its tables here and not in the engine, whose tensors cannot learn."""
    import torch

    from tunekeeper.trainer.loop import Forest
    from tunekeeper.types import Branch, Tree

    with torch.no_grad():
        Forest(decoder, [Tree((0,), (Branch((0,), (1.0,)),))], None, 0).logprobs([0])


def resolved(args: argparse.Namespace, n: int) -> Any:
    """The numbers of our job's method."""
    from tunekeeper.trainer.config import resolve, validate_method

    return resolve(validate_method(method_of(args)), n_examples=n, n_valid=0, context=8192, hidden_size=576)


def batch_of(step: int, args: argparse.Namespace) -> range:
    return range(step * per_step(args), (step + 1) * per_step(args))


def a_token(args: argparse.Namespace, found: Sequence[Example], chosen: float, rejected: float) -> Measured:
    """Mean log-probabilities of the first step's outputs, as nats a token."""
    first = batch_of(0, args)
    n_chosen = statistics.mean(len(found[n].completion) for n in first)
    n_rejected = statistics.mean(len(others(found)[n]) for n in first)
    return {"chosen_logprob": chosen / n_chosen, "rejected_logprob": rejected / n_rejected}


OURS: Mapping[str, Callable[[argparse.Namespace, Sequence[Example]], Iterator[Measured]]] = {
    "sft": our_sft,
    "dpo": our_dpo,
    "rft": our_rft,
}


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Our trainer, step by step; with `profile` the last one under torch's profiler."""
    import torch

    torch.set_num_threads(args.threads)
    found = examples(args)
    steps = OURS[args.method](args, found)
    seconds: list[float] = []
    measured: list[Measured] = []
    table = None
    for number in range(args.steps):
        if args.profile and number == args.steps - 1:
            table = profile_of(lambda: next(steps))
            break
        began = time.perf_counter()
        measured.append(next(steps))
        seconds.append(time.perf_counter() - began)
    steps.close()  # type: ignore[attr-defined]
    return {"seconds": seconds[1:], "measured": measured, "tokens": tokens_per_step(args, found), "profile": table}


def profile_of(step: Callable[[], Any]) -> str:
    """The operators that took most of a step's time, of all threads."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    everywhere = _ExperimentalConfig(profile_all_threads=True)  # the engine has a thread of its own
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everywhere) as found:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=SHOWN_OPERATORS)
    return f"{table}Step: {seconds:.3f} s by the clock"


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's trainer on the same tokens."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(args.threads)
    found = examples(args)
    marks: list[float] = []
    logged: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                logged.append(logs)

    settings: Json = {
        "output_dir": str(args.out),
        "report_to": [],
        "use_cpu": True,
        "bf16": args.dtype == "bf16",
        "gradient_checkpointing": args.side == "stock",
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": LEARNING_RATES[args.method],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": 0,
        "disable_tqdm": True,
    }
    common: Json = {
        "model": AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        "peft_config": LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEAR, task_type="CAUSAL_LM"
        ),
        "processing_class": AutoTokenizer.from_pretrained(args.model),
        "callbacks": [Clock()],
    }
    TRL[args.method](args, found, settings, common).train()
    seconds = [b - a for a, b in pairwise(marks)]
    return {
        "seconds": seconds[1:],
        "measured": measured_by_trl(args, found, logged),
        "tokens": tokens_per_step(args, found),
    }


def trl_sft(args: argparse.Namespace, found: Sequence[Example], settings: "Json", common: "Json") -> Any:
    import trl
    from torch.utils.data import SequentialSampler

    from datasets import Dataset

    class InOrder(trl.SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    rows = [
        {"input_ids": e.prompt + e.completion, "completion_mask": [0] * len(e.prompt) + [1] * len(e.completion)}
        for e in found
    ]
    config = trl.SFTConfig(**settings, max_length=1024, completion_only_loss=True)
    return InOrder(args=config, train_dataset=Dataset.from_list(rows), **common)


def trl_dpo(args: argparse.Namespace, found: Sequence[Example], settings: "Json", common: "Json") -> Any:
    import trl
    from torch.utils.data import SequentialSampler

    from datasets import Dataset

    class InOrder(trl.DPOTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset  # it is tokens already

    rows = [
        {"prompt_ids": e.prompt, "chosen_ids": e.completion, "rejected_ids": other}
        for e, other in zip(found, others(found), strict=True)
    ]
    settings = {**settings, "per_device_train_batch_size": per_step(args)}
    config = trl.DPOConfig(**settings, max_length=1024, precompute_ref_log_probs=args.side == "precomputed")
    return InOrder(args=config, train_dataset=Dataset.from_list(rows), **common)


def trl_rft(args: argparse.Namespace, found: Sequence[Example], settings: "Json", common: "Json") -> Any:
    import trl

    from datasets import Dataset
    from tunekeeper.graders.build import build
    from tunekeeper.graders.template import sample_of

    grader = build(GRADER)

    def reward(completions: list[list[dict[str, str]]], reference: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        pairs = zip(texts, reference, strict=True)
        return [grader.grade(sample_of(text), {"reference": known}).score for text, known in pairs]

    rows = [{"prompt": [{"role": "user", "content": e.ask}], "reference": e.summary} for e in found]
    tokenizer = common["processing_class"]
    for row, example in zip(rows, found, strict=True):
        tokens = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
        if list(tokens["input_ids"]) != example.prompt:
            raise SystemExit("TRL's prompt has other tokens than ours")
    config = trl.GRPOConfig(
        **settings, num_generations=args.batch, max_completion_length=args.new_tokens, beta=0.0, temperature=1.0,
        loss_type="dr_grpo", scale_rewards="none", shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": args.new_tokens},
    )  # fmt: skip
    return trl.GRPOTrainer(reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), **common)


TRL: Mapping[str, Callable[[argparse.Namespace, Sequence[Example], "Json", "Json"], Any]] = {
    "sft": trl_sft,
    "dpo": trl_dpo,
    "rft": trl_rft,
}


def measured_by_trl(
    args: argparse.Namespace, found: Sequence[Example], logged: Sequence[Mapping[str, float]]
) -> list[Measured]:
    """What TRL logged, in our words."""
    if args.method == "rft":
        lengths = {logs["completions/mean_length"] for logs in logged}
        if lengths != {args.new_tokens}:
            raise SystemExit(f"TRL's answers have {sorted(lengths)} tokens, not {args.new_tokens}")
        return []
    measured = [{"loss": logs["loss"]} for logs in logged]
    if args.method == "dpo":
        measured[0] |= a_token(args, found, logged[0]["logps/chosen"], logged[0]["logps/rejected"])
    return measured


def child(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """One side's run in a process of its own; its peak memory is the process's."""
    name, _, dtype = side.partition(" ")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train", "--child", name, "--dtype", dtype]
    command += ["--only", args.method, "--model", str(args.model), "--steps", str(args.steps)]
    command += ["--batch", str(args.batch), "--threads", str(args.threads), "--new-tokens", str(args.new_tokens)]
    command += ["--profile"] if args.profile else []
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{args.method}, {side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def own_dtype() -> str:
    """The dtype that training takes on this processor."""
    from tunekeeper.models.load import DTYPES, compute_dtype

    return next(name for name, dtype in DTYPES.items() if dtype == compute_dtype("auto"))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of every side of one method; the stock one in the first round only."""
    own = own_dtype()
    dtypes = ["fp32", "bf16"] if own == "bf16" or args.all else ["fp32"]
    sides = [f"ours {own}", *(f"{rival} {dtype}" for rival in RIVALS[args.method] for dtype in dtypes), f"stock {own}"]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides if number == 0 else sides[:-1]:  # the stock run is slow, and shown for orientation
            runs[side].append(child(args, side))
            last = statistics.median(runs[side][-1]["seconds"])
            print(f"{args.method}, round {number + 1}, {side}: {last:.2f} s a step", file=sys.stderr)
    return figures(args.method, {side: row_of(found) for side, found in runs.items()})


def row_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one side's runs, and what its first one measured."""
    seconds = statistics.median(s for run in runs for s in run["seconds"])
    parts = [name for name in runs[0]["measured"][-1] if name.endswith("_seconds")] if runs[0]["measured"] else []
    return {
        "seconds_per_step": seconds,
        **{name: statistics.median(m[name] for run in runs for m in run["measured"][1:]) for name in parts},
        "tokens_per_second": runs[0]["tokens"] / seconds,
        "peak_gb": statistics.median(run["peak_gb"] for run in runs),
        "losses": [m["loss"] for m in runs[0]["measured"] if "loss" in m],
        "first": {n: v for m in runs[0]["measured"][:1] for n, v in m.items() if not n.endswith("_seconds")},
    }


def figures(method: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratios that are published, and the rows that they come from."""
    ours = next(row for side, row in rows.items() if side.startswith("ours"))
    stock = next(row for side, row in rows.items() if side.startswith("stock"))
    whole = ours["seconds_per_step"] + ours.get("reference_seconds", 0.0)
    section = {**beside(ours, rows, "trl", whole), "stock_speed_ratio": stock["seconds_per_step"] / whole}
    if method == "dpo":
        section["later_epochs_speed_ratio"] = rows[section["rival"]]["seconds_per_step"] / ours["seconds_per_step"]
        section["precomputed"] = beside(ours, rows, "precomputed", ours["seconds_per_step"])
    return {**section, "sides": rows}


def beside(ours: dict[str, Any], rows: dict[str, dict[str, Any]], name: str, seconds: float) -> dict[str, Any]:
    """Our figures over those of the faster of this rival's dtypes; `seconds` are ours a step."""
    rival_name = min((s for s in rows if s.startswith(name)), key=lambda s: rows[s]["seconds_per_step"])
    rival = rows[rival_name]
    found = {
        "speed_ratio": rival["seconds_per_step"] / seconds,
        "memory_ratio": ours["peak_gb"] / rival["peak_gb"],
        "rival": rival_name,
    }
    if rival["first"]:
        found["first_step_difference"] = max(abs(ours["first"][n] - value) for n, value in rival["first"].items())
        pairs = zip(ours["losses"], rival["losses"], strict=True)
        found["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
    return found


def show(method: str, section: dict[str, Any]) -> None:
    print(f"\n{method:<18}{'s a step':>10}{'tokens/s':>10}{'peak GB':>9}")
    for side, row in section["sides"].items():
        parts = [f"{name.removesuffix('_seconds')} {row[name]:.2f} s" for name in row if name.endswith("_seconds")]
        print(
            f"{side:<18}{row['seconds_per_step']:>10.2f}{row['tokens_per_second']:>10.0f}{row['peak_gb']:>9.2f}"
            f"   {', '.join(parts)}".rstrip()
        )
    for found in (section, section.get("precomputed")):
        if found:
            print(
                f"{found['speed_ratio']:.2f} times the speed of {found['rival']}, {found['memory_ratio']:.2f} of its "
                "memory" + _differences(found)
            )
    if "later_epochs_speed_ratio" in section:
        print(f"{section['later_epochs_speed_ratio']:.2f} times the speed of {section['rival']} in later epochs")


def _differences(found: dict[str, Any]) -> str:
    if "first_step_difference" not in found:
        return ""
    first, largest = found["first_step_difference"], found["largest_loss_difference"]
    return f"; at the first step numbers differ by at most {first:.1e} nats, losses of all steps by {largest:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="sft,dpo,rft", help="sections, with commas between; all of them without it")
    parser.add_argument("--model", type=Path, default=Path.home() / ".tunekeeper/bases/smollm2-135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="sequences a step; even")
    parser.add_argument("--new-tokens", type=int, default=48, help="length of a sampled answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--all", action="store_true", help="also TRL in bf16 where this processor has no bf16")
    parser.add_argument("--profile", action="store_true", help="our own step's operators instead, by time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", dest="side", choices=("ours", "trl", "precomputed", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="fp32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    methods = args.only.split(",")
    if not set(methods) <= set(RIVALS):
        parser.error(f"--only knows {', '.join(RIVALS)}")
    if args.steps < 2 or args.rounds < 1 or args.batch < 2 or args.batch % 2:
        parser.error("two steps, a round and an even batch are the least: the first step is not counted")
    args.out = Path(os.environ.get("TMPDIR", "/tmp")) / "tunekeeper-benchmark"
    args.method = methods[0]
    if args.side:
        print(json.dumps(run_child(args)))
        return
    result: dict[str, Any] = {}
    for args.method in methods:
        if args.profile:
            result[args.method] = child(args, f"ours {own_dtype()}")["profile"]
            print(f"{args.method}\n{result[args.method]}\n")
            continue
        result[args.method] = compare(args)
        if not args.json:
            show(args.method, result[args.method])
    if args.json and not args.profile:
        names = ("batch", "steps", "rounds", "threads", "new_tokens")
        print(json.dumps({**result, "settings": {name: getattr(args, name) for name in names}}, indent=2))


def run_child(args: argparse.Namespace) -> dict[str, Any]:
    if args.side != "stock":
        prepare_process()
    result = (run_ours if args.side == "ours" else run_trl)(args)
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return result


if __name__ == "__main__":
    main()
