"""The HTTP adapter over a real bus, in front of a runtime that does as each test says."""

import asyncio
import gzip
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lmos_mesh import telemetry
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    InstanceLost,
    MeshError,
    NotFound,
    Overloaded,
)
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    FIND_THINGS,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    GET_THING,
    ROUTER_STATUS,
    Answer,
    CancelTurn,
    Conversation,
    ConversationForgotten,
    Converse,
    FindThings,
    ForgetConversation,
    FoundThing,
    GetConversation,
    GetThing,
    RouterState,
    RouterStatus,
    ThingsFound,
    Turn,
    TurnCancelled,
)
from lmos_mesh.things import Capability
from lmos_mesh_http import HttpAdapter, HttpSettings
from tests.conftest import MemoryMesh, Mesh

WORDS = ("Your ", "bill ", "is ", "39.99 €.")
PATIENCE_S = 10.0


async def say_the_words(request: Converse, call: Call) -> Answer:
    decision = {"outcome": "routed", "agent": "billing", "confidence": 0.9}
    await call.send("status", {"state": "routed", "decision": decision})
    for word in WORDS:
        await call.send("delta", word)
    return answered(request, "".join(WORDS))


def answered(request: Converse, text: str) -> Answer:
    return Answer(
        answer=text,
        conversation=request.conversation or "c-new",
        turn=request.turn or "t-new",
        agent="billing",
        capability="view_bill",
    )


@dataclass
class Mock:
    """Stands for runtime, registry and router: answers on the bus as they do."""

    answer: Callable[[Converse, Call], Awaitable[Answer]] = say_the_words
    asked: list[Converse] = field(default_factory=list[Converse])
    calls: list[Call] = field(default_factory=list[Call])
    found: list[FindThings] = field(default_factory=list[FindThings])
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def converse(self, request: Converse, call: Call) -> Answer:
        self.asked.append(request)
        self.calls.append(call)
        try:
            return await self.answer(request, call)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def conversation(self, request: GetConversation, call: Call) -> Conversation:
        if request.conversation != "c1":
            raise NotFound(f"conversation {request.conversation!r} does not exist")
        turn = Turn(turn="t1", message="hi", answer="hello", state="done", agent="billing")
        return Conversation(conversation="c1", turns=(turn,))

    async def cancel(self, request: CancelTurn, call: Call) -> TurnCancelled:
        if request.turn != "t1":
            raise NotFound(f"turn {request.turn!r} is not running")
        return TurnCancelled(conversation=request.conversation, turn="t1")

    async def forget(self, request: ForgetConversation, call: Call) -> ConversationForgotten:
        await self.conversation(GetConversation(conversation=request.conversation), call)
        return ConversationForgotten(conversation=request.conversation)

    async def find(self, request: FindThings, call: Call) -> ThingsFound:
        self.found.append(request)
        return ThingsFound(things=(BILLING,), total=1, revision=1)

    async def get(self, request: GetThing, call: Call) -> FoundThing:
        if request.name == "asleep":
            return FoundThing(name="asleep", live=False)
        if request.name != "billing":
            raise AgentNotFound(f"nothing called {request.name!r}", hint="did you mean billing?")
        return BILLING

    async def status(self, request: RouterStatus, call: Call) -> RouterState:
        return RouterState(
            encoder="e", fingerprint="f", semantic=True, agents=1, evidence=1, version=1
        )

    async def serve(self, bus: Bus) -> None:
        await bus.serve(
            "runtime",
            [
                route(CONVERSE, self.converse),
                route(GET_CONVERSATION, self.conversation),
                route(CANCEL_TURN, self.cancel),
                route(FORGET_CONVERSATION, self.forget),
            ],
        )
        await bus.serve("registry", [route(FIND_THINGS, self.find), route(GET_THING, self.get)])
        await bus.serve("router", [route(ROUTER_STATUS, self.status)])


BILLING = FoundThing(
    name="billing",
    version="1.2.0",
    summary="Answers questions about bills.",
    capabilities=(Capability(id="view_bill", name="View bill", description="Shows a bill."),),
    live=True,
)


