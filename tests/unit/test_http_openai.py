"""The OpenAI surface's JSON, and what it means on the mesh."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.errors import InvalidMessage, StreamBroken, Unavailable
from lmos_mesh.messages import Answer, AnsweredPart, FoundThing, Instance
from lmos_mesh.reply_stream import Frame
from lmos_mesh_http.bodies import parsed
from lmos_mesh_http.openai import (
    ChatChunks,
    ChatCompletionRequest,
    completion_body,
    converse_of,
    models_of,
)


def chat(*messages: dict[str, Any], **more: Any) -> ChatCompletionRequest:
    body = {"model": "auto", "messages": messages} | more
    return parsed(ChatCompletionRequest, json.dumps(body).encode())


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chunks(model: str = "auto", *, include_usage: bool = False) -> ChatChunks:
    return ChatChunks(id="chatcmpl-1", created=7, model=model, include_usage=include_usage)


def read(raw: bytes) -> list[Any]:
    """The data of each event, `[DONE]` as it is."""
    return [
        block if block == "[DONE]" else json.loads(block)
        for block in (part.removeprefix("data: ") for part in raw.decode().split("\n\n"))
        if block and not block.startswith(":")
    ]


def answer(text: str, agent: str = "billing") -> Answer:
    return Answer(answer=text, conversation="c", turn="t", agent=agent)


def end(text: str, seq: int = 9) -> Frame:
    return Frame(seq, "end", answer(text).model_dump())


def test_a_client_that_keeps_the_history_sends_it_along_and_nothing_is_stored():
    question = converse_of(
        chat(
            said("developer", "be brief"),
            said("user", "hi"),
            said("assistant", "hello"),
            said("user", "my bill?"),
            user="u1",
            metadata={"staff": "true"},
        ),
        channel="web",
        subset="stable",
    )

    assert question.message == "my bill?"
    assert [(one.role, one.content) for one in question.history] == [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert not question.store
    assert question.conversation is None
    assert question.user == "u1"
    assert question.attributes == {"staff": "true"}


def test_in_a_conversation_that_the_mesh_keeps_only_the_last_message_is_new():
    question = converse_of(
        chat(said("user", "hi"), said("assistant", "hello"), said("user", "my bill?")),
        channel="web",
        subset="stable",
        conversation="c1",
        turn="t1",
    )

    assert question.store
    assert (question.conversation, question.turn) == ("c1", "t1")
    assert question.history == ()


def test_a_model_is_an_agent_unless_it_is_auto():
    auto = converse_of(chat(said("user", "x")), channel="web", subset="stable")
    named = converse_of(chat(said("user", "x"), model="billing"), channel="web", subset="stable")

    assert auto.agent is None
    assert named.agent == "billing"


def test_only_a_streaming_client_cannot_begin_anew():
    plain = converse_of(chat(said("user", "x")), channel="web", subset="stable")
    streamed = converse_of(chat(said("user", "x"), stream=True), channel="web", subset="stable")

    assert plain.restarts
    assert not streamed.restarts


def test_text_parts_are_one_text():
    parts = [{"type": "text", "text": "my "}, {"type": "text", "text": "bill"}]

    assert converse_of(chat(said("user", parts)), channel="w", subset="s").message == "my bill"


def test_what_tools_said_is_left_out():
    question = converse_of(
        chat(
            said("user", "x"),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            said("user", "y"),
            tools=[{"type": "function"}],
            tool_choice="auto",
            temperature=0.2,
            seed=1,
        ),
        channel="web",
        subset="stable",
    )

    assert [one.content for one in question.history] == ["x"]


@pytest.mark.parametrize(
    ("messages", "more", "field"),
    [
        ([said("user", "x")], {"n": 2}, "/n"),
        ([said("user", "x")], {"n": 0}, "/n"),
        ([said("user", "x")], {"tool_choice": "required"}, "/tool_choice"),
        ([said("user", "x")], {"tool_choice": {"type": "function"}}, "/tool_choice"),
        ([said("user", "x")], {"response_format": {"type": "json_object"}}, "/response_format"),
        ([said("assistant", "x")], {}, "/messages"),
        ([said("user", "")], {}, "/messages"),
        ([said("user", [{"type": "image_url"}])], {}, "/messages/0/content/0"),
    ],
)
def test_what_the_mesh_cannot_do_is_refused_by_name(
    messages: list[Any], more: dict[str, Any], field: str
):
    with pytest.raises(InvalidMessage) as caught:
        converse_of(chat(*messages, **more), channel="web", subset="stable")

    assert caught.value.details["faults"][0]["field"] == field


def test_a_whole_answer_has_the_form_that_clients_read():
    body = json.loads(completion_body(answer("hi"), id="chatcmpl-1", created=7, model="auto"))

    assert body["object"] == "chat.completion"
    assert body["model"] == "billing"
    assert body["choices"][0]["message"]["content"] == "hi"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["lmos"]["conversation"] == "c"


@given(st.lists(st.text(min_size=1), max_size=8), st.booleans(), st.text(min_size=1))
def test_whatever_the_words_are_the_chunks_carry_them_whole(
    words: list[str], include_usage: bool, model: str
):
    teller = chunks(model, include_usage=include_usage)
    frames = [Frame(0, "ack", {}), *(Frame(1, "delta", word) for word in words)]

    told = read(b"".join(map(teller.take, [*frames, end("".join(words))])))

    assert told.pop() == "[DONE]"
    if include_usage:
        last = told.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 0
        assert all(one["usage"] is None for one in told)
    choices = [one["choices"][0] for one in told]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(one["delta"].get("content", "") for one in choices) == "".join(words)
    assert [one["finish_reason"] for one in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {(one["id"], one["created"], one["model"]) for one in told} == {("chatcmpl-1", 7, model)}


def test_nothing_is_told_before_the_first_word():
    teller = chunks()

    assert teller.take(Frame(0, "ack", {})) == b""
    assert teller.take(Frame(1, "status", {"state": "routed", "decision": {"agent": "b"}})) == b""
    assert read(teller.take(Frame(2, "delta", "x")))[0]["model"] == "b"


def test_an_answer_that_was_not_streamed_is_told_at_its_end():
    told = read(chunks().take(end("all of it")))

    text = "".join(one["choices"][0]["delta"].get("content", "") for one in told[:-1])
    assert text == "all of it"


def test_the_rest_of_an_answer_is_told_at_its_end():
    teller = chunks()

    told = read(teller.take(Frame(1, "delta", "all ")) + teller.take(end("all of it")))

    text = "".join(one["choices"][0]["delta"].get("content", "") for one in told[:-1])
    assert text == "all of it"


def test_a_failure_is_an_event_that_clients_raise_and_no_done_follows():
    told = read(chunks().failed(Unavailable("gone")))

    assert told == [
        {
            "error": {
                "message": "gone",
                "type": "server_error",
                "param": None,
                "code": "unavailable",
            }
        }
    ]


def test_a_restart_after_all_is_a_failure():
    with pytest.raises(StreamBroken):
        chunks().take(Frame(1, "restart", {}))


def test_auto_is_the_first_model_and_the_agents_follow_by_name():
    found = [
        FoundThing(name="weather", instances=(Instance(instance="i", started=12.5),)),
        FoundThing(name="billing"),
        FoundThing(name="auto"),
    ]

    models = models_of(found).data

    assert [one.id for one in models] == ["auto", "billing", "weather"]
    assert models[2].created == 12


def test_several_agents_are_no_model_and_their_parts_are_told() -> None:
    part = AnsweredPart(text="show my bill", agent="billing", answer="39.99 €")
    several = answer("hi").model_copy(update={"agent": "billing,weather", "parts": (part,)})

    body = json.loads(completion_body(several, id="chatcmpl-1", created=7, model="auto"))

    assert body["model"] == "auto"
    assert body["lmos"]["agent"] == "billing,weather"
    assert body["lmos"]["parts"][0]["answer"] == "39.99 €"


def test_the_model_is_whom_the_turn_was_handed_to_if_nothing_was_said_before() -> None:
    routed = Frame(1, "status", {"state": "routed", "decision": {"agent": "desk"}})
    over = Frame(2, "status", {"state": "handed_over", "from": "desk", "to": "billing"})
    teller = chunks()
    ended = answer("hi").model_copy(update={"handovers": ("desk",)})

    raw = b"".join(map(teller.take, (routed, over, Frame(3, "delta", "hi"))))
    told = read(raw + teller.take(Frame(4, "end", ended.model_dump())))

    assert {one["model"] for one in told if one != "[DONE]"} == {"billing"}
    assert told[-2]["lmos"]["handovers"] == ["desk"]
