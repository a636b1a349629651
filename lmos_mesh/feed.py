"""Buckets followed by their change feeds, without a consumer, and read again after a gap."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Change, KeyValue, Packet, change_of

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

_RETRY_S = 0.5
_AT_A_TIME = 100


@contextmanager
def _nothing_collected() -> Generator[None]:
    """What is read stays: to look for garbage in it again and again takes as long as reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Feed:
    """One bucket's changes, checked for gaps: every change of the bucket is in its feed.

    Args:
        store: The bucket.
        pattern: Where its changes are heard.
        apply: Takes a change, and when the value was stored if it is read and not heard.
        keep: Told the revision of each key there is, before everything is read again.
    """

    def __init__(
        self,
        store: KeyValue,
        pattern: str,
        apply: Callable[[Change, float], None],
        keep: Callable[[Mapping[str, int]], None],
    ) -> None:
        self.store = store
        self.pattern = pattern
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
        self.apply(change, 0.0)
        return whole

    async def resync(self) -> None:
        """Read everything; changes that come meanwhile are applied after it."""
        if self.waiting is None:
            self.waiting = []
        entries = await self.store.entries()
        self.keep({entry.key: entry.revision for entry in entries})
        with _nothing_collected():
            for number, entry in enumerate(entries):
                told = Change(key=entry.key, value=entry.value, revision=entry.revision)
                self.apply(told, entry.created)
                if number % _AT_A_TIME == 0:
                    # Thousands take seconds, and the server hangs up on who is silent for long.
                    await asyncio.sleep(0)
        waiting, self.waiting, self.last = self.waiting, None, 0
        for change in waiting:
            self.last = max(self.last, change.revision)
            self.apply(change, 0.0)


class Following:
    """Feeds that are followed together, and read again whenever one may have lost a change.

    Args:
        bus: Where they are heard.
        feeds: In the order in which they are read.
        what: What they tell of, for the log.
    """

    def __init__(self, bus: Bus, feeds: Sequence[Feed], *, what: str) -> None:
        self._bus = bus
        self._feeds = feeds
        self._what = what
        self._stale = asyncio.Event()
        self._whole = False
        self._true_at = 0.0

    @property
    def as_of(self) -> float:
        """Until when what was told is known to be true: now, or when it last was whole."""
        if self._whole and self._bus.transport.connected and not self._stale.is_set():
            self._true_at = time.time()
        return self._true_at

    async def follow(self) -> None:
        """Read what is there and follow the changes from then on."""
        transport = self._bus.transport
        for feed in self._feeds:
            await transport.subscribe(
                feed.pattern, lambda packet, feed=feed: self._on_packet(feed, packet)
            )
        transport.on_reconnect(self._stale.set)
        await self._resync()
        self._bus.spawn(self._keep_whole(), name=self._what)

    async def _resync(self) -> None:
        self._whole = False
        for feed in self._feeds:
            await feed.resync()
        self._whole = True

    async def _keep_whole(self) -> None:
        """Read everything again after a gap or a lost bus."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._resync()
            except MeshError as exc:
                logger.warning("cannot read %s, trying again: %s", self._what, exc)
                self._stale.set()
                await asyncio.sleep(_RETRY_S)

    def _on_packet(self, feed: Feed, packet: Packet) -> None:
        if self._whole:
            self._true_at = time.time()
        if not feed.on_packet(packet):
            logger.info("a change was lost; reading %s again", self._what)
            self._stale.set()


class Arrivals(Generic[KeyT]):
    """Who waits until a change that they know of is part of a view."""

    def __init__(self) -> None:
        self._waiting: dict[KeyT, list[tuple[int, asyncio.Future[None]]]] = {}

    def tell(self, key: KeyT, revision: int) -> None:
        """A change has come."""
        for wanted, known in self._waiting.get(key, ()):
            if revision >= wanted and not known.done():
                known.set_result(None)

    async def until(self, key: KeyT, revision: int, *, within_s: float) -> bool:
        """Wait for that change of a key, or a later one; False if it took too long."""
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, [])
        waiting.append((revision, known))
        try:
            async with asyncio.timeout(within_s):
                await known
        except TimeoutError:
            return False
        finally:
            waiting.remove((revision, known))
            if not waiting:
                self._waiting.pop(key, None)
        return True
