"""Who may call: nobody needs a key on this machine, everybody needs one from elsewhere.

"On this machine" is taken strictly: the server listens on loopback, the connection comes from loopback, no
proxy stands in between, and the request names a loopback host and comes from no foreign web page. So a page
that the operator happens to read in a browser cannot use the server behind their back.
"""

from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tunekeeper.errors import Unauthenticated
from tunekeeper.settings import Settings
from tunekeeper.storage.store import Store

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")


class Auth:
    """Refuses a request that needs a key and has none that is known."""

    def __init__(self, app: ASGIApp, *, settings: Settings, store: Store) -> None:
        self._app = app
        self._settings = settings
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or raise Unauthenticated."""
        if scope["type"] == "http" and not (self._settings.is_loopback and is_local(scope)):
            secret = secret_of(Headers(scope=scope))
            if secret is None:
                raise Unauthenticated(
                    "An API key is needed: send it as `Authorization: Bearer …` or `api-key: …`. "
                    "`tunekeeper keys create` makes one on the server's machine."
                )
            if await run_sync(self._store.find_key, secret) is None:
                raise Unauthenticated("This API key is not known here. `tunekeeper keys list` shows the known ones.")
        await self._app(scope, receive, send)


def is_local(scope: Scope) -> bool:
    """Whether the request was made on this machine, for this machine."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    if client is not None and client[0] not in _LOOPBACK:
        return False
    if any(header in headers for header in _PROXY_HEADERS):
        return False
    origin = headers.get("origin")
    return _names_loopback(f"//{headers.get('host', '')}") and (origin is None or _names_loopback(origin))


def secret_of(headers: Headers) -> str | None:
    """The key that the request carries, in either of the two ways."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("api-key") or None


def _names_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        return False
