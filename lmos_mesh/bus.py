"""Typed calls over a transport: asking, answering, streams, and errors that cross the mesh."""

import asyncio
import json
import logging
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from opentelemetry.trace import SpanKind

from lmos_mesh import calls, codec, subjects, telemetry
from lmos_mesh.calls import Call
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidMessage,
    LoopDetected,
    MeshError,
    NotFound,
    Overloaded,
    Unavailable,
    error_from_problem,
)
from lmos_mesh.micro import Tally
from lmos_mesh.reply_stream import Patience, ReplyStream
from lmos_mesh.transport import Packet, Subscription, Transport

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

Respond = Callable[[Call], Awaitable["Message | Any"]]
"""Answers a call: returns the reply, or raises a `MeshError` to refuse."""

CONCURRENCY = 64
BACKLOG = 1024
_SEEN = 4096
_TALLIES = 4096
_PROBE_AFTER_S = 0.25
_SETTLE_S = 0.5


class _Cancel(Message):
    task: str


@dataclass(frozen=True, slots=True)
class Route:
    """An operation of a service and who answers it."""

    operation: str
    respond: Respond


def route(
    endpoint: Endpoint[RequestT, ReplyT], handler: Callable[[RequestT, Call], Awaitable[ReplyT]]
) -> Route:
    """A route whose handler gets and gives messages; a wrong type fails the type check."""

    async def respond(call: Call) -> Message:
        return await handler(codec.decode(endpoint.request, call.payload), call)

    return Route(endpoint.operation, respond)


