"""Typed calls over a transport: asking, answering, streams, and errors that cross the mesh."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from opentelemetry.trace import SpanKind

from lmos_mesh import calls, codec, subjects, telemetry
from lmos_mesh.calls import Call
from lmos_mesh.dispatch import Duties, Pool, Respond, template
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import (
    DeadlineExceeded,
    InvalidMessage,
    LoopDetected,
    MeshError,
    NobodyAnswers,
    NotFound,
    Unavailable,
    error_from_problem,
)
from lmos_mesh.losses import Losses
from lmos_mesh.micro import Tally
from lmos_mesh.reply_stream import Patience, ReplyStream
from lmos_mesh.transport import Packet, Subscription, Transport

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

CONCURRENCY = 64
BACKLOG = 1024
RESTART_S = 3.0
"""How long a client waits for a service that nobody answers for: one that died is back by then."""
ASK_AGAIN_S = 0.05


class CancelTask(Message):
    """Call off what an instance is at."""

    task: str


class InstanceStatus(Message):
    """How an instance is; with a `task`, also whether it is at that."""

    task: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """An operation of a service and who answers it."""

    operation: str
    respond: Respond


def route(
    endpoint: Endpoint[RequestT, ReplyT],
    handler: Callable[[RequestT, Call], Awaitable[ReplyT | codec.Packed]],
) -> Route:
    """A route whose handler gets and gives messages; a wrong type fails the type check."""

    def respond(call: Call) -> Awaitable[Message | codec.Packed]:
        return handler(codec.decode(endpoint.request, call.payload), call)

    return Route(endpoint.operation, respond)


class Bus:
    """Asks and answers on the mesh. Use it as a context manager: it owns the tasks it starts.

    Attributes:
        on_drain: What to do when somebody asks this process to finish and leave; None to refuse.
    """

    def __init__(
        self, transport: Transport, *, tenant: str, instance: str, timeout_s: float = 5.0
    ) -> None:
        self.transport = transport
        self.tenant = tenant
        self.instance = instance
        self._token = subjects.escape(tenant)
        self._timeout_s = timeout_s
        self.on_drain: Callable[[], None] | None = None
        self._duties = Duties(transport, instance)
        self._background: set[asyncio.Task[Any]] = set()
        self._pools: list[Pool] = []
        self._losses = Losses(self._duties, self.spawn)

    async def __aenter__(self) -> "Bus":
        await self._duties.tasks.__aenter__()
        await self.respond(subjects.instance_in_any_tenant(self.instance), self._instance_operation)
        # Also for those who only answer: a caller that dies calls off what it waits for.
        await self._losses.begin()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._duties.closed = True
        for call in list(self._duties.running.values()):
            call.cancel("the process is stopping")
        self._losses.close()
        self._duties.deadlines.close()
        for task in list(self._background):
            task.cancel()
        try:
            await self._duties.tasks.__aexit__(None, None, None)
        finally:
            await _unsubscribe([*self._subscriptions(self._pools), *self._losses.subscriptions])

    def spawn(
        self, work: Coroutine[Any, Any, Any], *, name: str = ""
    ) -> "asyncio.Task[Any] | None":
        """Start a task that ends with the bus at the latest. It must guard its own errors."""
        if self._duties.closed:
            work.close()  # a packet that comes while the process leaves starts nothing any more
            return None
        task = self._duties.tasks.create_task(work, name=name or None)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- asking --

    async def call(
        self,
        endpoint: Endpoint[RequestT, ReplyT],
        request: RequestT,
        *,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        nobody_s: float = 0.0,
    ) -> ReplyT:
        """Ask a question and wait for its answer. Cancelling is safe: a late answer is dropped.

        Args:
            endpoint: What to ask.
            request: The question.
            tenant: Whose question it is; our own tenant's by default.
            headers: Sent beside our own, and instead of them where they are named alike.
            timeout_s: How long to wait; the bus's own time by default.
            nobody_s: For how long to ask again while nobody answers there.

        Raises:
            NobodyAnswers: Nobody answers there; worth another try.
            DeadlineExceeded: No answer in time.
            MeshError: The error the other side raised, as the same class.
        """
        subject = endpoint.subject(self._token_of(tenant))
        payload = codec.encode(request)
        until = time.monotonic() + nobody_s
        while True:
            try:
                packet = await self.request(subject, payload, headers=headers, timeout_s=timeout_s)
            except NobodyAnswers:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return codec.decode(endpoint.reply, packet.payload)

    def request(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Coroutine[Any, Any, Packet]:
        """Ask with bytes; otherwise as `call`."""
        if telemetry.recording():
            return self._recorded_request(subject, payload, headers, timeout_s)
        return self._request(subject, payload, headers, timeout_s)

    async def _recorded_request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> Packet:
        with telemetry.span(
            f"send {template(subject)}",
            kind=SpanKind.CLIENT,
            attributes={"messaging.system": "nats", "messaging.destination.name": subject},
        ):
            return await self._request(subject, payload, headers, timeout_s)

    async def _request(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> Packet:
        timeout_s = self._allowed_s(self._timeout_s if timeout_s is None else timeout_s)
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
        subject = endpoint.subject(self._token_of(tenant))
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
            nonlocal left
            if stream.instance or stream.settled or left:
                inbox.close()
                if not stream.complete and stream.instance:
                    self.call_off(stream.instance, stream.task, tenant=stream.tenant)
            else:
                # Nobody has taken it yet: whoever does is told then that it is wanted no more.
                left = True
                asyncio.get_running_loop().call_later(patience.first_s, inbox.close)

        def on_packet(packet: Packet) -> None:
            stream.on_packet(packet)
            if left:
                stream.close()

        left = False
        stream = ReplyStream(subject, patience, self._losses, leave)
        inbox = self.transport.open_inbox(on_packet)
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

    def _token_of(self, tenant: str | None) -> str:
        return subjects.escape(tenant) if tenant else self._token

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
            path = call.path
            if call.hops >= calls.MAX_HOPS:
                through = f", through the agents {' → '.join(path)}" if path else ""
                raise LoopDetected(
                    f"a request has passed through {call.hops} processes, last "
                    f"{call.subject!r}{through}",
                    hint="two agents may be asking each other",
                    **({"path": list(path)} if path else {}),
                )
            headers[calls.HOPS] = str(call.hops + 1)
            if path:
                headers[calls.PATH] = ",".join(subjects.escape(one) for one in path)
            headers.update(call.trace_headers())
        telemetry.inject(headers)
        return headers

    # -- answering --

    async def serve(
        self, service: str, routes: Sequence[Route], *, concurrency: int = CONCURRENCY
    ) -> Subscription:
        """Answer a service's operations for every tenant, sharing them with its replicas."""
        by_operation = {one.operation: one.respond for one in routes}

        def respond(call: Call) -> Awaitable[Message | Any]:
            operation = call.subject.rsplit(".", 1)[1]
            known = by_operation.get(operation)
            if known is None:
                raise NotFound(
                    f"{service} has no operation {operation!r}",
                    hint=f"it has {', '.join(sorted(by_operation))}",
                )
            return known(call)

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
        pool = Pool(self._duties, respond, concurrency=concurrency, backlog=backlog, once=once)
        pool.subscription = await self.transport.subscribe(subject, pool.on_packet, queue=queue)
        self._pools.append(pool)
        return pool.subscription

    async def drain(self) -> None:
        """Take no new calls and finish those that were accepted. The bus stays usable."""
        # Not the first, which takes cancellations: they are wanted most now.
        await _unsubscribe(self._subscriptions(self._pools[1:]))
        for pool in self._pools:
            await pool.idle.wait()
        if self.transport.connected:  # a lost bus is not waited for on the way out
            with suppress(Unavailable):
                await self.transport.flush(timeout_s=2.0)

    @property
    def in_flight(self) -> int:
        """How many calls are being answered or wait for it, this process's housekeeping apart."""
        return sum(pool.busy for pool in self._pools[1:])

    def tally(self, name: str) -> Tally:
        """What has been done so far under the last tokens of a subject, as `router.decide`."""
        return self._duties.tally(name)

    @staticmethod
    def _subscriptions(pools: "Sequence[Pool]") -> list[Subscription]:
        return [pool.subscription for pool in pools if pool.subscription is not None]

    async def _instance_operation(self, call: Call) -> Any:
        operation = call.subject.rsplit(".", 1)[1]
        if operation == "status":
            known: dict[str, Any] = {"instance": self.instance, "in_flight": self.in_flight}
            if task := codec.decode(InstanceStatus, call.payload).task:
                found = self._duties.running.get(task)
                known["running"] = found is not None and found.tenant == call.tenant
            return known
        if operation == "cancel":
            task = codec.decode(CancelTask, call.payload).task
            found = self._duties.running.get(task)
            if found is None or found.tenant != call.tenant:
                raise NotFound(f"task {task!r} is not running here")
            found.cancel("called off by the caller")
            return {"cancelled": task}
        if operation == "drain" and self.on_drain is not None:
            self.on_drain()
            return {"draining": self.instance}
        raise NotFound(
            f"an instance has no operation {operation!r}", hint="it has status, cancel and drain"
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
