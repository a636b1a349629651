"""A process that serves agents: subscribed, registered, alive, and gone with a goodbye."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import Field

from lmos_mesh import synadia
from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidDescription, MeshError, SettingsError
from lmos_mesh.hosted import HostedAgent
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.liveness import Served
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    REGISTER,
    Deregister,
    FindThings,
    Register,
)
from lmos_mesh.service import run_forever, run_service
from lmos_mesh.settings import Settings
from lmos_mesh.thing_faults import faults_of, label_of

logger = logging.getLogger(__name__)

_RETRY_S = 0.25
_RETRY_MOST_S = 5.0


class AgentSettings(Settings):
    """Settings of an agent process.

    Attributes:
        agent_register_timeout_s: How long one attempt to register may take.
        agent_check_s: How often to look whether the registry still describes what is served.
    """

    agent_register_timeout_s: float = Field(default=5.0, gt=0)
    agent_check_s: float = Field(default=10.0, gt=0)


def run_agents(agents: Sequence[Agent]) -> None:
    """Serve agents as this process until it is told to stop."""
    name = agents[0].name if agents else "agents"
    run_service(name or "agent", AgentSettings, lambda settings: AgentHost(agents, settings))
    if hanging := sum(len(agent.threads.running) for agent in agents):
        # A thread cannot be stopped, and the interpreter would wait for it.
        logger.warning("%d functions are still running in threads; leaving without them", hanging)
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


class AgentHost:
    """Serves agents of one process."""

    def __init__(self, agents: Sequence[Agent], settings: AgentSettings | None = None) -> None:
        self._settings = settings or AgentSettings()
        self._hosted = [HostedAgent(agent) for agent in agents]
        self._leases: list[LeaseKeeper] = []
        self._bus: Bus | None = None
        self._reconnected = asyncio.Event()
        self._own: list[asyncio.Task[Any] | None] = []

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Join the mesh and serve until cancelled."""
        self._bus = bus
        self._check(bus.tenant)
        # One for each tenant that it serves from: `shared` may be one beside its own.
        homes = sorted({hosted.home(bus) for hosted in self._hosted})
        self._leases = [
            LeaseKeeper(bus, partial(self._served, home), tenant=home) for home in homes
        ]
        begun: list[HostedAgent] = []
        try:
            for hosted in self._hosted:
                begun.append(hosted)
                await hosted.begin(bus)
            for lease in self._leases:
                await lease.begin()
            for hosted in self._hosted:
                await self._register(bus, hosted.agent)
            bus.spawn(self._heartbeats(bus), name="heartbeats")
            bus.transport.on_reconnect(self._reconnected.set)
            self._own.append(bus.spawn(self._keep_registered(bus), name="registration"))
            for hosted in self._hosted:
                self._own += hosted.begin_background()
            ready()
            await run_forever()
        finally:
            for hosted in begun:
                hosted.end()

    async def leave(self) -> None:
        """Say goodbye before draining: nothing new is routed here."""
        bus = self._bus
        if bus is None or not self._leases:
            return
        for task in self._own:
            if task is not None:
                task.cancel()
        if not bus.transport.connected:
            return  # nobody would hear it; the lease ends by itself
        for lease in self._leases:
            await lease.leave()
        for hosted in self._hosted:
            request = Deregister(
                name=hosted.agent.name, subset=hosted.agent.subset, leaving=bus.instance
            )
            with suppress(MeshError):
                await bus.call(DEREGISTER, request, tenant=hosted.home(bus), timeout_s=1.0)

    def _check(self, tenant: str) -> None:
        if not self._hosted:
            raise SettingsError("no agent to serve", hint="make one: agent = Agent('my-agent')")
        for hosted in self._hosted:
            raw = hosted.agent.thing(tenant)
            if faults := [*faults_of(raw), *hosted.agent.faults()]:
                raise InvalidDescription.of(label_of(raw), faults)
        names = [(hosted.agent.name, hosted.agent.subset) for hosted in self._hosted]
        if twice := {name for name, subset in names if names.count((name, subset)) > 1}:
            raise SettingsError(f"two agents of one process are called {', '.join(sorted(twice))}")

    def _served(self, home: str) -> tuple[Served, ...]:
        return tuple(
            Served(
                name=hosted.agent.name,
                subset=hosted.agent.subset,
                version=hosted.agent.version,
                in_flight=hosted.in_flight,
                concurrency=hosted.agent.concurrency,
            )
            for hosted in self._hosted
            if self._bus is not None and hosted.home(self._bus) == home
        )

    async def _register(self, bus: Bus, agent: Agent) -> None:
        """Register, waiting for a registry for as long as it takes.

        Raises:
            InvalidDescription: It is refused; every reason is named.
        """
        wait_s = _RETRY_S
        while True:
            try:
                await bus.call(
                    REGISTER,
                    Register(thing=agent.thing(bus.tenant)),
                    tenant=agent.home(bus.tenant),
                    timeout_s=self._settings.agent_register_timeout_s,
                )
                if wait_s > _RETRY_S:
                    # As loud as what it takes back, or that stays the last word.
                    logger.warning("%s is registered now", agent.name)
                return
            except InvalidDescription:
                raise
            except MeshError as exc:
                logger.warning("not registered yet, trying again: %s", exc)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _RETRY_MOST_S)

    async def _keep_registered(self, bus: Bus) -> None:
        """Register again where the registry has lost us, or describes a version that is gone."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.agent_check_s):
                    await self._reconnected.wait()
            lost = self._reconnected.is_set()
            self._reconnected.clear()
            for hosted in self._hosted:
                try:
                    if lost or await self._is_outdated(bus, hosted.agent):
                        await self._register(bus, hosted.agent)
                except MeshError as exc:
                    logger.warning("cannot see to the registration: %s", exc)

    async def _is_outdated(self, bus: Bus, agent: Agent) -> bool:
        """Whether our entry is gone, or describes a version that no instance serves any more."""
        wanted = FindThings(name=agent.name, subset=agent.subset, live=None)
        home = agent.home(bus.tenant)
        things = (await bus.call(FIND_THINGS, wanted, tenant=home)).things
        found = [one for one in things if one.tenant == home]
        return not found or any(
            one.version != agent.version
            and one.version not in {instance.version for instance in one.instances}
            for one in found
        )

    async def _heartbeats(self, bus: Bus) -> None:
        while True:
            for hosted in self._hosted:
                with suppress(MeshError):
                    hosted.heartbeat(bus)
            await asyncio.sleep(synadia.INTERVAL_S)
