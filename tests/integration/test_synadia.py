"""The Synadia Agent Protocol as its own SDKs speak it.

Their client asks our agents, and agents hosted with their SDK are citizens of our mesh.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from synadia_ai.agents import (
    Agent,
    Agents,
    AttachmentsNotSupportedError,
    DiscoverFilter,
    PromptEmptyError,
    ProtocolError,
    ResponseChunk,
    StatusChunk,
)
from synadia_ai.agents.envelope import Attachment

from lmos_mesh.errors import MeshError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    CONVERSE,
    DECIDE,
    ROUTER_STATUS,
    Converse,
    Decide,
    FoundThing,
    RouterStatus,
)
from lmos_mesh.reply_stream import Frame
from tests.conftest import new_name
from tests.integration.processes import (
    Deployment,
    Process,
    find_one,
    instances_of,
    plain_client,
    until,
)

SOON_S = 15.0
INTERVAL_S, SELDOM_S = 1, 30
"""Between two heartbeats of a foreign agent; the protocol counts in whole seconds."""

OURS = """
    import asyncio

    from lmos_mesh import Agent, Context

    agent = Agent("teller", version="1.2.3", description="Tells stories and counts.")

    @agent.capability(examples=["tell me a story"])
    async def tell(question: str, context: Context):
        \"\"\"Tell a story in pieces.\"\"\"
        for word in question.split():
            yield word + " "
            await asyncio.sleep(0.01)

    @agent.capability(examples=["sleep for a moment"])
    async def sleep(question: str) -> str:
        \"\"\"Sleep for a moment.\"\"\"
        await asyncio.sleep(1.0)
        return "slept"

    @agent.capability(examples=["break now"])
    async def crash(question: str) -> str:
        \"\"\"Break down.\"\"\"
        raise ValueError("a secret")

    agent.run()
"""

THEIRS = """
    import asyncio, json, os, signal

    import nats
    from synadia_ai.agent_service import AgentService, RequestRejectedError


    async def answer(envelope, stream):
        text = envelope.prompt
        if "crash" in text:
            raise ValueError("a secret")
        if "unknown" in text:
            raise RequestRejectedError(404, "no such planet")
        if "first words" in text:
            await stream.send("The first ")
            raise ValueError("a secret")
        if "slowly" in text:
            await stream.send(f"Once [{{service.instance_id}}] ")
            await asyncio.sleep(30)
        if "count" in text:
            await stream.send(f"[{{service.instance_id}}] ")
            for number in range(10):
                await stream.send(f"{{number}} ")
                await asyncio.sleep(0.1)
            return
        if "think" in text:
            await asyncio.sleep(2.5)
        for piece in ("The moon ", "is ", "384,400 km ", "away. ", f"[{{service.instance_id}}]"):
            await stream.send(piece)


    async def main():
        global service
        client = await nats.connect(os.environ["LMOS_NATS_URL"])
        service = AgentService(
            nc=client,
            agent={agent!r},
            owner={owner!r},
            session_name="main",
            description={description!r},
            heartbeat_interval_s={interval_s!r},
        )
        service.on_prompt(answer)
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await service.start()
        told = {{"event": "is ready", "level": "info", "instance": service.instance_id}}
        print(json.dumps(told), flush=True)
        await stopped.wait()
        await service.stop()
        await client.close()


    asyncio.run(main())
