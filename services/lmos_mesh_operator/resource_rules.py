"""What may be applied, by whom, and what becomes of it. Pure: the caller brings time and store."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lmos_mesh.errors import Conflict, InvalidMessage
from lmos_mesh.json_faults import Fault
from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resource_index import ResourceIndex, ResourceKey, key_of
from lmos_mesh.resources import (
    DEFAULT_SUBSET,
    SUBSET_LABEL,
    TENANT_LABEL,
    Agent,
    Channel,
    ChannelRollout,
    ChannelRouting,
    Resource,
)
from lmos_mesh.things import SHARED
from lmos_mesh.weights import name_of
from lmos_mesh.wrong_fields import told
from lmos_mesh_operator.plans import plan_of

_FEW = 6
_KEY_BYTES = 1_000


def admitted(value: Mapping[str, Any], tenant: str) -> tuple[Resource, tuple[str, ...]]:
    """A resource that a tenant may apply, and what was filled in.

    Raises:
        InvalidMessage: It breaks the rules; every fault is listed with a pointer into it.
    """
    resource, faults = read_resource(value)
    if resource is None:
        raise _refused(value, faults)
    if isinstance(resource, ChannelRouting):
        raise InvalidMessage(
            "a ChannelRouting is made by the operator: apply its Channel",
            hint="`lmos rollout undo` puts an earlier one back",
            field="/kind",
        )
    if len(key_of(resource).token) > _KEY_BYTES:
        raise InvalidMessage("/metadata/name: is too long", field="/metadata/name")
    if isinstance(resource, Agent) and tenant != SHARED:
        tenants = resource.spec.supported_tenants
        if tenants and tenant not in tenants:
            said = f"does not name tenant {tenant!r}, who applies it"
            raise _refused(value, [{"field": "/spec/supportedTenants", "description": said}])
    if not resource.tenant:
        labels = {**resource.metadata.labels, TENANT_LABEL: tenant}
        return _with_metadata(resource, labels=labels), (f"its label `tenant` is {tenant!r} now",)
    if resource.tenant != tenant:
        said = f"is {resource.tenant!r}, and tenant {tenant!r} applies it"
        raise _refused(value, [{"field": "/metadata/labels/tenant", "description": said}])
    return resource, ()


def concerns(resource: Resource, tenant: str) -> bool:
    """Whether a resource is a tenant's own, to be seen and changed by it."""
    if isinstance(resource, Agent) and not resource.tenant:
        # Nobody of the mesh has applied it.
        tenants = resource.spec.supported_tenants
        return not tenants or tenant in tenants
    return resource.tenant == tenant


def refuse_anothers(before: Resource | None, tenant: str) -> None:
    """Refuse to replace what another tenant has applied.

    Raises:
        Conflict: The name is taken.
    """
    if before is not None and not concerns(before, tenant):
        raise Conflict(
            f"{key_of(before)} is held by {holder_of(before)}, and all tenants share the names of "
            "a namespace",
            hint="choose another name, or a namespace of your own: lmos apply -n NAME",
            field="/metadata/name",
        )


def holder_of(resource: Resource) -> str:
    """Whose a resource is, in words. Who it is may be known to all; what it says may not."""
    return f"tenant {resource.tenant!r}" if resource.tenant else "other tenants"


def channels_beside(values: Sequence[Mapping[str, Any]], tenant: str) -> tuple[Channel, ...]:
    """The Channels that somebody is about to apply, as they will be; what is none is left out."""
    found: list[Channel] = []
    for value in values:
        read, _ = read_resource(value)
        if not isinstance(read, Channel):
            continue  # it is refused where it is applied itself
        if not read.tenant:
            labels = {**read.metadata.labels, TENANT_LABEL: tenant}
            read = _with_metadata(read, labels=labels)
        found.append(cast("Channel", read))
    return tuple(found)


def rival(index: ResourceIndex, channel: Channel) -> str | None:
    """The name of another Channel of the namespace for the same tenant, channel and subset."""
    own = key_of(channel)
    for key in index.channels_of(channel.tenant, channel.channel, channel.subset):
        if key.namespace == own.namespace and key != own:
            return key.name
    return None


def taken(channel: Channel, name: str) -> Conflict:
    """The error for a Channel that is there already under another name."""
    return Conflict(
        f"channel {channel.channel!r} ({channel.subset}) of tenant {channel.tenant!r} is Channel "
        f"{name!r} of namespace {channel.metadata.namespace!r} already",
        hint="change that one, delete it, or give this one another `subset`",
        name=name,
        field="/metadata/labels",
    )


