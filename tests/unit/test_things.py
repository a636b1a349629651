import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmos_mesh.errors import InvalidDescription
from lmos_mesh.json_faults import LISTED_FAULTS, NESTING, pointer, quoted
from lmos_mesh.semver import BadVersion
from lmos_mesh.thing_faults import (
    CAPABILITIES,
    EXAMPLES,
    NAME_BYTES,
    THING_BYTES,
    faults_of,
    thing_from,
)
from lmos_mesh.things import Capability, Thing, capability_matches

billing: dict[str, Any] = {
    "name": "billing",
    "version": "1.2.0",
    "description": "Answers questions about bills.",
    "capabilities": [
        {
            "id": "view-bill",
            "name": "View bill",
            "version": "1.0",
            "examples": ["show my bill", "how much do I owe?"],
            "tags": ["money"],
            "idempotent": True,
            "input": {"type": "object", "properties": {"question": {"type": "string"}}},
        }
    ],
    "supported_channels": ["web", "ivr"],
    "metadata": {"vendor": {"name": "us"}},
}
capability: dict[str, Any] = billing["capabilities"][0]


def fields(faults: list[dict[str, str]]) -> list[str]:
    return [fault["field"] for fault in faults]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_a_good_thing_is_taken_as_it_is() -> None:
    assert faults_of(billing) == []

    thing = thing_from(billing)

    assert faults_of(thing) == []
    assert thing.key == "demo.billing.stable"
    assert thing.capabilities[0].examples == ("show my bill", "how much do I owe?")


def test_a_thing_is_frozen() -> None:
    thing = thing_from(billing)

    with pytest.raises(ValidationError, match="frozen"):
        thing.name = "other"


def test_unknown_members_of_a_newer_peer_are_kept() -> None:
    raw = {**billing, "colour": "red", "capabilities": [{**capability, "cost": 3}]}

    dumped = thing_from(raw).model_dump()

    assert dumped["colour"] == "red"
    assert dumped["capabilities"][0]["cost"] == 3


