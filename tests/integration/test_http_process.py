"""The HTTP adapter as it is deployed: a process that starts, waits for its bus, and leaves."""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx

from lmos_mesh.bus import route
from lmos_mesh.calls import Call
from lmos_mesh.messages import CONVERSE, Answer, Converse
from lmos_mesh.service import BAD_SETTINGS
from tests.conftest import FrailServer, NatsMesh

PATIENCE_S = 15.0


class Process:
    """An adapter's process, and what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""

    async def line_with(self, pattern: str) -> re.Match[str]:
        """Read the log up to a line that matches."""
        stderr = self.process.stderr
        assert stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := (await stderr.readline()).decode():
                self.log += line
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"no line with {pattern!r} in:\n{self.log}")

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        stderr = self.process.stderr
        assert stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            self.log += (await stderr.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def adapter(url: str, **settings: str) -> AsyncGenerator[Process]:
    """A process of the adapter while the block lasts."""
    environment = {
        **os.environ,
        "LMOS_NATS_URL": url,
        "LMOS_HTTP_PORT": "0",
        "LMOS_LOG_FORMAT": "json",
        "LMOS_CONNECT_TIMEOUT_S": "5",
        **{f"LMOS_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error::ResourceWarning", "-m", "lmos_mesh_http"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def url_of(process: Process) -> str:
    found = await process.line_with(r"listening on (http://[\w.:\[\]]+)")
    return found[1]


def say(tenant: str) -> tuple[str, str]:
    return "POST", f"/apis/v1/{tenant}/chat/c1/message"


BODY = {"inputContext": {"messages": [{"role": "user", "content": "hi"}]}}
HEADERS = {"x-turn-id": "t1", "accept": "text/event-stream"}


async def test_a_taken_port_is_one_sentence_that_says_what_to_do(nats_mesh: NatsMesh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async with adapter(nats_mesh.url, http_port=str(port)) as process:
            status = await process.ended()

    assert status == 1
    assert "Traceback" not in process.log
    assert f"http: cannot listen on 127.0.0.1:{port}: address already in use" in process.log
    assert "LMOS_HTTP_PORT" in process.log


async def test_settings_that_cannot_be_used_are_all_named(nats_mesh: NatsMesh):
    async with adapter(nats_mesh.url, http_port="x", http_body_limit="0") as process:
        status = await process.ended()

    assert status == BAD_SETTINGS
    assert "Traceback" not in process.log
    assert "LMOS_HTTP_PORT='x'" in process.log
    assert "LMOS_HTTP_BODY_LIMIT='0'" in process.log


async def test_on_sigterm_it_finishes_what_was_begun_and_ends(nats_mesh: NatsMesh):
    go_on = asyncio.Event()

    async def take_a_while(request: Converse, call: Call) -> Answer:
        await call.send("delta", "first ")
        await go_on.wait()
        return Answer(answer="first second", conversation="c1", turn="t1")

    async with nats_mesh.bus() as bus, adapter(nats_mesh.url) as process:
        await bus.serve("runtime", [route(CONVERSE, take_a_while)])
        url = await url_of(process)
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
            client.stream(*say(nats_mesh.tenant), json=BODY, headers=HEADERS) as response,
        ):
            lines = response.aiter_lines()
            assert await anext(lines) == "event: delta"
            process.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            go_on.set()
            rest = [line async for line in lines]

        status = await process.ended()

    assert "event: end" in rest
    assert status == 0
    assert "Traceback" not in process.log
    assert '"level": "error"' not in process.log


async def test_on_sigterm_it_ends_in_time_whatever_is_still_running(nats_mesh: NatsMesh):
    cancelled = asyncio.Event()

    async def never_end(request: Converse, call: Call) -> Answer:
        await call.send("delta", "first ")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with nats_mesh.bus() as bus, adapter(nats_mesh.url, drain_timeout_s="1.5") as process:
        await bus.serve("runtime", [route(CONVERSE, never_end)])
        url = await url_of(process)
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
            client.stream(*say(nats_mesh.tenant), json=BODY, headers=HEADERS) as response,
        ):
            lines = response.aiter_lines()
            await anext(lines)
            began = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]

        status = await process.ended()
        took_s = time.monotonic() - began
        async with asyncio.timeout(PATIENCE_S):
            await cancelled.wait()

    assert "event: error" in rest
    assert any("UNAVAILABLE" in line for line in rest)
    assert status == 0
    assert took_s < 5.0
    assert "Traceback" not in process.log


async def test_a_lost_bus_is_told_and_waited_for(fresh_nats: FrailServer):
    async def answer(request: Converse, call: Call) -> Answer:
        return Answer(answer="hi", conversation="c1", turn="t1")

    mesh = NatsMesh(fresh_nats.url, ping_interval_s=0.5)
    async with (
        mesh.bus() as bus,
        adapter(fresh_nats.url, tenant=mesh.tenant, http_bus_wait_s="0.5") as process,
    ):
        await bus.serve("runtime", [route(CONVERSE, answer)])
        url = await url_of(process)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            method, path = say(mesh.tenant)
            headers = {"x-turn-id": "t1"}
            assert (await client.request(method, path, json=BODY, headers=headers)).is_success

            await fresh_nats.kill()
            began = time.monotonic()
            lost = await client.request(method, path, json=BODY, headers=headers)
            took_s = time.monotonic() - began
            ready = await client.get("/readyz")
            lives = await client.get("/healthz")

            await fresh_nats.start()
            back = lost
            for _ in range(100):
                if back.is_success:
                    break
                await asyncio.sleep(0.1)
                back = await client.request(method, path, json=BODY, headers=headers)

    assert lost.status_code == 503
    assert lost.json()["errorCode"] == "UNAVAILABLE"
    assert lost.headers["retry-after"] == "1"
    assert took_s < 5.0
    assert ready.status_code == 503
    assert ready.json()["checks"]["bus"] == "not connected"
    assert lives.status_code == 200
    assert back.json()["content"] == "hi"
