"""Random trees for tests of the trainer and of the decoders."""

import random

from tunekeeper.types import Branch, Tree


def branch(tokens: int, rng: random.Random, vocab: int = 300) -> Branch:
    return Branch(tuple(rng.randrange(3, vocab) for _ in range(tokens)), (1.0,) * tokens)


def tree(trunk: int, *branches: int, seed: int = 0, invocation: tuple[int, ...] = ()) -> Tree:
    rng = random.Random(seed)
    tokens = tuple(rng.randrange(3, 300) for _ in range(trunk)) + invocation
    return Tree(tokens, tuple(branch(n, rng) for n in branches), line=seed)


def forest(n: int, *, invocation: tuple[int, ...] = (), seed: int = 0) -> list[Tree]:
    """Trees of one branch that can be learned: the branch repeats the trunk's first tokens."""
    trees = []
    for index in range(n):
        rng = random.Random(seed * 1000 + index)
        trunk = tuple(rng.randrange(3, 60) for _ in range(rng.randrange(4, 12)))
        answer = (*trunk[:3], 2)
        trees.append(Tree(trunk + invocation, (Branch(answer, (1.0,) * len(answer)),), line=index + 1))
    return trees