"""
FOREIGN_TENANT = "demo"
MOON = "Knows astronomy: planets, moons and the distances between stars."


# -- our agents, asked by their client --


@pytest.fixture(scope="module")
def owner() -> str:
    """The tenant of our agent, which is the owner in their words."""
    return new_name("owner")


@pytest.fixture(scope="module")
def teller(services: Deployment, owner: str) -> Generator[Process]:
    """One instance of an agent of ours."""
    process = services.agent(OURS, name="teller", LMOS_TENANT=owner)
    process.expected = "ValueError"
    yield process
    process.terminate()
    process.wait()


@asynccontextmanager
async def their_client(url: str) -> AsyncGenerator[Agents]:
    async with plain_client(url) as connection:
        agents = Agents(nc=connection)
        try:
            yield agents
        finally:
            await agents.close()


async def discovered(agents: Agents, owner: str, name: str = "teller") -> Agent:
    found = await agents.discover(filter=DiscoverFilter(owner=owner, session_name=name))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
async def asked(services: Deployment, owner: str, teller: Process) -> AsyncGenerator[Agent]:
    """Our agent as their client has it."""
    async with their_client(services.url) as agents:
        yield await discovered(agents, owner)


async def words_of(agent: Agent, prompt: str) -> list[str]:
    return [one.text for one in await chunks_of(agent, prompt) if isinstance(one, ResponseChunk)]


async def chunks_of(agent: Agent, prompt: str) -> list[Any]:
    return [chunk async for chunk in agent.prompt(prompt, timeout=10)]


async def test_their_client_discovers_our_agent(asked: Agent, owner: str) -> None:
    assert (asked.agent, asked.owner, asked.session_name) == ("lmos", owner, "teller")
    assert asked.protocol_version == "0.3"
    assert asked.version == "1.2.3"
    assert asked.description == "Tells stories and counts."
    assert asked.prompt_subject == f"agents.prompt.lmos.{owner}.teller"
    assert asked.prompt_endpoint.attachments_ok is False
    assert asked.prompt_endpoint.max_payload_bytes == 1024 * 1024


async def test_a_prompt_is_acknowledged_and_its_pieces_come_in_order(asked: Agent) -> None:
    story = " ".join(f"word{n}" for n in range(40))

    chunks = await chunks_of(asked, f"tell a story {story}")

    assert isinstance(chunks[0], StatusChunk)
    assert chunks[0].status == "ack"
    assert all(isinstance(one, ResponseChunk) for one in chunks[1:])
    assert [one.text for one in chunks[1:]] == [
        f"{word} " for word in ("tell", "a", "story", *story.split())
    ]


async def test_what_is_not_ascii_arrives_as_it_was_sent(asked: Agent) -> None:
    assert await words_of(asked, "tell größte Übung 🌍") == ["tell ", "größte ", "Übung ", "🌍 "]


async def test_status_is_a_heartbeat_of_that_instance(asked: Agent, owner: str) -> None:
    beat = await asked.status()

    assert (beat.agent, beat.owner, beat.session) == ("lmos", owner, "teller")
    assert beat.instance_id == asked.instance_id
    assert beat.interval_s > 0


async def test_a_new_instance_is_online_by_its_first_heartbeat(services: Deployment) -> None:
    tenant = new_name("owner")
    async with their_client(services.url) as agents:
        await agents.start_tracking()
        process = await asyncio.to_thread(services.agent, OURS, name="teller", LMOS_TENANT=tenant)
        try:
            instance = (await discovered(agents, tenant)).instance_id

            async def online() -> bool:
                seen = agents.liveness(instance)
                return seen is not None and seen.is_online

            await until(online, within_s=SOON_S)
            assert await agents.ping(instance)
        finally:
            process.terminate()
            await process.ended()
        assert not await agents.ping(instance)


@pytest.mark.parametrize(
    "payload", [b"", b"  \n", b'{"prompt": ""}', b'{"prompt": 7}', b"{", b"\xff\xfe"]
)
async def test_a_prompt_that_is_none_gets_400_and_the_end(
    services: Deployment, asked: Agent, payload: bytes
) -> None:
    async with plain_client(services.url) as client:
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish(asked.prompt_subject, payload, reply=inbox)
        refused, end = [await replies.next_msg(timeout=SOON_S) for _ in range(2)]

    assert refused.headers["Nats-Service-Error-Code"] == "400"
    assert refused.headers["Nats-Service-Error"]
    assert (end.data, end.headers) == (b"", None)


async def test_what_we_declare_is_refused_by_their_client_already(asked: Agent) -> None:
    with pytest.raises(PromptEmptyError):
        await chunks_of(asked, "")
    with pytest.raises(AttachmentsNotSupportedError):
        async for _ in asked.prompt("look", attachments=[Attachment(filename="a", content="YQ==")]):
            pass


async def test_an_agent_that_raises_is_an_error_and_then_the_end(
    services: Deployment, asked: Agent
) -> None:
    with pytest.raises(ProtocolError, match=r"service error 500: .*'teller' failed") as error:
        await words_of(asked, "break down now")
    assert "a secret" not in str(error.value)

    async with plain_client(services.url) as client:
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish(asked.prompt_subject, b"break down now", reply=inbox)
        ack, failed, end = [await replies.next_msg(timeout=SOON_S) for _ in range(3)]
    assert json.loads(ack.data) == {"type": "status", "data": "ack"}
    assert failed.headers["Nats-Service-Error-Code"] == "500"
    assert (end.data, end.headers) == (b"", None)


async def test_one_instance_answers_several_prompts_at_once(asked: Agent) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(words_of(asked, "sleep for a moment please")) for _ in range(10)]
    took_s = time.perf_counter() - began

    assert [task.result() for task in tasks] == [["slept"]] * 10
    assert took_s < 9, f"ten times 1 s took {took_s:.2f} s"


async def test_a_client_that_leaves_in_mid_answer_harms_nobody(
    services: Deployment, owner: str, asked: Agent
) -> None:
    async with their_client(services.url) as leaving:
        agent = await discovered(leaving, owner)
        async for chunk in agent.prompt("tell " + "on " * 200):
            if isinstance(chunk, ResponseChunk):
                break

    assert await words_of(asked, "tell more") == ["tell ", "more "]


# -- their agents, on our mesh --


class Foreigners:
    """Agents hosted with their SDK, each a process, all called alike."""

    def __init__(self, services: Deployment) -> None:
        self._services = services
        self.agent = new_name("moon")
        self.name = ""
        self.processes: list[Process] = []

    async def start(
        self, *, owner: str = "them", description: str = MOON, interval_s: int = INTERVAL_S
    ) -> Process:
        """Another instance, which the registry lists."""
        source = THEIRS.format(
            agent=self.agent, owner=owner, description=description, interval_s=interval_s
        )
        process = await asyncio.to_thread(self._services.agent, source, name=self.agent)
        process.expected = "prompt"  # their SDK logs what its handler raises
        self.processes.append(process)
        self.name = self.name or f"{self.agent}-{owner}-main"
        return process

    async def stop(self) -> None:
        """End those that are left."""
        for process in self.processes:
            if process.alive:
                process.thaw()
                process.kill()


@pytest.fixture
async def moon(services: Deployment) -> AsyncGenerator[Foreigners]:
    """Nobody yet; whoever is started ends with the test."""
    foreigners = Foreigners(services)
    try:
        yield foreigners
    finally:
        await foreigners.stop()


@pytest.fixture
async def mesh(services: Deployment) -> AsyncGenerator[Mesh]:
    """The tenant that foreign agents enter."""
    async with services.client(FOREIGN_TENANT) as connected:
        yield connected


async def listed(mesh: Mesh, moon: Foreigners, instances: int = 1) -> FoundThing:
    """It as the registry has it, once it is known to have that many instances."""

    async def known() -> bool:
        return len(await instances_of(mesh, moon.name)) == instances

    await until(known, within_s=SOON_S)
    found = await find_one(mesh, moon.name)
    assert found is not None
    return found


async def routable(mesh: Mesh, moon: Foreigners) -> None:
    """Wait until the router would choose it."""

    async def chosen() -> bool:
        decision = await mesh.bus.call(DECIDE, Decide(message="how far away is the moon?"))
        return decision.agent == moon.name

    await until(chosen, within_s=SOON_S)


async def gone(mesh: Mesh, moon: Foreigners, within_s: float) -> float:
    """How long it takes until it is not found any more."""

    async def not_found() -> bool:
        return await find_one(mesh, moon.name) is None

    return await until(not_found, within_s=within_s)


async def frames_of(mesh: Mesh, message: str, **more: Any) -> list[Frame]:
    async with mesh.converse(message, **more) as frames:
        return [frame async for frame in frames]


async def test_an_agent_of_theirs_is_listed_as_external_with_one_capability(
    mesh: Mesh, moon: Foreigners
) -> None:
    process = await moon.start()

    found = await listed(mesh, moon)

    assert found.external
    assert found.live
    assert found.summary == MOON
    assert [(one.id, one.description) for one in found.capabilities] == [("prompt", MOON)]
    assert [one.instance for one in found.instances] == [process.instance]
    assert moon.name in [one.name for one in await mesh.find(text="astronomy planets")]


async def test_an_agent_of_theirs_is_routed_to_by_meaning_and_answers(
    mesh: Mesh, moon: Foreigners
) -> None:
    semantic = (await mesh.bus.call(ROUTER_STATUS, RouterStatus())).semantic
    if not semantic:
        pytest.skip("routing by meaning needs the embedding model: `lmos models install`")
    process = await moon.start()
    await listed(mesh, moon)
    await routable(mesh, moon)
    whole = f"The moon is 384,400 km away. [{process.instance}]"

    frames = await frames_of(mesh, "how far away is the moon?")
    answer = await mesh.bus.call(CONVERSE, Converse(message="how far away is the moon?"))

    deltas = [frame.body for frame in frames if frame.kind == "delta"]
    assert deltas[:4] == ["The moon ", "is ", "384,400 km ", "away. "], "piece by piece"
    assert "".join(deltas) == whole
    assert frames[-1].kind == "end"
    assert frames[-1].body["answer"] == whole
    assert (answer.answer, answer.agent, answer.capability) == (whole, moon.name, "prompt")
    assert answer.instance == process.instance
    assert answer.attempts == 1


@pytest.mark.parametrize(
    ("message", "said"),
    [("crash", "handler error"), ("an unknown planet", "no such planet")],
)
async def test_an_error_of_theirs_reaches_the_caller(
    mesh: Mesh, moon: Foreigners, message: str, said: str
) -> None:
    await moon.start()
    await listed(mesh, moon)

    with pytest.raises(MeshError, match=said) as error:
        await frames_of(mesh, message, agent=moon.name)
    with pytest.raises(MeshError, match=said):
        await mesh.bus.call(CONVERSE, Converse(message=message, agent=moon.name))

    assert error.value.status == (404 if "unknown" in message else 500)
    assert "a secret" not in str(error.value)


async def test_an_error_of_theirs_after_the_first_words_is_no_answer(
    mesh: Mesh, moon: Foreigners
) -> None:
    await moon.start()
    await listed(mesh, moon)
    heard: list[Frame] = []

    async def listen() -> None:
        async with mesh.converse("the first words", agent=moon.name) as frames:
            async for frame in frames:
                heard.append(frame)  # noqa: PERF401

    with pytest.raises(MeshError, match="handler error"):
        await listen()

    assert [frame.body for frame in heard if frame.kind == "delta"] == ["The first "]
    assert heard[-1].kind == "delta"


async def test_one_that_is_killed_is_gone_at_once(mesh: Mesh, moon: Foreigners) -> None:
    process = await moon.start(interval_s=SELDOM_S)  # three of them are missed much later
    await listed(mesh, moon)

    process.kill()

    took_s = await gone(mesh, moon, SOON_S)
    print(f"killed, and not found any more after {took_s * 1000:.0f} ms")


async def test_one_that_falls_silent_is_gone_after_three_heartbeats(
    mesh: Mesh, moon: Foreigners
) -> None:
    process = await moon.start()
    await listed(mesh, moon)
    await asyncio.sleep(1.5 * INTERVAL_S)  # so that its heartbeats have told how often they come

    process.freeze()

    took_s = await gone(mesh, moon, 3 * INTERVAL_S + SOON_S)
    print(f"frozen, and not found any more after {took_s:.1f} s")
    assert took_s > 1.5 * INTERVAL_S, "one late heartbeat is no death"
    process.thaw()
    await listed(mesh, moon)


async def test_one_that_stops_in_order_is_gone_too(mesh: Mesh, moon: Foreigners) -> None:
    process = await moon.start()
    await listed(mesh, moon)

    process.terminate()

    await gone(mesh, moon, SOON_S)
    await process.ended()


async def test_two_instances_share_the_questions_and_one_may_die(
    mesh: Mesh, moon: Foreigners
) -> None:
    first, second = await moon.start(), await moon.start()
    found = await listed(mesh, moon, 2)
    assert {one.instance for one in found.instances} == {first.instance, second.instance}

    async def ask() -> str:
        answer = await mesh.ask("how far is the moon?", agent=moon.name)
        return answer.answer.split("[")[1].rstrip("]")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask()) for _ in range(20)]
    answered = {task.result() for task in tasks}
    first.kill()
    after = [await ask() for _ in range(10)]

    assert answered == {first.instance, second.instance}
    assert set(after) == {second.instance}
    assert [one.instance for one in (await listed(mesh, moon, 1)).instances] == [second.instance]


async def test_two_owners_agents_are_two_agents(mesh: Mesh, moon: Foreigners) -> None:
    await moon.start(owner="alice", description="Knows the moons of Saturn.")
    await moon.start(owner="bob", description="Knows the moons of Jupiter.")

    async def both() -> bool:
        return len(await ours_called(mesh, moon.agent)) == 2

    await until(both, within_s=SOON_S)

    assert {one.summary for one in await ours_called(mesh, moon.agent)} == {
        "Knows the moons of Saturn.",
        "Knows the moons of Jupiter.",
    }


async def ours_called(mesh: Mesh, prefix: str) -> list[FoundThing]:
    return [one for one in await mesh.find() if one.name.startswith(prefix)]


async def test_its_death_in_mid_answer_is_noticed(mesh: Mesh, moon: Foreigners) -> None:
    process = await moon.start()
    await listed(mesh, moon)
    kinds: list[str] = []
    killed = 0.0

    async def listen() -> None:
        nonlocal killed
        async with mesh.converse("tell it slowly", agent=moon.name) as frames:
            async for frame in frames:
                kinds.append(frame.kind)
                if frame.kind == "delta":
                    process.kill()
                    killed = time.perf_counter()

    with pytest.raises(MeshError, match=moon.name) as error:
        await listen()
    took_s = time.perf_counter() - killed

    assert "delta" in kinds
    assert error.value.status in (502, 503)
    # The runtime waits a few seconds for whoever supervises it to start it again.
    assert took_s < SOON_S, f"noticed after {took_s:.1f} s"


@pytest.mark.parametrize("attempt", range(2))  # who answers is the server's choice
async def test_the_death_of_the_one_that_answers_is_noticed_among_several(
    mesh: Mesh, moon: Foreigners, attempt: int
) -> None:
    for _ in range(2):
        await moon.start()
    await listed(mesh, moon, 2)
    kinds: list[str] = []
    killed = 0.0

    async with mesh.converse("tell it slowly", agent=moon.name) as frames:
        async for frame in frames:
            kinds.append(frame.kind)
            if kinds.count("delta") == 2:
                break
            if frame.kind == "delta":
                next(one for one in moon.processes if one.instance in frame.body).kill()
                killed = time.perf_counter()
    took_s = time.perf_counter() - killed

    assert kinds[-3:] == ["delta", "restart", "delta"]
    assert took_s < SOON_S, f"begun anew after {took_s:.1f} s"


async def test_the_death_of_another_instance_does_not_disturb_an_answer(
    mesh: Mesh, moon: Foreigners
) -> None:
    await moon.start()
    await moon.start()
    await listed(mesh, moon, 2)
    kinds: list[str] = []
    body = ""
    async with mesh.converse("count", agent=moon.name) as frames:
        async for frame in frames:
            kinds.append(frame.kind)
            if frame.kind == "delta":
                body += frame.body
            if kinds.count("delta") == 1:
                other = next(one for one in moon.processes if one.instance not in body)
                if other.alive:
                    other.kill()

    assert "restart" not in kinds
    assert body.endswith("9 ")


async def test_one_that_answers_one_at_a_time_may_let_others_wait(
    mesh: Mesh, moon: Foreigners
) -> None:
    """Their hosts do by default, and who waits gets no sign until its turn."""
    await moon.start()
    await listed(mesh, moon)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mesh.ask("think", agent=moon.name)) for _ in range(2)]

    assert [task.result().attempts for task in tasks] == [1, 1]


async def test_another_instance_begins_the_answer_anew(mesh: Mesh, moon: Foreigners) -> None:
    process = await moon.start()
    await listed(mesh, moon)
    heard: list[Frame] = []
    source: Process | None = None

    async with mesh.converse("tell it slowly", agent=moon.name) as frames:
        async for frame in frames:
            heard.append(frame)
            deltas = [one for one in heard if one.kind == "delta"]
            if len(deltas) == 1 and source is None:
                source = await moon.start()
                await listed(mesh, moon, 2)
                process.kill()
            elif len(deltas) == 2:
                break

    kinds = [one.kind for one in heard]
    assert kinds[-3:] == ["delta", "restart", "delta"]


# -- ours, not twice --


async def test_our_agents_are_not_taken_for_foreign_ones(
    mesh: Mesh, services: Deployment, owner: str, teller: Process, moon: Foreigners
) -> None:
    await moon.start()  # a sign of life of a foreign agent has come, so ours have been seen too
    await listed(mesh, moon)
    async with services.client(owner) as home:
        at_home = await home.find(live=None)
    entered = await mesh.find(live=None)

    assert [(one.name, one.external) for one in at_home] == [("teller", False)]
    assert [one.instance for one in at_home[0].instances] == [teller.instance]
    assert not [one.name for one in entered if "teller" in one.name or one.name.startswith("lmos")]


async def test_what_is_no_agent_is_not_taken_in(
    mesh: Mesh, services: Deployment, moon: Foreigners
) -> None:
    """A service that only calls itself `agents` does no harm, and neither do broken heartbeats."""
    before = {one.name for one in await mesh.find(live=None)}
    metadata = {"agent": "odd", "owner": "them", "protocol_version": "0.3"}
    about: dict[str, Any] = {"name": "agents", "version": "1.0.0", "metadata": metadata}
    no_prompt: dict[str, Any] = {**about, "id": "odd-1", "endpoints": []}
    short: dict[str, Any] = {
        **about,
        "id": "odd-2",
        "endpoints": [{"name": "prompt", "subject": "odd"}],
    }
    infos = {"odd-1": no_prompt, "odd-2": short}
    async with plain_client(services.url) as client:
        for instance, info in infos.items():

            async def tell(message: Any, info: dict[str, Any] = info) -> None:
                await message.respond(json.dumps(info).encode())

            await client.subscribe(f"$SRV.INFO.agents.{instance}", cb=tell)
        for instance in infos:
            beat = {"agent": "odd", "instance_id": instance, "interval_s": 1}
            await client.publish("agents.hb.odd.them.x", json.dumps(beat).encode())
        for broken in (b"", b"[]", b"{", b'{"agent":"x"}', b"[" * 100_000):
            await client.publish("agents.hb.odd.them.x", broken)
        huge = b'{"agent":"x","instance_id":"y","interval_s":1' + b"0" * 400 + b"}"
        await client.publish("agents.hb.odd.them.x", huge)
        await client.flush()
        await moon.start()
        await listed(mesh, moon)  # whoever comes after them is still met

    names = {one.name for one in await mesh.find(live=None)} - before
    assert names - {moon.name} <= {"odd-them-odd"}
    assert not services.complaints(), services.complaints()
