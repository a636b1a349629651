"""What the registry keeps, read from and written to JetStream by whoever enters Things."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.directory import Directory
from lmos_mesh.membership import REGISTRY, Entered
from lmos_mesh.things import ThingKey
from lmos_mesh.transport import Revision
from lmos_mesh_registry.registering import (
    Lifetime,
    Stored,
    entered_from,
    registration_for,
    stored_in,
    value_of,
)

_KNOWN_WITHIN_S = 1.0


class Entries:
    """Each write waits until this replica knows of it: whoever writes finds it from then on."""

    def __init__(
        self, bus: Bus, directory: Directory, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = bus.transport.key_value(REGISTRY)
        self._directory = directory
        self._clock = clock

    def now(self) -> float:
        """The time that lifetimes are counted from."""
        return self._clock()

    async def get(self, key: ThingKey) -> Stored | None:
        """What is kept now, whether or not this replica has heard of it."""
        entry = await self._store.get(subjects.key(*key))
        return stored_in(entry) if entry is not None else None

    async def entered(self, key: ThingKey) -> Entered | None:
        """The entry as this replica knows it; of what it has not heard of, as it is kept."""
        known = self._directory.membership.get(key)
        if known is not None:
            return known
        entry = await self._store.get(subjects.key(*key))
        return entered_from(key, entry) if entry is not None else None

    async def history(self, key: ThingKey) -> list[Revision]:
        """The versions that are kept, oldest first."""
        return list(await self._store.history(subjects.key(*key)))

    async def put(
        self, key: ThingKey, description: Mapping[str, Any], held: Stored | None, life: Lifetime
    ) -> int:
        """Write a Description and return its revision.

        Args:
            key: Where.
            description: A valid one.
            held: What it replaces.
            life: How long it is kept.

        Raises:
            Conflict: Somebody else has written since `held` was read.
        """
        now = self._clock()
        revision = await self._store.put(
            subjects.key(*key),
            value_of(description, registration_for(held, description, life, now=now)),
            expected=held.revision if held is not None else 0,
            ttl_s=life.left_s(now),
        )
        await self._directory.until_known(key, revision, within_s=_KNOWN_WITHIN_S)
        return revision

    async def remove(self, key: ThingKey, revision: int) -> None:
        """Forget a Thing.

        Raises:
            Conflict: It is not at that revision any more.
        """
        removed = await self._store.delete(subjects.key(*key), expected=revision)
        await self._directory.until_known(key, removed, within_s=_KNOWN_WITHIN_S)
