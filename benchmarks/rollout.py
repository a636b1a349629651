"""How soon a bad canary is rolled back under load, and that a good one gets all the traffic.

python benchmarks/rollout.py        # `--quick` to see that it runs

Work: 50 turns a second on one channel, four to a conversation, on real processes (two operators).
Three rollouts one after the other: a canary like stable (errors on 1 % of turns), one with errors
on 20 %, one whose answers take 3 times as long. Weights 10, 25 and 50 %, each judged over a window.
"""

import asyncio
import importlib.util
import itertools
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from display import RESULTS, save, show_aims, show_conditions, table
from figures import Aim, spread
from harness import Settings, conditions, process
from our_mesh import agent_command, our_mesh, service_command

from lmos_mesh import Mesh, subjects
from lmos_mesh.errors import AgentFailed, MeshError
from lmos_mesh.events import CloudEvent
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    CONVERSE,
    GET_RESOURCE,
    ApplyResource,
    Converse,
    GetResource,
)
from lmos_mesh.transport import Packet

WEIGHTS = (10, 25, 50)
TURNS = 4
PAUSE_S = 0.5
ENDS = ("promoted", "rolled_back", "aborted")
PACKAGES = ("lmos-mesh", "nats-py", "scipy", "uvloop")


@dataclass(frozen=True, slots=True)
class Case:
    """A canary, and what should become of it."""

    subset: str
    said: str
    ends: str
    options: tuple[str, ...] = ()


