"""The turns and figures that rollouts are judged by, read for as long as one of a tenant runs."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lmos_mesh import turn_reports
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.turn_reports import Reader
from lmos_mesh_operator.figures import Figures
from lmos_mesh_operator.samples import KEPT_S, Watched, Window

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tenant:
    reader: Reader
    since: float
    window: Window = field(default_factory=Window)
    began: bool = False
    figures: dict[str, Figures] = field(default_factory=dict[str, Figures])


class Watching:
    """One window per tenant that has a rollout under way. Only a leader watches."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._lost = False
        bus.transport.on_reconnect(self._on_reconnect)

    async def watch(self, wanted: Collection[Watched]) -> None:
        """Watch what these need, and nothing else.

        Raises:
            MeshError: The bus does not answer; another try goes on from there.
        """
        if self._lost:
            # What was kept in memory went with its server; what is told from now on is kept again.
            await turn_reports.prepare(self._bus)
            for held in self._tenants.values():
                for figures in held.figures.values():
                    await figures.prepare()
            self._lost = False
        for tenant in self._tenants.keys() - {one.tenant for one in wanted}:
            await self._end(self._tenants.pop(tenant))
        by_tenant: dict[str, list[Watched]] = {}
        for one in wanted:
            by_tenant.setdefault(one.tenant, []).append(one)
        for tenant, its in by_tenant.items():
            since = max(self._clock() - KEPT_S, min(one.since for one in its))
            held = self._tenants.get(tenant)
            if held is None:
                held = self._tenants[tenant] = _Tenant(Reader(self._bus, tenant), since)
            held.since = since
            await self._keep(tenant, held, its)

    async def clear(self, unwanted: Collection[tuple[str, str]]) -> None:
        """Have events, each after its tenant, kept no more, whoever had them kept."""
        for tenant, event in unwanted:
            await self._drop(Figures(self._bus, tenant, event, clock=self._clock))

    async def window(self, tenant: str) -> Window | None:
        """What is known of a tenant's turns up to now; None if it is not watched.

        Raises:
            MeshError: A stream does not answer.
        """
        held = self._tenants.get(tenant)
        if held is None:
            return None
        if not held.began:
            await held.reader.begin(since=held.since)
            held.began = True
        for one in await held.reader.read():
            held.window.add(one.at, one.report)
        for figures in held.figures.values():
            for figure in await figures.read():
                held.window.add_figure(figure)
        held.window.forget(before=held.since)
        return held.window

    async def stop(self) -> None:
        """Watch nothing any more; what is kept is for the next leader."""
        while self._tenants:
            _, held = self._tenants.popitem()
            for figures in held.figures.values():
                await figures.leave()

    async def _keep(self, tenant: str, held: _Tenant, wanted: Sequence[Watched]) -> None:
        names: dict[str, set[str]] = {}
        for one in wanted:
            for event, name in one.events:
                names.setdefault(event, set()).add(name)
        for event in held.figures.keys() - names.keys():
            await self._drop(held.figures.pop(event))
        for event, its in names.items():
            known = held.figures.get(event)
            if known is None:
                known = Figures(self._bus, tenant, event, clock=self._clock)
                await known.prepare()
                held.figures[event] = known
            known.names = frozenset(its)

    async def _end(self, held: _Tenant) -> None:
        for figures in held.figures.values():
            await self._drop(figures)

    async def _drop(self, figures: Figures) -> None:
        try:
            await figures.drop()
        except MeshError as exc:
            logger.warning("events go on being kept that no rollout needs: %s", exc)

    def _on_reconnect(self) -> None:
        self._lost = True
