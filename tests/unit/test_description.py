import copy
import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.description import (
    describe,
    description_faults,
    id_of,
    named_in_words,
    reachable,
    thing_of,
    with_id,
    with_security,
)
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.json_faults import NESTING
from lmos_mesh.schemas.thing_description import td_faults
from lmos_mesh.thing_faults import CAPABILITIES, NAME_BYTES, THING_BYTES, faults_of, thing_from
from lmos_mesh.things import Capability, Event, Property, Thing

billing = thing_from(
    {
        "name": "billing",
        "tenant": "acme",
        "subset": "canary",
        "version": "1.2.0",
        "description": "Answers questions about bills.",
        "capabilities": [
            {
                "id": "view-bill",
                "name": "View bill",
                "description": "Shows the latest bill.",
                "examples": ["show my bill"],
                "input": {"type": "object", "properties": {"question": {"type": "string"}}},
                "output": {"type": "string"},
            },
            {"id": "pay", "version": "2.0", "idempotent": False, "tags": ["money"]},
        ],
        "supported_tenants": ["acme", "other"],
        "metadata": {"lmos:vendor": {"lmos:name": "us"}},
    }
)

# As LMOS documents an agent of somebody else, with the security that a valid TD needs.
weather: dict[str, Any] = {
    "@context": [
        "https://www.w3.org/2022/wot/td/v1.1",
        {
            "lmos": "https://eclipse.dev/lmos/protocol/v1",
            "mesh": "urn:lmos-mesh:vocabulary#",
            "ex": "https://example.com/terms#",
        },
    ],
    "@type": ["lmos:Agent", "ex:Forecaster"],
    "id": "urn:uuid:6f1d3a7a-1f97-4e6b-b45f-f3c2e1c84c77",
    "title": "Weather Agent",
    "links": [{"rel": "service-doc", "href": "https://example.com/manual.pdf", "hreflang": "en"}],
    "lmos:metadata": {"lmos:vendor": {"lmos:name": "Example"}},
    "securityDefinitions": {"basic_sc": {"scheme": "basic", "in": "header"}},
    "security": "basic_sc",
    "lmos:capabilities": [
        {"id": "urn:example:forecast", "name": "Forecast", "version": "1.0", "examples": ["rain?"]},
        {"name": "getWeather"},
    ],
    "properties": {
        "model": {
            "type": "object",
            "readOnly": True,
            "forms": [{"op": "readproperty", "href": "https://example.com/model"}],
        }
    },
    "actions": {
        "getWeather": {
            "safe": True,
            "input": {"type": "object", "properties": {"question": {"type": "string"}}},
            "output": {"type": "string"},
            "forms": [{"op": "invokeaction", "href": "https://example.com/getWeather"}],
        }
    },
    "events": {
        "feedback": {
            "data": {"type": "object", "properties": {"rating": {"type": "integer"}}},
            "forms": [{"op": "subscribeevent", "href": "https://example.com/feedback"}],
        }
    },
    "ex:colour": "blue",
}


def fields(faults: list[dict[str, str]]) -> list[str]:
    return [fault["field"] for fault in faults]


def changed(*path: str | int, to: Any = None, of: dict[str, Any] = weather) -> dict[str, Any]:
    """A copy of a Description with one member replaced, or removed if `to` is None."""
    document = copy.deepcopy(of)
    holder: Any = document
    for step in path[:-1]:
        holder = holder[step]
    if to is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = to
    return document


