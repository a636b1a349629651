"""What is wrong with an input is said of its own fields, in the words of JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from lmos_mesh.errors import InvalidMessage
from lmos_mesh.wrong_fields import Fault, told, wrong_fields


class Part(BaseModel):
    type: str
    text: str = ""


class Said(BaseModel):
    role: str
    content: str | tuple[Part, ...] = Field(min_length=1)


class Body(BaseModel):
    messages: tuple[Said, ...] = Field(min_length=1)
    name: str = Field(default="x", max_length=3)
    count: int = Field(default=1, ge=1)


def faults_of(text: str) -> list[Fault]:
    try:
        Body.model_validate_json(text)
    except ValidationError as exc:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        return wrong_fields(exc, value)
    return []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is no JSON: EOF while parsing an object at line 1 column 1"),
        ("[]", "it must be an object"),
        ("{}", "/messages: is missing"),
        ('{"messages": {}}', "/messages: must be an array"),
        ('{"messages": []}', "/messages: must have at least 1 item"),
        (
            '{"messages": [{"role": "user", "content": 5}]}',
            "/messages/0/content: must be a string or an array",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": 3}]}]}',
            "/messages/0/content/0/type: must be a string",
        ),
        (
            '{"messages": [{"content": "x"}], "name": "long", "count": 0}',
            "/messages/0/role: is missing; /name: must have at most 3 characters; "
            "/count: must be greater than or equal to 1",
        ),
    ],
)
def test_each_wrong_field_is_named_once_as_it_was_sent(text: str, said: str) -> None:
    assert told(faults_of(text)) == said


def test_a_part_of_a_message_is_named_where_it_is_in_the_whole() -> None:
    with pytest.raises(ValidationError) as wrong:
        Part.model_validate({"type": 1})

    assert wrong_fields(wrong.value, {"type": 1}, at="/lmos:context")[0]["field"] == (
        "/lmos:context/type"
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "type", "name"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@given(values)
def test_every_fault_is_at_a_place_of_the_input_or_names_what_is_missing_there(value: Any) -> None:
    faults = faults_of(json.dumps(value))

    assert len({fault["field"] for fault in faults}) == len(faults)
    for fault in faults:
        steps = fault["field"].split("/")[1:]
        if fault["description"] == "is missing":
            steps.pop()
        at: Any = value
        for step in steps:
            at = at[int(step) if step.isdigit() else step]


def test_a_message_that_is_refused_without_naming_a_field_has_a_fault_all_the_same() -> None:
    assert InvalidMessage("it is empty").details["faults"] == [
        {"field": "", "description": "it is empty"}
    ]
    assert InvalidMessage("/agent: is needed", field="/agent").details["faults"] == [
        {"field": "/agent", "description": "is needed"}
    ]
