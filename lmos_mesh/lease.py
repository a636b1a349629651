"""A process's sign of life, written by itself, so that liveness has no middleman."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import MeshError
from lmos_mesh.liveness import LEASES, Lease, Served

logger = logging.getLogger(__name__)

TTL_S = 4
RENEW_S = 1.3
_AGAIN_S = 0.3


class LeaseKeeper:
    """Writes the lease, renews it, writes it anew when the server comes back, and removes it.

    Args:
        bus: Whose process is alive.
        things: What it serves; an adapter serves none.
        address: Where else it is reached, as `{"protocol": "http", "url": "http://…"}`.
        runs: What the processes serve that it starts and stops.
        tenant: Where its Things are; the bus's own tenant by default.
    """

    def __init__(
        self,
        bus: Bus,
        things: Callable[[], tuple[Served, ...]] = tuple,
        *,
        address: Mapping[str, Any] | None = None,
        runs: Callable[[], tuple[Served, ...]] = tuple,
        tenant: str | None = None,
    ) -> None:
        self._bus = bus
        self._things = things
        self._address = dict(address or {})
        self._runs = runs
        self._store = bus.transport.key_value(LEASES)
        self._key = subjects.key(tenant or bus.tenant, bus.instance)
        self._now = asyncio.Event()
        self._started = time.time()
        self._host = socket.gethostname()
        self._left = False

    async def begin(self) -> None:
        """Write the lease and keep it until `leave`.

        Raises:
            Unavailable: JetStream does not answer.
        """
        await self._write()
        self._bus.transport.on_reconnect(self._now.set)
        self._bus.spawn(self._renew(), name="lease")

    def changed(self) -> None:
        """Something in it has changed: write it at once."""
        self._now.set()

    async def leave(self) -> None:
        """Say goodbye: nothing new is routed here."""
        self._left = True
        with suppress(MeshError):
            await self._store.delete(self._key)

    async def _renew(self) -> None:
        wait_s = RENEW_S
        while not self._left:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._now.wait()
            self._now.clear()
            if self._left:
                return
            try:
                # No longer: what was asked of a connection that is lost is never answered.
                async with asyncio.timeout(RENEW_S):
                    await self._write()
                wait_s = RENEW_S
            except (MeshError, TimeoutError) as exc:
                if wait_s == RENEW_S:
                    said = str(exc) or "JetStream does not answer"
                    logger.warning("could not renew the lease, trying again: %s", said)
                wait_s = _AGAIN_S

    async def _write(self) -> None:
        lease = Lease(
            instance=self._bus.instance,
            connection=self._bus.transport.connection,
            things=self._things(),
            host=self._host,
            pid=os.getpid(),
            started=self._started,
            address=self._address,
            runs=self._runs(),
        )
        await self._store.put(self._key, lease.model_dump_json().encode(), ttl_s=TTL_S)
