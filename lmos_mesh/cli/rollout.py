"""`lmos rollout …`: where a channel's move to a new release line is, and which way it goes on."""

import asyncio
import datetime
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering, asking, connected, run
from lmos_mesh.cli.resource_calls import Raw, Target, changes, got, listed, seconds_of
from lmos_mesh.cli.resource_screens import rollout_line, rollout_screen
from lmos_mesh.cli.resource_tables import UNDER_WAY, agents_of, place_of, status_of, strategy_of
from lmos_mesh.cli.screen import either, err, fail, out, print_json, print_table, repainting
from lmos_mesh.cli.wait import ENDED
from lmos_mesh.errors import Conflict, InvalidMessage, NotFound, Unavailable
from lmos_mesh.messages import (
    GET_RESOURCE_HISTORY,
    RESTORE_ROUTING,
    STEER_ROLLOUT,
    FoundResource,
    GetResourceHistory,
    ResourceHistory,
    RestoreRouting,
    SteerRollout,
)
from lmos_mesh.resources import DEFAULT_NAMESPACE, kind_named

_DAY_S = 86_400.0
_STEPS = 500
# The audit of a month may be long.
_READ_S = 30.0


def status(
    name: str,
    *,
    watch: bool = False,
    timeout: str | None = None,
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Show where a rollout is; watching, until it has ended: 1 unless it was promoted."""
    within_s = seconds_of(timeout) if timeout else _DAY_S

    async def once() -> Raw:
        async with connected(mesh) as bus:
            return await rollout_named(bus, name, namespace=namespace, tenant=tenant)

    async def followed() -> Raw:
        async with connected(mesh) as bus, changes(bus) as changed:
            one = await rollout_named(bus, name, namespace=namespace, tenant=tenant)
            target = Target(kind="ChannelRollout", name=one["metadata"]["name"])
            space = place_of(one)[0]
            with suppress(TimeoutError), _shown(as_json=as_json) as show:
                async with asyncio.timeout(within_s):
                    show(one)
                    while not _is_over(one):
                        await changed.wait()
                        with suppress(Unavailable):
                            one = await got(bus, target, namespace=space, tenant=tenant)
                        show(one)
            return one

    if not watch:
        one = run(once())
        if as_json:
            print_json(one)
        else:
            print_table(rollout_screen(one))
        return 0
    try:
        one = run(followed())
    except KeyboardInterrupt:
        return 130
    phase = status_of(one).get("phase", "Pending")
    if not _is_over(one):
        fail(f"rollout {one['metadata']['name']} is {phase} after {timeout}")
    return 0 if phase == "Promoted" else 1


def steer(
    name: str,
    action: str,
    *,
    reason: str = "",
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Tell a rollout what to do."""

    async def steered() -> Raw:
        async with connected(mesh) as bus:
            one = await rollout_named(bus, name, namespace=namespace, tenant=tenant)
            space, own = place_of(one)
            wanted = SteerRollout.model_validate(
                {"name": own, "namespace": space, "action": action, "reason": reason}
            )
            async with answering("operator"):
                found = await bus.call(
                    STEER_ROLLOUT, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
                )
            return found.resource

    one = run(steered())
    if as_json:
        print_json(one)
    else:
        print_table(rollout_screen(one))
    return 0


def history(
    name: str,
    *,
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Show what a Channel or a rollout went through, from the audit; the latest first."""
    kind, own = _kind_and_name(name)

    async def told() -> tuple[ResourceHistory, int]:
        async with connected(mesh) as bus:
            target = Target(kind=kind, name=own)
            space, active = namespace or DEFAULT_NAMESPACE, 0
            with suppress(NotFound):  # what is gone has a history, too
                one = await got(bus, target, namespace=namespace, tenant=tenant)
                space = place_of(one)[0]
                active = int(status_of(one).get("routingRevision") or 0)
            of = "ChannelRouting" if kind == "Channel" else kind
            return await history_of(bus, of, own, space, tenant=tenant, steps=_STEPS), active

    found, active = run(told())
    if as_json:
        print_json({**found.model_dump(mode="json"), "active": active})
        return 0
    below = Text(style="dim")
    if found.earlier:
        below.append(f"and {found.earlier} steps before these\n")
    below.append("kept for 30 days; who asked is what they said of themselves")
    if kind == "Channel":
        below.append(
            f"\nlmos rollout undo channel/{own} --to-revision N puts a Routing back whose revision "
            "is shown"
        )
    print_table(Group(steps_table(found, active=active), below))
    return 0


def restore(
    name: str,
    revision: int | None,
    *,
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Put an earlier Routing of a Channel back, or with 0 let the operator resolve it again."""
    kind, slash, rest = name.partition("/")
    if slash and kind_named(kind) not in ("Channel", "ChannelRouting"):
        raise InvalidMessage(
            f"{name} is no Channel, and Routings are of Channels",
            hint=f"`lmos rollout abort {rest}` moves all traffic of a rollout back to stable",
        )
    own = rest if slash else name

    async def restored() -> tuple[FoundResource, bool]:
        async with connected(mesh) as bus:
            channel = await got(
                bus, Target(kind="Channel", name=own), namespace=namespace, tenant=tenant
            )
            wanted = RestoreRouting(name=own, namespace=place_of(channel)[0], revision=revision)
            async with answering("operator"):
                found = await bus.call(
                    RESTORE_ROUTING, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
                )
            return found, bool(status_of(channel).get("pinned"))

    found, was_pinned = run(restored())
    one = found.resource
    for note in found.notes:
        err().print(Text(f"! {note}", "yellow"), soft_wrap=True)
    if as_json:
        print_json(one)
        return 0
    if revision == 0 and not was_pinned:
        said = "was not held by an undo, so there is nothing to release: it follows its agents"
    elif revision == 0:
        said = "is released: it follows its agents again"
    else:
        said = f"has the Routing of {either(agents_of(one), 'nobody')} again, until it is released"
    out().print(Text.assemble(("✓ ", "green"), "Channel ", (own, "bold"), f" {said}"))
    return 0


async def rollout_named(
    bus: Bus, name: str, *, namespace: str | None = None, tenant: str | None = None
) -> Raw:
    """A rollout by its own name, or by `channel/NAME` of either of its Channels.

    Raises:
        NotFound: There is none.
        Conflict: Several speak of this Channel, and none of them is the one under way.
    """
    kind, own = _kind_and_name(name)
    if kind != "Channel":
        try:
            return await got(bus, Target(kind=kind, name=own), namespace=namespace, tenant=tenant)
        except NotFound:
            if await rollouts_of(bus, own, namespace=namespace, tenant=tenant):
                raise NotFound(
                    f"there is no rollout {own!r}, but a Channel that is in one",
                    hint=f"say channel/{own}",
                ) from None
            raise
    found = await rollouts_of(bus, own, namespace=namespace, tenant=tenant)
    if not found:
        raise NotFound(
            f"no rollout speaks of Channel {own!r}", hint="`lmos get rollouts` lists all"
        )
    running = [one for one in found if status_of(one).get("phase") in UNDER_WAY]
    chosen = running if len(running) == 1 else found
    if len(chosen) > 1:
        raise Conflict(
            f"several rollouts speak of Channel {own!r}",
            hint=f"say which: {either(one['metadata']['name'] for one in chosen)}",
        )
    return chosen[0]


async def rollouts_of(
    bus: Bus, channel: str, *, namespace: str | None = None, tenant: str | None = None
) -> list[Raw]:
    """The rollouts that move traffic from or to a Channel."""
    there = await listed(bus, "ChannelRollout", namespace=namespace, tenant=tenant)
    return [
        one
        for one in there
        if channel
        in (strategy_of(one)[1][side]["name"] for side in ("canaryChannel", "stableChannel"))
    ]


async def history_of(
    bus: Bus, kind: str, name: str, namespace: str, *, tenant: str | None = None, steps: int = 0
) -> ResourceHistory:
    """The versions of a resource that are kept, and its latest steps."""
    wanted = GetResourceHistory(kind=kind, name=name, namespace=namespace, steps=steps)
    async with answering("operator"):
        return await bus.call(
            GET_RESOURCE_HISTORY, wanted, tenant=tenant, timeout_s=_READ_S, nobody_s=RESTART_S
        )


def history_table(found: ResourceHistory, *, active: int = 0) -> Table:
    """Versions as rows, the one that counts marked."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("revision", justify="right", no_wrap=True)
    table.add_column("when", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what", overflow="fold")
    for one in found.versions:
        at = datetime.datetime.fromtimestamp(one.at).astimezone()
        table.add_row(
            str(one.revision),
            at.strftime("%Y-%m-%d %H:%M:%S"),
            Text("●", "green") if one.revision == active else "",
            Text("deleted", "red") if one.gone else Text(one.summary),
        )
    return table


def steps_table(found: ResourceHistory, *, active: int = 0) -> Table:
    """Steps as rows: when, what, by whom and why; a Routing's revision where it can be put back."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    of_rollout = any(one.state for one in found.steps)
    table.add_column("when", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("then" if of_rollout else "revision", no_wrap=True)
    table.add_column("by", overflow="fold")
    table.add_column("why", overflow="fold")
    for one in found.steps:
        at = datetime.datetime.fromtimestamp(one.at).astimezone()
        revision = Text(str(one.revision) if one.kept else "")
        if one.kept and one.revision == active:
            revision.append(" ●", "green")
        why = one.message
        if one.reason and one.reason not in why:
            why = f"{why}: {one.reason}" if why else one.reason
        table.add_row(
            at.strftime("%Y-%m-%d %H:%M:%S"),
            one.what.replace("_", " "),
            one.state if of_rollout else revision,
            one.by.partition(" (")[0] if one.by else Text("operator", "dim"),
            why,
        )
    return table


def _kind_and_name(name: str) -> tuple[str, str]:
    """Whether a rollout is meant by its name, or by that of a Channel."""
    kind, slash, rest = name.partition("/")
    if not slash:
        return "ChannelRollout", name
    meant: dict[str | None, str] = {
        "Channel": "Channel",
        "ChannelRouting": "Channel",
        "ChannelRollout": "ChannelRollout",
    }
    known = "ChannelRollout" if kind == "rollout" else meant.get(kind_named(kind))
    if known is None or not rest:
        raise InvalidMessage(f"{name!r} names no rollout", hint="say NAME or channel/NAME")
    return known, rest


def _is_over(one: Raw) -> bool:
    found: Any = status_of(one).get("phase")
    return found in ENDED


@contextmanager
def _shown(*, as_json: bool) -> Generator[Callable[[Raw], None]]:
    """Shows a rollout whenever it has changed: in its place, as lines in a log, or as JSON."""
    if out().is_terminal and not as_json:
        with repainting(below="Ctrl-C ends the watching, not the rollout") as show:
            yield lambda one: show(rollout_screen(one))
        return
    before = ""

    def tell(one: Raw) -> None:
        nonlocal before
        line = rollout_line(one)
        if as_json and one["metadata"].get("resourceVersion") != before:
            before = one["metadata"].get("resourceVersion", "")
            print_json(one, compact=True)
        elif not as_json and line.plain != before:
            before = line.plain
            out().print(line, soft_wrap=True)

    yield tell
