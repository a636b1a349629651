"""Bounded, concurrent dispatch of what a process is asked, with deadlines that are kept."""

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.trace import SpanKind

from lmos_mesh import calls, telemetry
from lmos_mesh.calls import Call
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    MeshError,
    Overloaded,
    Unavailable,
)
from lmos_mesh.micro import Tally
from lmos_mesh.transport import Packet, Subscription, Transport

logger = logging.getLogger(__name__)

Respond = Callable[[Call], Awaitable["Message | Any"]]
"""Answers a call: returns the reply, or raises a `MeshError` to refuse."""

_SEEN = 4096
_TALLIES = 4096


class Duties:
    """All that a process is answering, whichever subject it was asked on.

    Attributes:
        running: The calls that were accepted and are not answered yet, by task.
        closed: Whether nothing new is taken.
        tasks: Who owns the tasks that answer.
    """

    def __init__(self, transport: Transport, instance: str) -> None:
        self.transport = transport
        self.instance = instance
        self.running: dict[str, Call] = {}
        self.deadlines = Deadlines()
        self.closed = False
        self.tasks = asyncio.TaskGroup()
        self._taken = 0
        self._tallies: dict[str, Tally] = {}

    def new_task(self) -> str:
        """An id for a piece of work that came without one; no other in the process has it."""
        self._taken += 1
        return f"{self.instance}-{self._taken}"

    def tally(self, name: str) -> Tally:
        """What has been done so far under the last tokens of a subject, as `router.decide`."""
        if name not in self._tallies and len(self._tallies) >= _TALLIES:
            return Tally()  # somebody makes names up
        return self._tallies.setdefault(name, Tally())


class Pool:
    """Bounded, concurrent dispatch: nats-py gives each subscription one call at a time."""

    def __init__(
        self, duties: Duties, respond: Respond, *, concurrency: int, backlog: int, once: bool
    ) -> None:
        self._duties = duties
        self._respond = respond
        self._concurrency = concurrency
        self._backlog = backlog
        self._waiting: deque[Call] = deque()
        self._seen: OrderedDict[str, None] | None = OrderedDict() if once else None
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.subscription: Subscription | None = None

    @property
    def busy(self) -> int:
        """How many calls are being answered or wait for it."""
        return self._active + len(self._waiting)

    def on_packet(self, packet: Packet) -> None:
        """Take a request as it arrives, or refuse it."""
        call = Call(packet, self._duties.transport, task=self._duties.new_task())
        try:
            call.read_headers()
            self._admit(call)
        except MeshError as error:
            call.fail(error)

    def _admit(self, call: Call) -> None:
        if call.deadline is not None and call.deadline < time.time():
            # Nobody waits for it: a request that was buffered while the bus was lost.
            logger.info("dropped a request on %s that is past its deadline", call.subject)
            return
        if self._duties.closed:
            raise Unavailable(f"instance {self._duties.instance!r} is stopping", hint="try again")
        known = self._seen if calls.MESSAGE_ID in call.headers else None
        if known is not None and call.task in known:
            return
        if self._active >= self._concurrency and len(self._waiting) >= self._backlog:
            raise Overloaded(
                f"instance {self._duties.instance!r} answers {self._active} calls and "
                f"{len(self._waiting)} wait",
                hint="try again, or start another instance",
            )
        call.accept(self._duties.instance)
        if known is not None:
            # Only now: who was refused is right to try again.
            known[call.task] = None
            if len(known) > _SEEN:
                known.popitem(last=False)
        self._duties.running[call.task] = call
        if call.deadline is not None:
            self._duties.deadlines.add(call)
        if self._active < self._concurrency:
            self._start(call)
        else:
            self._waiting.append(call)

    def _start(self, call: Call) -> None:
        self._active += 1
        self.idle.clear()
        call.runner = self._duties.tasks.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        calls.current.set(call)
        call.begun = True
        began = time.perf_counter_ns()
        tally = self._duties.tally(call.subject.split(".", 2)[-1])
        tally.requests += 1
        try:
            if call.ended_by is not None:
                raise call.ended_by
            if telemetry.recording():
                with telemetry.span(
                    f"process {template(call.subject)}",
                    kind=SpanKind.SERVER,
                    carrier=call.headers,
                    attributes={
                        "messaging.system": "nats",
                        "messaging.destination.name": call.subject,
                    },
                ):
                    await self._answer(call)
            else:
                await self._answer(call)
        except asyncio.CancelledError:
            ended_by = call.ended_by
            _try(call.fail, ended_by or Cancelled("the process is stopping"))
            if ended_by is None:
                raise
            tally.errors += 1
            tally.last_error = f"{ended_by.status}:{ended_by}"
        except MeshError as error:
            tally.errors += 1
            tally.last_error = f"{error.status}:{error}"
            _try(call.fail, error)
        except Exception:
            tally.errors += 1
            # A bug in one handler must not take the process down, nor leak to the caller.
            logger.exception("answering %s failed", call.subject)
            _try(
                call.fail,
                MeshError(f"{call.subject} failed", hint=f"see the log of {self._duties.instance}"),
            )
        finally:
            tally.busy_ns += time.perf_counter_ns() - began
            self._ended(call)

    async def _answer(self, call: Call) -> None:
        call.finish(await self._respond(call))

    def _ended(self, call: Call) -> None:
        self._forget(call)
        self._active -= 1
        while self._waiting and self._active < self._concurrency:
            following = self._waiting.popleft()
            if following.done:
                self._forget(following)  # called off while it waited
            else:
                self._start(following)
        if not self._active:
            self.idle.set()

    def _forget(self, call: Call) -> None:
        running = self._duties.running
        if running.get(call.task) is call:
            del running[call.task]
        self._duties.deadlines.discard(call)


class Deadlines:
    """Ends calls that are not done by their deadline: one timer for all, set anew when it fires.

    A timeout of its own would cost each call as much as taking it in.
    """

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        """End a call at its deadline."""
        self._calls.add(call)
        if call.deadline is not None and call.deadline < self._due:
            self._set(call.deadline)

    def discard(self, call: Call) -> None:
        """It is done."""
        self._calls.discard(call)

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, due: float) -> None:
        self.close()
        self._due = due
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, due - time.time()), self._check)

    def _check(self) -> None:
        now = time.time()
        self._timer, self._due = None, math.inf
        for call in list(self._calls):
            if call.deadline is not None and call.deadline <= now:
                self._calls.discard(call)
                call.stop(DeadlineExceeded(f"{call.subject} was not done by its deadline"))
        if self._calls:
            self._set(min(call.deadline or math.inf for call in self._calls))


def _try(send: Callable[[MeshError], None], error: MeshError) -> None:
    try:
        send(error)
    except MeshError as exc:
        logger.warning("could not answer: %s", exc)


def template(subject: str) -> str:
    """A subject without its ids, as OpenTelemetry wants span names."""
    tokens = subject.split(".")
    if len(tokens) > 2 and tokens[0] == "lmos":
        tokens[1] = "{tenant}"
        if tokens[2] == "instance" and len(tokens) > 3:
            tokens[3] = "{instance}"
    return ".".join(tokens)
