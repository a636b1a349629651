"""Logs and work queues on JetStream streams, and what a worker says of the work it has taken."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmos_mesh.jetstream import NS, JetStream, JetStreamError, checked
from lmos_mesh.transport import Headers, Log, Packet, Transport, WorkItem

_DONE_S = 5.0


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
        return int(checked(packet)["seq"])

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
                    "ack_wait": int(self._log.ack_wait_s * NS),
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
        await self.transport.request(self.packet.reply, b"+ACK", timeout_s=_DONE_S)

    async def again(self, *, delay_s: float = 0.0) -> None:
        body = json.dumps({"delay": int(delay_s * NS)}) if delay_s else ""
        await self._say(f"-NAK {body}".strip().encode())

    async def working(self) -> None:
        await self._say(b"+WPI")

    async def never(self, reason: str) -> None:
        await self._say(f"+TERM {reason}".encode())

    async def _say(self, word: bytes) -> None:
        self.transport.publish(self.packet.reply, word)
        await self.transport.flush()


def _log_config(log: Log) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": log.name,
        "subjects": list(log.subjects),
        "retention": "workqueue" if log.work else "limits",
        "storage": "memory" if log.in_memory else "file",
        "max_age": int(log.max_age_s * NS),
        "duplicate_window": int(min(120, log.max_age_s or 120) * NS),
        "allow_direct": True,
    }
    if log.max_items:
        config["max_msgs"] = log.max_items
    if log.feed:
        config["republish"] = {"src": log.subjects[0], "dest": log.feed}
    return config
