"""A minimal HTTP/1.1 client for answers that are streamed as server-sent events.

A load generator must cost far less than what it measures: this one keeps its connection, parses
only what it must, and gathers the body before it looks at it. Standard library only.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast


class BadResponse(Exception):
    """What came is not an HTTP response that this client can read."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ResponseReader:
    """Puts one response together from the pieces in which it arrives. Does no I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] | None = None
        self._length = -1
        self._chunked = False

    def feed(self, data: bytes) -> Response | None:
        """Take the next piece; the response, once it is whole."""
        self._buffer += data
        if self._headers is None and not self._read_head():
            return None
        if self._chunked:
            # Looking at every chunk as it comes would cost more than all the rest: the end is
            # looked for only where the bytes may be it, and it is the only thing that counts.
            if not self._buffer.endswith(LAST_CHUNK):
                return None
            body = unchunked(self._buffer)
            return None if body is None else self._response(body)
        if 0 <= self._length <= len(self._buffer):
            return self._response(bytes(self._buffer[: self._length]))
        return None

    def feed_eof(self) -> Response:
        """The connection is closed, which ends a response that does not tell its own length.

        Raises:
            BadResponse: The response was not whole.
        """
        if self._headers is None or self._chunked or self._length >= 0:
            raise BadResponse("the connection was closed in the middle of a response")
        return self._response(bytes(self._buffer))

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *rest = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or not words[1:2] or not words[1].isdigit():
            raise BadResponse(f"not an HTTP/1.1 response: {first!r:.80}")
        self._status = int(words[1])
        pairs = (line.partition(":") for line in rest)
        self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._chunked = self._headers.get("transfer-encoding", "").lower() == "chunked"
        self._length = int(self._headers.get("content-length", -1))
        return True

    def _response(self, body: bytes) -> Response:
        assert self._headers is not None
        return Response(self._status, self._headers, body)


LAST_CHUNK = b"0\r\n\r\n"


def unchunked(coded: bytearray) -> bytes | None:
    """The body in chunked transfer coding, without trailers; None while it is not whole.

    Raises:
        BadResponse: A chunk does not begin with its size.
    """
    parts: list[bytearray] = []
    at = 0
    while (line_end := coded.find(b"\r\n", at)) >= 0:
        try:
            size = int(coded[at:line_end].partition(b";")[0], 16)
        except ValueError:
            raise BadResponse(f"not the size of a chunk: {coded[at:line_end]!r:.80}") from None
        if size == 0:
            return b"".join(parts)
        at = line_end + 2 + size + 2
        parts.append(coded[line_end + 2 : at - 2])
    return None


class Connection(asyncio.Protocol):
    """One kept connection, for one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._done: asyncio.Future[Response] | None = None

    async def post(
        self, host: str, port: int, path: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        """Post, and wait for the whole response; connects where there is no connection.

        Cancelling is safe: the connection is dropped with the answer.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, host, port)
        assert self._transport is not None
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(body)}\r\n"
        self._reader = ResponseReader()
        self._done = loop.create_future()
        try:
            self._transport.write(f"{head}{lines}\r\n".encode() + body)
            response = await self._done
        except BaseException:
            self.close()
            raise
        if response.headers.get("connection", "").lower() == "close":
            self.close()
        return response

    def close(self) -> None:
        """Drop the connection; the next request makes a new one."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports have the methods, but not asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        done = self._done
        if done is None or done.done():
            return
        try:
            response = self._reader.feed(data)
        except (BadResponse, ValueError) as exc:
            done.set_exception(exc)
        else:
            if response is not None:
                done.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        if self._done is None or self._done.done():
            return
        try:
            self._done.set_result(self._reader.feed_eof())
        except BadResponse as bad:
            self._done.set_exception(bad)


def events(body: bytes) -> Iterator[tuple[str, str]]:
    """The events of a body, as (name, data); without a name it is `message`."""
    for block in body.decode().replace("\r\n", "\n").split("\n\n"):
        name = "message"
        data: list[str] = []
        for line in block.split("\n"):
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith("event:"):
                name = line[6:].strip()
        if data:
            yield name, "\n".join(data)
