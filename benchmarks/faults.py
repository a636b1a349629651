"""How soon the mesh notices that a process is gone, and how soon somebody else answers.

python benchmarks/faults.py         # `--quick` to see that it runs

Work: conversations go on all the time with agents that speak word by word. Agent processes join,
and are killed (SIGKILL) or frozen (SIGSTOP) in mid-answer. All clocks are the same one.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from display import plot, save, show_aims, show_conditions, table
from figures import Aim, Spread, spread
from harness import Settings, conditions, die_with_parent, give_up
from our_mesh import OurMesh, agent_command, our_mesh
from peers.closed_loop import percentile
from peers.work import answer, question

from lmos_mesh import Mesh, subjects
from lmos_mesh.errors import MeshError
from lmos_mesh.messages import DECIDE, Decide
from lmos_mesh.transport import Packet

CONVERSATIONS = 8
SETTLE_S = 0.4
GIVE_UP_KILLED_S = 5.0
GIVE_UP_FROZEN_S = 20.0
PACKAGES = ("lmos-mesh", "nats-py", "uvloop")

JOINED = "registration reply to first decision for it"
EVENT = "to disconnect event"
RESTART = "to restart at the caller"
RESUMED = "to first word from another instance"
UNFOUND = "to first find without it"
UNDECIDED = "to first decision without it"
Times = dict[str, list[float]]


@dataclass
class Watch:
    """What the conversations and the event subscription have seen of each instance, and when."""

    events: dict[str, float] = field(default_factory=dict[str, float])
    restarts: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    resumed: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    answered: int = 0
    failures: list[str] = field(default_factory=list[str])

    def on_disconnect(self, packet: Packet) -> None:
        """A connection was closed, says the server."""
        name = str(json.loads(packet.payload)["client"].get("name", ""))
        if lost := subjects.instance_of_connection(name):
            self.events.setdefault(lost[1], time.monotonic())


async def converse(mesh: Mesh, watch: Watch, worker: int, stopping: asyncio.Event) -> None:
    """Have one conversation after the other; every answer must be whole, restarted or not."""
    asked = question(worker)
    while not stopping.is_set():
        parts: list[str] = []
        lost = ""
        try:
            async with mesh.converse(asked) as frames:
                async for frame in frames:
                    if frame.kind == "restart":
                        parts.clear()
                        lost = str(frame.body.get("lost", ""))
                        watch.restarts.setdefault(lost, []).append(time.monotonic())
                    elif frame.kind == "delta":
                        if lost:
                            watch.resumed.setdefault(lost, []).append(time.monotonic())
                            lost = ""
                        parts.append(frame.body)
        except MeshError as error:
            watch.failures.append(f"{type(error).__name__}: {error}")
        else:
            if "".join(parts) == answer(asked):
                watch.answered += 1
            else:
                watch.failures.append(f"a wrong answer: {''.join(parts)!r:.200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """An agent process that serves the conversations, and one agent that nobody else has."""

    name: str
    phrase: str
    process: asyncio.subprocess.Process
    instance: str
    ready: float


@asynccontextmanager
async def victim(url: str, number: int) -> AsyncGenerator[Victim]:
    """A new agent process; it is gone at the end of the block, if it was not before."""
    name, phrase = f"alone-{number}", f"open the {number}th door of the house by the sea"
    command = agent_command(url, "fault_agent", "--name", name, "--phrase", phrase)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, preexec_fn=die_with_parent
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            give_up("an agent process did not start; see above")
        said = json.loads(line)
        yield Victim(
            name=name,
            phrase=phrase,
            process=process,
            instance=said["instance"],
            ready=said["at"],
        )
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(
    holds: Callable[[], Awaitable[bool]], *, since: float, give_up_s: float
) -> float | None:
    """Seconds from `since` until something holds; None if it does not in time."""
    while (now := time.monotonic()) - since < give_up_s:
        if await holds():
            return time.monotonic() - since
        await asyncio.sleep(max(0.0, now + 0.002 - time.monotonic()))
    return None


async def decides_for(mesh: Mesh, one: Victim) -> bool:
    """Whether the router would send the phrase to its agent."""
    decision = await mesh.bus.call(DECIDE, Decide(message=one.phrase))
    return decision.agent == one.name


async def finds(mesh: Mesh, one: Victim) -> bool:
    """Whether the registry says that its agent is live."""
    return bool(await mesh.find(name=one.name))


async def strike(
    mesh: Mesh, watch: Watch, one: Victim, how: signal.Signals, times: Times, give_up_s: float
) -> None:
    """Hit a process that is answering, and note when who has noticed."""

    async def not_decided() -> bool:
        return not await decides_for(mesh, one)

    async def not_found() -> bool:
        return not await finds(mesh, one)

    async def note(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        took = await until(holds, since=struck, give_up_s=give_up_s)
        if took is None:
            watch.failures.append(f"{what}: not within {give_up_s:g} s")
        else:
            times.setdefault(what, []).append(took)

    struck = time.monotonic()
    os.kill(one.process.pid, how)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note(UNDECIDED, not_decided))
        tasks.create_task(note(UNFOUND, not_found))
    # Whoever was restarted is told within moments of it, or something is wrong.
    await asyncio.sleep(SETTLE_S)
    if how is signal.SIGKILL and one.instance in watch.events:
        times.setdefault(EVENT, []).append(watch.events[one.instance] - struck)
    for what, seen in ((RESTART, watch.restarts), (RESUMED, watch.resumed)):
        found = seen.pop(one.instance, [])
        times.setdefault(what, []).extend(at - struck for at in found)


async def measure(
    url: str, how: signal.Signals, faults: int, give_up_s: float
) -> tuple[Times, Watch]:
    """Hit as many processes as asked for, one after the other."""
    times: Times = {}
    watch = Watch()
    stopping = asyncio.Event()
    async with Mesh.connect(url, name="bench-faults") as mesh:
        await mesh.bus.transport.subscribe(subjects.DISCONNECTS, watch.on_disconnect)
        # With the one that came with the mesh, two stand while a third is hit.
        async with victim(url, faults), asyncio.TaskGroup() as tasks:
            for worker in range(CONVERSATIONS):
                tasks.create_task(converse(mesh, watch, worker, stopping))
            for number in range(faults):
                async with victim(url, number) as one:
                    joined = await until(
                        lambda one=one: decides_for(mesh, one), since=one.ready, give_up_s=5.0
                    )
                    if joined is None:
                        watch.failures.append(f"{one.name} was not chosen within 5 s")
                    else:
                        times.setdefault(JOINED, []).append(joined)
                    await asyncio.sleep(SETTLE_S)
                    await strike(mesh, watch, one, how, times, give_up_s)
                if sys.stdout.isatty():
                    print(f"{how.name} {number + 1}/{faults}", end="\r", flush=True)
            stopping.set()
    return times, watch


def shown(times: Times) -> list[list[object]]:
    """One row for each thing that was timed, in milliseconds."""
    rows: list[list[object]] = []
    for what, seconds in times.items():
        ordered = sorted(value * 1e3 for value in seconds)
        shares = (percentile(ordered, share) for share in (0.5, 0.95, 1.0))
        rows.append([what, len(ordered), *shares])
    return rows


def p95(times: Times, what: str) -> Spread:
    """The 95th percentile in milliseconds, with the least and the most."""
    ordered = sorted(value * 1e3 for value in times.get(what, []))
    if not ordered:
        return spread([])
    return Spread(median=percentile(ordered, 0.95), low=ordered[0], high=ordered[-1])


def aims_of(found: Mapping[str, Times]) -> list[Aim]:
    """What the issue of a fault should be: the 95th percentile counts."""
    killed, blind, frozen = found["killed"], found["killed, no events"], found["frozen"]
    wanted: Sequence[tuple[str, Times, str, float]] = (
        ("killed", killed, EVENT, 100),
        ("killed", killed, RESTART, 100),
        ("killed, no events", blind, RESTART, 500),
        ("killed", killed, RESUMED, 600),
        ("killed, no events", blind, RESUMED, 1000),
        ("killed", killed, UNDECIDED, 250),
        ("killed", killed, UNFOUND, 250),
        ("frozen", frozen, UNDECIDED, 5000),
        ("joined", killed, JOINED, 250),
    )
    return [
        Aim(said=f"{title}: {what}, p95", measured=p95(times, what), limit=limit, unit="ms")
        for title, times, what, limit in wanted
    ]


def run(title: str, mesh: OurMesh, how: signal.Signals, faults: int) -> tuple[Times, Any]:
    """Measure one kind of fault and print what came out."""
    give_up_s = GIVE_UP_KILLED_S if how is signal.SIGKILL else GIVE_UP_FROZEN_S
    times, watch = asyncio.run(measure(mesh.url, how, faults, give_up_s))
    print(f"\n{title}: {faults} times; {watch.answered} answers complete meanwhile, ", end="")
    print(f"{len(watch.failures)} not")
    for said in watch.failures[:5]:
        print(f"! {said}")
    if watch.failures:
        print(mesh.started["runtime"].complaints())
    print(table(("from then on", "n", "p50 ms", "p95 ms", "max ms"), shown(times)))
    return times, {"answered": watch.answered, "failures": watch.failures, "times_s": times}


def main() -> None:
    """Measure, print, save and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--blind", type=int, default=10, help="kills without disconnect events")
    parser.add_argument("--quick", action="store_true", help="a smoke run; compares nothing")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.stops, options.blind = 2, 1, 1
    settings = Settings(rounds=1, quick=options.quick, plots=not options.no_plots)
    found = conditions(settings, PACKAGES)
    show_conditions(found)
    agent = ("fault_agent", "--name", "standing", "--phrase", "stand where you are")
    results: dict[str, Any] = {}
    times: dict[str, Times] = {}
    with our_mesh(agent=agent) as mesh:
        for title, how, faults in (
            ("killed", signal.SIGKILL, options.kills),
            ("frozen", signal.SIGSTOP, options.stops),
        ):
            times[title], results[title] = run(title, mesh, how, faults)
    with our_mesh(agent=agent, disconnects=False) as mesh:
        title = "killed, no events"
        times[title], results[title] = run(title, mesh, signal.SIGKILL, options.blind)
    aims = show_aims(aims_of(times), "95th percentiles; the least and the most in brackets")
    save("faults", {"conditions": found, "faults": results, "aims": aims})
    if settings.plots:
        draw(times)


def draw(times: Mapping[str, Times]) -> None:
    """Plot the 95th percentiles."""
    series = {
        title: {what.removeprefix("to "): p95(found, what) for what in found}
        for title, found in times.items()
    }
    plot("faults", "From the fault on, p95 (least to most)", "ms", series, log=True)


if __name__ == "__main__":
    main()