def successor(resource: Resource, before: Resource | None, *, uid: str, now: str) -> Resource:
    """What is kept when a resource is applied over what is there.

    Its status stays, and what Kubernetes keeps itself in the metadata; its generation rises with
    its spec.
    """
    known = before.metadata if before is not None else None
    generation = known.generation if known is not None else 0
    if before is None or _spec(before) != _spec(resource):
        generation += 1
    made = _with_metadata(
        resource,
        generation=generation,
        uid=(known.uid if known is not None else "") or uid,
        creation_timestamp=(known.creation_timestamp if known is not None else "") or now,
        resource_version="",
    )
    return made.model_copy(update={"status": getattr(before, "status", None)})


def is_same(after: Resource, before: Resource | None) -> bool:
    """Whether nothing would be written."""
    return before is not None and after == _with_metadata(before, resource_version="")


def notes_on(index: ResourceIndex, after: Resource, before: Resource | None) -> list[str]:
    """What whoever applies a resource should know of its consequences."""
    if isinstance(after, ChannelRollout):
        return _notes_on_rollout(index, after, before)
    if not isinstance(after, Channel):
        return []
    notes: list[str] = []
    if not index.closed(after.tenant, after.channel):
        notes.append(
            f"channel {after.channel!r} of tenant {after.tenant!r} was open to every agent; "
            "from now on only what it requires is asked"
        )
    first = index.channel_of(after.tenant, after.channel, after.subset)
    if first is not None and first.metadata.namespace != after.metadata.namespace:
        ours = key_of(after)
        names = sorted([key_of(first), ours], key=_precedence)
        notes.append(f"of {names[0]} and {names[1]} the first one carries turns")
    if isinstance(before, Channel) and before.status is not None and before.status.pinned:
        notes.append("its Routing was put back by hand, and stays until that is released")
    return notes


def _notes_on_rollout(
    index: ResourceIndex, after: ChannelRollout, before: Resource | None
) -> list[str]:
    plan = plan_of(after.spec.strategy)
    stable = index.get(Channel, after.metadata.namespace, plan.stable.name)
    if stable is None or before is not None:
        return []
    known = index.rollout(stable.tenant, stable.channel)
    status = known.status if known is not None else None
    if known is None or status is None or status.phase != "Promoted":
        return []
    if stable.subset == status.canary_subset:
        return []  # it goes on from where everybody is
    back = 100 - plan.steps[0].weight
    return [
        f"rollout {name_of(known)!r} has moved everybody to {status.canary_subset!r}; this one "
        f"begins anew, and sends {back} % of new conversations to {stable.subset!r}"
    ]


def fits(resource: Resource, labels: Mapping[str, str]) -> bool:
    """Whether every label is as wanted; a missing `subset` counts as `stable`."""
    own = resource.metadata.labels
    return all(
        (own.get(name) or (DEFAULT_SUBSET if name == SUBSET_LABEL else "")) == wanted
        for name, wanted in labels.items()
    )


def summary(resource: Resource) -> str:
    """What a resource says, in a few words."""
    if isinstance(resource, Channel):
        required = resource.spec.required_capabilities
        said = "requires " + _some([f"{one.name or one.id} {one.version}" for one in required])
        return f"{said}; {resource.status.resolve_status}" if resource.status else said
    if isinstance(resource, ChannelRouting):
        groups = [
            f"{group.name}: "
            + _some([f"{one.name or one.id} {one.provided_version}" for one in group.capabilities])
            for group in resource.spec.capability_groups
        ]
        return "; ".join(groups) or "nobody"
    if isinstance(resource, ChannelRollout):
        status = resource.status
        if status is not None:
            return f"{status.phase}, {status.canary_weight} %"
        plan = plan_of(resource.spec.strategy)
        return f"from Channel {plan.stable.name!r} to {plan.canary.name!r}"
    if isinstance(resource, Agent):
        provided = resource.spec.provided_capabilities
        return "provides " + _some([f"{one.name or one.id} {one.version}" for one in provided])
    return ""


def without_status(resource: Resource) -> Resource:
    """What people have written of it."""
    return resource.model_copy(update={"status": None})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return (", ".join(names[:_FEW]) or "nothing") + more


def _refused(value: Mapping[str, Any], faults: Sequence[Fault]) -> InvalidMessage:
    metadata: Any = value.get("metadata")
    name: Any = cast("Any", metadata).get("name") if isinstance(metadata, Mapping) else None
    kind: Any = value.get("kind")
    named = f"{kind if isinstance(kind, str) and kind else 'a resource'}"
    if isinstance(name, str) and name:
        named += f" {name[:80]!r}"
    return InvalidMessage(
        f"{named} is refused: {told(faults)}", faults=[dict(fault) for fault in faults]
    )


def _with_metadata(resource: Resource, **update: Any) -> Resource:
    metadata = resource.metadata.model_copy(update=update)
    return resource.model_copy(update={"metadata": metadata})


def _spec(resource: Resource) -> Any:
    return getattr(resource, "spec", None)


def _precedence(key: ResourceKey) -> tuple[bool, str, str]:
    return key.namespace != "default", key.namespace, key.name
