"""Tells what comes to pass on the mesh, as every replica does, so that nothing is told by none.

What was told is heard again from the stream: a replica that starts, or was frozen, knows by it
what is missing, and tells that.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.directory import FOUND_DEAD, MISSING, Directory, EntryNews, LeaseNews
from lmos_mesh.errors import MeshError, TooLarge
from lmos_mesh.events import EVENTS, told_at
from lmos_mesh.liveness import Lease
from lmos_mesh.membership import REGISTRY, Entered
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import CHANGE_SEQUENCE, Packet
from lmos_mesh_registry.telling import (
    Telling,
    Told,
    is_sure,
    reason_of,
    updated_from,
)

logger = logging.getLogger(__name__)

_PAGE = 256
_BACKLOG = 20_000
_RETRY_S = 0.5
_HEARD = "lmos.*.event.registry.*"
_TOLD = "lmos.*.told.registry.*"

# Nobody tells anything for so long: then what has not been told is for us to tell.
_QUIET_S = 1.5
_PATIENCE_S = 20.0
# For so long a process that seems to have ended may be back: the server's event may come after the
# conclusion, and after a restart of the bus all leases are written anew.
_GRACE_S = {FOUND_DEAD: 2.0, MISSING: 8.0}
_LOOK_S = 0.1


class Announcer:
    """Follows a directory and tells its news."""

    def __init__(
        self, bus: Bus, directory: Directory, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._clock = clock
        self._stream = bus.transport.stream(EVENTS)
        self._store = bus.transport.key_value(REGISTRY)
        self._told = Told()
        self._news: deque[EntryNews | LeaseNews] = deque()
        self._ended: dict[tuple[str, str], tuple[float, LeaseNews]] = {}
        self._some = asyncio.Event()
        self._behind = True
        self._newest = 0

    async def begin(self) -> None:
        """Tell what comes to pass from now on, and what nobody has told before."""
        await self._stream.last()
        await self._bus.transport.subscribe(_HEARD, self._on_heard)
        self._directory.on_news(self._on_news, self._on_news)
        self._bus.spawn(self._tell_all(), name="events")

    def _on_heard(self, packet: Packet) -> None:
        said = packet.headers.get(CHANGE_SEQUENCE, "")
        if said.isdecimal():
            self._newest = max(self._newest, int(said))
            tenant, type = subjects.tenant_of(packet.subject), packet.headers.get("ce-type", "")
            self._told.heard(tenant, type, int(said), packet.headers)

    def _on_news(self, news: EntryNews | LeaseNews) -> None:
        if len(self._news) >= _BACKLOG:
            # What is missing is found by comparing what is with what was told.
            self._news.clear()
            self._behind = True
        self._news.append(news)
        self._some.set()

    async def _tell_all(self) -> None:
        while True:
            try:
                if self._behind:
                    self._behind = False
                    await self._catch_up()
                await self._tell_news()
                await self._tell_ends()
            except MeshError as exc:
                logger.info("cannot tell what has come to pass, trying again: %s", exc)
                await asyncio.sleep(_RETRY_S)
                continue
            if not self._ended:
                await self._some.wait()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._some.wait()
            self._some.clear()

    async def _tell_news(self) -> None:
        """In their order. What cannot be told stays first."""
        while self._news:
            news = self._news[0]
            if isinstance(news, EntryNews):
                before = news.before
                if before is not None and self._told.is_untold(before, now=self._clock()):
                    # We have just started, and whoever is to tell it is not that far.
                    await self._tell(await self._missed(before))
                await self._tell(
                    self._told.of_thing(
                        news.key,
                        news.before,
                        news.after,
                        expired=news.expired,
                        now=self._clock(),
                    )
                )
            else:
                await self._tell_lease(news)
            # It is another one if the backlog was dropped meanwhile.
            if self._news and self._news[0] is news:
                self._news.popleft()

    async def _tell_lease(self, news: LeaseNews) -> None:
        owner = (news.tenant, news.lease.instance)
        now = self._clock()
        if not news.ended:
            self._ended.pop(owner, None)
            self._told.forget_instances(now=now)
            await self._tell(self._told.joined(news.tenant, news.lease, now=now))
            return
        reason = reason_of(news.lease, news.ended, self._directory.membership)
        if is_sure(reason):
            self._ended.pop(owner, None)
            await self._tell(self._told.ended(news.tenant, news.lease, reason, now=now))
        else:
            self._ended.setdefault(owner, (now + _GRACE_S[reason], news))

    async def _tell_ends(self) -> None:
        """Those who seemed to have ended, once that is certain."""
        now = self._clock()
        for owner, (until, news) in list(self._ended.items()):
            reason = reason_of(news.lease, news.ended, self._directory.membership)
            if is_sure(reason) or now >= until:
                await self._tell(self._told.ended(news.tenant, news.lease, reason, now=now))
                self._ended.pop(owner, None)

    async def _tell(self, telling: Telling | None) -> None:
        if telling is None:
            return
        headers = telling.all_headers()
        try:
            sequence = await self._stream.append(
                told_at(telling.tenant, telling.event.type),
                telling.event.body(),
                message_id=telling.message_id,
                headers=headers,
            )
        except TooLarge as exc:
            logger.warning("an event is not told: %s", exc)
            return
        self._told.heard(telling.tenant, telling.event.type, sequence, headers)

    # -- what nobody has told --

    async def _catch_up(self) -> None:
        after = 0
        while page := await self._stream.read(_TOLD, limit=_PAGE, after=after):
            for packet in page:
                after = int(packet.headers[CHANGE_SEQUENCE])
                self._on_heard(packet)
        await self._until_quiet()
        membership = self._directory.membership
        for one in self._untold_entries():
            await self._tell(await self._missed(one))
        for key in self._untold_removals():
            await self._tell(self._told.removal(key, now=self._clock()))
        now = self._clock()
        for tenant, lease in self._told.untold_joins(membership, now=now):
            await self._tell(self._told.joined(tenant, lease, now=now))
        for tenant, instance in self._told.untold_ends(membership):
            news = LeaseNews(tenant=tenant, lease=Lease(instance=instance), ended=MISSING)
            self._ended.setdefault((tenant, instance), (now + _GRACE_S[MISSING], news))

    async def _until_quiet(self) -> None:
        """Leave it to other replicas, which know more, as long as they are telling."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while loop.time() < until and (
            self._untold_entries()
            or self._untold_removals()
            or self._told.untold_joins(self._directory.membership, now=self._clock())
        ):
            newest = self._newest
            await asyncio.sleep(_QUIET_S)
            if self._newest == newest:
                return

    def _untold_entries(self) -> list[Entered]:
        news = self._keys_in_news()
        untold = self._told.untold_entries(self._directory.membership, now=self._clock())
        return [one for one in untold if one.key not in news]

    def _untold_removals(self) -> list[ThingKey]:
        news = self._keys_in_news()
        untold = self._told.untold_removals(self._directory.membership)
        return [key for key in untold if key not in news]

    def _keys_in_news(self) -> set[ThingKey]:
        """The Things of which we have seen since what has become of them, step by step."""
        return {news.key for news in self._news if isinstance(news, EntryNews)}

    async def _missed(self, one: Entered) -> Telling | None:
        """The event for an entry's last change, which was seen by nobody who told of it."""
        now = self._clock()
        if not self._told.known(one.key):
            return self._told.of_thing(one.key, None, one, expired=False, now=now)
        kept = await self._store.history(subjects.key(*one.key))
        earlier = [past for past in kept if past.number < one.revision and past.value is not None]
        before: dict[str, Any] = {}
        if earlier and earlier[-1].value is not None:
            read: Any = json.loads(earlier[-1].value)
            before = cast("dict[str, Any]", read)
            before.pop("registration", None)
        return updated_from(one.key, before, one, now=now)
