"""Whether a message means something only with the one before it. Pure."""

import re

_MOST_WORDS = 8
# What a follow-up begins with, in English and German.
_FOLLOWING = re.compile(
    r"\s*(and|or|but|also|then|so|instead|what about|how about|what if|(the )?same|why|that|this|"
    r"those|these|it|them|for|from|until|since|without|und|oder|aber|auch|dann|stattdessen|"
    r"was ist mit|wie wäre es mit|warum|wieso|für|von|bis|seit|ohne|dasselbe|das|dies|diese)\b",
    re.IGNORECASE,
)


def follows(message: str) -> bool:
    """Whether a message reads like the continuation of another: short, and opened as one."""
    return len(message.split()) <= _MOST_WORDS and bool(_FOLLOWING.match(message))
