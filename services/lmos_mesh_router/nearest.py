# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# faiss ships no types; what comes out of it is given its type where it does.
"""Says which capabilities of a large mesh are worth a look for a message. Pure.

Up to `EXACT` of them all are. Above that an approximate index (FAISS, vectors as short codes, all
of which are looked through) names those whose true vectors are then compared. It is never changed
once it is made, since FAISS answers wrongly while it is: what has come since is looked at one by
one, what has gone is passed over, and when that is too much another index takes its place. Where
few capabilities may be chosen, all of these are looked at, however many there are beside them.
"""

import importlib.util
import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EXACT = 4_096
"""So many are compared one by one in half a millisecond."""

FEW = 2_048
"""Of so many that may be chosen the vectors are picked out, wherever they are."""

MOST_NEW = 0.05
MOST_GONE = 0.2
"""The shares of an index that may be new beside it, and gone from it, before it is made anew."""

RECALL = 0.995
"""The share of the ten nearest that an index must name, of the messages that it is tried with."""

_NEAREST = 10
_FEWEST_NAMED = 64
_MOST_NAMED = 1_024
_MOST_ASKED = 8_192
_TRAINED_ON = 16_384
_MOST_SELECTIONS = 64


def available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


@dataclass(frozen=True, eq=False)
class Frozen:
    """An approximate index of what was there at one moment.

    Attributes:
        parts: What it was made of; a part that is no more the same object has changed.
        first_of: The first vector of each part, int64[parts + 1].
        named: How many it names for a message, so that the nearest are among them.
        recall: The share of the ten nearest among them, of the messages that it was tried with.
    """

    parts: tuple[object, ...] = field(repr=False)
    first_of: Rows = field(repr=False)
    index: Any = field(repr=False)
    named: int
    recall: float

    def __len__(self) -> int:
        return int(self.first_of[-1])

    def find(self, vector: Floats, count: int) -> Rows:
        """The nearest by their codes, the nearest first."""
        found = _search(self.index, vector.reshape(1, -1), min(count, len(self)))[0]
        return found[found >= 0]  # a message that is no number is near nothing


