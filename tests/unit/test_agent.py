"""Plain functions as capabilities: their schema, their input, their answer in pieces."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from lmos_mesh import subjects, synadia
from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus, route
from lmos_mesh.codec import decode_value, encode_value
from lmos_mesh.context import Context
from lmos_mesh.description import describe, description_faults
from lmos_mesh.errors import (
    AgentFailed,
    Cancelled,
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NotFound,
    SettingsError,
    Unavailable,
)
from lmos_mesh.events import CloudEvent
from lmos_mesh.hosting import AgentHost
from lmos_mesh.invocation import CONTEXT
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import FIND_THINGS, REGISTER, FindThings
from lmos_mesh.reply_stream import Frame
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.transport import Packet
from lmos_mesh.watching import Watch
from lmos_mesh_registry.service import Registry
from lmos_mesh_registry.settings import RegistrySettings
from tests.conftest import MemoryMesh

SOON_S = 10.0


class Customer(BaseModel):
    id: int
    name: str = "?"


@dataclass
class Point:
    x: int
    y: int


agent = Agent("various", description="Has capabilities of every kind.", concurrency=20)
cancelled: queue.SimpleQueue[str] = queue.SimpleQueue()


@agent.capability(examples=["say hello"], tags=["greeting"])
async def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello {name}"


@agent.capability
def greet_slowly(name: str) -> str:
    time.sleep(1.0)
    return f"Hello {name}"


@agent.capability
async def count(upto: int = 3) -> AsyncIterator[str]:
    for number in range(upto):
        yield str(number)


@agent.capability
def count_in_thread(upto: int = 3) -> Iterator[str]:
    for number in range(upto):
        yield str(number)


@agent.capability
async def say_and_return(context: Context) -> str:
    await context.status(state="thinking", since=Point(1, 2))
    await context.say("one ")
    await context.say("")
    return "two"


@agent.capability
def say_from_thread(context: Context) -> str:
    context.say_from_thread("one ")
    return "two"


@agent.capability
async def say_only(context: Context) -> None:
    await context.say("said")


@agent.capability
async def typed(customer: Customer, amounts: list[float], note: str | None = None) -> Customer:
    assert isinstance(customer, Customer)
    return Customer(id=customer.id + len(amounts), name=note or customer.name)


@agent.capability
async def yields_objects() -> AsyncIterator[Point]:
    yield Point(1, 2)


@agent.capability
async def circumstances(question: str, context: Context) -> dict[str, Any]:
    return {
        "question": question,
        "message": context.message,
        "conversation": context.conversation,
        "turn": context.turn,
        "user": context.user,
        "channel": context.channel,
        "history": [one.content for one in context.history],
        "tenant": context.tenant,
        "task": context.task,
        "in_time": (context.remaining_s or 0) > 0,
        "cancelled": context.cancelled,
    }


@agent.capability
async def fails() -> str:
    raise ZeroDivisionError("secret detail")


@agent.capability
def fails_in_thread() -> str:
    return next(iter(()))  # StopIteration, which a future does not take


@agent.capability
async def fails_midway() -> AsyncIterator[str]:
    yield "one "
    raise ZeroDivisionError


@agent.capability
async def refuses() -> str:
    raise NotFound("no such customer", hint="check the number")


@agent.capability
async def waits_for_ever(context: Context) -> str:
    await context.say("begun")
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.put("waits_for_ever")
    return ""


@agent.capability
def works_until_cancelled(context: Context) -> str:
    context.say_from_thread("begun")
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        if context.cancelled:
            cancelled.put("works_until_cancelled")
            return "stopped"
        time.sleep(0.005)
    return "never told"


@agent.capability
def counts_until_cancelled(context: Context) -> Generator[str]:
    number = 0
    try:
        while True:
            yield str(number)
            number += 1
            time.sleep(0.005)
    finally:
        if context.cancelled:
            cancelled.put("counts_until_cancelled")


@agent.capability
def knows_where() -> str:
    from lmos_mesh import calls

    call = calls.current.get()
    return call.tenant if call else ""


class Caller:
    """Calls the capabilities of an agent, in answers or in frames."""

    def __init__(self, bus: Bus, name: str = "various") -> None:
        self.bus = bus
        self.name = name

    def subject(self, capability: str) -> str:
        return subjects.agent_invoke(self.bus.tenant, self.name, "stable", capability)

    async def ask(self, capability: str, payload: Any = None) -> Any:
        from lmos_mesh.codec import decode_value

        body = payload if isinstance(payload, bytes) else encode_value(payload or {})
        reply = await self.bus.request(self.subject(capability), body, timeout_s=SOON_S)
        return decode_value(reply.payload)

    async def frames(self, capability: str, payload: Any = None) -> list[Frame]:
        stream = await self.bus.open_stream(self.subject(capability), encode_value(payload or {}))
        try:
            return [frame async for frame in stream]
        finally:
            stream.close()


@asynccontextmanager
async def hosted(mesh: MemoryMesh, *agents: Agent) -> AsyncGenerator[Caller]:
    """These agents on a mesh in memory, with a registry."""
    async with (
        asyncio.timeout(20),
        mesh.bus("registry-1") as registry_bus,
        mesh.bus("agent-1") as agent_bus,
        mesh.bus("client-1") as client,
    ):
        await until_ready(Registry(RegistrySettings()).run, registry_bus)
        await until_ready(AgentHost(agents).run, agent_bus)
        yield Caller(client, agents[0].name)


async def until_ready(run: Callable[[Bus, Callable[[], None]], Any], bus: Bus) -> None:
    """Have a service run for as long as its bus, and return once it is ready."""
    ready = asyncio.Event()
    bus.spawn(run(bus, ready.set))
    await ready.wait()


# -- defining --


def test_an_agent_says_what_it_can_do() -> None:
    assert "greet" in repr(agent)
    thing = agent.thing("demo")

    assert (thing["name"], thing["tenant"], thing["subset"]) == ("various", "demo", "stable")
    greeting = thing["capabilities"][0]
    assert greeting["id"] == "greet"
    assert greeting["description"] == "Greet somebody."
    assert greeting["examples"] == ("say hello",)
    assert greeting["version"] == "1.0.0"
    assert greeting["input"] == {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    assert greeting["output"] == {"type": "string"}


def test_types_become_schemas_without_references() -> None:
    action = agent.action("typed")
    assert action is not None

    assert action.capability.input == {
        "type": "object",
        "properties": {
            "customer": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "name": {"type": "string", "default": "?"},
                },
                "required": ["id"],
            },
            "amounts": {"type": "array", "items": {"type": "number"}},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["customer", "amounts"],
    }
    assert action.capability.output is not None
    assert action.capability.output["type"] == "object"


@pytest.mark.parametrize("id", ["count", "count_in_thread", "counts_until_cancelled", "say_only"])
def test_what_is_streamed_is_text(id: str) -> None:
    action = agent.action(id)
    assert action is not None

    assert action.capability.output == {"type": "string"}


def test_a_name_and_a_version_may_be_given() -> None:
    one = Agent("one", version="2.0.0")

    @one.capability(id="view-bill", name="View bill", version="3.1.0", description="Shows it.")
    async def anything() -> None: ...

    capability = one.actions[0].capability
    assert (capability.id, capability.name) == ("view-bill", "View bill")
    assert (capability.version, capability.description) == ("3.1.0", "Shows it.")
    assert one.action("anything") is None


def test_the_decorated_function_is_still_the_function() -> None:
    one = Agent("one")

    @one.capability
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8


def test_parameters_without_a_schema_are_refused_by_name() -> None:
    one = Agent("one")

    with pytest.raises(SettingsError, match="anything"):

        @one.capability
        async def anything(*args: str) -> None: ...  # pyright: ignore[reportUnusedFunction]

    with pytest.raises(SettingsError, match=r"other.*kwargs"):

        @one.capability
        async def other(**kwargs: str) -> None: ...  # pyright: ignore[reportUnusedFunction]


def test_a_parameter_of_a_type_without_schema_is_refused_by_name() -> None:
    one = Agent("one")

    with pytest.raises(SettingsError, match="locked"):

        @one.capability
        async def locked(lock: threading.Event) -> None: ...  # pyright: ignore[reportUnusedFunction]


def test_everything_that_is_wrong_with_a_capability_is_said_at_once() -> None:
    one = Agent("one")
    examples: Any = "will it rain?"
    version: Any = 2

    with pytest.raises(SettingsError) as refused:

        @one.capability(examples=examples, version=version)
        async def locked(  # pyright: ignore[reportUnusedFunction]
            lock: threading.Event, more: threading.Thread, *rest: str, well: int = 1
        ) -> None: ...

    assert str(refused.value) == (
        "capability 'locked': version: must be a string; examples: must be an array; "
        "*rest has no schema; name its parameters; "
        "lock is of type Event, which JSON cannot carry; "
        "more is of type Thread, which JSON cannot carry"
    )


def test_everything_that_is_wrong_with_an_agents_arguments_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        Agent("one", concurrency=0, version="new", channels="web")

    assert "concurrency is 0" in str(refused.value)
    assert "channels is 'web', must be a list: ['web']" in str(refused.value)
    assert "/version: 'new' is not a version" in str(refused.value)
    assert "/supported_channels" not in str(refused.value)


def test_parameters_may_be_called_as_pydantic_calls_its_own() -> None:
    one = Agent("one")

    @one.capability
    async def convert(json: str, schema: str, copy: bool = False, _hidden: int = 1) -> str:
        return f"{json}{schema}{copy}{_hidden}"

    assert one.actions[0].arguments({"json": "a", "schema": "b", "copy": True}) == {
        "json": "a",
        "schema": "b",
        "copy": True,
        "_hidden": 1,
    }


def test_a_parameter_may_say_more_of_itself() -> None:
    one = Agent("one")

    @one.capability
    async def order(
        size: Annotated[int, Field(ge=1, description="How many.")],
        note: str = Field(default="", max_length=3),
        tags: list[str] = [],  # noqa: B006
    ) -> None: ...

    action = one.actions[0]
    assert action.capability.input is not None
    assert action.capability.input["required"] == ["size"]
    assert action.capability.input["properties"]["size"] == {
        "type": "integer",
        "minimum": 1,
        "description": "How many.",
    }
    assert action.arguments({"size": 2}) == {"size": 2, "note": "", "tags": []}
    with pytest.raises(InvalidMessage, match=r"/size.*/note"):
        action.arguments({"size": 0, "note": "long"})


def test_an_annotation_that_is_not_there_at_run_time_is_refused_by_name() -> None:
    one = Agent("one")

    async def anything(value: str) -> None: ...

    anything.__annotations__["value"] = "Decimal"
    with pytest.raises(SettingsError, match=r"anything.*Decimal"):
        one.capability(anything)


def test_a_concurrency_below_one_is_refused() -> None:
    with pytest.raises(SettingsError, match="'one': concurrency is 0"):
        Agent("one", concurrency=0)


def test_a_message_goes_to_the_action_that_shares_most_words_with_it() -> None:
    one = Agent("one")

    @one.capability(examples=["show my bill"])
    async def view_bill() -> None: ...

    @one.capability(examples=["will it rain?"])
    async def forecast() -> None: ...

    def chosen(message: str) -> str:
        action = one.action_for(message)
        return action.capability.id if action else ""

    assert chosen("Will it RAIN tomorrow?") == "forecast"
    assert chosen("the bill, please") == "view_bill"
    assert chosen("") == "view_bill"
    assert Agent("two").action_for("hi") is None


# -- being asked --


@pytest.mark.parametrize(
    ("id", "payload", "expected"),
    [
        ("greet", {"name": "Ada"}, "Hello Ada"),
        ("greet", {"message": "Ada"}, "Hello Ada"),
        ("greet", {"name": "Ada", "unknown": 1}, "Hello Ada"),
        ("greet", "Ada", "Hello Ada"),
        ("greet_slowly", {"name": "Ada"}, "Hello Ada"),
        ("count", {}, "012"),
        ("count", {"upto": 0}, ""),
        ("count_in_thread", {"upto": "2"}, "01"),
        ("say_and_return", {}, "one two"),
        ("say_from_thread", {}, "one two"),
        ("say_only", {}, "said"),
        ("yields_objects", {}, '{"x": 1, "y": 2}'),
        (
            "typed",
            {"customer": {"id": 1}, "amounts": [1, 2.5], "note": "n"},
            {"id": 3, "name": "n"},
        ),
    ],
)
async def test_an_answer_is_whole_whatever_kind_of_function_gives_it(
    memory_mesh: MemoryMesh, id: str, payload: Any, expected: Any
) -> None:
    async with hosted(memory_mesh, agent) as caller:
        assert await caller.ask(id, payload) == expected


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("greet", ["Hello Ada"]),
        ("count", ["0", "1", "2"]),
        ("count_in_thread", ["0", "1", "2"]),
        ("say_and_return", ["one ", "two"]),
        ("say_from_thread", ["one ", "two"]),
        ("yields_objects", ['{"x": 1, "y": 2}']),
        ("typed", []),
    ],
)
async def test_an_answer_is_streamed_as_it_comes_and_ends_with_the_whole(
    memory_mesh: MemoryMesh, id: str, said: list[str]
) -> None:
    payload: Any = {"name": "Ada"} if id == "greet" else {"customer": {"id": 1}, "amounts": []}
    async with hosted(memory_mesh, agent) as caller:
        frames = await caller.frames(id, payload)

    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert frames[0].kind == "ack"
    assert frames[0].body["instance"] == "agent-1"
    assert [frame.body for frame in frames if frame.kind == "delta"] == said
    assert frames[-1].kind == "end"
    if said:
        assert frames[-1].body == "".join(said)


async def test_a_person_may_ask_in_json_and_is_answered_in_json(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        reply = await caller.bus.request(
            caller.subject("greet"), b'{"name":"Ada"}', timeout_s=SOON_S
        )

    assert reply.payload == b'"Hello Ada"'


async def test_a_status_is_told_beside_the_answer(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        frames = await caller.frames("say_and_return")

    assert [frame.body for frame in frames if frame.kind == "status"] == [
        {"state": "thinking", "since": {"x": 1, "y": 2}}
    ]


async def test_a_capability_knows_who_asks_and_what_was_said(memory_mesh: MemoryMesh) -> None:
    payload = {
        "question": "q",
        CONTEXT: {
            "message": "m",
            "conversation": "c",
            "turn": "t",
            "user": "u",
            "channel": "ivr",
            "history": [{"role": "user", "content": "before"}],
        },
    }
    async with hosted(memory_mesh, agent) as caller:
        seen = await caller.ask("circumstances", payload)

    assert seen.pop("task")
    assert seen == {
        "question": "q",
        "message": "m",
        "conversation": "c",
        "turn": "t",
        "user": "u",
        "channel": "ivr",
        "history": ["before"],
        "tenant": memory_mesh.tenant,
        "in_time": True,
        "cancelled": False,
    }


async def test_a_function_in_a_thread_answers_the_same_call(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        assert await caller.ask("knows_where") == memory_mesh.tenant


async def test_ten_calls_of_a_slow_function_run_at_a_time(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            calls = [
                tasks.create_task(caller.ask("greet_slowly", {"name": str(at)})) for at in range(10)
            ]
        took_s = time.monotonic() - began

    assert [call.result() for call in calls] == [f"Hello {at}" for at in range(10)]
    assert took_s < 9


# -- what goes wrong --


@pytest.mark.parametrize(
    ("id", "payload", "fields"),
    [
        ("greet", {}, ["/name"]),
        ("greet", {"name": 1}, ["/name"]),
        ("typed", {"customer": {"id": "x"}, "amounts": "y"}, ["/customer/id", "/amounts"]),
        ("typed", {}, ["/customer", "/amounts"]),
    ],
)
async def test_bad_input_is_refused_with_every_wrong_field_named(
    memory_mesh: MemoryMesh, id: str, payload: Any, fields: list[str]
) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(InvalidMessage) as refused:
            await caller.ask(id, payload)

    assert [fault["field"] for fault in refused.value.details["faults"]] == fields
    assert id in refused.value.message


@pytest.mark.parametrize("payload", [b"\xc1", b"{", b"[1]", b"\x93\x01\x02\x03", b"{" * 99_999])
async def test_bytes_that_are_no_input_are_refused(memory_mesh: MemoryMesh, payload: bytes) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(InvalidMessage):
            await caller.ask("greet", payload)

        assert await caller.ask("greet", {"name": "Ada"}) == "Hello Ada"


@pytest.mark.parametrize("id", ["fails", "fails_in_thread", "fails_midway"])
async def test_an_agent_that_raises_is_an_error_without_its_details(
    memory_mesh: MemoryMesh, id: str
) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(AgentFailed, match="various.*" + id) as failed:
            await caller.ask(id)
        with pytest.raises(AgentFailed):
            await caller.frames(id)

    assert "secret" not in str(failed.value.problem())


async def test_an_agent_may_refuse_in_its_own_words(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(NotFound, match="no such customer") as refused:
            await caller.ask("refuses")

    assert refused.value.hint == "check the number"


async def test_an_unknown_capability_is_a_404_that_names_the_known(
    memory_mesh: MemoryMesh,
) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(NotFound, match=r"has no capability 'dance'.*greet"):
            await caller.ask("dance")
        with pytest.raises(NotFound, match="invoke"):
            await caller.bus.request(
                caller.subject("greet").replace("invoke", "destroy"), b"", timeout_s=SOON_S
            )


@pytest.mark.parametrize(
    "id", ["waits_for_ever", "works_until_cancelled", "counts_until_cancelled"]
)
async def test_a_caller_that_leaves_stops_the_work(memory_mesh: MemoryMesh, id: str) -> None:
    async with hosted(memory_mesh, agent) as caller:
        stream = await caller.bus.open_stream(caller.subject(id), encode_value({}))
        assert (await anext(stream)).kind == "ack"
        assert (await anext(stream)).kind == "delta"

        stream.close()

        assert await asyncio.to_thread(cancelled.get, timeout=SOON_S) == id


async def test_a_call_ends_at_its_deadline(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        with pytest.raises(MeshError) as late:
            await caller.bus.request(
                caller.subject("waits_for_ever"), encode_value({}), timeout_s=0.1
            )

        assert not isinstance(late.value, Cancelled)
        assert await asyncio.to_thread(cancelled.get, timeout=SOON_S) == "waits_for_ever"


async def test_a_long_answer_in_the_synadia_protocol_says_now_and_then_that_it_comes(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synadia, "KEEP_ALIVE_S", 0.03)
    slow = Agent("slow")
    chunks: list[bytes] = []
    enough, ended = asyncio.Event(), asyncio.Event()

    @slow.capability
    async def take(question: str) -> str:
        await enough.wait()
        return question

    def on_packet(packet: Packet) -> None:
        chunks.append(packet.payload)
        if len(chunks) == 4:
            enough.set()
        if not packet.payload:
            ended.set()

    async with hosted(memory_mesh, slow) as caller:
        transport = caller.bus.transport
        inbox = transport.open_inbox(on_packet)
        where = synadia.subject("prompt", memory_mesh.tenant, "slow", "stable")
        transport.publish(where, b"hi", reply=inbox.subject)
        async with asyncio.timeout(SOON_S):
            await ended.wait()
        await asyncio.sleep(0.1)

    assert chunks[-2:] == [synadia.response("hi"), b""]
    assert set(chunks[:-2]) == {synadia.acknowledged()}
    assert len(chunks) >= 5


# -- joining --


async def test_an_agent_is_found_once_it_is_ready(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, agent) as caller:
        found = await caller.bus.call(FIND_THINGS, FindThings())

    assert [one.name for one in found.things] == ["various"]
    assert [one.instance for one in found.things[0].instances] == ["agent-1"]
    assert found.things[0].instances[0].concurrency == 20


async def test_an_agent_that_breaks_the_rules_is_refused_with_every_reason() -> None:
    bad = Agent(" ", version="one")

    @bad.capability(id="a", version="two")
    async def first() -> None: ...

    @bad.capability(id="a", examples=["x", "x"])
    async def second() -> None: ...

    async with MemoryMesh().bus() as bus:
        with pytest.raises(InvalidDescription) as refused:
            await AgentHost([bad]).run(bus, lambda: None)

    assert {fault["field"] for fault in refused.value.details["faults"]} == {
        "/name",
        "/version",
        "/capabilities/0/version",
        "/capabilities/1/id",
        "/capabilities/1/version",
        "/capabilities/1/examples/1",
    }


async def test_agents_of_one_process_need_names_of_their_own() -> None:
    async with MemoryMesh().bus() as bus:
        with pytest.raises(SettingsError, match="same"):
            await AgentHost([Agent("same"), Agent("same")]).run(bus, lambda: None)
        with pytest.raises(SettingsError, match="no agent"):
            await AgentHost([]).run(bus, lambda: None)


# -- properties --


class Hours(BaseModel):
    """When somebody is there."""

    opens: Annotated[int, Field(ge=0, le=24)] = 9
    closes: int = 17


class Refund(BaseModel):
    order: str
    amount: float


class Shop:
    """An agent with properties and events of every kind."""

    def __init__(self) -> None:
        self.agent = one = Agent(
            "shop",
            description="Sells.",
            links=[
                "https://shop.example",
                {"href": "https://shop.example/terms", "rel": "license"},
            ],
        )
        self.hours = Hours()
        self.motto = "open"
        self.refunded = one.event("refunded", data=Refund, description="Money went back.")
        self.closed = one.event("closed")
        self.ended: list[str] = []
        self.watches: list[Watch] = []

        @one.property
        def opening_hours() -> Hours:
            return self.hours

        @opening_hours.writer
        def set_opening_hours(value: Hours) -> None:  # pyright: ignore[reportUnusedFunction]
            self.hours = value

        @one.property(name="motto of the day", description="What it says.")
        async def motto(context: Context) -> str:
            return f"{self.motto} {context.tenant}"

        @motto.writer
        async def set_motto(text: str, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
            self.motto = f"{text} {context.task != ''}"

        @one.property
        async def broken() -> int:  # pyright: ignore[reportUnusedFunction]
            raise ZeroDivisionError("secret")

        @one.property
        async def visitors() -> int:  # pyright: ignore[reportUnusedFunction]
            return 3

        @one.capability
        async def refund(order: str, context: Context) -> str:  # pyright: ignore[reportUnusedFunction]
            await context.emit(self.refunded, Refund(order=order, amount=1.5))
            return "done"

        @one.capability
        def close(context: Context) -> int:  # pyright: ignore[reportUnusedFunction]
            context.from_thread(context.emit("closed"))
            return len(context.from_thread(context.mesh.find(capability="close")))

        @one.capability
        async def who(context: Context) -> list[str]:  # pyright: ignore[reportUnusedFunction]
            return [one.name for one in await context.mesh.find(capability="refund")]

        @one.capability
        async def look(context: Context) -> str:  # pyright: ignore[reportUnusedFunction]
            watch = context.mesh.watch()
            self.watches.append(watch)
            async for change in watch:
                return f"{change.kind} {change.thing.name}"
            return ""


def property_subject(bus: Bus, name: str, verb: str) -> str:
    return subjects.agent_property(bus.tenant, "shop", "stable", name, verb)


def test_properties_events_and_links_are_described() -> None:
    raw = Shop().agent.thing("demo")
    description = describe(thing_from(raw))

    assert description_faults(description) == []
    hours = description["properties"]["opening_hours"]
    assert hours["description"] == "When somebody is there."
    assert hours["type"] == "object"
    assert hours["properties"]["opens"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 24,
        "default": 9,
    }
    assert not hours.get("readOnly")
    assert description["properties"]["motto of the day"]["description"] == "What it says."
    assert description["properties"]["visitors"]["readOnly"]
    assert description["events"]["refunded"]["description"] == "Money went back."
    assert set(description["events"]["refunded"]["data"]["properties"]) == {"order", "amount"}
    assert "data" not in description["events"]["closed"]
    assert description["links"] == [
        {"href": "https://shop.example"},
        {"href": "https://shop.example/terms", "rel": "license"},
    ]


def test_a_property_is_still_its_function() -> None:
    one = Agent("one")

    @one.property
    def answer() -> int:
        """What it all comes to."""
        return 42

    assert answer() == 42
    assert one.properties == (answer,)
    assert answer.description == "What it all comes to."
    assert not answer.writable


async def test_a_property_is_read_and_written(memory_mesh: MemoryMesh) -> None:
    shop = Shop()
    async with hosted(memory_mesh, shop.agent) as caller:
        mesh = Mesh(caller.bus)
        assert await mesh.read("shop", "opening_hours") == {"opens": 9, "closes": 17}
        await mesh.write("shop", "opening_hours", {"opens": 10})
        assert shop.hours == Hours(opens=10)
        await mesh.write("shop", "motto of the day", "closed")
        found = (await mesh.find(name="shop"))[0]
        assert await mesh.read(found, "motto of the day") == f"closed True {caller.bus.tenant}"


async def test_a_property_is_written_in_msgpack_or_json(memory_mesh: MemoryMesh) -> None:
    shop = Shop()
    async with hosted(memory_mesh, shop.agent) as caller:
        subject = property_subject(caller.bus, "opening_hours", "write")
        for payload in (encode_value({"opens": 1}), b' {"opens": 2}'):
            reply = await caller.bus.request(subject, payload, timeout_s=SOON_S)
            assert decode_value(reply.payload) is None or reply.payload == b"null"
        assert shop.hours.opens == 2
        with pytest.raises(InvalidMessage, match="not JSON"):
            await caller.bus.request(subject, b"opens", timeout_s=SOON_S)
        with pytest.raises(InvalidMessage, match="no value"):
            await caller.bus.request(subject, b"", timeout_s=SOON_S)


async def test_a_wrong_value_is_refused_with_a_pointer_to_each_fault(
    memory_mesh: MemoryMesh,
) -> None:
    shop = Shop()
    async with hosted(memory_mesh, shop.agent) as caller:
        with pytest.raises(InvalidMessage, match="'opening_hours'") as refused:
            await Mesh(caller.bus).write("shop", "opening_hours", {"opens": 25, "closes": "x"})

    assert [one["field"] for one in refused.value.details["faults"]] == ["/opens", "/closes"]
    assert shop.hours == Hours()


async def test_what_nobody_may_write_says_so(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, Shop().agent) as caller:
        with pytest.raises(InvalidMessage, match="'visitors' of agent 'shop' is read-only"):
            await Mesh(caller.bus).write("shop", "visitors", 4)


async def test_a_property_that_does_not_exist_is_answered_with_those_like_it(
    memory_mesh: MemoryMesh,
) -> None:
    async with hosted(memory_mesh, Shop().agent) as caller:
        with pytest.raises(NotFound, match="did you mean visitors") as refused:
            await Mesh(caller.bus).read("shop", "visitor")
        assert refused.value.details["near"] == ["visitors"]
        subject = property_subject(caller.bus, "visitors", "erase")
        with pytest.raises(NotFound, match=r"property.<name>.read"):
            await caller.bus.request(subject, b"", timeout_s=SOON_S)


async def test_a_property_that_fails_does_not_tell_why(memory_mesh: MemoryMesh) -> None:
    async with hosted(memory_mesh, Shop().agent) as caller:
        with pytest.raises(AgentFailed, match="'broken': ZeroDivisionError") as failed:
            await Mesh(caller.bus).read("shop", "broken")

    assert "secret" not in str(failed.value)


async def test_an_agent_is_refused_with_every_fault_of_its_interactions(
    memory_mesh: MemoryMesh,
) -> None:
    one = Agent("registry")
    one.event("")
    one.event("locked", data=threading.Event)

    @one.property
    def lock() -> threading.Event: ...

    @one.property(name="lock")
    def twice(of: str) -> int: ...

    @twice.writer
    def write_twice(value: str) -> None: ...  # pyright: ignore[reportUnusedFunction]

    @one.property
    def pieces() -> Iterator[str]:  # pyright: ignore[reportUnusedFunction]
        yield ""

    assert lock.faults
    async with memory_mesh.bus() as bus:
        with pytest.raises(InvalidDescription) as refused:
            await AgentHost([one]).run(bus, lambda: None)

    said = str(refused.value)
    for part in (
        "/properties/0: has a type without a JSON Schema",
        '/properties/1/name: "lock" is there already',
        "/properties/1: its function takes of",
        "/properties/1: its writer takes another type",
        "/properties/2: its function yields",
        "/events/0/name: is empty",
        "/events/1: has a type without a JSON Schema",
        "/name: is where the registry's events are",
    ):
        assert part in said


# -- events --


async def test_an_event_is_told_to_whoever_listens(memory_mesh: MemoryMesh) -> None:
    shop = Shop()
    heard: asyncio.Queue[Packet] = asyncio.Queue()
    async with hosted(memory_mesh, shop.agent) as caller:
        tenant = caller.bus.tenant
        await caller.bus.transport.subscribe(f"lmos.{tenant}.event.shop.*", heard.put_nowait)
        assert await caller.ask("refund", {"order": "ö-1"}) == "done"
        assert await caller.ask("close") == 1
        await shop.agent.emit(shop.refunded, Refund(order="2", amount=2))
        packets = [await heard.get() for _ in range(3)]

    assert [one.subject.rsplit(".", 1)[1] for one in packets] == ["refunded", "closed", "refunded"]
    told = [CloudEvent.from_packet(one) for one in packets]
    assert told[0].data == {"order": "ö-1", "amount": 1.5}
    assert told[0].type == "lmos.agent.refunded"
    assert told[0].source == f"urn:lmos-mesh:{tenant}:shop:stable"
    assert len({one.id for one in told}) == 3
    assert packets[1].payload == b""


async def test_what_is_no_event_of_the_agent_or_not_of_its_type_is_refused(
    memory_mesh: MemoryMesh,
) -> None:
    shop = Shop()
    with pytest.raises(Unavailable, match="'shop' is on no mesh"):
        await shop.agent.emit("closed")
    async with hosted(memory_mesh, shop.agent):
        with pytest.raises(InvalidMessage, match=r"event 'refunded': /amount"):
            await shop.agent.emit("refunded", {"order": "1", "amount": "much"})
        with pytest.raises(InvalidMessage, match="'closed' tells nothing"):
            await shop.agent.emit("closed", 1)
        with pytest.raises(NotFound, match="did you mean refunded"):
            await shop.agent.emit("refund")
    with pytest.raises(Unavailable):
        _ = shop.agent.mesh


# -- in the background --


async def test_what_an_agent_does_in_the_background_begins_anew_and_ends_with_it(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmos_mesh.hosted._ANEW_S", 0.01)
    one = Agent("one", description="Looks around.")
    seen: asyncio.Queue[str] = asyncio.Queue()
    began: list[int] = []

    @one.background
    async def look() -> None:  # pyright: ignore[reportUnusedFunction]
        began.append(1)
        if len(began) == 1:
            raise ZeroDivisionError
        try:
            async for change in one.mesh.watch():
                seen.put_nowait(f"{change.kind} {change.thing.name}")
        except asyncio.CancelledError:
            seen.put_nowait("ended")
            raise

    async with hosted(memory_mesh, one), asyncio.timeout(SOON_S):
        assert await seen.get() == "joined one"
    assert await seen.get() == "ended"
    assert len(began) == 2


async def test_an_agent_that_is_refused_is_on_no_mesh(memory_mesh: MemoryMesh) -> None:
    shop = Shop()

    async def refuse(request: Any, call: Any) -> Any:
        raise InvalidDescription("never")

    async with memory_mesh.bus() as registry, memory_mesh.bus() as bus:
        await registry.serve("registry", [route(REGISTER, refuse)])
        with pytest.raises(InvalidDescription, match="never"):
            await AgentHost([shop.agent]).run(bus, lambda: None)
    assert shop.agent.presence is None


# -- finding others --


async def test_an_agent_finds_others_and_what_it_watches_ends_with_the_request(
    memory_mesh: MemoryMesh,
) -> None:
    shop = Shop()
    async with hosted(memory_mesh, shop.agent) as caller:
        assert await caller.ask("who") == ["shop"]
        assert await caller.ask("look") == "joined shop"

        with pytest.raises(StopAsyncIteration):
            await anext(shop.watches[0])


async def test_a_condition_that_does_not_exist_is_refused(memory_mesh: MemoryMesh) -> None:
    async with memory_mesh.bus() as bus:
        with pytest.raises(InvalidMessage, match="did you mean 'capability'"):
            await Mesh(bus).find(capabilty="refund")
        with pytest.raises(InvalidMessage, match="/limit"):
            Mesh(bus).watch(limit=0)
