"""A whole mesh in one process, for tests and examples: the same promises, no sockets.

What it does not model: permissions, payloads across servers, and the loss of a server.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lmos_mesh.errors import Conflict, TooLarge, Unavailable
from lmos_mesh.inboxes import Inboxes, OpenInbox
from lmos_mesh.subjects import DISCONNECTS
from lmos_mesh.transport import (
    CHANGE_MARKER,
    CHANGE_OPERATION,
    CHANGE_SEQUENCE,
    CHANGE_SUBJECT,
    KEPT_AT,
    Bucket,
    Entry,
    Headers,
    Log,
    OnPacket,
    Packet,
    Revision,
    WorkItem,
    check_subject,
)

_MAX_PAYLOAD = 1024 * 1024


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is covered by a NATS pattern with `*` and `>`."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(given) > at
        if at >= len(given) or token not in ("*", given[at]):
            return False
    return len(wanted) == len(given)


@dataclass(slots=True, eq=False)
class _Interest:
    pattern: str
    queue: str
    on_packet: OnPacket
    owner: "MemoryTransport"
    broker: "MemoryBroker"

    async def unsubscribe(self) -> None:
        if self in self.broker.interests:
            self.broker.interests.remove(self)
        await asyncio.sleep(0)  # what was accepted before is handed over


@dataclass(slots=True)
class MemoryBroker:
    """What the transports of one test share. Stands for the server."""

    interests: list[_Interest] = field(default_factory=list[_Interest])
    buckets: dict[str, "_MemoryKeyValue"] = field(default_factory=dict[str, "_MemoryKeyValue"])
    streams: dict[str, "_MemoryStream"] = field(default_factory=dict[str, "_MemoryStream"])
    connections: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    turns: "itertools.count[int]" = field(default_factory=itertools.count)

    def route(self, packet: Packet) -> None:
        """Hand a packet to everybody who listens, and to one of each queue group."""
        loop = asyncio.get_running_loop()
        chosen: list[_Interest] = []
        groups: dict[str, list[_Interest]] = {}
        for interest in self.interests:
            if matches(interest.pattern, packet.subject):
                if interest.queue:
                    groups.setdefault(interest.queue, []).append(interest)
                else:
                    chosen.append(interest)
        chosen.extend(group[next(self.turns) % len(group)] for group in groups.values())
        for stream in self.streams.values():
            stream.record(packet)
        for interest in chosen:
            loop.call_soon(interest.on_packet, packet)
        if not chosen and packet.reply:
            nobody = Packet(packet.reply, b"", {"Status": "503"})
            loop.call_soon(self.route, nobody)


class MemoryTransport:
    """See `transport.Transport`."""

    def __init__(self, broker: MemoryBroker, *, name: str = "", inbox: str = "") -> None:
        self._broker = broker
        self._name = name
        self._closed = False
        number = next(broker.connections)
        self.connection = f"memory:{number}"
        self._inboxes = Inboxes(inbox or f"_INBOX.memory.{number}.", self._send)
        broker.interests.append(
            _Interest(self._inboxes.pattern, "", self._inboxes.deliver, self, broker)
        )

    @property
    def max_payload(self) -> int:
        """See `Transport.max_payload`."""
        return _MAX_PAYLOAD

    @property
    def connected(self) -> bool:
        """See `Transport.connected`."""
        return not self._closed

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """See `Transport.on_reconnect`. Memory is never lost."""

    async def wait_connected(self, *, timeout_s: float) -> None:
        """See `Transport.wait_connected`."""

    def publish(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """See `Transport.publish`."""
        self._send(subject, payload, headers, reply)

    def _send(self, subject: str, payload: bytes, headers: Headers | None, reply: str) -> None:
        if self._closed:
            raise Unavailable("this connection is closed")
        check_subject(subject)
        if reply:
            check_subject(reply)
        size = len(payload) + _size_of(headers)
        if size > _MAX_PAYLOAD:
            raise too_large(subject, size, _MAX_PAYLOAD)
        self._broker.route(Packet(subject, payload, dict(headers or {}), reply))

    async def request(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, timeout_s: float
    ) -> Packet:
        """See `Transport.request`."""
        return await self._inboxes.request(subject, payload, headers, timeout_s)

    def open_inbox(self, on_packet: OnPacket) -> OpenInbox:
        """See `Transport.open_inbox`."""
        return self._inboxes.open(on_packet)

    async def subscribe(self, subject: str, on_packet: OnPacket, *, queue: str = "") -> _Interest:
        """See `Transport.subscribe`."""
        check_subject(subject)
        interest = _Interest(subject, queue, on_packet, self, self._broker)
        self._broker.interests.append(interest)
        return interest

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """See `Transport.flush`."""
        await asyncio.sleep(0)

    async def writable(self) -> None:
        """See `Transport.writable`."""
        await asyncio.sleep(0)

    def key_value(self, bucket: Bucket) -> "_MemoryKeyValue":
        """See `Transport.key_value`."""
        return self._broker.buckets.setdefault(bucket.name, _MemoryKeyValue(bucket, self._broker))

    def stream(self, log: Log) -> "_MemoryStream":
        """See `Transport.stream`."""
        return self._broker.streams.setdefault(log.name, _MemoryStream(log, self._broker))

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._closed:
            return
        await asyncio.sleep(0)
        self._closed = True
        self._broker.interests[:] = [i for i in self._broker.interests if i.owner is not self]
        server, client = self.connection.split(":")
        told = {"server": {"id": server}, "client": {"id": int(client), "name": self._name}}
        self._broker.route(Packet(DISCONNECTS, json.dumps(told).encode()))


def _size_of(headers: Headers | None) -> int:
    """What headers take of a packet, written as NATS does."""
    if not headers:
        return 0
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return len(f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "replace"))


def too_large(subject: str, size: int, limit: int) -> TooLarge:
    """The error for a packet over the limit."""
    if subject.startswith("_INBOX."):
        what = "an answer"
    elif subject.startswith("$"):
        what = "what is to be kept"
    else:
        what = f"the message to {subject!r}"
    return TooLarge(
        f"{what} takes {size} bytes, over the bus's limit of {limit} bytes",
        hint="send less, or put large content in a store and send its address",
        size=size,
        limit=limit,
    )


@dataclass(slots=True)
class _Value:
    value: bytes
    revision: int
    created: float
    expiry: asyncio.TimerHandle | None = None


class _MemoryKeyValue:
    """See `transport.KeyValue`."""

    def __init__(self, bucket: Bucket, broker: MemoryBroker) -> None:
        self._bucket = bucket
        self._broker = broker
        self._values: dict[str, _Value] = {}
        self._history: dict[str, list[Revision]] = {}
        self._revision = 0

    async def get(self, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        held = self._values.get(key)
        return held and Entry(
            key=key, value=held.value, revision=held.revision, created=held.created
        )

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None
    ) -> int:
        """See `KeyValue.put`."""
        self._check(key, expected)
        self._drop(key)
        self._revision += 1
        held = _Value(value, self._revision, time.time())
        if ttl_s is not None:
            held.expiry = asyncio.get_running_loop().call_later(ttl_s, self._expire, key)
        self._values[key] = held
        kept = [] if ttl_s is not None else self._history.get(key, [])
        kept = [*kept, Revision(number=held.revision, at=held.created, value=value)]
        self._history[key] = kept[-self._bucket.history :]
        self._tell(key, value, {})
        return held.revision

    async def delete(self, key: str, *, expected: int | None = None) -> int:
        """See `KeyValue.delete`."""
        self._check(key, expected)
        if key not in self._values:
            return 0
        self._drop(key)
        self._revision += 1
        self._history[key] = [Revision(number=self._revision, at=time.time(), value=None)]
        self._tell(key, b"", {CHANGE_OPERATION: "PURGE"})
        return self._revision

    async def entries(self, pattern: str = ">") -> Sequence[Entry]:
        """See `KeyValue.entries`."""
        return [
            Entry(key=key, value=held.value, revision=held.revision, created=held.created)
            for key, held in sorted(self._values.items(), key=lambda item: item[1].revision)
            if matches(pattern, key)
        ]

    async def history(self, key: str) -> Sequence[Revision]:
        """See `KeyValue.history`."""
        return list(self._history.get(key, []))

    def _check(self, key: str, expected: int | None) -> None:
        held = self._values.get(key)
        revision = held.revision if held else 0
        if expected is not None and expected != revision:
            raise Conflict(f"{key!r} is at revision {revision}, not {expected}")

    def _drop(self, key: str) -> None:
        held = self._values.pop(key, None)
        if held and held.expiry:
            held.expiry.cancel()

    def _expire(self, key: str) -> None:
        self._drop(key)
        self._revision += 1
        self._history[key] = [Revision(number=self._revision, at=time.time(), value=None)]
        self._tell(key, b"", {CHANGE_MARKER: "MaxAge"})

    def _tell(self, key: str, value: bytes, headers: dict[str, str]) -> None:
        if not self._bucket.feed:
            return
        subject = self._bucket.feed
        for at, token in enumerate(key.split("."), start=1):
            subject = subject.replace(f"{{{{wildcard({at})}}}}", token)
        headers |= {
            CHANGE_SUBJECT: f"$KV.{self._bucket.name}.{key}",
            CHANGE_SEQUENCE: str(self._revision),
        }
        self._broker.route(Packet(subject, value, headers))


class _MemoryStream:
    """See `transport.Stream`."""

    def __init__(self, log: Log, broker: MemoryBroker) -> None:
        self._log = log
        self._broker = broker
        self._sequence = 0
        self._seen: dict[str, int] = {}
        self._items: dict[int, Packet] = {}
        self._queues: dict[str, _MemoryWork] = {}
        self.grown = asyncio.Event()

    def records(self, subject: str) -> bool:
        """Whether what is published there is kept here."""
        return any(matches(pattern, subject) for pattern in self._log.subjects)

    def record(self, packet: Packet) -> None:
        """Keep a packet that somebody published on one of the stream's subjects."""
        if not self.records(packet.subject):
            return
        message_id = packet.headers.get("Nats-Msg-Id", "")
        if message_id in self._seen:
            return
        self._sequence += 1
        if message_id:
            self._seen[message_id] = self._sequence
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        headers = {**packet.headers, CHANGE_SEQUENCE: str(self._sequence), KEPT_AT: at}
        self._items[self._sequence] = Packet(packet.subject, packet.payload, headers)
        if self._log.max_items and len(self._items) > self._log.max_items:
            del self._items[next(iter(self._items))]
        self.grown.set()
        if self._log.feed:
            told = {**headers, CHANGE_SUBJECT: packet.subject}
            self._broker.route(Packet(self._feed_of(packet.subject), packet.payload, told))

    def _feed_of(self, subject: str) -> str:
        pairs = zip(self._log.subjects[0].split("."), subject.split("."), strict=True)
        feed = self._log.feed
        for at, token in enumerate((told for wanted, told in pairs if wanted == "*"), start=1):
            feed = feed.replace(f"{{{{wildcard({at})}}}}", token)
        return feed

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str = "",
        headers: Headers | None = None,
    ) -> int:
        """See `Stream.append`."""
        check_subject(subject)
        self._broker.streams.setdefault(self._log.name, self)
        if not self.records(subject):
            raise Unavailable(f"{self._log.name!r} does not record {subject!r}")
        sent = {**(headers or {}), **({"Nats-Msg-Id": message_id} if message_id else {})}
        self._broker.route(Packet(subject, payload, sent))
        return self._seen.get(message_id, self._sequence)

    async def read(self, pattern: str, *, limit: int = 1000, after: int = 0) -> Sequence[Packet]:
        """See `Stream.read`."""
        self._broker.streams.setdefault(self._log.name, self)
        found = [
            packet
            for sequence, packet in self._items.items()
            if sequence > after and matches(pattern, packet.subject)
        ]
        return found[:limit]

    async def last(self) -> int:
        """See `Stream.last`."""
        return self._sequence

    async def erase(self, pattern: str) -> None:
        """See `Stream.erase`."""
        for sequence, packet in list(self._items.items()):
            if matches(pattern, packet.subject):
                del self._items[sequence]

    async def drop(self) -> None:
        """See `Stream.drop`."""
        self._broker.streams.pop(self._log.name, None)
        self._sequence = 0
        self._seen.clear()
        self._items.clear()

    async def take(self, worker: str, *, limit: int = 1, wait_s: float = 5.0) -> Sequence[WorkItem]:
        """See `Stream.take`."""
        queue = self._queues.setdefault(worker, _MemoryWork(self))
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            found = queue.free(self._items, limit, self._log, loop.time())
            if found or loop.time() >= until:
                return found
            self.grown.clear()
            try:
                async with asyncio.timeout_at(min(until, loop.time() + 0.05)):
                    await self.grown.wait()
            except TimeoutError:
                continue

    def finish(self, sequence: int) -> None:
        """Forget an item that is done."""
        if self._log.work:
            self._items.pop(sequence, None)


