"""Key-value buckets on JetStream: leases that expire and are renewed, and changes told by a feed.

A value is read by direct get and all of them by a snapshot; what changes comes from the bucket's
republished feed, which needs no consumer.
"""

import base64
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from lmos_mesh.errors import Conflict
from lmos_mesh.jetstream import (
    API,
    NO_MESSAGE,
    NOT_FOUND,
    NS,
    SEQUENCE,
    JetStream,
    JetStreamError,
    ack_of,
    checked,
    sequence_of,
)
from lmos_mesh.transport import (
    CHANGE_MARKER,
    CHANGE_OPERATION,
    Bucket,
    Entry,
    Packet,
    Revision,
)

# No longer than the shortest lease: the server raises a shorter time to live to this one.
_MARKER_TTL_S = 1

_WRONG_SEQUENCE = (10071, 10164)


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
        subject = f"{API}.DIRECT.GET.{self._stream}.{self._prefix}{key}"
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
        timeout_s = self._jetstream.attempt_s if repeatable else self._jetstream.answer_s
        packet = await self._run(
            lambda: self._jetstream.request(subject, value, headers, timeout_s=timeout_s),
            repeatable=repeatable,
        )
        try:
            return int(checked(packet)["seq"])
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
        packet = await self._jetstream.request(f"{API}.STREAM.MSG.GET.{self._stream}", body)
        try:
            found = checked(packet)
        except JetStreamError as exc:
            if exc.details.get("err_code") != NO_MESSAGE:
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
            if exc.details.get("err_code") != NOT_FOUND:
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


def _entry(key: str, packet: Packet) -> Entry | None:
    headers = packet.headers
    if CHANGE_MARKER in headers or CHANGE_OPERATION in headers:
        return None
    if revision := headers.get(SEQUENCE):
        created = datetime.fromisoformat(_micros(headers["Nats-Time-Stamp"])).timestamp()
        return Entry(key=key, value=packet.payload, revision=int(revision), created=created)
    at, tokens = ack_of(packet)
    return Entry(
        key=key,
        value=packet.payload,
        revision=sequence_of(packet),
        created=int(tokens[at + 5]) / NS,
    )


def _revision(packet: Packet) -> Revision:
    headers = packet.headers
    gone = CHANGE_MARKER in headers or CHANGE_OPERATION in headers
    return Revision(
        number=int(headers[SEQUENCE]),
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
        "duplicate_window": 120 * NS,
    }
    if bucket.expiring:
        config |= {"allow_msg_ttl": True, "subject_delete_marker_ttl": _MARKER_TTL_S * NS}
    if bucket.feed:
        stars = ".".join("*" * bucket.tokens)
        config["republish"] = {"src": f"$KV.{bucket.name}.{stars}", "dest": bucket.feed}
    return config
