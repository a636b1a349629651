"""How the registry bears many agents: finding them, keeping them, and their coming all at once.

python benchmarks/registry.py         # `--quick` to see that it runs, `--large` for 30,000 as well

Work: made-up agents of five capabilities with one example each (`fleet.py`) register through the
bus. What is found by meaning is measured beside the embedding: a stand-in for the router answers
at once. How long agents take until they are known by meaning is measured with a real router.

Agents have leases, by a hundred a process; those of the standing fleet are written once and not
renewed.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from display import plot, save, show_aims, show_conditions, table
from figures import Aim, Spread, spread
from fleet import agent, agents
from harness import Settings, Started, conditions, give_up, our_command, process, server
from our_mesh import embedded_nats, service_command
from peers.closed_loop import percentile
from usage import pss_mb

from lmos_mesh import Mesh, subjects
from lmos_mesh.errors import MeshError
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.messages import (
    DECIDE,
    DEREGISTER,
    EMBED,
    FIND_THINGS,
    REGISTER,
    ROUTER_STATUS,
    Decide,
    Deregister,
    Embed,
    FindThings,
    Register,
    RouterStatus,
    ThingsFound,
)

SIZES = (1_000, 3_000, 10_000)
LARGE = 30_000
PAPER = 100_000
JOINING = 1_000
AT_ONCE = 64
A_PROCESS = 100
SETTLED_S = 5.0
GIVE_UP_S = 1_800.0
PACKAGES = ("lmos-mesh", "nats-py", "uvloop", "numpy")

CAPABILITY = "find by capability"
RANGE = "find by capability and version"
NAME = "find by name"
WORDS = "find by words"
MEANING = "find by meaning, beside the embedding"
JSONPATH = "find by JSONPath"
VISIBLE = "registered to seen by every replica"
REGISTERED = "register"

Record = Mapping[str, Any]


@dataclass
class Grown:
    """What was measured with a fleet of one size."""

    agents: int
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    snapshot_s: list[float] = field(default_factory=list[float])
    registrations_s: float = 0.0
    memory_mb: float = 0.0
    memory_with_words_mb: float = 0.0
    memory_with_vectors_mb: float = 0.0
    embedded_s: float = 0.0

    def p50_ms(self, what: str) -> Spread:
        """The median in milliseconds, with the 5th and the 95th percentile."""
        ordered = sorted(value * 1e3 for value in self.times.get(what, []))
        if not ordered:
            return spread([])
        low, median, high = (percentile(ordered, share) for share in (0.05, 0.5, 0.95))
        return Spread(median=median, low=low, high=high)


# -- doing --


async def until(holds: Callable[[], Awaitable[bool]], what: str, pause_s: float = 0.02) -> float:
    """Seconds until something holds; gives up if it never does."""
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S:
        try:
            if await holds():
                return time.monotonic() - began
        except MeshError:
            pass  # whoever is asked is still busy, or on its way
        await asyncio.sleep(pause_s)
    return give_up(f"{what} did not come true within {GIVE_UP_S:g} s")


async def in_parallel(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Do everything, `AT_ONCE` at a time."""
    left = iter(work)

    async def do() -> None:
        for one in left:
            await one()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(do())


async def register(mesh: Mesh, records: Iterable[Record], times: list[float]) -> None:
    """Register them as fast as the registry takes them."""

    async def one(record: Record) -> None:
        began = time.perf_counter()
        await mesh.bus.call(REGISTER, Register(thing=dict(record)), timeout_s=60, nobody_s=10)
        times.append(time.perf_counter() - began)

    await in_parallel(lambda record=record: one(record) for record in records)


def lease_of(instance: str, records: Sequence[Record]) -> Lease:
    """What a process says that serves these agents."""
    things = tuple(
        Served(
            name=one["name"],
            subset=one.get("subset", "stable"),
            version=one["version"],
            concurrency=8,
        )
        for one in records
    )
    return Lease(instance=instance, things=things, host="bench", pid=1)


