"""What a conversation keeps, whatever becomes of the runtimes that carry it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from lmos_mesh.errors import AgentFailed, MeshError, NotFound
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    CONVERSE,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    Answer,
    Converse,
    ForgetConversation,
    GetConversation,
    Turn,
)
from lmos_mesh_runtime.conversation import WINDOW_TURNS
from tests.conftest import new_name
from tests.integration.processes import Deployment, Process, plain_client, until

SOON_S = 15.0
FROZEN_S = 12.0
"""A question that went to a frozen runtime is asked again after 5 s."""

AGENTS = """
import asyncio
from lmos_mesh import Agent, Context, run_agents

memory = Agent("memory", description="Repeats what was said.")

@memory.capability
async def repeat(question: str, context: Context) -> str:
    return " | ".join([*(one.content for one in context.history if one.role == "user"), question])

teller = Agent("teller", description="Counts as told.")

@teller.capability
async def tell(question: str, context: Context):
    count, _, pause = question.partition(" x ")
    for number in range(int(count)):
        await asyncio.sleep(float(pause))
        yield f"{number} "

lines = Agent("lines", description="Breaks lines.")

@lines.capability
async def break_lines(question: str) -> str:
    return "\\n" * int(question)

long = Agent("long", description="Says much.")

@long.capability
async def much(question: str) -> str:
    return question * 20_000

