"""A whole turn, on our bus and through our HTTP adapter, beside what others make of the same.

python benchmarks/turn.py           # `--quick` to see that it runs

Work: a question comes in, is routed (here: by vector among five agents, the embedding cached),
and an agent streams its answer in ten chunks of 21 bytes, each checked. One replica of each
service, each a process of its own. What counts is the processor time of all servers per ask.
"""

from collections.abc import Callable, Mapping

from contenders import a2a, faststream, our_http_turn, our_turn, raw_nats, synadia
from display import plot, said_by, save, show_aims, show_conditions, table
from figures import Aim, Report, Round, differences, figure, figures, ratios, spread
from harness import Settings, conditions, run_rounds, run_stage

IN_FLIGHT = (1, 16, 64)
COUNTED = "16"
BUS, BUS_STORED = "lmos-mesh, bus", "lmos-mesh, bus, stored"
HTTP, HTTP_STORED = "lmos-mesh, OpenAI over HTTP", "lmos-mesh, LMOS over HTTP, stored"
CONTINUED = "lmos-mesh, bus, long conversations"
RAW = "raw nats-py with a router hop"
OURS = (BUS, BUS_STORED, CONTINUED, HTTP, HTTP_STORED)
MEASURES = {
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "per_s": "asks/s",
    "server_cpu_ms": "server CPU ms/ask",
    "client_cpu_ms": "client CPU ms/ask",
}
PACKAGES = (
    *("lmos-mesh", "nats-py", "pydantic", "ormsgpack", "uvloop"),
    *("faiss-cpu", "onnxruntime", "fastapi", "uvicorn"),
)
# Enough asks that a tick of the kernel's clock, 10 ms, is nothing beside what is counted.
USUAL = Settings(calls=3_000, seconds=15.0)


def contenders(settings: Settings) -> Mapping[str, Callable[[], Report]]:
    """Who answers, by name."""
    return {
        RAW: lambda: run_stage(raw_nats("turn"), settings, IN_FLIGHT),
        "Synadia agent SDK": lambda: run_stage(synadia(), settings, IN_FLIGHT),
        "FastStream": lambda: run_stage(faststream("turn"), settings, IN_FLIGHT),
        BUS: lambda: run_stage(our_turn("unstored"), settings, IN_FLIGHT),
        BUS_STORED: lambda: run_stage(our_turn("stored"), settings, IN_FLIGHT),
        CONTINUED: lambda: run_stage(our_turn("continued"), settings, IN_FLIGHT),
        HTTP: lambda: run_stage(our_http_turn("unstored"), settings, IN_FLIGHT),
        HTTP_STORED: lambda: run_stage(our_http_turn("stored"), settings, IN_FLIGHT),
        "a2a-sdk": lambda: run_stage(a2a(), settings, IN_FLIGHT),
    }


def show(rounds: list[Round]) -> None:
    """Print what every contender did in every cell, and how it compares with bare nats-py."""
    rows = [
        [
            name,
            cell,
            *(figures(rounds, name, str(cell), measure) for measure in MEASURES),
            ratios(rounds, name, RAW, str(cell), "server_cpu_ms"),
        ]
        for cell in IN_FLIGHT
        for name in rounds[0]
    ]
    heads = ("contender", "in flight", *MEASURES.values(), "server CPU to raw")
    print("\n" + table(heads, rows))


def show_processes(rounds: list[Round]) -> None:
    """Print which of our processes spends how much on one ask."""
    names = list(rounds[0][HTTP]["cells"][COUNTED]["server_cpu_by_process"])
    rows = [
        [name, *(spread(_by_process(rounds, name, process)) for process in names)] for name in OURS
    ]
    print(f"\nserver CPU in ms per ask at {COUNTED} in flight, by process\n")
    print(table(("contender", *names), rows))


def _by_process(rounds: list[Round], name: str, process: str) -> list[float]:
    cells = (reports[name]["cells"][COUNTED]["server_cpu_by_process"] for reports in rounds)
    return [by_process.get(process, float("nan")) for by_process in cells]


def aims_of(rounds: list[Round]) -> list[Aim]:
    """What a turn should cost."""

    def cpu(name: str) -> Aim:
        limit = 1.5 if name == BUS_STORED else 1.0
        measured = figures(rounds, name, COUNTED, "server_cpu_ms")
        return Aim(said=f"server CPU per ask, {name}", measured=measured, limit=limit, unit="ms")

    def added(name: str, to: str) -> Aim:
        measured = differences(rounds, name, to, COUNTED, "server_cpu_ms")
        return Aim(said=f"{name} adds to {to}", measured=measured, limit=3.0, unit="ms")

    return [cpu(BUS_STORED), cpu(BUS), added(HTTP_STORED, BUS_STORED), added(HTTP, BUS)]


def warn_of_few(rounds: list[Round]) -> None:
    """Say where too few asks were made for the processor time to be counted well."""
    for reports in rounds:
        for name, report in reports.items():
            if name in OURS and (asked := figure(report, COUNTED, "asked")) < 2_000:
                print(f"! {name}: only {asked:.0f} asks at {COUNTED} in flight; use --seconds")


def draw(rounds: list[Round]) -> None:
    """Plot processor time per ask and latency."""
    for name, title, unit, measure in (
        ("turn_cpu", "Server CPU of one turn", "ms per ask", "server_cpu_ms"),
        ("turn_p50", "Time of one turn, median", "ms", "p50_ms"),
    ):
        series = {
            contender: {
                f"{cell} in flight": figures(rounds, contender, str(cell), measure)
                for cell in IN_FLIGHT
            }
            for contender in rounds[0]
        }
        plot(name, title, unit, series, log=True)


def main() -> None:
    """Measure, print, save and plot."""
    settings = Settings.from_command_line(__doc__ or "", USUAL)
    found = conditions(settings, PACKAGES)
    show_conditions(found)
    rounds = run_rounds(contenders(settings), settings.rounds)
    show(rounds)
    show_processes(rounds)
    print()
    print(table(("peer", "codec", "loop", "versions"), dict.fromkeys(said_by(rounds[0].values()))))
    warn_of_few(rounds)
    aims = show_aims(aims_of(rounds))
    save("turn", {"conditions": found, "rounds": rounds, "aims": aims})
    if settings.plots:
        draw(rounds)


if __name__ == "__main__":
    main()
