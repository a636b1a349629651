"""The agents that channels can be given, found by what they can do. Pure."""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resources import Agent, ProvidedCapability
from lmos_mesh.things import ANY_CHANNEL, SHARED, Capability, Thing, ThingKey
from lmos_mesh.wiring import host_of
from lmos_mesh_operator.resolving import Candidate, Offer, term

ListT = TypeVar("ListT", bound=Hashable)
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """What a change of an agent could mean for channels.

    Attributes:
        tenant: Whose channels; None for anybody's.
        namespace: Channels of this one; None for any.
        words: What they require, as `resolving.term` has it.
        name: Or whom they fall back on.
    """

    tenant: str | None
    namespace: str | None
    words: frozenset[str]
    name: str


@dataclass(frozen=True, slots=True)
class _Member:
    """An agent.

    Attributes:
        owner: Of a declared one, the tenant whose channels alone it is for; None for anybody's.
    """

    candidate: Candidate
    words: frozenset[str]
    instances: int = 0
    owner: str | None = None

    def counts_for(self, tenant: str) -> bool:
        """Whether what it declares concerns the channels of a tenant."""
        return self.owner in (None, tenant)


class Fleet:
    """Agents of the registry, and those that somebody declared.

    Every change says which channels it could touch; None where it can touch none.
    """

    def __init__(self) -> None:
        self._things: dict[ThingKey, _Member] = {}
        self._declared: dict[ResourceKey, _Member] = {}
        self._offering: dict[tuple[str, str], set[ThingKey]] = {}
        self._declared_offering: dict[tuple[str, str], set[ResourceKey]] = {}
        self._called: dict[str, set[ThingKey]] = {}
        self._declared_called: dict[str, set[ResourceKey]] = {}

    def put_thing(self, key: ThingKey, thing: Thing | None, instances: int = 0) -> Touched | None:
        """An agent of the registry has changed, joined or died; without `thing` it is gone."""
        before = self._things.pop(key, None)
        for word in before.words if before else ():
            _unlist(self._offering, (key.tenant, word), key)
        after: _Member | None = None
        if thing is not None and thing.kind == "agent":
            candidate = _registered(key, thing, live=instances > 0)
            after = self._things[key] = _Member(candidate, _words(candidate), instances)
            self._called.setdefault(key.name, set()).add(key)
            for word in after.words:
                self._offering.setdefault((key.tenant, word), set()).add(key)
        elif before is not None:
            _unlist(self._called, key.name, key)
        if _same(before, after):
            return None
        # Where it is declared too, what was declared counts instead of it, or no longer.
        namesakes = [self._declared[one] for one in self._declared_called.get(key.name, ())]
        if (shared := self._things.get(key._replace(tenant=SHARED))) is not None:
            namesakes.append(shared)  # a tenant's own hides it
        return Touched(
            tenant=None if key.tenant == SHARED else key.tenant,
            namespace=None,
            words=_all_words(before, after, *namesakes),
            name=key.name,
        )

    def put_agent(self, key: ResourceKey, agent: Agent | None) -> Touched | None:
        """A declared agent has changed; without `agent` it is gone."""
        before = self._declared.pop(key, None)
        for word in before.words if before else ():
            _unlist(self._declared_offering, (key.namespace, word), key)
        after: _Member | None = None
        if agent is not None:
            candidate = _declared(agent)
            owner = owner_of(agent)
            after = self._declared[key] = _Member(candidate, _words(candidate), owner=owner)
            self._declared_called.setdefault(key.name, set()).add(key)
            for word in after.words:
                self._declared_offering.setdefault((key.namespace, word), set()).add(key)
        elif before is not None:
            _unlist(self._declared_called, key.name, key)
        if _same(before, after):
            return None
        namesakes = [self._things[one] for one in self._called.get(key.name, ())]
        return Touched(
            tenant=_only({one.owner for one in (before, after) if one is not None}),
            namespace=key.namespace,
            words=_all_words(before, after, *namesakes),
            name=key.name,
        )

    def candidates(
        self, tenant: str, namespace: str, terms: Iterable[str], *, names: Iterable[str] = ()
    ) -> list[Candidate]:
        """Who may be asked for a channel, of those who offer one of the terms, or are named.

        Args:
            tenant: Whose channel.
            namespace: Where its resource is.
            terms: What it requires, as `resolving.term` has it.
            names: Agents that it names.
        """
        things: set[ThingKey] = set()
        declared: set[ResourceKey] = set()
        for word in terms:
            for owner in (tenant, SHARED):
                things |= self._offering.get((owner, word), _NO_THINGS)
            declared |= self._declared_offering.get((namespace, word), _NO_AGENTS)
        for name in names:
            called = self._called.get(name, _NO_THINGS)
            things |= {key for key in called if key.tenant in (tenant, SHARED)}
            named = self._declared_called.get(name, _NO_AGENTS)
            declared |= {key for key in named if key.namespace == namespace}
        found = [
            self._narrowed(key, tenant, namespace)
            for key in things
            if key.tenant == tenant or key._replace(tenant=tenant) not in self._things
        ]
        # What the registry says of an agent counts, also that it cannot do what was declared.
        found += [
            self._declared[key].candidate
            for key in declared
            if self._declared[key].counts_for(tenant) and not self._is_registered(key, tenant)
        ]
        return found

    def is_live(self, key: ThingKey) -> bool:
        """Whether an agent of the registry counts as running."""
        member = self._things.get(key)
        return member is not None and member.instances > 0

    def declared(self, name: str) -> list[ResourceKey]:
        """The resources that declare an agent of that name."""
        return sorted(self._declared_called.get(name, ()))

    def instances(self, name: str, subset: str, tenants: Collection[str] = ()) -> int:
        """How many processes serve an agent: for these tenants, or for any without one."""
        return sum(
            self._things[key].instances
            for key in self._called.get(name, ())
            if key.subset == subset and (not tenants or key.tenant in (*tenants, SHARED))
        )

    def _narrowed(self, key: ThingKey, tenant: str, namespace: str) -> Candidate:
        one = self._things[key].candidate
        for declared in self._declared_called.get(key.name, ()):
            if not self._declared[declared].counts_for(tenant):
                continue
            said = self._declared[declared].candidate
            if declared.namespace == namespace and said.subset == one.subset:
                one = replace(
                    one,
                    tenants=_both(one.tenants, said.tenants),
                    channels=_both(one.channels, said.channels),
                )
        return one

    def _is_registered(self, key: ResourceKey, tenant: str) -> bool:
        subset = self._declared[key].candidate.subset
        return any(ThingKey(owner, key.name, subset) in self._things for owner in (tenant, SHARED))


