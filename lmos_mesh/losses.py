"""Which processes have died: told by the server, or found by asking those who are silent."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from lmos_mesh import subjects
from lmos_mesh.dispatch import Duties
from lmos_mesh.errors import MeshError, Unavailable
from lmos_mesh.reply_stream import ReplyStream
from lmos_mesh.transport import Packet, Subscription

_PROBE_AFTER_S = 0.25
_SETTLE_S = 0.5

Spawn = Callable[[Coroutine[Any, Any, Any]], object]


class Losses:
    """Which processes have died, told by the server's disconnect events or found by asking."""

    def __init__(self, duties: Duties, spawn: Spawn) -> None:
        self._duties = duties
        self._spawn = spawn
        self._watched: dict[str, set[ReplyStream]] = {}
        self._begun: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._probing: set[str] = set()
        self._closed = False
        self.subscriptions: list[Subscription] = []
        self.callbacks: list[Callable[[str], None]] = []
        self.told = False

    async def begin(self) -> None:
        """Follow the server's disconnect events from now on."""
        if self._begun is not None:
            await self._begun.wait()
            return
        self._begun = asyncio.Event()
        try:
            self.subscriptions.append(
                await self._duties.transport.subscribe(subjects.DISCONNECTS, self._on_disconnect)
            )
        finally:
            self._begun.set()

    def close(self) -> None:
        """Ask nobody any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def watch(self, stream: ReplyStream, instance: str) -> None:
        """See `reply_stream.Watcher`."""
        self._watched.setdefault(instance, set()).add(stream)
        if not self.told and self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_PROBE_AFTER_S, self._probe)

    def unwatch(self, stream: ReplyStream, instance: str) -> None:
        """See `reply_stream.Watcher`."""
        streams = self._watched.get(instance)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._watched[instance]

    def lose(self, instance: str, reason: str) -> None:
        """A process has died: end what waits for it, and what was done for it."""
        for stream in list(self._watched.get(instance, ())):
            stream.lose(reason)
        for call in list(self._duties.running.values()):
            if call.streaming and subjects.instance_of_inbox(call.reply) == instance:
                call.cancel("the caller is gone")
        for callback in list(self.callbacks):
            callback(instance)

    def _on_disconnect(self, packet: Packet) -> None:
        self.told = True
        try:
            client = json.loads(packet.payload)["client"]
            lost = subjects.instance_of_connection(str(client.get("name", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if lost is not None and lost[1] != self._duties.instance:
            self.lose(lost[1], "has disconnected")

    def _probe(self) -> None:
        """Without disconnect events, ask those who have been silent."""
        self._timer = None
        if not self._watched:
            return
        for instance, streams in self._watched.items():
            if instance not in self._probing and any(
                stream.silent_s >= _PROBE_AFTER_S for stream in streams
            ):
                self._probing.add(instance)
                self._spawn(self._ask(instance, next(iter(streams)).tenant))
        self._timer = asyncio.get_running_loop().call_later(_PROBE_AFTER_S, self._probe)

    async def _ask(self, instance: str, tenant: str) -> None:
        try:
            await self._duties.transport.request(
                subjects.instance(tenant, instance, "status"), b"", timeout_s=_SETTLE_S
            )
        except Unavailable:
            if self._duties.transport.connected:
                self.lose(instance, "does not answer any more")
        except MeshError:
            pass  # slow is not dead; its lease decides
        finally:
            self._probing.discard(instance)
