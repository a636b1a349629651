"""Agents for several tenants, as deployed: asked by each in its own name, and by nobody else."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from lmos_mesh import calls, codec, subjects
from lmos_mesh.errors import AgentNotFound, Cancelled, ThingNotFound, Unavailable
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    DECIDE,
    DEREGISTER,
    FIND_THINGS,
    GET_THING,
    Answer,
    CancelTurn,
    Converse,
    Decide,
    Decision,
    Deregister,
    FindThings,
    GetThing,
    Utterance,
)
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.things import ThingKey
from lmos_mesh.wiring import host_of
from lmos_mesh_http import HttpAdapter, HttpSettings
from tests.conftest import new_name
from tests.integration.processes import Deployment, until

SOON_S = 5.0
PATIENCE_S = 20.0
TURN_S = 0.75
A, B, C = "several-a", "several-b", "several-c"
BILL, RAIN, JAZZ = "show my bill", "will it rain tomorrow?", "play some jazz"

SHARED = f'''
import asyncio, logging
from lmos_mesh import Agent, Context, run_agents

billing = Agent("billing", description="Answers questions about bills.", tenants=("{A}", "{B}"))

@billing.capability(examples=["show my bill", "how much do I owe?", "why is my bill so high?"])
async def view_bill(question: str, context: Context):
    """View a bill."""
    logging.getLogger("billing").info("asked by %s for %s", context.tenant, context.user)
    yield "Your bill "
    try:
        await asyncio.sleep(float(context.user or 0))
    except asyncio.CancelledError:
        print('{{"level": "info", "event": "called off by %s"}}' % context.tenant, flush=True)
        raise
    yield f"of {{context.tenant}}."

@billing.capability
async def look_around(question: str, context: Context) -> str:
    return " ".join(sorted(one.name for one in await context.mesh.find()))

@billing.capability
async def ask_on(question: str, context: Context) -> str:
    return (await context.ask("{JAZZ}", agent="music")).answer

@billing.capability(examples=["take me to the desk please"])
async def pass_on(question: str, context: Context) -> str:
    context.hand_over(to="desk")

@billing.capability
async def use(question: str, context: Context) -> str:
    return await context.mesh.invoke("weather", "forecast", {{"question": question}})

@billing.property
def open_now(context: Context) -> str:
    return context.tenant

only_a = Agent("weather", description="Tells the weather.", tenants=("{A}",))

@only_a.capability(examples=["will it rain tomorrow?", "do I need an umbrella?"])
async def forecast(question: str, context: Context) -> str:
    """Forecast."""
    return f"It will rain in {{context.tenant}}."

run_agents([billing, only_a])
'''

OWN = '''
from lmos_mesh import Agent, Context, run_agents

music = Agent("music", description="Plays songs.")

@music.capability(examples=["play some jazz", "play my favourite song", "skip this song"])
async def play(question: str, context: Context) -> str:
    """Play music."""
    return f"Playing for {context.tenant}."

desk = Agent("desk", description="Receives people.", channels=("office",))

@desk.capability
async def receive(question: str, context: Context) -> str:
    if question.startswith("to "):
        context.hand_over(to=question.removeprefix("to "), message="show my bill")
    if question.startswith("can "):
        context.hand_over(capability=question.removeprefix("can "), message="show my bill")
    return f"Welcome to {context.tenant}, after {context.handovers}."

run_agents([music, desk])
'''


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[Deployment]:
    """Shared agents for A and B, one of them for A only; and A has agents of its own."""
    running = [
        services.start_agent(SHARED, name="shared", LMOS_TENANT="shared"),
        services.start_agent(OWN, name="own", LMOS_TENANT=A),
    ]
    for one in running:
        one.wait_ready()
    yield services
    for one in running:
        if one.alive:
            one.terminate()
            one.wait()


@pytest.fixture
async def a(town: Deployment) -> AsyncGenerator[Mesh]:
    async with town.client(A) as mesh:
        await until(routes, mesh, {BILL: "billing", RAIN: "weather", JAZZ: "music"})
        yield mesh


@pytest.fixture
async def b(town: Deployment) -> AsyncGenerator[Mesh]:
    async with town.client(B) as mesh:
        await until(routes, mesh, {BILL: "billing"})
        yield mesh


@pytest.fixture
async def c(town: Deployment) -> AsyncGenerator[Mesh]:
    async with town.client(C) as mesh:
        yield mesh


async def decided(mesh: Mesh, message: str, **more: Any) -> Decision:
    return await mesh.bus.call(DECIDE, Decide(message=message, **more))


async def routes(mesh: Mesh, wanted: dict[str, str]) -> bool:
    return {said: (await decided(mesh, said)).agent for said in wanted} == wanted


async def ask(mesh: Mesh, message: str, **more: Any) -> Answer:
    return await mesh.bus.call(CONVERSE, Converse(message=message, **more), timeout_s=PATIENCE_S)


async def names(mesh: Mesh) -> dict[str, str]:
    found = (await mesh.bus.call(FIND_THINGS, FindThings(kind="agent"))).things
    return {one.name: one.tenant for one in found}


async def invoked(mesh: Mesh, capability: str) -> Any:
    return await mesh.invoke("billing", capability, {"question": "?"})


# -- each in its own name --


async def test_a_shared_agent_answers_each_tenant_as_its_own(a: Mesh, b: Mesh) -> None:
    answers = await ask(a, BILL), await ask(b, BILL)

    assert [one.answer for one in answers] == [f"Your bill of {A}.", f"Your bill of {B}."]
    assert {one.agent for one in answers} == {"billing"}


async def test_it_is_asked_by_name_too(b: Mesh) -> None:
    assert (await ask(b, BILL, agent="billing")).answer == f"Your bill of {B}."


async def test_a_follow_up_stays_with_it(a: Mesh) -> None:
    history = (
        Utterance(role="user", content=BILL),
        Utterance(role="assistant", content="39.99 €", agent="billing"),
    )

    assert (await decided(a, "and why?", history=history)).agent == "billing"


async def test_a_message_of_two_requests_is_for_a_shared_and_an_own_agent(a: Mesh) -> None:
    answer = await ask(a, f"{BILL} and {JAZZ}")

    assert [(one.agent, one.answer) for one in answer.parts] == [
        ("billing", f"Your bill of {A}."),
        ("music", f"Playing for {A}."),
    ]


async def test_what_it_asks_of_others_it_asks_in_the_name_of_who_asks(a: Mesh, b: Mesh) -> None:
    assert await invoked(a, "ask_on") == f"Playing for {A}."
    with pytest.raises(AgentNotFound):  # music is of A alone
        await invoked(b, "ask_on")


async def test_it_finds_what_the_tenant_has_that_asks(a: Mesh, b: Mesh) -> None:
    assert await invoked(a, "look_around") == "billing desk music weather"
    assert await invoked(b, "look_around") == "billing"


async def test_it_invokes_what_the_tenant_means_that_asks(a: Mesh, b: Mesh) -> None:
    assert await invoked(a, "use") == f"It will rain in {A}."
    with pytest.raises(Unavailable):
        await invoked(b, "use")


async def test_its_properties_are_read_in_the_name_of_who_asks(a: Mesh, b: Mesh) -> None:
    assert [await one.read("billing", "open_now") for one in (a, b)] == [A, B]


async def test_a_hand_over_goes_there_and_back_within_a_tenant(a: Mesh) -> None:
    there = await ask(a, "to billing", agent="desk")
    able = await ask(a, "can view_bill", agent="desk")

    assert there.answer == able.answer == f"Your bill of {A}."
    assert there.handovers == ("desk",)


async def test_a_shared_agent_hands_over_to_an_own_one(a: Mesh) -> None:
    answer = await ask(a, "take me to the desk please", agent="billing")

    assert answer.answer == f"Welcome to {A}, after ('billing',)."


async def test_a_turn_is_called_off_at_a_shared_agent(town: Deployment, a: Mesh) -> None:
    shared = next(one for one in town.processes if one.name == "shared")
    conversation = new_name("c")

    async with a.converse(BILL, conversation=conversation, user="60") as frames:
        async for frame in frames:
            if frame.kind == "delta":
                break
        await a.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation))
        with pytest.raises(Cancelled):
            await anext(frames)

    await shared.logged(f"called off by {A}")


async def test_the_same_turn_of_two_tenants_is_two_turns(a: Mesh, b: Mesh) -> None:
    """Whatever ids they choose: these go with the request to one and the same agent."""
    same = {calls.MESSAGE_ID: new_name("task")}
    asked = Converse(message=BILL, conversation=new_name("c"), turn="t1")

    answers = [await one.bus.call(CONVERSE, asked, headers=same) for one in (a, b)]

    assert [one.answer for one in answers] == [f"Your bill of {A}.", f"Your bill of {B}."]


# -- and nobody else's --


async def test_a_tenant_that_it_does_not_support_never_reaches_it(b: Mesh, c: Mesh) -> None:
    assert (await decided(b, RAIN, threshold=0.0)).agent != "weather"
    assert (await decided(c, BILL, threshold=0.0)).outcome == "nobody"
    with pytest.raises(AgentNotFound, match="'weather' does not exist in 'several-b'"):
        await ask(b, RAIN, agent="weather")
    with pytest.raises(AgentNotFound, match="'billing' does not exist in 'several-c'"):
        await ask(c, BILL, agent="billing")


async def test_it_refuses_a_tenant_that_it_does_not_support(b: Mesh) -> None:
    subject = subjects.agent_invoke("shared", "weather", "stable", "forecast")

    with pytest.raises(AgentNotFound, match="does not serve tenant 'several-b'"):
        await b.bus.request(subject, codec.encode_value({}), headers={calls.TENANT: B})


async def test_an_own_agent_takes_no_other_tenants_name(a: Mesh) -> None:
    subject = subjects.agent_invoke(A, "music", "stable", "play")

    packet = await a.bus.request(
        subject, codec.encode_value({"question": JAZZ}), headers={calls.TENANT: B}
    )

    assert codec.decode_value(packet.payload) == f"Playing for {A}."


async def test_an_agent_of_one_tenant_is_never_reached_from_another(b: Mesh) -> None:
    assert (await decided(b, JAZZ, threshold=0.0)).agent != "music"
    with pytest.raises(AgentNotFound):
        await ask(b, JAZZ, agent="music")


# -- who is listed --


async def test_a_tenant_lists_the_shared_agents_that_are_for_it(a: Mesh, b: Mesh, c: Mesh) -> None:
    assert await names(a) == {"billing": "shared", "desk": A, "music": A, "weather": "shared"}
    assert await names(b) == {"billing": "shared"}
    assert await names(c) == {}
    found = await b.bus.call(GET_THING, GetThing(name="billing"))
    again = await b.bus.call(GET_THING, GetThing(id=found.id))
    assert (found.tenant, again.name) == ("shared", "billing")
    for id in ("urn:lmos-mesh:shared:weather:stable", f"urn:lmos-mesh:{A}:music:stable"):
        with pytest.raises(ThingNotFound):
            await b.bus.call(GET_THING, GetThing(id=id))


async def test_nobody_else_removes_a_shared_agent(b: Mesh) -> None:
    with pytest.raises(ThingNotFound):
        await b.bus.call(DEREGISTER, Deregister(name="billing"))
    with pytest.raises(ThingNotFound):
        await b.bus.call(DEREGISTER, Deregister(id="urn:lmos-mesh:shared:billing:stable"))


# -- closed channels --


async def close(mesh: Mesh, channel: str, wired: list[tuple[str, ThingKey]]) -> None:
    """Close a channel, as an operator would, and wait until both runtimes know."""
    metadata = {"name": f"{mesh.tenant}-{channel}"}
    metadata |= {"labels": {"tenant": mesh.tenant, "channel": channel}}
    groups = [
        {
            "name": key.name,
            "subset": key.subset,
            "capabilities": [
                {
                    "id": id,
                    "requiredVersion": "*",
                    "providedVersion": "1.0.0",
                    "host": host_of(key),
                }
            ],
        }
        for id, key in wired
    ]
    store = ResourceStore(mesh.bus)
    channel_of: dict[str, Any] = {"metadata": metadata, "spec": {"requiredCapabilities": []}}
    routing = {"metadata": metadata, "spec": {"capabilityGroups": groups}}
    await store.put(Channel.model_validate(channel_of), expected=0)
    await store.put(ChannelRouting.model_validate(routing), expected=0)

    async def is_known() -> bool:
        try:
            await ask(mesh, "?", agent="nobody", channel=channel)
        except AgentNotFound as error:
            return "channel" in error.details or "does not exist" in error.message
        return False

    for _ in range(2):
        await until(is_known)


async def test_a_closed_channel_reaches_the_shared_agents_of_its_routing(a: Mesh) -> None:
    wired = [
        ("view_bill", ThingKey("shared", "billing", "stable")),
        ("receive", ThingKey(A, "desk", "stable")),
    ]
    await close(a, "office", wired)
    there: dict[str, Any] = {"channel": "office"}

    async def answers() -> bool:
        return (await ask(a, BILL, **there)).answer == f"Your bill of {A}."

    await until(answers)
    for said in ("to billing", "can view_bill"):
        assert (await ask(a, said, agent="desk", **there)).answer == f"Your bill of {A}."
    with pytest.raises(AgentNotFound, match="'weather' is none of channel 'office'"):
        await ask(a, "to weather", agent="desk", **there)


async def test_a_routing_opens_nothing_that_is_for_others(b: Mesh) -> None:
    """Whatever somebody writes into it."""
    wired = [
        ("view_bill", ThingKey("shared", "billing", "stable")),
        ("pass_on", ThingKey("shared", "billing", "stable")),
        ("forecast", ThingKey("shared", "weather", "stable")),
        ("play", ThingKey(A, "music", "stable")),
        ("receive", ThingKey(A, "desk", "stable")),
    ]
    await close(b, "office", wired)

    for name in ("weather", "music"):
        with pytest.raises(AgentNotFound):
            await ask(b, RAIN, agent=name, channel="office")
    for said in (RAIN, JAZZ):
        assert (await decided(b, said, channel="office", threshold=0.0)).agent in ("", "billing")
    with pytest.raises(AgentNotFound, match="'desk'"):  # handed over to one of A
        await ask(b, "take me to the desk please", agent="billing", channel="office")


# -- over HTTP --


@asynccontextmanager
async def http(mesh: Mesh) -> AsyncGenerator[httpx.AsyncClient]:
    adapter = HttpAdapter(HttpSettings(http_port=0, tenant=mesh.tenant))
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(adapter.run(mesh.bus, ready.set))
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        async with httpx.AsyncClient(base_url=adapter.url, timeout=PATIENCE_S) as client:
            yield client
        running.cancel()


async def test_http_clients_reach_what_their_tenant_means(b: Mesh) -> None:
    async with http(b) as client:
        one = "/agents/billing/stable"
        given = {"question": BILL}
        whole = await client.post(f"{one}/actions/view_bill", json=given)
        told = await client.post(
            f"{one}/actions/view_bill", json=given, headers={"accept": "text/event-stream"}
        )
        value = await client.get(f"{one}/properties/open_now")
        card = await client.get("/agents/billing/.well-known/agent.json")
        listed = await client.get(f"/apis/v1/agents/{B}/web")
        things = await client.get("/things")
        hidden = await client.post("/agents/weather/stable/actions/forecast", json=given)
        shared = f"/things/{things.json()[0]['id']}"
        merge = {"content-type": "application/merge-patch+json"}
        changed = await client.patch(shared, content='{"title": "Ours"}', headers=merge)
        removed = await client.delete(shared)

    assert whole.json() == f"Your bill of {B}."
    assert f"of {B}." in told.text
    assert value.json() == B
    assert card.status_code == 200
    (agent,) = listed.json()
    assert agent["addresses"][0]["uri"].startswith("nats:lmos.shared.agent.billing.stable.")
    assert [one["id"] for one in things.json()] == ["urn:lmos-mesh:shared:billing:stable"]
    assert (hidden.status_code, removed.status_code) == (404, 404)
    assert changed.status_code == 409
    assert "is of tenant 'shared', and is changed only there" in changed.text


# -- served from `shared` by itself; hidden; dying --


async def test_an_agent_that_serves_others_too_is_served_from_shared(services: Deployment) -> None:
    own, other = new_name("own"), new_name("other")
    source = f"""
        from lmos_mesh import Agent, Context, run_agents

        clock = Agent("clock", description="Tells the time.", tenants=("{other}",))

        @clock.capability(examples=["what time is it?"])
        async def tell(question: str, context: Context) -> str:
            return f"Noon in {{context.tenant}}."

        lamp = Agent("lamp", description="Makes light.")

        @lamp.capability(examples=["switch on the light"])
        async def light(question: str, context: Context) -> str:
            return f"Light in {{context.tenant}}."

        run_agents([clock, lamp])
    """
    process = await services.start_agent(source, LMOS_TENANT=own).ready()
    async with services.client(own) as mesh, services.client(other) as others:
        for one in (mesh, others):
            await until(routes, one, {"what time is it?": "clock"})
        assert await names(mesh) == {"clock": "shared", "lamp": own}
        assert await names(others) == {"clock": "shared"}
        assert (await ask(mesh, "what time is it?")).answer == f"Noon in {own}."
        assert (await ask(others, "what time is it?")).answer == f"Noon in {other}."

        process.terminate()
        await process.ended()
        await until(has_nobody, mesh)


async def has_nobody(mesh: Mesh) -> bool:
    return not await names(mesh)


async def test_an_own_agent_hides_a_shared_one_while_it_is_registered(
    town: Deployment, b: Mesh
) -> None:
    source = """
        from lmos_mesh import Agent, Context, run_agents

        billing = Agent("billing", description="Answers questions about bills.")

        @billing.capability(examples=["show my bill", "how much do I owe?"])
        async def view_bill(question: str, context: Context) -> str:
            return "Our own bill."

        run_agents([billing])
    """
    process = await town.start_agent(source, LMOS_TENANT=B).ready()

    async def is_own() -> bool:
        return (await ask(b, BILL)).answer == "Our own bill."

    await until(is_own)
    assert await names(b) == {"billing": B}
    assert (await ask(b, BILL, agent="billing")).answer == "Our own bill."

    process.terminate()
    await process.ended()

    async def is_shared() -> bool:
        return (await ask(b, BILL)).answer == f"Your bill of {B}."

    await until(is_shared)


async def test_an_instance_dies_mid_turn_and_nobody_notices(town: Deployment, b: Mesh) -> None:
    second = await town.start_agent(SHARED, name="second", LMOS_TENANT="shared").ready()
    first = next(one for one in town.processes if one.name == "shared")

    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(ask(b, BILL, user=str(TURN_S)))

        async def is_asked() -> bool:
            return any(one.entries(f"asked by {B} for {TURN_S}") for one in (first, second))

        await until(is_asked)
        said = f"asked by {B} for {TURN_S}"
        busy = next(one for one in (first, second) if one.entries(said))
        assert [one["tenant"] for one in busy.entries(said)] == [B]
        busy.kill()
    answer = asked.result()

    assert answer.answer == f"Your bill of {B}."
    assert answer.attempts == 2
