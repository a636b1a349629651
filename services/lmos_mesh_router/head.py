"""Tells capabilities apart by what was registered for them: a trained head, and one at once. Pure.

The head is a multinomial logistic regression over capabilities, trained by L-BFGS (Nocedal and
Wright, Numerical Optimization, algorithm 7.4) with a backtracking line search. It takes from a
fraction of a second to some seconds, so it is meant for a thread. `local_ridge` is the answer
until it is there: a least-squares fit in closed form on the few nearest capabilities (Bottou and
Vapnik, Local Learning Algorithms, 1992), for one message, in a fraction of a millisecond.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lmos_mesh_router.evidence import ClassKey, EvidenceMatrix, Floats, Rows, side_by_side

RIDGE = 0.05
"""How strongly weights are held near zero. From 0.01 to 0.1 alike on CLINC150 validation data."""

MOST_CELLS = 60_000_000
"""Rows times classes that training may take on: five matrices of so many numbers are held."""

_Numbers = npt.NDArray[np.floating[Any]]

_MEMORY = 10
_LOCAL_RIDGE = 1.0
_LOCAL_ROWS = 12  # per class; the nearest of them say as much as all


@dataclass(frozen=True, eq=False)
class Head:
    """A trained head.

    Attributes:
        classes: What its rows stand for.
        weights: float32[classes, d + w].
        bias: float32[classes].
        said_of: What each class was when it was trained: a class that has changed since must be
            answered for by `local_ridge`.
    """

    classes: tuple[ClassKey, ...]
    weights: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    said_of: dict[ClassKey, frozenset[str]] = field(repr=False)


def train(
    matrix: EvidenceMatrix,
    *,
    warm: Head | None = None,
    tolerance: float = 1e-4,
    most_steps: int = 200,
) -> Head | None:
    """A head for the evidence; None where there is nothing to tell apart or too much.

    Args:
        matrix: The evidence.
        warm: A head to begin from: what it knows of classes that are still there.
        tolerance: Ends when two steps in a row lower the loss by less than this share.
        most_steps: Ends after so many steps in any case.
    """
    count = len(matrix.classes)
    if count < 2 or len(matrix) * count > MOST_CELLS:
        return None
    ones = np.ones((len(matrix), 1), np.float32)
    rows = np.concatenate([matrix.joined(), ones], axis=1)
    weights = _minimum(
        _Loss(rows, matrix.targets(), matrix.weights),
        _begin(matrix, warm),
        tolerance=tolerance,
        most_steps=most_steps,
    )
    return Head(
        matrix.classes,
        np.ascontiguousarray(weights[:-1].T, np.float32),
        np.ascontiguousarray(weights[-1], np.float32),
        dict(matrix.said_of()),
    )


def _begin(matrix: EvidenceMatrix, warm: Head | None) -> Floats:
    begin = np.zeros((matrix.features + 1, len(matrix.classes)), np.float32)
    if warm is not None and warm.weights.shape[1] == matrix.features:
        known = {key: at for at, key in enumerate(warm.classes)}
        for at, key in enumerate(matrix.classes):
            if (old := known.get(key)) is not None:
                begin[:-1, at] = warm.weights[old]
                begin[-1, at] = warm.bias[old]
    return begin


class _Loss:
    """Weighted cross entropy and the ridge, and their slope."""

    def __init__(self, rows: Floats, targets: Floats, weights: Floats) -> None:
        self._rows, self._targets, self._weights = rows, targets, weights

    def at(self, point: _Numbers) -> tuple[float, _Numbers]:
        scores = self._rows @ point
        scores -= scores.max(axis=1, keepdims=True)
        fit = np.einsum("nc,nc->n", scores, self._targets)
        np.exp(scores, out=scores)
        total = scores.sum(axis=1, keepdims=True)
        loss = float(self._weights @ (np.log(total[:, 0]) - fit))
        scores /= total
        scores -= self._targets
        scores *= self._weights[:, None]
        slope = self._rows.T @ scores + np.float32(RIDGE) * point
        return loss + 0.5 * RIDGE * float(np.vdot(point, point)), slope


def _minimum(loss: _Loss, point: _Numbers, *, tolerance: float, most_steps: int) -> _Numbers:
    value, slope = loss.at(point)
    steps: deque[tuple[_Numbers, _Numbers, float]] = deque(maxlen=_MEMORY)
    settled = False
    for _ in range(most_steps):
        direction = _direction(slope, steps)
        steepness = float(np.vdot(slope, direction))
        size = 1.0
        while True:
            tried = point + np.float32(size) * direction
            tried_value, tried_slope = loss.at(tried)
            if tried_value <= value + 1e-4 * size * steepness:
                break
            size /= 2
            if size < 1e-6:
                return point
        moved, turned = tried - point, tried_slope - slope
        bend = float(np.vdot(moved, turned))
        if bend > 1e-12:
            steps.append((moved, turned, 1 / bend))
        # One short step may be a line search that began badly.
        settled_before = settled
        settled = value - tried_value < tolerance * max(1.0, abs(tried_value))
        point, value, slope = tried, tried_value, tried_slope
        if settled and settled_before:
            break
    return point


def _direction(slope: _Numbers, steps: "deque[tuple[_Numbers, _Numbers, float]]") -> _Numbers:
    found = slope.copy()
    shares: list[float] = []
    for moved, turned, inverse in reversed(steps):
        share = inverse * float(np.vdot(moved, found))
        shares.append(share)
        found -= np.float32(share) * turned
    if steps:
        _, turned, inverse = steps[-1]
        found *= np.float32(1 / (inverse * float(np.vdot(turned, turned))))
    else:
        found /= np.float32(max(1e-12, float(np.linalg.norm(slope))))
    for (moved, turned, inverse), share in zip(steps, reversed(shares), strict=True):
        found += np.float32(share - inverse * float(np.vdot(turned, found))) * moved
    return -found


def local_ridge(matrix: EvidenceMatrix, joined: Floats, classes: Rows) -> npt.NDArray[np.float64]:
    """How far each of a few classes claims a message for itself; 0 to 1 as a rule.

    One-against-the-others least squares in its dual form over the rows of these classes.

    Args:
        matrix: The evidence.
        joined: The message by meaning and spelling, float32[d + w].
        classes: Which classes; a handful.
    """
    if len(classes) < 2:
        return np.ones(len(classes))
    found: list[Floats] = []
    of: list[int] = []
    weights: list[Floats] = []
    for number, (part, own) in enumerate(matrix.places(classes)):
        vectors, own_weights, words, _ = part.texts[own]
        if len(vectors) > _LOCAL_ROWS:
            near = vectors @ joined[: vectors.shape[1]]
            rows = np.sort(np.argpartition(-near, _LOCAL_ROWS)[:_LOCAL_ROWS])
            vectors, words, own_weights = vectors[rows], words[rows], own_weights[rows]
        found.append(side_by_side(vectors, words))
        weights.append(own_weights)
        of.extend([number] * len(vectors))
    chosen = np.concatenate(found)
    targets = np.full((len(chosen), len(classes)), -1 / len(classes), np.float32)
    targets[np.arange(len(chosen)), of] += 1
    gram = chosen @ chosen.T
    gram[np.diag_indices(len(chosen))] += _LOCAL_RIDGE / np.concatenate(weights)
    return (np.linalg.solve(gram, targets).T @ (chosen @ joined)).astype(np.float64)
