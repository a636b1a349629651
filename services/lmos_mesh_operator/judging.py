"""Whether a canary is worse than stable: tests whose error rate is known. Pure.

Shares of turns (errors, abstentions, hand-overs): Fisher's exact test, one-sided. Seconds and other
figures: the Mann-Whitney U test, one-sided, which asks nothing of their distribution. Both ask
whether the canary is worse *by more than the margin*: stable is given the margin first.

A canary is looked at many times. Look `k` of a step spends `alpha / (k (k + 1))` of the step's
alpha, which adds up to it over any number of looks. It holds by the union bound alone: looks at
windows that overlap are anything but independent, a new leader may look at other moments than the
one before it, and nobody knows beforehand how long somebody will pause a step. The steps share the
alpha of the rollout alike, and so do the checks of a look.

A canary that cannot be called worse need not be good: there may be too few turns to tell. So one
passes only if chance alone would as easily have made it look like that (p above `DOUBT`); in
between nothing rises and nothing is rolled back until more turns have decided it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from lmos_mesh.errors import SettingsError
from lmos_mesh.resources import Analysis, Check, Verdict

Outcome = Literal["pass", "fail", "waiting"]

DEFAULT_CHECKS = (Check(metric="errors"), Check(metric="latency"))
POINTS = {"errors": 1.0, "abstentions": 2.0, "handovers": 2.0}
"""The margin of a share where none is given, in percentage points."""
FACTOR = 1.2
"""The margin of seconds and figures where none is given."""
DOUBT = 0.2
"""The p-value up to which a canary is neither called worse nor passed."""

_DID = {
    "errors": "failed",
    "abstentions": "were answered by asking back",
    "handovers": "were handed over",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one side did in a window.

    Attributes:
        turns: Those that came to an end by themselves: cancelled ones say nothing.
        answered: Those with an agent's answer.
        seconds: To the end of each answer.
        figures: Of each custom check, by its `event#field`.
    """

    turns: int = 0
    answered: int = 0
    failed: int = 0
    asked_back: int = 0
    handed_over: int = 0
    seconds: Sequence[float] = ()
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])


def checks_of(analysis: Analysis) -> tuple[Check, ...]:
    """What a canary is judged by."""
    return analysis.checks or DEFAULT_CHECKS


def figure_of(check: Check) -> str:
    """What the figures of a custom check are called in a `Sample`."""
    return f"{check.event}#{check.field}"


def alpha_of(alpha: float, *, steps: int, look: int) -> float:
    """What may be spent at a look of a step, the first being 1."""
    return alpha / max(steps, 1) / (look * (look + 1))


def judge(
    analysis: Analysis, canary: Sample, stable: Sample, *, alpha: float, alone: bool = False
) -> tuple[Verdict, ...]:
    """What every check says.

    Args:
        analysis: What to judge by.
        canary: What the canary did.
        stable: What stable did in the same window.
        alpha: The chance that any of the checks fails a canary that is within its margin.
        alone: Whether stable has no conversations any more, so that it need not have turns.
    """
    checks = checks_of(analysis)
    tests = sum(1 if check.most is None else 2 for check in checks)
    return tuple(
        _judge(check, canary, stable, _Terms(analysis.min_turns, alpha / tests, alone))
        for check in checks
    )


def outcome_of(verdicts: Sequence[Verdict]) -> Outcome:
    """What all of them say together: one that fails is enough, and all must have been tested."""
    outcomes = {one.outcome for one in verdicts}
    if "fail" in outcomes:
        return "fail"
    return "waiting" if "waiting" in outcomes else "pass"


def share_worse(
    failed: int, of: int, stable_failed: int, stable_of: int, *, points: float
) -> float:
    """The p-value of a canary's share being higher than stable's by more than the margin.

    The margin is added to what stable has, rounded up: what is left is Fisher's test, and errs on
    the canary's side.
    """
    given = min(stable_of, stable_failed + math.ceil(points / 100 * stable_of))
    if not of or not stable_of:
        return 1.0
    tail = _stats().hypergeom.sf(failed - 1, of + stable_of, failed + given, of)
    return min(1.0, float(tail))


def figures_worse(
    canary: Sequence[float], stable: Sequence[float], *, factor: float, higher: bool = False
) -> float:
    """The p-value of a canary's figures being worse than stable's by more than a factor.

    Args:
        canary: Its figures.
        stable: Those of stable.
        factor: What the canary's are eased by before they are compared.
        higher: Whether higher is better.
    """
    if not canary or not stable:
        return 1.0
    factor = max(factor, 1.0)
    eased = [_eased(one, factor, up=higher) for one in canary]
    if min(*eased, *stable) == max(*eased, *stable):
        return 1.0
    way = "less" if higher else "greater"
    return float(_stats().mannwhitneyu(eased, stable, alternative=way).pvalue)


def above(count: int, of: int, share: float) -> float:
    """The p-value of a share being above a bound: the binomial test, one-sided."""
    return float(_stats().binom.sf(count - 1, of, min(share, 1.0))) if of else 1.0


