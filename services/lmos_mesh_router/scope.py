"""Whether a message is about anything that the agents can do, apart from which of them. Pure.

How sure the choice of an agent is says little about that: of two strangers one is always nearer.
How near the message is says much: to the middle of a capability, by meaning and spelling and by
meaning alone, to its texts taken together, and how strongly the classifier claims it. Each is
measured by how examples do that the router has not seen, and the four are added up. (How near the
nearest single text is tells less than any of them.) The threshold is what a share of these
examples stays below, so no message that is out of scope is needed to set it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ACCEPTED = 0.95
"""How many of the messages that are in scope shall pass."""

SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
"""The shares of messages in scope for which it is known how unusual they are."""

# A normal distribution at these shares, with the share 1 - ACCEPTED at -1.
_NORMAL = (
    *(-1.8787, -1.5660, -1.4143, -1.2486, -1.0, -0.7791, -0.5117, -0.3188, -0.1540, 0.0),
    *(0.1540, 0.3188, 0.5117, 0.7791, 1.4143),
)
_HELD_BY = 20.0  # examples that count as much as the default


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What is usual for a message in scope, per signal, and how unusual it may be.

    Attributes:
        usual: The mean of each signal: nearest middle by meaning and spelling, nearest middle by
            meaning, density, claim.
        spread: Their standard deviations.
        least: The sum of standardised signals below which a message is out of scope.
        examples: How many examples this was fitted on; 0 for a default.
        scores: The score at each of `SHARES`; by itself as if scores were normally distributed.
    """

    usual: tuple[float, ...]
    spread: tuple[float, ...]
    least: float
    examples: int = 0
    scores: tuple[float, ...] = ()

    def score(self, signals: Sequence[float]) -> float:
        """How usual a message is; 0 is as usual as they come on average, higher is more so."""
        score = 0.0
        for signal, usual, spread in zip(signals, self.usual, self.spread, strict=True):
            score += (signal - usual) / spread
        return score

    def share(self, score: float) -> float:
        """The share of messages in scope that are as unusual as this score, or more."""
        scores = self.known_scores()
        if score < scores[0]:
            return 0.0
        if score >= scores[-1]:
            return SHARES[-1] if score == scores[-1] else 1.0
        # numpy would make arrays of both first, which takes longer than all else of a gate.
        above = bisect_right(scores, score)
        way = (score - scores[above - 1]) / (scores[above] - scores[above - 1])
        return SHARES[above - 1] + way * (SHARES[above] - SHARES[above - 1])

    def known_scores(self) -> tuple[float, ...]:
        """The score at each of `SHARES`."""
        return self.scores or tuple(place * abs(self.least) for place in _NORMAL)

    def accepts(self, signals: Sequence[float]) -> bool:
        """Whether a message is in scope."""
        return self.score(signals) >= self.least


def fit(signals: npt.NDArray[np.float64], default: Gate, *, accepted: float = ACCEPTED) -> Gate:
    """The gate for the signals of held-out examples; float64[examples, 4].

    A few examples say little of how wide they spread, so the default counts like `_HELD_BY`.
    """
    count = len(signals)
    if not count:
        return default
    own = count / (count + _HELD_BY)
    usual = own * signals.mean(axis=0) + (1 - own) * np.array(default.usual)
    spread = own * signals.std(axis=0) + (1 - own) * np.array(default.spread)
    spread = np.maximum(spread, 1e-3)
    scores = ((signals - usual) / spread).sum(axis=1)
    least = own * float(np.quantile(scores, 1 - accepted)) + (1 - own) * default.least
    known = own * np.quantile(scores, SHARES) + (1 - own) * np.array(default.known_scores())
    return Gate(
        usual=tuple(usual.tolist()),
        spread=tuple(spread.tolist()),
        least=least,
        examples=count,
        scores=tuple(known.tolist()),
    )
