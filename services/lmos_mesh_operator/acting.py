"""Does what the mesh needs to match what people applied, while this operator leads.

Every write says what it replaces. Whoever is late writes nothing, looks again, and finds it done.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from lmos_mesh import audit
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.errors import Conflict, MeshError
from lmos_mesh.events import (
    CHANNEL_RESOLVED,
    CHANNEL_UNRESOLVED,
    NAMES,
    CloudEvent,
    rfc3339,
    source_of,
    told_at,
)
from lmos_mesh.resource_index import Kept, ResourceKey
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting, ChannelStatus
from lmos_mesh_operator.planning import Planner
from lmos_mesh_operator.reconcile import Action, DropRouting, PutRouting, PutStatus
from lmos_mesh_operator.rewiring import why_rewired

logger = logging.getLogger(__name__)


_AT_A_TIME = 100
_WRITERS = 16
_KNOWN_S = 2.0
_RETRY_S = 0.25
_RETRY_LATE_S = 5.0
# A whole mesh that starts: agents come a little later than the operator.
_PATIENCE_S = 5.0


class Acting:
    """What is to be looked at, and whoever does what it needs."""

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        planner: Planner,
        is_leader: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._applied = applied
        self._planner = planner
        self._store = ResourceStore(bus)
        self._is_leader = is_leader
        self._clock = clock
        self._due: set[ResourceKey] = set()
        self._some = asyncio.Event()
        self._writers = asyncio.Semaphore(_WRITERS)
        self._patient_until = asyncio.get_running_loop().time() + _PATIENCE_S

    def look_at(self, keys: Iterable[ResourceKey]) -> None:
        """Something has changed that these resources may depend on."""
        self._due.update(keys)
        if self._due:
            self._some.set()

    async def run(self) -> None:
        """Do what everything needs, and from then on what changes. Cancelling is safe."""
        self.look_at(self._planner.everything())
        while True:
            await self._some.wait()
            self._some.clear()
            while self._due:
                if not self._is_leader():
                    await asyncio.sleep(_RETRY_S)
                    continue
                await self._act(self._some_due())
                await asyncio.sleep(0)

    def _some_due(self) -> list[ResourceKey]:
        """As many as may be looked at before others get a turn."""
        if len(self._due) <= _AT_A_TIME:
            due, self._due = self._due, set()
            return list(due)
        return [self._due.pop() for _ in range(_AT_A_TIME)]

    async def _act(self, keys: list[ResourceKey]) -> None:
        actions = self._planner.plan(keys, now=rfc3339(self._clock()))
        if len(actions) == 1:
            await self._do(actions[0])
            return
        async with asyncio.TaskGroup() as tasks:
            for action in actions:
                tasks.create_task(self._do(action))

    async def _do(self, action: Action) -> None:
        async with self._writers:
            if not self._is_leader() or self._is_premature(action):
                return
            before = self._applied.index.kept(action.key)
            try:
                revision = await self._write(action)
                # What is planned next must see what was written, or it is written twice.
                await self._applied.until_known(action.key, revision, within_s=_KNOWN_S)
            except Conflict:
                logger.debug("%s was written by somebody else first", action.key)
                self._again(action)
            except MeshError as exc:
                logger.warning("cannot write %s, trying again: %s", action.key, exc)
                self._again(action, after_s=_RETRY_S if exc.retryable else _RETRY_LATE_S)
            else:
                self._tell(action, revision, before)

    def _is_premature(self, action: Action) -> bool:
        """Whether we have just started, and know of no agent that a resolved Channel has lost."""
        if not isinstance(action, PutStatus) or action.key in self._planner.resolved:
            return False
        loop = asyncio.get_running_loop()
        left_s = self._patient_until - loop.time()
        known = self._applied.get(Channel, action.key.namespace, action.key.name)
        if left_s <= 0 or known is None or known.status is None:
            return False
        if known.status.resolve_status != "RESOLVED":
            return False
        loop.call_later(left_s + 0.01, self.look_at, [action.key])
        return True

    def _again(self, action: Action, *, after_s: float = _RETRY_S) -> None:
        keys = self._planner.resource_changed(action.key)
        asyncio.get_running_loop().call_later(after_s, self.look_at, keys)

    async def _write(self, action: Action) -> int:
        match action:
            case PutRouting(routing=routing, expected=expected):
                return await self._store.put(routing, expected=expected)
            case PutStatus(resource=resource, expected=expected):
                return await self._store.put(resource, expected=expected)
            case DropRouting(key=key, expected=expected):
                return await self._store.delete(key, expected=expected)

    def _tell(self, action: Action, revision: int, before: Kept | None) -> None:
        if isinstance(action, PutRouting):
            groups = action.routing.spec.capability_groups
            logger.info(
                "%s is wired to %s",
                action.key,
                ", ".join(group.name for group in groups) or "nobody",
            )
            was = before.resource if before is not None else None
            told = {
                "agents": [group.name for group in groups],
                "revision": revision,
                "message": why_rewired(
                    was if isinstance(was, ChannelRouting) else None, action.routing
                ),
            }
            self._audit(action.routing.tenant, "routing_activated", action.key, told)
        elif isinstance(action, DropRouting):
            logger.info("%s is dropped", action.key)
        elif action.turned and isinstance(action.resource, Channel):
            status = action.resource.status or ChannelStatus()
            self._tell_channel(action.key, action.resource, status, revision)

    def _tell_channel(
        self, key: ResourceKey, channel: Channel, status: ChannelStatus, revision: int
    ) -> None:
        resolved = status.resolve_status == "RESOLVED"
        logger.info("%s is %s: %s", key, "resolved" if resolved else "unresolved", status.message)
        at = self._clock()
        type = CHANNEL_RESOLVED if resolved else CHANNEL_UNRESOLVED
        event = CloudEvent(
            id=f"channel.{key.namespace}.{key.name}.{revision}",
            source=source_of(channel.tenant, type),
            type=type,
            subject=f"{key.namespace}/{key.name}",
            time=rfc3339(at),
            data={
                "namespace": key.namespace,
                "name": key.name,
                "channel": channel.channel,
                "subset": channel.subset,
                "routing_revision": status.routing_revision,
                "message": status.message,
                "missing": [
                    one.model_dump(mode="json", by_alias=True)
                    for one in status.unresolved_required_capabilities
                ],
            },
        )
        name = NAMES[type]
        try:
            self._bus.transport.publish(
                told_at(channel.tenant, type),
                event.body(),
                headers={**event.to_headers(), "Nats-Msg-Id": event.id},
            )
        except MeshError as exc:
            logger.warning("could not tell that %s is %s: %s", key, name, exc)
        self._audit(channel.tenant, name, key, {"message": status.message, "revision": revision})

    def _audit(self, tenant: str, what: str, key: ResourceKey, more: dict[str, Any]) -> None:
        told = {"kind": key.kind, "namespace": key.namespace, "name": key.name, **more}
        audit.write(self._bus, tenant, what, told)
