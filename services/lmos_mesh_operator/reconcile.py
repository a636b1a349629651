"""What is to be written so that the mesh matches what people applied. Pure: nothing is done here.

The rule: a Routing is written whole or not at all. One that cannot be renewed stays as it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmos_mesh.resource_index import Kept, ResourceKey
from lmos_mesh.resources import (
    API_VERSION,
    Agent,
    AgentStatus,
    Channel,
    ChannelRouting,
    ChannelRoutingSpec,
    ChannelStatus,
    Condition,
    Metadata,
    Unresolved,
)
from lmos_mesh_operator.resolving import Resolution

MADE_FROM = "lmos.eclipse/channel-generation"
"""The annotation of a Routing that the operator made: the generation of the Channel it is from."""
RESTORED_FROM = "lmos.eclipse/restored-from"
"""The annotation of a Routing that was put back: the revision that it was then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRouting:
    """Activate a Routing.

    Attributes:
        expected: The revision that it replaces, 0 for none.
    """

    key: ResourceKey
    routing: ChannelRouting
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRouting:
    """Forget a Routing that belongs to no Channel, or to one that has moved."""

    key: ResourceKey
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutStatus:
    """Say what became of a resource.

    Attributes:
        turned: Whether it has become resolved, or has ceased to be, which is an event.
    """

    key: ResourceKey
    resource: Channel | Agent
    expected: int
    turned: bool = False


Action = PutRouting | DropRouting | PutStatus


def reconcile(
    channel: Kept, resolution: Resolution, routing: Kept | None, *, now: str
) -> list[Action]:
    """What one Channel needs.

    Its status follows when its Routing is there: it names the Routing's revision.

    Args:
        channel: As it is kept.
        resolution: What it comes to.
        routing: The Routing of its name, as it is kept.
        now: RFC 3339.
    """
    wanted = channel.resource
    assert isinstance(wanted, Channel)
    held = routing.resource if routing is not None else None
    active = held if isinstance(held, ChannelRouting) else None
    status = wanted.status or ChannelStatus()
    ours = active is not None and _place(active) == _place(wanted)
    revision = routing.revision if routing is not None and ours else 0
    if resolution.resolved and not (status.pinned and ours):
        spec = _spec_of(wanted, resolution)
        if not ours or active is None or not _says(active, spec, wanted):
            made = _made(wanted, spec, now)
            return [
                PutRouting(
                    key=key_of_routing(channel.key),
                    routing=made,
                    expected=routing.revision if routing is not None else 0,
                )
            ]
    if routing is not None and not ours:
        # It is labelled for another tenant, channel or subset: nobody may be led there.
        return [DropRouting(key=routing.key, expected=routing.revision)]
    now_is = _status(wanted, resolution, status, revision, now)
    if now_is == wanted.status:
        return []
    return [
        PutStatus(
            key=channel.key,
            resource=wanted.model_copy(update={"status": now_is}),
            expected=channel.revision,
            turned=wanted.status is None or now_is.resolve_status != wanted.status.resolve_status,
        )
    ]


def reconcile_agent(agent: Kept, instances: int) -> list[Action]:
    """What a declared Agent needs: a status that says whether it runs on the mesh."""
    declared = agent.resource
    assert isinstance(declared, Agent)
    status = AgentStatus(
        live=instances > 0,
        instances=instances,
        conditions=declared.status.conditions if declared.status else (),
        observed_generation=declared.metadata.generation,
    )
    if status == declared.status:
        return []
    return [
        PutStatus(
            key=agent.key,
            resource=declared.model_copy(update={"status": status}),
            expected=agent.revision,
        )
    ]


def reconcile_orphan(routing: Kept) -> list[Action]:
    """What a Routing without a Channel needs: to go, if the operator has made it."""
    if MADE_FROM not in routing.resource.metadata.annotations:
        return []
    return [DropRouting(key=routing.key, expected=routing.revision)]


def key_of_routing(channel: ResourceKey) -> ResourceKey:
    """The name of a Channel's Routing."""
    return ResourceKey(ChannelRouting.__name__, channel.namespace, channel.name)


def key_of_channel(routing: ResourceKey) -> ResourceKey:
    """The name of a Routing's Channel."""
    return ResourceKey(Channel.__name__, routing.namespace, routing.name)


def restored(channel: Channel, past: ChannelRouting, revision: int, *, now: str) -> ChannelRouting:
    """An earlier Routing, to be activated again."""
    made = _made(channel, past.spec, now)
    annotations = {**made.metadata.annotations, RESTORED_FROM: str(revision)}
    metadata = made.metadata.model_copy(update={"annotations": annotations})
    return made.model_copy(update={"metadata": metadata})


