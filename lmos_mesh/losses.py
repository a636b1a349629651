"""Which processes have died: told by the server, or found by asking those who are silent."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

from lmos_mesh import codec, subjects
from lmos_mesh.dispatch import Duties
from lmos_mesh.errors import MeshError, StreamBroken, Unavailable
from lmos_mesh.reply_stream import ReplyStream
from lmos_mesh.transport import Packet, Subscription

_PROBE_AFTER_S = 0.25
_SETTLE_S = 0.5
_RETURN_S = 2.0
"""How long after an outage of the bus others may still be on their way back to it."""

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
        # Whose death, or end of an answer, may have been told while the bus was lost: to nobody.
        self._missed: set[str] = set()
        self._returned_by = 0.0
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
        self._duties.transport.on_reconnect(self._on_reconnect)
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
        if not self.told:
            self._probe_later()

    def unwatch(self, stream: ReplyStream, instance: str) -> None:
        """See `reply_stream.Watcher`."""
        streams = self._watched.get(instance)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._watched[instance]
                self._missed.discard(instance)

    def lose(self, instance: str, reason: str) -> None:
        """A process has died: end what waits for it, and what was done for it."""
        self._missed.discard(instance)
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

    def _on_reconnect(self) -> None:
        self._returned_by = asyncio.get_running_loop().time() + _RETURN_S
        self._missed.update(self._watched)
        self._probe_later()

    def _probe_later(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_PROBE_AFTER_S, self._probe)

    def _probe(self) -> None:
        """Ask those who are silent and of whom no event tells, or may have told."""
        self._timer = None
        asked = self._missed if self.told else set(self._watched)
        if not asked:
            return
        for instance in asked - self._probing:
            streams = self._watched[instance]
            if any(stream.silent_s >= _PROBE_AFTER_S for stream in streams):
                self._probing.add(instance)
                self._spawn(self._ask(instance, next(iter(streams)).tenant))
        self._probe_later()

    async def _ask(self, instance: str, tenant: str) -> None:
        try:
            await self._status(instance, tenant)
            if instance in self._missed:
                await self._ask_for_ends(instance)
        except Unavailable:
            returned = asyncio.get_running_loop().time() >= self._returned_by
            if self._duties.transport.connected and returned:
                self.lose(instance, "does not answer any more")
        except MeshError:
            pass  # slow is not dead; its lease decides
        finally:
            self._probing.discard(instance)

    async def _ask_for_ends(self, instance: str) -> None:
        """The last frame may have been sent while we could not hear it, by one who is well."""
        returned_by = self._returned_by
        for stream in list(self._watched.get(instance, ())):
            known = await self._status(instance, stream.tenant, task=stream.task)
            # Frames and this reply come in order: an end that is not here by now will not come.
            if known.get("running") is False:
                stream.break_off(StreamBroken(f"the end of {stream.subject!r} was lost"))
        if returned_by == self._returned_by:  # else it was lost once more
            self._missed.discard(instance)

    async def _status(self, instance: str, tenant: str, *, task: str = "") -> dict[str, Any]:
        packet = await self._duties.transport.request(
            subjects.instance(tenant, instance, "status"),
            codec.encode_value({"task": task}) if task else b"",
            timeout_s=_SETTLE_S,
        )
        known = codec.decode_value(packet.payload)
        return cast("dict[str, Any]", known) if isinstance(known, dict) else {}
