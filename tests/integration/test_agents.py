"""Agents as their authors run them: a file, a process, and a mesh that finds it."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh import subjects
from lmos_mesh.codec import decode_value, encode_value
from lmos_mesh.errors import AgentFailed, InvalidMessage, MeshError, Overloaded
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import CONVERSE, DECIDE, Converse, Decide
from lmos_mesh.semver import Version
from lmos_mesh.service import BAD_SETTINGS
from tests.conftest import StartServer
from tests.integration.processes import Deployment, Process, instances_of, plain_client, until

SOON_S = 15.0

KINDS = '''
import asyncio, json, time
from lmos_mesh import Agent, Context

agent = Agent("kinds", description="Has functions of every kind.", version="1.2.3")

@agent.capability
def in_thread(seconds: float) -> str:
    """Sleep in a thread."""
    time.sleep(seconds)
    return "done"

@agent.capability
async def words(count: int):
    for number in range(count):
        yield f"{number} "

@agent.capability
def words_in_thread(count: int):
    for number in range(count):
        yield f"{number} "

@agent.capability
async def said(context: Context) -> str:
    await context.say("one ")
    return "two"

@agent.capability
async def order(size: int, colours: list[str], note: str | None = None) -> dict:
    return {"size": size, "colours": colours, "note": note}

@agent.capability
async def much(size: int) -> str:
    return "x" * size

@agent.capability
async def wait(context: Context):
    yield "begun"
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        said = {"level": "info", "event": f"heard that {context.task} was called off"}
        print(json.dumps(said), flush=True)
        raise

agent.run()
'''

SLOW = """
import asyncio
from lmos_mesh import Agent

agent = Agent("slow", description="Takes its time.", concurrency=3)

