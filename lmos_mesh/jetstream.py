"""JetStream's own request API: streams made when needed, requests asked again, messages read.

nats-py's layer is passed over for what it does with leases: it takes an expiry marker for a live
value, cannot renew one, and watches through a consumer that is 18 s late after a server restart.
Here a value is read by direct get, and a snapshot by a pull consumer that lives for seconds.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from lmos_mesh.errors import DeadlineExceeded, MeshError, Unavailable
from lmos_mesh.replication import Replication
from lmos_mesh.settings import Keeping
from lmos_mesh.transport import Headers, Packet, Transport

ResultT = TypeVar("ResultT")

API = "$JS.API"
NS = 1_000_000_000
SEQUENCE = "Nats-Sequence"

NOT_FOUND = 10059
NO_MESSAGE = 10037
_NAME_IN_USE = 10058
_NO_LEADER = (10008, 10009)

_TIMEOUT_S = 5.0
# Servers of a cluster need 4 to 9 s to agree on another leader when one was killed; what was sent
# to it is never answered.
_ELECTION_S = 12.0
_ATTEMPT_S = 2.0
_AGAIN_S = 0.1
_KNOWN_S = 0.01
_BATCH = 1000


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
    def answer_s(self) -> float:
        """How long to wait for an answer to what is asked once."""
        return _TIMEOUT_S

    @property
    def attempt_s(self) -> float:
        """How long to wait for an answer to what may be asked again."""
        return _ATTEMPT_S if self._clustered() else self.answer_s

    async def call(
        self, operation: str, body: dict[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """One API request.

        Raises:
            JetStreamError: It was refused; `details["err_code"]` says why.
            Unavailable: JetStream does not answer.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        packet = await self.request(f"{API}.{operation}", payload, timeout_s=timeout_s)
        return checked(packet)

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
            if exc.details.get("err_code") != NOT_FOUND:
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
            body["expires"] = int(wait_s * NS)
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
                f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
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
            after = int(batch[-1].headers[SEQUENCE])
        return found

    async def _direct_batch(self, stream: str, body: bytes) -> tuple[list[Packet], int]:
        """What one direct get of many answers, and how many more there are."""
        found: list[Packet] = []
        end: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()

        def on_packet(packet: Packet) -> None:
            if SEQUENCE in packet.headers:
                found.append(packet)
            elif not end.done():
                end.set_result(packet)

        inbox = self._transport.open_inbox(on_packet)
        try:
            await self._transport.wait_connected(timeout_s=_TIMEOUT_S)
            self._transport.publish(f"{API}.DIRECT.GET.{stream}", body, reply=inbox.subject)
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
                    "inactive_threshold": 10 * NS,
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
            self._send_off(f"{API}.CONSUMER.DELETE.{stream}.{name}")
        newest = max(map(sequence_of, found), default=0)
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
                if exc.details.get("err_code") != NO_MESSAGE:
                    raise
                return
            after = int(told["seq"])
            raw = base64.b64decode(told.get("hdrs", "")).decode("utf-8", "replace")
            lines = (line.partition(":") for line in raw.split("\r\n"))
            headers = {key.strip(): value.strip() for key, colon, value in lines if colon}
            headers |= {SEQUENCE: str(after), "Nats-Time-Stamp": told["time"]}
            yield Packet(told["subject"], base64.b64decode(told.get("data", "")), headers)

    def _send_off(self, subject: str) -> None:
        """A request whose answer nobody reads."""
        inbox = self._transport.open_inbox(lambda _: None)
        inbox.close()
        with suppress(MeshError):
            self._transport.publish(subject, b"", reply=inbox.subject)


def checked(packet: Packet) -> dict[str, Any]:
    """What JetStream answered.

    Raises:
        JetStreamError: It refused; `details["err_code"]` says why.
        Unavailable: No server leads just now.
    """
    answer: dict[str, Any] = json.loads(packet.payload)
    if error := answer.get("error"):
        if error.get("err_code") in _NO_LEADER:
            raise Unavailable(f"JetStream: {error.get('description', error)}")
        raise JetStreamError(
            f"JetStream: {error.get('description', error)}", err_code=error.get("err_code")
        )
    return answer


def ack_of(packet: Packet) -> tuple[int, list[str]]:
    """Where the names begin in `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<…>.<time>.…`.

    Domain and account hash come before on some servers.
    """
    tokens = packet.reply.split(".")
    return (4 if len(tokens) > 9 else 2), tokens


def sequence_of(packet: Packet) -> int:
    """The sequence of a message that a consumer gave."""
    at, tokens = ack_of(packet)
    return int(tokens[at + 3])
