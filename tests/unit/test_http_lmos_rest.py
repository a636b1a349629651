"""The LMOS runtime's JSON, and what it means on the mesh."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.errors import InvalidMessage, Unavailable
from lmos_mesh.messages import Answer, AnsweredPart, FoundThing
from lmos_mesh.reply_stream import Frame
from lmos_mesh.things import Capability
from lmos_mesh_http.bodies import parsed
from lmos_mesh_http.lmos_rest import (
    ChatRequest,
    LmosEvents,
    addressed,
    converse_of,
    listed,
    reply_body,
)

ENTITIES = [{"type": "name", "value": "Ada", "replacement": "N-1", "more": [1, None]}]


def request(*messages: dict[str, Any], **more: Any) -> ChatRequest:
    body = {"inputContext": {"messages": messages} | more}
    return parsed(ChatRequest, json.dumps(body).encode())


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content} | more


def events_of(raw: bytes) -> list[tuple[str, int, Any]]:
    """What a client reads: name, id and data of each event."""
    found: list[tuple[str, int, Any]] = []
    for block in raw.decode().split("\n\n"):
        if block and not block.startswith(":"):
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((lines["event"], int(lines["id"]), json.loads(lines["data"])))
    return found


def test_the_last_message_of_the_user_is_the_one_to_answer():
    chat = request(user("first"), user("last"), {"role": "assistant", "content": "hm"})

    question = converse_of(chat, conversation="c", turn="t", subset="canary")

    assert question.message == "last"
    assert (question.conversation, question.turn, question.subset) == ("c", "t", "canary")
    assert question.store
    assert question.history == ()


def test_everything_that_the_contract_has_is_carried():
    body: dict[str, Any] = {
        "inputContext": {
            "messages": [
                {"role": "user", "content": "hi", "format": "text", "turnId": None}
                | {"binaryData": []}
            ],
            "explicitAgent": "billing",
            "anonymizationEntities": ENTITIES,
        },
        "systemContext": {"channelId": "ivr", "contextParams": [{"key": "k", "value": "v"}]},
        "userContext": {"userId": "u1", "userToken": "secret", "contextParams": []},
        "somethingNew": 1,
    }

    question = converse_of(
        parsed(ChatRequest, json.dumps(body).encode()), conversation="c", turn="t", subset="stable"
    )

    assert question.agent == "billing"
    assert question.channel == "ivr"
    assert question.user == "u1"
    assert question.parameters == {"k": "v"}
    assert question.anonymization == tuple(ENTITIES)
    assert question.user_token == "secret"
    assert "secret" not in repr(question)


def test_contexts_may_be_left_out():
    question = converse_of(request(user("hi")), conversation="c", turn="t", subset="stable")

    assert (question.channel, question.user, question.agent) == ("web", None, None)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([{"role": "assistant", "content": "hm"}], "/inputContext/messages"),
        ([user("hi"), user("  \n")], "/inputContext/messages/1/content"),
        ([user("hi", binaryData=[{"mimeType": "a/b"}])], "/inputContext/messages/0/binaryData"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(messages: list[Any], named: str):
    with pytest.raises(InvalidMessage) as caught:
        converse_of(request(*messages), conversation="c", turn="t", subset="stable")

    assert named in str(caught.value)
    assert caught.value.details["faults"][0]["field"] == named


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "it"),
        (b"\x80", "JSON"),
        (b'{"inputContext":{"messages":[]}}', "/inputContext/messages"),
        (b'{"inputContext":{"messages":[{"role":"user"}]}}', "/inputContext/messages/0/content"),
        (
            b'{"inputContext":{"messages":[{"role":"user","content":"\\ud800"}]}}',
            "JSON",
        ),
        (
            b'{"inputContext":{"messages":[{"role":"user","content":"x"}]},'
            b'"systemContext":{"channelId":""}}',
            "/systemContext/channelId",
        ),
    ],
)
def test_a_malformed_body_is_refused_with_every_reason(body: bytes, named: str):
    with pytest.raises(InvalidMessage, match=named):
        parsed(ChatRequest, body)


def test_a_reply_has_the_words_and_the_entities_unchanged():
    answer = Answer(answer="Grüße\n", conversation="c", turn="t")

    body = json.loads(reply_body(request(user("x"), anonymizationEntities=ENTITIES), answer))
    without = json.loads(reply_body(request(user("x"), anonymizationEntities=None), answer))

    assert body == {"content": "Grüße\n", "anonymizationEntities": ENTITIES}
    assert without == {"content": "Grüße\n", "anonymizationEntities": []}


def test_entities_that_the_agent_changed_are_told_instead_even_if_none_are_left():
    asked = request(user("x"), anonymizationEntities=ENTITIES)
    other = ({"type": "name", "value": "Bob", "replacement": "N-2"},)
    changed = Answer(answer="a", conversation="c", turn="t", anonymization=other)
    gone = Answer(answer="a", conversation="c", turn="t", anonymization=())

    assert json.loads(reply_body(asked, changed))["anonymizationEntities"] == list(other)
    assert json.loads(reply_body(asked, gone))["anonymizationEntities"] == []


@given(st.lists(st.text(), max_size=8))
def test_whatever_the_words_are_the_events_carry_them_whole(words: list[str]):
    teller = LmosEvents(request(user("x")))
    frames = [Frame(0, "ack", {}), Frame(1, "status", {"state": "routed", "decision": {"a": 1}})]
    frames += [Frame(2 + at, "delta", word) for at, word in enumerate(words)]
    answer = Answer(answer="".join(words), conversation="c", turn="t", agent="a")
    frames.append(Frame(2 + len(words), "end", answer.model_dump()))

    told = events_of(b"".join(teller.take(frame) for frame in frames))

    assert [name for name, _, _ in told] == ["routed", *["delta"] * len(words), "end"]
    assert "".join(data["content"] for name, _, data in told if name == "delta") == answer.answer
    assert told[-1][2]["content"] == answer.answer
    assert [id for _, id, _ in told] == list(range(1, len(told) + 1))


def test_a_restart_and_what_the_agent_says_of_itself_are_told():
    teller = LmosEvents(request(user("x")))

    raw = teller.take(Frame(1, "status", {"looking": "up"}))
    raw += teller.take(Frame(2, "restart", {"reason": "it died"}))

    assert events_of(raw) == [
        ("status", 1, {"looking": "up"}),
        ("restart", 2, {"reason": "it died"}),
    ]


def test_a_sign_of_life_is_no_event():
    teller = LmosEvents(request(user("x")))

    raw = teller.take(Frame(1, "status", {"state": "working"}))

    assert raw == b": working\n\n"


def test_an_error_is_the_last_event_and_its_id_still_rises():
    teller = LmosEvents(request(user("x")))
    teller.take(Frame(7, "delta", "x"))

    told = events_of(teller.failed(Unavailable("gone", hint="wait")))

    assert told == [("error", 8, {"errorCode": "UNAVAILABLE", "message": "gone (wait)"})]


def test_an_agent_is_listed_with_what_it_can_do_and_where():
    thing = FoundThing(
        name="billing",
        version="1.2.0",
        summary="Bills.",
        capabilities=(Capability(id="view.bill", name="View", description="Shows."),),
    )

    shown = listed(thing).model_dump(by_alias=True)
    where = addressed(thing, "demo").addresses

    assert shown["id"] == shown["name"] == "billing"
    assert shown["capabilities"][0]["name"] == "View"
    assert where[0].protocol == "nats"
    assert where[0].uri.startswith("nats:lmos.demo.agent.billing.stable.invoke._x")


def test_how_several_agents_came_to_an_answer_is_told_at_its_end() -> None:
    part = AnsweredPart(text="show my bill", agent="billing", answer="39.99 €")
    answer = Answer(
        answer="a", conversation="c", turn="t", agent="billing", parts=(part,), handovers=("desk",)
    )
    plain = Answer(answer="a", conversation="c", turn="t", agent="billing")

    (ended,), (simple,) = (
        events_of(LmosEvents(request(user("x"))).take(Frame(3, "end", one.model_dump())))
        for one in (answer, plain)
    )

    assert ended[2]["handovers"] == ["desk"]
    assert ended[2]["parts"][0]["agent"] == "billing"
    assert not {"handovers", "parts"} & simple[2].keys()
    assert json.loads(reply_body(request(user("x")), answer)).keys() == {
        "content",
        "anonymizationEntities",
    }
