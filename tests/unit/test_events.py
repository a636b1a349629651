"""Events keep what they say on every way, and are each told once by whichever replica."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.description import describe
from lmos_mesh.directory import EXPIRED, GOODBYE
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.events import (
    EVENTS,
    INSTANCE_DIED,
    INSTANCE_JOINED,
    INSTANCE_LEFT,
    THING_CREATED,
    THING_DELETED,
    THING_UPDATED,
    CloudEvent,
    follow,
    merge_patch,
    rfc3339,
    told_at,
    unix_time,
)
from lmos_mesh.liveness import Lease, Served
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Packet
from lmos_mesh_registry.telling import Telling, Told
from tests.conftest import Mesh

BILLING = ThingKey("demo", "billing", "stable")
NOW = 1_800_000_000.0

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
solid = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", max_size=1), solid, max_size=4)


def event(**more: Any) -> CloudEvent:
    said: dict[str, Any] = {
        "id": "1",
        "source": "urn:x",
        "type": THING_CREATED,
        "subject": "urn:y",
        "time": "2026-01-01T00:00:00Z",
        "data": {},
    }
    return CloudEvent(**(said | more))


def entered(revision: int, **more: Any) -> Entered:
    membership = Membership()
    thing = thing_from({"name": "billing", "description": "", **more})
    value = json.dumps(describe(thing)).encode()
    membership.apply_entry(subjects.key(*BILLING), value, revision, created=NOW)
    found = membership.get(BILLING)
    assert found is not None
    return found


# -- the form --


@given(text.filter(bool), text, values)
def test_an_event_in_binary_mode_loses_nothing(id: str, subject: str, data: Any) -> None:
    said = event(id=id, subject=subject, data=data, more={"extra": subject})

    headers = said.to_headers()

    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert not any(mark in value for value in headers.values() for mark in ' "')
    assert CloudEvent.from_packet(Packet("x", said.body(), headers)) == said


def test_an_event_in_structured_mode_is_one_json_object() -> None:
    said = event(data={"id": "urn:y"}).as_json()

    assert said["specversion"] == "1.0"
    assert said["type"] == "lmos.thing.created"
    assert said["datacontenttype"] == "application/json"
    assert said["data"] == {"id": "urn:y"}
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        ({}, b"{}"),
        ({"ce-specversion": "0.3", "ce-id": "1", "ce-source": "x", "ce-type": "t"}, b"{}"),
        ({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "x"}, b"{}"),
        ({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "x", "ce-type": "t"}, b"{"),
    ],
)
def test_what_is_no_event_is_refused(headers: dict[str, str], payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        CloudEvent.from_packet(Packet("x", payload, headers))


@given(objects, objects)
def test_a_merge_patch_makes_one_object_of_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    patch = merge_patch(before, after)

    assert _patched(before, patch) == after
    assert bool(patch) == (
        before != after or json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True)
    )


def _patched(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    result: dict[str, Any] = (
        dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    )
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _patched(result.get(name), value)
    return result


@given(st.floats(0, 4e9))
def test_a_time_is_read_as_it_was_written(at: float) -> None:
    read = unix_time(rfc3339(at))

    assert read is not None
    assert abs(read - at) < 0.002


# -- what is told --


def heard(told: Told, telling: Telling | None, sequence: int) -> Telling:
    assert telling is not None
    headers = telling.all_headers()
    told.heard(telling.tenant, telling.event.type, sequence, headers)
    return telling


def change(
    told: Told, before: Entered | None, after: Entered | None, *, expired: bool = False
) -> Telling | None:
    return told.of_thing(BILLING, before, after, expired=expired, now=NOW)


def test_an_entry_that_comes_changes_and_goes_is_three_events() -> None:
    told = Told()
    first, second = entered(5), entered(7, description="New.")

    created = heard(told, change(told, None, first), 1)
    updated = heard(told, change(told, first, second), 2)
    deleted = heard(told, change(told, second, None, expired=True), 3)

    assert created.event.type == THING_CREATED
    assert created.event.subject == "urn:lmos-mesh:demo:billing:stable"
    assert created.event.data["description"] == first.description
    assert updated.event.type == THING_UPDATED
    assert updated.event.data["diff"] == {"description": "New."}
    assert deleted.event.type == THING_DELETED
    assert deleted.event.data["reason"] == "expired"
    assert {one.event.data["name"] for one in (created, updated, deleted)} == {"billing"}
    assert len({one.message_id for one in (created, updated, deleted)}) == 3


def test_two_replicas_give_an_event_the_same_id() -> None:
    first, second = entered(5), entered(7, description="New.")

    for before, after in ((None, first), (first, second), (second, None)):
        mine, yours = (change(Told(), before, after) for _ in range(2))
        assert mine is not None
        assert yours is not None
        assert mine.message_id == yours.message_id
        assert mine.event.id == yours.event.id


def test_what_another_replica_has_told_is_not_told_again() -> None:
    told = Told()
    first, second = entered(5), entered(7, description="New.")
    for at, (before, after) in enumerate(((None, first), (first, second), (second, None))):
        heard(told, change(Told(), before, after), at + 1)

    assert change(told, None, first) is None
    assert change(told, first, second) is None
    assert change(told, second, None) is None


def test_what_is_written_again_only_to_stay_is_no_event() -> None:
    assert change(Told(), entered(5), entered(6)) is None


def test_a_replica_that_starts_knows_what_nobody_has_told() -> None:
    told = Told()
    membership = Membership()
    value = json.dumps(describe(thing_from({"name": "billing"}))).encode()
    membership.apply_entry(subjects.key(*BILLING), value, 5, created=NOW)

    assert [one.key for one in told.untold_entries(membership, now=NOW)] == [BILLING]
    assert told.untold_entries(membership, now=NOW + 30 * 24 * 3600) == []

    heard(told, change(told, None, membership.get(BILLING)), 1)
    assert told.untold_entries(membership, now=NOW) == []
    assert told.untold_removals(membership) == []

    # Renewed, while nobody looked.
    membership.apply_entry(subjects.key(*BILLING), value, 6)
    assert told.untold_entries(membership, now=NOW) == []

    membership.apply_entry(subjects.key(*BILLING), None, 7)
    assert told.untold_removals(membership) == [BILLING]
    removal = heard(told, told.removal(BILLING, now=NOW), 2)
    assert removal.event.type == THING_DELETED
    assert removal.event.subject == "urn:lmos-mesh:demo:billing:stable"
    assert told.untold_removals(membership) == []


def test_what_came_and_went_before_it_was_told_is_known_to_be_untold() -> None:
    told = Told()
    first, second = entered(5), entered(7, description="New.")

    assert told.is_untold(first, now=NOW)
    heard(told, change(told, None, first), 1)
    assert not told.is_untold(first, now=NOW)
    assert told.is_untold(second, now=NOW)
    heard(told, change(told, second, None), 2)
    assert not told.is_untold(second, now=NOW)
    assert change(told, None, first) is None


def test_an_instance_joins_leaves_and_is_not_told_twice() -> None:
    told = Told()
    lease = Lease(instance="b1", started=NOW - 5, things=(Served(name="billing", subset="stable"),))

    joined = heard(told, told.joined("demo", lease, now=NOW), 1)
    assert told.joined("demo", lease, now=NOW) is None
    left = heard(told, told.ended("demo", lease, GOODBYE, now=NOW), 2)
    assert told.ended("demo", lease, EXPIRED, now=NOW) is None
    back = heard(told, told.joined("demo", lease, now=NOW), 3)
    died = heard(told, told.ended("demo", lease, EXPIRED, now=NOW), 4)

    assert [one.event.type for one in (joined, left, back, died)] == [
        INSTANCE_JOINED,
        INSTANCE_LEFT,
        INSTANCE_JOINED,
        INSTANCE_DIED,
    ]
    assert (joined.event.time, back.event.time) == (rfc3339(NOW - 5), rfc3339(NOW))
    assert joined.event.data["things"] == [{"name": "billing", "subset": "stable", "version": ""}]
    assert died.event.data["reason"] == "lease expired"
    assert len({one.message_id for one in (joined, left, back, died)}) == 4


def test_replicas_that_know_the_same_give_the_end_of_an_instance_the_same_id() -> None:
    lease = Lease(instance="b1", started=NOW)
    mine, yours = Told(), Told()
    joined = mine.joined("demo", lease, now=NOW)
    for told in (mine, yours):
        heard(told, joined, 17)

    ends = [
        told.ended("demo", lease, why, now=NOW) for told, why in ((mine, EXPIRED), (yours, GOODBYE))
    ]

    assert len({end.message_id for end in ends if end is not None}) == 1


# -- following --


async def tell(mesh: Mesh, numbers: range) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(EVENTS)
        for number in numbers:
            said = event(id=str(number), data={"number": number})
            for _ in range(2):  # as two replicas do
                await stream.append(
                    told_at(mesh.tenant, said.type),
                    said.body(),
                    message_id=f"{mesh.tenant}.{number}",
                    headers=said.to_headers(),
                )


async def test_a_follower_is_told_each_event_once_from_where_it_left_off(mesh: Mesh) -> None:
    await tell(mesh, range(5))
    async with mesh.bus() as bus:
        seen: list[int] = []
        last = 0
        async with aclosing(follow(bus, mesh.tenant, after=0)) as events:
            async for sequence, said in events:
                last = sequence
                seen.append(said.data["number"])
                if len(seen) == 3:
                    break
        await tell(mesh, range(5, 8))
        async with aclosing(follow(bus, mesh.tenant, after=last)) as events:
            async for _, said in events:
                seen.append(said.data["number"])
                if len(seen) == 8:
                    await tell(mesh, range(8, 12))
                if len(seen) == 12:
                    break

    assert seen == list(range(12))


async def test_a_follower_hears_only_the_types_and_the_tenant_it_wants(mesh: Mesh) -> None:
    async with (
        mesh.bus() as bus,
        aclosing(follow(bus, mesh.tenant, after=None, types={THING_DELETED})) as events,
    ):
        stream = bus.transport.stream(EVENTS)

        async def told(tenant: str, type: str, id: str) -> None:
            said = event(id=id, type=type)
            await stream.append(told_at(tenant, type), b"{}", headers=said.to_headers())

        await told(mesh.tenant, THING_DELETED, "before")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(_first(events))
            await asyncio.sleep(0.2)  # it listens from now on
            await told(mesh.tenant, THING_CREATED, "a")
            await told(f"{mesh.tenant}-2", THING_DELETED, "b")
            await told(mesh.tenant, THING_DELETED, "c")

        assert first.result()[1].id == "c"


async def _first(events: AsyncGenerator[tuple[int, CloudEvent]]) -> tuple[int, CloudEvent]:
    return await anext(events)
