"""Figures as one would work them out by hand, and what holds for any decisions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.cli.metrics import (
    Judged,
    auroc,
    calibration_error,
    confusions,
    coverage_at,
    rejected_at,
    reliability,
    report,
    risk_coverage,
    times,
)
from lmos_mesh_router.calibration import expected_error

shares = st.floats(0, 1)
# A few values, so that there are ties.
rough = st.integers(0, 6).map(lambda value: value / 6)
said = st.lists(st.tuples(rough, st.booleans()), min_size=1, max_size=40)
agents = st.sampled_from(["", "a", "b", "c"])
decisions = st.lists(
    st.builds(
        Judged,
        truth=agents,
        first=agents,
        routed=st.booleans(),
        confidence=rough,
        in_scope=rough,
        took_ms=st.floats(0, 1000),
        failed=st.sampled_from(["", "", "", "too late"]),
    ),
    max_size=40,
)


# -- by hand --


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_success() -> None:
    # Four at 0.9 of which three are right; one at 0.3, wrong: (4 * 0.15 + 0.3) / 5.
    rows = [(0.9, True), (0.9, True), (0.9, True), (0.9, False), (0.3, False)]

    bins = reliability(rows, bins=10)

    assert [(one.low, one.high, one.count) for one in bins] == [(0.2, 0.3, 1), (0.8, 0.9, 4)]
    assert calibration_error(bins) == pytest.approx(0.18)


def test_of_the_surest_half_as_many_are_right_as_there_are() -> None:
    rows = [(0.9, True), (0.8, False), (0.7, True), (0.6, True)]

    half, whole = risk_coverage(rows, (0.5, 1.0))

    assert (half.coverage, half.accuracy, half.least) == (0.5, 0.5, 0.8)
    assert (whole.accuracy, whole.least) == (0.75, 0.6)


def test_of_equally_sure_ones_each_counts_for_its_share() -> None:
    assert risk_coverage([(0.5, True), (0.5, False)], (0.5,))[0].accuracy == 0.5


def test_so_many_can_be_routed_as_keep_the_promise() -> None:
    rows = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False)]

    assert coverage_at(rows, 1.0) == 0.4
    assert coverage_at(rows, 0.75) == 0.8
    assert coverage_at(rows, 0.6) == 1.0
    assert coverage_at([(0.9, False)], 0.5) == 0.0


def test_the_auroc_counts_pairs_in_the_right_order() -> None:
    # Of six pairs four are in order and one is a tie.
    assert auroc([0.9, 0.5, 0.4], [0.5, 0.1]) == pytest.approx((4 + 0.5) / 6)


def test_what_falls_below_those_that_pass_is_rejected() -> None:
    inside = [at / 100 for at in range(1, 101)]

    # 95 of 100 reach 0.06.
    assert rejected_at(inside, [0.05, 0.06, 0.0, 0.5], 0.95) == 0.5


def test_the_end_of_what_was_measured_is_by_nearest_rank() -> None:
    found = times([float(at) for at in range(1, 101)])

    assert found is not None
    assert (found.p50, found.p90, found.p99, found.most) == (50, 90, 99, 100)


def test_a_report_by_hand() -> None:
    found = report(
        [
            Judged(truth="a", first="a", routed=True, confidence=1.0, in_scope=0.9, calls=1),
            Judged(truth="a", first="b", routed=True, confidence=0.5, could_be=("a", "b")),
            Judged(truth="b", first="b", outcome="unsure", confidence=0.4, could_be=("b",)),
            Judged(truth="", first="b", routed=True, confidence=0.6, in_scope=0.5, cost=0.25),
            Judged(truth="", first="a", outcome="out_of_scope", in_scope=0.01),
            Judged(truth="b", failed="no answer"),
        ]
    )

    assert (found.rows, found.strangers, found.failed) == (5, 2, 1)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.routed == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(1 / 3)
    assert found.rejected == 0.5
    assert found.right == pytest.approx(2 / 5)
    assert (found.covered, found.choices) == (1.0, 1.5)
    assert found.auroc == 1.0
    assert found.outcomes == {"routed": 3, "unsure": 1, "out_of_scope": 1}
    assert (found.asked_model, found.calls, found.cost) == (0.2, 1, 0.25)
    assert [(one.agent, one.found, one.precision, one.asked_back) for one in found.agents] == [
        ("a", 0.5, 1.0, 0.0),
        ("b", 1.0, 0.0, 1.0),
    ]
    assert [(one.truth, one.taken_for, one.count, one.share) for one in found.confused] == [
        ("", "b", 1, 0.5),
        ("a", "b", 1, 0.5),
    ]


def test_nothing_measured_is_nothing_claimed() -> None:
    found = report([])

    assert (found.rows, found.accuracy, found.error, found.auroc, found.took) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert found.curve == ()


# -- what always holds --


@given(said)
def test_at_full_coverage_all_count(rows: list[tuple[float, bool]]) -> None:
    (whole,) = risk_coverage(rows, (1.0,))

    assert whole.accuracy == pytest.approx(sum(right for _, right in rows) / len(rows))


@given(said, st.randoms())
def test_the_order_of_the_rows_says_nothing(
    rows: list[tuple[float, bool]], chance: random.Random
) -> None:
    mixed = list(rows)
    chance.shuffle(mixed)

    for one, other in zip(risk_coverage(rows), risk_coverage(mixed), strict=True):
        assert one.accuracy == pytest.approx(other.accuracy)
    assert coverage_at(rows, 0.8) == coverage_at(mixed, 0.8)


@given(said)
def test_the_error_is_the_one_that_the_router_fits_by(rows: list[tuple[float, bool]]) -> None:
    theirs = expected_error(
        np.array([confidence for confidence, _ in rows]),
        np.array([right for _, right in rows], np.bool_),
    )

    assert calibration_error(reliability(rows)) == pytest.approx(theirs)


@given(said)
def test_every_row_is_in_one_bin(rows: list[tuple[float, bool]]) -> None:
    bins = reliability(rows)

    assert sum(one.count for one in bins) == len(rows)
    assert all(one.low - 1e-9 <= one.confidence <= one.high + 1e-9 for one in bins)


@given(st.lists(rough, min_size=1, max_size=20), st.lists(rough, min_size=1, max_size=20))
def test_the_auroc_is_the_share_of_pairs(inside: list[float], outside: list[float]) -> None:
    pairs = [(one > other) + (one == other) / 2 for one in inside for other in outside]

    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))
    there, back = auroc(inside, outside), auroc(outside, inside)
    assert there is not None
    assert back is not None
    assert there + back == pytest.approx(1)


@given(decisions)
def test_a_report_adds_up_whatever_was_decided(rows: list[Judged]) -> None:
    found = report(rows)

    assert found.rows + found.failed == len(rows)
    assert sum(one.rows for one in found.agents) == found.rows - found.strangers
    assert sum(found.outcomes.values()) == found.rows
    for share in (found.accuracy, found.routed, found.precision, found.rejected, found.error):
        assert share is None or 0 <= share <= 1
    wrong = sum(one.count for one in confusions([one for one in rows if not one.failed]))
    astray = sum(not one.right if one.truth else one.routed for one in rows if not one.failed)
    assert wrong == astray


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_times_are_in_order(measured: list[float]) -> None:
    found = times(measured)

    assert found is not None
    assert min(measured) <= found.p50 <= found.p90 <= found.p99 <= found.most
    assert math.isclose(found.most, max(measured))
