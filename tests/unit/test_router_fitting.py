"""What is fitted makes decisions better on messages that it was not fitted on, and survives."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lmos_mesh_router.evidence import Query
from lmos_mesh_router.fitting import FEWEST, Fit, Known, fit
from lmos_mesh_router.hybrid import Policy
from lmos_mesh_router.learning import learn
from lmos_mesh_router.ranking import Learned, rank
from tests.router_fleets import DIMENSIONS, WORDS, fleet, near, unit

LEARNED = learn(fleet(5, capabilities=2, examples=4))


def stranger(seed: int) -> Query:
    chance = np.random.default_rng([7, seed])
    return Query(unit(chance.normal(size=DIMENSIONS)), unit(chance.normal(size=WORDS)))


def messages(count: int, strangers: int, *, width: float = 0.25) -> list[Known]:
    """Messages further from what is registered than the examples are from each other."""
    known = [Known(near(at % 5, at // 5 % 2, 500 + at, width), at % 5) for at in range(count)]
    return [*known, *(Known(stranger(at), None) for at in range(strangers))]


def with_wrong_numbers() -> Learned:
    """A router that takes everything for in scope, and is sure of nothing."""
    return replace(
        LEARNED,
        calibration={
            method: replace(one, temperature=one.temperature / 8)
            for method, one in LEARNED.calibration.items()
        },
        gate={
            method: replace(one, scores=tuple(score - 60 for score in one.known_scores()))
            for method, one in LEARNED.gate.items()
        },
    )


def test_numbers_that_are_wrong_are_mended() -> None:
    outcome = fit(messages(200, 100), with_wrong_numbers(), threshold=0.3, precision=0.95)

    before, after = outcome.before, outcome.after
    assert before.rejected is not None
    assert after.rejected is not None
    assert after.rejected > before.rejected + 0.1
    assert before.error is not None
    assert after.error is not None
    assert after.error < before.error
    assert after.precision is not None
    assert after.precision >= 0.93
    assert (outcome.fit.rows, outcome.fit.strangers) == (300, 100)


def test_what_tells_agents_apart_is_left_as_it_is() -> None:
    outcome = fit(messages(120, 20), LEARNED, threshold=0.3, precision=0.95)
    applied = outcome.fit.applied_to(LEARNED)

    assert applied.matrix is LEARNED.matrix
    assert applied.head is LEARNED.head
    assert LEARNED.gate["head"].least != applied.gate["head"].least
    assert outcome.after.accuracy == pytest.approx(outcome.before.accuracy, abs=0.03)


@pytest.mark.parametrize("precision", [0.9, 0.97])
def test_what_is_routed_is_as_often_right_as_asked_for(precision: float) -> None:
    known = messages(400, 80, width=0.3)
    outcome = fit(known, with_wrong_numbers(), threshold=0.0, precision=precision)

    assert outcome.before.precision is not None
    assert outcome.after.precision is not None
    assert outcome.before.precision < precision - 0.02 <= outcome.after.precision
    assert outcome.after.routed
    assert outcome.after.routed > 0.2


def test_the_gate_turns_away_few_that_are_in_scope() -> None:
    outcome = fit(messages(200, 100), LEARNED, threshold=0.0, precision=0.5)
    applied = outcome.fit.applied_to(LEARNED)

    rankings = [rank(one.query, applied) for one in messages(200, 0)]
    passed = [one.share >= outcome.fit.in_scope for one in rankings]
    assert sum(passed) / len(passed) >= 0.88
    # Whoever goes by the score decides alike.
    assert [one.in_scope for one in rankings] == passed


def test_what_is_sure_enough_goes_by_what_was_fitted() -> None:
    fitted = Fit(threshold=0.7, in_scope=0.004, methods={})

    policy = fitted.policy(Policy(route=0.5, in_scope=0.05, reject=0.01, sure=0.9))

    assert (policy.route, policy.in_scope, policy.reject, policy.sure) == (0.7, 0.004, 0.004, 0.9)


def test_without_messages_for_nobody_it_says_that_some_would_help() -> None:
    outcome = fit(messages(60, 0), LEARNED, threshold=0.3, precision=0.95)

    assert outcome.after.rejected is None
    assert any("label some `none`" in note for note in outcome.notes)


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{FEWEST - 1} messages"):
        fit(messages(FEWEST - 1, 50), LEARNED, threshold=0.3, precision=0.95)


def test_what_it_decides_by_now_is_what_it_is_compared_with() -> None:
    known = messages(120, 40)
    first = fit(known, with_wrong_numbers(), threshold=0.3, precision=0.95)
    again = fit(known, with_wrong_numbers(), threshold=0.3, precision=0.95, now=first.fit)

    assert again.before.threshold == pytest.approx(first.fit.threshold, abs=1e-4)
    assert again.fit.methods == first.fit.methods


# -- how it is kept --


def fitted() -> Fit:
    return fit(messages(60, 20), LEARNED, threshold=0.3, precision=0.95, at=5.0).fit


def test_what_was_fitted_survives_being_kept() -> None:
    assert Fit.read(fitted().write()) == fitted()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("threshold",), 2),
        (("threshold",), float("nan")),
        (("form",), 1),
        (("methods", "head", "temperature"), 0),
        (("methods", "head", "temperature"), "much"),
        (("methods", "head", "usual"), [1, 2, 3]),
        (("methods", "head", "spread"), [1, 2, 0, 3]),
        (("methods", "head", "scores"), [2, 1]),
        (("methods", "other"), {}),
    ],
)
def test_what_cannot_be_used_is_refused_and_said_where(
    path: tuple[str, ...], value: object
) -> None:
    kept = json.loads(fitted().write())
    place = kept
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    with pytest.raises(ValueError, match=path[-1]):
        Fit.read(json.dumps(kept).encode())


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff", b"null"])
def test_no_bytes_are_taken_for_a_fit(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Fit.read(value)
