"""`lmos router fit` and `lmos router feedback`: what the router learns from labelled messages."""

import time
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.labelled import Row, contradictions, read_rows, sample, within
from lmos_mesh.cli.route import plain
from lmos_mesh.cli.screen import either, err, out, plural, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import (
    FIT_ROUTER,
    LIST_OUTCOMES,
    FitFigures,
    FitRouter,
    Fitted,
    Labelled,
    ListOutcomes,
    OutcomesListed,
)

MOST = 4_000
"""Messages that are sent; more would make nothing better."""

_OUTCOMES = ("accepted", "corrected", "escalated")
_MOST_SAID = 60
_ENVELOPE = 4096


def router_fit(
    file: str | None,
    *,
    feedback: bool,
    channel: str,
    subset: str,
    precision: float,
    limit: int | None,
    seed: int,
    dry_run: bool,
    forget: bool,
    timeout_s: float,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Set how sure the router must be, by labelled messages, and show what that changes.

    Args:
        file: CSV or JSON lines; `-` is the standard input; None with `feedback` or `forget`.
        feedback: Whether to use what was reported, too.
        channel: Which channel it holds for.
        subset: Among the agents of which release line.
        precision: How many of what is routed shall go to the right agent.
        limit: How many messages, drawn by chance; None for as many as are of use.
        seed: Which ones.
        dry_run: Show it only.
        forget: Drop what was fitted for the channel.
        timeout_s: How long to wait.
        as_json: Print everything as JSON.
        mesh: Which mesh.

    Raises:
        NotFound: There is no such file.
        InvalidMessage: The file is not what it should be, or has too little in it.
        SettingsError: What was asked for cannot be.
    """
    if forget and (file is not None or feedback):
        raise SettingsError("--forget drops what was fitted; it takes no file and no --feedback")
    if file is None and not feedback and not forget:
        raise SettingsError(
            "there is nothing to fit on", hint="lmos router fit FILE, or --feedback"
        )
    if not 0 < precision < 1:
        raise SettingsError(f"--precision {precision} is not between 0 and 1")
    if limit is not None and limit < 1:
        raise SettingsError("--limit must be 1 or more")
    rows = sample(read_rows(file), min(limit or MOST, MOST), seed=seed) if file is not None else []
    for first, second in contradictions(rows)[:3]:
        err().print(
            Text(
                f"lines {first.line} and {second.line} say the same and have different agents",
                "yellow",
            )
        )
    request = FitRouter(
        feedback=feedback,
        channel=channel,
        subset=subset,
        precision=precision,
        keep=not dry_run,
        forget=forget,
    )
    fitted = run(_fit(request, rows, seed, timeout_s, mesh=mesh))
    if as_json:
        print_json(fitted.model_dump(mode="json"))
        return 0
    if fitted.before is not None and fitted.after is not None:
        out().print(beside(fitted.before, fitted.after))
    for note in _notes(fitted, channel, dry_run=dry_run):
        err().print(Text(note, "dim"))
    return 0


async def _fit(
    request: FitRouter, rows: Sequence[Row], seed: int, timeout_s: float, *, mesh: str | None
) -> Fitted:
    async with connected(mesh) as bus, answering("router"):
        chosen = within(rows, bus.transport.max_payload - _ENVELOPE, seed=seed)
        if len(chosen) < len(rows):
            err().print(
                Text(
                    f"{len(chosen)} of {len(rows)} messages are sent, drawn by chance: as many as "
                    f"go over the bus at a time ({bus.transport.max_payload} bytes)",
                    "dim",
                )
            )
        sent = tuple(Labelled(message=row.text, agent=row.agent) for row in chosen)
        return await bus.call(
            FIT_ROUTER, request.model_copy(update={"rows": sent}), timeout_s=timeout_s
        )


def beside(before: FitFigures, after: FitFigures) -> RenderableType:
    """What changes, in 80 columns. Pure."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", style="dim")
    for name, old, new, meaning in _changes(before, after):
        table.add_row(name, old, Text(new, "bold" if old != new else ""), meaning)
    return table


