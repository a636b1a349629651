"""Reports of turns are told without waiting and read each once, in memory and on a server."""

import asyncio
import time
from contextlib import aclosing

from lmos_mesh import turn_reports
from lmos_mesh.bus import Bus
from lmos_mesh.messages import TurnReport
from tests.conftest import Mesh


def report(turn: str) -> TurnReport:
    return TurnReport(conversation="c", turn=turn, channel="web", outcome="answered", total_s=0.5)


async def tell(bus: Bus, *turns: str, at: float | None = None) -> None:
    for turn in turns:
        turn_reports.tell(bus, bus.tenant, report(turn), at=at)
    await bus.transport.flush()


async def test_each_report_is_read_once(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        reader = turn_reports.Reader(bus, bus.tenant)
        await tell(bus, *(f"t{n}" for n in range(1200)))

        first = await reader.read()
        await tell(bus, "last")
        second = await reader.read()

        assert [one.report.turn for one in first] == [f"t{n}" for n in range(1200)]
        assert [one.report.turn for one in second] == ["last"]
        assert await reader.read() == []


async def test_reading_begins_at_a_time(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        now = time.time()
        for n in range(20):
            await tell(bus, f"t{n}", at=now - 20 + n)

        for n in (0, 7, 19, 20):
            reader = turn_reports.Reader(bus, bus.tenant)
            await reader.begin(since=now - 20 + n - 0.5)
            turns = [one.report.turn for one in await reader.read()]
            assert turns == [f"t{m}" for m in range(n, 20)]


async def test_a_tenant_does_not_read_of_another(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        turn_reports.tell(bus, f"{bus.tenant}-other", report("theirs"))
        await tell(bus, "ours")

        found = await turn_reports.Reader(bus, bus.tenant).read()

        assert [one.report.turn for one in found] == ["ours"]


async def test_what_is_no_report_is_passed_over(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        bus.transport.publish(turn_reports.heard_at(bus.tenant), b"hello")
        await tell(bus, "ours")

        found = await turn_reports.Reader(bus, bus.tenant).read()

        assert [one.report.turn for one in found] == ["ours"]


async def test_reports_are_followed_as_they_come(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        async with aclosing(turn_reports.follow(bus, bus.tenant, since=0)) as reports:
            await tell(bus, "one")
            async with asyncio.timeout(20):
                found = await anext(reports)

        assert found.report == report("one")
        assert abs(found.at - time.time()) < 60
