"""Resources in rows: of each kind, what one wants to see first. Pure."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from lmos_mesh.resources import (
    CHANNEL_LABEL,
    DEFAULT_NAMESPACE,
    DEFAULT_SUBSET,
    SUBSET_LABEL,
    TENANT_LABEL,
    VERSION_LABEL,
)

Raw = Mapping[str, Any]
Place = tuple[str, str]
"""Namespace and name."""

PHASE_COLOURS = {
    "Pending": "dim",
    "Progressing": "cyan",
    "Paused": "yellow",
    "Promoted": "green",
    "Aborted": "red",
    "RolledBack": "red",
    "Invalid": "red",
}
UNDER_WAY = frozenset({"Progressing", "Paused"})
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What else there is, for rows that speak of it.

    Attributes:
        routings: ChannelRoutings by place.
        now: Unix seconds.
    """

    routings: Mapping[Place, Raw] = field(default_factory=dict[Place, Raw])
    now: float = 0.0


def table_of(kind: str, found: Sequence[Raw], around: Around, *, wide: bool = False) -> Table:
    """Resources of one kind."""
    columns = [*_COLUMNS[kind], *(_WIDE[kind] if wide else ())]
    spaces = {one["metadata"].get("namespace", DEFAULT_NAMESPACE) for one in found}
    if wide or spaces - {DEFAULT_NAMESPACE}:
        columns.insert(1, ("namespace", lambda one, _: one["metadata"].get("namespace", "")))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name, _ in columns:
        right = name in ("weight", "instances", "revision", "age")
        table.add_column(
            name,
            overflow="fold",
            justify="right" if right else "left",
            no_wrap=name in ("name", "age", "step", "weight", "phase", "RESOLVE_STATUS"),
        )
    for one in found:
        table.add_row(*(_cell(show(one, around)) for _, show in columns))
    return table


def place_of(one: Raw) -> Place:
    """Where it is kept."""
    metadata = one["metadata"]
    return metadata.get("namespace", DEFAULT_NAMESPACE), metadata["name"]


def label_of(one: Raw, label: str) -> str:
    """One of its labels; the subset is never empty."""
    labels: Mapping[str, str] = one["metadata"].get("labels") or {}
    return labels.get(label) or (DEFAULT_SUBSET if label == SUBSET_LABEL else "")


def status_of(one: Raw) -> Raw:
    """Its status; nothing in it if nobody has looked at it yet."""
    return one.get("status") or {}


def resolved_of(one: Raw) -> Text:
    """Whether a Channel is resolved."""
    said = status_of(one).get("resolveStatus")
    if said is None:
        return Text("pending", "dim")
    shown = Text(said, "green" if said == "RESOLVED" else "red")
    return shown.append(" (pinned)", "yellow") if status_of(one).get("pinned") else shown


def missing_of(one: Raw) -> str:
    """The required capabilities of a Channel that nobody provides."""
    missing = status_of(one).get("unresolvedRequiredCapabilities") or ()
    return _few([f"{named(each)} {each.get('version', '')}".strip() for each in missing])


def agents_of(routing: Raw | None) -> list[str]:
    """Who answers on a channel, by its Routing; with their subset if it is not the channel's."""
    if routing is None:
        return []
    groups: Sequence[Raw] = routing["spec"].get("capabilityGroups") or ()
    usual = label_of(routing, SUBSET_LABEL)
    named = ((one["name"], one.get("subset") or usual) for one in groups)
    return [name if subset == usual else f"{name} ({subset})" for name, subset in named]


def named(capability: Raw) -> str:
    """What a capability is called."""
    return capability.get("name") or capability.get("id") or ""


def strategy_of(rollout: Raw) -> tuple[str, Raw]:
    """How a rollout works, and with what."""
    strategy = rollout["spec"]["strategy"]
    return next((name, one) for name, one in strategy.items() if one)


def step_of(rollout: Raw) -> str:
    """At which step it is, of how many."""
    steps = strategy_of(rollout)[1].get("steps") or ()
    step = status_of(rollout).get("step", 0)
    return f"{min(step + 1, len(steps))}/{len(steps)}" if steps else "-"


def phase_of(rollout: Raw) -> Text:
    """Where it is."""
    phase = status_of(rollout).get("phase") or "Pending"
    return Text(phase, PHASE_COLOURS.get(phase, ""))


