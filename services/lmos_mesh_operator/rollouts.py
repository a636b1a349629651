"""Steps the rollouts of a mesh while this operator leads, and does what people tell them.

What is decided is decided in `stepping` and `judging`. Every status is written in place of the one
that was read, so two operators that both think that they lead cannot fight: one of them is late.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lmos_mesh import audit, subjects, turn_reports
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import Conflict, MeshError, NotFound
from lmos_mesh.events import (
    EVENTS,
    ROLLOUT,
    CloudEvent,
    rfc3339,
    source_of,
    told_at,
    unix_time,
)
from lmos_mesh.json_faults import Fault
from lmos_mesh.messages import FoundResource, SteerRollout
from lmos_mesh.resource_index import Kept, ResourceKey, key_of, shown
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRollout, Resource, RolloutStatus
from lmos_mesh.weights import RUNNING, name_of
from lmos_mesh_operator.looking import Seen, look, unwatched_of, watched_of
from lmos_mesh_operator.plans import Channels, place_of, plan_of, unready
from lmos_mesh_operator.stepping import KINDS, Kind, look_due, next_step, reason_of, steer
from lmos_mesh_operator.watched import Watching

logger = logging.getLogger(__name__)

TICK_S = 0.25
KNOWN_WITHIN_S = 2.0
TELL_AGAIN_S = 60.0
"""How young the last step is that a new leader tells again: the old one may not have come to it."""

_KIND = "ChannelRollout"
_STEERED_AGAIN = 10
_STEPS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What was written, what it was before, and whether it may have been told already."""

    rollout: ChannelRollout
    before: RolloutStatus | None
    kind: Kind | None
    reason: str = ""
    by_hand: str = ""
    caller: str = ""
    again: bool = False


