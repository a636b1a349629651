"""Key-value buckets and streams on JetStream's own request API.

nats-py's layer is passed over for what it does with leases: it takes an expiry marker for a live
value, cannot renew one, and watches through a consumer that is 18 s late after a server restart.
Here a value is read by direct get, a snapshot by a pull consumer that lives for seconds, and
changes come from the bucket's republished feed, which needs no consumer.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from lmos_mesh.errors import Conflict, DeadlineExceeded, MeshError, Unavailable
from lmos_mesh.replication import Replication
from lmos_mesh.settings import Keeping
from lmos_mesh.transport import (
    CHANGE_MARKER,
    CHANGE_OPERATION,
    Bucket,
    Entry,
    Headers,
    Log,
    Packet,
    Revision,
    Transport,
    WorkItem,
)

ResultT = TypeVar("ResultT")

_API = "$JS.API"
_TIMEOUT_S = 5.0
# Servers of a cluster need 4 to 9 s to agree on another leader when one was killed; what was sent
# to it is never answered.
_ELECTION_S = 12.0
_ATTEMPT_S = 2.0
_AGAIN_S = 0.1
_KNOWN_S = 0.01
_NS = 1_000_000_000
# No longer than the shortest lease: the server raises a shorter time to live to this one.
_MARKER_TTL_S = 1
_BATCH = 1000
_SEQUENCE = "Nats-Sequence"

_NOT_FOUND = 10059
_NO_MESSAGE = 10037
_NAME_IN_USE = 10058
_WRONG_SEQUENCE = (10071, 10164)
_NO_LEADER = (10008, 10009)


class JetStreamError(MeshError):
    """JetStream refused an operation; the message has its words."""

    code = "jetstream"
    title = "JetStream refused"
    status = 503


class JetStream:
    """The request API, and which streams are known to exist.

    Args:
        transport: The way to the server.
        keeping: How the streams that are made are kept.
        where: The server, as it is named in errors.
        clustered: Whether it is one of several, which may be agreeing on a leader just now.
    """

    def __init__(
        self,
        transport: Transport,
        keeping: Keeping | None = None,
        *,
        where: str = "",
        clustered: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport = transport
        self._clustered = clustered
        self._made: dict[str, asyncio.Event] = {}
        self._replication = Replication(self.call, keeping or Keeping(), where=where)

    @property
    def clustered(self) -> bool:
        """Whether what is not answered should be asked once more: another server may lead soon."""
        return self._clustered()

    @property
    def attempt_s(self) -> float:
        """How long to wait for an answer to what may be asked again."""
        return _ATTEMPT_S if self._clustered() else _TIMEOUT_S

    async def call(
        self, operation: str, body: dict[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """One API request.

        Raises:
            JetStreamError: It was refused; `details["err_code"]` says why.
            Unavailable: JetStream does not answer.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        packet = await self.request(f"{_API}.{operation}", payload, timeout_s=timeout_s)
        return _checked(packet)

    async def request(
        self,
        subject: str,
        payload: bytes,
        headers: Headers | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> Packet:
        """A request to JetStream, in its words when it is not there."""
        try:
            return await self._transport.request(
                subject, payload, headers=headers, timeout_s=timeout_s
            )
        except Unavailable as exc:
            raise Unavailable(
                "JetStream does not answer", hint="start nats-server with JetStream; `lmos doctor`"
            ) from exc
        except DeadlineExceeded as exc:
            raise Unavailable(f"JetStream did not answer within {timeout_s:g} s") from exc

    async def ensure(self, name: str, config: dict[str, Any]) -> None:
        """Make a stream if it is not there; once per process and stream."""
        made = self._made.get(name)
        if made is not None:
            await made.wait()
            if self._made.get(name) is made:
                return
        self._made[name] = made = asyncio.Event()
        try:
            await self._create(name, config)
        except BaseException:
            if self._made.get(name) is made:
                del self._made[name]
            raise
        finally:
            made.set()

    async def _create(self, name: str, config: dict[str, Any]) -> None:
        try:
            made = await self.call(
                f"STREAM.CREATE.{name}", self._replication.of_new(config), timeout_s=self.attempt_s
            )
            await self._replication.until_led(name, made)
        except JetStreamError as exc:
            if exc.details.get("err_code") != _NAME_IN_USE:
                raise self._replication.refusal(name, exc) from exc
            # Somebody made it with other settings, which are the operator's to choose.
            await self._replication.settle(name)

    async def delete(self, name: str) -> None:
        """Remove a stream, if it is there."""
        self._made.pop(name, None)
        try:
            await self.call(f"STREAM.DELETE.{name}")
        except JetStreamError as exc:
            if exc.details.get("err_code") != _NOT_FOUND:
                raise

    def forget(self) -> None:
        """A server may have come back without what it held in memory."""
        self._made.clear()

    async def retrying(
        self,
        name: str,
        config: dict[str, Any],
        operation: Callable[[], Awaitable[ResultT]],
        *,
        repeatable: bool = False,
    ) -> ResultT:
        """Run an operation; make the stream if it is missing, and wait for who leads a cluster.

        Args:
            name: The stream.
            config: How it is made.
            operation: What to do.
            repeatable: It does no harm to do it again when it may have been done.
        """
        clock = asyncio.get_running_loop().time
        until = 0.0
        while True:
            try:
                if name not in self._made:
                    await self.ensure(name, config)
                return await operation()
            except Unavailable as exc:
                late = isinstance(exc.__cause__, DeadlineExceeded)
                if late and not (repeatable and self.clustered):
                    raise  # it may have been done: to do it again is for the caller to decide
                if not late and not self._transport.connected:
                    raise
                first = not until
                until = until or clock() + (_ELECTION_S if self.clustered else 0)
                if not first and clock() >= until:
                    raise
                if not late:
                    # A publish to a stream that is gone has no responders.
                    self._made.pop(name, None)
                if not first:
                    await asyncio.sleep(_AGAIN_S)

    async def fetch(
        self, stream: str, consumer: str, *, batch: int, wait_s: float = 0.0
    ) -> list[Packet]:
        """The next messages of a pull consumer; fewer than `batch` when there are no more."""
        body: dict[str, Any] = {"batch": batch}
        if wait_s > 0:
            body["expires"] = int(wait_s * _NS)
        else:
            body["no_wait"] = True
        found: list[Packet] = []
        ended = asyncio.Event()
        refused: list[str] = []

        def on_packet(packet: Packet) -> None:
            status = packet.headers.get("Status")
            if status is None:
                found.append(packet)
            elif status != "100":
                if status not in ("404", "408"):
                    refused.append(f"{status} {packet.headers.get('Description', '')}")
                ended.set()
            if len(found) == batch:
                ended.set()

        # JetStream delivers under the message's own subject, which an inbox cannot tell apart, so
        # a fetch has a subscription of its own below the inbox's prefix.
        inbox = self._transport.open_inbox(on_packet)
        subscription = await self._transport.subscribe(f"{inbox.subject}.fetch", on_packet)
        try:
            self._transport.publish(
                f"{_API}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
                json.dumps(body).encode(),
                reply=f"{inbox.subject}.fetch",
            )
            async with asyncio.timeout(wait_s + _TIMEOUT_S):
                await ended.wait()
        except TimeoutError:
            raise Unavailable(f"JetStream did not end a fetch from {stream!r}") from None
        finally:
            inbox.close()
            await subscription.unsubscribe()
        if refused and not found:
            raise JetStreamError(f"fetch from {stream!r}: {refused[0]}", fetch=refused[0][:3])
        return found

    async def read(self, stream: str, pattern: str, *, limit: int, after: int = 0) -> list[Packet]:
        """The oldest messages whose subjects match: one request, no consumer.

        A work queue allows no consumer beside its workers' own, and this needs none.
        """
        found: list[Packet] = []
        while len(found) < limit:
            body = {"seq": after + 1, "next_by_subj": pattern, "batch": limit - len(found)}
            batch, pending = await self._direct_batch(stream, json.dumps(body).encode())
            found.extend(
                Packet(packet.headers["Nats-Subject"], packet.payload, packet.headers)
                for packet in batch
            )
            if not batch or not pending:
                break
            # The server sends no more at a time than a connection may have pending.
            after = int(batch[-1].headers[_SEQUENCE])
        return found

    async def _direct_batch(self, stream: str, body: bytes) -> tuple[list[Packet], int]:
        """What one direct get of many answers, and how many more there are."""
        found: list[Packet] = []
        end: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()

        def on_packet(packet: Packet) -> None:
            if _SEQUENCE in packet.headers:
                found.append(packet)
            elif not end.done():
                end.set_result(packet)

        inbox = self._transport.open_inbox(on_packet)
        try:
            await self._transport.wait_connected(timeout_s=_TIMEOUT_S)
            self._transport.publish(f"{_API}.DIRECT.GET.{stream}", body, reply=inbox.subject)
            async with asyncio.timeout(_TIMEOUT_S):
                ended = await end
        except TimeoutError:
            raise Unavailable(f"JetStream did not answer within {_TIMEOUT_S:g} s") from None
        finally:
            inbox.close()
        status = ended.headers.get("Status")
        if status == "503":
            raise Unavailable(f"nobody keeps a stream {stream!r}")
        if status not in ("204", "404"):
            said = ended.headers.get("Description", "")
            raise JetStreamError(f"reading from {stream!r}: {status} {said}")
        return found, int(ended.headers.get("Nats-Num-Pending", "0"))

    async def snapshot(self, stream: str, pattern: str) -> list[Packet]:
        """The last message of every subject that matches.

        A pull consumer reads 19,000 to 25,000 messages a second, four times what a watch does,
        and takes any number of subjects where a multi-get refuses more than 1,024. In a cluster
        it reads what some server has, which may be a moment behind the one that leads; the rest
        is had from that one.
        """
        last = 0
        if self.clustered:
            info = await self.call(f"STREAM.INFO.{stream}")
            last = int(info["state"]["last_seq"])
        name = f"snapshot-{secrets.token_hex(6)}"
        created = await self.call(
            f"CONSUMER.CREATE.{stream}.{name}.{pattern}",
            {
                "stream_name": stream,
                "config": {
                    "name": name,
                    "deliver_policy": "last_per_subject",
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "filter_subject": pattern,
                    "mem_storage": True,
                    "num_replicas": 1,
                    "inactive_threshold": 10 * _NS,
                },
            },
        )
        expected = int(created["num_pending"])
        found: list[Packet] = []
        try:
            while len(found) < expected:
                batch = await self._fetch_known(stream, name)
                if not batch:
                    break
                found.extend(batch)
        finally:
            # It would be gone by itself in a while, but a stream has room for a thousand only.
            self._send_off(f"{_API}.CONSUMER.DELETE.{stream}.{name}")
        newest = max(map(_sequence_of, found), default=0)
        if newest >= last:
            return found
        by_subject = {packet.subject: packet for packet in found}
        async for packet in self._after(stream, pattern, newest, last):
            by_subject[packet.subject] = packet
        return list(by_subject.values())

    async def _fetch_known(self, stream: str, consumer: str) -> list[Packet]:
        """Messages of a consumer that was just made, and that not all of a cluster know yet."""
        clock = asyncio.get_running_loop().time
        until = clock() + _ATTEMPT_S
        while True:
            try:
                return await self.fetch(stream, consumer, batch=_BATCH)
            except JetStreamError as exc:
                if not self.clustered or exc.details.get("fetch") != "503" or clock() > until:
                    raise
            await asyncio.sleep(_KNOWN_S)

    async def _after(
        self, stream: str, pattern: str, after: int, last: int
    ) -> AsyncGenerator[Packet]:
        """The messages that match, from one sequence to another, of the server that leads."""
        while after < last:
            body = {"seq": after + 1, "next_by_subj": pattern}
            try:
                told = (await self.call(f"STREAM.MSG.GET.{stream}", body))["message"]
            except JetStreamError as exc:
                if exc.details.get("err_code") != _NO_MESSAGE:
                    raise
                return
            after = int(told["seq"])
            raw = base64.b64decode(told.get("hdrs", "")).decode("utf-8", "replace")
            lines = (line.partition(":") for line in raw.split("\r\n"))
            headers = {key.strip(): value.strip() for key, colon, value in lines if colon}
            headers |= {_SEQUENCE: str(after), "Nats-Time-Stamp": told["time"]}
            yield Packet(told["subject"], base64.b64decode(told.get("data", "")), headers)

    def _send_off(self, subject: str) -> None:
        """A request whose answer nobody reads."""
        inbox = self._transport.open_inbox(lambda _: None)
        inbox.close()
        with suppress(MeshError):
            self._transport.publish(subject, b"", reply=inbox.subject)


class JetStreamKeyValue:
    """See `transport.KeyValue`."""

    def __init__(self, jetstream: JetStream, bucket: Bucket) -> None:
        self._jetstream = jetstream
        self._bucket = bucket
        self._stream = f"KV_{bucket.name}"
        self._prefix = f"$KV.{bucket.name}."
        self._config = _bucket_config(bucket)

    async def get(self, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        subject = f"{_API}.DIRECT.GET.{self._stream}.{self._prefix}{key}"
        packet = await self._run(
            lambda: self._jetstream.request(subject, b"", timeout_s=self._jetstream.attempt_s),
            repeatable=True,
        )
        if "Status" in packet.headers:
            return None
        return _entry(key, packet)

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None
    ) -> int:
        """See `KeyValue.put`."""
        headers: dict[str, str] = {}
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s}s"
            if self._bucket.history > 1:
                # The server uncovers the version before when one expires, and tells nobody.
                headers["Nats-Rollup"] = "sub"
        return await self._write(key, value, headers, expected)

    async def delete(self, key: str, *, expected: int | None = None) -> int:
        """See `KeyValue.delete`."""
        if expected is None and await self.get(key) is None:
            return 0
        headers = {CHANGE_OPERATION: "PURGE", "Nats-Rollup": "sub"}
        if self._bucket.expiring:
            headers["Nats-TTL"] = f"{_MARKER_TTL_S}s"
        return await self._write(key, b"", headers, expected)

    async def _write(
        self, key: str, value: bytes, headers: dict[str, str], expected: int | None
    ) -> int:
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        subject = f"{self._prefix}{key}"
        # A cluster remembers what it has taken, for whoever has not heard its answer and asks
        # again; a lease is renewed soon enough, and too often to be remembered.
        repeatable = self._jetstream.clustered and "Nats-TTL" not in headers
        if repeatable:
            headers = {**headers, "Nats-Msg-Id": secrets.token_hex(12)}
        timeout_s = self._jetstream.attempt_s if repeatable else _TIMEOUT_S
        packet = await self._run(
            lambda: self._jetstream.request(subject, value, headers, timeout_s=timeout_s),
            repeatable=repeatable,
        )
        try:
            return int(_checked(packet)["seq"])
        except JetStreamError as exc:
            if exc.details.get("err_code") not in _WRONG_SEQUENCE:
                raise
            if expected == 0 and (revision := await self._marker(key)) is not None:
                # Nothing lives there, but the grave of what did: take over from its revision.
                return await self._write(key, value, headers, revision)
            raise Conflict(f"{key!r} is not at revision {expected}") from None

    async def _marker(self, key: str) -> int | None:
        """The revision of a delete or expiry marker, 0 if that is gone too; None for a value."""
        body = json.dumps({"last_by_subj": f"{self._prefix}{key}"}).encode()
        packet = await self._jetstream.request(f"{_API}.STREAM.MSG.GET.{self._stream}", body)
        try:
            found = _checked(packet)
        except JetStreamError as exc:
            if exc.details.get("err_code") != _NO_MESSAGE:
                raise
            return 0
        raw = base64.b64decode(found["message"].get("hdrs", ""))
        gone = CHANGE_OPERATION.encode() in raw or CHANGE_MARKER.encode() in raw
        return int(found["message"]["seq"]) if gone else None

    async def entries(self, pattern: str = ">") -> Sequence[Entry]:
        """See `KeyValue.entries`."""
        await self._jetstream.ensure(self._stream, self._config)
        subject = f"{self._prefix}{pattern}"
        try:
            packets = await self._jetstream.snapshot(self._stream, subject)
        except JetStreamError as exc:
            if exc.details.get("err_code") != _NOT_FOUND:
                raise
            self._jetstream.forget()
            await self._jetstream.ensure(self._stream, self._config)
            return []
        found = (_entry(packet.subject[len(self._prefix) :], packet) for packet in packets)
        return [entry for entry in found if entry is not None]

    async def history(self, key: str) -> Sequence[Revision]:
        """See `KeyValue.history`."""
        subject = f"{self._prefix}{key}"
        packets = await self._jetstream.retrying(
            self._stream,
            self._config,
            lambda: self._jetstream.read(self._stream, subject, limit=self._bucket.history),
            repeatable=True,
        )
        return [_revision(packet) for packet in packets]

    async def _run(self, operation: Callable[[], Awaitable[Packet]], *, repeatable: bool) -> Packet:
        return await self._jetstream.retrying(
            self._stream, self._config, operation, repeatable=repeatable
        )


