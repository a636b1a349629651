"""Whatever is known, a ranking stays among the eligible, adds up, and is the same every time."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmos_mesh_router.evidence import ClassKey, Evidence, EvidenceMatrix, Query
from lmos_mesh_router.head import train
from lmos_mesh_router.learning import learn
from lmos_mesh_router.ranking import Learned, Ranking, measure, rank
from tests.router_fleets import DIMENSIONS, WORDS, fleet, key, near, unit

MATRIX = fleet(6, capabilities=3)
LEARNED = learn(MATRIX)
STALE = Learned.of(fleet(8, capabilities=3), LEARNED.head, LEARNED.calibration, LEARNED.gate)
KNOWN = {"instant": Learned.of(MATRIX), "head": LEARNED, "stale": STALE}

known = st.sampled_from(sorted(KNOWN)).map(KNOWN.__getitem__)
seeds = st.integers(0, 10_000)


def stranger(seed: int) -> Query:
    chance = np.random.default_rng(seed)
    return Query(unit(chance.normal(size=DIMENSIONS)), unit(chance.normal(size=WORDS)))


@given(known, seeds, st.sets(st.integers(0, 9), max_size=6))
@settings(max_examples=80, deadline=None)
def test_nobody_is_ranked_who_may_not_be_chosen(
    learned: Learned, seed: int, chosen: set[int]
) -> None:
    eligible = {key(f"a{number}") for number in chosen}

    ranking = rank(stranger(seed), learned, learned.matrix.mask(eligible))

    assert {one.key for one in ranking.ranked} <= eligible
    assert set(ranking.possible) <= eligible
    assert bool(ranking.ranked) == bool(eligible & set(learned.matrix.agents))


@given(known, seeds)
@settings(max_examples=60, deadline=None)
def test_probabilities_add_up_and_the_likeliest_comes_first(learned: Learned, seed: int) -> None:
    ranking = rank(stranger(seed), learned)

    shares = [one.probability for one in ranking.ranked]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert ranking.possible[0] == ranking.ranked[0].key
    for one in ranking.ranked:
        assert one.evidence.key == one.key
        assert one.evidence.capability == one.capability


@given(known, seeds)
@settings(max_examples=30, deadline=None)
def test_the_same_message_is_ranked_the_same_again(learned: Learned, seed: int) -> None:
    assert rank(stranger(seed), learned) == rank(stranger(seed), learned)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_an_agent_that_joins_changes_nothing_of_what_speaks_for_the_others(seed: int) -> None:
    query = stranger(seed)
    before = Learned.of(fleet(3))
    after = Learned.of(fleet(4))

    was, now = measure(query, before), measure(query, after)

    assert was is not None
    assert now is not None
    nearest: dict[ClassKey, tuple[str, float]] = {
        before.matrix.classes[at]: (before.matrix.evidence[row].text, float(similarity))
        for at, row, similarity in zip(
            _ints(was.classes), _ints(was.rows), was.similarities, strict=True
        )
    }
    for at, row, similarity in zip(
        _ints(now.classes), _ints(now.rows), now.similarities, strict=True
    ):
        one = after.matrix.classes[at]
        if one in nearest:
            text, like = nearest[one]
            assert after.matrix.evidence[row].text == text
            assert float(similarity) == pytest.approx(like, abs=1e-6)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_messages_go_where_they_are_meant_to(name: str) -> None:
    learned = KNOWN[name]
    wanted = [(agent, capability) for agent in range(6) for capability in range(3)] * 5

    found = [
        rank(near(agent, capability, number), learned).ranked[0]
        for number, (agent, capability) in enumerate(wanted)
    ]

    right = [
        (one.key.name, one.capability) == (f"a{agent}", f"c{capability}")
        for one, (agent, capability) in zip(found, wanted, strict=True)
    ]
    assert sum(right) / len(right) > 0.9


def test_a_new_agent_is_decided_for_before_the_head_knows_it() -> None:
    changed = LEARNED.changed_to(fleet(7, capabilities=3))

    ranking = rank(near(6, 1, 0), changed)

    assert ranking.method == "instant"
    assert (ranking.ranked[0].key, ranking.ranked[0].capability) == (key("a6"), "c1")


def test_the_head_goes_on_for_agents_that_have_not_changed_when_another_leaves() -> None:
    changed = LEARNED.changed_to(fleet(5, capabilities=3))

    ranking = rank(near(2, 1, 0), changed)

    assert ranking.method == "head"
    assert ranking.ranked[0].key == key("a2")
    assert key("a5") not in {one.key for one in ranking.ranked}


def test_a_head_from_another_encoder_is_not_used() -> None:
    narrow = EvidenceMatrix.build(MATRIX.evidence, MATRIX.vectors, np.empty((len(MATRIX), 0)))

    changed = LEARNED.changed_to(narrow)

    assert changed.head is None
    assert rank(Query(near(0, 0, 1).vector, np.empty(0, np.float32)), changed).ranked


def test_strangers_are_mostly_out_of_scope_and_acquaintances_mostly_in() -> None:
    strangers = [rank(stranger(seed), LEARNED).in_scope for seed in range(100)]
    known = [rank(near(seed % 6, seed % 3, seed), LEARNED).in_scope for seed in range(100)]

    assert sum(strangers) < 30
    assert sum(known) > 80


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_vector_that_points_nowhere_is_ranked_and_out_of_scope(name: str, bad: float) -> None:
    nowhere = Query(np.full(DIMENSIONS, bad, np.float32), np.full(WORDS, bad, np.float32))

    with np.errstate(invalid="ignore"):
        ranking = rank(nowhere, KNOWN[name])

    assert ranking.ranked
    assert not ranking.in_scope
    assert all(np.isfinite(one.probability) for one in ranking.ranked)


def test_with_no_agent_there_is_no_ranking() -> None:
    empty = EvidenceMatrix.build([], np.empty((0, DIMENSIONS), np.float32), np.empty((0, WORDS)))

    assert rank(stranger(1), learn(empty)) == Ranking()
    assert not Ranking().in_scope
    assert not Ranking().sure


@pytest.mark.parametrize("examples", [0, 1, 2])
def test_one_capability_with_hardly_any_example_is_enough(examples: int) -> None:
    learned = learn(fleet(1, capabilities=1, examples=examples))

    ranking = rank(near(0, 0, 1), learned)

    assert ranking.confidence == pytest.approx(1)
    assert ranking.possible == (key("a0"),)


def test_what_is_learned_from_the_same_evidence_is_the_same() -> None:
    again = learn(fleet(6, capabilities=3))

    assert again.calibration == LEARNED.calibration
    assert again.gate == LEARNED.gate


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    grown = fleet(7, capabilities=3)

    cold = train(grown, tolerance=1e-7)
    warm = train(grown, warm=LEARNED.head, tolerance=1e-7)

    assert cold is not None
    assert warm is not None
    rows = grown.joined()
    np.testing.assert_allclose(
        _shares(rows @ cold.weights.T + cold.bias),
        _shares(rows @ warm.weights.T + warm.bias),
        atol=0.02,
    )


def test_there_is_no_head_where_there_is_nothing_to_tell_apart() -> None:
    assert train(fleet(1, capabilities=1)) is None


def test_the_same_text_for_two_agents_is_a_tie_that_names_both() -> None:
    evidence = [
        Evidence(key(name), "c", kind, "the same")
        for name in ("a", "b")
        for kind in ("example", "name")
    ]
    vectors = np.tile(near(0, 0, 1).vector, (4, 1))
    learned = learn(EvidenceMatrix.build(evidence, vectors, np.zeros((4, WORDS))))

    ranking = rank(near(0, 0, 1), learned)

    assert [one.probability for one in ranking.ranked] == pytest.approx([0.5, 0.5], abs=0.01)
    assert ranking.possible == (key("a"), key("b"))
    assert not ranking.sure


def _shares(scores: np.ndarray) -> np.ndarray:
    sharp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return sharp / sharp.sum(axis=1, keepdims=True)


def _ints(numbers: npt.NDArray[np.int64]) -> list[int]:
    return [int(one) for one in numbers]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_capability_that_is_alone_does_not_take_strangers_for_its_own(name: str) -> None:
    learned = KNOWN[name]
    only = np.zeros(len(learned.matrix.classes), np.bool_)
    only[0] = True

    strangers = [rank(stranger(seed), learned, only).in_scope for seed in range(200)]
    own = [rank(near(0, 0, seed), learned, only).in_scope for seed in range(200)]

    assert sum(strangers) <= 40
    assert sum(own) >= 180
