"""Which way a turn goes: the release line of its conversation, and whom its channel lets through.

Pure: it reads an index that somebody else keeps up to date.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmos_mesh.errors import AgentNotFound
from lmos_mesh.messages import Converse, Utterance
from lmos_mesh.resource_index import ResourceIndex
from lmos_mesh.resources import ChannelRollout
from lmos_mesh.things import DEFAULT_SUBSET, Capability, Thing, ThingKey
from lmos_mesh.weights import Side, Speaker, name_of, shadow_of, side_of
from lmos_mesh.wiring import Wiring, Wirings, not_in

BEHIND_S = 30.0
"""How long one replica may know less than another; a store that was made anew counts from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where one turn goes.

    Attributes:
        rollout: The rollout that chose the subset; empty if none did.
    """

    tenant: str
    channel: str
    subset: str
    rollout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """Where a turn is to be asked as well, for comparison only."""

    subset: str
    rollout: str


class Ways:
    """The ways of turns, by what is applied now."""

    def __init__(self, index: ResourceIndex) -> None:
        self._index = index
        self._wirings = Wirings(index)
        self._usual: dict[tuple[str, str], str] = {}

    def forget(self) -> None:
        """Something was applied, changed or deleted."""
        self._wirings.forget()
        self._usual.clear()

    # -- the release line --

    def side(
        self,
        request: Converse,
        tenant: str,
        conversation: str,
        kept: Side | None,
        *,
        age_s: float = math.inf,
    ) -> Side | None:
        """What is kept with a conversation from now on.

        Args:
            request: The message.
            tenant: Whose it is.
            conversation: What is drawn by.
            kept: What was kept so far; None for a new conversation.
            age_s: How long ago, in seconds.
        """
        if request.subset is not None:
            return kept
        as_of = self._index.revision
        if kept is not None and kept.as_of > as_of and age_s < BEHIND_S:
            # Another replica has heard of a step that we have yet to hear of: it knows better.
            return kept
        rollout = self._index.rollout(tenant, request.channel)
        usual = Side(subset=self.usual(tenant, request.channel), as_of=as_of)
        if rollout is None:
            return usual
        speaker = Speaker(
            conversation=conversation, user=request.user, attributes=request.attributes
        )
        side = side_of(rollout, speaker, kept)
        return usual if side is None else side.model_copy(update={"as_of": as_of})

    def way(self, request: Converse, tenant: str, side: Side | None) -> Way:
        """Where the turn goes: as the caller says, else to the conversation's side."""
        if request.subset is not None:
            return Way(tenant=tenant, channel=request.channel, subset=request.subset)
        if side is None:
            side = Side(subset=self.usual(tenant, request.channel))
        return Way(tenant=tenant, channel=request.channel, subset=side.subset, rollout=side.rollout)

    def usual(self, tenant: str, channel: str) -> str:
        """The release line where no rollout is under way.

        `stable`, unless a closed channel has none: then that of a rollout that has ended, else
        the only one there is.
        """
        if not self._index.closed(tenant, channel):
            return DEFAULT_SUBSET
        known = self._usual.get((tenant, channel))
        if known is None:
            known = self._usual[tenant, channel] = self._found_usual(tenant, channel)
        return known

    def _found_usual(self, tenant: str, channel: str) -> str:
        subsets = self._index.subsets(tenant, channel)
        if DEFAULT_SUBSET in subsets:
            return DEFAULT_SUBSET
        for one in self._index.of_kind(ChannelRollout):
            status = one.status
            if (
                status is not None
                and (status.tenant, status.channel) == (tenant, channel)
                and status.stable_subset in subsets
            ):
                return status.stable_subset
        return subsets[0] if len(subsets) == 1 else DEFAULT_SUBSET

    def mirrored(self, way: Way, turn: str) -> Mirrored | None:
        """Where a turn is to be asked as well; None for nowhere."""
        rollout = self._index.rollout(way.tenant, way.channel)
        if rollout is None or rollout.status is None:
            return None
        subset = shadow_of(rollout, turn)
        if subset is None or way.subset != rollout.status.stable_subset:
            return None
        return Mirrored(subset=subset, rollout=name_of(rollout))

    # -- who may be asked --

    def wiring(self, way: Way) -> Wiring | None:
        """What the channel lets through; None for an open one."""
        return self._wirings.of(way.tenant, way.channel, way.subset)

    def admitted(self, way: Way, thing: Thing, key: ThingKey, capability: str) -> Capability | None:
        """What an agent is asked for; None if the channel does not let that through now."""
        wiring = self.wiring(way)
        known = thing.capabilities
        found = next((one for one in known if one.id == capability), None)
        if wiring is None:
            # Of an agent that has just changed, what it can do now.
            return found or (known[0] if known else Capability(id=capability))
        if not wiring.admits(key) or not thing.serves(way.channel):
            return None
        allowed = wiring.narrowed(thing, key).capabilities
        if not known and wiring.falls_back_on(key):
            return Capability(id=capability)
        return found if found is not None and found in allowed else None

    def is_awaited(self, way: Way) -> bool:
        """Whether a channel is so new that nobody has tried to resolve it yet."""
        wiring = self.wiring(way)
        if wiring is None or wiring.resolved:
            return False
        channel = self._index.channel_of(way.tenant, way.channel, way.subset)
        return channel is not None and channel.status is None

    def settings(self, way: Way) -> Mapping[str, Any]:
        """What the channel says of its answers."""
        wiring = self.wiring(way)
        return wiring.settings if wiring is not None else {}

    def refused(self, way: Way, agent: str) -> AgentNotFound:
        """The error for an agent that the channel does not let through."""
        wiring = self.wiring(way)
        if wiring is None:
            return AgentNotFound(f"agent {agent!r} ({way.subset}) has just left")
        return not_in(wiring, agent)


def drawn_by(request: Converse, conversation: str, history: Sequence[Utterance]) -> str:
    """What a conversation that nobody keeps is drawn by: its beginning, which each turn repeats."""
    if request.conversation is not None:
        return conversation
    first = next((one.content for one in history if one.role == "user"), request.message)
    told = f"{request.user or ''}\0{first}".encode("utf-8", "replace")
    return hashlib.blake2b(told, digest_size=16).hexdigest()