def freeze(parts: tuple[object, ...], first_of: Rows, vectors: Floats, tried: Floats) -> Frozen:
    """An index of vectors. Takes seconds where they are many, so it is meant for a thread.

    Args:
        parts: What the vectors belong to, in their order.
        first_of: The first vector of each part, int64[parts + 1].
        vectors: Unit vectors, float32[n, d].
        tried: Messages to try it with, float32[m, d].
    """
    import faiss

    faiss.omp_set_num_threads(1)
    count, width = vectors.shape
    # Four bits for each two numbers: a sixteenth of the memory, and looked through in registers.
    pieces = width // 2 if width % 2 == 0 else width
    index = faiss.IndexPQFastScan(width, pieces, 4, faiss.METRIC_INNER_PRODUCT)
    step = max(1, count // _TRAINED_ON)
    cast("Any", index).train(np.ascontiguousarray(vectors[::step]))
    cast("Any", index).add(vectors)
    named, recall = _tried(index, vectors, tried)
    return Frozen(parts, first_of, index, named, recall)


def _tried(index: Any, vectors: Floats, tried: Floats) -> tuple[int, float]:
    """How many must be named, and the share of the nearest among them."""
    most = min(_NEAREST, len(vectors))
    truth = [np.argpartition(-(vectors @ one), most - 1)[:most] for one in tried]
    found = _search(index, tried, min(_MOST_NAMED, len(vectors)))
    named = _FEWEST_NAMED
    while True:
        shares = [np.isin(a, b[:named]).mean() for a, b in zip(truth, found, strict=True)]
        recall = float(np.mean(shares))
        if recall >= RECALL or named >= _MOST_NAMED:
            return named, recall
        named *= 2


def _search(index: Any, vectors: Floats, count: int) -> Rows:
    import faiss

    # Its threads cost more than they gain, and their number is one of the calling thread.
    faiss.omp_set_num_threads(1)
    found: Rows = index.search(np.ascontiguousarray(vectors), count)[1]
    return found


@dataclass(frozen=True, eq=False)
class _Selection:
    """Which vectors of an index may be chosen, bool[n]; `mask` is what it was made of."""

    mask: Mask | None
    chosen: Mask
    count: int


class Nearest:
    """What is worth a look among the capabilities of one moment. It never changes.

    Args:
        parts: What the vectors belong to, in their order.
        first_of: The first vector of each part, int64[parts + 1].
        vectors: Unit vectors, float32[n, d].
        frozen: An index that was made of these parts or of others.
    """

    def __init__(
        self,
        parts: tuple[object, ...],
        first_of: Rows,
        vectors: Floats,
        frozen: Frozen | None = None,
    ) -> None:
        self.frozen = frozen
        self._parts, self._first_of, self._vectors = parts, first_of, vectors
        self._selections: dict[int, _Selection] = {}
        if frozen is None:
            self._place, self._new = np.zeros(0, np.int64), np.arange(len(vectors))
            self._new_vectors = vectors
        else:
            self._place, self._new = _places(frozen, parts, first_of)
            self._new_vectors = vectors[self._new]  # all are compared, so they lie side by side
        self._gone = int(np.count_nonzero(self._place < 0))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process does without the index."""
        return Nearest, (self._parts, self._first_of, self._vectors)

    @property
    def approximates(self) -> bool:
        """Whether the index is of use: there is more in it than beside it."""
        return len(self._vectors) > EXACT and len(self._new) * 2 < len(self._vectors)

    @property
    def due(self) -> bool:
        """Whether an index ought to be made, or made anew."""
        total = len(self._vectors)
        if total <= EXACT:
            return False
        if self.frozen is None:
            return True
        most_new = min(EXACT, MOST_NEW * total)
        return len(self._new) > most_new or self._gone > MOST_GONE * len(self.frozen)

    def worth(self, vector: Floats, eligible: Mask | None, count: int) -> Rows | None:
        """Where to look, int64[n] in rising order; None for everywhere.

        Args:
            vector: The message.
            eligible: What may be chosen, bool[n]; all if not given.
            count: How many that are.
        """
        total = len(self._vectors)
        if eligible is not None and count == total:
            eligible = None
        if eligible is not None and count <= FEW and 4 * count < total:
            return eligible.nonzero()[0]
        if not self.approximates or self.frozen is None:
            return None
        old = self._old(self.frozen, vector, eligible)
        if old is None:
            # It would have to name too many: those that may be chosen are far from the message.
            return None if eligible is None or 2 * count > total else eligible.nonzero()[0]
        near, new = self._new_vectors @ vector, self._new
        if eligible is not None:
            allowed = eligible[new].nonzero()[0]
            near, new = near[allowed], new[allowed]
        if len(new) > _FEWEST_NAMED:
            new = new[near.argpartition(len(new) - _FEWEST_NAMED)[-_FEWEST_NAMED:]]
        return np.sort(np.concatenate([old, new]))

    def _old(self, frozen: Frozen, vector: Floats, eligible: Mask | None) -> Rows | None:
        """What of the index is worth a look, where it is now; None if it cannot tell."""
        selection = self._selection(frozen, eligible)
        if not selection.count:
            return np.zeros(0, np.int64)
        wanted = min(frozen.named, selection.count)
        # The codes put all in one order, so what may be chosen is in it, only further down.
        asked = math.ceil(wanted * len(frozen) / selection.count)
        while asked <= _MOST_ASKED:
            found = frozen.find(vector, asked)
            found = found[selection.chosen[found]][:wanted]
            if len(found) == wanted:
                return self._place[found]
            if asked >= len(frozen):
                break
            asked *= 4
        return None

    def _selection(self, frozen: Frozen, eligible: Mask | None) -> _Selection:
        known = self._selections.get(id(eligible))
        if known is None:
            chosen = self._place >= 0
            if eligible is not None:
                chosen[chosen] = eligible[self._place[chosen]]
            # It holds on to the mask, so that no other can get its id.
            known = _Selection(eligible, chosen, int(np.count_nonzero(chosen)))
            if len(self._selections) >= _MOST_SELECTIONS:
                self._selections = {}
            self._selections[id(eligible)] = known
        return known


def _places(frozen: Frozen, parts: tuple[object, ...], first_of: Rows) -> tuple[Rows, Rows]:
    """Where each vector of an index is now, -1 if it is gone; and which are not in the index."""
    now = {id(part): at for at, part in enumerate(parts)}
    moved = np.array([now.get(id(part), -1) for part in frozen.parts], np.int64)
    sizes = np.diff(frozen.first_of)
    shifts = np.where(moved >= 0, first_of[moved] - frozen.first_of[:-1], 0)
    place = np.arange(len(frozen)) + np.repeat(shifts, sizes)
    place[np.repeat(moved, sizes) < 0] = -1
    known = np.zeros(int(first_of[-1]), np.bool_)
    known[place[place >= 0]] = True
    return place, (~known).nonzero()[0]
