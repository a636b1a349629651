"""A canary that is as good as stable is seldom rolled back, and a bad one nearly always, early."""

import random
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from lmos_mesh.resources import Analysis, Check
from lmos_mesh_operator.judging import (
    Sample,
    above,
    alpha_of,
    figures_worse,
    judge,
    outcome_of,
    share_worse,
)

# Untyped.
stats: Any = scipy_stats

NAMED = {"metric": "custom", "event": "shop.csat", "field": "score"}


def sample(failed: int = 0, turns: int = 100, seconds: float = 1.0, **more: object) -> Sample:
    given = {
        "turns": turns,
        "answered": turns - failed,
        "failed": failed,
        # Not one like the other, or there would be nothing to compare.
        "seconds": tuple(seconds * (1 + n % 10 / 100) for n in range(turns - failed)),
        **more,
    }
    return Sample(**given)  # pyright: ignore[reportArgumentType]


def outcome(analysis: Analysis, canary: Sample, stable: Sample, *, alone: bool = False) -> str:
    return outcome_of(judge(analysis, canary, stable, alpha=0.01, alone=alone))


# -- what each check says --


def test_errors_and_seconds_are_judged_unless_something_else_is_asked_for() -> None:
    analysis = Analysis()

    assert outcome(analysis, sample(), sample(turns=900)) == "pass"
    assert outcome(analysis, sample(failed=20), sample(failed=9, turns=900)) == "fail"
    assert outcome(analysis, sample(seconds=3.0), sample(turns=900)) == "fail"
    assert outcome(analysis, sample(seconds=0.3), sample(turns=900)) == "pass"


def test_a_verdict_says_what_was_seen() -> None:
    failed, _ = judge(Analysis(), sample(failed=20), sample(failed=9, turns=900), alpha=0.01)

    assert (failed.canary, failed.stable) == (20.0, 1.0)
    assert (failed.canary_turns, failed.stable_turns) == (100, 900)
    assert failed.p is not None
    assert failed.p < 1e-9
    assert failed.message.startswith(
        "20 % of the canary's turns failed, and 1 % of stable's: worse by more than 1 point"
    )


def test_too_few_turns_of_either_wait() -> None:
    analysis = Analysis(min_turns=50)

    assert outcome(analysis, sample(failed=49, turns=49), sample()) == "waiting"
    assert outcome(analysis, sample(), sample(turns=49)) == "waiting"
    assert outcome(analysis, sample(), Sample(), alone=True) == "pass"


def test_of_a_side_without_turns_nothing_is_said() -> None:
    judged = judge(Analysis(min_turns=50), sample(), Sample(), alpha=0.01, alone=True)

    assert judged
    assert not any("stable" in one.message for one in judged)


@pytest.mark.parametrize(
    ("metric", "member"), [("abstentions", "asked_back"), ("handovers", "handed_over")]
)
def test_abstentions_and_handovers_are_shares_too(metric: str, member: str) -> None:
    analysis = Analysis.model_validate({"checks": [{"metric": metric}]})

    assert outcome(analysis, sample(**{member: 30}), sample(**{member: 5})) == "fail"
    assert outcome(analysis, sample(**{member: 6}), sample(**{member: 5})) == "pass"


@pytest.mark.parametrize(("better", "expected"), [("higher", "fail"), ("lower", "pass")])
def test_a_figure_of_ones_own_is_better_one_way(better: str, expected: str) -> None:
    analysis = Analysis.model_validate({"checks": [{**NAMED, "better": better}]})
    low = {"shop.csat#score": tuple(1 + n / 100 for n in range(60))}
    high = {"shop.csat#score": tuple(4 + n / 100 for n in range(60))}

    assert outcome(analysis, sample(figures=low), sample(figures=high)) == expected
    assert outcome(analysis, sample(), sample()) == "waiting"


def test_what_is_too_close_to_call_waits_for_more() -> None:
    canary, stable = sample(failed=6, turns=36), sample(turns=36)
    analysis = Analysis.model_validate({"minTurns": 15, "checks": [{"metric": "errors"}]})

    (verdict,) = judge(analysis, canary, stable, alpha=0.004)

    assert verdict.outcome == "waiting"
    assert verdict.p is not None
    assert "too close to call" in verdict.message


def test_a_bound_counts_whatever_stable_does() -> None:
    errors = Analysis.model_validate({"checks": [{"metric": "errors", "most": 5}]})
    seconds = Analysis.model_validate({"checks": [{"metric": "latency", "most": 2}]})
    bad = sample(failed=30, turns=200)

    assert outcome(errors, bad, bad) == "fail"
    assert outcome(errors, sample(failed=6), sample(failed=6)) == "pass"
    assert outcome(seconds, sample(seconds=2.5), sample(seconds=2.5)) == "fail"
    assert outcome(seconds, sample(seconds=1.5), sample(seconds=1.5)) == "pass"


