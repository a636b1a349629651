"""The mDNS adapter as a process: its settings, its view of mesh and network, and how it ends."""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import ifaddr
from pydantic import Field, field_validator
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncZeroconf

from lmos_mesh import micro
from lmos_mesh.bus import Bus
from lmos_mesh.directory import Directory
from lmos_mesh.errors import SettingsError
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.service import VERSION
from lmos_mesh.settings import Settings
from lmos_mesh.thing_faults import THING_BYTES
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_mdns.announcing import Announcer
from lmos_mesh_mdns.fetching import Fetcher, Limits
from lmos_mesh_mdns.finding import Finder
from lmos_mesh_mdns.networks import (
    Interface,
    Place,
    Unreachable,
    chosen,
    dialled,
    interface,
    multicast_addresses,
    networks_from,
    place_of,
)
from lmos_mesh_mdns.records import Target, announced
from lmos_mesh_mdns.sightings import Sightings
from lmos_mesh_mdns.trusting import StandIn

logger = logging.getLogger(__name__)

# How soon a change of the mesh is told, so that many of them are told together.
_GATHER_S = 0.1
# How often it is looked where the HTTP adapter is, and which interfaces there are.
_LOOK_S = 1.0
_INTERFACES_S = 5.0
_KNOCK_S = 1.0
# A Description stays for so many refreshments, should this process be killed.
_STAYS = 3