def missing_in(resolution: Resolution) -> str:
    """What is required and nobody provides, in words."""
    return f"nobody provides {_listed(resolution.missing)}"


def _place(one: Channel | ChannelRouting) -> tuple[str, str, str]:
    return one.tenant, one.channel, one.subset


def _spec_of(channel: Channel, resolution: Resolution) -> ChannelRoutingSpec:
    return ChannelRoutingSpec(
        capability_groups=resolution.groups,
        fallback_agent=resolution.fallback,
        router=channel.spec.router,
        settings=channel.spec.settings,
    )


def _says(routing: ChannelRouting, spec: ChannelRoutingSpec, channel: Channel) -> bool:
    """Whether a Routing is the wanted one already."""
    return routing.spec == spec and routing.metadata.labels == channel.metadata.labels


def _made(channel: Channel, spec: ChannelRoutingSpec, now: str) -> ChannelRouting:
    metadata = channel.metadata
    owner: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "Channel",
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
    }
    return ChannelRouting(
        metadata=Metadata.model_validate(
            {
                "name": metadata.name,
                "namespace": metadata.namespace,
                "labels": metadata.labels,
                "annotations": {MADE_FROM: str(metadata.generation)},
                "creationTimestamp": now,
                "ownerReferences": [owner],
            }
        ),
        spec=spec,
    )


def _status(
    channel: Channel, resolution: Resolution, before: ChannelStatus, revision: int, now: str
) -> ChannelStatus:
    message = _message(resolution, before.pinned and revision > 0, revision)
    generation = channel.metadata.generation
    conditions = [
        _condition(
            before,
            now,
            generation,
            type="Resolved",
            holds=resolution.resolved,
            reason="EverythingProvided" if resolution.resolved else "CapabilitiesMissing",
            message=message,
        ),
        _condition(
            before,
            now,
            generation,
            type="Routed",
            holds=revision > 0,
            reason="RoutingActive" if revision else "NoRouting",
            message=f"the Routing of revision {revision} is active" if revision else "",
        ),
    ]
    if channel.spec.fallback_agent is not None:
        conditions.append(
            _condition(
                before,
                now,
                generation,
                type="FallbackReady",
                holds=not resolution.fallback_fault,
                reason="Unavailable" if resolution.fallback_fault else "Available",
                message=resolution.fallback_fault,
            )
        )
    return ChannelStatus(
        resolve_status="RESOLVED" if resolution.resolved else "UNRESOLVED",
        unresolved_required_capabilities=resolution.missing,
        unresolved_optional=resolution.missing_optional,
        message=message,
        routing_revision=revision,
        pinned=before.pinned and revision > 0,
        conditions=tuple(conditions),
        observed_generation=generation,
    )


def _condition(
    before: ChannelStatus,
    now: str,
    generation: int,
    *,
    type: str,
    holds: bool,
    reason: str,
    message: str,
) -> Condition:
    status = "True" if holds else "False"
    known = next((one for one in before.conditions if one.type == type), None)
    return Condition(
        type=type,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=(
            known.last_transition_time if known is not None and known.status == status else now
        ),
        observed_generation=generation,
    )


def _message(resolution: Resolution, pinned: bool, revision: int) -> str:
    said: list[str] = []
    if resolution.resolved:
        names = sorted({group.name for group in resolution.groups})
        count = sum(len(group.capabilities) for group in resolution.groups)
        noun = "capability" if count == 1 else "capabilities"
        by = f" by {', '.join(names)}" if names else ""
        said.append(f"{count} {noun} provided{by}")
    else:
        said.append(missing_in(resolution))
        if not pinned:
            said.append(
                f"the Routing of revision {revision} stays"
                if revision
                else "there was no Routing before, so nobody answers here"
            )
    if pinned:
        said.append(f"the Routing of revision {revision} was put back and stays until released")
    if resolution.missing_optional:
        said.append(f"without the optional {_listed(resolution.missing_optional)}")
    if resolution.fallback_fault:
        said.append(resolution.fallback_fault)
    return "; ".join(said)


def _listed(missing: Iterable[Unresolved]) -> str:
    return ", ".join(_one(each) for each in missing)


def _one(missing: Unresolved) -> str:
    named = f"{missing.name or missing.id!r} {missing.version}".strip()
    near: Sequence[Any] = missing.near[:1]
    return named + "".join(f" ({one.agent} nearly does: {one.reason})" for one in near)
