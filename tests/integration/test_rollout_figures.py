"""Figures are read from wherever the bus keeps them, and heard where it cannot keep them for us."""

import json
import time
from collections.abc import Sequence

import pytest

from lmos_mesh import subjects, turn_reports
from lmos_mesh.bus import Bus
from lmos_mesh.messages import TurnReport
from lmos_mesh.transport import Log
from lmos_mesh_operator.figures import Figures
from tests.conftest import Mesh, NatsMesh, new_name


async def figures_of(bus: Bus, event: str, field: str) -> Figures:
    figures = Figures(bus, bus.tenant, event, clock=time.time)
    figures.names = frozenset({f"{event}#{field}"})
    await figures.prepare()
    return figures


async def publish(bus: Bus, event: str, *bodies: bytes) -> None:
    for body in bodies:
        bus.transport.publish(subjects.event(bus.tenant, *event.split(".")), body)
    await bus.transport.flush()


def body(stars: object) -> bytes:
    return json.dumps({"subset": "canary", "stars": stars}).encode()


async def values(figures: Figures) -> Sequence[float]:
    return [one.value for one in await figures.read()]


async def test_each_figure_is_read_once_and_what_is_none_is_passed_over(mesh: Mesh) -> None:
    async with mesh.bus() as bus, mesh.bus() as other:
        ours = await figures_of(bus, "shop.rated", "stars")
        theirs = await figures_of(other, "shop.rated", "stars")
        await publish(bus, "shop.rated", body(4), b"no JSON", b"[5]", b"", body("many"), body(2.5))

        assert await values(ours) == [4, 2.5]
        assert await values(ours) == []
        await publish(bus, "shop.rated", body(1))
        assert await values(ours) == [1]
        assert await values(theirs) == [4, 2.5, 1]
        await ours.drop()


async def test_a_subject_that_somebody_keeps_already_is_heard(
    nats_mesh: NatsMesh, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_mesh.bus() as bus:
        subject = subjects.event(bus.tenant, "shop", "rated")
        kept = bus.transport.stream(Log(name=new_name("kept"), subjects=(subject,), in_memory=True))
        await kept.read(subject)

        figures = await figures_of(bus, "shop.rated", "stars")
        await publish(bus, "shop.rated", body(4))
        await bus.transport.flush()
        found = await values(figures)
        await figures.drop()

        assert found == [4]
        assert f"{subject} cannot be kept" in caplog.text
        assert len(await kept.read(subject)) == 1, "what is somebody else's is not dropped"
        await kept.drop()


async def test_what_runtimes_report_can_be_a_figure_and_is_not_dropped_with_it(mesh: Mesh) -> None:
    async with mesh.bus() as bus:
        figures = await figures_of(bus, "runtime.turn_ended", "first_s")
        report = TurnReport(
            conversation="c", turn="t", channel="web", outcome="answered", first_s=0.25
        )
        turn_reports.tell(bus, bus.tenant, report)
        await bus.transport.flush()

        assert await values(figures) == [0.25]
        await figures.drop()
        assert len(await turn_reports.Reader(bus, bus.tenant).read()) == 1
