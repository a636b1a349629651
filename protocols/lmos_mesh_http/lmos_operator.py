"""The REST contract of the LMOS operator: channels and routings as the resources that they are.

Pure. What a resource says by the mesh's own members is left out where they say nothing, so that a
strict reader of LMOS's resources takes it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from lmos_mesh import subjects
from lmos_mesh.messages import DEFAULT_CHANNEL, FoundThing
from lmos_mesh.resource_index import ResourceIndex, shown
from lmos_mesh.resources import (
    API_VERSION,
    CHANNEL_LABEL,
    DEFAULT_NAMESPACE,
    SUBSET_LABEL,
    TENANT_LABEL,
    VERSION_LABEL,
    Channel,
    ChannelRouting,
    Resource,
)
from lmos_mesh.things import ANY_CHANNEL, DEFAULT_SUBSET, Capability, ThingKey
from lmos_mesh.wiring import HOST, Wiring, host_of
from lmos_mesh_http.lmos_rest import Address, AddressedAgent, ListedAgent, ListedCapability

OPEN = "lmos.eclipse/open"
"""The annotation of what is told of an open channel, which nobody applied."""
UNVERSIONED = "0.0.0"
"""The version of a channel that names none; clients of LMOS insist on one."""

_OURS = frozenset(
    {
        *("conditions", "fallbackAgent", "message", "near", "observedGeneration", "optional"),
        *("pinned", "router", "routingRevision", "settings", "subset", "unresolvedOptional"),
    }
)
_NOT_TOLD = ("managedFields", "ownerReferences")


def resource_body(resource: Resource) -> dict[str, Any]:
    """A resource as LMOS tells it."""
    said = shown(resource)
    metadata = {name: value for name, value in said["metadata"].items() if name not in _NOT_TOLD}
    metadata["labels"] = _labels(
        resource.tenant,
        resource.channel,
        resource.subset,
        resource.metadata.labels.get(VERSION_LABEL, ""),
    ) | metadata.get("labels", {})
    told = {
        name: _without_what_is_not_said(value)
        for name, value in said.items()
        if name not in ("metadata", "apiVersion", "kind")
    }
    body = {"apiVersion": said["apiVersion"], "kind": said["kind"], "metadata": metadata, **told}
    for one in _capabilities(body):
        one["name"] = one.get("name") or one["id"]
    return body


def _capabilities(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All that LMOS wants a name of; here an id will do."""
    for group in body["spec"].get("capabilityGroups", ()):
        yield from group["capabilities"]
    yield from body["spec"].get("requiredCapabilities", ())
    yield from body.get("status", {}).get("unresolvedRequiredCapabilities", ())


def _labels(tenant: str, channel: str, subset: str, version: str) -> dict[str, str]:
    return {
        CHANNEL_LABEL: channel,
        SUBSET_LABEL: subset,
        TENANT_LABEL: tenant,
        VERSION_LABEL: version or UNVERSIONED,
    }


def _without_what_is_not_said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without_what_is_not_said(one)
            for name, one in cast("Mapping[str, Any]", value).items()
            if name not in _OURS or (one and (name, one) != ("subset", DEFAULT_SUBSET))
        }
    if isinstance(value, list):
        return [_without_what_is_not_said(one) for one in cast("list[Any]", value)]
    return value


# -- what was applied --


def find_channel(
    index: ResourceIndex, tenant: str, channel: str, subset: str, namespace: str | None
) -> Channel | None:
    """The Channel there; without a namespace the one that counts."""
    if namespace is None:
        return index.channel_of(tenant, channel, subset)
    keys = index.channels_of(tenant, channel, subset)
    key = next((one for one in keys if one.namespace == namespace), None)
    return index.get(Channel, key.namespace, key.name) if key is not None else None


def list_channels(
    index: ResourceIndex, tenant: str, subset: str, namespace: str | None
) -> list[Channel]:
    """The Channels of a tenant, by namespace and name; without a namespace those that count."""
    found = [one for one in index.of_kind(Channel) if (one.tenant, one.subset) == (tenant, subset)]
    if namespace is not None:
        return [one for one in found if one.metadata.namespace == namespace]
    return [one for one in found if one is index.channel_of(tenant, one.channel, subset)]


# -- open channels --


