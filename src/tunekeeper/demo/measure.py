"""How often a model answers the demo's tasks, through the official client; and what that says."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekeeper.demo.tasks import Task
from tunekeeper.evals.statistics import wilson

if TYPE_CHECKING:
    import openai

AT_ONCE = 32
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer to one task."""

    task: Task
    text: str
    """What the model wrote, a call as name(arguments)."""
    is_valid: bool
    """A call with arguments that are a JSON object."""
    is_right: bool
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One row of the table."""

    name: str
    answers: tuple[Answer, ...]
    seconds: float
    """Wall time of all requests, AT_ONCE at a time."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(answer.is_right for answer in self.answers) / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson 1927)."""
        return wilson(sum(answer.is_right for answer in self.answers), len(self.answers))

    @property
    def valid(self) -> float:
        """Share of answers that are a call with valid JSON."""
        return sum(answer.is_valid for answer in self.answers) / len(self.answers)

    @property
    def prompt_tokens(self) -> float:
        """Mean tokens of a request."""
        return sum(answer.prompt_tokens for answer in self.answers) / len(self.answers)

    @property
    def seconds_per_request(self) -> float:
        """Wall time a request."""
        return self.seconds / len(self.answers)


def measure(
    client: "openai.OpenAI",
    model: str,
    tasks: Sequence[Task],
    *,
    name: str,
    shown: Sequence[Task] = (),
    done: Callable[[], None] = lambda: None,
) -> Score:
    """Ask the model every task, greedily; `shown` are answered before it as turns, their functions among its own."""

    def ask(task: Task) -> Answer:
        answer = _ask(client, model, task, shown)
        done()
        return answer

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = tuple(pool.map(ask, tasks))
    return Score(name=name, answers=answers, seconds=time.perf_counter() - began)


def _ask(client: "openai.OpenAI", model: str, task: Task, shown: Sequence[Task]) -> Answer:
    messages: Any = [message for example in shown for message in example.example()["messages"]] + task.messages
    tools: Any = list({tool["function"]["name"]: tool for one in (*shown, task) for tool in one.tools}.values())
    completion = client.chat.completions.create(
        model=model,
        messages=messages,
        tools=tools,
        temperature=0,
        max_completion_tokens=MAX_ANSWER_TOKENS,
        stop="\n",  # a call is one line; what the untuned model goes on to tell would only cost time
    )
    message = completion.choices[0].message
    calls: list[Any] = message.tool_calls or []
    parsed = [(call.function.name, _object(call.function.arguments)) for call in calls]
    text = "; ".join(f"{call.function.name}({call.function.arguments})" for call in calls) or (message.content or "")
    return Answer(
        task=task,
        text=text,
        is_valid=bool(parsed) and all(arguments is not None for _, arguments in parsed),
        is_right=len(parsed) == 1 and task.is_answered_by(*parsed[0]),
        prompt_tokens=completion.usage.prompt_tokens if completion.usage else 0,
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
