"""Which Things fit a question, and in which order."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.description import describe
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.membership import Lease, Membership, Served, ThingKey
from lmos_mesh.messages import FindThings
from lmos_mesh.things import thing_from
from lmos_mesh_registry.catalog import find, shown

billing: dict[str, Any] = {
    "name": "billing",
    "version": "1.2.0",
    "description": "Answers questions about bills.",
    "capabilities": [
        {
            "id": "view-bill",
            "name": "View bill",
            "version": "1.4.2",
            "examples": ["show my invoice"],
            "tags": ["money"],
        },
        {"id": "pay", "version": "2.0.0-rc.1", "description": "Pays a bill."},
    ],
    "supported_channels": ["web", "ivr"],
}
weather: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather.",
    "capabilities": [{"id": "forecast", "version": "1.0.0"}],
}


def registered(*things: dict[str, Any], live: tuple[str, ...] = ()) -> Membership:
    membership = Membership()
    for revision, raw in enumerate(things, start=1):
        thing = thing_from({"tenant": "demo", **raw})
        value = json.dumps(describe(thing)).encode()
        membership.apply_entry(
            subjects.key(thing.tenant, thing.name, thing.subset), value, revision
        )
        if not live or thing.name in live:
            served = (Served(name=thing.name, subset=thing.subset, version=thing.version),)
            lease = Lease(instance=f"i-{revision}", things=served, host="h", pid=7, started=3.0)
            key = subjects.key(thing.tenant, lease.instance)
            membership.apply_lease(key, lease.model_dump_json().encode(), revision)
    return membership


def names(membership: Membership, *, tenant: str = "demo", **wanted: Any) -> list[str]:
    found = find(membership, tenant, FindThings(**wanted))
    return [one.key.name for one, _ in found.entries]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["billing", "weather"]),
        ({"name": "billing"}, ["billing"]),
        ({"name": "bill"}, []),
        ({"capability": "view-bill"}, ["billing"]),
        ({"capability": "View bill"}, ["billing"]),
        ({"capability": "view bill"}, []),
        ({"capability": "view-bill", "version": "^1.2"}, ["billing"]),
        ({"capability": "view-bill", "version": ">=1.4.2 <2"}, ["billing"]),
        ({"capability": "view-bill", "version": "[1.0,2.0["}, ["billing"]),
        ({"capability": "view-bill", "version": "1.4.+"}, ["billing"]),
        ({"capability": "view-bill", "version": "~1.3"}, []),
        ({"capability": "view-bill", "version": "2.x || 1.4.2"}, ["billing"]),
        ({"capability": "pay", "version": "2.x"}, []),  # a candidate for a release is none
        ({"capability": "pay", "version": ">=2.0.0-rc.0"}, ["billing"]),
        ({"channel": "ivr"}, ["billing", "weather"]),  # weather serves every channel
        ({"channel": "fax"}, ["weather"]),
        ({"subset": "canary"}, []),
        ({"kind": "tool"}, []),
        ({"channel": "web", "capability": "forecast", "name": "weather"}, ["weather"]),
    ],
)
def test_every_given_condition_must_hold(wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(registered(billing, weather), **wanted) == expected


def test_things_of_other_tenants_are_never_found() -> None:
    membership = registered(billing, {**weather, "tenant": "acme"})

    assert names(membership) == ["billing"]
    assert names(membership, tenant="acme") == ["weather"]
    assert names(membership, tenant="*") == []


def test_only_what_is_live_is_found_unless_asked_otherwise() -> None:
    membership = registered(billing, weather, live=("weather",))

    assert names(membership) == ["weather"]
    assert names(membership, live=False) == ["billing"]
    assert names(membership, live=None) == ["billing", "weather"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weather bills", ["billing", "weather"]),
        ("the WEATHER, please", ["weather"]),
        ("invoice", ["billing"]),  # an example says so
        ("money", ["billing"]),  # a tag says so
        ("view_bill", ["billing"]),
        ("nothing like it", []),
        ("?!", []),
    ],
)
def test_text_finds_whoever_shares_words_with_it(text: str, expected: list[str]) -> None:
    assert names(registered(billing, weather), text=text) == expected


def test_whoever_shares_most_words_comes_first() -> None:
    membership = registered(billing, weather)

    assert names(membership, text="tells the weather about bills") == ["weather", "billing"]


def test_the_limit_cuts_the_list_and_not_the_count() -> None:
    found = find(registered(billing, weather), "demo", FindThings(limit=1))

    assert [one.key.name for one, _ in found.entries] == ["billing"]
    assert found.total == 2


@pytest.mark.parametrize(
    "wanted", [{"capability": "view-bill", "version": "not a range"}, {"version": "^1.0"}]
)
def test_a_range_that_cannot_be_used_is_refused_by_name(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match="/version"):
        find(Membership(), "demo", FindThings(**wanted))


def test_a_thing_is_shown_with_its_instances_and_its_description_if_asked() -> None:
    membership = registered(billing)
    entered = membership.get(ThingKey("demo", "billing", "stable"))
    assert entered is not None

    brief = shown(entered, membership, whole=False)
    whole = shown(entered, membership, whole=True)

    assert brief.live
    assert [(one.instance, one.version, one.pid) for one in brief.instances] == [
        ("i-1", "1.2.0", 7)
    ]
    assert brief.description is None
    assert [one.id for one in brief.capabilities] == ["view-bill", "pay"]
    assert brief.channels == ("web", "ivr")
    assert whole.description == entered.description


texts = st.text(alphabet="ab _", max_size=6)


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["demo", "acme"]), texts)),
    st.builds(
        FindThings,
        name=st.none() | st.sampled_from("xyz"),
        text=st.none() | texts,
        live=st.none() | st.booleans(),
        limit=st.integers(1, 3),
    ),
)
def test_what_is_found_is_a_part_of_what_is_there_in_a_fixed_order(
    things: list[tuple[str, str, str]], wanted: FindThings
) -> None:
    membership = registered(
        *({"name": name, "tenant": tenant, "description": said} for name, tenant, said in things)
    )

    found = find(membership, "demo", wanted)
    entries = [one for one, _ in found.entries]

    assert found == find(membership, "demo", wanted)
    assert len(entries) == min(found.total, wanted.limit)
    assert all(one.key.tenant == "demo" for one in entries)
    assert all(wanted.name in (None, one.key.name) for one in entries)
    assert all(wanted.live in (None, membership.live(one.key)) for one in entries)
