"""Fits how sure the router must be on messages whose right agents are known. Pure.

What tells agents apart is learned from what they registered; this moves only the three numbers
between its scores and a decision: the temperature, the gate and the threshold. How good they are
is told by messages that they were not fitted on.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError

from lmos_mesh.endpoint import Message
from lmos_mesh.messages import FitFigures
from lmos_mesh_router import calibration as calibrating
from lmos_mesh_router import scope
from lmos_mesh_router.calibration import Calibration, Judged, by_agent, probabilities
from lmos_mesh_router.evidence import EvidenceMatrix, Mask, Query
from lmos_mesh_router.hybrid import Policy
from lmos_mesh_router.ranking import Learned, Measured, Method, measure
from lmos_mesh_router.scope import Gate

FEWEST = 20
"""Messages for somebody; fewer say nothing."""

MOST = 4_000
"""Messages that are fitted on; more would make no number better."""

_FOLDS = 5
_LEAST_ACCEPTED = 0.9
_LEAST_SHARE = 0.001
_DOUBT = 0.5  # standard errors
_HELD_BY = 20.0  # messages for nobody that count as much as the gate without any
_METHODS: tuple[Method, ...] = ("head", "instant")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Four = tuple[Finite, Finite, Finite, Finite]


class FittedMethod(Message):
    """What was fitted for one way to score; the fields of `Calibration` and `Gate`."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    route_at: Share
    possible_at: Share
    error: Finite = 0.0
    usual: Four
    spread: Four
    least: Finite
    scores: tuple[Finite, ...] = ()
    examples: int = 0

    @classmethod
    def of(cls, calibration: Calibration, gate: Gate) -> "FittedMethod":
        """Both in one."""
        return cls(
            temperature=calibration.temperature,
            route_at=min(1.0, max(0.0, calibration.route_at)),
            possible_at=min(1.0, max(0.0, calibration.possible_at)),
            error=calibration.error,
            usual=_four(gate.usual),
            spread=_four(gate.spread),
            least=gate.least,
            scores=gate.scores,
            examples=calibration.examples,
        )

    @property
    def calibration(self) -> Calibration:
        """What makes scores into probabilities."""
        return Calibration(
            temperature=self.temperature,
            route_at=self.route_at,
            possible_at=self.possible_at,
            error=self.error,
            examples=self.examples,
        )

    @property
    def gate(self) -> Gate:
        """What is in scope."""
        return Gate(
            usual=self.usual,
            spread=self.spread,
            least=self.least,
            examples=self.examples,
            scores=self.scores,
        )


class Fit(Message):
    """What was fitted for one tenant, channel and encoder. Kept in the bucket `lmos_router`.

    Attributes:
        threshold: The least confidence to route with.
        in_scope: The least share of messages in scope that must be as far out.
        methods: By how it is scored.
        rows: Messages that it was fitted on; `strangers` of them are for nobody.
        at: Unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    form: Literal[2] = 2
    threshold: Share
    in_scope: Share = 1 - scope.ACCEPTED
    methods: dict[Method, FittedMethod]
    rows: int = 0
    strangers: int = 0
    at: float = 0.0

    def applied_to(self, learned: Learned) -> Learned:
        """What is known, with these numbers; the evidence and the head are shared."""
        calibration = {method: one.calibration for method, one in self.methods.items()}
        gate = {method: one.gate for method, one in self.methods.items()}
        return replace(
            learned,
            calibration={**learned.calibration, **calibration},
            gate={**learned.gate, **gate},
        )

    def policy(self, policy: Policy) -> Policy:
        """What is sure enough, by these numbers."""
        reject = min(policy.reject, self.in_scope)
        return replace(policy, route=self.threshold, in_scope=self.in_scope, reject=reject)

    def write(self) -> bytes:
        """As it is kept."""
        return self.model_dump_json().encode()

    @classmethod
    def read(cls, value: bytes) -> "Fit":
        """What was kept.

        Raises:
            ValueError: It cannot be used; says why, in one line.
        """
        try:
            fit = cls.model_validate_json(value)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = "/".join(map(str, first["loc"]))
            raise ValueError(f"/{where}: {first['msg']}") from None
        for method, one in fit.methods.items():
            if min(one.spread) <= 0:
                raise ValueError(f"/methods/{method}/spread: must be positive")
            if one.scores and (
                len(one.scores) != len(scope.SHARES) or list(one.scores) != sorted(one.scores)
            ):
                raise ValueError(f"/methods/{method}/scores: must be as many as shares, and rise")
        return fit


class Known(NamedTuple):
    """A message whose right agent is known.

    Attributes:
        agent: Its place in `EvidenceMatrix.agents`; None if the message is for nobody.
    """

    query: Query
    agent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of fitting."""

    fit: Fit
    before: FitFigures
    after: FitFigures
    notes: tuple[str, ...] = ()


