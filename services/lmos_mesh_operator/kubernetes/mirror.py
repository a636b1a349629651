"""Keeps the cluster's objects and the mesh's resources alike, while this operator leads.

Whatever is seen on either side only makes a name due; what is then to be done follows from what is
there, so that nothing depends on the order in which news come, or on all of it coming.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.calls import caller_headers
from lmos_mesh.directory import Directory
from lmos_mesh.errors import Conflict, InvalidMessage, MeshError, NotFound, TooLarge
from lmos_mesh.events import rfc3339
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    DELETE_RESOURCE,
    ApplyResource,
    DeleteResource,
)
from lmos_mesh.resource_index import Kept, ResourceKey
from lmos_mesh.resources import KINDS, Agent, Channel, ChannelRollout, ChannelRouting
from lmos_mesh.things import ThingKey
from lmos_mesh_operator.kubernetes import mirroring
from lmos_mesh_operator.kubernetes.cluster import OURS, Cluster, Forbidden
from lmos_mesh_operator.kubernetes.levels import Levels
from lmos_mesh_operator.kubernetes.mirroring import (
    Apply,
    Drop,
    Forget,
    Place,
    Post,
    Put,
    Refuse,
    Seen,
    Shown,
    Step,
)
from lmos_mesh_operator.kubernetes.objects import member
from lmos_mesh_operator.kubernetes.showing import object_of, shown_agent
from lmos_mesh_operator.kubernetes.yielding import OTHER_MESH, Yielding

logger = logging.getLogger(__name__)

_STEPS = 12
_KNOWN_S = 2.0
_NOBODY_S = 5.0
_CALLER = caller_headers("the Kubernetes cluster")
_ASK_AGAIN_S = 30.0
# The member of a status whose changes are events, and when they are bad ones.
_TOLD = {Channel.__name__: "resolveStatus", ChannelRollout.__name__: "phase"}
_FAILED = ("UNRESOLVED", "Aborted", "RolledBack", "Invalid")

Tell = Callable[..., None]


class _Refusal(NamedTuple):
    """Why an object was not taken, as it was beside what there was."""

    at: tuple[str, str]
    message: str
    until: float


class Mirror:
    """Both sides, and what is different between them.

    Args:
        bus: Where resources are applied.
        applied: What there is on the mesh.
        directory: Who is on the mesh.
        cluster: The cluster's API.
        tell: Posts a Kubernetes event.
        store: The identity of the mesh's store.
        is_same_store: Whether the mesh's store is that one still.
        namespaces: What is mirrored; none for all.
        home: The namespace in which agents of the mesh are shown.
        is_leader: Whether we may write.
        clock: Unix seconds.
    """

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        directory: Directory,
        cluster: Cluster,
        *,
        tell: Tell,
        store: str,
        is_same_store: Callable[[], Awaitable[bool]],
        namespaces: Sequence[str],
        home: str,
        is_leader: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.writes = 0
        self._bus = bus
        self._applied = applied
        self._directory = directory
        self._cluster = cluster
        self._tell = tell
        self._store = store
        self._is_same_store = is_same_store
        self.lost = asyncio.Event()
        """Set when the store was lost: whatever is missing in it was not deleted by anybody."""
        self._namespaces = frozenset(namespaces)
        self._home = home
        self._is_leader = is_leader
        self._clock = clock
        self._seen: dict[ResourceKey, Seen] = {}
        self._things: dict[ResourceKey, ThingKey] = {}
        self._agreed: dict[ResourceKey, tuple[str, str]] = {}
        self._refused: dict[ResourceKey, _Refusal] = {}
        self._told: dict[ResourceKey, tuple[str, str]] = {}
        self._yielding = Yielding(store)
        self.levels = Levels[ResourceKey](self._level, failed=self._failed)

    def seen(self, key: ResourceKey) -> Seen | None:
        """An object as the cluster was last seen to have it."""
        return self._seen.get(key)

    def agents(self) -> list[Seen]:
        """All Agents of the cluster."""
        return [one for one in self._seen.values() if one.key.kind == Agent.__name__]

    # -- what has changed --

    def everything(self) -> None:
        """Look at all there is on either side."""
        self.on_things(one.key for one in self._directory.membership)
        self.levels.look_at([*(one.key for one in self._applied.index), *self._seen])

    def on_resources(self, changed: Iterable[ResourceKey]) -> None:
        """Resources of the mesh have changed."""
        for key in changed:
            self.levels.look_at([key])
            if key.kind == Agent.__name__:
                # An agent of the mesh is not shown beside one that is declared.
                names = [one for one, thing in self._things.items() if thing.name == key.name]
                self.levels.look_at(names)

    def on_things(self, changed: Iterable[ThingKey]) -> None:
        """Agents of the mesh have come, gone or changed."""
        for thing in changed:
            key = object_of(thing, self._home)
            self._things[key] = thing
            self.levels.look_at([key])

    def on_object(self, kind: str, body: Mapping[str, Any], gone: bool) -> None:
        """An object of the cluster has changed."""
        metadata = body["metadata"]
        key = ResourceKey(kind, str(metadata.get("namespace", "")), str(metadata["name"]))
        seen = Seen(key=key, body=body)
        known = self._seen.get(key)
        if gone:
            if known is not None and known.uid not in ("", seen.uid):
                return
            self._seen.pop(key, None)
        elif known is not None and known.uid == seen.uid and _is_no_news(seen, known):
            return
        else:
            self._seen[key] = seen
            if known is not None and self._yielding.saw(known, seen, self._clock()):
                self._warn(key, "OtherMesh", OTHER_MESH)
        self.levels.look_at([key])
        if kind == Channel.__name__:
            self.levels.look_at([ResourceKey(ChannelRouting.__name__, key.namespace, key.name)])

    async def read(self) -> None:
        """Read what the cluster has; what was seen before and is not there is forgotten.

        Raises:
            NotFound: The cluster does not know our kinds.
        """
        for kind in KINDS:
            known = {key: one for key, one in self._seen.items() if key.kind == kind}
            found = await self._cluster.list(OURS[kind], sorted(self._namespaces))
            for body in found:
                metadata = body["metadata"]
                known.pop(ResourceKey(kind, metadata["namespace"], metadata["name"]), None)
                self.on_object(kind, {**body, "kind": kind}, False)
            for seen in known.values():
                # It may be newer than the list.
                if self._seen.get(seen.key) is seen:
                    await self.refresh(seen.key)

    # -- one name --

    async def _level(self, key: ResourceKey) -> None:
        if self._namespaces and key.namespace not in self._namespaces:
            return
        for _ in range(_STEPS):
            if not self._is_leader():
                return
            if (left_s := self._yielding.left_s(key, self._clock())) > 0:
                self.levels.look_at_later(key, left_s)
                return
            step = self._next(key)
            if step is None:
                return
            before = self._seen.get(key)
            try:
                if not await self._do(key, step):
                    return
            except (Conflict, NotFound):
                # Somebody was faster; if nothing is different afterwards, it was something else.
                await self.refresh(key)
                now = self._seen.get(key)
                if (before and before.version) == (now and now.version):
                    raise

    def _next(self, key: ResourceKey) -> Step | None:
        seen, kept = self._seen.get(key), self._applied.index.kept(key)
        place = Place(store=self._store, tenant=self._bus.tenant, now=rfc3339(self._clock()))
        if key.kind == ChannelRouting.__name__:
            channel = self._seen.get(ResourceKey(Channel.__name__, key.namespace, key.name))
            wanted = mirroring.routing_shown(kept, channel)
            return mirroring.show(seen, wanted, place)
        if seen.is_of_mesh if seen is not None else key in self._things and kept is None:
            return mirroring.show(seen, self._wanted(key), place)
        at = _said(seen, kept)
        refused = self._refused.get(key)
        holds = refused is not None and refused.at == at and self._clock() < refused.until
        return mirroring.mirror(
            seen,
            kept,
            place,
            agreed=self._agreed.get(key) == at,
            refusal=refused.message if refused is not None and holds else "",
        )

    def _wanted(self, key: ResourceKey) -> Shown | None:
        thing = self._things.get(key)
        entered = self._directory.membership.get(thing) if thing is not None else None
        if thing is None or entered is None or entered.thing.kind != "agent":
            self._things.pop(key, None)
            return None
        declared = (
            one for one in self._applied.index.keys(Agent.__name__) if one.name == thing.name
        )
        for one in declared:
            agent = self._applied.get(Agent, one.namespace, one.name)
            if agent is not None and agent.subset == thing.subset and self._is_mirrored(one):
                return None
        instances = len(self._directory.membership.serving(thing))
        return shown_agent(thing, entered.thing, instances, self._home)

    def _is_mirrored(self, key: ResourceKey) -> bool:
        return not self._namespaces or key.namespace in self._namespaces

    async def _do(self, key: ResourceKey, step: Step) -> bool:
        """Whether there is more to do at once."""
        match step:
            case Post():
                self.writes += 1
                await self._take(key, step, await self._cluster.post(OURS[key.kind], step.body))
            case Put():
                self.writes += 1
                part = "status" if step.status else ""
                # The watch may be told of it before we are.
                before = self._seen[key]
                after = await self._cluster.put(OURS[key.kind], step.body, part=part)
                if step.status:
                    self._tell_of_status(before, step.body)
                await self._take(key, step, after)
            case Drop(seen=seen):
                if not await self._is_same_store():
                    self.lost.set()
                    return False
                self.writes += 1
                logger.info("%s is deleted from the cluster", key)
                await self._cluster.delete(
                    OURS[key.kind], key.namespace, key.name, uid=seen.uid, version=seen.version
                )
                return False
            case Apply():
                await self._apply(key, step)
            case Forget():
                await self._forget(key, step)
                return False
            case Refuse(message=message):
                self._warn(key, "Refused", message)
                return False
        return True

    async def _take(self, key: ResourceKey, step: Post | Put, body: Mapping[str, Any]) -> None:
        # Nobody keeps it any more: what was answered is how it was when it went, in a version that
        # may be no newer than what was seen.
        gone = Seen(key=key, body=body)
        self.on_object(key.kind, body, gone.leaving and not gone.finalizers)
        seen = self._seen.get(key)
        if seen is None or (isinstance(step, Put) and step.status):
            return
        also = mirroring.settled(step, seen)
        if also is not None:
            logger.warning(
                "the cluster has kept less of %s than it was given: "
                "its definitions of our kinds are older than this operator (apply deploy/crds)",
                key,
            )
            self.writes += 1
            self.on_object(key.kind, await self._cluster.put(OURS[key.kind], also.body), False)

    async def _apply(self, key: ResourceKey, step: Apply) -> None:
        seen = self._seen[key]
        known = self._applied.index.kept(key)
        try:
            if known is not None:
                await self._change_hands(known, step.tenant)
            request = ApplyResource(resource=step.resource)
            said = await self._bus.call(
                APPLY_RESOURCE,
                request,
                tenant=step.tenant,
                headers=_CALLER,
                nobody_s=_NOBODY_S,
            )
        except (InvalidMessage, Conflict, TooLarge) as exc:
            until = math.inf
            if isinstance(exc, Conflict):  # whatever is in its way may go
                until = self._clock() + _ASK_AGAIN_S
                self.levels.look_at_later(key, _ASK_AGAIN_S)
            self._refused[key] = _Refusal(_said(seen, known), str(exc), until)
            self._warn(key, "Refused", str(exc))
            return
        self._refused.pop(key, None)
        await self._applied.until_known(key, said.revision, within_s=_KNOWN_S)
        kept = self._applied.index.kept(key)
        if kept is not None:
            self._agreed[key] = _said(seen, kept)
        if said.what != "unchanged":
            notes = "".join(f"; {note}" for note in said.notes)
            self._tell_about(key, True, "Applied", f"{said.what} on the mesh{notes}")

    async def _change_hands(self, known: Kept, tenant: str) -> None:
        """Nobody may replace what is another tenant's; but here it is the cluster that says so."""
        owner = mirroring.tenant_of(known.resource, self._bus.tenant)
        if isinstance(known.resource, Agent) or owner == tenant:
            return
        await self._delete(known.key, owner)

    async def _forget(self, key: ResourceKey, step: Forget) -> None:
        await self._delete(key, step.tenant)
        logger.info("%s is deleted from the mesh", key)

    async def _delete(self, key: ResourceKey, tenant: str) -> None:
        request = DeleteResource(kind=key.kind, namespace=key.namespace, name=key.name)
        try:
            await self._bus.call(
                DELETE_RESOURCE, request, tenant=tenant, headers=_CALLER, nobody_s=_NOBODY_S
            )
        except NotFound:
            logger.debug("%s is gone already", key)

    async def refresh(self, key: ResourceKey) -> None:
        """Look how the cluster has an object now."""
        try:
            body = await self._cluster.get(OURS[key.kind], key.namespace, key.name)
        except NotFound:
            self._seen.pop(key, None)
            self.levels.look_at([key])
        else:
            self.on_object(key.kind, body, False)

    # -- what people are told --

    def _failed(self, key: ResourceKey, error: MeshError) -> None:
        logger.warning("cannot mirror %s, trying again: %s", key, error)
        if not isinstance(error, Conflict):
            reason = "Forbidden" if isinstance(error, Forbidden) else "NotMirrored"
            self._tell_about(key, False, reason, str(error))

    def _warn(self, key: ResourceKey, reason: str, message: str) -> None:
        if self._told.get(key) != (reason, message):
            said = "is refused" if reason == "Refused" else "is left alone a while"
            logger.warning("%s %s: %s", key, said, message)
        self._tell_about(key, False, reason, message)

    def _tell_about(self, key: ResourceKey, normal: bool, reason: str, message: str) -> None:
        seen = self._seen.get(key)
        if seen is None or self._told.get(key) == (reason, message):
            return
        self._told[key] = reason, message
        self._tell(seen.body, normal=normal, reason=reason, message=message)

    def _tell_of_status(self, before: Seen, body: Mapping[str, Any]) -> None:
        """An event when a Channel has become resolved or a rollout has got on."""
        said = _TOLD.get(before.key.kind, "")
        status = member(body, "status")
        now = status.get(said)
        if now and now != member(before.body, "status").get(said):
            reason = str(now).capitalize() if str(now).isupper() else str(now)
            message = str(status.get("message", ""))
            self._tell(before.body, normal=now not in _FAILED, reason=reason, message=message)


def _said(seen: Seen | None, kept: Kept | None) -> tuple[str, str]:
    return (
        seen.said if seen is not None else "",
        mirroring.said_by(kept.resource) if kept is not None else "",
    )


def _is_no_news(one: Seen, known: Seen) -> bool:
    try:
        if int(one.version) < int(known.version):
            return True
    except ValueError:
        pass
    return one.version == known.version and one.leaving == known.leaving
