"""`lmos events`: who comes, changes, leaves and dies, and what becomes of channels."""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, cast

from rich.text import Text

from lmos_mesh.cli.connection import connected, run
from lmos_mesh.cli.screen import either, err, out, print_json
from lmos_mesh.errors import InvalidMessage, Unavailable
from lmos_mesh.events import (
    CHANNEL_RESOLVED,
    CHANNEL_UNRESOLVED,
    INSTANCE_DIED,
    INSTANCE_JOINED,
    INSTANCE_LEFT,
    NAMES,
    OF_OPERATOR,
    ROLLOUT,
    THING_CREATED,
    THING_DELETED,
    THING_UPDATED,
    CloudEvent,
    follow,
    kept,
)

_RETRY_S = 0.5
_SHOWN_MEMBERS = 6
_WORDS = {
    THING_CREATED: ("registered", "green"),
    THING_UPDATED: ("updated", "yellow"),
    THING_DELETED: ("removed", "magenta"),
    INSTANCE_JOINED: ("joined", "green"),
    INSTANCE_LEFT: ("left", "magenta"),
    INSTANCE_DIED: ("died", "red"),
    CHANNEL_RESOLVED: ("resolved", "green"),
    CHANNEL_UNRESOLVED: ("unresolved", "red"),
    f"{ROLLOUT}pending": ("pending", "dim"),
    f"{ROLLOUT}invalid": ("invalid", "red"),
    f"{ROLLOUT}began": ("began", "cyan"),
    f"{ROLLOUT}stepped": ("stepped", "cyan"),
    f"{ROLLOUT}edited": ("edited", "yellow"),
    f"{ROLLOUT}paused": ("paused", "yellow"),
    f"{ROLLOUT}resumed": ("resumed", "cyan"),
    f"{ROLLOUT}promoted": ("promoted", "green"),
    f"{ROLLOUT}rolled_back": ("rolled back", "red"),
    f"{ROLLOUT}aborted": ("aborted", "red"),
}


def events(
    *, kinds: list[str], since: int | None, follow: bool, as_json: bool, mesh: str | None
) -> int:
    """Print events: those that are kept, those to come, or both.

    Args:
        kinds: Only these, e.g. `thing_created`, `instance`, `died`; none for all.
        since: Begin after this sequence; 0 with all that are kept. None for those to come, or,
            without `follow`, for all that are kept.
        follow: Go on until Ctrl-C.
        as_json: One structured CloudEvent per line.
        mesh: Which mesh.
    """
    types = types_of(kinds)
    after = 0 if since is None and not follow else since
    with suppress(KeyboardInterrupt):
        run(_print(types, after=after, on=follow, as_json=as_json, mesh=mesh))
    return 0


def types_of(kinds: Sequence[str]) -> frozenset[str]:
    """The types of events that these words mean.

    Raises:
        InvalidMessage: A word means none.
    """
    types: set[str] = set()
    for kind in kinds:
        wanted = kind.strip().lower().replace(".", "_").removeprefix("lmos_")
        meant = {
            type
            for type, name in NAMES.items()
            if wanted in (name, name.partition("_")[0], name.partition("_")[2], _WORDS[type][0])
        }
        if not meant:
            raise InvalidMessage(
                f"there are no events {kind!r}",
                hint=f"there are {either(sorted(NAMES.values()))}; `thing`, `instance`, `channel` "
                "and `rollout` mean all theirs",
            )
        types |= meant
    return frozenset(types)


async def _print(
    types: Collection[str], *, after: int | None, on: bool, as_json: bool, mesh: str | None
) -> None:
    async with connected(mesh) as bus:
        if not on:
            async with aclosing(kept(bus, bus.tenant, after=after or 0, types=types)) as told:
                async for sequence, event in told:
                    _show(sequence, event, as_json=as_json)
            return
        while True:
            try:
                async with aclosing(follow(bus, bus.tenant, after=after, types=types)) as told:
                    async for sequence, event in told:
                        after = sequence
                        _show(sequence, event, as_json=as_json)
            except Unavailable as exc:
                # What comes to pass meanwhile is kept, and read when the bus is back.
                err().print(f"[dim]{exc}; waiting for the bus[/dim]")
                await asyncio.sleep(_RETRY_S)


def _show(sequence: int, event: CloudEvent, *, as_json: bool) -> None:
    if as_json:
        print_json({**event.as_json(), "sequence": sequence}, compact=True)
    else:
        out().print(line_of(event), soft_wrap=True)


def line_of(event: CloudEvent) -> Text:
    """An event for a person: when, what, who and why."""
    word, colour = _WORDS.get(event.type, (event.type, "white"))
    who, why = _who_and_why(event)
    return Text.assemble(
        (_clock_time(event.time), "dim"),
        "  ",
        (f"{word:<11}", colour),
        "  ",
        (who, "bold"),
        *((("  ", ""), (why, "dim")) if why else ()),
    )


def _who_and_why(event: CloudEvent) -> tuple[str, str]:
    data = event.data
    if event.type in OF_OPERATOR:
        return f"{NAMES[event.type].partition('_')[0]} {event.subject}", str(
            data.get("message", "")
        )
    if event.type in (THING_CREATED, THING_UPDATED, THING_DELETED):
        subset = data.get("subset")
        who = str(data.get("name") or event.subject)
        if subset and subset != "stable":
            who += f" ({subset})"
        return who, _change(event.type, data)
    things: Any = data.get("things")
    served = [str(one.get("name", "?")) for one in _objects(things)]
    reason = str(data.get("reason") or "")
    serving = f"serving {', '.join(served)}" if served else ""
    return event.subject, " · ".join(part for part in (reason, serving) if part)


def _change(type: str, data: dict[str, Any]) -> str:
    if type == THING_DELETED:
        return str(data.get("reason") or "")
    if type == THING_CREATED:
        return str(data.get("kind") or "")
    diff: Any = data.get("diff")
    members = list(cast("dict[str, Any]", diff)) if isinstance(diff, dict) else []
    more = f" and {len(members) - _SHOWN_MEMBERS} more" if len(members) > _SHOWN_MEMBERS else ""
    return ", ".join(members[:_SHOWN_MEMBERS]) + more


def _objects(told: Any) -> list[dict[str, Any]]:
    """What newer or foreign software says may be of any shape."""
    listed = cast("list[Any]", told) if isinstance(told, list) else []
    return [cast("dict[str, Any]", one) for one in listed if isinstance(one, dict)]


def _clock_time(said: str) -> str:
    try:
        return datetime.fromisoformat(said).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return said