@dataclass
class Site:
    """A running adapter, and a client for it."""

    adapter: HttpAdapter
    client: httpx.AsyncClient
    mock: Mock
    mesh: Mesh

    @property
    def path(self) -> str:
        return f"/apis/v1/{self.mesh.tenant}/chat/c1/message"

    def openai(self, max_retries: int = 0, **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.adapter.url}/v1", api_key="none", max_retries=max_retries, **more
        )

    async def say(self, **more: Any) -> httpx.Response:
        return await self.client.post(
            self.path, json=message(), headers={"x-turn-id": "t1"}, **more
        )

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[httpx.Response]:
        headers = {"x-turn-id": "t1", "accept": "text/event-stream"}
        async with self.client.stream("POST", self.path, json=message(), headers=headers) as got:
            yield got


@asynccontextmanager
async def running(
    mesh: Mesh, mock: Mock | None = None, *, alone: bool = False, **settings: Any
) -> AsyncGenerator[Site]:
    """An adapter while the block lasts; `alone` without anybody behind it."""
    mock = mock or Mock()
    adapter = HttpAdapter(HttpSettings(http_port=0, tenant=mesh.tenant, **settings))
    ready = asyncio.Event()
    async with mesh.bus() as behind, mesh.bus() as bus:
        if not alone:
            await mock.serve(behind)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(adapter.run(bus, ready.set))
            await ready.wait()
            try:
                async with httpx.AsyncClient(base_url=adapter.url, timeout=PATIENCE_S) as client:
                    yield Site(adapter, client, mock, mesh)
            finally:
                task.cancel()


