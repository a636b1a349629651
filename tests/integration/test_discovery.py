"""Agents that find each other, follow who comes and goes, and have properties and events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from lmos_mesh import subjects, watching
from lmos_mesh.agent import Agent
from lmos_mesh.errors import InvalidMessage, LoopDetected, MeshError, NotFound
from lmos_mesh.hosting import AgentHost
from lmos_mesh.mesh import Mesh
from lmos_mesh.watching import Change, Watch
from tests.conftest import StartServer
from tests.integration.processes import Deployment, Process, plain_client, until

EXAMPLES = Path(__file__).parents[2] / "examples"
SOON_S = 10.0

SHOP = '''
import os
from pydantic import BaseModel
from lmos_mesh import Agent, Context

version = os.environ.get("SHOP_VERSION", "1.0.0")
agent = Agent("shop", description="Gives money back to customers.", version=version)

class Hours(BaseModel):
    opens: int = 9
    closes: int = 17

class Refund(BaseModel):
    order: str
    amount: float

hours = Hours()
refunded = agent.event("refunded", data=Refund, description="Money went back.")

@agent.capability(examples=["I want my money back", "refund my order"], tags=["money", "orders"])
async def refund(question: str, context: Context) -> str:
    """Refund an order."""
    await context.emit(refunded, Refund(order=question, amount=1.5))
    return f"Refunded: {question}"

@agent.property
def opening_hours() -> Hours:
    """When somebody is there."""
    return hours

@opening_hours.writer
def set_opening_hours(value: Hours) -> None:
    global hours
    hours = value

@agent.property
async def orders() -> int:
    return 7

agent.run()
'''

SEEKER = '''
from lmos_mesh import Agent, Context

agent = Agent("seeker", description="Looks for others and asks them.")

@agent.capability(id="find_by")
async def find_by(context: Context, text: str | None = None, conditions: dict = {}) -> list[str]:
    return [one.name for one in await context.mesh.find(text, **conditions)]

@agent.capability(id="pass_on")
async def pass_on(question: str, context: Context) -> str:
    """Hand a question to whoever can refund."""
    found = await context.mesh.find("somebody who can refund my order", capability="refund")
    answer = await context.mesh.ask(question, agent=found[0])
    return f"{answer.agent} says: {answer.answer}"

@agent.capability(id="ask_myself")
async def ask_myself(question: str, context: Context) -> str:
    """Never come to an end."""
    return (await context.mesh.ask(question, agent="mirror", store=False)).answer

@agent.capability(id="wait_for")
async def wait_for(name: str, context: Context) -> list[str]:
    """Tell what happens until somebody joins."""
    told = []
    async with context.mesh.watch() as changes:
        async for change in changes:
            told.append(f"{change.kind} {change.thing.name}")
            if change.thing.name == name:
                return told

mirror = Agent("mirror", description="Asks itself.")

@mirror.capability
async def reflect(question: str, context: Context) -> str:
    return (await context.mesh.ask(question, agent="mirror", store=False)).answer

from lmos_mesh import run_agents
run_agents([agent, mirror])
'''


class Follower:
    """Follows a watch and notes what it tells, and when."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.told: list[tuple[float, Change]] = []
        self._more = asyncio.Event()

    async def follow(self) -> None:
        async for change in self._watch:
            self.told.append((time.time(), change))
            self._more.set()

    async def until(self, kind: str, name: str, within_s: float = SOON_S) -> tuple[float, Change]:
        """When that is told, and what."""
        async with asyncio.timeout(within_s):
            while True:
                for at, change in self.told:
                    if (change.kind, change.thing.name) == (kind, name):
                        self.told.clear()
                        return at, change
                self._more.clear()
                await self._more.wait()

    def kinds(self) -> list[tuple[str, str]]:
        return [(change.kind, change.thing.name) for _, change in self.told]


@asynccontextmanager
async def following(mesh: Mesh, *text: str, **conditions: Any) -> AsyncGenerator[Follower]:
    async with mesh.watch(*text, **conditions) as watch, asyncio.TaskGroup() as tasks:
        follower = Follower(watch)
        tasks.create_task(follower.follow())
        try:
            yield follower
        finally:
            watch.close()


