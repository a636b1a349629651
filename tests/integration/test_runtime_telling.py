"""Reports of turns are told together, in order, at the time that they were about."""

import asyncio

import pytest

from lmos_mesh import turn_reports
from lmos_mesh.messages import TurnReport
from lmos_mesh_runtime import telling
from lmos_mesh_runtime.telling import Teller
from tests.conftest import Mesh
from tests.integration.processes import until


def report(turn: str) -> TurnReport:
    return TurnReport(conversation="c", turn=turn, channel="web", outcome="answered")


async def test_what_is_told_is_heard_a_moment_later_as_of_when_it_was_told(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "TOGETHER_S", 1.0)
    clock = iter((100.0, 101.5))
    async with mesh.bus() as bus:
        await turn_reports.prepare(bus)
        teller = Teller(bus, clock=lambda: next(clock))
        reader = turn_reports.Reader(bus, mesh.tenant)

        teller.tell(mesh.tenant, report("t1"))
        teller.tell(mesh.tenant, report("t2"))
        at_once = await reader.read()
        told: list[turn_reports.Reported] = []

        async def are_heard() -> bool:
            told.extend(await reader.read())
            return len(told) == 2

        await asyncio.sleep(1.0)
        await until(are_heard)

    assert at_once == []
    assert [(one.report.turn, one.at) for one in told] == [("t1", 100.0), ("t2", 101.5)]


async def test_what_waits_is_told_at_the_end(memory_mesh: Mesh) -> None:
    async with memory_mesh.bus() as bus:
        await turn_reports.prepare(bus)
        teller = Teller(bus)
        teller.tell(memory_mesh.tenant, report("t1"))
        teller.flush()
        teller.flush()
        told = await turn_reports.Reader(bus, memory_mesh.tenant).read()

    assert [one.report.turn for one in told] == ["t1"]