def message(text: str = "how much do I owe?", **more: Any) -> dict[str, Any]:
    return {"inputContext": {"messages": [{"role": "user", "content": text}]} | more}


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Name and data of each event, as they come."""
    name = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


# -- LMOS --


@pytest.mark.parametrize("base", ["/apis/v1", "/lmos/runtime/apis/v1"])
async def test_a_message_is_answered_with_one_json_object(mesh: Mesh, base: str):
    entities = [{"type": "name", "value": "Ada", "replacement": "N1", "extra": [1]}]
    body = message(explicitAgent="billing", anonymizationEntities=entities) | {
        "systemContext": {"channelId": "ivr"},
        "userContext": {"userId": "u1"},
    }
    async with running(mesh) as site:
        path = f"{base}/{mesh.tenant}/chat/c-7/message"

        reply = await site.client.post(
            path, json=body, headers={"x-turn-id": "t7", "x-subset": "canary"}
        )

    assert reply.status_code == 200
    assert reply.json() == {"content": "".join(WORDS), "anonymizationEntities": entities}
    asked = site.mock.asked[0]
    assert asked.message == "how much do I owe?"
    assert (asked.conversation, asked.turn, asked.subset) == ("c-7", "t7", "canary")
    assert (asked.agent, asked.channel, asked.user) == ("billing", "ivr", "u1")
    assert site.mock.calls[0].tenant == mesh.tenant


async def test_every_tenant_in_the_path_is_asked_as_itself(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        await site.client.post(
            "/apis/v1/Acme%20%26%20Söhne.*/chat/c 1/message",
            json=message(),
            headers={"x-turn-id": "t1"},
        )

    assert site.mock.calls[0].tenant == "Acme & Söhne.*"
    assert site.mock.asked[0].conversation == "c 1"


async def test_a_message_without_a_turn_id_is_an_invalid_request(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        reply = await site.client.post(site.path, json=message())

    assert reply.status_code == 400
    assert reply.json()["errorCode"] == "INVALID_REQUEST"
    assert "x-turn-id" in reply.json()["message"]
    assert not site.mock.asked


async def test_words_come_as_they_are_said(mesh: Mesh):
    heard = asyncio.Event()

    async def say_and_wait(request: Converse, call: Call) -> Answer:
        await call.send("delta", "first ")
        await heard.wait()
        await call.send("delta", "second")
        return answered(request, "first second")

    async with running(mesh, Mock(say_and_wait)) as site, site.stream() as response:
        told = events(response)

        assert await anext(told) == ("delta", {"content": "first "})
        heard.set()
        assert await anext(told) == ("delta", {"content": "second"})
        name, data = await anext(told)

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert name == "end"
    assert data["content"] == "first second"
    assert data["agent"] == "billing"


async def test_the_decision_and_a_restart_are_events(mesh: Mesh):
    async def stumble(request: Converse, call: Call) -> Answer:
        await call.send("status", {"state": "routed", "decision": {"agent": "billing"}})
        await call.send("delta", "Your b")
        await call.send("restart", {"reason": "instance i1 has died"})
        await call.send("delta", "All of it")
        return answered(request, "All of it")

    async with running(mesh, Mock(stumble)) as site, site.stream() as response:
        told = [event async for event in events(response)]

    assert [name for name, _ in told] == ["routed", "delta", "restart", "delta", "end"]
    assert told[0][1]["agent"] == "billing"
    assert "died" in told[2][1]["reason"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (AgentNotFound("no such agent", hint="did you mean billing?"), 404, "AGENT_NOT_FOUND"),
        (AgentFailed("it broke"), 500, "AGENT_CLIENT_EXCEPTION"),
        (InstanceLost("it died"), 502, "INSTANCE_LOST"),
        (Overloaded("busy"), 503, "OVERLOADED"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_fails_before_the_first_word_has_a_status(
    memory_mesh: MemoryMesh, error: MeshError, status: int, code: str, accept: str
):
    async def fail(request: Converse, call: Call) -> Answer:
        raise error

    async with running(memory_mesh, Mock(fail)) as site:
        reply = await site.client.post(
            site.path, json=message(), headers={"x-turn-id": "t1", "accept": accept}
        )

    assert reply.status_code == status
    assert reply.json() == {"errorCode": code, "message": str(error)}


async def test_a_failure_that_comes_with_the_first_words_loses_none_that_were_sent(mesh: Mesh):
    async def burst(request: Converse, call: Call) -> Answer:
        await call.send("delta", "one ")
        await asyncio.sleep(0.1)
        await call.send("delta", "two ")
        await call.send("delta", "three")
        raise InstanceLost("it died")

    async with running(mesh, Mock(burst)) as site, site.stream() as response:
        told = [event async for event in events(response)]

    assert [data.get("content") for _, data in told] == ["one ", "two ", "three", None]
    assert told[-1][0] == "error"


async def test_what_fails_after_it_is_the_last_event(mesh: Mesh):
    async def break_off(request: Converse, call: Call) -> Answer:
        await call.send("delta", "Your b")
        raise InstanceLost("it died")

    async with running(mesh, Mock(break_off)) as site, site.stream() as response:
        told = [event async for event in events(response)]

    assert told == [
        ("delta", {"content": "Your b"}),
        ("error", {"errorCode": "INSTANCE_LOST", "message": "it died"}),
    ]


@pytest.mark.parametrize("as_events", [True, False])
async def test_a_client_that_leaves_cancels_the_work(mesh: Mesh, as_events: bool):
    begun = asyncio.Event()

    async def never_end(request: Converse, call: Call) -> Answer:
        await call.send("delta", "Your b")
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running(mesh, Mock(never_end)) as site:
        if as_events:
            async with site.stream() as response:
                await anext(events(response))
        else:
            async with asyncio.TaskGroup() as tasks:
                saying = tasks.create_task(site.say())
                await begun.wait()
                saying.cancel()

        async with asyncio.timeout(PATIENCE_S):
            await site.mock.cancelled.wait()


async def test_a_client_that_reads_nothing_is_left_and_little_is_kept_for_it(
    memory_mesh: MemoryMesh,
):
    async def talk_on(request: Converse, call: Call) -> Answer:
        while True:
            await call.send("delta", "x" * 50_000)
            await asyncio.sleep(0)

    body = json.dumps(message()).encode()
    async with running(memory_mesh, Mock(talk_on), http_stall_timeout_s=0.3) as site:
        url = httpx.URL(site.adapter.url)
        _, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
        cast("asyncio.ReadTransport", writer.transport).pause_reading()
        head = (
            f"POST {site.path} HTTP/1.1\r\nhost: x\r\nx-turn-id: t\r\naccept: text/event-stream\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )

        writer.write(head.encode() + body)
        async with asyncio.timeout(PATIENCE_S):
            await site.mock.cancelled.wait()

        server = site.adapter._server  # pyright: ignore[reportPrivateUsage]
        assert server is not None
        kept = [
            cast("Any", one).transport.get_write_buffer_size()
            for one in server.server_state.connections
        ]
        writer.transport.abort()
    assert sum(kept) < 1024 * 1024


async def test_agents_are_listed_as_the_runtime_lists_them(memory_mesh: MemoryMesh):
    tenant = memory_mesh.tenant
    async with running(memory_mesh) as site:
        by_query = await site.client.get(
            "/apis/v1/agents", params={"tenantId": tenant, "channelId": "web", "subset": "canary"}
        )
        by_path = await site.client.get(f"/lmos/runtime/apis/v1/agents/{tenant}/web")

    capability = {
        "id": "view_bill",
        "name": "View bill",
        "version": "1.0.0",
        "description": "Shows a bill.",
    }
    agent = {
        "id": "billing",
        "name": "billing",
        "version": "1.2.0",
        "description": "Answers questions about bills.",
        "capabilities": [capability],
    }
    assert by_query.json() == {"subset": "canary", "agents": [agent]}
    uri = f"nats:lmos.{tenant}.agent.billing.stable.invoke.view_bill"
    assert by_path.json() == [agent | {"addresses": [{"protocol": "nats", "uri": uri}]}]
    assert [(one.channel, one.subset) for one in site.mock.found] == [
        ("web", "canary"),
        ("web", "stable"),
    ]


async def test_agents_of_no_channel_are_an_invalid_request(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        reply = await site.client.get("/apis/v1/agents", params={"tenantId": "demo"})

    assert reply.status_code == 400
    assert reply.json()["errorCode"] == "INVALID_REQUEST"
    assert "channelId" in reply.json()["message"]


async def test_a_conversation_is_read_and_erased(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        path = f"/apis/v1/{memory_mesh.tenant}/chat/c1"
        read = await site.client.get(path)
        erased = await site.client.delete(path)
        cancelled = await site.client.delete(f"{path}/message/t1")

    assert read.json()["conversationId"] == "c1"
    assert read.json()["turns"][0]["content"] == "hello"
    assert (erased.status_code, erased.content) == (204, b"")
    assert cancelled.status_code == 204


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/c2"), ("DELETE", "/c2"), ("DELETE", "/c1/message/t9")],
)
async def test_what_does_not_exist_is_not_found(memory_mesh: MemoryMesh, method: str, path: str):
    async with running(memory_mesh) as site:
        reply = await site.client.request(method, f"/apis/v1/{memory_mesh.tenant}/chat{path}")

    assert reply.status_code == 404
    assert reply.json()["errorCode"] == "NOT_FOUND"


# -- OpenAI --


ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "my bill?"}]


async def whole(client: openai.AsyncOpenAI, model: str = "auto", **more: Any) -> ChatCompletion:
    return await client.chat.completions.create(model=model, messages=ASKED, stream=False, **more)


async def streamed(
    client: openai.AsyncOpenAI, model: str = "auto", **more: Any
) -> openai.AsyncStream[ChatCompletionChunk]:
    return await client.chat.completions.create(model=model, messages=ASKED, stream=True, **more)


async def test_the_official_client_gets_a_whole_answer(mesh: Mesh):
    async with running(mesh) as site, site.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=ASKED, stream=False
        )
        answer = raw.parse()

    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "billing"
    assert raw.headers["x-request-id"]
    assert not site.mock.asked[0].store


async def test_the_official_client_gets_the_words_as_they_come(mesh: Mesh):
    heard = asyncio.Event()

    async def say_and_wait(request: Converse, call: Call) -> Answer:
        await call.send("status", {"state": "routed", "decision": {"agent": "billing"}})
        await call.send("delta", "first ")
        await heard.wait()
        await call.send("delta", "second")
        return answered(request, "first second")

    got: list[ChatCompletionChunk] = []
    async with running(mesh, Mock(say_and_wait)) as site, site.openai() as client:
        stream = await streamed(client, stream_options={"include_usage": True})
        async for chunk in stream:
            got.append(chunk)
            if chunk.choices and chunk.choices[0].delta.content == "first ":
                heard.set()

    text = "".join(one.choices[0].delta.content or "" for one in got if one.choices)
    assert text == "first second"
    assert {one.model for one in got} == {"billing"}
    assert got[-1].usage is not None
    assert got[-1].choices == []
    assert got[-2].choices[0].finish_reason == "stop"
    assert not site.mock.asked[0].restarts


async def test_an_unknown_model_is_not_found_and_names_its_neighbours(memory_mesh: MemoryMesh):
    async def refuse(request: Converse, call: Call) -> Answer:
        raise AgentNotFound("nothing called 'biling'", hint="did you mean billing?")

    async with running(memory_mesh, Mock(refuse)) as site, site.openai() as client:
        with pytest.raises(openai.NotFoundError, match="did you mean billing") as caught:
            await streamed(client, "biling")

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_a_failure_in_mid_stream_is_raised_by_the_official_client(mesh: Mesh):
    async def break_off(request: Converse, call: Call) -> Answer:
        await call.send("delta", "Your b")
        raise InstanceLost("the instance died in mid-answer")

    async with running(mesh, Mock(break_off)) as site, site.openai() as client:
        stream = await streamed(client)
        with pytest.raises(openai.APIError, match="died in mid-answer") as caught:
            async for _ in stream:
                pass

    assert caught.value.code == "instance_lost"


async def test_the_official_client_tries_again_when_the_mesh_is_busy(memory_mesh: MemoryMesh):
    async def busy_at_first(request: Converse, call: Call) -> Answer:
        if len(site.mock.asked) == 1:
            raise Overloaded("busy")
        return await say_the_words(request, call)

    async with (
        running(memory_mesh, Mock(busy_at_first)) as site,
        site.openai(max_retries=1) as client,
    ):
        answer = await whole(client)

    assert answer.choices[0].message.content == "".join(WORDS)
    assert len(site.mock.asked) == 2


async def test_the_official_client_does_not_repeat_what_may_have_been_done(
    memory_mesh: MemoryMesh,
):
    async def fail(request: Converse, call: Call) -> Answer:
        raise AgentFailed("it broke")

    async with running(memory_mesh, Mock(fail)) as site, site.openai(max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="it broke"):
            await whole(client)

    assert len(site.mock.asked) == 1


async def test_models_are_auto_and_the_live_agents(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site, site.openai() as client:
        models = [one.id async for one in client.models.list()]
        billing = await client.models.retrieve("billing")
        auto = await client.models.retrieve("auto")
        for unknown in ("biling", "asleep"):
            with pytest.raises(openai.NotFoundError) as caught:
                await client.models.retrieve(unknown)
            assert caught.value.code == "model_not_found"

    assert models == ["auto", "billing"]
    assert billing.id == "billing"
    assert auto.owned_by == "lmos-mesh"


async def test_a_tenant_a_channel_and_a_conversation_come_by_headers(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site, site.openai() as client:
        await whole(
            client,
            extra_headers={
                "Lmos-Tenant": "acme",
                "Lmos-Channel": "ivr",
                "X-Subset": "canary",
                "X-Conversation-Id": "c9",
                "X-Turn-Id": "t9",
            },
        )

    asked = site.mock.asked[0]
    assert site.mock.calls[0].tenant == "acme"
    assert (asked.channel, asked.subset) == ("ivr", "canary")
    assert (asked.conversation, asked.turn, asked.store) == ("c9", "t9", True)


async def test_a_request_that_asks_for_too_much_is_told_which_part(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site, site.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await whole(client, n=3)

    assert caught.value.param == "n"
    assert not site.mock.asked


async def test_a_client_that_stops_reading_the_stream_cancels_the_work(mesh: Mesh):
    async def never_end(request: Converse, call: Call) -> Answer:
        await call.send("delta", "Your b")
        await asyncio.Event().wait()
        raise AssertionError

    async with running(mesh, Mock(never_end)) as site, site.openai() as client:
        stream = await streamed(client)
        await anext(aiter(stream))
        await stream.close()

        async with asyncio.timeout(2.0):
            await site.mock.cancelled.wait()


# -- requests --


async def test_many_at_once_each_get_their_own_answer(mesh: Mesh):
    async def echo(request: Converse, call: Call) -> Answer:
        for letter in request.message:
            await call.send("delta", letter)
        return answered(request, request.message)

    async def one(number: int) -> tuple[str, str]:
        said = f"this is number {number}"
        reply = await site.client.post(
            f"/apis/v1/{mesh.tenant}/chat/c{number}/message",
            json=message(said),
            headers={"x-turn-id": "t", "accept": "text/event-stream"},
        )
        words = [json.loads(line[6:]) for line in reply.text.split("\n") if line[:5] == "data:"]
        return said, "".join(word["content"] for word in words[:-1])

    async with running(mesh, Mock(echo)) as site, asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(one(number)) for number in range(100)]

    for task in asking:
        said, heard = task.result()
        assert said == heard


async def test_a_body_in_chunks_is_taken(memory_mesh: MemoryMesh):
    async def parts() -> AsyncGenerator[bytes]:
        raw = json.dumps(message()).encode()
        yield raw[:10]
        yield raw[10:]

    headers = {"x-turn-id": "t1", "content-type": "application/json"}
    async with running(memory_mesh) as site:
        reply = await site.client.post(site.path, content=parts(), headers=headers)

    assert reply.request.headers["transfer-encoding"] == "chunked"
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("path", "code_at"),
    [("/apis/v1/demo/chat/c/message", "errorCode"), ("/v1/chat/completions", "error")],
)
@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"x" * 2048, "application/json", 413),
        (b"{}", "text/plain", 415),
    ],
)
async def test_a_body_that_cannot_be_used_is_refused_in_the_form_of_its_path(
    memory_mesh: MemoryMesh,
    path: str,
    code_at: str,
    content: bytes,
    content_type: str,
    status: int,
):
    headers = {"x-turn-id": "t1", "content-type": content_type}
    async with running(memory_mesh, http_body_limit=1024) as site:
        reply = await site.client.post(path, content=content, headers=headers)

    assert reply.status_code == status
    assert code_at in reply.json()
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "body_has"),
    [
        ("GET", "/apis/v1/nothing", 404, "errorCode"),
        ("PUT", "/apis/v1/demo/chat/c1", 405, "errorCode"),
        ("GET", "/v1/embeddings", 404, "error"),
        ("GET", "/v1/chat/completions", 405, "error"),
        ("GET", "/nothing", 404, "detail"),
        ("POST", "/readyz", 405, "detail"),
        ("GET", "/v1/models/", 404, "error"),
    ],
)
async def test_a_path_or_method_that_is_not_there_is_refused_in_the_form_of_its_place(
    memory_mesh: MemoryMesh, method: str, path: str, status: int, body_has: str
):
    async with running(memory_mesh) as site:
        reply = await site.client.request(method, path)

    assert reply.status_code == status
    assert body_has in reply.json()
    assert path in json.dumps(reply.json())


async def test_what_is_allowed_instead_is_named(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        reply = await site.client.put("/apis/v1/demo/chat/c1")

    assert reply.headers.get_list("allow") == ["DELETE, GET"]


async def test_what_is_no_http_does_not_stop_the_adapter(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        url = httpx.URL(site.adapter.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"\x00\xff nonsense\r\n\r\n")
        refused = await reader.read()
        writer.close()

        lives = await site.client.get("/healthz")

    assert b"400" in refused.split(b"\r\n")[0]
    assert lives.status_code == 200


async def test_web_pages_of_others_may_not_call_unless_settings_say_so(memory_mesh: MemoryMesh):
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with running(memory_mesh) as site:
        closed = await site.client.options("/v1/chat/completions", headers=asks)
    async with running(memory_mesh, http_cors_origins="https://a.example, https://b") as site:
        opened = await site.client.options("/v1/chat/completions", headers=asks)
        stranger = await site.client.options(
            "/v1/chat/completions", headers=asks | {"origin": "https://c"}
        )

    assert "access-control-allow-origin" not in closed.headers
    assert opened.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in stranger.headers


async def test_a_bug_is_an_error_in_the_right_form_and_the_adapter_lives(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
):
    def bug(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError

    async with running(memory_mesh) as site:
        monkeypatch.setattr("lmos_mesh_http.lmos_routes.converse_of", bug)
        reply = await site.say()
        lives = await site.client.get("/healthz")

    assert reply.status_code == 500
    assert reply.json()["errorCode"] == "INTERNAL_SERVER_ERROR"
    assert reply.headers["x-request-id"]
    assert lives.status_code == 200


async def test_no_word_of_a_user_is_logged(
    memory_mesh: MemoryMesh, caplog: pytest.LogCaptureFixture
):
    async def fail(request: Converse, call: Call) -> Answer:
        await call.send("delta", "xyzzy")
        raise AgentFailed("it broke")

    with caplog.at_level(logging.DEBUG):
        async with running(memory_mesh, Mock(fail)) as site:
            for body in (message("xyzzy"), {"inputContext": {"messages": "xyzzy"}}):
                for accept in ("application/json", "text/event-stream"):
                    await site.client.post(
                        site.path, json=body, headers={"x-turn-id": "t1", "accept": accept}
                    )

    assert "xyzzy" not in caplog.text


# -- health, documents --


async def test_it_is_ready_when_all_behind_it_answer(mesh: Mesh):
    async with running(mesh) as site:
        reply = await site.client.get("/readyz")

    assert reply.status_code == 200
    assert reply.json()["checks"] == dict.fromkeys(("bus", "registry", "router", "runtime"), "ok")


async def test_it_lives_but_is_not_ready_when_nobody_does(memory_mesh: MemoryMesh):
    async with running(memory_mesh, alone=True) as site:
        ready = await site.client.get("/readyz")
        lives = await site.client.get("/healthz")
        asked = await site.say()

    assert ready.status_code == 503
    assert ready.headers["content-type"] == "application/problem+json"
    assert "nobody answers" in ready.json()["checks"]["runtime"]
    assert lives.status_code == 200
    assert asked.status_code == 503
    assert asked.headers["retry-after"] == "1"


async def test_the_documents_need_nothing_from_elsewhere(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        page = await site.client.get("/docs")
        script = await site.client.get("/docs/swagger-ui-bundle.js")
        style = await site.client.get("/docs/swagger-ui.css")
        root = await site.client.get("/", follow_redirects=True)

    assert "//" not in page.text.replace("/docs/", "")
    assert (script.status_code, style.status_code) == (200, 200)
    assert len(script.content) > 100_000
    assert root.text == page.text


async def test_without_the_package_that_shows_it_the_document_is_still_told_of(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
):
    def missing(name: str) -> None:
        return None

    monkeypatch.setattr("lmos_mesh_http.docs_page._file", missing)
    async with running(memory_mesh) as site:
        page = await site.client.get("/docs")
        script = await site.client.get("/docs/swagger-ui.css")

    assert "/openapi.json" in page.text
    assert "/v1/chat/completions" in page.text
    assert script.status_code == 404


async def test_the_description_is_whole_and_says_how_each_path_fails(memory_mesh: MemoryMesh):
    async with running(memory_mesh) as site:
        document = (await site.client.get("/openapi.json")).json()

    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    referred = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred <= set(schemas)
    assert "ValidationError" not in text
    assert document["openapi"].startswith("3.1")
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        "POST /apis/v1/{tenantId}/chat/{conversationId}/message",
        "DELETE /apis/v1/{tenantId}/chat/{conversationId}/message/{turnId}",
        "GET /apis/v1/{tenantId}/chat/{conversationId}",
        "DELETE /apis/v1/{tenantId}/chat/{conversationId}",
        "GET /apis/v1/agents",
        "GET /apis/v1/agents/{tenantId}/{channelId}",
        "POST /v1/chat/completions",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /healthz",
        "GET /readyz",
        "GET /things",
        "POST /things",
        "GET /things/{id}",
        "PUT /things/{id}",
        "PATCH /things/{id}",
        "DELETE /things/{id}",
        "GET /apis/v1/tenants/{tenantId}/channels",
        "GET /apis/v1/tenants/{tenantId}/channels/{channelId}",
        "GET /apis/v1/tenants/{tenantId}/channels/{channelId}/routing",
        "GET /search/jsonpath",
        "GET /search/sparql",
        "POST /search/sparql",
        "GET /events",
        "GET /events/{type}",
        "GET /.well-known/wot",
        "POST /agents/{agent}/{subset}/actions/{action}",
        "GET /agents/{agent}/{subset}/properties/{property}",
        "PUT /agents/{agent}/{subset}/properties/{property}",
        "GET /agents/{agent}/{subset}/events/{event}",
        *(
            f"GET /agents/{{agent}}{subset}/.well-known/{document}"
            for subset in ("", "/{subset}")
            for document in ("wot", "agent-card.json", "agent.json", "capabilities.json")
        ),
    }
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    say = operations["POST /apis/v1/{tenantId}/chat/{conversationId}/message"]
    assert set(say["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "404", "409", "413", "415", "500", "502", "503", "504"} <= set(say["responses"])
    assert "422" not in text
    assert {one["name"] for one in say["parameters"] if one["required"]} == {
        "tenantId",
        "conversationId",
        "x-turn-id",
    }


# -- traces --


async def test_a_trace_goes_through_to_the_runtime(mesh: Mesh):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(mesh) as site:
        await site.client.post(
            site.path, json=message(), headers={"x-turn-id": "t1", "traceparent": parent}
        )

    assert site.mock.calls[0].headers["traceparent"] == parent


class Sink:
    """A real OTLP receiver over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        sink.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> "Sink":
        self.thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


