"""The agents that a message could be for, in order, how sure that is, and why. Pure.

A `Learned` is everything that is known at one moment. It never changes: a service holds one per
tenant and replaces it, and whoever holds the old one decides by the old one. It is whole with or
without a trained head. Where one of the capabilities in question has changed since the head was
trained, the answer is found in closed form from the evidence as it is now.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lmos_mesh.things import ThingKey
from lmos_mesh_router.calibration import Calibration, probabilities
from lmos_mesh_router.evidence import (
    Block,
    Evidence,
    EvidenceMatrix,
    Floats,
    Mask,
    Query,
    Rows,
    joined,
)
from lmos_mesh_router.head import Head, local_ridge
from lmos_mesh_router.scope import Gate

Method = Literal["head", "instant"]

SHORTLIST = 10
"""Capabilities that are looked at closely, by the head's order and as many by nearness."""

_LOCAL = 6
_MIDDLES = 5  # capabilities whose middle is also compared by spelling
_DENSITY_TEMPERATURE = 0.05
# Tried on CLINC150 validation data and on a held-out half of LMOS's training rows; choosing both
# anew for each fleet, by its own examples held out, chose no better.
_DENSITY_WEIGHT: Mapping[Method, float] = {"head": 1.5, "instant": 0.33}
_LOG_ODDS: Mapping[Method, float] = {"head": 1.2, "instant": 9.0}
"""What makes scores into log-odds, by which the capabilities of an agent are added up."""

_FORGOTTEN = -1e9
_TEMPERATURE = np.float32(_DENSITY_TEMPERATURE)
_SHARPNESS = np.float32(1 / _DENSITY_TEMPERATURE)

Places = Sequence[tuple[Block, int]]

# Fitted on CLINC150 validation data as ten agents known by the names of their capabilities alone:
# what holds until there are examples to fit it on.
DEFAULT_CALIBRATION: Mapping[Method, Calibration] = {
    "head": Calibration(temperature=1.75, route_at=0.95, possible_at=0.11),
    "instant": Calibration(temperature=1.9, route_at=0.95, possible_at=0.1),
}
DEFAULT_GATE: Mapping[Method, Gate] = {
    "head": Gate(
        usual=(0.598, 0.579, 0.547, 3.276), spread=(0.176, 0.163, 0.157, 1.107), least=-6.19
    ),
    "instant": Gate(
        usual=(0.598, 0.579, 0.547, 0.117), spread=(0.176, 0.163, 0.157, 0.073), least=-5.87
    ),
}


class Ranked(NamedTuple):
    """An agent, and what spoke for it.

    Attributes:
        probability: How likely it is the right one, given that one of them is.
        capability: Its likeliest capability.
        share: How much of the agent's probability that capability has.
        similarity: The cosine of the message and the text below.
        evidence: The nearest text of that capability.
    """

    key: ThingKey
    probability: float
    capability: str
    share: float
    similarity: float
    evidence: Evidence


@dataclass(frozen=True)
class Ranking:
    """The agents, the likeliest first.

    Attributes:
        ranked: Empty where no agent may be chosen.
        scope: How usual the message is for one in scope; see `Gate.score`.
        least: What that has to be.
        possible: The agents that it could be, the likeliest first; more than one: ask back.
        route_at: How likely the first has to be, to be routed to without asking anybody.
        method: What decided.
        share: The share of messages in scope that are as unusual, or more.
    """

    ranked: tuple[Ranked, ...] = ()
    scope: float = float("-inf")
    least: float = 0.0
    possible: tuple[ThingKey, ...] = ()
    route_at: float = 1.0
    method: Method = "instant"
    share: float = 0.0

    @property
    def in_scope(self) -> bool:
        """Whether the message is about anything that the agents can do."""
        return self.scope >= self.least

    @property
    def sure(self) -> bool:
        """Whether the first is likely enough to be routed to without asking anybody."""
        return self.confidence >= self.route_at

    @property
    def confidence(self) -> float:
        """How likely the first agent is right, given that one of them is."""
        return self.ranked[0].probability if self.ranked else 0.0