run_agents([memory, teller, lines, long])
"""


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[str]:
    """A tenant with agents."""
    tenant = "history-tests"
    process = services.agent(AGENTS, name="agents", LMOS_TENANT=tenant)
    yield tenant
    process.terminate()
    process.wait()


@pytest.fixture
async def mesh(services: Deployment, town: str) -> AsyncGenerator[Mesh]:
    async with services.client(town) as connected:
        await until(answers, connected, within_s=SOON_S)
        yield connected


async def answers(mesh: Mesh) -> bool:
    try:
        await ask(mesh, "x", store=False)
    except NotFound:
        return False
    return True


async def ask(mesh: Mesh, message: str, agent: str = "memory", **more: Any) -> Answer:
    request = Converse(message=message, agent=agent, **more)
    return await mesh.bus.call(CONVERSE, request, timeout_s=SOON_S)


async def turns_of(mesh: Mesh, conversation: str) -> list[Turn]:
    found = await mesh.bus.call(GET_CONVERSATION, GetConversation(conversation=conversation))
    return list(found.turns)


@pytest.fixture
def conversation() -> str:
    return new_name("c")


async def test_a_runtime_that_is_killed_between_turns_takes_nothing_with_it(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    third = await services.start("runtime").ready()
    await ask(mesh, "one", conversation=conversation)
    carried = await carried_by(mesh, third, conversation)

    third.kill()
    answer = await ask(mesh, "last", conversation=conversation)

    assert answer.answer == " | ".join(["one", *carried, "last"])


async def carried_by(mesh: Mesh, runtime: Process, conversation: str) -> list[str]:
    """Turns until one was carried by this runtime; their messages."""
    messages: list[str] = []
    for at in range(60):
        messages.append(f"m{at}")
        request = Converse(message=messages[-1], agent="memory", conversation=conversation)
        async with mesh.bus.stream(CONVERSE, request) as stream:
            frames = [frame async for frame in stream]
        if frames[0].body["instance"] == runtime.instance:
            return messages
    raise AssertionError("no turn came to that runtime")


async def test_a_runtime_that_is_killed_in_mid_turn_leaves_the_conversation_usable(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    """The plain caller of that turn waits in vain; whoever comes next does not."""
    third = await services.start("runtime").ready()
    async with asyncio.TaskGroup() as tasks:
        lost = await running_at(mesh, third, conversation, tasks)
        third.kill()

        began = time.perf_counter()
        answer = await ask(mesh, "after", conversation=conversation)
        took_s = time.perf_counter() - began
        lost.cancel()

    assert answer.answer == "before | after"
    assert took_s < 3.5  # less than its lease lasts: it is known to be dead, not waited for
    assert [(one.message, one.state) for one in await turns_of(mesh, conversation)] == [
        ("before", "done"),
        ("30 x 0.2", "failed"),
        ("after", "done"),
    ]


async def running_at(
    mesh: Mesh, runtime: Process, conversation: str, tasks: asyncio.TaskGroup
) -> "asyncio.Task[None]":
    """A long turn that this runtime has begun; others that came elsewhere are called off."""
    for _ in range(60):
        await ask(mesh, "before", conversation=conversation)
        begun: asyncio.Queue[str] = asyncio.Queue()
        task = tasks.create_task(follow(mesh, conversation, begun))
        if await begun.get() == runtime.instance:
            return task
        task.cancel()
        await asyncio.wait([task])
        await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))
    raise AssertionError("no turn came to that runtime")


async def follow(mesh: Mesh, conversation: str, begun: "asyncio.Queue[str]") -> None:
    request = Converse(message="30 x 0.2", agent="teller", conversation=conversation)
    async with mesh.bus.stream(CONVERSE, request) as stream:
        try:
            async for frame in stream:
                if frame.kind == "delta":
                    begun.put_nowait(stream.instance)
        except MeshError:
            return


async def test_a_turn_outlives_the_runtime_that_carries_it_for_our_own_client(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    """`Mesh.converse` asks again under the same turn id, and says `restart`."""
    third = await services.start("runtime").ready()
    kinds: list[str] = []
    words: list[str] = []
    while kinds[-1:] != ["end"]:
        kinds.clear()
        words.clear()
        async with mesh.converse("8 x 0.1", agent="teller", conversation=conversation) as frames:
            async for frame in frames:
                kinds.append(frame.kind)
                if (
                    frame.kind == "ack"
                    and len(kinds) == 1
                    and (frame.body["instance"] != third.instance)
                ):
                    break
                if frame.kind == "delta":
                    words.append(frame.body)
                    if len(words) == 3 and third.alive:
                        third.kill()
                if frame.kind == "restart":
                    words.clear()

    assert kinds.count("restart") == 1
    assert "".join(words) == "".join(f"{number} " for number in range(8))
    done = [one for one in await turns_of(mesh, conversation) if one.state == "done"]
    assert [one.answer for one in done] == ["".join(words)]


async def test_a_frozen_runtime_holds_a_conversation_no_longer_than_its_connection(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    third = await services.start("runtime").ready()
    async with asyncio.TaskGroup() as tasks:
        lost = await running_at(mesh, third, conversation, tasks)
        third.freeze()
        try:
            # It still gets its share of questions until the server cuts it off.
            began = time.perf_counter()
            answer = await mesh.ask("after", agent="memory", conversation=conversation)
            took_s = time.perf_counter() - began
        finally:
            third.thaw()
            lost.cancel()

    assert answer.answer == "before | after"
    assert took_s < FROZEN_S
    third.terminate()
    assert await third.ended() == 0
    assert (await turns_of(mesh, conversation))[-1].message == "after"


async def test_a_runtime_that_is_told_to_stop_finishes_what_it_carries(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    third = await services.start("runtime").ready()
    async with asyncio.TaskGroup() as tasks:
        turns = [
            tasks.create_task(ask(mesh, "4 x 0.1", "teller", conversation=f"{conversation}-{at}"))
            for at in range(30)
        ]
        await asyncio.sleep(0.1)
        third.terminate()

    assert {one.result().answer for one in turns} == {"0 1 2 3 "}
    assert await third.ended() == 0


async def test_callers_that_leave_at_any_moment_leave_the_conversation_usable(
    mesh: Mesh, conversation: str
) -> None:
    """Before the turn is stored, while it is, while it runs, and while its end is stored."""
    for at in range(80):
        request = Converse(message="1 x 0.001", agent="teller", conversation=conversation)
        async with mesh.bus.stream(CONVERSE, request) as stream:
            await anext(stream)
            await asyncio.sleep(at * 0.0001)

    answer = await ask(mesh, "next", conversation=conversation)

    assert answer.answer.endswith("next")
    assert {one.state for one in await turns_of(mesh, conversation)} <= {"done", "cancelled"}


# -- more than the window holds --


async def test_older_turns_are_read_back_in_their_order(mesh: Mesh, conversation: str) -> None:
    messages = [f"m{at}" for at in range(WINDOW_TURNS + 7)]
    for message in messages:
        await ask(mesh, message, conversation=conversation)

    turns = await turns_of(mesh, conversation)

    assert [one.message for one in turns] == messages
    last = await ask(mesh, "last", conversation=conversation)
    assert last.answer == " | ".join([*messages[-WINDOW_TURNS:], "last"])


async def test_long_turns_leave_the_window_before_many_short_ones_would(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    for at in range(6):
        await ask(mesh, f"{at} €", "long", conversation=conversation)

    async with plain_client(services.url) as client:
        bucket = await client.jetstream().key_value("lmos_conversations")
        stored = (await bucket.get(f"{mesh.bus.tenant}.{conversation}")).value
    assert len(stored) < 300_000
    turns = await turns_of(mesh, conversation)
    assert [one.message for one in turns] == [f"{at} €" for at in range(6)]
    assert [one.answer for one in turns] == [f"{at} €" * 20_000 for at in range(6)]


async def test_a_forgotten_conversation_leaves_nothing_in_any_store(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    for at in range(WINDOW_TURNS + 3):
        await ask(mesh, f"secret {at}", conversation=conversation)
    assert await stored_bytes(services, mesh, conversation) > 0

    await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))

    assert await stored_bytes(services, mesh, conversation) == 0
    await ask(mesh, "anew", conversation=conversation)
    assert [one.message for one in await turns_of(mesh, conversation)] == ["anew"]


async def test_a_conversation_forgotten_while_its_window_overflows_leaves_nothing(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    for at in range(WINDOW_TURNS):
        await ask(mesh, f"secret {at}", conversation=conversation)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(mesh, "3 x 0.8", "teller", conversation=conversation))
        await until(is_running, mesh, conversation, within_s=SOON_S)
        await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))

    assert await stored_bytes(services, mesh, conversation) == 0


async def is_running(mesh: Mesh, conversation: str) -> bool:
    return (await turns_of(mesh, conversation))[-1].state == "running"


async def stored_bytes(services: Deployment, mesh: Mesh, conversation: str) -> int:
    """How much of a conversation is kept, as the server tells somebody who asks it directly."""
    size = 0
    async with plain_client(services.url) as client:
        stream = client.jetstream(timeout=20)
        for name, subject in (
            ("KV_lmos_conversations", f"$KV.lmos_conversations.{mesh.bus.tenant}.{conversation}"),
            ("LMOS_HISTORY", f"lmos.{mesh.bus.tenant}.history.{conversation}"),
        ):
            info: Any = await stream.stream_info(name, subjects_filter=subject)
            subjects: list[str] = list(info.state.subjects or ())
            for found in subjects:
                size += len((await stream.get_last_msg(name, found)).data or b"")
    return size


async def test_a_conversation_too_large_for_one_reply_is_a_clear_error(
    mesh: Mesh, conversation: str
) -> None:
    for at in range(20):
        await ask(mesh, f"{at} €", "long", conversation=conversation)

    limit = mesh.bus.transport.max_payload
    with pytest.raises(AgentFailed, match=f"the runtime takes .*{limit}"):
        await turns_of(mesh, conversation)

    assert (await ask(mesh, "next", conversation=conversation)).answer.endswith("next")


async def test_an_answer_too_large_to_be_kept_is_a_clear_error_and_blocks_nothing(
    mesh: Mesh, conversation: str
) -> None:
    """Line breaks take twice the room where they are kept: this one just comes through."""
    limit = mesh.bus.transport.max_payload
    with pytest.raises(AgentFailed, match=f"the answer of agent 'lines' .*{limit}") as refused:
        await ask(mesh, "700000", "lines", conversation=conversation)

    assert "$KV" not in str(refused.value)
    assert (await ask(mesh, "next", conversation=conversation)).answer == "next"
    assert [one.state for one in await turns_of(mesh, conversation)] == ["failed", "done"]


async def test_a_conversation_that_begins_anew_with_the_same_ids_keeps_its_own_turns(
    mesh: Mesh, conversation: str
) -> None:
    for life in ("first", "second"):
        for at in range(WINDOW_TURNS + 2):
            await ask(mesh, f"{life} {at}", conversation=conversation, turn=f"t{at}")
        messages = [one.message for one in await turns_of(mesh, conversation)]
        assert messages == [f"{life} {at}" for at in range(WINDOW_TURNS + 2)]
        await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))