@dataclass(frozen=True, slots=True)
class _Terms:
    min_turns: int
    level: float
    alone: bool


def _judge(check: Check, canary: Sample, stable: Sample, terms: _Terms) -> Verdict:
    if check.metric in ("latency", "custom"):
        return _judge_figures(check, canary, stable, terms)
    return _judge_share(check, canary, stable, terms)


def _judge_share(check: Check, canary: Sample, stable: Sample, terms: _Terms) -> Verdict:
    count, of = _share(check.metric, canary)
    stable_count, stable_of = _share(check.metric, stable)
    points = POINTS[check.metric] if check.margin is None else check.margin
    known = Verdict(
        metric=check.metric,
        outcome="waiting",
        canary=_percent(count, of),
        stable=_percent(stable_count, stable_of),
        canary_turns=of,
        stable_turns=stable_of,
    )
    if (few := _too_few(of, stable_of, "turns", terms)) is not None:
        return known.model_copy(update={"message": few})
    did = _DID[check.metric]
    said = f"{_shown(known.canary)} % of the canary's turns {did}"
    if check.most is not None:
        p = above(count, of, check.most / 100)
        if p <= terms.level:
            return _failed(known, p, f"{said}, {check.most:g} % is the most")
    p = share_worse(count, of, stable_count, stable_of, points=points)
    than = f"{said}, and {_shown(known.stable)} % of stable's" if stable_of else said
    if p <= terms.level:
        unit = "point" if points == 1 else "points"
        return _failed(known, p, f"{than}: worse by more than {points:g} {unit}")
    return _not_failed(known, p, than)


def _judge_figures(check: Check, canary: Sample, stable: Sample, terms: _Terms) -> Verdict:
    if check.metric == "latency":
        of, stable_of, what = canary.seconds, stable.seconds, "seconds"
    else:
        name = figure_of(check)
        of, stable_of = canary.figures.get(name, ()), stable.figures.get(name, ())
        what = f"{check.event} {check.field}"
    known = Verdict(
        metric=check.metric if check.metric == "latency" else f"custom {what}",
        outcome="waiting",
        canary=median(of) if of else None,
        stable=median(stable_of) if stable_of else None,
        canary_turns=len(of),
        stable_turns=len(stable_of),
    )
    unit = "answers" if check.metric == "latency" else "figures"
    if (few := _too_few(len(of), len(stable_of), unit, terms)) is not None:
        return known.model_copy(update={"message": few})
    said = f"the canary's median is {_shown(known.canary)} {what}"
    if check.most is not None:
        p = above(sum(one > check.most for one in of), len(of), 0.5)
        if p <= terms.level:
            return _failed(known, p, f"{said}, {check.most:g} is the most")
    factor = FACTOR if check.margin is None else check.margin
    p = figures_worse(of, stable_of, factor=factor, higher=check.better == "higher")
    than = f"{said}, and stable's {_shown(known.stable)}" if stable_of else said
    if p <= terms.level:
        return _failed(known, p, f"{than}: worse by more than a factor of {max(factor, 1.0):g}")
    return _not_failed(known, p, than)


def _too_few(of: int, stable_of: int, unit: str, terms: _Terms) -> str | None:
    if of < terms.min_turns:
        return f"{of} {unit} of the canary so far, {terms.min_turns} are needed"
    if stable_of < terms.min_turns and not terms.alone:
        return f"{stable_of} {unit} of stable so far, {terms.min_turns} are needed to compare"
    return None


def _failed(known: Verdict, p: float, message: str) -> Verdict:
    return known.model_copy(
        update={"outcome": "fail", "p": p, "message": f"{message} (p = {p:.2g})"}
    )


def _not_failed(known: Verdict, p: float, message: str) -> Verdict:
    if p > DOUBT:
        return known.model_copy(
            update={"outcome": "pass", "p": p, "message": f"{message} (p = {p:.2g})"}
        )
    return known.model_copy(
        update={"p": p, "message": f"{message}: too close to call (p = {p:.2g})"}
    )


def _share(metric: str, sample: Sample) -> tuple[int, int]:
    if metric == "errors":
        return sample.failed, sample.turns
    if metric == "abstentions":
        return sample.asked_back, sample.turns
    return sample.handed_over, sample.answered


def _eased(figure: float, factor: float, *, up: bool) -> float:
    """A figure made better by a factor, on whichever side of nothing it is."""
    return figure * factor if (figure > 0) == up else figure / factor


def _percent(count: int, of: int) -> float | None:
    return 100 * count / of if of else None


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3g}"


def _stats() -> Any:
    """SciPy takes a second to import; only who judges needs it.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        from scipy import stats  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as exc:
        raise SettingsError(
            "to judge a rollout SciPy is needed, which is not installed",
            hint='run `pip install "lmos-mesh[operator]"`',
        ) from exc
    return stats


def prepare() -> None:
    """Import what judging needs, away from the event loop.

    Raises:
        SettingsError: It is not installed.
    """
    _stats()
