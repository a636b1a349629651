"""Replicas of the registry are killed at random while many register, change and leave."""

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmos_mesh.errors import AgentNotFound, Conflict, MeshError
from lmos_mesh.events import THING_DELETED, kept
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_THING,
    REGISTER,
    Deregister,
    FindThings,
    GetThing,
    Register,
)
from tests.conftest import StartServer
from tests.integration.processes import Deployment, Process, until

CLIENTS = 10
OPERATIONS = 2_000
NAMES_EACH = 20
SEED = 20_26
SOON_S = 15.0


def record(name: str, step: int) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"step {step}",
        "capabilities": [{"id": "act", "version": "1.0.0"}],
    }


@dataclass
class Client:
    """Registers, changes and removes Things of its own, and keeps account of them."""

    mesh: Mesh
    number: int
    held: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """(step, revision) of each Thing that is there."""
    done: int = 0
    unclear: int = 0

    async def run(self, operations: int) -> None:
        chance = random.Random(SEED + self.number)
        for step in range(operations):
            name = f"t{self.number}-{chance.randrange(NAMES_EACH)}"
            if name in self.held and chance.random() < 0.4:
                await self.remove(name)
            else:
                await self.register(name, step)
            self.done += 1

    async def register(self, name: str, step: int) -> None:
        """Until it is acknowledged; over the revision that is known, or none."""
        while True:
            before = self.held[name][1] if name in self.held else 0
            request = Register(thing=record(name, step), revision=before)
            try:
                registered = await self.mesh.bus.call(REGISTER, request, timeout_s=1.0)
            except MeshError:
                # Whoever was asked may have been killed before, or after it was done.
                self.unclear += 1
                if await self.is_at(name, step):
                    return
                continue
            self.held[name] = (step, registered.revision)
            return

    async def remove(self, name: str) -> None:
        """Until it is acknowledged, or found to be done."""
        while True:
            request = Deregister(name=name, revision=self.held[name][1])
            try:
                removed = await self.mesh.bus.call(DEREGISTER, request, timeout_s=1.0)
                assert removed.gone
            except AgentNotFound:
                assert self.unclear
            except Conflict:
                raise AssertionError(f"{name}: somebody else has changed it") from None
            except MeshError:
                self.unclear += 1
                continue
            del self.held[name]
            return

    async def is_at(self, name: str, step: int) -> bool:
        """Whether a registration that nobody acknowledged was done all the same."""
        while True:
            try:
                found = await self.mesh.bus.call(GET_THING, GetThing(name=name), timeout_s=1.0)
            except AgentNotFound:
                return False
            except MeshError:
                await asyncio.sleep(0.02)
                continue
            if found.summary == f"step {step}":
                self.held[name] = (step, found.revision)
                return True
            return False


class Killer:
    """Kills replicas at random, and starts others in their places."""

    def __init__(self, deployment: Deployment, replicas: list[Process]) -> None:
        self._deployment = deployment
        self._chance = random.Random(SEED)
        self.replicas = replicas
        self.killed = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.2, 1.2))
            victim = self._chance.randrange(len(self.replicas))
            others = [one for at, one in enumerate(self.replicas) if at != victim]
            if not any(one.entries("is ready") for one in others):
                continue  # on a busy machine they would start no faster than they are killed
            self.replicas[victim].kill()
            self.killed += 1
            self.replicas[victim] = self._deployment.start("registry")


async def everything(mesh: Mesh) -> dict[str, str]:
    found: dict[str, str] = {}
    offset: int | None = 0
    while offset is not None:
        wanted = FindThings(live=None, sort="name", offset=offset)
        page = await mesh.bus.call(FIND_THINGS, wanted, nobody_s=SOON_S)
        found |= {one.name: one.summary for one in page.things}
        offset = page.next
    return found


async def test_nothing_acknowledged_is_lost_and_no_ghost_remains(
    start_nats: StartServer, tmp_path: Path, tenant: str
) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        killer = Killer(deployment, deployment.services("registry", "registry", "registry"))
        async with deployment.client(tenant) as mesh:
            clients = [Client(mesh, number) for number in range(CLIENTS)]
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                killing = tasks.create_task(killer.run())
                async with asyncio.TaskGroup() as working:
                    for one in clients:
                        working.create_task(one.run(OPERATIONS // CLIENTS))
                killing.cancel()
            took_s = time.perf_counter() - began
            ledger = {
                name: f"step {step}" for one in clients for name, (step, _) in one.held.items()
            }
            unclear = sum(one.unclear for one in clients)
            print(f"{took_s:.1f} s, {killer.killed} killed, {unclear} unclear, {len(ledger)} left")
            assert sum(one.done for one in clients) == OPERATIONS
            assert killer.killed >= 3

            # Those that have lived through it know the same.
            for one in killer.replicas:
                await asyncio.to_thread(one.wait_ready)
            for _ in range(12):
                assert await everything(mesh) == ledger
            # What was told adds up to it.
            await until(adds_up, mesh, tenant, set(ledger), within_s=SOON_S)
            # A fresh one knows it from the store alone.
            for one in killer.replicas:
                one.kill()
            await asyncio.to_thread(deployment.service, "registry")
            assert await everything(mesh) == ledger
            await asyncio.sleep(2.0)
            assert await adds_up(mesh, tenant, set(ledger))
    finally:
        deployment.stop()


async def adds_up(mesh: Mesh, tenant: str, expected: set[str]) -> bool:
    """Whether the events, one after the other, end with what is there."""
    there: set[str] = set()
    seen: set[str] = set()
    async with aclosing(kept(mesh.bus, tenant)) as events:
        async for _, event in events:
            assert event.id not in seen, f"{event.id} was told twice"
            seen.add(event.id)
            name = event.data["name"]
            if event.type == THING_DELETED:
                assert name in there, f"{name} is gone without having been there"
                there.discard(name)
            else:
                there.add(name)
    return there == expected
