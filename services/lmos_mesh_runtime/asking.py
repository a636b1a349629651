"""Asking an agent until it has answered, whichever of its instances die meanwhile."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lmos_mesh import calls, codec, subjects, synadia
from lmos_mesh.bus import Bus
from lmos_mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    InstanceLost,
    MeshError,
    Overloaded,
    StreamBroken,
    TooLarge,
    Unavailable,
)
from lmos_mesh.invocation import CONTEXT, Circumstances, input_for
from lmos_mesh.liveness import Lease
from lmos_mesh.membership import Membership
from lmos_mesh.reply_stream import Frame, Interrupted, Patience, ReplyStream
from lmos_mesh.things import Capability, ThingKey
from lmos_mesh.transport import Packet

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 5
ACK_S = 2.0
RETURN_S = 3.0
_POLL_S = 0.05
FOREIGN_IDLE_S = 60.0
"""How long the Synadia protocol has callers wait; its hosts give a sign every 30 s."""
_FOREIGN_SETTLE_S = 0.5

Send = Callable[[str, Any], Awaitable[None]]


@dataclass
class Ask:
    """One piece of work for one agent, and what has become of it.

    Attributes:
        tenant: Whose work it is; the agent may be one of tenant `shared`.
        key: The agent.
        capability: Which of its capabilities.
        circumstances: Who asks, and what was said before.
        task: The idempotency key.
        restarts: Whether the caller can be told that the answer begins anew.
        send: Passes a frame on to the caller.
        said: The words of the answer so far.
        attempts: How many instances were asked.
        instance: Who answers; empty if that is not known.
        begun: Whether an instance has taken it.
        refused: Whether the last error was the agent's own word, and not its loss.
    """

    tenant: str
    key: ThingKey
    capability: Capability
    circumstances: Circumstances
    task: str
    restarts: bool
    send: Send
    patience: Patience
    said: list[str] = field(default_factory=list[str])
    attempts: int = 0
    instance: str = ""
    begun: bool = False
    refused: bool = False


class Asker:
    """Asks agents. Its `Ask`s without an `ack` are sent again when an instance is lost."""

    def __init__(self, bus: Bus, membership: Membership) -> None:
        self._bus = bus
        self._membership = membership
        self._unacknowledged: dict[ThingKey, set[ReplyStream]] = {}

    def lost(self, keys: list[ThingKey]) -> None:
        """Instances of these agents have died: an ask that nobody has taken may be theirs."""
        for key in keys:
            for stream in self._unacknowledged.get(key, ()):
                stream.interrupt()

    async def ask(self, ask: Ask) -> str:
        """The whole answer; its words are passed on as they come.

        Raises:
            InstanceLost: The instance died and the work must not, or cannot, be repeated.
            Unavailable: No instance is there.
            MeshError: The agent refused or failed.
        """
        payload = codec.encode_value(
            {
                **input_for(ask.capability, ask.circumstances.message),
                CONTEXT: ask.circumstances.model_dump(),
            }
        )
        while True:
            ask.attempts += 1
            try:
                return await self._attempt(ask, payload)
            except (InstanceLost, StreamBroken, Unavailable, DeadlineExceeded) as error:
                await self._after(ask, error)

    async def _attempt(self, ask: Ask, payload: bytes) -> str:
        foreign = self._foreign(ask.key)
        if foreign:
            return await self._ask_foreign(ask, foreign)
        stream, frame = await self._acknowledged(ask, payload)
        try:
            ask.instance, ask.begun = stream.instance, True
            while True:
                if frame.kind == "delta":
                    text = frame.body if isinstance(frame.body, str) else json.dumps(frame.body)
                    ask.said.append(text)
                    await ask.send("delta", text)
                elif frame.kind == "end":
                    return await self._end(ask, frame.body)
                elif frame.kind in ("status", "query"):
                    await ask.send(frame.kind, frame.body)
                try:
                    frame = await _next(stream)
                except StopAsyncIteration:
                    raise StreamBroken(f"agent {ask.key.name!r} ended without an end") from None
                except Cancelled as error:
                    # Not by us: its process is stopping, and another one may answer.
                    raise InstanceLost(f"instance {stream.instance!r}: {error}") from error
                except MeshError:
                    ask.refused = stream.complete
                    raise
        finally:
            stream.close()

    async def _end(self, ask: Ask, output: Any) -> str:
        if not ask.said and output:
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            ask.said.append(text)
            await ask.send("delta", text)
        return "".join(ask.said)

    async def _after(self, ask: Ask, error: MeshError) -> None:
        """Make ready for another attempt, or raise the error."""
        if ask.refused:
            raise error
        begun = ask.begun
        gone = isinstance(error, InstanceLost | Unavailable)
        ended = "has died" if gone else "was not heard to the end"
        absent = isinstance(error, Unavailable) and not isinstance(error, Overloaded)
        if begun and not ask.capability.idempotent:
            raise InstanceLost(
                f"the instance of {ask.key.name!r} that was answering {ended}, and "
                f"{ask.capability.id!r} must not be done twice",
                hint="find out whether it was done before asking again",
            ) from error
        if isinstance(error, DeadlineExceeded) and (begun or not ask.capability.idempotent):
            raise error  # it was slow, not dead
        if ask.attempts >= MOST_ATTEMPTS:
            raise error
        if ask.said and not ask.restarts:
            raise InstanceLost(
                f"the instance of {ask.key.name!r} that was answering {ended}",
                hint="ask again",
            ) from error
        logger.info("asking %s again: %s", ask.key.name, error)
        if absent:
            await self._until_live(ask.key, error)
        elif isinstance(error, Overloaded):
            await asyncio.sleep(_POLL_S * ask.attempts)
        if ask.said:
            ask.said.clear()
            await ask.send("restart", {"reason": str(error), "lost": ask.instance})
        if begun and not gone:
            # Whoever was at it lives, and drops what it has seen before.
            ask.task = f"{ask.task}.{ask.attempts}"
        ask.instance, ask.begun = "", False

    async def _until_live(self, key: ThingKey, error: MeshError) -> None:
        """Wait a moment for an instance: whoever supervises it may be starting it again."""
        until = time.monotonic() + RETURN_S
        while time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
            if self._membership.live(key):
                return
        raise Unavailable(
            f"agent {key.name!r} ({key.subset}) has no instance running",
            hint="start it: `lmos run`",
        ) from error

    # -- the first frame: who has it? --

    async def _open(self, ask: Ask, payload: bytes) -> ReplyStream:
        subject = subjects.agent_invoke(*ask.key, ask.capability.id)
        headers, task = calls.tenant_headers(subject, ask.tenant), ask.task
        if headers:
            # Ids of conversations and turns are unique in a tenant only.
            task = f"{subjects.escape(ask.tenant)}.{task}"
        try:
            return await self._bus.open_stream(
                subject, payload, task=task, headers=headers, patience=ask.patience
            )
        except TooLarge as error:
            size, limit = error.details.get("size"), error.details.get("limit")
            raise TooLarge(
                f"the message takes {size} bytes on its way to agent {ask.key.name!r}, with what "
                f"was said before; the bus's limit is {limit} bytes",
                hint="send less",
                limit=limit,
            ) from error

    async def _acknowledged(self, ask: Ask, payload: bytes) -> tuple[ReplyStream, Frame]:
        """A stream that somebody has acknowledged, and its first frame."""
        stream = await self._open(ask, payload)
        waiting = self._unacknowledged.setdefault(ask.key, set())
        waiting.add(stream)
        try:
            try:
                return stream, await anext(stream)
            except Interrupted:
                # An instance died: it may have been the one that got the request, or not.
                return await self._race(ask, payload, stream)
        except BaseException:
            stream.close()
            raise
        finally:
            waiting.discard(stream)
            if not waiting:
                self._unacknowledged.pop(ask.key, None)

    async def _race(
        self, ask: Ask, payload: bytes, first: ReplyStream
    ) -> tuple[ReplyStream, Frame]:
        """Ask once more and take whoever acknowledges first; who comes second is called off."""
        ask.attempts += 1
        second = await self._open(ask, payload)
        heard: asyncio.Queue[tuple[ReplyStream, Frame | MeshError]] = asyncio.Queue(2)
        won = False

        async def listen(stream: ReplyStream) -> None:
            nonlocal won
            try:
                frame = await _next(stream)
            except MeshError as error:
                stream.close()
                heard.put_nowait((stream, error))
                return
            if won:
                stream.close()
            else:
                won = True
                heard.put_nowait((stream, frame))

        for stream in (first, second):
            self._bus.spawn(listen(stream), name="race")
        failure: MeshError | None = None
        for _ in range(2):
            stream, outcome = await heard.get()
            if isinstance(outcome, Frame):
                return stream, outcome
            failure = outcome
        assert failure is not None
        raise failure

    # -- agents hosted with other software --

    def _foreign(self, key: ThingKey) -> list[Lease]:
        """The instances of an agent hosted with other software; none for one that we answer for.

        Raises:
            Unavailable: It has no instance running.
        """
        entered = self._membership.get(key)
        if entered is None or not entered.thing.external:
            return []
        held = (self._membership.lease(key.tenant, one) for one in self._membership.serving(key))
        leases = [one for one in held if one]
        if not leases:
            raise Unavailable(f"agent {key.name!r} has no instance running")
        # A process of this mesh may answer for what speaks another protocol: it is asked as ours.
        return [one for one in leases if one.address.get("protocol") == "synadia"]

    async def _ask_foreign(self, ask: Ask, leases: list[Lease]) -> str:
        """Ask in the Synadia Agent Protocol, in which nobody says which instance answers."""
        arrived: asyncio.Queue[Packet | str] = asyncio.Queue()
        transport = self._bus.transport
        inbox = transport.open_inbox(arrived.put_nowait)
        asked = {one.instance for one in leases}
        ask.instance = leases[0].instance if len(leases) == 1 else ""

        def on_loss(instance: str) -> None:
            if instance in asked:
                asked.discard(instance)
                arrived.put_nowait(instance)

        self._bus.on_loss(on_loss)
        reply = synadia.Reply()
        # Also for the first sign: most hosts answer one at a time, and let the others wait.
        wait_s = max(ask.patience.idle_s, FOREIGN_IDLE_S)
        try:
            transport.publish(
                str(leases[0].address["prompt"]),
                synadia.write_prompt(ask.circumstances.message),
                reply=inbox.subject,
            )
            async with asyncio.timeout(ask.patience.total_s):
                while not reply.done:
                    packet = await _arrival(arrived, wait_s)
                    if isinstance(packet, str):
                        packet = await self._after_loss(ask, packet, arrived, asked)
                    if packet.nobody:
                        raise Unavailable(f"agent {ask.key.name!r} does not listen")
                    await self._take_chunk(ask, reply.read(packet.payload, packet.headers))
                    ask.begun = reply.acknowledged
        except TimeoutError:
            raise DeadlineExceeded(f"agent {ask.key.name!r} has fallen silent") from None
        finally:
            inbox.close()
            self._bus.not_on_loss(on_loss)
        return "".join(ask.said)

    async def _after_loss(
        self, ask: Ask, instance: str, arrived: "asyncio.Queue[Packet | str]", others: set[str]
    ) -> Packet:
        """What comes after an instance has died, if it was another one that answers.

        Raises:
            InstanceLost: Nothing comes.
        """
        error = InstanceLost(f"instance {instance!r} of {ask.key.name!r} has died")
        while others:
            try:
                packet = await _arrival(arrived, _FOREIGN_SETTLE_S)
            except TimeoutError:
                raise error from None
            if not isinstance(packet, str):
                return packet
        raise error

    async def _take_chunk(self, ask: Ask, chunk: tuple[str, Any] | None) -> None:
        kind, data = chunk or ("", None)
        if kind == "response":
            text = str(data)
            ask.said.append(text)
            await ask.send("delta", text)
        elif kind == "query":
            await ask.send("query", data)  # it says itself where it wants its answer


async def _next(stream: ReplyStream) -> Frame:
    """The next frame, whoever has died: an instance has this ask, or two are asked already."""
    while True:
        try:
            return await anext(stream)
        except Interrupted:
            continue


async def _arrival(arrived: "asyncio.Queue[Packet | str]", within_s: float) -> Packet | str:
    async with asyncio.timeout(within_s):
        return await arrived.get()
