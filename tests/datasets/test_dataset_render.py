from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tunekeeper.datasets.formats import ChatExample, CompletionExample, PreferenceExample, ProblemExample
from tunekeeper.datasets.render import Rendered, prompt_tokens, render
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest

THOUGHTS_DROPPED = """{% for m in messages %}
{% set content = m.content %}
{% if m.role == 'assistant' and not loop.last %}{% set content = m.content.split('</think>')[-1] %}{% endif %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
THOUGHT_OPENED = """{% for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
NO_END = """{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{- 'assistant: ' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny.make_tokenizer(tmp_path_factory.mktemp("tiny")))


def templated(directory: Path, template: str | None) -> Tokenizer:
    return Tokenizer.load(tiny.make_tokenizer(directory, chat_template=template))


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], tools: list[dict] | None = None) -> ChatExample:
    return ChatExample(1, messages, tuple(tools) if tools else None)


def learned(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    """The stretches of the branch that have the weight 1."""
    (branch,) = rendered.tree.branches
    stretches: list[list[int]] = [[]]
    for token, weight in zip(branch.tokens, branch.weights, strict=True):
        if weight == 1:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(tokens) for tokens in stretches if tokens]


def whole(rendered: Rendered) -> list[int]:
    return [*rendered.tree.trunk, *rendered.tree.branches[0].tokens]


def test_the_trunk_is_what_serving_sends_and_the_answer_is_learned_through_its_end(
    tokenizer: Tokenizer,
) -> None:
    question = [said("system", "be"), said("user", "hello")]
    (rendered,) = render(chat(*question, said("assistant", "the answer")), tokenizer)
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, question)
    assert tokenizer.decode(rendered.tree.trunk).endswith("<|im_start|>assistant\n")
    assert learned(rendered, tokenizer) == ["the answer<|im_end|>"]
    assert rendered.tree.branches[0].tokens[-1] == 2
    assert (rendered.tree.line, rendered.tree.trunk_weights, rendered.truncated) == (1, (), False)
    assert rendered.trained_tokens == len(rendered.tree.branches[0].tokens)


def test_only_the_assistant_is_learned_in_a_longer_chat(tokenizer: Tokenizer) -> None:
    example = chat(said("user", "one"), said("assistant", "two"), said("user", "three"), said("assistant", "four"))
    (rendered,) = render(example, tokenizer)
    assert learned(rendered, tokenizer) == ["two<|im_end|>", "four<|im_end|>"]
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, example.messages[:1])
    assert whole(rendered) == tokenizer.encode(tokenizer.render_chat(example.messages).rstrip("\n"))


def test_a_turn_of_weight_0_is_read_but_not_learned(tokenizer: Tokenizer) -> None:
    silent = said("assistant", "two", weight=0)
    first = chat(said("user", "one"), silent, said("user", "three"), said("assistant", "four"))
    (rendered,) = render(first, tokenizer)
    assert learned(rendered, tokenizer) == ["four<|im_end|>"]
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, first.messages[:3])
    between = chat(said("user", "a"), said("assistant", "b"), silent, said("assistant", "c"), silent)
    (rendered,) = render(between, tokenizer)
    assert learned(rendered, tokenizer) == ["b<|im_end|>", "c<|im_end|>"]
    assert render(chat(said("user", "one"), silent), tokenizer) == []


def test_tool_calls_are_learned_and_tool_results_are_not(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"paris"}'}}
    example = chat(
        said("user", "hello"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        said("tool", "3", tool_call_id="c"),
        said("assistant", "it is 3"),
        tools=[tool],
    )
    (rendered,) = render(example, tokenizer)
    assert learned(rendered, tokenizer) == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "paris"}}\n</tool_call><|im_end|>',
        "it is 3<|im_end|>",
    ]
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, example.messages[:1], tools=[tool])


words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), min_size=1, max_size=12).filter(
    lambda text: not text[0].isspace()
)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=4), weight=st.booleans())
def test_trunk_and_branch_together_are_the_chat_as_the_model_reads_it(
    contents: list[tuple[str, str, bool]], weight: bool, tokenizer: Tokenizer
) -> None:
    messages = []
    for question, answer, is_learned in contents:
        messages += [said("user", question), said("assistant", answer, weight=int(is_learned))]
    trees = render(chat(*messages), tokenizer, prompt_loss_weight=0.5 if weight else 0.0)
    answers = [f"{answer}<|im_end|>" for _, answer, is_learned in contents if is_learned]
    if not answers:
        assert trees == []
        return
    (rendered,) = trees
    last = max(n for n, (_, _, is_learned) in enumerate(contents) if is_learned)
    text = tokenizer.render_chat(messages[: 2 * last + 2]).removesuffix("\n")
    assert whole(rendered) == tokenizer.encode(text)
    assert learned(rendered, tokenizer) == answers


def test_the_prompt_can_be_learned_a_little_but_never_a_silent_turn(tokenizer: Tokenizer) -> None:
    example = chat(
        said("user", "one"),
        said("assistant", "hidden", weight=0),
        said("user", "three"),
        said("assistant", "four"),
        said("assistant", "hidden too", weight=0),
        said("assistant", "five"),
    )
    (rendered,) = render(example, tokenizer, prompt_loss_weight=0.1)
    tree = rendered.tree
    pieces = [*zip(tree.trunk, tree.trunk_weights, strict=True)]
    pieces += zip(tree.branches[0].tokens, tree.branches[0].weights, strict=True)
    by_weight = {
        weight: tokenizer.decode([token for token, given in pieces if given == weight]) for weight in (0.0, 0.1, 1.0)
    }
    # The first token has nothing before it to be predicted from.
    assert by_weight[0.0] == "<|im_start|>hidden<|im_end|>hidden too<|im_end|>"
    assert by_weight[1.0] == "four<|im_end|>five<|im_end|>"
    assert "one<|im_end|>" in by_weight[0.1]
    assert "three<|im_end|>" in by_weight[0.1]


def test_each_turn_can_have_a_tree_of_its_own(tokenizer: Tokenizer) -> None:
    example = chat(said("user", "one"), said("assistant", "two"), said("user", "three"), said("assistant", "four"))
    first, second = render(example, tokenizer, split_turns=True, prompt_loss_weight=0.1)
    assert learned(first, tokenizer) == ["two<|im_end|>"]
    assert learned(second, tokenizer) == ["four<|im_end|>"]
    assert list(second.tree.trunk) == prompt_tokens(tokenizer, example.messages[:3])
    weighted = zip(second.tree.trunk, second.tree.trunk_weights, strict=True)
    assert tokenizer.decode([token for token, weight in weighted if weight == 0]) == "<|im_start|>two<|im_end|>"


def test_a_template_that_rewrites_history_gives_a_tree_for_each_turn(tmp_path: Path) -> None:
    tokenizer = templated(tmp_path, THOUGHTS_DROPPED)
    example = chat(
        said("user", "one"),
        said("assistant", "hm</think>two"),
        said("user", "three"),
        said("assistant", "so</think>four"),
    )
    first, second = render(example, tokenizer)
    assert learned(first, tokenizer) == ["hm</think>two<|im_end|>"]
    assert learned(second, tokenizer) == ["so</think>four<|im_end|>"]
    assert "hm</think>" not in tokenizer.decode(second.tree.trunk)
    # Where a turn was rewritten its place is not known, so that the prompt is not learned at all.
    weighted = render(example, tokenizer, prompt_loss_weight=0.5)
    assert weighted[0].tree.trunk_weights != ()
    assert weighted[1].tree.trunk_weights == ()


def test_an_answer_follows_a_prompt_that_opens_a_thought(tmp_path: Path) -> None:
    tokenizer = templated(tmp_path, THOUGHT_OPENED)
    example = chat(said("user", "one"), said("assistant", "two"))
    (rendered,) = render(example, tokenizer)
    assert tokenizer.decode(rendered.tree.trunk).endswith("assistant\n<think>\n")
    assert learned(rendered, tokenizer) == ["two<|im_end|>"]


def test_a_chat_that_the_assistant_opens_is_learned_from_its_first_word(tmp_path: Path) -> None:
    default_system = "{{ '<|im_start|>system\\nhelp<|im_end|>' if messages else '' }}" + tiny.CHAT_TEMPLATE
    tokenizer = templated(tmp_path, default_system)
    (rendered,) = render(chat(said("assistant", "hello")), tokenizer)
    assert learned(rendered, tokenizer) == ["hello<|im_end|>"]
    assert tokenizer.decode(rendered.tree.trunk).endswith("help<|im_end|><|im_start|>assistant\n")
    with pytest.raises(InvalidRequest, match="hides where it begins"):
        render(chat(said("assistant", "")), tokenizer)


def test_an_end_is_appended_where_the_template_writes_none(tmp_path: Path) -> None:
    tokenizer = templated(tmp_path, NO_END)
    (rendered,) = render(chat(said("user", "one"), said("assistant", "two")), tokenizer)
    assert learned(rendered, tokenizer) == ["two\n<|im_end|>"]


def test_a_model_without_an_end_cannot_be_taught_to_stop(tmp_path: Path) -> None:
    directory = tiny.make_tokenizer(tmp_path, chat_template=None)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        (directory / name).write_text("{}")
    with pytest.raises(InvalidRequest, match="no end-of-text token"):
        render(CompletionExample(1, "one", "two"), Tokenizer.load(directory))


def test_a_long_answer_is_cut_at_its_end(tokenizer: Tokenizer) -> None:
    example = chat(said("user", "one"), said("assistant", "two three four five six"))
    (full,) = render(example, tokenizer)
    size, trunk = full.tree.size, len(full.tree.trunk)
    (cut,) = render(example, tokenizer, max_tokens=size - 2)
    assert cut.truncated
    assert cut.tree.size == size - 2
    assert cut.tree.branches[0].tokens == full.tree.branches[0].tokens[:-2]
    assert render(example, tokenizer, max_tokens=size) == [full]
    assert render(example, tokenizer, max_tokens=trunk) == []
    assert render(example, tokenizer, max_tokens=3) == []


def test_a_cut_leaves_no_tail_that_teaches_nothing(tokenizer: Tokenizer) -> None:
    example = chat(
        said("user", "one"),
        said("assistant", "two"),
        said("user", "three three three"),
        said("assistant", "four"),
    )
    (full,) = render(example, tokenizer)
    (cut,) = render(example, tokenizer, max_tokens=full.tree.size - 9)
    assert learned(cut, tokenizer) == ["two<|im_end|>"]
    assert cut.tree.branches[0].tokens[-1] == 2
    first, *others = render(example, tokenizer, max_tokens=full.tree.size - 9, split_turns=True)
    assert others == []
    assert first.truncated


def test_a_completion_goes_on_from_its_prompt_and_ends(tokenizer: Tokenizer) -> None:
    (rendered,) = render(CompletionExample(4, "the city ->", " paris"), tokenizer, prompt_loss_weight=0.2)
    assert tokenizer.decode(rendered.tree.trunk) == "the city ->"
    assert learned(rendered, tokenizer) == [" paris<|im_end|>"]
    assert rendered.tree.trunk_weights == (0.0, *[0.2] * (len(rendered.tree.trunk) - 1))
    assert rendered.tree.line == 4


def test_a_completion_without_prompt_starts_with_the_start_token(tokenizer: Tokenizer) -> None:
    (rendered,) = render(CompletionExample(1, "", "paris"), tokenizer)
    assert rendered.tree.trunk == (1,)


def pair(
    preferred: list[dict[str, Any]], rejected: list[dict[str, Any]], *messages: dict[str, Any]
) -> PreferenceExample:
    return PreferenceExample(1, messages or (said("user", "Hi"),), tuple(preferred), tuple(rejected))


def test_a_pair_is_one_prompt_with_two_answers(tokenizer: Tokenizer) -> None:
    good, bad = said("assistant", "the answer"), said("assistant", "no")
    (rendered,) = render(pair([good], [bad]), tokenizer)
    tree = rendered.tree
    assert list(tree.trunk) == prompt_tokens(tokenizer, [said("user", "Hi")])
    assert [tokenizer.decode(list(b.tokens)) for b in tree.branches] == ["the answer<|im_end|>", "no<|im_end|>"]
    for branch, answer in zip(tree.branches, (good, bad), strict=True):
        (alone,) = render(chat(said("user", "Hi"), answer), tokenizer)
        assert alone.tree.branches == (branch,)


def test_of_an_output_of_several_messages_only_the_assistants_are_learned(tokenizer: Tokenizer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    steps = [
        said("assistant", "", tool_calls=[call]),
        said("tool", "42", tool_call_id="c"),
        said("assistant", "It is 42"),
    ]
    (rendered,) = render(pair(steps, [said("assistant", "no")]), tokenizer)
    first, _ = rendered.tree.branches
    text = "".join(tokenizer.decode([t]) for t, w in zip(first.tokens, first.weights, strict=True) if not w)
    assert "tool_response" in text
    assert "It is 42" not in text
    with pytest.raises(InvalidRequest, match="several answers"):
        render(pair(steps, [said("assistant", "no")]), tokenizer, split_turns=True)


def test_an_output_that_begins_with_a_silent_answer_keeps_the_shared_prompt(tokenizer: Tokenizer) -> None:
    quiet = [said("assistant", "hello", weight=0), said("assistant", "the answer")]
    (rendered,) = render(pair(quiet, [said("assistant", "no")]), tokenizer)
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, [said("user", "Hi")])
    first, _ = rendered.tree.branches
    assert tokenizer.decode(list(first.tokens)).startswith("hello<|im_end|>")
    assert first.weights[0] == 0.0


def test_a_pair_is_cut_at_both_ends_and_left_out_when_nothing_tells_its_sides_apart(tokenizer: Tokenizer) -> None:
    long = pair([said("assistant", "the answer is in Paris")], [said("assistant", "the answer is in Tokyo")])
    (whole,) = render(long, tokenizer)
    room = len(whole.tree.trunk)
    shared = next(n for n, (a, b) in enumerate(zip(*(b.tokens for b in whole.tree.branches), strict=False)) if a != b)
    (cut,) = render(long, tokenizer, max_tokens=room + shared + 1)
    assert cut.truncated
    assert [len(branch.tokens) for branch in cut.tree.branches] == [shared + 1] * 2
    assert render(long, tokenizer, max_tokens=room + shared) == []
    assert render(long, tokenizer, max_tokens=room) == []


def test_a_problem_is_a_prompt_without_an_answer(tokenizer: Tokenizer) -> None:
    problem = ProblemExample(3, (said("user", "Hi"),), {"answer": 4})
    (rendered,) = render(problem, tokenizer)
    assert list(rendered.tree.trunk) == prompt_tokens(tokenizer, problem.messages)
    assert (rendered.tree.branches, rendered.tree.line) == ((), 3)
    assert render(problem, tokenizer, max_tokens=len(rendered.tree.trunk)) == []
