"""A mesh of our own, as real processes: its nats-server, one of each service, and an agent."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import (
    Started,
    free_port,
    give_up,
    nats_server,
    our_command,
    process,
    with_environment,
)

from lmos_mesh import Mesh
from lmos_mesh.errors import MeshError
from lmos_mesh.nats_config import ServerSettings
from lmos_mesh.nats_server import NatsServer

SERVICES = ("registry", "router", "runtime")
READY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OurMesh:
    """A mesh that answers.

    Args:
        url: Of its nats-server.
        http: Of its HTTP adapter; empty if it has none.
        pids: Its processes by name.
        started: Those of them that are ours.
    """

    url: str
    http: str
    pids: Mapping[str, int]
    started: Mapping[str, Started]


def service_command(name: str, nats_url: str, **environment: str) -> list[str]:
    """The command that runs a service or an adapter."""
    return with_environment(
        [sys.executable, "-m", f"lmos_mesh_{name}"],
        LMOS_NATS_URL=nats_url,
        LMOS_LOG_LEVEL="warning",
        **environment,
    )


@contextmanager
def embedded_nats() -> Generator[tuple[str, int]]:
    """The nats-server that `lmos up` runs, with a data directory of its own: URL and pid."""
    with tempfile.TemporaryDirectory(prefix="lmos-bench-") as directory:
        server = NatsServer(ServerSettings(data_dir=Path(directory), port=0))
        asyncio.run(server.start())
        try:
            yield server.url, server.pid
        finally:
            asyncio.run(server.stop())


@contextmanager
def plain_nats() -> Generator[tuple[str, int]]:
    """A nats-server that tells nobody of closed connections: URL and pid."""
    with nats_server(jetstream=True) as running:
        yield running.said["url"], running.pid


@contextmanager
def our_mesh(
    *, http: bool = False, disconnects: bool = True, agent: Sequence[str] = ("echo_agent",)
) -> Generator[OurMesh]:
    """One replica of each service and one agent process, from the first answer on.

    Args:
        http: Whether there is an HTTP adapter.
        disconnects: Whether the nats-server tells of closed connections.
        agent: The program below `ours/` that is the agent, and its options.
    """
    with ExitStack() as stack:
        url, pid = stack.enter_context(embedded_nats() if disconnects else plain_nats())
        commands = {name: service_command(name, url) for name in SERVICES}
        port = free_port() if http else 0
        if http:
            commands["http"] = service_command("http", url, LMOS_HTTP_PORT=str(port))
        commands["agent"] = agent_command(url, *agent)
        started = {
            name: stack.enter_context(process(name, command)) for name, command in commands.items()
        }
        asyncio.run(until_answering(url, "please echo no 000", started))
        yield OurMesh(
            url=url,
            http=f"http://127.0.0.1:{port}" if http else "",
            pids={"nats-server": pid, **{name: s.popen.pid for name, s in started.items()}},
            started=started,
        )


def agent_command(url: str, program: str, *options: str) -> list[str]:
    """The command that runs an agent of ours."""
    return our_command(program, *options, LMOS_NATS_URL=url, LMOS_LOG_LEVEL="warning")


async def until_answering(
    url: str, asked: str, started: Mapping[str, Started], expected: Sequence[str] = ("echo",)
) -> None:
    """Ask until an agent that was expected answers; gives up if it takes too long."""
    deadline = time.monotonic() + READY_S
    said = "nothing was tried"
    async with Mesh.connect(url, name="bench-waiting") as mesh:
        while time.monotonic() < deadline:
            for name, one in started.items():
                if one.popen.poll() is not None:
                    give_up(f"{name} has ended: {one.complaints()}")
            try:
                answered = await mesh.ask(asked, store=False)
            except MeshError as error:
                said = str(error)
            else:
                if answered.agent in expected:
                    return
                said = answered.answer
            await asyncio.sleep(0.05)
    give_up(f"the mesh did not answer within {READY_S:g} s: {said}")
