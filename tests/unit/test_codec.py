import datetime
import enum
import json
import uuid
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PlainSerializer, RootModel, computed_field, field_serializer

from lmos_mesh import codec
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidMessage

_independent: Any = msgpack  # it has no types


def packed(value: Any) -> bytes:
    return _independent.packb(value)


def unpacked(payload: bytes) -> Any:
    return _independent.unpackb(payload, strict_map_key=False)


class Colour(enum.Enum):
    RED = "red"


class Inner(Message):
    number: int = 0
    kind: Literal["a", "b"] = "a"


class Outer(Message):
    text: str
    number: int = 0
    real: float = 0.0
    yes: bool = False
    maybe: str | None = None
    blob: bytes = b""
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict[str, Inner])
    anything: Any = None


class Tree(Message):
    name: str
    children: "tuple[Tree, ...]" = ()
    leaf: "Leaf | None" = None


class Leaf(Message):
    of: "Tree | None" = None


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**64 - 1)
json_like = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
inners = st.builds(Inner, number=numbers, kind=st.sampled_from(["a", "b"]))
outers = st.builds(
    Outer,
    text=texts,
    number=numbers,
    real=st.floats(allow_nan=False),
    yes=st.booleans(),
    maybe=st.none() | texts,
    blob=st.binary(),
    many=st.lists(inners, max_size=3).map(tuple),
    by_name=st.dictionaries(texts, inners, max_size=3),
    anything=json_like,
)


@given(outers)
def test_a_message_comes_back_from_msgpack_as_it_was(message: Outer) -> None:
    assert codec.decode(Outer, codec.encode(message)) == message


@given(outers)
def test_the_wire_is_standard_msgpack_of_the_messages_fields(message: Outer) -> None:
    wire = codec.encode(message)

    assert not codec.is_json(wire)
    assert unpacked(wire) == {
        **message.model_dump(),
        "many": [inner.model_dump() for inner in message.many],
    }
    assert codec.decode(Outer, packed(unpacked(wire))) == message


@given(
    st.builds(
        Outer,
        text=texts,
        number=st.integers(-(2**63), 2**63 - 1),
        real=st.floats(allow_nan=False, allow_infinity=False),
        many=st.lists(inners, max_size=3).map(tuple),
    )
)
def test_a_message_comes_back_from_json_as_it_was(message: Outer) -> None:
    wire = codec.encode(message, as_json=True)

    assert codec.is_json(wire)
    assert isinstance(json.loads(wire), dict)
    assert codec.decode(Outer, wire) == message


@given(json_like)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert codec.decode_value(codec.encode_value([value])) == [value]
    assert unpacked(codec.encode_value(value)) == value
    assert codec.decode_value(packed([value])) == [value]


