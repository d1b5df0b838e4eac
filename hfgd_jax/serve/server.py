"""The process around the app: its socket, the thread that answers, and how it ends."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from hfgd_jax.errors import UserError
from hfgd_jax.serve.limits import Limits

_ENDING = 2  # seconds for answers that are under way


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet: until then connections are refused.

    Args:
        host: a name or an address, IPv4 or IPv6.
        port: 0 to 65535; 0 takes a free one.

    Raises:
        UserError: no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host}: {getattr(error, 'strerror', None) or error}") from None
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise UserError(
            f"--host={host} --port={port}: {error.strerror}; choose another; --port=0 takes a free one"
        ) from None
    return made


def url(listening: socket.socket, host: str) -> str:
    """Where a browser finds the server."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/"


def serve(app: Any, listening: socket.socket, limits: Limits, ready: Callable[[], Any]) -> None:
    """Answers until the main thread is interrupted; for it to call.

    The answers come from another thread, so that the signals stay with the command's own handlers
    (`runtime/shell.py`).

    Args:
        app: an ASGI application.
        listening: see `bound`.
        limits: of them the connections.
        ready: called once it listens.

    Raises:
        KeyboardInterrupt: once connections are closed, or `_ENDING` seconds after the signal.
        RuntimeError: it ended by itself.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_ENDING,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.02)
        ready()
        thread.join()
    except KeyboardInterrupt:
        server.should_exit = True
        thread.join(_ENDING + 1)
        raise
    raise RuntimeError("the server ended by itself")
