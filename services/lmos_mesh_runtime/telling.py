"""Tells how turns went, several at a time: a write of its own for each would cost more than it."""

import asyncio
import logging
import time
from collections.abc import Callable

from lmos_mesh import turn_reports
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.messages import TurnReport

logger = logging.getLogger(__name__)

TOGETHER_S = 0.05


class Teller:
    """Collects reports for a moment. What nobody can take then is of no use later."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._clock = clock
        self._waiting: list[tuple[str, TurnReport, float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, tenant: str, report: TurnReport) -> None:
        """Tell it soon."""
        self._waiting.append((tenant, report, self._clock()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOGETHER_S, self.flush)

    def flush(self) -> None:
        """Tell what is waiting, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        try:
            for tenant, report, at in waiting:
                turn_reports.tell(self._bus, tenant, report, at=at)
        except MeshError as exc:
            logger.warning("could not report %d turns: %s", len(waiting), exc)
