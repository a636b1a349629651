"""`lmos router eval`: how good the router of a running mesh is on messages that are labelled."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.labelled import Row, contradictions, read_rows, sample
from lmos_mesh.cli.metrics import (
    ACCEPTED,
    PRECISION,
    Judged,
    Report,
    Times,
    report,
    risk_coverage,
)
from lmos_mesh.cli.route import method_of, plain
from lmos_mesh.cli.router_plots import check_plots, write_plots
from lmos_mesh.cli.screen import err, out, plural, print_json
from lmos_mesh.errors import MeshError, NobodyAnswers, SettingsError, Unavailable
from lmos_mesh.messages import DECIDE, FIND_THINGS, Decide, Decision, FindThings, Method

_CANDIDATES = 5
_FAILURES = 20
"""After so many it is given up, if they are more than what succeeded."""

_MOST_AGENTS = 25
_MOST_PAIRS = 10
_MOST_NAMED = 28


def router_eval(
    file: str,
    *,
    method: str | None,
    channel: str,
    subset: str,
    language: str | None,
    limit: int | None,
    seed: int,
    concurrency: int,
    timeout_s: float,
    plots: Path | None,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Send labelled messages to the router and show how good its decisions are.

    Args:
        file: CSV or JSON lines; `-` is the standard input.
        method: None for the router's own; `explicit` decides nothing.
        channel: As if all were said there.
        subset: Of which release line.
        language: What to speak to a language model in.
        limit: How many messages, drawn by chance; None for all.
        seed: Which ones.
        concurrency: How many are asked at a time.
        timeout_s: How long to wait for each.
        plots: Where to write pictures.
        as_json: Print everything as JSON.
        mesh: Which mesh.

    Raises:
        NotFound: There is no such file.
        InvalidMessage: The file is not what it should be.
        SettingsError: What was asked for cannot be.
    """
    chosen = method_of(method)
    if chosen == "explicit":
        raise SettingsError("--method explicit decides nothing", hint="vector, llm or hybrid")
    if (limit is not None and limit < 1) or concurrency < 1:
        raise SettingsError("--limit and --concurrency must be 1 or more")
    if plots is not None:
        check_plots(plots)
    rows = sample(read_rows(file), limit, seed=seed)
    for first, second in contradictions(rows)[:3]:
        err().print(
            Text(
                f"lines {first.line} and {second.line} say the same and have different agents",
                "yellow",
            )
        )
    asking = Asking(
        method=chosen,
        channel=channel,
        subset=subset,
        language=language,
        concurrency=concurrency,
        timeout_s=timeout_s,
    )
    began = time.perf_counter()
    judged, unknown = run(_evaluated(rows, asking, mesh=mesh))
    took_s = time.perf_counter() - began
    found = report(judged)
    if unknown:
        named = ", ".join(plain(one, _MOST_NAMED) for one in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        err().print(
            Text(f"no agent here is named {named}{more}: their messages count as wrong", "yellow")
        )
    written = write_plots(plots, judged, found) if plots is not None else []
    if as_json:
        print_json(as_data(found, judged, unknown=unknown, took_s=took_s, plots=written))
    else:
        out().print(shown(found, took_s=took_s))
        for one in written:
            err().print(Text(f"written: {one}", "dim"), soft_wrap=True)
    return 0


class Asking:
    """How the router is asked."""

    def __init__(
        self,
        *,
        method: Method | None,
        channel: str,
        subset: str,
        language: str | None,
        concurrency: int,
        timeout_s: float,
    ) -> None:
        self.method: Method | None = method
        self.channel = channel
        self.subset = subset
        self.language = language
        self.concurrency = concurrency
        self.timeout_s = timeout_s

    def about(self, row: Row) -> Decide:
        """The question about a row."""
        return Decide(
            message=row.text,
            channel=self.channel,
            subset=self.subset,
            method=self.method,
            language=self.language,
            limit=_CANDIDATES,
        )


async def _evaluated(
    rows: Sequence[Row], asking: Asking, *, mesh: str | None
) -> tuple[list[Judged], list[str]]:
    status = err().status("[dim]asking[/dim]") if err().is_terminal else nullcontext()
    async with connected(mesh) as bus:
        unknown = await _unknown(bus, rows, asking.channel)
        with status as line:

            def tell(done: int) -> None:
                if line is not None:
                    line.update(f"[dim]{done} of {len(rows)}[/dim]")

            async with answering("router"):
                return await ask_all(bus, rows, asking, tell), unknown


async def _unknown(bus: Bus, rows: Sequence[Row], channel: str) -> list[str]:
    """The agents of the rows that are not there."""
    wanted = {row.agent for row in rows if row.agent}
    try:
        ours = FindThings(kind="agent", channel=channel, origin="", limit=10_000)
        found = await bus.call(FIND_THINGS, ours)
    except Unavailable:
        return []  # the router decides without a registry
    except MeshError as exc:
        err().print(Text(f"who is there could not be asked: {exc}", "dim"))
        return []
    known = {one.name for one in found.things}
    return sorted(wanted - known) if found.next is None else []


async def ask_all(
    bus: Bus, rows: Sequence[Row], asking: Asking, tell: Callable[[int], None] = lambda _: None
) -> list[Judged]:
    """A judged decision for every row, in their order.

    A decision that fails counts as failed.

    Raises:
        NobodyAnswers: There is no router.
        MeshError: More decisions fail than come.
    """
    judged: list[Judged | None] = [None] * len(rows)
    ahead = iter(enumerate(rows))
    done = 0
    failures: list[MeshError] = []
    hopeless: list[MeshError] = []

    async def work() -> None:
        nonlocal done
        for at, row in ahead:
            if hopeless:
                return
            began = time.perf_counter()
            try:
                decision = await bus.call(DECIDE, asking.about(row), timeout_s=asking.timeout_s)
            except MeshError as exc:
                judged[at] = Judged(truth=row.agent, failed=str(exc))
                failures.append(exc)
                if isinstance(exc, NobodyAnswers) or len(failures) >= max(_FAILURES, done):
                    hopeless.append(exc)
            else:
                judged[at] = judge(row, decision, (time.perf_counter() - began) * 1000)
                done += 1
                tell(done)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(asking.concurrency, len(rows))):
            tasks.create_task(work())
    if hopeless or (failures and not done):
        raise (hopeless or failures)[0]
    return [one for one in judged if one is not None]