def paths_in(holder: Any, *above: str | int) -> list[tuple[str | int, ...]]:
    """The path of every value below, as `changed` takes it."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(holder, dict):
        items = list(cast("dict[str | int, Any]", holder).items())
    elif isinstance(holder, list):
        items = list(enumerate(cast("list[Any]", holder)))
    below = [path for step, value in items for path in paths_in(value, *above, step)]
    return [(*above, step) for step, _ in items] + below


def test_a_thing_is_described_in_the_vocabularies_of_wot_and_lmos() -> None:
    description = describe(billing)

    assert description_faults(description) == []
    assert description["@context"] == [
        "https://www.w3.org/2022/wot/td/v1.1",
        {
            "lmos": "https://eclipse.dev/lmos/protocol/v1",
            "mesh": "urn:lmos-mesh:vocabulary#",
            "nats": "urn:lmos-mesh:vocabulary:nats#",
        },
    ]
    assert description["@type"] == "lmos:Agent"
    assert description["id"] == "urn:lmos-mesh:acme:billing:canary"
    assert description["title"] == "billing"
    assert description["version"] == {"instance": "1.2.0"}
    assert description["lmos:capabilities"][0] == {
        "id": "view-bill",
        "name": "View bill",
        "version": "1.0.0",
        "description": "Shows the latest bill.",
        "examples": ["show my bill"],
    }
    assert description["lmos:metadata"] == {"lmos:vendor": {"lmos:name": "us"}}
    assert description["mesh:supportedTenants"] == ["acme", "other"]
    assert thing_of(description) == billing


def test_each_capability_is_an_action_that_is_reached_over_nats() -> None:
    actions = describe(billing)["actions"]

    assert list(actions) == ["view-bill", "pay"]
    assert actions["view-bill"] == {
        "title": "View bill",
        "description": "Shows the latest bill.",
        "safe": False,
        "idempotent": True,
        "synchronous": True,
        "input": {"type": "object", "properties": {"question": {"type": "string"}}},
        "output": {"type": "string"},
        "forms": [
            {
                "href": "nats:lmos.acme.agent.billing.canary.invoke.view-bill",
                "op": "invokeaction",
                "contentType": "application/json",
                "nats:queue": subjects.AGENT_QUEUE,
            }
        ],
    }
    assert actions["pay"]["idempotent"] is False


ELSEWHERE: dict[str, Any] = {
    "@context": describe(thing_from({"name": "any"}))["@context"],
    "@type": "lmos:Agent",
    "title": "shipping",
    "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
    "security": "nosec_sc",
    "lmos:capabilities": [{"id": "track", "name": "track"}],
    "actions": {"track": {"forms": [{"href": "https://shipping.example/track"}]}},
}


@pytest.mark.parametrize(
    ("more", "external"),
    [
        ({}, True),
        ({"base": "https://a.example/", "actions": {"track": {"forms": [{"href": "t"}]}}}, True),
        ({"base": "nats:lmos.demo.", "actions": {"track": {"forms": [{"href": "t"}]}}}, False),
        ({"mesh:external": False}, False),
        ({"actions": {}}, False),
        (
            {"actions": {}, "forms": [{"href": "https://a.example", "op": "readallproperties"}]},
            True,
        ),
        ({"events": {"e": {"forms": [{"href": "nats:lmos.demo.event.shipping.e"}]}}}, False),
        ({"@type": "lmos:Tool"}, True),
    ],
)
def test_who_is_reached_only_away_from_the_bus_lives_elsewhere(
    more: dict[str, Any], external: bool
) -> None:
    description = {**ELSEWHERE, **more}
    assert description_faults(description) == []

    thing = thing_of(description)

    assert thing.external is external
    assert describe(thing) == description


def test_what_is_external_has_no_forms_that_nobody_serves() -> None:
    raw = {**billing.model_dump(), "external": True}
    thing = Thing.model_validate(raw)

    description = describe(thing)

    assert description_faults(description) == []
    assert "actions" not in description
    assert description["mesh:external"] is True
    assert thing_of(description) == thing


def test_a_tool_is_typed_as_one() -> None:
    tool = Thing(name="calculator", kind="tool")

    assert describe(tool)["@type"] == "lmos:Tool"
    assert thing_of(describe(tool)) == tool


def test_an_id_is_a_urn_whatever_the_names_are() -> None:
    thing = Thing(name="a:b/ü", tenant="50%", subset="~x")

    assert id_of(thing) == "urn:lmos-mesh:50%25:a%3Ab%2F%C3%BC:~x"
    assert description_faults(describe(thing)) == []
    assert thing_of(describe(thing)) == thing


def text(max_size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), max_size=max_size)


names = (
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=20
    )
    .map(str.strip)
    .filter(bool)
)
some_versions = st.sampled_from(["1", "1.0", "0.3.1", "2.0.0-beta.1+b7"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text(5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(4), inner, max_size=3),
    max_leaves=6,
)
data_schemas = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["string", "number", "null"]), "title": text(5)}
    ),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(text(4), inner, max_size=2)}
        )
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner})
    ),
    max_leaves=4,
)
texts = st.lists(
    text(8).filter(lambda one: bool(one.strip())), max_size=3, unique_by=str.strip
).map(tuple)
unique_names = st.lists(names, max_size=3, unique=True).map(tuple)
capabilities = st.builds(
    Capability,
    id=names,
    name=names,
    version=some_versions,
    description=text(10),
    examples=texts,
    tags=unique_names,
    idempotent=st.booleans(),
    input=st.none() | data_schemas,
    output=st.none() | data_schemas,
    cost=st.integers(0, 3),
)
properties = st.builds(
    Property,
    name=names,
    description=text(10),
    schema=data_schemas,
    readable=st.booleans(),
    writable=st.booleans(),
).filter(lambda one: one.readable or one.writable)
events = st.builds(Event, name=names, description=text(10), data=st.none() | data_schemas)
links = st.fixed_dictionaries(
    {"href": st.sampled_from(["a", "https://example.com/x"])},
    optional={"rel": st.sampled_from(["next", "type"]), "ex:more": json_values},
)
uris = names.map(lambda one: "urn:example:" + quote(one, safe=""))


def normal(thing: Thing) -> bool:
    """Whether nothing is said that follows anyway; that is left out on the way back."""
    mirrored = thing.origin and thing.kind != "thing"
    return thing.title != thing.name and not (thing.title and mirrored)


here = st.builds(
    Thing,
    name=names,
    tenant=names,
    subset=names,
    title=st.just("") | names,
    kind=st.sampled_from(["agent", "tool"]),
    origin=st.just("") | names,
    properties=st.lists(properties, max_size=3, unique_by=lambda one: one.name).map(tuple),
    events=st.lists(events, max_size=3, unique_by=lambda one: one.name).map(tuple),
    links=st.lists(links, max_size=1).map(tuple),
).filter(normal)
with_an_id = st.builds(Thing, name=names, id=uris, external=st.booleans())
plain = st.builds(
    Thing,
    kind=st.just("thing"),
    name=uris,
    tenant=names,
    subset=names,
    title=st.just("") | names,
    version=some_versions,
    description=text(10),
    origin=st.just("") | names,
    links=st.lists(links, max_size=1).map(tuple),
    supported_channels=unique_names,
    supported_tenants=unique_names,
    metadata=st.dictionaries(text(4), json_values, max_size=2),
    external=st.booleans(),
    colour=json_values,
).filter(normal)
things = (
    here
    | with_an_id
    | plain
    | st.builds(
        Thing,
        name=names,
        tenant=names,
        subset=names,
        kind=st.sampled_from(["agent", "tool"]),
        version=some_versions,
        description=text(10),
        capabilities=st.lists(capabilities, max_size=3, unique_by=lambda one: one.id).map(tuple),
        supported_channels=unique_names,
        supported_tenants=unique_names,
        metadata=st.dictionaries(text(4), json_values, max_size=2),
        external=st.booleans(),
    )
    | st.builds(Thing, name=names, colour=json_values)
)


@settings(deadline=None)
@given(things)
def test_every_good_thing_has_a_valid_description_and_comes_back_from_it(thing: Thing) -> None:
    assert faults_of(thing) == []

    description = json.loads(json.dumps(describe(thing)))

    assert description_faults(description) == []
    assert thing_of(description) == thing
    assert thing_of(description, trusted=True) == thing
    assert thing_from(thing.model_dump()) == thing


VALID = [
    yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parents[1] / "data" / "descriptions" / "valid").iterdir())
]


@settings(deadline=None)
@given(st.data(), text(6).filter(lambda one: not one.startswith("@")), json_values, names)
def test_every_valid_description_comes_back_from_its_record(
    data: st.DataObject, member: str, value: Any, tenant: str
) -> None:
    original: dict[str, Any] = data.draw(st.sampled_from([*VALID, weather, describe(billing)]))
    description = copy.deepcopy(original)
    holder: Any = description
    for step in data.draw(st.sampled_from([(), *paths_in(original)])):
        holder = holder[step]
    assume(isinstance(holder, dict))
    holder[member] = value  # what nobody knows, anywhere
    if data.draw(st.booleans()) and len(description) > 1:
        del description[data.draw(st.sampled_from(sorted(description)))]
    assume(not description_faults(description))

    thing = thing_of(description, tenant=tenant)

    # As text: true is not 1, and 1.0 is not 1. The members of an object have no order.
    written = json.dumps(describe(thing), sort_keys=True)
    assert written == json.dumps(description, sort_keys=True)
    assert thing_of(json.loads(json.dumps(describe(thing))), tenant=tenant) == thing
    assert faults_of(thing) == []


def test_the_largest_thing_is_described_within_one_nats_message() -> None:
    many = [
        {"id": "/" * (NAME_BYTES - 3) + f"{n:03}", "examples": ["ä" * 290]}
        for n in range(CAPABILITIES)
    ]
    thing = thing_from({"name": "ä" * 64, "tenant": "/" * NAME_BYTES, "capabilities": many})
    size = len(json.dumps(thing.model_dump(), ensure_ascii=False).encode())
    assert size > 0.9 * THING_BYTES

    assert len(json.dumps(describe(thing), ensure_ascii=False).encode()) < 1024 * 1024


def test_a_description_of_another_vendor_is_taken() -> None:
    assert description_faults(weather) == []

    thing = thing_of(weather, tenant="acme")

    assert (thing.name, thing.tenant, thing.subset) == ("Weather Agent", "acme", "stable")
    assert thing.version == "1.0.0"
    assert [one.id for one in thing.capabilities] == ["urn:example:forecast", "getWeather"]
    assert thing.metadata == {"lmos:vendor": {"lmos:name": "Example"}}
    assert thing.id == id_of(thing) == "urn:uuid:6f1d3a7a-1f97-4e6b-b45f-f3c2e1c84c77"
    assert describe(thing) == weather


def test_an_action_that_does_not_say_so_is_not_idempotent() -> None:
    forecast, get_weather = thing_of(weather).capabilities

    assert get_weather.idempotent is False
    assert get_weather.output == {"type": "string"}
    # Without an action nothing is stated, and our default holds.
    assert forecast.idempotent is True


def test_tenant_and_subset_are_read_where_the_id_does_not_say_them() -> None:
    thing = thing_of({**weather, "mesh:tenant": "acme", "mesh:subset": "canary"}, tenant="demo")

    assert (thing.tenant, thing.subset) == ("acme", "canary")


def test_the_title_is_free_where_the_id_names_the_thing() -> None:
    assert thing_of({**weather, "id": "urn:lmos-mesh:acme:weather:stable"}).name == "weather"


@pytest.mark.parametrize(
    ("description", "field", "said"),
    [
        (changed("title"), "/title", "is missing"),
        (changed("title", to=3), "/title", "must be a string, not a number"),
        (changed("title", to=""), "/title", "is empty"),
        (changed("security"), "/security", "is missing"),
        (changed("security", to=[]), "/security", "must have at least 1 entry"),
        (changed("security", to=3), "/security", "must be a string or an array, not a number"),
        (changed("security", to="x"), "/security", 'names "x", which securityDefinitions does not'),
        (changed("id", to="no uri"), "/id", "must be an absolute URI"),
        (changed("id", to="urn:lmos-mesh:a"), "/id", "must be urn:lmos-mesh:{tenant}:{name}:"),
        (changed("id", to="urn:lmos-mesh:a::b"), "/id", "must be urn:lmos-mesh:{tenant}:{name}:"),
        (changed("id", to="urn:lmos-mesh:a:%ff:b"), "/id", "percent-encoded as UTF-8"),
        (changed("id", to="urn:lmos-mesh:a:%0A:b"), "/id", "is empty"),
        (changed("id", to="urn:lmos-mesh:a:%c3%bc:b"), "/id", "as urn:lmos-mesh:a:%C3%BC:b"),
        (changed("@context"), "/@context", "is missing"),
        (changed("@context", 1, "mesh", of={**weather, "mesh:tenant": "a"}), "/@context", "mesh"),
        (changed("@context", 1, "lmos"), "/@context", 'must declare the prefix "lmos"'),
        (changed("@context", 0), "/@context", 'must be "https://www.w3.org/2022/wot/td/v1.1"'),
        (changed("@context", 1, "ex", to={"@id": "x"}), "/@context", "objects of prefixes"),
        (changed("@type"), "/@type", 'is missing; it must be "lmos:Agent" or "lmos:Tool"'),
        (changed("@type", to="ex:A"), "/@type", 'must be, or include, "lmos:Agent"'),
        (changed("@type", to=["lmos:Agent", "lmos:Tool"]), "/@type", "and not both"),
        (changed("version", to="1.0"), "/version", "must be an object, not a string"),
        (changed("version", to={}), "/version/instance", "is missing"),
        (changed("version", to={"instance": "x"}), "/version/instance", "is not a version"),
        (changed("created", to="today"), "/created", "must be a date and time of RFC 3339"),
        (changed("links", 0, "href"), "/links/0/href", "is missing"),
        (changed("links", 0, "hreflang", to="?"), "/links/0/hreflang", "must be a language tag"),
        (
            changed("links", 0, to={"href": "a", "rel": "icon", "sizes": "big"}),
            "/links/0/sizes",
            "must be sizes like 16x16",
        ),
        (changed("links", 0, "sizes", to="1x1"), "/links/0", "must not have sizes"),
        (changed("forms", to=[]), "/forms", "must have at least 1 entry"),
        (changed("forms", to=[{"href": "coap://a"}]), "/forms/0/op", "is missing"),
        (
            changed("securityDefinitions", "basic_sc", "scheme", to="magic"),
            "/securityDefinitions/basic_sc/scheme",
            "must be nosec, auto, combo, basic,",
        ),
        (
            changed("securityDefinitions", "basic_sc", "in", to="hat"),
            "/securityDefinitions/basic_sc/in",
            'must be "header", "query", "body", "cookie" or "auto", not "hat"',
        ),
        (
            changed("securityDefinitions", "basic_sc", "scheme"),
            "/securityDefinitions/basic_sc/scheme",
            "is missing",
        ),
        (
            changed("securityDefinitions", "both", to={"scheme": "combo"}),
            "/securityDefinitions/both/oneOf",
            "is missing",
        ),
        (
            changed(
                "securityDefinitions",
                "both",
                to={"scheme": "combo", "oneOf": ["basic_sc", "gone"]},
            ),
            "/securityDefinitions/both/oneOf/1",
            'names "gone"',
        ),
        (
            changed(
                "securityDefinitions",
                "both",
                to={"scheme": "combo", "oneOf": ["basic_sc"] * 2, "allOf": ["basic_sc"] * 2},
            ),
            "/securityDefinitions/both",
            "combines members that exclude each other",
        ),
        (
            changed("securityDefinitions", "own", to={"scheme": "auto", "name": "x"}),
            "/securityDefinitions/own",
            "must not have name",
        ),
        (changed("actions", to=[]), "/actions", "must be an object, not an array"),
        (changed("actions", "getWeather", "forms"), "/actions/getWeather/forms", "is missing"),
        (
            changed("actions", "getWeather", "forms", 0, "op", to="foo"),
            "/actions/getWeather/forms/0/op",
            'must be "invokeaction", "queryaction" or "cancelaction", not "foo"',
        ),
        (
            changed("actions", "getWeather", "forms", 0, "security", to=["basic_sc", "gone"]),
            "/actions/getWeather/forms/0/security/1",
            'names "gone"',
        ),
        (
            changed("actions", "getWeather", "input", "type", to=["string", "null"]),
            "/actions/getWeather/input/type",
            "must be a string, not an array",
        ),
        (
            changed("actions", "getWeather", "input", "items", to={"type": "strig"}),
            "/actions/getWeather/input/items/type",
            'must be "boolean", "integer", "number", "string", "object", "array" or "null", not',
        ),
        (
            changed("actions", "getWeather", "input", "enum", to=[{}, {}]),
            "/actions/getWeather/input/enum",
            "has the same entry twice",
        ),
        (
            changed("actions", "getWeather", "input", "minItems", to=-1),
            "/actions/getWeather/input/minItems",
            "must be at least 0",
        ),
        (
            changed("actions", "getWeather", "idempotent", to="yes"),
            "/actions/getWeather/idempotent",
            "must be true or false, not a string",
        ),
        (
            changed("actions", "a/b", to={"forms": [{}]}),
            "/actions/a~1b/forms/0/href",
            "is missing",
        ),
        (
            changed("events", "feedback", "forms", 0, "op", to=["readproperty"]),
            "/events/feedback/forms/0/op/0",
            'must be "subscribeevent" or "unsubscribeevent", not "readproperty"',
        ),
        (changed("lmos:capabilities", to={}), "/lmos:capabilities", "must be an array, not an obj"),
        (changed("lmos:capabilities", 0, to=3), "/lmos:capabilities/0", "must be an object, not a"),
        (changed("lmos:capabilities", 1, "name"), "/lmos:capabilities/1/id", "is empty, and so is"),
        (
            changed("lmos:capabilities", 0, "version", to="one"),
            "/lmos:capabilities/0/version",
            "'one' is not a version",
        ),
        (
            changed("lmos:capabilities", 0, "examples", to=["a", "a"]),
            "/lmos:capabilities/0/examples/1",
            '"a" is there already',
        ),
        (
            changed("lmos:capabilities", 0, "id", to="getWeather"),
            "/lmos:capabilities/1/name",
            '"getWeather" is the id of capability 0 already',
        ),
        (changed("lmos:metadata", to=[]), "/lmos:metadata", "must be an object, not an array"),
        (changed("mesh:supportedChannels", to="*"), "/mesh:supportedChannels", "must be an array"),
        (changed("mesh:tenant", to=""), "/mesh:tenant", "is empty"),
        (changed("mesh:external", to=1), "/mesh:external", "must be true or false"),
        (changed("mesh:fields", to=[]), "/mesh:fields", "must be an object, not an array"),
        (
            changed("mesh:fields", to={"name": "x"}),
            "/mesh:fields/name",
            "has a term of its own; move it there",
        ),
        (
            changed("mesh:subset", to="stable", of=describe(billing)),
            "/mesh:subset",
            'is "stable", and the id says "canary"; make them agree',
        ),
        (changed("ex:colour", to=b"x"), "/ex:colour", "must be a JSON value, not bytes"),
        (changed("ex:colour", to=float("nan")), "/ex:colour", "must be a finite number"),
        (changed("ex:colour", to="\ud800"), "/ex:colour", "is not Unicode text"),
    ],
)
def test_a_faulty_description_is_refused_where_it_is_wrong(
    description: dict[str, Any], field: str, said: str
) -> None:
    faults = description_faults(description)

    assert set(fields(faults)) == {field}
    assert any(said in fault["description"] for fault in faults)


def test_every_fault_is_named_at_once_and_none_twice() -> None:
    faults = description_faults(
        {
            "@context": "https://www.w3.org/2022/wot/td/v1.1",
            "title": 3,
            "security": "gone",
            "securityDefinitions": {"a": {"scheme": "nosec"}},
            "lmos:capabilities": [{"id": "a", "version": "x"}, {"id": "a"}],
            "actions": {"a": {"input": {"type": "strig"}}},
        }
    )

    assert sorted(fields(faults)) == [
        "/@context",
        "/@type",
        "/actions/a/forms",
        "/actions/a/input/type",
        "/lmos:capabilities/0/version",
        "/lmos:capabilities/1/id",
        "/security",
        "/title",
    ]


def test_reading_names_the_faults_of_lmos_where_they_are_written() -> None:
    faulty = changed("lmos:capabilities", 0, "version", to="one")
    faulty["actions"]["getWeather"]["output"] = 7

    with pytest.raises(InvalidDescription) as caught:
        thing_of(faulty)

    assert fields(caught.value.details["faults"]) == [
        "/lmos:capabilities/0/version",
        "/actions/getWeather/output",
    ]
    assert str(caught.value).startswith('agent "Weather Agent" is refused: ')


@pytest.mark.parametrize("document", [None, 3, "x", [], [weather]])
def test_what_is_no_object_is_refused(document: Any) -> None:
    [fault] = description_faults(document)

    assert fault["field"] == ""
    assert fault["description"].startswith("must be an object, not ")


def test_a_thing_without_the_vocabulary_of_lmos_is_valid_for_the_w3c() -> None:
    lamp: dict[str, Any] = {
        "@context": "https://www.w3.org/2022/wot/td/v1.1",
        "title": "Lamp",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": ["nosec_sc"],
    }

    assert td_faults(lamp).listed() == []
    assert fields(description_faults(lamp)) == ["/id"]
    assert description_faults({**lamp, "id": "urn:example:lamp"}) == []
    assert fields(td_faults({**lamp, "@context": []}).listed()) == ["/@context"]
    assert fields(td_faults({**lamp, "@type": "tm:ThingModel"}).listed()) == ["/@type"]


def test_what_is_nested_without_end_is_refused_and_breaks_nothing() -> None:
    endless: Any = {}
    for _ in range(100_000):
        endless = {"a": endless}

    for member in ("title", "@type", "@context", "id", "mesh:tenant", "lmos:metadata", "actions"):
        assert description_faults({**weather, member: endless})


def test_schemas_may_be_nested_as_deeply_as_a_thing_allows() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(NESTING):
        schema = {"type": "array", "items": schema}
    thing = thing_from({"name": "a", "capabilities": [{"id": "a", "input": schema}]})

    assert description_faults(describe(thing)) == []


def test_of_a_huge_description_only_the_first_fault_is_told() -> None:
    faults = description_faults({**weather, "actions": {str(n): 3 for n in range(20_000)}})

    assert faults == [
        {"field": "", "description": "has over 10000 values, too many to name every fault at once"},
        {"field": "/actions/0", "description": "must be an object, not a number"},
    ]


@settings(deadline=None)
@given(st.data(), json_values | st.sampled_from(["lmos:Tool", "urn:lmos-mesh:a:b:c", "nosec", b""]))
def test_whatever_is_wrong_the_verdict_is_faults_and_never_an_exception(
    data: st.DataObject, value: Any
) -> None:
    original = data.draw(st.sampled_from([weather, describe(billing)]))
    path = data.draw(st.sampled_from(paths_in(original)))
    document = changed(*path, to=value, of=original)

    faults = description_faults(document)

    json.dumps(faults, ensure_ascii=False).encode()
    if not faults:
        assert faults_of(thing_of(document)) == []


def test_the_schema_is_the_one_that_its_notice_names() -> None:
    schemas = files("lmos_mesh.schemas")
    [noted] = re.findall(r"SHA-256: ([0-9a-f]{64})", (schemas / "NOTICE").read_text("utf-8"))

    digest = hashlib.sha256((schemas / "td-json-schema-validation.json").read_bytes())

    assert digest.hexdigest() == noted
    assert "W3C Software Notice and Document License" in (schemas / "LICENSE").read_text("utf-8")


def test_the_example_in_the_documentation_is_what_is_made() -> None:
    page = Path(__file__).parents[2] / "docs" / "descriptions.md"
    example = re.findall(r"```json\n(\{.*?\n\})\n```", page.read_text("utf-8"), re.DOTALL)[0]
    description = json.loads(example)

    assert description_faults(description) == []
    assert describe(thing_of(description)) == description


lamp: dict[str, Any] = {
    "@context": "https://www.w3.org/2022/wot/td/v1.1",
    "id": "urn:example:lamp",
    "title": "Lamp",
    "version": {"instance": "build 7"},
    "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
    "security": ["nosec_sc"],
    "properties": {"lit": {"type": "boolean", "forms": [{"href": "http://lamp.example/lit"}]}},
    "actions": {
        "fade": {
            "title": "Fade",
            "description": "Changes slowly.",
            "input": {"type": "number"},
            "forms": [{"href": "http://lamp.example/fade"}],
        }
    },
    "events": {"hot": {"forms": [{"href": "http://lamp.example/hot"}]}},
}


def test_a_thing_of_another_vendor_is_known_by_its_id() -> None:
    thing = thing_of(lamp, tenant="acme")

    assert (thing.kind, thing.name, thing.title) == ("thing", "urn:example:lamp", "Lamp")
    assert (thing.tenant, thing.subset) == ("acme", "stable")
    assert thing.properties == (
        Property(name="lit", schema={"type": "boolean"}, readable=True, writable=True),
    )
    assert thing.events == (Event(name="hot"),)
    # Its actions are what it can do; its version is none of ours.
    [fade] = thing.capabilities
    assert (fade.id, fade.name, fade.description) == ("fade", "Fade", "Changes slowly.")
    assert fade.input == {"type": "number"}
    assert thing.version == "1.0.0"
    assert describe(thing) == lamp


def test_actions_are_capabilities_where_none_are_named() -> None:
    agent = changed("lmos:capabilities")

    assert [one.id for one in thing_of(agent).capabilities] == ["getWeather"]
    assert describe(thing_of(agent)) == agent


def test_properties_and_events_are_reached_over_nats() -> None:
    thing = thing_from(
        {
            "name": "billing",
            "properties": [
                {"name": "currency", "schema": {"type": "string"}, "writable": True},
                {"name": "secret", "readable": False, "writable": True, "description": "Hidden."},
                {"name": "open bills", "schema": {"type": "integer"}, "observable": True},
            ],
            "events": [{"name": "paid", "description": "A bill was paid.", "data": {}}],
        }
    )

    description = describe(thing)

    assert description_faults(description) == []
    root = "nats:lmos.demo.agent.billing.stable.property."
    at_subjects = {
        name: [(form["href"].removeprefix(root), form["op"]) for form in one["forms"]]
        for name, one in description["properties"].items()
    }
    assert at_subjects == {
        "currency": [("currency.read", "readproperty"), ("currency.write", "writeproperty")],
        "secret": [("secret.write", "writeproperty")],
        "open bills": [(f"{subjects.escape('open bills')}.read", "readproperty")],
    }
    assert description["properties"]["secret"]["writeOnly"] is True
    assert description["properties"]["open bills"]["readOnly"] is True
    assert description["events"] == {
        "paid": {
            "description": "A bill was paid.",
            "data": {},
            "forms": [
                {
                    "href": "nats:lmos.demo.event.billing.paid",
                    "op": ["subscribeevent", "unsubscribeevent"],
                    "contentType": "application/json",
                    "nats:envelope": "cloudevents",
                }
            ],
        }
    }
    # Nobody tells when a value changes, so nobody is invited to observe it.
    assert "observable" not in description["properties"]["open bills"]
    currency, secret, bills = thing.properties
    unobserved = (currency, secret, replace(bills, observable=False))
    assert thing_of(description) == thing.model_copy(update={"properties": unobserved})


def test_what_can_be_observed_elsewhere_stays_so() -> None:
    form = {"href": "https://a.example/p", "op": ["observeproperty"], "subprotocol": "sse"}
    bills = {"type": "integer", "observable": True, "forms": [form]}
    description = {**ELSEWHERE, "properties": {"bills": bills}}

    thing = thing_of(description)

    assert [one.observable for one in thing.properties] == [True]
    assert describe(thing) == description


def test_adapters_that_are_there_add_their_forms() -> None:
    thing = thing_from(
        {
            "name": "a b",
            "capabilities": [{"id": "c/d"}],
            "properties": [
                {"name": "p", "writable": True},
                {"name": "q", "readable": False, "writable": True},
                {"name": "r"},
            ],
            "events": [{"name": "e"}],
        }
    )
    kept = describe(thing)
    before = copy.deepcopy(kept)

    shown = reachable(
        kept, thing, [("http", "http://b.example/"), ("mqtt", "mqtt://x"), ("http", "http://a")]
    )

    assert kept == before
    assert description_faults(shown) == []
    forms = shown["actions"]["c/d"]["forms"]
    assert [form["href"].partition(":")[0] for form in forms] == ["nats", "http", "http"]
    assert forms[1] == {
        "href": "http://a/agents/a%20b/stable/actions/c%2Fd",
        "op": "invokeaction",
        "contentType": "application/json",
        "htv:methodName": "POST",
    }
    over_http = {
        name: [form["op"] for form in one["forms"] if form["href"].startswith("http://a/")]
        for name, one in shown["properties"].items()
    }
    assert over_http == {
        "p": ["readproperty", "writeproperty"],
        "q": ["writeproperty"],
        "r": ["readproperty"],
    }
    assert shown["events"]["e"]["forms"][1]["subprotocol"] == "sse"
    assert reachable(kept, thing, []) == kept


def test_what_speaks_for_itself_keeps_its_own_forms() -> None:
    for description in (lamp, weather, {**weather, "mesh:external": True}):
        shown = reachable(description, thing_of(description), [("http", "http://a")])

        assert shown == description


def test_a_missing_security_of_an_agent_is_filled_in_and_said() -> None:
    bare = changed("security", of=changed("securityDefinitions"))

    filled, notes = with_security(bare)

    assert notes == ("`security` was missing; `nosec` was filled in",)
    assert description_faults(filled) == []
    assert "security" not in bare
    assert with_security(filled) == (filled, ())


@pytest.mark.parametrize(
    "description",
    [
        weather,
        changed("security"),
        changed("security", of=lamp),
        changed("security", of=changed("securityDefinitions", of=lamp)),
        {"@type": [{"a": 1}]},
    ],
)
def test_nothing_else_is_filled_in(description: dict[str, Any]) -> None:
    assert with_security(description) == (description, ())


def test_an_id_is_given_to_what_has_none() -> None:
    fresh = "urn:uuid:6f1d3a7a-1f97-4e6b-b45f-f3c2e1c84c77"
    agent = {**changed("id"), "mesh:subset": "canary"}

    assert with_id(lamp, tenant="acme", fresh=fresh) == lamp
    assert with_id(changed("id", of=lamp), tenant="acme", fresh=fresh)["id"] == fresh
    assert with_id(agent, tenant="acme", fresh=fresh)["id"] == (
        "urn:lmos-mesh:acme:Weather%20Agent:canary"
    )
    # What has no name gets none from it either.
    assert "id" not in with_id(changed("title", of=agent), tenant="acme", fresh=fresh)


def test_what_a_registry_could_not_have_written_is_refused_though_trusted() -> None:
    with pytest.raises(InvalidDescription) as caught:
        thing_of(changed("lmos:metadata", to=3), trusted=True)

    assert fields(caught.value.details["faults"]) == ["/metadata"]


def test_a_description_that_fits_into_no_message_is_refused() -> None:
    [fault] = description_faults({**lamp, "much": "x" * 1024 * 1024})

    assert fault["field"] == ""
    assert "983040 is the limit" in fault["description"]


def test_every_term_of_ours_is_in_the_published_vocabularies() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "descriptions.md").read_text("utf-8")
    modules = (Path(__file__).parents[2] / "lmos_mesh").glob("description*.py")
    source = "".join(module.read_text("utf-8") for module in modules)
    contexts = {"mesh": "urn:lmos-mesh:vocabulary#", "nats": "urn:lmos-mesh:vocabulary:nats#"}

    for prefix, uri in contexts.items():
        vocabulary = json.loads((docs / "vocabulary" / f"{prefix}.jsonld").read_text("utf-8"))
        published = {one["@id"] for one in vocabulary["@graph"]} - {uri}

        assert vocabulary["@context"][prefix] == uri
        assert set(re.findall(rf'"({prefix}:[A-Za-z]+)"', source)) == published
        assert set(re.findall(rf"`({prefix}:[A-Za-z]+)`", page)) == published


@pytest.mark.parametrize(
    ("description", "called"),
    [
        ({"@type": "lmos:Agent", "title": "billing"}, 'agent "billing"'),
        ({"@type": ["x:Y", "lmos:Tool"], "title": "sum"}, 'tool "sum"'),
        ({"title": "Lamp", "id": "urn:x:lamp"}, 'thing "Lamp"'),
        ({"id": "urn:x:lamp"}, 'thing "urn:x:lamp"'),
        ({"@type": 7, "title": []}, "thing without a name"),
    ],
)
def test_a_refused_description_is_called_what_it_is(
    description: dict[str, Any], called: str
) -> None:
    assert named_in_words(description) == called
