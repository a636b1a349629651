"""One request in the hands of whoever answers it."""

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, unquote

from lmos_mesh import codec, subjects, telemetry
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import (
    TYPE_PREFIX,
    AgentFailed,
    Cancelled,
    InvalidMessage,
    MeshError,
    TooLarge,
)
from lmos_mesh.transport import Headers, Inbox, Packet, Transport

ACCEPT = "Lmos-Accept"
DEADLINE = "Lmos-Deadline"
HOPS = "Lmos-Hops"
PATH = "Lmos-Path"
MESSAGE_ID = "Nats-Msg-Id"
TENANT = "Lmos-Tenant"
CALLER = "Lmos-Caller"
# The header names of the NATS services API (ADR-32), so that `nats` shows our errors.
ERROR_CODE = "Nats-Service-Error-Code"
ERROR = "Nats-Service-Error"

STREAM = "stream"
MAX_HOPS = 16
KEEP_ALIVE_S = 10.0
_CHECK_CALLER_EVERY = 16
_MOST_DIGITS = 18
_CALLER_LENGTH = 256

current: ContextVar["Call | None"] = ContextVar("current_call", default=None)
"""The call that this task is answering; what it asks of others inherits from it."""


def tenant_headers(subject: str, tenant: str) -> dict[str, str]:
    """What tells whoever answers on a subject of another tenant's whose request it is."""
    return {} if subjects.tenant_of(subject) == tenant else {TENANT: subjects.escape(tenant)}


def error_headers(error: MeshError) -> dict[str, str]:
    """The ADR-32 headers of an error."""
    return {ERROR_CODE: str(error.status), ERROR: str(error).replace("\n", " ")[:1000]}


def caller_headers(caller: str) -> dict[str, str]:
    """The header that says who asks, as they call themselves."""
    # What stands in a header is ASCII, and has no line breaks.
    return {CALLER: quote(caller[:_CALLER_LENGTH], safe=" @()/:;,+=", errors="replace")}


