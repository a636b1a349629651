"""The resources that people applied and the operator keeps, found by name and by label.

Pure: it is handed changes of the bucket as they come.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.resources import (
    DEFAULT_NAMESPACE,
    KINDS,
    Channel,
    ChannelRollout,
    ChannelRouting,
    Resource,
)

ResourceT = TypeVar("ResourceT", bound=Resource)

_REMEMBERED_GONE = 4096
# Of several rollouts of one channel, the one that is under way counts before those that have ended,
# and of those the last: where it left the conversations, there they are.
_RANKED = {"Progressing": 2, "Paused": 2, "Promoted": 1, "Aborted": 1, "RolledBack": 1}
_KINDS_BY_TOKEN = {kind.lower(): kind for kind in KINDS}


class ResourceKey(NamedTuple):
    """What names one resource; `kind` as in `KINDS`."""

    kind: str
    namespace: str
    name: str

    @property
    def token(self) -> str:
        """Its key in the bucket."""
        return subjects.key(self.namespace, self.kind.lower(), self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of namespace {self.namespace!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A resource as it is stored."""

    key: ResourceKey
    resource: Resource
    revision: int


def key_of(resource: Resource) -> ResourceKey:
    """What names a resource."""
    kind = type(resource).__name__
    return ResourceKey(kind, resource.metadata.namespace, resource.metadata.name)


def key_from(token: str) -> ResourceKey | None:
    """What a key of the bucket names; None if that is no resource."""
    ids = subjects.ids_of(token)
    if len(ids) != 3 or ids[1] not in _KINDS_BY_TOKEN:
        return None
    return ResourceKey(_KINDS_BY_TOKEN[ids[1]], ids[0], ids[2])


def shown(resource: Resource) -> dict[str, Any]:
    """A resource as JSON has it, without what nobody has said of its metadata."""
    said = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata = {name: value for name, value in said["metadata"].items() if value}
    return {
        "apiVersion": said.pop("apiVersion"),
        "kind": said.pop("kind"),
        **said,
        "metadata": metadata,
    }


def value_of(resource: Resource) -> bytes:
    """What is stored of a resource; its revision is the store's own to tell."""
    said = shown(resource)
    said["metadata"].pop("resourceVersion", None)
    return json.dumps(said, ensure_ascii=False).encode()


def resource_from(key: ResourceKey, value: bytes, revision: int) -> Resource | None:
    """What was stored; None if it cannot be read. What a newer writer knows more is left out."""
    try:
        read: Any = json.loads(value)
        resource = _validated(KINDS[key.kind], read)
    except (ValueError, RecursionError):
        return None
    metadata = resource.metadata.model_copy(
        update={"namespace": key.namespace, "name": key.name, "resource_version": str(revision)}
    )
    return resource.model_copy(update={"metadata": metadata})


def _validated(model: type[Resource], read: Any) -> Resource:
    try:
        return model.model_validate(read)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        if any(error["type"] != "extra_forbidden" for error in errors):
            raise
        for error in errors:
            *way, last = error["loc"]
            at = read
            for step in way:
                at = at[step]
            at.pop(last, None)
        return model.model_validate(read)


