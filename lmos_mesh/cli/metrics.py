"""How good decisions were, where the right ones are known. Pure.

Two questions are kept apart: whether the agent named first is the right one, of messages that are
for somebody; and whether the router can tell these from messages that are for nobody.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

BINS = 15
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
ACCEPTED = 0.95
PRECISION = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A decision, and what would have been right.

    Attributes:
        truth: The right agent; empty for nobody.
        first: The agent that was named first, routed to or not; empty if none was.
        routed: Whether it was routed to `first`.
        confidence: That `first` is right.
        in_scope: How far inside the message is, 0 to 1.
        took_ms: How long the caller waited.
        router_ms: How long the router was at it.
        calls: How often a language model was asked.
        failed: Why there is no decision; empty if there is one.
    """

    truth: str
    first: str = ""
    routed: bool = False
    confidence: float = 0.0
    in_scope: float = 1.0
    outcome: str = "routed"
    could_be: tuple[str, ...] = ()
    took_ms: float = 0.0
    router_ms: float = 0.0
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    failed: str = ""

    @property
    def right(self) -> bool:
        """Whether the right agent was named first."""
        return bool(self.truth) and self.first == self.truth

    @property
    def well_done(self) -> bool:
        """Whether it was routed to the right agent, or rightly to nobody."""
        return self.routed and self.right if self.truth else not self.routed


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Decisions of about the same confidence: `low` < confidence ≤ `high`."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Of the surest `coverage` of all messages, `accuracy` are right."""

    coverage: float
    accuracy: float
    least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OfAgent:
    """How one agent's messages fared.

    Attributes:
        rows: Messages that are for it.
        found: The share of these for which it was named first.
        precision: The share of the messages routed to it that are for it; None if none was.
        asked_back: The share of its messages that were not routed to anybody.
    """

    agent: str
    rows: int
    found: float
    precision: float | None
    asked_back: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused:
    """Messages for one agent for which another was named; `truth` empty: for nobody."""

    truth: str
    taken_for: str
    count: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds."""

    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it; a share is None where there is nothing to count.

    Attributes:
        rows: Messages that were decided; `strangers` of them are for nobody.
        accuracy: Of messages for somebody: the right agent was named first.
        routed: Of messages for somebody: they were routed.
        precision: Of all that were routed: to the right agent.
        rejected: Of messages for nobody: they were not routed.
        right: Of all messages: routed to the right agent, or for nobody and not routed.
        covered: Of messages for somebody: the right agent is among those that it could be.
        choices: How many agents it could be, on average.
        error: Expected calibration error of the confidence.
        sure: The share of messages for somebody that can be routed with `PRECISION`.
        auroc: How well `in_scope` tells messages for somebody from those for nobody.
        rejected_at: The share of those for nobody that are rejected when `ACCEPTED` pass.
    """

    rows: int
    strangers: int
    accuracy: float | None
    routed: float | None
    precision: float | None
    rejected: float | None
    right: float | None
    covered: float | None
    choices: float | None
    error: float | None
    sure: float | None
    auroc: float | None
    rejected_at: float | None
    curve: tuple[Point, ...]
    bins: tuple[Bin, ...]
    agents: tuple[OfAgent, ...]
    confused: tuple[Confused, ...]
    outcomes: Mapping[str, int]
    took: Times | None
    router: Times | None
    asked_model: float
    calls: int
    tokens: int
    cost: float
    failed: int


def report(judged: Sequence[Judged]) -> Report:
    """How good decisions were; what has no decision is counted and else left out."""
    rows = [one for one in judged if not one.failed]
    inside = [one for one in rows if one.truth]
    outside = [one for one in rows if not one.truth]
    sent = [one for one in rows if one.routed]
    said = [(one.confidence, one.right) for one in inside]
    could = [one for one in inside if one.could_be]
    scope_in, scope_out = [one.in_scope for one in inside], [one.in_scope for one in outside]
    bins = reliability(said)
    return Report(
        rows=len(rows),
        strangers=len(outside),
        accuracy=share(one.right for one in inside),
        routed=share(one.routed for one in inside),
        precision=share(one.right for one in sent),
        rejected=share(not one.routed for one in outside),
        right=share(one.well_done for one in rows),
        covered=share(one.truth in one.could_be for one in could),
        choices=sum(len(one.could_be) for one in could) / len(could) if could else None,
        error=calibration_error(bins),
        sure=coverage_at(said, PRECISION),
        auroc=auroc(scope_in, scope_out),
        rejected_at=rejected_at(scope_in, scope_out, ACCEPTED),
        curve=risk_coverage(said, COVERAGES),
        bins=bins,
        agents=by_agent(rows),
        confused=confusions(rows),
        outcomes=dict(Counter(one.outcome for one in rows).most_common()),
        took=times([one.took_ms for one in rows]),
        router=times([one.router_ms for one in rows]),
        asked_model=share(one.calls > 0 for one in rows) or 0.0,
        calls=sum(one.calls for one in rows),
        tokens=sum(one.tokens for one in rows),
        cost=sum(one.cost for one in rows),
        failed=len(judged) - len(rows),
    )


def share(those: Iterable[bool]) -> float | None:
    """How many are true, 0 to 1; None of none."""
    found = list(those)
    return sum(found) / len(found) if found else None


