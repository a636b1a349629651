"""Which of several operators acts: the one that holds a lease on the bus, until it ends or leaves.

Whoever leads may still be writing when it is taken for dead. That does no harm: every write of
an operator says which revision it replaces. The lease only keeps two from doing the same work.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.directory import connection_of
from lmos_mesh.errors import Conflict, MeshError
from lmos_mesh.transport import Bucket, Packet, change_of

logger = logging.getLogger(__name__)

TTL_S = 4
RENEW_S = 1.0
_KEY = "leader"

LEADERS = Bucket(
    name="lmos_operator",
    in_memory=True,
    expiring=True,
    tokens=1,
    feed="lmos.sys.operator.{{wildcard(1)}}",
)
_FEED = "lmos.sys.operator.*"


class Leadership:
    """Claims the lease, renews it, and says whether we hold it.

    Attributes:
        on_lead: Called when we begin to lead.
    """

    def __init__(self, bus: Bus, *, ttl_s: int = TTL_S, renew_s: float = RENEW_S) -> None:
        self.on_lead: Callable[[], None] = lambda: None
        self._bus = bus
        self._store = bus.transport.key_value(LEADERS)
        self._ttl_s = ttl_s
        self._renew_s = renew_s
        self._clock = asyncio.get_running_loop().time
        self._revision = 0
        self._until = 0.0
        self._holder = ""
        self._holder_connection = ""
        self._seen = (0, 0.0)
        # News of a death may overtake the last words of who died.
        self._closed: deque[str] = deque(maxlen=1024)
        self._now = asyncio.Event()
        self._changed = asyncio.Condition()
        self._left = False

    @property
    def leading(self) -> bool:
        """Whether we lead now; false as soon as our lease may have ended unheard."""
        return self._revision > 0 and self._clock() < self._until

    @property
    def holder(self) -> str:
        """The instance that leads, as far as is known."""
        return self._bus.instance if self.leading else self._holder

    async def begin(self) -> None:
        """Try to lead from now on, and whenever the one that does is gone."""
        transport = self._bus.transport
        await transport.subscribe(_FEED, self._on_lease)
        await transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
        transport.on_reconnect(self._now.set)
        await self._try()
        self._bus.spawn(self._keep_trying(), name="leadership")

    async def leave(self) -> None:
        """Let another one lead, at once."""
        self._left = True
        revision, self._revision = self._revision, 0
        if revision:
            with suppress(MeshError):
                await self._store.delete(_KEY, expected=revision)
        await self._tell()

    async def while_leading(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `work` done whenever we lead; it is cancelled when we do not any more.

        Work that ends is begun again when we lead the next time. Never returns.
        """
        while True:
            await self._until_leading(True)
            async with asyncio.TaskGroup() as tasks:
                doing = tasks.create_task(work())
                await self._until_leading(False)
                doing.cancel()

    async def _until_leading(self, leading: bool) -> None:
        async with self._changed:
            while self.leading != leading:
                # Our own lease ends by the clock, and nobody tells us.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._renew_s / 2 if not leading else None):
                        await self._changed.wait()

    async def _keep_trying(self) -> None:
        while not self._left:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._renew_s):
                    await self._now.wait()
            self._now.clear()
            if not self._left:
                await self._try()

    async def _try(self) -> None:
        was = self.leading
        asked_at = self._clock()
        try:
            # No longer: what was asked of a connection that is lost is never answered.
            async with asyncio.timeout(self._ttl_s / 2):
                await self._claim(asked_at)
        except Conflict:
            self._revision = 0
        except (MeshError, TimeoutError) as exc:
            logger.warning("could not claim the lead, trying again: %s", str(exc) or "no answer")
        if was != self.leading:
            if self.leading:
                logger.info("leading")
                self.on_lead()
            else:
                logger.info("not leading any more: %s does", self._holder or "nobody yet")
        await self._tell()

    async def _claim(self, asked_at: float) -> None:
        expected = self._revision
        if not expected:
            entry = await self._store.get(_KEY)
            if entry is not None:
                self._note(entry.value, entry.revision)
                if not self._is_dead(entry.revision):
                    return
                expected = entry.revision
        said = {"instance": self._bus.instance, "connection": self._bus.transport.connection}
        try:
            revision = await self._store.put(
                _KEY, json.dumps(said).encode(), expected=expected, ttl_s=self._ttl_s
            )
        except Conflict:
            self._revision = 0
            # Perhaps it is nobody's: after a restart of the bus there is none. Look at once.
            if expected:
                self._now.set()
            raise
        if self._left:
            with suppress(MeshError):
                await self._store.delete(_KEY, expected=revision)
            return
        self._revision, self._until = revision, asked_at + self._ttl_s

    def _is_dead(self, revision: int) -> bool:
        """Whether the holder has ended: its connection has, or it has not renewed for too long."""
        if self._holder == self._bus.instance:
            return True  # a write of ours whose answer was lost
        if self._holder_connection in self._closed:
            return True
        known, since = self._seen
        if known != revision:
            self._seen = (revision, self._clock())
            return False
        return self._clock() - since > self._ttl_s

    def _note(self, value: bytes, revision: int) -> None:
        try:
            said = json.loads(value)
            self._holder = str(said["instance"])
            self._holder_connection = str(said["connection"])
        except (ValueError, KeyError, TypeError):
            self._holder = self._holder_connection = ""
        if self._seen[0] != revision:
            self._seen = (revision, self._clock())

    def _on_lease(self, packet: Packet) -> None:
        change = change_of(packet)
        if change.value is None:
            self._holder = self._holder_connection = ""
            if not self._left:
                self._now.set()
        else:
            self._note(change.value, change.revision)
            if self._holder_connection in self._closed and not self.leading:
                self._now.set()

    def _on_disconnect(self, packet: Packet) -> None:
        connection = connection_of(packet)
        if connection:
            self._closed.append(connection)
            if connection == self._holder_connection and not self.leading:
                self._now.set()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