class Call:
    """One request, its deadline, and the way back.

    Attributes:
        subject: Where it was asked.
        payload: What was asked, as bytes.
        reply: Where the answer goes; empty if nobody waits for one.
        headers: As they came.
        task: Id of this piece of work; the same id again is the same work.
        deadline: Unix seconds after which nobody waits for the answer; None for no limit.
        hops: Through how many processes it came.
        as_json: Whether the caller speaks JSON.
        notes: What logs should say of it: `conversation`, and `tenant` where that is another one.
        streaming: Whether the caller takes frames; otherwise one reply, the whole answer.
    """

    __slots__ = (
        "_inbox",
        "_keep_alive",
        "_last_sent",
        "_seq",
        "_transport",
        "as_json",
        "deadline",
        "done",
        "ended_by",
        "headers",
        "hops",
        "notes",
        "payload",
        "reply",
        "runner",
        "streaming",
        "subject",
        "task",
    )

    def __init__(self, packet: Packet, transport: Transport, *, task: str) -> None:
        headers = packet.headers
        self._transport = transport
        self.reply = packet.reply
        self._seq = 0
        self._inbox: Inbox | None = None
        self._keep_alive: asyncio.TimerHandle | None = None
        self._last_sent = 0.0
        self.subject = packet.subject
        self.payload = packet.payload
        self.headers = headers
        # Without a payload it is a person who asks: a program sends a map, even an empty one.
        self.as_json = not packet.payload or codec.is_json(packet.payload)
        self.streaming = bool(packet.reply) and headers.get(ACCEPT) == STREAM
        self.task = headers.get(MESSAGE_ID) or task
        self.done = False
        self.deadline: float | None = None
        self.hops = 0
        self.runner: asyncio.Task[None] | None = None
        self.ended_by: MeshError | None = None
        self.notes: dict[str, str] = {}

    def read_headers(self) -> None:
        """Take deadline and hops from the headers.

        Raises:
            InvalidMessage: One of them is no number.
        """
        if deadline := self.headers.get(DEADLINE):
            self.deadline = _number(DEADLINE, deadline) / 1000
        if hops := self.headers.get(HOPS):
            self.hops = _number(HOPS, hops)

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return subjects.tenant_of(self.subject)

    @property
    def caller(self) -> str:
        """Who says that they ask; empty if nobody does.

        It is written down and shown, and nothing is ever decided by it: anybody may say anything.
        """
        told = unquote(self.headers.get(CALLER, "")[: 3 * _CALLER_LENGTH])
        shown = "".join(one if one.isprintable() else "?" for one in told)
        return shown[:_CALLER_LENGTH]

    @property
    def takes_packed(self) -> bool:
        """Whether the answer may be `codec.Packed`."""
        return not self.as_json and not self.streaming

    @property
    def path(self) -> tuple[str, ...]:
        """The agents that the request has passed through, the first one first; this one last."""
        passed = tuple(
            subjects.unescape(one) for one in self.headers.get(PATH, "").split(",") if one
        )
        agent = subjects.agent_of(self.subject)
        return (*passed, agent) if agent else passed

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None for no limit."""
        return None if self.deadline is None else self.deadline - time.time()

    def accept(self, instance: str) -> None:
        """Tell a streaming caller, before any work, who has its request."""
        if self.streaming:
            self._frame("ack", {"task": self.task, "instance": instance})
            self._last_sent = time.monotonic()
            loop = asyncio.get_running_loop()
            self._keep_alive = loop.call_later(KEEP_ALIVE_S, self._keep_caller)

    async def send(self, kind: str, body: Any) -> None:
        """Send a frame: `status`, `delta`, `query` or `restart`. Nothing if none are taken.

        Raises:
            AgentFailed: It is larger than the bus takes.
        """
        if not self.streaming or self.done:
            return
        try:
            if self._seq % _CHECK_CALLER_EVERY == 0:
                self._frame(kind, body, reply=self._caller_check())
                await self._transport.writable()
            else:
                self._frame(kind, body)
        except TooLarge as error:
            raise self._oversized(error, "a piece of the answer") from error

    def finish(self, reply: Message | Any) -> None:
        """Give the answer; the last frame of a stream.

        Raises:
            AgentFailed: It is larger than the bus takes.
        """
        if self.done:
            return
        try:
            if self.streaming:
                body = reply.model_dump(by_alias=True) if isinstance(reply, Message) else reply
                self._frame("end", body)
            elif self.reply:
                if isinstance(reply, Message):
                    payload = codec.encode(reply, as_json=self.as_json)
                elif isinstance(reply, codec.Packed):
                    payload = reply.payload
                else:
                    payload = codec.encode_value(reply, as_json=self.as_json)
                self._transport.publish(self.reply, payload)
        except TooLarge as error:
            raise self._oversized(error, "the answer") from error
        self._close()

    def _oversized(self, error: TooLarge, what: str) -> AgentFailed:
        """What we send is not the caller's fault."""
        size, limit = error.details.get("size"), error.details.get("limit")
        return AgentFailed(
            f"{what} of {subjects.answerer_of(self.subject)} takes {size} bytes, "
            f"and {limit} is the bus's limit",
            hint="ask for less, or have it answer in pieces",
            limit=limit,
        )

    def fail(self, error: MeshError) -> None:
        """Give an error instead of an answer."""
        if self.done:
            return
        try:
            try:
                self._send_error(error, error.problem())
            except (TooLarge, TypeError, ValueError):
                # Its details do not go on the wire; what went wrong still does.
                self._send_error(error, _bare(error))
        finally:
            self._close()

    def _send_error(self, error: MeshError, problem: dict[str, Any]) -> None:
        if self.streaming:
            self._frame("error", problem, headers=error_headers(error))
        elif self.reply:
            payload = codec.encode_value(problem, as_json=self.as_json)
            self._transport.publish(self.reply, payload, headers=error_headers(error))

    def cancel(self, reason: str) -> None:
        """Stop the work; whoever still listens is told why."""
        self.stop(Cancelled(reason))

    def stop(self, error: MeshError) -> None:
        """Stop the work, which ends with this error."""
        if self.done:
            return
        self.ended_by = error
        if self.runner is None:
            with suppress(MeshError):
                self.fail(error)
        else:
            self.runner.cancel()

    def trace_headers(self) -> dict[str, str]:
        """The caller's trace, for passing on when nothing is recorded here."""
        return {
            name: self.headers[name] for name in telemetry.TRACE_HEADERS if name in self.headers
        }

    def _frame(
        self, kind: str, body: Any, *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        payload = codec.encode_value([self._seq, kind, body], as_json=self.as_json)
        self._transport.publish(self.reply, payload, headers=headers, reply=reply)
        # Only now: a frame that was refused leaves no gap.
        self._seq += 1
        if self._keep_alive is not None:
            self._last_sent = time.monotonic()

    def _keep_caller(self) -> None:
        """A silent stream says that it lives, so that the caller's idle deadline means death."""
        if self.done:
            return
        loop = asyncio.get_running_loop()
        silent_s = time.monotonic() - self._last_sent
        if silent_s >= KEEP_ALIVE_S:
            self._frame("status", {"state": "working"}, reply=self._caller_check())
            silent_s = 0.0
        self._keep_alive = loop.call_later(KEEP_ALIVE_S - silent_s, self._keep_caller)

    def _caller_check(self) -> str:
        """A reply subject on which the bus tells us that the caller is gone."""
        if self._inbox is None:
            self._inbox = self._transport.open_inbox(self._on_caller_check)
        return self._inbox.subject

    def _on_caller_check(self, packet: Packet) -> None:
        if packet.nobody:
            self.cancel("the caller is gone")

    def _close(self) -> None:
        self.done = True
        if self._keep_alive is not None:
            self._keep_alive.cancel()
        if self._inbox is not None:
            self._inbox.close()


def _bare(error: MeshError) -> dict[str, Any]:
    """A problem document that can be sent whatever the error carries."""
    cut = str(error)[:1000].encode("utf-8", "replace").decode()
    return MeshError(cut).problem() | {
        "type": f"{TYPE_PREFIX}{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
    }


def _number(header: str, value: str) -> int:
    try:
        if len(value) <= _MOST_DIGITS:
            return int(value)
    except ValueError:
        pass
    raise InvalidMessage(
        f"header {header} is {value[:40]!r}, not a whole number", field=header
    ) from None