def reliability(said: Sequence[tuple[float, bool]], *, bins: int = BINS) -> tuple[Bin, ...]:
    """Confidence beside success, in bins of equal width; those with nothing in them are left out.

    Args:
        said: Confidence, and whether it was right.
        bins: How many.
    """
    held: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in said:
        at = min(bins - 1, max(0, math.ceil(confidence * bins) - 1))
        held.setdefault(at, []).append((confidence, right))
    return tuple(
        Bin(
            low=at / bins,
            high=(at + 1) / bins,
            count=len(own),
            confidence=sum(confidence for confidence, _ in own) / len(own),
            accuracy=sum(right for _, right in own) / len(own),
        )
        for at, own in sorted(held.items())
    )


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: how far confidence and success are apart, by bins."""
    count = sum(one.count for one in bins)
    if not count:
        return None
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / count


def risk_coverage(
    said: Sequence[tuple[float, bool]], coverages: Sequence[float] | None = None
) -> tuple[Point, ...]:
    """How many are right of the surest ones (El-Yaniv and Wiener, 2010).

    Of messages that are equally sure none is preferred: each counts for its share.

    Args:
        said: Confidence, and whether it was right.
        coverages: The shares to look at; else every one that there is.
    """
    if not said:
        return ()
    order = sorted(said, key=lambda one: -one[0])
    right: list[float] = [0.0]
    for _, tied in groupby(order, key=lambda one: one[0]):
        own = list(tied)
        before, each = right[-1], sum(good for _, good in own) / len(own)
        right.extend(before + each * (number + 1) for number in range(len(own)))
    total = len(order)
    wanted = (
        range(1, total + 1)
        if coverages is None
        else [max(1, math.ceil(one * total - 1e-9)) for one in coverages]
    )
    return tuple(
        Point(
            coverage=count / total if coverages is None else coverages[number],
            accuracy=right[count] / count,
            least=order[count - 1][0],
        )
        for number, count in enumerate(wanted)
    )


def coverage_at(said: Sequence[tuple[float, bool]], precision: float) -> float | None:
    """How many can be routed so that of these at least so many are right; None of none.

    Of messages that are equally sure, all are routed or none.
    """
    if not said:
        return None
    order = sorted(said, key=lambda one: -one[0])
    taken = good = most = 0
    for _, tied in groupby(order, key=lambda one: one[0]):
        own = [right for _, right in tied]
        taken, good = taken + len(own), good + sum(own)
        if good >= precision * taken - 1e-9:
            most = taken
    return most / len(order)


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float | None:
    """How often one from inside scores higher than one from outside; ties count half."""
    if not inside or not outside:
        return None
    marked = sorted([(one, True) for one in inside] + [(one, False) for one in outside])
    below, wins = 0, 0.0
    for _, tied in groupby(marked, key=lambda one: one[0]):
        own = [is_inside for _, is_inside in tied]
        high, low = sum(own), len(own) - sum(own)
        wins += high * (below + low / 2)
        below += low
    return wins / (len(inside) * len(outside))


def rejected_at(inside: Sequence[float], outside: Sequence[float], accepted: float) -> float | None:
    """How many from outside fall below the highest score that so many from inside reach."""
    if not inside or not outside:
        return None
    order = sorted(inside, reverse=True)
    least = order[max(0, math.ceil(accepted * len(order) - 1e-9) - 1)]
    return sum(one < least for one in outside) / len(outside)


def by_agent(rows: Sequence[Judged]) -> tuple[OfAgent, ...]:
    """How the messages of each agent fared, the worst first."""
    own: dict[str, list[Judged]] = {}
    sent: dict[str, list[Judged]] = {}
    for one in rows:
        if one.truth:
            own.setdefault(one.truth, []).append(one)
        if one.routed:
            sent.setdefault(one.first, []).append(one)
    found = (
        OfAgent(
            agent=agent,
            rows=len(those),
            found=sum(one.right for one in those) / len(those),
            precision=share(one.right for one in sent.get(agent, ())),
            asked_back=sum(not one.routed for one in those) / len(those),
        )
        for agent, those in own.items()
    )
    return tuple(sorted(found, key=lambda one: (one.found, one.agent)))


def confusions(rows: Sequence[Judged]) -> tuple[Confused, ...]:
    """Who was taken for whom, the most frequent first.

    What is for nobody counts where it was routed; `taken_for` is empty where none was named.
    """
    of: Counter[str] = Counter(one.truth for one in rows)
    pairs: Counter[tuple[str, str]] = Counter(
        (one.truth, one.first) for one in rows if (not one.right if one.truth else one.routed)
    )
    return tuple(
        Confused(truth=truth, taken_for=other, count=count, share=count / of[truth])
        for (truth, other), count in sorted(pairs.items(), key=lambda one: (-one[1], one[0]))
    )


def times(measured: Sequence[float]) -> Times | None:
    """The middle and the end of what was measured, by nearest rank."""
    if not measured:
        return None
    order = sorted(measured)

    def at(part: float) -> float:
        return order[max(0, math.ceil(part * len(order)) - 1)]

    return Times(p50=at(0.5), p90=at(0.9), p99=at(0.99), most=order[-1])
