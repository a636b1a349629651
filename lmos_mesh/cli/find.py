"""`lmos find`: who on the mesh can do something."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.agents import health_of, untold_origin
from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.screen import err, out, plural, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import FindThings, FoundThing, ThingsFound
from lmos_mesh.things import DEFAULT_SUBSET, KINDS, Capability
from lmos_mesh.watching import find as ask_registry
from lmos_mesh.watching import question

_MANY = 5


def find(
    text: str | None,
    *,
    capability: str | None,
    version: str | None,
    tags: Sequence[str],
    kind: str | None,
    channel: str | None,
    subset: str | None,
    metadata: Sequence[str],
    jsonpath: str | None,
    origin: str | None,
    everyone: bool,
    sort: str | None,
    offset: int,
    limit: int | None,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Show who fits all of the conditions, the best match first."""
    if kind is not None and kind not in KINDS:
        raise SettingsError(
            f"--kind {kind!r} is none that there is", hint=f"there are {', '.join(KINDS)}"
        )
    wanted = question(
        (text or "").strip() or None,
        {
            "capability": capability,
            "version": version,
            "tags": tuple(tags),
            "kind": kind,
            "channel": channel,
            "subset": subset,
            "metadata": metadata_of(metadata),
            "jsonpath": jsonpath,
            "origin": origin,
            "live": None if everyone else True,
            "sort": sort,
            "offset": offset,
            "limit": limit,
        },
    )
    found = run(_find(wanted, mesh=mesh))
    if as_json:
        print_json(
            {
                "matched": found.matched,
                "total": found.total,
                "notes": list(found.notes),
                "as_of": found.as_of,
                "things": [
                    one.model_dump(mode="json", exclude={"description"}) for one in found.things
                ],
            }
        )
        return 0
    out().print(table_of(found, wanted))
    for note in (*_summary(found), *found.notes):
        err().print(Text(note, "dim"))
    return 0


def metadata_of(conditions: Sequence[str]) -> dict[str, Any]:
    """The members of metadata that `NAME=VALUE` each ask for; what is no JSON is text.

    Raises:
        SettingsError: One has no name.
    """
    found: dict[str, Any] = {}
    for one in conditions:
        name, separator, value = one.partition("=")
        if not separator or not name:
            raise SettingsError(f"--meta {one!r} is not NAME=VALUE", hint="e.g. vendor.name=ACME")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


async def _find(wanted: FindThings, *, mesh: str | None) -> ThingsFound:
    async with connected(mesh) as bus, answering("registry"):
        return await ask_registry(bus, wanted)


def table_of(found: ThingsFound, wanted: FindThings) -> RenderableType:
    """Who fits, as a table."""
    if not found.things:
        more = "" if wanted.live is None else " Those that are not live, too: --all."
        return Text(f"Nobody fits.{more}", "dim")
    scored = any(one.score is not None for one in found.things)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    if scored:
        table.add_column("score", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("version")
    lines = any(one.subset != DEFAULT_SUBSET for one in found.things)
    if lines:
        table.add_column("subset")
    kinds = {one.kind for one in found.things} != {"agent"}
    if kinds:
        table.add_column("kind")
    table.add_column("can", overflow="fold")
    origins = any(map(untold_origin, found.things))
    if origins:
        table.add_column("origin", overflow="fold")
    table.add_column("health", no_wrap=True)
    for one in found.things:
        table.add_row(
            *([f"{one.score:.2f}" if one.score is not None else ""] if scored else []),
            Text(one.title or one.name, "bold" if one.live else "dim"),
            one.version,
            *([one.subset] if lines else []),
            *([one.kind] if kinds else []),
            _abilities(one, wanted),
            *([untold_origin(one)] if origins else []),
            health_of(one),
            style="" if one.live else "dim",
        )
    return table


def _abilities(one: FoundThing, wanted: FindThings) -> str:
    """What it can do: what was asked for, else the first few."""
    asked = [able for able in one.capabilities if wanted.capability in (able.id, able.name)]
    shown = asked or one.capabilities[:_MANY]
    named = ", ".join(_named(able) for able in shown)
    left = len(one.capabilities) - len(shown)
    return f"{named}, and {left} more" if left and not asked else named


def _named(able: Capability) -> str:
    return able.name if able.version == "1.0.0" else f"{able.name} {able.version}"


def _summary(found: ThingsFound) -> list[str]:
    """What the table does not show: how the text was compared, and how many are left out."""
    shown = len(found.things)
    if not shown or (not found.matched and found.total == shown):
        return []
    how = f", by {found.matched}" if found.matched else ""
    left = f"; the first {shown} are shown" if found.total > shown else ""
    return [f"{plural(found.total, 'Thing')} found{how}{left}"]
