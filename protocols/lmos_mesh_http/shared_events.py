"""What changes in the registry, listened to once per tenant however many clients follow it.

Each client gets every event once and in order: first those since the one that it knows, read from
the stream, then those that come. A client that falls behind what comes is left, and knows from
which event to go on: nothing is kept for it without bound.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, asynccontextmanager

from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError, Overloaded
from lmos_mesh.events import EVENTS, CloudEvent, follow, kept

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""How many events may wait for one client."""


class Event:
    """An event and its place in the stream; made into bytes once for all who are told it."""

    __slots__ = ("event", "sequence", "told")

    def __init__(self, sequence: int, event: CloudEvent) -> None:
        self.sequence = sequence
        self.event = event
        self.told: dict[bool, bytes] = {}


class Client:
    """One who follows the events of a tenant."""

    def __init__(self, types: Collection[str], backlog: int) -> None:
        self._types = types
        self._backlog = backlog
        self._waiting: deque[Event] = deque()
        self._some = asyncio.Event()
        self._ended = False
        self._failure: MeshError | None = None
        self.behind = False

    def offer(self, event: Event) -> None:
        """Take what came, unless too much waits already."""
        if self.behind or (self._types and event.event.type not in self._types):
            return
        if len(self._waiting) >= self._backlog:
            self._waiting.clear()
            self.behind = True
        else:
            self._waiting.append(event)
        self._some.set()

    def end(self, failure: MeshError | None = None) -> None:
        """Nothing comes any more."""
        self._ended, self._failure = True, failure
        self._some.set()

    def forget(self) -> None:
        """What was missed will be read; what comes from now on waits again."""
        self._waiting.clear()
        self.behind = False

    async def next(self) -> Event | None:
        """What came next; None if something was missed.

        Raises:
            MeshError: Nobody tells any more.
        """
        while not self._waiting:
            if self.behind:
                return None
            if self._ended:
                raise self._failure or Overloaded("the events have ended", hint="follow them anew")
            self._some.clear()
            await self._some.wait()
        return self._waiting.popleft()


class SharedEvents:
    """Follows the events of each tenant once, as long as somebody listens.

    Args:
        bus: Where to listen.
        backlog: How many events may wait for one client.
    """

    def __init__(self, bus: Bus, *, backlog: int = BACKLOG) -> None:
        self._bus = bus
        self._backlog = backlog
        self._tenants: dict[str, _Tenant] = {}

    @asynccontextmanager
    async def following(
        self, tenant: str, *, after: int | None, types: Collection[str] = ()
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """The events of a tenant's registry, from the moment the block is entered at the latest.

        Args:
            tenant: Whose registry.
            after: The sequence of the last event that is known; None for those from now on.
            types: Only these; none for all.

        Raises:
            MeshError: Nobody can be listened to; also while they are read.
            Overloaded: While they are read: the client is too slow, and is left.
        """
        client = Client(types, self._backlog)
        known = self._tenants.get(tenant)
        if known is None or known.over:
            known = self._tenants[tenant] = _Tenant(self._bus, tenant)
        known.clients.add(client)
        try:
            await known.begun()
            told = self._told(known, client, after, types, newest=known.last)
            async with aclosing(told) as events:
                yield events
        finally:
            known.clients.discard(client)
            if not known.clients:
                known.stop()
                if self._tenants.get(tenant) is known:
                    del self._tenants[tenant]

    async def _told(
        self,
        known: "_Tenant",
        client: Client,
        after: int | None,
        types: Collection[str],
        *,
        newest: int,
    ) -> AsyncGenerator[Event]:
        # Whatever is newer waits for the client already.
        last = newest if after is None else after
        if last > newest and last > await self._bus.transport.stream(EVENTS).last():
            last = 0  # from before the stream was made anew
        if last < newest:
            while True:
                client.forget()
                async with aclosing(kept(self._bus, known.tenant, after=last, types=types)) as past:
                    async for sequence, event in past:
                        last = sequence
                        yield Event(sequence, event)
                if not client.behind:
                    break
        while (event := await client.next()) is not None:
            if event.sequence > last:
                last = event.sequence
                yield event
        logger.info("a client fell %d events behind; left it", self._backlog)
        raise Overloaded("you read too slowly", hint="come back with Last-Event-ID")


class _Tenant:
    """Listens to one tenant's events for all its clients.

    Attributes:
        last: The newest event that was heard, or was there before.
        over: Whether nothing comes any more.
    """

    def __init__(self, bus: Bus, tenant: str) -> None:
        self.tenant = tenant
        self.clients: set[Client] = set()
        self.last = 0
        self.over = False
        self._bus = bus
        self._failure: MeshError | None = None
        self._begun = asyncio.Event()
        self._task = bus.spawn(self._listen(), name="events")

    async def begun(self) -> None:
        """Wait until it listens.

        Raises:
            MeshError: It cannot.
        """
        if self._task is None:
            raise Overloaded("this adapter is stopping", hint="follow the events anew")
        await self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Nobody listens any more."""
        self.over = True
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        try:
            self.last = await self._bus.transport.stream(EVENTS).last()
            self._begun.set()
            async with aclosing(follow(self._bus, self.tenant, after=self.last)) as events:
                async for sequence, event in events:
                    self.last = sequence
                    told = Event(sequence, event)
                    for client in self.clients:
                        client.offer(told)
        except MeshError as failure:
            logger.info("the events of %s cannot be followed: %s", self.tenant, failure)
            self._failure = failure
        finally:
            self.over = True
            self._begun.set()
            for client in self.clients:
                client.end(self._failure)
