"""What the bus promises over every transport: typed calls, errors, bounds, and streams."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from pydantic import Field

from lmos_mesh import calls, dispatch, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import decode_value, encode_value
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import (
    AgentFailed,
    AgentNotFound,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InstanceLost,
    InvalidMessage,
    LoopDetected,
    MeshError,
    NotFound,
    Overloaded,
    StreamBroken,
    TooLarge,
    Unavailable,
)
from lmos_mesh.mesh import Mesh as Client
from lmos_mesh.messages import CONVERSE, Converse
from lmos_mesh.messages import Answer as Turned
from lmos_mesh.reply_stream import Frame, Patience, ReplyStream
from lmos_mesh.transport import Headers, Packet, Transport
from tests.conftest import Mesh, new_name

SOON_S = 10.0
"""Far longer than anything here takes: a test that waits this long has failed."""

NOTICED_S = 3.0
"""What is noticed at once comes within this; otherwise a deadline or a sign of life would tell."""


class Question(Message):
    text: str
    count: int = Field(default=1, ge=1)
    tags: tuple[str, ...] = ()
    note: str | None = None


class Answer(Message):
    text: str
    count: int = 0
    blob: bytes = b""
    note: str | None = None


ASK = Endpoint("oracle", "ask", Question, Answer)
_independent: Any = msgpack  # it has no types
Handler = Callable[[Question, Call], Awaitable[Answer]]


def packed(value: Any) -> bytes:
    """As another language's encoder writes it: not the one that the mesh uses."""
    return _independent.packb(value)


def unpacked(payload: bytes) -> Any:
    """As another language's decoder reads it."""
    return _independent.unpackb(payload)


async def echo(question: Question, call: Call) -> Answer:
    return Answer(text=question.text, count=question.count)


async def serve(bus: Bus, handler: Handler = echo, **settings: Any) -> None:
    """Answer `ASK` with a handler."""
    await bus.serve(ASK.service, [route(ASK, handler)], **settings)


@asynccontextmanager
async def two(mesh: Mesh, handler: Handler = echo, **settings: Any) -> AsyncGenerator[Bus]:
    """A caller's bus, and somebody who answers `ASK`."""
    async with mesh.bus("caller") as caller, mesh.bus("oracle") as oracle:
        await serve(oracle, handler, **settings)
        yield caller


async def raw(
    transport: Transport, subject: str, payload: bytes, headers: Headers | None = None
) -> Packet:
    return await transport.request(subject, payload, headers=headers, timeout_s=SOON_S)


async def happens(event: asyncio.Event, within_s: float = SOON_S) -> None:
    async with asyncio.timeout(within_s):
        await event.wait()


# -- typed calls --


async def test_a_call_is_answered_with_the_type_that_the_endpoint_promises(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        answer = await caller.call(ASK, Question(text="grüß dich", count=3))

        assert answer == Answer(text="grüß dich", count=3)


async def test_a_call_reaches_the_tenant_it_names_whatever_it_is_called(mesh: Mesh) -> None:
    async def who(question: Question, call: Call) -> Answer:
        return Answer(text=call.tenant)

    async with two(mesh, who) as caller:
        for tenant in (mesh.tenant, "acme", "Straße 7", "a.b", "_xabc", "*"):
            answer = await caller.call(ASK, Question(text=""), tenant=tenant)
            assert answer.text == tenant


async def test_where_nobody_serves_a_call_fails_at_once(mesh: Mesh) -> None:
    async with mesh.bus() as caller:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="nobody answers"):
            await caller.call(
                Endpoint("nobody", "x", Question, Answer), Question(text=""), timeout_s=3 * SOON_S
            )
        assert time.monotonic() - began < SOON_S


