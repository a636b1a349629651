"""Uvicorn inside our own event loop: it takes a socket that is bound already, and no signals."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from lmos_mesh.errors import SettingsError

# Longer than clients keep idle connections, so that none is closed under a request.
KEEP_ALIVE_S = 75
BACKLOG = 2048


class Server(uvicorn.Server):
    """Serves one application on one socket until told to stop."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """The process has its own handlers."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve. Once `stop` was called, finish what was begun."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Accept nothing more; `run_until_stopped` returns when all that was begun is done."""
        self.should_exit = True

    def abort(self) -> None:
        """Close every connection now; the requests on them see their client leave."""
        if self.started:
            for server in self.servers:
                server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self._listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        SettingsError: Nobody can listen there.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise SettingsError(
            f"LMOS_HTTP_HOST={host!r} is no address and no known name",
            hint="127.0.0.1 is this machine alone, 0.0.0.0 every network",
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _unusable(where, exc) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _unusable(where: str, exc: OSError) -> SettingsError:
    if isinstance(exc, PermissionError):
        hint = "ports under 1024 need privileges: set LMOS_HTTP_PORT to a higher one"
    else:
        hint = "stop what listens there, or set LMOS_HTTP_PORT to another port, 0 for any"
    return SettingsError(
        f"cannot listen on {where}: {(exc.strerror or str(exc)).lower()}", hint=hint
    )
