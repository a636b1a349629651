"""A rollout as deployed: real services, agents in two release lines, users who go on talking."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh import audit, subjects
from lmos_mesh.errors import AgentFailed
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    CONVERSE,
    GET_RESOURCE,
    STEER_ROLLOUT,
    ApplyResource,
    Converse,
    GetResource,
    SteerRollout,
)
from lmos_mesh.resources import RolloutStatus
from tests.conftest import FrailServer
from tests.integration.processes import Deployment, Process, until

AGENT = '''
import asyncio, os, random
from lmos_mesh import Agent, run_agents

SUBSET = os.environ["TEST_SUBSET"]
billing = Agent("billing", description="Answers questions about bills.", subset=SUBSET)

@billing.capability(examples=["show my bill", "how much do I owe?"])
async def view_bill(question: str) -> str:
    """Show a customer's latest bill."""
    await asyncio.sleep((0.12 if SUBSET == "slow" else 0.04) * random.uniform(0.8, 1.2))
    if SUBSET == "faulty" and random.random() < 0.5:
        raise ValueError("the bill is lost")
    return f"the bill ({SUBSET})"

run_agents([billing])
'''
CANARIES = {"web": "good", "app": "faulty", "ivr": "slow"}
STEPS = [{"weight": 25}, {"weight": 50}, {"weight": 75}]
ANALYSIS = {"windowSeconds": 2, "minTurns": 25}


class Users:
    """Conversations of three turns, on every channel, for as long as the test lasts."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.seen: dict[str, list[str]] = {}
        self.channels: dict[str, str] = {}
        self.broken: list[str] = []
        self.failed: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def talk(self, channel: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            conversation = f"c-{next(self._numbers)}"
            for _ in range(3):
                await self.turn(conversation, channel)

    async def turn(self, conversation: str, channel: str) -> None:
        self.channels[conversation] = channel
        request = Converse(
            message="show my bill", conversation=conversation, channel=channel, agent="billing"
        )
        try:
            answer = await self.mesh.bus.call(CONVERSE, request, timeout_s=20)
        except AgentFailed:
            self.failed[channel] += 1
        except Exception as error:
            self.broken.append(f"{conversation} on {channel}: {error}")
        else:
            self.seen.setdefault(conversation, []).append(answer.subset)

    def flipped(self, channel: str, *, way: tuple[str, str]) -> list[list[str]]:
        """Conversations of a channel whose subsets changed other than once, in one way."""
        allowed = {(way[0],), (way[1],), way}
        return [
            subsets
            for conversation, subsets in self.seen.items()
            if self.channels[conversation] == channel
            and tuple(one for one, _ in itertools.groupby(subsets)) not in allowed
        ]


@pytest.fixture
async def deployment(fresh_nats: FrailServer, tmp_path: Path) -> AsyncGenerator[Deployment]:
    deployment = Deployment(fresh_nats.url, tmp_path)
    try:
        yield deployment
    finally:
        deployment.stop()


async def apply(mesh: Mesh, kind: str, name: str, spec: dict[str, Any], **labels: str) -> None:
    metadata = {"name": name, "labels": labels}
    said = {"apiVersion": "lmos.eclipse/v1", "kind": kind, "metadata": metadata, "spec": spec}
    await mesh.bus.call(APPLY_RESOURCE, ApplyResource(resource=said), timeout_s=20, nobody_s=20)


async def status_of(mesh: Mesh, name: str) -> RolloutStatus:
    found = await mesh.bus.call(
        GET_RESOURCE, GetResource(kind="ChannelRollout", name=name), timeout_s=20, nobody_s=20
    )
    return RolloutStatus.model_validate(found.resource.get("status") or {})


async def until_status(mesh: Mesh, name: str, **wanted: object) -> RolloutStatus:
    status = RolloutStatus()
    try:
        async with asyncio.timeout(60):
            while any(getattr(status, one) != value for one, value in wanted.items()):
                await asyncio.sleep(0.05)
                status = await status_of(mesh, name)
    except TimeoutError:
        raise AssertionError(f"rollout {name!r} is not {wanted}: {status}") from None
    return status


async def audited(mesh: Mesh, rollout: str) -> list[dict[str, Any]]:
    stream = mesh.bus.transport.stream(audit.AUDIT)
    found = await stream.read(subjects.audit(mesh.bus.tenant, "rollout"))
    records = [json.loads(packet.payload) for packet in found]
    return [one for one in records if one["rollout"] == f"default/{rollout}"]


@pytest.mark.timeout(240)
async def test_good_canaries_are_promoted_and_bad_ones_rolled_back_whoever_is_killed(
    deployment: Deployment,
) -> None:
    started = [
        deployment.start_agent(AGENT, name=subset, TEST_SUBSET=subset)
        for subset in ("stable", *CANARIES.values())
    ]
    deployment.services("registry", "router", "runtime")
    operators = deployment.services("operator", "operator")
    for one in started:
        one.wait_ready()
    for one in started:
        if one.name == "faulty":
            one.expected = "the bill is lost"
    async with deployment.client() as mesh, asyncio.TaskGroup() as tasks:
        users, stop = Users(mesh), asyncio.Event()
        needs = {"requiredCapabilities": [{"name": "view_bill", "version": ">=0.0.0"}]}
        for channel, canary in CANARIES.items():
            for subset in ("stable", canary):
                await apply(
                    mesh, "Channel", f"{channel}-{subset}", needs, channel=channel, subset=subset
                )
            for _ in range(3):
                tasks.create_task(users.talk(channel, stop))
        for channel, canary in CANARIES.items():
            said = {
                "canaryChannel": {"name": f"{channel}-{canary}"},
                "stableChannel": {"name": f"{channel}-stable"},
                "steps": STEPS,
                "analysis": ANALYSIS,
            }
            await apply(mesh, "ChannelRollout", channel, {"strategy": {"canary": said}})
        try:
            for step in range(len(STEPS)):
                await until_status(mesh, "web", step=step, phase="Progressing")
                leader = _leader(operators)
                leader.kill()
                operators.append(deployment.start("operator"))
            good = await until_status(mesh, "web", phase="Promoted")
            faulty = await until_status(mesh, "app", phase="RolledBack")
            slow = await until_status(mesh, "ivr", phase="RolledBack")
            await asyncio.sleep(1)
        finally:
            stop.set()
        for channel in CANARIES:
            await users.turn(f"after-{channel}", channel)

        weights = [one["canary_weight"] for one in await audited(mesh, "web")]
        assert [one for one in weights if one] == [25, 50, 75, 100]
        assert (good.canary_weight, faulty.canary_weight, slow.canary_weight) == (100, 0, 0)
        assert "of the canary's turns failed" in faulty.message
        assert "median" in slow.message
        assert users.broken == []
        assert not users.failed.keys() - {"app"}
        assert users.flipped("web", way=("stable", "good")) == []
        assert users.flipped("app", way=("faulty", "stable")) == []
        assert users.flipped("ivr", way=("slow", "stable")) == []
        after = [users.seen[f"after-{channel}"] for channel in CANARIES]
        assert after == [["good"], ["stable"], ["stable"]]


TWICE = '''
import os
from lmos_mesh import Agent, run_agents