@given(
    st.recursive(st.none() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
)
def test_a_list_or_map_in_msgpack_is_never_taken_for_json(value: Any) -> None:
    for whole in ([value], {"x": value}):
        assert not codec.is_json(codec.encode_value(whole))
        assert codec.is_json(codec.encode_value(whole, as_json=True))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error_that_says_why(payload: bytes) -> None:
    for kind in (Outer, Inner, Message):
        with suppress(InvalidMessage):
            assert isinstance(codec.decode(kind, payload), kind)
    with suppress(InvalidMessage):
        codec.decode_value(payload)


@given(outers, st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_message_is_a_message_or_an_error(message: Outer, at: int, junk: bytes) -> None:
    wire = codec.encode(message)
    damaged = wire[: at % len(wire)] + junk
    with suppress(InvalidMessage):
        assert isinstance(codec.decode(Outer, damaged), Outer)


@pytest.mark.parametrize("as_json", [False, True])
def test_every_wrong_field_is_named(as_json: bool) -> None:
    sent = {"number": "x", "many": [{"kind": "a"}, {"kind": "c"}], "by_name": {"a/b~": 5}}
    with pytest.raises(InvalidMessage) as raised:
        codec.decode(Outer, json.dumps(sent).encode() if as_json else packed(sent))

    assert [fault["field"] for fault in raised.value.details["faults"]] == [
        "/text",
        "/number",
        "/many/1/kind",
        "/by_name/a~1b~0",
    ]
    for fault in raised.value.details["faults"]:
        assert fault["field"] in str(raised.value)


def test_what_was_sent_is_not_repeated_in_the_error() -> None:
    with pytest.raises(InvalidMessage) as raised:
        codec.decode(Outer, b'{"text": {"password": "secret"}}')

    assert "secret" not in str(raised.value.problem())


def test_unknown_fields_are_kept_and_passed_on() -> None:
    sent = {"text": "x", "new": {"a": [1]}, "many": [{"number": 1, "kind": "a", "later": None}]}

    message = codec.decode(Outer, packed(sent))

    for as_json in (False, True):
        wire = codec.encode(message, as_json=as_json)
        again = json.loads(wire) if as_json else unpacked(wire)
        assert again["new"] == {"a": [1]}
        assert "number" in again["many"][0]
    assert unpacked(codec.encode(message))["many"][0]["later"] is None


def test_json_leaves_out_what_is_null() -> None:
    assert json.loads(codec.encode(Outer(text="x"), as_json=True)) == {
        "text": "x",
        "number": 0,
        "real": 0.0,
        "yes": False,
        "blob": "",
        "many": [],
        "by_name": {},
    }


def test_an_empty_payload_is_an_empty_message() -> None:
    assert codec.decode(Inner, b"") == Inner()
    assert codec.decode_value(b"") is None


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"a":' * 100_000, b"\x91" * 100_000])
def test_what_is_nested_without_end_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        codec.decode_value(payload)
    with pytest.raises(InvalidMessage):
        codec.decode(Outer, payload)


def test_a_value_that_is_already_decoded_is_checked_like_any() -> None:
    assert codec.validate(Inner, {"number": 5}) == Inner(number=5)
    with pytest.raises(InvalidMessage, match="/number"):
        codec.validate(Inner, {"number": "five"})


# What may take the fast way: one whose fields are all there is to say.


class Aliased(Message):
    text: str = Field(default="", alias="lmos:text")


class HoldsAliased(Message):
    many: tuple[Aliased, ...] = ()
    named: dict[str, Aliased] = Field(default_factory=dict[str, Aliased])


class NotOurs(BaseModel):
    """A model that is no `Message`."""

    text: str = Field(default="", alias="lmos:text")


class HoldsNotOurs(Message):
    one: NotOurs = NotOurs()


class Secretive(Message):
    metadata: str = Field(default="secret", exclude=True)


class HoldsSecretive(Message):
    metadata: Secretive | None = None
    type: str = ""


class Computes(Message):
    @computed_field
    @property
    def double(self) -> int:
        return 2


class Serializes(Message):
    number: int = 1

    @field_serializer("number")
    def as_text(self, value: int) -> str:
        return str(value)


class SerializesQuietly(Message):
    numbers: tuple[Annotated[int, PlainSerializer(str)], ...] = (1,)


class Rooted(RootModel[list[int]]):
    """A model that is its only field."""


class HoldsRooted(Message):
    one: Rooted = Rooted([1])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            HoldsAliased(many=(Aliased.model_validate({"text": "x"}),)),
            {"many": [{"lmos:text": "x"}], "named": {}},
        ),
        (HoldsNotOurs(), {"one": {"lmos:text": ""}}),
        (Secretive(), {}),
        (HoldsSecretive(metadata=Secretive()), {"metadata": {}, "type": ""}),
        (Computes(), {"double": 2}),
        (Serializes(), {"number": "1"}),
        (SerializesQuietly(), {"numbers": ["1"]}),
        (HoldsRooted(), {"one": [1]}),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_a_model_says_of_its_serialization_is_heeded(message: Message, said: Any) -> None:
    assert unpacked(codec.encode(message)) == said
    assert json.loads(codec.encode(message, as_json=True)) == said


def test_models_that_hold_each_other_are_encoded() -> None:
    tree = Tree(name="a", children=(Tree(name="b"),), leaf=Leaf(of=Tree(name="c")))

    assert codec.decode(Tree, codec.encode(tree)) == tree


def test_times_ids_and_choices_are_texts_on_the_wire() -> None:
    class Fact(Message):
        at: datetime.datetime
        id: uuid.UUID
        colour: Colour

    fact = Fact(
        at=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        id=uuid.UUID(int=7),
        colour=Colour.RED,
    )

    told = unpacked(codec.encode(fact))

    assert told["colour"] == "red"
    assert told["id"] == str(uuid.UUID(int=7))
    assert told["at"].startswith("2026-01-02T03:04:05")
    assert codec.decode(Fact, codec.encode(fact)) == fact
