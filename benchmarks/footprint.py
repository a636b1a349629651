"""What a mesh on a laptop costs: time to its first answer, memory, and processor time when idle.

python benchmarks/footprint.py      # `--quick` to see that it runs

A round starts `lmos up` and an agent process at once and waits for the first answer. Memory is
the proportional set size of all processes of `lmos up`, after an answer, the model loaded.
The idle mesh has 100 agents in 10 processes; theirs and the server's processor time is counted.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from display import plot, save, show_aims, show_conditions, table
from figures import Aim, Spread, spread
from harness import Settings, Started, conditions, free_port, process, with_environment
from our_mesh import agent_command, until_answering
from usage import cpu_seconds, pss_mb

from lmos_mesh import Mesh

AGENTS, PROCESSES = 100, 10
SETTLE_S = 10.0
PACKAGES = ("lmos-mesh", "onnxruntime", "faiss-cpu", "fastapi", "uvicorn", "nats-py", "uvloop")


@contextmanager
def lmos_up(port: int) -> Generator[Started]:
    """`lmos up` in a state directory of its own, not yet ready; stopped as Ctrl-C stops it."""
    with tempfile.TemporaryDirectory(prefix="lmos-bench-") as directory:
        command = with_environment(
            [
                *(sys.executable, "-m", "lmos_mesh.cli", "up", "--name", "bench", "--json"),
                *("--nats-port", str(port), "--http-port", str(free_port())),
            ],
            LMOS_STATE_DIR=directory,
        )
        with process("lmos up", command) as started:
            try:
                yield started
            finally:
                started.popen.send_signal(signal.SIGINT)
                started.popen.communicate(timeout=30)


def pids_of(up: Started) -> dict[str, int]:
    """The processes of `lmos up`, as it names them once it is ready."""
    assert up.popen.stdout is not None
    for line in up.popen.stdout:
        event = json.loads(line)
        if event["event"] == "up":
            named = {one["name"]: one["pid"] for one in event["record"]["processes"]}
            return {"lmos up": up.popen.pid, **named}
    raise SystemExit(f"benchmark: `lmos up` did not become ready: {up.complaints()}")


def cold_start() -> tuple[float, dict[str, float]]:
    """Seconds to the first answer, and megabytes by process after it."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    with ExitStack() as stack:
        began = time.monotonic()
        up = stack.enter_context(lmos_up(port))
        agent = stack.enter_context(process("agent", agent_command(url, "echo_agent")))
        waiting = until_answering(url, "please echo no 000", {"lmos up": up, "agent": agent})
        asyncio.run(waiting)
        took_s = time.monotonic() - began
        return took_s, own_pss_mb({**pids_of(up), "agent": agent.popen.pid})


def own_pss_mb(pids: Mapping[str, int]) -> dict[str, float]:
    """Megabytes of each process alone: `lmos up` is the parent of all others."""
    held = pss_mb(pids)
    children = sum(mb for name, mb in held.items() if name not in ("lmos up", "agent"))
    return {**held, "lmos up": held["lmos up"] - children}


def idle(windows: int, seconds: float) -> list[dict[str, float]]:
    """Percent of a core by process, in so many windows of an idle mesh with many agents."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    per_process = AGENTS // PROCESSES
    with ExitStack() as stack:
        up = stack.enter_context(lmos_up(port))
        pids = pids_of(up)
        agents = [
            stack.enter_context(
                process(
                    "agents",
                    agent_command(
                        *(url, "many_agents"),
                        *("--first", str(first), "--count", str(per_process)),
                    ),
                )
            )
            for first in range(0, AGENTS, per_process)
        ]
        asyncio.run(until_live(url, AGENTS))
        pids |= {f"agents {index}": one.popen.pid for index, one in enumerate(agents)}
        # Embedding 100 agents is no idling.
        time.sleep(SETTLE_S)
        return [idle_window(pids, seconds) for _ in range(windows)]


def idle_window(pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Percent of a core by process while nobody asks anything."""
    # The parent's time would hold that of its children.
    before, began = cpu_seconds(pids, alone=True), time.monotonic()
    time.sleep(seconds)
    after, elapsed = cpu_seconds(pids, alone=True), time.monotonic() - began
    used = {name: (after[name] - before[name]) / elapsed * 100 for name in pids}
    agents = {name: used.pop(name) for name in list(used) if name.startswith("agents ")}
    return {**used, f"{PROCESSES} agent processes": sum(agents.values())}


async def until_live(url: str, count: int) -> None:
    """Wait until so many agents are live and the router can choose among them."""
    last = count - 1
    async with Mesh.connect(url, name="bench-waiting") as mesh, asyncio.timeout(120):
        while True:
            if len(await mesh.find(kind="agent")) == count:
                answered = await mesh.ask(f"tell me about subject {last}", store=False)
                if answered.agent == f"agent-{last}":
                    return
            await asyncio.sleep(0.2)


def spreads(rounds: list[dict[str, float]]) -> dict[str, Spread]:
    """Each figure over all rounds, and their sum."""
    names = dict.fromkeys(name for one in rounds for name in one)
    found = {name: spread(one[name] for one in rounds) for name in names}
    return {**found, "all": spread(sum(one.values()) for one in rounds)}


def main() -> None:
    """Measure, print, save and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--windows", type=int, default=3, help="of the idle mesh")
    parser.add_argument("--seconds", type=float, default=30.0, help="a window")
    parser.add_argument("--quick", action="store_true", help="a smoke run; compares nothing")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.windows, options.seconds = 1, 1, 5.0
    settings = Settings(rounds=options.rounds, quick=options.quick, plots=not options.no_plots)
    found = conditions(settings, PACKAGES)
    show_conditions(found)

    seconds: list[float] = []
    memory: list[dict[str, float]] = []
    for turn in range(options.rounds):
        print(f"start {turn + 1}/{options.rounds}  load {os.getloadavg()[0]:.1f}", flush=True)
        took_s, held = cold_start()
        seconds.append(took_s)
        memory.append(held)
    print(f"idle, {options.windows} windows of {options.seconds:g} s", flush=True)
    used = idle(options.windows, options.seconds)

    held_mb, used_percent = spreads(memory), spreads(used)
    mesh_mb = spread(sum(mb for name, mb in one.items() if name != "agent") for one in memory)
    print("\nmemory after the first answer, MB (PSS), and the idle mesh, percent of a core\n")
    names = dict.fromkeys([*held_mb, *used_percent])
    none = spread([])
    rows = [[n, held_mb.get(n, none), used_percent.get(n, none)] for n in names]
    print(table(("process", "MB", "% of a core, idle"), rows))
    aims = show_aims(
        [
            Aim(
                said="`lmos up` to first answer",
                measured=spread(seconds),
                limit=5.0,
                unit="s",
            ),
            Aim(
                said="memory of `lmos up`, one replica of each",
                measured=mesh_mb,
                limit=700,
                unit="MB",
            ),
            Aim(
                said=f"{AGENTS} idle agents in {PROCESSES} processes, server and services with it",
                measured=used_percent["all"],
                limit=5.0,
                unit="% of a core",
            ),
        ]
    )
    results: dict[str, Any] = {"start_s": seconds, "memory_mb": memory, "idle_percent": used}
    save("footprint", {"conditions": found, **results, "aims": aims})
    if settings.plots:
        plot("footprint_memory", "Memory by process", "MB (PSS)", {"one replica": held_mb})
        plot("footprint_idle", "100 idle agents", "% of a core", {"idle": used_percent})


if __name__ == "__main__":
    main()
