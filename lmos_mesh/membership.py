"""Who is on the mesh and alive: the registry's entries and the leases, put together.

Pure: it is handed changes as they come and says what they mean.
"""

import difflib
import heapq
import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.description import LIVE, describe, id_of, thing_of
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.indices import Index, folded
from lmos_mesh.liveness import Liveness, remember
from lmos_mesh.messages import Registration
from lmos_mesh.things import DEFAULT_SUBSET, DEFAULT_TENANT, SHARED, Thing, ThingKey
from lmos_mesh.transport import Bucket

REGISTRY = Bucket(
    name="lmos_registry",
    history=16,
    expiring=True,
    tokens=3,
    feed="lmos.{{wildcard(1)}}.changed.registry.{{wildcard(2)}}.{{wildcard(3)}}",
)
REGISTRY_FEED = "lmos.*.changed.registry.*.*"
PROTOCOL = "lmos:protocol"
"""The member of the metadata by which agents hosted with other software are known."""


def how_to_start(key: ThingKey) -> str:
    """What to do about an agent that is stopped."""
    subset = "" if key.subset == DEFAULT_SUBSET else f" --subset {key.subset}"
    tenant = "" if key.tenant in ("", DEFAULT_TENANT) else f" --tenant {key.tenant}"
    return f"`lmos agents start {key.name}{subset}{tenant}` starts it"


@dataclass(frozen=True, slots=True)
class Entered:
    """A Thing in the registry."""

    key: ThingKey
    thing: Thing
    revision: int
    registration: Registration | None = None
    created: float = 0.0

    @property
    def id(self) -> str:
        """The id of its Description."""
        return id_of(self.thing)

    @property
    def description(self) -> dict[str, Any]:
        """Its Description, made from the record: kept, it would take most of the memory."""
        return describe(self.thing)

    @property
    def needs_instances(self) -> bool:
        """Whether it is an agent or tool that should be served by some process of the mesh."""
        thing = self.thing
        if thing.kind == "thing" or thing.origin:
            return False
        return not thing.external or PROTOCOL in thing.metadata


class _Tenant:
    """The entries of one tenant, and what they can be looked up by."""

    __slots__ = ("entered", "index")

    def __init__(self) -> None:
        self.entered: dict[ThingKey, Entered] = {}
        self.index = Index[ThingKey]()

    def looked_up(
        self,
        name: str | None,
        id: str | None,
        kind: str | None,
        capability: str | None,
        tags: Collection[str],
        among: Collection[ThingKey] | None,
    ) -> list[Entered]:
        """See `Membership.looked_up`."""
        index = self.index
        conditions = ((index.names, name), (index.ids, id), (index.capabilities, capability))
        found = [listed.get(term) for listed, term in conditions if term is not None]
        found += [index.tags.get(tag) for tag in tags]
        if kind is not None:
            found.append(index.kinds.get(kind))
        if among is not None:
            found.append(among)
        if not found:
            return list(self.entered.values())
        # The shortest first: what fits all of them is in it.
        first, *others = sorted(found, key=len)
        keys = set(first).intersection(*others) if others else first
        return [self.entered[key] for key in keys if key in self.entered]