class JetStreamStream:
    """See `transport.Stream`."""

    def __init__(self, jetstream: JetStream, log: Log, transport: Transport) -> None:
        self._jetstream = jetstream
        self._transport = transport
        self._log = log
        self._config = _log_config(log)
        self._workers: set[str] = set()

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str = "",
        headers: Headers | None = None,
    ) -> int:
        """See `Stream.append`."""
        sent = dict(headers or {})
        if message_id or self._jetstream.clustered:
            sent["Nats-Msg-Id"] = message_id or secrets.token_hex(12)
        repeatable = "Nats-Msg-Id" in sent
        timeout_s = self._jetstream.attempt_s
        packet = await self._jetstream.retrying(
            self._log.name,
            self._config,
            lambda: self._jetstream.request(subject, payload, sent or None, timeout_s=timeout_s),
            repeatable=repeatable,
        )
        return int(_checked(packet)["seq"])

    async def read(self, pattern: str, *, limit: int = 1000, after: int = 0) -> Sequence[Packet]:
        """See `Stream.read`."""
        return await self._jetstream.retrying(
            self._log.name,
            self._config,
            lambda: self._jetstream.read(self._log.name, pattern, limit=limit, after=after),
            repeatable=True,
        )

    async def last(self) -> int:
        """See `Stream.last`."""
        await self._jetstream.ensure(self._log.name, self._config)
        info = await self._jetstream.call(f"STREAM.INFO.{self._log.name}")
        return int(info["state"]["last_seq"])

    async def erase(self, pattern: str) -> None:
        """See `Stream.erase`."""
        await self._jetstream.ensure(self._log.name, self._config)
        await self._jetstream.call(f"STREAM.PURGE.{self._log.name}", {"filter": pattern})

    async def drop(self) -> None:
        """See `Stream.drop`."""
        await self._jetstream.delete(self._log.name)

    async def take(self, worker: str, *, limit: int = 1, wait_s: float = 5.0) -> Sequence[WorkItem]:
        """See `Stream.take`."""
        await self._jetstream.ensure(self._log.name, self._config)
        if worker not in self._workers:
            await self._begin(worker)
        name = self._log.name
        try:
            packets = await self._jetstream.fetch(name, worker, batch=limit)
            if not packets and wait_s > 0:
                # One only: with more the server would wait until it had them all.
                packets = await self._jetstream.fetch(name, worker, batch=1, wait_s=wait_s)
        except JetStreamError:
            self._workers.discard(worker)
            raise
        return [_JetStreamItem(packet, self._transport) for packet in packets]

    async def _begin(self, worker: str) -> None:
        await self._jetstream.call(
            f"CONSUMER.CREATE.{self._log.name}.{worker}",
            {
                "stream_name": self._log.name,
                "config": {
                    "name": worker,
                    "durable_name": worker,
                    "ack_policy": "explicit",
                    "ack_wait": int(self._log.ack_wait_s * _NS),
                    "max_deliver": self._log.max_deliver,
                    "max_ack_pending": 10_000,
                },
            },
        )
        self._workers.add(worker)


