"""A rollout as deployed: real services, agents in two release lines, users who go on talking."""

import asyncio
import itertools
import json
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
    ApplyResource,
    Converse,
    GetResource,
)
from lmos_mesh.resources import RolloutStatus
from tests.conftest import FrailServer
from tests.integration.processes import Deployment, Process

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


def _leader(operators: list[Process]) -> Process:
    """The operator that was the last to say that it leads."""
    leading = [one for one in operators if one.alive and one.entries("leading")]
    assert leading, "no operator leads"
    return leading[-1]
