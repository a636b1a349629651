"""FastStream: a typed echo, and the turn of ten chunks, as its users would write them."""

from closed_loop import run
from faststream.nats import NatsBroker
from faststream.nats.annotations import NatsMessage
from message import Work
from pydantic import BaseModel
from serving import serve_until_told, server_options
from work import answer_chunks

QUEUE = "workers"


class Question(BaseModel):
    """What the asker sends."""

    number: int
    text: str


class Chunk(BaseModel):
    """A part of the answer to the question of that number."""

    number: int
    text: str
    last: bool


def make_broker(nats_url: str, workers: int) -> NatsBroker:
    """A broker that serves both works."""
    # Its default is a log line per message, which no peer here writes.
    broker = NatsBroker(nats_url, logger=None)

    @broker.subscriber("faststream.echo", queue=QUEUE, max_workers=workers)
    async def echo(work: Work) -> Work:
        return work

    # FastStream has no streamed reply: the chunks are published by hand, and without `no_reply`
    # it would send the handler's None after them.
    @broker.subscriber("faststream.turn", queue=QUEUE, max_workers=workers, no_reply=True)
    async def turn(asked: Question, message: NatsMessage) -> None:
        chunks = answer_chunks(asked.text)
        for index, chunk in enumerate(chunks):
            part = Chunk(number=asked.number, text=chunk, last=index == len(chunks) - 1)
            await broker.publish(part, message.reply_to)

    return broker


async def serve(nats_url: str, workers: int) -> None:
    """Serve until told to stop."""
    async with make_broker(nats_url, workers) as broker:
        await broker.start()
        await serve_until_told(["faststream", "nats-py", "pydantic", "uvloop"], workers=workers)


def main() -> None:
    """Run the server as this process."""
    parser = server_options(__doc__ or "")
    # One worker is its default and the faster of the two for work that never waits.
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    run(options.loop, serve(options.nats_url, options.workers))


if __name__ == "__main__":
    main()