def judge(row: Row, decision: Decision, took_ms: float) -> Judged:
    """A decision beside what would have been right."""
    first = decision.agent or (decision.candidates[0].agent if decision.candidates else "")
    used = decision.used
    return Judged(
        truth=row.agent,
        first=first,
        routed=decision.outcome == "routed",
        confidence=decision.confidence,
        in_scope=decision.in_scope,
        outcome=decision.outcome,
        could_be=decision.could_be,
        took_ms=took_ms,
        router_ms=decision.time_ms.get("total", 0.0),
        calls=used.calls if used else 0,
        tokens=used.prompt_tokens + used.completion_tokens if used else 0,
        cost=used.cost if used else 0.0,
    )


# -- how it looks --


def as_data(
    found: Report,
    judged: Sequence[Judged],
    *,
    unknown: Sequence[str] = (),
    took_s: float = 0.0,
    plots: Sequence[Path] = (),
) -> dict[str, Any]:
    """A report for a program to read, with the whole curve."""
    said = [(one.confidence, one.right) for one in judged if one.truth and not one.failed]
    whole = risk_coverage(said)
    step = max(1, len(whole) // 200)
    return {
        **asdict(found),
        "whole_curve": [asdict(one) for one in (*whole[:-1:step], *whole[-1:])],
        "failures": sorted({one.failed for one in judged if one.failed})[:10],
        "unknown_agents": list(unknown),
        "took_s": round(took_s, 3),
        "plots": [str(one) for one in plots],
    }


def shown(found: Report, *, took_s: float = 0.0) -> RenderableType:
    """A report for a person to read, in 80 columns. Pure."""
    parts: list[RenderableType] = [_summary(found, took_s)]
    if found.curve:
        parts.extend((_title("the surest of the messages for somebody"), _curve(found)))
    if found.bins:
        parts.extend((_title("confidence beside success"), _bins(found)))
    if found.agents:
        parts.extend((_title("by agent, the worst first"), _agents(found)))
    if found.confused:
        parts.extend((_title("taken for another"), _confused(found)))
    return Group(*parts)


def percent1(value: float | None) -> str:
    """`93.4 %`; `-` where nothing was counted."""
    return "-" if value is None else f"{value * 100:.1f} %"


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _grid() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))


