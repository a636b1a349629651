"""What speaks for which agent, and what is decided from it."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.membership import ThingKey
from lmos_mesh.things import Thing, thing_from
from lmos_mesh_router.index import (
    Evidence,
    Ranking,
    Snapshot,
    decide,
    evidence_of,
    explicit,
)

billing = ThingKey("demo", "billing", "stable")
weather = ThingKey("demo", "weather", "stable")
travel = ThingKey("demo", "travel", "stable")
AXES = {"bill": 0, "pay": 1, "rain": 2, "sun": 3, "trip": 4}

Vector = npt.NDArray[np.float32]


def vector(**parts: float) -> Vector:
    """A unit vector with these parts along the named axes."""
    found = np.zeros(8, np.float32)
    for name, part in parts.items():
        found[AXES[name]] = part
    return found / np.float32(np.linalg.norm(found))


def evidence(key: ThingKey, capability: str, text: str) -> Evidence:
    return Evidence(key, capability, "example", text)


def snapshot() -> Snapshot:
    return Snapshot.build(
        [
            evidence(billing, "view", "bill"),
            evidence(billing, "pay", "pay"),
            evidence(weather, "rain", "rain"),
            evidence(weather, "sun", "sun"),
            evidence(travel, "trip", "trip"),
        ],
        np.stack([vector(**{name: 1.0}) for name in ("bill", "pay", "rain", "sun", "trip")]),
        version=1,
    )


def thing(name: str, *capabilities: str, **more: Any) -> Thing:
    return thing_from({"name": name, "capabilities": [{"id": id} for id in capabilities], **more})


THINGS = {
    billing: thing("billing", "view", "pay"),
    weather: thing("weather", "rain", "sun"),
    travel: thing("travel", "trip"),
}


def ranked(ranking: Ranking) -> list[tuple[str, str]]:
    return [(one.key.name, one.capability) for one in ranking.ranked]


# -- evidence --


def test_names_descriptions_and_examples_speak_and_the_first_of_each_come_first() -> None:
    one = thing_from(
        {
            "name": "billing",
            "description": "Knows bills.",
            "capabilities": [
                {"id": "view_bill", "description": "Shows it.", "examples": ["e1", "e2"]},
                {"id": "pay", "examples": ["e3", "e4"]},
            ],
        }
    )

    said = [(one.capability, one.kind, one.text) for one in evidence_of(billing, one)]

    assert said == [
        ("view_bill", "name", "view bill"),
        ("view_bill", "description", "Shows it."),
        ("view_bill", "example", "e1"),
        ("pay", "name", "pay"),
        ("pay", "example", "e3"),
        ("", "description", "Knows bills."),
        ("view_bill", "example", "e2"),
        ("pay", "example", "e4"),
    ]


def test_a_text_speaks_once_for_a_capability() -> None:
    one = thing_from(
        {"name": "x", "capabilities": [{"id": "a", "description": "a", "examples": ["a", "b"]}]}
    )

    assert [each.text for each in evidence_of(billing, one)] == ["a", "b"]


def test_an_agent_that_can_do_nothing_has_nothing_to_speak_for_it() -> None:
    assert evidence_of(billing, thing("billing", description="Knows everything.")) == []


# -- searching --


def test_the_nearest_evidence_ranks_first_and_names_the_capability() -> None:
    ranking = snapshot().among([billing, weather, travel]).search(vector(pay=1, rain=0.2))

    assert ranked(ranking)[0] == ("billing", "pay")
    assert ranking.ranked[0].evidence.text == "pay"
    assert sum(one.share for one in ranking.ranked) == pytest.approx(1)


def test_only_agents_that_may_be_chosen_are_found() -> None:
    ranking = snapshot().among([weather, travel]).search(vector(pay=1, rain=0.2))

    assert {one.key for one in ranking.ranked} <= {weather, travel}
    assert ranked(ranking)[0] == ("weather", "rain")


def test_an_agent_that_nothing_speaks_for_yet_is_passed_over() -> None:
    unknown = ThingKey("demo", "unknown", "stable")

    view = snapshot().among([unknown, billing])

    assert view.agents == frozenset([billing])


@pytest.mark.parametrize("eligible", [[], [ThingKey("demo", "unknown", "stable")]])
def test_nobody_to_choose_from_ranks_nobody(eligible: list[ThingKey]) -> None:
    assert snapshot().among(eligible).search(vector(pay=1)).ranked == ()


def test_an_empty_index_ranks_nobody() -> None:
    empty = Snapshot.build([], np.empty((0, 8), np.float32), version=0)

    assert empty.among([billing]).search(vector(pay=1)).ranked == ()


def test_where_only_the_agents_own_description_is_near_no_capability_is_named() -> None:
    own = Snapshot.build(
        [Evidence(billing, "", "description", "bill")],
        np.stack([vector(bill=1)]),
        version=1,
    )

    ranking = own.among([billing]).search(vector(bill=1))
    decision = decide(ranking, THINGS, threshold=0.3, limit=5, encoder="e")

    assert ranking.ranked[0].capability == ""
    assert (decision.agent, decision.capability) == ("billing", "view")  # its first one


def test_a_view_of_many_thousand_texts_is_searched_whole() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(5000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = [ThingKey("demo", f"a{at % 50}", "stable") for at in range(5000)]
    many = Snapshot.build(
        [evidence(key, "c", str(at)) for at, key in enumerate(keys)], vectors, version=1
    )

    for at in range(0, 5000, 499):
        ranking = many.among(set(keys)).search(vectors[at])
        alone = many.among([keys[at]]).search(vectors[at])
        assert max(one.similarity for one in ranking.ranked) == pytest.approx(1.0, abs=1e-5)
        assert alone.ranked[0].evidence.text == str(at)


directions = st.lists(
    st.floats(-1, 1, width=32).filter(lambda part: abs(part) > 0.01), min_size=8, max_size=8
)


@given(
    st.lists(
        st.tuples(st.sampled_from([billing, weather, travel]), st.sampled_from("ab"), directions),
        min_size=1,
        max_size=30,
    ),
    directions,
    st.sets(st.sampled_from([billing, weather, travel])),
    st.floats(0, 1),
)
def test_every_ranking_is_sound_and_every_decision_follows_from_it(
    texts: list[tuple[ThingKey, str, list[float]]],
    asked: list[float],
    eligible: set[ThingKey],
    threshold: float,
) -> None:
    vectors = np.array([direction for _, _, direction in texts], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = np.array(asked, np.float32)
    query /= np.float32(np.linalg.norm(query))
    found = Snapshot.build(
        [evidence(key, capability, str(at)) for at, (key, capability, _) in enumerate(texts)],
        vectors,
        version=1,
    )
    things = {key: thing(key.name, "a", "b") for key in (billing, weather, travel)}

    ranking = found.among(eligible).search(query)
    decision = decide(ranking, things, threshold=threshold, limit=2, encoder="e")

    shares = [one.share for one in ranking.ranked]
    assert {one.key for one in ranking.ranked} == eligible & {key for key, _, _ in texts}
    assert shares == sorted(shares, reverse=True)
    assert not shares or sum(shares) == pytest.approx(1)
    assert 0 <= ranking.confidence <= 1
    assert len(decision.candidates) == min(2, len(shares))
    if not shares:
        assert decision.outcome == "nobody"
    elif ranking.confidence >= threshold:
        assert (decision.outcome, decision.agent) == ("routed", ranking.ranked[0].key.name)
        assert decision.capability in ("a", "b")
    else:
        assert (decision.outcome, decision.agent) == ("unsure", "")
    assert decision.reason


# -- deciding --


def test_a_clear_message_is_routed_and_the_reason_says_what_it_is_like() -> None:
    ranking = snapshot().among(THINGS).search(vector(rain=1))

    decision = decide(ranking, THINGS, threshold=0.3, limit=2, encoder="e")

    assert (decision.outcome, decision.agent, decision.capability) == ("routed", "weather", "rain")
    assert decision.candidates[0].agent == "weather"
    assert len(decision.candidates) == 2
    assert "“rain”" in decision.reason


def test_a_message_between_two_agents_is_less_sure_than_one_at_home() -> None:
    view = snapshot().among(THINGS)

    at_home = view.search(vector(rain=1)).confidence
    between = view.search(vector(rain=1, bill=1)).confidence
    nowhere = view.search(np.eye(8, dtype=np.float32)[7]).confidence

    assert at_home > between > nowhere


def test_nothing_near_is_abstained_from_and_the_reason_gives_both_figures() -> None:
    ranking = snapshot().among(THINGS).search(np.eye(8, dtype=np.float32)[7])

    decision = decide(ranking, THINGS, threshold=0.3, limit=5, encoder="e")

    assert (decision.outcome, decision.agent) == ("unsure", "")
    assert "30%" in decision.reason
    assert len(decision.candidates) == 3


def test_a_threshold_of_zero_always_routes_and_one_of_one_never() -> None:
    ranking = snapshot().among(THINGS).search(vector(rain=1))

    assert decide(ranking, THINGS, threshold=0, limit=1, encoder="e").outcome == "routed"
    assert decide(ranking, THINGS, threshold=1, limit=1, encoder="e").outcome == "unsure"


def test_confidence_is_never_beyond_its_bounds() -> None:
    assert Ranking(()).confidence == 0.0
    for parts in ({"rain": 1.0}, {"rain": 1.0, "sun": 1.0}, {"trip": 1.0, "pay": -1.0}):
        assert 0 < snapshot().among(THINGS).search(vector(**parts)).confidence < 1
    assert not math.isnan(snapshot().among([travel]).search(vector(trip=-1)).confidence)


def test_an_agent_that_is_named_is_chosen_with_the_capability_that_fits_best() -> None:
    ranking = snapshot().among([weather]).search(vector(sun=1))

    decision = explicit(weather, THINGS[weather], ranking, encoder="e")

    assert (decision.outcome, decision.agent, decision.capability) == ("routed", "weather", "sun")
    assert (decision.method, decision.confidence) == ("explicit", 1.0)


def test_an_agent_that_is_named_needs_no_evidence() -> None:
    decision = explicit(billing, THINGS[billing], Ranking(()), encoder="e")

    assert decision.capability == "view"
    assert explicit(billing, Thing(name="billing"), Ranking(()), encoder="e").capability == ""
