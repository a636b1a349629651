"""Responses that take their time: an answer is waited for, or told as it comes.

A client that leaves, or that reads nothing for too long, calls the work off. What it does not read
is held back by the server's own flow control; nothing is queued here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmos_mesh import codec
from lmos_mesh.errors import MeshError, StreamBroken
from lmos_mesh.mesh import TurnStream
from lmos_mesh.messages import Answer, Converse
from lmos_mesh.reply_stream import Frame
from lmos_mesh_http import sse
from lmos_mesh_http.asking import Asker
from lmos_mesh_http.edge import request_id_of
from lmos_mesh_http.errors import JSON

logger = logging.getLogger(__name__)

_SSE_HEADERS = [
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


class Conversing(Response):
    """A response that asks the mesh while it is sent."""

    def __init__(self, asker: Asker, request: Request, tenant: str, question: Converse) -> None:
        super().__init__()
        self._asker = asker
        self._request = request
        self._tenant = tenant
        self._question = question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and tell, as long as the client is there."""
        await while_there(receive, self._tell(send))

    async def _tell(self, send: Send) -> None:
        raise NotImplementedError


class WholeAnswer(Conversing):
    """The answer as one JSON object."""

    def __init__(
        self,
        asker: Asker,
        request: Request,
        tenant: str,
        question: Converse,
        *,
        body_of: Callable[[Answer], bytes],
    ) -> None:
        super().__init__(asker, request, tenant, question)
        self._body_of = body_of

    async def _tell(self, send: Send) -> None:
        body = self._body_of(await self._answer())
        headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self) -> Answer:
        async with self._asker.converse(self._request, self._tenant, self._question) as stream:
            async for frame in stream:
                if frame.kind == "end":
                    return codec.validate(Answer, frame.body)
        raise StreamBroken("the answer ended without an end")


class AnswerAsItComes(Conversing):
    """The answer as server-sent events.

    The status is sent with the first event: what fails before has an HTTP status of its own, and
    what fails later is an event.
    """

    def __init__(
        self,
        asker: Asker,
        request: Request,
        tenant: str,
        question: Converse,
        *,
        events: Events,
        stall_timeout_s: float,
    ) -> None:
        super().__init__(asker, request, tenant, question)
        self._events = events
        self._stall_timeout_s = stall_timeout_s
        self._begun = False
        self._said: list[bytes] = []

    async def _tell(self, send: Send) -> None:
        try:
            async with self._asker.converse(self._request, self._tenant, self._question) as stream:
                await self._tell_frames(stream, send)
        except MeshError as error:
            if not self._begun:
                raise
            logger.info("an answer broke off: %s (%s)", error.code, request_id_of(self._request))
            self._said.append(self._events.failed(error))
            await self._write(send, last=True)

    async def _tell_frames(self, stream: TurnStream, send: Send) -> None:
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
            await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": not last})
        except TimeoutError:
            logger.info("a client has read nothing for %g s; left it", self._stall_timeout_s)
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
