"""Mirrored turns are bounded, never awaited, and reported whatever becomes of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lmos_mesh.errors import HandedOver, Unavailable
from lmos_mesh.invocation import Circumstances
from lmos_mesh.messages import Converse, Decision, TurnReport, Utterance
from lmos_mesh.reply_stream import Patience
from lmos_mesh.things import Capability, ThingKey
from lmos_mesh_runtime.asking import Ask
from lmos_mesh_runtime.reporting import Relay, is_same
from lmos_mesh_runtime.routing import Mirrored, Way
from lmos_mesh_runtime.shadowing import Mirrorable, Shadows
from tests.conftest import MemoryMesh

STABLE = Way(tenant="acme", channel="web", subset="stable", rollout="default/web")
CANARY = Mirrored(subset="canary", rollout="default/web")
ROUTED = Decision(outcome="routed", agent="billing", subset="canary", capability="view")


def turn(id: str = "t1", **more: Any) -> Mirrorable:
    given: dict[str, Any] = {
        "request": Converse(message="show my bill"),
        "way": STABLE,
        "conversation": "c1",
        "turn": id,
        "history": (),
        "answer": "39.99 €",
        "answered": True,
        **more,
    }
    return Mirrorable(**given)


class Canary:
    """Stands for the router and the agents of the other release line."""

    def __init__(self, answer: str = "39.99 €", decision: Decision = ROUTED) -> None:
        self.answer = answer
        self.decision = decision
        self.twice = True
        self.go = asyncio.Event()
        self.go.set()
        self.told: list[TurnReport] = []
        self.subsets: list[str | None] = []
        self.asked: list[Ask] = []

    async def decide(self, request: Converse, way: Way, history: Sequence[Utterance]) -> Decision:
        self.subsets.append(way.subset)
        await self.go.wait()
        return self.decision

    def make_ask(self, of: Mirrorable, decision: Decision, relay: Relay) -> Ask | None:
        if not self.twice:
            return None
        relay.agent = decision.agent
        return Ask(
            tenant="acme",
            key=ThingKey("acme", decision.agent, decision.subset),
            capability=Capability(id="view"),
            circumstances=Circumstances(),
            task=of.turn,
            restarts=True,
            send=relay.send,
            patience=Patience(),
        )

    async def ask(self, one: Ask) -> str:
        self.asked.append(one)
        if self.answer == "lost":
            raise Unavailable("nobody is there")
        if self.answer == "over":
            raise HandedOver("this is for agent 'desk'", to="desk")
        await one.send("delta", self.answer)
        return self.answer

    def tell(self, tenant: str, report: TurnReport) -> None:
        assert tenant == "acme"
        self.told.append(report)


async def reported(
    mesh: MemoryMesh, canary: Canary, *turns: Mirrorable, most: int = 4
) -> list[TurnReport]:
    async with mesh.bus() as bus:
        shadows = Shadows(
            bus,
            decide=canary.decide,
            make_ask=canary.make_ask,
            ask=canary.ask,
            tell=canary.tell,
            most=most,
        )
        for one in turns:
            shadows.mirror(one, CANARY)
        canary.go.set()
        for _ in range(20):
            await asyncio.sleep(0)
    return canary.told


async def test_an_answer_is_compared_and_reported(memory_mesh: MemoryMesh) -> None:
    told = await reported(memory_mesh, Canary("39.99  €\n"), turn())

    (report,) = told
    assert (report.subset, report.agent, report.outcome) == ("canary", "billing", "answered")
    assert (report.shadow, report.same, report.rollout) == (True, True, "default/web")
    assert (report.conversation, report.turn) == ("c1", "t1")
    assert report.first_s is not None


async def test_another_answer_is_another_one(memory_mesh: MemoryMesh) -> None:
    told = await reported(memory_mesh, Canary("40 €"), turn())

    assert [one.same for one in told] == [False]
    assert is_same("a  b\n", "a b")
    assert not is_same("ab", "a b")


async def test_a_failure_is_reported_and_hurts_nobody(memory_mesh: MemoryMesh) -> None:
    told = await reported(memory_mesh, Canary("lost"), turn())

    assert [(one.outcome, one.error, one.same) for one in told] == [
        ("failed", Unavailable.code, None)
    ]


@pytest.mark.parametrize("handed_over", [True, False])
async def test_nobody_else_is_asked_where_a_shadow_is_handed_over(
    memory_mesh: MemoryMesh, handed_over: bool
) -> None:
    one = replace(turn(), handed_over=handed_over)

    told = await reported(memory_mesh, Canary("over"), one)

    assert [(one.outcome, one.handovers, one.same) for one in told] == [
        ("answered", 1, handed_over)
    ]


async def test_what_must_not_be_done_twice_is_left_alone(memory_mesh: MemoryMesh) -> None:
    canary = Canary()
    canary.twice = False

    told = await reported(memory_mesh, canary, turn())

    assert [(one.outcome, one.left_out, one.same) for one in told] == [("cancelled", "once", None)]
    assert canary.asked == []


async def test_what_is_not_asked_at_all_is_told_with_its_reason(memory_mesh: MemoryMesh) -> None:
    canary = Canary()

    (report,) = await reported(memory_mesh, canary, turn(left_out="several"))

    assert (report.outcome, report.left_out, report.shadow) == ("cancelled", "several", True)
    assert (report.subset, report.rollout) == ("canary", "default/web")
    assert canary.subsets == []


async def test_who_asks_back_where_the_other_does_is_the_same(memory_mesh: MemoryMesh) -> None:
    unsure = Decision(outcome="unsure")

    both = await reported(memory_mesh, Canary(decision=unsure), turn(answered=False))
    one = await reported(memory_mesh, Canary(decision=unsure), turn())
    other = await reported(memory_mesh, Canary(), turn(answered=False))

    assert [(one.outcome, one.same) for one in both] == [("asked_back", True)]
    assert [(one.outcome, one.same) for one in one] == [("asked_back", False)]
    assert [(one.outcome, one.same) for one in other] == [("answered", False)]


async def test_only_so_many_run_at_a_time_and_the_rest_is_left_out(
    memory_mesh: MemoryMesh,
) -> None:
    canary = Canary()
    canary.go.clear()

    told = await reported(memory_mesh, canary, *(turn(f"t{number}") for number in range(7)), most=2)

    assert [one.turn for one in told if one.left_out == "busy"] == [f"t{n}" for n in range(2, 7)]
    assert [one.turn for one in told if not one.left_out] == ["t0", "t1"]
    assert canary.subsets == ["canary", "canary"]