def _summary(found: Report, took_s: float) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(overflow="fold", style="dim")
    for name, value, meaning in _figures(found, took_s):
        table.add_row(name, value, Text(meaning))
    return table


def _figures(found: Report, took_s: float) -> Iterator[tuple[str, str, str]]:
    inside = found.rows - found.strangers
    outcomes = ", ".join(f"{count} {name}" for name, count in found.outcomes.items())
    yield "messages", str(found.rows), outcomes
    if found.failed:
        yield "failed", str(found.failed), "no decision came; left out of everything below"
    if inside:
        yield "accuracy", percent1(found.accuracy), "named the right agent first"
        yield "routed", percent1(found.routed), "of the messages for somebody"
    if found.precision is not None:
        yield "precision", percent1(found.precision), "of what was routed went to the right agent"
    if found.sure is not None:
        yield (
            "sure",
            percent1(found.sure),
            f"can be routed so that {PRECISION * 100:.0f} % of them are right",
        )
    if found.error is not None:
        yield "ECE", f"{found.error:.3f}", "how far confidence and success are apart"
    if found.covered is not None and found.choices is not None:
        yield (
            "could be",
            percent1(found.covered),
            f"hold the right agent, with {found.choices:.1f} agents on average",
        )
    if found.strangers:
        yield "rejected", percent1(found.rejected), f"of {found.strangers} messages for nobody"
    if found.auroc is not None:
        yield "AUROC", f"{found.auroc:.3f}", "in scope told from out of scope"
        yield (
            "rejected at",
            percent1(found.rejected_at),
            f"if {ACCEPTED * 100:.0f} % of those in scope pass",
        )
    yield "right", percent1(found.right), "routed to the right agent, or rightly to nobody"
    if found.router is not None:
        yield "router", f"{found.router.p50:.1f} ms", f"p50; {_times(found.router)}"
    if found.took is not None:
        rate = f"; {found.rows / took_s:.0f} per second" if took_s else ""
        yield "round trip", f"{found.took.p50:.1f} ms", f"p50; {_times(found.took)}{rate}"
    if found.calls:
        cost = f", cost {found.cost:.4f}" if found.cost else ""
        yield (
            "asked a model",
            percent1(found.asked_model),
            f"of the messages; {plural(found.calls, 'call')}, {found.tokens} tokens{cost}",
        )


def _times(times: Times) -> str:
    return f"p90 {times.p90:.1f}, p99 {times.p99:.1f}, at most {times.most:.1f}"


def _curve(found: Report) -> Table:
    table = _grid()
    table.add_column("", style="dim")
    for one in found.curve:
        table.add_column(f"{one.coverage * 100:.0f} %", justify="right", no_wrap=True)
    table.add_row("accuracy", *(percent1(one.accuracy) for one in found.curve))
    table.add_row("confidence", *(f"≥ {one.least:.2f}" for one in found.curve))
    return table


def _bins(found: Report) -> Table:
    table = _grid()
    for column in ("confidence", "messages", "mean", "right"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.bins:
        table.add_row(
            f"{one.low:.2f}-{one.high:.2f}",
            str(one.count),
            percent1(one.confidence),
            percent1(one.accuracy),
        )
    return table


def _agents(found: Report) -> Table:
    table = _grid()
    table.add_column("agent", no_wrap=True, max_width=_MOST_NAMED)
    for column in ("messages", "accuracy", "precision", "not routed"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.agents[:_MOST_AGENTS]:
        table.add_row(
            Text(plain(one.agent)),
            str(one.rows),
            percent1(one.found),
            percent1(one.precision),
            percent1(one.asked_back),
        )
    left = len(found.agents) - _MOST_AGENTS
    if left > 0:
        table.add_row(Text(f"and {left} more, none worse", "dim"))
    return table


def _confused(found: Report) -> Table:
    table = _grid()
    table.add_column("for", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("taken for", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for one in found.confused[:_MOST_PAIRS]:
        table.add_row(
            Text(plain(one.truth)) if one.truth else Text("nobody", "dim"),
            Text(plain(one.taken_for)) if one.taken_for else Text("nobody", "dim"),
            str(one.count),
            percent1(one.share),
        )
    left = len(found.confused) - _MOST_PAIRS
    if left > 0:
        table.add_row(Text(f"and {left} more pairs", "dim"))
    return table
