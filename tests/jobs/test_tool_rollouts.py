"""Answers that call servers: an episode has the tokens of the same chat in a training file, and learns its own only."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobshop import add_job, events_of
from scripted_server import ScriptedServer, scripted
from tiny import CHAT_TEMPLATE, make_tokenizer
from tunekeeper.datasets.formats import ChatExample, ProblemExample
from tunekeeper.datasets.render import render, reply_tokens
from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidConfig, InvalidRequest, PermissionDenied
from tunekeeper.inference.params import Piece, Sampling
from tunekeeper.jobs.prepare import Data, Desk, prepare
from tunekeeper.jobs.rollouts import Deliver, ProblemPlayer
from tunekeeper.jobs.tool_servers import ToolServers, read_tools
from tunekeeper.models.lora import LoraAdapter
from tunekeeper.trainer.config import ReinforcementConfig, resolve, validate_method
from tunekeeper.trainer.rollouts import Ask, Judge, Rollout
from tunekeeper.types import Grade, Json

QUESTION = {"role": "user", "content": "Which city has the number 4?"}
CALL = '<tool_call>\n{"name": "city_of", "arguments": {"n": 4}}\n</tool_call>'


def function(name: str) -> Json:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


class Script:
    """A sampler that writes what it is told, turn by turn; a fake of the port."""

    def __init__(self, tokenizer: Tokenizer, turns: Sequence[str | Piece]) -> None:
        self.tokenizer, self.turns = tokenizer, turns
        self.context = 100_000
        self.prompts: list[tuple[int, ...]] = []
        self.params: list[Sampling] = []

    def begin(self, adapter: LoraAdapter | None) -> None:
        """Nothing is loaded."""

    def ask(self, prompts: Sequence[Sequence[int]], params: Sequence[Sampling], deliver: Sequence[Deliver]) -> None:
        for prompt, one, to in zip(prompts, params, deliver, strict=True):
            turn = self.turns[len(self.prompts)]
            self.prompts.append(tuple(prompt))
            self.params.append(one)
            to(turn if isinstance(turn, Piece) else self.piece(turn))

    def end(self) -> None:
        """Nothing is kept."""

    def piece(self, text: str) -> Piece:
        tokens = (*self.tokenizer.encode(text, continues=True), self.tokenizer.eos_ids[0])
        return Piece(text=text, finish_reason="stop", n_generated=len(tokens) - 1, tokens=tokens)


class Recorder:
    """A grader that notes what it is given."""

    def __init__(self) -> None:
        self.samples: list[Json] = []

    def grade(self, sample: Json, item: Json) -> Grade:
        self.samples.append(sample)
        return Grade(score=float("Rome" in sample["output_text"]))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.load(tiny_base)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted({("POST", "/city"): {"type": "function_call_output", "output": "Rome, Italy"}}) as running:
        yield running


def config(**hyperparameters: Any) -> ReinforcementConfig:
    method = {"type": "reinforcement", "reinforcement": {"grader": {}, "hyperparameters": hyperparameters}}
    resolved = resolve(validate_method(method), n_examples=6, n_valid=0, context=2048, hidden_size=32)
    assert isinstance(resolved, ReinforcementConfig)
    return resolved


def play(
    tokenizer: Tokenizer,
    turns: Sequence[str | Piece],
    url: str,
    *,
    grader: Recorder | None = None,
    max_episode_steps: int = 8,
    functions: Sequence[str] = ("city_of", "other"),
    headers: dict[str, str] | None = None,
    **hyperparameters: Any,
) -> tuple[Rollout, Script]:
    problem = ProblemExample(1, (QUESTION,), {"answer": "Rome"}, tools=tuple(map(function, functions)))
    files = Data((render(problem, tokenizer)[0].tree,), 1, (), (), (problem,))
    script = Script(tokenizer, turns)
    given = [{"name": "city_of", "server_url": f"{url}/city", **({"headers": headers} if headers else {})}]
    servers = ToolServers(read_tools(given, None), pause_s=0.001)
    player = ProblemPlayer(
        script,
        tokenizer,
        grader or Recorder(),
        [Judge("g", "g", "python")],
        config(**hyperparameters),
        files,
        files,
        servers=servers,
        max_episode_steps=max_episode_steps,
    )
    try:
        (rollout,) = player.play([Ask(0, 0, 99)], None, valid=False)
    finally:
        player.close()
        servers.close()
    return rollout, script


def test_an_episode_is_the_branch_of_the_same_chat_in_a_training_file(
    tokenizer: Tokenizer, server: ScriptedServer
) -> None:
    rollout, script = play(tokenizer, [CALL, "It is Rome."], server.url)
    calls = [{"id": "c", "type": "function", "function": {"name": "city_of", "arguments": '{"n": 4}'}}]
    chat = ChatExample(
        line=1,
        messages=(
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c", "content": "Rome, Italy"},
            {"role": "assistant", "content": "It is Rome."},
        ),
        tools=(function("city_of"), function("other")),
    )
    (rendered,) = render(chat, tokenizer)
    assert rendered.tree.trunk == script.prompts[0]
    assert rollout.tokens == rendered.tree.branches[0].tokens
    assert rollout.weights == rendered.tree.branches[0].weights
    assert 0.0 in rollout.weights
    assert rollout.n_read == rollout.weights.count(0.0)
    assert [message["role"] for message in rollout.messages] == ["assistant", "tool", "assistant"]
    assert script.prompts[1] == (*script.prompts[0], *rollout.tokens[: len(script.prompts[1]) - len(script.prompts[0])])
    assert rollout.grade.score == 1.0


def test_the_server_is_posted_the_call_and_the_grader_sees_the_whole_episode(
    tokenizer: Tokenizer, server: ScriptedServer
) -> None:
    grader = Recorder()
    rollout, _ = play(tokenizer, [CALL, "It is Rome."], server.url, grader=grader, headers={"x-key": "k"})
    [(_, _, body, headers)] = server.requests
    sent = json.loads(body)
    assert (sent["type"], sent["name"], json.loads(sent["arguments"])) == ("function_call", "city_of", {"n": 4})
    assert headers["x-key"] == "k"
    (sample,) = grader.samples
    assert sample["output_text"] == "It is Rome."
    first, reply, last = sample["output_messages"]
    assert first["tool_calls"][0]["id"] == reply["tool_call_id"] == sent["call_id"]
    assert (reply["role"], reply["content"]) == ("tool", "Rome, Italy")
    assert last == {"role": "assistant", "content": "It is Rome."}
    assert "[city_of] Rome, Italy" in rollout.text


def test_the_same_episode_sends_the_same_ids_so_that_a_resumed_run_repeats_it(
    tokenizer: Tokenizer, server: ScriptedServer
) -> None:
    for _ in range(2):
        play(tokenizer, [CALL, "It is Rome."], server.url)
    first, second = server.bodies("POST", "/city")
    assert first == second


def test_several_calls_of_a_turn_are_all_answered(tokenizer: Tokenizer, server: ScriptedServer) -> None:
    grader = Recorder()
    play(tokenizer, [f"{CALL}\n{CALL}", CALL, "Rome"], server.url, grader=grader)
    assert [message["role"] for message in grader.samples[0]["output_messages"]] == [
        "assistant", "tool", "tool", "assistant", "tool", "assistant"
    ]  # fmt: skip
    ids = [json.loads(body)["call_id"] for body in server.bodies("POST", "/city")]
    assert len(set(ids)) == 3


def test_a_call_without_a_server_ends_the_answer_and_is_graded(tokenizer: Tokenizer, server: ScriptedServer) -> None:
    grader = Recorder()
    rollout, _ = play(tokenizer, [CALL.replace("city_of", "other")], server.url, grader=grader)
    assert not server.requests
    assert grader.samples[0]["output_tools"][0]["function"]["name"] == "other"
    assert grader.samples[0]["choices"][0]["finish_reason"] == "tool_calls"
    assert set(rollout.weights) == {1.0}


def test_the_last_turn_that_an_episode_may_have_is_graded_as_it_is(
    tokenizer: Tokenizer, server: ScriptedServer
) -> None:
    grader = Recorder()
    play(tokenizer, [CALL] * 9, server.url, grader=grader, max_episode_steps=3)
    assert len(server.requests) == 2
    assert len(grader.samples[0]["output_messages"]) == 5


def test_the_turns_of_an_episode_share_max_completion_tokens(tokenizer: Tokenizer, server: ScriptedServer) -> None:
    n = len(tokenizer.encode(CALL, continues=True)) + 1
    _, script = play(tokenizer, [CALL, "Rome"], server.url, max_completion_tokens=n + 5)
    assert [one.max_tokens for one in script.params] == [n + 5, 5]
    cut = Piece(text="x", finish_reason="length", n_generated=n, tokens=(5,) * n)
    rollout, script = play(tokenizer, [cut], server.url, max_completion_tokens=n)
    assert rollout.is_cut
    rollout, script = play(tokenizer, [CALL], server.url, max_completion_tokens=n)
    assert rollout.is_cut
    assert len(script.prompts) == 1


def test_turns_are_sampled_with_random_streams_of_their_own(tokenizer: Tokenizer, server: ScriptedServer) -> None:
    _, script = play(tokenizer, [CALL, CALL, "Rome"], server.url)
    assert script.params[0].seed == 99
    assert len({one.seed for one in script.params}) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((500, b"down"), "other_error", "status 500"),
        ({"type": "function_call_output"}, "other_error", "not with"),
        ({"output": {"city": "Rome"}}, "other_error", "not with"),
        ({"output": "Rome", "call_id": "another"}, "other_error", "another"),
        ({"output": "Rome and so on " * 500}, "truncated_observation_error", "max_seq_len"),
    ],
)
def test_a_tool_that_fails_leaves_the_answer_without_a_grade(
    tokenizer: Tokenizer, answer: Any, kind: str, words: str
) -> None:
    grader = Recorder()
    with scripted({("POST", "/city"): answer}) as server:
        rollout, _ = play(tokenizer, [CALL, "Rome"], server.url, grader=grader)
    assert not grader.samples
    assert not rollout.grade.is_valid
    (fault,) = rollout.grade.faults
    assert (fault.grader, fault.kind) == ("tools", kind)
    assert words in fault.message


def test_half_a_character_that_a_tool_says_is_no_fault(tokenizer: Tokenizer) -> None:
    with scripted({("POST", "/city"): {"output": "Rome \ud800"}}) as server:
        rollout, _ = play(tokenizer, [CALL, "It is Rome."], server.url)
    assert rollout.grade.score == 1.0
    assert "[city_of] Rome ?" in rollout.text


def test_a_template_that_rewrites_the_answer_once_a_tool_has_spoken_is_read_by_its_end_of_turn(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    thinking = CHAT_TEMPLATE.replace(
        "{{- '<|im_start|>assistant\\n' + message.content }}",
        "{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if loop.last else '') + message.content }}",
    )
    assert thinking != CHAT_TEMPLATE
    rewriting = Tokenizer.load(make_tokenizer(tmp_path / "rewriting", chat_template=thinking))
    messages = [QUESTION, {"role": "assistant", "content": "One moment."}]
    replies = [{"role": "tool", "tool_call_id": "c", "content": "Rome"}]
    assert reply_tokens(rewriting, messages, replies) == reply_tokens(tokenizer, messages, replies)


def test_what_a_tool_may_be_is_checked_with_its_place() -> None:
    def refused(*given: Any, hosts: frozenset[str] | None = None) -> str | None:
        with pytest.raises((InvalidRequest, PermissionDenied)) as caught:
            read_tools(given, hosts)
        return caught.value.param

    good = {"name": "f", "server_url": "https://there/f"}
    assert refused({"name": "f"}) == "method.reinforcement.tools[0].server_url"
    assert refused(good, {**good, "name": "g", "server_url": "ftp://x"}) == "method.reinforcement.tools[1].server_url"
    assert refused({**good, "timeout": 3}) == "method.reinforcement.tools[0].timeout"
    assert refused({**good, "headers": {"a": "b\n"}}) == "method.reinforcement.tools[0].headers"
    assert refused(good, good) == "method.reinforcement.tools[1].name"
    assert refused("f") == "method.reinforcement.tools[0]"
    assert refused(good, hosts=frozenset({"here"})) == "method.reinforcement.tools[0].server_url"
    assert read_tools([good], frozenset({"there"}))[0].name == "f"


def lines_with_tools(n: int = 12, name: str = "city_of") -> bytes:
    lines = [{"messages": [QUESTION], "tools": [function(name)], "answer": str(k)} for k in range(n)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_server_of_a_function_that_no_line_has_is_refused_before_training(desk: Desk) -> None:
    tools = [{"name": "city_of", "server_url": "http://127.0.0.1:1/city"}]
    job = add_job(desk, method="reinforcement", data=lines_with_tools(name="town_of"), tools=tools)
    with pytest.raises(InvalidConfig, match="'city_of'") as caught:
        prepare(job, desk)
    assert caught.value.param == "method.reinforcement.tools[0].name"
    assert prepare(add_job(desk, method="reinforcement", data=lines_with_tools(), tools=tools), desk).status == "queued"
    assert not [event for event in events_of(desk, job) if event.level == "error"]
