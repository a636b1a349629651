"""Who is there and alive must not depend on the order in which the news comes."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.description import describe
from lmos_mesh.liveness import Lease, Served
from lmos_mesh.membership import Membership
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey

billing = ThingKey("demo", "billing", "stable")
weather = ThingKey("demo", "weather", "stable")


def description(key: ThingKey, *, version: str = "1.0.0", **more: Any) -> bytes:
    raw = {"name": key.name, "tenant": key.tenant, "subset": key.subset, "version": version, **more}
    return json.dumps(describe(thing_from(raw))).encode()


def lease(instance: str, *keys: ThingKey, connection: str = "", in_flight: int = 0) -> bytes:
    things = tuple(Served(name=key.name, subset=key.subset, in_flight=in_flight) for key in keys)
    return Lease(instance=instance, connection=connection, things=things).model_dump_json().encode()


def entry_key(key: ThingKey) -> str:
    return subjects.key(*key)


def seen(membership: Membership, keys: Iterable[ThingKey]) -> dict[ThingKey, Any]:
    """All that can be asked of a membership."""
    found: dict[ThingKey, Any] = {}
    for key in keys:
        entered = membership.get(key)
        found[key] = (
            entered and (entered.revision, entered.thing.version),
            membership.instances(key),
            membership.live(key),
        )
    return found


def test_a_thing_is_live_only_while_an_instance_serves_it() -> None:
    membership = Membership()

    assert membership.apply_entry(entry_key(billing), description(billing), 1) == [billing]
    assert not membership.live(billing)

    assert membership.apply_lease("demo.b1", lease("b1", billing), 1) == [billing]
    assert membership.live(billing)
    assert [one.instance for one in membership.instances(billing)] == ["b1"]

    assert membership.apply_lease("demo.b1", None, 2) == [billing]
    assert not membership.live(billing)
    assert membership.get(billing) is not None


def test_a_lease_may_come_before_the_entry() -> None:
    membership = Membership()

    membership.apply_lease("demo.b1", lease("b1", billing), 1)
    membership.apply_entry(entry_key(billing), description(billing), 1)

    assert membership.live(billing)


def test_a_renewal_that_serves_the_same_things_changes_nothing() -> None:
    membership = Membership()
    membership.apply_lease("demo.b1", lease("b1", billing), 1)

    assert membership.apply_lease("demo.b1", lease("b1", billing, in_flight=3), 2) == []

    assert membership.instances(billing)[0].in_flight == 3


def test_a_lease_that_serves_other_things_than_before_names_both() -> None:
    membership = Membership()
    membership.apply_lease("demo.b1", lease("b1", billing), 1)

    changed = membership.apply_lease("demo.b1", lease("b1", weather), 2)

    assert set(changed) == {billing, weather}
    assert not membership.live(billing)
    assert membership.live(weather)


def test_the_last_words_of_the_dead_do_not_wake_them() -> None:
    membership = Membership()
    membership.apply_lease("demo.b1", lease("b1", billing, connection="S:7"), 1)

    assert membership.disconnect("S:7") == [("demo", "b1")]
    assert membership.end_lease("demo", "b1") == [billing]
    assert membership.apply_lease("demo.b1", lease("b1", billing, connection="S:7"), 2) == []
    assert not membership.live(billing)

    # It was only cut off, and is back on a connection of its own.
    assert membership.apply_lease("demo.b1", lease("b1", billing, connection="S:8"), 3) == [billing]


def test_a_disconnect_that_overtakes_the_lease_ends_it_all_the_same() -> None:
    membership = Membership()

    membership.disconnect("S:7")

    assert membership.apply_lease("demo.b1", lease("b1", billing, connection="S:7"), 1) == []
    assert not membership.live(billing)


def test_a_snapshot_ends_what_is_not_in_it() -> None:
    membership = Membership()
    for key in (billing, weather):
        membership.apply_entry(entry_key(key), description(key), 1)
    membership.apply_lease("demo.b1", lease("b1", billing, weather), 1)

    assert membership.keep_entries({entry_key(billing): 1}) == [weather]
    assert set(membership.keep_leases({})) == {billing, weather}

    assert len(membership) == 1
    assert not membership.live(billing)


def test_a_bucket_that_was_made_anew_counts_from_one_again() -> None:
    """A restarted server has forgotten its leases, and with them how far it had counted."""
    membership = Membership()
    membership.apply_entry(entry_key(billing), description(billing), 900)
    membership.apply_lease("demo.b1", lease("b1", billing), 900)
    membership.apply_lease("demo.b2", lease("b2", billing), 901)
    membership.apply_lease("demo.b2", None, 902)

    membership.keep_entries({entry_key(billing): 1})
    membership.keep_leases({"demo.b1": 1})
    membership.apply_entry(entry_key(billing), description(billing, version="2.0.0"), 1)
    membership.apply_lease("demo.b1", lease("b1", billing, in_flight=2), 1)
    membership.apply_lease("demo.b2", lease("b2", billing), 2)

    entered = membership.get(billing)
    assert entered is not None
    assert entered.thing.version == "2.0.0"
    assert [one.in_flight for one in membership.instances(billing)] == [2, 0]
    assert membership.apply_lease("demo.b1", None, 3) == [billing]
    assert [one.instance for one in membership.instances(billing)] == ["b2"]


@pytest.mark.parametrize(
    "value", [b"", b"\xff", b"null", b"1", b"[]", b'"x"', b"{}", b'{"title": 1}', b"[" * 100_000]
)
def test_what_cannot_be_read_is_passed_over(value: bytes) -> None:
    membership = Membership()
    membership.apply_entry(entry_key(billing), description(billing), 1)
    membership.apply_lease("demo.b1", lease("b1", billing), 1)

    assert membership.apply_entry(entry_key(billing), value, 2) == []
    assert membership.apply_lease("demo.b1", value, 2) == []
    assert membership.apply_entry("demo.too.many.tokens", description(billing), 3) == []
    assert membership.apply_lease("few", lease("b1", billing), 3) == []

    assert membership.live(billing)


def test_an_entry_is_what_its_key_says_whatever_the_description_says() -> None:
    membership = Membership()

    membership.apply_entry("acme.billing.canary", description(billing), 1)

    entered = membership.get(ThingKey("acme", "billing", "canary"))
    assert entered is not None
    assert (entered.thing.tenant, entered.thing.subset) == ("acme", "canary")


def test_it_says_when_a_thing_was_first_met() -> None:
    membership = Membership()

    membership.apply_entry(entry_key(billing), description(billing), 1, created=5.0)
    membership.apply_entry(entry_key(billing), description(billing, version="2.0.0"), 2)

    entered = membership.get(billing)
    assert entered is not None
    assert (entered.created, entered.thing.version) == (5.0, "2.0.0")


def test_near_names_are_of_the_same_tenant_only() -> None:
    membership = Membership()
    for number, tenant in enumerate(("demo", "acme"), start=1):
        key = ThingKey(tenant, "billing", "stable")
        membership.apply_entry(entry_key(key), description(key), number)
    hers = ThingKey("acme", "billings", "stable")
    membership.apply_entry(entry_key(hers), description(hers), 3)

    assert membership.near("demo", "biling") == ["billing"]
    assert membership.near("demo", "weather") == []
    assert membership.near("nobody", "billing") == []


# -- news in any order --

KEYS = [billing, weather, ThingKey("acme", "billing", "stable"), ThingKey("demo", "billing", "b")]


class News(NamedTuple):
    key: str
    value: bytes | None
    revision: int


@st.composite
def registry_news(draw: st.DrawFn) -> list[News]:
    """What happened to the registry bucket, in its order."""
    steps = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from("pd")), max_size=12))
    return [
        News(
            entry_key(key),
            description(key, version=f"1.0.{revision}") if step == "p" else None,
            revision,
        )
        for revision, (key, step) in enumerate(steps, start=1)
    ]


@st.composite
def lease_news(draw: st.DrawFn) -> list[News]:
    """What happened to the lease bucket, in its order."""
    served = st.lists(st.sampled_from(KEYS), max_size=3, unique=True)
    steps = draw(
        st.lists(st.tuples(st.sampled_from(["i1", "i2"]), st.none() | served), max_size=12)
    )
    return [
        News(f"demo.{instance}", None if keys is None else lease(instance, *keys), revision)
        for revision, (instance, keys) in enumerate(steps, start=1)
    ]


def told(entries: Sequence[News], leases: Sequence[News]) -> Membership:
    membership = Membership()
    for one in entries:
        membership.apply_entry(*one)
    for one in leases:
        membership.apply_lease(*one)
    return membership


@given(st.data(), registry_news(), lease_news())
def test_every_order_of_the_news_gives_the_same_view(
    data: st.DataObject, entries: list[News], leases: list[News]
) -> None:
    in_order = told(entries, leases)

    shuffled = told(data.draw(st.permutations(entries)), data.draw(st.permutations(leases)))
    # Whoever reads everything anew meanwhile is told some of it twice.
    for one in data.draw(st.lists(st.sampled_from(entries))) if entries else []:
        shuffled.apply_entry(*one)

    assert seen(shuffled, KEYS) == seen(in_order, KEYS)
    assert {one.key for one in shuffled} == {one.key for one in in_order}


@given(st.data(), lease_news())
def test_every_change_of_who_is_live_is_told(data: st.DataObject, leases: list[News]) -> None:
    membership = Membership()

    for one in data.draw(st.permutations(leases)):
        before = {key: membership.serving(key) for key in KEYS}
        changed = set(membership.apply_lease(*one))
        assert {key for key in KEYS if membership.serving(key) != before[key]} <= changed


@given(lease_news())
def test_no_instance_serves_without_a_lease(leases: list[News]) -> None:
    membership = told([], leases)

    held = {(tenant, lease.instance) for tenant, lease, _ in membership.leases()}
    for key in KEYS:
        for instance in membership.instances(key):
            assert (key.tenant, instance.instance) in held


# -- what can be looked up --


def test_an_entry_is_found_by_the_id_of_its_description() -> None:
    membership = Membership()
    membership.apply_entry(entry_key(billing), description(billing), 1)
    theirs = ThingKey("demo", "urn:acme:lamp", "stable")
    lamp = {
        "@context": "https://www.w3.org/2022/wot/td/v1.1",
        "id": "urn:acme:lamp",
        "title": "Lamp",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
    }
    membership.apply_entry(entry_key(theirs), json.dumps(lamp).encode(), 2)

    ours = membership.by_id("demo", "urn:lmos-mesh:demo:billing:stable")
    assert ours is not None
    assert ours.key == billing
    found = membership.by_id("demo", "urn:acme:lamp")
    assert found is not None
    assert found.key == theirs
    assert found.description == lamp
    assert membership.by_id("acme", "urn:acme:lamp") is None
    assert membership.by_id("demo", "urn:acme:chair") is None


def test_when_it_was_registered_is_no_part_of_the_description() -> None:
    membership = Membership()
    raw = json.loads(description(billing))
    times = {"created": "2026-01-01T00:00:00Z", "modified": "2026-01-02T00:00:00Z", "ttl": 60.0}
    value = json.dumps({**raw, "registration": times}).encode()

    membership.apply_entry(entry_key(billing), value, 1)

    entered = membership.get(billing)
    assert entered is not None
    assert entered.registration is not None
    assert entered.registration.model_dump(exclude_none=True) == times
    assert entered.description == raw


def test_a_registration_that_cannot_be_read_takes_nothing_else_with_it() -> None:
    membership = Membership()
    value = json.dumps({**json.loads(description(billing)), "registration": 7}).encode()

    membership.apply_entry(entry_key(billing), value, 1)

    entered = membership.get(billing)
    assert entered is not None
    assert entered.registration is None


def test_adapters_make_their_addresses_known_by_leases_without_things() -> None:
    membership = Membership()
    address = {"protocol": "http", "url": "http://h:1"}
    adapter = Lease(instance="a1", address=address).model_dump_json().encode()
    foreign = Lease(
        instance="f1", address=address, things=(Served(name="x", subset="stable"),)
    ).model_dump_json()

    membership.apply_lease("demo.a1", adapter, 1)
    membership.apply_lease("demo.a2", adapter, 2)
    membership.apply_lease("demo.f1", foreign.encode(), 3)
    membership.apply_lease("acme.a3", lease("a3", billing), 4)

    assert membership.addresses("demo") == [("http", "http://h:1")]
    assert membership.addresses("acme") == []
    membership.end_lease("demo", "a1")
    assert membership.addresses("demo") == [("http", "http://h:1")]
    membership.apply_lease("demo.a2", None, 5)
    assert membership.addresses("demo") == []


def test_whoever_is_on_a_closed_connection_is_known() -> None:
    membership = Membership()
    membership.apply_lease("demo.b1", lease("b1", billing, connection="S:7"), 1)
    membership.apply_lease("demo.b2", lease("b2", billing, connection="S:7"), 2)
    membership.apply_lease("demo.b3", lease("b3", billing, connection="S:8"), 3)
    membership.apply_lease("demo.b2", lease("b2", billing, connection="S:9"), 4)

    assert membership.disconnect("S:7") == [("demo", "b1")]


capabilities = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from(["see", "pay", "go"])},
        optional={
            "name": st.sampled_from(["See", "pay", "Go on"]),
            "tags": st.lists(st.sampled_from(["x", "y"]), unique=True),
            "examples": st.lists(st.sampled_from(["see you", "pay me", "_pay_"]), unique=True),
        },
    ),
    max_size=3,
    unique_by=lambda one: str(one["id"]),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS),
            st.none() | capabilities,
            st.sampled_from(["agent", "tool"]),
            st.sampled_from(["read", "read some", "keep", ""]),
        ),
        max_size=12,
    )
)
def test_after_any_changes_everything_is_listed_as_if_it_were_read_at_once(
    steps: list[tuple[ThingKey, list[dict[str, Any]] | None, str, str]],
) -> None:
    changed = Membership()
    values: dict[ThingKey, bytes] = {}
    for revision, (key, listed, kind, then) in enumerate(steps, start=1):
        if listed is None:
            values.pop(key, None)
            changed.apply_entry(entry_key(key), None, revision)
        else:
            values[key] = description(key, kind=kind, capabilities=listed)
            changed.apply_entry(entry_key(key), values[key], revision)
        if then == "read":
            changed.words(key.tenant, "pay")
        elif then == "read some":
            changed.read_words(1)
        elif then == "keep" and values:
            kept = dict(list(values.items())[1:])
            values = kept
            changed.keep_entries(dict.fromkeys(map(entry_key, kept), 1))
            for one, value in kept.items():
                changed.apply_entry(entry_key(one), value, revision)

    fresh = Membership()
    for key, value in values.items():
        fresh.apply_entry(entry_key(key), value, 1)

    assert changed.listed() == fresh.listed()
    assert len(changed) == len(values)
    for key in KEYS:
        assert changed.words(key.tenant, "see pay") == fresh.words(key.tenant, "see pay")
        assert {one.key for one in changed.in_tenant(key.tenant)} == {
            one for one in values if one.tenant == key.tenant
        }


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), capabilities), max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["billing", "other"]),
            "capability": st.sampled_from(["see", "Go on", "none"]),
            "tags": st.lists(st.sampled_from(["x", "y"])),
            "kind": st.sampled_from(["agent", "tool"]),
        },
    ),
)
def test_what_is_looked_up_is_what_a_search_would_find(
    entries: list[tuple[ThingKey, list[dict[str, Any]]]], wanted: dict[str, Any]
) -> None:
    membership = Membership()
    for revision, (key, listed) in enumerate(entries, start=1):
        value = description(key, capabilities=listed)
        membership.apply_entry(entry_key(key), value, revision)

    found = {one.key for one in membership.looked_up("demo", **wanted)}

    assert found == {
        one.key
        for one in membership
        if one.key.tenant == "demo"
        and wanted.get("name", one.key.name) == one.key.name
        and ("capability" not in wanted or one.thing.matching(wanted["capability"]))
        and {*wanted.get("tags", ())} <= {tag for c in one.thing.capabilities for tag in c.tags}
        and wanted.get("kind", one.thing.kind) == one.thing.kind
    }
