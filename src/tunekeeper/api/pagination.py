"""Lists as OpenAI sends them: pages that go on after an id, and that end.

The official client asks for another page while `has_more` is not false, so a list without it would never end.

    @router.get("/things")
    def things(services: ServicesDep, limit: Limit20, after: After = None) -> Json:
        return list_body([wire(t) for t in page.data], has_more=page.has_more)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request

from tunekeeper.errors import InvalidRequest
from tunekeeper.types import Json

After = Annotated[str | None, Query(description="Id of the last item of the page before.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]


def limit(maximum: int) -> Any:
    """Declare a `limit` query parameter: `n: Annotated[int, limit(100)] = 20`."""
    return Query(alias="limit", ge=1, le=maximum)


def list_body(data: Sequence[Json], *, has_more: bool = False) -> Json:
    """The body of a list response."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def metadata_pairs(query: Mapping[str, str]) -> dict[str, str]:
    """The pairs of metadata[key]=value that a list is filtered by."""
    return {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[") and name[-1] == "]"}


def known_query(*names: str) -> Any:
    """A dependency that refuses query parameters that would have no effect.

    `names` are what the route reads; "metadata[]" stands for any metadata[key]. Azure's api-version always
    passes.

        @router.get("/files", dependencies=[known_query("after", "limit")])
    """
    return Depends(_query_check(frozenset(names)))


def _query_check(names: frozenset[str]) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        for name in request.query_params:
            family = name.partition("[")[0] + "[]"
            if name != "api-version" and name not in names and not ("[" in name and family in names):
                known = ", ".join(sorted(names)) or "none"
                raise InvalidRequest(
                    f"Unknown query parameter: '{name}'; known: {known}.",
                    param=name,
                    code="unknown_parameter",
                )

    return check
