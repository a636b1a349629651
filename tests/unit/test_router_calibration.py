"""Probabilities keep the order of scores, and promises are kept on what was held out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_router import scope
from lmos_mesh_router.calibration import (
    Calibration,
    Judged,
    conformal,
    expected_error,
    fit,
    probabilities,
    surest,
)
from lmos_mesh_router.scope import Gate

DEFAULT = Calibration(temperature=2.0, route_at=0.9, possible_at=0.1)
GATE = Gate(usual=(0.5,) * 4, spread=(0.1,) * 4, least=-6.0)

scores = st.lists(st.floats(-50, 50), min_size=1, max_size=12)
temperatures = st.floats(0.01, 50)


def judged(count: int, truth_in: float, seed: int = 0) -> list[Judged]:
    """Two agents; scores that claim 0.88 at temperature 1, and are right as often as given."""
    chance = np.random.default_rng(seed)
    return [
        Judged(np.array([2.0, 0.0]), np.array([0, 1]), int(chance.random() >= truth_in))
        for _ in range(count)
    ]


@given(scores, temperatures)
def test_probabilities_add_up_and_keep_the_order_of_scores(
    given_scores: list[float], temperature: float
) -> None:
    alone = np.arange(len(given_scores))

    shares = np.array(probabilities(np.array(given_scores), alone, temperature))

    assert shares.sum() == pytest.approx(1)
    order = np.argsort(given_scores, kind="stable")
    assert (np.diff(shares[order]) >= -1e-12).all()


@given(scores, temperatures, st.floats(1, 5))
def test_a_higher_temperature_never_makes_the_first_less_sure(
    given_scores: list[float], temperature: float, factor: float
) -> None:
    alone = np.arange(len(given_scores))

    lower = max(probabilities(np.array(given_scores), alone, temperature))
    higher = max(probabilities(np.array(given_scores), alone, temperature * factor))

    assert higher >= lower - 1e-9


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 3)), min_size=1, max_size=12),
    temperatures,
    temperatures,
)
def test_a_temperature_never_changes_which_agent_is_first(
    claims: list[tuple[float, int]], one: float, other: float
) -> None:
    scores_of = np.array([score for score, _ in claims])
    agents = np.array([agent for _, agent in claims])

    before = np.bincount(agents, probabilities(scores_of, agents, one))
    after = np.bincount(agents, probabilities(scores_of, agents, other))

    assert after[before.argmax()] == pytest.approx(after.max())
    assert before.sum() == pytest.approx(1)


def test_several_capabilities_that_speak_for_an_agent_outweigh_one_that_speaks_a_little_more() -> (
    None
):
    said, agents = np.array([2.0, 1.8, 1.8]), np.array([0, 1, 1])

    shares = probabilities(said, agents, 10.0)

    assert shares[1] + shares[2] > 0.99
    assert shares[1] == pytest.approx(shares[2])


@pytest.mark.parametrize("truth", [0.6, 0.75, 0.95])
def test_a_fitted_probability_is_how_often_it_was_right(truth: float) -> None:
    held = judged(2_000, truth)

    fitted = fit(held, DEFAULT)

    said = probabilities(held[0].scores, held[0].agents, fitted.temperature)[0]
    assert said == pytest.approx(np.mean([one.truth == 0 for one in held]), abs=0.02)
    assert fitted.error < 0.02
    assert fitted.examples == 2_000


def test_a_handful_of_lucky_examples_makes_nobody_certain() -> None:
    fitted = fit(judged(3, 1.0), DEFAULT)

    assert fitted.temperature < 2 * DEFAULT.temperature
    assert fitted.route_at == DEFAULT.route_at


def test_without_examples_the_default_holds() -> None:
    assert fit([], DEFAULT) is DEFAULT
    assert scope.fit(np.empty((0, 4)), GATE) is GATE


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300))
def test_at_the_found_confidence_and_above_enough_are_right(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([one for one, _ in rows])
    right = np.array([one for _, one in rows])

    found = surest(confidence, right, 2.0)

    assert found == 2.0 or right[confidence >= found].mean() >= 0.98


def test_the_promise_of_the_threshold_is_kept_on_others() -> None:
    chance = np.random.default_rng(0)
    confidence = chance.random(4_000)
    right = chance.random(4_000) < 0.8 + 0.2 * confidence

    found = surest(confidence[:2_000], right[:2_000], 1.0)

    others = confidence[2_000:] >= found
    assert right[2_000:][others].mean() >= 0.975


@given(st.lists(st.floats(0, 1), min_size=20, max_size=400), st.floats(0.5, 0.99))
def test_a_conformal_set_holds_what_it_was_fitted_on_often_enough(
    true: list[float], covered: float
) -> None:
    bound = conformal(np.array(true), covered=covered)

    assert np.mean(np.array(true) >= bound) >= covered - 1e-9


def test_with_too_few_examples_every_agent_stays_possible() -> None:
    assert conformal(np.array([0.9, 0.9])) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=100))
def test_the_calibration_error_is_a_share(rows: list[tuple[float, bool]]) -> None:
    error = expected_error(np.array([x for x, _ in rows]), np.array([y for _, y in rows], bool))

    assert 0 <= error <= 1


def test_honest_confidence_has_no_error() -> None:
    assert expected_error(np.full(100, 0.7), np.arange(100) < 70) == pytest.approx(0)
    assert expected_error(np.full(100, 0.7), np.arange(100) < 50) == pytest.approx(0.2)


def test_the_gate_accepts_the_share_it_was_set_for() -> None:
    chance = np.random.default_rng(0)
    signals = chance.normal(0.6, 0.1, size=(2_000, 4))

    gate = scope.fit(signals, GATE)

    others = chance.normal(0.6, 0.1, size=(2_000, 4))
    accepted = np.mean([gate.accepts(row.tolist()) for row in others])
    assert accepted == pytest.approx(scope.ACCEPTED, abs=0.02)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(0, 3), st.floats(0, 1))
def test_a_nearer_message_is_never_less_in_scope(
    signals: list[float], place: int, more: float
) -> None:
    nearer = [one + more * (at == place) for at, one in enumerate(signals)]

    assert GATE.score(nearer) >= GATE.score(signals)


def test_signals_that_never_differ_divide_by_no_zero() -> None:
    gate = scope.fit(np.ones((500, 4)), Gate(usual=(1.0,) * 4, spread=(0.0,) * 4, least=0.0))

    assert np.isfinite(gate.score((1.0, 1.0, 1.0, 1.0)))


@given(st.lists(st.floats(-20, 20), min_size=15, max_size=15), st.floats(-25, 25))
def test_a_share_lies_between_those_of_the_known_scores(known: list[float], score: float) -> None:
    gate = replace(GATE, scores=tuple(sorted(known)))

    share = gate.share(score)

    # Where scores are known twice, any share between theirs will do.
    low = [one for at, one in zip(gate.scores, scope.SHARES, strict=True) if at < score]
    high = [one for at, one in zip(gate.scores, scope.SHARES, strict=True) if at > score]
    assert max(low, default=0.0) - 1e-12 <= share <= min(high, default=1.0) + 1e-12
    assert share == 0.0 or score >= gate.scores[0]
