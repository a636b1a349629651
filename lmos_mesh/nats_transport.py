"""The transport over NATS. The only module that imports the NATS client, and cures it.

nats-py 2.16 is taken for its connection: TLS, credentials, server pool, reconnect, parser. What
it does badly is overridden here, each with a test that shows the cure in
`tests/integration/test_nats_defects.py`.
"""

# The client is only partly typed, and what is overridden is not public; the version is pinned.
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as ClientSubscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from lmos_mesh.errors import SettingsError, Unavailable
from lmos_mesh.inboxes import Inboxes, OpenInbox
from lmos_mesh.jetstream import JetStream
from lmos_mesh.jetstream_key_value import JetStreamKeyValue
from lmos_mesh.jetstream_stream import JetStreamStream
from lmos_mesh.memory_transport import too_large
from lmos_mesh.settings import Keeping
from lmos_mesh.transport import (
    Bucket,
    Headers,
    Log,
    OnPacket,
    Packet,
    check_subject,
)

logger = logging.getLogger(__name__)

MINIMUM_SERVER = (2, 12, 0)
_BUFFER = 8 * 1024 * 1024
_WRITE_HIGH_WATER = 256 * 1024
_CLOSE_TIMEOUT_S = 1.0
_WRITE_BYTES = 64 * 1024
_NO_HEADERS: Headers = {}
_END = b"\r\n"


