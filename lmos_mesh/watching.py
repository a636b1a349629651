"""Finding Things, once and for as long as it matters who fits.

A watch asks the registry again when the change feeds say that something has changed, and tells
what that means for its question. Nobody keeps a consumer or a task for it.
"""

import asyncio
import difflib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from lmos_mesh import calls, codec, subjects
from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.messages import FIND_THINGS, FindThings, FoundThing, ThingsFound
from lmos_mesh.things import SHARED
from lmos_mesh.transport import Packet, Subscription, change_of

GATHER_S = 0.02
"""What happens together is asked about once: a process that starts changes lease and registry."""
_REFRESH_S = 5.0
_REST = 4
_REST_MOST_S = 0.2
_RETRY_S = 0.1
_RETRY_MOST_S = 2.0
_FIND_S = 3.0
# Leases are kept in the server's memory. After its restart all are written anew within this time.
_LENIENT_S = 3.0
# For so long a router that is gone is expected back, before words are compared instead.
_DEGRADED_S = 10.0
_CLOCKS_S = 2.0

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has become of a Thing that fits a question, or did.

    Attributes:
        kind: `joined`: it fits now; `changed`: it still fits, and something of it is new, be it
            its instances; `left`: it fits no longer, or is gone.
        thing: As it is now; of one that has left, as it was last known.
        before: As it was; None if it has just joined.
    """

    kind: Literal["joined", "changed", "left"]
    thing: FoundThing
    before: FoundThing | None = None


def question(text: str | None, conditions: Mapping[str, Any]) -> FindThings:
    """The question that these conditions are.

    Raises:
        InvalidMessage: There is no such condition, or it cannot have such a value.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    if unknown := given.keys() - FindThings.model_fields.keys():
        name = min(unknown)
        near = difflib.get_close_matches(name, list(FindThings.model_fields), n=1)
        raise InvalidMessage(
            f"there is no condition {name!r} to find Things by",
            hint=f"did you mean {near[0]!r}?" if near else "see `FindThings`",
        )
    if "live" in conditions:
        given["live"] = conditions["live"]  # None has a meaning of its own here
    if isinstance(tags := given.get("tags"), str):
        given["tags"] = (tags,)
    if text is not None:
        given["text"] = text
    return codec.validate(FindThings, given)


async def find(
    bus: Bus,
    wanted: FindThings,
    *,
    tenant: str | None = None,
    nobody_s: float = RESTART_S,
    timeout_s: float | None = None,
) -> ThingsFound:
    """Everything that fits, up to the limit, in as many answers as it takes.

    Raises:
        InvalidMessage: The question cannot be understood.
        Unavailable: No registry answers.
    """
    found = await bus.call(
        FIND_THINGS, wanted, tenant=tenant, nobody_s=nobody_s, timeout_s=timeout_s
    )
    things, following = list(found.things), found.next
    while following is not None and len(things) < wanted.limit:
        update = {"offset": following, "limit": wanted.limit - len(things)}
        page = await bus.call(
            FIND_THINGS,
            wanted.model_copy(update=update),
            tenant=tenant,
            nobody_s=nobody_s,
            timeout_s=timeout_s,
        )
        if not page.things:
            break
        things += page.things
        following = page.next
    return found.model_copy(update={"things": tuple(things), "next": following})


def differences(known: Mapping[Key, FoundThing], found: Iterable[FoundThing]) -> list[Change]:
    """What has changed, the Things that left first. Pure."""
    now = {key_of(thing): thing for thing in found}
    left = [
        Change(kind="left", thing=thing, before=thing)
        for key, thing in known.items()
        if key not in now
    ]
    others: list[Change] = []
    for key, thing in now.items():
        before = known.get(key)
        if before is None:
            others.append(Change(kind="joined", thing=thing))
        elif _essence(before) != _essence(thing):
            others.append(Change(kind="changed", thing=thing, before=before))
    return left + others


def key_of(thing: FoundThing) -> Key:
    """What tells the Things of one tenant apart."""
    return thing.name, thing.subset