@dataclass(slots=True)
class _JetStreamItem:
    """See `transport.WorkItem`."""

    packet: Packet
    transport: Transport

    @property
    def delivery(self) -> int:
        # $JS.ACK.<stream>.<consumer>.<delivered>.…, with domain and account hash before on some.
        tokens = self.packet.reply.split(".")
        return int(tokens[6] if len(tokens) > 9 else tokens[4])

    async def done(self) -> None:
        await self.transport.request(self.packet.reply, b"+ACK", timeout_s=_TIMEOUT_S)

    async def again(self, *, delay_s: float = 0.0) -> None:
        body = json.dumps({"delay": int(delay_s * _NS)}) if delay_s else ""
        await self._say(f"-NAK {body}".strip().encode())

    async def working(self) -> None:
        await self._say(b"+WPI")

    async def never(self, reason: str) -> None:
        await self._say(f"+TERM {reason}".encode())

    async def _say(self, word: bytes) -> None:
        self.transport.publish(self.packet.reply, word)
        await self.transport.flush()


def _checked(packet: Packet) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(packet.payload)
    if error := answer.get("error"):
        if error.get("err_code") in _NO_LEADER:
            raise Unavailable(f"JetStream: {error.get('description', error)}")
        raise JetStreamError(
            f"JetStream: {error.get('description', error)}", err_code=error.get("err_code")
        )
    return answer


