"""What the cluster and the mesh's store need so that both say the same. Pure: nothing is done here.

The rule: an object of the cluster remembers what either side said when they were last alike. What
has changed since then is copied to the other side; where both have changed, the cluster counts.
Every decision is the next step, made from what is there, so it may be made again at any time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resource_index import Kept, ResourceKey, shown
from lmos_mesh.resources import (
    API_VERSION,
    TENANT_LABEL,
    Agent,
    Channel,
    ChannelRouting,
    Resource,
)
from lmos_mesh.things import SHARED
from lmos_mesh.wrong_fields import told
from lmos_mesh_operator.kubernetes.objects import annotations, labels, members, metadata
from lmos_mesh_operator.kubernetes.statuses import as_of, condition, copied, lean, normal_status

MIRRORED = "lmos.eclipse/mirrored"
"""The annotation of a cluster object: what it, the store, said when they were last alike."""
FINALIZER = "lmos.eclipse/mirror"
"""Keeps an object until the store has heard that it is deleted."""
SOURCE_LABEL = "lmos.eclipse/source"
OF_MESH = "mesh"
"""The label of Agents that are shown in the cluster because they are on the mesh."""
ACCEPTED = "Accepted"
"""The condition that says whether the mesh has taken an object."""
DESCRIBED = "Described"
"""The condition of an Agent made from a Deployment: whether that has said what it can do."""

NOT_YOURS = {
    "ChannelRouting": "a ChannelRouting is made by the operator: apply its Channel",
    "Agent": f"its label {SOURCE_LABEL} is for agents of the mesh: leave it out",
}


class Memory(NamedTuple):
    """What was said on either side when they were last alike, as hashes.

    Attributes:
        store: Which store it was: one that was lost and made anew has forgotten nothing.
    """

    cluster: str
    mesh: str
    store: str

    def __str__(self) -> str:
        return ".".join(self)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An object as the cluster has it."""

    key: ResourceKey
    body: Mapping[str, Any]

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Its metadata."""
        return metadata(self.body)

    @property
    def uid(self) -> str:
        """Its identity; the name may be given again."""
        return str(self.metadata.get("uid", ""))

    @property
    def version(self) -> str:
        """Its `resourceVersion`."""
        return str(self.metadata.get("resourceVersion", ""))

    @property
    def generation(self) -> int:
        """Rises with its spec."""
        return int(self.metadata.get("generation") or 0)

    @property
    def leaving(self) -> bool:
        """Whether somebody has deleted it, and a finalizer keeps it still."""
        return bool(self.metadata.get("deletionTimestamp"))

    @property
    def finalizers(self) -> Sequence[str]:
        """Who keeps it."""
        return cast("Sequence[str]", self.metadata.get("finalizers") or ())

    @property
    def memory(self) -> Memory | None:
        """What it remembers; None if it was never mirrored."""
        parts = str(annotations(self.body).get(MIRRORED, "")).split(".")
        return Memory(*parts) if len(parts) == 3 else None

    @property
    def is_of_mesh(self) -> bool:
        """Whether it only shows an agent of the mesh."""
        return self.key.kind == Agent.__name__ and labels(self.body).get(SOURCE_LABEL) == OF_MESH

    @cached_property
    def read(self) -> tuple[Resource | None, str]:
        """The resource that it is; or None, and what is wrong with it."""
        resource, faults = read_resource(
            {
                "apiVersion": API_VERSION,
                "kind": self.key.kind,
                "metadata": {
                    "name": self.key.name,
                    "namespace": self.key.namespace,
                    "labels": labels(self.body),
                },
                "spec": self.body.get("spec"),
            }
        )
        return resource, told(faults) if resource is None else ""

    @cached_property
    def said(self) -> str:
        """The hash of what it says."""
        resource, _ = self.read
        if resource is not None:
            return said_by(resource)
        return _hash([self.metadata.get("labels"), self.body.get("spec")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the cluster is to show of the mesh, and never has a say in.

    Attributes:
        owner: Whose object goes takes it along.
    """

    resource: Resource
    owner: Mapping[str, Any] | None = None

    @property
    def said(self) -> str:
        """The hash of what it says."""
        return said_by(self.resource)


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Make an object in the cluster."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Replace an object of the cluster, or its status, if it is as it was seen.

    Attributes:
        status: Whether it is the status only.
        of_mesh: Whether it says from now on what the mesh says.
    """

    body: dict[str, Any]
    status: bool = False
    of_mesh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Delete an object of the cluster, if it is as it was seen."""

    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Apply a resource to the store, as a tenant."""

    resource: dict[str, Any]
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Delete a resource from the store, as a tenant."""

    kept: Kept
    tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Tell that an object was not taken; it stays as it is."""

    message: str


Step = Post | Put | Drop | Apply | Forget | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a decision is made.

    Attributes:
        store: The identity of the mesh's store.
        tenant: For what names none.
        now: RFC 3339.
    """

    store: str
    tenant: str
    now: str


