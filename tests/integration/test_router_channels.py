"""What a Routing allows is all that the router decides between, whichever way it decides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.bus import Bus
from lmos_mesh.errors import AgentNotFound
from lmos_mesh.messages import DECIDE, Decide, Decision
from lmos_mesh.resource_index import key_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.things import ThingKey
from lmos_mesh.wiring import host_of
from tests.conftest import MemoryMesh
from tests.integration.processes import until
from tests.router_town import TENANT, routing
from tests.scripted_model import chooses, scripted_model

SOON_S = 10.0
WEB = "web"

AGENTS: list[dict[str, Any]] = [
    {
        "name": "billing",
        "description": "Bills and payments.",
        "capabilities": [
            {"id": "view-id", "name": "view", "examples": ["show my bill", "how much is my bill"]},
            {"id": "pay", "examples": ["pay my bill now", "charge my credit card"]},
        ],
    },
    {
        "name": "weather",
        "description": "Weather everywhere.",
        "capabilities": [{"id": "rain", "examples": ["will it rain tomorrow", "is it raining"]}],
    },
    {
        "name": "mail",
        "description": "Letters.",
        "supported_channels": ["post"],
        "capabilities": [{"id": "write", "examples": ["write a letter", "send some mail"]}],
    },
    {
        "name": "weather",
        "subset": "canary",
        "description": "Weather everywhere, differently.",
        "capabilities": [{"id": "rain", "examples": ["will it rain tomorrow", "is it raining"]}],
    },
]


@pytest.fixture(autouse=True)
def no_model_of_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMOS_MODELS_DIR", str(tmp_path))


async def apply(
    bus: Bus, wired: dict[str, Sequence[str]], *, subset: str = "stable", **spec: Any
) -> None:
    """Close the channel, as an operator would, and wait until the router knows."""
    metadata = {
        "name": f"web-{subset}",
        "labels": {"tenant": TENANT, "channel": WEB, "subset": subset},
    }
    groups = [
        {
            "name": agent,
            "subset": subset,
            "capabilities": [
                {
                    "name": one,
                    "requiredVersion": "*",
                    "providedVersion": "1.0.0",
                    "host": host_of(ThingKey(TENANT, agent, subset)),
                }
                for one in capabilities
            ],
        }
        for agent, capabilities in wired.items()
    ]
    store = ResourceStore(bus)
    channel: dict[str, Any] = {"metadata": metadata, "spec": {"requiredCapabilities": []}}
    routed = {"metadata": metadata, "spec": {"capabilityGroups": groups, **spec}}
    for one in (Channel.model_validate(channel), ChannelRouting.model_validate(routed)):
        kept = await store.get(key_of(one))
        await store.put(one, expected=kept.revision if kept else 0)

    async def is_known(bus: Bus) -> bool:
        found = await decide(bus, "hm", threshold=0, subset=subset, limit=100)
        return {one.agent for one in found.candidates} <= wired.keys()

    await until(is_known, bus, within_s=SOON_S)


async def decide(bus: Bus, message: str, **more: Any) -> Decision:
    return await bus.call(DECIDE, Decide(message=message, channel=WEB, **more))


async def test_candidates_are_what_is_wired(memory_mesh: MemoryMesh) -> None:
    async with routing(memory_mesh, AGENTS) as bus:
        before = await decide(bus, "will it rain tomorrow")
        await apply(bus, {"billing": ["view"]})
        rain = await decide(bus, "will it rain tomorrow")
        pay = await decide(bus, "pay my bill now", threshold=0)
        bill = await decide(bus, "show my bill")
        await apply(bus, {"weather": ["rain"]})
        after = await decide(bus, "will it rain tomorrow")

    assert before.agent == after.agent == "weather"
    assert rain.agent != "weather"
    assert (pay.agent, pay.capability) == ("billing", "view-id")
    assert (bill.agent, bill.capability) == ("billing", "view-id")


async def test_an_agent_that_does_not_serve_the_channel_is_not_asked_though_it_is_wired(
    memory_mesh: MemoryMesh,
) -> None:
    async with routing(memory_mesh, AGENTS) as bus:
        await apply(bus, {"mail": ["write"]}, fallbackAgent="mail")
        found = await decide(bus, "write a letter")
        with pytest.raises(AgentNotFound, match="channel 'web'"):
            await decide(bus, "write a letter", agent="mail")

    assert found.outcome == "nobody"


async def test_a_subset_has_its_own_routing_or_none(memory_mesh: MemoryMesh) -> None:
    async with routing(memory_mesh, AGENTS) as bus:
        await apply(bus, {"weather": ["rain"]})
        none = await decide(bus, "will it rain tomorrow", subset="canary")
        await apply(bus, {"weather": ["rain"]}, subset="canary")

        async def is_there(bus: Bus) -> bool:
            return (await decide(bus, "will it rain tomorrow", subset="canary")).agent != ""

        await until(is_there, bus, within_s=SOON_S)
        some = await decide(bus, "will it rain tomorrow", subset="canary")

    assert none.outcome == "nobody"
    assert "never been resolved" in none.reason
    assert (some.agent, some.subset) == ("weather", "canary")


async def test_an_agent_that_the_caller_names_is_asked_for_what_is_wired(
    memory_mesh: MemoryMesh,
) -> None:
    async with routing(memory_mesh, AGENTS) as bus:
        await apply(bus, {"billing": ["view"]})
        named = await decide(bus, "pay my bill now", agent="billing")
        with pytest.raises(AgentNotFound, match="billing") as refused:
            await decide(bus, "will it rain tomorrow", agent="weather")

    assert (named.method, named.capability) == ("explicit", "view-id")
    assert "channel 'web' (stable)" in str(refused.value)


async def test_a_fallback_agent_answers_for_what_nobody_else_is_sure_of(
    memory_mesh: MemoryMesh,
) -> None:
    async with routing(memory_mesh, AGENTS) as bus:
        await apply(bus, {"billing": ["view", "pay"]}, fallbackAgent="weather")

        async def falls_back(bus: Bus) -> bool:
            return (await decide(bus, "xylophone quokka zeppelin")).outcome == "routed"

        await until(falls_back, bus, within_s=SOON_S)
        lost = await decide(bus, "xylophone quokka zeppelin")
        sure = await decide(bus, "show my bill")
        named = await decide(bus, "hm", agent="weather")

    assert (lost.agent, lost.capability, lost.method) == ("weather", "rain", "fallback")
    assert "weather is who answers then" in lost.reason
    assert sure.agent == "billing"
    assert named.agent == "weather"


async def test_a_language_model_hears_of_nothing_else(memory_mesh: MemoryMesh) -> None:
    pytest.importorskip("openai")
    async with scripted_model() as server:
        given = {
            "router_llm_base_url": server.url,
            "router_llm_model": "scripted",
            "router_llm_timeout_s": 2.0,
        }
        server.otherwise = chooses("billing")
        async with routing(memory_mesh, AGENTS, **given) as bus:
            await apply(bus, {"billing": ["view"]}, router={"method": "llm", "language": "de"})
            asked = len(server.asked)
            found = await decide(bus, "show my bill")
            prompt = json.dumps(server.asked[-1].body, ensure_ascii=False)
            by_vector = await decide(bus, "show my bill", method="vector")

    assert found.method in ("llm", "hybrid")
    assert (found.agent, found.capability) == ("billing", "view-id")
    assert len(server.asked) == asked + 1
    assert "charge my credit card" not in prompt
    assert "Weather everywhere" not in prompt
    assert "how much is my bill" in prompt
    assert by_vector.method == "vector"
