"""A reply that comes in frames, on the side of whoever asked."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from lmos_mesh import codec, subjects
from lmos_mesh.calls import ERROR, ERROR_CODE
from lmos_mesh.errors import (
    DeadlineExceeded,
    InstanceLost,
    InvalidMessage,
    MeshError,
    NobodyAnswers,
    StreamBroken,
    error_from_problem,
)
from lmos_mesh.transport import Headers, Packet

_MAX_WAITING = 65_536


class Frame(NamedTuple):
    """One frame. Kinds: ack, status, delta, query, restart, end, error."""

    seq: int
    kind: str
    body: Any


class Patience(NamedTuple):
    """How long a caller waits, in seconds: for the ack, between frames, and in all."""

    first_s: float = 5.0
    idle_s: float = 30.0
    total_s: float = 300.0


class Interrupted(Exception):
    """Somebody has called `interrupt`. The stream goes on; read it again."""


class Watcher(Protocol):
    """Who tells a stream that its sender has died."""

    def watch(self, stream: "ReplyStream", instance: str) -> None:
        """Have `stream.lose` called when the instance dies."""
        ...

    def unwatch(self, stream: "ReplyStream", instance: str) -> None:
        """The stream has ended."""
        ...


class ReplyStream:
    """Frames in their order, until `end`. Errors are raised; a gap is one.

    Cancelling is safe: leaving the stream before its end calls the work off.

    Attributes:
        instance: Who answers; empty before the `ack`.
        task: What the instance calls the work.
        ended: Whether `end` was read.
    """

    def __init__(
        self,
        subject: str,
        patience: Patience,
        watcher: Watcher,
        leave: Callable[["ReplyStream"], None],
    ) -> None:
        self.subject = subject
        self.tenant = subjects.tenant_of(subject)
        self.instance = ""
        self.task = ""
        self.ended = False
        self._patience = patience
        self._watcher = watcher
        self._leave = leave
        self._frames: deque[Frame] = deque()
        self._failure: MeshError | None = None
        self._interrupted = False
        self._complete = False
        self._next = 0
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._began = self._heard = self._loop.time()
        self._timer = self._loop.call_later(patience.first_s, self._check_patience)

    def on_packet(self, packet: Packet) -> None:
        """Take what arrives in the inbox."""
        if self.settled:
            return
        self._heard = self._loop.time()
        if packet.nobody:
            self._fail(NobodyAnswers(f"nobody answers on {self.subject!r}", hint="is it running?"))
            return
        try:
            self._take(packet)
        except (InvalidMessage, ValueError, TypeError, IndexError, AttributeError) as exc:
            self._fail(StreamBroken(f"{self.subject!r} sent what is no frame: {exc}"))

    def _take(self, packet: Packet) -> None:
        decoded = codec.decode_value(packet.payload)
        if packet.headers.get(ERROR_CODE):
            self._complete = True
            self._fail(_error_of(packet, decoded))
            return
        seq, kind, body = decoded
        if seq != self._next:
            self._fail(StreamBroken(f"frame {self._next} of {self.subject!r} was lost"))
            return
        self._next += 1
        if seq == 0 and self._patience.idle_s < self._patience.first_s:
            # The timer is set for the first frame, and what comes next is due earlier.
            self._timer.cancel()
            self._check_patience()
        if kind == "ack":
            self.instance = str(body.get("instance", ""))
            self.task = str(body.get("task", ""))
            if self.instance:
                self._watcher.watch(self, self.instance)
        elif len(self._frames) >= _MAX_WAITING:
            self._fail(StreamBroken(f"{_MAX_WAITING} frames wait to be read; the reader is stuck"))
            return
        elif kind in ("end", "error"):
            # What is lost or late from now on is no loss: the answer is here, read or not.
            self._complete = True
        self._frames.append(Frame(seq, kind, body))
        self._wake()

    @property
    def complete(self) -> bool:
        """Whether the last frame has come, read or not; there is nothing left to call off."""
        return self._complete

    @property
    def waiting(self) -> int:
        """How many frames are here already and have not been read."""
        return len(self._frames)

    @property
    def settled(self) -> bool:
        """Whether nothing that comes from now on is read: it is whole, or has failed."""
        return self._complete or self._failure is not None

    def lose(self, reason: str) -> None:
        """The sender has died."""
        if not self.settled:
            self._fail(InstanceLost(f"instance {self.instance!r} {reason}"))

    def break_off(self, error: MeshError) -> None:
        """End the stream with an error of the caller's side."""
        if not self.settled:
            self._fail(error)

    def interrupt(self) -> None:
        """Have whoever waits for the next frame raise `Interrupted`; nothing is lost by it."""
        self._interrupted = True
        self._wake()

    def _fail(self, error: MeshError) -> None:
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _check_patience(self) -> None:
        """One timer for three deadlines, set anew only when it fires."""
        if self.settled:
            return
        now = self._loop.time()
        first_s, idle_s, total_s = self._patience
        limits = [(self._began + total_s, f"no end within {total_s:g} s")]
        if self._next == 0:
            limits.append((self._began + first_s, f"no first frame within {first_s:g} s"))
        else:
            limits.append((self._heard + idle_s, f"silent for {idle_s:g} s"))
        due, said = min(limits)
        if due <= now:
            self._fail(DeadlineExceeded(f"{self.subject!r}: {said}"))
        else:
            self._timer = self._loop.call_at(due, self._check_patience)

    @property
    def silent_s(self) -> float:
        """How long nothing has come."""
        return self._loop.time() - self._heard

    def __aiter__(self) -> "ReplyStream":
        return self

    async def __anext__(self) -> Frame:
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            if self.ended:
                raise StopAsyncIteration
            if self._interrupted:
                self._interrupted = False
                raise Interrupted
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        frame = self._frames.popleft()
        if frame.kind == "end":
            self.ended = True
        elif frame.kind == "error":
            self._failure = _error_of(None, frame.body)
            raise self._failure
        return frame

    def close(self) -> None:
        """Leave; if the end has not come, the work is called off."""
        self._timer.cancel()
        if self.instance:
            self._watcher.unwatch(self, self.instance)
        self._leave(self)


def _error_of(packet: Packet | None, body: Any) -> MeshError:
    found = cast("list[Any]", body)[2] if isinstance(body, list) else body
    problem: dict[str, Any] = cast("Any", found) if isinstance(found, dict) else {}
    headers: Headers = packet.headers if packet else {}
    status = str(headers.get(ERROR_CODE, problem.get("status", 500)))
    message = str(headers.get(ERROR, problem.get("detail", "failed without saying why")))
    return error_from_problem(
        problem, status=int(status) if status.isdigit() else 500, message=message
    )
