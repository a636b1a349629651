"""Several agents in one turn, as deployed: side by side, one after the other, and handed over."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from lmos_mesh import turn_reports
from lmos_mesh.errors import (
    AgentNotFound,
    Cancelled,
    HandedOver,
    InvalidMessage,
    LoopDetected,
    MeshError,
)
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    DECIDE,
    GET_CONVERSATION,
    ROUTER_STATUS,
    Answer,
    CancelTurn,
    Converse,
    Decide,
    GetConversation,
    RouterStatus,
    Turn,
    TurnReport,
)
from lmos_mesh.reply_stream import Frame
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.things import ThingKey
from lmos_mesh.wiring import host_of
from lmos_mesh_runtime.asking_back import choices_in
from tests.conftest import new_name
from tests.integration.processes import Deployment, Process, instances_of, until

SOON_S = 15.0
WORK_S = 0.3
BILL, RAIN = "show my bill", "will it rain tomorrow?"
BOTH = f"{BILL} and {RAIN}"

WEATHER = f'''
import asyncio
import time
from lmos_mesh import Agent, Context, run_agents

weather = Agent("weather", description="Tells the weather.")

@weather.capability(examples=[
    "will it rain tomorrow?", "what is the weather like in Rome?", "do I need an umbrella?"
])
async def forecast(question: str, context: Context):
    """Forecast."""
    yield "It will "
    await asyncio.sleep(0.05)  # until that is on its way, should this process be killed
    print('{{"level": "info", "event": "forecasting %s"}}' % context.conversation, flush=True)
    try:
        await asyncio.sleep({WORK_S} if not context.user else float(context.user))
    except asyncio.CancelledError:
        print('{{"level": "info", "event": "stopped %s"}}' % context.conversation, flush=True)
        raise
    yield "rain tomorrow."

run_agents([weather])
'''

AGENTS = f'''
import asyncio
import time
from lmos_mesh import Agent, Context, run_agents
from lmos_mesh.errors import NotFound

billing = Agent("billing", description="Answers questions about bills and payments.")

@billing.capability(examples=["show my bill", "how much do I owe?", "why is my bill so high?"])
async def view_bill(question: str, context: Context) -> str:
    """View a bill."""
    print('{{"level": "info", "event": "billing %s"}}' % context.conversation, flush=True)
    try:
        await asyncio.sleep(float(context.parameters.get("work_s", {WORK_S})))
    except asyncio.CancelledError:
        print('{{"level": "info", "event": "stopped %s"}}' % context.conversation, flush=True)
        raise
    return "Your bill is 39.99 €."

post = Agent("post", description="Sends letters and mails.")

@post.capability(examples=["send it to me by mail", "mail me a letter", "post this letter"])
async def send_mail(question: str, context: Context) -> str:
    """Send a mail."""
    return "Sent: " + " | ".join(one.content for one in context.history)

music = Agent("music", description="Plays songs.")

@music.capability(examples=["play some jazz", "play my favourite song", "skip this song"])
async def play(question: str, context: Context):
    """Play music."""
    if "favourite" in question:
        yield "Looking for it. "
    raise NotFound("the record player is broken")

desk = Agent("desk", description="Receives people.", channels=())

@desk.capability
async def receive(question: str, context: Context) -> str:
    """`to NAME`, `can CAPABILITY` or `say WORDS to NAME`."""
    match question.split():
        case ["to", name]:
            context.hand_over(to=name)
        case ["to"]:
            context.hand_over()
        case ["can", capability]:
            context.hand_over(capability=capability)
        case ["say", word, "to", name, *rest]:
            await context.say(f"{{word}} ")
            context.hand_over(to=name, message=" ".join(rest) or None)
        case _:
            return f"here after {{'>'.join(context.handovers)}}"

clerk = Agent("clerk", description="Receives people at the office.", channels=("office",))

@clerk.capability
async def take_in(question: str, context: Context) -> str:
    return await receive(question, context)

echo = Agent("echo", description="Repeats.", channels=())

@echo.capability
async def repeat(question: str, context: Context) -> str:
    return f"{{question}} ({{'>'.join(context.handovers)}})"

porter = Agent("porter", description="Carries things.", channels=())

@porter.capability
def carry(question: str, context: Context):
    """A plain function, in a thread."""
    yield "Carrying. "
    context.hand_over(to="echo")

def link(at: int) -> Agent:
    agent = Agent(f"link-{{at}}", description="Hands over.", channels=())

    @agent.capability
    async def pass_on(question: str, context: Context) -> str:
        where = int(question.split()[-1])
        context.hand_over(to=f"link-{{(at + 1) % where}}")

    return agent

boss = Agent("boss", description="Has others answer.", channels=())

@boss.capability
async def supervise(question: str, context: Context) -> str:
    """`NAME asks …` asks that one, anything else whoever can."""
    name, asks, rest = question.partition(" asks ")
    if not asks:
        return "asked: " + (await context.ask(question)).answer
    return f"{{context.channel}}: " + (await context.ask(rest, agent=name)).answer

run_agents([billing, post, music, desk, clerk, echo, porter, boss, *(link(at) for at in range(7))])
'''


@pytest.fixture(scope="module")
def town(services: Deployment) -> Generator[str]:
    """A tenant with agents that work together."""
    tenant = "several-tests"
    running = [
        services.start_agent(AGENTS, name="agents", LMOS_TENANT=tenant),
        services.start_agent(WEATHER, name="weather", LMOS_TENANT=tenant),
    ]
    for one in running:
        one.wait_ready()
    yield tenant
    for one in running:
        one.terminate()
        one.wait()


def process(services: Deployment, name: str) -> Process:
    return next(one for one in reversed(services.processes) if one.name == name and one.alive)


@pytest.fixture
async def mesh(services: Deployment, town: str) -> AsyncGenerator[Mesh]:
    async with services.client(town) as connected:
        await until(routes, connected, within_s=SOON_S)
        yield connected


async def routes(mesh: Mesh) -> bool:
    said = (BILL, RAIN, "send it to me by mail", "play some jazz")
    decisions = [await mesh.bus.call(DECIDE, Decide(message=one)) for one in said]
    if (await mesh.bus.call(ROUTER_STATUS, RouterStatus())).waiting:
        return False  # the first examples are known before the others
    return [one.agent for one in decisions] == ["billing", "weather", "post", "music"]


async def has_learned(mesh: Mesh) -> bool:
    """Whether the router knows how far out a message may be; until then it guesses."""
    return (await mesh.bus.call(ROUTER_STATUS, RouterStatus())).trained


async def two_serve(mesh: Mesh, name: str) -> bool:
    return len(await instances_of(mesh, name)) == 2


@pytest.fixture
def conversation() -> str:
    return new_name("c")


async def ask(mesh: Mesh, message: str, **more: Any) -> Answer:
    timeout_s = more.pop("timeout_s", SOON_S)
    return await mesh.bus.call(CONVERSE, Converse(message=message, **more), timeout_s=timeout_s)


async def frames_of(mesh: Mesh, message: str, **more: Any) -> list[Frame]:
    async with mesh.bus.stream(CONVERSE, Converse(message=message, **more)) as stream:
        return [frame async for frame in stream]


async def last_turn(mesh: Mesh, conversation: str) -> Turn:
    found = await mesh.bus.call(GET_CONVERSATION, GetConversation(conversation=conversation))
    return found.turns[-1]


def heard(frames: list[Frame]) -> str:
    said: list[str] = []
    for frame in frames:
        if frame.kind == "restart":
            said.clear()
        elif frame.kind == "delta":
            said.append(frame.body)
    return "".join(said)


# -- several requests --


async def test_two_requests_are_answered_by_two_agents_at_the_same_time(
    mesh: Mesh, conversation: str
) -> None:
    began = time.perf_counter()

    answer = await ask(
        mesh, BOTH, conversation=conversation, user="1.5", parameters={"work_s": "1.5"}
    )

    took_s = time.perf_counter() - began
    assert answer.answer == (
        "view bill (billing):\nYour bill is 39.99 €.\n\nforecast (weather):\nIt will rain tomorrow."
    )
    assert [(one.text, one.agent, one.state) for one in answer.parts] == [
        (BILL, "billing", "done"),
        (RAIN, "weather", "done"),
    ]
    assert [one.answer for one in answer.parts] == [
        "Your bill is 39.99 €.",
        "It will rain tomorrow.",
    ]
    assert answer.agent == "billing,weather"
    assert answer.capability == "view_bill,forecast"
    assert len(answer.instance.split(",")) == 2
    assert all(one.total_s >= 1.4 and one.needs is None for one in answer.parts)
    assert took_s < sum(one.total_s for one in answer.parts)
    turn = await last_turn(mesh, conversation)
    assert (turn.state, turn.answer, turn.parts) == ("done", answer.answer, answer.parts)


async def test_what_is_streamed_is_the_answer_each_agents_words_together(mesh: Mesh) -> None:
    frames = await frames_of(mesh, f"{RAIN} And {BILL}")

    end = Answer.model_validate(frames[-1].body)
    assert [one.agent for one in end.parts] == ["weather", "billing"]
    assert heard(frames) == end.answer
    assert "restart" not in {frame.kind for frame in frames}
    deltas = [frame.body for frame in frames if frame.kind == "delta"]
    assert deltas[0] == "forecast (weather):\nIt will "
    routed = next(frame.body for frame in frames if frame.kind == "status")
    assert routed["decision"]["outcome"] == "several"


async def test_the_same_turn_again_has_the_same_parts(mesh: Mesh, conversation: str) -> None:
    first = await ask(mesh, BOTH, conversation=conversation, turn="t1")
    again = await ask(mesh, BOTH, conversation=conversation, turn="t1")

    assert (again.answer, again.parts) == (first.answer, first.parts)


async def test_a_caller_may_have_one_agent_answer_it_all(mesh: Mesh) -> None:
    answer = await ask(mesh, BOTH, parts=False)

    assert not answer.parts
    assert answer.decision is not None
    assert answer.decision.outcome != "several"


async def test_a_request_that_builds_on_the_one_before_is_begun_when_that_is_answered(
    mesh: Mesh, conversation: str
) -> None:
    answer = await ask(mesh, f"{BILL} and send it to me by mail", conversation=conversation)

    bill, mail = answer.parts
    assert (mail.agent, mail.needs) == ("post", 0)
    assert mail.answer == f"Sent: {bill.text} | Your bill is 39.99 €."


async def test_the_next_turn_knows_who_has_said_what(mesh: Mesh, conversation: str) -> None:
    await ask(mesh, BOTH, conversation=conversation)

    answer = await ask(mesh, "post this letter", agent="post", conversation=conversation)

    said = [BILL, "Your bill is 39.99 €.", RAIN, "It will rain tomorrow."]
    assert answer.answer == "Sent: " + " | ".join(said)


async def test_a_request_that_nobody_can_do_is_asked_back_in_its_place(
    mesh: Mesh, conversation: str
) -> None:
    await until(has_learned, mesh, within_s=4 * SOON_S)

    answer = await ask(mesh, f"{BILL} and knit me a very warm sweater", conversation=conversation)

    bill, sweater = answer.parts
    assert (bill.state, bill.agent) == ("done", "billing")
    assert (sweater.state, sweater.agent, sweater.attempts) == ("asked_back", "", 0)
    assert "knit me a very warm sweater:\nI " in answer.answer
    assert not answer.asked_back
    assert answer.agent == "billing"
    turn = await last_turn(mesh, conversation)
    assert turn.parts == answer.parts


@pytest.mark.parametrize("how", ["number", "German number", "name"])
async def test_who_is_asked_back_may_answer_with_a_number_or_a_name(
    mesh: Mesh, conversation: str, how: str
) -> None:
    unclear = await ask(mesh, "qwerty zxcvb", conversation=conversation)
    choices = [agent for _, agent in choices_in(unclear.answer)]
    at = choices.index("post")
    said = {
        "number": f"the {['first', 'second', 'third', 'fourth', 'fifth'][at]} one",
        "German number": f"Nummer {at + 1} bitte",
        "name": "send mail, please",
    }[how]

    answer = await ask(mesh, said, conversation=conversation)

    assert unclear.asked_back
    assert (answer.agent, answer.capability) == ("post", "send_mail")
    assert answer.decision is not None
    assert answer.decision.reason == "the user chose post of what was offered"


async def test_a_part_that_fails_says_so_and_the_others_are_answered(
    mesh: Mesh, conversation: str
) -> None:
    answer = await ask(mesh, f"play some jazz and {BILL}", conversation=conversation)

    failed, done = answer.parts
    assert answer.answer == (
        "play (music):\nThis could not be answered: the record player is broken.\n\n"
        "view bill (billing):\nYour bill is 39.99 €."
    )
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.error is not None
    assert failed.error["code"] == "not-found"
    assert failed.answer == ""
    turn = await last_turn(mesh, conversation)
    assert (turn.state, turn.error) == ("done", None)
    assert turn.parts == answer.parts


async def test_what_a_failed_part_said_before_stays(mesh: Mesh) -> None:
    frames = await frames_of(mesh, f"play my favourite song and {BILL}")

    end = Answer.model_validate(frames[-1].body)
    assert heard(frames) == end.answer
    assert end.parts[0].answer == "Looking for it. "
    assert "Looking for it. \n\nThe rest could not be answered: the record" in end.answer


async def test_what_needs_a_part_that_failed_is_not_begun(mesh: Mesh) -> None:
    message = f"{RAIN} Play some jazz. Then send it to me by mail"
    answer = await ask(mesh, message)

    assert [one.agent for one in answer.parts] == ["weather", "music", "post"]
    assert [one.state for one in answer.parts] == ["done", "failed", "skipped"]
    assert "This was not begun" in answer.answer


async def test_a_turn_of_which_nothing_is_answered_has_failed(
    mesh: Mesh, conversation: str
) -> None:
    with pytest.raises(MeshError, match=r"none of 2 requests.*music: the record player"):
        await ask(mesh, "play some jazz and then send it to me by mail", conversation=conversation)

    assert (await last_turn(mesh, conversation)).state == "failed"


async def test_what_is_ready_at_the_deadline_is_the_answer(mesh: Mesh) -> None:
    answer = await ask(mesh, BOTH, user="30", timeout_s=4.0)

    assert [one.state for one in answer.parts] == ["done", "failed"]
    assert answer.parts[1].error is not None
    assert answer.parts[1].error["code"] == "deadline-exceeded"


@pytest.mark.parametrize(("first", "restarts"), [(True, True), (True, False), (False, False)])
async def test_an_instance_that_dies_costs_its_part_nothing(
    services: Deployment, mesh: Mesh, town: str, conversation: str, first: bool, restarts: bool
) -> None:
    """Unless the caller has words of it, and cannot be told that they are void."""
    known = process(services, "weather")
    other = services.start_agent(WEATHER, name="weather", LMOS_TENANT=town)
    await asyncio.to_thread(other.wait_ready)
    await until(two_serve, mesh, "weather", within_s=SOON_S)
    message = f"{RAIN} And {BILL}" if first else BOTH

    more: dict[str, Any] = {"conversation": conversation, "restarts": restarts, "user": "1.5"}
    if not first:
        # Until the bill is there nobody has seen a word of the weather: long after its death.
        more["parameters"] = {"work_s": "3.0"}

    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(frames_of(mesh, message, **more))
        event = f"forecasting {conversation}"
        while not (at := [one for one in (known, other) if one.entries(event)]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        at[0].kill()
    alive = other if at[0] is known else known

    frames = asked.result()
    end = Answer.model_validate(frames[-1].body)
    assert heard(frames) == end.answer
    weather = next(one for one in end.parts if one.agent == "weather")
    billing = next(one for one in end.parts if one.agent == "billing")
    assert billing.state == "done"
    if first and not restarts:
        assert weather.state == "failed"
        assert "It will \n\nThe rest could not be answered: the instance" in end.answer
    else:
        assert (weather.state, weather.attempts) == ("done", 2)
        assert weather.instance == alive.instance
        assert end.answer.count("It will rain tomorrow.") == 1
    # What the caller has not seen begins anew without a word of it.
    assert [frame.kind for frame in frames].count("restart") == (1 if first and restarts else 0)


async def test_calling_a_turn_off_calls_all_of_its_parts_off(
    services: Deployment, mesh: Mesh, conversation: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(outcome_of(frames_of(mesh, BOTH, conversation=conversation)))
        agents, weather = process(services, "agents"), process(services, "weather")
        await agents.logged(f"billing {conversation}", SOON_S)
        await weather.logged(f"forecasting {conversation}", SOON_S)
        await mesh.bus.call(CANCEL_TURN, CancelTurn(conversation=conversation))
        await agents.logged(f"stopped {conversation}", SOON_S)
        await weather.logged(f"stopped {conversation}", SOON_S)

    assert isinstance(asked.result(), Cancelled)
    assert (await last_turn(mesh, conversation)).state == "cancelled"


async def outcome_of(work: Any) -> object:
    try:
        return await work
    except MeshError as error:
        return error


# -- handed over --


async def test_an_agent_hands_over_to_another_by_name(mesh: Mesh, conversation: str) -> None:
    frames = await frames_of(mesh, "to echo", agent="desk", conversation=conversation)

    end = Answer.model_validate(frames[-1].body)
    assert (end.answer, end.agent, end.handovers) == ("to echo (desk)", "echo", ("desk",))
    told = [frame.body for frame in frames if frame.kind == "status"]
    assert {"state": "handed_over", "from": "desk", "to": "echo", "capability": "repeat"} in told
    turn = await last_turn(mesh, conversation)
    assert (turn.agent, turn.handovers) == ("echo", ("desk",))


@pytest.mark.parametrize("capability", ["view_bill", "view bill"])
async def test_an_agent_hands_over_to_whoever_of_the_channel_can(
    mesh: Mesh, capability: str
) -> None:
    message = f"can {capability}" if " " not in capability else "can view_bill"
    answer = await ask(mesh, message, agent="desk")

    assert (answer.agent, answer.answer) == ("billing", "Your bill is 39.99 €.")


async def test_what_was_said_before_stays_and_the_other_one_may_be_asked_something_else(
    mesh: Mesh,
) -> None:
    frames = await frames_of(mesh, "say Moment to echo who are you", agent="desk")

    end = Answer.model_validate(frames[-1].body)
    assert heard(frames) == end.answer == "Moment \n\nwho are you (desk)"


async def test_a_plain_function_hands_over_as_well(mesh: Mesh) -> None:
    answer = await ask(mesh, "this", agent="porter")

    assert answer.answer == "Carrying. \n\nthis (porter)"


async def test_an_agent_that_names_nobody_is_told_so(mesh: Mesh) -> None:
    with pytest.raises(InvalidMessage, match="hands over to nobody"):
        await ask(mesh, "to", agent="desk")


async def test_a_conversation_stays_with_the_agent_that_it_was_handed_to(
    mesh: Mesh, conversation: str
) -> None:
    asked: dict[str, Any] = {"conversation": conversation}
    first = await ask(mesh, "to weather", agent="desk", **asked)
    follow_up = await ask(mesh, "and the day after?", **asked)
    other = await ask(mesh, BILL, **asked)
    stays = await ask(mesh, "and the month before?", **asked)

    assert [one.agent for one in (first, follow_up, other, stays)] == [
        "weather",
        "weather",
        "billing",
        "billing",
    ]


async def test_a_circle_of_hand_overs_ends_with_its_path(mesh: Mesh) -> None:
    with pytest.raises(LoopDetected, match="link-0 → link-1 → link-0") as stopped:
        await ask(mesh, "round 2", agent="link-0")

    assert stopped.value.details["path"] == ["link-0", "link-1", "link-0"]


async def test_there_is_a_limit_of_hand_overs(mesh: Mesh) -> None:
    with pytest.raises(LoopDetected, match=r"handed over 4 times.*link-4 → link-5"):
        await ask(mesh, "round 7", agent="link-0")


async def test_nobody_to_hand_over_to_is_a_clear_error(mesh: Mesh) -> None:
    with pytest.raises(AgentNotFound, match=r"'desk' hands over, and agent 'ekko'.*echo"):
        await ask(mesh, "to ekko", agent="desk")
    with pytest.raises(AgentNotFound, match="capability 'juggle', and channel 'web'"):
        await ask(mesh, "can juggle", agent="desk")


async def test_who_invokes_an_agent_by_hand_is_told_who_should_answer(mesh: Mesh) -> None:
    with pytest.raises(HandedOver, match="this is for agent 'echo'") as handed:
        await mesh.invoke("desk", "receive", {"question": "to echo"})

    assert handed.value.details["to"] == "echo"


# -- on closed channels --


async def closed(mesh: Mesh, channel: str, wired: dict[str, str], **spec: Any) -> None:
    """Close a channel as the operator would: these agents answer there, with these abilities."""
    tenant = mesh.bus.tenant
    metadata = {
        "name": channel,
        "labels": {"tenant": tenant, "channel": channel, "version": "1.0.0"},
    }
    groups = [
        {
            "id": agent,
            "name": agent,
            "subset": "stable",
            "capabilities": [
                {
                    "id": id,
                    "name": id,
                    "requiredVersion": "*",
                    "providedVersion": "1.0.0",
                    "host": host_of(ThingKey(tenant, agent, "stable")),
                }
            ],
        }
        for agent, id in wired.items()
    ]
    store = ResourceStore(mesh.bus)
    await store.put(
        Channel.model_validate({"metadata": metadata, "spec": {"requiredCapabilities": []}}),
        expected=0,
    )
    await store.put(
        ChannelRouting.model_validate(
            {"metadata": metadata, "spec": {"capabilityGroups": groups, **spec}}
        ),
        expected=0,
    )

    async def is_known(mesh: Mesh) -> bool:
        try:
            await ask(mesh, "nobody", agent="echo", channel=channel)
        except AgentNotFound as error:
            return "channel" in error.details
        return False

    for _ in range(2):  # runtimes
        await until(is_known, mesh, within_s=SOON_S)


async def test_an_agent_hands_over_within_its_channel_only(mesh: Mesh) -> None:
    await closed(mesh, "office", {"clerk": "take_in", "billing": "view_bill"})
    there: dict[str, Any] = {"agent": "clerk", "channel": "office"}

    assert (await ask(mesh, "can view_bill", **there)).agent == "billing"
    assert (await ask(mesh, "to billing", **there)).agent == "billing"
    with pytest.raises(AgentNotFound, match="'weather' is none of channel 'office'"):
        await ask(mesh, "to weather", **there)
    with pytest.raises(AgentNotFound, match=r"'forecast', and channel 'office' .* has none"):
        await ask(mesh, "can forecast", **there)


async def test_a_channel_may_have_one_agent_answer_it_all(mesh: Mesh) -> None:
    wired = {"billing": "view_bill", "weather": "forecast"}
    await closed(mesh, "lobby", wired, router={"parts": False})

    assert not (await ask(mesh, BOTH, channel="lobby")).parts
    assert len((await ask(mesh, BOTH, channel="lobby", parts=True)).parts) == 2


# -- asked by another agent --


async def test_an_agent_has_others_answer_on_the_channel_of_the_user(mesh: Mesh) -> None:
    answer = await ask(mesh, "echo asks hello", agent="boss", channel="ivr")

    assert answer.answer == "ivr: hello ()"


async def test_agents_that_ask_each_other_in_a_circle_are_stopped_with_the_path(
    mesh: Mesh,
) -> None:
    with pytest.raises(LoopDetected, match="boss → desk → boss"):
        await ask(mesh, "desk asks to boss", agent="boss")


async def test_a_supervisor_may_ask_for_several_things_at_once(mesh: Mesh) -> None:
    answer = await ask(mesh, BOTH, agent="boss")

    assert "39.99" in answer.answer
    assert "It will rain" in answer.answer


# -- reported --


async def test_reports_hold_the_parts_and_count_the_hand_overs(
    mesh: Mesh, conversation: str
) -> None:
    began = time.time()
    await ask(mesh, f"play some jazz and {BILL}", conversation=conversation, turn="several")
    await ask(mesh, "to echo", agent="desk", conversation=conversation, turn="handed")

    reports: dict[str, TurnReport] = {}
    async with asyncio.timeout(SOON_S):
        async for one in turn_reports.follow(mesh.bus, mesh.bus.tenant, since=began - 1):
            if one.report.conversation == conversation:
                reports[one.report.turn] = one.report
            if len(reports) == 2:
                break
    several, handed = reports["several"], reports["handed"]
    assert (several.outcome, several.error, several.agent) == (
        "answered",
        "not-found",
        "music,billing",
    )
    assert [(one.agent, one.state, one.error) for one in several.parts] == [
        ("music", "failed", "not-found"),
        ("billing", "done", ""),
    ]
    assert (handed.outcome, handed.handovers, handed.agent) == ("answered", 1, "echo")
