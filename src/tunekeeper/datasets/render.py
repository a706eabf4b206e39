"""An example to trees: which tokens the model reads, and which it learns.

The trunk is what serving would send for the same chat, generation prompt included; `prompt_tokens` is that
one code path. The branch is the answer through its end-of-turn token, and in longer chats what follows.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>
    trunk                                                    | branch, weight 1

Where the turns end is found by rendering ever more messages: each rendering must begin with the one before.
Templates that rewrite what they wrote (Qwen3 drops earlier thoughts) give one tree for each turn instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from tunekeeper.datasets.formats import ChatExample, CompletionExample, Example, PreferenceExample, ProblemExample
from tunekeeper.datasets.tokenizer import Tokenizer, text_of
from tunekeeper.errors import InvalidRequest
from tunekeeper.types import Branch, Json, Message, Tree


@dataclass(frozen=True, slots=True)
class Rendered:
    """A tree, and whether something of the example was cut off to fit."""

    tree: Tree
    truncated: bool

    @property
    def trained_tokens(self) -> int:
        """Tokens with a loss weight above 0."""
        weights = (self.tree.trunk_weights, *(branch.weights for branch in self.tree.branches))
        return sum(weight > 0 for group in weights for weight in group)


def render(
    example: Example,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    prompt_loss_weight: float = 0.0,
    split_turns: bool = False,
) -> list[Rendered]:
    """The example's trees, cut at the end to `max_tokens`; empty when nothing that is learned would be left.

    A pair gives one tree with two branches; a problem, which has no answer yet, one without any. Raises
    InvalidRequest where the model's chat template cannot write the messages.
    """
    if isinstance(example, PreferenceExample):
        pair = _fit_pair(_pair_tree(example, tokenizer, split_turns), max_tokens)
        return [] if pair is None else [pair]
    if isinstance(example, ProblemExample):
        return _problem_tree(example, tokenizer, max_tokens)
    if isinstance(example, CompletionExample):
        trees = [_completion_tree(example, tokenizer, prompt_loss_weight)]
    else:
        trees = _chat_trees(example, tokenizer, prompt_loss_weight, split_turns)
    fitted = [_fit(tree, max_tokens) for tree in trees]
    is_incomplete = None in fitted
    return [Rendered(r.tree, r.truncated or is_incomplete) for r in fitted if r is not None]


def prompt_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Json] | None = None,
    parallel_tool_calls: bool | None = None,
) -> str:
    """The text that an answer to these messages goes on from; training's trunks are this text."""
    return tokenizer.render_chat(
        messages, tools=tools, add_generation_prompt=True, parallel_tool_calls=parallel_tool_calls
    )


def prompt_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Json] | None = None,
    parallel_tool_calls: bool | None = None,
) -> list[int]:
    """`prompt_text` as tokens: what serving sends and what training's trunks hold."""
    return tokenizer.encode(prompt_text(tokenizer, messages, tools=tools, parallel_tool_calls=parallel_tool_calls))


