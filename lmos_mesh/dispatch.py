"""Bounded, concurrent dispatch of what a process is asked, with deadlines that are kept."""

import asyncio
import logging
import math
import time
import types
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any

from opentelemetry.trace import SpanKind

from lmos_mesh import calls, telemetry
from lmos_mesh.calls import Call
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    HandedOver,
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
        found = self._tallies.get(name)
        if found is None:
            found = Tally()
            if len(self._tallies) < _TALLIES:  # else somebody makes names up
                self._tallies[name] = found
        return found


class Pool:
    """Bounded, concurrent dispatch: nats-py gives each subscription one call at a time.

    A worker is a task that answers one call after the other. Calls that arrive together are left
    to one worker as long as it answers them without waiting for anything, for a task of its own
    costs a short call as much as answering it. What waits behind a call that does wait gets
    workers of its own in the same turn of the loop.
    """

    def __init__(
        self, duties: Duties, respond: Respond, *, concurrency: int, backlog: int, once: bool
    ) -> None:
        self._duties = duties
        self._respond = respond
        self._concurrency = concurrency
        self._most = concurrency + backlog
        self._waiting: deque[Call] = deque()
        self._seen: OrderedDict[str, None] | None = OrderedDict() if once else None
        self._active = 0
        self._workers = 0
        self._coming = False
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
        if self.busy >= self._most:
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
        self._waiting.append(call)
        self.idle.clear()
        self._wake()

    def _wake(self) -> None:
        """Have a worker come, and others after it for what it has not got to."""
        if not self._coming and self._workers < self._concurrency:
            self._coming = True
            self._start_worker()
            asyncio.get_running_loop().call_soon(self._reinforce)

    def _reinforce(self) -> None:
        self._coming = False
        if not self._duties.closed:
            for _ in range(min(len(self._waiting), self._concurrency - self._workers)):
                self._start_worker()

    def _start_worker(self) -> None:
        self._workers += 1
        self._duties.tasks.create_task(self._work())

    async def _work(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            # So many and no more: the loop must have its turn even if nothing ever waits.
            for _ in range(self._concurrency):
                if not self._waiting:
                    break
                call = self._waiting.popleft()
                if call.done:
                    self._forget(call)  # called off while it waited
                    continue
                call.runner = worker
                self._active += 1
                await _in_own_context(self._run(call))
                if worker.cancelling():
                    break  # it was meant for that call, and must not hit the next one
        finally:
            self._workers -= 1
            if self._waiting and not self._duties.closed:
                self._wake()

    async def _run(self, call: Call) -> None:
        calls.current.set(call)
        began = time.perf_counter_ns()
        tally = self._duties.tally(call.subject.split(".", 2)[-1])
        tally.requests += 1
        try:
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
                    call.finish(await self._respond(call))
            else:
                call.finish(await self._respond(call))
        except asyncio.CancelledError:
            ended_by = call.ended_by
            _try(call.fail, ended_by or Cancelled("the process is stopping"))
            if ended_by is None:
                raise
            tally.errors += 1
            tally.last_error = f"{ended_by.status}:{ended_by}"
        except HandedOver as handed:  # that is an answer, and no mistake
            _try(call.fail, handed)
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
            self._active -= 1
            self._forget(call)

    def _forget(self, call: Call) -> None:
        running = self._duties.running
        if running.get(call.task) is call:
            del running[call.task]
        self._duties.deadlines.discard(call)
        if not self.busy:
            self.idle.set()


@types.coroutine
def _in_own_context(work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await what must not share its context variables, as if it were a task of its own."""
    context = copy_context()
    resume: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        try:
            waits_for = context.run(resume, value)
        except StopIteration:
            return
        finally:
            value = None  # an error leads here by its traceback, and would never be freed
        try:
            value = yield waits_for
            resume = work.send
        except BaseException as exc:
            value, resume = exc, work.throw


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
