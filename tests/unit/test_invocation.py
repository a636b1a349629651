"""How an agent's action is asked for."""

from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.agent import Agent
from lmos_mesh.codec import encode_value
from lmos_mesh.context import Context
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.invocation import (
    CONTEXT,
    Circumstances,
    input_for,
    split,
    value_of,
    written_as_json,
)
from lmos_mesh.things import Capability

agent = Agent("various", description="Has capabilities of every shape.")


@agent.capability
async def plain(question: str) -> str:
    return question


@agent.capability
async def nothing() -> str:
    return ""


@agent.capability
async def only_context(context: Context) -> str:
    return context.message


@agent.capability
async def optional(question: str | None = None, verbose: bool = False) -> str:
    return question or ""


@agent.capability
async def first_of_two(question: str, style: str = "plain") -> str:
    return question + style


@agent.capability
async def required_second(style: str = "plain", *, question: str) -> str:
    return question + style


@agent.capability
async def words_after_a_choice(size: Literal["s", "l"] = "s", text: str = "") -> str:
    return size + text


@agent.capability
async def on_a_day(text: str, day: date | None = None) -> str:
    return f"{text} {day}"


@agent.capability
async def two_texts(origin: str, destination: str) -> str:
    return origin + destination


@agent.capability
async def a_number(amount: int) -> str:
    return str(amount)


@agent.capability
async def a_day(day: date) -> str:
    return str(day)


def capability(id: str) -> Capability:
    action = agent.action(id)
    assert action is not None
    return action.capability


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("plain", {"question": "hi"}),
        ("optional", {"question": "hi"}),
        ("first_of_two", {"question": "hi"}),
        ("required_second", {"question": "hi"}),
        ("words_after_a_choice", {"text": "hi"}),
        ("on_a_day", {"text": "hi"}),
        ("nothing", {"message": "hi"}),
        ("only_context", {"message": "hi"}),
    ],
)
def test_a_message_becomes_the_text_that_a_capability_takes(
    id: str, expected: dict[str, Any]
) -> None:
    given = input_for(capability(id), "hi")

    assert given == expected
    action = agent.action(id)
    assert action is not None
    action.arguments(given)


@pytest.mark.parametrize(
    ("id", "missing"),
    [("two_texts", "destination"), ("a_number", "amount"), ("a_day", "day")],
)
def test_what_a_message_alone_does_not_give_is_named(id: str, missing: str) -> None:
    with pytest.raises(InvalidMessage, match=f"needs {missing}"):
        input_for(capability(id), "hi")


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"type": "object"},
        {"properties": {"x": {"type": ["string", "null"]}}},
        {"properties": {"x": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
        {"properties": {"x": {"oneOf": [{"type": "integer"}, {"type": "string"}]}}},
    ],
)
def test_a_capability_of_foreign_make_is_given_the_message_too(
    schema: dict[str, Any] | None,
) -> None:
    given = input_for(Capability(id="x", input=schema), "hi")

    assert list(given.values()) == ["hi"]


def test_a_capability_whose_input_has_no_text_is_given_none() -> None:
    schema = {"properties": {"x": {"type": "integer"}, "y": True, "z": 1}}

    assert input_for(Capability(id="x", input=schema), "hi") == {}


# -- the payload on the wire --


def test_a_payload_is_the_input_and_beside_it_who_asks() -> None:
    payload: dict[str, Any] = {
        "question": "hi",
        CONTEXT: {"conversation": "c", "history": [], "later": 1},
    }

    given, circumstances = split(payload)

    assert given == {"question": "hi"}
    assert circumstances.conversation == "c"
    assert payload.keys() == {"question", CONTEXT}  # the caller's own is left as it was


@pytest.mark.parametrize(
    ("payload", "given"),
    [(None, {}), ({}, {}), ("hi", {"message": "hi"}), ({"a": 1}, {"a": 1})],
)
def test_a_payload_written_by_hand_needs_no_context(payload: Any, given: dict[str, Any]) -> None:
    assert split(payload)[0] == given


def test_a_text_alone_is_the_message() -> None:
    assert split("hi")[1] == Circumstances(message="hi")


@pytest.mark.parametrize("payload", [1, True, 1.5, [], ["x"], b"x"])
def test_a_payload_that_is_no_object_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidMessage, match="object"):
        split(payload)


@pytest.mark.parametrize(
    ("context", "field"),
    [
        (1, "/lmos:context"),
        ({"conversation": 7}, "/lmos:context/conversation"),
        ({"history": [{"role": "nobody", "content": "x"}]}, "/lmos:context/history/0/role"),
    ],
)
def test_a_malformed_context_names_the_field(context: Any, field: str) -> None:
    with pytest.raises(InvalidMessage, match=field) as refused:
        split({CONTEXT: context})
    assert [one["field"] for one in refused.value.details["faults"]] == [field]
    assert "Circumstances" not in str(refused.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_no_payload_does_worse_than_be_refused(payload: Any) -> None:
    try:
        given, _ = split(payload)
    except InvalidMessage:
        return
    assert CONTEXT not in given


words = ["properties", "required", "type", "string", "anyOf", "enum", "x"]
schemas = st.recursive(
    st.none() | st.booleans() | st.sampled_from(words),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(words), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(words), schemas))
def test_no_schema_does_worse_than_be_refused(schema: dict[str, Any]) -> None:
    try:
        given = input_for(Capability(id="x", input=schema), "hi")
    except InvalidMessage:
        return
    assert set(given.values()) <= {"hi"}


# -- values of properties --

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_a_value_is_the_same_in_json_and_in_msgpack(value: Any) -> None:
    as_json, packed = encode_value(value, as_json=True), encode_value(value)

    assert written_as_json(as_json)
    assert value_of(as_json) == value
    if type(value) is int and 0 <= value < 128:
        assert written_as_json(packed)
    else:
        assert not written_as_json(packed)
        assert value_of(packed) == value


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x07", b"\xc1", b"[" * 100_000])
def test_what_is_no_value_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        value_of(payload)
