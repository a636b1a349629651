"""A process's own live view of the resources that people applied and the operator keeps."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from lmos_mesh.bus import Bus
from lmos_mesh.feed import Arrivals, Feed, Following
from lmos_mesh.resource_index import ResourceIndex, ResourceKey, key_from
from lmos_mesh.resource_store import RESOURCE_FEED, RESOURCES
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting, Resource
from lmos_mesh.transport import Change

ResourceT = TypeVar("ResourceT", bound=Resource)


class Applied:
    """Follows the resources. Every look-up is in memory, and by labels takes no search.

    Attributes:
        index: The resources themselves.
    """

    def __init__(self, bus: Bus) -> None:
        self.index = ResourceIndex()
        self._listeners: list[Callable[[list[ResourceKey]], None]] = []
        self._arrivals = Arrivals[ResourceKey]()
        store = bus.transport.key_value(RESOURCES)
        feed = Feed(store, RESOURCE_FEED, self._apply, self._keep)
        self._following = Following(bus, (feed,), what="the resources")

    @property
    def as_of(self) -> float:
        """Until when this view is known to be true: now, or when it was last known to be whole."""
        return self._following.as_of

    async def follow(self) -> None:
        """Read what is there and follow the changes from then on."""
        await self._following.follow()

    def on_change(self, listener: Callable[[list[ResourceKey]], None]) -> None:
        """Have `listener` called with the resources that changed or are gone.

        Those that are there when the following begins are told as well.
        """
        self._listeners.append(listener)

    async def until_known(self, key: ResourceKey, revision: int, *, within_s: float) -> bool:
        """Wait until a change of a resource, or a later one, is part of this view.

        Returns:
            Whether it is; False if it took too long.
        """
        kept = self.index.kept(key)
        if self.index.revision >= revision or (kept is not None and kept.revision >= revision):
            return True
        return await self._arrivals.until(key, revision, within_s=within_s)

    def get(self, kind: type[ResourceT], namespace: str, name: str) -> ResourceT | None:
        """The resource of that name."""
        return self.index.get(kind, namespace, name)

    def of_kind(self, kind: type[ResourceT]) -> list[ResourceT]:
        """All of a kind, by namespace and name."""
        return self.index.of_kind(kind)

    def closed(self, tenant: str, channel: str) -> bool:
        """Whether somebody applied a Channel there, so that its Routing alone decides."""
        return self.index.closed(tenant, channel)

    def channel_of(self, tenant: str, channel: str, subset: str) -> Channel | None:
        """The Channel that counts there: of namespace `default`, else of the first by name."""
        return self.index.channel_of(tenant, channel, subset)

    def routing(self, tenant: str, channel: str, subset: str) -> ChannelRouting | None:
        """What that Channel was resolved to; None if it never was, or there is none."""
        return self.index.routing(tenant, channel, subset)

    def rollout(self, tenant: str, channel: str) -> ChannelRollout | None:
        """The rollout that says where conversations go: one under way, or else the last to end."""
        return self.index.rollout(tenant, channel)

    def _apply(self, change: Change, created: float) -> None:
        changed = self.index.apply(change.key, change.value, change.revision)
        key = key_from(change.key)
        if key is not None:
            self._arrivals.tell(key, change.revision)
        if changed is not None:
            self._tell([changed])

    def _keep(self, revisions: Mapping[str, int]) -> None:
        if stale := self.index.keep(revisions):
            self._tell(stale)

    def _tell(self, changed: list[ResourceKey]) -> None:
        for listener in self._listeners:
            listener(changed)
