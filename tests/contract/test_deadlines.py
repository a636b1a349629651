"""Who answers stops at the deadline of each call, whatever other calls there are."""

import asyncio
import time

import pytest

from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import DeadlineExceeded
from tests.conftest import Mesh

SOON_S = 10.0


async def test_each_call_ends_at_its_own_deadline_in_whatever_order_they_came(mesh: Mesh) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    subject = f"lmos.{mesh.tenant}.slow"

    async def slow(call: Call) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait(call.payload.decode())

    async def ask(caller: Bus, timeout_s: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await caller.request(subject, str(timeout_s).encode(), timeout_s=timeout_s)

    async with mesh.bus("caller") as caller, mesh.bus("server") as server:
        await server.respond(subject, slow)
        for _ in range(2):  # the second time after the timer has fired
            async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
                began = time.monotonic()
                longest = tasks.create_task(ask(caller, 3 * SOON_S))
                for timeout_s in (0.2, 0.4):
                    tasks.create_task(ask(caller, timeout_s))
                for timeout_s in (0.2, 0.4):
                    assert await ended.get() == str(timeout_s)
                    assert time.monotonic() - began > timeout_s - 0.05
                longest.cancel()


async def test_a_call_that_is_stopped_at_its_deadline_makes_room_for_the_next(mesh: Mesh) -> None:
    subject = f"lmos.{mesh.tenant}.slow"

    async def slow(call: Call) -> dict[str, str]:
        if call.payload == b"hang":
            await asyncio.Event().wait()
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("server") as server:
        await server.respond(subject, slow, concurrency=1)
        with pytest.raises(DeadlineExceeded):
            await caller.request(subject, b"hang", timeout_s=0.2)

        await caller.request(subject, b"go on", timeout_s=SOON_S)

        assert server.in_flight == 0


async def test_a_call_without_a_deadline_is_never_stopped(mesh: Mesh) -> None:
    subject = f"lmos.{mesh.tenant}.slow"
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def slow(call: Call) -> dict[str, str]:
        await asyncio.sleep(0.3)
        ended.put_nowait(call.payload.decode())
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("server") as server:
        await server.respond(subject, slow)
        caller.transport.publish(subject, b"patient")
        with pytest.raises(DeadlineExceeded):
            await caller.request(subject, b"hasty", timeout_s=0.1)
        async with asyncio.timeout(SOON_S):
            assert await ended.get() == "patient"
        await asyncio.sleep(0.1)

        assert ended.empty()
