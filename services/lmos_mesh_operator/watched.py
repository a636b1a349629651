"""The turns and figures that rollouts are judged by, read for as long as one of a tenant runs."""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.events import CloudEvent
from lmos_mesh.transport import Packet, Subscription
from lmos_mesh.turn_reports import Reader
from lmos_mesh_operator.samples import KEPT_S, Watched, Window, figure_from

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tenant:
    reader: Reader
    since: float
    window: Window = field(default_factory=Window)
    began: bool = False
    heard: dict[tuple[str, str], Subscription] = field(
        default_factory=dict[tuple[str, str], Subscription]
    )


class Watching:
    """One window per tenant that has a rollout under way. Only a leader watches."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}

    async def watch(self, wanted: Collection[Watched]) -> None:
        """Watch what these need, and nothing else.

        Raises:
            MeshError: The bus does not answer; another try goes on from there.
        """
        for tenant in self._tenants.keys() - {one.tenant for one in wanted}:
            await self._leave(self._tenants.pop(tenant))
        by_tenant: dict[str, list[Watched]] = {}
        for one in wanted:
            by_tenant.setdefault(one.tenant, []).append(one)
        for tenant, its in by_tenant.items():
            since = max(self._clock() - KEPT_S, min(one.since for one in its))
            held = self._tenants.get(tenant)
            if held is None:
                held = self._tenants[tenant] = _Tenant(Reader(self._bus, tenant), since)
            held.since = since
            await self._hear(tenant, held, its)

    async def window(self, tenant: str) -> Window | None:
        """What is known of a tenant's turns up to now; None if it is not watched.

        Raises:
            MeshError: The stream does not answer.
        """
        held = self._tenants.get(tenant)
        if held is None:
            return None
        if not held.began:
            await held.reader.begin(since=held.since)
            held.began = True
        for one in await held.reader.read():
            held.window.add(one.at, one.report)
        held.window.forget(before=held.since)
        return held.window

    async def stop(self) -> None:
        """Watch nothing any more."""
        while self._tenants:
            _, held = self._tenants.popitem()
            await self._leave(held)

    async def _hear(self, tenant: str, held: _Tenant, wanted: Sequence[Watched]) -> None:
        names = {event for one in wanted for event in one.events}
        for event in held.heard.keys() - names:
            await held.heard.pop(event).unsubscribe()
        for event in names - held.heard.keys():
            thing, _, name = event[0].partition(".")
            held.heard[event] = await self._bus.transport.subscribe(
                subjects.event(tenant, thing, name),
                lambda packet, figure=event[1]: self._on_figure(held.window, figure, packet),
            )

    def _on_figure(self, window: Window, name: str, packet: Packet) -> None:
        data = _data_of(packet)
        figure = figure_from(name, data, at=self._clock()) if data is not None else None
        if figure is None:
            logger.debug("an event on %s has no figure for %s", packet.subject, name)
        else:
            window.add_figure(figure)

    async def _leave(self, held: _Tenant) -> None:
        for subscription in held.heard.values():
            with suppress(MeshError):
                await subscription.unsubscribe()


def _data_of(packet: Packet) -> dict[str, Any] | None:
    """The data of an event: a CloudEvent's, or any JSON object."""
    try:
        return CloudEvent.from_packet(packet).data
    except InvalidMessage:
        pass
    try:
        data: Any = json.loads(packet.payload)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None
