"""How a command reaches the mesh: found, connected to, and asked."""

import asyncio
import getpass
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.calls import caller_headers
from lmos_mesh.cli.screen import err
from lmos_mesh.errors import NobodyAnswers, Unavailable
from lmos_mesh.mesh_state import find_mesh
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.settings import Settings, load_settings

ResultT = TypeVar("ResultT")

CONNECT_TIMEOUT_S = 3.0


def bus_url(mesh: str | None) -> str:
    """Where the NATS server is: `LMOS_NATS_URL`, else the named or only mesh says.

    Raises:
        NotFound: No such mesh runs here.
    """
    if url := os.environ.get("LMOS_NATS_URL"):
        if mesh is not None:
            err().print(
                f"[dim]LMOS_NATS_URL is set, so mesh {mesh!r} is not looked for; unset it to "
                "choose by name[/dim]"
            )
        return url
    return find_mesh(mesh).nats_url


class _BusNews(logging.Handler):
    """Says on the screen when the bus is lost, and when it is back."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        said = record.getMessage().partition(" (")[0]
        if said.startswith("the bus is "):
            err().print(f"[yellow]{said}[/yellow]")


@asynccontextmanager
async def connected(mesh: str | None) -> AsyncGenerator[Bus]:
    """The bus of the mesh while the block lasts.

    Raises:
        NotFound: No such mesh runs here.
        Unavailable: Its NATS server does not answer.
    """
    url = bus_url(mesh)
    settings = load_settings(Settings)
    if not os.environ.get("LMOS_LOG_LEVEL"):
        # Of what the client notes, only that it waits is news to whoever types a command.
        logging.getLogger().addHandler(logging.NullHandler())
        transport_logger = logging.getLogger(NatsTransport.__module__)
        transport_logger.setLevel(logging.INFO)
        if not any(isinstance(one, _BusNews) for one in transport_logger.handlers):
            transport_logger.addHandler(_BusNews())
    instance = new_instance("cli")
    async with (
        NatsTransport.connect(
            url,
            name=subjects.connection_name(settings.tenant, instance),
            inbox=subjects.inbox(settings.tenant, instance),
            credentials=settings.nats_credentials,
            timeout_s=min(CONNECT_TIMEOUT_S, settings.connect_timeout_s),
            keeping=settings.keeping,
        ) as transport,
        Bus(transport, tenant=settings.tenant, instance=instance) as bus,
    ):
        yield bus


def asking(bus: Bus) -> dict[str, str]:
    """Headers that say who types this command, and where, for the audit."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "somebody"
    return caller_headers(f"{user}@{socket.gethostname()} ({bus.instance})")


@asynccontextmanager
async def answering(service: str) -> AsyncGenerator[None]:
    """Say which service it is that nobody answers for.

    Raises:
        Unavailable: Nobody does.
    """
    try:
        yield
    except NobodyAnswers as exc:
        raise Unavailable(
            f"no {service} answers on this mesh",
            hint="`lmos doctor` says what is missing, `lmos logs` why",
        ) from exc


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a command. Ctrl-C cancels it, and it may clean up."""
    with asyncio.Runner(debug=False) as runner:
        return runner.run(work)


def typed_in() -> bool:
    """Whether a person types what we read."""
    return sys.stdin.isatty()