class Bus:
    """Asks and answers on the mesh. Use it as a context manager: it owns the tasks it starts."""

    def __init__(
        self, transport: Transport, *, tenant: str, instance: str, timeout_s: float = 5.0
    ) -> None:
        self.transport = transport
        self.tenant = tenant
        self.instance = instance
        self._timeout_s = timeout_s
        self._tasks: asyncio.TaskGroup | None = None
        self._closed = False
        self._background: set[asyncio.Task[Any]] = set()
        self._pools: list[_Pool] = []
        self._taken = 0
        self._running: dict[str, Call] = {}
        self._tallies: dict[str, Tally] = {}
        self._losses = _Losses(self)
        self._deadlines = _Deadlines()

    async def __aenter__(self) -> "Bus":
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        await self.respond(subjects.instance_in_any_tenant(self.instance), self._instance_operation)
        # Also for those who only answer: a caller that dies calls off what it waits for.
        await self._losses.begin()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._closed = True
        for call in list(self._running.values()):
            call.cancel("the process is stopping")
        self._losses.close()
        self._deadlines.close()
        for task in list(self._background):
            task.cancel()
        assert self._tasks is not None
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await _unsubscribe([*self._subscriptions(self._pools), *self._losses.subscriptions])

    def spawn(
        self, work: Coroutine[Any, Any, Any], *, name: str = ""
    ) -> "asyncio.Task[Any] | None":
        """Start a task that ends with the bus at the latest. It must guard its own errors."""
        assert self._tasks is not None, "use the bus as a context manager"
        if self._closed:
            work.close()  # a packet that comes while the process leaves starts nothing any more
            return None
        task = self._tasks.create_task(work, name=name or None)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def new_task(self) -> str:
        """An id for a piece of work that came without one; no other in the process has it."""
        self._taken += 1
        return f"{self.instance}-{self._taken}"

    # -- asking --

    async def call(
        self,
        endpoint: Endpoint[RequestT, ReplyT],
        request: RequestT,
        *,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ReplyT:
        """Ask a question and wait for its answer. Cancelling is safe: a late answer is dropped.

        Args:
            endpoint: What to ask.
            request: The question.
            tenant: Whose question it is; our own tenant's by default.
            headers: Sent beside our own, and instead of them where they are named alike.
            timeout_s: How long to wait; the bus's own time by default.

        Raises:
            Unavailable: Nobody answers there; worth another try.
            DeadlineExceeded: No answer in time.
            MeshError: The error the other side raised, as the same class.
        """
        subject = endpoint.subject(subjects.escape(tenant or self.tenant))
        packet = await self.request(
            subject, codec.encode(request), headers=headers, timeout_s=timeout_s
        )
        return codec.decode(endpoint.reply, packet.payload)

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Packet:
        """Ask with bytes; otherwise as `call`."""
        timeout_s = self._allowed_s(self._timeout_s if timeout_s is None else timeout_s)
        if telemetry.recording():
            with telemetry.span(
                f"send {_template(subject)}",
                kind=SpanKind.CLIENT,
                attributes={"messaging.system": "nats", "messaging.destination.name": subject},
            ):
                return await self._request(subject, payload, headers, timeout_s)
        return await self._request(subject, payload, headers, timeout_s)

    async def _request(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> Packet:
        sent = self._headers(timeout_s)
        if headers:
            sent.update(headers)
        packet = await self.transport.request(subject, payload, headers=sent, timeout_s=timeout_s)
        if calls.ERROR_CODE in packet.headers:
            raise _error_of(packet)
        return packet

    @asynccontextmanager
    async def stream(
        self,
        endpoint: Endpoint[RequestT, ReplyT],
        request: RequestT,
        *,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> AsyncGenerator[ReplyStream]:
        """Ask for an answer in frames; leaving the block before its end calls the work off.

        The body of the `end` frame is the whole reply; see `open_stream` for the errors, and
        `call` for the arguments.
        """
        subject = endpoint.subject(subjects.escape(tenant or self.tenant))
        stream = await self.open_stream(
            subject, codec.encode(request), headers=headers, patience=patience
        )
        try:
            yield stream
        finally:
            stream.close()

    async def open_stream(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        task: str = "",
        patience: Patience | None = None,
    ) -> ReplyStream:
        """Ask with bytes for an answer in frames. Whoever opens a stream closes it.

        Iterating raises:
            Unavailable: Nobody answers there.
            InstanceLost: Who was answering has died.
            StreamBroken: A frame was lost.
            DeadlineExceeded: The first frame, the next one or the end did not come in time.
            MeshError: The error the other side raised, as the same class.
        """
        patience = patience or Patience()
        total_s = self._allowed_s(patience.total_s)
        patience = Patience(min(patience.first_s, total_s), min(patience.idle_s, total_s), total_s)
        if not self.transport.connected:
            await self.transport.wait_connected(timeout_s=patience.first_s)
        await self._losses.begin()

        def leave(stream: ReplyStream) -> None:
            inbox.close()
            if not stream.complete and stream.instance:
                self.call_off(stream.instance, stream.task, tenant=stream.tenant)

        stream = ReplyStream(subject, patience, self._losses, leave)
        inbox = self.transport.open_inbox(stream.on_packet)
        sent = self._headers(total_s)
        sent[calls.ACCEPT] = calls.STREAM
        if task:
            sent[calls.MESSAGE_ID] = task
        if headers:
            sent.update(headers)
        self.transport.publish(subject, payload, headers=sent, reply=inbox.subject)
        return stream

    def call_off(self, instance: str, task: str, *, tenant: str = "") -> None:
        """Tell an instance that nobody wants the result of a task any more.

        Args:
            instance: Who is at it.
            task: What it is at.
            tenant: Where it was asked; our own by default.
        """
        body = codec.encode_value({"task": task})
        subject = subjects.instance(tenant or self.tenant, instance, "cancel")
        with suppress(MeshError):
            self.transport.publish(subject, body)

    def _allowed_s(self, timeout_s: float) -> float:
        """No question may outlast the one that it helps to answer."""
        call = calls.current.get()
        remaining_s = call.remaining_s if call else None
        if remaining_s is None:
            return timeout_s
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline of the request being answered has passed")
        return min(timeout_s, remaining_s)

    def _headers(self, timeout_s: float) -> dict[str, str]:
        headers = {calls.DEADLINE: str(int((time.time() + timeout_s) * 1000))}
        call = calls.current.get()
        if call is not None:
            if call.hops >= calls.MAX_HOPS:
                raise LoopDetected(
                    f"a request has passed through {call.hops} processes, last {call.subject!r}",
                    hint="two agents may be asking each other",
                )
            headers[calls.HOPS] = str(call.hops + 1)
            headers.update(call.trace_headers())
        telemetry.inject(headers)
        return headers

    # -- answering --

    async def serve(
        self, service: str, routes: Sequence[Route], *, concurrency: int = CONCURRENCY
    ) -> Subscription:
        """Answer a service's operations for every tenant, sharing them with its replicas."""
        by_operation = {one.operation: one.respond for one in routes}

        async def respond(call: Call) -> Message | Any:
            operation = call.subject.rsplit(".", 1)[1]
            known = by_operation.get(operation)
            if known is None:
                raise NotFound(
                    f"{service} has no operation {operation!r}",
                    hint=f"it has {', '.join(sorted(by_operation))}",
                )
            return await known(call)

        return await self.respond(
            f"lmos.*.{service}.*",
            respond,
            queue=subjects.service_queue(service),
            concurrency=concurrency,
        )

    async def respond(
        self,
        subject: str,
        respond: Respond,
        *,
        queue: str = "",
        concurrency: int = CONCURRENCY,
        backlog: int = BACKLOG,
        once: bool = False,
    ) -> Subscription:
        """Answer what is asked on a subject, `concurrency` calls at a time.

        Args:
            subject: A NATS pattern whose second token is the tenant.
            respond: Answers one call.
            queue: Instances in the same queue share the calls.
            concurrency: How many calls are answered at a time.
            backlog: How many more may wait; the next one is refused with `Overloaded`.
            once: Drop a task id that was seen before: delivery is at least once.
        """
        pool = _Pool(self, respond, concurrency=concurrency, backlog=backlog, once=once)
        pool.subscription = await self.transport.subscribe(subject, pool.on_packet, queue=queue)
        self._pools.append(pool)
        return pool.subscription

    async def drain(self) -> None:
        """Take no new calls and finish those that were accepted. The bus stays usable."""
        # Not the first, which takes cancellations: they are wanted most now.
        await _unsubscribe(self._subscriptions(self._pools[1:]))
        for pool in self._pools:
            await pool.idle.wait()
        with suppress(Unavailable):
            await self.transport.flush(timeout_s=2.0)

    @property
    def in_flight(self) -> int:
        """How many calls are being answered or wait for it, this process's housekeeping apart."""
        return sum(pool.busy for pool in self._pools[1:])

    def tally(self, name: str) -> Tally:
        """What has been done so far under the last tokens of a subject, as `router.decide`."""
        if name not in self._tallies and len(self._tallies) >= _TALLIES:
            return Tally()  # somebody makes names up
        return self._tallies.setdefault(name, Tally())

    @staticmethod
    def _subscriptions(pools: "Sequence[_Pool]") -> list[Subscription]:
        return [pool.subscription for pool in pools if pool.subscription is not None]

    async def _instance_operation(self, call: Call) -> Any:
        operation = call.subject.rsplit(".", 1)[1]
        if operation == "status":
            return {"instance": self.instance, "in_flight": self.in_flight}
        if operation == "cancel":
            task = codec.decode(_Cancel, call.payload).task
            found = self._running.get(task)
            if found is None or found.tenant != call.tenant:
                raise NotFound(f"task {task!r} is not running here")
            found.cancel("called off by the caller")
            return {"cancelled": task}
        raise NotFound(
            f"an instance has no operation {operation!r}", hint="it has status and cancel"
        )

    # -- who has died --

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Have `callback(instance)` called when a process is known to have died."""
        self._losses.callbacks.append(callback)

    def not_on_loss(self, callback: Callable[[str], None]) -> None:
        """Call `callback` no longer."""
        self._losses.callbacks.remove(callback)

    def lose(self, instance: str, reason: str) -> None:
        """A process is known to have died: break the streams that wait for it."""
        self._losses.lose(instance, reason)

    async def watch_losses(self) -> None:
        """Follow disconnect events from now on. Streams do so by themselves."""
        await self._losses.begin()

    @property
    def sees_disconnects(self) -> bool:
        """Whether the server tells of closed connections; if not, silent streams are probed."""
        return self._losses.told


class _Pool:
    """Bounded, concurrent dispatch: nats-py gives each subscription one call at a time."""

    def __init__(
        self, bus: Bus, respond: Respond, *, concurrency: int, backlog: int, once: bool
    ) -> None:
        self._bus = bus
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
        return self._active + len(self._waiting)

    def on_packet(self, packet: Packet) -> None:
        call = Call(packet, self._bus.transport, task=self._bus.new_task())
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
        if self._bus._closed:  # pyright: ignore[reportPrivateUsage]
            raise Unavailable(f"instance {self._bus.instance!r} is stopping", hint="try again")
        known = self._seen if calls.MESSAGE_ID in call.headers else None
        if known is not None and call.task in known:
            return
        if self._active >= self._concurrency and len(self._waiting) >= self._backlog:
            raise Overloaded(
                f"instance {self._bus.instance!r} answers {self._active} calls and "
                f"{len(self._waiting)} wait",
                hint="try again, or start another instance",
            )
        call.accept(self._bus.instance)
        if known is not None:
            # Only now: who was refused is right to try again.
            known[call.task] = None
            if len(known) > _SEEN:
                known.popitem(last=False)
        self._bus._running[call.task] = call  # pyright: ignore[reportPrivateUsage]
        if call.deadline is not None:
            self._bus._deadlines.add(call)  # pyright: ignore[reportPrivateUsage]
        if self._active < self._concurrency:
            self._start(call)
        else:
            self._waiting.append(call)

    def _start(self, call: Call) -> None:
        self._active += 1
        self.idle.clear()
        tasks = self._bus._tasks  # pyright: ignore[reportPrivateUsage]
        assert tasks is not None, "use the bus as a context manager"
        call.runner = tasks.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        calls.current.set(call)
        call.begun = True
        began = time.perf_counter_ns()
        tally = self._bus.tally(call.subject.split(".", 2)[-1])
        tally.requests += 1
        try:
            if call.ended_by is not None:
                raise call.ended_by
            if telemetry.recording():
                with telemetry.span(
                    f"process {_template(call.subject)}",
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
                MeshError(f"{call.subject} failed", hint=f"see the log of {self._bus.instance}"),
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
        running = self._bus._running  # pyright: ignore[reportPrivateUsage]
        if running.get(call.task) is call:
            del running[call.task]
        self._bus._deadlines.discard(call)  # pyright: ignore[reportPrivateUsage]


class _Deadlines:
    """Ends calls that are not done by their deadline: one timer for all, set anew when it fires.

    A timeout of its own would cost each call as much as taking it in.
    """

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        self._calls.add(call)
        if call.deadline is not None and call.deadline < self._due:
            self._set(call.deadline)

    def discard(self, call: Call) -> None:
        self._calls.discard(call)

    def close(self) -> None:
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


class _Losses:
    """Which processes have died, told by the server's disconnect events or found by asking."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._watched: dict[str, set[ReplyStream]] = {}
        self._begun: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._probing: set[str] = set()
        self._closed = False
        self.subscriptions: list[Subscription] = []
        self.callbacks: list[Callable[[str], None]] = []
        self.told = False

    async def begin(self) -> None:
        if self._begun is not None:
            await self._begun.wait()
            return
        self._begun = asyncio.Event()
        try:
            self.subscriptions.append(
                await self._bus.transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
            )
        finally:
            self._begun.set()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def watch(self, stream: ReplyStream, instance: str) -> None:
        """See `reply_stream.Watcher`."""
        self._watched.setdefault(instance, set()).add(stream)
        if not self.told and self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_PROBE_AFTER_S, self._probe)

    def unwatch(self, stream: ReplyStream, instance: str) -> None:
        """See `reply_stream.Watcher`."""
        streams = self._watched.get(instance)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._watched[instance]

    def lose(self, instance: str, reason: str) -> None:
        for stream in list(self._watched.get(instance, ())):
            stream.lose(reason)
        for call in list(self._bus._running.values()):  # pyright: ignore[reportPrivateUsage]
            if call.streaming and subjects.instance_of_inbox(call.reply) == instance:
                call.cancel("the caller is gone")
        for callback in list(self.callbacks):
            callback(instance)

    def _on_disconnect(self, packet: Packet) -> None:
        self.told = True
        try:
            client = json.loads(packet.payload)["client"]
            lost = subjects.instance_of_connection(str(client.get("name", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if lost is not None and lost[1] != self._bus.instance:
            self.lose(lost[1], "has disconnected")

    def _probe(self) -> None:
        """Without disconnect events, ask those who have been silent."""
        self._timer = None
        if not self._watched:
            return
        for instance, streams in self._watched.items():
            if instance not in self._probing and any(
                stream.silent_s >= _PROBE_AFTER_S for stream in streams
            ):
                self._probing.add(instance)
                self._bus.spawn(self._ask(instance, next(iter(streams)).tenant))
        self._timer = asyncio.get_running_loop().call_later(_PROBE_AFTER_S, self._probe)

    async def _ask(self, instance: str, tenant: str) -> None:
        try:
            await self._bus.transport.request(
                subjects.instance(tenant, instance, "status"), b"", timeout_s=_SETTLE_S
            )
        except Unavailable:
            if self._bus.transport.connected:
                self.lose(instance, "does not answer any more")
        except MeshError:
            pass  # slow is not dead; its lease decides
        finally:
            self._probing.discard(instance)


async def _unsubscribe(subscriptions: Sequence[Subscription]) -> None:
    """All at once: with a frozen server each takes seconds."""
    async with asyncio.TaskGroup() as tasks:
        for subscription in subscriptions:
            tasks.create_task(subscription.unsubscribe())


def new_instance(name: str) -> str:
    """A process's id: what it is, and something nobody else has."""
    return f"{name}-{secrets.token_hex(5)}"


def _error_of(packet: Packet) -> MeshError:
    code = packet.headers.get(calls.ERROR_CODE, "500")
    message = packet.headers.get(calls.ERROR, "failed without saying why")
    try:
        problem = codec.decode_value(packet.payload)
    except InvalidMessage:
        problem = None
    return error_from_problem(
        cast("dict[str, Any]", problem) if isinstance(problem, dict) else {},
        status=int(code) if code.isdigit() else 500,
        message=message,
    )


def _try(send: Callable[[MeshError], None], error: MeshError) -> None:
    try:
        send(error)
    except MeshError as exc:
        logger.warning("could not answer: %s", exc)


def _template(subject: str) -> str:
    """A subject without its ids, as OpenTelemetry wants span names."""
    tokens = subject.split(".")
    if len(tokens) > 2 and tokens[0] == "lmos":
        tokens[1] = "{tenant}"
        if tokens[2] == "instance" and len(tokens) > 3:
            tokens[3] = "{instance}"
    return ".".join(tokens)
