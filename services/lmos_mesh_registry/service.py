"""The registry on the bus: validates what joins, keeps it in JetStream, answers who is there."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import Packed
from lmos_mesh.description import thing_of
from lmos_mesh.directory import Directory
from lmos_mesh.errors import Conflict, NotFound
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_HISTORY,
    GET_THING,
    REGISTER,
    REGISTRY_STATUS,
    SEARCH_THINGS,
    Deregister,
    Deregistered,
    FindThings,
    FoundThing,
    GetHistory,
    GetThing,
    History,
    Register,
    Registered,
    RegistryState,
    RegistryStatus,
    SearchFound,
    SearchThings,
    ThingsFound,
    ThingVersion,
)
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Entry, Revision
from lmos_mesh_registry import federation, jsonpaths
from lmos_mesh_registry.addressing import TRIES, busy, key_asked_for, unknown
from lmos_mesh_registry.admitting import (
    check,
    described,
    outranked,
    refuse_mirrored,
    refuse_others,
    refuse_taken,
    stays,
)
from lmos_mesh_registry.announcer import Announcer
from lmos_mesh_registry.catalog import Found, Scores, candidates, find, search, shown
from lmos_mesh_registry.entries import Entries
from lmos_mesh_registry.foreign import ForeignAgents
from lmos_mesh_registry.forgetting import Forgetting
from lmos_mesh_registry.meaning import Meanings
from lmos_mesh_registry.packing import PackedThings, page
from lmos_mesh_registry.registering import entered_from, fitting, lifetime_of
from lmos_mesh_registry.settings import RegistrySettings

logger = logging.getLogger(__name__)

_OPERATIONS = ("register", "deregister", "get", "find", "search", "history", "status")


class Registry:
    """Answers who is on the mesh and what they can do."""

    def __init__(
        self, settings: RegistrySettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._packed = PackedThings()

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the registry's endpoints until cancelled."""
        self._bus = bus
        settings = self._settings
        self._peers = federation.peers_in(settings.registry_peers, own=settings.registry_mesh)
        self._peer_tenant = settings.registry_peer_tenant or bus.tenant
        self._directory = Directory(bus)
        self._entries = Entries(bus, self._directory, clock=self._clock)
        forgetting = Forgetting(
            bus,
            self._directory,
            self._entries,
            after_s=settings.registry_forget_after_s,
            clock=self._clock,
        )
        announcer = Announcer(bus, self._directory, clock=self._clock)
        await self._directory.follow()
        self._meanings = Meanings(bus, self._membership)
        self._directory.on_change(self._meanings.changed)
        self._directory.on_change(self._packed.changed)
        self._meanings.start()
        await announcer.begin()
        await audit.prepare(bus)
        foreign = ForeignAgents(
            bus,
            self._directory.membership,
            self._entries,
            settings.registry_foreign_tenant or bus.tenant,
        )
        await foreign.follow()
        await bus.serve(
            "registry",
            [
                route(REGISTER, self.register),
                route(DEREGISTER, self.deregister),
                route(GET_THING, self.get),
                route(FIND_THINGS, self.find),
                route(SEARCH_THINGS, self.search),
                route(GET_HISTORY, self.history),
                route(REGISTRY_STATUS, self.status),
            ],
        )
        await announce_service(bus, "registry", "Who is on the mesh", _OPERATIONS)
        bus.spawn(forgetting.sweep(settings.registry_sweep_s), name="sweep")
        federation.start(
            bus,
            self._directory.membership,
            self._entries,
            self._peers,
            tenant=self._peer_tenant,
            stale_s=settings.registry_peer_stale_s,
        )
        bus.spawn(self._make_ready(), name="make-ready")
        ready()
        await run_forever()

    @property
    def _membership(self) -> Membership:
        return self._directory.membership

    # -- coming and going --

    async def register(self, request: Register, call: Call) -> Registered:
        """Validate a Thing and note it.

        Raises:
            InvalidDescription: It breaks the rules; every fault is listed.
            InvalidMessage: It is not clear what is to be registered, or for how long.
            Conflict: It is not at the revision that it should replace, its id is another Thing's,
                or it belongs to another mesh.
        """
        description, told, notes = described(request, call.tenant)
        life = lifetime_of(request, told, now=self._clock())
        thing = thing_of(description, tenant=call.tenant)
        refuse_others(thing, call.tenant, at="/tenant" if request.thing else "/id")
        key = ThingKey(call.tenant, thing.name, thing.subset)
        for _ in range(TRIES):
            held = await self._entries.get(key)
            check(request, key, thing, held, self._membership)
            said = Registered(
                name=thing.name,
                subset=thing.subset,
                id=str(description["id"]),
                revision=held.revision if held else 0,
                created=held is None,
                notes=notes,
            )
            if held is not None:
                if request.revision is None and outranked(
                    self._membership, key, held, thing.version
                ):
                    newer = "a newer version is live; its description stands"
                    return said.model_copy(update={"notes": (*notes, newer)})
                if stays(held, description, life):
                    return said
            try:
                revision = await self._entries.put(key, description, held, life)
            except Conflict:
                if request.revision is not None:
                    raise
                continue  # somebody else registered it at the same time
            if held is None or held.description != description:
                logger.info("registered %s %s (%s)", thing.name, thing.version, thing.subset)
                self._audit(call, "registered", key, revision)
            if held is None:
                await self._yield_id(key, said.id, revision)
            return said.model_copy(update={"revision": revision})
        raise busy(key)

    async def _yield_id(self, key: ThingKey, id: str, revision: int) -> None:
        """Of two that were given the same id at the same time, the later one leaves."""
        try:
            refuse_taken(self._membership, key, id, revision)
        except Conflict:
            await self._entries.remove(key, revision)
            raise

    async def deregister(self, request: Deregister, call: Call) -> Deregistered:
        """Forget a Thing, unless another instance still serves it.

        Raises:
            ThingNotFound: There is none of that name or id.
            Conflict: It is not at the revision that is known, or belongs to another mesh.
        """
        key = key_asked_for(
            self._membership, call.tenant, request.name, request.subset, request.id, own=True
        )
        for _ in range(TRIES):
            held = await self._entries.get(key)
            if held is None:
                raise unknown(self._membership, key, request.id)
            refuse_mirrored(key, held)
            if request.revision is not None and request.revision != held.revision:
                raise Conflict(
                    f"{key.name!r} is at revision {held.revision}, not {request.revision}",
                    hint="read it again, and deregister it if that is still wanted",
                    revision=held.revision,
                )
            if request.leaving and self._membership.serving(key) - {request.leaving}:
                return Deregistered(name=key.name, subset=key.subset, gone=False)
            try:
                await self._entries.remove(key, held.revision)
            except Conflict:
                if request.revision is not None:
                    raise
                continue  # it was registered again, or somebody else removes it
            logger.info("deregistered %s (%s)", key.name, key.subset)
            self._audit(call, "deregistered", key, held.revision)
            return Deregistered(name=key.name, subset=key.subset, gone=True)
        raise busy(key)

    # -- asking --

    async def get(self, request: GetThing, call: Call) -> FoundThing:
        """One Thing with its Description.

        Raises:
            ThingNotFound: There is none of that name or id.
            NotFound: That revision of it is not kept.
        """
        key = key_asked_for(self._membership, call.tenant, request.name, request.subset, request.id)
        as_of = self._directory.as_of
        entered = await self._entries.entered(key)
        if request.revision is not None and (
            entered is None or entered.revision != request.revision
        ):
            entered = await self._earlier(key, request.revision)
        if entered is None:
            raise unknown(self._membership, key, request.id)
        return shown(entered, self._membership, whole=True, tenant=call.tenant, as_of=as_of)

    async def _earlier(self, key: ThingKey, revision: int) -> Entered:
        kept = await self._entries.history(key)
        for one in kept:
            if one.number == revision and one.value is not None:
                past = Entry(
                    key=subjects.key(*key), value=one.value, revision=revision, created=one.at
                )
                if (entered := entered_from(key, past)) is not None:
                    return entered
        numbers = ", ".join(str(one.number) for one in kept if one.value is not None)
        raise NotFound(
            f"revision {revision} of {key.name!r} ({key.subset}) is not kept",
            hint=f"kept are {numbers}" if numbers else "nothing of it is kept",
        )

    async def find(self, request: FindThings, call: Call) -> ThingsFound | Packed:
        """The Things that fit, as many as fit into one reply.

        Raises:
            InvalidMessage: A condition cannot be read.
        """
        membership = self._membership
        scores: Scores | None = None
        if request.text is not None:
            scores = await self._meanings.score(call.tenant, request.text)
        as_of = self._directory.as_of
        revision = membership.revision
        fit: list[Entered] | None = None
        if request.jsonpath is not None:
            fit = candidates(membership, call.tenant, request)
            fit = await asyncio.to_thread(jsonpaths.fitting, fit, request.jsonpath)
        found = find(membership, call.tenant, request, scores=scores, fitting=fit)
        notes = found.notes
        if found.matched == "words" and self._meanings.note:
            notes = (*notes, f"compared by words: {self._meanings.note}")
        most = self._bus.transport.max_payload
        if call.takes_packed and not request.descriptions:
            ready = (self._packed.packed(one, membership, score) for one, score in found.entries)
            things, sizes = itertools.tee(ready)
            count = fitting(map(len, sizes), most)
            rest = _answered(request, found, count, revision=revision, as_of=as_of, notes=notes)
            return Packed(page(itertools.islice(things, count), rest))
        told: list[FoundThing] = []

        def told_sizes() -> Iterator[int]:
            for one, score in found.entries:
                thing = shown(
                    one,
                    membership,
                    whole=request.descriptions,
                    tenant=call.tenant,
                    score=score,
                )
                told.append(thing)
                yield len(thing.model_dump_json())

        count = fitting(told_sizes(), most)
        rest = _answered(request, found, count, revision=revision, as_of=as_of, notes=notes)
        return rest.model_copy(update={"things": tuple(told[:count])})

    async def _make_ready(self) -> None:
        """Make what came ready, a few Things at a time, before anybody asks for it."""
        self._packed.changed(one.key for one in self._membership)
        while True:
            packed = self._packed.prepare(self._membership, 50)
            await asyncio.sleep(0)
            if not self._membership.read_words(50) and not packed:
                await asyncio.sleep(1.0)
            await asyncio.sleep(0.005)

    async def search(self, request: SearchThings, call: Call) -> SearchFound:
        """What a JSONPath selects in the Descriptions of a tenant.

        Raises:
            InvalidMessage: It is no JSONPath, or takes too long.
        """
        membership = self._membership
        as_of, revision = self._directory.as_of, membership.revision
        values, total = await asyncio.to_thread(
            search, membership, call.tenant, request.query, request.limit
        )
        return SearchFound(values=tuple(values), total=total, revision=revision, as_of=as_of)

    async def history(self, request: GetHistory, call: Call) -> History:
        """The versions of a Thing's Description that are kept, the latest first.

        Raises:
            ThingNotFound: Nothing of that name or id is kept.
        """
        key = key_asked_for(self._membership, call.tenant, request.name, request.subset, request.id)
        kept = await self._entries.history(key)
        if not kept:
            raise unknown(self._membership, key, request.id)
        versions = tuple(_version(key, one) for one in reversed(kept))
        return History(name=key.name, subset=key.subset, versions=versions)

    async def status(self, request: RegistryStatus, call: Call) -> RegistryState:
        """How the registry is, and the meshes that it mirrors."""
        return RegistryState(
            things=len(self._membership),
            peers=await federation.states(self._bus, self._peers, tenant=self._peer_tenant),
            revision=self._membership.revision,
            as_of=self._directory.as_of,
        )

    def _audit(self, call: Call, what: str, key: ThingKey, revision: int) -> None:
        told = {"thing": key.name, "subset": key.subset, "revision": revision}
        audit.write(self._bus, call.tenant, what, told, caller=call.caller)


def _answered(
    request: FindThings,
    found: Found,
    count: int,
    *,
    revision: int,
    as_of: float,
    notes: tuple[str, ...],
) -> ThingsFound:
    """What is said beside the first `count` Things that were found."""
    following = request.offset + count
    return ThingsFound(
        things=(),
        total=found.total,
        revision=revision,
        next=following if count and following < found.total else None,
        as_of=as_of,
        matched=found.matched,
        notes=notes,
    )


def _version(key: ThingKey, one: Revision) -> ThingVersion:
    if one.value is None:
        return ThingVersion(revision=one.number, at=one.at, gone=True)
    past = Entry(key=subjects.key(*key), value=one.value, revision=one.number, created=one.at)
    entered = entered_from(key, past)
    version = entered.thing.version if entered is not None else ""
    return ThingVersion(revision=one.number, at=one.at, version=version)
