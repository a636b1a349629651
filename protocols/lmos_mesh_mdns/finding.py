"""Finds what others announce on the local network, and lists it for as long as it is there."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from zeroconf import Error as ZeroconfError
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from lmos_mesh.bus import Bus
from lmos_mesh.description import thing_of
from lmos_mesh.errors import AgentNotFound, Conflict, InvalidDescription, InvalidMessage, MeshError
from lmos_mesh.messages import (
    DEREGISTER,
    GET_THING,
    REGISTER,
    Deregister,
    FoundThing,
    GetThing,
    Register,
    Registered,
)
from lmos_mesh.things import ThingKey
from lmos_mesh_mdns.fetching import Fetcher, NotRead
from lmos_mesh_mdns.forms import forms_of
from lmos_mesh_mdns.found import UnusableAnswer, found_by_us, prepared, second_hand
from lmos_mesh_mdns.networks import Interface, Network
from lmos_mesh_mdns.records import DIRECTORY, SERVICE, Target, UnusableRecord, target_of
from lmos_mesh_mdns.sightings import Listed, Sightings
from lmos_mesh_mdns.trusting import StandIn

logger = logging.getLogger(__name__)

_VISITS = 8
_REGISTRATIONS = 8
_RESOLVE_MS = 3000
_CALL_S = 5.0
_SAID = 5


class Finder:
    """Visits what is announced, registers what is valid, and removes what has gone."""

    def __init__(
        self,
        bus: Bus,
        fetcher: Fetcher,
        sightings: Sightings,
        *,
        tenant: str,
        ttl_s: float,
        networks: Sequence[Network],
        is_ours: Callable[[Target], bool],
        stand_in: StandIn | None = None,
    ) -> None:
        self._bus = bus
        self._fetcher = fetcher
        self._sightings = sightings
        self._tenant = tenant
        self._ttl_s = ttl_s
        self._networks = networks
        self._is_ours = is_ours
        self._stand_in = stand_in
        self._interfaces: Sequence[Interface] = ()
        self._zeroconf: Zeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._wake = asyncio.Event()
        self._crowded = False
        self._leaving = False
        self._registering = 0
        self._settled = asyncio.Event()

    def look(self, zeroconf: AsyncZeroconf, interfaces: Sequence[Interface]) -> None:
        """Look around on these interfaces from now on."""
        self._interfaces = interfaces
        if self._browser is None and self._sightings.sources_max:
            self._zeroconf = zeroconf.zeroconf
            self._browser = AsyncServiceBrowser(
                zeroconf.zeroconf, [SERVICE, DIRECTORY], handlers=[self._on_service]
            )

    async def run(self) -> None:
        """Visit what is due, until cancelled."""
        slots = asyncio.Semaphore(_VISITS)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                source = await self._next()
                visit = group.create_task(self._visit(source))
                visit.add_done_callback(lambda _: slots.release())

    async def leave(self) -> None:
        """Nobody looks after what was found from now on: remove it."""
        self._leaving = True
        if self._browser is not None:
            await self._browser.async_cancel()
        # What is being registered now removes itself.
        if self._registering:
            await self._settled.wait()
        await self._remove(self._sightings.listed)

    def _on_service(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            if gone := self._sightings.lose(name, service_type):
                self._bus.spawn(self._remove(gone), name="goodbye")
            self._wake.set()  # somebody else may have its place now
            return
        if not name.endswith(f".{SERVICE}"):
            return  # it names something else as one of its own
        if self._sightings.see(name, service_type, time.monotonic()):
            self._wake.set()
        elif not self._crowded:
            self._crowded = True
            logger.warning(
                "more than %d services are announced on this network; %r and others wait until"
                " those have gone or do not answer (see LMOS_MDNS_SERVICES_MAX)",
                len(self._sightings),
                name,
            )

    async def _next(self) -> str:
        while True:
            self._wake.clear()
            now = time.monotonic()
            if not self._leaving and (source := self._sightings.next(now)) is not None:
                return source
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._leaving else self._sightings.wait_s(now)):
                    await self._wake.wait()

    async def _visit(self, source: str) -> None:
        gone: list[Listed] = []
        try:
            gone = self._sightings.succeed(source, await self._read(source), time.monotonic())
        except (UnusableRecord, UnusableAnswer, NotRead) as exc:
            gone = self._sightings.fail(source, time.monotonic())
            if self._sightings.news(source, str(exc)):
                # In a crowd most do not answer; a line for each would drown the log.
                level = logging.DEBUG if self._crowded else logging.INFO
                logger.log(level, "%r on the local network is not read: %s", source, exc)
        except MeshError as exc:
            self._sightings.postpone(source, time.monotonic())
            logger.warning("cannot register what %r is, trying again: %s", source, exc)
        except Exception:
            gone = self._sightings.fail(source, time.monotonic())
            logger.exception("reading %r on the local network", source)
        finally:
            self._wake.set()
        await self._remove(gone)

    async def _read(self, source: str) -> set[str]:
        """The ids of what a source gives; they are registered."""
        target = await self._resolve(source)
        if self._is_ours(target):
            return set()
        description = await self._fetcher.description(target)
        found = [description]
        if target.kind == "Directory":
            found += await self._fetcher.things(target, description)
        ready: dict[str, dict[str, Any]] = {}
        for one in found:
            if one is description or not second_hand(one, target.kind):
                made = prepared(one, target, source, self._tenant)
                ready.setdefault(made["id"], made)
        ours = {
            one: made
            for one, made in ready.items()
            if self._sightings.claim(source, target.kind, one)
        }
        gate = asyncio.Semaphore(_REGISTRATIONS)
        refused: dict[str, str] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for one, made in ours.items():
                    group.create_task(self._take_in_turn(gate, one, made, target, refused))
        except* MeshError as errors:
            raise _first(errors) from None
        if self._sightings.full:
            logger.info("no more than LMOS_MDNS_THINGS_MAX Things of others are listed")
        said = "; ".join(f"{one}: {why}" for one, why in list(refused.items())[:_SAID])
        more = f" and {len(refused) - _SAID} more" if len(refused) > _SAID else ""
        if self._sightings.news(source, said):
            logger.warning("not taken in from %s: %s%s", target.url, said, more)
        return set(ready) - set(refused)

    async def _resolve(self, source: str) -> Target:
        assert self._zeroconf is not None
        try:
            info = AsyncServiceInfo(SERVICE, source)
            answered = await info.async_request(self._zeroconf, _RESOLVE_MS)
        except ZeroconfError as exc:
            raise UnusableRecord(f"its name cannot be asked for: {exc}") from None
        if not answered or info.server is None or info.port is None:
            raise NotRead("its address is not known: nobody answers for it")
        return target_of(
            server=info.server,
            port=info.port,
            addresses=info.parsed_scoped_addresses(),
            text=info.text or b"",
            properties=info.properties,
            interfaces=self._interfaces,
            networks=self._networks,
        )

    async def _take_in_turn(
        self,
        gate: asyncio.Semaphore,
        thing_id: str,
        description: dict[str, Any],
        target: Target,
        refused: dict[str, str],
    ) -> None:
        async with gate:
            if self._leaving:
                return
            self._registering += 1
            try:
                if why := await self._take_in(thing_id, description, target):
                    refused[thing_id] = why
            finally:
                self._registering -= 1
                if self._leaving and not self._registering:
                    self._settled.set()

    async def _take_in(self, thing_id: str, description: dict[str, Any], target: Target) -> str:
        """Register it, or say why not."""
        held = self._sightings.held(thing_id)
        try:
            registered = await self._register(thing_id, description, held)
        except Conflict:
            # What stands there is not ours to remove.
            self._sightings.forget(thing_id)
            if held is not None:
                await self._stop_standing_in(held)
            return "another Thing of this mesh has its id or its name"
        except InvalidDescription as exc:
            refused = str(exc)
        except (InvalidMessage, ValueError, TypeError) as exc:
            # Text or numbers that JSON can say and the bus cannot carry.
            refused = f"its Description cannot be sent: {exc}"
        else:
            listed = Listed(
                id=thing_id,
                name=registered.name,
                subset=registered.subset,
                revision=registered.revision,
            )
            if not self._sightings.hold(listed) or self._leaving:
                self._sightings.forget(thing_id)
                await self._remove([listed])
                return ""
            if held is None:
                logger.info("found %s at %s", thing_id, target.url)
            await self._stand_in_for(listed, description, target)
            return ""
        self._sightings.forget(thing_id)
        if held is not None:
            await self._remove([held])
        return refused

    async def _stand_in_for(
        self, listed: Listed, description: dict[str, Any], target: Target
    ) -> None:
        if self._stand_in is None:
            return
        thing = thing_of(description, tenant=self._tenant)
        forms = forms_of(thing, description, target)
        if forms is None:
            await self._stop_standing_in(listed)
            return
        key = ThingKey(self._tenant, listed.name, listed.subset)
        await self._stand_in.begin(key, thing.version, forms, target)

    async def _stop_standing_in(self, listed: Listed) -> None:
        if self._stand_in is not None:
            await self._stand_in.end(ThingKey(self._tenant, listed.name, listed.subset))

    async def _register(
        self, thing_id: str, description: dict[str, Any], held: Listed | None
    ) -> Registered:
        """Register it unless something of the mesh's own stands there.

        Raises:
            Conflict: It does.
            InvalidDescription: It breaks the rules.
        """
        revision = held.revision if held else 0
        try:
            return await self._write(description, revision)
        except Conflict:
            standing = await self._standing(thing_id)
            if standing is None and held is not None:
                return await self._write(description, 0)  # somebody has removed it
            if standing is None or not found_by_us(standing.description):
                raise
            # From an earlier run, or by another adapter that found the same.
            return await self._write(description, standing.revision)

    async def _write(self, description: dict[str, Any], revision: int) -> Registered:
        wanted = Register(description=description, revision=revision, ttl_s=self._ttl_s)
        return await self._bus.call(REGISTER, wanted, tenant=self._tenant, timeout_s=_CALL_S)

    async def _standing(self, thing_id: str) -> FoundThing | None:
        try:
            return await self._bus.call(
                GET_THING, GetThing(id=thing_id), tenant=self._tenant, timeout_s=_CALL_S
            )
        except AgentNotFound:
            return None

    async def _remove(self, gone: Iterable[Listed]) -> None:
        gate = asyncio.Semaphore(_REGISTRATIONS)
        async with asyncio.TaskGroup() as group:
            for one in gone:
                group.create_task(self._remove_one(gate, one))

    async def _remove_one(self, gate: asyncio.Semaphore, one: Listed) -> None:
        async with gate:
            await self._stop_standing_in(one)
            wanted = Deregister(name=one.name, subset=one.subset, revision=one.revision)
            try:
                await self._bus.call(DEREGISTER, wanted, tenant=self._tenant, timeout_s=_CALL_S)
                logger.info("%s has left the local network", one.id)
            except (AgentNotFound, Conflict):
                pass  # it is not ours any more
            except MeshError as exc:
                # It expires by itself.
                logger.warning("could not remove %s: %s", one.id, exc)


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
