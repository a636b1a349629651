"""The Synadia Agent Protocol as it is written and read here."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import synadia
from lmos_mesh.errors import (
    AgentFailed,
    Conflict,
    DeadlineExceeded,
    InvalidMessage,
    MeshError,
    NotFound,
    Overloaded,
    StreamBroken,
    TooLarge,
)

ERROR_CODE, ERROR = "Nats-Service-Error-Code", "Nats-Service-Error"


def test_subjects_name_the_tenant_and_the_agent() -> None:
    assert (
        synadia.subject("prompt", "demo", "billing", "stable") == "agents.prompt.lmos.demo.billing"
    )
    assert (
        synadia.subject("hb", "demo", "billing", "canary") == "agents.hb.lmos.demo.billing--canary"
    )


def test_a_name_that_is_no_token_is_escaped() -> None:
    tokens = synadia.subject("prompt", "my tenant", "it's 1.0", "stable").split(".")

    assert len(tokens) == 5
    assert all(token.startswith("_x") for token in tokens[3:])


def test_metadata_and_heartbeat_say_the_same_of_an_agent() -> None:
    metadata = synadia.metadata("demo", "billing", "canary")
    beat = synadia.heartbeat("demo", "billing", "canary", "i-1")

    assert metadata == {
        "agent": "lmos",
        "owner": "demo",
        "session": "billing--canary",
        "protocol_version": "0.3",
    }
    assert {key: beat[key] for key in ("agent", "owner", "session")} == {
        key: metadata[key] for key in ("agent", "owner", "session")
    }
    assert beat["instance_id"] == "i-1"
    assert beat["interval_s"] > 0
    assert str(beat["ts"]).endswith("Z")


# -- prompts --


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"show my bill", "show my bill"),
        ("zeig mir 39 €".encode(), "zeig mir 39 €"),
        (b'{"prompt":"show my bill"}', "show my bill"),
        (b' \n{"prompt":"show my bill","session":"s"}', "show my bill"),
        (b'"quoted"', '"quoted"'),  # only a brace makes it JSON
    ],
)
def test_a_prompt_is_plain_text_or_json(payload: bytes, text: str) -> None:
    assert synadia.read_prompt(payload).text == text


def test_members_that_are_not_known_are_kept() -> None:
    prompt = synadia.read_prompt(b'{"prompt":"x","mood":"good","attachments":[]}')

    assert prompt.more == {"mood": "good"}
    assert prompt.attachments == 0


def test_attachments_are_counted_once_they_are_sound() -> None:
    content = base64.b64encode(b"x").decode()
    payload = {"prompt": "x", "attachments": [{"filename": "a.txt", "content": content}]}

    assert synadia.read_prompt(json.dumps(payload).encode()).attachments == 1


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b'{"prompt":""}', "empty"),
        (b'{"prompt":"  "}', "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b"{prompt:}", "not JSON"),
        (b'{"prompt":', "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"{}", "/prompt"),
        (b'{"prompt":1}', "/prompt"),
        (b'{"prompt":"x","attachments":{}}', "/attachments"),
        (b'{"prompt":"x","attachments":[1]}', "/attachments/0"),
        (b'{"prompt":"x","attachments":[{"filename":"a","content":"?"}]}', "/attachments/0"),
        (b'{"prompt":"x","attachments":[{"content":"eA=="}]}', "/attachments/0"),
    ],
)
def test_a_bad_prompt_is_refused_with_400_and_what_is_wrong(payload: bytes, said: str) -> None:
    with pytest.raises(InvalidMessage, match=said) as refused:
        synadia.read_prompt(payload)

    assert synadia.refusal(refused.value)[0] == 400


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"{" + tail))
def test_no_bytes_do_worse_than_be_refused(payload: bytes) -> None:
    try:
        prompt = synadia.read_prompt(payload)
    except InvalidMessage:
        return
    assert prompt.text.strip()


@given(st.text(min_size=1).filter(lambda text: text.strip() != ""))
def test_what_is_written_is_read(text: str) -> None:
    assert synadia.read_prompt(synadia.write_prompt(text)).text == text


# -- replies --


def test_a_reply_is_read_chunk_by_chunk_to_its_end() -> None:
    reply = synadia.Reply()

    assert reply.read(synadia.acknowledged(), {}) == ("status", "ack")
    assert reply.acknowledged
    assert reply.read(synadia.response("Your "), {}) == ("response", "Your ")
    assert reply.read(b'{"type":"response","data":{"text":"bill","attachments":[]}}', {}) == (
        "response",
        "bill",
    )
    assert reply.read(b'{"type":"news","data":1}', {"traceparent": "x"}) is None
    assert not reply.done
    assert reply.read(b"", {}) is None
    assert reply.done


def test_a_question_of_the_agent_is_passed_on() -> None:
    query = {"id": "q", "reply_subject": "r", "prompt": "which one?"}

    chunk = json.dumps({"type": "query", "data": query}).encode()

    assert synadia.Reply().read(chunk, {}) == ("query", query)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("400", InvalidMessage), ("404", NotFound), ("409", Conflict), ("?", AgentFailed)],
)
def test_an_error_is_raised_as_the_class_of_its_code(code: str, kind: type[MeshError]) -> None:
    with pytest.raises(MeshError, match="no") as raised:
        synadia.Reply().read(b"", {ERROR_CODE: code, ERROR: "no"})

    assert isinstance(raised.value, kind) or raised.value.status == kind.status


@pytest.mark.parametrize(
    "payload", [b"x", b"[]", b"{}", b"null", b"\xff", b'{"data":1}', b"[" * 99_999]
)
def test_what_is_no_chunk_breaks_the_stream(payload: bytes) -> None:
    with pytest.raises(StreamBroken):
        synadia.Reply().read(payload, {})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3))
def test_data_of_any_kind_does_no_harm(data: Any) -> None:
    for kind in ("response", "status", "query", "other"):
        chunk = json.dumps({"type": kind, "data": data}).encode()
        read = synadia.Reply().read(chunk, {})
        assert read is None or read[0] == kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidMessage("x"), 400),
        (NotFound("x"), 404),
        (Conflict("x"), 409),
        (TooLarge("x"), 400),
        (Overloaded("x"), 429),
        (DeadlineExceeded("x"), 500),
        (AgentFailed("x"), 500),
    ],
)
def test_errors_leave_with_a_code_that_the_protocol_knows(error: MeshError, code: int) -> None:
    assert synadia.refusal(error) == (code, "x")
