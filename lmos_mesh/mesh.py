"""Talk to a mesh from a program or an agent: find, watch, ask, converse, invoke, read, write.

```python
async with Mesh.connect("nats://127.0.0.1:4222") as mesh:
    async with mesh.converse("show my bill") as frames:
        async for frame in frames:
            ...
```
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic_core import to_json

from lmos_mesh import calls, codec, subjects
from lmos_mesh.bus import ASK_AGAIN_S, RESTART_S, Bus, new_instance
from lmos_mesh.errors import DeadlineExceeded, InstanceLost, MeshError, NobodyAnswers, StreamBroken
from lmos_mesh.messages import CONVERSE, GET_THING, Answer, Converse, FoundThing, GetThing
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.reply_stream import Frame, Patience, ReplyStream
from lmos_mesh.things import DEFAULT_SUBSET, DEFAULT_TENANT, SHARED
from lmos_mesh.transport import Packet
from lmos_mesh.watching import ChangeFeed, Watch, find, question

_TRIES = 5
_WATCHED = 10_000


class Mesh:
    """A program's or an agent's way into a tenant of a mesh.

    Attributes:
        tenant: Whose part of the mesh this is; the bus's own tenant unless another one is given.
    """

    def __init__(self, bus: Bus, *, tenant: str | None = None) -> None:
        self.bus = bus
        self.tenant = tenant or bus.tenant
        self._channel = ""
        self._feeds: dict[str, ChangeFeed] = {}
        self._watches: set[Watch] = set()
        self._closed = False

    def part(self, *, channel: str = "", tenant: str | None = None) -> "Mesh":
        """The same way in, whose watches end by themselves when this part is closed.

        Args:
            channel: Where this part asks unless told otherwise.
            tenant: Whose part of the mesh it sees; by default that of the whole.
        """
        part = Mesh(self.bus, tenant=tenant or self.tenant)
        part._channel = channel
        part._feeds = self._feeds
        return part

    def close(self) -> None:
        """End the watches; those that are begun later have ended, too."""
        self._closed = True
        for watch in list(self._watches):
            watch.close()

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
            mesh = cls(bus)
            try:
                yield mesh
            finally:
                mesh.close()

    async def ask(
        self, message: str, *, agent: str | FoundThing | None = None, **more: Any
    ) -> Answer:
        """The whole answer to a message.

        Args:
            message: What a user would say.
            agent: Who should answer; whoever the router chooses by default.
            more: The further fields of `Converse`.
        """
        answer: Answer | None = None
        async with self.converse(message, agent=agent, **more) as frames:
            async for frame in frames:
                if frame.kind == "end":
                    answer = Answer.model_validate(frame.body)
        assert answer is not None, "a stream ends with `end` or an error"
        return answer

    def converse(
        self, message: str, *, agent: str | FoundThing | None = None, **more: Any
    ) -> "AbstractAsyncContextManager[TurnStream]":
        """The answer in frames, as `converse` gives them; for the arguments see `ask`."""
        if isinstance(agent, FoundThing):
            more.setdefault("subset", agent.subset)
            agent = agent.name
        if self._channel:
            more.setdefault("channel", self._channel)
        return converse(
            self.bus, Converse(message=message, agent=agent, **more), tenant=self.tenant
        )

    async def find(
        self,
        text: str | None = None,
        *,
        capability: str | None = None,
        version: str | None = None,
        tags: Sequence[str] = (),
        kind: str | None = None,
        live: bool | None = True,
        **more: Any,
    ) -> tuple[FoundThing, ...]:
        """The Things that fit all of these; the best match first if there is a text.

        Args:
            text: What they can do, in anybody's words: compared by meaning.
            capability: Id or name of a capability.
            version: Semver range of that capability.
            tags: All of them.
            kind: `agent`, `tool` or `thing`.
            live: With an instance (true), without (false), or either (None).
            more: The further fields of `FindThings`.

        Raises:
            InvalidMessage: There is no such condition, or its value makes no sense.
            Unavailable: No registry answers.
        """
        wanted = question(
            text,
            {
                "capability": capability,
                "version": version,
                "tags": tags,
                "kind": kind,
                "live": live,
                **more,
            },
        )
        return (await find(self.bus, wanted, tenant=self.tenant)).things

    def watch(
        self,
        text: str | None = None,
        *,
        capability: str | None = None,
        version: str | None = None,
        tags: Sequence[str] = (),
        kind: str | None = None,
        live: bool | None = True,
        **more: Any,
    ) -> Watch:
        """Follow who fits: who fits now joins first, and then every change as it comes.

        ```python
        async with mesh.watch(capability="refund") as changes:
            async for change in changes:
                print(change.kind, change.thing.name)
        ```

        It goes on when the bus or the registry is lost and comes back. For the arguments see
        `find`. Raises what `find` raises, where it is entered.
        """
        wanted = question(
            text,
            {
                "capability": capability,
                "version": version,
                "tags": tags,
                "kind": kind,
                "live": live,
                "limit": _WATCHED,
                **more,
            },
        )
        feed = self._feeds.get(self.tenant)
        if feed is None:
            feed = self._feeds[self.tenant] = ChangeFeed(self.bus, tenant=self.tenant)
        watch = Watch(self.bus, feed, wanted, self._watches)
        if self._closed:
            watch.close()
        return watch

    async def invoke(
        self,
        agent: str | FoundThing,
        capability: str,
        given: Mapping[str, Any] | None = None,
        *,
        subset: str = DEFAULT_SUBSET,
        timeout_s: float | None = None,
    ) -> Any:
        """Have an agent perform one of its actions with this input, and give its output.

        Raises:
            NobodyAnswers: It is not there.
            InvalidMessage: The input does not fit the action's schema.
            MeshError: What the agent refused with.
        """
        payload = codec.encode_value(dict(given or {}))
        packet = await self._ask_agent(
            agent,
            subset,
            lambda tenant, name, subset: subjects.agent_invoke(tenant, name, subset, capability),
            payload,
            timeout_s=timeout_s,
        )
        return codec.decode_value(packet.payload)

    async def read(
        self, agent: str | FoundThing, name: str, *, subset: str = DEFAULT_SUBSET
    ) -> Any:
        """The value of an agent's property; otherwise as `invoke`."""
        packet = await self._ask_agent(
            agent,
            subset,
            lambda tenant, whose, subset: subjects.agent_property(
                tenant, whose, subset, name, "read"
            ),
            b"",
        )
        return json.loads(packet.payload)

    async def write(
        self, agent: str | FoundThing, name: str, value: Any, *, subset: str = DEFAULT_SUBSET
    ) -> None:
        """Give an agent's property a value; otherwise as `invoke`."""
        await self._ask_agent(
            agent,
            subset,
            lambda tenant, whose, subset: subjects.agent_property(
                tenant, whose, subset, name, "write"
            ),
            to_json(value),
        )

    async def _ask_agent(
        self,
        agent: str | FoundThing,
        subset: str,
        subject_of: Callable[[str, str, str], str],
        payload: bytes,
        *,
        timeout_s: float | None = None,
    ) -> Packet:
        """Ask an agent of the tenant, or the one of tenant `shared` that is meant."""
        tenant, name, subset = self._whose(agent, subset)
        try:
            return await self._ask_at(subject_of(tenant, name, subset), payload, timeout_s)
        except NobodyAnswers:
            if tenant != self.tenant or not await self._means_shared(name, subset):
                raise
        return await self._ask_at(subject_of(SHARED, name, subset), payload, timeout_s)

    async def _ask_at(self, subject: str, payload: bytes, timeout_s: float | None) -> Packet:
        headers = calls.tenant_headers(subject, self.tenant)
        return await self.bus.request(subject, payload, headers=headers, timeout_s=timeout_s)

    async def _means_shared(self, name: str, subset: str) -> bool:
        """Whether the tenant means the shared agent by a name: it has none of its own."""
        if self.tenant == SHARED:
            return False
        try:
            wanted = GetThing(name=name, subset=subset)
            return (await self.bus.call(GET_THING, wanted, tenant=self.tenant)).tenant == SHARED
        except MeshError:
            return False  # that nobody answers is what there is to say

    def _whose(self, agent: str | FoundThing, subset: str) -> tuple[str, str, str]:
        if not isinstance(agent, FoundThing):
            return self.tenant, agent, subset
        _refuse_elsewhere(agent)
        return SHARED if agent.tenant == SHARED else self.tenant, agent.name, agent.subset


def _refuse_elsewhere(agent: FoundThing) -> None:
    if agent.origin or (not agent.live and (agent.external or agent.kind == "thing")):
        where = f"of mesh {agent.origin!r}" if agent.origin else "no process of this mesh"
        raise NobodyAnswers(
            f"{agent.name!r} is {where} and is not reached over this bus",
            hint="the forms of its Description say how it is; `find(origin='')` leaves such out",
        )


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