def _entry(key: str, packet: Packet) -> Entry | None:
    headers = packet.headers
    if CHANGE_MARKER in headers or CHANGE_OPERATION in headers:
        return None
    if revision := headers.get(_SEQUENCE):
        created = datetime.fromisoformat(_micros(headers["Nats-Time-Stamp"])).timestamp()
        return Entry(key=key, value=packet.payload, revision=int(revision), created=created)
    at, tokens = _ack_of(packet)
    return Entry(
        key=key,
        value=packet.payload,
        revision=_sequence_of(packet),
        created=int(tokens[at + 5]) / _NS,
    )


def _ack_of(packet: Packet) -> tuple[int, list[str]]:
    """Where the names begin in `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<…>.<time>.…`.

    Domain and account hash come before on some servers.
    """
    tokens = packet.reply.split(".")
    return (4 if len(tokens) > 9 else 2), tokens


def _sequence_of(packet: Packet) -> int:
    """The sequence of a message that a consumer gave."""
    at, tokens = _ack_of(packet)
    return int(tokens[at + 3])


def _revision(packet: Packet) -> Revision:
    headers = packet.headers
    gone = CHANGE_MARKER in headers or CHANGE_OPERATION in headers
    return Revision(
        number=int(headers[_SEQUENCE]),
        at=datetime.fromisoformat(_micros(headers["Nats-Time-Stamp"])).timestamp(),
        value=None if gone else packet.payload,
    )


