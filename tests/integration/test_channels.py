"""Turns on closed channels as deployed: what was applied decides who answers, and nothing else."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from lmos_mesh import turn_reports
from lmos_mesh.errors import AgentNotFound, MeshError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import CONVERSE, DECIDE, Answer, Converse, Decide, TurnReport
from lmos_mesh.resource_index import key_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting, Resource
from lmos_mesh.things import DEFAULT_SUBSET, ThingKey
from lmos_mesh.weights import is_drawn
from lmos_mesh.wiring import host_of
from tests.conftest import new_name
from tests.integration.processes import Deployment, until

TENANT = "channel-tests"
OTHERS = "channel-others"
SOON_S = 15.0
TWO: dict[str, Sequence[str]] = {"billing": ["view_bill"], "weather": ["forecast"]}

AGENTS = '''
import asyncio, json, os
from lmos_mesh import Agent, Context, run_agents

SUBSET = os.environ.get("TEST_SUBSET", "stable")

billing = Agent("billing", description="Answers questions about bills.", subset=SUBSET)

@billing.capability(examples=["show my bill", "how much do I owe?"])
async def view_bill(question: str) -> str:
    """Show a customer's latest bill."""
    if SUBSET == "canary":
        await asyncio.sleep(float(os.environ.get("TEST_SLOW_S", "0")))
    return f"the bill ({SUBSET})"

@billing.capability(examples=["pay my bill", "transfer the money"], idempotent=False)
async def pay_bill(question: str) -> str:
    """Pay a customer's bill."""
    print('{"level": "info", "event": "paid"}', flush=True)
    return f"paid ({SUBSET})"

weather = Agent("weather", description="Tells the weather.", subset=SUBSET)

@weather.capability(examples=["will it rain tomorrow?", "how is the weather?"])
async def forecast(question: str) -> str:
    """Tell the weather."""
    return f"it will rain ({SUBSET})"

concierge = Agent("concierge", description="Knows a bit of everything.", subset=SUBSET)

@concierge.capability
async def chat(question: str, context: Context) -> str:
    told = {
        "settings": dict(context.channel_settings),
        "parameters": dict(context.parameters),
        "attributes": dict(context.attributes),
        "token": context.user_token,
        "subset": context.subset,
        "shadow": context.shadow,
        "entities": [dict(one) for one in context.anonymization],
    }
    if question.startswith("pass on"):
        return (await context.mesh.ask("will it rain?", agent="weather", store=False)).answer
    if question.startswith("ask the canary"):
        found = await context.mesh.find(name="weather", subset="canary")
        return (await context.ask("will it rain?", agent=found[0])).answer
    if question.startswith("rename"):
        await context.anonymize([{"type": "name", "value": "Bob", "replacement": "N-2"}])
    return json.dumps(told)

