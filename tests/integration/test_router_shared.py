"""What the router decides for tenants that are served by agents of tenant `shared`."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.bus import Bus
from lmos_mesh.errors import AgentNotFound
from lmos_mesh.messages import (
    DECIDE,
    LINT_EXAMPLES,
    ROUTER_STATUS,
    Decide,
    Decision,
    LintExamples,
    RouterStatus,
    Utterance,
)
from lmos_mesh.resource_index import key_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.things import ThingKey
from lmos_mesh.wiring import host_of
from lmos_mesh_router.encoder import HashingEncoder
from tests.conftest import MemoryMesh
from tests.integration.processes import until
from tests.router_town import TENANT, Town, routing

SOON_S = 10.0
OTHER, STRANGER = "other", "stranger"
BILL, RAIN, LETTER, JAZZ = (
    "show my bill",
    "will it rain tomorrow",
    "write a letter",
    "play some jazz",
)


def agent(name: str, *examples: str, tenant: str = "shared", **more: Any) -> dict[str, Any]:
    can = {"id": f"{name}-it", "examples": list(examples)}
    return {"name": name, "tenant": tenant, "capabilities": [can], **more}


BILLING = agent("billing", BILL, "how much is my bill", supported_tenants=[TENANT, OTHER])
WEATHER = agent("weather", RAIN, "is it raining", supported_tenants=[TENANT])
MAIL = agent("mail", LETTER, "send some mail")
MUSIC = agent("music", JAZZ, "play my favourite song", tenant=TENANT)


@pytest.fixture(autouse=True)
def no_model_of_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path))


@pytest.fixture
async def bus(memory_mesh: MemoryMesh) -> AsyncGenerator[Bus]:
    """The bus of a tenant with an agent of its own; the other tenants have none."""
    async with routing(memory_mesh, [BILLING, WEATHER, MAIL, MUSIC]) as asker:
        yield asker


async def decide(bus: Bus, message: str, tenant: str = TENANT, **more: Any) -> Decision:
    return await bus.call(DECIDE, Decide(message=message, **more), tenant=tenant)


async def candidates(bus: Bus, tenant: str, **more: Any) -> set[str]:
    found = await decide(bus, "hm", tenant, threshold=0, limit=100, **more)
    return {one.agent for one in found.candidates}


async def are(bus: Bus, tenant: str, names: set[str]) -> bool:
    return await candidates(bus, tenant) == names


async def test_who_may_be_chosen_is_told_by_whom_an_agent_supports(bus: Bus) -> None:
    assert await candidates(bus, TENANT) == {"billing", "weather", "mail", "music"}
    assert await candidates(bus, OTHER) == {"billing", "mail"}
    assert await candidates(bus, STRANGER) == {"mail"}
    assert await candidates(bus, "shared") == {"billing", "weather", "mail"}


async def test_own_and_shared_agents_are_chosen_alike(bus: Bus) -> None:
    decided = [(await decide(bus, one)).agent for one in (BILL, RAIN, LETTER, JAZZ)]
    theirs = [(await decide(bus, one, OTHER)).agent for one in (BILL, LETTER)]

    assert decided == ["billing", "weather", "mail", "music"]
    assert theirs == ["billing", "mail"]


async def test_one_that_is_named_is_looked_for_by_the_same_rule(bus: Bus) -> None:
    assert (await decide(bus, BILL, OTHER, agent="billing")).capability == "billing-it"
    with pytest.raises(AgentNotFound, match=f"'weather' does not exist in '{OTHER}'"):
        await decide(bus, RAIN, OTHER, agent="weather")
    with pytest.raises(AgentNotFound) as refused:
        await decide(bus, BILL, OTHER, agent="biling")
    assert refused.value.details["near"] == ["billing"]
    with pytest.raises(AgentNotFound) as unknown:
        await decide(bus, RAIN, OTHER, agent="wether")
    assert not unknown.value.details.get("near")


async def test_a_follow_up_stays_with_a_shared_agent(bus: Bus) -> None:
    history = (
        Utterance(role="user", content=BILL),
        Utterance(role="assistant", content="39.99 €", agent="billing"),
    )

    for tenant in (TENANT, OTHER):
        found = await decide(bus, "and why is it so much?", tenant, history=history)
        assert found.agent == "billing"


async def test_a_message_of_two_requests_is_cut_for_shared_agents_too(bus: Bus) -> None:
    found = await decide(bus, f"{BILL} and {JAZZ}", parts=True)

    assert [one.agent for one in found.parts] == ["billing", "music"]


@pytest.mark.parametrize("tenant", [TENANT, OTHER])
async def test_who_joins_changes_dies_or_leaves_does_so_in_every_tenant(
    bus: Bus, tenant: str
) -> None:
    town = Town(bus)
    before = await candidates(bus, tenant)

    await town.join(agent("taxi", "call me a taxi", supported_tenants=[TENANT, OTHER]))
    await until(are, bus, tenant, before | {"taxi"})
    assert (await decide(bus, "call me a taxi", tenant)).agent == "taxi"

    await town.join(agent("taxi", "fetch my luggage", supported_tenants=[TENANT, OTHER]))

    async def fetches() -> bool:
        return (await decide(bus, "fetch my luggage", tenant)).agent == "taxi"

    await until(fetches)
    await town.die("taxi", tenant="shared")
    await until(are, bus, tenant, before)
    await town.join(agent("taxi", "fetch my luggage", supported_tenants=[STRANGER]))
    await until(are, bus, STRANGER, {"mail", "taxi"})
    assert await candidates(bus, tenant) == before
    await town.leave("taxi", tenant="shared")
    await until(are, bus, STRANGER, {"mail"})


async def test_an_own_agent_hides_a_shared_one_of_its_name(bus: Bus) -> None:
    town = Town(bus)
    own = agent("billing", "pay by card", "change my card", tenant=OTHER)

    await town.join(own)

    async def is_own() -> bool:
        return (await decide(bus, "pay by card", OTHER)).agent == "billing"

    await until(is_own)
    found = await decide(bus, BILL, OTHER, threshold=0, limit=100)
    assert {one.capability for one in found.candidates} == {"billing-it", "mail-it"}
    assert BILL not in {one.evidence for one in found.candidates}
    assert (await decide(bus, BILL)).agent == "billing"

    await town.die("billing", tenant=OTHER)
    await until(are, bus, OTHER, {"mail"})  # it is registered, and so the shared one stays hidden
    with pytest.raises(AgentNotFound, match="has no instance running"):
        await decide(bus, BILL, OTHER, agent="billing")

    await town.leave("billing", tenant=OTHER)
    await until(are, bus, OTHER, {"mail", "billing"})
    assert (await decide(bus, BILL, OTHER)).agent == "billing"


async def test_a_tenants_first_agent_leaves_no_gap(bus: Bus) -> None:
    town = Town(bus)
    assert (await decide(bus, BILL, OTHER)).agent == "billing"

    await town.join(agent("taxi", "call me a taxi", tenant=OTHER))
    seen: set[frozenset[str]] = set()

    async def joined() -> bool:
        assert (await decide(bus, BILL, OTHER)).agent == "billing"
        seen.add(frozenset(await candidates(bus, OTHER)))
        return frozenset({"billing", "mail", "taxi"}) in seen

    await until(joined)
    assert seen <= {frozenset({"billing", "mail"}), frozenset({"billing", "mail", "taxi"})}

    await town.leave("taxi", tenant=OTHER)

    async def left() -> bool:
        assert (await decide(bus, BILL, OTHER)).agent == "billing"
        return await candidates(bus, OTHER) == {"billing", "mail"}

    await until(left)


async def test_a_shared_agent_is_embedded_and_counted_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = HashingEncoder.encode

    def noted(self: HashingEncoder, texts: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(HashingEncoder, "encode", noted)
    await Town(bus).join(agent("taxi", "call me a taxi"))
    for tenant in (TENANT, OTHER):
        await until(are, bus, tenant, await candidates(bus, tenant) | {"taxi"})
    state = await bus.call(ROUTER_STATUS, RouterStatus())

    assert encoded.count("call me a taxi") == 1
    assert (state.agents, state.capabilities) == (5, 5)


async def test_lint_looks_at_what_a_tenant_has(bus: Bus) -> None:
    found = [
        await bus.call(LINT_EXAMPLES, LintExamples(), tenant=one, timeout_s=SOON_S * 3)
        for one in (TENANT, OTHER)
    ]

    assert [one.agents for one in found] == [4, 2]


# -- closed channels --


async def close(bus: Bus, tenant: str, wired: list[ThingKey], **spec: Any) -> None:
    """A Channel and its Routing, whoever wrote that."""
    metadata = {
        "name": f"{tenant}-web",
        "labels": {"tenant": tenant, "channel": "web", "subset": "stable"},
    }
    groups = [
        {
            "name": key.name,
            "subset": key.subset,
            "capabilities": [
                {
                    "name": f"{key.name}-it",
                    "requiredVersion": "*",
                    "providedVersion": "1.0.0",
                    "host": host_of(key),
                }
            ],
        }
        for key in wired
    ]
    channel: dict[str, Any] = {"metadata": metadata, "spec": {"requiredCapabilities": []}}
    routed = {"metadata": metadata, "spec": {"capabilityGroups": groups, **spec}}
    store = ResourceStore(bus)
    for one in (Channel.model_validate(channel), ChannelRouting.model_validate(routed)):
        assert key_of(one)
        await store.put(one, expected=0)


def shared(name: str) -> ThingKey:
    return ThingKey("shared", name, "stable")


@pytest.mark.parametrize("tenant", [TENANT, OTHER])
async def test_a_closed_channel_admits_the_shared_agents_of_its_routing(
    bus: Bus, tenant: str
) -> None:
    await close(bus, tenant, [shared("billing")])
    await until(are, bus, tenant, {"billing"})

    assert (await decide(bus, BILL, tenant)).agent == "billing"
    assert (await decide(bus, BILL, tenant, agent="billing")).agent == "billing"
    with pytest.raises(AgentNotFound, match="is none of channel"):
        await decide(bus, LETTER, tenant, agent="mail")


async def test_a_routing_opens_nothing_that_is_for_others(bus: Bus) -> None:
    """Whatever hosts it names: of `shared` but for somebody else, or of another tenant."""
    theirs = [shared("weather"), ThingKey(TENANT, "music", "stable"), shared("mail")]
    await close(bus, OTHER, theirs, fallbackAgent="weather")
    await until(are, bus, OTHER, {"mail"})

    for name, said in (("weather", RAIN), ("music", JAZZ)):
        with pytest.raises(AgentNotFound):
            await decide(bus, said, OTHER, agent=name)
        assert (await decide(bus, said, OTHER, threshold=0)).agent == "mail"
        assert (await decide(bus, said, OTHER, threshold=0.999)).agent != name


async def test_a_shared_agent_may_answer_what_nobody_else_can(bus: Bus) -> None:
    await close(bus, OTHER, [shared("billing")], fallbackAgent="mail")
    await until(are, bus, OTHER, {"billing"})

    found = await decide(bus, "what is the meaning of life", OTHER, threshold=0.99)

    assert (found.agent, found.method) == ("mail", "fallback")
