"""`lmos channels` and `lmos describe KIND/NAME`: which agents answer where, and why."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.connection import connected, run
from lmos_mesh.cli.resource_calls import Raw, Target, changes, got, listed
from lmos_mesh.cli.resource_screens import screen_of
from lmos_mesh.cli.resource_tables import (
    UNDER_WAY,
    agents_of,
    label_of,
    missing_of,
    phase_of,
    place_of,
    resolved_of,
    status_of,
    weight_of,
)
from lmos_mesh.cli.rollout import history_of, history_table, rollouts_of
from lmos_mesh.cli.screen import either, print_json, print_table, repainting
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.resources import CHANNEL_LABEL, DEFAULT_SUBSET, SUBSET_LABEL

_OPEN = (
    "There are no Channels, so that every live agent answers on the channels that it serves.\n"
    "`lmos apply -f FILE` with a Channel in it closes one: then its agents alone answer there."
)


def channels(
    *,
    watch: bool = False,
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Show each channel with its release lines: who answers there, and how much of the traffic."""

    async def look(bus: Bus) -> list[dict[str, Any]]:
        found = [
            await listed(bus, kind, namespace=namespace, tenant=tenant)
            for kind in ("Channel", "ChannelRouting", "ChannelRollout")
        ]
        return overview(*found)

    async def once() -> list[dict[str, Any]]:
        async with connected(mesh) as bus:
            return await look(bus)

    async def always() -> None:
        async with connected(mesh) as bus, changes(bus) as changed:
            told: list[dict[str, Any]] | None = None
            while as_json:
                if (rows := await look(bus)) != told:
                    told = rows
                    print_json(rows, compact=True)
                await changed.wait()
            with repainting(below="Ctrl-C ends it") as show:
                while True:
                    try:
                        show(overview_table(await look(bus)))
                    except MeshError as exc:
                        show(Text(str(exc), "red"))
                    await changed.wait()

    if watch:
        with suppress(KeyboardInterrupt):
            run(always())
        return 0
    rows = run(once())
    if as_json:
        print_json(rows)
    else:
        print_table(overview_table(rows))
    return 0


def overview(
    found: Sequence[Raw], routings: Sequence[Raw], rollouts: Sequence[Raw]
) -> list[dict[str, Any]]:
    """One row for each Channel, those of one tenant and channel together."""
    wired = {place_of(one): one for one in routings}
    moving: dict[tuple[str, str, str], Raw] = {}
    for one in rollouts:
        status = status_of(one)
        place = (place_of(one)[0], status.get("tenant", ""), status.get("channel", ""))
        if status.get("phase") in UNDER_WAY or (
            status.get("phase") == "Promoted" and place not in moving
        ):
            moving[place] = one
    rows: list[dict[str, Any]] = []
    for one in sorted(found, key=lambda one: (*_channel_of(one), label_of(one, SUBSET_LABEL))):
        namespace, tenant, channel = _channel_of(one)
        rollout = moving.get((namespace, tenant, channel))
        status = status_of(one)
        rows.append(
            {
                "channel": channel,
                "tenant": tenant,
                "subset": label_of(one, SUBSET_LABEL),
                "name": one["metadata"]["name"],
                "namespace": namespace,
                "resolved": status.get("resolveStatus"),
                "pinned": bool(status.get("pinned")),
                "missing": missing_of(one),
                "agents": agents_of(wired.get(place_of(one))),
                "percent": _share(label_of(one, SUBSET_LABEL), rollout),
                "rollout": rollout["metadata"]["name"] if rollout else None,
                "phase": phase_of(rollout).plain if rollout else None,
                "weight": weight_of(rollout) if rollout else None,
            }
        )
    return rows


def overview_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """The rows for the screen."""
    if not rows:
        return Text(_OPEN, "dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    spaces = {one["namespace"] for one in rows} != {"default"}
    # What would be empty for all is left out.
    more = [name for name in ("missing", "rollout") if any(one[name] for one in rows)]
    places = ("channel", "subset", *(["namespace"] if spaces else []), "traffic", "name")
    for name in (*places, "RESOLVE_STATUS"):
        table.add_column(name, no_wrap=True, justify="right" if name == "traffic" else "left")
    for name in ("agents", *more):
        table.add_column(name, overflow="fold")
    before = ""
    for one in rows:
        percent, rollout = one["percent"], one["rollout"]
        status = {"resolveStatus": one["resolved"], "pinned": one["pinned"]}
        last = {
            "missing": Text(one["missing"], "red"),
            "rollout": Text(f"{rollout}: {one['phase']}" if rollout else ""),
        }
        table.add_row(
            Text("" if one["channel"] == before else one["channel"], "bold"),
            one["subset"],
            *([one["namespace"]] if spaces else []),
            Text("by name", "dim") if percent is None else f"{percent} %",
            one["name"],
            resolved_of({"status": status if one["resolved"] else None}),
            either(one["agents"], "nobody"),
            *(last[name] for name in more),
        )
        before = one["channel"]
    return table


def describe_resource(
    target: Target,
    *,
    revision: int | None = None,
    versions: bool = False,
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Show one resource with everything that is known of it, or the versions that are kept."""

    async def found() -> tuple[Raw, Raw | None, list[Raw], RenderableType | None, Any]:
        async with connected(mesh) as bus:
            try:
                one = await got(bus, target, namespace=namespace, tenant=tenant, revision=revision)
            except NotFound as exc:
                if target.kind == "Agent":
                    raise NotFound(
                        exc.message, hint=f"`lmos describe {target.name}` shows the running one"
                    ) from None
                raise
            space, name = place_of(one)
            if versions:
                kept = await history_of(bus, target.kind, name, space, tenant=tenant)
                active = int(one["metadata"].get("resourceVersion") or 0)
                return one, None, [], history_table(kept, active=active), kept.model_dump()
            routing: Raw | None = None
            rollouts: list[Raw] = []
            if target.kind == "Channel" and not as_json:
                with suppress(NotFound):
                    wired = Target(kind="ChannelRouting", name=name)
                    routing = await got(bus, wired, namespace=space, tenant=tenant)
                rollouts = await rollouts_of(bus, name, namespace=space, tenant=tenant)
            return one, routing, rollouts, None, None

    one, routing, rollouts, table, kept = run(found())
    if as_json:
        print_json(kept if versions else one)
    elif table is not None:
        print_table(table)
    else:
        print_table(screen_of(one, routing=routing, rollouts=rollouts))
    return 0


def _channel_of(one: Raw) -> tuple[str, str, str]:
    return place_of(one)[0], label_of(one, "tenant"), label_of(one, CHANNEL_LABEL)


def _share(subset: str, rollout: Raw | None) -> int | None:
    """How many in a hundred conversations come here; None where only those that name it do."""
    if rollout is None:
        return 100 if subset == DEFAULT_SUBSET else None
    status = status_of(rollout)
    weight = 100 if status.get("phase") == "Promoted" else int(status.get("canaryWeight", 0))
    shares = {status.get("canarySubset"): weight, status.get("stableSubset"): 100 - weight}
    return shares.get(subset)
