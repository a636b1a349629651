"""Who is told how an agent is to run: the cluster first, then those who run it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from lmos_mesh import audit, codec, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call, caller_headers
from lmos_mesh.directory import Directory
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import AgentNotFound, Conflict, NotFound, Unavailable
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.liveness import Served
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.messages import (
    STEER_AGENT,
    AgentSteered,
    RunAgent,
    RunFile,
    RunInstance,
    Runs,
    RunSteered,
    SteerAgent,
    SteerRun,
)
from lmos_mesh.transport import Packet
from lmos_mesh_operator.steering import Elsewhere, Steering
from lmos_mesh_operator.steering_words import by_themselves

ONE = Served(name="shop", subset="stable")


class Deployments:
    """A cluster in which one agent runs."""

    def __init__(self, runs: str) -> None:
        self._runs = runs

    async def steer(self, request: SteerAgent, call: Call) -> AgentSteered:
        """As a cluster would."""
        if request.agent != self._runs:
            raise NotFound(f"no Deployment runs {request.agent}")
        return AgentSteered(agent=request.agent, where=("Deployment",), message=call.tenant)


class Runner:
    """Somebody who runs one file; `stale` times it has been changed by somebody else."""

    def __init__(self, bus: Bus, *, instances: int, stale: int = 0) -> None:
        self.bus = bus
        self.instances = instances
        self.stale = stale

    async def begin(self) -> None:
        """Answer, and be found."""
        await self.bus.respond(subjects.runner("t", self.bus.instance), self._respond)
        await LeaseKeeper(self.bus, runs=lambda: (ONE,)).begin()

    async def _respond(self, call: Call) -> Message:
        if call.subject.endswith(".get"):
            agents = (RunAgent(name="shop"), RunAgent(name="cart", subset="canary"))
            running = tuple(RunInstance(instance=f"i-{one}") for one in range(self.instances))
            return Runs(host="h", files=(RunFile(file="/x.py", agents=agents, instances=running),))
        request = codec.decode(SteerRun, call.payload)
        if self.stale:
            self.stale -= 1
            self.instances += 1
            raise Conflict("it has changed")
        before, self.instances = self.instances, request.instances or 0
        return RunSteered(file="/x.py", before=before, instances=self.instances, done=True)


@asynccontextmanager
async def operator(
    broker: MemoryBroker, *, elsewhere: Elsewhere | None = None
) -> AsyncGenerator[Bus]:
    async with Bus(MemoryTransport(broker), tenant="t", instance="operator") as bus:
        directory = Directory(bus)
        await directory.follow()
        steering = Steering(bus, directory, elsewhere=elsewhere)
        await bus.serve("operator", [route(STEER_AGENT, steering.steer)])
        yield bus


def scale(instances: int, agent: str = "shop") -> SteerAgent:
    return SteerAgent(agent=agent, action="scale", instances=instances)


async def test_the_cluster_is_asked_first_and_then_those_who_run_the_agent() -> None:
    broker = MemoryBroker()
    async with (
        operator(broker, elsewhere=Deployments("deployed")) as bus,
        Bus(MemoryTransport(broker), tenant="t", instance="run-1") as one,
    ):
        await Runner(one, instances=1).begin()

        deployed = await bus.call(STEER_AGENT, scale(2, "deployed"))
        run = await bus.call(STEER_AGENT, scale(2))
        with pytest.raises(AgentNotFound):
            await bus.call(STEER_AGENT, scale(2, "nowhere"))

    assert (deployed.where, deployed.message) == (("Deployment",), "t")
    assert (run.instances, run.also) == (2, ("cart (canary)",))


async def test_what_was_changed_meanwhile_is_decided_anew() -> None:
    broker = MemoryBroker()
    async with (
        operator(broker) as bus,
        Bus(MemoryTransport(broker), tenant="t", instance="run-1") as one,
        Bus(MemoryTransport(broker), tenant="t", instance="run-2") as other,
    ):
        runners = [Runner(one, instances=1, stale=2), Runner(other, instances=1)]
        for runner in runners:
            await runner.begin()

        await audit.prepare(bus)
        mine = caller_headers("ann@laptop")
        steered = await bus.call(STEER_AGENT, scale(5), headers=mine)
        again = await bus.call(STEER_AGENT, scale(5), headers=mine)
        written = await bus.transport.stream(audit.AUDIT).read(subjects.audit("t", "steered"))

        runners[0].stale = 1000
        with pytest.raises(Conflict, match="change all the time"):
            await bus.call(STEER_AGENT, scale(1000 // 10))

    assert (steered.instances, again.instances) == (5, 5)
    assert steered.done
    # To be what it is already is no act.
    assert [json.loads(one.payload)["asked_by"] for one in written] == ["ann@laptop"]


async def test_nothing_is_done_while_somebody_who_runs_it_does_not_answer() -> None:
    broker = MemoryBroker()
    async with (
        operator(broker) as bus,
        Bus(MemoryTransport(broker), tenant="t", instance="run-1") as one,
        Bus(MemoryTransport(broker), tenant="t", instance="run-2") as mute,
    ):
        runner = Runner(one, instances=1)
        await runner.begin()
        await LeaseKeeper(mute, runs=lambda: (ONE,)).begin()

        with pytest.raises(Unavailable, match="does not answer"):
            await bus.call(STEER_AGENT, scale(5))

    assert runner.instances == 1


class Slow(Runner):
    """Does what it is told when it may."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus, instances=1)
        self.told = asyncio.Event()
        self.may = asyncio.Event()

    async def _respond(self, call: Call) -> Message:
        if call.subject.endswith(".steer"):
            self.told.set()
            await self.may.wait()
        return await super()._respond(call)


async def test_what_was_begun_is_written_down_also_when_the_caller_has_gone() -> None:
    broker = MemoryBroker()
    async with (
        operator(broker) as bus,
        Bus(MemoryTransport(broker), tenant="t", instance="run-1") as one,
        Bus(MemoryTransport(broker), tenant="t", instance="person") as person,
    ):
        written: asyncio.Queue[Packet] = asyncio.Queue()
        await bus.transport.subscribe(subjects.audit("t", "steered"), written.put_nowait)
        runner = Slow(one)
        await runner.begin()

        async with person.stream(STEER_AGENT, scale(2)) as frames:
            await anext(frames)
            await runner.told.wait()
        runner.may.set()

        async with asyncio.timeout(5):
            told = json.loads((await written.get()).payload)

    assert (told["agent"], told["action"], told["before"], told["after"]) == ("shop", "scale", 1, 2)


def test_an_agent_that_lives_elsewhere_is_said_to_be_nobodys() -> None:
    assert "no process of this mesh serves it" in by_themselves(())


async def test_other_tenants_are_nobodys_business() -> None:
    broker = MemoryBroker()
    async with (
        operator(broker) as bus,
        Bus(MemoryTransport(broker), tenant="t", instance="run-1") as one,
    ):
        runner = Runner(one, instances=1)
        await runner.begin()

        with pytest.raises(AgentNotFound, match="does not exist in 'other'"):
            await bus.call(STEER_AGENT, scale(5), tenant="other")

    assert runner.instances == 1
