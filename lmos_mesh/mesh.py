"""Talk to a mesh from a program: ask, converse, find.

```python
async with Mesh.connect("nats://127.0.0.1:4222") as mesh:
    async with mesh.converse("show my bill") as frames:
        async for frame in frames:
            ...
```
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from lmos_mesh import codec, subjects
from lmos_mesh.bus import ASK_AGAIN_S, RESTART_S, Bus, new_instance
from lmos_mesh.errors import DeadlineExceeded, InstanceLost, MeshError, NobodyAnswers, StreamBroken
from lmos_mesh.messages import (
    CONVERSE,
    FIND_THINGS,
    Answer,
    Converse,
    FindThings,
    FoundThing,
)
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.reply_stream import Frame, Patience, ReplyStream
from lmos_mesh.things import DEFAULT_TENANT

_TRIES = 5


class Mesh:
    """A program's way into one tenant of a mesh."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        *,
        tenant: str = DEFAULT_TENANT,
        name: str = "client",
        credentials: str | None = None,
        timeout_s: float = 5.0,
    ) -> "AsyncGenerator[Mesh]":
        """Be connected while the block lasts.

        Raises:
            Unavailable: No server answers there.
            SettingsError: It refuses us, or is too old.
        """
        instance = new_instance(name)
        async with (
            NatsTransport.connect(
                url,
                name=subjects.connection_name(tenant, instance),
                inbox=subjects.inbox(tenant, instance),
                credentials=credentials,
                timeout_s=timeout_s,
            ) as transport,
            Bus(transport, tenant=tenant, instance=instance) as bus,
        ):
            yield cls(bus)

    async def ask(self, message: str, **more: Any) -> Answer:
        """The whole answer to a message. `more` are the further fields of `Converse`."""
        answer: Answer | None = None
        async with converse(self.bus, Converse(message=message, **more)) as frames:
            async for frame in frames:
                if frame.kind == "end":
                    answer = Answer.model_validate(frame.body)
        assert answer is not None, "a stream ends with `end` or an error"
        return answer

    def converse(self, message: str, **more: Any) -> "AbstractAsyncContextManager[TurnStream]":
        """The answer in frames, as `converse` gives them."""
        return converse(self.bus, Converse(message=message, **more))

    async def find(self, **conditions: Any) -> tuple[FoundThing, ...]:
        """The Things that fit; see `FindThings` for the conditions."""
        wanted = FindThings(**conditions)
        return (await self.bus.call(FIND_THINGS, wanted, nobody_s=RESTART_S)).things


@asynccontextmanager
async def converse(
    bus: Bus,
    request: Converse,
    *,
    tenant: str | None = None,
    headers: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> "AsyncGenerator[TurnStream]":
    """A turn in frames, also when the runtime that carries it dies.

    Kinds: `ack`; `status`, whose `state` is `routed` once it is known who answers; `delta`, a
    piece of the text; `restart`, all pieces so far are void; `end`, whose body is the `Answer`.
    Leaving the block before the end calls the turn off.

    Raises (while iterating):
        MeshError: What went wrong, as the class it was raised with.
    """
    # Named here, so that asking again is the same turn to whichever runtime takes it over.
    named = request.model_copy(
        update={
            "turn": request.turn or f"t-{secrets.token_hex(8)}",
            "conversation": request.conversation
            or (f"c-{secrets.token_hex(8)}" if request.store else None),
        }
    )
    stream = TurnStream(bus, named, tenant=tenant, headers=headers, patience=patience)
    try:
        yield stream
    finally:
        stream.close()


class TurnStream:
    """The frames of a turn. If its runtime dies, another one is asked for the same turn."""

    def __init__(
        self,
        bus: Bus,
        request: Converse,
        *,
        tenant: str | None,
        headers: Mapping[str, str] | None,
        patience: Patience | None,
    ) -> None:
        self._bus = bus
        self._request = request
        self._payload = codec.encode(request)
        self._subject = CONVERSE.subject(subjects.escape(tenant or bus.tenant))
        self._headers = headers
        self._patience = patience
        self._stream: ReplyStream | None = None
        self._tries = 0
        self._said = False
        self._nobody_until = 0.0

    @property
    def waiting(self) -> int:
        """How many frames are here already and have not been read."""
        return self._stream.waiting if self._stream is not None else 0

    def __aiter__(self) -> "TurnStream":
        return self

    async def __anext__(self) -> Frame:
        while True:
            stream = self._stream or await self._open()
            try:
                frame = await anext(stream)
            except NobodyAnswers:
                if not await self._may_come():
                    raise
            except (InstanceLost, StreamBroken, DeadlineExceeded) as error:
                lost = stream.instance
                if not self._may_repeat(stream, error):
                    raise
                stream.close()
                self._stream = None
                if self._said:
                    self._said = False
                    return Frame(0, "restart", {"reason": str(error), "lost": lost})
            else:
                self._said = (self._said or frame.kind == "delta") and frame.kind != "restart"
                return frame

    async def _open(self) -> ReplyStream:
        self._tries += 1
        self._stream = await self._bus.open_stream(
            self._subject, self._payload, headers=self._headers, patience=self._patience
        )
        return self._stream

    async def _may_come(self) -> bool:
        """Whether to ask once more, as a runtime may just be starting anew."""
        now = time.monotonic()
        self._nobody_until = self._nobody_until or now + RESTART_S
        if now >= self._nobody_until:
            return False
        self.close()
        self._stream = None
        self._tries -= 1  # nobody has seen this one
        await asyncio.sleep(ASK_AGAIN_S)
        return True

    def _may_repeat(self, stream: ReplyStream, error: MeshError) -> bool:
        """Only if it was the runtime that died: of agents' deaths it has told us."""
        if stream.complete or self._tries == _TRIES:
            return False
        if isinstance(error, DeadlineExceeded):
            # Without an ack it went to one that is frozen, and that the server soon cuts off.
            patience = self._patience or Patience()
            in_time = 2 * patience.first_s < patience.total_s
            return not stream.instance and self._tries == 1 and in_time
        return self._request.restarts or not self._said

    def break_off(self, error: MeshError) -> None:
        """End the stream with an error of the caller's side."""
        if self._stream is not None:
            self._stream.break_off(error)

    def close(self) -> None:
        """Leave; if the end has not come, the turn is called off."""
        if self._stream is not None:
            self._stream.close()
