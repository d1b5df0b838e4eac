"""Who may ask, and what a browser may do with the answers: a layer around the app.

A page of another site can have a browser send requests to this machine. It must not reach the server under
a name of its own that is made to point here (DNS rebinding): the Host has to be one of ours or an IP
address, which no site's name can be. Nor may it send forms: a request with an Origin has to come from the
server's own page.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any

from hfgd_jax.serve.limits import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HEADER_BYTES = 16_384  # of all headers of a request
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """The app, for requests to these names or to an IP address; every answer has `HEADERS`."""

    def __init__(self, app: App, names: Collection[str]):
        self._app, self._names = app, frozenset(name.lower() for name in names)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """An ASGI application's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            check(scope["headers"], self._names)
        except Refused as error:
            headers = [(b"content-type", b"application/json")]
            start = {"type": "http.response.start", "status": error.status, "headers": headers}
            await with_headers(start)
            await send({"type": "http.response.body", "body": json.dumps({"error": error.line}).encode()})
            return
        await self._app(scope, receive, with_headers)


def check(headers: Sequence[tuple[bytes, bytes]], names: Collection[str]) -> None:
    """Looks at the Host and the Origin of a request.

    Args:
        headers: names in lower case, and values.
        names: that the server goes by, in lower case, without ports.

    Raises:
        Refused: 431 for more than `HEADER_BYTES`, 421 for a foreign Host, 403 for a foreign Origin.
    """
    if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
        raise Refused(431, f"the headers are larger than {HEADER_BYTES} bytes")
    values = {
        wanted: [value.decode("latin-1") for name, value in headers if name == wanted]
        for wanted in (b"host", b"origin")
    }
    host = values[b"host"][0] if len(values[b"host"]) == 1 else ""
    if not _is_ours(_without_port(host), names):
        raise Refused(421, f"Host {host[:80]!r}: not a name of this server; see --names of hfgd serve")
    for origin in values[b"origin"]:
        if origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, f"Origin {origin[:80]!r}: only this server's own page may send requests")


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    known = port.isdecimal() and (":" not in name or name.endswith("]"))
    return (name if known else host).removeprefix("[").removesuffix("]").lower()


def _is_ours(name: str, names: Collection[str]) -> bool:
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
