"""How many instances of an agent each of those runs who can. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A file that somebody runs, and how many instances of it.

    Attributes:
        runner: Who runs it.
        file: Which file.
        started: When its first instance was, in Unix seconds.
        instances: How many run.
        limit: How many may.
    """

    runner: str
    file: str
    started: float = 0.0
    instances: int = 0
    limit: int = 100


def shared(wanted: int, shares: Sequence[Share]) -> list[Share]:
    """Who runs how many of so many; in the order given, whatever that is.

    Nothing is moved: when there are to be more, nobody loses one, and when fewer, nobody gets
    one. Each that is added goes to whoever runs the fewest, and each that goes is of whoever runs
    the most; among equals it is added to the oldest, and taken from the newest.

    Raises:
        ValueError: They are more than all may run.
    """
    if wanted > sum(one.limit for one in shares):
        raise ValueError(f"{wanted} is more than they may run")
    found = list(shares)
    missing = wanted - sum(one.instances for one in found)
    while missing > 0:
        at = min(
            (index for index, one in enumerate(found) if one.instances < one.limit),
            key=lambda index: (found[index].instances, *_age(found[index])),
        )
        found[at] = replace(found[at], instances=found[at].instances + 1)
        missing -= 1
    while missing < 0:
        at = max(
            range(len(found)),
            key=lambda index: (found[index].instances, *_age(found[index])),
        )
        found[at] = replace(found[at], instances=found[at].instances - 1)
        missing += 1
    return found


def _age(share: Share) -> tuple[float, str, str]:
    return share.started, share.runner, share.file