CASES = (
    Case("good", "like stable", "promoted"),
    Case("faulty", "errors on 20 % of turns", "rolled_back", ("--errors", "0.2")),
    Case("slow", "answers 3 times slower", "rolled_back", ("--slow", "3")),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as its user saw it."""

    at: float
    conversation: str
    subset: str
    outcome: str
    seconds: float


@dataclass(slots=True)
class Watch:
    """What users saw and what the operator told, in seconds since the rollout was applied."""

    began: float = field(default_factory=time.time)
    turns: list[Turn] = field(default_factory=list[Turn])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    broken: list[str] = field(default_factory=list[str])
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def on_event(self, packet: Packet) -> None:
        """The operator has stepped the rollout."""
        event = CloudEvent.from_packet(packet)
        if not event.type.startswith("lmos.rollout."):
            return
        kind = event.type.rsplit(".", 1)[1]
        self.events.append({"kind": kind, "at": time.time() - self.began, **event.data})
        if kind in ENDS:
            self.ended.set()

    def first(self, *kinds: str) -> dict[str, Any] | None:
        """The first event of some kinds."""
        return next((one for one in self.events if one["kind"] in kinds), None)


async def apply(mesh: Mesh, kind: str, name: str, spec: dict[str, Any], **labels: str) -> None:
    """Apply a resource."""
    metadata = {"name": name, "labels": labels}
    said = {"apiVersion": "lmos.eclipse/v1", "kind": kind, "metadata": metadata, "spec": spec}
    await mesh.bus.call(APPLY_RESOURCE, ApplyResource(resource=said), timeout_s=20, nobody_s=30)


async def talk(mesh: Mesh, watch: Watch, channel: str, stop: asyncio.Event, rate: float) -> None:
    """So many turns a second, however long each takes."""
    numbers = itertools.count()
    async with asyncio.TaskGroup() as tasks:
        due = time.monotonic()
        while not stop.is_set():
            tasks.create_task(converse(mesh, watch, channel, f"{channel}-{next(numbers)}"))
            due += TURNS / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def converse(mesh: Mesh, watch: Watch, channel: str, conversation: str) -> None:
    """One conversation to its end."""
    for number in range(TURNS):
        began = time.time()
        subset, outcome = "", "answered"
        request = Converse(
            message=f"please echo no {number:03}", conversation=conversation, channel=channel
        )
        try:
            answer = await mesh.bus.call(CONVERSE, request, timeout_s=30)
        except AgentFailed:
            outcome = "failed"
        except MeshError as error:
            watch.broken.append(f"{conversation}: {error}")
            return
        else:
            subset = answer.subset
            if answer.asked_back:
                watch.broken.append(f"{conversation}: the mesh asked back")
        took = time.time() - began
        watch.turns.append(Turn(time.time() - watch.began, conversation, subset, outcome, took))
        await asyncio.sleep(PAUSE_S)


async def roll_out(url: str, case: Case, window_s: float, rate: float, *, within_s: float) -> Watch:
    """One rollout, from before it is applied to a while after it has ended."""
    channel, watch, stop = f"web-{case.subset}", Watch(), asyncio.Event()
    needs = {"requiredCapabilities": [{"name": "repeat", "version": ">=0.0.0"}]}
    async with Mesh.connect(url, name="bench-users") as mesh, asyncio.TaskGroup() as tasks:
        heard = subjects.event(mesh.bus.tenant, "operator", "x").removesuffix("x") + "*"
        subscription = await mesh.bus.transport.subscribe(heard, watch.on_event)
        for subset in ("stable", case.subset):
            name = f"{channel}-{subset}"
            await apply(mesh, "Channel", name, needs, channel=channel, subset=subset)
            await resolved(mesh, name)
        tasks.create_task(talk(mesh, watch, channel, stop, rate))
        await asyncio.sleep(3 * PAUSE_S)
        watch.began, watch.turns = time.time(), []
        canary = {
            "canaryChannel": {"name": f"{channel}-{case.subset}"},
            "stableChannel": {"name": f"{channel}-stable"},
            "steps": [{"weight": one} for one in WEIGHTS],
            "analysis": {"windowSeconds": window_s, "minTurns": 40},
        }
        await apply(mesh, "ChannelRollout", channel, {"strategy": {"canary": canary}})
        try:
            async with asyncio.timeout(within_s):
                await watch.ended.wait()
            await asyncio.sleep(6 * PAUSE_S)
        except TimeoutError:
            print(f"{case.said}: not decided within {within_s:g} s")
        stop.set()
        await subscription.unsubscribe()
    return watch


async def resolved(mesh: Mesh, name: str) -> None:
    """Wait until a Channel is."""
    while True:
        found = await mesh.bus.call(GET_RESOURCE, GetResource(kind="Channel", name=name))
        if found.resource.get("status", {}).get("resolveStatus") == "RESOLVED":
            return
        await asyncio.sleep(0.05)


def flips(watch: Watch) -> int:
    """Conversations that changed sides other than by the end of the rollout."""
    ended = watch.first("promoted", "rolled_back")
    end = ended["at"] if ended else math.inf
    sides: dict[str, set[str]] = {}
    for one in watch.turns:
        if one.subset and one.at < end:
            sides.setdefault(one.conversation, set()).add(one.subset)
    return sum(len(subsets) > 1 for subsets in sides.values())


def share_off(watch: Watch, canary: str) -> float:
    """How many standard errors the first step's share of conversations is off its weight."""
    nexts = [one["at"] for one in watch.events if one["kind"] != "began"]
    end = nexts[0] if nexts else math.inf
    first: dict[str, Turn] = {}
    for one in watch.turns:
        first.setdefault(one.conversation, one)
    # A failed turn does not say whose it was: only those whose first was answered count.
    sides = [
        one.subset == canary
        for one in first.values()
        if PAUSE_S * TURNS + 1 < one.at < end and one.subset and one.conversation
    ]
    share = WEIGHTS[0] / 100
    if not sides:
        return math.nan
    return abs(sum(sides) / len(sides) - share) / math.sqrt(share * (1 - share) / len(sides))


def aims_of(watches: Mapping[str, Watch], window_s: float, rate: float) -> list[Aim]:
    """What should come out."""
    aims: list[Aim] = []
    for case in CASES:
        watch = watches[case.subset]
        ended = watch.first(*ENDS)
        weight = ended["canary_weight"] if ended else math.nan
        if case.ends == "promoted":
            aims.append(
                Aim(
                    said=f"{case.said}: its weight in the end",
                    measured=spread([weight]),
                    limit=100,
                    at_least=True,
                    unit="%",
                )
            )
        else:
            at = ended["at"] if ended and ended["kind"] == case.ends else math.nan
            aims.append(
                Aim(
                    said=f"{case.said}: rolled back by itself after",
                    measured=spread([at]),
                    limit=window_s,
                    unit="s",
                )
            )
        until = ended["at"] if ended else math.nan
        aims.append(
            Aim(
                said=f"{case.said}: turns a second until then",
                measured=spread([sum(0 <= one.at < until for one in watch.turns) / until]),
                limit=0.95 * rate,
                at_least=True,
            )
        )
    aims.append(
        Aim(
            said="conversations that changed sides while a rollout ran",
            measured=spread([float(sum(flips(one) for one in watches.values()))]),
            limit=0,
        )
    )
    aims.append(
        Aim(
            said="conversations broken",
            measured=spread([float(sum(len(one.broken) for one in watches.values()))]),
            limit=0,
        )
    )
    aims.append(
        Aim(
            said=f"share of the first step off {WEIGHTS[0]} %, in standard errors",
            measured=spread([share_off(watches["good"], "good")]),
            limit=3.3,
        )
    )
    return aims


def draw(watches: Mapping[str, Watch], window_s: float) -> None:
    """Weights, error rates, times and decisions over time, one column per case."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot rollout.png: run `pip install 'lmos-mesh[bench]'` for matplotlib")
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown: Any
    axes: Any
    shown, axes = pyplot.subplots(
        3, len(CASES), figsize=(13, 8), sharex="col", layout="constrained"
    )
    for column, case in enumerate(CASES):
        watch = watches[case.subset]
        end = max((one.at for one in watch.turns), default=1.0)
        draw_weights(axes[0][column], case, watch, end)
        draw_rates(axes[1][column], case, watch, end)
        draw_seconds(axes[2][column], case, watch, end)
        for axis in axes[:, column]:
            for event in watch.events:
                axis.axvline(event["at"], color="grey", linewidth=0.8, linestyle=":")
            axis.set_xlim(0, end)
        axes[2][column].set_xlabel(f"seconds (window {window_s:g} s)")
    RESULTS.mkdir(exist_ok=True)
    shown.savefig(RESULTS / "rollout.png", dpi=120)
    pyplot.close(shown)


def draw_weights(axis: Any, case: Case, watch: Watch, end: float) -> None:
    """The weight, and what share of turns the canary answered."""
    at = [0.0, *(one["at"] for one in watch.events), end]
    weights = [0, *(one["canary_weight"] for one in watch.events)]
    axis.step(at, [*weights, weights[-1]], where="post", label="weight")
    seen = [one for one in watch.turns if one.subset]
    binned = [
        (second + 0.5, [one.subset == case.subset for one in seen if int(one.at) == second])
        for second in range(int(end))
    ]
    axis.plot(
        [at for at, of in binned if of],
        [100 * sum(of) / len(of) for _, of in binned if of],
        linewidth=0.8,
        label="share of answered turns",
    )
    for event in watch.events:
        axis.annotate(
            event["kind"].replace("_", " "),
            (event["at"], 103),
            rotation=45,
            fontsize="x-small",
            annotation_clip=False,
        )
    axis.set_ylim(0, 102)
    axis.set_ylabel("% on the canary")
    axis.set_title(case.said, pad=34)
    axis.legend(fontsize="x-small")


def draw_rates(axis: Any, case: Case, watch: Watch, end: float) -> None:
    """Errors of all users: those of a canary stop when it is rolled back."""
    binned = [
        (second + 1.0, [one.outcome == "failed" for one in watch.turns if 0 <= one.at - second < 2])
        for second in range(int(end) - 1)
    ]
    axis.plot(
        [at for at, of in binned if of],
        [100 * sum(of) / len(of) for _, of in binned if of],
        color="tab:red",
        label="all users, over 2 s",
    )
    for event in watch.events:
        for one in event.get("verdicts", ()):
            if one["metric"] == "errors" and one["canary"] is not None:
                axis.plot(event["at"], one["canary"], "^", color="tab:red", markersize=5)
                axis.plot(event["at"], one["stable"], "o", color="tab:green", markersize=4)
    axis.set_ylabel("% failed (▲ canary, ● stable)")
    axis.legend(fontsize="x-small")


def draw_seconds(axis: Any, case: Case, watch: Watch, end: float) -> None:
    """How long answers took, by side."""
    for subset, colour in (("stable", "tab:green"), (case.subset, "tab:orange")):
        answered = [one for one in watch.turns if one.subset == subset]
        axis.plot(
            [one.at for one in answered],
            [1000 * one.seconds for one in answered],
            ".",
            markersize=2,
            color=colour,
            label=subset,
        )
    axis.set_yscale("log")
    axis.set_ylabel("ms per answer")
    axis.legend(fontsize="x-small")


def main() -> None:
    """Run all three, print what came out, and draw it."""
    settings = Settings.from_command_line(__doc__ or "", Settings(rounds=1, seconds=20))
    window_s = 4.0 if settings.quick else settings.seconds
    rate = 20.0 if settings.quick else 50.0
    found = conditions(settings, PACKAGES)
    show_conditions(found)
    watches: dict[str, Watch] = {}
    with our_mesh(agent=("release_agent", "stable")) as mesh, ExitStack() as stack:
        for number in range(2):
            stack.enter_context(
                process(f"operator-{number}", service_command("operator", mesh.url))
            )
        for case in CASES:
            command = agent_command(mesh.url, "release_agent", case.subset, *case.options)
            stack.enter_context(process(case.subset, command))
        for case in CASES:
            watches[case.subset] = asyncio.run(
                roll_out(mesh.url, case, window_s, rate, within_s=12 * window_s)
            )
    rows = [
        (case.said, f"{one['at']:.1f} s", one["kind"], f"{one['canary_weight']} %")
        for case in CASES
        for one in watches[case.subset].events
    ]
    print(table(("canary", "at", "what", "weight"), rows), end="\n\n")
    for case in CASES:
        if ended := watches[case.subset].first(*ENDS):
            print(f"{case.said}: {ended['message']}")
    for watch in watches.values():
        for said in watch.broken[:5]:
            print(f"broken: {said}")
    kept = show_aims(aims_of(watches, window_s, rate), "one run of each")
    save(
        "rollout",
        {"conditions": found, "events": {n: w.events for n, w in watches.items()}, "aims": kept},
    )
    if settings.plots:
        draw(watches, window_s)


if __name__ == "__main__":
    main()
