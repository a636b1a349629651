"""One wildcard subscription for all replies to a process, told apart by a counter."""

import asyncio
import math
from collections.abc import Callable

from lmos_mesh.errors import DeadlineExceeded, NobodyAnswers
from lmos_mesh.transport import Headers, OnPacket, Packet

Publish = Callable[[str, bytes, "Headers | None", str], None]


class OpenInbox:
    """See `transport.Inbox`."""

    __slots__ = ("_inboxes", "_token", "subject")

    def __init__(self, inboxes: "Inboxes", token: str, subject: str) -> None:
        self._inboxes = inboxes
        self._token = token
        self.subject = subject

    def close(self) -> None:
        """See `transport.Inbox.close`."""
        self._inboxes.forget(self._token)


class Inboxes:
    """The inboxes of one process. nats-py's own cost a random name and a timer task each."""

    def __init__(self, prefix: str, publish: Publish) -> None:
        self._prefix = prefix
        self._publish = publish
        self._count = 0
        self._open: dict[str, OnPacket] = {}
        self._asked: dict[str, tuple[asyncio.Future[Packet], float]] = {}
        self._next_due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pattern(self) -> str:
        """What to subscribe, once, with `deliver`.

        One token only: what a fetch gets below an inbox must not come here as well, under subjects
        that are no inbox's.
        """
        return f"{self._prefix}*"

    def deliver(self, packet: Packet) -> None:
        """Hand a reply to whoever waits for it; a late one is dropped."""
        token = packet.subject[len(self._prefix) :]
        asked = self._asked.get(token)
        if asked is not None:
            reply, _ = asked
            if not reply.done():
                reply.set_result(packet)
            return
        on_packet = self._open.get(token)
        if on_packet is not None:
            on_packet(packet)

    def open(self, on_packet: OnPacket) -> OpenInbox:
        """A new inbox."""
        self._count += 1
        token = str(self._count)
        self._open[token] = on_packet
        return OpenInbox(self, token, self._prefix + token)

    def forget(self, token: str) -> None:
        """Listen no longer on one inbox."""
        self._open.pop(token, None)

    async def request(
        self, subject: str, payload: bytes, headers: Headers | None, timeout_s: float
    ) -> Packet:
        """See `Transport.request`."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Packet] = loop.create_future()
        self._count += 1
        token = str(self._count)
        due = loop.time() + timeout_s
        self._asked[token] = (reply, due)
        if due < self._next_due:
            self._watch(loop, due)
        try:
            self._publish(subject, payload, headers, self._prefix + token)
            packet = await reply
        except TimeoutError:
            raise DeadlineExceeded(f"no answer on {subject!r} within {timeout_s:g} s") from None
        finally:
            self._asked.pop(token, None)
        if packet.nobody:
            raise NobodyAnswers(
                f"nobody answers on {subject!r}", hint="is it running? `lmos doctor`"
            )
        return packet

    def _watch(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_due = due
        self._timer = loop.call_at(due, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is due: one timer for all questions, set anew when it fires."""
        now = loop.time()
        self._timer, self._next_due = None, math.inf
        for reply, due in self._asked.values():
            if due <= now and not reply.done():
                reply.set_exception(TimeoutError())
        if waiting := [due for _, due in self._asked.values() if due > now]:
            self._watch(loop, min(waiting))
