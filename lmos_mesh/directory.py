"""A process's own live view of the mesh, kept by the change feeds, without a consumer."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.feed import Arrivals, Feed, Following
from lmos_mesh.liveness import LEASE_FEED, LEASES, Lease
from lmos_mesh.membership import REGISTRY, REGISTRY_FEED, Entered, Membership
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Change, Packet

logger = logging.getLogger(__name__)

GOODBYE = "goodbye"
DISCONNECTED = "disconnected"
EXPIRED = "lease expired"
FOUND_DEAD = "found dead by asking"
MISSING = "gone when the bus was back"

_ANSWER_S = 0.5
_ASKED_AT_A_TIME = 64
# Longer than a process takes that could not renew its lease until now.
_RENEWED_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryNews:
    """What has become of an entry of the registry.

    Attributes:
        before: As it was; None if it is new.
        after: As it is; None if it is gone.
        expired: Its time was over: nobody removed it.
    """

    key: ThingKey
    before: Entered | None
    after: Entered | None
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseNews:
    """A process has joined, or has ended.

    Attributes:
        lease: What it says of itself, or last said.
        ended: Why it is there no longer; empty if it has joined.
    """

    tenant: str
    lease: Lease
    ended: str = ""


class Directory:
    """Follows the registry and the leases, and says which Things changed."""

    def __init__(self, bus: Bus) -> None:
        self.membership = Membership()
        self._bus = bus
        self._listeners: list[Callable[[list[ThingKey]], None]] = []
        self._mourners: list[Callable[[str, str], None]] = []
        self._on_entry: Callable[[EntryNews], None] | None = None
        self._on_lease: Callable[[LeaseNews], None] | None = None
        self._arrivals = Arrivals[ThingKey]()
        self._began = False
        self._asking = asyncio.Semaphore(_ASKED_AT_A_TIME)
        open_bucket = bus.transport.key_value
        self._following = Following(
            bus,
            (
                Feed(open_bucket(REGISTRY), REGISTRY_FEED, self._apply_entry, self._keep_entries),
                Feed(open_bucket(LEASES), LEASE_FEED, self._apply_lease, self._keep_leases),
            ),
            what="the registry",
        )

    @property
    def as_of(self) -> float:
        """Until when this view is known to be true: now, or when it was last known to be whole."""
        return self._following.as_of

    def on_change(self, listener: Callable[[list[ThingKey]], None]) -> None:
        """Have `listener` called with the Things that changed, joined, left or died."""
        self._listeners.append(listener)

    def on_death(self, mourner: Callable[[str, str], None]) -> None:
        """Have `mourner(tenant, instance)` called when a process dies before its lease ends."""
        self._mourners.append(mourner)

    def on_news(
        self, entry: Callable[[EntryNews], None], lease: Callable[[LeaseNews], None]
    ) -> None:
        """Have it told what exactly has changed; what was there at the beginning is no news."""
        self._on_entry = entry
        self._on_lease = lease

    async def follow(self) -> None:
        """Read what is there and follow the changes from then on."""
        await self._bus.transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
        await self._bus.watch_losses()
        self._bus.on_loss(self._on_loss)
        await self._following.follow()
        self._began = True

    async def until_known(self, key: ThingKey, revision: int, *, within_s: float) -> bool:
        """Wait until a change of an entry, or a later one, is part of this view.

        Returns:
            Whether it is; False if it took too long.
        """
        if self._known(key) >= revision or self.membership.revision >= revision:
            return True
        return await self._arrivals.until(key, revision, within_s=within_s)

    def _known(self, key: ThingKey) -> int:
        entered = self.membership.get(key)
        return entered.revision if entered else 0

    def _apply_entry(self, change: Change, created: float) -> None:
        ids = subjects.ids_of(change.key)
        key = ThingKey(*ids) if len(ids) == 3 else None
        before = self.membership.get(key) if key is not None else None
        changed = self.membership.apply_entry(
            change.key, change.value, change.revision, created=created
        )
        if key is not None:
            self._arrivals.tell(key, change.revision)
            if changed and self._on_entry is not None and self._began:
                after = self.membership.get(key)
                self._on_entry(
                    EntryNews(key=key, before=before, after=after, expired=change.expired)
                )
        self._tell(changed)

    def _apply_lease(self, change: Change, created: float) -> None:
        ids = subjects.ids_of(change.key)
        before = self.membership.lease(*ids) if len(ids) == 2 else None
        if before is not None and change.expired and self._may_live(before):
            self._ask_first(ids[0], before, partial(self._take_lease, change))
        else:
            self._take_lease(change)

    def _take_lease(self, change: Change) -> None:
        ids = subjects.ids_of(change.key)
        before = self.membership.lease(*ids) if len(ids) == 2 else None
        self._tell(self.membership.apply_lease(change.key, change.value, change.revision))
        after = self.membership.lease(*ids) if len(ids) == 2 else None
        if before is None and after is not None:
            self._tell_lease(LeaseNews(tenant=ids[0], lease=after))
        elif before is not None and after is None:
            ended = self._end_of(before, change)
            self._tell_lease(LeaseNews(tenant=ids[0], lease=before, ended=ended))
            if ended != GOODBYE:
                # Frozen, or gone without a word: streams that wait for it must not. Whoever has
                # said goodbye finishes what it is at.
                self._bus.lose(before.instance, "has lost its lease")

    def _may_live(self, lease: Lease) -> bool:
        """Whether the process of a lease that has ended can be asked if it is dead.

        Nobody could renew a lease while the servers that keep it agreed on a new leader, which
        takes longer than a lease lasts.
        """
        return bool(lease.connection) and not self.membership.closed(lease.connection)

    def _ask_first(self, tenant: str, lease: Lease, end: Callable[[], None]) -> None:
        """Have a lease ended unless its process answers, and renews it."""
        revision = self.membership.lease_revision(tenant, lease.instance)

        async def ask() -> None:
            if await self._answers(tenant, lease.instance):
                await asyncio.sleep(_RENEWED_S)
            if self.membership.lease_revision(tenant, lease.instance) != revision:
                return
            try:
                end()
            except Exception:
                # As where packets are handled: who listens badly must not end the bus.
                logger.exception("the end of the lease of %s", lease.instance)

        self._bus.spawn(ask(), name="lease")

    async def _answers(self, tenant: str, instance: str) -> bool:
        subject = subjects.instance(tenant, instance, "status")
        async with self._asking:
            try:
                await self._bus.transport.request(subject, b"", timeout_s=_ANSWER_S)
            except MeshError:
                return False
        return True

    def _end_of(self, lease: Lease, change: Change) -> str:
        """Why a lease is no longer there."""
        if change.expired:
            return EXPIRED
        if self.membership.closed(lease.connection):
            return DISCONNECTED
        # Whoever has no connection of its own did not write its lease itself.
        return GOODBYE if lease.connection else FOUND_DEAD

    def _keep_entries(self, revisions: Mapping[str, int]) -> None:
        before = {one.key: one for one in self.membership} if self._on_entry is not None else {}
        stale = self.membership.keep_entries(revisions)
        if self._on_entry is not None:
            for key in stale:
                if (known := before.get(key)) is not None:
                    self._on_entry(EntryNews(key=key, before=known, after=None))
        self._tell(stale)

    def _keep_leases(self, revisions: Mapping[str, int]) -> None:
        missing = [
            (tenant, lease)
            for tenant, lease, _ in self.membership.leases()
            if subjects.key(tenant, lease.instance) not in revisions
        ]
        asked = [(tenant, lease) for tenant, lease in missing if self._may_live(lease)]
        spared = {subjects.key(tenant, lease.instance): 0 for tenant, lease in asked}
        self._tell(self.membership.keep_leases({**revisions, **spared}))
        for tenant, lease in missing:
            if subjects.key(tenant, lease.instance) not in spared:
                self._tell_lease(LeaseNews(tenant=tenant, lease=lease, ended=MISSING))
        for tenant, lease in asked:
            self._ask_first(tenant, lease, partial(self._end_missing, tenant, lease))

    def _end_missing(self, tenant: str, lease: Lease) -> None:
        self._tell(self.membership.end_lease(tenant, lease.instance))
        self._tell_lease(LeaseNews(tenant=tenant, lease=lease, ended=MISSING))

    def _on_disconnect(self, packet: Packet) -> None:
        connection = connection_of(packet)
        if connection:
            for tenant, instance in self.membership.disconnect(connection):
                self._end(tenant, instance, DISCONNECTED)

    def _on_loss(self, instance: str) -> None:
        """Somebody found it dead by asking."""
        for tenant, lease, _ in self.membership.leases():
            if lease.instance == instance:
                self._end(tenant, instance, FOUND_DEAD)

    def _end(self, tenant: str, instance: str, reason: str) -> None:
        lease = self.membership.lease(tenant, instance)
        self._tell(self.membership.end_lease(tenant, instance))
        if lease is not None:
            self._tell_lease(LeaseNews(tenant=tenant, lease=lease, ended=reason))
        for mourner in self._mourners:
            mourner(tenant, instance)

    def _tell_lease(self, news: LeaseNews) -> None:
        if self._on_lease is not None and self._began:
            self._on_lease(news)

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