def mirror(
    seen: Seen | None,
    kept: Kept | None,
    place: Place,
    *,
    agreed: bool = False,
    refusal: str = "",
) -> Step | None:
    """The next step for what people write on either side; None if there is nothing to do.

    Args:
        seen: The object of the cluster.
        kept: The resource of the store.
        place: Where.
        agreed: Whether the store has taken just this object, as just this resource.
        refusal: Why the store has not taken it, as it is; empty if it was not asked.
    """
    if seen is None:
        return Post(body=_object(kept.resource, place)) if kept is not None else None
    if seen.leaving:
        return _farewell(seen, kept, place)
    memory = _memory(seen, place)
    mesh_says = said_by(kept.resource) if kept is not None else ""
    resource, faults = seen.read
    if memory is None or memory.cluster != seen.said:
        if resource is None:
            return _refused(seen, kept, faults, place)
        if FINALIZER not in seen.finalizers:
            return Put(body=_adopted(seen))
        if agreed or (kept is not None and mesh_says == said_by(filled(resource, place.tenant))):
            return Put(body=remembering(seen, Memory(seen.said, mesh_says, place.store)))
        if refusal:
            return _refused(seen, kept, refusal, place)
        return Apply(resource=_applicable(resource, kept), tenant=tenant_of(resource, place.tenant))
    if memory.mesh != mesh_says:
        if kept is None:
            return Drop(seen=seen)
        return Put(body=_rewritten(seen, kept.resource, place), of_mesh=True)
    if FINALIZER not in seen.finalizers:
        return Put(body=_adopted(seen))
    assert kept is not None
    return _status_of(seen, _status(seen, kept, "", place))


def show(seen: Seen | None, wanted: Shown | None, place: Place) -> Step | None:
    """The next step for what the cluster only shows: Routings, and agents of the mesh."""
    if seen is None:
        return Post(body=_shown_object(wanted, place)) if wanted is not None else None
    if seen.leaving:
        return None
    if wanted is None:
        if seen.memory is not None:
            return Drop(seen=seen)
        return Refuse(message=NOT_YOURS[seen.key.kind])
    memory = _memory(seen, place)
    owners = [wanted.owner] if wanted.owner is not None else []
    if (
        memory is None
        or memory.cluster != seen.said
        or memory.mesh != wanted.said
        or list(seen.metadata.get("ownerReferences") or ()) != owners
    ):
        body = _rewritten(seen, wanted.resource, place)
        body["metadata"]["ownerReferences"] = owners
        return Put(body=body, of_mesh=True)
    if isinstance(wanted.resource, Agent):
        status = shown(wanted.resource).get("status", {})
        return _status_of(seen, as_of(status, 0, seen.generation))
    return None


def settled(before: Put | Post, after: Seen) -> Put | None:
    """What to remember where the cluster has kept less of an object than it was given.

    Its definitions are older than ours, and would otherwise seem to have changed by themselves.
    """
    if after.leaving or (isinstance(before, Put) and not before.of_mesh):
        return None
    memory = Seen(key=after.key, body=before.body).memory
    if memory is None or memory.cluster == after.said:
        return None
    return Put(body=remembering(after, memory._replace(cluster=after.said)))


def filled(resource: Resource, tenant: str) -> Resource:
    """A resource as the store keeps it: with the label of its tenant."""
    if resource.tenant:
        return resource
    labels = {**resource.metadata.labels, TENANT_LABEL: tenant_of(resource, tenant)}
    metadata = resource.metadata.model_copy(update={"labels": labels})
    return resource.model_copy(update={"metadata": metadata})


def tenant_of(resource: Resource, tenant: str) -> str:
    """Who may apply and delete a resource: its label says so, else it is the operator's own.

    An Agent without the label is the tenant's that it is for; for several or for anybody, as LMOS
    has it, it is declared for all.
    """
    if resource.tenant or not isinstance(resource, Agent):
        return resource.tenant or tenant
    served = resource.spec.supported_tenants
    return served[0] if len(served) == 1 else SHARED


def said_by(resource: Resource) -> str:
    """The hash of what people say in a resource: its labels and its spec."""
    told_of = shown(resource)
    return _hash([told_of["metadata"].get("labels", {}), told_of.get("spec")])


def remembering(seen: Seen, memory: Memory) -> dict[str, Any]:
    """An object that remembers what was said on either side."""
    body = copied(seen.body)
    body["metadata"].setdefault("annotations", {})[MIRRORED] = str(memory)
    return body


def _farewell(seen: Seen, kept: Kept | None, place: Place) -> Step | None:
    if FINALIZER not in seen.finalizers:
        return None
    if kept is not None:
        resource, _ = seen.read
        ours = _memory(seen, place) is not None or (
            resource is not None
            and said_by(filled(resource, place.tenant)) == said_by(kept.resource)
        )
        if ours:
            return Forget(kept=kept, tenant=tenant_of(kept.resource, place.tenant))
    body = copied(seen.body)
    body["metadata"]["finalizers"] = [one for one in seen.finalizers if one != FINALIZER]
    return Put(body=body)


