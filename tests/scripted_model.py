"""An OpenAI-compatible server that does what a script says, good or bad, for the router's tests.

Run as a process, `python tests/scripted_model.py PORT`, it chooses the agent whose card shares most
words with the message.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer of the server.

    Attributes:
        delay_s: Before the first byte.
        cut_at: Bytes of the body after which it hangs up; None for all of it.
        drip_s: Between the bytes of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    cut_at: int | None = None
    drip_s: float = 0.0


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def message(self) -> str:
        return str(json.loads(self.body["messages"][1]["content"])["message"])

    @property
    def agents(self) -> list[str]:
        return [card["agent"] for card in self.cards]

    @property
    def cards(self) -> list[dict[str, Any]]:
        lines = [line for line in self.system.splitlines() if line.startswith('{"agent"')]
        return [json.loads(line) for line in lines]


Script = Reply | Callable[[Request], Reply]


def completion(content: Any = None, *, usage: Any = (100, 20), **message: Any) -> Reply:
    """A chat completion, in the form of the published API."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": "stop",
            }
        ],
    }
    if usage is not None:
        counted = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        body["usage"] = {**counted, "total_tokens": sum(usage)}
    return Reply(body=json.dumps(body).encode())


def chooses(agent: Any, **more: Any) -> Reply:
    """The answer that names an agent."""
    answer: dict[str, Any] = {
        "reason": "as scripted",
        "could_be": [],
        "agent": agent,
        "capability": None,
    }
    return completion(json.dumps(answer | more))


def refuses(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in the form of the published API."""
    body = json.dumps({"error": {"message": message, "type": "scripted", "code": None}})
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status=status, body=body.encode(), headers=named)


def understands(form: str, then: Reply) -> Script:
    """A server that knows `text` only, or `json_object` too."""

    def reply(request: Request) -> Reply:
        wanted = request.body.get("response_format", {}).get("type", "text")
        if wanted in ("text", form):
            return then
        return refuses(400, f"response_format.type {wanted!r} is not supported here")

    return reply


def by_words(request: Request) -> Reply:
    """A model of few brains: the agent whose card shares most words with the message."""
    said = set(re.findall(r"\w+", request.message.lower()))
    best, most = None, 0
    for card in request.cards:
        shared = len(said & set(re.findall(r"\w+", json.dumps(card).lower())))
        if shared > most:
            best, most = card["agent"], shared
    return chooses(best, reason="it shares most words")


@dataclass
class ScriptedModel:
    """The server, what it is to say, one reply after the other, and what it was asked."""

    url: str = ""
    script: list[Script] = field(default_factory=list[Script])
    otherwise: Script = by_words
    models: Reply = field(
        default_factory=lambda: Reply(body=b'{"object":"list","data":[{"id":"scripted"}]}')
    )
    asked: list[Request] = field(default_factory=list[Request])
    at_once: int = 0
    most_at_once: int = 0
    hung_up_on: int = 0

    def says(self, *replies: Script) -> None:
        self.script = list(replies)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except ConnectionError:
            self.hung_up_on += 1
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value for name, _, value in (h.partition(": ") for h in head[1:] if h)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET":
            return await self._send(writer, self.models)
        request = Request(path, headers, json.loads(body))
        self.asked.append(request)
        script = self.script.pop(0) if self.script else self.otherwise
        reply = script if isinstance(script, Reply) else script(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._send(writer, reply)
        finally:
            self.at_once -= 1

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        await asyncio.sleep(reply.delay_s)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(reply.body))),
            *reply.headers,
        ]
        head = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Scripted')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(head.encode() + b"\r\n")
        sent = reply.body if reply.cut_at is None else reply.body[: reply.cut_at]
        if reply.drip_s:
            for byte in sent:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(reply.drip_s)
        else:
            for at in range(0, len(sent), 65_536):
                writer.write(sent[at : at + 65_536])
                await writer.drain()
        await writer.drain()
        return reply.cut_at is None


@asynccontextmanager
async def scripted_model(
    replies: Iterable[Script] = (), *, port: int = 0
) -> AsyncGenerator[ScriptedModel]:
    """A server on this machine for as long as the block lasts."""
    model = ScriptedModel(script=list(replies))
    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with suppress(asyncio.CancelledError):  # asyncio.streams would log it
            await model.serve(reader, writer)
        serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield model
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
            await task


async def _main() -> None:
    async with scripted_model(port=int(sys.argv[1])) as model:
        print(model.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
