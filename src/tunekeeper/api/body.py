"""The JSON of a request, refused where it could never be written down again.

A JSON text can hold half of a surrogate pair (an emoji that somebody cut in two), which no UTF-8 text can: it would be
stored, and every later answer with it would fail.
"""

import json
import re
from typing import Any

from fastapi import Request

from tunekeeper.errors import InvalidRequest

# Half a character as JSON writes it, as bytes that no UTF-8 has, or in a body of another encoding (it has zeros).
_SUSPICIOUS = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")
_Place = tuple[str | int, ...]


async def whole_texts(request: Request) -> None:
    """A dependency of every route; raises InvalidRequest where a text in a JSON body is half a character."""
    kind = request.headers.get("content-type", "").partition(";")[0].lower()
    if "json" not in kind or not _SUSPICIOUS.search(await request.body()):
        return
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError):
        return  # the route says so
    place = _broken(value)
    if place is not None:
        param = ".".join(map(str, place)) or None
        raise InvalidRequest(
            f"A text{f' in {param!r}' if param else ''} has half a character in it: a surrogate (\\ud800 to \\udfff) "
            "without its other half. Cut texts between characters.",
            param=param,
        )


def _broken(value: Any) -> _Place | None:
    """Where a text is that has no UTF-8 form; a name without one stands at its object's place."""
    left: list[tuple[_Place, Any]] = [((), value)]  # no recursion: JSON may be nested deeper than a stack is
    while left:
        place, inner = left.pop()
        if isinstance(inner, str) and not _is_whole(inner):
            return place
        if isinstance(inner, dict):
            if not all(map(_is_whole, inner)):
                return place
            left.extend(((*place, key), each) for key, each in inner.items())
        elif isinstance(inner, list):
            left.extend(((*place, index), each) for index, each in enumerate(inner))
    return None


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
