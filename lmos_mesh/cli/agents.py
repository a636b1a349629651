"""`lmos agents` and `lmos describe`: who is on the mesh."""

import asyncio
from contextlib import suppress

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmos_mesh import subjects
from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.screen import out, plural, print_json
from lmos_mesh.errors import MeshError
from lmos_mesh.messages import FIND_THINGS, GET_THING, FindThings, FoundThing, GetThing

_REFRESH_S = 1.0
_GATHER_S = 0.05


def agents(*, watch: bool, everyone: bool, as_json: bool, mesh: str | None) -> int:
    """Show who is there, once or until Ctrl-C."""
    if watch and not as_json:
        with suppress(KeyboardInterrupt):
            run(_watch(everyone=everyone, mesh=mesh))
        return 0
    found = run(_find_once(mesh))
    chosen = [one for one in found if one.live or everyone]
    if as_json:
        print_json([one.model_dump(mode="json", exclude={"description"}) for one in chosen])
    else:
        out().print(table_of(chosen, hidden=len(found) - len(chosen)))
    return 0


def describe(name: str, *, subset: str, mesh: str | None) -> int:
    """Print an agent's Thing Description."""
    print_json(run(_description(name, subset=subset, mesh=mesh)))
    return 0


async def find(bus: Bus) -> list[FoundThing]:
    """Everybody that the registry knows, with and without instances."""
    async with answering("registry"):
        return list((await bus.call(FIND_THINGS, FindThings(live=None), nobody_s=RESTART_S)).things)


async def _find_once(mesh: str | None) -> list[FoundThing]:
    async with connected(mesh) as bus:
        return await find(bus)


async def _description(name: str, *, subset: str, mesh: str | None) -> object:
    async with connected(mesh) as bus, answering("registry"):
        wanted = GetThing(name=name, subset=subset)
        return (await bus.call(GET_THING, wanted, nobody_s=RESTART_S)).description


async def _watch(*, everyone: bool, mesh: str | None) -> None:
    """Show who is there now, whenever that changes. Who leaves stays in sight, as down."""
    seen: set[tuple[str, str]] = set()
    async with connected(mesh) as bus:
        changed = asyncio.Event()
        for kind in ("registry.*.*", "lease.*"):
            await bus.transport.subscribe(
                f"lmos.{subjects.escape(bus.tenant)}.changed.{kind}", lambda _: changed.set()
            )
        with Live(console=out(), auto_refresh=False, transient=False) as live:
            while True:
                try:
                    found = await find(bus)
                    seen.update((one.name, one.subset) for one in found if one.live)
                    chosen = [one for one in found if everyone or (one.name, one.subset) in seen]
                    shown = table_of(chosen, hidden=len(found) - len(chosen))
                except MeshError as exc:
                    shown = Text(str(exc), "red")
                live.update(Group(shown, Text("Ctrl-C ends it", "dim")), refresh=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_S):
                        await changed.wait()
                # One lease speaks of several agents, and one start of several leases.
                await asyncio.sleep(_GATHER_S)
                changed.clear()


def table_of(found: list[FoundThing], *, hidden: int = 0) -> RenderableType:
    """Agents as a table, those that are down last."""
    more = (
        [Text(f"{plural(hidden, 'more agent')} without an instance: --all shows them", "dim")]
        if hidden > 0
        else []
    )
    if not found:
        return Group(Text("No agent is live. Try: lmos run examples/billing.py", "dim"), *more)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("agent", no_wrap=True)
    table.add_column("version")
    table.add_column("subset")
    table.add_column("capabilities", overflow="fold", ratio=1)
    table.add_column("instances", justify="right")
    table.add_column("in flight", justify="right")
    table.add_column("health", no_wrap=True)
    for one in sorted(found, key=lambda one: (not one.live, one.name, one.subset)):
        table.add_row(
            Text(one.name, "bold" if one.live else "dim"),
            _versions(one),
            one.subset,
            ", ".join(capability.name for capability in one.capabilities),
            str(len(one.instances)),
            str(sum(instance.in_flight for instance in one.instances)),
            Text("● live", "green") if one.live else Text("○ down", "red"),
            style="" if one.live else "dim",
        )
    return Group(table, *more)


def _versions(one: FoundThing) -> str:
    """The versions that run; more than one while instances are being replaced."""
    running = sorted({instance.version for instance in one.instances if instance.version})
    said = ", ".join(running) or one.version
    return f"{said} (external)" if one.external else said
