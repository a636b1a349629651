"""The HTTP adapter in front of the real registry, router, runtime and agents."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.context import Context
from lmos_mesh.hosting import AgentHost, AgentSettings
from lmos_mesh.service import Service
from lmos_mesh_http import HttpAdapter, HttpSettings
from lmos_mesh_registry import Registry, RegistrySettings
from lmos_mesh_router import Router, RouterSettings
from lmos_mesh_runtime import Runtime, RuntimeSettings
from tests.conftest import NatsMesh

PATIENCE_S = 20.0


def agents() -> list[Agent]:
    billing = Agent("billing", description="Answers questions about bills and payments.")

    @billing.capability(examples=["show my bill", "how much do I owe?"])
    async def view_bill(question: str, context: Context) -> Any:
        """Show a customer's latest bill."""
        if "broken" in question:
            raise ZeroDivisionError
        said = [one.content for one in context.history if one.role == "user"]
        await context.say("Your bill is 39.99 €.")
        for one in said:
            await context.say(f" Before, you said: {one}.")

    slow = Agent("slow", description="Takes its time with puzzles.")

    @slow.capability(examples=["solve this puzzle"])
    async def ponder(question: str, context: Context) -> Any:
        """Ponder a puzzle for ever."""
        await context.say("Hm")
        pondering.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            pondering.cancelled.set()

    return [billing, slow]


class _Pondering:
    begun: asyncio.Event
    cancelled: asyncio.Event


pondering = _Pondering()


class Front:
    """The adapter's clients."""

    def __init__(self, url: str, tenant: str) -> None:
        self.url = url
        self.tenant = tenant
        self.http = httpx.AsyncClient(
            base_url=f"{url}/apis/v1", timeout=PATIENCE_S, headers={"x-turn-id": "t1"}
        )
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def say(self, text: str, turn: str = "t1", **more: Any) -> httpx.Response:
        body = {"inputContext": {"messages": [{"role": "user", "content": text}]} | more}
        path = f"/{self.tenant}/chat/c1/message"
        return await self.http.post(path, json=body, headers={"x-turn-id": turn})


@asynccontextmanager
async def whole(mesh: NatsMesh) -> AsyncGenerator[Front]:
    """All processes of a mesh, here in one, while the block lasts."""
    pondering.begun, pondering.cancelled = asyncio.Event(), asyncio.Event()
    tenant = mesh.tenant
    adapter = HttpAdapter(HttpSettings(http_port=0, tenant=tenant))
    services: list[Service] = [
        Registry(RegistrySettings(tenant=tenant)),
        Router(RouterSettings(tenant=tenant)),
        Runtime(RuntimeSettings(tenant=tenant)),
        AgentHost(agents(), AgentSettings(tenant=tenant)),
        adapter,
    ]
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(mesh.bus()) for _ in services]
        async with asyncio.TaskGroup() as tasks:
            running = [
                await start(tasks, service, bus)
                for service, bus in zip(services, buses, strict=True)
            ]
            front = Front(adapter.url, tenant)
            try:
                async with front.http, front.openai:
                    await until_routable(front)
                    yield front
            finally:
                for task in running:
                    task.cancel()


async def start(tasks: asyncio.TaskGroup, service: Service, bus: Bus) -> asyncio.Task[None]:
    ready = asyncio.Event()
    task = tasks.create_task(service.run(bus, ready.set))
    async with asyncio.timeout(PATIENCE_S):
        await ready.wait()
    return task


async def until_routable(front: Front) -> None:
    for _ in range(100):
        answer = await front.openai.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "show my bill"}], stream=False
        )
        if answer.model == "billing":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the router does not know the agents")


async def test_a_conversation_over_rest_is_kept_read_and_erased(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        first = await front.say("show my bill", "t1")
        again = await front.say("show my bill", "t1")
        second = await front.say("how much do I owe?", "t2")
        path = f"/{front.tenant}/chat/c1"
        kept = (await front.http.get(path)).json()
        erased = await front.http.delete(path)
        gone = await front.http.get(path)

    assert first.json() == {"content": "Your bill is 39.99 €.", "anonymizationEntities": []}
    assert again.json() == first.json()
    assert "Before, you said: show my bill." in second.json()["content"]
    assert [turn["turnId"] for turn in kept["turns"]] == ["t1", "t2"]
    assert {turn["state"] for turn in kept["turns"]} == {"done"}
    assert erased.status_code == 204
    assert gone.status_code == 404


async def test_a_running_turn_is_called_off(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(front.say("solve", "t9", explicitAgent="slow"))
        async with asyncio.timeout(5.0):
            await pondering.begun.wait()
        path = f"/{front.tenant}/chat/c1/message/t9"
        cancelled = await front.http.delete(path)
        again = await front.http.delete(path)
        reply = await waiting
        async with asyncio.timeout(5.0):
            await pondering.cancelled.wait()

    assert cancelled.status_code == 204
    assert again.status_code in (204, 404)
    assert reply.status_code == 409
    assert reply.json()["errorCode"] == "CANCELLED"


async def test_a_client_that_leaves_stops_the_agent(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        stream = await front.openai.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "solve"}], stream=True
        )
        first = await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(5.0):
            await pondering.cancelled.wait()

    assert first.model == "slow"


async def test_the_official_client_keeps_its_own_history(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        stream = await front.openai.chat.completions.create(
            model="auto",
            messages=[
                {"role": "user", "content": "I moved house"},
                {"role": "assistant", "content": "Noted"},
                {"role": "user", "content": "show my bill"},
            ],
            stream=True,
        )
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(words) == "Your bill is 39.99 €. Before, you said: I moved house."


async def test_an_unknown_agent_is_not_found_on_both_surfaces(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        rest = await front.say("hi", "t3", explicitAgent="biling")
        with pytest.raises(openai.NotFoundError, match="billing") as caught:
            await front.openai.chat.completions.create(
                model="biling", messages=[{"role": "user", "content": "hi"}], stream=False
            )

    assert rest.status_code == 404
    assert rest.json()["errorCode"] == "AGENT_NOT_FOUND"
    assert "billing" in rest.json()["message"]
    assert caught.value.code == "model_not_found"


async def test_an_agent_that_fails_is_told_and_not_repeated(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        reply = await front.say("broken", "t4", explicitAgent="billing")

    assert reply.status_code == 500
    assert reply.json()["errorCode"] == "AGENT_CLIENT_EXCEPTION"


async def test_the_mesh_is_ready_and_lists_its_agents(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        ready = await front.http.get(f"{front.url}/readyz")
        models = [one.id async for one in front.openai.models.list()]
        listed = (await front.http.get(f"/agents/{front.tenant}/web")).json()

    assert ready.status_code == 200
    assert models == ["auto", "billing", "slow"]
    assert [one["name"] for one in listed] == ["billing", "slow"]
    assert listed[0]["addresses"][0]["protocol"] == "nats"


async def test_what_nobody_can_do_is_asked_back_as_a_normal_answer(nats_mesh: NatsMesh):
    async with whole(nats_mesh) as front:
        reply = await front.say("xylophone quokka zeppelin", "t5")

    assert reply.status_code == 200
    assert "billing" in reply.json()["content"] or "slow" in reply.json()["content"]