async def test_a_call_may_wait_for_somebody_who_is_just_starting(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("oracle") as oracle:

        async def start() -> None:
            await asyncio.sleep(0.2)
            await serve(oracle)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(start())
            answer = await caller.call(ASK, Question(text="there?"), nobody_s=SOON_S)

        assert answer.text == "there?"


async def test_a_turn_may_wait_for_a_runtime_that_is_just_starting(mesh: Mesh) -> None:
    async def respond(request: Converse, call: Call) -> Turned:
        return Turned(answer="here", conversation="c", turn=request.turn or "")

    async with mesh.bus("caller") as caller, mesh.bus("oracle") as oracle:

        async def start() -> None:
            await asyncio.sleep(0.2)
            await oracle.serve("runtime", [route(CONVERSE, respond)])

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(start())
            answer = await Client(caller).ask("there?")

        assert answer.answer == "here"


async def test_replicas_share_the_calls(mesh: Mesh) -> None:
    async with (
        mesh.bus("caller") as caller,
        mesh.bus("one") as one,
        mesh.bus("two") as other,
    ):

        def by(name: str) -> Handler:
            async def answer(question: Question, call: Call) -> Answer:
                return Answer(text=name)

            return answer

        await serve(one, by("one"))
        await serve(other, by("two"))

        answers = [(await caller.call(ASK, Question(text=""))).text for _ in range(60)]

        assert set(answers) == {"one", "two"}


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no such thing", hint="look elsewhere"),
        AgentNotFound("no agent 'x'", candidates=["xy", "xz"]),
        Conflict("taken", revision=7),
        InvalidMessage("wrong", faults=[{"field": "/a", "description": "missing"}]),
        TooLarge("big", limit=5),
        Overloaded("busy"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_is_raised_again_as_the_same_class_with_its_details(
    mesh: Mesh, error: MeshError
) -> None:
    async def fail(question: Question, call: Call) -> Answer:
        raise error

    async with two(mesh, fail) as caller:
        with pytest.raises(MeshError) as raised:
            await caller.call(ASK, Question(text=""))

        assert type(raised.value) is type(error)
        assert raised.value.message == error.message
        assert raised.value.hint == error.hint
        assert raised.value.details == error.details


async def test_a_bug_in_a_handler_is_an_error_that_tells_nothing_of_it(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(question: Question, call: Call) -> Answer:
        raise RuntimeError("secret of the house")

    async with two(mesh, fail) as caller:
        for _ in range(2):
            with pytest.raises(MeshError, match="failed") as raised:
                await caller.call(ASK, Question(text=""))
            assert type(raised.value) is MeshError
            assert "secret" not in str(raised.value)
    assert "secret of the house" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        NotFound("gone", things={1, 2}),
        NotFound("gone", thing=object()),
        NotFound("lone surrogate \ud800"),
        NotFound("gone", number=10**30),
        NotFound("gone", essay="x" * 2_000_000),
        NotFound("x" * 2_000_000),
    ],
    ids=["set", "object", "surrogate", "number", "large details", "large message"],
)
async def test_an_error_that_cannot_be_sent_whole_still_arrives_and_the_bus_lives_on(
    mesh: Mesh, error: NotFound
) -> None:
    async def fail(question: Question, call: Call) -> Answer:
        if question.text == "fine":
            return Answer(text="fine")
        raise error

    async with two(mesh, fail) as caller:
        with pytest.raises(NotFound):
            await caller.call(ASK, Question(text=""), timeout_s=SOON_S)
        async with caller.stream(ASK, Question(text="")) as stream:
            with pytest.raises(NotFound):
                await all_of(stream)

        assert (await caller.call(ASK, Question(text="fine"))).text == "fine"


async def test_an_answer_that_is_too_large_is_the_fault_of_whoever_answers(mesh: Mesh) -> None:
    async def much(question: Question, call: Call) -> Answer:
        return Answer(text="x" * 2_000_000)

    async with two(mesh, much) as caller:
        limit = caller.transport.max_payload
        for ask in (
            caller.call(ASK, Question(text=""), timeout_s=SOON_S),
            asked_in_frames(caller),
        ):
            with pytest.raises(
                AgentFailed, match=rf"the oracle takes 20000\d\d .* {limit}"
            ) as told:
                await ask
            assert "INBOX" not in str(told.value)
            assert told.value.details["limit"] == limit


async def asked_in_frames(caller: Bus) -> None:
    async with caller.stream(ASK, Question(text="")) as stream:
        await all_of(stream)


async def test_a_request_that_is_too_large_is_an_error_with_the_limit(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        with pytest.raises(TooLarge, match=str(caller.transport.max_payload)):
            await caller.call(ASK, Question(text="x" * 2_000_000))


async def test_an_unknown_operation_is_an_error_that_names_the_known_ones(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        with pytest.raises(NotFound, match=r"oracle has no operation 'aks' \(it has ask\)"):
            await caller.call(Endpoint("oracle", "aks", Question, Answer), Question(text=""))


# -- what is on the wire --


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (b"", "/text"),
        (b"\xc1\xff\x00", "neither JSON nor msgpack"),
        (b"garbage", "must be an object"),
        (bytes(range(255, 128, -1)), "must be an object"),
        (packed(["a", "list"]), "must be an object"),
        (packed(7), "must be an object"),
        (packed(None), "must be an object"),
        (packed({"count": 2}), "/text"),
        (packed({"text": "x", "count": "many"}), "/count"),
        (packed({"text": "x", "count": 0}), "/count"),
        (packed({"text": "x", "tags": ["a", 5]}), "/tags/1"),
        (packed({"text": "x"})[:-1], "neither JSON nor msgpack"),
        (b'{"text": ', "JSON"),
        (b'{"text": 5}', "/text"),
        (b'{"texts": "x"}', "/text"),
        (b"[]", "must be an object"),
        (b"{}", "/text"),
        (b"[" * 200_000, "JSON"),
        (b" ", "JSON"),
    ],
)
async def test_a_malformed_payload_gets_an_error_that_names_the_field_and_the_next_is_served(
    mesh: Mesh, payload: bytes, named: str
) -> None:
    async with two(mesh) as caller:
        reply = await raw(caller.transport, f"lmos.{mesh.tenant}.oracle.ask", payload)

        problem = decode_value(reply.payload)
        assert reply.headers[calls.ERROR_CODE] == "400"
        assert problem["code"] == "invalid-message"
        if named.startswith("/"):
            assert named in [fault["field"] for fault in problem["faults"]]
        else:
            assert named in problem["detail"]
        assert (await caller.call(ASK, Question(text="next"))).text == "next"


async def test_so_many_faults_that_they_do_not_fit_are_still_an_error(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        payload = json.dumps({"text": "", "tags": list(range(30_000))}).encode()
        assert len(payload) < caller.transport.max_payload

        reply = await raw(caller.transport, f"lmos.{mesh.tenant}.oracle.ask", payload)

        assert reply.headers[calls.ERROR_CODE] == "400"
        assert decode_value(reply.payload)["code"] == "invalid-message"


@pytest.mark.parametrize(
    "headers",
    [
        {calls.DEADLINE: "soon"},
        {calls.DEADLINE: "1e3"},
        {calls.DEADLINE: "9" * 400},
        {calls.DEADLINE: "9" * 9_000},
        {calls.HOPS: "many"},
        {calls.HOPS: "1.5"},
    ],
)
async def test_a_malformed_header_gets_an_error_that_names_it(
    mesh: Mesh, headers: dict[str, str]
) -> None:
    async with two(mesh) as caller:
        payload = encode_value({"text": "x"})
        reply = await raw(caller.transport, f"lmos.{mesh.tenant}.oracle.ask", payload, headers)

        problem = decode_value(reply.payload)
        assert problem["code"] == "invalid-message"
        assert problem["field"] == next(iter(headers))
        assert (await caller.call(ASK, Question(text="next"))).text == "next"


async def test_a_person_who_sends_json_is_answered_in_json(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        subject = f"lmos.{mesh.tenant}.oracle.ask"

        reply = await raw(caller.transport, subject, b'{"text":"show my bill"}')
        spaced = await raw(caller.transport, subject, b'\n  {"text": "x", "count": 2}')
        refused = await raw(caller.transport, subject, b'{"text":5}')

        assert json.loads(reply.payload) == {"text": "show my bill", "count": 1, "blob": ""}
        assert json.loads(spaced.payload)["count"] == 2
        assert json.loads(refused.payload)["faults"][0]["field"] == "/text"


async def test_a_person_who_sends_nothing_is_told_in_json_what_is_missing(mesh: Mesh) -> None:
    async with two(mesh) as caller:
        refused = await raw(caller.transport, ASK.subject(mesh.tenant), b"")

        assert json.loads(refused.payload)["faults"] == [
            {"field": "/text", "description": "is missing"}
        ]


async def test_an_instance_says_whether_it_is_at_a_task(mesh: Mesh) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def wait(question: Question, call: Call) -> Answer:
        begun.set()
        await end.wait()
        return Answer(text="")

    async with two(mesh, wait) as caller, caller.stream(ASK, Question(text="")) as stream:
        await happens(begun)
        await anext(stream)

        async def status(tenant: str, task: str) -> Any:
            subject = subjects.instance(tenant, stream.instance, "status")
            asked = encode_value({"task": task}) if task else b""
            return decode_value((await raw(caller.transport, subject, asked)).payload)

        known = {"instance": stream.instance, "in_flight": 1}
        assert await status(mesh.tenant, "") == known
        assert await status(mesh.tenant, stream.task) == {**known, "running": True}
        assert await status("other", stream.task) == {**known, "running": False}
        end.set()
        await all_of(stream)
        assert (await status(mesh.tenant, stream.task))["running"] is False


async def test_another_language_can_ask_with_its_own_msgpack(mesh: Mesh) -> None:
    async def with_bytes(question: Question, call: Call) -> Answer:
        return Answer(text=question.text, blob=b"\x00\xff")

    async with two(mesh, with_bytes) as caller:
        asked = packed({"text": "größer", "unknown": {"kept": [1, None]}})

        reply = await raw(caller.transport, f"lmos.{mesh.tenant}.oracle.ask", asked)

        told = unpacked(reply.payload)
        assert told == {"text": "größer", "count": 0, "blob": b"\x00\xff", "note": None}


async def test_another_language_can_answer_with_its_own_msgpack_or_json(mesh: Mesh) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        seen: list[Any] = []

        def answer(packet: Packet) -> None:
            seen.append(unpacked(packet.payload))
            told = {"text": "from afar", "count": len(seen)}
            reply = packed(told) if len(seen) == 1 else json.dumps(told).encode()
            foreign.publish(packet.reply, reply)

        await foreign.subscribe(f"lmos.{mesh.tenant}.oracle.ask", answer)

        for count in (1, 2):
            found = await caller.call(ASK, Question(text="?", tags=("a",)))
            assert found == Answer(text="from afar", count=count)
        assert seen[0] == {"text": "?", "count": 1, "tags": ["a"], "note": None}


async def test_a_foreign_services_error_is_raised_by_its_status(mesh: Mesh) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        errors = iter(
            [
                ({"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no such bill"}, b""),
                ({"Nats-Service-Error-Code": "409"}, b'{"message":"taken","self":1,"hint":null}'),
                ({"Nats-Service-Error-Code": "nonsense", "Nats-Service-Error": "x"}, b"\xc1"),
                ({"Nats-Service-Error-Code": "503", "Nats-Service-Error": "x"}, b'{"code":"new"}'),
            ]
        )

        def fail(packet: Packet) -> None:
            headers, payload = next(errors)
            foreign.publish(packet.reply, payload, headers=headers)

        await foreign.subscribe(f"lmos.{mesh.tenant}.oracle.ask", fail)

        with pytest.raises(NotFound, match="no such bill"):
            await caller.call(ASK, Question(text=""))
        with pytest.raises(Conflict) as raised:
            await caller.call(ASK, Question(text=""))
        assert raised.value.details == {"message": "taken", "self": 1}
        with pytest.raises(MeshError, match="x"):
            await caller.call(ASK, Question(text=""))
        with pytest.raises(Unavailable, match="x"):
            await caller.call(ASK, Question(text=""))


async def test_no_request_header_comes_back_in_a_reply(mesh: Mesh) -> None:
    async def fail_or_answer(question: Question, call: Call) -> Answer:
        await call.send("delta", "word")
        if question.text == "fail":
            raise NotFound("no")
        return Answer(text="")

    async with two(mesh, fail_or_answer) as caller:
        secret = {"Authorization": "Bearer secret", "traceparent": "00-1-2-01"}
        subject = f"lmos.{mesh.tenant}.oracle.ask"
        seen: list[Packet] = []
        ended = asyncio.Event()

        def on_packet(packet: Packet) -> None:
            seen.append(packet)
            if decode_value(packet.payload)[1] in ("end", "error"):
                ended.set()

        for text in ("fine", "fail"):
            seen.append(await raw(caller.transport, subject, encode_value({"text": text}), secret))
            ended.clear()
            inbox = caller.transport.open_inbox(on_packet)
            caller.transport.publish(
                subject,
                encode_value({"text": text}),
                headers=secret | {calls.ACCEPT: calls.STREAM},
                reply=inbox.subject,
            )
            await happens(ended)

        assert len(seen) == 8
        for packet in seen:
            assert not set(packet.headers) & set(secret)
            assert "secret" not in str(dict(packet.headers))


async def test_a_request_without_a_reply_subject_is_done_all_the_same(mesh: Mesh) -> None:
    heard = asyncio.Event()

    async def hear(question: Question, call: Call) -> Answer:
        heard.set()
        return Answer(text="")

    async with two(mesh, hear) as caller:
        caller.transport.publish(f"lmos.{mesh.tenant}.oracle.ask", encode_value({"text": "x"}))
        await happens(heard)
        assert (await caller.call(ASK, Question(text=""))).text == ""


# -- how many at a time --


async def test_ten_slow_calls_to_one_instance_run_side_by_side(mesh: Mesh) -> None:
    running: list[str] = []
    all_run = asyncio.Event()

    async def slow(question: Question, call: Call) -> Answer:
        running.append(question.text)
        if len(running) == 10:
            all_run.set()
        await all_run.wait()
        return Answer(text=question.text)

    async with two(mesh, slow) as caller:
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(caller.call(ASK, Question(text=str(number)), timeout_s=SOON_S))
                for number in range(10)
            ]
        assert [one.result().text for one in asked] == [str(number) for number in range(10)]


async def test_no_more_calls_run_at_a_time_than_allowed_and_none_is_lost(mesh: Mesh) -> None:
    running = most = 0

    async def count(question: Question, call: Call) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return Answer(text=question.text)

    async with two(mesh, count, concurrency=3) as caller:
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(caller.call(ASK, Question(text=str(number))))
                for number in range(30)
            ]
        assert sorted(int(one.result().text) for one in asked) == list(range(30))
    assert most == 3


async def test_calls_that_wait_are_answered_in_the_order_they_came(mesh: Mesh) -> None:
    order: list[str] = []

    async def note(question: Question, call: Call) -> Answer:
        order.append(question.text)
        await asyncio.sleep(0)
        return Answer(text="")

    async with two(mesh, note, concurrency=1) as caller, asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(caller.call(ASK, Question(text=str(number))))
    assert order == [str(number) for number in range(20)]


_said: ContextVar[str] = ContextVar("said", default="nothing")


async def test_calls_that_come_together_share_no_context_variable(mesh: Mesh) -> None:
    async def say(question: Question, call: Call) -> Answer:
        before = _said.get()
        _said.set(question.text)
        if question.count % 2:  # those that wait and those that do not
            await asyncio.sleep(0)
        return Answer(text=f"{before}, {_said.get()}")

    async with two(mesh, say) as caller, asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(caller.call(ASK, Question(text=f"word {n}", count=n)))
            for n in range(1, 31)
        ]
    assert [one.result().text for one in asked] == [f"nothing, word {n}" for n in range(1, 31)]


