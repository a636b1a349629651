"""What was fitted for each channel, kept on the bus, so that every replica decides by the same."""

import logging
from collections.abc import Mapping

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.feed import Feed, Following
from lmos_mesh.transport import Bucket, Change
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

Place = tuple[str, str]
"""A tenant and a channel."""


class Fits:
    """Follows the bucket, and has at hand what was fitted with this encoder."""

    def __init__(self, bus: Bus, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._store = bus.transport.key_value(FITS)
        self._fits: dict[Place, Fit] = {}
        self._revisions: dict[Place, int] = {}
        self._applied: dict[Place, tuple[Learned, Learned]] = {}
        feed = Feed(self._store, FITS_FEED, self._on_change, self._keep)
        self._following = Following(bus, (feed,), what="what was fitted")

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
        await self._following.follow()

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

    def _keep(self, revisions: Mapping[str, int]) -> None:
        for place in [one for one in self._fits if self._key(*one) not in revisions]:
            self._drop(place)

    def _on_change(self, change: Change, created: float) -> None:
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
