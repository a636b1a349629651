"""Responses that take their time: an answer is waited for, or told as it comes.

A client that leaves, or that reads nothing for too long, calls the work off. What it does not read
is held back by the server's own flow control; nothing is queued here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmos_mesh.errors import MeshError, StreamBroken
from lmos_mesh.reply_stream import Frame
from lmos_mesh_http import sse
from lmos_mesh_http.edge import request_id_of
from lmos_mesh_http.errors import JSON

logger = logging.getLogger(__name__)

SSE_HEADERS = [
    (b"content-type", f"{sse.MEDIA_TYPE}; charset=utf-8".encode()),
    (b"cache-control", b"no-store"),
    # Proxies of the nginx family would otherwise collect the words before they pass them on.
    (b"x-accel-buffering", b"no"),
]


_AT_ONCE_BYTES = 32 * 1024


class Events(Protocol):
    """How a surface tells an answer as it comes."""

    def take(self, frame: Frame) -> bytes:
        """What is told of a frame; may be nothing."""
        ...

    def failed(self, error: MeshError) -> bytes:
        """What is told when there will be no answer."""
        ...


class _Left(Exception):
    """The client has left."""


class Frames(Protocol):
    """An answer as it comes."""

    @property
    def waiting(self) -> int:
        """How many frames are here already and have not been read."""
        ...

    def __aiter__(self) -> AsyncIterator[Frame]: ...


Opened = Callable[[], AbstractAsyncContextManager[Frames]]
"""Asks; leaving the block before the end calls the work off."""


class Asking(Response):
    """A response that asks the mesh while it is sent."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and tell, as long as the client is there."""
        await while_there(receive, self._tell(send))

    async def _tell(self, send: Send) -> None:
        raise NotImplementedError


class WholeAnswer(Asking):
    """The answer as one JSON value."""

    def __init__(self, opened: Opened, *, body_of: Callable[[Any], bytes]) -> None:
        super().__init__(opened)
        self._body_of = body_of

    async def _tell(self, send: Send) -> None:
        body = self._body_of(await self._answer())
        headers = [(b"cache-control", b"no-store")]
        if body:
            headers += [
                (b"content-type", JSON.encode()),
                (b"content-length", str(len(body)).encode()),
            ]
        status = 200 if body else 204
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self) -> Any:
        async with self._opened() as stream:
            async for frame in stream:
                if frame.kind == "end":
                    return frame.body
        raise StreamBroken("the answer ended without an end")


class AnswerAsItComes(Asking):
    """The answer as server-sent events.

    The status is sent with the first event: what fails before has an HTTP status of its own, and
    what fails later is an event.
    """

    def __init__(
        self,
        opened: Opened,
        request: Request,
        *,
        events: Events,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(opened)
        self._request = request
        self._events = events
        self._stall_timeout_s = stall_timeout_s
        self._begun = False
        self._said: list[bytes] = []

    async def _tell(self, send: Send) -> None:
        try:
            async with self._opened() as stream:
                await self._tell_frames(stream, send)
        except MeshError as error:
            if not self._begun:
                raise
            logger.info("an answer broke off: %s (%s)", error.code, request_id_of(self._request))
            self._said.append(self._events.failed(error))
            await self._write(send, last=True)

    async def _tell_frames(self, stream: Frames, send: Send) -> None:
        said = self._said
        size = 0
        async for frame in stream:
            if told := self._events.take(frame):
                said.append(told)
                size += len(told)
            last = frame.kind == "end"
            # What has come together is sent together.
            if said and (last or not stream.waiting or size > _AT_ONCE_BYTES):
                await self._write(send, last=last)
                size = 0

    async def _write(self, send: Send, *, last: bool) -> None:
        """Hand what was said to the server, which waits while the client does not read."""
        body = b"".join(self._said)
        self._said.clear()
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await send_in_time(send, body, last=last, stall_timeout_s=self._stall_timeout_s)


async def send_in_time(send: Send, body: bytes, *, last: bool, stall_timeout_s: float) -> None:
    """Hand some of a body to the server, which waits while the client does not read.

    For use under `while_there`, which ends when the client is given up.
    """
    try:
        async with asyncio.timeout(stall_timeout_s):
            await send({"type": "http.response.body", "body": body, "more_body": not last})
    except TimeoutError:
        logger.info("a client has read nothing for %g s; left it", stall_timeout_s)
        raise _Left from None


async def while_there(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work as long as the client is there; nothing is raised when it leaves.

    Raises:
        MeshError: The work did.
    """
    failure: MeshError | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(_watch(receive))
            try:
                await work
            except MeshError as error:
                # Raised below: a task group would wrap it.
                failure = error
            finally:
                watcher.cancel()
    except* _Left:
        logger.debug("a client left before its answer was complete")
    if failure is not None:
        raise failure


async def _watch(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
