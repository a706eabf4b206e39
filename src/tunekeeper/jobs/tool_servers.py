"""Servers that a reinforcement job's model may call while it answers: `method.reinforcement.tools`.

    {"name": "get_order", "server_url": "https://…/get_order", "headers": {"authorization": "…"}}

A call is posted as {"type": "function_call", "id", "call_id", "name", "arguments", "trace_id"}; the server answers
{"type": "function_call_output", "call_id", "output"}, and the model goes on with the output. What a function takes
stands in the lines' `tools`, as ever; a call of a function without a server ends the answer, and is graded.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tunekeeper.errors import InvalidRequest
from tunekeeper.graders.post import PostClient, read_json
from tunekeeper.graders.spec import are_headers, check_host, explained, is_url
from tunekeeper.graders.template import Ungradable
from tunekeeper.types import Json

PARAM = "method.reinforcement.tools"
AUTO_EPISODE_STEPS = 8
"""Turns of an answer where max_episode_steps says nothing."""

_NUMBER_OF_IDS = 16**5


class ToolServer(BaseModel):
    """A function, and the server that runs it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    server_url: Annotated[str, AfterValidator(is_url)]
    headers: Annotated[dict[str, str], AfterValidator(are_headers)] | None = None


def read_tools(given: Sequence[Any], hosts: Collection[str] | None) -> list[ToolServer]:
    """The checked servers; raises InvalidRequest or PermissionDenied. `hosts`: those that may be asked; None: any."""
    found: list[ToolServer] = []
    for n, entry in enumerate(given):
        place = f"{PARAM}[{n}]"
        try:
            tool = ToolServer.model_validate(entry)
        except ValidationError as error:
            raise explained(error, place) from error
        if tool.name in {other.name for other in found}:
            raise InvalidRequest(f"{place}.name: two tools have the name {tool.name!r}.", param=f"{place}.name")
        check_host(tool.server_url, hosts, what="tools", param=f"{place}.server_url")
        found.append(tool)
    return found


class ToolServers:
    """Runs the calls of answers. Safe to use from many threads at once."""

    def __init__(self, tools: Sequence[ToolServer] = (), *, pause_s: float = 0.5) -> None:
        self._clients = {
            tool.name: PostClient(tool.server_url, headers=tool.headers, pause_s=pause_s) for tool in tools
        }

    def serves(self, calls: Sequence[Json]) -> bool:
        """Whether there are calls, all of functions that have a server."""
        return bool(calls) and all(call["function"]["name"] in self._clients for call in calls)

    def output(self, call: Json, trace: str) -> str:
        """What the function gives back; raises Ungradable."""
        function = call["function"]
        client = self._clients[function["name"]]
        asked = {
            "type": "function_call",
            "id": f"fc_{call['id']}",
            "call_id": call["id"],
            "name": function["name"],
            "arguments": function["arguments"],
            "trace_id": trace,
        }
        try:
            body = client.post(asked)
            return self._read(body, call["id"], client.url)
        except Ungradable as fault:
            raise Ungradable(fault.kind, f"The tool {function['name']!r}: {fault.message}") from fault

    def close(self) -> None:
        """Let the connections go."""
        for client in self._clients.values():
            client.close()

    def _read(self, body: bytes, call_id: str, url: str) -> str:
        answer = read_json(body)
        output = answer.get("output") if isinstance(answer, dict) else None
        if not isinstance(output, str):
            wanted = '{"type": "function_call_output", "call_id": …, "output": text}'
            raise Ungradable("other_error", f"{url} answered with {body[:100]!r}, not with {wanted}.")
        if answer.get("call_id", call_id) != call_id:
            raise Ungradable("other_error", f"{url} answered the call {answer['call_id']!r} instead of {call_id!r}.")
        return output.encode(errors="replace").decode()  # half characters are none


def call_id(number: int) -> str:
    """An id for a call that is made from a random number: as short as the strictest chat templates want it."""
    return f"call{number % _NUMBER_OF_IDS:05x}"