class Rollouts:
    """The rollouts of every tenant.

    Args:
        bus: Where events are told and turns are read.
        applied: The resources as they are; it is followed by whoever made it.
        store: Where statuses are written.
        is_leader: Whether this operator acts. Without it statuses are only read.
        clock: Unix seconds.
        tick_s: How often to look what is due.
    """

    def __init__(
        self,
        bus: Bus,
        applied: Applied,
        store: ResourceStore,
        is_leader: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.time,
        tick_s: float = TICK_S,
    ) -> None:
        self._bus = bus
        self._applied = applied
        self._store = store
        self._is_leader = is_leader
        self._clock = clock
        self._tick_s = tick_s
        self._watching = Watching(bus, clock)
        self._changed = asyncio.Event()
        self._running: dict[ResourceKey, ChannelRollout] = {}
        self._led = False
        self._failed = False
        applied.on_change(self._on_change)

    async def run(self) -> None:
        """Step whatever is due, for as long as we lead. Cancelling is safe at any moment."""
        await turn_reports.prepare(self._bus)
        try:
            while True:
                changed = self._changed.is_set() or self._failed
                self._failed = False
                self._changed.clear()
                await self._act_if_leading(changed=changed)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._tick_s):
                        await self._changed.wait()
        finally:
            self._led = False
            await self._watching.stop()

    async def steer(self, request: SteerRollout, call: Call) -> FoundResource:
        """Do what a person says; any operator can, whoever leads.

        Raises:
            NotFound: The tenant has no such rollout.
            Conflict: That cannot be done now; it says why, and what can.
        """
        key = ResourceKey(_KIND, request.namespace, request.name)
        for _ in range(_STEERED_AGAIN):
            kept = await self._store.get(key)
            rollout = _rollout_of(kept)
            if rollout is None or rollout.tenant not in ("", call.tenant):
                raise NotFound(
                    f"no rollout {request.name!r} in namespace {request.namespace!r}",
                    hint="`lmos get rollouts` lists them",
                )
            stepped = steer(rollout, self._channels(rollout), request, now=self._clock())
            try:
                written = await self._write(rollout, stepped.status)
            except Conflict:
                continue  # it was stepped meanwhile, and is another one now
            await self._tell(
                _Done(
                    rollout=written,
                    before=rollout.status,
                    kind=stepped.kind,
                    reason=request.reason,
                    by_hand=request.action,
                    caller=call.caller,
                )
            )
            return FoundResource(
                resource=shown(written), revision=int(written.metadata.resource_version)
            )
        raise Conflict(f"rollout {request.name!r} changes all the time", hint="try again")

    # -- leading --

    def _on_change(self, changed: Sequence[ResourceKey]) -> None:
        if any(key.kind in (_KIND, "Channel") for key in changed):
            self._changed.set()

    async def _act_if_leading(self, *, changed: bool) -> None:
        if not self._is_leader():
            if self._led:
                self._led = False
                self._running.clear()
                await self._watching.stop()
            return
        if changed or not self._led:
            rollouts = self._applied.of_kind(ChannelRollout)
        else:
            # Time alone changes nothing of the others.
            known = (self._applied.index.kept(key) for key in list(self._running))
            rollouts = [one for one in map(_rollout_of, known) if one is not None]
        if not self._led:
            self._led = True
            self._running.clear()
            for rollout in rollouts:
                await self._tell_again(rollout)
            # Of what has ended while nobody led, or just before the end of who did.
            await self._watching.clear(unwatched_of(rollouts))
        await self._note_deleted()
        for rollout in rollouts:
            self._note(rollout)
        try:
            await self._watching.watch(watched_of(rollouts))
        except MeshError as exc:
            logger.warning("cannot follow turns, trying again: %s", exc)
        for rollout in rollouts:
            await self._step_or_say(rollout)

    async def _step_or_say(self, rollout: ChannelRollout) -> None:
        """Step a rollout; what goes wrong with it stops no other, and is tried again."""
        try:
            await self._step(rollout)
        except Conflict:
            # Somebody else wrote it first: what they wrote is what is stepped next.
            return
        except MeshError as exc:
            logger.warning("cannot step rollout %s, trying again: %s", name_of(rollout), exc)
            self._failed = True
        except Exception:
            logger.exception("cannot step rollout %s", name_of(rollout))

    async def _step(self, rollout: ChannelRollout) -> None:
        """Everything that is due of a rollout."""
        for _ in range(_STEPS_AT_ONCE):
            now = self._clock()
            channels = self._channels(rollout)
            seen = await self._look(rollout, now) if look_due(rollout, now=now) else None
            stepped = next_step(
                rollout,
                channels,
                now=now,
                verdicts=seen.verdicts if seen else None,
                spent=seen.spent if seen else 0,
                compared=seen.compared if seen else None,
            )
            if stepped is None:
                return
            before = rollout.status
            rollout = await self._write(rollout, stepped.status)
            await self._tell(_Done(rollout=rollout, before=before, kind=stepped.kind))
            if stepped.kind is None:
                return  # it was only looked at, and nothing else is due

    async def _look(self, rollout: ChannelRollout, now: float) -> Seen | None:
        """Judge the canary by what both sides did; None if that cannot be read."""
        watched = await self._watching.window(rollout.tenant)
        if watched is None:
            return None
        # The first time it imports what it judges with, and the lease must be renewed meanwhile.
        return await asyncio.to_thread(look, rollout, watched, now=now)

    # -- reading and writing --

    def fault_of(self, resource: Resource, beside: Sequence[Channel] = ()) -> Fault | None:
        """Why a rollout cannot be, in view of the Channels that there are; None if it can.

        Args:
            resource: Of another kind than a rollout it is always fine.
            beside: Channels that are to be there by then, as they will be.
        """
        if not isinstance(resource, ChannelRollout):
            return None
        reason = unready(resource, self._channels(resource, beside))
        if reason is None or reason.phase != "Invalid":
            return None
        return {"field": place_of(resource.spec.strategy), "description": reason.message}

    def _channels(self, rollout: ChannelRollout, beside: Sequence[Channel] = ()) -> Channels:
        plan, namespace = plan_of(rollout.spec.strategy), rollout.metadata.namespace
        coming = {one.metadata.name: one for one in beside if one.metadata.namespace == namespace}

        def called(name: str) -> Channel | None:
            return coming.get(name) or self._applied.get(Channel, namespace, name)

        stable = called(plan.stable.name)
        return Channels(
            canary=called(plan.canary.name),
            stable=stable,
            busy=self._busy(rollout, stable) if stable is not None else "",
        )

    def _busy(self, rollout: ChannelRollout, stable: Channel) -> str:
        other = self._applied.rollout(stable.tenant, stable.channel)
        if other is None or other.status is None or other.status.phase not in RUNNING:
            return ""
        return "" if key_of(other) == key_of(rollout) else name_of(other)

    async def _write(self, rollout: ChannelRollout, status: RolloutStatus) -> ChannelRollout:
        """Write a status in place of the one that was read.

        Raises:
            Conflict: Another revision is there.
        """
        expected = int(rollout.metadata.resource_version or 0)
        changed = rollout.model_copy(update={"status": status})
        revision = await self._store.put(changed, expected=expected)
        await self._applied.until_known(key_of(rollout), revision, within_s=KNOWN_WITHIN_S)
        metadata = rollout.metadata.model_copy(update={"resource_version": str(revision)})
        return changed.model_copy(update={"metadata": metadata})

    # -- telling --

    async def _tell(self, done: _Done) -> None:
        """Tell what came to pass, and write it down; twice does no harm."""
        rollout, status = done.rollout, done.rollout.status
        if status is None:
            return
        self._note(rollout)
        if done.kind is None:
            return
        at = _told_at(status) or self._clock()
        name = name_of(rollout)
        if not done.again:
            logger.info("rollout %s: %s", name, status.message)
        data: dict[str, Any] = {
            "rollout": name,
            "channel": status.channel,
            "phase": status.phase,
            "step": status.step,
            "canary_weight": status.canary_weight,
            "canary_subset": status.canary_subset,
            "stable_subset": status.stable_subset,
            "message": status.message,
            "weight_before": done.before.canary_weight if done.before else 0,
        }
        if done.by_hand:
            data |= {"by_hand": done.by_hand, "reason": done.reason}
        if status.verdicts and done.kind in ("rolled_back", "stepped", "promoted", "paused"):
            data["verdicts"] = [one.model_dump(mode="json") for one in status.verdicts]
        if status.compared is not None:
            data["compared"] = status.compared.model_dump(mode="json")
        await self._publish(rollout.tenant, done, data, at=at)

    async def _publish(self, tenant: str, done: _Done, data: dict[str, Any], *, at: float) -> None:
        kind, name = done.kind, name_of(done.rollout)
        type = f"{ROLLOUT}{kind}"
        event = CloudEvent(
            id=f"rollout.{name}.{kind}.{at:.3f}",
            source=source_of(tenant, type),
            type=type,
            subject=name,
            time=rfc3339(at),
            data=data,
        )
        who = {"by": self._bus.instance, **audit.asked_by(done.caller)}
        record = {"at": at, **who, "what": kind, **data}
        try:
            # The same step told by the next leader is kept, and written down, once.
            await self._bus.transport.stream(EVENTS).append(
                told_at(tenant, type),
                event.body(),
                message_id=event.id,
                headers=event.to_headers(),
            )
            await self._bus.transport.stream(audit.AUDIT).append(
                subjects.audit(tenant, "rollout"),
                json.dumps(record).encode(),
                message_id=event.id,
            )
        except MeshError as exc:
            logger.warning("could not tell that rollout %s was %s: %s", name, kind, exc)

    async def _tell_again(self, rollout: ChannelRollout) -> None:
        """What the leader before us wrote and may not have told."""
        status = rollout.status
        if status is None or not status.conditions:
            return
        at = _told_at(status)
        if at is not None and self._clock() - at < TELL_AGAIN_S:
            kind = _kind_of(status)
            await self._tell(_Done(rollout=rollout, before=status, kind=kind, again=True))

    def _note(self, rollout: ChannelRollout) -> None:
        """Whether it runs, whoever began or ended it."""
        if rollout.status is not None and rollout.status.phase in RUNNING:
            self._running[key_of(rollout)] = rollout
        else:
            self._running.pop(key_of(rollout), None)

    async def _note_deleted(self) -> None:
        """A rollout that is deleted while it runs leaves its conversations to stable."""
        for key, rollout in list(self._running.items()):
            if self._applied.index.kept(key) is not None or rollout.status is None:
                continue
            del self._running[key]
            ended = rollout.status.model_copy(
                update={
                    "phase": "Aborted",
                    "canary_weight": 0,
                    "message": "aborted: the rollout was deleted",
                    "conditions": (),
                }
            )
            gone = rollout.model_copy(update={"status": ended})
            await self._tell(_Done(rollout=gone, before=rollout.status, kind="aborted"))


def _rollout_of(kept: Kept | None) -> ChannelRollout | None:
    if kept is None or not isinstance(kept.resource, ChannelRollout):
        return None
    metadata = kept.resource.metadata.model_copy(update={"resource_version": str(kept.revision)})
    return kept.resource.model_copy(update={"metadata": metadata})


def _told_at(status: RolloutStatus) -> float | None:
    """When the last step was."""
    return unix_time(status.conditions[0].last_transition_time) if status.conditions else None


def _kind_of(status: RolloutStatus) -> Kind | None:
    """What the last step was, as `stepping` notes it."""
    noted = status.conditions[0].reason
    return next((kind for kind in KINDS if reason_of(kind) == noted), None)