@dataclass(frozen=True, eq=False)
class Learned:
    """All that is known at one moment.

    Attributes:
        matrix: The evidence.
        head: The head in the order of the matrix's classes, or None.
        current: The classes for which the head may speak, bool[classes].
        calibration: By method.
        gate: By method.
    """

    matrix: EvidenceMatrix
    head: Head | None = field(default=None, repr=False)
    current: Mask = field(default_factory=lambda: np.zeros(0, np.bool_), repr=False)
    calibration: Mapping[Method, Calibration] = field(
        default_factory=lambda: dict(DEFAULT_CALIBRATION)
    )
    gate: Mapping[Method, Gate] = field(default_factory=lambda: dict(DEFAULT_GATE))

    @classmethod
    def of(
        cls,
        matrix: EvidenceMatrix,
        head: Head | None = None,
        calibration: Mapping[Method, Calibration] | None = None,
        gate: Mapping[Method, Gate] | None = None,
    ) -> "Learned":
        """What is known with this evidence and a head that may be older; at once."""
        fitted = _aligned(matrix, head) if head is not None else None
        return cls(
            matrix,
            fitted[0] if fitted else None,
            fitted[1] if fitted else np.zeros(len(matrix.classes), np.bool_),
            dict(calibration or DEFAULT_CALIBRATION),
            dict(gate or DEFAULT_GATE),
        )

    def changed_to(self, matrix: EvidenceMatrix) -> "Learned":
        """The same knowledge of other evidence: what to decide by until it is learned anew."""
        return Learned.of(matrix, self.head, self.calibration, self.gate)


def _aligned(matrix: EvidenceMatrix, head: Head) -> tuple[Head, Mask] | None:
    if head.weights.shape[1] != matrix.features:
        return None  # from another encoder
    now = matrix.said_of()
    current = np.array([head.said_of.get(key) == now[key] for key in matrix.classes], np.bool_)
    if head.classes == matrix.classes:
        return head, current
    place = {key: at for at, key in enumerate(head.classes)}
    weights = np.zeros((len(matrix.classes), head.weights.shape[1]), np.float32)
    bias = np.full(len(matrix.classes), _FORGOTTEN, np.float32)
    for at, key in enumerate(matrix.classes):
        if (old := place.get(key)) is not None:
            weights[at], bias[at] = head.weights[old], head.bias[old]
    return Head(matrix.classes, weights, bias, head.said_of), current


class Measured(NamedTuple):
    """A message held against the nearest capabilities.

    Attributes:
        classes: The nearest capabilities, int64[k].
        scores: What speaks for each; the higher the likelier.
        rows: The nearest text of each.
        similarities: How near that is.
        signals: What the gate judges.
    """

    method: Method
    classes: Rows
    scores: npt.NDArray[np.float64]
    rows: Rows
    similarities: Floats
    signals: tuple[float, float, float, float]


def measure(
    query: Query, learned: Learned, eligible: Mask | None = None, *, method: Method | None = None
) -> Measured | None:
    """Hold a message against the capabilities that may be chosen; None where there are none.

    Args:
        query: The message.
        learned: What is known.
        eligible: The classes that may be chosen, bool[classes]; all if not given.
        method: What decides; by itself the head where it is up to date, and else what is instant.
    """
    matrix = learned.matrix
    count = len(matrix.classes) if eligible is None else int(np.count_nonzero(eligible))
    if count == 0:
        return None
    whole = joined(query)
    if not math.isfinite(whole.dot(whole)):
        # Near nothing, and so out of scope.
        query = Query(np.zeros_like(query.vector), np.zeros_like(query.words))
        whole = np.zeros_like(whole)
    head = learned.head if method != "instant" else None
    pool = matrix.nearest.worth(query.vector, eligible, count)
    if pool is None:
        near = matrix.means.dot(query.vector)
        claims = head.weights.dot(whole) + head.bias if head is not None else near
        if eligible is not None and count < len(eligible):
            near = np.where(eligible, near, np.float32(_FORGOTTEN))
            claims = np.where(eligible, claims, np.float32(_FORGOTTEN))
    else:
        near = matrix.means[pool].dot(query.vector)
        claims = head.weights[pool].dot(whole) + head.bias[pool] if head is not None else near
    chosen = _shortlist(near, claims, min(SHORTLIST, count, len(near)))
    near = near[chosen]
    classes = chosen if pool is None else pool[chosen]
    places = matrix.places(classes)
    density, rows, similarities = _densities(query.vector, matrix, classes, places)
    nearest: list[int] = (-near).argsort(kind="stable")[:_MIDDLES].tolist()
    spelled = max(float(part.centroids[own].dot(whole)) for part, own in _some(places, nearest))
    middle = float(near[nearest[0]])
    if head is not None and (method == "head" or _speaks(learned, classes, near, density)):
        used: Method = "head"
        claim = claims[chosen].astype(np.float64)
    else:
        used = "instant"
        near_middle = np.stack([part.centroids[own] for part, own in places]) @ whole
        closest = density + near_middle
        order = np.sort(np.argsort(-closest, kind="stable")[:_LOCAL])
        classes, density = classes[order], density[order]
        rows, similarities = rows[order], similarities[order]
        claim = local_ridge(matrix, whole, classes)
    scores = _LOG_ODDS[used] * (claim + _DENSITY_WEIGHT[used] * density)
    # Who is alone claims everything, which says nothing of the message.
    claimed = max(claim.tolist()) if len(classes) > 1 else learned.gate[used].usual[3]
    # A handful of numbers: plain ones are quicker than arrays of them.
    signals = (spelled, middle, max(density.tolist()), claimed)
    return Measured(used, classes, scores, rows, similarities, signals)