async def invoke(mesh: Mesh, capability: str, **given: Any) -> Any:
    return await mesh.invoke("seeker", capability, given, timeout_s=SOON_S)


async def end(*processes: Process) -> None:
    for one in processes:
        one.terminate()
    for one in processes:
        assert await one.ended() == 0


# -- following who fits --


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that does not ask again of itself: what it knows it was told."""
    monkeypatch.setattr(watching, "_REFRESH_S", 60.0)


@pytest.mark.usefixtures("only_told")
async def test_joins_and_losses_are_seen_at_once(services: Deployment, tenant: str) -> None:
    joined: list[float] = []
    left: list[float] = []
    async with services.client(tenant) as mesh, following(mesh, capability="act") as follower:
        for number in range(7):
            agent = Agent(f"agent-{number}", description="Comes and goes.")

            @agent.capability
            async def act(question: str) -> str:  # pyright: ignore[reportUnusedFunction]
                return question

            async with services.client(tenant) as own:
                ready = asyncio.Event()
                own.bus.spawn(AgentHost([agent]).run(own.bus, ready.set))
                await ready.wait()
                came = time.time()
                at, _ = await follower.until("joined", agent.name)
                joined.append(at - came)
                gone = time.time()
            at, _ = await follower.until("left", agent.name)
            left.append(at - gone)

    print(f"joined after {median(joined) * 1000:.0f} ms, left after {median(left) * 1000:.0f} ms")


@pytest.mark.usefixtures("only_told")
async def test_a_watch_is_told_of_a_join_a_new_version_and_a_death(
    services: Deployment, tenant: str
) -> None:
    async with (
        services.client(tenant) as mesh,
        following(mesh, capability="refund") as follower,
        following(mesh, capability="refund", version=">=2") as newer,
    ):

        async def start(**env: str) -> Process:
            env["LMOS_TENANT"] = tenant
            return await services.start_agent(SHOP, name="shop", **env).ready()

        first = await start()
        _, change = await follower.until("joined", "shop")
        assert change.thing.live
        assert change.before is None

        second = await start(SHOP_VERSION="2.1.0")
        _, change = await newer.until("joined", "shop")
        assert change.thing.version == "2.1.0"
        _, change = await follower.until("changed", "shop")
        assert change.before is not None

        first.kill()
        _, change = await follower.until("changed", "shop")
        while [one.instance for one in change.thing.instances] != [second.instance]:
            _, change = await follower.until("changed", "shop")

        second.kill()
        await follower.until("left", "shop")
        await newer.until("left", "shop")


async def test_a_watch_says_nothing_about_load_and_other_tenants(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(SHOP, name="shop", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh, following(mesh) as follower:
        await follower.until("joined", "shop")
        other = await services.start_agent(
            SHOP, name="other", LMOS_TENANT=f"{tenant}-other"
        ).ready()
        for number in range(20):
            await mesh.invoke("shop", "refund", {"question": str(number)})
        await asyncio.sleep(3.0)  # several renewals of the lease
        assert follower.kinds() == []
    await end(process, other)


async def test_a_watch_outlives_the_registry(start_nats: StartServer, tmp_path: Path) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        registry = deployment.service("registry")
        deployment.agent(SHOP, name="shop")
        async with deployment.client() as mesh, following(mesh) as follower:
            await follower.until("joined", "shop")
            registry.kill()
            seeker = deployment.start_agent(SEEKER, name="seeker")
            await asyncio.sleep(0.5)
            assert follower.kinds() == []

            await deployment.start("registry").ready()
            await follower.until("joined", "seeker", within_s=15)
            assert ("left", "shop") not in follower.kinds()
            await seeker.logged("is ready")
    finally:
        deployment.stop()


async def test_a_watch_outlives_the_server(start_nats: StartServer, tmp_path: Path) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        deployment.service("registry")
        deployment.agent(SHOP, name="shop")
        async with deployment.client() as mesh, following(mesh) as follower:
            await follower.until("joined", "shop")

            await server.kill()
            await asyncio.sleep(0.5)
            await server.start()

            seeker = await deployment.start_agent(SEEKER, name="seeker").ready()
            await follower.until("joined", "seeker", within_s=20)
            await asyncio.sleep(4.0)
            assert ("left", "shop") not in follower.kinds()
            seeker.kill()
            await follower.until("left", "seeker", within_s=10)
    finally:
        deployment.stop()


# -- from inside an agent --


@pytest.fixture
async def two(services: Deployment, tenant: str) -> AsyncGenerator[Mesh]:
    """A shop and somebody who looks for it."""
    processes = [
        services.agent(source, name=name, LMOS_TENANT=tenant)
        for source, name in ((SHOP, "shop"), (SEEKER, "seeker"))
    ]
    async with services.client(tenant) as mesh:
        yield mesh
    await end(*processes)


@pytest.mark.parametrize(
    ("text", "conditions", "expected"),
    [
        (None, {"capability": "refund"}, ["shop"]),
        (None, {"capability": "refund", "version": ">=1 <2"}, ["shop"]),
        (None, {"capability": "refund", "version": ">=1.2"}, []),
        (None, {"tags": ["money", "orders"]}, ["shop"]),
        (None, {"tags": ["money", "boats"]}, []),
        (None, {"name": "seeker", "kind": "agent"}, ["seeker"]),
    ],
)
async def test_an_agent_finds_others(
    two: Mesh, text: str | None, conditions: dict[str, Any], expected: list[str]
) -> None:
    assert await invoke(two, "find_by", text=text, conditions=conditions) == expected


async def test_an_agent_finds_others_by_what_they_can_do_in_its_own_words(two: Mesh) -> None:
    async def is_first() -> bool:
        found = await invoke(two, "find_by", text="I want my money back for an order")
        return found[:1] == ["shop"]

    await until(is_first, within_s=SOON_S)


async def test_an_agent_asks_another_that_it_has_found(two: Mesh) -> None:
    said = await two.invoke("seeker", "pass_on", {"question": "order 12"}, timeout_s=SOON_S)
    assert said == "shop says: Refunded: order 12"


async def test_agents_that_ask_each_other_in_a_circle_are_stopped(two: Mesh) -> None:
    with pytest.raises(MeshError) as stopped:
        await two.invoke("seeker", "ask_myself", {"question": "who?"}, timeout_s=20)

    assert isinstance(stopped.value, LoopDetected), repr(stopped.value)


async def test_an_agent_that_waits_for_another_ends_with_its_caller(
    services: Deployment, two: Mesh, tenant: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(
            two.invoke("seeker", "wait_for", {"name": "late"}, timeout_s=20)
        )
        source = SHOP.replace('Agent("shop"', 'Agent("late"')
        late = await services.start_agent(source, name="late", LMOS_TENANT=tenant).ready()
        told = await waiting
    assert told[-1] == "joined late"
    assert sorted(told[:3]) == ["joined mirror", "joined seeker", "joined shop"]
    with pytest.raises(MeshError):
        await two.invoke("seeker", "wait_for", {"name": "never"}, timeout_s=0.5)
    found = (await two.find(name="seeker"))[0]
    await until(is_idle, two, found.instances[0].instance, within_s=SOON_S)
    await end(late)


async def is_idle(mesh: Mesh, instance: str) -> bool:
    reply = await mesh.bus.request(
        subjects.instance(mesh.bus.tenant, instance, "status"), b"{}", timeout_s=SOON_S
    )
    return json.loads(reply.payload)["in_flight"] == 0


async def test_the_concierge_finds_who_can_help_and_knows_who_is_here(
    services: Deployment, tenant: str
) -> None:
    processes = [
        services.agent(
            (EXAMPLES / f"{name}.py").read_text() + "\nagent.run()\n", name=name, LMOS_TENANT=tenant
        )
        for name in ("concierge", "billing")
    ]
    async with services.client(tenant) as mesh:

        async def knows_billing() -> bool:
            return await mesh.read("concierge", "guest_book") == {"billing": ["view bill"]}

        await until(knows_billing, within_s=SOON_S)
        given = {"question": "how much do I owe? show my bill"}
        said = await mesh.invoke("concierge", "find_help", given, timeout_s=SOON_S)
        assert said.startswith("I have asked billing: Your bill is")
    await end(*processes)


# -- properties and events, for those who know nothing of the library --


async def test_properties_are_read_and_written_over_plain_nats(
    services: Deployment, two: Mesh
) -> None:
    tenant = two.bus.tenant
    at = f"lmos.{tenant}.agent.shop.stable.property"
    async with plain_client(services.url) as client:

        async def ask(subject: str, payload: bytes = b"") -> Any:
            reply = await client.request(f"{at}.{subject}", payload, timeout=SOON_S)
            return reply, json.loads(reply.data)

        assert (await ask("opening_hours.read"))[1] == {"opens": 9, "closes": 17}
        assert (await ask("opening_hours.write", b'{"opens": 10}'))[1] is None
        assert (await ask("opening_hours.read"))[1] == {"opens": 10, "closes": 17}
        assert (await ask("orders.read"))[1] == 7

        reply, problem = await ask("opening_hours.write", b'{"opens": "late", "closes": []}')
        assert reply.headers["Nats-Service-Error-Code"] == "400"
        assert [one["field"] for one in problem["faults"]] == ["/opens", "/closes"]
        reply, problem = await ask("orders.write", b"8")
        assert "read-only" in problem["detail"]
        reply, problem = await ask("order.read")
        assert reply.headers["Nats-Service-Error-Code"] == "404"
        assert problem["near"] == ["orders"]

    with pytest.raises(NotFound):
        await two.read("shop", "nothing")
    with pytest.raises(InvalidMessage):
        await two.write("shop", "orders", 1)


async def test_an_event_is_a_cloud_event_over_plain_nats(services: Deployment, two: Mesh) -> None:
    tenant = two.bus.tenant
    async with plain_client(services.url) as client:
        heard = await client.subscribe(f"lmos.{tenant}.event.shop.refunded")
        await client.flush()
        await two.invoke("shop", "refund", {"question": "order 9"})
        message = await heard.next_msg(timeout=SOON_S)

    assert json.loads(message.data) == {"order": "order 9", "amount": 1.5}
    headers = message.headers
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-type"] == "lmos.agent.refunded"
    assert headers["ce-source"] == f"urn:lmos-mesh:{tenant}:shop:stable"
    assert {"ce-id", "ce-time", "ce-subject"} <= headers.keys()


async def test_the_description_says_how_they_are_reached(two: Mesh) -> None:
    found = (await two.find(name="shop", descriptions=True))[0].description
    assert found is not None
    assert found["properties"]["orders"]["readOnly"]
    hrefs = json.dumps([found["properties"], found["events"]])
    tenant = two.bus.tenant
    for subject in (
        f"nats:lmos.{tenant}.agent.shop.stable.property.opening_hours.read",
        f"nats:lmos.{tenant}.agent.shop.stable.property.opening_hours.write",
        f"nats:lmos.{tenant}.event.shop.refunded",
    ):
        assert subject in hrefs


async def test_they_are_seen_by_the_nats_tools(services: Deployment, two: Mesh) -> None:
    await two.read("shop", "orders")
    found = (await two.find(name="shop"))[0]
    async with plain_client(services.url) as client:
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish("$SRV.STATS.agents", b"", reply=inbox)
        while True:
            stats = json.loads((await replies.next_msg(timeout=SOON_S)).data)
            if found.instances[0].instance == stats["metadata"]["lmos_instance"]:
                break
    counted = {one["name"]: one["num_requests"] for one in stats["endpoints"]}
    assert counted["property-orders-read"] == 1
    assert counted["property-opening_hours-write"] == 0


def test_an_agent_with_bad_interactions_is_refused_with_every_fault(services: Deployment) -> None:
    source = """
    import threading
    from lmos_mesh import Agent

    agent = Agent("bad")
    agent.event(" ")

    @agent.property
    def lock() -> threading.Event: ...

    @agent.property
    def needs(something: str) -> int: ...

    agent.run()
    """
    process = services.start_agent(source, name="bad")
    process.told_to_end = True
    process.expected = "bad"

    assert process.wait(20) == 1

    said = process.log().splitlines()[-1]
    for part in ("/events/0/name", "/properties/0: has a type", "/properties/1: its function"):
        assert part in said
    assert "Traceback" not in process.log()
