"""What a closed channel lets through: which agents, and which of their capabilities. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.errors import AgentNotFound
from lmos_mesh.resource_index import ResourceIndex
from lmos_mesh.resources import CapabilityGroup, ChannelRouter, ChannelRouting
from lmos_mesh.things import Thing, ThingKey

HOST = "nats:"
"""What the host of an agent of the mesh begins with; its subject follows, without the action."""

_MOST_KNOWN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a Routing says, as whoever carries a turn needs it.

    Attributes:
        resolved: Whether there is a Routing; without one nobody may be asked.
        agents: The ids and names of the capabilities that each agent provides here.
        fallback: Who answers what nobody else can, by name: see `Membership.meant`.
        router: How the channel's messages find their agent.
        settings: What the channel's agents are told.
    """

    tenant: str
    channel: str
    subset: str
    resolved: bool = False
    agents: Mapping[ThingKey, frozenset[str]] = field(
        default_factory=dict[ThingKey, frozenset[str]]
    )
    fallback: ThingKey | None = None
    router: ChannelRouter = field(default_factory=ChannelRouter)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return f"channel {self.channel!r} ({self.subset}) of {self.tenant!r}"

    def admits(self, key: ThingKey) -> bool:
        """Whether an agent may be asked here at all."""
        return key in self.agents or self.falls_back_on(key)

    def falls_back_on(self, key: ThingKey) -> bool:
        """Whether it answers what nobody else can."""
        return self.fallback is not None and key[1:] == self.fallback[1:]

    def narrowed(self, thing: Thing, key: ThingKey) -> Thing:
        """An agent with none but the capabilities that it may be asked for here."""
        wired = self.agents.get(key)
        if wired is None:
            return (
                thing if self.falls_back_on(key) else thing.model_copy(update={"capabilities": ()})
            )
        kept = tuple(one for one in thing.capabilities if not wired.isdisjoint((one.id, one.name)))
        if len(kept) == len(thing.capabilities):
            return thing
        return thing.model_copy(update={"capabilities": kept})

    def named(self) -> list[str]:
        """The names of the agents that may be asked here."""
        keys = {*self.agents, *([self.fallback] if self.fallback else [])}
        return sorted({key.name for key in keys})


def wiring_of(routing: ChannelRouting | None, *, tenant: str, channel: str, subset: str) -> Wiring:
    """What the Routing of a closed channel lets through.

    One that is labelled for somebody else, as when its Channel was just given away, is none.
    """
    if routing is None or (routing.tenant, routing.channel, routing.subset) != (
        tenant,
        channel,
        subset,
    ):
        return Wiring(tenant=tenant, channel=channel, subset=subset)
    agents: dict[ThingKey, frozenset[str]] = {}
    for group in routing.spec.capability_groups:
        for key, names in _provided(group, tenant).items():
            agents[key] = agents.get(key, frozenset()) | names
    named = routing.spec.fallback_agent
    return Wiring(
        tenant=tenant,
        channel=channel,
        subset=subset,
        resolved=True,
        agents=agents,
        fallback=ThingKey(tenant, named, subset) if named else None,
        router=routing.spec.router or ChannelRouter(),
        settings=routing.spec.settings,
    )


def _provided(group: CapabilityGroup, tenant: str) -> dict[ThingKey, frozenset[str]]:
    found: dict[ThingKey, frozenset[str]] = {}
    for one in group.capabilities:
        key = ThingKey(_tenant_of(one.host, tenant), group.name, group.subset)
        names = frozenset(name for name in (one.id, one.name) if name)
        found[key] = found.get(key, frozenset()) | names
    return found


def not_in(wiring: Wiring, agent: str) -> AgentNotFound:
    """The error for an agent that a channel does not let through."""
    named = wiring.named()
    return AgentNotFound(
        f"agent {agent!r} is none of {wiring}",
        hint=f"it has {', '.join(named)}" if named else "nobody serves it yet",
        near=named,
        channel=wiring.channel,
    )


def host_of(key: ThingKey) -> str:
    """Where an agent of the mesh is, as a Routing says it."""
    return f"{HOST}{subjects.agent(*key).removesuffix('.>')}"


def _tenant_of(host: str, otherwise: str) -> str:
    if not host.startswith(HOST):
        return otherwise
    return subjects.tenant_of(host.removeprefix(HOST))


class Wirings:
    """The wirings of channels, each made once until something is applied."""

    def __init__(self, index: ResourceIndex) -> None:
        self._index = index
        self._known: dict[tuple[str, str, str], Wiring | None] = {}

    def of(self, tenant: str, channel: str, subset: str) -> Wiring | None:
        """What a channel lets through; None for an open one, which has no Routing to obey."""
        at = (tenant, channel, subset)
        if at in self._known:
            return self._known[at]
        if len(self._known) >= _MOST_KNOWN:  # callers make up channels
            self._known.clear()
        wiring = None
        if self._index.closed(tenant, channel):
            wiring = wiring_of(
                self._index.routing(*at), tenant=tenant, channel=channel, subset=subset
            )
        self._known[at] = wiring
        return wiring

    def forget(self) -> None:
        """Something was applied, changed or deleted."""
        self._known.clear()
