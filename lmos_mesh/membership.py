"""Who is on the mesh and alive: the registry's entries and the leases, put together.

Pure: it is handed changes as they come and says what they mean.
"""

import difflib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from pydantic import Field, ValidationError

from lmos_mesh import subjects
from lmos_mesh.description import thing_of
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.messages import Instance
from lmos_mesh.things import Thing
from lmos_mesh.transport import Bucket

REGISTRY = Bucket(
    name="lmos_registry",
    history=16,
    expiring=True,
    tokens=3,
    feed="lmos.{{wildcard(1)}}.changed.registry.{{wildcard(2)}}.{{wildcard(3)}}",
)
LEASES = Bucket(
    name="lmos_leases",
    in_memory=True,
    expiring=True,
    tokens=2,
    feed="lmos.{{wildcard(1)}}.changed.lease.{{wildcard(2)}}",
)
REGISTRY_FEED = "lmos.*.changed.registry.*.*"
LEASE_FEED = "lmos.*.changed.lease.*"

_REMEMBERED_DEAD = 4096


class Served(Message):
    """One Thing that a process serves."""

    name: str
    subset: str
    version: str = ""
    in_flight: int = 0
    concurrency: int = 0


class Lease(Message):
    """What a process says of itself every second or so; without it the process counts as dead.

    Attributes:
        connection: Its connection, as the server's disconnect events name it.
        address: Where it is reached if it is no process of this mesh.
    """

    instance: str
    connection: str = ""
    things: tuple[Served, ...] = ()
    host: str = ""
    pid: int = 0
    started: float = 0.0
    address: dict[str, Any] = Field(default_factory=dict[str, Any])


class ThingKey(NamedTuple):
    """What names one registry entry."""

    tenant: str
    name: str
    subset: str


@dataclass(frozen=True, slots=True)
class Entered:
    """A Thing in the registry."""

    key: ThingKey
    thing: Thing
    description: dict[str, Any]
    revision: int
    created: float


@dataclass(frozen=True, slots=True)
class _Held:
    lease: Lease
    revision: int


