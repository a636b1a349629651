"""A closed channel lets through what its Routing names, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.resource_index import ResourceIndex, key_of, value_of
from lmos_mesh.resources import Channel, ChannelRouting, Resource
from lmos_mesh.things import Capability, Thing, ThingKey
from lmos_mesh.wiring import Wirings, host_of, not_in, wiring_of

BILLING = ThingKey("acme", "billing", "stable")


def metadata(name: str = "acme-web", **labels: str) -> dict[str, Any]:
    return {"name": name, "labels": {"tenant": "acme", "channel": "web"} | labels}


def channel(name: str = "acme-web", **labels: str) -> Channel:
    return Channel.model_validate(
        {"metadata": metadata(name, **labels), "spec": {"requiredCapabilities": []}}
    )


def group(key: ThingKey, *capabilities: str, host: str = "") -> dict[str, Any]:
    return {
        "id": key.name,
        "name": key.name,
        "subset": key.subset,
        "capabilities": [
            {
                "id": f"{one}-id",
                "name": one,
                "requiredVersion": "*",
                "providedVersion": "1.0.0",
                "host": host or host_of(key),
            }
            for one in capabilities
        ],
    }


def routing(
    *groups: dict[str, Any],
    name: str = "acme-web",
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> ChannelRouting:
    return ChannelRouting.model_validate(
        {
            "metadata": metadata(name, **(labels or {})),
            "spec": {"capabilityGroups": list(groups), **spec},
        }
    )


def thing(name: str = "billing", *capabilities: str) -> Thing:
    return Thing(
        name=name,
        tenant="acme",
        capabilities=tuple(Capability(id=one, name=one) for one in capabilities),
    )


def index_of(*resources: Resource) -> ResourceIndex:
    index = ResourceIndex()
    for revision, one in enumerate(resources, start=1):
        index.apply(key_of(one).token, value_of(one), revision)
    return index


def wiring(of: ChannelRouting | None) -> Any:
    return wiring_of(of, tenant="acme", channel="web", subset="stable")


def test_the_agents_of_a_routing_are_let_through_with_the_wired_capabilities() -> None:
    known = wiring(routing(group(BILLING, "view")))

    assert known.admits(BILLING)
    assert not known.admits(BILLING._replace(subset="canary"))
    assert not known.admits(BILLING._replace(tenant="globex"))
    assert [one.id for one in known.narrowed(thing("billing", "view", "pay"), BILLING).capabilities]
    assert known.narrowed(thing("billing", "view", "pay"), BILLING).capabilities == (
        Capability(id="view", name="view"),
    )


@pytest.mark.parametrize("id", ["view", "view-id"])
def test_a_capability_is_wired_by_its_name_or_its_id(id: str) -> None:
    known = wiring(routing(group(BILLING, "view")))

    assert len(known.narrowed(thing("billing", id), BILLING).capabilities) == 1


def test_the_fallback_agent_may_be_asked_for_anything() -> None:
    known = wiring(routing(group(BILLING, "view"), fallbackAgent="concierge"))
    concierge = ThingKey("acme", "concierge", "stable")

    assert known.fallback == concierge
    assert known.admits(concierge)
    assert len(known.narrowed(thing("concierge", "a", "b"), concierge).capabilities) == 2
    assert known.named() == ["billing", "concierge"]


def test_a_fallback_agent_that_is_wired_too_is_chosen_for_what_is_wired_only() -> None:
    known = wiring(routing(group(BILLING, "view"), fallbackAgent="billing"))

    assert len(known.narrowed(thing("billing", "view", "pay"), BILLING).capabilities) == 1


def test_an_agent_of_another_tenant_is_not_ours_even_if_it_is_called_alike() -> None:
    theirs = BILLING._replace(tenant="globex")
    known = wiring(routing(group(theirs, "view")))

    assert not known.admits(BILLING)
    assert known.admits(theirs)


def test_an_agent_of_a_cluster_counts_as_the_tenants_own() -> None:
    known = wiring(routing(group(BILLING, "view", host="billing.default.svc.cluster.local")))

    assert known.admits(BILLING)


@pytest.mark.parametrize("labels", [{"tenant": "globex"}, {"channel": "ivr"}, {"subset": "canary"}])
def test_a_routing_that_is_labelled_for_somebody_else_counts_for_nothing(
    labels: dict[str, str],
) -> None:
    known = wiring(routing(group(BILLING, "view"), labels=labels))

    assert not known.resolved
    assert not known.admits(BILLING)


def test_the_error_for_an_agent_outside_names_the_channel_and_who_is_in_it() -> None:
    error = not_in(wiring(routing(group(BILLING, "view"))), "weather")
    nobody = not_in(wiring(None), "weather")

    assert "'weather'" in str(error)
    assert "channel 'web' (stable) of 'acme'" in str(error)
    assert "billing" in str(error)
    assert "nobody serves it yet" in str(nobody)


def test_a_channel_is_open_until_one_is_applied_in_any_subset() -> None:
    opened = Wirings(index_of())
    closed = Wirings(index_of(channel(), routing(group(BILLING, "view"))))

    assert opened.of("acme", "web", "stable") is None
    assert (found := closed.of("acme", "web", "stable")) is not None
    assert found.resolved
    assert (other := closed.of("acme", "web", "canary")) is not None
    assert not other.resolved
    assert closed.of("acme", "ivr", "stable") is None
    assert closed.of("globex", "web", "stable") is None


def test_what_is_applied_later_is_known_once_the_old_is_forgotten() -> None:
    index = index_of()
    wirings = Wirings(index)
    before = wirings.of("acme", "web", "stable")
    index.apply(key_of(channel()).token, value_of(channel()), 1)
    wirings.forget()

    assert before is None
    assert wirings.of("acme", "web", "stable") is not None


names = st.sampled_from(["billing", "weather", "contract"])
tenants = st.sampled_from(["acme", "globex", "shared"])
subsets = st.sampled_from(["stable", "canary"])
keys = st.builds(ThingKey, tenants, names, subsets)
capabilities = st.lists(st.sampled_from(["view", "pay", "cancel"]), min_size=1, unique=True)


@given(st.lists(st.tuples(keys, capabilities), max_size=6), keys, capabilities)
def test_nobody_is_let_through_whom_no_group_names_as_that(
    groups: list[tuple[ThingKey, list[str]]], key: ThingKey, has: list[str]
) -> None:
    known = wiring(routing(*(group(one, *wired) for one, wired in groups)))
    named = {name for one, wired in groups if one == key for name in wired}

    kept = known.narrowed(thing(key.name, *has), key).capabilities

    assert known.admits(key) == any(one == key for one, _ in groups)
    assert {one.id for one in kept} == named.intersection(has)
