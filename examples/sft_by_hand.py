"""Supervised fine-tuning from end to end on our own pieces: what a job does, without server, database or worker.

    python examples/sft_by_hand.py MODEL_DIRECTORY examples/tickets.jsonl OUT_DIRECTORY

Lines -> examples -> trees -> one packed row -> log-probabilities -> loss -> adapter. `trainer/loop.py` is the same
with validation, early stopping, resuming and prompts that are computed once.
"""

import argparse
import random
from pathlib import Path

from tunekeeper.datasets import Tokenizer
from tunekeeper.datasets.formats import read_examples
from tunekeeper.datasets.render import prompt_tokens, render
from tunekeeper.inference.engine import Engine
from tunekeeper.inference.params import Sampling
from tunekeeper.models.adapters import save_adapter
from tunekeeper.models.load import load_decoder
from tunekeeper.models.lora import AdapterRows, new_adapter
from tunekeeper.trainer.config import base_learning_rate
from tunekeeper.trainer.losses import LossInputs, cross_entropy, token_logprobs
from tunekeeper.trainer.optimizer import AdamW
from tunekeeper.trainer.trees import TreeAttention, pack

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", type=Path)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=8)
arguments = parser.parse_args()

# The model: weights that stay as they are, and an adapter that changes nothing yet.
tokenizer = Tokenizer.load(arguments.model)
decoder = load_decoder(arguments.model, dtype="fp32")
adapter = new_adapter(decoder.linear_modules(), rank=16, alpha=32, seed=1)

# The data: each example as a tree, its prompt the trunk and its answer the branch.
with arguments.data.open("rb") as file:
    examples = list(read_examples(file))
trees = [item.tree for example in examples for item in render(example, tokenizer, max_tokens=512)]
print(f"{len(trees)} trees, {sum(tree.size for tree in trees)} tokens")

# The loop: pack a batch without padding, predict the answers' tokens only, step.
parameters = {
    f"{name}.{part}": tensor
    for name, pair in adapter.pairs.items()
    for part, tensor in (("a", pair.a_RI), ("b", pair.b_OR))
}
optimizer = AdamW(parameters, weight_decay=0.0)
rate = base_learning_rate(decoder.shape.hidden_size, full=False)
order = random.Random(1)
for epoch in range(arguments.epochs):
    order.shuffle(trees)
    for start in range(0, len(trees), arguments.batch_size):
        packed = pack(trees[start : start + arguments.batch_size])
        hidden = decoder.hidden(
            packed.tokens_T,
            packed.positions_T,
            TreeAttention(packed.spans),
            adapters=(AdapterRows(adapter, 0, packed.size),),
        )
        logprobs, right = token_logprobs(hidden[packed.source_N], decoder.head_VE, packed.target_N)
        loss = cross_entropy(LossInputs(logprobs, packed.weight_N, packed.branch_N), float(packed.weight_N.sum()))
        loss.backward()
        optimizer.clip(1.0)
        optimizer.step(rate)
        optimizer.zero_grad()
        adapter.forget_fused()  # the decoder keeps fused copies of what has just changed
    print(f"epoch {epoch + 1}: loss {loss.item():.4f}, accuracy {right.float().mean().item():.2f}")

# The result: two files that PEFT, vLLM and `tunekeeper` read.
arguments.out.mkdir(parents=True, exist_ok=True)
save_adapter(adapter, arguments.out, base_id=arguments.model.name)
print(f"adapter: {arguments.out}")

# And what it says now, through the engine that serves.
prompt = prompt_tokens(tokenizer, examples[0].messages[:-1])
with Engine(decoder, tokenizer, arguments.model, cache_tokens=4096, max_batch=1) as engine:
    print(f"answer: {engine.answer(prompt, Sampling(max_tokens=16, temperature=0), adapter=adapter).text}")
