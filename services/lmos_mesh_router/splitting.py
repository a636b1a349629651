"""Where one message may hold two requests, and whether it does. Pure.

A message is cut at the words and marks that join requests; every piece is routed by itself. Two
neighbouring pieces are two requests when they are for different agents, or plainly for different
capabilities of one; each is convincing alone, and together they are less so: two requests in one
vector are near neither, while a request and a remark ("…, as I told you") are still nearest to what
the request is near to. Courtesy ("hi", "I need help") is no request, but where an agent has an
example or a capability of that; what only tells something ("I am in a hurry") is none where it is
far from all that the agents can do.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lmos_mesh.things import ThingKey
from lmos_mesh_router.courtesy import is_courtesy, is_remark
from lmos_mesh_router.ranking import Ranking

MOST_CUTS = 4
"""A message with more joints than this is a story; its first ones are tried."""

LEAST_ODDS = 0.4
"""The least logarithm of odds to split at: one request taken for two is worse than the reverse."""

_IN_SCOPE = 0.05
"""What only tells something is a request where no smaller share of messages is as far out."""

_STRANGE = 0.02
"""Likewise: of what is further out it says nothing which agent is the nearest."""

_ITS_OWN = 0.9
"""How much of an agent's probability a capability must have to be told from its others."""

_SAME_AGENT_ODDS = 2.0
"""What more it takes where both sides are for one agent, which may do both at once."""

# A logistic regression on 1,500 pairs and 1,500 single messages of the CLINC150 validation data,
# five examples a capability: of the less convincing side; the constant; the whole against the
# better side; the whole; the whole against the worse side; words; whether the whole goes to one
# of the two agents.
_WEIGHTS = (0.701, -4.145, -0.342, 0.097, -0.118, 0.521, 1.154)

_SHORTEST = 2  # characters; less than that asks for nothing
_MARK = r"\s*[.;!?\n]+(?:\s+|$)"
_WORDS = (
    r"and also|and then|and|also|then|plus|as well as|after that|afterwards|besides|oh and|"
    r"und außerdem|und auch|und dann|und|außerdem|ausserdem|dann|danach|anschließend|sowie|"
    r"und zusätzlich|zusätzlich|auch noch"
)
_JOINT = re.compile(
    rf"(?:{_MARK}|\s*,\s+|\s+)(?:(?:{_WORDS})\b[\s,]*)+|{_MARK}|\s*,\s+", re.IGNORECASE
)


class Span(NamedTuple):
    """A part of a message: where it begins and ends, without the joint."""

    start: int
    end: int

    def of(self, message: str) -> str:
        """The words of this part."""
        return message[self.start : self.end]


class Joint(NamedTuple):
    """What may join two requests: from the end of one to the start of the next."""

    start: int
    end: int


def joints(message: str) -> tuple[Joint, ...]:
    """Where a message could be cut, in order; never at its very beginning or end."""
    found: list[Joint] = []
    before = 0
    for match in _JOINT.finditer(message):
        start, end = match.span()
        if len(message[before:start].strip()) >= _SHORTEST and message[end:].strip():
            found.append(Joint(start, end))
            before = end
    return tuple(found[:MOST_CUTS])


def spans(message: str) -> tuple[Span, ...]:
    """Every part that has to be routed to know whether to split: between any two joints.

    The whole message is not among them. At most 14 for `MOST_CUTS` joints.
    """
    return tuple(span for span in _all_spans(message) if not _whole(span, message))


def _edges(message: str) -> tuple[list[int], list[int]]:
    cuts = joints(message)
    return [0, *(cut.end for cut in cuts)], [*(cut.start for cut in cuts), len(message)]


def _all_spans(message: str) -> list[Span]:
    starts, ends = _edges(message)
    return [Span(starts[i], ends[j]) for i in range(len(starts)) for j in range(i, len(ends))]


def _whole(span: Span, message: str) -> bool:
    return span.start == 0 and span.end == len(message)


