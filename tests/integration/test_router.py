"""The router as deployed: its index follows the registry, and its decisions say why."""

import json
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from lmos_mesh.errors import AgentNotFound, InvalidMessage, MeshError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    DECIDE,
    DEREGISTER,
    EMBED,
    REGISTER,
    ROUTER_STATUS,
    Decide,
    Decision,
    Deregister,
    Embed,
    Register,
    RouterStatus,
    Utterance,
)
from tests.integration.processes import Deployment, plain_client, until

SOON_S = 15.0

AGENT = """
from lmos_mesh import Agent

agent = Agent({name!r}, description={description!r}, subset={subset!r}, channels={channels!r})

for id, examples in {capabilities!r}.items():
    @agent.capability(id=id, examples=examples)
    async def answer(question: str) -> str:
        return ""

agent.run()
"""


def agent(
    name: str,
    description: str,
    capabilities: dict[str, list[str]],
    *,
    subset: str = "stable",
    channels: tuple[str, ...] = ("*",),
) -> str:
    return AGENT.format(
        name=name,
        description=description,
        capabilities=capabilities,
        subset=subset,
        channels=channels,
    )


BILLING = agent(
    "billing",
    "Answers questions about bills and payments.",
    {
        "view_bill": ["show my bill", "how much do I owe?"],
        "pay_bill": ["I want to pay now", "charge my credit card"],
    },
)
WEATHER = agent("weather", "Tells the weather.", {"forecast": ["will it rain tomorrow?"]})
PHONE = agent(
    "phone",
    "Answers calls about broken lines.",
    {"report_fault": ["my line is dead", "the internet is down"]},
    channels=("ivr",),
)


async def decide(mesh: Mesh, message: str, **more: Any) -> Decision:
    return await mesh.bus.call(DECIDE, Decide(message=message, **more))


async def chosen(mesh: Mesh, message: str, **more: Any) -> tuple[str, str]:
    decision = await decide(mesh, message, **more)
    return decision.agent, decision.capability


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[str]:
    """A tenant with three agents that the router can choose from."""
    tenant = "router-tests"
    processes = [
        services.start_agent(source, name="agent", LMOS_TENANT=tenant)
        for source in (BILLING, WEATHER, PHONE)
    ]
    for process in processes:
        process.wait_ready()
    yield tenant
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
async def mesh(services: Deployment, town: str) -> AsyncGenerator[Mesh]:
    async with services.client(town) as connected:
        for message, agent in (("pay now", "billing"), ("rain", "weather"), ("line", "phone")):

            async def known(message: str = message, agent: str = agent) -> bool:
                decision = await decide(connected, message, channel="ivr")
                return agent in {one.agent for one in decision.candidates}

            await until(known, within_s=SOON_S)
        await until(all_known, connected)
        yield connected


async def all_known(mesh: Mesh) -> bool:
    """The first examples are known before the others, and decide otherwise than all of them."""
    return (await mesh.bus.call(ROUTER_STATUS, RouterStatus())).waiting == 0


@pytest.mark.parametrize(
    ("message", "agent", "capability"),
    [
        ("show my bill", "billing", "view_bill"),
        ("How much money do you want from me this month?", "billing", "view_bill"),
        ("please take it from my card", "billing", "pay_bill"),
        ("do I need an umbrella?", "weather", "forecast"),
    ],
)
async def test_a_message_goes_to_whoever_can_answer_it(
    mesh: Mesh, message: str, agent: str, capability: str
) -> None:
    decision = await decide(mesh, message)

    assert (decision.outcome, decision.agent, decision.capability) == ("routed", agent, capability)
    assert decision.candidates[0].agent == agent
    assert agent in decision.reason
    assert decision.method == "vector"
    assert decision.encoder == "all-MiniLM-L6-v2"
    assert {"embed", "search", "total"} <= decision.time_ms.keys()