class _Heard(NamedTuple):
    """A message held against the capabilities, in every way to score, and as it would be."""

    by: Mapping[Method, Measured]
    served: Measured
    agent: int | None


class _Numbers(NamedTuple):
    """What is between scores and a decision."""

    threshold: float
    in_scope: float
    calibration: Mapping[Method, Calibration]
    gate: Mapping[Method, Gate]


class _Told(NamedTuple):
    """A message as it is decided by some numbers."""

    confidence: float
    right: bool
    passes: bool
    is_for_somebody: bool
    least: float

    @property
    def routed(self) -> bool:
        return self.passes and self.confidence >= self.least


def fit(
    known: Sequence[Known],
    learned: Learned,
    *,
    threshold: float,
    precision: float,
    in_scope: float = 1 - scope.ACCEPTED,
    now: Fit | None = None,
    eligible: Mask | None = None,
    seed: int = 0,
    at: float = 0.0,
) -> Outcome:
    """The numbers that fit labelled messages best, and how the router does with them.

    Args:
        known: The messages; at least `FEWEST` of them for somebody.
        learned: What the router knows, with the numbers that it has without labelled messages.
        threshold: The least confidence that it routes with then.
        precision: How many of what is routed shall go to the right agent.
        in_scope: The least share of messages in scope that must be as far out then.
        now: What it decides by now, to compare with.
        eligible: The classes that may be chosen.
        seed: Which messages are held out together.
        at: When this is, in Unix seconds.

    Raises:
        ValueError: The messages are too few; says so.
    """
    inside = sum(one.agent is not None for one in known)
    if inside < FEWEST:
        raise ValueError(f"{inside} messages for agents that may be chosen here are too few")
    heard = [found for one in known if (found := _hear(one, learned, eligible)) is not None]
    matrix = learned.matrix
    plain = _Numbers(threshold, in_scope, learned.calibration, learned.gate)
    before = plain
    if now is not None:
        applied = now.applied_to(learned)
        before = _Numbers(now.threshold, now.in_scope, applied.calibration, applied.gate)
    best = _fitted(heard, matrix, plain, precision)
    held: list[_Told] = []
    for told, others in _folds(heard, seed):
        numbers = _fitted(others, matrix, plain, precision)
        held.extend(_decided(one, matrix, numbers) for one in told)
    strangers = sum(one.agent is None for one in heard)
    served = heard[0].served.method
    fitted = Fit(
        threshold=best.threshold,
        in_scope=best.in_scope,
        methods={
            method: FittedMethod.of(best.calibration[method], best.gate[method])
            for method in _METHODS
            if any(method in one.by for one in heard)
        },
        rows=len(heard),
        strangers=strangers,
        at=at,
    )
    notes: list[str] = []
    if not strangers:
        notes.append(
            "no message is for nobody, so the gate lets "
            f"{scope.ACCEPTED:.0%} of these messages pass; label some `none`"
        )
    after = _figures(held, best, served)
    if after.precision is not None and after.precision < precision:
        notes.append(
            f"of what is routed {after.precision:.1%} go to the right agent, not the "
            f"{precision:.1%} that were asked for"
        )
    return Outcome(
        fit=fitted,
        before=_figures([_decided(one, matrix, before) for one in heard], before, served),
        after=after,
        notes=tuple(notes),
    )


def _hear(known: Known, learned: Learned, eligible: Mask | None) -> _Heard | None:
    served = measure(known.query, learned, eligible)
    if served is None:
        return None
    by: dict[Method, Measured] = {}
    for method in _METHODS:
        if method == "instant" or learned.head is not None:
            found = (
                served
                if method == served.method
                else measure(known.query, learned, eligible, method=method)
            )
            if found is not None:
                by[method] = found
    return _Heard(by, served, known.agent)


def _fitted(
    heard: Sequence[_Heard], matrix: EvidenceMatrix, now: _Numbers, precision: float
) -> _Numbers:
    calibration, gate = dict(now.calibration), dict(now.gate)
    for method in _METHODS:
        own = [(one.by[method], one.agent) for one in heard if method in one.by]
        inside = [(one, agent) for one, agent in own if agent is not None]
        if not inside:
            continue
        judged = [Judged(one.scores, matrix.agent_of[one.classes], agent) for one, agent in inside]
        calibration[method] = calibrating.fit(judged, now.calibration[method])
        gate[method] = scope.fit(_signals(one for one, _ in inside), now.gate[method])
    in_scope = _least_share(heard, gate, now.in_scope)
    for method, one in gate.items():
        least = float(np.interp(in_scope, scope.SHARES, one.known_scores()))
        gate[method] = replace(one, least=least)
    numbers = _Numbers(0.0, in_scope, calibration, gate)
    told = [one for one in (_decided(one, matrix, numbers) for one in heard) if one.passes]
    return numbers._replace(threshold=_least_confidence(told, precision, now.threshold))


