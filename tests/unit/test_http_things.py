"""What the directory makes of requests and Descriptions, before anything is asked of the mesh."""

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lmos_mesh.description import describe, reachable, thing_of
from lmos_mesh.errors import InvalidDescription, InvalidMessage
from lmos_mesh.events import CloudEvent, merge_patch
from lmos_mesh.messages import FoundThing, Registration
from lmos_mesh.schemas.thing_description import td_faults
from lmos_mesh.things import Capability, Property, Thing
from lmos_mesh_http.bodies import read_object, read_value, value_of
from lmos_mesh_http.directory_td import directory_td
from lmos_mesh_http.enriched import DISCOVERY, draft_of, enriched, id_faults, merged, patched
from lmos_mesh_http.event_routes import event_bytes
from lmos_mesh_http.negotiation import Conditions, chosen, etag, tags
from lmos_mesh_http.places import Places, reachable_url, thing_path

TD_CONTEXT = "https://www.w3.org/2022/wot/td/v1.1"
LAMP: dict[str, Any] = {
    "@context": TD_CONTEXT,
    "id": "urn:example:lamp",
    "title": "Lamp",
    "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
    "security": "nosec_sc",
}
TIMES = {"created": "2026-01-01T00:00:00Z", "modified": "2026-01-02T00:00:00Z"}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=4)


# -- merge patches --


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # Those of RFC 7396, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_its_standard_says(target: Any, patch: Any, result: Any):
    assert merged(target, patch) == result