def test_figures_that_are_all_alike_are_no_worse() -> None:
    assert figures_worse([1.0] * 9, [1.0] * 9, factor=1) == 1.0


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    st.booleans(),
)
def test_a_margin_never_makes_a_canary_look_worse(
    canary: list[float], stable: list[float], higher: bool
) -> None:
    strict = figures_worse(canary, stable, factor=1.0, higher=higher)
    lenient = figures_worse(canary, stable, factor=1.5, higher=higher)

    # The test is normal or exact, whichever fits the numbers: they differ a little.
    assert lenient >= strict - 0.05


@given(st.integers(1, 80), st.integers(1, 80), st.data())
def test_without_a_margin_shares_are_compared_by_fishers_test(
    of: int, stable_of: int, data: st.DataObject
) -> None:
    failed = data.draw(st.integers(0, of))
    stable_failed = data.draw(st.integers(0, stable_of))
    table = [[failed, of - failed], [stable_failed, stable_of - stable_failed]]

    p = share_worse(failed, of, stable_failed, stable_of, points=0)

    assert p == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    assert share_worse(failed, of, stable_failed, stable_of, points=5) >= p - 1e-12


@given(st.integers(1, 1000), st.data())
def test_a_bound_is_compared_by_the_binomial_test(of: int, data: st.DataObject) -> None:
    over = data.draw(st.integers(0, of))

    expected = stats.binomtest(over, of, 0.1, alternative="greater").pvalue

    assert above(over, of, 0.1) == pytest.approx(expected)


# -- how often they are wrong --


def test_what_is_spent_over_any_number_of_looks_is_no_more_than_alpha() -> None:
    steps = 5

    spent = steps * sum(alpha_of(0.05, steps=steps, look=look) for look in range(1, 10_000))

    assert 0.0499 < spent <= 0.05


@pytest.mark.parametrize(("share", "points"), [(0.01, 0.0), (0.05, 1.0), (0.3, 5.0), (0.6, 10.0)])
@pytest.mark.parametrize(("of", "stable_of"), [(50, 60), (30, 200)])
def test_a_share_just_within_the_margin_fails_no_oftener_than_alpha(
    share: float, points: float, of: int, stable_of: int
) -> None:
    """Not by chance: every outcome there is, by its probability."""
    for alpha in (0.05, 0.005):
        wrong = 0.0
        for stable_failed in range(stable_of + 1):
            likely = stats.binom.pmf(stable_failed, stable_of, share)
            if likely < 1e-9:
                continue
            # The fewest failures of the canary that fail it.
            fewest = next(
                failed
                for failed in count()
                if failed > of
                or share_worse(failed, of, stable_failed, stable_of, points=points) <= alpha
            )
            wrong += likely * stats.binom.sf(fewest - 1, of, share + points / 100)
        assert wrong <= alpha


class Traffic:
    """Two sides of a channel at 50 turns a second, looked at six times in a minute."""

    def __init__(self, seed: str, *, share: float = 0.1) -> None:
        self.dice = random.Random(seed)
        self.share = share

    def side(self, rate: float, errors: float, slow: float) -> Sample:
        turns = round(rate * 10)
        failed = sum(self.dice.random() < errors for _ in range(turns))
        seconds = tuple(slow * self.dice.lognormvariate(0, 0.7) for _ in range(turns - failed))
        return Sample(turns=turns, answered=turns - failed, failed=failed, seconds=seconds)

    def rolled_back_at(
        self, *, errors: float = 0.01, slow: float = 1.0, strict: bool = False, steps: int = 1
    ) -> float | None:
        """The seconds after which a canary is rolled back; None if every step was passed."""
        checks = [
            Check(metric="errors", margin=0.0 if strict else None),
            Check(metric="latency", margin=1.0 if strict else None),
        ]
        analysis = Analysis(window_s=60, checks=tuple(checks), alpha=0.05)
        for step in range(steps):
            canary, stable = Sample(), Sample()
            for look in range(1, 7):
                canary = _sum(canary, self.side(50 * self.share, errors, slow))
                stable = _sum(stable, self.side(50 * (1 - self.share), 0.01, 1.0))
                alpha = alpha_of(analysis.alpha, steps=steps, look=look)
                if outcome_of(judge(analysis, canary, stable, alpha=alpha)) == "fail":
                    return step * 60 + look * 10
        return None


def _sum(one: Sample, other: Sample) -> Sample:
    return Sample(
        turns=one.turns + other.turns,
        answered=one.answered + other.answered,
        failed=one.failed + other.failed,
        seconds=(*one.seconds, *other.seconds),
    )


def test_a_canary_like_stable_is_rolled_back_no_oftener_than_alpha() -> None:
    runs = 100

    wrong = sum(
        Traffic(f"good {n}").rolled_back_at(strict=True, steps=2) is not None for n in range(runs)
    )

    # Were it 5 %, so many more would come by chance once in a thousand times.
    assert wrong <= stats.binom.ppf(0.999, runs, 0.05)


@pytest.mark.parametrize(("errors", "slow"), [(0.2, 1.0), (0.01, 3.0)])
def test_a_bad_canary_is_found_within_its_window(errors: float, slow: float) -> None:
    found = [Traffic(f"bad {n}").rolled_back_at(errors=errors, slow=slow) for n in range(60)]

    assert all(at is not None and at <= 30 for at in found)