async def test_a_recorded_request_is_a_span_and_the_response_says_which(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"x-turn-id": "t1", "traceparent": f"00-{trace}-{parent}-01"}
    with Sink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", sink.url)
        assert telemetry.configure("test", instance="i") == ""
        try:
            async with running(memory_mesh) as site:
                reply = await site.client.post(site.path, json=message(), headers=headers)
                await site.client.get("/apis/v1/nothing")
        finally:
            await asyncio.to_thread(telemetry.shutdown)

    spans = {one.name: one for one in sink.spans}
    ours = spans["POST /apis/v1/{tenantId}/chat/{conversationId}/message"]
    runtimes = spans["process lmos.{tenant}.runtime.converse"]
    assert reply.headers["traceparent"] == f"00-{trace}-{ours.span_id.hex()}-01"
    assert ours.trace_id.hex() == runtimes.trace_id.hex() == trace
    assert ours.parent_span_id.hex() == parent
    attributes = {one.key: one.value for one in ours.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert "GET" in spans
    assert "owe" not in str(sink.spans)


# -- the end --


async def test_what_was_begun_is_finished_before_leaving(mesh: Mesh):
    go_on = asyncio.Event()

    async def take_a_while(request: Converse, call: Call) -> Answer:
        await call.send("delta", "first ")
        await go_on.wait()
        return answered(request, "first second")

    async with (
        running(mesh, Mock(take_a_while)) as site,
        asyncio.TaskGroup() as tasks,
        site.stream() as response,
    ):
        told = events(response)
        await anext(told)
        leaving = tasks.create_task(site.adapter.leave())
        await asyncio.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            await site.client.get("/healthz")
        assert not leaving.done()

        go_on.set()
        rest = [event async for event in told]

    assert rest[-1][0] == "end"
    assert leaving.done()


async def test_what_takes_too_long_is_broken_off_with_an_error(mesh: Mesh):
    async def never_end(request: Converse, call: Call) -> Answer:
        await call.send("delta", "first ")
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        running(mesh, Mock(never_end), drain_timeout_s=1.0) as site,
        site.stream() as response,
        asyncio.TaskGroup() as tasks,
    ):
        told = events(response)
        await anext(told)
        tasks.create_task(site.adapter.leave())
        rest = [event async for event in told]

    assert rest == [
        ("error", {"errorCode": "UNAVAILABLE", "message": "this adapter is stopping (ask again)"})
    ]
    assert site.mock.cancelled.is_set()


async def test_it_is_found_by_the_nats_tools_with_its_address(mesh: Mesh):
    async with running(mesh) as site, mesh.bus() as bus:
        packet = await bus.transport.request("$SRV.INFO.lmos-http", b"", timeout_s=2.0)

    assert json.loads(packet.payload)["metadata"]["url"] == site.adapter.url
