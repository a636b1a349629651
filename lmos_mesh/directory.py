"""A process's own live view of the mesh, kept by the change feeds, without a consumer."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.membership import (
    LEASE_FEED,
    LEASES,
    REGISTRY,
    REGISTRY_FEED,
    Membership,
    ThingKey,
)
from lmos_mesh.transport import Change, KeyValue, Packet, change_of

logger = logging.getLogger(__name__)

_RETRY_S = 0.5


class _Feed:
    """One bucket's changes, checked for gaps: every change of the bucket is in its feed."""

    def __init__(
        self,
        store: KeyValue,
        apply: Callable[[str, bytes | None, int, float], None],
        keep: Callable[[Mapping[str, int]], None],
    ) -> None:
        self.store = store
        self.apply = apply
        self.keep = keep
        self.last = 0
        self.waiting: list[Change] | None = []

    def on_packet(self, packet: Packet) -> bool:
        """Take a change; False if one before it was lost."""
        change = change_of(packet)
        if self.waiting is not None:
            self.waiting.append(change)
            return True
        whole = self.last == 0 or change.revision <= self.last + 1
        self.last = max(self.last, change.revision)
        self.apply(change.key, change.value, change.revision, 0.0)
        return whole

    async def resync(self) -> None:
        """Read everything; changes that come meanwhile are applied after it."""
        if self.waiting is None:
            self.waiting = []
        entries = await self.store.entries()
        self.keep({entry.key: entry.revision for entry in entries})
        for entry in entries:
            self.apply(entry.key, entry.value, entry.revision, entry.created)
        waiting, self.waiting, self.last = self.waiting, None, 0
        for change in waiting:
            self.last = max(self.last, change.revision)
            self.apply(change.key, change.value, change.revision, 0.0)


class Directory:
    """Follows the registry and the leases, and says which Things changed."""

    def __init__(self, bus: Bus) -> None:
        self.membership = Membership()
        self._bus = bus
        self._listeners: list[Callable[[list[ThingKey]], None]] = []
        self._mourners: list[Callable[[str, str], None]] = []
        self._stale = asyncio.Event()
        transport = bus.transport
        self._registry = _Feed(transport.key_value(REGISTRY), self._apply_entry, self._keep_entries)
        self._leases = _Feed(transport.key_value(LEASES), self._apply_lease, self._keep_leases)

    def on_change(self, listener: Callable[[list[ThingKey]], None]) -> None:
        """Have `listener` called with the Things that changed, joined, left or died."""
        self._listeners.append(listener)

    def on_death(self, mourner: Callable[[str, str], None]) -> None:
        """Have `mourner(tenant, instance)` called when a process dies before its lease ends."""
        self._mourners.append(mourner)

    async def follow(self) -> None:
        """Read what is there and follow the changes from then on."""
        transport = self._bus.transport
        for pattern, feed in ((REGISTRY_FEED, self._registry), (LEASE_FEED, self._leases)):
            await transport.subscribe(
                pattern, lambda packet, feed=feed: self._on_feed(feed, packet)
            )
        await transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
        await self._bus.watch_losses()
        self._bus.on_loss(self._on_loss)
        transport.on_reconnect(self._stale.set)
        await self._registry.resync()
        await self._leases.resync()
        self._bus.spawn(self._keep_whole(), name="directory")

    async def _keep_whole(self) -> None:
        """Read everything again after a gap or a lost bus."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._registry.resync()
                await self._leases.resync()
            except MeshError as exc:
                logger.warning("cannot read the registry, trying again: %s", exc)
                self._stale.set()
                await asyncio.sleep(_RETRY_S)

    def _on_feed(self, feed: _Feed, packet: Packet) -> None:
        if not feed.on_packet(packet):
            logger.info("a change was lost; reading the registry again")
            self._stale.set()

    def _apply_entry(self, key: str, value: bytes | None, revision: int, created: float) -> None:
        self._tell(self.membership.apply_entry(key, value, revision, created=created))

    def _apply_lease(self, key: str, value: bytes | None, revision: int, created: float) -> None:
        ids = subjects.ids_of(key)
        known = self.membership.lease(*ids) if value is None and len(ids) == 2 else None
        self._tell(self.membership.apply_lease(key, value, revision))
        if known is not None and self.membership.lease(*ids) is None:
            # Frozen, or gone without a word: streams that wait for it must not.
            self._bus.lose(known.instance, "has lost its lease")

    def _keep_entries(self, revisions: Mapping[str, int]) -> None:
        self._tell(self.membership.keep_entries(revisions))

    def _keep_leases(self, revisions: Mapping[str, int]) -> None:
        self._tell(self.membership.keep_leases(revisions))

    def _on_disconnect(self, packet: Packet) -> None:
        connection = connection_of(packet)
        if connection:
            for tenant, instance in self.membership.disconnect(connection):
                self._end(tenant, instance)

    def _on_loss(self, instance: str) -> None:
        """Somebody found it dead by asking."""
        for tenant, lease, _ in self.membership.leases():
            if lease.instance == instance:
                self._end(tenant, instance)

    def _end(self, tenant: str, instance: str) -> None:
        self._tell(self.membership.end_lease(tenant, instance))
        for mourner in self._mourners:
            mourner(tenant, instance)

    def _tell(self, changed: Iterable[ThingKey]) -> None:
        names = list(changed)
        if names:
            for listener in self._listeners:
                listener(names)


def connection_of(packet: Packet) -> str:
    """The connection that a disconnect event speaks of, as `Transport.connection` names it."""
    try:
        told = json.loads(packet.payload)
        return f"{told['server']['id']}:{told['client']['id']}"
    except (ValueError, KeyError, TypeError):
        return ""
