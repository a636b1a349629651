"""Which side of a rollout a conversation is on: drawn once, by its id, and kept to its end. Pure.

The rule: a draw depends on the rollout's salt and an id alone, so that every replica draws the
same; a rising weight only adds conversations; and nobody changes sides while a rollout runs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmos_mesh.endpoint import Message
from lmos_mesh.resources import ChannelRollout, Match, RolloutStatus

RUNNING = frozenset({"Progressing", "Paused"})
"""The phases in which new conversations are drawn."""

_TWO_64 = 1 << 64


class Side(Message):
    """What is kept with a conversation: where its turns go, and what decided that.

    Attributes:
        subset: The release line of the Channel that carries it.
        rollout: The rollout that drew it, as `{namespace}/{name}`; empty if none did, as for a
            conversation that is older than the rollout.
        salt: The salt of that draw.
        as_of: The revision of the resources that it was decided by.
    """

    subset: str
    rollout: str = ""
    salt: str = ""
    as_of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Who speaks, as far as a draw asks for it.

    Attributes:
        user: None for nobody known; the conversation then stands for its user.
        attributes: The `userContext`.
    """

    conversation: str
    user: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def place(salt: str, id: str) -> int:
    """Where an id lies among all others, 0 to 99: those below a weight are drawn by it."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), key=_key(salt), digest_size=8)
    # Whole numbers: a share of 2^64, exact to the last of them.
    return int.from_bytes(digest.digest(), "big") * 100 // _TWO_64


def is_drawn(salt: str, id: str, weight: int) -> bool:
    """Whether an id is among the `weight` percent."""
    return place(salt, id) < weight


def side_of(rollout: ChannelRollout | None, speaker: Speaker, kept: Side | None) -> Side | None:
    """Where a turn goes whose caller names no subset; None if no rollout has a say in it.

    Keep the answer with the conversation and bring it along at the next turn.

    Args:
        rollout: The one of the tenant and channel; None if there is none.
        speaker: Whose turn it is.
        kept: Where the conversation was so far; for one that began before any rollout, a `Side`
            that names only its subset. None for a new one.
    """
    status = rollout.status if rollout is not None else None
    if rollout is None or status is None or not status.stable_subset:
        return None

    def on(subset: str) -> Side:
        return Side(subset=subset, rollout=name_of(rollout), salt=status.salt)

    if status.phase == "Promoted":
        return on(status.canary_subset)
    if status.phase not in RUNNING:
        return on(status.stable_subset)
    if kept is not None and _keeps(kept, status):
        # Of this run from now on, so that it stays whatever the weight becomes.
        return on(kept.subset)
    if _matches(_match_of(rollout), speaker):
        return on(status.canary_subset)
    id = speaker.conversation
    if _by_user(rollout) and speaker.user:
        id = speaker.user
    drawn = is_drawn(status.salt, id, status.canary_weight)
    return on(status.canary_subset if drawn else status.stable_subset)


def shadow_of(rollout: ChannelRollout | None, turn: str) -> str | None:
    """The subset that is to be asked as well, for comparison only; None for nobody."""
    status = rollout.status if rollout is not None else None
    if status is None or status.phase != "Progressing" or not status.shadow_percent:
        return None
    return status.canary_subset if is_drawn(status.salt, turn, status.shadow_percent) else None


def name_of(rollout: ChannelRollout) -> str:
    """What a rollout is called where there may be several namespaces."""
    return f"{rollout.metadata.namespace}/{rollout.metadata.name}"


def _keeps(kept: Side, status: RolloutStatus) -> bool:
    if kept.subset == status.stable_subset:
        return True
    if kept.subset != status.canary_subset:
        return False
    # Left over from an earlier run: it may stay only where this one lets anybody be.
    return kept.salt == status.salt or status.canary_weight > 0


def _match_of(rollout: ChannelRollout) -> Match | None:
    strategy = rollout.spec.strategy
    if strategy.canary is not None:
        return strategy.canary.match
    return strategy.blue_green.match if strategy.blue_green is not None else None


def _matches(match: Match | None, speaker: Speaker) -> bool:
    if match is None:
        return False
    if speaker.user is not None and speaker.user in match.users:
        return True
    return bool(match.attributes) and all(
        _said(speaker.attributes.get(name)) in values for name, values in match.attributes.items()
    )


def _said(value: Any) -> str | None:
    """An attribute as people write it in YAML: `true`, not `True`."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _by_user(rollout: ChannelRollout) -> bool:
    canary = rollout.spec.strategy.canary
    return canary is not None and canary.sticky == "user"


def _key(salt: str) -> bytes:
    """A salt of any length as the key of a hash, which may have 64 bytes at most."""
    raw = salt.encode("utf-8", "surrogatepass")
    return raw if len(raw) <= 64 else hashlib.blake2b(raw).digest()
