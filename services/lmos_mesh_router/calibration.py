"""Turns scores into honest probabilities, and into sets that hold the answer. Pure.

Everything is fitted on what was registered: each example is judged by a router that has not seen
it. Temperature scaling: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.
Conformal sets: Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, section 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

SURE_ENOUGH = 0.98
"""Of the messages that are routed without asking anybody, so many shall go to the right agent."""

COVERED = 0.95
"""How often the set of possible agents shall hold the right one."""

_LEAST = 1e-4  # of a probability, in a logarithm
_NOTHING = 1e-300
_DOUBT = 1.5  # standard errors
_STIFFNESS = 1.0  # in log-likelihood, for a temperature that is off by a factor of e
_FEWEST = 20  # examples; with fewer a share says nothing


class Judged(NamedTuple):
    """The scores of one held-out example.

    Attributes:
        scores: One per class, as `ranking.measure` gives them.
        agents: The agent of each class.
        truth: The agent it was registered for.
    """

    scores: Doubles
    agents: npt.NDArray[np.int64]
    truth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What makes scores into probabilities.

    Attributes:
        temperature: What the scores of agents are multiplied with; higher is surer.
        route_at: The least probability at which `SURE_ENOUGH` of the examples were right.
        possible_at: The least probability of an agent in the set of possible agents.
        error: Expected calibration error on the examples.
        examples: How many examples this was fitted on; 0 for a default.
    """

    temperature: float
    route_at: float
    possible_at: float
    error: float = 0.0
    examples: int = 0


def probabilities(
    scores: Doubles, agents: npt.NDArray[np.int64], temperature: float
) -> list[float]:
    """How likely each class is; the classes of an agent together are as likely as the agent.

    What speaks for the classes of an agent is added up first, and only then made surer. So a
    temperature never changes which agent is first: one that examples were easy for would
    otherwise let the likeliest class alone decide, and forget the others of its agent.

    Args:
        scores: One per class, as log-odds.
        agents: The agent of each.
        temperature: Higher is surer of the first agent.
    """
    # A handful of numbers: plain ones are quicker than arrays of them.
    claims: list[float] = np.exp(scores - scores.max()).tolist()
    of: list[int] = agents.tolist()
    sums: dict[int, float] = {}
    for at, claim in zip(of, claims, strict=True):
        sums[at] = sums.get(at, 0.0) + claim
    most = max(sums.values())
    surer = {at: (one / most) ** temperature for at, one in sums.items()}
    total = sum(surer.values())
    part = {at: one and surer[at] / (total * one) for at, one in sums.items()}
    return [claim * part[at] for at, claim in zip(of, claims, strict=True)]


def by_agent(shares: Sequence[float], agents: npt.NDArray[np.int64]) -> dict[int, float]:
    """The sum of the shares of each agent's classes."""
    sums = np.bincount(agents, shares)
    return {at: float(sums[at]) for at in np.unique(agents).tolist()}


def fit(judged: Sequence[Judged], default: Calibration) -> Calibration:
    """The calibration for held-out examples; the default where there are none.

    The temperature is held to the default a little, so that a handful of lucky examples makes
    nobody certain.
    """
    if not judged:
        return default
    packed = _Packed(judged)
    start = math.log(default.temperature)

    def cost(log_temperature: float) -> float:
        true = packed.truth_at(math.exp(log_temperature))
        loss = -float(np.log(np.maximum(true, _LEAST)).sum())
        return loss + _STIFFNESS * (log_temperature - start) ** 2

    temperature = math.exp(_least(cost, start - 3, start + 3))
    first, right = packed.first_at(temperature)
    true = packed.truth_at(temperature)
    return Calibration(
        temperature=temperature,
        route_at=surest(first, right, default.route_at),
        possible_at=conformal(true),
        error=expected_error(first, right),
        examples=len(judged),
    )


def expected_error(confidence: Doubles, right: npt.NDArray[np.bool_], *, bins: int = 15) -> float:
    """Expected calibration error: how far confidence and success are apart, bin by bin."""
    if not len(confidence):
        return 0.0
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    said = np.bincount(place, confidence, minlength=bins)
    done = np.bincount(place, right, minlength=bins)
    return float(np.abs(said - done).sum() / count.sum())


def surest(
    confidence: Doubles,
    right: npt.NDArray[np.bool_],
    default: float,
    *,
    precision: float = SURE_ENOUGH,
) -> float:
    """The lowest confidence from which on upwards enough are right; the default if none is.

    Enough by `_DOUBT` standard errors more, or every second promise would be broken by chance.
    """
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    share = np.cumsum(right[order]) / count
    doubt = _DOUBT * np.sqrt(precision * (1 - precision) / count)
    # Of messages that are equally sure, all are routed or none.
    last = np.append(np.diff(confidence[order]) != 0, np.ones(min(1, len(order)), np.bool_))
    enough = np.flatnonzero(last & (share >= precision + doubt))
    if not len(enough) or len(order) < _FEWEST:
        return default
    return float(confidence[order[enough[-1]]])


def conformal(true: Doubles, *, covered: float = COVERED) -> float:
    """The least probability of an agent in a set that holds the right agent so often.

    Args:
        true: The probability that each held-out example gave its own agent.
        covered: How often.
    """
    count = len(true)
    rank = math.floor((count + 1) * (1 - covered))
    return float(np.sort(true)[rank - 1]) if rank >= 1 else 0.0


class _Packed:
    """Examples side by side, so that a temperature is tried on all of them at once."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        packed = [np.unique(one.agents, return_inverse=True) for one in judged]
        width = max(len(agents) for agents, _ in packed)
        self._scores = np.full((len(judged), width), -np.inf)
        self._agents = np.full((len(judged), width), -1, np.int64)
        self._truth = np.array([one.truth for one in judged], np.int64)
        for row, (one, (agents, of)) in enumerate(zip(judged, packed, strict=True)):
            sums = np.bincount(of, np.exp(one.scores - one.scores.max()))
            self._scores[row, : len(agents)] = np.log(np.maximum(sums / sums.max(), _NOTHING))
            self._agents[row, : len(agents)] = agents

    def _shares(self, temperature: float) -> Doubles:
        # Minus infinity marks what is not there, also at temperature times nothing.
        sharp = np.exp(self._scores * temperature)
        return sharp / sharp.sum(axis=1, keepdims=True)

    def truth_at(self, temperature: float) -> Doubles:
        """What each example gives its own agent."""
        own = self._agents == self._truth[:, None]
        return (self._shares(temperature) * own).sum(axis=1)

    def first_at(self, temperature: float) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """What each example gives the first agent, and whether that is its own."""
        shares = self._shares(temperature)
        best = shares.argmax(axis=1)
        rows = np.arange(len(shares))
        return shares[rows, best], self._agents[rows, best] == self._truth


def _least(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(30):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return (low + high) / 2