run_agents([billing, weather, concierge])
'''


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[Deployment]:
    """Agents in two subsets, and one of another tenant."""
    running = [
        services.start_agent(AGENTS, name="stable", LMOS_TENANT=TENANT),
        services.start_agent(
            AGENTS, name="canary", LMOS_TENANT=TENANT, TEST_SUBSET="canary", TEST_SLOW_S="1.5"
        ),
        services.start_agent(AGENTS, name="others", LMOS_TENANT=OTHERS),
    ]
    for one in running:
        one.wait_ready()
    yield services
    for one in running:
        one.terminate()
        one.wait()


@pytest.fixture
async def mesh(town: Deployment) -> AsyncGenerator[Mesh]:
    async with town.client(TENANT) as mesh:
        yield mesh


def labels(channel: str, subset: str, tenant: str = TENANT) -> dict[str, str]:
    return {"tenant": tenant, "channel": channel, "subset": subset, "version": "2.1.0"}


def channel_of(channel: str, subset: str = DEFAULT_SUBSET) -> Channel:
    return Channel.model_validate(
        {
            "metadata": {"name": f"{channel}-{subset}", "labels": labels(channel, subset)},
            "spec": {"requiredCapabilities": []},
        }
    )


def routing_of(
    channel: str,
    wired: dict[str, Sequence[str]],
    subset: str = DEFAULT_SUBSET,
    *,
    tenant: str = TENANT,
    **spec: Any,
) -> ChannelRouting:
    groups = [
        {
            "id": agent,
            "name": agent,
            "subset": subset,
            "capabilities": [
                {
                    "id": one,
                    "name": one,
                    "requiredVersion": "*",
                    "providedVersion": "1.0.0",
                    "host": host_of(ThingKey(tenant, agent, subset)),
                }
                for one in capabilities
            ],
        }
        for agent, capabilities in wired.items()
    ]
    return ChannelRouting.model_validate(
        {
            "metadata": {"name": f"{channel}-{subset}", "labels": labels(channel, subset)},
            "spec": {"capabilityGroups": groups, **spec},
        }
    )


def rollout_of(channel: str, *, phase: str = "Progressing", **status: Any) -> ChannelRollout:
    weight = status.get("canaryWeight", 0)
    return ChannelRollout.model_validate(
        {
            "metadata": {"name": channel},
            "spec": {
                "strategy": {
                    "canary": {
                        "canaryChannel": {"name": f"{channel}-canary", "weight": weight},
                        "stableChannel": {"name": f"{channel}-stable"},
                        "match": {"users": ["ann"], "attributes": {"plan": ["beta"]}},
                    }
                }
            },
            "status": {
                "phase": phase,
                "tenant": TENANT,
                "channel": channel,
                "stableSubset": "stable",
                "canarySubset": "canary",
                "salt": channel,
                **status,
            },
        }
    )


async def put(mesh: Mesh, *resources: Resource) -> None:
    """Write them as the operator would."""
    store = ResourceStore(mesh.bus)
    for one in resources:
        kept = await store.get(key_of(one))
        await store.put(one, expected=kept.revision if kept else 0)


async def settled(mesh: Mesh, channel: str, agent: str, subset: str = DEFAULT_SUBSET) -> None:
    """Wait until the router, and both runtimes, know that an agent serves a channel."""

    async def is_known(mesh: Mesh, channel: str) -> bool:
        try:
            await mesh.bus.call(
                DECIDE, Decide(message="hm", channel=channel, subset=subset, agent=agent)
            )
        except AgentNotFound:
            return False
        return True

    await until(is_known, mesh, channel, within_s=SOON_S)
    await asyncio.sleep(0.1)


async def closed(mesh: Mesh, wired: dict[str, Sequence[str]], **spec: Any) -> str:
    """A closed channel, and who answers there."""
    channel = new_name("way")
    await put(mesh, channel_of(channel), routing_of(channel, wired, **spec))
    await settled(mesh, channel, next(iter(wired)))
    return channel


async def ask(mesh: Mesh, message: str, channel: str, **more: Any) -> Answer:
    return await mesh.bus.call(
        CONVERSE, Converse(message=message, channel=channel, **more), timeout_s=20.0
    )


async def reports(mesh: Mesh, count: int, *, channel: str, since: float) -> list[TurnReport]:
    """The first reports of a channel's turns, as the turns ended."""
    found: list[turn_reports.Reported] = []
    following = turn_reports.follow(mesh.bus, TENANT, since=since)
    async with asyncio.timeout(SOON_S * 2), aclosing(following) as told:
        async for one in told:
            if one.report.channel == channel:
                found.append(one)
            if len(found) == count:
                break
    # Each runtime tells several at a time, so those of two may come in another order.
    return [one.report for one in sorted(found, key=lambda one: one.at)]


async def test_only_the_agents_of_the_routing_answer(mesh: Mesh) -> None:
    channel = await closed(mesh, {"billing": ["view_bill"]})

    bill = await ask(mesh, "show my bill", channel)
    rain = await ask(mesh, "will it rain tomorrow?", channel)
    decided = await mesh.bus.call(DECIDE, Decide(message="will it rain?", channel=channel))

    assert (bill.agent, bill.answer) == ("billing", "the bill (stable)")
    assert rain.agent in ("", "billing")
    assert {one.agent for one in decided.candidates} <= {"billing"}


async def test_an_open_channel_is_as_it_was(mesh: Mesh) -> None:
    answer = await ask(mesh, "will it rain tomorrow?", new_name("open"))

    assert answer.agent == "weather"


async def test_of_an_agent_only_what_is_wired_is_asked_for(mesh: Mesh) -> None:
    channel = await closed(mesh, {"billing": ["view_bill"]})

    sure = await mesh.bus.call(DECIDE, Decide(message="pay my bill", channel=channel, threshold=0))
    named = await ask(mesh, "pay my bill", channel, agent="billing")

    assert sure.capability == "view_bill"
    assert {one.capability for one in sure.candidates} == {"view_bill"}
    assert (named.capability, named.answer) == ("view_bill", "the bill (stable)")


async def test_an_agent_outside_of_the_channel_is_refused_by_name(mesh: Mesh) -> None:
    channel = await closed(mesh, {"billing": ["view_bill"]})

    with pytest.raises(AgentNotFound, match=channel):
        await ask(mesh, "will it rain?", channel, agent="weather")
    with pytest.raises(AgentNotFound, match=channel):
        await mesh.bus.call(DECIDE, Decide(message="hm", channel=channel, agent="weather"))


async def test_what_an_agent_asks_while_it_answers_is_asked_on_the_same_channel(mesh: Mesh) -> None:
    alone = await closed(mesh, {"concierge": ["chat"]})
    both = await closed(mesh, {"concierge": ["chat"], "weather": ["forecast"]})

    with pytest.raises(MeshError, match=alone):
        await ask(mesh, "pass on", alone, agent="concierge")
    passed = await ask(mesh, "pass on", both, agent="concierge")

    assert passed.answer == "it will rain (stable)"


async def test_an_agent_that_was_found_is_asked_in_its_own_release_line(mesh: Mesh) -> None:
    asked = await ask(mesh, "ask the canary", new_name("open"), agent="concierge")

    assert (asked.subset, asked.answer) == ("stable", "it will rain (canary)")


async def test_a_channel_that_was_never_resolved_has_nobody(mesh: Mesh) -> None:
    channel = new_name("way")
    await put(mesh, channel_of(channel))

    async def is_closed(mesh: Mesh) -> bool:
        found = await mesh.bus.call(DECIDE, Decide(message="show my bill", channel=channel))
        return found.outcome == "nobody"

    await until(is_closed, mesh, within_s=SOON_S)
    answer = await ask(mesh, "show my bill", channel)
    decided = await mesh.bus.call(DECIDE, Decide(message="show my bill", channel=channel))

    assert answer.asked_back
    assert channel in decided.reason


async def test_a_turn_waits_a_moment_for_a_channel_that_was_closed_just_now(mesh: Mesh) -> None:
    channel = new_name("way")
    await put(mesh, channel_of(channel))

    async def is_closed(mesh: Mesh) -> bool:
        found = await mesh.bus.call(DECIDE, Decide(message="show my bill", channel=channel))
        return found.outcome == "nobody"

    await until(is_closed, mesh, within_s=SOON_S)
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(ask(mesh, "show my bill", channel))
        await asyncio.sleep(0.05)
        await ResourceStore(mesh.bus).put(
            routing_of(channel, {"billing": ["view_bill"]}), expected=0
        )

    assert asked.result().agent == "billing"


async def test_where_nobody_is_sure_the_fallback_agent_answers(mesh: Mesh) -> None:
    channel = await closed(mesh, TWO, fallbackAgent="concierge", router={"threshold": 0.9})

    sure = await ask(mesh, "show my bill", channel, threshold=0.1)
    lost = await ask(mesh, "xylophone quokka zeppelin", channel)

    assert sure.agent == "billing"
    assert lost.agent == "concierge"
    assert lost.decision is not None
    assert lost.decision.method == "fallback"
    assert not lost.asked_back


async def test_the_channels_threshold_counts_unless_the_caller_has_one(mesh: Mesh) -> None:
    channel = await closed(mesh, {"billing": ["view_bill", "pay_bill"]}, router={"threshold": 0})

    wild = await ask(mesh, "xylophone quokka zeppelin", channel)
    strict = await ask(mesh, "xylophone quokka zeppelin", channel, threshold=0.9)

    assert wild.agent == "billing"
    assert strict.asked_back


async def test_users_are_asked_back_in_their_language_or_the_channels(mesh: Mesh) -> None:
    plain = await closed(mesh, TWO, router={"threshold": 0.9})
    english = await closed(mesh, TWO, router={"threshold": 0.9, "language": "en"})
    message = "können Sie mir bitte ein Xylophon bauen?"

    german = await ask(mesh, message, plain)
    channels = await ask(mesh, message, english)
    callers = await ask(mesh, message, english, language="de")

    assert german.asked_back
    assert "Was möchten Sie?" in german.answer
    assert "What would you like?" in channels.answer
    assert "Was möchten Sie?" in callers.answer


async def test_settings_and_contexts_reach_the_agent_and_entities_come_back(mesh: Mesh) -> None:
    channel = await closed(
        mesh, {"concierge": ["chat"]}, settings={"answers": "short", "markup": "none"}
    )
    entities = ({"type": "name", "value": "Ann", "replacement": "N-1"},)
    said: dict[str, Any] = {
        "agent": "concierge",
        "parameters": {"device": "phone"},
        "attributes": {"plan": "gold"},
        "user_token": "t0ken",
        "anonymization": entities,
    }

    told = await ask(mesh, "hello", channel, **said)
    renamed = await ask(mesh, "rename me", channel, **said)

    assert '"settings": {"answers": "short", "markup": "none"}' in told.answer
    assert '"parameters": {"device": "phone"}' in told.answer
    assert '"attributes": {"plan": "gold"}' in told.answer
    assert '"token": "t0ken"' in told.answer
    assert '"replacement": "N-1"' in told.answer
    assert told.anonymization is None
    assert renamed.anonymization == ({"type": "name", "value": "Bob", "replacement": "N-2"},)


async def test_a_tenants_channel_never_gets_another_tenants_agent(mesh: Mesh) -> None:
    channel = new_name("way")
    theirs = routing_of(channel, {"weather": ["forecast"]}, tenant=OTHERS)
    ours = routing_of(channel, {"billing": ["view_bill"]})
    mixed = theirs.model_copy(
        update={
            "spec": theirs.spec.model_copy(
                update={
                    "capability_groups": (
                        *theirs.spec.capability_groups,
                        *ours.spec.capability_groups,
                    )
                }
            )
        }
    )
    await put(mesh, channel_of(channel), mixed)
    await settled(mesh, channel, "billing")

    with pytest.raises(AgentNotFound):
        await ask(mesh, "will it rain?", channel, agent="weather")
    assert (await ask(mesh, "will it rain tomorrow?", channel)).agent in ("", "billing")


async def test_while_routings_change_nobody_answers_who_was_not_in_one(mesh: Mesh) -> None:
    """Turns without a pause, and a Routing that changes all the time under them."""
    channel = await closed(mesh, {"billing": ["view_bill"]}, router={"threshold": 0})
    wired: tuple[dict[str, Sequence[str]], ...] = (
        {"billing": ["view_bill"]},
        {"weather": ["forecast"]},
    )
    answers: list[str] = []
    over = asyncio.Event()

    async def change() -> None:
        number = 0
        while number < 40 or len(answers) <= 40:
            number += 1
            await put(mesh, routing_of(channel, wired[number % 2], router={"threshold": 0}))
            await asyncio.sleep(0.03)
        over.set()

    async def hammer() -> None:
        while not over.is_set():
            message = secrets.choice(["show my bill", "will it rain tomorrow?"])
            try:
                answer = await ask(mesh, message, channel, store=False)
            except MeshError:
                continue
            answers.append(answer.agent)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(change())
        for _ in range(4):
            tasks.create_task(hammer())

    assert set(answers) <= {"billing", "weather", ""}


async def test_a_conversation_keeps_its_side_while_its_rollout_runs(mesh: Mesh) -> None:
    channel = new_name("way")
    for subset in ("stable", "canary"):
        await put(
            mesh,
            channel_of(channel, subset),
            routing_of(channel, {"weather": ["forecast"]}, subset),
        )
    await put(mesh, rollout_of(channel, canaryWeight=50))
    await settled(mesh, channel, "weather", "canary")
    await settled(mesh, channel, "weather")
    conversations = [new_name("c") for _ in range(12)]

    async def sides() -> dict[str, str]:
        found: dict[str, str] = {}
        for one in conversations:
            answer = await ask(mesh, "will it rain tomorrow?", channel, conversation=one)
            assert answer.answer == f"it will rain ({answer.subset})"
            found[one] = answer.subset
        return found

    first = await sides()
    await put(mesh, rollout_of(channel, canaryWeight=100))
    await asyncio.sleep(0.3)
    later = await sides()
    new = await ask(mesh, "will it rain tomorrow?", channel, conversation=new_name("c"))
    await put(mesh, rollout_of(channel, phase="RolledBack"))
    await asyncio.sleep(0.3)
    back = await sides()

    assert first == {
        one: "canary" if is_drawn(channel, one, 50) else "stable" for one in conversations
    }
    assert Counter(first.values()).keys() == {"canary", "stable"}
    assert later == first
    assert new.subset == "canary"
    assert set(back.values()) == {"stable"}


async def test_users_and_attributes_go_to_the_canary_and_a_named_subset_is_obeyed(
    mesh: Mesh,
) -> None:
    channel = new_name("way")
    for subset in ("stable", "canary"):
        await put(
            mesh,
            channel_of(channel, subset),
            routing_of(channel, {"weather": ["forecast"]}, subset),
        )
    await put(mesh, rollout_of(channel, canaryWeight=0))
    await settled(mesh, channel, "weather", "canary")
    message = "will it rain tomorrow?"

    assert (await ask(mesh, message, channel)).subset == "stable"
    assert (await ask(mesh, message, channel, user="ann")).subset == "canary"
    assert (await ask(mesh, message, channel, attributes={"plan": "beta"})).subset == "canary"
    assert (await ask(mesh, message, channel, attributes={"plan": "gold"})).subset == "stable"
    assert (await ask(mesh, message, channel, subset="canary")).subset == "canary"
    assert (await ask(mesh, message, channel, user="ann", subset="stable")).subset == "stable"


async def test_turns_are_mirrored_compared_and_reported_without_slowing_them(
    mesh: Mesh, town: Deployment
) -> None:
    channel = new_name("way")
    wired: dict[str, Sequence[str]] = {
        "billing": ["view_bill", "pay_bill"],
        "weather": ["forecast"],
        "concierge": ["chat"],
    }
    for subset in ("stable", "canary"):
        await put(mesh, channel_of(channel, subset), routing_of(channel, wired, subset))
    await put(mesh, rollout_of(channel, canaryWeight=0, shadowPercent=100))
    await settled(mesh, channel, "billing", "canary")
    await settled(mesh, channel, "billing")
    since = time.time() - 0.01
    canary = next(one for one in town.processes if one.name == "canary")

    began = time.monotonic()
    bill = await ask(mesh, "show my bill", channel)
    took_s = time.monotonic() - began
    paid = await ask(mesh, "pay my bill", channel, agent="billing")
    both = await ask(mesh, "show my bill and will it rain tomorrow?", channel)
    told = await reports(mesh, 6, channel=channel, since=since)

    assert (bill.answer, paid.answer) == ("the bill (stable)", "paid (stable)")
    assert len(both.parts) == 2
    (shadow,) = (one for one in told if one.shadow and not one.left_out)
    left_out = {one.turn: (one.left_out, one.outcome, one.subset) for one in told if one.left_out}
    users = [one for one in told if not one.shadow]
    assert left_out == {
        paid.turn: ("once", "cancelled", "canary"),
        both.turn: ("several", "cancelled", "canary"),
    }
    assert (shadow.subset, shadow.agent, shadow.outcome) == ("canary", "billing", "answered")
    assert (shadow.same, shadow.turn) == (False, bill.turn)
    assert shadow.total_s >= 1.4 > users[0].total_s
    assert took_s < shadow.total_s + 1
    assert [(one.subset, one.capability) for one in users] == [
        ("stable", "view_bill"),
        ("stable", "pay_bill"),
        ("stable", "view_bill,forecast"),
    ]
    assert not canary.entries("paid")


async def test_every_turn_is_reported_however_it_ends(mesh: Mesh) -> None:
    channel = await closed(mesh, TWO, router={"threshold": 0.9})
    since = time.time() - 0.01

    answered = await ask(mesh, "show my bill", channel, threshold=0.1)
    asked_back = await ask(mesh, "xylophone quokka zeppelin", channel)
    with pytest.raises(AgentNotFound):
        await ask(mesh, "hm", channel, agent="concierge")
    told = await reports(mesh, 3, channel=channel, since=since)

    assert [one.outcome for one in told] == ["answered", "asked_back", "failed"]
    assert [one.turn for one in told[:2]] == [answered.turn, asked_back.turn]
    assert told[0].first_s is not None
    assert 0 < told[0].first_s <= told[0].total_s
    assert (told[0].agent, told[0].capability) == ("billing", "view_bill")
    assert told[2].error == AgentNotFound.code
    assert "bill" not in told[0].model_dump_json(exclude={"agent", "capability"})