def reply_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    replies: Sequence[Message],
    *,
    tools: Sequence[Json] | None = None,
    parallel_tool_calls: bool | None = None,
) -> list[int]:
    """What stands between the end of an answer, the last of `messages`, and the next answer: `replies`, as tokens.

    The answer's end is counted, for a template may write an answer otherwise once there are replies: Qwen3 leaves out
    the empty thought. Raises InvalidRequest where the template has no text that ends a turn, and rewrites too.
    """
    write = partial(tokenizer.render_chat, tools=tools, parallel_tool_calls=parallel_tool_calls)
    through = write(messages)
    whole = write([*messages, *replies], add_generation_prompt=True)
    end = max(_end_texts(tokenizer), key=through.rfind, default="")
    place = len(through) if whole.startswith(through) else None
    if end and end in through:
        parts = whole.split(end, through.count(end))
        place = len(whole) - len(parts[-1]) if len(parts) > through.count(end) else None
    if place is None:
        raise InvalidRequest(
            "The model's chat template rewrites an answer when a tool's output follows it, so the answer cannot be "
            "continued as it was sampled. Use a model with another template, or leave out method.reinforcement.tools.",
            param="method.reinforcement.tools",
        )
    return tokenizer.encode(whole[place:], continues=True)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One assistant message in the rendered text."""

    prompt: str
    answer: str
    """Through the end-of-turn token where the template writes one."""
    ends: bool

    @property
    def text(self) -> str:
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class _Segment:
    """Tokens that are encoded together, with their loss weights."""

    tokens: list[int]
    weights: list[float]


def _completion_tree(example: CompletionExample, tokenizer: Tokenizer, prompt_loss_weight: float) -> Tree:
    prompt = tokenizer.encode(example.prompt)
    if tokenizer.add_bos or not prompt:
        start = tokenizer.bos_id if tokenizer.bos_id is not None else _end_id(tokenizer)
        prompt = [start, *prompt]
    answer = [*tokenizer.encode(example.completion, continues=bool(example.prompt)), _end_id(tokenizer)]
    weights = [prompt_loss_weight] * len(prompt)
    return _tree(example.line, _Segment(prompt, weights), [_Segment(answer, [1.0] * len(answer))])


def _chat_trees(example: ChatExample, tokenizer: Tokenizer, prompt_loss_weight: float, split_turns: bool) -> list[Tree]:
    is_needed = {n: example.is_trained(n) or prompt_loss_weight > 0 for n in range(len(example.messages))}
    turns = {
        n: _turn(example, tokenizer, n)
        for n, message in enumerate(example.messages)
        if message["role"] == "assistant" and is_needed[n]
    }
    trained = [turn for n, turn in turns.items() if example.is_trained(n)]
    goes_on = all(after.prompt.startswith(before.text) for before, after in pairwise(trained))
    groups = [trained] if goes_on and not split_turns else [[turn] for turn in trained]
    return [
        _turns_tree(example.line, group, list(turns.values()), tokenizer, prompt_loss_weight)
        for group in groups
        if group
    ]


def _pair_tree(example: PreferenceExample, tokenizer: Tokenizer, split_turns: bool) -> Tree:
    """The input as trunk, the two outputs as branches."""
    sides = []
    for chat in example.chats():
        trees = _chat_trees(chat, tokenizer, 0.0, split_turns)
        if len(trees) != 1:
            scope, template = "adapter_scope 'completion' acts on one only", "the model's chat template rewrites them"
            raise InvalidRequest(
                f"Line {example.line}: an output has several answers, and {scope if split_turns else template}. "
                "Use outputs of one answer."
            )
        sides.append(trees[0])
    trunk = _common([side.trunk for side in sides])
    branches = []
    for side in sides:
        rest, (branch,) = side.trunk[len(trunk) :], side.branches
        branches.append(Branch(rest + branch.tokens, (0.0,) * len(rest) + branch.weights))
    return Tree(trunk, tuple(branches), (), example.line)


def _common(trunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all begin with: an answer of weight 0 at the start of an output is in that output's trunk alone."""
    same = 0
    for tokens in zip(*trunks, strict=False):
        if len(set(tokens)) > 1:
            break
        same += 1
    return trunks[0][:same]


def _fit_pair(tree: Tree, max_tokens: int | None) -> Rendered | None:
    """The pair cut at the ends of its outputs; None when an output has nothing left, or both are the same."""
    parts = [_fit(Tree(tree.trunk, (branch,), (), tree.line), max_tokens) for branch in tree.branches]
    kept = [part for part in parts if part is not None]
    branches = tuple(part.tree.branches[0] for part in kept)
    if len(kept) < len(parts) or branches[0] == branches[1]:
        return None
    return Rendered(Tree(tree.trunk, branches, (), tree.line), any(part.truncated for part in kept))


def _problem_tree(example: ProblemExample, tokenizer: Tokenizer, max_tokens: int | None) -> list[Rendered]:
    """The prompt alone; one that leaves no room for an answer is none."""
    prompt = prompt_tokens(
        tokenizer, example.messages, tools=example.tools, parallel_tool_calls=example.parallel_tool_calls
    )
    if max_tokens is not None and len(prompt) >= max_tokens:
        return []
    return [Rendered(Tree(tuple(prompt), (), (), example.line), False)]


def _turn(example: ChatExample, tokenizer: Tokenizer, index: int) -> _Turn:
    """Where the assistant message at `index` begins and ends in the rendered text."""
    before, message = example.messages[:index], example.messages[index]
    write = partial(tokenizer.render_chat, tools=example.tools, parallel_tool_calls=example.parallel_tool_calls)
    through = write(example.messages[: index + 1])
    prompt = write(before, add_generation_prompt=True) if before else None
    if prompt is not None and through.startswith(prompt):
        answer = through[len(prompt) :]
    else:
        start = _content_start(message, through)
        prompt = through[:start] if prompt is None else prompt
        answer = through[start:]
    end = max((answer.rfind(text) + len(text) for text in _end_texts(tokenizer) if text in answer), default=0)
    return _Turn(prompt, answer[:end] if end else answer, ends=end > 0)