async def enliven(mesh: Mesh, records: Sequence[Record], prefix: str, a_process: int) -> None:
    """Write the leases of processes that serve them."""
    store = mesh.bus.transport.key_value(LEASES)

    async def one(at: int) -> None:
        instance = f"{prefix}-{at}"
        lease = lease_of(instance, records[at : at + a_process])
        await store.put(subjects.key(mesh.bus.tenant, instance), lease.model_dump_json().encode())

    await in_parallel(lambda at=at: one(at) for at in range(0, len(records), a_process))


async def ask(mesh: Mesh, questions: Iterable[FindThings]) -> list[float]:
    """Ask one after the other, and say how long each took; the first few are not counted."""
    times: list[float] = []
    for wanted in questions:
        began = time.perf_counter()
        await mesh.bus.call(FIND_THINGS, wanted, timeout_s=30)
        times.append(time.perf_counter() - began)
    return times[min(10, len(times) // 2) :]


async def found(mesh: Mesh, **wanted: Any) -> ThingsFound:
    """What the registry finds."""
    return await mesh.bus.call(FIND_THINGS, FindThings(**wanted), timeout_s=30)


async def answering(mesh: Mesh, started: Iterable[Started]) -> None:
    """Wait until the registry answers."""

    async def answers() -> bool:
        for one in started:
            if one.popen.poll() is not None:
                give_up(f"a process has ended: {one.complaints()}")
        await found(mesh, limit=1)
        return True

    await until(answers, "that the registry answers")


# -- growing --


async def grow(url: str, registry: Started, size: int, asks: int) -> Grown:
    """Let a fleet of one size register, and ask for parts of it."""
    grown = Grown(agents=size)
    records = list(agents(size))
    some = [records[(at * 7919) % size] for at in range(asks + 10)]
    async with connected(url) as mesh:
        await answering(mesh, [registry])
        began = time.perf_counter()
        await register(mesh, records, grown.times.setdefault(REGISTERED, []))
        grown.registrations_s = size / (time.perf_counter() - began)
        await enliven(mesh, records, "standing", A_PROCESS)

        async def all_live() -> bool:
            return (await found(mesh, limit=1)).total == size

        await until(all_live, "that all agents are live")
        # A fleet that stands is asked: what came last is packed and collected by then.
        await asyncio.sleep(SETTLED_S)
        pids = {"registry": registry.popen.pid}
        grown.memory_mb = pss_mb(pids)["registry"]

        def capability(record: Record) -> Record:
            return record["capabilities"][0]

        questions: dict[str, list[FindThings]] = {
            CAPABILITY: [FindThings(capability=capability(one)["id"]) for one in some],
            RANGE: [FindThings(capability=capability(one)["id"], version=">=1.2") for one in some],
            NAME: [FindThings(name=one["name"]) for one in some],
            WORDS: [
                FindThings(text=capability(one)["examples"][0], limit=10)
                for one in some[: max(20, asks // 4)]
            ],
            JSONPATH: [FindThings(jsonpath=f"@.title == '{one['name']}'") for one in some[:12]],
        }
        for what, wanted in questions.items():
            grown.times[what] = await ask(mesh, wanted)
        grown.memory_with_words_mb = pss_mb(pids)["registry"]
        for _ in range(3):
            grown.snapshot_s.append(await fresh_replica(url, size))
        grown.times[VISIBLE] = await visible(mesh, url, size, max(10, asks // 5))
        with server("stand-in router", our_command("stand_in_router", LMOS_NATS_URL=url)):
            text = capability(records[0])["examples"][0]

            async def embedded() -> bool:
                told = await found(mesh, text=text, limit=1)
                return told.matched == "meaning" and not told.notes

            grown.embedded_s = await until(embedded, "that all is embedded", 0.25)
            grown.times[MEANING] = await beside_embedding(mesh, questions[WORDS])
            grown.memory_with_vectors_mb = pss_mb(pids)["registry"]
    return grown


async def beside_embedding(mesh: Mesh, questions: Sequence[FindThings]) -> list[float]:
    """What finding by meaning takes, less what embedding the question takes."""
    times: list[float] = []
    for wanted in questions:
        request = Embed(texts=(str(wanted.text),))
        await mesh.bus.call(EMBED, request)  # from now on its vector is remembered there
        began = time.perf_counter()
        await mesh.bus.call(EMBED, request)
        embedding = time.perf_counter() - began
        began = time.perf_counter()
        await mesh.bus.call(FIND_THINGS, wanted, timeout_s=30)
        times.append(max(0.0, time.perf_counter() - began - embedding))
    return times[5:]


async def fresh_replica(url: str, size: int) -> float:
    """Seconds that a process takes to read all there is."""
    async with replica(url) as (_, said):
        if said["things"] < size:
            give_up(f"a replica has read {said['things']} of {size} agents")
        return said["took_s"]


@asynccontextmanager
async def replica(
    url: str,
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A process that follows the registry, and the first that it says."""
    command = our_command("replica", LMOS_NATS_URL=url)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, limit=1 << 22
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            give_up("a replica did not start; see above")
        yield process, json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def visible(mesh: Mesh, url: str, size: int, count: int) -> list[float]:
    """Seconds from asking to register an agent until the last of the replicas sees it."""
    times: list[float] = []
    async with replica(url) as one, replica(url) as two, replica(url) as three:
        replicas = [process for process, _ in (one, two, three)]
        for record in agents(count, first=10_000_000):
            began = time.monotonic()
            await mesh.bus.call(REGISTER, Register(thing=record), timeout_s=30)
            seen = [await first_sight(process, record["name"]) for process in replicas]
            times.append(max(seen) - began)
            await asyncio.sleep(0.005)
    for record in agents(count, first=10_000_000):
        await mesh.bus.call(DEREGISTER, Deregister(name=record["name"]), timeout_s=30)
    return times


async def first_sight(process: asyncio.subprocess.Process, name: str) -> float:
    """When a replica has seen a Thing of that name."""
    assert process.stdout is not None
    async for line in process.stdout:
        said = json.loads(line)
        if name in said["names"]:
            return said["at"]
    return give_up("a replica has ended; see above")


# -- joining --


@dataclass
class Joined:
    """Seconds from the first registration of many at once."""

    agents: int
    findable: float = 0.0
    routable: float = 0.0
    by_meaning: float = 0.0


async def join(mesh: Mesh, records: Sequence[Record], prefix: str) -> Joined:
    """Let all of them join at once, and wait until everybody knows all of them."""
    joined = Joined(agents=len(records))
    began = time.monotonic()

    async def findable() -> bool:
        return (await found(mesh, subset="joining", limit=1)).total == len(records)

    async def routable() -> bool:
        state = await mesh.bus.call(ROUTER_STATUS, RouterStatus(), timeout_s=30)
        if state.agents < len(records):
            return False
        last = records[-1]
        asked = Decide(message=last["capabilities"][0]["examples"][0], subset="joining", limit=100)
        decision = await mesh.bus.call(DECIDE, asked, timeout_s=30)
        return last["name"] in {one.agent for one in decision.candidates}

    async def by_meaning() -> bool:
        told = await found(mesh, text="someone who can refund", subset="joining", limit=1)
        return told.matched == "meaning" and not told.notes

    async def note(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        await until(holds, f"that agents that joined are {what}", 0.05)
        setattr(joined, what, time.monotonic() - began)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(register(mesh, records, []))
        tasks.create_task(enliven(mesh, records, prefix, 1))
        tasks.create_task(note("findable", findable))
        tasks.create_task(note("routable", routable))
        tasks.create_task(note("by_meaning", by_meaning))
    return joined


async def leave(mesh: Mesh, records: Sequence[Record], prefix: str) -> None:
    """Let all of them leave again."""
    store = mesh.bus.transport.key_value(LEASES)

    async def one(at: int) -> None:
        await store.delete(subjects.key(mesh.bus.tenant, f"{prefix}-{at}"))
        gone = Deregister(name=records[at]["name"], subset="joining")
        await mesh.bus.call(DEREGISTER, gone, timeout_s=60)

    await in_parallel(lambda at=at: one(at) for at in range(len(records)))

    async def all_gone() -> bool:
        state = await mesh.bus.call(ROUTER_STATUS, RouterStatus(), timeout_s=30)
        return state.agents == 0 and (await found(mesh, live=None, limit=1)).total == 0

    await until(all_gone, "that all have left")


async def join_twice(url: str, started: Sequence[Started], count: int) -> dict[str, Joined]:
    """Agents that nobody has met join at once; and, when they have left, once more."""
    records = [{**agent(number), "subset": "joining"} for number in range(count)]
    async with connected(url) as mesh:
        await answering(mesh, started)

        async def routing() -> bool:
            await mesh.bus.call(ROUTER_STATUS, RouterStatus())
            return True

        await until(routing, "that the router answers")
        uncached = await join(mesh, records, "first")
        await leave(mesh, records, "first")
        return {"uncached": uncached, "cached": await join(mesh, records, "again")}


# -- showing --


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Mesh]:
    """A connection of this process."""
    async with Mesh.connect(url, name="bench-registry", timeout_s=30) as mesh:
        yield mesh


def on_paper(points: Mapping[int, float], at: int) -> float:
    """Where a straight line through what was measured leads to."""
    count = len(points)
    if count < 2:
        return float("nan")
    middle_x, middle_y = sum(points) / count, sum(points.values()) / count
    spread_x = sum((x - middle_x) ** 2 for x in points)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in points.items()) / spread_x
    return middle_y + slope * (at - middle_x)


def figures_of(one: Grown) -> dict[str, float]:
    """What is shown of a fleet of one size, by name and unit."""
    asked = (CAPABILITY, RANGE, NAME, WORDS, MEANING, JSONPATH, VISIBLE)
    return {
        **{f"{what}, p50 ms": one.p50_ms(what).median for what in asked},
        "snapshot into a fresh replica, best s": min(one.snapshot_s),
        "memory of a registry, MB": one.memory_mb,
        "... with an index of words, MB": one.memory_with_words_mb,
        "... and vectors, MB": one.memory_with_vectors_mb,
        "registrations a second": one.registrations_s,
        "all vectors taken in, s": one.embedded_s,
    }


def show_growth(measured: Sequence[Grown]) -> None:
    """Print how everything grows, and what that means for a fleet that was not measured."""
    columns = {one.agents: figures_of(one) for one in measured}
    rows: list[list[object]] = [
        [
            name,
            *(figures[name] for figures in columns.values()),
            on_paper({size: figures[name] for size, figures in columns.items()}, PAPER)
            if name != "registrations a second"
            else "-",
        ]
        for name in figures_of(measured[0])
    ]
    heads = ["agents", *(f"{size:,}" for size in columns), f"{PAPER:,} on paper"]
    print("\n" + table(heads, rows))
    print("on paper: a straight line through what was measured")


def show_joining(joined: Mapping[str, Joined]) -> None:
    """Print how long joining took."""
    rows = [
        [f"{one.agents:,} at once, embeddings {how}", one.findable, one.routable, one.by_meaning]
        for how, one in joined.items()
    ]
    print("\n" + table(("s until all are", "findable", "routable", "found by meaning"), rows))


def aims_of(largest: Grown, joined: Mapping[str, Joined]) -> list[Aim]:
    """What a registry of ten thousand agents should do."""

    def only(value: float) -> Spread:
        return spread([value])

    said = f"{largest.agents:,} agents"
    cached, uncached = joined["cached"], joined["uncached"]
    at_once = f"{cached.agents:,} at once"
    return [
        Aim(
            said=f"{said}: {CAPABILITY}, p50",
            measured=largest.p50_ms(CAPABILITY),
            limit=2,
            unit="ms",
        ),
        Aim(said=f"{said}: {MEANING}, p50", measured=largest.p50_ms(MEANING), limit=8, unit="ms"),
        Aim(said=f"{said}: snapshot", measured=spread(largest.snapshot_s), limit=3, unit="s"),
        Aim(
            said=f"{said}: memory without vectors",
            measured=only(largest.memory_with_words_mb),
            limit=300,
            unit="MB",
        ),
        Aim(said=f"{said}: {VISIBLE}, p50", measured=largest.p50_ms(VISIBLE), limit=20, unit="ms"),
        Aim(
            said=f"{at_once}, cached: findable", measured=only(cached.findable), limit=10, unit="s"
        ),
        Aim(
            said=f"{at_once}, cached: routable", measured=only(cached.routable), limit=10, unit="s"
        ),
        Aim(
            said=f"{at_once}, uncached: findable",
            measured=only(uncached.findable),
            limit=10,
            unit="s",
        ),
    ]


def draw(measured: Sequence[Grown]) -> None:
    """Plot the growth."""
    asked = (CAPABILITY, WORDS, MEANING, VISIBLE)
    times = {what: {f"{one.agents:,}": one.p50_ms(what) for one in measured} for what in asked}
    plot("registry", "By number of agents, p50 (5th to 95th percentile)", "ms", times, log=True)
    kept = {
        "memory without vectors, MB": {
            f"{one.agents:,}": spread([one.memory_with_words_mb]) for one in measured
        },
        "memory with vectors, MB": {
            f"{one.agents:,}": spread([one.memory_with_vectors_mb]) for one in measured
        },
        "snapshot, 10 ms": {
            f"{one.agents:,}": spread(100 * s for s in one.snapshot_s) for one in measured
        },
    }
    plot("registry-growth", "By number of agents", "MB and 10 ms", kept, log=True)


def main() -> None:
    """Measure, print, save and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; compares nothing")
    parser.add_argument("--large", action="store_true", help=f"{LARGE:,} agents as well")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"default {SIZES}")
    parser.add_argument("--joining", type=int, help=f"at once, default {JOINING}")
    parser.add_argument("--asks", type=int, default=400, help="of each kind, default 400")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    sizes = options.sizes or ((100, 300) if options.quick else SIZES)
    sizes = (*sizes, LARGE) if options.large else tuple(sizes)
    asks = 40 if options.quick else options.asks
    joining = options.joining or (50 if options.quick else JOINING)
    settings = Settings(rounds=1, quick=options.quick, plots=not options.no_plots)
    conditions_found = conditions(settings, PACKAGES)
    show_conditions(conditions_found)

    measured: list[Grown] = []
    for size in sizes:
        if sys.stdout.isatty():
            print(f"{size:,} agents", end="\r", flush=True)
        with (
            embedded_nats() as (url, _),
            process("registry", service_command("registry", url)) as registry,
        ):
            measured.append(uvloop.run(grow(url, registry, size, asks)))
    show_growth(measured)
    with ExitStack() as stack:
        url, _ = stack.enter_context(embedded_nats())
        started = [
            stack.enter_context(process(name, service_command(name, url)))
            for name in ("registry", "registry", "router")
        ]
        joined = uvloop.run(join_twice(url, started, joining))
    show_joining(joined)
    at_aim = next((one for one in measured if one.agents == 10_000), measured[-1])
    aims = show_aims(aims_of(at_aim, joined), "p50, and the 5th and 95th percentiles in brackets")
    save(
        "registry",
        {
            "conditions": conditions_found,
            "growth": {one.agents: {**figures_of(one), "times_s": one.times} for one in measured},
            "joining": {how: vars(one) for how, one in joined.items()},
            "aims": aims,
        },
    )
    if settings.plots:
        draw(measured)


if __name__ == "__main__":
    main()
