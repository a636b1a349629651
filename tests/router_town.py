"""What a registry and agents would write about themselves, written by a test."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.description import describe
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_router import Router, RouterSettings
from tests.conftest import MemoryMesh

TENANT = "demo"
READY_S = 10.0


def instance_of(name: str, subset: str, tenant: str) -> str:
    """The id of an agent's instance, which nobody else has in any tenant."""
    return f"i-{name}-{subset}" + (f"-{tenant}" if tenant != TENANT else "")


@dataclass
class Town:
    """The agents of a tenant, and of others where they are told so."""

    bus: Bus

    async def join(self, told: dict[str, Any], *, live: bool = True, in_flight: int = 0) -> None:
        """An agent registers, and an instance of it is there unless `live` is false."""
        thing = thing_from({"tenant": TENANT, **told})
        if live:
            served = Served(
                name=thing.name, subset=thing.subset, concurrency=4, in_flight=in_flight
            )
            instance = instance_of(thing.name, thing.subset, thing.tenant)
            lease = Lease(instance=instance, things=(served,))
            await self.bus.transport.key_value(LEASES).put(
                subjects.key(thing.tenant, lease.instance), lease.model_dump_json().encode()
            )
        await self.bus.transport.key_value(REGISTRY).put(
            subjects.key(thing.tenant, thing.name, thing.subset),
            json.dumps(describe(thing)).encode(),
        )

    async def die(self, name: str, subset: str = "stable", tenant: str = TENANT) -> None:
        """Its instance is gone."""
        await self.bus.transport.key_value(LEASES).delete(
            subjects.key(tenant, instance_of(name, subset, tenant))
        )

    async def leave(self, name: str, subset: str = "stable", tenant: str = TENANT) -> None:
        """It is registered no longer."""
        await self.bus.transport.key_value(REGISTRY).delete(subjects.key(tenant, name, subset))


@asynccontextmanager
async def routing(
    mesh: MemoryMesh, agents: Sequence[dict[str, Any]], **settings: Any
) -> AsyncGenerator[Bus]:
    """A router and its agents; gives the bus of somebody who asks."""
    async with mesh.bus(tenant=TENANT) as asker, mesh.bus(tenant=TENANT) as bus:
        town = Town(asker)
        for one in agents:
            await town.join(one)
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            router = Router(RouterSettings(**settings))
            running = tasks.create_task(router.run(bus, ready.set))
            async with asyncio.timeout(READY_S):
                await ready.wait()
            yield asker
            running.cancel()