class Heard(NamedTuple):
    """How a span was routed by itself.

    Attributes:
        agent: Its likeliest agent.
        confidence: How likely that is right.
        scope: How usual the span is for a message in scope; see `scope.Gate.score`.
        share: The share of messages in scope that are as far out, or further.
        capability: What the agent is likeliest asked for; empty if that is not clear.
        courteous: Whether what speaks for the agent is courtesy itself: it is there to be greeted.
    """

    agent: ThingKey
    confidence: float
    scope: float
    share: float = 1.0
    capability: str = ""
    courteous: bool = False


def heard(ranking: Ranking) -> Heard | None:
    """What splitting needs of a ranking; None where no agent may be chosen."""
    if not ranking.ranked:
        return None
    best = ranking.ranked[0]
    courteous = best.evidence.kind in ("example", "name") and is_courtesy(best.evidence.text)
    clear = best.capability if best.share >= _ITS_OWN else ""
    return Heard(best.key, ranking.confidence, ranking.scope, ranking.share, clear, courteous)


def parts(message: str, routed: Mapping[Span, Heard]) -> tuple[Span, ...]:
    """The requests in a message, in order; the whole message where it is one.

    Args:
        message: What was said.
        routed: How the whole message and each of its `spans` were routed. A span that is missing
            is taken for part of its neighbours.
    """
    starts, ends = _edges(message)
    return tuple(_divided(message, starts, ends, 0, len(starts) - 1, routed))


def _divided(
    message: str,
    starts: Sequence[int],
    ends: Sequence[int],
    first: int,
    last: int,
    routed: Mapping[Span, Heard],
) -> list[Span]:
    whole = Span(starts[first], ends[last])
    best, odds = None, LEAST_ODDS
    for cut in range(first, last):
        left, right = Span(starts[first], ends[cut]), Span(starts[cut + 1], ends[last])
        if whole not in routed or not all(_asks(one, message, routed) for one in (left, right)):
            continue
        words = min(len(left.of(message).split()), len(right.of(message).split()))
        found = odds_of_two(routed[whole], routed[left], routed[right], words)
        if found >= odds:
            best, odds = cut, found
    if best is None:
        return [whole]
    return [
        *_divided(message, starts, ends, first, best, routed),
        *_divided(message, starts, ends, best + 1, last, routed),
    ]


def _asks(span: Span, message: str, routed: Mapping[Span, Heard]) -> bool:
    """Whether a span may be a request: somebody was found for it, and it asks for something."""
    one = routed.get(span)
    if one is None:
        return False
    text = span.of(message)
    if one.share < _IN_SCOPE and is_remark(text):
        return False
    return one.courteous or not is_courtesy(text)


def odds_of_two(whole: Heard, left: Heard, right: Heard, words: int) -> float:
    """The logarithm of the odds that a cut parts two requests.

    Minus infinity where both sides may be for the same capability: that agent can answer both at
    once. A side that is far from all that the agents can do is for none.

    Args:
        whole: How both were routed together.
        left: How what is before the cut was routed.
        right: How what is after it was routed.
        words: How many words the shorter side has.
    """
    same = left.agent == right.agent
    told = left.capability and right.capability and left.capability != right.capability
    if same and not told and min(left.share, right.share) >= _STRANGE:
        return -math.inf
    high, low = max(left.scope, right.scope), min(left.scope, right.scope)
    signals = (
        min(5.0, _log_odds(min(left.confidence, right.confidence))),
        1.0,
        _within(whole.scope - high, -6.0, 6.0),
        min(6.0, _log_odds(whole.confidence)),
        _within(whole.scope - low, -6.0, 8.0),
        float(min(4, words)),
        float(whole.agent in (left.agent, right.agent)),
    )
    odds = sum(weight * signal for weight, signal in zip(_WEIGHTS, signals, strict=True))
    return odds - _SAME_AGENT_ODDS if same else odds


def _log_odds(probability: float) -> float:
    return math.log(max(probability, 1e-4) / max(1 - probability, 1e-4))


def _within(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