def _content_start(message: Message, through: str) -> int:
    """Where the answer begins when the prompt does not say: there is none, or it opens a thought."""
    content = text_of(message.get("content")).strip()
    start = through.rfind(content) if content else -1
    if start < 0:
        raise InvalidRequest(
            "The model's chat template writes this assistant message in a way that hides where it begins. "
            "Put a user message before it, or use a model with another template.",
            param="messages",
        )
    return start


def _turns_tree(
    line: int, group: list[_Turn], turns: list[_Turn], tokenizer: Tokenizer, prompt_loss_weight: float
) -> Tree:
    """The prompt of the group's first turn as trunk; its turns, and what stands between them, as branch."""
    done = ""
    segments = []
    for turn in group:
        weights_at = _PromptWeights(prompt_loss_weight, turn.prompt, turns)
        segments.append(weights_at.segment(tokenizer, len(done)))
        answer = tokenizer.encode(turn.answer, continues=True)
        if not turn.ends and turn is group[-1]:
            answer.append(_end_id(tokenizer))
        segments.append(_Segment(answer, [1.0] * len(answer)))
        done = turn.text
    return _tree(line, segments[0], segments[1:])


class _PromptWeights:
    """Loss weights of what the model reads: one weight, and 0 on every assistant turn in it."""

    def __init__(self, weight: float, prompt: str, turns: list[_Turn]) -> None:
        self._prompt = prompt
        earlier = [turn for turn in turns if len(turn.prompt) < len(prompt)] if weight else []
        # An assistant turn that the template rewrote cannot be told from the rest, so nothing is learned.
        self._weight = weight if all(prompt.startswith(turn.text) for turn in earlier) else 0.0
        self._silent = [(len(turn.prompt), len(turn.text)) for turn in earlier]

    def segment(self, tokenizer: Tokenizer, start: int) -> _Segment:
        """The prompt from the character `start` on."""
        text, continues = self._prompt[start:], start > 0
        tokens = tokenizer.encode(text, continues=continues)
        if not self._weight or not self._silent:
            return _Segment(tokens, [self._weight] * len(tokens))
        spans = [(first + start, last + start) for first, last in tokenizer.offsets(text, continues=continues)]
        return _Segment(tokens, [0.0 if self._is_silent(span) else self._weight for span in spans])

    def _is_silent(self, span: tuple[int, int]) -> bool:
        return any(span[0] < end and start < span[1] for start, end in self._silent)


def _tree(line: int, trunk: _Segment, segments: list[_Segment]) -> Tree:
    tokens = tuple(token for segment in segments for token in segment.tokens)
    weights = tuple(weight for segment in segments for weight in segment.weights)
    # Nothing comes before the first token to predict it from.
    trunk_weights = (0.0, *trunk.weights[1:]) if any(trunk.weights[1:]) else ()
    return Tree(tuple(trunk.tokens), (Branch(tokens, weights),), trunk_weights, line)


def _fit(tree: Tree, max_tokens: int | None) -> Rendered | None:
    """The tree cut at its end; None when no token of an answer is left."""
    (branch,) = tree.branches
    room = len(branch.tokens) if max_tokens is None else max_tokens - len(tree.trunk)
    learned = [n for n, weight in enumerate(branch.weights[: max(room, 0)], start=1) if weight > 0]
    if not learned:
        return None
    if room >= len(branch.tokens):
        return Rendered(tree, False)
    kept = Branch(branch.tokens[: learned[-1]], branch.weights[: learned[-1]])
    return Rendered(Tree(tree.trunk, (kept,), tree.trunk_weights, tree.line), True)


def _end_texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in tokenizer.eos_ids]


def _end_id(tokenizer: Tokenizer) -> int:
    if not tokenizer.eos_ids:
        raise InvalidRequest(
            "The model has no end-of-text token, so it could never learn to stop. Set eos_token in its "
            "tokenizer_config.json.",
            param="model",
        )
    return tokenizer.eos_ids[0]