class _MemoryWork:
    """Who has which item, until when."""

    def __init__(self, stream: _MemoryStream) -> None:
        self.stream = stream
        self.held: dict[int, float] = {}
        self.tries: dict[int, int] = {}

    def free(
        self, items: dict[int, Packet], limit: int, log: Log, now: float
    ) -> list["_MemoryItem"]:
        found: list[_MemoryItem] = []
        for sequence, packet in items.items():
            if len(found) == limit:
                break
            if self.held.get(sequence, 0.0) > now or self.tries.get(sequence, 0) >= log.max_deliver:
                continue
            self.held[sequence] = now + log.ack_wait_s
            self.tries[sequence] = self.tries.get(sequence, 0) + 1
            found.append(_MemoryItem(packet, self.tries[sequence], self, sequence, log.ack_wait_s))
        return found


@dataclass(slots=True)
class _MemoryItem:
    """See `transport.WorkItem`."""

    packet: Packet
    delivery: int
    work: _MemoryWork
    sequence: int
    ack_wait_s: float

    async def done(self) -> None:
        self.work.held[self.sequence] = float("inf")
        self.work.stream.finish(self.sequence)

    async def again(self, *, delay_s: float = 0.0) -> None:
        self.work.held[self.sequence] = asyncio.get_running_loop().time() + delay_s

    async def working(self) -> None:
        now = asyncio.get_running_loop().time()
        self.work.held[self.sequence] = now + self.ack_wait_s

    async def never(self, reason: str) -> None:
        await self.done()