async def test_what_stops_one_call_does_not_stop_the_one_that_comes_after_it(mesh: Mesh) -> None:
    async def answer(question: Question, call: Call) -> Answer:
        if question.text == "first":
            call.cancel("it has seen enough")
        else:
            await asyncio.sleep(0)
        return Answer(text=question.text)

    async with two(mesh, answer) as caller, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(caller.call(ASK, Question(text="first")))
        second = tasks.create_task(caller.call(ASK, Question(text="second")))
    assert [first.result().text, second.result().text] == ["first", "second"]


async def test_a_call_that_waits_holds_up_none_that_came_with_it(mesh: Mesh) -> None:
    everybody_is_here = asyncio.Event()
    here = 0

    async def meet(question: Question, call: Call) -> Answer:
        nonlocal here
        here += 1
        if here == 20:
            everybody_is_here.set()
        await everybody_is_here.wait()
        return Answer(text="")

    async with two(mesh, meet) as caller, asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(caller.call(ASK, Question(text="")))
    assert here == 20


class Gate:
    """A handler that waits to be let go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered = asyncio.Queue[str]()
        self.tasks: list[str] = []
        self.cancelled = asyncio.Event()

    async def __call__(self, call: Call) -> dict[str, str]:
        self.tasks.append(call.task)
        self.entered.put_nowait(call.task)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"task": call.task}

    async def enters(self) -> str:
        async with asyncio.timeout(SOON_S):
            return await self.entered.get()


async def test_one_more_than_may_wait_is_refused_as_overloaded(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("busy") as busy:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await busy.respond(subject, gate, concurrency=2, backlog=3)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(caller.request(subject, b"")) for _ in range(5)]
            await gate.enters()
            await gate.enters()
            with pytest.raises(Overloaded, match=r"'busy' answers 2 calls and 3 wait") as raised:
                await caller.request(subject, b"")
            assert raised.value.retryable
            gate.open.set()

        assert len({decode_value(one.result().payload)["task"] for one in asked}) == 5
        await caller.request(subject, b"")


# -- deadlines and hops --


async def test_a_call_ends_with_its_timeout_and_so_does_its_work(mesh: Mesh) -> None:
    ended = asyncio.Event()

    async def slow(question: Question, call: Call) -> Answer:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return Answer(text="")

    async with two(mesh, slow) as caller:
        with pytest.raises(DeadlineExceeded):
            await caller.call(ASK, Question(text=""), timeout_s=0.1)
        await happens(ended, 1)


async def test_a_request_past_its_deadline_is_not_begun(mesh: Mesh) -> None:
    begun: list[str] = []

    async def note(question: Question, call: Call) -> Answer:
        begun.append(question.text)
        return Answer(text="")

    async with two(mesh, note) as caller:
        past = {calls.DEADLINE: str(int((time.time() - 1) * 1000))}
        subject = f"lmos.{mesh.tenant}.oracle.ask"
        caller.transport.publish(subject, encode_value({"text": "ghost"}), headers=past)
        await caller.call(ASK, Question(text="living"))

        assert begun == ["living"]


async def test_a_request_whose_deadline_passes_while_it_waits_is_not_done(mesh: Mesh) -> None:
    done: list[str] = []

    async def note(question: Question, call: Call) -> Answer:
        await asyncio.sleep(0.25)
        done.append(question.text)
        return Answer(text="")

    async with two(mesh, note, concurrency=1) as caller:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(caller.call(ASK, Question(text="first")))
            await asyncio.sleep(0.02)
            with pytest.raises(DeadlineExceeded):
                await caller.call(ASK, Question(text="late"), timeout_s=0.1)
            await first
        await caller.call(ASK, Question(text="last"))

        assert done == ["first", "last"]


async def test_a_nested_call_inherits_the_deadline_that_comes_first(mesh: Mesh) -> None:
    left: list[float] = []

    async def inner(call: Call) -> dict[str, str]:
        assert call.remaining_s is not None
        left.append(call.remaining_s)
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("middle") as middle:
        inside, outside = f"lmos.{mesh.tenant}.inner", f"lmos.{mesh.tenant}.outer"

        async def outer(call: Call) -> dict[str, str]:
            await middle.request(inside, b"", timeout_s=60)
            await middle.request(inside, b"", timeout_s=0.5)
            stream = await middle.open_stream(inside, b"", patience=Patience(60, 60, 60))
            async for _ in stream:
                pass
            stream.close()
            return {}

        await middle.respond(inside, inner)
        await middle.respond(outside, outer)

        await caller.request(outside, b"", timeout_s=2)

        assert 1 < left[0] <= 2
        assert left[1] <= 0.5
        assert 1 < left[2] <= 2


async def test_who_has_no_time_left_is_told_so_and_asks_nobody(mesh: Mesh) -> None:
    asked: list[Call] = []

    async def inner(call: Call) -> dict[str, str]:
        asked.append(call)
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("middle") as middle:
        said: asyncio.Queue[MeshError] = asyncio.Queue()

        async def outer(call: Call) -> dict[str, str]:
            call.deadline = time.time() - 1
            try:
                await middle.request(f"lmos.{mesh.tenant}.inner", b"")
            except MeshError as error:
                said.put_nowait(error)
                raise
            return {}

        await middle.respond(f"lmos.{mesh.tenant}.inner", inner)
        await middle.respond(f"lmos.{mesh.tenant}.outer", outer)

        with pytest.raises(DeadlineExceeded):
            await caller.request(f"lmos.{mesh.tenant}.outer", b"")
        assert isinstance(said.get_nowait(), DeadlineExceeded)
        assert asked == []


async def test_two_who_ask_each_other_for_ever_are_stopped(mesh: Mesh) -> None:
    async with mesh.bus("one") as one, mesh.bus("two") as other:
        hops: list[int] = []

        def ask(bus: Bus, whom: str) -> Callable[[Call], Awaitable[Any]]:
            async def handler(call: Call) -> Any:
                hops.append(call.hops)
                reply = await bus.request(f"lmos.{mesh.tenant}.{whom}", b"")
                return decode_value(reply.payload)

            return handler

        await one.respond(f"lmos.{mesh.tenant}.one", ask(one, "two"))
        await other.respond(f"lmos.{mesh.tenant}.two", ask(other, "one"))

        with pytest.raises(LoopDetected, match="16 processes"):
            await one.request(f"lmos.{mesh.tenant}.two", b"")

        assert hops == list(range(calls.MAX_HOPS + 1))


async def test_a_trace_is_passed_on_though_nobody_records_it(mesh: Mesh) -> None:
    seen: list[dict[str, str]] = []

    async def inner(call: Call) -> dict[str, str]:
        seen.append(call.trace_headers())
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("middle") as middle:

        async def outer(call: Call) -> dict[str, str]:
            await middle.request(f"lmos.{mesh.tenant}.inner", b"")
            return {}

        await middle.respond(f"lmos.{mesh.tenant}.inner", inner)
        await middle.respond(f"lmos.{mesh.tenant}.outer", outer)
        trace = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tracestate": "a=b"}

        await caller.request(f"lmos.{mesh.tenant}.outer", b"", headers=trace)

        assert seen == [trace]


# -- the life of a bus --


async def test_drain_finishes_what_was_accepted_and_takes_nothing_new(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("leaver") as leaver:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await leaver.respond(subject, gate, queue="q", concurrency=2)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(caller.request(subject, b"")) for _ in range(20)]
            await gate.enters()
            await caller.transport.flush()
            draining = tasks.create_task(leaver.drain())
            await asyncio.sleep(0.05)
            await leaver.transport.flush()
            assert not draining.done()
            assert leaver.in_flight == 20
            with pytest.raises(Unavailable):
                await caller.request(subject, b"")
            gate.open.set()

        assert len({decode_value(one.result().payload)["task"] for one in asked}) == 20
        assert leaver.in_flight == 0


async def test_a_drain_under_load_loses_no_request(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("stayer") as stayer:
        answers: asyncio.Queue[None] = asyncio.Queue()
        stop = asyncio.Event()

        async def work(call: Call) -> dict[str, str]:
            await asyncio.sleep(0.002)
            return {}

        async def keep_asking() -> None:
            while not stop.is_set():
                await caller.request(f"lmos.{mesh.tenant}.work", b"", timeout_s=SOON_S)
                answers.put_nowait(None)

        await stayer.respond(f"lmos.{mesh.tenant}.work", work, queue="q")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(keep_asking())
            for number in range(5):
                async with mesh.bus(f"leaver-{number}") as leaver:
                    await leaver.respond(f"lmos.{mesh.tenant}.work", work, queue="q")
                    for _ in range(12):
                        await answers.get()
                    await leaver.drain()
            stop.set()


async def test_a_bus_that_ends_tells_its_callers_and_leaves_its_queue(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.transport("leaver") as transport:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        leaving = Bus(transport, tenant=mesh.tenant, instance="leaver")
        async with asyncio.TaskGroup() as tasks, leaving as leaver:
            await leaver.respond(subject, gate, concurrency=1)
            asked = [tasks.create_task(outcome(caller.request(subject, b""))) for _ in range(3)]
            await gate.enters()
            await caller.transport.flush()
            await leaver.transport.flush()

        assert [type(one.result()) for one in asked] == [Cancelled] * 3
        assert gate.cancelled.is_set()
        with pytest.raises(Unavailable, match="nobody"):
            await caller.request(subject, b"")


async def outcome(asked: Awaitable[Packet]) -> MeshError | Packet:
    try:
        return await asked
    except MeshError as error:
        return error


async def test_a_call_that_is_called_off_before_it_has_begun_is_answered(mesh: Mesh) -> None:
    """In the same turn of the loop in which it came, as when the bus ends just then."""
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        await worker.respond(f"lmos.{mesh.tenant}.work", gate)
        running = worker._duties.running  # pyright: ignore[reportPrivateUsage]
        take = worker._pools[-1].on_packet  # pyright: ignore[reportPrivateUsage]

        def take_and_cancel(packet: Packet) -> None:
            take(packet)
            for call in running.values():
                call.cancel("never mind")

        await worker.transport.subscribe(f"lmos.{mesh.tenant}.hasty", take_and_cancel)
        with pytest.raises(Cancelled, match="never mind"):
            await caller.request(f"lmos.{mesh.tenant}.hasty", b"", timeout_s=SOON_S)

        assert gate.tasks == []
        assert worker.in_flight == 0
        assert not running


async def test_what_is_spawned_ends_with_the_bus(mesh: Mesh) -> None:
    async with asyncio.timeout(SOON_S):
        async with mesh.bus() as bus:
            task = bus.spawn(asyncio.sleep(3600), name="for ever")
            bus.spawn(asyncio.sleep(0))
            await asyncio.sleep(0.01)
    assert task is not None
    assert task.cancelled()


async def test_an_error_in_the_block_ends_the_bus_and_is_not_hidden(mesh: Mesh) -> None:
    async def fail() -> None:
        async with mesh.bus() as bus:
            bus.spawn(asyncio.sleep(3600))
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await fail()


async def test_names_that_somebody_makes_up_do_not_fill_the_memory(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_TALLIES", 10)
    async with mesh.bus("caller") as caller, mesh.bus("oracle") as oracle:
        await serve(oracle)
        for number in range(20):
            endpoint = Endpoint("oracle", f"made-up-{number}", Question, Answer)
            with pytest.raises(NotFound):
                await caller.call(endpoint, Question(text=""))

        assert len(oracle._duties._tallies) <= 10  # pyright: ignore[reportPrivateUsage]


async def test_an_instance_tells_its_status_and_how_much_it_does(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("busy") as busy:
        gate = Gate()
        await busy.respond(f"lmos.{mesh.tenant}.work", gate)
        status = subjects.instance(mesh.tenant, "busy", "status")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(caller.request(f"lmos.{mesh.tenant}.work", b""))
            await gate.enters()
            told = await caller.request(status, b"{}")
            assert json.loads(told.payload) == {"instance": "busy", "in_flight": 1}
            gate.open.set()
        with pytest.raises(NotFound, match="it has status, cancel and drain"):
            await caller.request(subjects.instance(mesh.tenant, "busy", "dance"), b"")


# -- once --


async def test_the_same_task_again_is_dropped_where_it_is_done_once(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        gate.open.set()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate, once=True)
        for task in ("a", "a", "b", "a"):
            caller.transport.publish(subject, b"", headers={calls.MESSAGE_ID: task})
        for _ in range(2):
            await caller.request(subject, b"")  # without an id each is another

        assert gate.tasks[:2] == ["a", "b"]
        assert len(gate.tasks) == 4


async def test_a_task_that_was_refused_may_be_sent_again(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate, once=True, concurrency=1, backlog=0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(caller.request(subject, b"", headers={calls.MESSAGE_ID: "first"}))
            await gate.enters()
            with pytest.raises(Overloaded):
                await caller.request(subject, b"", headers={calls.MESSAGE_ID: "second"})
            gate.open.set()

        reply = await caller.request(
            subject, b"", headers={calls.MESSAGE_ID: "second"}, timeout_s=SOON_S
        )
        assert decode_value(reply.payload) == {"task": "second"}


# -- streams --


async def words(question: Question, call: Call) -> Answer:
    for number in range(question.count):
        await call.send("delta", f"{question.text}{number}")
    return Answer(text="whole", count=question.count)


async def read(stream: ReplyStream, into: list[Frame]) -> None:
    async with asyncio.timeout(10):
        async for frame in stream:
            into.append(frame)  # noqa: PERF401 (what came before an error is kept)


async def all_of(stream: ReplyStream) -> list[Frame]:
    frames: list[Frame] = []
    await read(stream, frames)
    return frames


async def test_a_stream_is_an_ack_then_frames_in_their_order_then_the_whole_answer(
    mesh: Mesh,
) -> None:
    async with two(mesh, words) as caller:
        async with caller.stream(ASK, Question(text="w", count=500)) as stream:
            frames = await all_of(stream)

        assert [frame.seq for frame in frames] == list(range(502))
        assert frames[0].kind == "ack"
        assert frames[0].body["instance"] == stream.instance == "oracle"
        assert frames[0].body["task"] == stream.task
        assert [frame.body for frame in frames[1:-1]] == [f"w{number}" for number in range(500)]
        assert {frame.kind for frame in frames[1:-1]} == {"delta"}
        assert frames[-1].kind == "end"
        assert Answer.model_validate(frames[-1].body) == Answer(text="whole", count=500)


async def test_many_streams_at_a_time_do_not_mix(mesh: Mesh) -> None:
    async with two(mesh, words) as caller:

        async def one(name: str) -> list[Frame]:
            async with caller.stream(ASK, Question(text=name, count=100)) as stream:
                return await all_of(stream)

        async with asyncio.TaskGroup() as tasks:
            running = {name: tasks.create_task(one(name)) for name in "abcdefghij"}

        for name, task in running.items():
            said = [frame.body for frame in task.result() if frame.kind == "delta"]
            assert said == [f"{name}{number}" for number in range(100)]


async def test_the_ack_comes_before_any_work_even_when_the_call_must_wait(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("busy") as busy:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await busy.respond(subject, gate, concurrency=1)
        first = await caller.open_stream(subject, b"", task="first")
        second = await caller.open_stream(subject, b"", task="second")
        async with asyncio.timeout(SOON_S):
            assert (await anext(first)).body == {"task": "first", "instance": "busy"}
            assert (await anext(second)).body == {"task": "second", "instance": "busy"}
        assert gate.tasks == ["first"]
        gate.open.set()
        assert [frame.kind for frame in await all_of(first)] == ["end"]
        assert [frame.kind for frame in await all_of(second)] == ["end"]
        first.close()
        second.close()


async def test_who_wants_no_stream_gets_one_reply_the_whole_answer(mesh: Mesh) -> None:
    async with two(mesh, words) as caller:
        reply = await raw(
            caller.transport,
            f"lmos.{mesh.tenant}.oracle.ask",
            b'{"text":"w","count":5}',
        )
        assert json.loads(reply.payload) == {"text": "whole", "count": 5, "blob": ""}


@pytest.mark.parametrize("as_json", [True, False])
async def test_frames_are_arrays_in_the_language_of_the_request(mesh: Mesh, as_json: bool) -> None:
    async with two(mesh, words) as caller:
        packets: asyncio.Queue[Packet] = asyncio.Queue()
        inbox = caller.transport.open_inbox(packets.put_nowait)
        asked = {"text": "w", "count": 2}
        caller.transport.publish(
            f"lmos.{mesh.tenant}.oracle.ask",
            json.dumps(asked).encode() if as_json else packed(asked),
            headers={calls.ACCEPT: calls.STREAM},
            reply=inbox.subject,
        )
        async with asyncio.timeout(SOON_S):
            payloads = [(await packets.get()).payload for _ in range(4)]

        frames: list[Any] = [json.loads(one) if as_json else unpacked(one) for one in payloads]
        assert [frame[:2] for frame in frames] == [
            [0, "ack"],
            [1, "delta"],
            [2, "delta"],
            [3, "end"],
        ]
        assert frames[1][2] == "w0"
        assert frames[3][2]["text"] == "whole"


async def test_an_error_in_mid_stream_comes_after_what_was_said_before(mesh: Mesh) -> None:
    async def fail(question: Question, call: Call) -> Answer:
        for number in range(40):
            await call.send("delta", number)
        raise AgentNotFound("lost the thread", candidates=["x"])

    async with two(mesh, fail) as caller:
        seen: list[Frame] = []
        async with caller.stream(ASK, Question(text="")) as stream:
            with pytest.raises(AgentNotFound, match="lost the thread") as raised:
                await read(stream, seen)
        assert [frame.body for frame in seen[1:]] == list(range(40))
        assert raised.value.details == {"candidates": ["x"]}


async def test_a_frame_that_is_too_large_is_refused_to_the_handler_and_leaves_no_gap(
    mesh: Mesh,
) -> None:
    async def much(question: Question, call: Call) -> Answer:
        with pytest.raises(AgentFailed, match="a piece of the answer of the oracle"):
            await call.send("delta", "x" * 2_000_000)
        await call.send("delta", "less")
        return Answer(text="")

    async with two(mesh, much) as caller, caller.stream(ASK, Question(text="")) as stream:
        assert [frame.kind for frame in await all_of(stream)] == ["ack", "delta", "end"]


async def test_where_nobody_listens_a_stream_fails_at_once(mesh: Mesh) -> None:
    async with mesh.bus() as caller:
        with pytest.raises(Unavailable, match="nobody answers"):
            async with asyncio.timeout(SOON_S), caller.stream(ASK, Question(text="")) as stream:
                await all_of(stream)


async def test_a_malformed_request_for_a_stream_is_an_error_that_names_the_field(
    mesh: Mesh,
) -> None:
    async with two(mesh, words) as caller:
        stream = await caller.open_stream(f"lmos.{mesh.tenant}.oracle.ask", b'{"text":5}')
        with pytest.raises(InvalidMessage, match="/text"):
            await all_of(stream)
        stream.close()


class Script:
    """A foreign instance that says over a stream what a test wants."""

    def __init__(self, mesh: Mesh, transport: Transport) -> None:
        self.subject = f"lmos.{mesh.tenant}.script"
        self.asked: asyncio.Queue[Packet] = asyncio.Queue()
        self._transport = transport

    async def begin(self) -> "Script":
        await self._transport.subscribe(self.subject, self.asked.put_nowait)
        return self

    async def is_asked(self) -> Packet:
        async with asyncio.timeout(SOON_S):
            return await self.asked.get()

    def say(self, asked: Packet, *frames: Any) -> None:
        for frame in frames:
            self._transport.publish(asked.reply, encode_value(frame))


ACK = [0, "ack", {"task": "t", "instance": ""}]


BROKEN: list[list[Any]] = [
    [ACK, [2, "delta", "x"]],
    [ACK, [1, "delta", "x"], [1, "delta", "x"]],
    [ACK, [1, "delta", "x"], [3, "end", {}]],
    [[1, "delta", "x"]],
    [ACK, [1, "delta"]],
    [ACK, "words"],
    [ACK, {"no": "frame"}],
    [ACK, 7],
    [[0, "ack", None]],
    [[0, "ack", ["x"]]],
]


@pytest.mark.parametrize("frames", BROKEN)
async def test_a_gap_or_what_is_no_frame_breaks_the_stream(mesh: Mesh, frames: list[Any]) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        script = await Script(mesh, foreign).begin()
        stream = await caller.open_stream(script.subject, b"")
        script.say(await script.is_asked(), *frames)

        with pytest.raises(StreamBroken):
            await all_of(stream)
        stream.close()


async def test_garbage_instead_of_a_frame_breaks_the_stream(mesh: Mesh) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        script = await Script(mesh, foreign).begin()
        for garbage in (b"\xc1", b"{", b"[" * 100_000, b"", b"\x93\x00"):
            stream = await caller.open_stream(script.subject, b"")
            foreign.publish((await script.is_asked()).reply, garbage)
            with pytest.raises(StreamBroken):
                await all_of(stream)
            stream.close()


async def test_a_stream_that_was_read_to_its_end_stays_ended_whatever_comes_after(
    mesh: Mesh,
) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        script = await Script(mesh, foreign).begin()
        stream = await caller.open_stream(
            script.subject, b"", patience=Patience(SOON_S, 0.15, SOON_S)
        )
        asked = await script.is_asked()
        script.say(asked, [0, "ack", {"task": "t", "instance": "far"}], [1, "end", {"x": 1}])
        await foreign.flush()
        await caller.transport.flush()
        await asyncio.sleep(0.3)  # longer than a silent stream is borne
        caller.lose("far", "has disconnected")
        script.say(asked, [2, "delta", "late"])
        await foreign.flush()
        await caller.transport.flush()

        frames = await all_of(stream)

        assert [frame.kind for frame in frames] == ["ack", "end"]
        stream.close()


@pytest.mark.parametrize(
    ("patience", "frames", "said"),
    [
        (Patience(0.1, 60, 60), [], r"no first frame within 0\.1 s"),
        (Patience(60, 0.1, 60), [ACK, [1, "delta", "x"]], r"silent for 0\.1 s"),
        (Patience(60, 60, 0.1), [ACK], r"no end within 0\.1 s"),
    ],
    ids=["first", "idle", "total"],
)
async def test_patience_ends(mesh: Mesh, patience: Patience, frames: list[Any], said: str) -> None:
    async with mesh.bus() as caller, mesh.transport() as foreign:
        script = await Script(mesh, foreign).begin()
        stream = await caller.open_stream(script.subject, b"", patience=patience)
        script.say(await script.is_asked(), *frames)

        with pytest.raises(DeadlineExceeded, match=said):
            await all_of(stream)

        stream.close()


async def test_patience_is_not_lost_by_a_stream_that_goes_on(mesh: Mesh) -> None:
    async def slow(question: Question, call: Call) -> Answer:
        for _ in range(6):
            await asyncio.sleep(0.3)
            await call.send("delta", "x")
        return Answer(text="")

    async with two(mesh, slow) as caller:
        patience = Patience(first_s=1.5, idle_s=1.5, total_s=60)
        async with caller.stream(ASK, Question(text=""), patience=patience) as stream:
            assert len(await all_of(stream)) == 8


async def test_a_silent_handler_is_kept_alive_by_the_bus(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "KEEP_ALIVE_S", 0.05)
    enough = asyncio.Event()
    frames: list[Frame] = []

    async def silent(question: Question, call: Call) -> Answer:
        await enough.wait()
        return Answer(text="at last")

    async with two(mesh, silent) as caller:
        patience = Patience(first_s=SOON_S, idle_s=SOON_S, total_s=60)
        began = time.monotonic()
        async with caller.stream(ASK, Question(text=""), patience=patience) as stream:
            async for frame in stream:
                frames.append(frame)
                if len(frames) == 6:
                    enough.set()

        kinds = [frame.kind for frame in frames]
        assert kinds[:6] == ["ack", *["status"] * 5]
        assert kinds[-1] == "end"
        assert time.monotonic() - began > 5 * 0.04
        assert frames[1].body == {"state": "working"}


async def test_status_query_and_restart_frames_pass_as_they_are(mesh: Mesh) -> None:
    async def varied(question: Question, call: Call) -> Answer:
        await call.send("status", {"state": "thinking"})
        await call.send("query", {"question": "which?"})
        await call.send("restart", {"instance": "other"})
        return Answer(text="")

    async with two(mesh, varied) as caller:
        async with caller.stream(ASK, Question(text="")) as stream:
            frames = await all_of(stream)
        assert [frame.kind for frame in frames[1:-1]] == ["status", "query", "restart"]
        assert frames[3].body == {"instance": "other"}


# -- leaving --


async def test_to_leave_a_stream_reaches_the_handler_at_once(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate)
        stream = await caller.open_stream(subject, b"")
        async with asyncio.timeout(SOON_S):
            await anext(stream)
        await gate.enters()

        stream.close()

        await happens(gate.cancelled, NOTICED_S)
        await worker.drain()
        assert worker.in_flight == 0


async def test_to_leave_before_anybody_has_taken_the_work_reaches_whoever_takes_it(
    mesh: Mesh,
) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate)
        stream = await caller.open_stream(subject, b"")

        stream.close()

        await happens(gate.cancelled, SOON_S)
        await worker.drain()
        assert worker.in_flight == 0


@pytest.mark.parametrize("tenant", ["elsewhere", "a.b", "Straße 7"])
async def test_to_leave_a_stream_that_another_tenant_answers_reaches_the_handler_too(
    mesh: Mesh, tenant: str
) -> None:
    cancelled = asyncio.Event()

    async def wait(question: Question, call: Call) -> Answer:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Answer(text="")

    async with two(mesh, wait) as caller:
        async with caller.stream(ASK, Question(text=""), tenant=tenant) as stream:
            async with asyncio.timeout(SOON_S):
                await anext(stream)
        await happens(cancelled, NOTICED_S)


async def test_a_task_of_one_tenant_cannot_be_called_off_by_another(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(
                caller.request(subject, b"", headers={calls.MESSAGE_ID: "mine"})
            )
            await gate.enters()
            with pytest.raises(NotFound):
                await caller.request(
                    subjects.instance("other", "worker", "cancel"), encode_value({"task": "mine"})
                )
            gate.open.set()
        assert asked.result()


async def test_a_call_that_waits_is_called_off_without_ever_running(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate, concurrency=1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(caller.request(subject, b"", headers={calls.MESSAGE_ID: "first"}))
            await gate.enters()
            second = tasks.create_task(
                outcome(caller.request(subject, b"", headers={calls.MESSAGE_ID: "second"}))
            )
            cancel = subjects.instance(mesh.tenant, "worker", "cancel")
            await caller.transport.flush()
            told = await caller.request(cancel, b'{"task":"second"}')
            assert json.loads(told.payload) == {"cancelled": "second"}
            assert isinstance(await second, Cancelled)
            gate.open.set()
        await worker.drain()

        assert gate.tasks == ["first"]
        with pytest.raises(NotFound, match="'second' is not running"):
            await caller.request(cancel, b'{"task":"second"}')
        with pytest.raises(InvalidMessage, match="/task"):
            await caller.request(cancel, b"{}")


async def test_a_handler_may_clean_up_before_it_is_gone(mesh: Mesh) -> None:
    cleaned = asyncio.Event()

    async def tidy(call: Call) -> dict[str, str]:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()
        return {}

    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        await worker.respond(f"lmos.{mesh.tenant}.work", tidy)
        stream = await caller.open_stream(f"lmos.{mesh.tenant}.work", b"")
        async with asyncio.timeout(SOON_S):
            await anext(stream)
        stream.close()
        await happens(cleaned)


async def test_the_work_of_a_caller_whose_connection_is_gone_is_called_off(mesh: Mesh) -> None:
    async with mesh.bus("worker") as worker:
        gate = Gate()
        subject = f"lmos.{mesh.tenant}.work"
        await worker.respond(subject, gate)
        async with mesh.transport("caller") as transport:
            async with Bus(transport, tenant=mesh.tenant, instance="caller") as caller:
                await caller.open_stream(subject, b"")
                await gate.enters()
            # The stream was not closed: the process has died, as far as anybody can see.
            assert not gate.cancelled.is_set()

        await happens(gate.cancelled, NOTICED_S)


async def test_the_work_of_a_caller_that_no_longer_listens_is_called_off_by_its_own_frames(
    mesh: Mesh,
) -> None:
    """Without any news of a closed connection: the bus says that nobody takes the frame."""
    stopped = asyncio.Event()

    async def talk(call: Call) -> dict[str, str]:
        try:
            while True:
                await call.send("delta", "word")
                await asyncio.sleep(0)
        finally:
            stopped.set()

    async with mesh.bus("worker") as worker, mesh.transport("asker") as asker:
        await worker.respond(f"lmos.{mesh.tenant}.work", talk)
        packets: asyncio.Queue[Packet] = asyncio.Queue()
        ear = await asker.subscribe(f"{mesh.tenant}.ear", packets.put_nowait)
        asker.publish(
            f"lmos.{mesh.tenant}.work",
            b"",
            headers={calls.ACCEPT: calls.STREAM},
            reply=f"{mesh.tenant}.ear",
        )
        async with asyncio.timeout(SOON_S):
            await packets.get()
        assert not stopped.is_set()

        await ear.unsubscribe()

        await happens(stopped)


async def test_a_stream_breaks_when_the_instance_that_answers_disconnects(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller:
        lost: list[str] = []
        caller.on_loss(lost.append)
        async with mesh.transport("victim") as transport:
            script = await Script(mesh, transport).begin()
            stream = await caller.open_stream(script.subject, b"")
            script.say(
                await script.is_asked(),
                [0, "ack", {"task": "t", "instance": "victim"}],
                [1, "delta", "half a"],
            )
            async with asyncio.timeout(SOON_S):
                await anext(stream)

        said: list[Frame] = []
        with pytest.raises(InstanceLost, match="'victim' has disconnected"):
            async with asyncio.timeout(SOON_S):
                await read(stream, said)

        assert [frame.body for frame in said] == ["half a"]
        assert "victim" in lost
        assert caller.sees_disconnects
        stream.close()


async def test_a_silent_instance_that_is_gone_is_found_by_asking(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a server that tells nobody about closed connections."""
    monkeypatch.setattr(subjects, "DISCONNECTS", new_name("nobody-tells"))
    async with mesh.bus("caller") as caller, mesh.transport("victim") as transport:
        script = await Script(mesh, transport).begin()
        stream = await caller.open_stream(script.subject, b"")
        script.say(await script.is_asked(), [0, "ack", {"task": "t", "instance": "victim"}])

        with pytest.raises(InstanceLost, match="'victim' does not answer"):
            async with asyncio.timeout(SOON_S):
                await all_of(stream)

        assert not caller.sees_disconnects
        stream.close()