def _changes(before: FitFigures, after: FitFigures) -> Iterator[tuple[str, str, str, str]]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value * 100:.1f} %"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    shares = (
        ("accuracy", before.accuracy, after.accuracy, "named the right agent first"),
        ("routed", before.routed, after.routed, "of the messages for somebody"),
        ("precision", before.precision, after.precision, "of what was routed went right"),
        ("rejected", before.rejected, after.rejected, "of the messages for nobody"),
    )
    for name, old, new, meaning in shares:
        yield name, share(old), share(new), meaning
    numbers = (
        ("ECE", before.error, after.error, "how far confidence and success are apart"),
        ("threshold", before.threshold, after.threshold, "the least confidence to route with"),
        ("in scope", before.in_scope_at, after.in_scope_at, "the least share that is further out"),
        ("temperature", before.temperature, after.temperature, "what sharpens scores"),
    )
    for name, old, new, meaning in numbers:
        yield name, number(old), number(new), meaning


def _notes(fitted: Fitted, channel: str, *, dry_run: bool) -> Iterator[str]:
    if fitted.after is not None:
        strangers = f", {fitted.strangers} of them for nobody" if fitted.strangers else ""
        reported = f", {fitted.reported} reported" if fitted.reported else ""
        yield (
            f"fitted on {plural(fitted.rows, 'message')}{strangers}{reported}; each figure of "
            "`after` is of messages that it was not fitted on"
        )
    if fitted.unknown:
        named = either(plain(one) for one in fitted.unknown[:10])
        yield f"not here, so their messages were left out: {named}"
    yield from map(plain, fitted.notes)
    if fitted.after is not None:
        yield (
            f"kept for channel {channel!r} and {fitted.encoder}; "
            "`lmos router fit --forget` undoes it"
            if fitted.kept
            else "nothing was kept" + (" (--dry-run)" if dry_run else "")
        )


# -- what was reported --


def router_feedback(*, outcome: str | None, limit: int, as_json: bool, mesh: str | None) -> int:
    """List what was reported of decisions, the latest first.

    Args:
        outcome: `accepted`, `corrected` or `escalated`; None for all.
        limit: How many to show.
        as_json: Print everything as JSON.
        mesh: Which mesh.

    Raises:
        SettingsError: What was asked for cannot be.
    """
    if outcome is not None and outcome not in _OUTCOMES:
        raise SettingsError(
            f"--outcome {outcome!r} is none that there is", hint=f"there are {', '.join(_OUTCOMES)}"
        )
    if not 1 <= limit <= 1000:
        raise SettingsError(f"--limit {limit} is not from 1 to 1000")
    request = ListOutcomes.model_validate({"outcome": outcome, "limit": limit})
    found = run(_feedback(request, mesh=mesh))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return 0
    out().print(reported(found))
    left = found.total - len(found.outcomes)
    if left > 0:
        err().print(Text(f"{left} more: --limit", "dim"))
    if not found.keeps:
        err().print(
            Text("outcomes are not kept here; LMOS_ROUTER_FEEDBACK=true keeps them", "yellow")
        )
    return 0


async def _feedback(request: ListOutcomes, *, mesh: str | None) -> OutcomesListed:
    async with connected(mesh) as bus, answering("router"):
        return await bus.call(LIST_OUTCOMES, request)


def reported(found: OutcomesListed) -> RenderableType:
    """Outcomes as a table, in 80 columns. Pure."""
    if not found.outcomes:
        return Text("Nothing was reported.", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("when", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("decided", no_wrap=True, max_width=16)
    table.add_column("right", no_wrap=True, max_width=16)
    table.add_column("message", overflow="fold")
    for one in found.outcomes:
        right = one.decided if one.outcome == "accepted" else one.agent
        table.add_row(
            time.strftime("%m-%d %H:%M", time.localtime(one.at)),
            one.outcome,
            Text(plain(one.decided) or "-"),
            Text(plain(right) or "-"),
            Text(plain(one.message, _MOST_SAID)),
        )
    return table
