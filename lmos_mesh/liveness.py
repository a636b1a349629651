"""Who is alive: what processes say of themselves, put together by the Things that they serve. Pure.

A lease that ends and the news of a closed connection may come in any order.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, ValidationError

from lmos_mesh import subjects
from lmos_mesh.endpoint import Message
from lmos_mesh.messages import Instance
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Bucket

LEASES = Bucket(
    name="lmos_leases",
    in_memory=True,
    expiring=True,
    tokens=2,
    feed="lmos.{{wildcard(1)}}.changed.lease.{{wildcard(2)}}",
)
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
        runs: What the processes serve that it starts and stops, whether any runs or none.
    """

    instance: str
    connection: str = ""
    things: tuple[Served, ...] = ()
    host: str = ""
    pid: int = 0
    started: float = 0.0
    address: dict[str, Any] = Field(default_factory=dict[str, Any])
    runs: tuple[Served, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    lease: Lease
    revision: int


class Liveness:
    """The leases as they are now. Every change says for which Things it means another one."""

    def __init__(self) -> None:
        self._leases: dict[tuple[str, str], _Held] = {}
        self._connected: dict[str, set[tuple[str, str]]] = {}
        self._addressed: dict[str, dict[str, tuple[str, str]]] = {}
        self._serving: dict[ThingKey, dict[str, Served]] = {}
        self._gone_leases: OrderedDict[str, int] = OrderedDict()
        self._dead: OrderedDict[str, None] = OrderedDict()

    def live(self, key: ThingKey) -> bool:
        """Whether at least one instance serves it."""
        return bool(self._serving.get(key))

    def instances(self, key: ThingKey) -> tuple[Instance, ...]:
        """The live instances of a Thing, in order of their ids."""
        return tuple(Instance(**one) for one in self.told_instances(key))

    def told_instances(self, key: ThingKey) -> list[dict[str, Any]]:
        """`instances`, as the members of each."""
        found: list[dict[str, Any]] = []
        for instance, served in sorted(self._serving.get(key, {}).items()):
            held = self._leases.get((key.tenant, instance))
            if held is None:
                continue  # it died while another thread was asking
            lease = held.lease
            found.append(
                {
                    "instance": instance,
                    "version": served.version,
                    "in_flight": served.in_flight,
                    "concurrency": served.concurrency,
                    "host": lease.host,
                    "pid": lease.pid,
                    "started": lease.started,
                }
            )
        return found

    def load(self, key: ThingKey) -> float:
        """The share of its instances' places that are taken; infinite without an instance."""
        serving = self._serving.get(key)
        if not serving:
            return math.inf
        places = sum(served.concurrency for served in serving.values())
        return sum(served.in_flight for served in serving.values()) / max(1, places)

    def addresses(self, tenant: str) -> list[tuple[str, str]]:
        """(protocol, URL) of every adapter through which a tenant's Things are reached."""
        return sorted(set(self._addressed.get(tenant, {}).values()))

    def _run(self, tenant: str) -> Iterator[Served]:
        """What those who start and stop processes run, whether any runs or none."""
        for of, held in self._leases.items():
            if of[0] == tenant:
                yield from held.lease.runs

    def lease(self, tenant: str, instance: str) -> Lease | None:
        """What a live process last said of itself."""
        held = self._leases.get((tenant, instance))
        return held.lease if held else None

    def lease_revision(self, tenant: str, instance: str) -> int | None:
        """The revision of a process's lease as it is known; 0 while it is to be renewed."""
        held = self._leases.get((tenant, instance))
        return held.revision if held else None

    def leases(self) -> list[tuple[str, Lease, int]]:
        """(tenant, lease, revision) of every live process."""
        return [(tenant, held.lease, held.revision) for (tenant, _), held in self._leases.items()]

    def serving(self, key: ThingKey) -> frozenset[str]:
        """The ids of the live instances of a Thing."""
        return frozenset(self._serving.get(key, ()))

    # -- what changes --

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
            remember(self._gone_leases, key, revision)
            return self._end(owner)
        try:
            lease = Lease.model_validate_json(value)
        except ValidationError:
            return []
        if lease.connection and lease.connection in self._dead:
            return []  # its last words overtook the news of its death
        before = self._end(owner) if known is not None else []
        self._leases[owner] = _Held(lease, revision)
        if lease.connection:
            self._connected.setdefault(lease.connection, set()).add(owner)
        if (address := _adapter_address(lease)) is not None:
            self._addressed.setdefault(ids[0], {})[ids[1]] = address
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
            revisions: The revision of each key in the snapshot. Leases are kept in the server's
                memory, so its restart makes their bucket anew, and counts from 1 again.
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
        remember(self._dead, connection, None)
        return sorted(self._connected.get(connection, ()))

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
        connected = self._connected.get(held.lease.connection)
        if connected is not None:
            connected.discard(owner)
            if not connected:
                del self._connected[held.lease.connection]
        addressed = self._addressed.get(owner[0])
        if addressed is not None and addressed.pop(owner[1], None) is not None and not addressed:
            del self._addressed[owner[0]]
        ended: list[ThingKey] = []
        for served in held.lease.things:
            name = ThingKey(owner[0], served.name, served.subset)
            serving = self._serving.get(name)
            if serving is not None and serving.pop(owner[1], None) is not None:
                ended.append(name)
                if not serving:
                    del self._serving[name]
        return ended


def remember(memory: "OrderedDict[str, Any]", key: str, value: Any) -> None:
    """Keep what is gone in mind, but not for ever."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _REMEMBERED_DEAD:
        memory.popitem(last=False)


def _adapter_address(lease: Lease) -> tuple[str, str] | None:
    """Where an adapter is reached; None for every other process."""
    protocol, url = lease.address.get("protocol"), lease.address.get("url")
    if lease.things or not isinstance(protocol, str) or not isinstance(url, str):
        return None
    return protocol, url
