"""`lmos agents` and `lmos describe`: who is on the mesh."""

import asyncio
import datetime
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh import subjects, watching
from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.screen import out, plural, print_json, print_table, repainting
from lmos_mesh.description import thing_of
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.liveness import LEASES, Lease
from lmos_mesh.membership import how_to_start
from lmos_mesh.mesh_state import find_mesh
from lmos_mesh.messages import (
    GET_HISTORY,
    GET_THING,
    FindThings,
    FoundThing,
    GetHistory,
    GetThing,
    History,
)
from lmos_mesh.things import DEFAULT_SUBSET, DEFAULT_TENANT, SHARED, ThingKey

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+\Z")
_USUAL_URL = "http://127.0.0.1:8420"
_REFRESH_S = 1.0
_MOST = 10_000
_GATHER_S = 0.05
_WHOLE_NAME = 28


def agents(
    *,
    watch: bool,
    everyone: bool,
    tenant: str | None = None,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Show who is there, once or until Ctrl-C."""
    if watch:
        with suppress(KeyboardInterrupt):
            run(_watch(everyone=everyone, tenant=tenant, as_json=as_json, mesh=mesh))
        return 0
    found, stopped = run(_find_once(tenant, mesh))
    chosen = [one for one in found if one.live or everyone]
    if as_json:
        print_json(_told(chosen))
    else:
        print_table(table_of(chosen, hidden=_others(found, chosen), stopped=stopped))
    return 0


def _told(found: Sequence[FoundThing]) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json", exclude={"description"}) for one in found]


Form = Literal["description", "card", "capabilities", "agent-json"]
"""What `describe` shows: the Description, or what it is made into for others."""


def describe(
    name: str,
    *,
    subset: str = DEFAULT_SUBSET,
    revision: int | None = None,
    form: Form = "description",
    mesh: str | None,
) -> int:
    """Print the Description of what has that name or id, or another form of it."""
    found, url = run(_found(name, subset=subset, revision=revision, mesh=mesh))
    print_json(_formed(found, form, url))
    return 0


def history(name: str, *, subset: str = DEFAULT_SUBSET, as_json: bool, mesh: str | None) -> int:
    """Show the versions of a Description that are kept, the latest first."""
    found = run(_history(name, subset=subset, mesh=mesh))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return 0
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("revision", justify="right")
    table.add_column("when", no_wrap=True)
    table.add_column("version")
    for one in found.versions:
        at = datetime.datetime.fromtimestamp(one.at).astimezone()
        table.add_row(
            str(one.revision),
            at.strftime("%Y-%m-%d %H:%M:%S"),
            Text("removed", "red") if one.gone else Text(one.version),
        )
    shown = Text(f"lmos describe {name} --revision N shows one of them", "dim")
    out().print(Group(table, shown))
    return 0


async def find(bus: Bus, tenant: str | None = None) -> list[FoundThing]:
    """Everybody that the registry knows, with and without instances."""
    async with answering("registry"):
        found = await watching.find(bus, FindThings(live=None, limit=_MOST), tenant=tenant)
        return list(found.things)


async def _find_once(
    tenant: str | None, mesh: str | None
) -> tuple[list[FoundThing], list[ThingKey]]:
    async with connected(mesh) as bus:
        found = await find(bus, tenant)
        return found, await _stopped(bus, tenant or bus.tenant, found)


async def _stopped(bus: Bus, tenant: str, found: Sequence[FoundThing]) -> list[ThingKey]:
    """The agents that nobody finds, and that somebody would start again."""
    known = {(one.name, one.subset) for one in found}
    stopped: set[ThingKey] = set()
    with suppress(MeshError, ValidationError):
        for entry in await bus.transport.key_value(LEASES).entries(f"{subjects.escape(tenant)}.*"):
            stopped |= {
                ThingKey(tenant, one.name, one.subset)
                for one in Lease.model_validate_json(entry.value).runs
                if (one.name, one.subset) not in known
            }
    return sorted(stopped)


async def _found(
    name: str, *, subset: str, revision: int | None, mesh: str | None
) -> tuple[FoundThing, str]:
    """What has that name or id, and where the HTTP adapter is."""
    async with connected(mesh) as bus, answering("registry"):

        async def get(**which: str) -> FoundThing:
            wanted = GetThing(**which, revision=revision)  # pyright: ignore[reportArgumentType]
            return await bus.call(GET_THING, wanted, nobody_s=RESTART_S)

        if not _URI.match(name):
            return await get(name=name, subset=subset), _http_url(mesh)
        try:
            return await get(id=name), _http_url(mesh)
        except NotFound:
            with suppress(NotFound):  # a name may look like an id
                return await get(name=name, subset=subset), _http_url(mesh)
            raise


async def _history(name: str, *, subset: str, mesh: str | None) -> History:
    async with connected(mesh) as bus, answering("registry"):
        wanted = GetHistory(name=name, subset=subset)
        if _URI.match(name):
            wanted = GetHistory(id=name)
        return await bus.call(GET_HISTORY, wanted, nobody_s=RESTART_S)


def _http_url(mesh: str | None) -> str:
    """Where the mesh of this machine is on the web; its usual place if that is not known."""
    with suppress(MeshError):
        return find_mesh(mesh).http_url or _USUAL_URL
    return _USUAL_URL


def _formed(found: FoundThing, form: Form, url: str) -> Any:
    """The Description as it is, or a projection of its record."""
    description: Mapping[str, Any] = found.description or {}
    if form == "description":
        return description
    from lmos_mesh import projections

    own = {member: value for member, value in description.items() if member != "registration"}
    thing = thing_of(own, tenant=found.tenant or DEFAULT_TENANT)
    if form == "capabilities":
        return projections.capabilities_json(thing)
    own_url = f"{url}/agents/{quote(thing.name, safe='')}/{quote(thing.subset, safe='')}"
    if form == "card":
        return projections.agent_card(thing, own_url)
    return projections.agent_json(thing, own_url)


async def _watch(*, everyone: bool, tenant: str | None, as_json: bool, mesh: str | None) -> None:
    """Show who is there now, whenever that changes. Who leaves stays in sight, as down."""
    seen: set[tuple[str, str]] = set()
    async with connected(mesh) as bus:
        changed = asyncio.Event()
        for token in {subjects.escape(tenant or bus.tenant), SHARED}:
            for kind in ("registry.*.*", "lease.*"):
                await bus.transport.subscribe(
                    f"lmos.{token}.changed.{kind}", lambda _: changed.set()
                )
        told: list[dict[str, Any]] | None = None
        with repainting(below="Ctrl-C ends it") as show:
            while True:
                try:
                    found = await find(bus, tenant)
                    seen.update((one.name, one.subset) for one in found if one.live)
                    chosen = [one for one in found if everyone or (one.name, one.subset) in seen]
                    if not as_json:
                        stopped = await _stopped(bus, tenant or bus.tenant, found)
                        show(table_of(chosen, hidden=_others(found, chosen), stopped=stopped))
                    elif (now := _told(chosen)) != told:
                        told = now
                        print_json(now, compact=True)
                except MeshError as exc:
                    if not as_json:
                        show(Text(str(exc), "red"))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_S):
                        await changed.wait()
                # One lease speaks of several agents, and one start of several leases.
                await asyncio.sleep(_GATHER_S)
                changed.clear()


def _others(found: Sequence[FoundThing], chosen: Sequence[FoundThing]) -> list[FoundThing]:
    shown = {(one.name, one.subset) for one in chosen}
    return [one for one in found if (one.name, one.subset) not in shown]


def table_of(
    found: Sequence[FoundThing],
    *,
    hidden: Sequence[FoundThing] = (),
    stopped: Sequence[ThingKey] = (),
) -> RenderableType:
    """Agents as a table, those that are down last; `hidden` and `stopped` are not in it."""
    kinds = ((kind, sum(one.kind == kind for one in hidden)) for kind in ("agent", "tool", "thing"))
    counted = ", ".join(plural(count, kind) for kind, count in kinds if count)
    more = [Text(f"Not live: {counted}; --all shows them", "dim")] if counted else []
    more += [
        Text(f"{one.name}{_line_of(one)} is stopped; {how_to_start(one)}", "dim") for one in stopped
    ]
    if not found:
        hint = "" if stopped else " Try: lmos run examples/billing.py"
        return Group(Text(f"No agent is live.{hint}", "dim"), *more)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    # What can be folded gives way before the names do.
    origins = any(map(untold_origin, found))
    longest = max(len(one.title or one.name) for one in found)
    whole = None if origins else min(longest, _WHOLE_NAME)
    shared = any(one.tenant == SHARED for one in found)
    table.add_column("agent", overflow="fold", min_width=whole)
    table.add_column("version")
    table.add_column("subset")
    table.add_column("capability", overflow="fold")
    table.add_column("instances", justify="right", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    if shared:
        table.add_column("tenant", overflow="fold")
    if origins:
        table.add_column("origin", overflow="fold")
    table.add_column("health", no_wrap=True)
    for one in sorted(found, key=lambda one: (not one.live, one.name, one.subset)):
        table.add_row(
            Text(one.title or one.name, "bold" if one.live else "dim"),
            _versions(one),
            one.subset,
            named(one),
            str(len(one.instances)),
            str(sum(instance.in_flight for instance in one.instances)),
            *([one.tenant] if shared else []),
            *([untold_origin(one)] if origins else []),
            health_of(one),
            style="" if one.live else "dim",
        )
    return Group(table, *more)


def _line_of(key: ThingKey) -> str:
    return "" if key.subset == DEFAULT_SUBSET else f" ({key.subset})"


def named(one: FoundThing, *, most: int = 5) -> str:
    """The first of its capabilities, and how many more it has."""
    left = len(one.capabilities) - most
    shown = ", ".join(capability.name for capability in one.capabilities[:most])
    return f"{shown}, and {left} more" if left > 0 else shown


def untold_origin(one: FoundThing) -> str:
    """Where it is from, unless its name says so."""
    origin = origin_of(one)
    return "" if origin and (one.title or one.name).endswith(f"@{origin}") else origin


def origin_of(one: FoundThing) -> str:
    """Where it is from, if it is no process of this mesh."""
    return one.origin or ("external" if one.external or one.kind == "thing" else "")


def health_of(one: FoundThing) -> Text:
    """Whether it is there, as far as anybody here can know."""
    if one.live:
        return Text("● live", "green")
    return Text("○ listed", "dim") if one.live is None else Text("○ down", "red")


def _versions(one: FoundThing) -> str:
    """The versions that run; more than one while instances are being replaced."""
    running = sorted({instance.version for instance in one.instances if instance.version})
    return ", ".join(running) or one.version