class NatsTransport:
    """See `transport.Transport`."""

    def __init__(
        self, client: "_Client", inbox: str, keeping: Keeping | None = None, *, where: str = ""
    ) -> None:
        self._client = client
        self._inboxes = Inboxes(inbox, self._send)
        self._jetstream = JetStream(self, keeping, where=where, clustered=lambda: self.clustered)
        self._on_reconnect: list[Callable[[], None]] = []
        self._checked: str | None = None
        client.when_reconnected = self._reconnected

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        inbox: str = "",
        credentials: str | None = None,
        timeout_s: float = 10.0,
        ping_interval_s: float = 5.0,
        keeping: Keeping | None = None,
    ) -> "AsyncGenerator[NatsTransport]":
        """Connect while the block lasts; a lost connection is restored for ever.

        Args:
            url: One server or several, separated by commas.
            name: What the connection calls itself; disconnect events carry it.
            inbox: Prefix of reply subjects, with its final dot; nobody else's by default.
            credentials: Path of a `.creds` file.
            timeout_s: How long to try at first.
            ping_interval_s: How often to ask whether the server still lives; two silent
                intervals and it is dead.
            keeping: How the servers keep the buckets and streams that are made.

        Raises:
            Unavailable: No server answers there.
            SettingsError: It refuses us, or is too old.
        """
        client = _Client()
        await _connect(client, url, name, credentials, timeout_s, ping_interval_s)
        transport = cls(
            client, inbox or f"_INBOX.{secrets.token_hex(8)}.", keeping, where=shown(url)
        )
        try:
            await transport.subscribe(transport._inboxes.pattern, transport._inboxes.deliver)
            yield transport
        finally:
            await transport.close()

    @property
    def max_payload(self) -> int:
        """See `Transport.max_payload`."""
        return int(self._client.max_payload)

    @property
    def connected(self) -> bool:
        """See `Transport.connected`."""
        return bool(self._client.is_connected)

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several that keep things together."""
        return bool(self._client._server_info.get("cluster"))

    @property
    def connection(self) -> str:
        """See `Transport.connection`: the server's id and our client id there."""
        return f"{self._client._server_info.get('server_id', '')}:{self._client.client_id}"

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """See `Transport.on_reconnect`."""
        self._on_reconnect.append(callback)

    def _reconnected(self) -> None:
        self._jetstream.forget()
        for callback in self._on_reconnect:
            try:
                callback()
            except Exception:
                logger.exception("after reconnect")

    async def wait_connected(self, *, timeout_s: float) -> None:
        """See `Transport.wait_connected`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._client.until_connected()
                return
        raise Unavailable(
            f"the bus is lost and was not back within {timeout_s:g} s",
            hint="is nats-server running?",
        )

    def publish(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """See `Transport.publish`."""
        self._send(subject, payload, headers, reply)

    def _send(self, subject: str, payload: bytes, headers: Headers | None, reply: str) -> None:
        if subject != self._checked:  # as the frames of a stream, sent one after another
            check_subject(subject)
            self._checked = subject
        if reply:
            check_subject(reply)
        if headers:
            block = _header_block(headers)
            size = len(payload) + len(block)
            command = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode()
            parts = (command, block, payload, b"\r\n")
        else:
            size = len(payload)
            parts = (f"PUB {subject} {reply} {size}\r\n".encode(), payload, b"\r\n")
        if size > self._client._max_payload:
            raise too_large(subject, size, self.max_payload)
        self._client.send(b"".join(parts))

    def request(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, timeout_s: float
    ) -> Coroutine[Any, Any, Packet]:
        """See `Transport.request`. While the bus is lost nothing is sent that might come later."""
        if self._client.is_connected:
            return self._inboxes.request(subject, payload, headers, timeout_s)
        return self._request_when_back(subject, payload, headers, timeout_s)

    async def _request_when_back(
        self, subject: str, payload: bytes, headers: Headers | None, timeout_s: float
    ) -> Packet:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.wait_connected(timeout_s=timeout_s)
        timeout_s = max(0.001, timeout_s - (loop.time() - began))
        return await self._inboxes.request(subject, payload, headers, timeout_s)

    def open_inbox(self, on_packet: OnPacket) -> OpenInbox:
        """See `Transport.open_inbox`."""
        return self._inboxes.open(on_packet)

    async def subscribe(
        self, subject: str, on_packet: OnPacket, *, queue: str = ""
    ) -> "_NatsSubscription":
        """See `Transport.subscribe`."""
        check_subject(subject)
        return await self._client.listen(subject, on_packet, queue)

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """See `Transport.flush`."""
        await self._client.round_trip(timeout_s)

    async def writable(self) -> None:
        """See `Transport.writable`."""
        await self._client.writable()

    def key_value(self, bucket: Bucket) -> JetStreamKeyValue:
        """See `Transport.key_value`."""
        return JetStreamKeyValue(self._jetstream, bucket)

    def stream(self, log: Log) -> JetStreamStream:
        """See `Transport.stream`."""
        return JetStreamStream(self._jetstream, log, self)

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._client.is_connected:
            # Else the server would for a moment send us what others could answer.
            self._client.listen_to_nothing()
            with suppress(Unavailable):
                await self._client.round_trip(2.0)
        await self._client.close()


async def _connect(
    client: "_Client",
    url: str,
    name: str,
    credentials: str | None,
    timeout_s: float,
    ping_interval_s: float,
) -> None:
    servers = servers_of(url)
    if not servers:
        raise SettingsError("no NATS server is named", hint="set LMOS_NATS_URL, or unset it")
    where = shown(url)
    if credentials is not None:
        _check_credentials(credentials)
    try:
        async with asyncio.timeout(timeout_s):
            await _first_connection(client, servers, name, credentials, ping_interval_s)
    except TimeoutError:
        client.abandon()
        raise Unavailable(
            f"no NATS server answers at {where} ({_said(client.last_failure)})",
            hint="start it, or set LMOS_NATS_URL to one that runs; `lmos up` starts its own if "
            "that is not set",
        ) from None
    except nats.errors.Error as exc:
        client.abandon()
        raise SettingsError(
            f"the NATS server at {where} refuses us: {exc}",
            hint="check LMOS_NATS_URL and LMOS_NATS_CREDENTIALS",
        ) from exc
    except Exception as exc:
        client.abandon()
        if credentials is None:
            raise
        # What is wrong inside of the file comes up as whatever its parsers stumble over.
        raise SettingsError(
            f"cannot use the NATS credentials {credentials}: {exc}",
            hint="check LMOS_NATS_CREDENTIALS",
        ) from exc
    except BaseException:
        client.abandon()
        raise
    client.options["allow_reconnect"] = True
    version = str(client._server_info.get("version", "0"))
    if version_of(version) < MINIMUM_SERVER:
        one = client.connected_url
        where = without_secrets(one.geturl()) if one is not None else where
        await client.close()
        raise SettingsError(
            f"the NATS server at {where} is version {version}; "
            f"{'.'.join(map(str, MINIMUM_SERVER))} or newer is needed",
            hint="upgrade it, or unset LMOS_NATS_URL and let `lmos up` start its own",
        )


def servers_of(url: str) -> list[str]:
    """The servers that are named, separated by commas."""
    return [one.strip() for one in url.split(",") if one.strip()]


def shown(url: str) -> str:
    """Servers as they may be logged: without users, passwords or tokens."""
    return ", ".join(without_secrets(one) for one in servers_of(url))


def _said(failure: BaseException | None) -> str:
    if isinstance(failure, socket.gaierror):
        return "no host has that name; write it like nats://127.0.0.1:4222"
    return str(failure or "no answer")


async def _first_connection(
    client: "_Client",
    servers: list[str],
    name: str,
    credentials: str | None,
    ping_interval_s: float,
) -> None:
    options: dict[str, Any] = {"user_credentials": credentials} if credentials else {}
    wait_s = 0.05
    while True:
        try:
            await client.connect(
                servers,
                name=name,
                error_cb=client.told_error,
                disconnected_cb=client.told_disconnected,
                reconnected_cb=client.told_reconnected,
                allow_reconnect=False,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=ping_interval_s,  # pyright: ignore[reportArgumentType]
                max_outstanding_pings=2,
                pending_size=_BUFFER,
                skip_subject_validation=True,
                **options,
            )
            return
        except (OSError, TimeoutError, ssl.SSLError, nats.errors.NoServersError) as exc:
            client.last_failure = exc
        except nats.errors.Error as exc:
            if "expecting INFO" not in str(exc):
                raise
            client.last_failure = exc
        client._server_pool.clear()
        client._status = Client.DISCONNECTED
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, 1.0)


def _check_credentials(credentials: str) -> None:
    try:
        with open(credentials, "rb") as file:
            content = file.read()
    except OSError as exc:
        raise SettingsError(
            f"cannot read the NATS credentials {credentials}: {exc.strerror}",
            hint="check LMOS_NATS_CREDENTIALS",
        ) from exc
    if b"BEGIN NATS USER JWT" not in content or b"BEGIN USER NKEY SEED" not in content:
        raise SettingsError(
            f"{credentials} holds no NATS credentials, which are a JWT and a seed",
            hint="check LMOS_NATS_CREDENTIALS",
        )


def version_of(text: str) -> tuple[int, int, int]:
    """`2.15.1-beta` as (2, 15, 1); what is no number counts as 0."""
    numbers = [int(part) if part.isdigit() else 0 for part in text.split("-")[0].split(".")]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return major, minor, patch


def without_secrets(url: str) -> str:
    """A URL that may be logged: without user, password or token."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _header_block(headers: Headers) -> bytes:
    lines = "".join([f"{name}: {_one_line(value)}\r\n" for name, value in headers.items()])
    return f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "replace")


