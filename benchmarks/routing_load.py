"""How decisions of a real router grow with a second replica, and what batching saves.

    LMOS_BENCH_DATA=DIR python benchmarks/routing_load.py [--seconds 6]

Work: CLINC150 as ten agents, five examples a capability, on a real nats-server. Every message is
another one, so every decision embeds: short messages are single sentences, long ones ten. The load
comes from raw nats-py with requests encoded beforehand, so that it takes next to nothing of the
cores that the replicas share. CPU is user and system time of each process over the run.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import display
import nats
import numpy as np
from harness import process
from our_mesh import embedded_nats, service_command
from routing_data import Clinc

from lmos_mesh import Mesh, subjects
from lmos_mesh.codec import encode
from lmos_mesh.description import describe
from lmos_mesh.errors import MeshError
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.messages import DECIDE, ROUTER_STATUS, Decide, RouterStatus

TENANT = "demo"
READY_S = 180.0


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def settle(url: str, clinc: Clinc, replicas: int) -> None:
    """Register the agents and wait until every replica has learned."""
    async with Mesh.connect(url, name="bench-town") as mesh:
        store = mesh.bus.transport.key_value
        for thing in clinc.things(5, 0):
            lease = Lease(
                instance=subjects.escape(f"i-{thing.name}"),
                things=(Served(name=thing.name, subset=thing.subset),),
            )
            await store(LEASES).put(
                subjects.key(TENANT, lease.instance), lease.model_dump_json().encode()
            )
            await store(REGISTRY).put(
                subjects.key(TENANT, thing.name, thing.subset), json.dumps(describe(thing)).encode()
            )
        deadline = time.monotonic() + READY_S
        in_a_row = 0
        while in_a_row < 8 * replicas:  # the queue group picks one by chance
            assert time.monotonic() < deadline, "the routers do not get ready"
            try:
                state = await mesh.bus.call(ROUTER_STATUS, RouterStatus())
                ready = state.agents == len(clinc.domains) and state.trained and not state.waiting
            except MeshError:
                ready = False
            in_a_row = in_a_row + 1 if ready else 0
            await asyncio.sleep(0.01 if ready else 0.5)


async def offered(
    url: str, payloads: Iterator[bytes], in_flight: int, seconds: float
) -> tuple[float, float, float]:
    """Decisions per second, and p50 and p99 in milliseconds; one that fails ends the run."""
    client = await nats.connect(url, inbox_prefix=f"_INBOX.{TENANT}.bench".encode())
    subject = DECIDE.subject(TENANT)
    times: list[float] = []

    async def ask(until: float) -> None:
        while (began := time.perf_counter()) < until:
            reply = await client.request(subject, next(payloads), timeout=60)
            assert not (reply.headers or {}).get("Nats-Service-Error-Code"), reply.headers
            times.append((time.perf_counter() - began) * 1e3)

    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(ask(began + seconds))
        took = time.perf_counter() - began
    finally:
        await client.close()
    p50, p99 = np.percentile(times, (50, 99)).tolist()
    return len(times) / took, p50, p99


def messages(texts: list[str], each: int) -> Iterator[bytes]:
    """Messages of so many sentences that were not said before."""
    chance = np.random.default_rng(5)
    for number in itertools.count():
        said = " ".join(texts[at] for at in chance.integers(len(texts), size=each))
        yield encode(Decide(message=f"{said} {number}"))


def main() -> None:
    """Measure one replica and two in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    clinc = Clinc.load()
    texts = [one.text for one in clinc.splits["train"]]
    rows: list[dict[str, Any]] = []
    short, long = messages(texts, 1), messages(texts, 10)
    for round_number, replicas in itertools.product(range(options.rounds), (1, 2)):
        with ExitStack() as stack:
            url, server = stack.enter_context(embedded_nats())
            routers = [
                stack.enter_context(process(f"router{at}", service_command("router", url)))
                for at in range(replicas)
            ]
            asyncio.run(settle(url, clinc, replicas))
            for name, payloads, in_flight in (
                ("short, 1 in flight", short, 1),
                ("short, 100 in flight", short, 100),
                ("long, 100 in flight", long, 100),
            ):
                pids = {"generator": os.getpid(), "nats-server": server}
                pids |= {f"router {at}": one.popen.pid for at, one in enumerate(routers)}
                before = {one: cpu_s(pid) for one, pid in pids.items()}
                began = time.perf_counter()
                rate, p50, p99 = asyncio.run(offered(url, payloads, in_flight, options.seconds))
                took = time.perf_counter() - began
                cpu = {one: (cpu_s(pid) - before[one]) / took for one, pid in pids.items()}
                spent = sum(share for one, share in cpu.items() if one.startswith("router"))
                row = {
                    "round": round_number,
                    "work": name,
                    "replicas": replicas,
                    "per_s": rate,
                    "p50_ms": p50,
                    "p99_ms": p99,
                    "router_cpu_ms": spent / rate * 1e3,
                    "cores": cpu,
                    "load": os.getloadavg()[0],
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    print(f"figures: {display.save('router-load', {'rows': rows})}")


if __name__ == "__main__":
    main()
