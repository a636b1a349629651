"""What was fitted for each channel, kept on the bus, so that every replica decides by the same."""

import asyncio
import logging

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Bucket, Change, Packet, change_of
from lmos_mesh_router.fitting import Fit
from lmos_mesh_router.ranking import Learned

logger = logging.getLogger(__name__)

FITS = Bucket(
    name="lmos_router",
    history=16,
    tokens=3,
    feed="lmos.{{wildcard(1)}}.changed.router.{{wildcard(2)}}.{{wildcard(3)}}",
)
"""Keys are {tenant}.{channel}.{fingerprint of the encoder}, values are a `Fit` as JSON."""

FITS_FEED = "lmos.*.changed.router.*.*"

_RETRY_S = 0.5

Place = tuple[str, str]
"""A tenant and a channel."""


class Fits:
    """Follows the bucket, and has at hand what was fitted with this encoder."""

    def __init__(self, bus: Bus, fingerprint: str) -> None:
        self._bus = bus
        self._fingerprint = fingerprint
        self._store = bus.transport.key_value(FITS)
        self._fits: dict[Place, Fit] = {}
        self._revisions: dict[Place, int] = {}
        self._applied: dict[Place, tuple[Learned, Learned]] = {}
        self._stale = asyncio.Event()

    def of(self, tenant: str, channel: str) -> Fit | None:
        """What was fitted for a channel; None if nothing was."""
        return self._fits.get((tenant, channel))

    def learned(self, tenant: str, channel: str, learned: Learned) -> Learned:
        """What is known, by the numbers of a channel."""
        fit = self._fits.get((tenant, channel))
        if fit is None:
            return learned
        before = self._applied.get((tenant, channel))
        if before is None or before[0] is not learned:
            before = self._applied[tenant, channel] = (learned, fit.applied_to(learned))
        return before[1]

    def threshold(self, tenant: str, channel: str, default: float) -> float:
        """The least confidence to route with."""
        fit = self._fits.get((tenant, channel))
        return default if fit is None else fit.threshold

    async def follow(self) -> None:
        """Read what is there, and follow the changes from then on.

        Raises:
            Unavailable: The store does not answer.
        """
        await self._bus.transport.subscribe(FITS_FEED, self._on_packet)
        await self._read()
        self._bus.transport.on_reconnect(self._stale.set)
        self._bus.spawn(self._keep_whole(), name="fits")

    async def put(self, tenant: str, channel: str, fit: Fit) -> None:
        """Go on with it, here at once and in the other replicas a moment later."""
        value = fit.write()
        revision = await self._store.put(self._key(tenant, channel), value)
        self._apply((tenant, channel), value, revision)

    async def forget(self, tenant: str, channel: str) -> bool:
        """Go on without; False if there was nothing to forget."""
        revision = await self._store.delete(self._key(tenant, channel))
        if revision:
            self._apply((tenant, channel), None, revision)
        return revision > 0

    def _key(self, tenant: str, channel: str) -> str:
        return subjects.key(tenant, channel, self._fingerprint)

    async def _read(self) -> None:
        entries = await self._store.entries()
        there = {entry.key for entry in entries}
        for place in [one for one in self._fits if self._key(*one) not in there]:
            self._drop(place)
        for entry in entries:
            self._on_change(Change(key=entry.key, value=entry.value, revision=entry.revision))

    async def _keep_whole(self) -> None:
        """Read everything again when a lost bus is back."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._read()
            except MeshError as exc:
                logger.warning("cannot read what was fitted, trying again: %s", exc)
                self._stale.set()
                await asyncio.sleep(_RETRY_S)

    def _on_packet(self, packet: Packet) -> None:
        self._on_change(change_of(packet))

    def _on_change(self, change: Change) -> None:
        ids = subjects.ids_of(change.key)
        if len(ids) == 3 and ids[2] == self._fingerprint:
            self._apply((ids[0], ids[1]), change.value, change.revision)

    def _apply(self, place: Place, value: bytes | None, revision: int) -> None:
        if revision <= self._revisions.get(place, 0):
            return
        self._revisions[place] = revision
        if value is None:
            self._drop(place)
            return
        try:
            self._fits[place] = Fit.read(value)
        except ValueError as exc:
            self._drop(place)
            logger.warning("what was fitted for channel %r cannot be used: %s", place[1], exc)
        self._applied.pop(place, None)

    def _drop(self, place: Place) -> None:
        self._fits.pop(place, None)
        self._applied.pop(place, None)