async def test_what_nobody_can_answer_is_abstained_from_with_candidates(mesh: Mesh) -> None:
    decision = await decide(mesh, "who won the chess world championship in 1972?")

    assert (decision.outcome, decision.agent) == ("out_of_scope", "")
    assert {one.agent for one in decision.candidates} == {"billing", "weather"}
    assert decision.in_scope < 0.05


async def test_the_caller_may_say_how_sure_the_router_must_be(mesh: Mesh) -> None:
    message = "who won the chess world championship in 1972?"

    assert (await decide(mesh, message, threshold=0)).outcome == "routed"
    assert (await decide(mesh, "show my bill", threshold=1)).outcome == "unsure"
    with pytest.raises(InvalidMessage, match="/threshold"):
        await mesh.bus.request(
            f"lmos.{mesh.bus.tenant}.router.decide",
            b'{"message":"x","threshold":7}',
            timeout_s=SOON_S,
        )


async def test_only_so_many_candidates_are_named_as_asked_for(mesh: Mesh) -> None:
    assert len((await decide(mesh, "show my bill", limit=1)).candidates) == 1


async def test_only_agents_of_the_channel_are_candidates(mesh: Mesh) -> None:
    message = "the internet is down"

    assert await chosen(mesh, message, channel="ivr") == ("phone", "report_fault")
    web = await decide(mesh, message, channel="web", threshold=0)
    assert "phone" not in {one.agent for one in web.candidates}


async def test_only_agents_of_the_tenant_and_subset_are_candidates(
    services: Deployment, mesh: Mesh, tenant: str
) -> None:
    assert (await decide(mesh, "show my bill", subset="canary")).outcome == "nobody"
    async with services.client(tenant) as other:
        decision = await decide(other, "show my bill")
    assert (decision.outcome, decision.candidates) == ("nobody", ())


async def test_a_follow_up_is_read_together_with_what_it_follows(mesh: Mesh) -> None:
    history = (
        Utterance(role="user", content="will it rain tomorrow?"),
        Utterance(role="assistant", content="No."),
    )

    alone = await decide(mesh, "and on Sunday?")
    together = await decide(mesh, "and on Sunday?", history=history)

    assert (together.outcome, together.agent) == ("routed", "weather")
    assert alone.in_scope < 0.5
    assert together.confidence > alone.confidence or alone.agent != "weather"
    assert "read together" in together.reason


async def test_what_stands_on_its_own_is_not_drawn_to_what_was_said_before(mesh: Mesh) -> None:
    history = (Utterance(role="user", content="will it rain tomorrow?"),)

    assert await chosen(mesh, "show my bill", history=history) == ("billing", "view_bill")


# -- by name --


async def test_an_agent_that_is_named_is_chosen_with_the_capability_that_fits(mesh: Mesh) -> None:
    decision = await decide(mesh, "take it from my card", agent="billing")

    assert (decision.outcome, decision.agent) == ("routed", "billing")
    assert (decision.capability, decision.method) == ("pay_bill", "explicit")


async def test_an_unknown_agent_is_a_404_that_names_what_is_near(mesh: Mesh) -> None:
    with pytest.raises(AgentNotFound, match="did you mean billing") as missing:
        await decide(mesh, "x", agent="biling")

    assert missing.value.details["near"] == ["billing"]
    assert mesh.bus.tenant in missing.value.message


async def test_an_agent_that_has_not_the_subset_is_a_404_that_names_those_it_has(
    mesh: Mesh,
) -> None:
    with pytest.raises(AgentNotFound, match="no subset 'beta'") as missing:
        await decide(mesh, "x", agent="billing", subset="beta")

    assert missing.value.hint == "it has stable"


