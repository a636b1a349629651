"""What is found, as msgpack of which the greater part is packed once."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import codec, subjects
from lmos_mesh.description import describe
from lmos_mesh.liveness import Lease, Served
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import ThingsFound
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_registry.catalog import shown
from lmos_mesh_registry.packing import PackedThings, page


def entered(
    membership: Membership, revision: int, name: str, *, serving: int = 0, **more: Any
) -> Entered:
    description = describe(thing_from({"tenant": "demo", "name": name, **more}))
    if revision % 2:
        description["registration"] = {"created": "2026-01-01T00:00:00Z", "modified": "x", "ttl": 5}
    key = subjects.key("demo", name, "stable")
    membership.apply_entry(key, json.dumps(description).encode(), revision)
    for number in range(serving):
        served = (Served(name=name, subset="stable", version="1.0.0", in_flight=number),)
        lease = Lease(instance=f"{name}-{number}", things=served, host="h", pid=7)
        membership.apply_lease(
            subjects.key("demo", lease.instance), lease.model_dump_json().encode(), revision
        )
    return next(one for one in membership if one.key.name == name)


examples = st.lists(st.text("xyzü", min_size=1), max_size=2, unique=True)
capabilities = st.dictionaries(st.sampled_from("abc"), examples, max_size=2)


@given(capabilities, st.integers(0, 3), st.none() | st.floats(0, 1), st.integers(1, 9))
def test_packed_things_are_read_as_those_that_were_encoded(
    able: dict[str, list[str]], serving: int, score: float | None, revision: int
) -> None:
    membership, packed = Membership(), PackedThings()
    can = [{"id": id, "examples": examples} for id, examples in able.items()]
    one = entered(membership, revision, "käse", serving=serving, capabilities=can)
    rest = ThingsFound(things=(), total=7, revision=revision, next=3, notes=("n",), as_of=1.5)
    plain = rest.model_copy(update={"things": (shown(one, membership, whole=False, score=score),)})

    for _ in range(2):  # anew, and from what was kept
        payload = page([packed.packed(one, membership, score)], rest)
        assert codec.decode(ThingsFound, payload) == codec.decode(ThingsFound, codec.encode(plain))


def test_what_changes_is_packed_anew() -> None:
    membership, packed = Membership(), PackedThings()
    before = packed.packed(entered(membership, 1, "a", description="old"), membership, None)
    now = entered(membership, 2, "a", description="new")

    again = packed.packed(now, membership, None)

    assert b"old" in before
    assert b"new" in again
    assert b"old" not in again
    packed.changed([now.key])
    assert packed.size == 0


def test_no_more_is_kept_than_there_is_room_for() -> None:
    membership, packed = Membership(), PackedThings(most_bytes=2_000)
    for number in range(50):
        packed.packed(entered(membership, number + 1, f"a{number}"), membership, None)

    assert 0 < packed.size <= 2_000


def test_what_came_is_packed_before_anybody_asks_as_far_as_there_is_room() -> None:
    membership = Membership()
    there = [entered(membership, number + 1, f"a{number}") for number in range(20)]
    packed, small = PackedThings(), PackedThings(most_bytes=2_000)
    for each in (packed, small):
        each.changed([*(one.key for one in there), there[0].key._replace(name="gone")])

    assert packed.prepare(membership, 5)
    assert packed.size > 0
    while packed.prepare(membership, 5):
        pass
    size = packed.size
    for one in there:
        packed.packed(one, membership, None)
    assert packed.size == size

    while small.prepare(membership, 5):
        pass
    assert 0 < small.size <= 2_000