def weight_of(rollout: Raw) -> str:
    """How much of the traffic the canary has."""
    status = status_of(rollout)
    # A shadow that is paused is asked nothing.
    percent = status.get("shadowPercent")
    if percent and status.get("phase") == "Progressing":
        return f"{percent} % mirrored"
    return f"{status.get('canaryWeight', 0)} %"


def sides_of(rollout: Raw) -> str:
    """From where to where."""
    one = strategy_of(rollout)[1]
    return f"{one['stableChannel']['name']} → {one['canaryChannel']['name']}"


def age_of(one: Raw, now: float) -> str:
    """How long ago it was made."""
    try:
        made = datetime.datetime.fromisoformat(one["metadata"].get("creationTimestamp") or "")
    except ValueError:
        return ""
    return lasting(max(0.0, now - made.timestamp()))


def lasting(seconds: float) -> str:
    """A time span in its largest unit: `40s`, `5m`, `3h`, `12d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length or (unit == "d" and seconds >= length):
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def _few(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text(str(value))


_Show = Callable[[Raw, Around], Any]


def _label(label: str) -> _Show:
    return lambda one, _: label_of(one, label)


def _name(one: Raw, _: Around) -> Text:
    return Text(one["metadata"]["name"], "bold")


def _live(one: Raw, _: Around) -> Text:
    live = status_of(one).get("live")
    return Text("● live", "green") if live else Text("○ down", "red" if live is False else "dim")


def _capabilities(one: Raw, _: Around) -> str:
    return _few(
        [f"{named(each)} {each['version']}" for each in one["spec"]["providedCapabilities"]]
    )


def _wired(one: Raw, _: Around) -> str:
    groups = one["spec"].get("capabilityGroups") or ()
    return _few([named(each) for group in groups for each in group["capabilities"]])


def _answering(one: Raw, around: Around) -> str:
    return _few(agents_of(around.routings.get(place_of(one))))


def _message(one: Raw, _: Around) -> str:
    return status_of(one).get("message", "")


def _age(one: Raw, around: Around) -> str:
    return age_of(one, around.now)


def _revision(one: Raw, _: Around) -> str:
    return one["metadata"].get("resourceVersion", "")


_CHANNEL_PLACE: tuple[tuple[str, _Show], ...] = (
    ("name", _name),
    ("channel", _label(CHANNEL_LABEL)),
    ("subset", _label(SUBSET_LABEL)),
)
_END: tuple[tuple[str, _Show], ...] = (("revision", _revision), ("age", _age))
_COLUMNS: Mapping[str, tuple[tuple[str, _Show], ...]] = {
    "Agent": (
        ("name", _name),
        ("subset", _label(SUBSET_LABEL)),
        ("capabilities", _capabilities),
        ("channels", lambda one, _: _few(one["spec"].get("supportedChannels") or ())),
        ("instances", lambda one, _: status_of(one).get("instances", 0)),
        ("health", _live),
    ),
    "Channel": (
        *_CHANNEL_PLACE,
        ("RESOLVE_STATUS", lambda one, _: resolved_of(one)),
        ("missing", lambda one, _: Text(missing_of(one), "red")),
        ("agents", _answering),
    ),
    "ChannelRouting": (
        *_CHANNEL_PLACE,
        ("agents", lambda one, _: _few(agents_of(one))),
        ("capabilities", _wired),
    ),
    "ChannelRollout": (
        ("name", _name),
        ("phase", lambda one, _: phase_of(one)),
        ("weight", lambda one, _: weight_of(one)),
        ("step", lambda one, _: step_of(one)),
        ("strategy", lambda one, _: strategy_of(one)[0]),
        ("channels", lambda one, _: sides_of(one)),
    ),
}
_WIDE: Mapping[str, tuple[tuple[str, _Show], ...]] = {
    "Agent": (
        ("version", _label(VERSION_LABEL)),
        ("tenants", lambda one, _: _few(one["spec"].get("supportedTenants") or ("any",))),
        *_END,
    ),
    "Channel": (
        ("tenant", _label(TENANT_LABEL)),
        ("version", _label(VERSION_LABEL)),
        *_END,
        ("message", _message),
    ),
    "ChannelRouting": (
        ("tenant", _label(TENANT_LABEL)),
        ("fallback", lambda one, _: one["spec"].get("fallbackAgent") or ""),
        *_END,
    ),
    "ChannelRollout": (
        ("tenant", lambda one, _: status_of(one).get("tenant") or label_of(one, TENANT_LABEL)),
        *_END,
        ("message", _message),
    ),
}
