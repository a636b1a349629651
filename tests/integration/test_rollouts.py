"""Rollouts on a bus: judged by what is reported, whoever leads, and told once."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from lmos_mesh import audit, subjects, turn_reports
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import Conflict, NotFound
from lmos_mesh.events import OF_OPERATOR, CloudEvent, kept, unix_time
from lmos_mesh.messages import ReportedPart, SteerRollout, TurnReport
from lmos_mesh.resource_index import key_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import (
    Channel,
    ChannelRollout,
    ChannelSpec,
    ChannelStatus,
    Metadata,
    Resource,
    RolloutStatus,
)
from lmos_mesh.transport import Packet
from lmos_mesh.weights import Side, Speaker, side_of
from lmos_mesh_operator.figures import log_of
from lmos_mesh_operator.rollouts import Rollouts
from tests.conftest import Mesh

TICK_S = 0.02
STEPS = [{"weight": 20}, {"weight": 50}, {"weight": 80}]
ANALYSIS = {"windowSeconds": 0.6, "minTurns": 20}


class Stand:
    """A tenant with a channel in two subsets, a rollout between them, and users who talk."""

    def __init__(self, bus: Bus, applied: Applied) -> None:
        self.bus = bus
        self.applied = applied
        self.store = ResourceStore(bus)
        self.told: list[CloudEvent] = []
        self.flipped: list[str] = []
        self.errors = {"canary": 0.01, "stable": 0.01}
        self.seconds = {"canary": 1.0, "stable": 1.0}
        self.parts = 0.0

    async def put(self, resource: Resource) -> None:
        kept = await self.store.get(key_of(resource))
        revision = await self.store.put(resource, expected=kept.revision if kept else 0)
        assert await self.applied.until_known(key_of(resource), revision, within_s=5)

    async def channel(self, subset: str) -> None:
        labels = {"tenant": self.bus.tenant, "channel": "web", "subset": subset}
        await self.put(
            Channel(
                metadata=Metadata(name=f"web-{subset}", namespace=self.bus.tenant, labels=labels),
                spec=ChannelSpec(required_capabilities=()),
                status=ChannelStatus(resolve_status="RESOLVED"),
            )
        )

    async def begin(self, generation: int = 1, **canary: Any) -> None:
        named = {"canaryChannel": {"name": "web-canary"}, "stableChannel": {"name": "web-stable"}}
        metadata = {
            "name": "web",
            "namespace": self.bus.tenant,
            "labels": {"tenant": self.bus.tenant},
            "generation": generation,
        }
        said = {"steps": STEPS, "analysis": ANALYSIS, **canary}
        spec = {"strategy": {"canary": {**named, **said}}}
        await self.put(ChannelRollout.model_validate({"metadata": metadata, "spec": spec}))

    @property
    def rollout(self) -> ChannelRollout:
        found = self.applied.get(ChannelRollout, self.bus.tenant, "web")
        assert found is not None
        return found

    @property
    def status(self) -> RolloutStatus:
        return self.rollout.status or RolloutStatus()

    async def until(self, reached: Callable[[], bool], *, within_s: float = 40.0) -> None:
        until = time.monotonic() + within_s
        while not reached():
            assert time.monotonic() < until, f"it never came to it: {self.status}"
            await asyncio.sleep(0.005)

    async def until_phase(self, phase: str) -> RolloutStatus:
        await self.until(lambda: self.status.phase == phase)
        return self.status

    async def talk(self) -> None:
        """300 turns a second, three to a conversation, each where the rollout has it."""
        dice, numbers = random.Random(7), itertools.count()
        talking: list[tuple[str, Side | None, str, int]] = []
        clock, told = asyncio.get_running_loop().time, 0
        began = clock()
        while True:
            # As many as were due, however late this loop comes to it: rollouts count them by time.
            due = int((clock() - began) * 100) + 1
            for _ in range(min(due - told, 50)):
                talking = self._turns(talking, f"c-{next(numbers)}", dice)
            told = due
            await asyncio.sleep(0.01)

    def _turns(
        self, talking: list[tuple[str, Side | None, str, int]], new: str, dice: random.Random
    ) -> list[tuple[str, Side | None, str, int]]:
        """A turn of each conversation and of a new one; those that go on."""
        going_on: list[tuple[str, Side | None, str, int]] = []
        for conversation, before, salt, turns in [*talking, (new, None, "", 0)]:
            rollout = self.applied.rollout(self.bus.tenant, "web")
            side = side_of(rollout, Speaker(conversation=conversation), before)
            side = side or Side(subset="stable")
            status = rollout.status if rollout else None
            running = status is not None and status.phase in ("Progressing", "Paused")
            if before and running and salt == side.salt and before.subset != side.subset:
                self.flipped.append(conversation)
            self.report(conversation, side, dice)
            if turns < 2:
                going_on.append((conversation, side, side.salt, turns + 1))
        return going_on

    def report(self, conversation: str, side: Side, dice: random.Random) -> None:
        bad = dice.random() < self.errors[side.subset]
        parts: tuple[ReportedPart, ...] = ()
        if self.parts:
            partly = side.subset == "canary" and dice.random() < self.parts
            second = ReportedPart(agent="travel", state="failed" if partly else "done")
            parts = (ReportedPart(agent="billing"), second)
        report = TurnReport(
            conversation=conversation,
            parts=parts,
            turn=f"{conversation}-{dice.random()}",
            channel="web",
            subset=side.subset,
            outcome="failed" if bad else "answered",
            total_s=self.seconds[side.subset] * dice.lognormvariate(0, 0.5),
            rollout=side.rollout,
        )
        turn_reports.tell(self.bus, self.bus.tenant, report)

    def kinds(self) -> list[str]:
        return [event.type.removeprefix("lmos.rollout.") for event in self.told]

    async def written_down(self) -> list[dict[str, Any]]:
        await self.bus.transport.flush()
        found = await self.bus.transport.stream(audit.AUDIT).read(
            subjects.audit(self.bus.tenant, "rollout")
        )
        return [json.loads(packet.payload) for packet in found]


@asynccontextmanager
async def standing(mesh: Mesh) -> AsyncGenerator[Stand]:
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(mesh.bus())
        applied = Applied(bus)
        await applied.follow()
        await turn_reports.prepare(bus)
        stand = Stand(bus, applied)
        pattern = subjects.event(bus.tenant, "operator", "x").removesuffix("x") + "*"
        await bus.transport.subscribe(
            pattern, lambda packet: stand.told.append(CloudEvent.from_packet(packet))
        )
        for subset in ("stable", "canary"):
            await stand.channel(subset)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        talking = tasks.create_task(stand.talk())
        try:
            yield stand
        finally:
            talking.cancel()


@asynccontextmanager
async def operator(mesh: Mesh, *, leads: bool = True) -> AsyncGenerator[Rollouts]:
    """An operator on a connection of its own; leaving the block is its sudden end."""
    async with mesh.bus() as bus:
        applied = Applied(bus)
        await applied.follow()
        rollouts = Rollouts(bus, applied, ResourceStore(bus), lambda: leads, tick_s=TICK_S)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(rollouts.run())
            try:
                yield rollouts
            finally:
                running.cancel()


def call(tenant: str) -> Call:
    class _Call:
        pass

    made: Any = _Call()
    made.tenant, made.caller = tenant, "ann@laptop (cli-1)"
    return made


async def test_a_good_canary_is_promoted_and_every_step_is_told(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh):
        await stand.begin()

        status = await stand.until_phase("Promoted")
        await stand.until(lambda: len(stand.told) == 4)

        assert status.canary_weight == 100
        assert stand.kinds() == ["began", "stepped", "stepped", "promoted"]
        assert [event.data["canary_weight"] for event in stand.told] == [20, 50, 80, 100]
        assert [one["what"] for one in await stand.written_down()] == stand.kinds()
        assert stand.flipped == []


@pytest.mark.parametrize(("errors", "seconds"), [(0.2, 1.0), (0.01, 3.0)])
async def test_a_bad_canary_is_rolled_back_by_itself_within_its_window(
    mesh: Mesh, errors: float, seconds: float
) -> None:
    async with standing(mesh) as stand, operator(mesh):
        stand.errors["canary"], stand.seconds["canary"] = errors, seconds
        steps = [{"weight": 30, "holdSeconds": 60}]
        await stand.begin(steps=steps, analysis={"windowSeconds": 4, "minTurns": 30})

        status = await stand.until_phase("RolledBack")
        await stand.until(lambda: len(stand.told) == 2)

        began, rolled_back = stand.told
        assert status.canary_weight == 0
        assert rolled_back.data["weight_before"] == 30
        assert _seconds(began, rolled_back) < 4
        assert "worse by more than" in rolled_back.data["message"]
        assert stand.flipped == []


async def test_the_next_operator_goes_on_where_one_was_killed(mesh: Mesh) -> None:
    async with standing(mesh) as stand:
        await stand.begin()
        for step, weight in enumerate((20, 50, 80)):
            async with operator(mesh):
                await stand.until(lambda step=step: stand.status.step == step, within_s=5)
                await stand.until(lambda weight=weight: stand.status.canary_weight == weight)
            assert stand.status.phase == "Progressing"
        async with operator(mesh):
            await stand.until_phase("Promoted")
            written: list[dict[str, Any]] = []
            for _ in range(500):
                written = await stand.written_down()
                if len(written) == 4:
                    break
                await asyncio.sleep(0.02)

        assert [one["canary_weight"] for one in written] == [20, 50, 80, 100]
        assert stand.flipped == []


async def test_what_an_operator_did_not_come_to_tell_is_told_by_the_next(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any, **__: Any) -> None: ...

    async with standing(mesh) as stand:
        with monkeypatch.context() as patched:
            patched.setattr(Rollouts, "_publish", nothing)
            async with operator(mesh):
                await stand.begin()
                await stand.until_phase("Progressing")
        assert stand.told == []
        async with operator(mesh):
            await stand.until(lambda: len(stand.told) == 1)

        assert stand.told[0].type == "lmos.rollout.began"
        assert [one["what"] for one in await stand.written_down()] == ["began"]


async def test_what_is_told_again_by_the_next_operator_is_kept_once(mesh: Mesh) -> None:
    async with standing(mesh) as stand:
        async with operator(mesh):
            await stand.begin()
            await stand.until(lambda: len(stand.told) == 1)
        async with operator(mesh):
            await stand.until(lambda: len(stand.told) == 2)

        async with aclosing(kept(stand.bus, mesh.tenant, types=OF_OPERATOR)) as told:
            names = [event.type async for _, event in told]
        assert names == ["lmos.rollout.began", "lmos.rollout.stepped"]
        assert [one["what"] for one in await stand.written_down()] == ["began", "stepped"]


async def test_two_operators_that_both_lead_do_not_fight(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh), operator(mesh):
        await stand.begin()

        await stand.until_phase("Promoted")
        await asyncio.sleep(0.1)

        written = await stand.written_down()
        assert [one["canary_weight"] for one in written] == [20, 50, 80, 100]
        assert stand.flipped == []


async def test_people_steer_through_any_operator(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh), operator(mesh, leads=False) as other:
        await stand.begin(steps=[{"weight": 10, "pause": True, "holdSeconds": 0}, {"weight": 60}])
        tenant = stand.bus.tenant
        asked = call(tenant)

        async def steer(action: str) -> RolloutStatus:
            request = SteerRollout.model_validate(
                {"name": "web", "namespace": tenant, "action": action, "reason": "because"}
            )
            found = await other.steer(request, asked)
            return RolloutStatus.model_validate(found.resource["status"])

        await stand.until_phase("Paused")
        assert (await steer("promote")).canary_weight == 60
        assert (await steer("pause")).phase == "Paused"
        assert (await steer("abort")).canary_weight == 0
        with pytest.raises(Conflict):
            await steer("resume")
        assert (await steer("restart")).canary_weight == 10
        # What another operator began the leader goes on with.
        await stand.until_phase("Paused")
        asked = call("somebody-else")
        with pytest.raises(NotFound):
            await steer("abort")
        by_hand = [one for one in await stand.written_down() if "by_hand" in one]
        assert [one["by_hand"] for one in by_hand] == ["promote", "pause", "abort", "restart"]
        assert {one["reason"] for one in by_hand} == {"because"}
        assert {one["asked_by"] for one in by_hand} == {"ann@laptop (cli-1)"}
        # What it does by itself nobody has asked for.
        by_itself = [one for one in await stand.written_down() if "by_hand" not in one]
        assert by_itself
        assert not any("asked_by" in one for one in by_itself)


async def test_a_rollout_that_is_deleted_leaves_everybody_to_stable(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh):
        await stand.begin(steps=[{"weight": 50, "holdSeconds": 60}])
        await stand.until_phase("Progressing")
        await stand.until(lambda: len(stand.told) == 1)

        key = key_of(stand.rollout)
        while True:
            kept = await stand.store.get(key)
            assert kept is not None
            try:
                await stand.store.delete(key, expected=kept.revision)
            except Conflict:
                continue
            break
        await stand.until(lambda: len(stand.told) == 2)

        assert stand.kinds() == ["began", "aborted"]
        assert stand.told[1].data["canary_weight"] == 0
        assert stand.applied.rollout(stand.bus.tenant, "web") is None


async def test_a_figure_from_the_bus_rolls_a_canary_back(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh):
        check = {"metric": "custom", "event": "shop.csat", "field": "score", "better": "higher"}
        analysis = {"windowSeconds": 4, "minTurns": 20, "checks": [check]}
        await stand.begin(steps=[{"weight": 30, "holdSeconds": 60}], analysis=analysis)
        dice = random.Random(1)

        while stand.status.phase != "RolledBack":
            for subset, score in (("canary", 2.0), ("stable", 4.5)):
                figure = {"subset": subset, "score": score + dice.random() / 2}
                stand.bus.transport.publish(
                    subjects.event(stand.bus.tenant, "shop", "csat"), json.dumps(figure).encode()
                )
            await asyncio.sleep(0.02)

        assert "shop.csat score" in stand.status.message


async def test_figures_that_were_told_before_an_operator_led_count_for_it(mesh: Mesh) -> None:
    check = {"metric": "custom", "event": "shop.csat", "field": "score", "better": "higher"}
    steps = [{"weight": 30, "holdSeconds": 60}]
    async with standing(mesh) as stand:
        subject = subjects.event(stand.bus.tenant, "shop", "csat")
        async with operator(mesh):
            analysis = {"windowSeconds": 60, "minTurns": 40, "checks": [check]}
            await stand.begin(steps=steps, analysis=analysis)
            await stand.until_phase("Progressing")
            await asyncio.sleep(5 * TICK_S)
        # Nobody leads, and whoever is the next one is told nothing any more.
        for _ in range(50):
            for subset, score in (("canary", 2.0), ("stable", 4.5)):
                figure = json.dumps({"subset": subset, "score": score}).encode()
                stand.bus.transport.publish(subject, figure)
        await stand.bus.transport.flush()
        edited = stand.rollout.model_copy(
            update={
                "status": stand.status.model_copy(update={"step_began": time.time() - 30}),
            }
        )
        await stand.put(edited)
        async with operator(mesh):
            status = await stand.until_phase("RolledBack")
            (verdict,) = status.verdicts
            assert (verdict.canary_turns, verdict.stable_turns) == (50, 50)

            # Of no use to anybody any more, they are kept no more.
            stand.bus.transport.publish(subject, b"{}")
            stream = stand.bus.transport.stream(log_of(subject))
            left: Sequence[Packet] = ()
            for _ in range(500):
                if not (left := await stream.read(subject)):
                    break
                await asyncio.sleep(0.02)
            assert not left


async def test_a_part_that_fails_counts_against_the_canary(mesh: Mesh) -> None:
    async with standing(mesh) as stand, operator(mesh):
        stand.parts = 0.2
        steps = [{"weight": 30, "holdSeconds": 60}]
        await stand.begin(steps=steps, analysis={"windowSeconds": 4, "minTurns": 30})

        status = await stand.until_phase("RolledBack")

        assert "of the canary's turns failed" in status.message


def _seconds(one: CloudEvent, other: CloudEvent) -> float:
    times = [unix_time(event.time) or 0.0 for event in (one, other)]
    return times[1] - times[0]
