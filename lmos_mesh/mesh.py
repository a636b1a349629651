"""Talk to a mesh from a program: ask, converse, find.

```python
async with Mesh.connect("nats://127.0.0.1:4222") as mesh:
    async with mesh.converse("show my bill") as frames:
        async for frame in frames:
            ...
```
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.errors import InstanceLost, StreamBroken
from lmos_mesh.messages import (
    CONVERSE,
    FIND_THINGS,
    Answer,
    Converse,
    FindThings,
    FoundThing,
)
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.reply_stream import Frame, Patience
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

    def converse(self, message: str, **more: Any) -> Any:
        """The answer in frames, as `converse` gives them."""
        return converse(self.bus, Converse(message=message, **more))

    async def find(self, **conditions: Any) -> tuple[FoundThing, ...]:
        """The Things that fit; see `FindThings` for the conditions."""
        return (await self.bus.call(FIND_THINGS, FindThings(**conditions))).things


@asynccontextmanager
async def converse(
    bus: Bus,
    request: Converse,
    *,
    tenant: str | None = None,
    patience: Patience | None = None,
) -> AsyncGenerator[AsyncIterator[Frame]]:
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
    subject_tenant = tenant or bus.tenant
    frames = _frames(bus, named, subject_tenant, patience)
    try:
        yield frames
    finally:
        await frames.aclose()


async def _frames(
    bus: Bus, request: Converse, tenant: str, patience: Patience | None
) -> AsyncGenerator[Frame]:
    said = False
    for tries in range(1, _TRIES + 1):
        async with bus.stream(CONVERSE, request, tenant=tenant, patience=patience) as stream:
            try:
                async for frame in stream:
                    said = (said or frame.kind == "delta") and frame.kind != "restart"
                    yield frame
                return
            except (InstanceLost, StreamBroken) as error:
                # Only if it was the runtime that died: of agents' deaths it has told us.
                if not stream.broken or tries == _TRIES or (said and not request.restarts):
                    raise
                if said:
                    said = False
                    yield Frame(0, "restart", {"reason": str(error), "lost": stream.instance})
