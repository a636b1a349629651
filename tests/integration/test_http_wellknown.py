"""Agents of the mesh over HTTP: their documents, and their actions, properties and events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from lmos_mesh.agent import Agent
from lmos_mesh.context import Context
from lmos_mesh.schemas.thing_description import td_faults
from tests.conftest import NatsMesh
from tests.integration.test_http_things import (
    PATIENCE_S,
    Directory,
    directory,
    lamp,
    until_lent,
)

SSE = {"accept": "text/event-stream"}


class Desk:
    """An agent with everything that an agent can have, and what tests look at in it."""

    def __init__(self, name: str = "desk", subset: str = "stable") -> None:
        self.hours = "9 to 5"
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.agent = agent = Agent(name, subset=subset, description="A desk that answers.")
        self.rang = agent.event("rang", data=dict[str, int], description="Somebody rings.")

        @agent.property
        def opening_hours() -> str:
            """When it is open."""
            return self.hours

        @opening_hours.writer
        def set_opening_hours(value: str) -> None:  # pyright: ignore[reportUnusedFunction]
            self.hours = value

        @agent.property
        def visitors() -> int:  # pyright: ignore[reportUnusedFunction]
            """How many have come."""
            return 7

        @agent.capability(examples=["add two numbers"])
        async def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
            """Add two numbers."""
            return a + b

        @agent.capability(examples=["forget it"])
        async def forget() -> None:  # pyright: ignore[reportUnusedFunction]
            """Forget what was said."""

        @agent.capability(examples=["tell a story"])
        async def story(topic: str, context: Context) -> Any:  # pyright: ignore[reportUnusedFunction]
            """Tell a story."""
            if topic == "broken":
                raise ZeroDivisionError
            await context.say("Once ")
            if topic == "endless":
                self.begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            await context.say(f"there was a {topic}.")


@asynccontextmanager
async def desk(
    mesh: NatsMesh, *more: Agent, name: str = "desk"
) -> AsyncGenerator[tuple[Directory, Desk]]:
    one = Desk(name)
    async with directory(mesh, one.agent, *more) as tdd:
        yield tdd, one


async def act(tdd: Directory, action: str, given: Any, **headers: str) -> httpx.Response:
    return await tdd.post(f"/agents/desk/stable/actions/{action}", json=given, headers=headers)


# -- documents --


@pytest.mark.parametrize("where", ["/agents/desk", "/agents/desk/stable"])
async def test_an_agent_has_a_document_in_each_vocabulary(nats_mesh: NatsMesh, where: str):
    async with desk(nats_mesh) as (tdd, _):
        await until_lent(tdd, "desk")
        found = {
            name: await tdd.get(f"{where}/.well-known/{name}")
            for name in ("wot", "agent-card.json", "agent.json", "capabilities.json")
        }
        head = await tdd.head(f"{where}/.well-known/wot")

    assert {reply.status_code for reply in found.values()} == {200}
    td = found["wot"].json()
    assert found["wot"].headers["content-type"] == "application/td+json"
    assert head.headers["content-length"] == str(len(found["wot"].content))
    assert not td_faults(td).listed()
    assert "registration" not in td
    url = f"{tdd.adapter.url}/agents/desk/stable"
    assert url in json.dumps(td)
    assert found["agent-card.json"].json()["supportedInterfaces"][0]["url"].startswith(url)
    assert found["agent.json"].json()["url"].startswith(url)
    ids = {one["id"] for one in found["capabilities.json"].json()["capabilities"]}
    assert ids == {"add", "forget", "story"}


async def test_an_agent_that_is_not_there_is_a_problem_everywhere(nats_mesh: NatsMesh):
    async with desk(nats_mesh) as (tdd, _):
        replies = [
            await tdd.get("/agents/dusk/.well-known/wot"),
            await tdd.get("/agents/desk/canary/.well-known/agent.json"),
            await tdd.post("/agents/dusk/stable/actions/add", json={}),
            await tdd.get("/agents/dusk/stable/properties/visitors"),
            await tdd.get("/agents/dusk/stable/events/rang"),
            await tdd.get("/agents/desk/stable/events/rung"),
            await tdd.get("/agents/desk/stable/properties/visitor"),
            await act(tdd, "subtract", {}),
        ]

    for reply in replies:
        assert reply.status_code == 404, reply.text
        assert reply.headers["content-type"] == "application/problem+json"
    assert "desk" in replies[0].json()["hint"]


async def test_names_with_slashes_and_percent_signs_are_names(nats_mesh: NatsMesh):
    name = "front/desk 100%2F"
    async with desk(nats_mesh, name=name) as (tdd, _):
        td = await until_lent(tdd, name)
        form = next(
            form
            for form in td["actions"]["add"]["forms"]
            if form["href"].startswith(tdd.adapter.url)
        )
        added = await tdd.post(form["href"], json={"a": 1, "b": 2})
        own = await tdd.get("/agents/front%2Fdesk%20100%252F/.well-known/wot")

    assert added.json() == 3
    assert own.json()["title"] == name


# -- actions --


async def test_an_action_takes_its_input_and_gives_its_output(nats_mesh: NatsMesh):
    async with desk(nats_mesh) as (tdd, _):
        added = await act(tdd, "add", {"a": 1, "b": 2})
        nothing = await tdd.post("/agents/desk/stable/actions/forget")
        wrong = await act(tdd, "add", {"a": "one"})
        failed = await act(tdd, "story", {"topic": "broken"})
        no_json = await tdd.post("/agents/desk/stable/actions/add", content=b"a=1")

    assert (added.status_code, added.json()) == (200, 3)
    assert added.headers["content-type"] == "application/json"
    assert (nothing.status_code, nothing.json()) == (200, "")
    assert wrong.status_code == 400
    assert {one["field"] for one in wrong.json()["validationErrors"]} == {"/a", "/b"}
    assert failed.status_code == 500
    assert failed.json()["code"] == "agent-failed"
    assert no_json.status_code == 415


async def test_an_action_can_be_followed_as_it_goes(nats_mesh: NatsMesh):
    async with desk(nats_mesh) as (tdd, _):
        told = await act(tdd, "story", {"topic": "cat"}, **SSE)
        failed = await act(tdd, "story", {"topic": "broken"}, **SSE)

    events = list(events_in(told.text))
    assert told.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events] == ["delta", "delta", "end"]
    assert "".join(data for name, data in events if name == "delta") == "Once there was a cat."
    # Nothing was told before it failed.
    assert failed.status_code == 500


def events_in(text: str) -> list[tuple[str, Any]]:
    events: list[tuple[str, Any]] = []
    for block in text.split("\n\n"):
        members = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in members:
            events.append((members["event"], json.loads(members["data"])))
    return events


async def test_whoever_leaves_calls_the_work_off(nats_mesh: NatsMesh):
    async with desk(nats_mesh) as (tdd, one):
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(act(tdd, "story", {"topic": "endless"}))
            async with asyncio.timeout(PATIENCE_S):
                await one.begun.wait()
            waiting.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await one.cancelled.wait()


async def test_an_agent_of_another_vendor_is_not_spoken_for(nats_mesh: NatsMesh):
    async with desk(nats_mesh) as (tdd, _):
        await tdd.put("urn:x", lamp("urn:x"))
        reply = await tdd.get("/agents/urn%3Ax/stable/properties/on")
        own = await tdd.get("/agents/urn%3Ax/.well-known/wot")

    assert reply.status_code == 404
    assert "forms" in reply.json()["hint"]
    assert own.json() == lamp("urn:x")


# -- properties --


async def test_a_property_is_read_and_written(nats_mesh: NatsMesh):
    where = "/agents/desk/stable/properties/opening_hours"
    async with desk(nats_mesh) as (tdd, one):
        before = await tdd.get(where)
        number = await tdd.get("/agents/desk/stable/properties/visitors")
        head = await tdd.head(where)
        written = await tdd.client.put(where, json="10 to 4")
        after = await tdd.get(where)
        wrong = await tdd.client.put(where, json=5)
        empty = await tdd.client.put(where, headers={"content-type": "application/json"})
        read_only = await tdd.client.put("/agents/desk/stable/properties/visitors", json=8)

    assert (before.json(), number.json(), after.json()) == ("9 to 5", 7, "10 to 4")
    assert head.headers["content-length"] == str(len(before.content))
    assert (written.status_code, written.content) == (204, b"")
    assert one.hours == "10 to 4"
    assert (wrong.status_code, empty.status_code, read_only.status_code) == (400, 400, 400)


# -- events --


async def test_an_event_is_heard_as_it_is_told(nats_mesh: NatsMesh):
    canary = Desk(subset="canary")
    async with (
        desk(nats_mesh, canary.agent) as (tdd, one),
        tdd.client.stream("GET", "/agents/desk/stable/events/rang") as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == ": open"
        await canary.agent.emit(canary.rang, {"times": 1})
        await one.agent.emit(one.rang, {"times": 3})
        heard = await until_data(lines)

    assert response.headers["content-type"].startswith("text/event-stream")
    # What the canary told is not the stable one's to tell.
    assert heard == {"times": 3}


async def until_data(lines: AsyncIterator[str]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        async for line in lines:
            if line.startswith("data: "):
                return json.loads(line.removeprefix("data: "))
    raise AssertionError("the events ended")
