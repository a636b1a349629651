"""Resources are found by name and by label, whatever order their changes come in."""

import json
from typing import Any

import pytest

from lmos_mesh.resource_index import (
    ResourceIndex,
    ResourceKey,
    key_from,
    resource_from,
    shown,
    value_of,
)
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting


def channel(
    name: str, *, namespace: str = "default", subset: str = "", tenant: str = "acme"
) -> Channel:
    labels = {"tenant": tenant, "channel": "web"} | ({"subset": subset} if subset else {})
    return Channel.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"requiredCapabilities": [{"id": "view-bill", "version": "^1.0"}]},
        }
    )


def rollout(name: str, phase: str, *, began: float = 1.0) -> ChannelRollout:
    side = {"name": "one"}
    return ChannelRollout.model_validate(
        {
            "metadata": {"name": name},
            "spec": {"strategy": {"canary": {"canaryChannel": side, "stableChannel": side}}},
            "status": {"phase": phase, "tenant": "acme", "channel": "web", "stepBegan": began},
        }
    )


def put(index: ResourceIndex, one: Any, revision: int) -> ResourceKey:
    key = ResourceKey(type(one).__name__, one.metadata.namespace, one.metadata.name)
    index.apply(key.token, value_of(one), revision)
    return key


def test_what_is_no_resource_has_no_name():
    assert key_from("default.pod.web") is None
    assert key_from("default.web") is None


def test_a_key_leads_back_to_its_names():
    key = ResourceKey("ChannelRouting", "team.a", "acme web")

    assert key_from(key.token) == key


def test_what_is_stored_is_what_comes_back_with_its_revision():
    one = channel("web")

    back = resource_from(ResourceKey("Channel", "default", "web"), value_of(one), 7)

    assert back is not None
    assert back.metadata.resource_version == "7"
    assert shown(back)["spec"] == shown(one)["spec"]
    assert "resourceVersion" not in json.loads(value_of(back))["metadata"]


def test_what_a_newer_operator_knows_more_does_not_hide_a_resource():
    said = json.loads(value_of(channel("web")))
    said["spec"]["mood"] = "good"
    said["spec"]["requiredCapabilities"][0]["taste"] = "sweet"

    back = resource_from(ResourceKey("Channel", "default", "web"), json.dumps(said).encode(), 1)

    assert isinstance(back, Channel)
    assert back.spec.required_capabilities[0].id == "view-bill"


def test_what_cannot_be_read_is_not_there():
    assert resource_from(ResourceKey("Channel", "default", "web"), b"{", 1) is None
    assert resource_from(ResourceKey("Channel", "default", "web"), b"{}", 1) is None


def test_a_channel_closes_its_place_until_it_is_gone():
    index = ResourceIndex()

    key = put(index, channel("web"), 1)

    assert index.closed("acme", "web")
    assert not index.closed("acme", "mobile")
    assert index.apply(key.token, None, 2) == key
    assert not index.closed("acme", "web")


def test_the_channel_of_the_default_namespace_counts_and_then_the_first_by_name():
    index = ResourceIndex()
    put(index, channel("b", namespace="zoo"), 1)
    put(index, channel("c", namespace="ape"), 2)

    first = index.channel_of("acme", "web", "stable")
    put(index, channel("d"), 3)
    now = index.channel_of("acme", "web", "stable")

    assert first is not None
    assert now is not None
    assert (first.metadata.name, now.metadata.name) == ("c", "d")


def test_a_routing_is_found_by_the_labels_of_its_channel():
    index = ResourceIndex()
    put(index, channel("web", subset="canary"), 1)
    put(
        index,
        ChannelRouting.model_validate({"metadata": {"name": "web"}, "spec": {}}),
        2,
    )

    assert index.routing("acme", "web", "stable") is None
    found = index.routing("acme", "web", "canary")
    assert found is not None
    assert found.metadata.resource_version == "2"
    assert index.subsets("acme", "web") == ["canary"]


def test_a_channel_that_moves_to_another_tenant_leaves_the_first():
    index = ResourceIndex()
    put(index, channel("web"), 1)

    put(index, channel("web", tenant="other"), 2)

    assert not index.closed("acme", "web")
    assert index.closed("other", "web")


def test_a_rollout_that_is_under_way_counts_before_one_that_has_ended():
    index = ResourceIndex()
    put(index, rollout("old", "Promoted", began=1.0), 1)
    put(index, rollout("older", "Promoted", began=0.5), 2)

    ended = index.rollout("acme", "web")
    put(index, rollout("new", "Paused", began=0.1), 3)
    now = index.rollout("acme", "web")

    assert ended is not None
    assert now is not None
    assert (ended.metadata.name, now.metadata.name) == ("old", "new")


@pytest.mark.parametrize("phase", ["Aborted", "RolledBack"])
def test_of_rollouts_that_have_ended_the_last_counts(phase: str):
    index = ResourceIndex()

    put(index, rollout("first", "Promoted", began=1.0), 1)
    put(index, rollout("second", phase, began=2.0), 2)

    found = index.rollout("acme", "web")
    assert found is not None
    assert found.metadata.name == "second"


@pytest.mark.parametrize("phase", ["Pending", "Invalid"])
def test_a_rollout_that_moves_nobody_is_none(phase: str):
    index = ResourceIndex()

    put(index, rollout("one", phase), 1)

    assert index.rollout("acme", "web") is None


def test_an_older_change_is_nothing():
    index = ResourceIndex()
    key = put(index, channel("web"), 5)

    assert index.apply(key.token, value_of(channel("web")), 4) is None
    assert index.apply(key.token, None, 6) == key
    assert index.apply(key.token, value_of(channel("web")), 5) is None
    assert len(index) == 0


def test_what_a_snapshot_lacks_is_gone_and_a_bucket_made_anew_counts_from_one():
    index = ResourceIndex()
    gone, stays = put(index, channel("gone"), 8), put(index, channel("stays"), 9)

    stale = index.keep({stays.token: 1})
    changed = index.apply(stays.token, value_of(channel("stays")), 1)

    assert (stale, changed) == ([gone], stays)
    assert [one.revision for one in index] == [1]