def _memory(seen: Seen, place: Place) -> Memory | None:
    """What it remembers of this very store."""
    memory = seen.memory
    return memory if memory is not None and memory.store == place.store else None


def _refused(seen: Seen, kept: Kept | None, message: str, place: Place) -> Step | None:
    return _status_of(seen, _status(seen, kept, message, place)) or Refuse(message=message)


# -- objects --


def _object(resource: Resource, place: Place) -> dict[str, Any]:
    """A new object that has been in the store already."""
    says = said_by(resource)
    body = _bare(resource, Memory(says, says, place.store))
    body["metadata"]["finalizers"] = [FINALIZER]
    return body


def _shown_object(wanted: Shown, place: Place) -> dict[str, Any]:
    body = _bare(wanted.resource, Memory(wanted.said, wanted.said, place.store))
    if wanted.owner is not None:
        body["metadata"]["ownerReferences"] = [dict(wanted.owner)]
    return body


def _bare(resource: Resource, memory: Memory) -> dict[str, Any]:
    told_of = shown(resource)
    return {
        "apiVersion": API_VERSION,
        "kind": told_of["kind"],
        "metadata": {
            "name": resource.metadata.name,
            "namespace": resource.metadata.namespace,
            "labels": dict(resource.metadata.labels),
            "annotations": {MIRRORED: str(memory)},
        },
        "spec": lean(getattr(resource, "spec", None)),
    }


def _rewritten(seen: Seen, resource: Resource, place: Place) -> dict[str, Any]:
    """An object that says what the mesh says, and keeps what is the cluster's own."""
    says = said_by(resource)
    body = remembering(seen, Memory(says, says, place.store))
    body["metadata"]["labels"] = dict(resource.metadata.labels)
    body["spec"] = lean(getattr(resource, "spec", None))
    return body


def _adopted(seen: Seen) -> dict[str, Any]:
    body = copied(seen.body)
    body["metadata"]["finalizers"] = [*seen.finalizers, FINALIZER]
    return body


def _applicable(resource: Resource, kept: Kept | None) -> dict[str, Any]:
    """What to apply: annotations are either side's own, and those of the store stay."""
    annotations = kept.resource.metadata.annotations if kept is not None else {}
    metadata = resource.metadata.model_copy(update={"annotations": annotations})
    told_of = shown(resource.model_copy(update={"metadata": metadata}))
    told_of.pop("status", None)
    return told_of


# -- status --


def _status(seen: Seen, kept: Kept | None, refusal: str, place: Place) -> dict[str, Any]:
    """What an object's status is to be, whether or not it was taken."""
    if kept is not None:
        status = shown(kept.resource).get("status", {})
        generation = kept.resource.metadata.generation
        # Whatever was observed, it was not what was refused.
        reached = max(0, seen.generation - 1) if refusal else seen.generation
        status = as_of(status, generation, reached)
    else:
        status = copied(members(seen.body.get("status")))
    accepted: dict[str, Any] = {
        "type": ACCEPTED,
        "status": "False" if refusal else "True",
        "reason": "Refused" if refusal else "Mirrored",
        "message": refusal,
        "lastTransitionTime": place.now,
        "observedGeneration": seen.generation,
    }
    before = members(seen.body.get("status"))
    known = condition(before, ACCEPTED)
    if known is not None and known.get("status") == accepted["status"]:
        accepted["lastTransitionTime"] = known.get("lastTransitionTime", place.now)
    own = [accepted]
    if (described := condition(before, DESCRIBED)) is not None:
        own.insert(0, copied(described))
    of_store = [one for one in status.get("conditions", ()) if one.get("type") not in _CLUSTERS]
    return {**status, "conditions": [*of_store, *own]}


def _status_of(seen: Seen, status: Mapping[str, Any]) -> Put | None:
    wanted = normal_status(seen.key.kind, status)
    if normal_status(seen.key.kind, members(seen.body.get("status"))) == wanted:
        return None
    return Put(body={**copied(seen.body), "status": wanted}, status=True)


_CLUSTERS = frozenset({ACCEPTED, DESCRIBED})


def routing_shown(kept: Kept | None, channel: Seen | None) -> Shown | None:
    """What the cluster shows of a Routing: it belongs to the Channel's object, and goes with it."""
    if kept is None or channel is None or channel.leaving:
        return None
    assert isinstance(kept.resource, ChannelRouting)
    owner = {
        "apiVersion": API_VERSION,
        "kind": Channel.__name__,
        "name": channel.key.name,
        "uid": channel.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return Shown(resource=kept.resource, owner=owner)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:20]
