"""`lmos wait`: until a resource is what somebody needs it to be, or cannot become it any more."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.connection import connected, run
from lmos_mesh.cli.resource_calls import Target, changes, got, named_targets, seconds_of
from lmos_mesh.cli.resource_tables import status_of
from lmos_mesh.cli.screen import fail, out, print_json
from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.json_faults import quoted
from lmos_mesh.resources import Phase

Raw = Mapping[str, Any]
Outcome = Literal["met", "failed", "timeout"]

# From where a rollout goes nowhere unless somebody tells it to.
ENDED: frozenset[Phase] = frozenset({"Promoted", "Aborted", "RolledBack", "Invalid"})
_OF = {
    "resolved": "Channel",
    "unresolved": "Channel",
    "promoted": "ChannelRollout",
    "phase": "ChannelRollout",
    "live": "Agent",
}
_FORMS = "resolved, unresolved, promoted, phase=PHASE, live, deleted or condition=TYPE[=STATUS]"


def wait(
    words: Sequence[str],
    *,
    condition: str,
    timeout: str = "30s",
    namespace: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    mesh: str | None = None,
) -> int:
    """Wait until resources meet a condition; 1 if one cannot any more, or has not in time."""
    targets = named_targets(words)
    met = condition_of(condition)
    within_s = seconds_of(timeout)
    for one in targets:
        _check(one, condition)

    async def waiting() -> list[tuple[Target, Outcome, str]]:
        async with connected(mesh) as bus:
            ends = asyncio.get_running_loop().time() + within_s
            return [
                (one, *await until(bus, one, met, ends=ends, namespace=namespace, tenant=tenant))
                for one in targets
            ]

    told = run(waiting())
    if as_json:
        print_json(
            [
                {"kind": one.kind, "name": one.name, "outcome": outcome, "message": said}
                for one, outcome, said in told
            ]
        )
    else:
        for one, outcome, said in told:
            if outcome == "met":
                out().print(Text.assemble(("✓ ", "green"), f"{one}: {condition}"))
            elif outcome == "failed":
                fail(f"{one} will not be {condition}: {said}")
            else:
                fail(f"{one} is not {condition} after {within_s:g} s: {said}")
    return 0 if all(outcome == "met" for _, outcome, _ in told) else 1


def _check(target: Target, condition: str) -> None:
    """Refuse to wait for what a resource of that kind never is.

    Raises:
        InvalidMessage: It is such.
    """
    name, _, value = condition.partition("=")
    kind = _OF.get(name.lower())
    if kind is not None and target.kind != kind:
        raise InvalidMessage(
            f"{target} is never {condition}: only a resource of kind {kind} may be",
            hint=f"say {_FORMS}",
        )
    phases: tuple[Phase, ...] = get_args(Phase)
    if name.lower() == "phase" and value.lower() not in {one.lower() for one in phases}:
        raise InvalidMessage(f"{quoted(value)} is no phase", hint=f"there are {', '.join(phases)}")


Condition = Callable[[Raw | None], bool | str]
"""Whether a resource, or None where there is none, meets it; a text says why it never will."""


def condition_of(text: str) -> Condition:
    """What is meant by `resolved`, `promoted`, `condition=Ready` and the like.

    Raises:
        InvalidMessage: Nothing is.
    """
    name, _, value = text.partition("=")
    match name.lower():
        case "resolved" | "unresolved" if not value:
            wanted = name.upper()
            return _seen(lambda one: status_of(one).get("resolveStatus") == wanted)
        case "promoted" if not value:
            return _seen(lambda one: phase_reached(one, "Promoted"))
        case "phase" if value:
            return _seen(lambda one: phase_reached(one, value))
        case "live" if not value:
            return _seen(lambda one: bool(status_of(one).get("live")))
        case "deleted" | "delete" if not value:
            return lambda one: one is None
        case "condition" if value:
            kind, _, status = value.partition("=")
            return _seen(lambda one: _has_condition(one, kind, status or "True"))
        case _:
            raise InvalidMessage(f"{quoted(text)} is nothing to wait for", hint=f"say {_FORMS}")


def phase_reached(one: Raw, phase: str) -> bool | str:
    """Whether a rollout is in a phase; a text if it has ended in another."""
    found = status_of(one).get("phase", "")
    if found.lower() == phase.lower():
        return True
    return f"it is {found}: {said_of(one)}" if found in ENDED else False


def said_of(one: Raw | None) -> str:
    """What its status says in one sentence."""
    if one is None:
        return "there is none"
    return status_of(one).get("message") or "its status says nothing yet"


async def until(
    bus: Bus,
    target: Target,
    met: Condition,
    *,
    ends: float,
    namespace: str | None = None,
    tenant: str | None = None,
    seen: Callable[[Raw], None] | None = None,
) -> tuple[Outcome, str]:
    """Wait for one resource.

    Args:
        bus: Where to ask.
        target: Which one.
        met: What it is to be.
        ends: By the clock of the event loop, when to give up.
        namespace: Where it is.
        tenant: Whose it is.
        seen: Called with the resource whenever it may have changed.
    """
    loop = asyncio.get_running_loop()
    async with changes(bus) as changed:
        while True:
            try:
                one = await got(bus, target, namespace=namespace, tenant=tenant)
            except NotFound:
                one = None
            if one is not None and seen is not None:
                seen(one)
            found = met(one)
            if isinstance(found, str):
                return "failed", found
            if found:
                return "met", said_of(one)
            if loop.time() >= ends:
                return "timeout", said_of(one)
            await changed.wait(at_most_s=ends - loop.time())


def _seen(met: Callable[[Raw], bool | str]) -> Condition:
    """A condition of what the operator has looked at since it was last changed."""

    def seen(one: Raw | None) -> bool | str:
        if one is None:
            return False
        looked_at = status_of(one).get("observedGeneration", 0)
        if looked_at and looked_at < one["metadata"].get("generation", 0):
            return False
        return met(one)

    return seen


def _has_condition(one: Raw, kind: str, status: str) -> bool:
    return any(
        each["type"].lower() == kind.lower() and each["status"].lower() == status.lower()
        for each in status_of(one).get("conditions") or ()
    )
