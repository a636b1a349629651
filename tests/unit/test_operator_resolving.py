"""Resolution: whole or not at all, nobody from elsewhere, the highest is the highest."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmos_mesh.resources import Channel
from lmos_mesh.semver import Range, Version, matches
from lmos_mesh_operator.resolving import (
    Candidate,
    MostSimilar,
    Offer,
    Resolution,
    anchors,
    resolve,
)

NAMES = ("view-bill", "pay-bill", "cancel", "greet")
VERSIONS = ("0.9.0", "1.0.0", "1.2.0", "1.10.3", "2.0.0-rc.1", "2.0.0", "3.1.4")
RANGES = ("^1.0", ">=1.0.0", "1.x", "<2", "[1.0,2.0[", "*", "2.0.0", "~1.2", ">5", "(,1.2.0]")
TENANTS, CHANNELS, SUBSETS = ("acme", "other"), ("web", "ivr"), ("stable", "canary")


def offer(name: str, version: str) -> Offer:
    return Offer(id=name, name=name, said=version)


def agent(name: str, *offers: tuple[str, str], **more: Any) -> Candidate:
    told: dict[str, Any] = {"subset": "stable", "host": f"nats:lmos.acme.agent.{name}"}
    return Candidate(name=name, offers=tuple(offer(*one) for one in offers), **{**told, **more})


def channel(*required: dict[str, Any], subset: str = "stable", **spec: Any) -> Channel:
    return Channel.model_validate(
        {
            "metadata": {
                "name": "c",
                "labels": {"tenant": "acme", "channel": "web", "subset": subset},
            },
            "spec": {"requiredCapabilities": list(required), **spec},
        }
    )


def needs(name: str, version: str = "*", **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, **more}


def wires(resolution: Resolution) -> list[tuple[str, str, str]]:
    """(agent, capability, version) of everything that is wired."""
    return [
        (group.name, one.name, one.provided_version)
        for group in resolution.groups
        for one in group.capabilities
    ]


# -- as documented --


@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        ("^1.0.0", "1.3.0"),
        (">=1.0.0", "2.1.0"),
        ("1.0.0", "1.0.0"),
        ("~1.2", "1.2.5"),
        ("<1.3", "1.2.5"),
        ("1.x", "1.3.0"),
        ("[1.0,2.0]", "1.3.0"),
        ("[1.0,)", "2.1.0"),
        ("(,1.2.5[", "1.0.0"),
    ],
)
def test_of_several_versions_the_highest_in_the_range_is_taken(wanted: str, version: str):
    fleet = [
        agent(f"a{number}", ("view-bill", one))
        for number, one in enumerate(("1.0.0", "1.2.5", "1.3.0", "2.1.0"))
    ]

    assert [one[2] for one in wires(resolve(channel(needs("view-bill", wanted)), fleet))] == [
        version
    ]


@pytest.mark.parametrize(
    ("wanted", "nearest", "lowest"),
    [
        ("^1.2.0", "1.2.5", "1.2.5"),
        (">=1.9", "2.1.0", "2.1.0"),
        ("<=2.0", "1.3.0", "1.0.0"),
        ("^1.0 || ^2.1", "2.1.0", "1.0.0"),
        ("*", "2.1.0", "1.0.0"),
    ],
)
def test_the_most_similar_is_the_nearest_or_as_in_lmos_the_lowest(
    wanted: str, nearest: str, lowest: str
):
    fleet = [
        agent(f"a{number}", ("view-bill", one))
        for number, one in enumerate(("1.0.0", "1.2.5", "1.3.0", "2.1.0"))
    ]
    asked = channel(needs("view-bill", wanted, strategy="MOST_SIMILAR"))

    def chosen(most_similar: MostSimilar) -> str:
        return wires(resolve(asked, fleet, most_similar=most_similar))[0][2]

    assert (chosen("nearest"), chosen("lowest")) == (nearest, lowest)


def test_a_range_names_its_lower_bounds_or_else_its_upper_one():
    def named(text: str) -> list[str]:
        return [str(one) for one in anchors(Range.parse(text))]

    assert named("^1.2") == ["1.2.0"]
    assert named("[1.0,2.0[") == ["1.0.0"]
    assert named("<=3.0.0") == ["3.0.0"]
    assert named("^1.0 || ~2.3") == ["1.0.0", "2.3.0"]
    assert named(">=1.0 >=2.5") == ["2.5.0"]
    assert named("<4 <=3.0.0") == ["3.0.0"]
    assert named("*") == []


def test_what_is_required_twice_is_wired_once():
    asked = channel(needs("view-bill"), needs("view-bill"), needs("view-bill", "^1"))

    found = wires(resolve(asked, [agent("a", ("view-bill", "1.0.0"))]))

    assert found == [("a", "view-bill", "1.0.0")] * 2  # one for each range


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"subset": "canary"},
        {"tenants": frozenset({"other"})},
        {"channels": frozenset({"ivr"})},
        {"channels": frozenset[str]()},
        {"live": False},
    ],
)
def test_who_is_elsewhere_is_not_asked_and_is_named_as_a_near_miss(elsewhere: dict[str, Any]):
    found = resolve(channel(needs("view-bill")), [agent("a", ("view-bill", "1.0.0"), **elsewhere)])

    assert not found.resolved
    assert found.groups == ()
    near = found.missing[0].near
    assert [one.agent for one in near] == ["a"]
    assert near[0].reason


def test_no_tenants_and_no_channels_said_are_any():
    fleet = [agent("a", ("view-bill", "1.0.0"), tenants=None, channels=None)]

    assert resolve(channel(needs("view-bill")), fleet).resolved


def test_a_capability_is_found_by_its_id_as_well_as_by_its_name():
    both = Offer(id="vb-1", name="view-bill", said="1.0.0")
    fleet = [Candidate(name="a", subset="stable", host="h", offers=(both,))]

    assert resolve(channel({"id": "vb-1", "version": "*"}), fleet).resolved
    assert resolve(channel({"name": "view-bill", "version": "*"}), fleet).resolved
    assert resolve(channel({"id": "x", "name": "view-bill", "version": "*"}), fleet).resolved
    assert not resolve(channel({"id": "x", "version": "*"}), fleet).resolved


def test_what_one_agent_provides_is_one_group():
    fleet = [
        agent("b", ("view-bill", "1.0.0"), ("pay-bill", "1.0.0")),
        agent("a", ("cancel", "1.0.0")),
    ]

    found = resolve(channel(needs("view-bill"), needs("cancel"), needs("pay-bill")), fleet)

    assert [group.name for group in found.groups] == ["a", "b"]
    assert [one.name for one in found.groups[1].capabilities] == ["view-bill", "pay-bill"]
    assert all(one.host for group in found.groups for one in group.capabilities)


def test_half_of_a_routing_is_none():
    found = resolve(
        channel(needs("view-bill"), needs("cancel", "^2.0")),
        [agent("a", ("view-bill", "1.0.0"), ("cancel", "1.4.0"))],
    )

    assert found.groups == ()
    assert [one.name for one in found.missing] == ["cancel"]
    assert found.missing[0].near[0].reason == "it offers version 1.4.0, not ^2.0"


def test_what_is_optional_never_leaves_a_channel_unresolved():
    found = resolve(
        channel(needs("view-bill"), needs("greet", optional=True)),
        [agent("a", ("view-bill", "1.0.0"))],
    )

    assert found.resolved
    assert [one.name for one in found.missing_optional] == ["greet"]


def test_of_equal_versions_a_live_agent_is_taken_and_then_the_first_by_name():
    fleet = [
        agent("a", ("view-bill", "1.0.0"), live=False, declared=True),
        agent("c", ("view-bill", "1.0.0")),
        agent("b", ("view-bill", "1.0.0")),
    ]

    assert wires(resolve(channel(needs("view-bill")), fleet))[0][0] == "b"
    assert wires(resolve(channel(needs("view-bill")), fleet[:1]))[0][0] == "a"


def test_where_an_agent_is_reached_has_no_say_before_its_name():
    fleet = [
        agent("b", ("view-bill", "1.0.0"), host="a"),
        agent("a", ("view-bill", "1.0.0"), host="z"),
    ]

    assert wires(resolve(channel(needs("view-bill")), fleet))[0][0] == "a"


def test_a_capability_that_is_only_called_alike_is_a_near_miss():
    found = resolve(channel(needs("View Bill")), [agent("a", ("view-bill", "1.0.0"))])

    assert found.missing[0].near[0].reason == "it is called 'view-bill' there"


def test_the_nearest_misses_come_first_and_few_are_named():
    fleet = [agent(f"z{n}", ("view-bill", "1.0.0"), subset="canary", live=False) for n in range(9)]

    found = resolve(
        channel(needs("view-bill", "^2.0")), [*fleet, agent("y", ("view-bill", "1.0.0"))]
    )

    assert len(found.missing[0].near) == 5
    assert found.missing[0].near[0].agent == "y"


def test_of_other_versions_the_nearest_is_named_first():
    fleet = [agent(f"v{major}", ("view-bill", f"{major}.0.0")) for major in (1, 2, 4, 9)]

    found = resolve(channel(needs("view-bill", "^3.0")), fleet)

    assert [one.agent for one in found.missing[0].near] == ["v2", "v4", "v1", "v9"]


def test_a_fallback_that_may_not_answer_here_is_left_out():
    barred = agent("help", channels=frozenset({"ivr"}))
    asleep = agent("help", live=False)
    asked = channel(fallbackAgent="help")

    assert resolve(asked, [agent("help")]).fallback == "help"
    assert resolve(asked, [barred]).fallback is None
    assert "does not serve" in resolve(asked, [barred]).fallback_fault
    # It may come back, and is not asked until then.
    assert resolve(asked, [asleep]).fallback == "help"
    assert resolve(asked, [asleep]).fallback_fault
    assert resolve(asked, []).fallback == "help"


def test_a_range_that_cannot_be_read_is_provided_by_nobody():
    found = resolve(channel(needs("view-bill", "banana")), [agent("a", ("view-bill", "1.0.0"))])

    assert not found.resolved
    assert "banana" in found.missing[0].near[0].reason


# -- over generated fleets --

FLEETS = 20
"""Generated at a time: to draw each of their members by itself takes ten times as long."""

seeds = st.integers(0, 2**32)


def some_fleet(chance: random.Random) -> list[Candidate]:
    def some(among: tuple[str, ...]) -> frozenset[str] | None:
        return chance.choice((None, frozenset(chance.sample(among, chance.randint(0, 2)))))

    return [
        agent(
            f"agent-{number}",
            *((chance.choice(NAMES), chance.choice(VERSIONS)) for _ in range(chance.randint(0, 4))),
            subset=chance.choice(SUBSETS),
            tenants=some(TENANTS),
            channels=some(CHANNELS),
            live=chance.random() < 0.7,
            declared=chance.random() < 0.3,
        )
        for number in range(chance.randint(0, 12))
    ]


def some_channel(chance: random.Random) -> Channel:
    required = [
        needs(
            name,
            chance.choice(RANGES),
            strategy=chance.choice(("HIGHEST", "MOST_SIMILAR")),
            optional=chance.random() < 0.3,
        )
        for name in chance.choices(NAMES, k=chance.randint(0, 4))
    ]
    return channel(*required, subset=chance.choice(SUBSETS))


def some_of(seed: int) -> Iterator[tuple[list[Candidate], Channel, random.Random]]:
    chance = random.Random(seed)
    for _ in range(FLEETS):
        yield some_fleet(chance), some_channel(chance), chance


def may_answer(one: Candidate, asked: Channel) -> bool:
    return (
        one.subset == asked.subset
        and (one.tenants is None or asked.tenant in one.tenants)
        and (one.channels is None or asked.channel in one.channels)
        and (one.live or one.declared)
    )


def providers(fleet: list[Candidate], asked: Channel, name: str, wanted: str) -> list[Version]:
    """By brute force: the versions in which anybody provides a capability here."""
    return [
        Version.parse(one.said)
        for each in fleet
        if may_answer(each, asked)
        for one in each.offers
        if one.name == name and matches(one.said, wanted)
    ]


@settings(max_examples=150, deadline=None)
@given(seeds, st.sampled_from(("nearest", "lowest")))
def test_whatever_the_fleet_a_routing_is_whole_and_only_of_those_who_may_answer(
    seed: int, most_similar: MostSimilar
):
    for fleet, asked, _ in some_of(seed):
        check_whole(fleet, asked, most_similar)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_the_order_of_the_fleet_does_not_matter(seed: int):
    for fleet, asked, chance in some_of(seed):
        shuffled = chance.sample(fleet, len(fleet))

        assert resolve(asked, shuffled) == resolve(asked, fleet)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_who_offers_nothing_that_is_required_changes_nothing(seed: int):
    for fleet, asked, chance in some_of(seed):
        stranger = agent("aaa", ("something-else", chance.choice(VERSIONS)))

        assert resolve(asked, [stranger, *fleet]) == resolve(asked, fleet)


def check_whole(fleet: list[Candidate], asked: Channel, most_similar: MostSimilar) -> None:
    found = resolve(asked, fleet, most_similar=most_similar)
    known = {one.name: one for one in fleet}

    missing = {
        (one.name, one.version)
        for one in asked.spec.required_capabilities
        if not one.optional and not providers(fleet, asked, one.name, one.version)
    }
    assert {(one.name, one.version) for one in found.missing} == missing
    assert found.resolved == (not missing)
    if missing:
        assert found.groups == ()
        return
    wired = {(one.name, one.required_version): one for g in found.groups for one in g.capabilities}
    for group in found.groups:
        assert may_answer(known[group.name], asked)
        assert all(one.host == known[group.name].host for one in group.capabilities)
    for one in asked.spec.required_capabilities:
        possible = providers(fleet, asked, one.name, one.version)
        given_version = wired.get((one.name, one.version))
        assert (given_version is not None) == bool(possible)
        if given_version is not None:
            version = Version.parse(given_version.provided_version)
            assert version in possible
            same = [r for r in asked.spec.required_capabilities if r.name == one.name]
            if one.strategy == "HIGHEST" and len(same) == 1:
                assert version == max(possible)
            if one.strategy == "MOST_SIMILAR" and most_similar == "lowest" and len(same) == 1:
                assert version == min(possible)