@agent.capability
async def take(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"

agent.run()
"""


@pytest.fixture(scope="module")
def kinds(services: Deployment) -> Generator[Process]:
    """One agent with functions of every kind, in a tenant of its own."""
    process = services.agent(KINDS, name="kinds", LMOS_TENANT="agent-tests")
    yield process
    process.terminate()
    process.wait()


@pytest.fixture
async def mesh(services: Deployment, kinds: Process) -> AsyncGenerator[Mesh]:
    async with services.client("agent-tests") as connected:
        yield connected


def subject(mesh: Mesh, agent: str, capability: str) -> str:
    return subjects.agent_invoke(mesh.bus.tenant, agent, "stable", capability)


async def invoke(
    mesh: Mesh, capability: str, *, agent: str = "kinds", timeout_s: float = SOON_S, **given: Any
) -> Any:
    reply = await mesh.bus.request(
        subject(mesh, agent, capability), encode_value(given), timeout_s=timeout_s
    )
    return decode_value(reply.payload)


# -- answering --


@pytest.mark.parametrize(
    ("capability", "given", "answer"),
    [
        ("in_thread", {"seconds": 0}, "done"),
        ("words", {"count": 3}, "0 1 2 "),
        ("words_in_thread", {"count": 3}, "0 1 2 "),
        ("said", {}, "one two"),
        (
            "order",
            {"size": "2", "colours": ["red"]},
            {"size": 2, "colours": ["red"], "note": None},
        ),
    ],
)
async def test_functions_of_every_kind_answer(
    mesh: Mesh, capability: str, given: dict[str, Any], answer: Any
) -> None:
    assert await invoke(mesh, capability, **given) == answer


async def test_ten_calls_of_a_slow_function_to_one_instance_take_no_longer_than_a_few(
    mesh: Mesh,
) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(invoke(mesh, "in_thread", timeout_s=15.0, seconds=1.0))

    assert time.perf_counter() - began < 9


async def test_a_person_may_invoke_it_in_json(services: Deployment, mesh: Mesh) -> None:
    async with plain_client(services.url) as client:
        reply = await client.request(
            subject(mesh, "kinds", "order"), b'{"size":1,"colours":[]}', timeout=SOON_S
        )

    assert json.loads(reply.data) == {"size": 1, "colours": [], "note": None}


async def test_bad_input_is_refused_with_every_wrong_field(mesh: Mesh) -> None:
    with pytest.raises(InvalidMessage, match=r"'order'.*/size.*/colours") as refused:
        await invoke(mesh, "order", size="many", colours="red")

    assert [one["field"] for one in refused.value.details["faults"]] == ["/size", "/colours"]


async def test_an_answer_over_the_payload_limit_is_a_clear_error(mesh: Mesh) -> None:
    limit = mesh.bus.transport.max_payload
    with pytest.raises(AgentFailed, match=rf"agent 'kinds' .*{limit}"):
        await invoke(mesh, "much", size=limit)
    assert len(await invoke(mesh, "much", size=1000)) == 1000


async def test_a_caller_that_leaves_is_noticed_by_the_agent(mesh: Mesh, kinds: Process) -> None:
    stream = await mesh.bus.open_stream(subject(mesh, "kinds", "wait"), encode_value({}))
    assert [(await anext(stream)).kind for _ in range(2)] == ["ack", "delta"]
    task = stream.task

    stream.close()

    await kinds.logged(f"{task} was called off", SOON_S)


async def test_a_caller_that_is_killed_is_noticed_by_the_agent(
    services: Deployment, mesh: Mesh, kinds: Process, tmp_path: Path
) -> None:
    caller = f"""
    import asyncio
    from lmos_mesh import Mesh
    from lmos_mesh.codec import encode_value

    async def main():
        async with Mesh.connect({services.url!r}, tenant={mesh.bus.tenant!r}) as mesh:
            stream = await mesh.bus.open_stream(
                {subject(mesh, "kinds", "wait")!r}, encode_value({{}}), task="of-the-killed"
            )
            async for frame in stream:
                print(frame.kind, flush=True)

    asyncio.run(main())
    """
    process = services.start_agent(caller, name="caller")
    process.expected = "[-]"
    await process.logged("delta")

    process.kill()

    await kinds.logged("of-the-killed was called off", SOON_S)


# -- more than it can do at a time --


async def test_calls_beyond_the_concurrency_wait_and_are_answered(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(SLOW, name="slow", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(9):
                tasks.create_task(invoke(mesh, "take", agent="slow", seconds=0.1))
        took_s = time.perf_counter() - began
        assert took_s >= 0.3

        found = (await mesh.find(name="slow"))[0].instances[0]
        assert found.concurrency == 3
    process.terminate()
    assert await process.ended() == 0


async def test_calls_beyond_the_backlog_are_refused_at_once(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(SLOW, name="slow", LMOS_TENANT=tenant, LMOS_DRAIN_TIMEOUT_S="0.1")
    async with services.client(tenant) as mesh:
        outcomes: list[str] = []

        async def one() -> None:
            try:
                outcomes.append(await invoke(mesh, "take", agent="slow", seconds=30, timeout_s=30))
            except Overloaded:
                outcomes.append("refused")
            except MeshError as error:
                outcomes.append(error.code)

        async with asyncio.TaskGroup() as tasks:
            callers = [tasks.create_task(one()) for _ in range(1200)]
            await until(some_of, outcomes, "refused", within_s=20.0)
            for caller in callers:
                caller.cancel()

    assert outcomes.count("refused") == 1200 - 1024 - 3
    process.terminate()
    await process.ended()


async def some_of(outcomes: list[str], wanted: str) -> bool:
    return outcomes.count(wanted) >= 1200 - 1024 - 3


# -- leaving --


async def test_an_agent_that_is_told_to_stop_loses_no_accepted_request(
    services: Deployment, tenant: str
) -> None:
    """Two instances under steady load, one of them stopped: every call is answered."""
    stays = services.agent(SLOW, name="slow", LMOS_TENANT=tenant)
    leaves = services.agent(SLOW, name="slow", LMOS_TENANT=tenant)
    answers: list[str] = []
    async with services.client(tenant) as mesh:

        async def call_often() -> None:
            for _ in range(12):
                answers.append(await invoke(mesh, "take", agent="slow", seconds=0.05))  # noqa: PERF401

        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(call_often())
            await asyncio.sleep(0.2)
            leaves.terminate()

        assert answers == ["done"] * 72
        assert await leaves.ended() == 0
        assert await instances_of(mesh, "slow") == {stays.instance}
    stays.terminate()
    assert await stays.ended() == 0


async def test_an_agent_that_is_told_to_stop_finishes_its_answer(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(SLOW, name="slow", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(invoke(mesh, "take", agent="slow", seconds=3.0))
        await asyncio.sleep(0.1)

        process.terminate()
        await until(has_left, mesh, "slow", within_s=SOON_S)
        assert not answer.done()

    assert answer.result() == "done"
    assert await process.ended() == 0


async def has_left(mesh: Mesh, name: str) -> bool:
    return not await mesh.find(name=name)


async def test_what_does_not_end_in_time_is_taken_over_by_another_instance(
    services: Deployment, tenant: str
) -> None:
    source = """
    import asyncio, os
    from lmos_mesh import Agent

    agent = Agent("teller", description="Counts.")

    @agent.capability
    async def tell(question: str):
        for number in range(10):
            yield f"{number} "
            await asyncio.sleep(float(os.environ["PAUSE_S"]))

    agent.run()
    """
    told: dict[str, str] = {"LMOS_TENANT": tenant, "LMOS_DRAIN_TIMEOUT_S": "0.3"}
    first = services.agent(source, name="first", PAUSE_S="5.0", **told)
    async with services.client(tenant) as mesh:
        await until(is_routable, mesh, "teller", within_s=SOON_S)
        words: list[str] = []
        kinds: list[str] = []
        second: Process | None = None
        request = Converse(message="x", agent="teller")
        async with mesh.bus.stream(CONVERSE, request) as stream:
            async for frame in stream:
                kinds.append(frame.kind)
                if frame.kind == "restart":
                    words.clear()
                if frame.kind == "delta":
                    words.append(frame.body)
                    if second is None:
                        second = services.start_agent(source, PAUSE_S="0", **told)
                        await second.logged("is ready")
                        first.terminate()

    assert kinds.count("restart") == 1
    assert "".join(words) == "0 1 2 3 4 5 6 7 8 9 "
    assert await first.ended() == 0


async def is_routable(mesh: Mesh, agent: str) -> bool:
    try:
        await mesh.bus.call(DECIDE, Decide(message="x", agent=agent))
    except MeshError:
        return False
    return True


async def test_a_function_that_hangs_in_its_thread_does_not_keep_the_process(
    services: Deployment, tenant: str
) -> None:
    source = """
    import time
    from lmos_mesh import Agent

    agent = Agent("stuck", description="Hangs.")

    @agent.capability
    def hang() -> str:
        print('{"level": "info", "event": "hanging"}', flush=True)
        time.sleep(60)
        return ""

    agent.run()
    """
    process = services.agent(source, name="stuck", LMOS_TENANT=tenant, LMOS_DRAIN_TIMEOUT_S="0.5")
    async with services.client(tenant) as mesh, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(outcome_of(mesh))
        await process.logged("hanging")
        began = time.perf_counter()

        process.terminate()

        assert await process.ended() == 0
        assert time.perf_counter() - began < 30
        assert "still running in threads" in process.log()
        call.cancel()


async def outcome_of(mesh: Mesh) -> None:
    with pytest.raises(MeshError):
        await invoke(mesh, "hang", agent="stuck")


# -- starting --


async def test_an_agent_waits_for_a_registry(start_nats: StartServer, tmp_path: Path) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        process = deployment.start_agent(SLOW, name="slow")
        await process.logged("not registered yet")

        deployment.service("registry")

        await process.logged("is ready")
        async with deployment.client() as mesh:
            assert await instances_of(mesh, "slow") == {process.instance}
        deployment.check_stop()
    finally:
        deployment.stop()


async def test_an_agent_waits_for_a_server(start_nats: StartServer, tmp_path: Path) -> None:
    server = await start_nats()
    await server.stop()
    deployment = Deployment(server.url, tmp_path)
    try:
        registry = deployment.start("registry")
        process = deployment.start_agent(SLOW, name="slow")
        await asyncio.sleep(1.0)
        assert registry.alive
        assert process.alive

        await server.start()

        await process.logged("is ready")
    finally:
        deployment.stop()


@pytest.mark.parametrize(
    ("env", "said", "status"),
    [
        (
            {"LMOS_NATS_URL": "nats://127.0.0.1:1", "LMOS_CONNECT_TIMEOUT_S": "0.5"},
            "127.0.0.1:1",
            1,
        ),
        ({"LMOS_DRAIN_TIMEOUT_S": "soon"}, "LMOS_DRAIN_TIMEOUT_S='soon'", BAD_SETTINGS),
        ({"LMOS_LOG_LEVEL": "LOUD"}, "LMOS_LOG_LEVEL='LOUD'", BAD_SETTINGS),
        ({"LMOS_NATS_CREDENTIALS": "/nowhere/at/all.creds"}, "/nowhere/at/all.creds", 1),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(
    services: Deployment, env: dict[str, str], said: str, status: int
) -> None:
    for process in (
        services.start("registry", **env),
        services.start_agent(SLOW, name="slow", **env),
    ):
        process.told_to_end = True
        process.expected = said

        assert process.wait() == status

        assert said in process.log().splitlines()[-1]
        assert "Traceback" not in process.log()


async def test_several_agents_of_one_process_are_found_and_leave_together(
    services: Deployment, tenant: str
) -> None:
    source = """
    from lmos_mesh import Agent, run_agents

    one, two = Agent("one", description="1"), Agent("two", description="2", subset="canary")

    @one.capability
    @two.capability
    async def act(question: str) -> str:
        return question

    run_agents([one, two])
    """
    process = services.agent(source, name="both", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        found = await mesh.find()
        assert [(one.name, one.subset) for one in found] == [("one", "stable"), ("two", "canary")]
        assert {one.instances[0].instance for one in found} == {process.instance}
        process.terminate()
        assert await process.ended() == 0
        assert await mesh.find(live=None) == ()


# -- as NATS micro services --


async def test_every_process_answers_as_a_micro_service(
    services: Deployment, mesh: Mesh, kinds: Process
) -> None:
    """All fields that ADR-32 asks for, in their types."""
    async with plain_client(services.url) as client:
        found = {verb: await everyone(client, f"$SRV.{verb}") for verb in ("PING", "INFO", "STATS")}

    for verb, answers in found.items():
        assert {one["type"] for one in answers} == {f"io.nats.micro.v1.{verb.lower()}_response"}
        names = [one["name"] for one in answers]
        assert {"agents", "lmos-registry", "lmos-router", "lmos-runtime"} <= set(names)
        assert names.count("lmos-registry") >= 2
        for one in answers:
            assert re.fullmatch(r"[A-Za-z0-9_-]+", one["name"])
            assert re.fullmatch(r"[A-Za-z0-9_-]+", one["id"])
            Version.parse(one["version"])
            assert all(isinstance(value, str) for value in one["metadata"].values())
    assert len({one["id"] for one in found["PING"]}) == len(found["PING"])
    for one in found["INFO"]:
        assert isinstance(one["description"], str)
        for endpoint in one["endpoints"]:
            assert endpoint.keys() == {"name", "subject", "queue_group", "metadata"}
            assert re.fullmatch(r"[A-Za-z0-9_-]+", endpoint["name"])
    for one in found["STATS"]:
        assert one["started"].endswith(("Z", "+00:00"))
        for endpoint in one["endpoints"]:
            for count in (
                "num_requests",
                "num_errors",
                "processing_time",
                "average_processing_time",
            ):
                assert isinstance(endpoint[count], int)
            assert isinstance(endpoint["last_error"], str)


async def test_one_of_them_can_be_asked_by_name_and_id_and_counts_its_calls(
    services: Deployment, mesh: Mesh, kinds: Process
) -> None:
    async with plain_client(services.url) as client:
        info = next(
            one
            for one in await everyone(client, "$SRV.INFO.agents")
            if one["metadata"].get("lmos_instance") == kinds.instance
        )
        id = info["id"]
        before = await one_stats(client, id, "order")
        await invoke(mesh, "order", size=1, colours=[])
        with pytest.raises(InvalidMessage):
            await invoke(mesh, "order", size="x", colours=[])
        after = await one_stats(client, id, "order")

    assert info["description"] == "Has functions of every kind."
    assert info["version"] == "1.2.3"
    subject_of = {one["name"]: one["subject"] for one in info["endpoints"]}
    assert subject_of["order"] == subject(mesh, "kinds", "order")
    assert after["num_requests"] - before["num_requests"] == 2
    assert after["num_errors"] - before["num_errors"] == 1
    assert after["last_error"].startswith("400:")
    assert after["processing_time"] > before["processing_time"]


async def one_stats(client: Any, id: str, endpoint: str) -> Any:
    reply = await client.request(f"$SRV.STATS.agents.{id}", b"", timeout=SOON_S)
    return next(one for one in json.loads(reply.data)["endpoints"] if one["name"] == endpoint)


async def everyone(client: Any, subject: str) -> list[Any]:
    """All answers to one question; it is over when nothing came for a while."""
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    found: list[Any] = []
    try:
        while True:
            found.append(json.loads((await replies.next_msg(timeout=1.5)).data))
    except TimeoutError:
        return found
