"""How the operator bears a large mesh: everything looked at, and the change of one agent.

python benchmarks/reconcile.py         # `--quick` to see that it runs

Work: channels of twenty tenants, each of three capabilities with a range; agents of three
capabilities each, a tenth of them shared by all tenants. "Crowded": everybody requires and offers
the same three, so that every change may touch every channel of the tenant.

What is decided is measured by itself, in CPU time: in memory, without a bus. Then a real operator
on a plain nats-server: until every Routing and status is written, and from an agent's lease to the
Routing that names it, heard on another connection.
"""

import argparse
import asyncio
import gc
import json
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from display import save, show_aims, show_conditions, table
from figures import Aim, spread
from harness import Settings, conditions, nats_server

from lmos_mesh import subjects
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.description import describe
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.resource_index import ResourceIndex, ResourceKey, key_of, value_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.things import Capability, Thing, ThingKey
from lmos_mesh_operator import Operator, OperatorSettings
from lmos_mesh_operator.planning import Planner
from lmos_mesh_operator.reconcile import DropRouting, PutRouting

SIZE = 1_000
QUICK = 100
CHANGES = 100
TENANTS = 20
NOW = "2026-01-01T00:00:00.000Z"
GIVE_UP_S = 120.0


def channels(count: int, *, crowded: bool) -> list[Channel]:
    kinds = 3 if crowded else max(3, count // 4)
    return [
        Channel.model_validate(
            {
                "metadata": {
                    "name": f"c{number}",
                    "labels": {"tenant": f"t{number % TENANTS}", "channel": f"c{number}"},
                },
                "spec": {
                    "requiredCapabilities": [
                        # What agents of the same tenant offer.
                        {"id": f"k{(other % count) // 10 % kinds}", "version": "^1.0"}
                        for other in (number, number + TENANTS, number + 2 * TENANTS)
                    ]
                },
            }
        )
        for number in range(count)
    ]


def agents(count: int, *, crowded: bool) -> list[Thing]:
    kinds = 3 if crowded else max(3, count // 4)
    return [agent(number, kinds, version=f"1.{number % 50}.0") for number in range(count)]


def agent(number: int, kinds: int, *, version: str) -> Thing:
    shared = number % 10 == 0
    return Thing(
        name=f"a{number}",
        tenant="shared" if shared else f"t{number % TENANTS}",
        capabilities=tuple(
            Capability(id=f"k{(number // 10 + step) % kinds}", version=version) for step in range(3)
        ),
    )


class InMemory:
    """What is decided, without a bus: a store that takes every write."""

    def __init__(self, count: int, *, crowded: bool) -> None:
        self.index = ResourceIndex()
        self.planner = Planner(self.index)
        self.things = agents(count, crowded=crowded)
        self.kinds = 3 if crowded else max(3, count // 4)
        self.revision = 0
        for one in channels(count, crowded=crowded):
            self.put(one)
        for one in self.things:
            self.planner.thing_changed(_key(one), one, 1)

    def put(self, resource: Any) -> set[ResourceKey]:
        self.revision += 1
        self.index.apply(key_of(resource).token, value_of(resource), self.revision)
        return self.planner.resource_changed(key_of(resource))

    def settle(self, due: set[ResourceKey]) -> float:
        """CPU seconds of deciding until nothing is left to do; the writes are not counted."""
        spent_s = 0.0
        while True:
            began = time.thread_time()
            actions = self.planner.plan(due, now=NOW)
            spent_s += time.thread_time() - began
            if not actions:
                return spent_s
            due = set()
            for action in actions:
                if isinstance(action, DropRouting):
                    self.index.apply(action.key.token, None, self.revision + 1)
                    self.revision += 1
                    due |= self.planner.resource_changed(action.key)
                else:
                    due |= self.put(
                        action.routing if isinstance(action, PutRouting) else action.resource
                    )

    def change_one(self, number: int) -> tuple[float, int]:
        """An agent comes in a higher version: CPU seconds of deciding, and what is looked at."""
        one = agent(number, self.kinds, version=f"1.{60 + number}.0")
        began = time.thread_time()
        due = self.planner.thing_changed(_key(one), one, 1)
        spent_s = time.thread_time() - began
        return spent_s + self.settle(due), len(due)


def _key(one: Thing) -> ThingKey:
    return ThingKey(one.tenant, one.name, one.subset)


def decide(count: int, changes: int, *, crowded: bool) -> dict[str, Any]:
    memory = InMemory(count, crowded=crowded)
    first_s = memory.settle(memory.planner.everything())
    gc.freeze()  # as the operator does
    began = time.thread_time()
    assert not memory.planner.plan(memory.planner.everything(), now=NOW)
    again_s = time.thread_time() - began
    chance = random.Random(1)
    changed = [memory.change_one(chance.randrange(count)) for _ in range(changes)]
    resolved = sum(
        one.status is not None and one.status.resolve_status == "RESOLVED"
        for one in memory.index.of_kind(Channel)
    )
    return {
        "first_s": first_s,
        "again_s": again_s,
        "change_s": sorted(spent for spent, _ in changed),
        "touched": sorted(touched for _, touched in changed),
        "resolved": resolved,
    }


async def write(url: str, count: int, changes: int) -> dict[str, Any]:
    """A real operator: everything written once, then one agent after the other changes."""
    async with _bus(url, "writer") as writer, _bus(url, "reader") as reader:
        await _fill(writer, count)
        applied = Applied(reader)
        await applied.follow()
        async with _bus(url, "operator") as bus, asyncio.TaskGroup() as tasks:
            operator, ready = Operator(OperatorSettings()), asyncio.Event()
            began = time.perf_counter()
            running = tasks.create_task(operator.run(bus, ready.set))
            await ready.wait()
            read_s, cpu_began = time.perf_counter() - began, time.process_time()
            await _until(lambda: _all_resolved(applied, count))
            all_s = time.perf_counter() - began
            cpu_s = time.process_time() - cpu_began
            joined = [await _join_one(writer, applied, number) for number in range(changes)]
            await operator.leave()
            running.cancel()
    return {"read_s": read_s, "all_s": all_s, "cpu_s": cpu_s, "joined_s": sorted(joined)}


@asynccontextmanager
async def _bus(url: str, name: str) -> AsyncGenerator[Bus]:
    async with (
        NatsTransport.connect(
            url,
            name=subjects.connection_name("t0", name),
            inbox=subjects.inbox("t0", name),
        ) as transport,
        Bus(transport, tenant="t0", instance=name) as bus,
    ):
        yield bus


async def _fill(bus: Bus, count: int) -> None:
    registry, leases = bus.transport.key_value(REGISTRY), bus.transport.key_value(LEASES)
    store, room = ResourceStore(bus), asyncio.Semaphore(64)
    things = agents(count, crowded=False)

    async def put(put_one: Any) -> None:
        async with room:
            await put_one()

    async with asyncio.TaskGroup() as tasks:
        for one in things:
            value = json.dumps(describe(one)).encode()
            tasks.create_task(put(lambda one=one, value=value: registry.put(one.key, value)))
        for one in channels(count, crowded=False):
            tasks.create_task(put(lambda one=one: store.put(one, expected=0)))
        for tenant in {one.tenant for one in things}:
            served = tuple(
                Served(name=one.name, subset=one.subset) for one in things if one.tenant == tenant
            )
            lease = Lease(instance=f"i-{tenant}", things=served)
            key, value = subjects.key(tenant, lease.instance), lease.model_dump_json().encode()
            tasks.create_task(put(lambda key=key, value=value: leases.put(key, value)))


def _all_resolved(applied: Applied, count: int) -> bool:
    found = applied.of_kind(Channel)
    return len(found) == count and all(
        one.status is not None and one.status.resolve_status == "RESOLVED" for one in found
    )


async def _join_one(bus: Bus, applied: Applied, number: int) -> float:
    """Seconds from an agent's lease to the Routing of the channel that it takes over."""
    name = f"new-{number}"
    offered = (Capability(id="k0", version=f"1.{1000 + number}.0"),)
    one = Thing(name=name, tenant="t0", capabilities=offered)
    await bus.transport.key_value(REGISTRY).put(one.key, json.dumps(describe(one)).encode())
    lease = Lease(instance=name, things=(Served(name=name, subset="stable"),))
    began = time.perf_counter()
    await bus.transport.key_value(LEASES).put(
        subjects.key("t0", name), lease.model_dump_json().encode()
    )

    def wired() -> bool:
        routing = applied.get(ChannelRouting, "default", "c0")
        return routing is not None and any(
            group.name == name for group in routing.spec.capability_groups
        )

    await _until(wired)
    return time.perf_counter() - began


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while not true():  # noqa: ASYNC110 - what is waited for is another process's doing
            await asyncio.sleep(0.001)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; compares nothing")
    options = parser.parse_args()
    count, changes = (QUICK, 20) if options.quick else (SIZE, CHANGES)
    settings = Settings(rounds=1, quick=options.quick)
    found = conditions(settings, ("lmos-mesh", "nats-py", "uvloop"))
    show_conditions(found)

    decided = {
        "spread out": decide(count, changes, crowded=False),
        "crowded": decide(count, 3, crowded=True),
    }
    with nats_server(jetstream=True) as running:
        written = uvloop.run(write(running.said["url"], count, min(changes, 50)))

    print(f"{count:,} channels, {count:,} agents; decided, in ms of CPU")
    heads = ["", "first", "again", "one change p50", "p99", "most channels touched", "resolved"]
    rows = [
        [
            name,
            one["first_s"] * 1e3,
            one["again_s"] * 1e3,
            percentile(one["change_s"], 0.5) * 1e3,
            percentile(one["change_s"], 0.99) * 1e3,
            one["touched"][-1],
            one["resolved"],
        ]
        for name, one in decided.items()
    ]
    print(table(heads, rows))
    joined_ms = [one * 1e3 for one in written["joined_s"]]
    print(
        f"\nwith a real operator: all read after {written['read_s']:.2f} s, all written and heard "
        f"after {written['all_s']:.2f} s ({written['cpu_s']:.2f} s of CPU, two views included);\n"
        f"an agent's lease to its Routing {percentile(joined_ms, 0.5):.1f} ms p50, "
        f"{percentile(joined_ms, 0.99):.1f} ms p99"
    )
    spread_out = decided["spread out"]
    aims = show_aims(
        [
            Aim(
                said="full reconcile, decided (CPU)",
                measured=spread([spread_out["first_s"]]),
                limit=2.0,
                unit="s",
            ),
            Aim(
                said="full reconcile, written",
                measured=spread([written["all_s"] - written["read_s"]]),
                limit=2.0,
                unit="s",
            ),
            Aim(
                said="one agent's change, decided, p99 (CPU)",
                measured=spread([percentile(spread_out["change_s"], 0.99) * 1e3]),
                limit=50.0,
                unit="ms",
            ),
            Aim(
                said="one agent's change, wired, p99",
                measured=spread([percentile(joined_ms, 0.99)]),
                limit=500.0,
                unit="ms",
            ),
        ],
        "one run",
    )
    save(
        "reconcile",
        {"conditions": found, "decided": decided, "written": written, "aims": aims},
    )


if __name__ == "__main__":
    main()