def _micros(timestamp: str) -> str:
    """An RFC 3339 time with nanoseconds, as `datetime` reads it."""
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction[:6]:0<6}+00:00"


def _bucket_config(bucket: Bucket) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": f"KV_{bucket.name}",
        "subjects": [f"$KV.{bucket.name}.>"],
        "max_msgs_per_subject": bucket.history,
        "storage": "memory" if bucket.in_memory else "file",
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "max_age": 0,
        "duplicate_window": 120 * _NS,
    }
    if bucket.expiring:
        config |= {"allow_msg_ttl": True, "subject_delete_marker_ttl": _MARKER_TTL_S * _NS}
    if bucket.feed:
        stars = ".".join("*" * bucket.tokens)
        config["republish"] = {"src": f"$KV.{bucket.name}.{stars}", "dest": bucket.feed}
    return config


def _log_config(log: Log) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": log.name,
        "subjects": list(log.subjects),
        "retention": "workqueue" if log.work else "limits",
        "storage": "memory" if log.in_memory else "file",
        "max_age": int(log.max_age_s * _NS),
        "duplicate_window": int(min(120, log.max_age_s or 120) * _NS),
        "allow_direct": True,
    }
    if log.max_items:
        config["max_msgs"] = log.max_items
    if log.feed:
        config["republish"] = {"src": log.subjects[0], "dest": log.feed}
    return config
