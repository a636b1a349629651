"""Takes what people apply, and says what there is: the part of the operator that every replica is.

What is asked about one resource is read from the store, so that whoever wrote reads it back.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus, Route, route
from lmos_mesh.calls import Call
from lmos_mesh.errors import Conflict, InvalidMessage
from lmos_mesh.events import rfc3339
from lmos_mesh.json_faults import Fault
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    DELETE_RESOURCE,
    GET_RESOURCE,
    GET_RESOURCE_HISTORY,
    LIST_RESOURCES,
    RESTORE_ROUTING,
    ApplyResource,
    DeleteResource,
    FoundResource,
    GetResource,
    GetResourceHistory,
    ListResources,
    ResourceApplied,
    ResourceDeleted,
    ResourceHistory,
    ResourcesListed,
    ResourceStep,
    ResourceVersion,
)
from lmos_mesh.resource_index import Kept, ResourceKey, key_of, shown
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting, Resource
from lmos_mesh_operator import resource_rules as rules
from lmos_mesh_operator.addressing import (
    TRIES,
    busy,
    check_revision,
    key_of_named,
    kind_of_named,
    past_of,
    unknown,
)
from lmos_mesh_operator.chronicle import read_steps, write_step
from lmos_mesh_operator.plans import plan_of
from lmos_mesh_operator.reconcile import key_of_routing
from lmos_mesh_operator.restoring import Restoring

_KNOWN_S = 2.0
_REMEMBERED = 4096
# A reply's own members, and what its encoding adds.
_ROOM = 0.9
_ROOM_BYTES = 4096


class Keeping:
    """The operator's endpoints about resources.

    Args:
        bus: Where the resources are.
        applied: What there is.
        check: Says what else is wrong with a resource, in view of the others, and of Channels
            that are to be there by then; None if nothing is.
        foresee: What would become of a Channel, in a sentence; empty if it would be resolved.
        gone: Which agents of a Channel's earlier Routing cannot do their part any more, and why.
    """

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        *,
        check: Callable[[Resource, Sequence[Channel]], Fault | None] = lambda _, __: None,
        foresee: Callable[[Channel], str] = lambda _: "",
        gone: Callable[[Channel, ChannelRouting], Sequence[str]] = lambda _, __: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._applied = applied
        self._store = ResourceStore(bus)
        self._restoring = Restoring(bus, applied, self._store, gone=gone, clock=clock)
        self._check = check
        self._foresee = foresee
        self._clock = clock
        self._rivals: OrderedDict[tuple[ResourceKey, int], str] = OrderedDict()
        applied.on_change(self._on_change)

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [
            route(APPLY_RESOURCE, self.apply),
            route(GET_RESOURCE, self.get),
            route(LIST_RESOURCES, self.list),
            route(DELETE_RESOURCE, self.delete),
            route(GET_RESOURCE_HISTORY, self.history),
            route(RESTORE_ROUTING, self._restoring.restore),
        ]

    async def apply(self, request: ApplyResource, call: Call) -> ResourceApplied:
        """Keep a resource, or say what would become of it.

        Raises:
            InvalidMessage: It breaks the rules; every fault is listed.
            Conflict: It is not at the revision that it should replace, its name or its place is
                taken, or it does not fit the others.
        """
        resource, filled = rules.admitted(request.resource, call.tenant)
        key = key_of(resource)
        beside = rules.channels_beside(request.beside, call.tenant) if request.dry_run else ()
        for _ in range(TRIES):
            held = await self._store.get(key)
            before = held.resource if held is not None else None
            revision = held.revision if held is not None else 0
            check_revision(key, revision, request.revision)
            rules.refuse_anothers(before, call.tenant)
            if isinstance(resource, Channel) and (
                name := rules.rival(self._applied.index, resource)
            ):
                raise rules.taken(resource, name)
            now = rfc3339(self._clock())
            after = rules.successor(resource, before, uid=str(uuid.uuid4()), now=now)
            fault = self._check(resource, beside)
            if fault and (beside or not rules.is_same(after, before)):
                raise Conflict(
                    f"{key} does not fit what there is: {fault['description']}", faults=[fault]
                )
            notes = [*filled, *rules.notes_on(self._applied.index, after, before)]
            if isinstance(after, Channel) and (foreseen := self._foresee(after)):
                # What comes along with it, a dry run does not bring.
                notes.append(f"as things are, {foreseen}" if request.dry_run else foreseen)
            if fault:  # it fitted when it was applied
                notes.append(f"it cannot go on: {fault['description']}")
            if isinstance(after, Channel):
                notes += self._unfitting(after)
            said = ResourceApplied(
                kind=key.kind,
                namespace=key.namespace,
                name=key.name,
                what="created" if before is None else "configured",
                revision=revision,
                before=shown(before) if before is not None else None,
                after=shown(after),
                notes=tuple(notes),
            )
            if rules.is_same(after, before):
                told = tuple(notes[len(filled) :])  # what was filled in, was so before
                return said.model_copy(update={"what": "unchanged", "notes": told})
            if request.dry_run:
                return said
            at = self._clock()
            try:
                written = await self._store.put(after, expected=revision)
            except Conflict:
                if request.revision is not None:
                    raise
                continue  # its status was written meanwhile, or somebody else applies it too
            await self._applied.until_known(key, written, within_s=_KNOWN_S)
            if isinstance(after, Channel):
                await self._yield_place(after, before, written)
            says = rules.summary(rules.without_status(after))
            write_step(self._bus, call, said.what, key, at=at, revision=written, message=says)
            metadata = after.metadata.model_copy(update={"resource_version": str(written)})
            after = after.model_copy(update={"metadata": metadata})
            return said.model_copy(update={"revision": written, "after": shown(after)})
        raise busy(key)

    def _unfitting(self, channel: Channel) -> list[str]:
        """What becomes of the rollouts that a changed Channel does not fit any more."""
        metadata = channel.metadata
        notes: list[str] = []
        for rollout in self._applied.of_kind(ChannelRollout):
            if rollout.metadata.namespace != metadata.namespace:
                continue
            plan = plan_of(rollout.spec.strategy)
            if metadata.name not in (plan.canary.name, plan.stable.name):
                continue
            if not self._check(rollout, ()) and (fault := self._check(rollout, [channel])):
                name = rollout.metadata.name
                notes.append(f"rollout {name!r} cannot go on: {fault['description']}")
        return notes

    async def _yield_place(self, channel: Channel, before: Resource | None, revision: int) -> None:
        """Of two that were applied for one place at the same time, the later one leaves."""
        key = key_of(channel)
        name = self._rivals.get((key, revision))
        if name is None:  # the feed was interrupted: nobody knows who was first
            name = rules.rival(self._applied.index, channel) or ""
        if not name:
            return
        for _ in range(TRIES):
            held = await self._store.get(key)
            if held is None or held.resource.metadata.generation != channel.metadata.generation:
                break
            with suppress(Conflict):  # its status was just written
                if before is None:
                    await self._store.delete(key, expected=held.revision)
                else:
                    await self._store.put(before, expected=held.revision)
                break
        raise rules.taken(channel, name)

    def _on_change(self, changed: Sequence[ResourceKey]) -> None:
        """Note whose place a Channel was in when it came: that one was first."""
        for key in changed:
            kept = self._applied.index.kept(key)
            if kept is None or not isinstance(kept.resource, Channel):
                continue
            rival = rules.rival(self._applied.index, kept.resource)
            self._rivals[key, kept.revision] = rival or ""
            if len(self._rivals) > _REMEMBERED:
                self._rivals.popitem(last=False)

    async def get(self, request: GetResource, call: Call) -> FoundResource:
        """One resource, as it is or as it was.

        Raises:
            InvalidMessage: That is no kind.
            NotFound: There is none of that name, or that revision of it is not kept.
        """
        key = key_of_named(request.kind, request.namespace, request.name)
        held = await self._store.get(key)
        if held is None or not rules.concerns(held.resource, call.tenant):
            raise unknown(self._applied.index, key, call.tenant)
        if request.revision in (None, held.revision):
            return FoundResource(resource=shown(held.resource), revision=held.revision)
        past = past_of(await self._store.history(key), key, request.revision, call.tenant)
        assert past.resource is not None
        return FoundResource(resource=shown(past.resource), revision=past.revision)

    async def list(self, request: ListResources, call: Call) -> ResourcesListed:
        """The resources that fit, as many as fit into one reply.

        Raises:
            InvalidMessage: That is no kind.
        """
        kind = kind_of_named(request.kind) if request.kind is not None else None
        found = sorted(
            (
                one
                for one in self._applied.index
                if (kind is None or one.key.kind == kind)
                and request.namespace in (None, one.key.namespace)
                and rules.concerns(one.resource, call.tenant)
                and rules.fits(one.resource, request.labels)
            ),
            key=lambda one: one.key,
        )
        page = found[request.offset : request.offset + request.limit]
        resources = [shown(one.resource) for one in page]
        count = _fitting(resources, page, self._bus.transport.max_payload)
        following = request.offset + count
        return ResourcesListed(
            resources=tuple(resources[:count]),
            total=len(found),
            next=following if count and following < len(found) else None,
        )

    async def delete(self, request: DeleteResource, call: Call) -> ResourceDeleted:
        """Forget a resource; a Channel takes its Routing with it.

        Raises:
            InvalidMessage: That is no kind, or one that only the operator deletes.
            NotFound: There is none of that name.
            Conflict: It is not at the revision that is known.
        """
        key = key_of_named(request.kind, request.namespace, request.name)
        if key.kind == ChannelRouting.__name__:
            raise InvalidMessage(
                "a ChannelRouting goes with its Channel: delete that", field="/kind"
            )
        for _ in range(TRIES):
            held = await self._store.get(key)
            if held is None or not rules.concerns(held.resource, call.tenant):
                raise unknown(self._applied.index, key, call.tenant)
            check_revision(key, held.revision, request.revision)
            also: tuple[str, ...] = ()
            if key.kind == Channel.__name__ and await self._store.get(key_of_routing(key)):
                also = (f"{ChannelRouting.__name__}/{key.name}",)
            at = self._clock()
            try:
                gone = await self._store.delete(key, expected=held.revision)
            except Conflict:
                if request.revision is not None:
                    raise
                continue
            await self._applied.until_known(key, gone, within_s=_KNOWN_S)
            if also:
                await self._delete_routing(key)
            write_step(self._bus, call, "deleted", key, at=at, revision=held.revision)
            return ResourceDeleted(kind=key.kind, namespace=key.namespace, name=key.name, also=also)
        raise busy(key)

    async def _delete_routing(self, channel: ResourceKey) -> None:
        """If we end before this, whoever leads finds it without a Channel."""
        key = key_of_routing(channel)
        for _ in range(TRIES):
            held = await self._store.get(key)
            if held is None:
                return
            with suppress(Conflict):
                await self._store.delete(key, expected=held.revision)

    async def history(self, request: GetResourceHistory, call: Call) -> ResourceHistory:
        """The versions that are kept, the latest first, and what came to pass with it.

        Raises:
            InvalidMessage: That is no kind.
            NotFound: There is none of that name, and the audit knows of none.
        """
        key = key_of_named(request.kind, request.namespace, request.name)
        held = await self._store.get(key)
        is_there = held is not None and rules.concerns(held.resource, call.tenant)
        if not is_there and not request.steps:
            raise unknown(self._applied.index, key, call.tenant)
        versions = tuple(
            ResourceVersion(
                revision=one.revision,
                at=one.at,
                generation=one.resource.metadata.generation if one.resource is not None else 0,
                summary=rules.summary(one.resource) if one.resource is not None else "",
                gone=one.gone,
            )
            for one in reversed(await self._store.history(key) if is_there else ())
            # A name may have been another tenant's before.
            if one.resource is None or rules.concerns(one.resource, call.tenant)
        )
        steps: list[ResourceStep] = []
        earlier = 0
        if request.steps:
            kept = {one.revision for one in versions if not one.gone}
            steps, earlier = await read_steps(
                self._bus, call.tenant, key, limit=request.steps, kept=kept
            )
            if not (is_there or steps):
                raise unknown(self._applied.index, key, call.tenant)
        count = _fitting_steps(steps, self._bus.transport.max_payload)
        return ResourceHistory(
            kind=key.kind,
            namespace=key.namespace,
            name=key.name,
            versions=versions,
            steps=tuple(steps[:count]),
            earlier=earlier + len(steps) - count,
        )


def _fitting(resources: "list[dict[str, object]]", page: "list[Kept]", max_payload: int) -> int:
    """How many of the first fit into one reply; one at least, or nothing would ever come."""
    room = int(max_payload * _ROOM) - _ROOM_BYTES
    count = 0
    for one in page:
        room -= len(one.resource.model_dump_json(by_alias=True))
        if room < 0 and count:
            break
        count += 1
    return min(count, len(resources))


def _fitting_steps(steps: Sequence[ResourceStep], max_payload: int) -> int:
    """How many of the latest steps fit into half of a reply; its versions are in the other."""
    room = max_payload // 2
    for count, one in enumerate(steps):
        room -= len(one.model_dump_json())
        if room < 0:
            return count
    return len(steps)
