"""What is different about two Routings, in words, and which agents of one are gone. Pure."""

from collections.abc import Iterable, Mapping

from lmos_mesh.resources import ChannelRouting
from lmos_mesh_operator.reconcile import MADE_FROM, RESTORED_FROM
from lmos_mesh_operator.resolving import Candidate

_FEW = 6


def why_rewired(before: ChannelRouting | None, after: ChannelRouting) -> str:
    """Why a Routing was written in place of another, and what it changed."""
    changed = _listed(_changes(_wires(before), _wires(after)))
    if before is None:
        return f"the Channel was resolved: {changed}"
    was, now = before.metadata.annotations, after.metadata.annotations
    if was.get(MADE_FROM) != now.get(MADE_FROM):
        cause = "the Channel was changed"
    elif RESTORED_FROM in was:
        cause = "it was released"
    else:
        cause = "its agents changed"
    return f"{cause}: {changed}"


def gone_from(routing: ChannelRouting, candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """For each agent of a Routing that cannot do its part any more, a sentence that says why."""
    known = list(candidates)
    told: list[str] = []
    for group in routing.spec.capability_groups:
        same = [one for one in known if (one.name, one.subset) == (group.name, group.subset)]
        if not same:
            told.append(f"agent {group.name!r} ({group.subset}) is gone: no turn can go there")
        elif not any(one.live or one.declared for one in same):
            told.append(
                f"agent {group.name!r} ({group.subset}) has no live instance: "
                "no turn goes there until it is back"
            )
        else:
            offered = {
                word: offer.said
                for one in same
                for offer in one.offers
                for word in (offer.id, offer.name)
            }
            for wire in group.capabilities:
                word = wire.name or wire.id
                said = offered.get(wire.id) or offered.get(wire.name)
                if said is None:
                    told.append(f"agent {group.name!r} does not provide {word!r} any more")
                elif said != wire.provided_version:
                    told.append(
                        f"agent {group.name!r} provides {word!r} in version {said} now, "
                        f"not {wire.provided_version}: it is the one that answers"
                    )
    return tuple(told)


def _wires(routing: ChannelRouting | None) -> dict[str, str]:
    """For each capability that is required, who provides it and in which version."""
    if routing is None:
        return {}
    return {
        wire.name or wire.id: f"{group.name} {wire.provided_version}"
        for group in routing.spec.capability_groups
        for wire in group.capabilities
    }


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        if was is None:
            found.append(f"{name} by {now}")
        elif now is None:
            found.append(f"{name} no longer")
        else:
            found.append(f"{name} by {now}, not {was}")
    return found


def _listed(changes: list[str]) -> str:
    more = f"; and {len(changes) - _FEW} more" if len(changes) > _FEW else ""
    return ("; ".join(changes[:_FEW]) or "nobody else answers") + more
