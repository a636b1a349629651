"""Figures that somebody publishes for a custom check, kept for whoever leads next.

The bus keeps no events of agents by itself. While a rollout needs one it is kept in memory for an
hour, in a stream of its own, and whoever takes over reads it from its beginning.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from lmos_mesh import subjects, turn_reports
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidMessage, MeshError, Unavailable
from lmos_mesh.events import CloudEvent, unix_time
from lmos_mesh.transport import CHANGE_SEQUENCE, KEPT_AT, Log, Packet, Subscription
from lmos_mesh_operator.samples import KEPT_S, MOST_TURNS, Figure, figure_from

logger = logging.getLogger(__name__)

_PAGE = 1000


class Figures:
    """The figures in an event of a tenant, each read once.

    Attributes:
        names: What they are called, as `event#field`.
    """

    def __init__(self, bus: Bus, tenant: str, event: str, *, clock: Callable[[], float]) -> None:
        thing, _, name = event.partition(".")
        self.names: frozenset[str] = frozenset()
        self._bus = bus
        self._subject = subjects.event(tenant, thing, name)
        self._log = log_of(self._subject)
        self._stream = bus.transport.stream(self._log)
        self._clock = clock
        self._after = 0
        self._subscription: Subscription | None = None
        self._heard: deque[Figure] = deque(maxlen=MOST_TURNS)

    async def prepare(self) -> None:
        """Have what is published from now on kept.

        Raises:
            Unavailable: The bus does not answer.
        """
        if self._subscription is not None:
            return
        try:
            await self._stream.read(self._subject, limit=1)
        except Unavailable:
            raise
        except MeshError as exc:
            logger.warning(
                "%s cannot be kept, so an operator that takes over begins without what was told "
                "before: %s",
                self._subject,
                exc,
            )
            self._subscription = await self._bus.transport.subscribe(self._subject, self._on_event)

    async def read(self) -> list[Figure]:
        """What has come since it was read last.

        Raises:
            MeshError: The stream does not answer; nothing is passed over.
        """
        if self._subscription is not None:
            heard = list(self._heard)
            self._heard.clear()
            return heard
        found: list[Figure] = []
        while True:
            page = await self._stream.read(self._subject, limit=_PAGE, after=self._after)
            for packet in page:
                self._after = max(self._after, int(packet.headers.get(CHANGE_SEQUENCE, "0")))
                at = unix_time(packet.headers.get(KEPT_AT, "")) or self._clock()
                found += self._figures(packet, at)
            if len(page) < _PAGE:
                break
        if not page and await self._stream.last() < self._after:
            self._after = 0  # it was lost with its server, and begins anew
        return found

    async def leave(self) -> None:
        """Read no more; it goes on being kept."""
        if self._subscription is not None:
            with suppress(MeshError):
                await self._subscription.unsubscribe()

    async def drop(self) -> None:
        """Nobody needs it any more.

        Raises:
            MeshError: It could not be dropped.
        """
        await self.leave()
        if self._subscription is None and self._log is not turn_reports.TURNS:
            await self._stream.drop()

    def _on_event(self, packet: Packet) -> None:
        self._heard += self._figures(packet, self._clock())

    def _figures(self, packet: Packet, at: float) -> list[Figure]:
        data = _data_of(packet)
        if data is None:
            logger.debug("an event on %s is no JSON object", packet.subject)
            return []
        read = (figure_from(name, data, at=at) for name in self.names)
        return [one for one in read if one is not None]


def log_of(subject: str) -> Log:
    """Where what is published on a subject is kept."""
    if any(_covers(pattern, subject) for pattern in turn_reports.TURNS.subjects):
        return turn_reports.TURNS
    digest = hashlib.blake2b(subject.encode(), digest_size=8).hexdigest()
    return Log(
        name=f"LMOS_FIGURES_{digest}",
        subjects=(subject,),
        in_memory=True,
        max_age_s=KEPT_S,
        max_items=MOST_TURNS,
    )


def _covers(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    return len(wanted) == len(given) and all(
        one in ("*", other) for one, other in zip(wanted, given, strict=True)
    )


def _data_of(packet: Packet) -> dict[str, Any] | None:
    """The data of an event: a CloudEvent's, or any JSON object."""
    try:
        data: Any = CloudEvent.from_packet(packet).data
    except InvalidMessage:
        try:
            data = json.loads(packet.payload)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None
