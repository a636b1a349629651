"""Whether a message means something only with the one before it. Pure."""

import math
import re
from dataclasses import replace

from lmos_mesh.things import ThingKey
from lmos_mesh_router.ranking import Ranked, Ranking

_MOST_WORDS = 8
# What a follow-up begins with, in English and German.
_FOLLOWING = re.compile(
    r"\s*(and|or|but|also|then|so|instead|what about|how about|what if|(the )?same|why|that|this|"
    r"those|these|it|them|for|from|until|since|without|und|oder|aber|auch|dann|stattdessen|"
    r"was ist mit|wie wäre es mit|warum|wieso|für|von|bis|seit|ohne|dasselbe|das|dies|diese)\b",
    re.IGNORECASE,
)

# A logistic regression on 120 pairs of messages to eight agents, half of them follow-ups: the
# constant; how far the message alone is above what is in scope; whether it opens as one.
_CONSTANT, _ABOVE, _OPENED = 3.54, -0.97, 1.72


def follows(message: str) -> bool:
    """Whether a message reads like the continuation of another: short, and opened as one."""
    return len(message.split()) <= _MOST_WORDS and bool(_FOLLOWING.match(message))


def stays(message: str, alone: Ranking) -> float:
    """How likely a message belongs to the one before it, 0 to 1.

    What the agents can be asked for on its own ("will it rain?") begins something else, however
    it is opened; what is far from all of it ("the smaller one") is about what was said before.

    Args:
        message: What was said.
        alone: How it is ranked without the message before it.
    """
    above = min(8.0, max(-4.0, alone.scope - alone.least)) if alone.ranked else -4.0
    odds = _CONSTANT + _ABOVE * above + _OPENED * follows(message)
    return 1 / (1 + math.exp(-odds))


def with_history(
    message: str, alone: Ranking, together: Ranking, before: ThingKey | None
) -> Ranking:
    """The ranking of a message in a conversation.

    A mixture: the agent before, as far as the message belongs to what came before, and for the
    rest whatever the message alone says.

    Args:
        message: What was said.
        alone: How it is ranked without the message before it.
        together: How both messages, joined by a line break, are ranked: tells which capability
            of the agent before is meant.
        before: The agent that answered the message before; None if nobody did.
    """
    meant = next((one for one in together.ranked if one.key == before), None)
    if meant is None or not alone.ranked:
        return alone
    share = stays(message, alone)
    mixed: list[Ranked] = []
    for one in alone.ranked:
        probability = (1 - share) * one.probability
        if one.key != before:
            mixed.append(one._replace(probability=probability))
        elif share < 0.5:
            mixed.append(one._replace(probability=probability + share))
        else:
            mixed.append(meant._replace(probability=probability + share))
    if all(one.key != before for one in mixed):
        mixed.append(meant._replace(probability=share))
    mixed.sort(key=lambda one: (-one.probability, one.key))
    if mixed[0].key != before or share < 0.5:
        return replace(alone, ranked=tuple(mixed))
    possible = tuple(dict.fromkeys((meant.key, *alone.possible))) if share < 0.95 else (meant.key,)
    return replace(
        together,
        ranked=tuple(mixed),
        possible=possible,
        route_at=alone.route_at,
    )
