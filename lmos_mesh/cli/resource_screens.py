"""One resource in full, for a person: what was asked for, and what became of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.resource_tables import (
    UNDER_WAY,
    agents_of,
    label_of,
    named,
    phase_of,
    place_of,
    resolved_of,
    sides_of,
    status_of,
    step_of,
    strategy_of,
    weight_of,
)
from lmos_mesh.cli.screen import plural
from lmos_mesh.resources import CHANNEL_LABEL, SUBSET_LABEL, TENANT_LABEL, VERSION_LABEL

Raw = Mapping[str, Any]

_OUTCOMES = {"pass": "green", "fail": "red", "waiting": "dim"}
_SHARES = frozenset({"errors", "abstentions", "handovers"})


def screen_of(
    one: Raw, *, routing: Raw | None = None, rollouts: Sequence[Raw] = ()
) -> RenderableType:
    """All there is to say of a resource.

    Args:
        one: Itself.
        routing: What it was resolved to, if it is a Channel.
        rollouts: Those that name it, if it is a Channel.
    """
    parts: list[RenderableType] = [_heading(one)]
    match one["kind"]:
        case "Channel":
            parts += _channel(one, routing, rollouts)
        case "ChannelRouting":
            parts += [_groups(one), *_settings(one)]
        case "ChannelRollout":
            parts.append(rollout_screen(one, titled=False))
        case _:
            parts += _agent(one)
    parts += _conditions(one)
    return Group(*parts)


def rollout_line(one: Raw) -> Text:
    """Where a rollout is, in one line."""
    line = Text.assemble((one["metadata"]["name"], "bold"), "  ").append_text(_standing(one))
    message = status_of(one).get("message")
    return line.append(f": {message}") if message else line


def rollout_screen(one: Raw, *, titled: bool = True) -> RenderableType:
    """Where a rollout is, and what was measured."""
    status = status_of(one)
    kind, strategy = strategy_of(one)
    title = Text.assemble((one["metadata"]["name"], "bold"), "  ") if titled else Text()
    parts: list[RenderableType] = [title.append_text(_standing(one))]
    if message := status.get("message"):
        parts.append(Text(message))
    table = _facts()
    table.add_row("strategy", kind)
    table.add_row("channels", sides_of(one))
    if status.get("canarySubset"):
        table.add_row("subsets", f"{status.get('stableSubset')} → {status['canarySubset']}")
    if steps := strategy.get("steps"):
        table.add_row("steps", _steps(steps, status))
    for name, said in _further(kind, strategy):
        table.add_row(name, said)
    if compared := status.get("compared"):
        table.add_row("compared", compared_line(compared))
        if left_out := left_out_line(compared):
            table.add_row("not compared", left_out)
    parts.append(table)
    if verdicts := status.get("verdicts"):
        parts.append(_verdicts(verdicts))
    return Group(*parts)


def _further(kind: str, strategy: Raw) -> Iterator[tuple[str, str]]:
    """What else decides who is asked."""
    if kind == "shadow":
        yield "mirrored", f"{strategy.get('percent', 100)} % of turns"
    if strategy.get("sticky") == "user":
        yield "sticky", "a user keeps to a side with all their conversations"
    match: Raw = strategy.get("match") or {}
    who = [f"user {' or '.join(users)}"] if (users := match.get("users")) else []
    if attributes := match.get("attributes"):
        given = (f"{name} {' or '.join(values)}" for name, values in attributes.items())
        who.append("whoever has " + " and ".join(given))
    if who:
        yield "on the canary", ", and ".join(who) + ", whatever the weight"
    if kind == "blueGreen":
        by = "by itself, if every check passes" if strategy.get("autoPromote") else "by a person"
        yield "promoted", by


def compared_line(compared: Raw) -> str:
    """How the answers that nobody saw look beside those that users got."""
    same, different, failed = (compared.get(one, 0) for one in ("same", "different", "failed"))
    turns = same + different + failed
    if not turns:
        return "no turn so far"
    share = f" ({100 * same / turns:.3g} %)" if same else ""
    return (
        f"{plural(turns, 'turn')}: {same} the same{share}, {different} different, {failed} failed"
    )


def left_out_line(compared: Raw) -> str:
    """Which turns were not compared, and why; empty if all were."""
    said = (
        ("several", "of several requests"),
        ("once", "that must not be done twice"),
        ("busy", "for which there was no room"),
    )
    return ", ".join(f"{compared[one]} {why}" for one, why in said if compared.get(one))


def _standing(one: Raw) -> Text:
    said = Text().append_text(phase_of(one)).append(f"  {weight_of(one)}")
    return said.append(f", step {step_of(one)}") if step_of(one) != "-" else said


def _heading(one: Raw) -> RenderableType:
    title = Text.assemble(f"{one['kind']} ", (one["metadata"]["name"], "bold"))
    table = _facts()
    for label in (TENANT_LABEL, CHANNEL_LABEL, SUBSET_LABEL, VERSION_LABEL):
        if value := label_of(one, label):
            table.add_row(label, value)
    metadata = one["metadata"]
    table.add_row("namespace", place_of(one)[0])
    revision = metadata.get("resourceVersion", "")
    table.add_row("revision", f"{revision} (generation {metadata.get('generation', 0)})")
    return Group(title, table)


def _channel(one: Raw, routing: Raw | None, rollouts: Sequence[Raw]) -> Iterator[RenderableType]:
    status = status_of(one)
    line = Text("\n").append_text(resolved_of(one))
    if message := status.get("message"):
        line.append(f"  {message}")
    yield line
    yield _requirements(one, routing)
    if fallback := one["spec"].get("fallbackAgent"):
        yield Text(f"Whoever nobody is sure about goes to {fallback}.")
    yield from _settings(one)
    for title, member in (
        ("Missing", "unresolvedRequiredCapabilities"),
        ("Missing, but optional", "unresolvedOptional"),
    ):
        if missing := status.get(member):
            yield Text(f"\n{title}", "bold")
            yield _missing(missing)
    for rollout in rollouts:
        yield Text("\nRollout", "bold")
        yield rollout_screen(rollout)


def _requirements(one: Raw, routing: Raw | None) -> Table:
    wired: dict[str, tuple[str, str, str]] = {}
    groups: Sequence[Raw] = routing["spec"].get("capabilityGroups") or () if routing else ()
    for group, agent in zip(groups, agents_of(routing), strict=True):
        for each in group["capabilities"]:
            told = (agent, each["providedVersion"], each["host"])
            wired.update({name: told for name in (each.get("id"), each.get("name")) if name})
    table = _table("needs", "version", "strategy", "from", "has", "at")
    for each in one["spec"]["requiredCapabilities"]:
        found = wired.get(each.get("name") or "") or wired.get(each.get("id") or "")
        strategy = each.get("strategy", "HIGHEST")
        optional = " (optional)" if each.get("optional") else ""
        table.add_row(
            named(each) + optional,
            each["version"],
            strategy,
            *(found or (Text("nobody", "yellow" if optional else "red"), "", "")),
        )
    return table


def _missing(missing: Sequence[Raw]) -> Table:
    table = _table("capability", "version", "nearly", "why not")
    for each in missing:
        near: Sequence[Raw] = each.get("near") or ({},)
        for index, miss in enumerate(near):
            subset = f" ({miss['subset']})" if miss.get("subset", "stable") != "stable" else ""
            version = f" {miss['version']}" if miss.get("version") else ""
            table.add_row(
                named(each) if index == 0 else "",
                each.get("version", "") if index == 0 else "",
                f"{miss['agent']}{subset}{version}" if miss else "nobody",
                miss.get("reason", ""),
            )
    return table


def _groups(one: Raw) -> Table:
    table = _table("agent", "capability", "needed", "has", "at")
    groups: Sequence[Raw] = one["spec"].get("capabilityGroups") or ()
    for group, agent in zip(groups, agents_of(one), strict=True):
        for index, each in enumerate(group["capabilities"]):
            table.add_row(
                Text(agent if index == 0 else "", "bold"),
                named(each),
                each["requiredVersion"],
                each["providedVersion"],
                each["host"],
            )
    return table


def _agent(one: Raw) -> Iterator[RenderableType]:
    spec, status = one["spec"], status_of(one)
    if spec.get("description"):
        yield Text(spec["description"])
    table = _facts()
    table.add_row("tenants", ", ".join(spec.get("supportedTenants") or ()) or "any")
    table.add_row("channels", ", ".join(spec.get("supportedChannels") or ()) or "none")
    if status:
        live = f"live, {status.get('instances', 0)} instances" if status.get("live") else "down"
        table.add_row("health", live)
    yield table
    offers = _table("capability", "version", "description")
    for each in spec.get("providedCapabilities") or ():
        offers.add_row(named(each), each["version"], each.get("description", ""))
    yield offers


def _settings(one: Raw) -> Iterator[RenderableType]:
    table = _facts()
    for member in ("router", "settings"):
        given: Raw = one["spec"].get(member) or {}
        for name, value in given.items():
            if value is not None:
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                table.add_row(f"{member} {name}", shown)
    if table.row_count:
        yield table


def _conditions(one: Raw) -> Iterator[RenderableType]:
    if conditions := status_of(one).get("conditions"):
        told = status_of(one).get("message")
        table = _table("condition", "", "since", "reason", "")
        table.columns[2].no_wrap = True
        for each in conditions:
            message = each.get("message", "")
            table.add_row(
                each["type"],
                each["status"],
                each.get("lastTransitionTime", "")[:19],
                each.get("reason", ""),
                "" if message == told else message,
            )
        yield Text("")
        yield table


def _steps(steps: Sequence[Raw], status: Raw) -> Text:
    at = status.get("step", 0) if status.get("phase") in UNDER_WAY else -1
    done = len(steps) if status.get("phase") == "Promoted" else at
    line = Text()
    for index, step in enumerate(steps):
        style = "bold cyan" if index == at else "green" if index < done else "dim"
        pause = " (pause)" if step.get("pause") else ""
        line.append(" → " if index else "").append(f"{step['weight']} %{pause}", style)
    return line


def _verdicts(verdicts: Sequence[Raw]) -> Table:
    table = _table("check", "outcome", "canary", "turns", "stable", "turns", "p", "")
    for each in verdicts:
        share = each["metric"] in _SHARES
        chance = each.get("p")
        table.add_row(
            each["metric"],
            Text(each["outcome"], _OUTCOMES.get(each["outcome"], "")),
            _figure(each.get("canary"), share=share),
            str(each.get("canaryTurns", 0)),
            _figure(each.get("stable"), share=share),
            str(each.get("stableTurns", 0)),
            "" if chance is None else f"{chance:.3g}",
            each.get("message", ""),
        )
    return table


def _figure(value: float | None, *, share: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} %" if share else f"{value:.3g}"


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
