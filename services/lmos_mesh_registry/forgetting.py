"""What the registry does about those who are gone: ends their leases, and forgets them one day."""

import asyncio
import json
import logging
from collections.abc import Callable

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.directory import Directory
from lmos_mesh.errors import Conflict, MeshError
from lmos_mesh.liveness import LEASES
from lmos_mesh.things import ThingKey
from lmos_mesh_registry.entries import Entries

logger = logging.getLogger(__name__)


class Forgetting:
    """Forgets what nobody serves any more.

    Args:
        bus: Where the leases are.
        directory: Says who died.
        entries: What is forgotten.
        after_s: How long a Thing stays that nobody serves.
        clock: What time it is, in Unix seconds.
    """

    def __init__(
        self,
        bus: Bus,
        directory: Directory,
        entries: Entries,
        *,
        after_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._leases = bus.transport.key_value(LEASES)
        self._directory = directory
        self._entries = entries
        self._after_s = after_s
        self._clock = clock
        self._seen_live: dict[ThingKey, float] = {}
        directory.on_death(self._on_death)

    def _on_death(self, tenant: str, instance: str) -> None:
        self._bus.spawn(self._end_lease(tenant, instance), name="end-lease")

    async def _end_lease(self, tenant: str, instance: str) -> None:
        """Remove the lease of a process that died, for those who did not hear of it."""
        try:
            entry = await self._leases.get(subjects.key(tenant, instance))
            if entry is None:
                return
            connection = json.loads(entry.value).get("connection", "")
            if self._directory.membership.closed(connection):
                await self._leases.delete(entry.key, expected=entry.revision)
        except Conflict:
            pass  # another replica was first, or the process is back
        except MeshError as exc:
            logger.warning("could not end the lease of %s: %s", instance, exc)

    async def sweep(self, every_s: float) -> None:
        """Forget what nobody has served for long."""
        while True:
            now = self._clock()
            for one in self._directory.membership:
                if self._directory.membership.live(one.key) or not one.needs_instances:
                    self._seen_live[one.key] = now
                elif now - self._seen_live.setdefault(one.key, now) > self._after_s:
                    self._seen_live.pop(one.key, None)
                    try:
                        await self._entries.remove(one.key, one.revision)
                        logger.info("forgot %s: no instance for long", one.key.name)
                    except MeshError as exc:
                        logger.info("could not forget %s: %s", one.key.name, exc)
            for key in self._seen_live.keys() - {one.key for one in self._directory.membership}:
                del self._seen_live[key]
            await asyncio.sleep(every_s)
