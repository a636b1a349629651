"""Responses without an end: events as they come, for as long as the client listens.

What the client does not read is held back: first by the server's own flow control, then by a short
queue, and then whoever tells the events has to wait or to leave it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Packet
from lmos_mesh_http import sse
from lmos_mesh_http.edge import request_id_of
from lmos_mesh_http.replies import SSE_HEADERS, send_in_time, while_there

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0

_QUEUE = 256
_AT_ONCE = 64

Told = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Begins to listen, and gives the events as bytes."""


class EventStream(Response):
    """Server-sent events until the client leaves, the teller ends, or the adapter stops."""

    def __init__(
        self, request: Request, told: Told, *, closing: asyncio.Event, stall_timeout_s: float
    ) -> None:
        super().__init__()
        self._request = request
        self._told = told
        self._closing = closing
        self._stall_timeout_s = stall_timeout_s
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell events as long as the client is there."""
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await send({"type": "http.response.body", "body": b""})
            return
        await while_there(receive, self._tell(send))

    async def _tell(self, send: Send) -> None:
        # Listening has begun before the client is told that it is heard.
        async with self._told() as told:
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await self._write(send, sse.OPEN)
            async with asyncio.TaskGroup() as tasks:
                sides = [tasks.create_task(self._read(told)), tasks.create_task(self._until_stop())]
                try:
                    while said := await self._next():
                        await self._write(send, said)
                finally:
                    for side in sides:
                        side.cancel()
        await self._write(send, b"", last=True)

    async def _read(self, told: AsyncIterator[bytes]) -> None:
        try:
            async for said in told:
                await self._queue.put(said)
        except MeshError as error:
            # The client comes back and names the last event that it has.
            logger.info("events broke off: %s (%s)", error, request_id_of(self._request))
        await self._queue.put(None)

    async def _until_stop(self) -> None:
        await self._closing.wait()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def _next(self) -> bytes:
        """What has come together; nothing at the end."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                said = [await self._queue.get()]
        except TimeoutError:
            return sse.WORKING
        while len(said) < _AT_ONCE and not self._queue.empty():
            said.append(self._queue.get_nowait())
        if None in said:
            said = said[: said.index(None)]
            self._queue.put_nowait(None)
        return b"".join(one for one in said if one is not None)

    async def _write(self, send: Send, said: bytes, *, last: bool = False) -> None:
        await send_in_time(send, said, last=last, stall_timeout_s=self._stall_timeout_s)


class Overheard:
    """What is published on a subject, as it comes; the reader that falls far behind is left."""

    def __init__(self) -> None:
        self._packets: asyncio.Queue[Packet | None] = asyncio.Queue(_QUEUE + 1)
        self._full = False

    def on_packet(self, packet: Packet) -> None:
        """Take what arrives."""
        if self._full:
            return
        self._full = self._packets.qsize() >= _QUEUE
        # A gap would go unseen, as these events are not kept anywhere.
        self._packets.put_nowait(None if self._full else packet)

    async def packets(self) -> AsyncGenerator[Packet]:
        """One after the other."""
        while (packet := await self._packets.get()) is not None:
            yield packet
        logger.info("a client fell %d events behind; left it", _QUEUE)


def closed_with(events: AsyncGenerator[bytes]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """Events that are closed when nobody listens any more."""
    return aclosing(events)