def _least_confidence(told: Sequence[_Told], precision: float, default: float) -> float:
    """The lowest confidence from which on upwards enough are right; the default if none is.

    Enough by a little more, or every second promise would be broken. Where all may be routed,
    the default holds if it is lower: less sure messages than these will come.
    """
    order = sorted(told, key=lambda one: -one.confidence)
    right = 0
    least: float | None = None
    for count, one in enumerate(order, start=1):
        right += one.right
        tied = count < len(order) and order[count].confidence == one.confidence
        enough = precision + _DOUBT * math.sqrt(precision * (1 - precision) / count)
        if not tied and count >= FEWEST and right / count >= min(1.0, enough):
            least = one.confidence if count < len(order) else min(one.confidence, default)
    return default if least is None else min(1.0, max(0.0, least))


def _signals(measured: Iterable[Measured]) -> npt.NDArray[np.float64]:
    return np.array([one.signals for one in measured], np.float64).reshape(-1, 4)


def _least_share(heard: Sequence[_Heard], gate: Mapping[Method, Gate], default: float) -> float:
    """How far out a message may be: what tells both kinds apart best, and turns few away.

    With few messages for nobody it stays near what holds without any.
    """
    shares: dict[bool, list[float]] = {True: [], False: []}
    for one in heard:
        own = gate[one.served.method]
        shares[one.agent is not None].append(own.share(own.score(one.served.signals)))
    inside, outside = np.sort(shares[True]), np.sort(shares[False])
    if not len(outside):
        return default
    tried = np.linspace(_LEAST_SHARE, 1 - _LEAST_ACCEPTED, 100)
    passing = 1 - np.searchsorted(inside, tried) / len(inside)
    turned_away = np.searchsorted(outside, tried) / len(outside)
    worth = np.where(passing >= _LEAST_ACCEPTED, passing + turned_away, -1.0)
    # In the middle of all that are as good.
    best = float(np.median(tried[worth >= worth.max() - 1e-9]))
    own = len(outside) / (len(outside) + _HELD_BY)
    return own * best + (1 - own) * default


def _decided(heard: _Heard, matrix: EvidenceMatrix, numbers: _Numbers) -> _Told:
    one = heard.served
    of = matrix.agent_of[one.classes]
    shares = probabilities(one.scores, of, numbers.calibration[one.method].temperature)
    agents = by_agent(shares, of)
    gate = numbers.gate[one.method]
    # Of equals the first by name, as they are ranked.
    first = min(agents, key=lambda at: (-agents[at], matrix.agents[at]))
    return _Told(
        agents[first],
        first == heard.agent,
        gate.share(gate.score(one.signals)) >= numbers.in_scope,
        heard.agent is not None,
        numbers.threshold,
    )


def _figures(told: Sequence[_Told], numbers: _Numbers, served: Method) -> FitFigures:
    inside = [one for one in told if one.is_for_somebody]
    error = calibrating.expected_error(
        np.array([one.confidence for one in inside], np.float64),
        np.array([one.right for one in inside], np.bool_),
    )
    return FitFigures(
        threshold=round(numbers.threshold, 4),
        in_scope_at=round(numbers.in_scope, 4),
        temperature=round(numbers.calibration[served].temperature, 4),
        accuracy=_share([one.right for one in inside]),
        routed=_share([one.routed for one in inside]),
        precision=_share([one.right for one in told if one.routed]),
        rejected=_share([not one.routed for one in told if not one.is_for_somebody]),
        error=round(error, 4) if inside else None,
    )


def _share(those: Sequence[bool]) -> float | None:
    return round(sum(those) / len(those), 4) if those else None


def _folds(heard: Sequence[_Heard], seed: int) -> "list[tuple[list[_Heard], list[_Heard]]]":
    """Each fifth of the messages, and the rest; both kinds are dealt out evenly."""
    chance = np.random.default_rng(seed)
    inside = [at for at, one in enumerate(heard) if one.agent is not None]
    outside = [at for at, one in enumerate(heard) if one.agent is None]
    order = [int(at) for kind in (inside, outside) for at in chance.permutation(kind)]
    hands = [set(order[fold::_FOLDS]) for fold in range(_FOLDS)]
    return [
        (
            [heard[at] for at in sorted(hand)],
            [one for at, one in enumerate(heard) if at not in hand],
        )
        for hand in hands
        if hand
    ]


def _four(values: Sequence[float]) -> Four:
    first, second, third, fourth = values
    return first, second, third, fourth
