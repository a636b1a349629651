"""Asks the FastStream server with FastStream's own client: `echo` or `turn`."""

import argparse
import asyncio
import functools
import uuid

from closed_loop import Ask, load_options, report, run
from faststream.nats import NatsBroker
from faststream_server import Chunk, Question
from message import Work
from work import answer, check, message_fields, question

TIMEOUT_S = 10.0


def echo(broker: NatsBroker) -> Ask:
    """A typed message there and back, validated on both sides."""

    @functools.cache
    def sent(worker: int) -> Work:
        return Work(**message_fields(worker))

    async def ask(worker: int, number: int) -> None:
        reply = await broker.request(sent(worker), "faststream.echo", timeout=TIMEOUT_S)
        check(sent(worker).number, Work.model_validate_json(reply.body).number)

    return ask


def turn(broker: NatsBroker) -> Ask:
    """A question whose answer comes in chunks, to a subscriber of our own."""
    inbox = f"faststream.inbox.{uuid.uuid4().hex}"
    waiting: dict[int, tuple[list[str], asyncio.Future[str]]] = {}

    @broker.subscriber(inbox)
    async def on_chunk(chunk: Chunk) -> None:
        if chunk.number not in waiting:
            return
        parts, done = waiting[chunk.number]
        parts.append(chunk.text)
        if chunk.last and not done.done():
            done.set_result("".join(parts))

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting[number] = ([], done)
        try:
            asking = Question(number=number, text=asked)
            await broker.publish(asking, "faststream.turn", reply_to=inbox)
            async with asyncio.timeout(TIMEOUT_S):
                check(answer(asked), await done)
        finally:
            del waiting[number]

    return ask


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    broker = NatsBroker(options.nats_url, logger=None)
    ask = {"echo": echo, "turn": turn}[options.mode](broker)
    async with broker:
        await broker.start()
        packages = ["faststream", "nats-py", "pydantic", "uvloop"]
        await report("faststream", options, ask, codec="pydantic, JSON", packages=packages)


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("echo", "turn"))
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
