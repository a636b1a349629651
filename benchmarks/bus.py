"""Calls and streams on our bus, beside bare nats-py with the same bytes and FastStream.

python benchmarks/bus.py            # `--quick` to see that it runs

Work: one responder process in a queue group. A call carries a typed message of 1 KiB there and
back; a stream is 2,000 frames with 48 bytes of text. Both event loops are measured.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from contenders import faststream, our_bus, raw_nats
from display import plot, said_by, save, show_aims, show_conditions, table
from figures import TIMES, Aim, Report, Round, figures, ratios
from harness import Settings, Stage, conditions, run_rounds, run_stage
from ours.wire import FRAME_OVERHEAD, Work
from peers.work import FRAME_BYTES, message_fields

from lmos_mesh import codec

LOOPS = ("asyncio", "uvloop")
CALLS = (1, 16, 64)
STREAMS = (1, 16)
OURS, RAW, FASTSTREAM = "lmos-mesh", "raw nats-py", "FastStream"
MEASURES = {
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "per_s": "per s",
    "server_cpu_ms": "server CPU ms",
    "client_cpu_ms": "client CPU ms",
}

PACKAGES = ("lmos-mesh", "nats-py", "pydantic", "ormsgpack", "uvloop")

# Bare nats-py carries as many bytes as we do.
RAW_BYTES = {
    "echo": len(codec.encode(Work(**message_fields(0)))),
    "stream": FRAME_BYTES + FRAME_OVERHEAD,
}


def contenders(
    names: Sequence[str], mode: str, settings: Settings, cells: Sequence[int]
) -> dict[str, Callable[[], Report]]:
    """Who does the work, by name and loop."""

    def run(name: str, loop: str) -> Report:
        return run_stage(stage_of(name, mode, loop), settings, cells)

    return {f"{name}, {loop}": partial(run, name, loop) for loop in LOOPS for name in names}


def stage_of(name: str, mode: str, loop: str) -> AbstractContextManager[Stage]:
    """One contender, ready to be run."""
    if name == RAW:
        return raw_nats(mode, loop, "--bytes", str(RAW_BYTES[mode]))
    if name == FASTSTREAM:
        return faststream(mode, loop)
    return our_bus(mode, loop)


def show(title: str, rounds: list[Round], cells: tuple[int, ...]) -> None:
    """Print what every contender did in every cell."""
    print(f"\n{title}\n")
    rows = [
        [name, cell, *(figures(rounds, name, str(cell), measure) for measure in MEASURES)]
        for cell in cells
        for name in rounds[0]
    ]
    print(table(("contender", "in flight", *MEASURES.values()), rows))


def call_aims(rounds: list[Round]) -> list[Aim]:
    """What calls should be."""
    found: list[Aim] = []
    for loop in LOOPS:
        ours, raw, other = (f"{name}, {loop}" for name in (OURS, RAW, FASTSTREAM))
        found += [
            Aim(
                said=f"p50 of a call at 1 in flight, {loop}",
                measured=ratios(rounds, ours, raw, "1", "p50_ms"),
                limit=1.15,
                unit=f"{TIMES} raw",
            ),
            Aim(
                said=f"calls per second at 64 in flight, {loop}",
                measured=ratios(rounds, ours, raw, "64", "per_s"),
                limit=0.8,
                at_least=True,
                unit=f"{TIMES} raw",
            ),
            Aim(
                said=f"calls per second at 64 in flight, {loop}",
                measured=ratios(rounds, ours, other, "64", "per_s"),
                limit=5,
                at_least=True,
                unit=f"{TIMES} FastStream",
            ),
        ]
    return found


def stream_aims(rounds: list[Round]) -> list[Aim]:
    """What streams should be."""
    return [
        Aim(
            said=f"frames per second, {cell} streams at a time, {loop}",
            measured=ratios(rounds, f"{OURS}, {loop}", f"{RAW}, {loop}", str(cell), "per_s"),
            limit=0.7,
            at_least=True,
            unit=f"{TIMES} raw",
        )
        for loop in LOOPS
        for cell in STREAMS
    ]


def draw(name: str, title: str, rounds: list[Round], cells: tuple[int, ...]) -> None:
    """Plot how much every contender did per second."""
    series = {
        contender: {
            f"{cell} in flight": figures(rounds, contender, str(cell), "per_s") for cell in cells
        }
        for contender in rounds[0]
    }
    plot(name, title, "per second", series, log=True)


def main() -> None:
    """Measure, print, save and plot."""
    settings = Settings.from_command_line(__doc__ or "")
    found = conditions(settings, PACKAGES)
    show_conditions(found)
    called = run_rounds(
        contenders((RAW, FASTSTREAM, OURS), "echo", settings, CALLS), settings.rounds
    )
    streamed = run_rounds(contenders((RAW, OURS), "stream", settings, STREAMS), settings.rounds)
    show("calls of 1 KiB there and back", called, CALLS)
    show("streams of 2,000 frames; per s counts streams", streamed, STREAMS)
    print()
    reports = [*called[0].values(), *streamed[0].values()]
    print(table(("peer", "codec", "loop", "versions"), dict.fromkeys(said_by(reports))))
    aims = show_aims([*call_aims(called), *stream_aims(streamed)])
    save("bus", {"conditions": found, "calls": called, "streams": streamed, "aims": aims})
    if settings.plots:
        draw("bus_calls", "Calls of 1 KiB there and back", called, CALLS)
        draw("bus_streams", "Streams of 2,000 frames of 48 bytes", streamed, STREAMS)


if __name__ == "__main__":
    main()
