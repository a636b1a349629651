"""Who is asked: what the router decides, and what this replica knows of the agents it names."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.errors import AgentNotFound, HandedOver, LoopDetected
from lmos_mesh.membership import Membership
from lmos_mesh.messages import DECIDE, Converse, Decide, Decision, Utterance
from lmos_mesh.things import Capability, ThingKey
from lmos_mesh_runtime.routing import Way, Ways

_AGAIN_S = (0.02, 0.05, 0.1, 0.3, 1.0)
"""Between decisions, while not everybody knows yet what has just been applied."""


class Chosen(NamedTuple):
    """An agent, and what it is asked for."""

    key: ThingKey
    capability: Capability


class Chooser:
    """Chooses agents. Nobody is chosen who is not let through by the router and by `Ways`."""

    def __init__(self, bus: Bus, membership: Membership, ways: Ways, *, most_parts: int) -> None:
        self._bus = bus
        self._membership = membership
        self._ways = ways
        self._most_parts = most_parts

    async def decide(
        self, request: Converse, way: Way, history: Sequence[Utterance], *, parts: bool = False
    ) -> Decision:
        """What the router decides."""
        return await self._bus.call(
            DECIDE,
            Decide(
                message=request.message,
                history=tuple(history[-10:]),
                channel=way.channel,
                subset=way.subset,
                method="explicit" if request.agent else request.method,
                agent=request.agent,
                threshold=request.threshold,
                language=request.language,
                parts=parts,
            ),
            tenant=way.tenant,
            nobody_s=RESTART_S,
        )

    async def choose(
        self, request: Converse, way: Way, history: Sequence[Utterance]
    ) -> tuple[Decision, tuple[Chosen | None, ...]]:
        """Who answers: one agent, one for each part of the message, or nobody.

        What the router decides by and what this replica knows may differ for a moment. A channel
        that was closed just now is resolved soon. If they go on to differ, a part has None, as has
        one that nobody is sure about.

        Raises:
            AgentNotFound: They go on to differ, or the agent has just left.
        """
        parts = self._takes_parts(request, way)
        for wait_s in (*_AGAIN_S, None):
            decision = await self.decide(request, way, history, parts=parts)
            if decision.outcome == "several":
                found = tuple(
                    self.admitted(way, one.agent, one.subset, one.capability)
                    if one.outcome == "routed"
                    else None
                    for one in decision.parts
                )
                missing = [
                    part
                    for part, one in zip(decision.parts, found, strict=True)
                    if part.outcome == "routed" and one is None
                ]
                if wait_s is None or not missing:
                    return decision, found
            elif decision.outcome == "routed":
                one = self.admitted(way, decision.agent, decision.subset, decision.capability)
                if one is not None:
                    return decision, (one,)
                if wait_s is None:
                    raise self._ways.refused(way, decision.agent)
            elif wait_s is None or not self._ways.is_awaited(way):
                return decision, ()
            await asyncio.sleep(wait_s)
        raise AssertionError("the last round returns or raises")

    def _takes_parts(self, request: Converse, way: Way) -> bool:
        if request.agent or self._most_parts < 2:
            return False
        if request.parts is not None:
            return request.parts
        wiring = self._ways.wiring(way)
        return wiring is None or wiring.router.parts is not False

    def named(self, way: Way, agent: str, capability: str) -> Chosen | None:
        """An agent of the channel with a capability, by its id or name; None if it has left."""
        return next(iter(self._able(way, capability, agent)), None)

    def admitted(self, way: Way, agent: str, subset: str, capability: str) -> Chosen | None:
        """An agent as it may be asked now; None if it may not."""
        key = self._membership.meant(way.tenant, agent, subset)
        entered = self._membership.get(key) if key is not None else None
        if key is None or entered is None:
            return None
        found = self._ways.admitted(way, entered.thing, key, capability)
        return None if found is None else Chosen(key, found)

    async def taker(
        self,
        handed: HandedOver,
        giver: ThingKey,
        request: Converse,
        way: Way,
        history: Sequence[Utterance],
        path: Sequence[str],
    ) -> Chosen:
        """Whom an agent hands over to.

        Args:
            handed: What it says.
            giver: The agent.
            request: What is asked from now on.
            way: Where the turn goes; nobody else is asked.
            history: What was said before.
            path: The agents that were asked already.

        Raises:
            AgentNotFound: The channel has nobody like that.
            LoopDetected: All who are like that were asked already.
        """
        named = str(handed.details.get("to") or "")
        capability = str(handed.details.get("capability") or "")
        if named and not capability:
            try:
                _, (found, *_) = await self.choose(
                    request.model_copy(update={"agent": named}), way, history
                )
            except AgentNotFound as error:
                raise AgentNotFound(
                    f"agent {giver.name!r} hands over, and {error.message}",
                    hint=error.hint,
                    **error.details,
                ) from error
            assert found is not None, "one that is named is found or refused"
            return found
        able = self._able(way, capability, named)
        new = [one for one in able if one.key.name not in path]
        if new:
            return min(new, key=lambda one: (self._membership.load(one.key), one.key))
        if able:
            raise in_a_circle(path, able[0].key.name)
        whom = f"agent {named!r}" if named else "an agent"
        raise AgentNotFound(
            f"agent {giver.name!r} hands over to {whom} with capability {capability!r}, and "
            f"channel {way.channel!r} ({way.subset}) of {way.tenant!r} has none",
            hint="see `lmos agents`",
        )

    def _able(self, way: Way, capability: str, named: str) -> list[Chosen]:
        """The live agents of a channel with a capability, by its id or name."""
        found: list[Chosen] = []
        for one in self._membership.looked_up(
            way.tenant, name=named or None, kind="agent", capability=capability
        ):
            serves = named or one.thing.serves(way.channel)
            if one.key.subset != way.subset or not serves or not self._membership.live(one.key):
                continue
            id = next(
                each.id for each in one.thing.capabilities if capability in (each.id, each.name)
            )
            admitted = self._ways.admitted(way, one.thing, one.key, id)
            if admitted is not None:
                found.append(Chosen(one.key, admitted))
        return found


def in_a_circle(path: Sequence[str], agent: str) -> LoopDetected:
    """The error for an agent that is to be asked a second time."""
    through = [*path, agent]
    return LoopDetected(
        f"the request would go round in a circle: {' → '.join(through)}",
        hint="have one of them answer",
        path=through,
    )


def too_far(path: Sequence[str], agent: str, most: int) -> LoopDetected:
    """The error for one hand-over too many."""
    through = [*path, agent]
    return LoopDetected(
        f"the request was handed over {most} times, and no more is allowed: {' → '.join(through)}",
        hint="LMOS_RUNTIME_HANDOVERS of the runtime allows more",
        path=through,
    )
