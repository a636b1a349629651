"""The registry on the bus: validates what joins, keeps it in JetStream, answers who is there."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import Field

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.description import describe, description_faults, thing_of
from lmos_mesh.directory import Directory
from lmos_mesh.errors import (
    AgentNotFound,
    Conflict,
    InvalidDescription,
    InvalidMessage,
    MeshError,
)
from lmos_mesh.membership import LEASES, REGISTRY, Entered, Membership, ThingKey
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_THING,
    REGISTER,
    Deregister,
    Deregistered,
    FindThings,
    FoundThing,
    GetThing,
    Register,
    Registered,
    ThingsFound,
)
from lmos_mesh.semver import Version
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.settings import Settings
from lmos_mesh.things import label_of, thing_from
from lmos_mesh_registry.catalog import find, shown
from lmos_mesh_registry.foreign import ForeignAgents

logger = logging.getLogger(__name__)


class RegistrySettings(Settings):
    """Settings of the registry.

    Attributes:
        forget_after_s: How long a Thing without any instance stays listed.
        foreign_tenant: The tenant that agents hosted with other software enter.
    """

    registry_forget_after_s: float = Field(default=24 * 3600.0, gt=0)
    registry_foreign_tenant: str = ""
    registry_sweep_s: float = Field(default=60.0, gt=0)


class Registry:
    """Answers who is on the mesh and what they can do."""

    def __init__(
        self, settings: RegistrySettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._seen_live: dict[ThingKey, float] = {}

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the registry's endpoints until cancelled."""
        self._bus = bus
        self._store = bus.transport.key_value(REGISTRY)
        self._leases = bus.transport.key_value(LEASES)
        self._directory = Directory(bus)
        self._directory.on_death(self._on_death)
        await self._directory.follow()
        await audit.prepare(bus)
        foreign = ForeignAgents(
            bus, self._directory.membership, self._settings.registry_foreign_tenant or bus.tenant
        )
        await foreign.follow()
        await bus.serve(
            "registry",
            [
                route(REGISTER, self.register),
                route(DEREGISTER, self.deregister),
                route(GET_THING, self.get),
                route(FIND_THINGS, self.find),
            ],
        )
        await announce_service(
            bus, "registry", "Who is on the mesh", ["register", "deregister", "get", "find"]
        )
        bus.spawn(self._sweep(), name="sweep")
        ready()
        await run_forever()

    @property
    def _membership(self) -> Membership:
        return self._directory.membership

    async def register(self, request: Register, call: Call) -> Registered:
        """Validate a Thing and note it.

        Raises:
            InvalidDescription: It breaks the rules; every fault is listed.
            InvalidMessage: It is another tenant's.
            Conflict: It is not at the revision that it should replace.
        """
        tenant = call.tenant
        description, notes = _described(request, tenant)
        thing = thing_of(description, tenant=tenant)
        if thing.tenant != tenant:
            raise InvalidMessage(
                f"/tenant: is {thing.tenant!r}, and this is the registry of {tenant!r}",
                hint="leave it out, or register in its own tenant",
                field="/tenant",
            )
        key = ThingKey(tenant, thing.name, thing.subset)
        stored = await self._store.get(subjects.key(*key))
        if request.revision is not None and request.revision != (stored.revision if stored else 0):
            raise Conflict(
                f"{thing.name!r} is at revision {stored.revision if stored else 0}, "
                f"not {request.revision}",
                hint="read it again and repeat the change",
            )
        if stored is not None:
            held = json.loads(stored.value)
            if request.revision is None and self._outranked(key, held, thing.version):
                return Registered(
                    name=thing.name,
                    subset=thing.subset,
                    revision=stored.revision,
                    notes=(*notes, "a newer version is live; its description stands"),
                )
            if held == description:
                return Registered(
                    name=thing.name, subset=thing.subset, revision=stored.revision, notes=notes
                )
        revision = await self._store.put(
            subjects.key(*key),
            json.dumps(description, ensure_ascii=False).encode(),
            expected=stored.revision if stored else 0,
        )
        logger.info("registered %s %s (%s)", thing.name, thing.version, thing.subset)
        self._audit(call, "registered", key, revision)
        await self._until_known(key, revision)
        return Registered(name=thing.name, subset=thing.subset, revision=revision, notes=notes)

    def _outranked(self, key: ThingKey, held: dict[str, Any], version: str) -> bool:
        """Whether an instance with a higher version is live: its Description stands."""
        known = thing_of(held)
        return Version.parse(known.version) > Version.parse(version) and any(
            one.version == known.version for one in self._membership.instances(key)
        )

    async def deregister(self, request: Deregister, call: Call) -> Deregistered:
        """Forget a Thing, unless another instance still serves it.

        Raises:
            AgentNotFound: There is none of that name.
        """
        tenant = call.tenant
        key = ThingKey(tenant, request.name, request.subset)
        entered = self._known(key)
        others = self._membership.serving(key) - {request.leaving}
        if request.leaving and others:
            return Deregistered(name=request.name, subset=request.subset, gone=False)
        await self._store.delete(subjects.key(*key), expected=entered.revision)
        logger.info("deregistered %s (%s)", request.name, request.subset)
        self._audit(call, "deregistered", key, entered.revision)
        return Deregistered(name=request.name, subset=request.subset, gone=True)

    async def get(self, request: GetThing, call: Call) -> FoundThing:
        """One Thing with its Description.

        Raises:
            AgentNotFound: There is none of that name.
        """
        key = ThingKey(call.tenant, request.name, request.subset)
        return shown(self._known(key), self._membership, whole=True)

    async def find(self, request: FindThings, call: Call) -> ThingsFound:
        """The Things that fit.

        Raises:
            InvalidMessage: The version range cannot be read.
        """
        membership = self._membership
        found, total = find(membership, call.tenant, request)
        return ThingsFound(
            things=tuple(shown(one, membership, whole=request.descriptions) for one in found),
            total=total,
            revision=membership.revision,
        )

    def _known(self, key: ThingKey) -> Entered:
        entered = self._membership.get(key)
        if entered is None:
            near = self._membership.near(key.tenant, key.name)
            hint = f"did you mean {', '.join(near)}?" if near else "see `lmos agents`"
            if subsets := self._membership.subsets(key.tenant, key.name):
                hint = f"it is there as {', '.join(subsets)}"
            raise AgentNotFound(
                f"nothing called {key.name!r} ({key.subset}) is registered in {key.tenant!r}",
                hint=hint,
                near=near,
            )
        return entered

    async def _until_known(self, key: ThingKey, revision: int) -> None:
        """Read your writes: whoever registers finds itself here from now on."""
        for _ in range(50):
            entered = self._membership.get(key)
            if entered is not None and entered.revision >= revision:
                return
            await asyncio.sleep(0.002)

    def _on_death(self, tenant: str, instance: str) -> None:
        self._bus.spawn(self._end_lease(tenant, instance), name="end-lease")

    async def _end_lease(self, tenant: str, instance: str) -> None:
        """Remove the lease of a process that died, for those who did not hear of it."""
        try:
            entry = await self._leases.get(subjects.key(tenant, instance))
            if entry is None:
                return
            connection = json.loads(entry.value).get("connection", "")
            if self._membership.closed(connection):
                await self._leases.delete(entry.key, expected=entry.revision)
        except Conflict:
            pass  # another replica was first, or the process is back
        except MeshError as exc:
            logger.warning("could not end the lease of %s: %s", instance, exc)

    async def _sweep(self) -> None:
        """Forget what nobody has served for long."""
        while True:
            now = self._clock()
            for one in self._membership:
                if self._membership.live(one.key):
                    self._seen_live[one.key] = now
                elif now - self._seen_live.setdefault(one.key, now) > (
                    self._settings.registry_forget_after_s
                ):
                    self._seen_live.pop(one.key, None)
                    try:
                        await self._store.delete(subjects.key(*one.key), expected=one.revision)
                        logger.info("forgot %s: no instance for long", one.key.name)
                    except MeshError as exc:
                        logger.info("could not forget %s: %s", one.key.name, exc)
            await asyncio.sleep(self._settings.registry_sweep_s)

    def _audit(self, call: Call, what: str, key: ThingKey, revision: int) -> None:
        told = {"thing": key.name, "subset": key.subset, "revision": revision}
        audit.write(self._bus, call.tenant, what, told)


def _described(request: Register, tenant: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A valid Description of what is to be registered, and what was filled in."""
    if (request.description is None) == (request.thing is None):
        raise InvalidMessage("give either `description` or `thing`")
    if request.thing is not None:
        return describe(thing_from({"tenant": tenant, **request.thing})), ()
    description = dict(request.description or {})
    notes: tuple[str, ...] = ()
    if "security" not in description and "securityDefinitions" not in description:
        description["securityDefinitions"] = {"nosec_sc": {"scheme": "nosec"}}
        description["security"] = "nosec_sc"
        notes = ("`security` was missing; `nosec` was filled in",)
    if faults := description_faults(description):
        raise InvalidDescription.of(label_of({"name": description.get("title")}), faults)
    return description, notes