@pytest.mark.parametrize("tenant", ["", "shared"])
async def test_a_silent_instance_that_lives_is_left_alone_whatever_its_tenant(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tenant: str
) -> None:
    monkeypatch.setattr(subjects, "DISCONNECTS", new_name("nobody-tells"))

    async def think(question: Question, call: Call) -> Answer:
        await asyncio.sleep(0.9)
        return Answer(text="thought")

    async with mesh.bus("caller") as caller, mesh.bus("oracle", tenant=tenant) as oracle:
        await serve(oracle, think)
        async with caller.stream(ASK, Question(text=""), tenant=tenant or None) as stream:
            assert [frame.kind for frame in await all_of(stream)] == ["ack", "end"]


async def test_a_silent_foreigner_is_asked_in_the_tenant_where_it_was_found(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "DISCONNECTS", new_name("nobody-tells"))
    async with mesh.bus("caller") as caller, mesh.transport() as foreign:
        asked: asyncio.Queue[Packet] = asyncio.Queue()
        probed = asyncio.Event()

        def alive(packet: Packet) -> None:
            foreign.publish(packet.reply, b"{}")
            probed.set()

        await foreign.subscribe(f"lmos.far-{mesh.tenant}.ask", asked.put_nowait)
        await foreign.subscribe(subjects.instance(f"far-{mesh.tenant}", "far", "status"), alive)
        stream = await caller.open_stream(f"lmos.far-{mesh.tenant}.ask", b"")
        async with asyncio.timeout(SOON_S):
            reply = (await asked.get()).reply
        foreign.publish(reply, encode_value([0, "ack", {"task": "t", "instance": "far"}]))
        await happens(probed)
        await asyncio.sleep(0.1)
        foreign.publish(reply, encode_value([1, "end", {}]))

        assert [frame.kind for frame in await all_of(stream)] == ["ack", "end"]
        stream.close()


async def test_news_of_a_death_that_make_no_sense_do_no_harm(mesh: Mesh) -> None:
    async with two(mesh, words) as caller:
        for nonsense in (b"", b"{", b"[]", b'{"client":7}', b'{"client":{"name":null}}', b"\xff"):
            caller.transport.publish(subjects.DISCONNECTS, nonsense)
        await caller.transport.flush()
        assert (await caller.call(ASK, Question(text="x"))).text == "whole"


async def test_a_cancelled_call_drops_its_answer(mesh: Mesh) -> None:
    async with mesh.bus("caller") as caller, mesh.bus("worker") as worker:
        gate = Gate()
        await worker.respond(f"lmos.{mesh.tenant}.work", gate)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await caller.request(f"lmos.{mesh.tenant}.work", b"")
        gate.open.set()
        await worker.drain()
        await caller.transport.flush()
        with pytest.raises(Unavailable):
            await caller.request(f"lmos.{mesh.tenant}.work", b"")
