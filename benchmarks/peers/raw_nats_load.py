"""Asks the bare nats-py servers, with nats-py's own client: `echo`, `stream` or `turn`."""

import argparse
import asyncio
import itertools
import json

import nats
from closed_loop import Ask, load_options, report, run
from nats.aio.client import Client
from nats.aio.msg import Msg
from work import (
    FRAME_BYTES,
    FRAMES,
    MESSAGE_BYTES,
    WrongAnswer,
    answer_chunks,
    check,
    frames,
    payload,
    question,
)

TIMEOUT_S = 10.0


class Inbox:
    """One wildcard subscription for all replies, as a lean client has it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._tokens = itertools.count()
        self._open: dict[str, tuple[tuple[bytes, ...], list[bytes], asyncio.Future[None]]] = {}

    async def listen(self) -> None:
        """Subscribe; needed once, before the first ask."""
        await self._client.subscribe(f"{self._prefix}.*", cb=self._on_reply)
        await self._client.flush()

    async def ask(self, subject: str, request: bytes, expected: tuple[bytes, ...]) -> None:
        """Ask, and wait until as many replies are here as expected; each must be the right one."""
        token = str(next(self._tokens))
        got: list[bytes] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[token] = (expected, got, done)
        try:
            await self._client.publish(subject, request, reply=f"{self._prefix}.{token}")
            async with asyncio.timeout(TIMEOUT_S):
                await done
        finally:
            del self._open[token]

    async def _on_reply(self, message: Msg) -> None:
        reply = self._open.get(message.subject.rpartition(".")[2])
        if reply is None or reply[2].done():
            return
        expected, got, done = reply
        got.append(message.data)
        if message.data != expected[len(got) - 1]:
            done.set_exception(WrongAnswer(f"reply {len(got)} is {message.data!r:.100}"))
        elif len(got) == len(expected):
            done.set_result(None)


def echo(client: Client, size: int) -> Ask:
    """The same bytes there and back."""

    async def ask(worker: int, number: int) -> None:
        sent = payload(size, worker)
        reply = await client.request("raw.echo", sent, timeout=TIMEOUT_S)
        check(sent, reply.data)

    return ask


def stream(inbox: Inbox, count: int, size: int) -> Ask:
    """Many small frames to one inbox."""
    request = json.dumps({"frames": count, "bytes": size}).encode()
    expected = frames(count, size)

    async def ask(worker: int, number: int) -> None:
        await inbox.ask("raw.stream", request, expected)

    return ask


def turn(inbox: Inbox, subject: str) -> Ask:
    """A question whose answer comes in chunks and ends with an empty message."""

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        chunks = tuple(chunk.encode() for chunk in answer_chunks(asked))
        await inbox.ask(subject, asked.encode(), (*chunks, b""))

    return ask


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    client = await nats.connect(options.nats_url, name="raw/load")
    inbox = Inbox(client)
    await inbox.listen()
    asks = {
        "echo": echo(client, options.bytes or MESSAGE_BYTES),
        "stream": stream(inbox, options.frames, options.bytes or FRAME_BYTES),
        "turn": turn(inbox, "raw.router"),
        "direct": turn(inbox, "raw.agent"),
    }
    more = {"frames_per_call": options.frames} if options.mode == "stream" else {}
    await report(
        "raw_nats",
        options,
        asks[options.mode],
        codec="bytes",
        packages=["nats-py", "uvloop"],
        **more,
    )
    await client.close()


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("echo", "stream", "turn", "direct"))
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    parser.add_argument("--bytes", type=int, help="of an echoed message, or of a frame")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a stream")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
