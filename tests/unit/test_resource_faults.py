"""What is said of a resource that cannot be used: everything, where, and what may be meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.resource_faults import read_resource, resource_faults
from lmos_mesh.resources import Channel

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def channel(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Channel",
        "metadata": {"name": "web", "labels": {"channel": "web"}},
        "spec": {"requiredCapabilities": [{"name": "a", "version": "^1"}], **spec},
    }


def rollout(**strategy: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "ChannelRollout",
        "metadata": {"name": "new"},
        "spec": {"strategy": strategy},
    }


def sides(canary: str = "b", stable: str = "a", **more: Any) -> dict[str, Any]:
    return {"canaryChannel": {"name": canary}, "stableChannel": {"name": stable}, **more}


def said(value: dict[str, Any]) -> dict[str, str]:
    return {one["field"]: one["description"] for one in resource_faults(value)}


def test_what_is_right_is_read() -> None:
    read, faults = read_resource(channel())

    assert faults == []
    assert isinstance(read, Channel)


def test_what_the_operator_says_is_taken_from_nobody_else() -> None:
    read, faults = read_resource({**channel(), "status": {"resolveStatus": "SURELY"}})

    assert faults == []
    assert isinstance(read, Channel)
    assert read.status is None


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({}, "/apiVersion", 'must be "lmos.eclipse/v1", not null'),
        ({"apiVersion": "lmos.eclipse/v2"}, "/apiVersion", 'not "lmos.eclipse/v2"'),
        ({"apiVersion": "lmos.eclipse/v1", "kind": "Chanel"}, "/kind", "must be one of Agent,"),
        ({"apiVersion": "lmos.eclipse/v1", "kind": ["Agent"]}, "/kind", "must be one of Agent,"),
        (channel(requiredCapabilities=5), "/spec/requiredCapabilities", "must be an array"),
        (
            channel(requiredCapabilities=[{"version": "1"}]),
            "/spec/requiredCapabilities/0",
            "needs `name` or `id`",
        ),
        (
            channel(requiredCapabilities=[{"name": "a", "version": 1.0}]),
            "/spec/requiredCapabilities/0/version",
            "put it in quotes",
        ),
        (
            channel(requiredCapabilities=[{"name": "a", "version": "about 1"}]),
            "/spec/requiredCapabilities/0/version",
            "write it like ^1.2",
        ),
        (channel(fallbackAgnt="x"), "/spec/fallbackAgnt", "did you mean `fallbackAgent`?"),
        (channel(colour="red"), "/spec/colour", "is no member of `spec`"),
        (rollout(), "/spec/strategy", "needs exactly one of"),
        (rollout(canary=sides(), shadow=sides()), "/spec/strategy", "needs exactly one of"),
        (
            rollout(canary=sides("a", "a")),
            "/spec/strategy/canary/canaryChannel/name",
            "as the stable one",
        ),
        (
            rollout(blueGreen=sides(analysis={"checks": [{"metric": "custom"}]})),
            "/spec/strategy/blueGreen/analysis/checks/0",
            "needs `event`",
        ),
        (
            rollout(shadow=sides(analysis={"checks": [{"metric": "custom", "event": "a.b.c"}]})),
            "/spec/strategy/shadow/analysis/checks/0/event",
            "must be `thing.event`",
        ),
        (
            rollout(canary=sides(steps=[{"weight": 5}, {"weight": 50}, {"weight": 10}])),
            "/spec/strategy/canary/steps/2/weight",
            "less than the 50 before it",
        ),
        (
            rollout(
                canary={
                    "canaryChannel": {"name": "b", "weight": 20},
                    "stableChannel": {"name": "a", "weight": 90},
                }
            ),
            "/spec/strategy/canary/canaryChannel/weight",
            "100 together",
        ),
        (
            rollout(canary=sides(steps=[{"weight": 101}])),
            "/spec/strategy/canary/steps/0/weight",
            "less than or equal to 100",
        ),
    ],
)
def test_what_is_wrong_is_told_where_it_is(value: dict[str, Any], field: str, words: str) -> None:
    assert words in said(value)[field]


def test_a_member_of_another_part_is_not_taken_for_itself() -> None:
    told = said(rollout(canary=sides(canaryWeight=5)))["/spec/strategy/canary/canaryWeight"]

    assert told == "is no member of `canary`"


def test_a_channel_says_which_one_it_is() -> None:
    value = channel()
    value["metadata"]["labels"] = {"tenant": "acme"}

    assert "`channel` is missing" in said(value)["/metadata/labels"]


def test_everything_is_told_at_once() -> None:
    value = channel(
        requiredCapabilities=[{"version": 1}, {"name": "b"}, {"name": "c", "version": "no 1"}],
        router={"method": "luck", "threshold": 2},
    )
    value["metadata"]["labels"] = {"version": 1.0, "chanel": "web"}

    assert set(said(value)) == {
        "/metadata/labels",
        "/metadata/labels/version",
        "/spec/requiredCapabilities/0/version",
        "/spec/requiredCapabilities/1/version",
        "/spec/requiredCapabilities/2/version",
        "/spec/router/method",
        "/spec/router/threshold",
    }


def test_the_version_of_an_agent_is_one_and_no_range() -> None:
    value: dict[str, Any] = {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Agent",
        "metadata": {"name": "a"},
        "spec": {"providedCapabilities": [{"id": "x", "version": "^1"}]},
    }

    assert list(said(value)) == ["/spec/providedCapabilities/0/version"]


@given(
    st.sampled_from(["Agent", "Channel", "ChannelRouting", "ChannelRollout"]),
    json_values,
    json_values,
)
def test_whatever_is_written_is_read_or_refused(kind: str, metadata: Any, spec: Any) -> None:
    value = {"apiVersion": "lmos.eclipse/v1", "kind": kind, "metadata": metadata, "spec": spec}

    read, faults = read_resource(value)

    assert (read is None) == bool(faults)
    assert all(one["description"] for one in faults)


def test_what_is_too_large_is_refused_for_one_reason() -> None:
    many = [{"name": f"c{number}", "version": "1.0.0", "no": number} for number in range(1001)]
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    wide = {f"a{n}": {f"b{m}": 1 for m in range(900)} for n in range(60)}

    assert resource_faults(channel(requiredCapabilities=many)) == [
        {
            "field": "/spec/requiredCapabilities",
            "description": "has 1001 items, and 1000 are the most",
        }
    ]
    (too_deep,) = resource_faults(channel(settings={"a": deep}))
    assert too_deep["description"] == "is nested more than 32 deep"
    (too_much,) = resource_faults(channel(settings=wide))
    assert too_much["description"] == "has more than 50000 values in all"
    # As many as may be are looked at, and not all of their faults are told.
    faults = resource_faults(channel(requiredCapabilities=many[:1000]))
    assert len(faults) == 101
    assert faults[-1] == {"field": "", "description": "has 900 more faults"}
    good = [{"name": f"c{number}", "version": "1.0.0"} for number in range(1000)]
    assert resource_faults(channel(requiredCapabilities=good)) == []
