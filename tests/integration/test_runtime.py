"""Conversations as deployed: a message to two runtimes, a router, two registries and agents."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator
from itertools import pairwise
from typing import Any

import pytest

from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidMessage,
    MeshError,
    NotFound,
    TooLarge,
    Unavailable,
)
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    DECIDE,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    Answer,
    CancelTurn,
    Converse,
    Decide,
    ForgetConversation,
    GetConversation,
    Turn,
)
from lmos_mesh.reply_stream import Frame, ReplyStream
from tests.conftest import new_name
from tests.integration.processes import Deployment, plain_client, until

SOON_S = 15.0
BILL = "Your bill is 39.99 €, due on the 1st."

AGENTS = '''
import asyncio
from lmos_mesh import Agent, Context, run_agents
from lmos_mesh.errors import NotFound, Unavailable

billing = Agent("billing", description="Answers questions about bills and payments.")

@billing.capability(examples=["show my bill", "how much do I owe?"])
async def view_bill(question: str, context: Context) -> str:
    """Show a customer's latest bill."""
    return "Your bill is 39.99 €, due on the 1st."

weather = Agent("weather", description="Tells the weather.")

@weather.capability(examples=["will it rain tomorrow?"])
async def forecast(question: str):
    for word in "It will rain tomorrow.".split():
        yield word + " "

# `3 x 0.1` says three words, 0.1 s apart.
teller = Agent("teller", description="Counts as told.", channels=())

@teller.capability
async def tell(question: str, context: Context):
    count, _, pause = question.partition(" x ")
    try:
        for number in range(int(count)):
            await asyncio.sleep(float(pause))
            yield f"{number} "
    except asyncio.CancelledError:
        print('{"level": "info", "event": "stopped telling %s"}' % context.turn, flush=True)
        raise

memory = Agent("memory", description="Repeats what was said.", channels=())

@memory.capability
async def repeat(question: str, context: Context) -> str:
    return " | ".join([*(one.content for one in context.history), question])

user = Agent("user", description="Says who asks.", channels=())

@user.capability
async def whoami(question: str, context: Context) -> str:
    return f"{context.user} on {context.channel} in {context.conversation} at {context.turn}"

faulty = Agent("faulty", description="Fails.", channels=())

@faulty.capability
async def fail(question: str):
    if question == "midway":
        yield "half "
    if question == "refuse":
        raise NotFound("no such customer", hint="check the number")
    if question == "backend":
        raise Unavailable("the backend is down")
    raise ZeroDivisionError("secret detail")

big = Agent("big", description="Says much.", channels=())

@big.capability
async def much(question: str):
    for _ in range(int(question)):
        yield "x" * 300_000

picky = Agent("picky", description="Needs two things.", channels=())

@picky.capability
async def book(origin: str, destination: str) -> str:
    return ""

figures = Agent("figures", description="Gives figures.", channels=())

@figures.capability
async def report(question: str) -> dict[str, float]:
    return {"owed": 39.99}

silent = Agent("silent", description="Says nothing.", channels=())

@silent.capability
async def nothing(question: str) -> None: ...

