"""The parser of deliveries, against the one of the NATS client that it stands in for."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from lmos_mesh.nats_transport import _Parser  # pyright: ignore[reportPrivateUsage]

Said = list[tuple[Any, ...]]


class _Listener:
    """Notes what a parser tells its client."""

    def __init__(self) -> None:
        self.said: Said = []

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        self.said.append(("message", sid, subject, reply, data, headers or b""))

    def deliver(
        self, sid: bytes, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        self.said.append(("message", int(sid), subject, reply, data, headers))

    async def _process_ping(self) -> None:
        await asyncio.sleep(0)
        self.said.append(("ping",))

    async def _process_pong(self) -> None:
        self.said.append(("pong",))

    async def _process_err(self, said: str) -> None:
        self.said.append(("error", said))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.said.append(("info", info))


tokens = st.text("abcdefgXYZ_-$0123456789", min_size=1, max_size=12).map(str.encode)
subjects = st.lists(tokens, min_size=1, max_size=5).map(b".".join)
# Payloads that look like the protocol are the ones that a parser trips over.
payloads = st.binary(max_size=300) | st.sampled_from(
    [b"", b"\r\n", b"MSG a 1 5\r\nhello\r\n", b"PING\r\n", b"+OK\r\n", b"-ERR 'x'\r\n"]
)
headers = st.binary(min_size=1, max_size=60).map(lambda more: b"NATS/1.0\r\n" + more + b"\r\n\r\n")
gaps = st.sampled_from([b" ", b" ", b" ", b"  ", b"\t"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    gap, payload = draw(gaps), draw(payloads)
    words = [b"MSG", draw(subjects), b"%d" % draw(st.integers(1, 99_999))]
    if draw(st.booleans()):
        words.append(draw(subjects))
    if draw(st.booleans()):
        head = draw(headers)
        words[0] = b"HMSG"
        words.append(b"%d" % len(head))
        payload = head + payload
    words.append(b"%d" % len(payload))
    return gap.join(words) + b"\r\n" + payload + b"\r\n"


others = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Stale Connection'\r\n", b'INFO {"a":[1]}\r\n']
)


def _said(parser: Any, listener: _Listener, pieces: list[bytes]) -> Said:
    async def feed() -> None:
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(feed())
    return listener.said


def _cut(wire: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place for place in at if place <= len(wire)), len(wire)]
    return [wire[begin:end] for begin, end in itertools.pairwise(places)]


@given(lines=st.lists(messages() | others, max_size=8), at=st.lists(st.integers(0, 900)))
def test_it_says_what_the_client_s_own_parser_says_however_the_bytes_are_cut(
    lines: list[bytes], at: list[int]
) -> None:
    theirs, ours = _Listener(), _Listener()
    pieces = _cut(b"".join(lines), at)

    expected = _said(Parser(theirs), theirs, pieces)

    assert _said(_Parser(ours), ours, pieces) == expected


@given(lines=st.lists(messages() | others, max_size=8), at=st.lists(st.integers(0, 900)))
def test_what_is_handed_over_at_once_and_what_is_left_to_the_loop_are_all_there_in_order(
    lines: list[bytes], at: list[int]
) -> None:
    whole, split = _Listener(), _Listener()
    pieces = _cut(b"".join(lines), at)
    expected = _said(_Parser(whole), whole, pieces)
    parser = _Parser(split)

    async def feed() -> None:
        for piece in pieces:
            if rest := parser.deliver(piece):
                await parser.parse(rest)

    asyncio.run(feed())

    assert split.said == expected


@pytest.mark.parametrize(
    "line",
    [
        b"MSG\r\n",
        b"MSG a 1 five\r\n",
        b"HMSG a 1 x 5\r\n",
        b"NONSENSE\r\n",
        b"\r\n",
    ],
)
def test_what_is_no_line_of_the_protocol_is_an_error(line: bytes) -> None:
    listener = _Listener()

    with pytest.raises(ProtocolError):
        _said(_Parser(listener), listener, [b"MSG a 1 2\r\nhi\r\n" + line])

    assert [said[0] for said in listener.said] == ["message"]


def test_after_an_error_that_resets_the_connection_nothing_more_of_it_is_delivered() -> None:
    class _Resetting(_Listener):
        async def _process_err(self, said: str) -> None:
            parser.reset()

    listener = _Resetting()
    parser = _Parser(listener)

    said = _said(parser, listener, [b"-ERR 'gone'\r\nMSG a 1 2\r\nhi\r\nMSG a 1 9\r\nha"])
    asyncio.run(parser.parse(b"MSG b 1 2\r\nho\r\n"))

    assert [one[2] for one in said] == [b"b"]


def test_a_message_in_many_pieces_is_not_looked_at_until_it_is_whole() -> None:
    listener = _Listener()
    parser = _Parser(listener)
    body = bytes(1_000_000)
    wire = b"MSG a 1 %d\r\n" % len(body) + body + b"\r\n"

    said = _said(parser, listener, [wire[at : at + 100] for at in range(0, len(wire), 100)])

    assert said == [("message", 1, b"a", b"", body, b"")]