_NO_THINGS: frozenset[ThingKey] = frozenset()
_NO_AGENTS: frozenset[ResourceKey] = frozenset()


def _registered(key: ThingKey, thing: Thing, *, live: bool) -> Candidate:
    """An agent that has registered itself; it serves its tenant, or as a shared one many."""
    supported = frozenset(thing.supported_tenants)
    everywhere = ANY_CHANNEL in thing.supported_channels
    return Candidate(
        name=key.name,
        subset=key.subset,
        host=host_of(key),
        id=key.name,
        description=thing.description,
        offers=tuple(_offer(one) for one in thing.capabilities),
        tenants=(supported or None) if key.tenant == SHARED else frozenset({key.tenant}),
        channels=None if everywhere else frozenset(thing.supported_channels),
        live=live,
        own=key.tenant != SHARED,
    )


def _declared(agent: Agent) -> Candidate:
    """An agent as LMOS has it: no channels are none, no tenants any whom it may be for."""
    metadata, spec = agent.metadata, agent.spec
    owner = owner_of(agent)
    everywhere = ANY_CHANNEL in spec.supported_channels
    return Candidate(
        name=metadata.name,
        subset=agent.subset,
        host=f"{metadata.name}.{metadata.namespace}.svc.cluster.local",
        id=spec.id or metadata.name,
        description=spec.description,
        offers=tuple(_offer(one) for one in spec.provided_capabilities),
        tenants=frozenset({owner}) if owner else frozenset(spec.supported_tenants) or None,
        channels=None if everywhere else frozenset(spec.supported_channels),
        live=False,
        declared=True,
    )


def owner_of(agent: Agent) -> str | None:
    """The tenant that has applied it, and whose channels alone it is for; None for anybody's."""
    return agent.tenant if agent.tenant not in ("", SHARED) else None


def _only(tenants: set[str | None]) -> str | None:
    return tenants.pop() if len(tenants) == 1 else None


def _offer(one: Capability | ProvidedCapability) -> Offer:
    # Where one of the two is given it stands for both.
    return Offer(
        id=one.id or one.name,
        name=one.name or one.id,
        said=one.version,
        description=one.description,
    )


def _words(candidate: Candidate) -> frozenset[str]:
    return frozenset(term(word) for offer in candidate.offers for word in (offer.id, offer.name))


def _all_words(*members: _Member | None) -> frozenset[str]:
    return frozenset(word for one in members if one is not None for word in one.words)


def _same(before: _Member | None, after: _Member | None) -> bool:
    if before is None or after is None:
        return before is after
    return before.candidate == after.candidate and before.owner == after.owner


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _unlist(listed: dict[ListT, set[KeyT]], at: ListT, key: KeyT) -> None:
    keys = listed[at]
    keys.discard(key)
    if not keys:
        del listed[at]
