"""Measures one made-up fleet in a process of its own; `router.py` starts one for each size.

    python benchmarks/routing_growth.py 1000 10 10 [--joins]     # agents, capabilities, examples

Searches with and without the approximate index, in the whole fleet and in a channel of ten agents;
what an index costs to make, what all of it takes in memory, and with `--joins` how long it takes
until an agent that joins, changes or leaves is decided for. Prints one JSON object.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import display
import numpy as np
from routing_data import Vectors
from routing_scale import MadeUp, Registered, Shape

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.description import describe
from lmos_mesh.directory import Directory
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_router.embedding import Embedder
from lmos_mesh_router.evidence import EvidenceMatrix, Mask, Query
from lmos_mesh_router.indexing import Index
from lmos_mesh_router.kept_lessons import KeptLessons
from lmos_mesh_router.kept_vectors import EMBEDDINGS, KeptVectors
from lmos_mesh_router.ranking import Learned, rank

MESSAGES = 600
NEAREST = 10
TEN = 10
JOINS = 12
TENANT = "bench"
WITHIN_S = 600.0


def main() -> None:
    """Measure one shape and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", type=int, nargs=3)
    parser.add_argument("--joins", action="store_true")
    parser.add_argument("--cache", type=Path, default=display.RESULTS / "router-vectors")
    options = parser.parse_args()
    vectors = Vectors(options.cache)
    shape = Shape(*options.shape)
    fleet = MadeUp(shape, vectors.all())
    found = asdict(shape) | {"vectors": shape.vectors, "classes": shape.classes}
    found |= searching(fleet)
    gc.collect()
    if options.joins:
        found |= asyncio.run(joining(fleet, Registered(fleet, vectors.encoder)))
    found["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found))


def searching(fleet: MadeUp) -> dict[str, Any]:
    """A decision beside the embedding, with the index and without; and what the index costs."""
    empty_mb = rss_mb()
    blocks = list(fleet.blocks())
    matrix = EvidenceMatrix.of(blocks, blocks[0].vectors.shape[1], blocks[0].words.shape[1])
    plain = Learned.of(matrix)
    gc.collect()
    evidence_mb = rss_mb() - empty_mb
    messages = fleet.messages(MESSAGES)
    found: dict[str, Any] = {"evidence_mb": evidence_mb}
    found |= {f"exact_{name}": ms for name, ms in timed(plain, messages).items()}
    learned = plain
    if matrix.nearest.due:
        began = time.perf_counter()
        frozen = matrix.freeze()
        found["freeze_s"] = time.perf_counter() - began
        matrix = matrix.indexed(frozen)
        learned = replace(plain, matrix=matrix)
        found |= timed(learned, messages)
        found |= {"named": frozen.named, "recall": recall(matrix, messages)}
        found["same_first"] = float(
            np.mean(
                [
                    rank(one, plain).ranked[0].key == rank(one, learned).ranked[0].key
                    for one in messages
                ]
            )
        )
        found["index_mb"] = rss_mb() - empty_mb - evidence_mb
    else:
        found |= timed(learned, messages)
    few = list(range(0, fleet.shape.agents, fleet.shape.agents // TEN))[:TEN]
    mask = matrix.mask(fleet.key(agent) for agent in few)
    found |= {
        f"channel_{name}": ms
        for name, ms in timed(learned, fleet.messages(MESSAGES, among=few), mask).items()
    }
    changed = [fleet.block(0, version=1), *blocks[1:]]
    made = time.perf_counter()
    swapped = learned.changed_to(
        EvidenceMatrix.of(changed, matrix.widths[0], matrix.widths[1], frozen=matrix.nearest.frozen)
    )
    found["rebuild_ms"] = (time.perf_counter() - made) * 1e3
    assert len(swapped.matrix) == len(matrix)
    return found


def timed(learned: Learned, messages: list[Query], eligible: Mask | None = None) -> dict[str, Any]:
    """Milliseconds of a decision."""
    for one in messages[:100]:
        rank(one, learned, eligible)
    times: list[float] = []
    alone: list[float] = []
    for one in messages:
        waited = waited_ns()
        began = time.perf_counter()
        rank(one, learned, eligible)
        times.append((time.perf_counter() - began) * 1e3)
        if waited_ns() == waited:
            alone.append(times[-1])
    p50, p99 = np.percentile(times, (50, 99)).tolist()
    clean = np.percentile(alone or times, (50, 99)).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "clean_p50_ms": clean[0], "clean_p99_ms": clean[1]}


def waited_ns() -> int:
    """How long this thread has waited for a core so far; constant where nobody says."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except OSError:
        return 0


def recall(matrix: EvidenceMatrix, messages: list[Query]) -> float:
    """The share of the ten nearest capabilities that the index names."""
    shares: list[float] = []
    for one in messages:
        truth = np.argpartition(-(matrix.means @ one.vector), NEAREST - 1)[:NEAREST]
        named = matrix.nearest.worth(one.vector, None, len(matrix.classes))
        shares.append(1.0 if named is None else float(np.isin(truth, named).mean()))
    return float(np.mean(shares))


def rss_mb() -> float:
    """What this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@asynccontextmanager
async def a_bus(broker: MemoryBroker, name: str) -> AsyncGenerator[Bus]:
    transport = MemoryTransport(
        broker,
        name=subjects.connection_name(TENANT, name),
        inbox=subjects.inbox(TENANT, name),
    )
    try:
        async with Bus(transport, tenant=TENANT, instance=name) as bus:
            yield bus
    finally:
        await transport.close()


async def joining(fleet: MadeUp, encoder: Registered) -> dict[str, Any]:
    """From the write to the registry until the first decision; the joiner's texts are real."""
    broker = MemoryBroker()
    async with a_bus(broker, "town") as town, a_bus(broker, "router") as bus:
        for agent in range(fleet.shape.agents):
            await register(town, encoder.thing(agent))
        embedder = Embedder(encoder)
        bus.spawn(embedder.run(), name="embedder")
        store = bus.transport.key_value(EMBEDDINGS)
        kept = KeptVectors(store, encoder.fingerprint, encoder.dimensions)
        directory = Directory(bus)
        index = Index(directory, embedder, kept, KeptLessons(store, encoder.fingerprint))
        await directory.follow()
        began = time.perf_counter()
        bus.spawn(index.run(), name="index")
        assert await index.until_whole(within_s=WITHIN_S)
        gc.freeze()  # as the router does
        found: dict[str, Any] = {"first_s": time.perf_counter() - began}
        deadline = time.monotonic() + WITHIN_S
        while index.view(TENANT, "web", "stable").learned.matrix.nearest.due:
            assert time.monotonic() < deadline, "no index is made"
            await asyncio.sleep(0.1)
        steps: dict[str, list[float]] = {"join": [], "change": [], "leave": []}
        meanwhile: list[float] = []
        queries = [(f"{agent} 0 example 0", agent) for agent in range(20)]
        vectors = dict(
            zip(queries, await index.queries([text for text, _ in queries]), strict=True)
        )

        async def others() -> None:
            """Decisions for agents that stay, all the while; a wrong one ends the run."""
            number = 0
            while True:
                text, agent = queries[number % len(queries)]
                number += 1
                before = time.perf_counter()
                view = index.view(TENANT, "web", "stable")
                ranking = view.rank(vectors[text, agent])
                meanwhile.append((time.perf_counter() - before) * 1e3)
                assert ranking.ranked[0].key == fleet.key(agent), "a wrong decision"
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(others())
            for number in range(JOINS):
                await one_comes_and_goes(town, index, number, steps)
            asking.cancel()
        for name, times in steps.items():
            found[f"{name}_p50_ms"], found[f"{name}_most_ms"] = np.median(times), max(times)
        p50, p99 = np.percentile(meanwhile, (50, 99)).tolist()
        found |= {"meanwhile_p50_ms": p50, "meanwhile_p99_ms": p99, "meanwhile": len(meanwhile)}
        found["whole_mb"] = rss_mb()
        return found


async def one_comes_and_goes(
    town: Bus, index: Index, number: int, steps: dict[str, list[float]]
) -> None:
    name = f"joiner{number}"
    said, other = f"repair the roof of house {number}", f"paint the fence of garden {number}"

    async def is_first(text: str) -> bool:
        (query,) = await index.queries([text])
        ranked = index.view(TENANT, "web", "stable").rank(query).ranked
        return bool(ranked) and ranked[0].key.name == name and text in ranked[0].evidence.text

    await index.queries([said, other])
    for step, text, wanted in (
        ("join", said, True),
        ("change", other, True),
        ("leave", other, False),
    ):
        began = time.perf_counter()
        if step == "leave":
            key = subjects.key(TENANT, name, "stable")
            await town.transport.key_value(REGISTRY).delete(key)
        else:
            await register(town, a_real_agent(name, text))
        while await is_first(text) != wanted:
            assert time.perf_counter() - began < WITHIN_S, f"never decided for: {step}"
            await asyncio.sleep(0.002)
        steps[step].append((time.perf_counter() - began) * 1e3)


def a_real_agent(name: str, said: str) -> dict[str, Any]:
    """Ten capabilities with ten examples each, of real words, none of which was seen before."""
    return {
        "name": name,
        "description": f"The craftsmen who {said}.",
        "capabilities": [
            {
                "id": f"c{at}",
                "name": f"{said} on day {at}" if at else said,
                "description": f"Somebody comes to {said} on day {at}.",
                "examples": [
                    said if not at and not e else f"{said} on day {at} at {e}" for e in range(10)
                ],
            }
            for at in range(10)
        ],
    }


async def register(bus: Bus, told: dict[str, Any]) -> None:
    thing = thing_from({"tenant": TENANT, **told})
    lease = Lease(instance=f"i-{thing.name}", things=(Served(name=thing.name, subset="stable"),))
    await bus.transport.key_value(LEASES).put(
        subjects.key(TENANT, lease.instance), lease.model_dump_json().encode()
    )
    await bus.transport.key_value(REGISTRY).put(
        subjects.key(TENANT, thing.name, "stable"), json.dumps(describe(thing)).encode()
    )


if __name__ == "__main__":
    main()