def _essence(thing: FoundThing) -> tuple[Any, ...]:
    """What of a Thing is worth telling: not how busy it is, nor how well it fits."""
    registration = thing.registration
    revision: int | str = thing.revision
    if registration is not None and registration.expires is not None:
        # It is written again and again only to stay, and that modifies nothing.
        revision = registration.modified
    return (
        thing.id,
        thing.title,
        thing.kind,
        thing.version,
        thing.summary,
        thing.capabilities,
        thing.channels,
        thing.external,
        thing.origin,
        thing.live,
        {(one.instance, one.version) for one in thing.instances},
        revision,
    )


class ChangeFeed:
    """Tells that something on the mesh has changed, for all watches of a connection.

    It is subscribed while somebody listens. Renewals of leases change nothing.

    Attributes:
        tenant: Whose changes it tells; those of tenant `shared`, which may be its own, too.
        revision: The latest change of the registry that it has heard of.
        regained: When a lost bus came back, in `time.monotonic` seconds; 0 for never.
    """

    def __init__(self, bus: Bus, *, tenant: str | None = None) -> None:
        self.tenant = tenant or bus.tenant
        self.revision = 0
        self.regained = 0.0
        self._bus = bus
        self._listeners: list[Callable[[], None]] = []
        self._subscriptions: list[Subscription] = []
        self._served: dict[str, object] = {}
        self._began = 0.0
        self._hooked = False
        self._subscribing = asyncio.Lock()

    async def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called from now on, until it is forgotten."""
        self._listeners.append(listener)
        try:
            async with self._subscribing:
                if not self._subscriptions:
                    await self._subscribe()
        except BaseException:
            self.forget(listener)
            raise

    def forget(self, listener: Callable[[], None]) -> None:
        """Call it no longer."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners and self._subscriptions:
            subscriptions, self._subscriptions = self._subscriptions, []
            self._bus.spawn(_unsubscribe(subscriptions), name="unsubscribe")

    async def _subscribe(self) -> None:
        transport = self._bus.transport
        if not self._hooked:
            self._hooked = True
            transport.on_reconnect(self._on_reconnect)
        self._served.clear()
        self._began = time.time()
        tenants = {subjects.escape(self.tenant), SHARED}
        subscribed: list[Subscription] = []
        try:
            for tenant in sorted(tenants):
                for kind, on_packet in (
                    ("registry.>", self._on_entry),
                    ("lease.*", self._on_lease),
                ):
                    subscribed.append(
                        await transport.subscribe(f"lmos.{tenant}.changed.{kind}", on_packet)
                    )
        except BaseException:
            self._bus.spawn(_unsubscribe(subscribed), name="unsubscribe")
            raise
        self._subscriptions = subscribed

    def _on_entry(self, packet: Packet) -> None:
        self.revision = max(self.revision, change_of(packet).revision)
        self._tell()

    def _on_lease(self, packet: Packet) -> None:
        change = change_of(packet)
        if change.value is None:
            self._served.pop(change.key, None)
            self._tell()
            return
        try:
            lease = json.loads(change.value)
            served = [(one["name"], one["subset"], one.get("version")) for one in lease["things"]]
            started = float(lease.get("started", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        before = self._served.get(change.key)
        self._served[change.key] = served
        if before is None and started < self._began - _CLOCKS_S:
            return  # it was there before we were, and who asked then has heard of it
        if before != served and (before is not None or served):
            self._tell()

    def _on_reconnect(self) -> None:
        self.regained = time.monotonic()
        self.revision = 0
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


class Watch:
    """Follows who fits a question. What fits at the beginning joins first.

    Use it as a context manager, and iterate over it. Cancelling is safe: a change that was not
    handed out comes next time. Nothing piles up while nobody looks: what has changed twice in the
    meantime is told as one change.
    """

    def __init__(
        self, bus: Bus, feed: ChangeFeed, wanted: FindThings, running: "set[Watch]"
    ) -> None:
        self._bus = bus
        self._feed = feed
        self._wanted = wanted
        self._running = running
        self._known: dict[Key, FoundThing] = {}
        self._pending: deque[Change] = deque()
        self._news = asyncio.Event()
        self._begun = False
        self._closed = False
        self._by_meaning = False
        self._degraded_since = 0.0
        self._look_by = 0.0
        self._not_before = 0.0
        self._retry_s = _RETRY_S

    async def __aenter__(self) -> "Watch":
        await self._begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Change:
        if not self._begun and not self._closed:
            await self._begin()
        while not self._closed:
            if self._pending:
                return self._pending.popleft()
            await self._look()
        raise StopAsyncIteration

    @property
    def things(self) -> tuple[FoundThing, ...]:
        """Who fits, as far as it is known."""
        return tuple(self._known.values())

    def close(self) -> None:
        """Watch no longer; whoever iterates comes to the end."""
        if not self._closed:
            self._closed = True
            self._feed.forget(self._news.set)
            self._running.discard(self)
            self._news.set()

    async def _begin(self) -> None:
        """Listen before looking, so that no change falls between the two."""
        if self._closed:
            raise InvalidMessage("this watch has ended", hint="begin another one")
        if self._begun:
            return
        self._begun = True
        self._running.add(self)
        try:
            await self._feed.listen(self._news.set)
            self._take(await find(self._bus, self._wanted, tenant=self._feed.tenant))
        except BaseException:
            self._begun = False
            self._running.discard(self)
            self._feed.forget(self._news.set)
            raise

    async def _look(self) -> None:
        """Wait until something may have changed, ask, and note what has."""
        now = time.monotonic()
        rest_s = (min(self._look_by, now + _REFRESH_S) if self._look_by else now + _REFRESH_S) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, rest_s)):
                await self._news.wait()
        if self._closed:
            return
        await asyncio.sleep(max(GATHER_S, self._not_before - time.monotonic()))
        self._news.clear()
        self._look_by = 0.0
        heard, began = self._feed.revision, time.monotonic()
        try:
            found = await find(
                self._bus,
                self._wanted,
                tenant=self._feed.tenant,
                nobody_s=0.0,
                timeout_s=_FIND_S,
            )
        except MeshError as error:
            self._news.set()
            if not error.retryable or _out_of_time():
                raise
            # Whoever knows is gone for a moment.
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(self._retry_s * 2, _RETRY_MOST_S)
            return
        except BaseException:
            self._news.set()
            raise
        self._retry_s = _RETRY_S
        now = time.monotonic()
        # However much changes, asking about it takes a part of the time only.
        self._not_before = now + min(_REST * (now - began), _REST_MOST_S)
        if not self._closed:
            if found.revision < heard == self._feed.revision:
                # A replica that has not heard of it yet. Once more: a bucket that was made anew
                # counts from 1 again.
                self._feed.revision = 0
                self._look_by = now + _RETRY_S
            self._take(found)

    def _take(self, found: ThingsFound) -> None:
        now = time.monotonic()
        if found.matched == "meaning":
            self._by_meaning, self._degraded_since = True, 0.0
        elif found.matched == "words" and self._by_meaning:
            self._degraded_since = self._degraded_since or now
            if now - self._degraded_since < _DEGRADED_S:
                self._look_by = now + 1.0
                return
            self._by_meaning = False
        things: Sequence[FoundThing] = found.things
        if self._feed.regained and now < self._feed.regained + _LENIENT_S:
            there = {key_of(one) for one in things}
            missed = [one for key, one in self._known.items() if key not in there]
            if missed:
                things = [*things, *missed]
                self._look_by = self._feed.regained + _LENIENT_S
        self._pending.extend(differences(self._known, things))
        self._known = {key_of(one): one for one in things}


def _out_of_time() -> bool:
    """Whether the request that is being answered here is past its deadline."""
    call = calls.current.get()
    return call is not None and call.remaining_s is not None and call.remaining_s <= 0


async def _unsubscribe(subscriptions: Sequence[Subscription]) -> None:
    for subscription in subscriptions:
        with suppress(MeshError):
            await subscription.unsubscribe()
