"""Learns from what is registered how to tell capabilities apart and how sure to be. Pure, slow.

Takes from tenths of a second to a minute, so it is meant for a thread: it reads an immutable
matrix and returns an immutable `Learned`. Examples are held out in turn, judged by what is
learned from the others, and from how that goes come the probabilities and the gate.
"""

from collections.abc import Iterator

import numpy as np

from lmos_mesh_router import calibration as calibrating
from lmos_mesh_router import scope
from lmos_mesh_router.calibration import Calibration, Judged
from lmos_mesh_router.evidence import EvidenceMatrix, Query
from lmos_mesh_router.head import Head, train
from lmos_mesh_router.ranking import (
    DEFAULT_CALIBRATION,
    DEFAULT_GATE,
    Learned,
    Measured,
    Method,
    measure,
)
from lmos_mesh_router.scope import Gate

FOLDS = 5
MOST_HELD_OUT = 2_000
"""Examples that are judged. More would make no threshold better and learning slower."""

_METHODS: tuple[Method, ...] = ("head", "instant")


def learn(matrix: EvidenceMatrix, *, warm: Head | None = None, seed: int = 0) -> Learned:
    """All that can be learned from the evidence.

    Args:
        matrix: The evidence.
        warm: The last head: training begins from it.
        seed: Which examples are held out together.
    """
    head = train(matrix, warm=warm)
    measured: dict[Method, list[tuple[int, Measured, EvidenceMatrix]]] = {
        method: [] for method in _METHODS
    }
    for held, rest in _folds(matrix, seed):
        known = Learned.of(rest, train(rest) if head is not None else None)
        for row in held:
            for method in _METHODS:
                if method == "head" and known.head is None:
                    continue
                found = measure(query_of(matrix, row), known, method=method)
                if found is not None:
                    measured[method].append((row, found, rest))
    calibration: dict[Method, Calibration] = {}
    gate: dict[Method, Gate] = {}
    for method, found in measured.items():
        calibration[method] = calibrating.fit(
            [_judged(matrix, row, one, rest) for row, one, rest in found],
            DEFAULT_CALIBRATION[method],
        )
        signals = np.array([one.signals for _, one, _ in found], np.float64).reshape(-1, 4)
        gate[method] = scope.fit(signals, DEFAULT_GATE[method])
    return Learned.of(matrix, head, calibration, gate)


def query_of(matrix: EvidenceMatrix, row: int) -> Query:
    """A text of the matrix as if somebody had said it."""
    return Query(matrix.vectors[row], matrix.words[row].astype(np.float32))


def _folds(matrix: EvidenceMatrix, seed: int) -> Iterator[tuple[list[int], EvidenceMatrix]]:
    """Examples to hold out together, and what is left without them.

    Each capability's examples are dealt out over the folds. One that nothing else speaks for is
    not held out: nobody could tell what it is.
    """
    chance = np.random.default_rng(seed)
    hands: list[list[int]] = [[] for _ in range(FOLDS)]
    place = 0
    for at in range(len(matrix.classes)):
        own = matrix.class_rows(at)
        examples = [row for row in range(own.start, own.stop) if _is_example(matrix, row)]
        if own.stop - own.start < 2:
            continue
        for row in chance.permutation(examples).tolist():
            hands[place % FOLDS].append(row)
            place += 1
    # With many examples one or two folds hold enough of them.
    judged = 0
    for held in hands:
        if not held or judged >= MOST_HELD_OUT:
            continue
        chosen = chance.permutation(held)[: MOST_HELD_OUT - judged].tolist()
        yield chosen, matrix.without(held)
        judged += len(chosen)


def _is_example(matrix: EvidenceMatrix, row: int) -> bool:
    return matrix.evidence[row].kind == "example"


def _judged(matrix: EvidenceMatrix, row: int, found: Measured, rest: EvidenceMatrix) -> Judged:
    one = matrix.evidence[row]
    truth = rest.agents.index(one.key) if one.key in rest.agents else -1
    return Judged(found.scores, rest.agent_of[found.classes], truth)