class ResourceIndex:
    """The resources there are. `apply` and `keep` say which of them have changed."""

    def __init__(self) -> None:
        self.revision = 0
        self._kept: dict[ResourceKey, Kept] = {}
        self._kinds: dict[str, dict[ResourceKey, Kept]] = {kind: {} for kind in KINDS}
        self._channels: dict[tuple[str, str], dict[str, set[ResourceKey]]] = {}
        self._rollouts: dict[tuple[str, str], set[ResourceKey]] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept.values()))

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, key: ResourceKey) -> Kept | None:
        """The resource of that name, and its revision."""
        return self._kept.get(key)

    def get(self, kind: type[ResourceT], namespace: str, name: str) -> ResourceT | None:
        """The resource of that name."""
        kept = self._kept.get(ResourceKey(kind.__name__, namespace, name))
        return kept.resource if kept and isinstance(kept.resource, kind) else None

    def of_kind(self, kind: type[ResourceT]) -> list[ResourceT]:
        """All of a kind, by namespace and name."""
        held = self._kinds.get(kind.__name__, {})
        found = (held[key].resource for key in sorted(held))
        return [one for one in found if isinstance(one, kind)]

    def keys(self, kind: str) -> Collection[ResourceKey]:
        """The names of all of a kind, in no order."""
        return self._kinds[kind].keys()

    def closed(self, tenant: str, channel: str) -> bool:
        """Whether somebody applied a Channel there, so that its Routing alone decides."""
        return (tenant, channel) in self._channels

    def subsets(self, tenant: str, channel: str) -> list[str]:
        """The subsets in which there is a Channel, in order."""
        return sorted(self._channels.get((tenant, channel), ()))

    def channels_of(self, tenant: str, channel: str, subset: str) -> list[ResourceKey]:
        """The names of the Channels there: the one that counts first, then by namespace."""
        found = self._channels.get((tenant, channel), {}).get(subset, ())
        return sorted(found, key=_first_default)

    def channel_of(self, tenant: str, channel: str, subset: str) -> Channel | None:
        """The Channel that counts: that of namespace `default`, else of the first by name."""
        found = self._channels.get((tenant, channel), {}).get(subset)
        if not found:
            return None
        key = min(found, key=_first_default) if len(found) > 1 else next(iter(found))
        return self.get(Channel, key.namespace, key.name)

    def routing(self, tenant: str, channel: str, subset: str) -> ChannelRouting | None:
        """What that Channel was resolved to; None if it never was, or there is none."""
        found = self.channel_of(tenant, channel, subset)
        if found is None:
            return None
        return self.get(ChannelRouting, found.metadata.namespace, found.metadata.name)

    def rollout(self, tenant: str, channel: str) -> ChannelRollout | None:
        """The rollout that says where its conversations go; None if none does."""
        best: ChannelRollout | None = None
        rank = (0, 0.0, "")
        for key in self._rollouts.get((tenant, channel), ()):
            one = self.get(ChannelRollout, key.namespace, key.name)
            if one is None or one.status is None:
                continue
            its_rank = (_RANKED.get(one.status.phase, 0), one.status.step_began, key.name)
            if its_rank[0] and its_rank > rank:
                best, rank = one, its_rank
        return best

    # -- changes --

    def apply(self, token: str, value: bytes | None, revision: int) -> ResourceKey | None:
        """Take a change; None if it is older than what is known, or changes nothing.

        Args:
            token: The key in the bucket.
            value: What is stored there; None if it is gone.
            revision: Of the change.
        """
        self.revision = max(self.revision, revision)
        key = key_from(token)
        if key is None or revision <= self._gone.get(token, 0):
            return None
        known = self._kept.get(key)
        if known is not None and revision <= known.revision:
            return None
        if value is None:
            self._gone[token] = revision
            if len(self._gone) > _REMEMBERED_GONE:
                self._gone.popitem(last=False)
            return key if self._forget(key) else None
        resource = resource_from(key, value, revision)
        if resource is None:
            return None
        self._forget(key)
        self._enter(Kept(key=key, resource=resource, revision=revision))
        return key

    def keep(self, revisions: Mapping[str, int]) -> list[ResourceKey]:
        """Before everything is read: forget what is not there any more.

        Args:
            revisions: The revision of each key there is. If one has gone back, the bucket was
                made anew, and counts from 1 again.
        """
        self._gone.clear()
        self.revision = max(revisions.values(), default=0)
        stale: list[ResourceKey] = []
        for key, kept in list(self._kept.items()):
            revision = revisions.get(key.token)
            if revision is None:
                self._forget(key)
                stale.append(key)
            elif revision < kept.revision:
                self._kept[key] = self._kinds[key.kind][key] = replace(kept, revision=0)
        return stale

    def _enter(self, kept: Kept) -> None:
        key, resource = kept.key, kept.resource
        self._kept[key] = self._kinds[key.kind][key] = kept
        if isinstance(resource, Channel):
            subsets = self._channels.setdefault((resource.tenant, resource.channel), {})
            subsets.setdefault(resource.subset, set()).add(key)
        elif isinstance(resource, ChannelRollout) and (place := _place(resource)) is not None:
            self._rollouts.setdefault(place, set()).add(key)

    def _forget(self, key: ResourceKey) -> bool:
        """Whether there was something to forget."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return False
        del self._kinds[key.kind][key]
        resource = kept.resource
        if isinstance(resource, Channel):
            place = (resource.tenant, resource.channel)
            subsets = self._channels[place]
            subsets[resource.subset].discard(key)
            if not subsets[resource.subset]:
                del subsets[resource.subset]
            if not subsets:
                del self._channels[place]
        elif isinstance(resource, ChannelRollout) and (where := _place(resource)) is not None:
            self._rollouts[where].discard(key)
            if not self._rollouts[where]:
                del self._rollouts[where]
        return True


def _place(rollout: ChannelRollout) -> tuple[str, str] | None:
    """The tenant and channel whose conversations it moves; None before the operator has looked."""
    status = rollout.status
    return (status.tenant, status.channel) if status is not None and status.tenant else None


def _first_default(key: ResourceKey) -> tuple[bool, str, str]:
    return key.namespace != DEFAULT_NAMESPACE, key.namespace, key.name