async def test_a_named_agent_that_does_not_run_is_a_404_that_says_so(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        await mesh.bus.call(
            REGISTER, Register(thing={"name": "asleep", "capabilities": [{"id": "a"}]})
        )
        await until(says, mesh, "no instance running", within_s=SOON_S)


async def says(mesh: Mesh, text: str) -> bool:
    with pytest.raises(AgentNotFound) as missing:
        await decide(mesh, "x", agent="asleep")
    return text in missing.value.message


async def test_naming_nobody_explicitly_is_refused(mesh: Mesh) -> None:
    with pytest.raises(InvalidMessage, match="/agent"):
        await decide(mesh, "x", method="explicit")


# -- following the registry --


async def test_a_new_agent_is_routable_at_once(services: Deployment, tenant: str) -> None:
    """Counted from the reply to its registration, over several agents."""
    async with services.client(tenant) as mesh:
        for name, example in (
            ("bakery", "order two loaves of bread"),
            ("cinema", "which films are on tonight?"),
            ("garden", "my tomatoes have brown leaves"),
        ):
            source = agent(name, f"Is the {name}.", {f"ask_{name}": [example]})
            process = services.start_agent(source, name=name, LMOS_TENANT=tenant)
            await process.logged("is ready")

            await until(is_chosen, mesh, example, name, within_s=SOON_S)


async def is_chosen(mesh: Mesh, message: str, agent: str) -> bool:
    return (await decide(mesh, message)).agent == agent


async def test_many_examples_do_not_keep_a_new_agent_waiting(
    services: Deployment, tenant: str
) -> None:
    """Each text takes the encoder milliseconds; the first of each capability come first."""
    examples = {
        f"topic_{at}": [f"tell me fact {number} about topic {at}" for number in range(20)]
        for at in range(10)
    }
    examples["unusual"] = ["how do I polish a trombone?"]
    async with services.client(tenant) as mesh:
        process = services.start_agent(
            agent("museum", "Knows everything.", examples), name="museum", LMOS_TENANT=tenant
        )
        await process.logged("is ready")
        await until(is_chosen, mesh, "how do I polish a trombone?", "museum", within_s=SOON_S)
        state = await mesh.bus.call(ROUTER_STATUS, RouterStatus())
        assert state.agents >= 1
        assert state.approximate_recall == 1.0


async def test_what_an_agent_says_of_itself_anew_changes_where_messages_go(
    services: Deployment, tenant: str
) -> None:
    tea = {"id": "tea", "examples": ["brew some tea"]}
    coffee = {"id": "coffee", "examples": ["make an espresso"]}
    source = agent("kitchen", "Makes tea.", {"tea": ["brew some tea"]})
    services.agent(source, name="kitchen", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        await until(is_chosen, mesh, "brew some tea", "kitchen", within_s=SOON_S)

        record = {"name": "kitchen", "description": "Makes coffee.", "capabilities": [coffee]}
        await mesh.bus.call(REGISTER, Register(thing=record))
        await until(has_capability, mesh, "make an espresso", "coffee", within_s=SOON_S)

        record["capabilities"] = [coffee, tea]
        await mesh.bus.call(REGISTER, Register(thing=record))
        await until(has_capability, mesh, "brew some tea", "tea", within_s=SOON_S)


async def has_capability(mesh: Mesh, message: str, capability: str) -> bool:
    return (await decide(mesh, message)).capability == capability


async def test_an_agent_that_leaves_or_is_forgotten_is_chosen_no_more(
    services: Deployment, tenant: str
) -> None:
    first = services.agent(WEATHER, name="weather", LMOS_TENANT=tenant)
    second = services.agent(BILLING, name="billing", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        await until(is_chosen, mesh, "will it rain?", "weather", within_s=SOON_S)
        await until(is_chosen, mesh, "show my bill", "billing", within_s=SOON_S)

        first.terminate()
        assert await first.ended() == 0
        assert (await decide(mesh, "will it rain?", threshold=0)).agent == "billing"

        await mesh.bus.call(DEREGISTER, Deregister(name="billing"))
        await until(is_chosen, mesh, "show my bill", "", within_s=SOON_S)
    second.terminate()
    assert await second.ended() == 0


# -- embedding --


async def test_texts_are_embedded_as_unit_vectors_of_meaning(mesh: Mesh) -> None:
    texts = ("my invoice", "the bill I got", "a herd of elephants", "")
    embedded = await mesh.bus.call(EMBED, Embed(texts=texts))

    assert embedded.semantic
    assert embedded.fingerprint
    assert [len(vector) for vector in embedded.vectors] == [embedded.dimensions] * 4
    lengths = [sum(x * x for x in vector) for vector in embedded.vectors]
    assert lengths == pytest.approx([1] * 4, abs=1e-4)

    def likeness(one: int, other: int) -> float:
        pairs = zip(embedded.vectors[one], embedded.vectors[other], strict=True)
        return sum(x * y for x, y in pairs)

    assert likeness(0, 1) > 0.4 > 2 * likeness(0, 2)


async def test_too_many_texts_at_a_time_are_refused(mesh: Mesh) -> None:
    with pytest.raises(InvalidMessage, match="/texts"):
        await mesh.bus.request(
            f"lmos.{mesh.bus.tenant}.router.embed",
            json.dumps({"texts": ["x"] * 1025}).encode(),
            timeout_s=SOON_S,
        )


async def test_a_known_text_is_decided_in_milliseconds(mesh: Mesh) -> None:
    await decide(mesh, "show my bill")
    began = time.perf_counter()
    for _ in range(50):
        await decide(mesh, "show my bill")

    assert (time.perf_counter() - began) / 50 < 0.05


async def test_decisions_are_written_down_without_the_message(
    services: Deployment, mesh: Mesh
) -> None:
    async with plain_client(services.url) as client:
        kept = await client.subscribe(f"lmos.{mesh.bus.tenant}.audit.decided")
        await client.flush()
        await decide(mesh, "show my bill, my secret is 1234")
        data = (await kept.next_msg(timeout=SOON_S)).data

    assert json.loads(data)["agent"] == "billing"
    assert b"1234" not in data


# -- without a model --


async def test_without_a_model_words_decide_and_the_router_says_so(
    services: Deployment, town: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A second router, in the queue with the first: its answers are told by their encoder."""
    empty = tmp_path_factory.mktemp("no-models")
    lexical = services.service("router", LMOS_MODELS_DIR=str(empty))
    lexical.expected = "routing by words"
    try:
        async with services.client(town) as mesh:
            decisions = [await decide(mesh, "show my bill") for _ in range(40)]
            by_words = [one for one in decisions if one.encoder != "all-MiniLM-L6-v2"]
            assert by_words
            assert all("hashing" in one.encoder for one in by_words)
            assert {one.agent for one in by_words} == {"billing"}
        assert lexical.entries("routing by words, not by meaning")
    finally:
        lexical.terminate()
        assert await lexical.ended() == 0


# -- bad input --

GARBAGE = [
    b"\x00",
    b"\xc1\xff",
    b"{",
    b"[]",
    b"{" * 50_000,
    b'{"message":7}',
    b'{"message":"x","history":[{"role":"nobody"}]}',
    b'{"texts":[1]}',
    b'{"texts":"x"}',
    b'{"message":"\\ud800","texts":["\\ud800"]}',
]


@pytest.mark.parametrize("operation", ["decide", "embed", "status", "nothing"])
async def test_no_bytes_stop_the_router(services: Deployment, mesh: Mesh, operation: str) -> None:
    for payload in GARBAGE:
        status = 200
        try:
            await mesh.bus.request(
                f"lmos.{mesh.bus.tenant}.router.{operation}", payload, timeout_s=SOON_S
            )
        except MeshError as error:
            status = error.status
        assert status < 500, payload[:40]

    assert await chosen(mesh, "show my bill") == ("billing", "view_bill")
    assert services.died() == []


async def test_a_long_or_strange_message_is_decided_like_any_other(mesh: Mesh) -> None:
    for message in ("x" * 300_000, "\x00", "🙂" * 1000, " ", "will it rain? " * 5000):
        decision = await decide(mesh, message)
        assert decision.outcome in ("routed", "unsure", "out_of_scope")
