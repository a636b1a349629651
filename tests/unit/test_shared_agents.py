"""Whom a tenant means by a name: its own, else the shared agent that supports it; nobody else's."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import Agent, subjects
from lmos_mesh.description import describe
from lmos_mesh.indices import folded
from lmos_mesh.membership import Membership
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import SHARED, Thing, ThingKey

TENANTS = ("a", "b", SHARED)
NAMES = ("billing", "weather", "mail")
SUBSETS = ("stable", "canary")

keys = st.builds(
    ThingKey, st.sampled_from(TENANTS), st.sampled_from(NAMES), st.sampled_from(SUBSETS)
)
told = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(("agent", "agent", "agent", "tool")),
        "supported_tenants": st.sampled_from(((), ("a",), ("b",), ("a", "b"), ("c",))),
        "capability": st.sampled_from(("view", "send")),
    }
)
changes = st.lists(st.tuples(keys, st.none() | told), max_size=30)


def thing_of(key: ThingKey, said: dict[str, Any]) -> Thing:
    capability = {"id": said["capability"], "examples": [f"please {said['capability']} it"]}
    return thing_from(
        {
            **key._asdict(),
            "kind": said["kind"],
            "supported_tenants": list(said["supported_tenants"]),
            "capabilities": [capability],
        }
    )


def settled(changed: list[tuple[ThingKey, dict[str, Any] | None]]) -> Membership:
    membership = Membership()
    for revision, (key, said) in enumerate(changed, 1):
        value = json.dumps(describe(thing_of(key, said))).encode() if said else None
        membership.apply_entry(subjects.key(*key), value, revision)
    return membership


def expected(
    changed: list[tuple[ThingKey, dict[str, Any] | None]], tenant: str
) -> dict[ThingKey, Thing]:
    """What the rule says, in its own words."""
    there = {key: said for key, said in dict(changed).items() if said is not None}
    own = {key: said for key, said in there.items() if key.tenant == tenant}
    shared = {
        key: said
        for key, said in there.items()
        if key.tenant == SHARED
        and said["kind"] == "agent"
        and (not said["supported_tenants"] or tenant in said["supported_tenants"])
        and ThingKey(tenant, key.name, key.subset) not in own
    }
    return {key: thing_of(key, said) for key, said in {**shared, **own}.items()}


@given(changes, st.sampled_from((*TENANTS, "c", "d")))
def test_a_tenant_means_its_own_and_then_the_shared_that_support_it(
    changed: list[tuple[ThingKey, dict[str, Any] | None]], tenant: str
) -> None:
    membership, there = settled(changed), expected(changed, tenant)

    for name in NAMES:
        for subset in SUBSETS:
            meant = membership.meant(tenant, name, subset)
            assert meant == next((key for key in there if key[1:] == (name, subset)), None)
            for one in (*TENANTS, "c"):
                key = ThingKey(one, name, subset)
                assert membership.is_meant(tenant, key) == (key in there)


@given(changes, st.sampled_from((*TENANTS, "c", "d")))
def test_whatever_is_asked_about_a_tenant_is_about_those_it_means(
    changed: list[tuple[ThingKey, dict[str, Any] | None]], tenant: str
) -> None:
    membership, there = settled(changed), expected(changed, tenant)

    def found(**wanted: Any) -> set[ThingKey]:
        return {one.key for one in membership.looked_up(tenant, **wanted)}

    assert found() == there.keys() == {one.key for one in membership.for_tenant(tenant)}
    assert len(membership.looked_up(tenant)) == len(there)
    assert found(kind="agent") == {key for key in there if there[key].kind == "agent"}
    assert found(among=[ThingKey(one, "mail", "stable") for one in TENANTS]) == {
        key for key in there if key[1:] == ("mail", "stable")
    }
    for capability in ("view", "send"):
        able = {key for key in there if there[key].capabilities[0].id == capability}
        assert found(capability=capability) == able
        shares = membership.words(tenant, f"please {capability} it")
        assert shares.keys() <= there.keys()
        assert able <= shares.keys()
        assert len(membership.words(tenant, f"please {capability} it", 2)) == min(2, len(shares))
    for name in NAMES:
        called = {key for key in there if folded(key.name) == name}
        assert found(name=name) == called == set(membership.called(tenant, name))
        assert membership.subsets(tenant, name) == sorted(key.subset for key in called)
        assert (name in membership.near(tenant, name)) == bool(called)
    for entered in membership:
        by_id = membership.by_id(tenant, entered.id)
        assert (by_id is not None) == (entered.key in there)


def test_a_hidden_one_with_the_same_id_is_not_in_the_way() -> None:
    membership = Membership()
    for revision, tenant in enumerate((SHARED, "a"), 1):
        key = ThingKey(tenant, "billing", "stable")
        thing = thing_from({**key._asdict(), "id": "urn:example:billing"})
        membership.apply_entry(subjects.key(*key), json.dumps(describe(thing)).encode(), revision)

    found = [membership.by_id(tenant, "urn:example:billing") for tenant in ("a", "b")]

    assert [one.key.tenant for one in found if one] == ["a", SHARED]


@pytest.mark.parametrize(
    ("tenants", "own", "home", "supported"),
    [
        ((), "a", "a", []),
        (("a",), "a", "a", ["a"]),
        (("b",), "a", SHARED, ["a", "b"]),
        (("b", "a"), "a", SHARED, ["b", "a"]),
        (("b",), SHARED, SHARED, ["b"]),
        ((), SHARED, SHARED, []),
    ],
)
def test_an_agent_that_serves_others_too_is_served_from_shared(
    tenants: tuple[str, ...], own: str, home: str, supported: list[str]
) -> None:
    agent = Agent("billing", tenants=tenants)

    thing = agent.thing(own)

    assert agent.home(own) == thing["tenant"] == home
    assert thing["supported_tenants"] == supported
