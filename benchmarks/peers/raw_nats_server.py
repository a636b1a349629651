"""Bare nats-py, the floor that every other figure is a multiple of."""

import json
from collections.abc import Awaitable, Callable

import nats
from closed_loop import run
from nats.aio.client import Client
from nats.aio.msg import Msg
from serving import serve_until_told, server_options
from work import answer_chunks, frames

QUEUE = "workers"


def echo(client: Client) -> Callable[[Msg], Awaitable[None]]:
    """Give every message back as it came."""

    async def on_message(message: Msg) -> None:
        await client.publish(message.reply, message.data)

    return on_message


def stream(client: Client) -> Callable[[Msg], Awaitable[None]]:
    """Publish as many frames as the request says to its inbox."""

    async def on_message(message: Msg) -> None:
        wanted = json.loads(message.data)
        for frame in frames(wanted["frames"], wanted["bytes"]):
            await client.publish(message.reply, frame)

    return on_message


def agent(client: Client) -> Callable[[Msg], Awaitable[None]]:
    """Answer a question in chunks to the asker's inbox; an empty message ends the answer."""

    async def on_message(message: Msg) -> None:
        for chunk in answer_chunks(message.data.decode()):
            await client.publish(message.reply, chunk.encode())
        await client.publish(message.reply, b"")

    return on_message


def router(client: Client) -> Callable[[Msg], Awaitable[None]]:
    """Pass a question on to the agent, which answers the asker and not us."""

    async def on_message(message: Msg) -> None:
        await client.publish("raw.agent", message.data, reply=message.reply)

    return on_message


ROLES = {"echo": echo, "stream": stream, "agent": agent, "router": router}


async def serve(nats_url: str, role: str) -> None:
    """Serve one role on the subject `raw.{role}`, in a queue group."""
    client = await nats.connect(nats_url, name=f"raw/{role}")
    await client.subscribe(f"raw.{role}", queue=QUEUE, cb=ROLES[role](client))
    await client.flush()
    await serve_until_told(["nats-py", "uvloop"], role=role)
    await client.close()


def main() -> None:
    """Run one role as this process."""
    options = server_options(__doc__ or "", tuple(ROLES)).parse_args()
    run(options.loop, serve(options.nats_url, options.role))


if __name__ == "__main__":
    main()
