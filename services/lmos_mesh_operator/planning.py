"""Which Channels a change can touch, and what these need: no other is looked at. Pure."""

from collections.abc import Iterable

from lmos_mesh.resource_index import ResourceIndex, ResourceKey
from lmos_mesh.resources import Agent, Channel, ChannelRouting, ChannelSpec
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_operator.fleet import Fleet, Touched, owner_of
from lmos_mesh_operator.reconcile import (
    Action,
    key_of_channel,
    key_of_routing,
    reconcile,
    reconcile_agent,
    reconcile_orphan,
)
from lmos_mesh_operator.resolving import MostSimilar, Resolution, resolve, term, words_of

_NOBODY: frozenset[ResourceKey] = frozenset()


class Planner:
    """Keeps in mind who requires what.

    Every change names the resources that have to be looked at; `plan` says what they need.

    Attributes:
        resolved: The Channels that `plan` has ever found resolved.

    Args:
        index: The resources as they are.
        most_similar: What `MOST_SIMILAR` means.
    """

    def __init__(self, index: ResourceIndex, *, most_similar: MostSimilar = "nearest") -> None:
        self.fleet = Fleet()
        self.resolved: set[ResourceKey] = set()
        self._index = index
        self._most_similar: MostSimilar = most_similar
        self._resolutions: dict[ResourceKey, Resolution] = {}
        self._known: dict[ResourceKey, tuple[ChannelSpec, dict[str, str]]] = {}
        self._required: dict[ResourceKey, frozenset[str]] = {}
        self._requiring: dict[str, set[ResourceKey]] = {}
        self._falls_back: dict[ResourceKey, str] = {}
        self._falling_back: dict[str, set[ResourceKey]] = {}

    def thing_changed(self, key: ThingKey, thing: Thing | None, instances: int) -> set[ResourceKey]:
        """An agent of the registry has changed, joined, died, or is gone."""
        touched = self._touched_by(self.fleet.put_thing(key, thing, instances))
        touched.update(self.fleet.declared(key.name))
        return touched

    def resource_changed(self, key: ResourceKey) -> set[ResourceKey]:
        """A resource was written, or is gone."""
        if key.kind == Agent.__name__:
            agent = self._index.get(Agent, key.namespace, key.name)
            return {key, *self._touched_by(self.fleet.put_agent(key, agent))}
        if key.kind == ChannelRouting.__name__:
            return {key_of_channel(key)}
        if key.kind == Channel.__name__:
            self._note_channel(key)
            return {key}
        return set()

    def everything(self) -> set[ResourceKey]:
        """All that may need something, to be looked at anew."""
        self._resolutions.clear()
        of_routings = {key_of_channel(key) for key in self._index.keys(ChannelRouting.__name__)}
        return {
            *self._index.keys(Channel.__name__),
            *self._index.keys(Agent.__name__),
            *of_routings,
        }

    def resolution(self, channel: Channel) -> Resolution:
        """What a Channel comes to as things are."""
        required = channel.spec.required_capabilities
        fallback = channel.spec.fallback_agent
        candidates = self.fleet.candidates(
            channel.tenant,
            channel.metadata.namespace,
            {term(word) for wanted in required for word in words_of(wanted)},
            names=[fallback] if fallback else [],
        )
        return resolve(channel, candidates, most_similar=self._most_similar)

    def plan(self, keys: Iterable[ResourceKey], *, now: str) -> list[Action]:
        """What these resources need.

        Args:
            keys: Of Channels, those that are gone as well, and of Agents.
            now: RFC 3339.
        """
        found: list[Action] = []
        for key in sorted(keys):
            kept = self._index.kept(key)
            if key.kind == Agent.__name__:
                if kept is not None and isinstance(kept.resource, Agent):
                    owner = owner_of(kept.resource)
                    tenants = (owner,) if owner else kept.resource.spec.supported_tenants
                    count = self.fleet.instances(key.name, kept.resource.subset, tenants)
                    found += reconcile_agent(kept, count)
                continue
            routing = self._index.kept(key_of_routing(key))
            if kept is not None and isinstance(kept.resource, Channel):
                resolution = self._resolutions.get(key)
                if resolution is None:
                    resolution = self._resolutions[key] = self.resolution(kept.resource)
                if resolution.resolved:
                    self.resolved.add(key)
                found += reconcile(kept, resolution, routing, now=now)
            elif routing is not None:
                found += reconcile_orphan(routing)
        return found

    def _touched_by(self, touched: Touched | None) -> set[ResourceKey]:
        if touched is None:
            return set()
        found: set[ResourceKey] = set(self._falling_back.get(touched.name, _NOBODY))
        for word in touched.words:
            found |= self._requiring.get(word, _NOBODY)
        concerned = {key for key in found if self._concerns(touched, key)}
        for key in concerned:
            self._resolutions.pop(key, None)
        return concerned

    def _concerns(self, touched: Touched, key: ResourceKey) -> bool:
        if touched.namespace not in (None, key.namespace):
            return False
        if touched.tenant is None:
            return True
        channel = self._index.get(Channel, key.namespace, key.name)
        return channel is not None and channel.tenant == touched.tenant

    def _note_channel(self, key: ResourceKey) -> None:
        channel = self._index.get(Channel, key.namespace, key.name)
        required: frozenset[str] = frozenset()
        fallback = ""
        said = (channel.spec, channel.metadata.labels) if channel is not None else None
        if said is not None and said == self._known.get(key):
            return  # its status was written, which changes nothing
        self._resolutions.pop(key, None)
        self._known.pop(key, None)
        if channel is not None and said is not None:
            self._known[key] = said
            wanted = channel.spec.required_capabilities
            required = frozenset(term(word) for one in wanted for word in words_of(one))
            fallback = channel.spec.fallback_agent or ""
        before = self._required.pop(key, _NO_WORDS)
        for word in before - required:
            _unlist(self._requiring, word, key)
        for word in required - before:
            self._requiring.setdefault(word, set()).add(key)
        was = self._falls_back.pop(key, "")
        if was and was != fallback:
            _unlist(self._falling_back, was, key)
        if channel is not None:
            self._required[key] = required
            if fallback:
                self._falls_back[key] = fallback
                self._falling_back.setdefault(fallback, set()).add(key)


_NO_WORDS: frozenset[str] = frozenset()


def _unlist(listed: dict[str, set[ResourceKey]], at: str, key: ResourceKey) -> None:
    keys = listed[at]
    keys.discard(key)
    if not keys:
        del listed[at]