class MdnsSettings(Settings):
    """Settings of the mDNS adapter.

    Attributes:
        mdns_interfaces: Names or addresses of the interfaces to use, separated by commas; without
            any, all but loopback.
        mdns_networks: Further networks, as `10.2.0.0/16`, whose addresses are taken from records.
        mdns_tenant: The tenant that found Things enter; by default the one that is announced.
        mdns_trust: Whether found agents are called, and not only listed.
        mdns_announced_max: How many Things are announced at most; the directory has all.
        mdns_services_max: How many services of others are looked at.
        mdns_things_max: How many Things of others are listed.
        mdns_fetch_timeout_s: How long it may take to read one Description or one page.
        mdns_description_limit: The most bytes that a Description may have.
        mdns_page_limit: The most bytes that a page of another directory may have.
        mdns_refresh_s: How often what was found is read again.
    """

    mdns_interfaces: str = ""
    mdns_networks: str = ""
    mdns_tenant: str = ""
    mdns_trust: bool = False
    mdns_announced_max: int = Field(default=256, ge=0)
    mdns_services_max: int = Field(default=256, ge=0)
    mdns_things_max: int = Field(default=1000, ge=0)
    mdns_fetch_timeout_s: float = Field(default=5.0, gt=0)
    mdns_description_limit: int = Field(default=THING_BYTES, ge=1)
    mdns_page_limit: int = Field(default=8 * 1024 * 1024, ge=1)
    mdns_refresh_s: float = Field(default=60.0, ge=1)

    @field_validator("mdns_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        networks_from(text)
        return text


class MdnsAdapter:
    """Announces a tenant's directory and agents, and lists what others announce."""

    def __init__(self, settings: MdnsSettings) -> None:
        self._settings = settings
        self._interfaces: tuple[Interface, ...] = ()
        self._zeroconf: AsyncZeroconf | None = None
        self._announcer: Announcer | None = None
        self._finder: Finder | None = None
        self._lease: LeaseKeeper | None = None
        self._stand_in: StandIn | None = None
        self._changed = asyncio.Event()
        self._things: list[ThingKey] = []
        self._stale = True
        self._placed: tuple[tuple[str, tuple[Interface, ...]], Place] | None = None
        self._said = dict[str, str]()
        self._leaving = False

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Announce and find until cancelled.

        Raises:
            SettingsError: No interface is one that the settings name, or the lease would be in
                another tenant than what is found.
        """
        settings = self._settings
        if settings.mdns_trust and settings.mdns_tenant not in ("", bus.tenant):
            raise SettingsError(
                f"LMOS_MDNS_TRUST is set, and found agents enter {settings.mdns_tenant!r}, while"
                f" this process is in {bus.tenant!r}",
                hint="run an adapter with LMOS_TENANT set to that tenant",
            )
        self._bus = bus
        self._directory = Directory(bus)
        self._directory.on_change(self._on_change)
        await self._directory.follow()
        await self._announce_process()
        limits = Limits(
            timeout_s=settings.mdns_fetch_timeout_s,
            description_bytes=settings.mdns_description_limit,
            page_bytes=settings.mdns_page_limit,
            things=settings.mdns_things_max,
        )
        async with Fetcher.open(limits) as fetcher:
            if settings.mdns_trust:
                self._stand_in = StandIn(bus, fetcher)
            # Other adapters of this mesh know by the lease that what we announce is theirs too.
            self._lease = LeaseKeeper(bus, self._stand_in.served if self._stand_in else tuple)
            if self._stand_in:
                self._stand_in.keep_in(self._lease)
            await self._lease.begin()
            finder = self._finder = Finder(
                bus,
                fetcher,
                Sightings(
                    sources_max=settings.mdns_services_max,
                    things_max=settings.mdns_things_max,
                    refresh_s=settings.mdns_refresh_s,
                ),
                tenant=settings.mdns_tenant or bus.tenant,
                ttl_s=settings.mdns_refresh_s * _STAYS,
                networks=networks_from(settings.mdns_networks),
                is_ours=self._is_ours,
                stand_in=self._stand_in,
            )
            self._check_interfaces()
            try:
                await self._look_at_interfaces(finder)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow_interfaces(finder))
                    group.create_task(self._keep_announced())
                    group.create_task(finder.run())
                    ready()
            finally:
                if self._zeroconf is not None:
                    await self._zeroconf.async_close()

    async def leave(self) -> None:
        """Say goodbye for everything that was announced, and remove what was found."""
        self._leaving = True
        async with asyncio.TaskGroup() as group:
            if self._announcer is not None:
                group.create_task(self._announcer.settle({}))
            if self._finder is not None:
                group.create_task(self._finder.leave())
        if self._lease is not None:
            await self._lease.leave()

    # -- the network --

    def _check_interfaces(self) -> None:
        present = list(_present())
        wanted = _names(self._settings.mdns_interfaces)
        if wanted and not chosen(present, wanted):
            there = ", ".join(sorted({f"{one.name} ({one.address})" for one in present}))
            raise SettingsError(
                f"LMOS_MDNS_INTERFACES={self._settings.mdns_interfaces!r} names no interface of"
                f" this machine: it has {there or 'none'}",
                hint="leave it empty for all but loopback",
            )

    async def _follow_interfaces(self, finder: Finder) -> None:
        while True:
            await asyncio.sleep(_INTERFACES_S)
            await self._look_at_interfaces(finder)

    async def _look_at_interfaces(self, finder: Finder) -> None:
        now = chosen(_present(), _names(self._settings.mdns_interfaces))
        spoken = multicast_addresses(now)
        if now == self._interfaces or not spoken or self._leaving:
            if not spoken:
                said = "this machine is on no network with IPv4; waiting for one"
                self._say(logging.WARNING, "network", said)
            return
        try:
            if self._zeroconf is None:
                self._zeroconf = AsyncZeroconf(interfaces=spoken, ip_version=IPVersion.V4Only)
                self._announcer = Announcer(self._zeroconf, _server(self._bus.instance))
            else:
                await self._zeroconf.async_update_interfaces(spoken, IPVersion.V4Only)
        except OSError as exc:
            said = f"cannot speak mDNS on {', '.join(spoken)}, trying again: {exc}"
            self._say(logging.WARNING, "network", said)
            return
        self._interfaces = now
        self._say(logging.INFO, "network", f"speaking mDNS on {', '.join(spoken)}")
        finder.look(self._zeroconf, now)
        self._changed.set()

    # -- the mesh --

    def _on_change(self, changed: Sequence[ThingKey]) -> None:
        if self._stand_in is not None:
            self._stand_in.yield_to_ours(changed, self._directory.membership)
        self._stale = True
        self._changed.set()

    async def _keep_announced(self) -> None:
        while True:
            self._changed.clear()
            if self._announcer is not None and not self._leaving:
                await self._announce(self._announcer)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
                    await asyncio.sleep(_GATHER_S)

    async def _announce(self, announcer: Announcer) -> None:
        tenant = self._bus.tenant
        if self._stale:
            self._stale = False
            membership = self._directory.membership
            self._things = [
                one.key
                for one in membership
                if one.key.tenant == tenant
                and _answers_here(one.thing)
                and membership.live(one.key)
            ]
        place = await self._place()
        if place is None:
            await announcer.settle({})
            return
        wanted, left_out = announced(
            place,
            tenant,
            self._things,
            self._bus.instance,
            limit=self._settings.mdns_announced_max,
        )
        if left_out:
            said = (
                f"{len(left_out)} agents are found by the directory only, e.g."
                f" {left_out[0].name!r}: their names are too long, or there are more than"
                f" LMOS_MDNS_ANNOUNCED_MAX={self._settings.mdns_announced_max}"
            )
        else:
            said = f"announcing the directory of {tenant!r} at port {place.port}"
        self._say(logging.INFO, "place", said)
        await announcer.settle(wanted)

    async def _place(self) -> Place | None:
        """Where the HTTP adapter is reached: this machine's first, if there are several."""
        here = socket.gethostname()
        said = f"no HTTP adapter runs in {self._bus.tenant!r}, so there is nothing to announce"
        for url, host in sorted(self._http(), key=lambda one: (one[1] != here, one)):
            asked = (url, self._interfaces)
            if self._placed is not None and self._placed[0] == asked:
                return self._placed[1]
            try:
                resolved = await _resolved(url)
                answering = await _answering(url, self._interfaces) if host == here else []
                place = place_of(
                    url, self._interfaces, here=host == here, resolved=resolved, answering=answering
                )
            except Unreachable as exc:
                said = str(exc)
                continue
            self._placed = (asked, place)
            return place
        self._placed = None
        self._say(logging.WARNING, "place", said)
        return None

    def _http(self, *, everywhere: bool = False) -> list[tuple[str, str]]:
        """(URL, machine) of the HTTP adapters."""
        return [
            (str(lease.address["url"]), lease.host)
            for tenant, lease, _ in self._directory.membership.leases()
            if (everywhere or tenant == self._bus.tenant)
            and lease.address.get("protocol") == "http"
            and "url" in lease.address
        ]

    def _is_ours(self, target: Target) -> bool:
        """Whether it was announced by this mesh, or is answered by it."""
        if target.announcer == self._bus.instance:
            return True
        membership = self._directory.membership
        if any(lease.instance == target.announcer for _, lease, _ in membership.leases()):
            return True
        own = {str(one.address) for one in self._interfaces}
        for url, host in self._http(everywhere=True):
            parts = urlsplit(url)
            if parts.port != target.port:
                continue
            if parts.hostname in (target.address, target.host):
                return True
            if (
                parts.hostname in ("0.0.0.0", "::")
                and host == socket.gethostname()
                and target.address in own
            ):
                return True
        return False

    def _say(self, level: int, topic: str, said: str) -> None:
        """Log it, unless it was the last that was said on its topic."""
        if self._said.get(topic) != said:
            self._said[topic] = said
            logger.log(level, said)

    async def _announce_process(self) -> None:
        """Be found by the NATS tools."""
        await micro.announce(
            self._bus.transport,
            micro.MicroService(
                name="lmos-mdns",
                id=self._bus.instance,
                version=VERSION,
                description="The mesh on the local network",
                metadata={"tenant": self._bus.tenant},
                endpoints=(),
            ),
        )


def _answers_here(thing: Thing) -> bool:
    return thing.kind != "thing" and not thing.external and not thing.origin


def _names(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _present() -> Iterable[Interface]:
    for adapter in ifaddr.get_adapters():
        for one in adapter.ips:
            address = one.ip if isinstance(one.ip, str) else one.ip[0]
            yield interface(adapter.name, address, one.network_prefix)


async def _resolved(url: str) -> list[str]:
    """The addresses of a URL's host."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(one[4][0]).partition("%")[0] for one in found]


async def _answering(url: str, interfaces: Sequence[Interface]) -> list[str]:
    """The addresses of this machine at which the adapter of that URL answers.

    What listens everywhere says only one of them.
    """
    place = urlsplit(url)
    found: list[str] = []

    async def knock(address: str) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_KNOCK_S):
                _, writer = await asyncio.open_connection(address, place.port or 80)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            found.append(address)

    if place.scheme == "http":
        async with asyncio.TaskGroup() as group:
            for one in dialled(interfaces):
                group.create_task(knock(one))
    return sorted(found)


def _server(instance: str) -> str:
    """A host name of our own: the machine's belongs to its own mDNS responder."""
    return f"lmos-{re.sub('[^A-Za-z0-9]+', '-', instance)[-50:].strip('-').lower()}.local."