class Membership(Liveness):
    """The live view. Every `apply_*` says which Things have changed by it."""

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        self._entered: dict[ThingKey, Entered] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._gone_entries: OrderedDict[str, int] = OrderedDict()

    def __iter__(self) -> Iterator[Entered]:
        return iter(list(self._entered.values()))

    def __len__(self) -> int:
        return len(self._entered)

    def get(self, key: ThingKey) -> Entered | None:
        """The entry of that name."""
        return self._entered.get(key)

    # -- whom a tenant means --

    def meant(self, tenant: str, name: str, subset: str) -> ThingKey | None:
        """Whom a tenant means by a name and a subset; None for nobody.

        Its own Thing, where it has registered one of that name and subset, running or not; else
        the agent of tenant `shared` that supports it.
        """
        own = ThingKey(tenant, name, subset)
        if own in self._entered:
            return own
        shared = self._entered.get(own._replace(tenant=SHARED))
        return shared.key if shared is not None and shared.thing.supports(tenant) else None

    def is_meant(self, tenant: str, key: ThingKey) -> bool:
        """Whether it is this one that a tenant means by its name and subset."""
        return self.meant(tenant, key.name, key.subset) == key

    def _open_to(self, tenant: str) -> list["_Tenant"]:
        """Where the Things are that a tenant may mean: its own place first."""
        places = (tenant,) if tenant == SHARED else (tenant, SHARED)
        return [known for one in places if (known := self._tenants.get(one)) is not None]

    def _is_open(self, tenant: str, key: ThingKey) -> bool:
        return key.tenant == tenant or self.is_meant(tenant, key)

    # -- what can be asked about a tenant: its own Things and the shared ones that it means --

    def by_id(self, tenant: str, id: str) -> Entered | None:
        """The entry whose Description has that id."""
        for known in self._open_to(tenant):
            key = min(known.index.ids.get(id), default=None)
            if key is not None and self._is_open(tenant, key):
                return known.entered.get(key)
        return None

    def in_tenant(self, tenant: str) -> list[Entered]:
        """The entries of a tenant's own as they are now; another thread may ask for them too."""
        known = self._tenants.get(tenant)
        return list(known.entered.values()) if known is not None else []

    def for_tenant(self, tenant: str) -> list[Entered]:
        """`in_tenant`, and the shared ones that the tenant means."""
        found = self.in_tenant(tenant)
        if tenant != SHARED:
            found += [one for one in self.in_tenant(SHARED) if self.is_meant(tenant, one.key)]
        return found

    def looked_up(
        self,
        tenant: str,
        *,
        name: str | None = None,
        id: str | None = None,
        kind: str | None = None,
        capability: str | None = None,
        tags: Collection[str] = (),
        among: Collection[ThingKey] | None = None,
    ) -> list[Entered]:
        """The entries of a tenant that fit every given condition, without a look at the others.

        Args:
            tenant: Whose entries.
            name: Their name.
            id: The id of their Description.
            kind: Their kind.
            capability: Id or name of one of their capabilities.
            tags: What their capabilities are tagged with, together.
            among: None but these.
        """
        found: list[Entered] = []
        for known in self._open_to(tenant):
            fitting = known.looked_up(name, id, kind, capability, tags, among)
            if known is not self._tenants.get(tenant):
                fitting = [one for one in fitting if self.is_meant(tenant, one.key)]
            found += fitting
        return found

    def called(self, tenant: str, text: str) -> Collection[ThingKey]:
        """The Things of a tenant whose name or title is a text, but for case and punctuation."""
        return [
            key
            for known in self._open_to(tenant)
            for key in known.index.called.get(folded(text))
            if self._is_open(tenant, key)
        ]

    def words(self, tenant: str, text: str, most: int | None = None) -> dict[ThingKey, float]:
        """How much of a text the Things of a tenant share, above 0 and up to 1.

        What shares only words that very many use is left out. This reads all the Things that
        nobody has read yet; see `read_words`.

        Args:
            tenant: Whose Things.
            text: What to compare with.
            most: Only so many, the best; None for all.
        """
        shares: dict[ThingKey, float] = {}
        for known in self._open_to(tenant):
            own = known is self._tenants.get(tenant)
            # Those of the others that are for somebody else leave room for more.
            scores = known.index.words().scores(text, most if own else None)
            shares |= scores if own else {k: scores[k] for k in scores if self.is_meant(tenant, k)}
        if most is None or len(shares) <= most:
            return shares
        return dict(heapq.nsmallest(most, shares.items(), key=lambda one: (-one[1], one[0])))

    def read_words(self, count: int) -> bool:
        """Read some of the Things whose words are not listed yet, so that `words` need not.

        Returns:
            Whether there may be more to read.
        """
        return any(tenant.index.read(count) for tenant in self._tenants.values())

    def liveness(self, one: Entered) -> bool | None:
        """Whether a Thing is there; None if nobody here can know.

        That is so of what no process of the mesh serves, unless its own mesh says so.
        """
        if self._serving.get(one.key):
            return True
        if one.thing.origin:
            told = one.thing.terms.get(LIVE)
            return told if isinstance(told, bool) else None
        return False if one.needs_instances else None

    def near(self, tenant: str, name: str) -> list[str]:
        """The names of a tenant's Things that are most like one that does not exist, at most 3."""
        known = self._tenants.get(tenant)
        names = set(known.index.names) if known is not None else set[str]()
        if tenant != SHARED:
            shared = (one.key for one in self.in_tenant(SHARED))
            names |= {key.name for key in shared if self.is_meant(tenant, key)}
        names |= {one.name for one in self._run(tenant)}
        return difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)

    def subsets(self, tenant: str, name: str) -> list[str]:
        """The subsets in which a tenant has a Thing of that name."""
        registered = {one.key.subset for one in self.looked_up(tenant, name=name)}
        return sorted(registered | {one.subset for one in self._run(tenant) if one.name == name})

    def stopped(self, key: ThingKey) -> bool:
        """Whether it has taken its leave, and somebody is there who would start it again."""
        return key not in self._entered and any(
            (one.name, one.subset) == (key.name, key.subset) for one in self._run(key.tenant)
        )

    # -- the registry --

    def apply_entry(
        self, key: str, value: bytes | None, revision: int, *, created: float = 0.0
    ) -> list[ThingKey]:
        """Take a change of the registry bucket; one that is older than what is known is nothing."""
        self.revision = max(self.revision, revision)
        ids = subjects.ids_of(key)
        if len(ids) != 3 or revision <= self._gone_entries.get(key, 0):
            return []
        name = ThingKey(*ids)
        known = self._entered.get(name)
        if known is not None and revision <= known.revision:
            return []
        if value is None:
            remember(self._gone_entries, key, revision)
            return [name] if self._forget(name) else []
        read = _read_entry(value, ids[0])
        if read is None:
            return []
        thing, registration = read
        if (thing.tenant, thing.name, thing.subset) != name:
            thing = thing.model_copy(update=name._asdict())
        if known is not None:
            self._forget(name)
            created = known.created
        self._enter(Entered(name, thing, revision, registration, created))
        return [name]

    def _enter(self, entered: Entered) -> None:
        tenant = self._tenants.get(entered.key.tenant)
        if tenant is None:
            tenant = self._tenants[entered.key.tenant] = _Tenant()
        self._entered[entered.key] = tenant.entered[entered.key] = entered
        tenant.index.add(entered.key, entered.id, entered.thing)

    def _forget(self, key: ThingKey) -> bool:
        """Whether there was an entry to forget."""
        entered = self._entered.pop(key, None)
        if entered is None:
            return False
        tenant = self._tenants[key.tenant]
        del tenant.entered[key]
        tenant.index.remove(key, entered.id, entered.thing)
        if not tenant.entered:
            del self._tenants[key.tenant]
        return True

    def listed(self) -> dict[str, Any]:
        """Everything that entries can be looked up by, by tenant."""
        return {name: tenant.index.listed() for name, tenant in self._tenants.items()}

    def keep_entries(self, revisions: Mapping[str, int]) -> list[ThingKey]:
        """Before a full snapshot is applied: forget the entries that are not in it.

        Args:
            revisions: The revision of each key in the snapshot. If one has gone back, the bucket
                was made anew, and counts from 1 again.
        """
        self._gone_entries.clear()
        stale: list[ThingKey] = []
        for name, known in list(self._entered.items()):
            revision = revisions.get(subjects.key(*name))
            if revision is None:
                self._forget(name)
                stale.append(name)
            elif revision < known.revision:
                renumbered = replace(known, revision=0)
                self._entered[name] = self._tenants[name.tenant].entered[name] = renumbered
        return stale


def _read_entry(value: bytes, tenant: str) -> tuple[Thing, Registration | None] | None:
    """A record and when it was registered; None if it cannot be read.

    Only a registry writes here, after validation; a newer one may know more than we do.
    """
    try:
        read = json.loads(value)
        if not isinstance(read, dict):
            return None
        description = cast("dict[str, Any]", read)
        registered = description.pop("registration", None)
        thing = thing_of(description, tenant=tenant, trusted=True)
        return thing, _read_registration(registered)
    except (ValueError, RecursionError, InvalidDescription):
        return None


def _read_registration(told: object) -> Registration | None:
    try:
        return Registration.model_validate(told) if told is not None else None
    except ValidationError:
        return None  # the Thing is there all the same