def _shortlist(near: Floats, claims: Floats, count: int) -> Rows:
    if count == len(near):
        return np.arange(count)
    picked = np.zeros(len(near), np.bool_)
    last = len(near) - count
    picked[near.argpartition(last)[last:]] = True
    if claims is not near:
        picked[claims.argpartition(last)[last:]] = True
    found = picked.nonzero()[0]
    # The rest of the head's list may be what is not eligible.
    return found[near[found] > _FORGOTTEN / 2]


def _speaks(learned: Learned, classes: Rows, near: Floats, density: Floats) -> bool:
    """Whether the head knows every capability that is in question as it is now."""
    current = learned.current[classes]
    if current.all():
        return True
    order = np.argsort(-(density + near), kind="stable")[:_LOCAL]
    return bool(current[order].all())


def _some(places: Places, chosen: Iterable[int]) -> Iterator[tuple[Block, int]]:
    return (places[at] for at in chosen)


def _densities(
    vector: Floats, matrix: EvidenceMatrix, classes: Rows, places: Places
) -> tuple[Floats, Rows, Floats]:
    """Of each class: how dense its texts are around a message, the nearest of them, how near.

    A kernel density (Parzen, 1962) on the scale of a cosine: between the mean and the highest.
    """
    texts = [part.texts[own] for part, own in places]
    starts = matrix.starts[classes]
    counts = matrix.starts[classes + 1] - starts
    begins = counts.cumsum() - counts
    near = np.concatenate([one.vectors.dot(vector) for one in texts])
    weights = np.concatenate([one.weights for one in texts])
    highest = np.maximum.reduceat(near, begins)
    apart = highest.repeat(counts)
    close = np.exp((near - apart) * _SHARPNESS)
    close *= weights
    share = np.add.reduceat(close, begins) / matrix.masses[classes]
    density = highest + _TEMPERATURE * np.log(share)
    # The first of each class that is as near as its nearest.
    at_best = (near == apart).nonzero()[0]
    best = at_best[at_best.searchsorted(begins)]
    return density, best - begins + starts, highest


def rank(query: Query, learned: Learned, eligible: Mask | None = None) -> Ranking:
    """The agents that a message could be for.

    Args:
        query: The message.
        learned: What is known.
        eligible: The classes that may be chosen: `EvidenceMatrix.mask` of the agents that may be.
    """
    measured = measure(query, learned, eligible)
    return Ranking() if measured is None else ranking_of(measured, learned)


def ranking_of(measured: Measured, learned: Learned) -> Ranking:
    """The agents by what was measured."""
    matrix, method = learned.matrix, measured.method
    calibration, gate = learned.calibration[method], learned.gate[method]
    agents = matrix.agent_of[measured.classes]
    shares = probabilities(measured.scores, agents, calibration.temperature)
    sums: dict[int, float] = {}
    best: dict[int, int] = {}
    of: list[int] = agents.tolist()
    for number, (at, share) in enumerate(zip(of, shares, strict=True)):
        sums[at] = sums.get(at, 0.0) + share
        if at not in best or share > shares[best[at]]:
            best[at] = number
    classes: list[int] = measured.classes.tolist()
    similarities: list[float] = measured.similarities.tolist()
    own: list[int] = (measured.classes - matrix.first_of[agents]).tolist()
    row: list[int] = (measured.rows - matrix.starts[measured.classes]).tolist()
    ranked: list[Ranked] = []
    # Agents are in order of their keys.
    for at, sum in sorted(sums.items(), key=_likeliest):
        number = best[at]
        ranked.append(
            Ranked(
                matrix.agents[at],
                min(1.0, sum),
                matrix.classes[classes[number]].capability,
                shares[number] / sum if sum else 0.0,
                similarities[number],
                matrix.parts[at].texts[own[number]].evidence[row[number]],
            )
        )
    possible = [one.key for one in ranked if one.probability >= calibration.possible_at]
    score = gate.score(measured.signals)
    return Ranking(
        tuple(ranked),
        score,
        gate.least,
        tuple(possible) or (ranked[0].key,),
        calibration.route_at,
        method,
        gate.share(score),
    )


def _likeliest(one: tuple[int, float]) -> tuple[float, int]:
    return -one[1], one[0]