def _one_line(value: str) -> str:
    # A line break in a value would begin a header of the sender's choice.
    return value if value.isprintable() else value.replace("\r", " ").replace("\n", " ")


def _parse_headers(block: bytes) -> dict[str, str]:
    first, _, rest = block.decode("utf-8", "replace").partition("\r\n")
    headers: dict[str, str] = {}
    if len(first) > 8:
        headers["Status"], _, description = first[9:].partition(" ")
        if description:
            headers["Description"] = description
    for line in rest.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


class _Parser(Parser):
    """Reads deliveries itself, the moment they come; all other lines are left to nats-py.

    nats-py matches a regular expression and moves its buffer for each.
    """

    def reset(self) -> None:
        """Forget what has come: it is another connection from now on."""
        super().reset()
        self._kept: list[bytes] = []
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what has come, whatever it is."""
        while data := self.deliver(data):
            line, mark, rest = data.partition(_END)
            # Kept, not held: after an error nothing more of this connection counts.
            self._kept = [rest]
            await super().parse(line + mark)
            data = b"".join(self._kept)
            self._kept = []

    def deliver(self, data: bytes) -> bytes:
        """Hand over the messages that are whole, and give back what begins with another line."""
        if self._kept:
            self._kept.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return b""
            data = b"".join(self._kept)
            self._kept = []
        client: Any = self.nc
        at, size, missing = 0, len(data), 1
        while at < size:
            end = data.find(_END, at)
            if end < 0:
                break
            words = data[at:end].split()
            count = len(words)
            headed = count > 4 and words[0] == b"HMSG"
            if not headed and (count < 4 or words[0] != b"MSG"):
                return data[at:]
            begin = end + 2
            try:
                body = begin + int(words[-2]) if headed else begin
                following = begin + int(words[-1]) + 2
            except ValueError:
                return data[at:]
            if following > size:
                missing = following - size
                break
            client.deliver(
                words[2],
                words[1],
                words[3] if count > 4 + headed else b"",
                data[body : following - 2],
                data[begin:body],
            )
            at = following
        if at < size:
            self._kept, self._missing = [data[at:]], missing
        return b""


class _Reader(asyncio.StreamReader):
    """Has what arrives delivered at once; what nobody takes waits to be read."""

    deliver: Callable[[bytes], bytes] | None = None

    def feed_data(self, data: Any) -> None:
        if self.deliver is not None:
            data = self.deliver(data)
            if not data:
                return
            # What follows must not overtake it.
            self.deliver = None
        super().feed_data(data)


class _BoundedTcp(TcpTransport):
    """A socket whose close is bounded: nats-py waits for ever for a frozen peer to take it."""

    def __init__(self, deliver: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._deliver = deliver

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        loop = asyncio.get_running_loop()
        reader = _Reader(limit=buffer_size, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        self._bare_io_reader = self._io_reader = reader
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._bare_io_writer = self._io_writer = writer

    async def read(self, buffer_size: int) -> bytes:
        reader = self._io_reader
        if not isinstance(reader, _Reader):
            return await super().read(buffer_size)
        # Only while all that came before is done with.
        reader.deliver = self._deliver
        try:
            return await reader.read(buffer_size)
        finally:
            reader.deliver = None

    async def wait_closed(self) -> None:
        writer = self._io_writer
        if writer is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()
        except (OSError, ssl.SSLError):
            pass  # it is as closed as it will ever be


class _NatsSubscription:
    """See `transport.Subscription`."""

    def __init__(self, client: "_Client", sid: int) -> None:
        self._client = client
        self._sid = sid

    async def unsubscribe(self) -> None:
        """See `Subscription.unsubscribe`."""
        await self._client.listen_no_more(self._sid)


class _Client(Client):
    """nats-py's client with its defects cured."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.when_reconnected: Callable[[], None] = lambda: None
        self.last_failure: BaseException | None = None
        self._handlers: dict[bytes, OnPacket] = {}
        self._ps = self._parser = _Parser(self)
        self._out: list[bytes] = []
        self._out_size = 0

    # -- callbacks: an exception in one would kill the read loop and leave a deaf connection --

    async def told_error(self, exc: Exception) -> None:
        self.last_failure = exc
        logger.debug("bus: %s", exc)

    async def told_disconnected(self) -> None:
        if not self.is_closed:
            logger.warning("the bus is lost; waiting for it (%s)", self.last_failure or "closed")

    async def told_reconnected(self) -> None:
        logger.info("the bus is back")
        self.back.set()
        self.when_reconnected()

    # -- connection --

    async def until_connected(self) -> None:
        while not self.is_connected:
            if self.is_closed:
                raise Unavailable("this connection is closed")
            self.back.clear()
            await self.back.wait()

    def abandon(self) -> None:
        """Drop what is left of a connection: its tasks, and its socket without a goodbye."""
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        writer = self._transport._io_writer if isinstance(self._transport, _BoundedTcp) else None
        if writer is not None:
            writer.transport.abort()

    async def _connect_to_server(self, s: Any) -> None:
        self._ps.reset()
        self.abandon()  # an attempt that failed after its greeting has left all of it behind
        if s.uri.scheme in ("nats", "tls") and not isinstance(self._transport, _BoundedTcp):
            self._transport = _BoundedTcp(self._parser.deliver)
        # A failed attempt must not be retried in a busy loop, nor wait for seconds.
        if s.reconnects > 1:
            await asyncio.sleep(min(0.05 * 2 ** min(s.reconnects, 5), 1.0))
        if isinstance(self._transport, _BoundedTcp):
            await self._transport.connect(s.uri, 1 << 17, self.options["connect_timeout"])
        else:
            await super()._connect_to_server(s)

    async def _process_pong(self) -> None:
        """Skip who has given up waiting: to answer them raises, and leaves the connection deaf."""
        if not self._pongs:
            return
        pong = self._pongs.pop(0)
        if not pong.done():
            pong.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        """Reconnect where nats-py would close for good; refusals of one subject are only logged."""
        if "permissions violation" in err_msg:
            logger.warning("the bus refuses: %s", err_msg.strip("'"))
            return
        self._err = nats.errors.Error(f"nats: {err_msg}")
        if self.is_connecting:
            return
        self.last_failure = self._err
        await self._process_op_err(self._err)

    # -- receiving: straight from the parser to the handler, no queue and no task between --

    def deliver(
        self, sid: bytes, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            parsed = _parse_headers(headers) if headers else _NO_HEADERS
            handler(Packet(subject.decode(), data, parsed, reply.decode()))
        except Exception:
            logger.exception("a packet on %s", subject.decode("utf-8", "replace"))

    async def listen(self, subject: str, on_packet: OnPacket, queue: str) -> _NatsSubscription:
        self._sid += 1
        sid = self._sid
        # Known to nats-py only so that it is subscribed again after a reconnect.
        self._subs[sid] = ClientSubscription(self, sid, subject, queue=queue)
        self._handlers[b"%d" % sid] = on_packet
        self.send(f"SUB {subject} {queue} {sid}\r\n".encode())
        # Without this a caller could ask before the server knows about us.
        with suppress(Unavailable):
            await self.round_trip(5.0)
        return _NatsSubscription(self, sid)

    async def listen_no_more(self, sid: int) -> None:
        if self._subs.pop(sid, None) is None:
            return
        try:
            if self.is_connected:
                self.send(f"UNSUB {sid}\r\n".encode())
                # The server has handed over all it accepted for us when it answers.
                with suppress(Unavailable):
                    await self.round_trip(2.0)
        finally:
            self._handlers.pop(b"%d" % sid, None)

    def listen_to_nothing(self) -> None:
        for sid in self._subs:
            self.send(f"UNSUB {sid}\r\n".encode())
        self._subs.clear()

    # -- sending: what is sent in one turn of the loop is written together, at its end --

    def send(self, command: bytes) -> None:
        if not self.is_connected:
            if self.is_closed:
                raise Unavailable("this connection is closed")
            self._flush()
            self._buffer(command)
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        self._out_size += len(command)
        if self._out_size > _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            out, self._out, self._out_size = self._out, [], 0
            if self.is_connected:
                self._write(out)
            else:
                self._buffer_all(out)

    def _write(self, commands: list[bytes]) -> None:
        if self._pending:
            # Buffered while the bus was lost, and the flusher has not come to it yet.
            commands = [*self._pending, *commands]
            self._pending = []
            self._pending_data_size = 0
        try:
            assert self._transport is not None
            self._transport.write(commands[0] if len(commands) == 1 else b"".join(commands))
        except (OSError, RuntimeError, AttributeError):
            self._buffer_all(commands)

    def _buffer_all(self, commands: list[bytes]) -> None:
        for command in commands:
            with suppress(Unavailable):
                self._buffer(command)

    def _buffer(self, command: bytes) -> None:
        if self._pending_data_size + len(command) > _BUFFER:
            raise Unavailable(
                f"the bus is lost and {_BUFFER} bytes already wait for it",
                hint="is nats-server running?",
            )
        if command.startswith((b"SUB ", b"UNSUB ")):
            return  # every live subscription is sent again on reconnect
        self._pending.append(command)
        self._pending_data_size += len(command)

    async def writable(self) -> None:
        writer = self._transport._io_writer if isinstance(self._transport, _BoundedTcp) else None
        if writer is None or not self.is_connected:
            return
        if writer.transport.get_write_buffer_size() > _WRITE_HIGH_WATER:
            with suppress(OSError):
                await writer.drain()

    async def round_trip(self, timeout_s: float) -> None:
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._flush()
        try:
            async with asyncio.timeout(timeout_s):
                await self.until_connected()
                await self._send_ping(pong)
                await pong
        except (TimeoutError, nats.errors.Error, OSError, AttributeError):
            raise Unavailable(f"the bus did not answer a ping within {timeout_s:g} s") from None
        finally:
            pong.cancel()

    async def close(self) -> None:
        """Leave for good; bounded even if the server is frozen."""
        self._flush()
        try:
            async with asyncio.timeout(2 * _CLOSE_TIMEOUT_S + 1.0):
                await super().close()
        except (OSError, RuntimeError):  # a TimeoutError is an OSError too
            self.abandon()