@pytest.mark.parametrize("given", [{"id": "a"}, {"name": "a"}, {"id": "a", "name": ""}])
def test_one_of_id_and_name_stands_for_both(given: dict[str, str]) -> None:
    taken = Capability.model_validate(given)

    assert (taken.id, taken.name) == ("a", "a")


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"name": ""}, "/name", "is empty"),
        ({"name": " \t"}, "/name", "is empty"),
        ({"name": "a\nb"}, "/name", "has a control character or a line break"),
        ({"name": " a"}, "/name", "begins or ends with a space"),
        ({"name": "\ud800"}, "/name", "is not Unicode text: it has half of a surrogate pair"),
        ({"name": "é" * 65}, "/name", "takes 130 bytes of UTF-8, and 128 is the limit; shorten it"),
        ({"name": 7}, "/name", "must be a string, not a number"),
        ({"tenant": ""}, "/tenant", "is empty"),
        ({"title": "a\n"}, "/title", "has a control character"),
        ({"title": "a", "origin": "b"}, "/title", "is the name of what has an id or an origin"),
        ({"origin": 3}, "/origin", "must be a string"),
        ({"id": "no uri"}, "/id", "is no absolute URI"),
        ({"id": "urn:lmos-mesh:a:b:c"}, "/id", "follows from tenant, name and subset"),
        ({"id": "urn:x:y", "title": "a"}, "/title", "is the name of what has an id"),
        ({"id": "urn:" + "x" * 512}, "/id", "takes 516 bytes of UTF-8, and 512 is the limit"),
        ({"kind": "thing", "capabilities": []}, "/name", "is no absolute URI"),
        ({"kind": "thing", "name": "urn:x:y"}, "/capabilities", "cannot say how it is reached"),
        ({"external": True, "events": [{"name": "a"}]}, "/events", "cannot say how it is reached"),
        ({"properties": {}}, "/properties", "must be an array"),
        ({"properties": [3]}, "/properties/0", "must be an object"),
        ({"properties": [{"description": "x"}]}, "/properties/0/name", "is missing"),
        ({"properties": [{"name": "a"}, {"name": "a"}]}, "/properties/1/name", "there already"),
        ({"properties": [{"name": "a", "readable": False}]}, "/properties/0/readable", "nobody"),
        ({"properties": [{"name": "a", "writable": 1}]}, "/properties/0/writable", "true or false"),
        ({"properties": [{"name": "a", "schema": 1}]}, "/properties/0/schema", "an object"),
        (
            {"properties": [{"name": "a", "schema": {"readOnly": True}}]},
            "/properties/0/schema/readOnly",
            "is said by the property itself",
        ),
        ({"events": [{"name": "a", "data": [1]}]}, "/events/0/data", "must be an object"),
        ({"events": [{"name": "a", "description": 1}]}, "/events/0/description", "a string"),
        ({"links": [1]}, "/links/0", "must be an object"),
        ({"terms": []}, "/terms", "must be an object"),
        ({"terms": {"a": math.inf}}, "/terms/a", "must be a finite number"),
        ({"omitted": [1]}, "/omitted/0", "must be a string"),
        ({"subset": None}, "/subset", "must be a string, not null"),
        ({"kind": "robot"}, "/kind", 'must be "agent", "tool" or "thing", not "robot"'),
        ({"kind": nested(5000)}, "/kind", 'must be "agent", "tool" or "thing", not an object'),
        ({"version": "new"}, "/version", "'new' is not a version; write it like"),
        ({"version": 1.0}, "/version", "must be a string like 1.4.2, not a number"),
        ({"description": []}, "/description", "must be a string, not an array"),
        ({"capabilities": {}}, "/capabilities", "must be an array, not an object"),
        ({"capabilities": ["view"]}, "/capabilities/0", "must be an object, not a string"),
        ({"supported_channels": "web"}, "/supported_channels", "must be an array, not a string"),
        ({"supported_channels": ["web", ""]}, "/supported_channels/1", "is empty"),
        ({"supported_tenants": ["a", "a"]}, "/supported_tenants/1", '"a" is there already, as'),
        ({"metadata": [1]}, "/metadata", "must be an object, not an array"),
        ({"metadata": {"a/b": [math.nan]}}, "/metadata/a~1b/0", "must be a finite number"),
        ({"metadata": {"a": b"x"}}, "/metadata/a", "must be a JSON value, not bytes"),
        ({"metadata": {"a": 2**64}}, "/metadata/a", "is an integer of more than 64 bits"),
        ({"metadata": {1: 2}}, "/metadata", "has the member name 1, which is not Unicode text"),
        ({"metadata": {"a": "\udfff"}}, "/metadata/a", "is not Unicode text"),
        ({"external": "no"}, "/external", "must be true or false, not a string"),
        ({"colour": {1, 2}}, "/colour", "must be a JSON value, not a Python set"),
    ],
)
def test_a_faulty_thing_is_refused_where_it_is_wrong(
    change: dict[str, Any], field: str, said: str
) -> None:
    [fault] = faults_of({**billing, **change})

    assert fault["field"] == field
    assert said in fault["description"]


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"id": "", "name": ""}, "/id", "is empty, and so is the name"),
        ({"id": 3}, "/id", "must be a string, not a number"),
        ({"version": "1.x"}, "/version", "is not a version"),
        ({"examples": "show"}, "/examples", "must be an array, not a string"),
        ({"examples": ["a", 3]}, "/examples/1", "must be a string, not a number"),
        ({"examples": ["a", " "]}, "/examples/1", "is empty"),
        ({"examples": ["a", "b", "a "]}, "/examples/2", '"a" is there already, as number 0'),
        ({"tags": ["x", "x"]}, "/tags/1", '"x" is there already'),
        ({"idempotent": 1}, "/idempotent", "must be true or false, not a number"),
        ({"input": True}, "/input", "must be an object, not a boolean"),
        ({"output": {"a": math.inf}}, "/output/a", "must be a finite number"),
    ],
)
def test_a_faulty_capability_is_refused_where_it_is_wrong(
    change: dict[str, Any], field: str, said: str
) -> None:
    [fault] = faults_of({**billing, "capabilities": [{**capability, **change}]})

    assert fault["field"] == "/capabilities/0" + field
    assert said in fault["description"]


def test_ids_are_unique_even_where_only_a_name_is_given() -> None:
    [fault] = faults_of({"name": "a", "capabilities": [{"id": "x"}, {"name": "x"}]})

    assert fault == {
        "field": "/capabilities/1/name",
        "description": '"x" is the id of capability 0 already; ids are unique',
    }


def test_two_capabilities_may_share_a_name() -> None:
    twice = [{"id": "a1", "name": "a", "version": "1"}, {"id": "a2", "name": "a", "version": "2"}]

    assert faults_of({"name": "x", "capabilities": twice}) == []


def test_every_fault_is_named_at_once() -> None:
    raw = {
        "name": "",
        "version": "x",
        "capabilities": [{"id": "a", "examples": ["", 1]}, {"id": "a"}, 3],
    }

    with pytest.raises(InvalidDescription) as caught:
        thing_from(raw)

    assert fields(caught.value.details["faults"]) == [
        "/name",
        "/version",
        "/capabilities/0/examples/0",
        "/capabilities/0/examples/1",
        "/capabilities/1/id",
        "/capabilities/2",
    ]
    assert str(caught.value).startswith("agent without a name is refused: /name: is empty; ")


def test_a_model_that_breaks_the_rules_has_faults_too() -> None:
    thing = Thing(name="", version="x", capabilities=(Capability(id="a"), Capability(id="a")))

    assert fields(faults_of(thing)) == ["/name", "/version", "/capabilities/1/id"]


@pytest.mark.parametrize("raw", [None, 3, "billing", [], [billing]])
def test_what_is_no_object_is_refused(raw: Any) -> None:
    [fault] = faults_of(raw)

    assert fault["field"] == ""
    assert fault["description"].startswith("must be an object, not ")