run_agents([billing, weather, teller, memory, user, faulty, big, picky, figures, silent])
'''


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[str]:
    """A tenant with agents for every kind of answer."""
    tenant = "runtime-tests"
    process = services.agent(AGENTS, name="agents", LMOS_TENANT=tenant)
    process.expected = "agent faulty failed"
    yield tenant
    process.terminate()
    process.wait()


@pytest.fixture
async def mesh(services: Deployment, town: str) -> AsyncGenerator[Mesh]:
    async with services.client(town) as connected:
        await until(routes, connected, within_s=SOON_S)
        yield connected


async def routes(mesh: Mesh) -> bool:
    messages = ("show my bill", "will it rain tomorrow?")
    decisions = [await mesh.bus.call(DECIDE, Decide(message=one)) for one in messages]
    return [one.agent for one in decisions] == ["billing", "weather"]


async def ask(mesh: Mesh, message: str, **more: Any) -> Answer:
    """One reply, the whole answer."""
    timeout_s = more.pop("timeout_s", SOON_S)
    return await mesh.bus.call(CONVERSE, Converse(message=message, **more), timeout_s=timeout_s)


async def read(mesh: Mesh, into: list[Frame], message: str, **more: Any) -> None:
    """All frames of an answer; what came before an error is kept."""
    async with mesh.bus.stream(CONVERSE, Converse(message=message, **more)) as stream:
        async for frame in stream:
            into.append(frame)  # noqa: PERF401


async def frames_of(mesh: Mesh, message: str, **more: Any) -> list[Frame]:
    frames: list[Frame] = []
    await read(mesh, frames, message, **more)
    return frames


async def turns_of(mesh: Mesh, conversation: str) -> list[Turn]:
    found = await mesh.bus.call(GET_CONVERSATION, GetConversation(conversation=conversation))
    return list(found.turns)


async def states_of(mesh: Mesh, conversation: str) -> list[str]:
    return [one.state for one in await turns_of(mesh, conversation)]


@pytest.fixture
def conversation() -> str:
    return new_name("c")


# -- one message --


async def test_any_nats_client_may_ask_in_plain_json_and_gets_one_reply(
    services: Deployment, mesh: Mesh
) -> None:
    """Exactly these bytes, no headers, as `nats req` sends them."""
    async with plain_client(services.url) as client:
        reply = await client.request(
            f"lmos.{mesh.bus.tenant}.runtime.converse",
            b'{"message":"show my bill"}',
            timeout=SOON_S,
        )

    answer = json.loads(reply.data)
    assert answer["answer"] == BILL
    assert (answer["agent"], answer["capability"]) == ("billing", "view_bill")
    assert answer["conversation"]
    assert answer["turn"]
    assert answer["decision"]["outcome"] == "routed"
    assert not reply.headers


async def test_a_plain_client_may_have_the_answer_in_json_frames(
    services: Deployment, mesh: Mesh
) -> None:
    async with plain_client(services.url) as client:
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish(
            f"lmos.{mesh.bus.tenant}.runtime.converse",
            b'{"message":"will it rain tomorrow?"}',
            reply=inbox,
            headers={"Lmos-Accept": "stream"},
        )
        frames: list[Any] = []
        while not frames or frames[-1][1] != "end":
            frames.append(json.loads((await replies.next_msg(timeout=SOON_S)).data))

    assert [seq for seq, _, _ in frames] == list(range(len(frames)))
    assert [kind for _, kind, _ in frames] == ["ack", "status", *["delta"] * 4, "end"]
    assert frames[0][2].keys() == {"task", "instance"}


async def test_an_answer_is_streamed_word_by_word_and_ends_with_the_whole(mesh: Mesh) -> None:
    frames = await frames_of(mesh, "will it rain tomorrow?")

    assert [frame.kind for frame in frames] == ["ack", "status", *["delta"] * 4, "end"]
    assert frames[1].body["state"] == "routed"
    assert frames[1].body["decision"]["agent"] == "weather"
    assert "".join(frame.body for frame in frames[2:-1]) == "It will rain tomorrow. "
    end = Answer.model_validate(frames[-1].body)
    assert end.answer == "It will rain tomorrow. "
    assert (end.agent, end.attempts, end.asked_back) == ("weather", 1, False)


async def test_the_first_word_is_there_long_before_the_last(mesh: Mesh) -> None:
    began = time.perf_counter()
    async with mesh.bus.stream(CONVERSE, Converse(message="60 x 0.5", agent="teller")) as stream:
        async for frame in stream:
            if frame.kind == "delta":
                break
        assert time.perf_counter() - began < 15


async def test_an_agent_that_is_named_answers_whatever_the_router_thinks(mesh: Mesh) -> None:
    answer = await ask(mesh, "show my bill", agent="memory")

    assert (answer.agent, answer.answer) == ("memory", "show my bill")
    assert answer.decision is not None
    assert answer.decision.method == "explicit"


async def test_an_unknown_agent_is_a_404_that_names_what_is_near(mesh: Mesh) -> None:
    with pytest.raises(AgentNotFound, match="did you mean weather") as missing:
        await ask(mesh, "x", agent="wether")

    assert missing.value.details["near"][0] == "weather"


async def test_when_nobody_is_confident_the_mesh_asks_back_and_names_what_it_could_do(
    mesh: Mesh,
) -> None:
    answer = await ask(mesh, "who won the chess championship in 1972?")

    assert answer.asked_back
    assert answer.agent == ""
    assert "view bill (billing)" in answer.answer
    assert "forecast (weather)" in answer.answer
    assert answer.decision is not None
    assert answer.decision.outcome == "out_of_scope"


async def test_where_no_agent_is_the_mesh_says_so(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        answer = await ask(mesh, "show my bill")

    assert answer.asked_back
    assert "no agent is there for it" in answer.answer


async def test_an_agent_is_told_who_asks_and_where(mesh: Mesh, conversation: str) -> None:
    answer = await ask(
        mesh, "x", agent="user", conversation=conversation, turn="t7", user="ada", channel="ivr"
    )

    assert answer.answer == f"ada on ivr in {conversation} at t7"


@pytest.mark.parametrize(("agent", "text"), [("figures", '{"owed": 39.99}'), ("silent", "")])
async def test_an_answer_that_is_no_text_is_written_as_one(
    mesh: Mesh, agent: str, text: str
) -> None:
    answer = await ask(mesh, "x", agent=agent)

    assert answer.answer.replace(" ", "") == text.replace(" ", "")


async def test_a_program_asks_in_one_line(mesh: Mesh) -> None:
    assert (await mesh.ask("show my bill")).answer == BILL


# -- a conversation --


async def test_what_was_said_before_reaches_the_agent_over_both_runtimes(
    mesh: Mesh, conversation: str
) -> None:
    said: list[str] = []
    carried: set[str] = set()
    for at in range(8):
        frames = await frames_of(mesh, f"m{at}", agent="memory", conversation=conversation)
        carried.add(frames[0].body["instance"])
        answer = Answer.model_validate(frames[-1].body)
        assert answer.answer == " | ".join([*said, f"m{at}"])
        said += [f"m{at}", answer.answer]

    assert len(carried) == 2
    turns = await turns_of(mesh, conversation)
    assert [one.message for one in turns] == [f"m{at}" for at in range(8)]
    assert {one.state for one in turns} == {"done"}


async def test_a_conversation_may_change_its_agent(mesh: Mesh, conversation: str) -> None:
    await ask(mesh, "show my bill", conversation=conversation)
    await ask(mesh, "will it rain tomorrow?", conversation=conversation)
    answer = await ask(mesh, "and?", agent="memory", conversation=conversation)

    assert (
        answer.answer
        == f"show my bill | {BILL} | will it rain tomorrow? | It will rain tomorrow.  | and?"
    )
    assert [one.agent for one in await turns_of(mesh, conversation)] == [
        "billing",
        "weather",
        "memory",
    ]


async def test_callers_that_keep_their_own_history_leave_nothing_behind(
    mesh: Mesh, conversation: str
) -> None:
    history: Any = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "ok"}]
    answer = await ask(
        mesh, "now", agent="memory", conversation=conversation, history=history, store=False
    )

    assert answer.answer == "before | ok | now"
    with pytest.raises(NotFound):
        await turns_of(mesh, conversation)


async def test_the_same_turn_again_gives_the_same_answer_and_does_nothing_twice(
    mesh: Mesh, conversation: str
) -> None:
    asked = {"agent": "memory", "conversation": conversation, "turn": "t1"}
    first = await ask(mesh, "one", **asked)
    await ask(mesh, "two", agent="memory", conversation=conversation)

    again = await ask(mesh, "one", **asked)
    streamed = await frames_of(mesh, "one", **asked)

    assert again.answer == first.answer == "one"
    assert (again.turn, again.instance) == (first.turn, first.instance)
    assert [frame.kind for frame in streamed] == ["ack", "delta", "end"]
    assert len(await turns_of(mesh, conversation)) == 2


async def test_the_same_turn_while_it_runs_is_joined(mesh: Mesh, conversation: str) -> None:
    asked = {"agent": "teller", "conversation": conversation, "turn": "t1"}
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(ask(mesh, "3 x 0.1", **asked)) for _ in range(4)]

    assert {one.result().answer for one in answers} == {"0 1 2 "}
    assert await states_of(mesh, conversation) == ["done"]


async def test_turns_of_one_conversation_run_one_after_the_other(
    mesh: Mesh, conversation: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(ask(mesh, "2 x 0.05", agent="teller", conversation=conversation))

    turns = await turns_of(mesh, conversation)
    assert [one.state for one in turns] == ["done"] * 5
    for one, following in pairwise(turns):
        assert one.ended <= following.ended - 0.09  # each takes that long by itself


async def test_different_conversations_do_not_wait_for_each_other(mesh: Mesh) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(ask(mesh, "1 x 1.0", agent="teller", timeout_s=15.0))

    assert time.perf_counter() - began < 9.0


async def test_a_turn_that_is_still_waiting_at_its_deadline_gets_a_409(
    mesh: Mesh, conversation: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(
            ask(mesh, "60 x 0.5", agent="teller", conversation=conversation, turn="first")
        )
        await until(is_running, mesh, conversation, within_s=SOON_S)
        with pytest.raises(Conflict, match="'first'") as refused:
            await ask(mesh, "x", agent="memory", conversation=conversation, timeout_s=1.5)
        assert await is_running(mesh, conversation)
        first.cancel()

    assert refused.value.status == 409


async def is_running(mesh: Mesh, conversation: str) -> bool:
    try:
        return "running" in await states_of(mesh, conversation)
    except NotFound:
        return False


# -- calling off, erasing --


async def test_a_running_turn_can_be_called_off_and_the_agent_hears_of_it(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    turn = new_name("turn")
    async with mesh.bus.stream(
        CONVERSE,
        Converse(message="50 x 0.1", agent="teller", conversation=conversation, turn=turn),
    ) as stream:
        async for frame in stream:
            if frame.kind == "delta":
                break
        cancelled = await mesh.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation))
        with pytest.raises(Cancelled):
            await anext_end(stream)

    assert cancelled.turn == turn
    await until(is_in_state, mesh, conversation, "cancelled", within_s=SOON_S)
    agents = next(one for one in services.processes if one.name == "agents" and one.alive)
    await agents.logged(f"stopped telling {turn}", SOON_S)
    assert (await ask(mesh, "next", agent="memory", conversation=conversation)).answer == "next"


async def anext_end(stream: ReplyStream) -> None:
    while (await anext(stream)).kind != "end":
        pass


async def is_in_state(mesh: Mesh, conversation: str, state: str) -> bool:
    return (await states_of(mesh, conversation))[-1] == state


async def test_a_caller_that_leaves_calls_its_turn_off(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    turn = new_name("turn")
    async with mesh.bus.stream(
        CONVERSE,
        Converse(message="50 x 0.1", agent="teller", conversation=conversation, turn=turn),
    ) as stream:
        async for frame in stream:
            if frame.kind == "delta":
                break

    await until(is_in_state, mesh, conversation, "cancelled", within_s=SOON_S)
    agents = next(one for one in services.processes if one.name == "agents" and one.alive)
    await agents.logged(f"stopped telling {turn}", SOON_S)


async def test_a_turn_that_was_called_off_may_be_tried_again(mesh: Mesh, conversation: str) -> None:
    asked: Any = {"agent": "teller", "conversation": conversation, "turn": "t1"}
    async with mesh.bus.stream(CONVERSE, Converse(message="50 x 0.1", **asked)) as stream:
        assert (await anext(stream)).kind == "ack"
        assert (await anext(stream)).kind == "status"
    await until(is_in_state, mesh, conversation, "cancelled", within_s=SOON_S)

    assert (await ask(mesh, "2 x 0", **asked)).answer == "0 1 "
    assert await states_of(mesh, conversation) == ["done"]


async def test_a_turn_of_another_tenant_than_the_services_can_be_called_off_too(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    """The services run in tenant `demo`, these conversations do not."""
    assert mesh.bus.tenant != "demo"
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(refused(mesh, "50 x 0.1", conversation))
        await until(is_running, mesh, conversation, within_s=SOON_S)
        await mesh.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation))

    assert isinstance(running.result(), Cancelled)


async def refused(mesh: Mesh, message: str, conversation: str) -> MeshError:
    with pytest.raises(MeshError) as raised:
        await ask(mesh, message, agent="teller", conversation=conversation)
    return raised.value


async def test_a_forgotten_conversation_is_gone_and_may_begin_anew(
    mesh: Mesh, conversation: str
) -> None:
    await ask(mesh, "one", agent="memory", conversation=conversation)

    await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))

    with pytest.raises(NotFound):
        await turns_of(mesh, conversation)
    assert (await ask(mesh, "two", agent="memory", conversation=conversation)).answer == "two"


async def test_a_conversation_that_is_forgotten_while_it_runs_stays_forgotten(
    mesh: Mesh, conversation: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ask(mesh, "3 x 0.8", agent="teller", conversation=conversation))
        await until(is_running, mesh, conversation, within_s=SOON_S)
        await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))

    assert running.result().answer == "0 1 2 "
    with pytest.raises(NotFound):
        await turns_of(mesh, conversation)


@pytest.mark.parametrize("what", ["read", "cancel", "forget"])
async def test_an_unknown_conversation_is_a_404(mesh: Mesh, what: str) -> None:
    calls: dict[str, Any] = {
        "read": lambda: turns_of(mesh, "never"),
        "cancel": lambda: mesh.bus.call(CANCEL_TURN, CancelTurn(conversation="never")),
        "forget": lambda: mesh.bus.call(
            FORGET_CONVERSATION, ForgetConversation(conversation="never")
        ),
    }
    with pytest.raises(NotFound, match="'never'"):
        await calls[what]()


async def test_calling_off_what_does_not_run_is_a_404(mesh: Mesh, conversation: str) -> None:
    await ask(mesh, "one", agent="memory", conversation=conversation, turn="t1")

    with pytest.raises(NotFound, match="no turn is running"):
        await mesh.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation))
    with pytest.raises(NotFound, match="'t1' is not running"):
        await mesh.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation, turn="t1"))


async def test_conversations_of_tenants_are_apart(
    services: Deployment, mesh: Mesh, tenant: str, conversation: str
) -> None:
    await ask(mesh, "secret", agent="memory", conversation=conversation)
    async with services.client(tenant) as other:
        with pytest.raises(NotFound):
            await turns_of(other, conversation)
        with pytest.raises(NotFound):
            await other.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=conversation))
    assert len(await turns_of(mesh, conversation)) == 1


async def test_ids_that_are_no_tokens_are_taken(mesh: Mesh) -> None:
    id = "it's a.conversation > *"
    await ask(mesh, "one", agent="memory", conversation=id, turn="a.b c")

    assert [one.turn for one in await turns_of(mesh, id)] == ["a.b c"]
    await mesh.bus.call(FORGET_CONVERSATION, ForgetConversation(conversation=id))


# -- what goes wrong --


async def test_an_agent_that_raises_is_a_clear_error_and_the_conversation_goes_on(
    mesh: Mesh, conversation: str
) -> None:
    with pytest.raises(AgentFailed, match=r"'faulty' failed at 'fail'") as failed:
        await ask(mesh, "x", agent="faulty", conversation=conversation)
    assert "secret" not in str(failed.value.problem())

    assert await states_of(mesh, conversation) == ["failed"]
    assert (await turns_of(mesh, conversation))[0].error == {
        "code": "agent-failed",
        "status": 500,
        "detail": failed.value.message,
    }
    assert (await ask(mesh, "next", agent="memory", conversation=conversation)).answer == "next"


async def test_an_agent_that_raises_midway_ends_the_stream_with_an_error(mesh: Mesh) -> None:
    seen: list[Frame] = []
    with pytest.raises(AgentFailed):
        await read(mesh, seen, "midway", agent="faulty")

    assert [frame.kind for frame in seen] == ["ack", "status", "delta"]


async def test_an_agent_may_refuse_in_its_own_words(mesh: Mesh) -> None:
    with pytest.raises(NotFound, match="no such customer") as refusal:
        await ask(mesh, "refuse", agent="faulty")

    assert refusal.value.hint == "check the number"


async def test_what_an_agent_cannot_reach_is_said_at_once_and_not_tried_five_times(
    mesh: Mesh,
) -> None:
    began = time.perf_counter()
    with pytest.raises(Unavailable, match="the backend is down"):
        await ask(mesh, "backend", agent="faulty", timeout_s=30.0)

    assert time.perf_counter() - began < 2.5  # less than another instance is waited for


async def test_a_capability_that_a_message_does_not_fill_says_what_it_needs(mesh: Mesh) -> None:
    with pytest.raises(InvalidMessage, match="needs destination"):
        await ask(mesh, "to Bonn", agent="picky")


async def test_an_answer_that_is_not_there_by_the_deadline_is_a_504(
    mesh: Mesh, conversation: str
) -> None:
    began = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        await ask(mesh, "150 x 0.2", agent="teller", conversation=conversation, timeout_s=0.5)

    assert time.perf_counter() - began < 15
    await until(has_ended, mesh, conversation, within_s=SOON_S)
    assert (await ask(mesh, "next", agent="memory", conversation=conversation)).answer == "next"


async def has_ended(mesh: Mesh, conversation: str) -> bool:
    return "running" not in await states_of(mesh, conversation)


async def test_a_message_over_the_payload_limit_is_refused_with_the_limit(mesh: Mesh) -> None:
    limit = mesh.bus.transport.max_payload
    with pytest.raises(TooLarge, match=f"the message to .*runtime.*{limit}"):
        await ask(mesh, "x" * limit)


async def test_a_message_that_only_just_arrives_is_answered_or_refused_clearly(
    mesh: Mesh, conversation: str
) -> None:
    """It has to go on to the agent, in more words than it came in."""
    limit = mesh.bus.transport.max_payload
    with pytest.raises(TooLarge, match=f"the message takes .* agent 'user'.*{limit}"):
        await ask(mesh, "x" * 900_000, agent="user", conversation=conversation)

    assert await states_of(mesh, conversation) == ["failed"]
    assert (await ask(mesh, "next", agent="memory", conversation=conversation)).answer == "next"


async def test_an_answer_over_the_payload_limit_is_a_clear_error_and_blocks_nothing(
    mesh: Mesh, conversation: str
) -> None:
    asked: Any = {"agent": "big", "conversation": conversation}
    assert len((await ask(mesh, "3", **asked)).answer) == 900_000
    with pytest.raises(AgentFailed, match=f"agent 'big'.*{mesh.bus.transport.max_payload}"):
        await ask(mesh, "4", **asked)

    seen: list[Frame] = []
    with pytest.raises(AgentFailed, match=f"agent 'big'.*{mesh.bus.transport.max_payload}"):
        await read(mesh, seen, "4", **asked)
    assert [frame.kind for frame in seen] == ["ack", "status", *["delta"] * 4]

    assert (await ask(mesh, "next", agent="silent", conversation=conversation)).answer == ""
    assert (await states_of(mesh, conversation))[-2:] == ["failed", "done"]


GARBAGE = [
    b"",
    b"\x00",
    b"\xc1\xff",
    b"{",
    b"[]",
    b"{}",
    b"{" * 50_000,
    b'{"message":7}',
    b'{"message":""}',
    b'{"message":"x","history":[{"role":"nobody"}]}',
    b'{"message":"x","method":"magic"}',
    b'{"message":"x","store":"maybe"}',
    b'{"conversation":{}}',
    b'{"message":"x","agent":""}',
    b'{"message":"x","conversation":"' + b"x" * 5000 + b'"}',
    b'{"conversation":"' + b"x" * 5000 + b'"}',
    b'{"message":"x","conversation":""}',
    b'{"message":"x","turn":"","conversation":"garbage-turn"}',
    b'{"message":"\\ud800"}',
    b'{"message":"\\u0000","conversation":"\\u0000"}',
]


@pytest.mark.parametrize("operation", ["converse", "conversation", "cancel", "forget", "nothing"])
@pytest.mark.parametrize("headers", [{}, {"Lmos-Accept": "stream"}, {"Lmos-Deadline": "soon"}])
async def test_no_bytes_stop_a_runtime(
    services: Deployment, mesh: Mesh, operation: str, headers: dict[str, str]
) -> None:
    subject = f"lmos.{mesh.bus.tenant}.runtime.{operation}"
    for payload in GARBAGE:
        status = 200
        try:
            await mesh.bus.request(subject, payload, headers=headers, timeout_s=SOON_S)
        except MeshError as error:
            status = error.status
        assert status < 500, payload[:40]

    assert (await ask(mesh, "show my bill")).answer == BILL
    assert services.died() == []


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"message":7}', "/message"),
        (b"{}", "/message"),
        (b'{"message":""}', "/message"),
        (b'{"message":"x","history":[{"role":"nobody","content":""}]}', "/history/0/role"),
    ],
)
async def test_a_malformed_request_is_refused_with_the_field(
    mesh: Mesh, payload: bytes, field: str
) -> None:
    with pytest.raises(InvalidMessage) as refused:
        await mesh.bus.request(f"lmos.{mesh.bus.tenant}.runtime.converse", payload)

    assert [fault["field"] for fault in refused.value.details["faults"]] == [field]


async def test_garbage_on_the_subjects_of_agents_and_instances_stops_nobody(
    services: Deployment, mesh: Mesh
) -> None:
    tenant = mesh.bus.tenant
    found = (await mesh.find(name="billing"))[0]
    subjects = [
        f"lmos.{tenant}.agent.billing.stable.invoke.view_bill",
        f"lmos.{tenant}.agent.billing.stable.invoke.dance",
        f"lmos.{tenant}.agent.billing.stable.invoke",
        f"lmos.{tenant}.agent.billing.stable.property.x.read",
        f"lmos.{tenant}.instance.{found.instances[0].instance}.cancel",
        f"lmos.{tenant}.instance.{found.instances[0].instance}.status",
        f"lmos.{tenant}.instance.{found.instances[0].instance}.dance",
        f"agents.prompt.lmos.{tenant}.billing",
        f"agents.status.lmos.{tenant}.billing",
    ]
    for subject in subjects:
        for payload in GARBAGE:
            mesh.bus.transport.publish(subject, payload)
            try:
                await mesh.bus.request(subject, payload, timeout_s=SOON_S)
            except MeshError as error:
                assert error.status != 504, (subject, payload[:40])  # noqa: PT017

    assert (await ask(mesh, "show my bill")).answer == BILL
    assert services.died() == []
