"""How the cluster shows agents that are on the mesh: as an Agent that follows them. Pure.

An agent that somebody has declared, or that a Deployment makes, is shown by that Agent alone.
"""

import hashlib
import re

from lmos_mesh import subjects
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resources import (
    SUBSET_LABEL,
    TENANT_LABEL,
    Agent,
    AgentSpec,
    AgentStatus,
    Metadata,
    ProvidedCapability,
)
from lmos_mesh.things import DEFAULT_SUBSET, SHARED, Thing, ThingKey
from lmos_mesh_operator.kubernetes.mirroring import OF_MESH, SOURCE_LABEL, Shown

NAME_LABEL = "lmos.eclipse/agent"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?\Z")
_LABEL_LENGTH = 63
_NAME_LENGTH = 253


def object_of(key: ThingKey, namespace: str) -> ResourceKey:
    """What an agent is called in the cluster: `billing.demo`, `billing.canary.demo`."""
    subset = () if key.subset == DEFAULT_SUBSET else (key.subset,)
    name = ".".join(_part(one) for one in (key.name, *subset, key.tenant))
    if len(name) > _NAME_LENGTH:
        name = f"x--{hashlib.sha256(name.encode()).hexdigest()}"
    return ResourceKey(Agent.__name__, namespace, name)


def shown_agent(key: ThingKey, thing: Thing, instances: int, namespace: str) -> Shown:
    """What the cluster shows of an agent."""
    labels = {
        SOURCE_LABEL: OF_MESH,
        NAME_LABEL: key.name,
        SUBSET_LABEL: key.subset,
        TENANT_LABEL: key.tenant,
    }
    supported = thing.supported_tenants
    if key.tenant != SHARED:
        supported = tuple(dict.fromkeys((key.tenant, *supported)))
    name = object_of(key, namespace).name
    said = {name: value for name, value in labels.items() if _is_label(value)}
    return Shown(
        resource=Agent(
            metadata=Metadata(name=name, namespace=namespace, labels=said),
            spec=AgentSpec(
                id=key.name,
                description=thing.description,
                supported_tenants=supported,
                supported_channels=thing.supported_channels,
                provided_capabilities=tuple(
                    ProvidedCapability(
                        id=one.id or one.name,
                        name=one.name or one.id,
                        version=one.version,
                        description=one.description,
                        examples=one.examples,
                    )
                    for one in thing.capabilities
                ),
            ),
            status=AgentStatus(live=instances > 0, instances=instances),
        )
    )


def _part(id: str) -> str:
    """An id where only lower case, digits and hyphens may be; never the same for two."""
    if _NAME.match(id) and not id.startswith("x--"):
        return id
    return "x--" + subjects.escape("." + id)[2:]


def _is_label(value: str) -> bool:
    return len(value) <= _LABEL_LENGTH and _LABEL.match(value) is not None