class Membership:
    """The live view. Every `apply_*` says which Things have changed by it."""

    def __init__(self) -> None:
        self.revision = 0
        self._entered: dict[ThingKey, Entered] = {}
        self._leases: dict[tuple[str, str], _Held] = {}
        self._serving: dict[ThingKey, dict[str, Served]] = {}
        self._gone_entries: OrderedDict[str, int] = OrderedDict()
        self._gone_leases: OrderedDict[str, int] = OrderedDict()
        self._dead: OrderedDict[str, None] = OrderedDict()

    def __iter__(self) -> Iterator[Entered]:
        return iter(list(self._entered.values()))

    def __len__(self) -> int:
        return len(self._entered)

    def get(self, key: ThingKey) -> Entered | None:
        """The entry of that name."""
        return self._entered.get(key)

    def live(self, key: ThingKey) -> bool:
        """Whether at least one instance serves it."""
        return bool(self._serving.get(key))

    def instances(self, key: ThingKey) -> tuple[Instance, ...]:
        """The live instances of a Thing, in order of their ids."""
        found: list[Instance] = []
        for instance, served in sorted(self._serving.get(key, {}).items()):
            lease = self._leases[key.tenant, instance].lease
            found.append(
                Instance(
                    instance=instance,
                    version=served.version,
                    in_flight=served.in_flight,
                    concurrency=served.concurrency,
                    host=lease.host,
                    pid=lease.pid,
                    started=lease.started,
                )
            )
        return tuple(found)

    def near(self, tenant: str, name: str) -> list[str]:
        """The names of a tenant's Things that are most like one that does not exist, at most 3."""
        names = {one.name for one in self._entered if one.tenant == tenant}
        return difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)

    def subsets(self, tenant: str, name: str) -> list[str]:
        """The subsets in which a tenant has a Thing of that name."""
        return sorted(one.subset for one in self._entered if one[:2] == (tenant, name))

    def lease(self, tenant: str, instance: str) -> Lease | None:
        """What a live process last said of itself."""
        held = self._leases.get((tenant, instance))
        return held.lease if held else None

    def leases(self) -> list[tuple[str, Lease, int]]:
        """(tenant, lease, revision) of every live process."""
        return [(tenant, held.lease, held.revision) for (tenant, _), held in self._leases.items()]

    def serving(self, key: ThingKey) -> frozenset[str]:
        """The ids of the live instances of a Thing."""
        return frozenset(self._serving.get(key, ()))

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
            self._remember(self._gone_entries, key, revision)
            return [name] if self._entered.pop(name, None) else []
        read = _read_entry(value)
        if read is None:
            return []
        description, thing = read
        self._entered[name] = Entered(
            name,
            thing.model_copy(update={"tenant": ids[0], "name": ids[1], "subset": ids[2]}),
            description,
            revision,
            known.created if known else created,
        )
        return [name]

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
                del self._entered[name]
                stale.append(name)
            elif revision < known.revision:
                self._entered[name] = replace(known, revision=0)
        return stale

    # -- the leases --

    def apply_lease(self, key: str, value: bytes | None, revision: int) -> list[ThingKey]:
        """Take a change of the lease bucket."""
        ids = subjects.ids_of(key)
        if len(ids) != 2 or revision <= self._gone_leases.get(key, 0):
            return []
        owner = (ids[0], ids[1])
        known = self._leases.get(owner)
        if known is not None and revision <= known.revision:
            return []
        if value is None:
            self._remember(self._gone_leases, key, revision)
            return self._end(owner)
        try:
            lease = Lease.model_validate_json(value)
        except ValidationError:
            return []
        if lease.connection and lease.connection in self._dead:
            return []  # its last words overtook the news of its death
        before = self._end(owner) if known is not None else []
        self._leases[owner] = _Held(lease, revision)
        now: list[ThingKey] = []
        for served in lease.things:
            name = ThingKey(ids[0], served.name, served.subset)
            self._serving.setdefault(name, {})[ids[1]] = served
            now.append(name)
        # A renewal that serves the same Things changes nothing.
        return [] if set(before) == set(now) else list({*before, *now})

    def keep_leases(self, revisions: Mapping[str, int]) -> list[ThingKey]:
        """Before a full snapshot is applied: end the leases that are not in it.

        Args:
            revisions: As for `keep_entries`. Leases are kept in the server's memory, so its
                restart makes their bucket anew.
        """
        self._gone_leases.clear()
        ended: list[ThingKey] = []
        for owner, held in list(self._leases.items()):
            revision = revisions.get(subjects.key(*owner))
            if revision is None:
                ended += self._end(owner)
            elif revision < held.revision:
                self._leases[owner] = replace(held, revision=0)
        return ended

    def disconnect(self, connection: str) -> list[tuple[str, str]]:
        """A connection is closed: the (tenant, instance) of the leases that end with it."""
        self._remember(self._dead, connection, None)
        return [
            owner for owner, held in self._leases.items() if held.lease.connection == connection
        ]

    def closed(self, connection: str) -> bool:
        """Whether a connection is known to be closed."""
        return connection in self._dead

    def end_lease(self, tenant: str, instance: str) -> list[ThingKey]:
        """A process is known to be dead before its lease says so."""
        return self._end((tenant, instance))

    def _end(self, owner: tuple[str, str]) -> list[ThingKey]:
        held = self._leases.pop(owner, None)
        if held is None:
            return []
        ended: list[ThingKey] = []
        for served in held.lease.things:
            name = ThingKey(owner[0], served.name, served.subset)
            serving = self._serving.get(name)
            if serving is not None and serving.pop(owner[1], None) is not None:
                ended.append(name)
                if not serving:
                    del self._serving[name]
        return ended

    @staticmethod
    def _remember(memory: "OrderedDict[str, Any]", key: str, value: Any) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > _REMEMBERED_DEAD:
            memory.popitem(last=False)


def _read_entry(value: bytes) -> tuple[dict[str, Any], Thing] | None:
    """A Description and its record; None if it cannot be read.

    Only a registry writes here, after validation; a newer one may know more than we do.
    """
    try:
        read = json.loads(value)
        if not isinstance(read, dict):
            return None
        description = cast("dict[str, Any]", read)
        return description, thing_of(description)
    except (ValueError, RecursionError, InvalidDescription):
        return None