def test_a_missing_name_is_said() -> None:
    assert faults_of({}) == [{"field": "/name", "description": "is missing; a Thing needs a name"}]


def test_limits_hold_exactly() -> None:
    def with_(**change: Any) -> list[str]:
        return fields(faults_of({"name": "a", **change}))

    many = [{"id": f"c{n}"} for n in range(CAPABILITIES + 1)]
    examples = [str(n) for n in range(EXAMPLES + 1)]
    assert with_(name="a" * NAME_BYTES) == []
    assert with_(name="a" * (NAME_BYTES + 1)) == ["/name"]
    assert with_(capabilities=many[:-1]) == []
    assert with_(capabilities=many) == ["/capabilities"]
    assert with_(capabilities=[{"id": "a", "examples": examples[:-1]}]) == []
    assert with_(capabilities=[{"id": "a", "examples": examples}]) == ["/capabilities/0/examples"]
    assert with_(metadata=nested(NESTING + 1)) == []
    assert with_(metadata=nested(NESTING + 2)) == ["/metadata" + "/a" * (NESTING + 1)]
    assert with_(metadata={"a": "é" * (THING_BYTES // 2)}) == [""]


def test_what_is_nested_without_end_is_refused_and_breaks_nothing() -> None:
    for member in ("name", "capabilities", "metadata", "colour", "supported_channels"):
        assert faults_of({"name": "a", member: nested(100_000)})


def test_the_list_of_faults_stays_short() -> None:
    raw = {"name": "a", "capabilities": [{"examples": [1] * EXAMPLES}] * CAPABILITIES}

    faults = faults_of(raw)

    assert len(faults) == LISTED_FAULTS + 1
    assert faults[-1] == {"field": "", "description": "has 1 or more others"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
members = st.sampled_from([*Thing.model_fields, "colour", "model_config", "key", "__class__"])
capability_members = st.sampled_from([*Capability.model_fields, "cost"])
capabilities = st.dictionaries(capability_members, json_values, max_size=4)


@given(
    st.dictionaries(members, json_values, max_size=4),
    st.lists(capabilities, max_size=2) | st.none(),
)
def test_what_has_no_faults_is_always_taken(
    change: dict[str, Any], listed: list[dict[str, Any]] | None
) -> None:
    raw = {"name": "a", **change}
    if listed is not None:
        raw["capabilities"] = [{"id": f"c{n}", **one} for n, one in enumerate(listed)]

    faults = faults_of(raw)

    # An error has to cross the mesh itself.
    json.dumps(faults, ensure_ascii=False).encode()
    if not faults:
        thing = thing_from(raw)
        assert faults_of(thing) == []
        assert Thing.model_validate(thing.model_dump()) == thing


def test_a_mapping_of_any_kind_is_taken() -> None:
    class Lookalike(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return billing[key]

        def __iter__(self) -> Any:
            return iter(billing)

        def __len__(self) -> int:
            return len(billing)

    assert thing_from(Lookalike()) == thing_from(billing)


@pytest.mark.parametrize(
    ("wanted", "version_range", "expected"),
    [
        ("view-bill", None, True),
        ("View bill", None, True),
        ("view bill", None, False),
        ("view", None, False),
        ("view-bill", "^1.0", True),
        ("view-bill", "[1.0,2.0[", True),
        ("view-bill", ">=2", False),
        ("other", "^1.0", False),
    ],
)
def test_a_capability_is_matched_by_id_or_name_and_version(
    wanted: str, version_range: str | None, expected: bool
) -> None:
    thing = thing_from(billing)

    assert capability_matches(thing.capabilities[0], wanted, version_range) is expected
    assert thing.matching(wanted, version_range) == (thing.capabilities if expected else ())


def test_a_bad_range_is_an_error_and_a_bad_version_only_no_match() -> None:
    unread = Capability(id="a", version="summer")

    assert capability_matches(unread, "a")
    assert not capability_matches(unread, "a", "*")
    with pytest.raises(BadVersion, match="'<<1' is not a version range"):
        capability_matches(unread, "a", "<<1")


def test_channels_are_served_by_name_or_all_or_none() -> None:
    assert Thing(name="a").serves("web")
    assert Thing(name="a", supported_channels=("ivr",)).serves("ivr")
    assert not Thing(name="a", supported_channels=("ivr",)).serves("web")
    assert not Thing(name="a", supported_channels=()).serves("web")


def test_pointers_are_escaped() -> None:
    assert pointer("a/b", "~", 3, "") == "/a~1b/~0/3/"
    assert pointer() == ""


def test_values_are_shown_short() -> None:
    assert quoted("é") == '"é"'
    assert quoted("\ud800") == '"\\ud800"'
    assert len(quoted("a" * 1000)) == 64
    assert quoted(10**5000) == "a number"
    assert quoted([1]) == "an array"