def open_channel(tenant: str, channel: str, subset: str) -> dict[str, Any]:
    """An open channel as a Channel: it requires nothing, and all that is there is its Routing."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Channel",
        "metadata": _open_metadata(tenant, channel, subset),
        "spec": {"requiredCapabilities": []},
        "status": {"resolveStatus": "RESOLVED", "unresolvedRequiredCapabilities": []},
    }


def open_routing(
    tenant: str, channel: str, subset: str, agents: Iterable[FoundThing]
) -> dict[str, Any]:
    """The Routing that an open channel amounts to: whoever is live and serves it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ChannelRouting",
        "metadata": _open_metadata(tenant, channel, subset),
        "spec": {"capabilityGroups": [_group(one, tenant) for one in agents if one.capabilities]},
    }


def applies(index: ResourceIndex, tenant: str) -> bool:
    """Whether a tenant has applied any Channel."""
    return any(one.tenant == tenant for one in index.of_kind(Channel))


def open_channels(agents: Iterable[FoundThing]) -> list[str]:
    """The open channels that are known by name: those that agents name, and the usual one."""
    named: set[str] = set()
    for one in agents:
        named.update(DEFAULT_CHANNEL if name == ANY_CHANNEL else name for name in one.channels)
    return sorted(named)


def _open_metadata(tenant: str, channel: str, subset: str) -> dict[str, Any]:
    return {
        "name": f"{tenant}-{channel}-{subset}",
        "namespace": DEFAULT_NAMESPACE,
        "labels": _labels(tenant, channel, subset, ""),
        "annotations": {OPEN: "true"},
    }


def _group(agent: FoundThing, tenant: str) -> dict[str, Any]:
    host = host_of(ThingKey(agent.tenant or tenant, agent.name, agent.subset))
    return {
        "id": agent.name,
        "name": agent.name,
        "description": agent.summary,
        "capabilities": [
            {
                "id": one.id,
                "name": one.name or one.id,
                "requiredVersion": "*",
                "providedVersion": one.version,
                "host": host,
                "description": one.description,
            }
            for one in agent.capabilities
        ],
    }


# -- the agents of a closed channel --


def routed_agents(
    routing: ChannelRouting, wiring: Wiring, live: Collection[FoundThing]
) -> tuple[AddressedAgent, ...]:
    """The agents of a Routing with what is wired of them; of those on the bus, the live ones.

    Their version is that of the channel, as LMOS has it, or where that has none, their own.
    """
    version = routing.metadata.labels.get(VERSION_LABEL, "")
    there = {(one.name, one.subset): one for one in live}
    found: list[AddressedAgent] = []
    for group in routing.spec.capability_groups:
        host = group.capabilities[0].host if group.capabilities else ""
        on_bus = host.startswith(HOST)
        key = ThingKey(
            subjects.tenant_of(host.removeprefix(HOST)) if on_bus else wiring.tenant,
            group.name,
            group.subset,
        )
        agent = there.get((key.name, key.subset))
        if agent is not None and (agent.tenant or wiring.tenant) != key.tenant:
            agent = None  # one that is called alike, of the tenant itself or shared
        if on_bus and agent is None:
            continue
        listed = ListedAgent(
            id=group.id or group.name,
            name=group.name,
            version=version or (agent.version if agent is not None else UNVERSIONED),
            description=group.description or (agent.summary if agent is not None else ""),
            capabilities=tuple(
                ListedCapability(
                    id=one.id or one.name,
                    name=one.name or one.id,
                    version=one.provided_version,
                    description=one.description,
                )
                for one in group.capabilities
            ),
        )
        if agent is not None:
            names = wiring.agents.get(key, frozenset())
            addresses = _addresses(key, (one for one in agent.capabilities if _is(one, names)))
        else:
            addresses = (Address(protocol="http", uri=host),)
        found.append(AddressedAgent(**dict(listed), addresses=addresses))
    return tuple(found)


def _is(capability: Capability, names: Collection[str]) -> bool:
    return capability.id in names or capability.name in names


def _addresses(key: ThingKey, capabilities: Iterable[Capability]) -> tuple[Address, ...]:
    return tuple(
        Address(protocol="nats", uri=HOST + subjects.agent_invoke(*key, one.id))
        for one in capabilities
    )
