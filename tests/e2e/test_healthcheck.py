"""The health check of the containers, as the engine runs it: a program with a status."""

import asyncio
import http.server
import socket
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from lmos_mesh import micro
from lmos_mesh.bus import Bus
from lmos_mesh.service import announce_service
from tests.conftest import NatsMesh, new_name

PROGRAM = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


async def check(what: str, *, nats_url: str = "nats://127.0.0.1:1") -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        what,
        env={"LMOS_NATS_URL": nats_url, "LMOS_TENANT": "demo"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def announce(bus: Bus, name: str, **metadata: str) -> None:
    await micro.announce(
        bus.transport,
        micro.MicroService(
            name=name,
            id=bus.instance,
            version="1.0.0",
            description="",
            endpoints=(),
            metadata=metadata,
        ),
    )


async def test_a_service_that_answers_on_the_bus_is_healthy(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce_service(bus, name, "A service.", ["find"])

        assert await check(f"lmos-{name}", nats_url=nats_mesh.url) == (0, "")


async def test_one_that_nobody_answers_for_is_not(nats_mesh: NatsMesh) -> None:
    status, said = await check("lmos-nobody", nats_url=nats_mesh.url)

    assert status == 1
    assert said == "unhealthy: lmos-nobody has not answered within 2 s\n"


async def test_a_replica_elsewhere_does_not_answer_for_this_host(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce(bus, name, host="elsewhere")
        assert (await check(name, nats_url=nats_mesh.url))[0] == 1

        async with nats_mesh.bus() as here:
            await announce(here, name, host=socket.gethostname())

            assert await check(name, nats_url=nats_mesh.url) == (0, "")


async def test_the_next_server_is_asked_when_one_is_gone(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce(bus, name)

        assert await check(name, nats_url=f"nats://127.0.0.1:1,{nats_mesh.url}") == (0, "")


async def test_without_a_bus_it_says_so_and_keeps_the_password_to_itself() -> None:
    status, said = await check("lmos-registry", nats_url="nats://eve:secret@127.0.0.1:1")

    assert status == 1
    assert "refused" in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said


class Ready(http.server.BaseHTTPRequestHandler):
    """Ready at one path, not at others."""

    def do_GET(self) -> None:
        ready = self.path == "/readyz"
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"ok" if ready else b"no router answers")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Generator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_an_http_endpoint_is_healthy_when_it_answers_200(web: str) -> None:
    assert await check(f"{web}/readyz") == (0, "")
    assert await check(f"{web}/other") == (
        1,
        f"unhealthy: {web}/other: 503 no router answers\n",
    )


async def test_an_http_endpoint_that_is_not_there_is_not_healthy() -> None:
    status, said = await check("http://127.0.0.1:1/readyz")

    assert status == 1
    assert said.startswith("unhealthy: http://127.0.0.1:1/readyz: ")
