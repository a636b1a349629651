"""What another mesh's Things are here."""

from typing import Any

import pytest

from lmos_mesh import subjects
from lmos_mesh.description import LIVE, describe, description_faults
from lmos_mesh.membership import Membership
from lmos_mesh.messages import FindThings
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_registry.catalog import find, shown
from lmos_mesh_registry.mirroring import is_called, mirrored
from lmos_mesh_registry.registering import FOR_GOOD, registration_for, value_of


def theirs(**registration: Any) -> dict[str, Any]:
    description = describe(thing_from({"name": "billing", "capabilities": [{"id": "pay"}]}))
    return {**description, "registration": {"created": "2026-01-01T00:00:00Z", **registration}}


def mirror(description: dict[str, Any]) -> Membership:
    entry = mirrored(description, origin="east", tenant="demo", taken=lambda _: False)
    assert entry is not None
    key, ours = entry
    assert description_faults(ours) == []
    membership = Membership()
    value = value_of(ours, registration_for(None, ours, FOR_GOOD, now=7.0))
    membership.apply_entry(subjects.key(*key), value, 1)
    return membership


@pytest.mark.parametrize(
    ("told", "live", "found_live", "found_other"),
    [
        ({LIVE: True}, True, 1, 0),
        ({LIVE: False}, False, 0, 1),
        ({}, None, 0, 1),  # a directory of another vendor
        ({LIVE: "yes"}, None, 0, 1),
    ],
)
def test_a_mirrored_agent_is_as_live_as_its_own_mesh_says(
    told: dict[str, Any], live: bool | None, found_live: int, found_other: int
) -> None:
    membership = mirror(theirs(**told))
    (one,) = membership

    assert shown(one, membership, whole=False).live is live
    assert find(membership, "demo", FindThings(live=True)).total == found_live
    assert find(membership, "demo", FindThings(live=False)).total == found_other
    assert find(membership, "demo", FindThings(live=None)).total == 1
    # No process of this mesh serves it, so nobody here calls it.
    assert not membership.live(one.key)
    assert not one.needs_instances


def test_what_a_description_says_of_itself_makes_nobody_live() -> None:
    membership = mirror({**theirs(), LIVE: True})
    (one,) = membership

    assert membership.liveness(one) is None


@pytest.mark.parametrize(
    ("description", "called"),
    [
        (theirs(), True),
        ({"id": "urn:lmos-mesh:demo:billing:canary"}, False),
        ({"id": "urn:lmos-mesh:demo:bill%20ing:stable"}, False),
        ({"id": "urn:dev:ops:1", "title": "billing"}, True),
        ({"id": "urn:dev:ops:1", "title": "billing", "mesh:subset": "canary"}, False),
        ({}, False),
    ],
)
def test_events_of_instances_name_the_things_that_they_serve(
    description: dict[str, Any], called: bool
) -> None:
    assert is_called(description, "billing", "stable") is called