def without_null(value: Any) -> Any:
    """As a merge patch can make it: no object of it has a member that is null."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {k: without_null(v) for k, v in members.items() if v is not None}
    return value


@given(OBJECTS, OBJECTS)
def test_the_difference_that_events_tell_leads_from_one_to_the_other(
    before: dict[str, Any], after: dict[str, Any]
):
    before, after = without_null(before), without_null(after)

    assert merged(before, merge_patch(before, after)) == after


@given(OBJECTS, OBJECTS)
def test_a_patch_changes_nothing_of_what_it_is_applied_to(
    target: dict[str, Any], patch: dict[str, Any]
):
    held = json.dumps(target)

    merged(target, patch)

    assert json.dumps(target) == held


# -- what is added and taken off --


def found(description: dict[str, Any], **registration: Any) -> FoundThing:
    return FoundThing(
        name="x",
        description=description,
        registration=Registration.model_validate(TIMES | registration),
        live=False,
        revision=7,
    )


@pytest.mark.parametrize("context", [TD_CONTEXT, [TD_CONTEXT, {"x": "urn:x"}]])
def test_what_is_shown_can_be_sent_back_and_means_the_same(context: Any):
    description = LAMP | {"@context": context}

    shown = enriched(found(description))

    assert shown["registration"] == {**TIMES, "mesh:live": False}
    assert DISCOVERY in shown["@context"]
    assert shown["@context"][0] == TD_CONTEXT
    assert not td_faults(shown).listed()
    assert draft_of(shown, id="urn:example:lamp").description == description


def test_a_context_that_names_discovery_itself_is_left_alone():
    description = LAMP | {"@context": [TD_CONTEXT, DISCOVERY, {"x": "urn:x"}]}

    assert enriched(found(description))["@context"] == description["@context"]
    assert draft_of(description, id=LAMP["id"]).description == description


def test_a_time_to_live_is_stronger_than_a_time_of_expiry():
    sent = LAMP | {"registration": {"ttl": 60, "expires": "2026-01-01T00:00:00Z"}}

    draft = draft_of(sent, id=LAMP["id"])

    assert (draft.ttl_s, draft.expires) == (60, None)
    assert "registration" not in draft.description


def test_a_time_of_expiry_is_passed_on():
    sent = LAMP | {"registration": TIMES | {"expires": "2030-01-01T00:00:00+01:00"}}

    assert draft_of(sent, id=LAMP["id"]).expires == "2030-01-01T00:00:00+01:00"


@pytest.mark.parametrize(
    ("registration", "field"),
    [
        ([], "/registration"),
        ({"ttl": "60"}, "/registration/ttl"),
        ({"ttl": 0}, "/registration/ttl"),
        ({"ttl": -1}, "/registration/ttl"),
        ({"ttl": True}, "/registration/ttl"),
        ({"expires": 5}, "/registration/expires"),
        ({"expires": "tomorrow"}, "/registration/expires"),
        ({"expires": "2030-01-01T00:00:00"}, "/registration/expires"),
        ({"expires": "2030-01-01"}, "/registration/expires"),
    ],
)
def test_a_registration_that_cannot_be_used_is_refused_at_its_place(registration: Any, field: str):
    with pytest.raises(InvalidDescription) as caught:
        draft_of(LAMP | {"registration": registration}, id=LAMP["id"])

    assert [one["field"] for one in caught.value.details["faults"]] == [field]


@pytest.mark.parametrize("id", ["urn:example:other", 5, None])
def test_the_id_must_be_that_of_the_path(id: Any):
    with pytest.raises(InvalidDescription, match=r"/id: must be 'urn:example:lamp'"):
        draft_of(LAMP | {"id": id}, id="urn:example:lamp")


def test_an_empty_patch_of_what_has_a_ttl_sets_it_again():
    held = found(LAMP, ttl=60.0, expires="2026-01-02T00:01:00Z")

    draft = draft_of(patched(held, {}), id=LAMP["id"])

    assert (draft.description, draft.ttl_s, draft.expires) == (LAMP, 60, None)


def test_a_patch_can_set_and_remove_when_a_thing_expires():
    held = found(LAMP, expires="2026-02-01T00:00:00Z")

    kept = draft_of(patched(held, {"title": "L"}), id=LAMP["id"])
    moved = draft_of(
        patched(held, {"registration": {"expires": "2027-02-01T00:00:00Z"}}), id=LAMP["id"]
    )
    freed = draft_of(patched(held, {"registration": None}), id=LAMP["id"])

    assert kept.expires == "2026-02-01T00:00:00Z"
    assert moved.expires == "2027-02-01T00:00:00Z"
    assert freed.expires is None


def test_forms_that_adapters_lend_are_not_registered():
    agent = Thing(
        name="billing desk",
        tenant="demo",
        capabilities=(Capability(id="view/bill", name="View bill", description="Shows it."),),
        properties=(Property(name="hours", schema={"type": "string"}),),
    )
    own = describe(agent)
    addresses = [("http", "http://a:1"), ("http", "https://b/mesh/")]

    lent = reachable(own, agent, addresses)

    assert lent != own
    assert draft_of(lent, id=own["id"]).description == own


def test_forms_of_things_that_live_elsewhere_are_registered():
    form = {"href": "http://lamp/agents/lamp/stable/actions/on"}
    lamp = LAMP | {"actions": {"on": {"forms": [form]}}}

    assert draft_of(lamp, id=LAMP["id"]).description == lamp


def test_an_agent_that_was_shown_is_the_same_agent():
    agent = Thing(
        name="billing",
        tenant="demo",
        capabilities=(Capability(id="view_bill", name="View bill", description="Shows it."),),
    )
    shown = enriched(found(reachable(describe(agent), agent, [("http", "http://a:1")])))

    assert thing_of(draft_of(shown, id=describe(agent)["id"]).description) == agent


@pytest.mark.parametrize(
    ("id", "said"), [("", "empty"), ("x" * 513, "512"), ("é" * 300, "512"), ("a\nb", "control")]
)
def test_an_id_that_cannot_be_one_is_refused(id: str, said: str):
    assert said in id_faults(id)


# -- headers --


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "application/td+json"),
        ("*/*", "application/td+json"),
        ("application/*", "application/td+json"),
        ("application/json", "application/json"),
        ("application/json, application/td+json", "application/td+json"),
        ("application/td+json;q=0.1, application/json;q=0.9", "application/json"),
        ("text/html, */*;q=0.1", "application/td+json"),
        ("*/*, application/td+json;q=0", "application/json"),
        ("APPLICATION/JSON ; Q=0.5", "application/json"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=much", None),
        ("nonsense", None),
    ],
)
def test_the_answer_has_the_form_that_is_liked_best(accept: str, media_type: str | None):
    assert chosen(accept, ("application/td+json", "application/json")) == media_type


def test_the_tag_of_a_revision_names_it():
    named = tags(etag(7), weak=False)

    assert named is not None
    assert named.names(7)
    assert not named.names(8)


@pytest.mark.parametrize(
    ("headers", "current", "hold"),
    [
        ({}, 0, True),
        ({"if-match": '"7"'}, 7, True),
        ({"if-match": '"6", "7"'}, 7, True),
        ({"if-match": '"6"'}, 7, False),
        ({"if-match": 'W/"7"'}, 7, False),
        ({"if-match": "7"}, 7, False),
        ({"if-match": "*"}, 7, True),
        ({"if-match": "*"}, 0, False),
        ({"if-match": '"somebody else\'s"'}, 7, False),
        ({"if-none-match": "*"}, 0, True),
        ({"if-none-match": "*"}, 7, False),
        ({"if-none-match": 'W/"7"'}, 7, False),
        ({"if-none-match": '"6"'}, 7, True),
        ({"if-match": '"7"', "if-none-match": '"7"'}, 7, False),
    ],
)
def test_conditions_hold_as_http_has_it(headers: dict[str, str], current: int, hold: bool):
    conditions = Conditions.of(headers)

    assert conditions.hold(current) is hold
    assert bool(conditions) is bool(headers)
    if conditions.revision is not None:
        # The registry is told this one and compares by itself.
        assert (conditions.revision == current) is hold


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("mesh.example:8420", "http://mesh.example:8420"),
        ("[::1]:8420", "http://[::1]:8420"),
        ('evil"><script', "http://127.0.0.1:1"),
        ("a b", "http://127.0.0.1:1"),
        ("user@evil", "http://127.0.0.1:1"),
        ("evil/path", "http://127.0.0.1:1"),
        ("", "http://127.0.0.1:1"),
    ],
)
def test_only_a_host_that_is_one_is_given_back(host: str, base: str):
    scope = {"type": "http", "scheme": "http", "headers": [(b"host", host.encode())]}

    assert Places(public="", own="http://127.0.0.1:1").base(Request(scope)) == base


def test_what_operators_say_is_stronger_than_what_a_request_says():
    scope = {"type": "http", "scheme": "http", "headers": [(b"host", b"inside")]}
    places = Places(public="https://mesh.example/a/", own="http://127.0.0.1:1")

    assert places.base(Request(scope)) == places.announced == "https://mesh.example/a"


def test_a_socket_that_listens_everywhere_is_not_announced_as_such():
    assert "0.0.0.0" not in reachable_url("http://0.0.0.0:5", "0.0.0.0", 5)
    assert reachable_url("http://127.0.0.1:5", "127.0.0.1", 5) == "http://127.0.0.1:5"


def test_the_path_of_a_thing_has_its_id_as_one_segment():
    assert thing_path("http://a/b?c#d é") == "/things/http:%2F%2Fa%2Fb%3Fc%23d%20%C3%A9"


# -- bodies --


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"NaN", b"[1e999]", b"18446744073709551616", b'"\\ud800"', b"[" * 500 + b"]" * 500],
)
def test_what_the_mesh_cannot_carry_is_refused(body: bytes):
    with pytest.raises(InvalidMessage):
        value_of(body)


@given(VALUES)
def test_any_other_json_is_taken(value: Any):
    assert value_of(json.dumps(value).encode()) == value


def request(body: bytes, **headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def test_a_web_page_cannot_have_an_agent_act_without_input_unasked():
    assert await read_value(request(b""), limit=9) is None
    with pytest.raises(HTTPException, match="application/json"):
        await read_value(request(b"", origin="http://evil"), limit=9)
    with pytest.raises(HTTPException, match="text/plain"):
        await read_value(request(b"{}", content_type="text/plain"), limit=9)


async def test_only_an_object_can_be_a_description():
    with pytest.raises(InvalidMessage, match="no JSON object"):
        await read_object(
            request(b"[]", content_type="application/json"), limit=9, taken=("application/json",)
        )


# -- what is told --


@pytest.mark.parametrize("named", [True, False])
def test_the_directory_has_a_valid_description(named: bool):
    told = directory_td("http://a:1", tenant="Acme & Söhne", named=named, version="1.0.0")

    assert not td_faults(told).listed()
    assert told["@type"] == "ThingDirectory"
    hrefs = [
        form["href"]
        for kind in ("properties", "actions", "events")
        for one in told[kind].values()
        for form in one["forms"]
    ]
    assert all(("tenant=Acme%20%26%20S%C3%B6hne" in href) is named for href in hrefs)


def cloud_event(type: str, **data: Any) -> CloudEvent:
    return CloudEvent(id="1", source="s", type=type, subject="urn:x", time="", data=data)


@pytest.mark.parametrize(
    ("event", "diff", "name", "told"),
    [
        (cloud_event("lmos.thing.created", id="urn:x", description=LAMP), False, "created", {}),
        (
            cloud_event("lmos.thing.created", id="urn:x", description={"title": "T"}),
            True,
            "created",
            {"title": "T"},
        ),
        (cloud_event("lmos.thing.updated", id="urn:x", diff={"a": None}), False, "updated", {}),
        (
            cloud_event("lmos.thing.updated", id="urn:x", diff={"a": None}),
            True,
            "updated",
            {"a": None},
        ),
        (cloud_event("lmos.thing.deleted", id="urn:x", name="n"), True, "deleted", {}),
    ],
)
def test_an_event_tells_the_id_and_with_diff_what_has_changed(
    event: CloudEvent, diff: bool, name: str, told: dict[str, Any]
):
    lines = event_bytes(42, event, diff=diff).decode().splitlines()

    assert lines[0] == f"event: thing_{name}"
    assert lines[1] == "id: 42"
    assert json.loads(lines[2].removeprefix("data: ")) == {"id": "urn:x"} | told
