"""The adapter's questions to the mesh: bounded in time, and in the trace of the request."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.requests import Request

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.calls import tenant_headers
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import MeshError, StreamBroken
from lmos_mesh.mesh import TurnStream, converse
from lmos_mesh.messages import Converse
from lmos_mesh.reply_stream import Patience, ReplyStream
from lmos_mesh_http.edge import trace_of
from lmos_mesh_http.replies import Opened

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

FIRST_S = 5.0
# Twice the time after which a silent answer says that it is alive.
IDLE_S = 20.0


class Asker:
    """Asks on behalf of HTTP requests.

    Attributes:
        closing: Set once this adapter takes no more: what has no end of its own ends then.
    """

    def __init__(self, bus: Bus, *, answer_timeout_s: float, bus_wait_s: float) -> None:
        self.bus = bus
        self._patience = Patience(first_s=FIRST_S, idle_s=IDLE_S, total_s=answer_timeout_s)
        self._bus_wait_s = bus_wait_s
        self._running: set[TurnStream | ReplyStream] = set()
        self.closing = asyncio.Event()

    @asynccontextmanager
    async def converse(
        self, request: Request, tenant: str, question: Converse
    ) -> AsyncGenerator[TurnStream]:
        """The answer in frames; leaving the block before its end calls the work off."""
        await self.connected()
        async with converse(
            self.bus, question, tenant=tenant, headers=trace_of(request), patience=self._patience
        ) as stream:
            self._running.add(stream)
            try:
                yield stream
            finally:
                self._running.discard(stream)

    def conversing(self, request: Request, tenant: str, question: Converse) -> Opened:
        """`converse`, to be done later."""
        return lambda: self.converse(request, tenant, question)

    @asynccontextmanager
    async def invoke(
        self, request: Request, subject: str, payload: bytes, *, tenant: str
    ) -> AsyncGenerator[ReplyStream]:
        """What is asked on a subject, in frames; leaving the block before the end calls it off."""
        await self.connected()
        headers = {**trace_of(request), **tenant_headers(subject, tenant)}
        stream = await self.bus.open_stream(
            subject, payload, headers=headers, patience=self._patience
        )
        self._running.add(stream)
        try:
            yield stream
        finally:
            self._running.discard(stream)
            stream.close()

    async def ask(self, request: Request, subject: str, payload: bytes, *, tenant: str) -> Any:
        """The JSON value that is answered on a subject; None for an empty answer.

        Raises:
            StreamBroken: It is no JSON.
        """
        await self.connected()
        headers = {**trace_of(request), **tenant_headers(subject, tenant)}
        packet = await self.bus.request(subject, payload, headers=headers)
        try:
            return from_json(packet.payload) if packet.payload else None
        except ValueError as exc:
            raise StreamBroken(f"{subject!r} answered what is no JSON: {exc}") from None

    async def call(
        self,
        request: Request,
        tenant: str,
        endpoint: Endpoint[RequestT, ReplyT],
        question: RequestT,
    ) -> ReplyT:
        """The one reply to a short question."""
        await self.connected()
        return await self.bus.call(
            endpoint, question, tenant=tenant, headers=trace_of(request), nobody_s=RESTART_S
        )

    def break_off(self, error: MeshError) -> None:
        """End every answer that is still coming with an error."""
        for stream in list(self._running):
            stream.break_off(error)

    async def connected(self) -> None:
        """A lost bus is waited for, but not for as long as an answer."""
        if not self.bus.transport.connected:
            await self.bus.transport.wait_connected(timeout_s=self._bus_wait_s)
