"""Puts an earlier Routing of a Channel back, and lets the operator go on with it again."""

from collections.abc import Callable, Sequence

from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import Conflict, NotFound
from lmos_mesh.events import rfc3339
from lmos_mesh.messages import FoundResource, RestoreRouting
from lmos_mesh.resource_index import Kept, shown
from lmos_mesh.resource_store import PastResource, ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting, ChannelStatus
from lmos_mesh_operator import resource_rules as rules
from lmos_mesh_operator.addressing import (
    TRIES,
    busy,
    key_of_named,
    past_of,
    routing_before,
    unknown,
)
from lmos_mesh_operator.chronicle import write_step
from lmos_mesh_operator.reconcile import key_of_routing, restored


class Restoring:
    """The operator's endpoint about Routings that were.

    Args:
        bus: Where the resources are.
        applied: What there is.
        store: Where they are kept.
        gone: Which agents of a Channel's earlier Routing cannot do their part any more, and why.
        clock: What time it is, in Unix seconds.
    """

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        store: ResourceStore,
        *,
        gone: Callable[[Channel, ChannelRouting], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._applied = applied
        self._store = store
        self._gone = gone
        self._clock = clock

    async def restore(self, request: RestoreRouting, call: Call) -> FoundResource:
        """Put an earlier Routing of a Channel back, or let the operator go on.

        Raises:
            NotFound: There is no such Channel, or that Routing of it is not kept.
            Conflict: It was for another tenant, channel or subset.
        """
        key = key_of_named(Channel.__name__, request.namespace, request.name)
        for _ in range(TRIES):
            held = await self._store.get(key)
            channel = held.resource if held is not None else None
            if (
                held is None
                or not isinstance(channel, Channel)
                or not rules.concerns(channel, call.tenant)
            ):
                raise unknown(self._applied.index, key, call.tenant)
            try:
                found = await self._restore(request.revision, held, channel, call)
            except _Overtaken:
                continue
            notes: Sequence[str] = ()
            if request.revision != 0 and isinstance(found.resource, ChannelRouting):
                notes = self._gone(channel, found.resource)
            return FoundResource(
                resource=shown(found.resource), revision=found.revision, notes=tuple(notes)
            )
        raise busy(key)

    async def _restore(
        self, revision: int | None, held: Kept, channel: Channel, call: Call
    ) -> Kept:
        key = key_of_routing(held.key)
        active = await self._store.get(key)
        if active is None or not isinstance(active.resource, ChannelRouting):
            raise NotFound(
                f"Channel {held.key.name!r} has no Routing",
                hint=channel.status.message if channel.status is not None else "",
            )
        status = channel.status or ChannelStatus()
        pinned = revision != 0
        past: PastResource | None = None
        if pinned:
            kept = await self._store.history(key)
            past = (
                past_of(kept, key, revision, call.tenant)
                if revision is not None
                else routing_before(kept, active, key)
            )
        before, at = active.revision, self._clock()
        try:
            if status.pinned != pinned:
                # Before the Routing, or whoever leads would renew that at once.
                told = status.model_copy(update={"pinned": pinned})
                await self._store.put(
                    channel.model_copy(update={"status": told}), expected=held.revision
                )
            if past is not None:
                active = await self._activate(past, active, channel)
        except Conflict as exc:
            if isinstance(exc, _Misplaced):
                raise
            raise _Overtaken from None
        if status.pinned != pinned or active.revision != before:
            what = "restored" if pinned else "released"
            of = past.revision if past else 0
            said = f"the Routing of revision {of} is back, and stays" if of else "it follows again"
            write_step(
                self._bus, call, what, key, at=at, revision=active.revision, of=of, message=said
            )
        return active

    async def _activate(self, past: PastResource, active: Kept, channel: Channel) -> Kept:
        routing = past.resource
        assert isinstance(routing, ChannelRouting)
        if (routing.tenant, routing.channel, routing.subset) != (
            channel.tenant,
            channel.channel,
            channel.subset,
        ):
            raise _Misplaced(
                f"revision {past.revision} was for channel {routing.channel!r} "
                f"({routing.subset}), which this Channel is not any more"
            )
        assert isinstance(active.resource, ChannelRouting)
        if active.resource.spec == routing.spec:
            return active
        made = restored(channel, routing, past.revision, now=rfc3339(self._clock()))
        revision = await self._store.put(made, expected=active.revision)
        metadata = made.metadata.model_copy(update={"resource_version": str(revision)})
        return Kept(
            key=active.key,
            resource=made.model_copy(update={"metadata": metadata}),
            revision=revision,
        )


class _Overtaken(Exception):
    """Somebody wrote in between: look again."""


class _Misplaced(Conflict):
    """A Routing that was for somebody else."""