SUBSET = os.environ["TEST_SUBSET"]
billing = Agent("billing", description="Answers questions about bills.", subset=SUBSET)

@billing.capability(examples=["show my bill", "how much do I owe?"])
async def view_bill(question: str) -> str:
    """Show a customer's latest bill."""
    if SUBSET == "faulty" and hash(question) % 2:
        raise ValueError("the bill is lost")
    return f"the bill ({SUBSET})" if "differently" in question else "the bill"

@billing.capability(examples=["pay now", "transfer the money"], idempotent=False)
async def pay(question: str) -> str:
    """Pay what a customer owes."""
    return "paid"

run_agents([billing])
'''


class Customers:
    """Who asks on one channel, each time as a new conversation."""

    def __init__(self, mesh: Mesh, channel: str) -> None:
        self.mesh = mesh
        self.channel = channel
        self.subsets: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def ask(self, message: str, *, conversation: str = "", user: str | None = None) -> str:
        request = Converse(
            message=message,
            conversation=conversation or f"{self.channel}-{next(self._numbers)}",
            channel=self.channel,
            agent="billing",
            user=user,
        )
        answer = await self.mesh.bus.call(CONVERSE, request, timeout_s=20)
        self.subsets[answer.subset] += 1
        self.asked[message.partition(" no ")[0]] += 1
        return answer.subset

    async def go_on(self, stop: asyncio.Event, *users: str | None) -> None:
        for number, user in zip(itertools.count(), itertools.cycle(users)):
            if stop.is_set():
                return
            said = "transfer the money" if number % 5 == 0 else "show my bill"
            said = "show my bill differently" if number % 5 == 1 else said
            await self.ask(f"{said} no {number}", user=user)

    async def until_on(self, subset: str, *, conversation: str = "") -> None:
        """The runtime hears of a step a moment after it is written."""

        async def there() -> bool:
            return await self.ask("show my bill", conversation=conversation) == subset

        await until(there, within_s=20)


async def steered(mesh: Mesh, name: str, action: str) -> RolloutStatus:
    request = SteerRollout.model_validate({"name": name, "action": action, "reason": "told so"})
    found = await mesh.bus.call(STEER_ROLLOUT, request, timeout_s=20, nobody_s=20)
    return RolloutStatus.model_validate(found.resource["status"])


async def in_the_terminal(url: str, *arguments: str) -> str:
    """What `lmos` prints."""
    command = [sys.executable, "-m", "lmos_mesh.cli", *arguments]
    env = {**os.environ, "LMOS_NATS_URL": url, "COLUMNS": "200"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.timeout(240)
async def test_a_shadow_is_only_compared_and_blue_and_green_change_places_and_back(
    deployment: Deployment,
) -> None:
    started = [
        deployment.start_agent(TWICE, name=subset, TEST_SUBSET=subset)
        for subset in ("stable", "good", "faulty")
    ]
    deployment.services("registry", "router", "runtime")
    operators = deployment.services("operator", "operator")
    for one in started:
        one.wait_ready()
    started[-1].expected = "the bill is lost"
    analysis = {"windowSeconds": 2, "minTurns": 20, "checks": [{"metric": "errors"}]}
    wanted: dict[str, tuple[str, str, dict[str, Any]]] = {
        "web": ("shadow", "good", {"analysis": analysis}),
        "ivr": ("shadow", "faulty", {"analysis": {**analysis, "windowSeconds": 20}}),
        "app": ("blueGreen", "good", {"analysis": analysis, "match": {"users": ["ada"]}}),
    }
    needs = {"requiredCapabilities": [{"id": "view_bill", "version": ">=0.0.0"}]}
    needs["requiredCapabilities"].append({"id": "pay", "version": ">=0.0.0"})
    async with deployment.client() as mesh, asyncio.TaskGroup() as tasks:
        talk = {channel: Customers(mesh, channel) for channel in wanted}
        stop = asyncio.Event()
        for channel, (strategy, canary, more) in wanted.items():
            for subset in ("stable", canary):
                await apply(
                    mesh, "Channel", f"{channel}-{subset}", needs, channel=channel, subset=subset
                )
            named = {
                side: {"name": f"{channel}-{of}"}
                for side, of in (("canaryChannel", canary), ("stableChannel", "stable"))
            }
            await apply(
                mesh, "ChannelRollout", channel, {"strategy": {strategy: {**named, **more}}}
            )
        for channel in wanted:
            await until_status(mesh, channel, phase="Progressing")
        try:
            await talk["app"].ask("show my bill", conversation="longer")
            for channel in wanted:
                tasks.create_task(
                    talk[channel].go_on(stop, *(("ada", None) if channel == "app" else (None,)))
                )
            _leader(operators).kill()
            operators.append(deployment.start("operator"))

            faulty = await until_status(mesh, "ivr", phase="RolledBack")
            shadow = await until_status(mesh, "web", phase="Paused", paused_for="step")
            green = await until_status(mesh, "app", phase="Paused", paused_for="step")
            _leader(operators).kill()
            operators.append(deployment.start("operator"))
        finally:
            stop.set()

        # Nobody has seen a word of a shadow, and all that was told of it is kept by who took over.
        assert set(talk["web"].subsets) == set(talk["ivr"].subsets) == {"stable"}
        assert shadow.compared is not None
        assert faulty.compared is not None
        assert (shadow.canary_weight, shadow.compared.failed, shadow.compared.busy) == (0, 0, 0)
        assert min(shadow.compared.same, shadow.compared.different, shadow.compared.once) > 0
        assert shadow.compared.same > shadow.compared.different
        assert faulty.compared.failed > 0
        assert "of the canary's turns failed" in faulty.message
        said = await in_the_terminal(deployment.url, "rollout", "status", "web")
        turns = shadow.compared.same + shadow.compared.different
        assert f"compared {turns} turns: {shadow.compared.same} the same" in said
        assert f"not compared {shadow.compared.once} that must not be done twice" in said
        await steered(mesh, "web", "promote")
        await talk["web"].until_on("good")

        # Who is named had a look at it, and nobody else; then all change places, and back.
        assert talk["app"].subsets.keys() == {"stable", "good"}
        assert abs(talk["app"].subsets["good"] - talk["app"].subsets["stable"]) <= 2
        assert green.canary_weight == 0
        assert (await steered(mesh, "app", "promote")).canary_weight == 100
        await talk["app"].until_on("good", conversation="longer")
        assert await talk["app"].ask("show my bill") == "good"
        assert (await steered(mesh, "app", "abort")).canary_weight == 0
        await talk["app"].until_on("stable", conversation="longer")
        assert await talk["app"].ask("show my bill") == "stable"
        assert await talk["app"].ask("show my bill", user="ada") == "stable"
        told = [(one["what"], one["canary_weight"]) for one in await audited(mesh, "app")]
        if told[0] == ("pending", 0):
            del told[0]  # its Channels were not resolved yet when it was looked at first
        assert told == [("began", 0), ("paused", 0), ("promoted", 100), ("aborted", 0)]
        last = (await audited(mesh, "app"))[-1]
        assert (last["by_hand"], last["reason"]) == ("abort", "told so")


def _leader(operators: list[Process]) -> Process:
    """The operator that was the last to say that it leads."""
    leading = [one for one in operators if one.alive and one.entries("leading")]
    assert leading, "no operator leads"
    return leading[-1]
