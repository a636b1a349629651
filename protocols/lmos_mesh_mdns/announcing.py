# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# zeroconf types what it gives back to be awaited as nothing at all.
"""Keeps what the local network is told the same as what it should be told."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zeroconf import NonUniqueNameException
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from lmos_mesh.things import ThingKey
from lmos_mesh_mdns.records import DIRECTORY, SERVICE, Announcement

logger = logging.getLogger(__name__)

Key = ThingKey | None

# A crash says no goodbye; what it leaves behind in others' caches goes after this.
_TTL_S = 120
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class _Told:
    announcement: Announcement
    infos: tuple[AsyncServiceInfo, ...]
    # An announcement is said several times; a goodbye must be the last word.
    repeating: tuple[Awaitable[Any], ...] = ()


class Announcer:
    """Tells the network of services, and says goodbye for them.

    Attributes:
        server: The host name that the records have, which nobody else has.
    """

    def __init__(self, zeroconf: AsyncZeroconf, server: str) -> None:
        self.server = server
        self._zeroconf = zeroconf
        self._told: dict[Key, _Told] = {}
        self._labels: dict[str, Key] = {}
        self._settling = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many services are announced."""
        return len(self._told)

    def owns(self, name: str) -> bool:
        """Whether a service of this name is one of ours."""
        return any(info.name == name for told in self._told.values() for info in told.infos)

    async def settle(self, wanted: Mapping[Key, Announcement]) -> None:
        """Announce exactly these: goodbye to the others, a name for each new one."""
        async with self._settling:
            gate = asyncio.Semaphore(_AT_A_TIME)
            async with asyncio.TaskGroup() as group:
                for key in [key for key in self._told if key not in wanted]:
                    group.create_task(self._withdraw(gate, key))
            async with asyncio.TaskGroup() as group:
                for key, announcement in wanted.items():
                    told = self._told.get(key)
                    if told is None:
                        group.create_task(self._announce(gate, key, announcement))
                    elif told.announcement != announcement:
                        group.create_task(self._change(gate, key, told, announcement))

    async def _announce(self, gate: asyncio.Semaphore, key: Key, wanted: Announcement) -> None:
        async with gate:
            label = wanted.label
            if self._labels.setdefault(label.lower(), key) != key:
                label = wanted.other_label
                self._labels[label.lower()] = key
            info = self._info(SERVICE, f"{label}.{SERVICE}", wanted)
            try:
                sent = await self._zeroconf.async_register_service(info, allow_name_change=True)
            except NonUniqueNameException as exc:
                logger.warning("cannot announce %s: %s", label, exc)
                return
            if info.name != f"{label}.{SERVICE}":
                logger.info(
                    "%r is taken on this network, announced as %r instead",
                    label,
                    info.name.removesuffix(f".{SERVICE}"),
                )
            infos = [info]
            if wanted.directory:
                infos.append(self._subtype(info.name, wanted))
                # Its name was found to be free just now.
                more = await self._zeroconf.async_register_service(
                    infos[1], cooperating_responders=True
                )
                self._told[key] = _Told(wanted, tuple(infos), (sent, more))
            else:
                self._told[key] = _Told(wanted, tuple(infos), (sent,))

    async def _change(
        self, gate: asyncio.Semaphore, key: Key, told: _Told, wanted: Announcement
    ) -> None:
        async with gate:
            name = told.infos[0].name
            infos = [self._info(SERVICE, name, wanted)]
            if wanted.directory:
                infos.append(self._subtype(name, wanted))
            _stop(told.repeating)
            repeating = [await self._zeroconf.async_update_service(info) for info in infos]
            self._told[key] = _Told(wanted, tuple(infos), tuple(repeating))

    async def _withdraw(self, gate: asyncio.Semaphore, key: Key) -> None:
        async with gate:
            told = self._told.pop(key)
            _stop(told.repeating)
            for label in [label for label, owner in self._labels.items() if owner == key]:
                del self._labels[label]
            async with asyncio.TaskGroup() as group:
                for info in told.infos:
                    group.create_task(self._goodbye(info))

    async def _goodbye(self, info: AsyncServiceInfo) -> None:
        await (await self._zeroconf.async_unregister_service(info))

    def _subtype(self, name: str, wanted: Announcement) -> AsyncServiceInfo:
        """The same service, found under the subtype too."""
        info = self._info(DIRECTORY, name, wanted)
        # The library keeps one service per key. Questions for the name are for the other one.
        info.key = f"{DIRECTORY}/{info.key}"
        return info

    def _info(self, service_type: str, name: str, wanted: Announcement) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            service_type,
            name,
            port=wanted.port,
            parsed_addresses=list(wanted.addresses),
            properties=dict(wanted.text),
            server=self.server,
            host_ttl=_TTL_S,
            other_ttl=_TTL_S,
        )


def _stop(repeating: Iterable[Awaitable[Any]]) -> None:
    for one in repeating:
        if isinstance(one, asyncio.Future):
            one.cancel()
