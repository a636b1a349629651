"""Turns as they are kept: claimed by compare-and-set, ended whatever happens meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import AgentFailed, Conflict, MeshError, TooLarge, Unavailable
from lmos_mesh.messages import Converse, Turn
from lmos_mesh.transport import KeyValue, Stream
from lmos_mesh.weights import Side
from lmos_mesh_runtime.conversation import (
    Again,
    Begin,
    Record,
    Running,
    Wait,
    begin,
    error_of,
    finish,
    history_of,
)

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_POLL_S = 0.02
_POLL_MOST_S = 0.25
_STORE_AGAIN_S = (0.1, 0.3, 1.0, 2.0)


@dataclass(slots=True)
class Held:
    """A turn that this replica carries, and where it is kept."""

    key: str
    record: Record
    revision: int
    turn: Turn


class Turns:
    """The turns that this replica carries, in the store that all replicas share."""

    def __init__(
        self,
        bus: Bus,
        store: KeyValue,
        history: Stream,
        *,
        turn_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._store = store
        self._history = history
        self._turn_timeout_s = turn_timeout_s
        self._clock = clock

    async def claim(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        conversation: str,
        side_of: Callable[[Record | None], Side | None],
    ) -> Held | Turn:
        """Make the turn the running one, waiting for the one before it; or find it done.

        Args:
            request: The message.
            call: Who asks.
            turn: The message as a running turn.
            conversation: Its id.
            side_of: Which release line carries the conversation from now on.

        Raises:
            Conflict: The one before it was still running at the deadline.
        """
        key = subjects.key(call.tenant, conversation)
        limit_s = self._turn_timeout_s
        until = call.deadline or self._clock() + limit_s
        running = Running(
            turn=turn.turn,
            holder=self._bus.instance,
            task=call.task,
            until=min(until, self._clock() + limit_s) + 1.0,
        )
        stored = None if request.conversation is None else await self._store.get(key)
        wait_s, dead = _POLL_S, ""
        while True:
            record = Record.model_validate_json(stored.value) if stored else None
            holder_is_dead = bool(record and record.running and record.running.holder == dead)
            outcome = begin(
                record,
                turn,
                running,
                conversation=conversation,
                channel=request.channel,
                now=self._clock(),
                side=side_of(record),
                holder_is_dead=holder_is_dead,
            )
            if isinstance(outcome, Again):
                return outcome.turn
            if isinstance(outcome, Begin):
                expected = stored.revision if stored else 0
                held = await self._begin(Held(key, outcome.record, expected, turn), call)
                if held is not None:
                    return held
                stored = await self._store.get(key)
                continue
            if self._clock() + wait_s >= until - 0.05:
                raise Conflict(
                    f"conversation {conversation!r} is still answering turn "
                    f"{outcome.running.turn!r}",
                    hint="wait for it, or cancel it",
                )
            dead = await self._if_dead(outcome)
            if not dead:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _POLL_MOST_S)
            stored = await self._store.get(key)

    async def _begin(self, held: Held, call: Call) -> Held | None:
        """Store that the turn runs, in place of revision `held.revision`; None if it has changed.

        If it is called off at that moment it is stored or not; once that is known, it is ended.
        """
        storing = self._bus.spawn(self._store_begin(held))
        if storing is None:
            raise Unavailable(f"instance {self._bus.instance!r} is stopping", hint="try again")
        try:
            outcome = await asyncio.shield(storing)
        except asyncio.CancelledError:
            self._bus.spawn(self._end_begun(storing, call))
            raise
        if isinstance(outcome, Conflict):
            return None
        if isinstance(outcome, TooLarge):
            size, limit = outcome.details.get("size"), outcome.details.get("limit")
            raise TooLarge(
                f"the message takes {size} bytes where its conversation is kept, and {limit} is "
                "the limit",
                hint="send less",
                limit=limit,
            ) from outcome
        if isinstance(outcome, MeshError):
            raise outcome
        return cast("Held", outcome)

    async def _store_begin(self, held: Held) -> Held | MeshError:
        try:
            value = held.record.model_dump_json().encode()
            revision = await self._store.put(held.key, value, expected=held.revision)
        except MeshError as error:
            return error
        return replace(held, revision=revision)

    async def _end_begun(self, storing: "asyncio.Task[Held | MeshError]", call: Call) -> None:
        outcome = await storing
        if isinstance(outcome, Held):
            await self._end_quietly(outcome, call, {"state": "cancelled"})

    async def _if_dead(self, waiting: Wait) -> str:
        """The holder of the running turn, if nobody answers for it any more."""
        holder = waiting.running.holder
        if holder == self._bus.instance:
            return ""
        try:
            await self._bus.transport.request(
                subjects.instance(self._bus.tenant, holder, "status"), b"", timeout_s=1.0
            )
        except Unavailable:
            return holder if self._bus.transport.connected else ""
        except MeshError:
            return ""
        return ""

    async def _end(self, held: Held, tenant: str, ended: Turn) -> None:
        """Store the turn's end; whoever cancelled or erased it meanwhile was first."""
        record, evicted = finish(held.record, ended)
        for one in evicted:
            await self._history.append(
                history_of(tenant, record.conversation),
                one.model_dump_json().encode(),
                # A conversation may be forgotten and begin anew with the same ids.
                message_id=f"{held.key}.{held.revision}.{one.turn}",
            )
        value = record.model_dump_json().encode()
        for wait_s in (*_STORE_AGAIN_S, None):
            try:
                await self._store.put(held.key, value, expected=held.revision)
            except Conflict:
                logger.info("conversation %s changed while it was answered", record.conversation)
                if evicted:
                    await self._take_back(held.key, tenant, record.conversation)
            except Unavailable:
                # Until it is stored the turn counts as running, and the next one waits for it.
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
                continue
            return

    async def _take_back(self, key: str, tenant: str, conversation: str) -> None:
        """Erase what was put aside for a conversation that was forgotten meanwhile."""
        stored = await self._store.get(key)
        if stored is None or not Record.model_validate_json(stored.value).archived:
            await self._history.erase(history_of(tenant, conversation))

    async def answered(self, held: Held, call: Call, ended: Turn) -> None:
        """Store a turn's answer.

        Raises:
            MeshError: It could not be stored; the turn is stored as failed, if that can be.
        """
        error = await self._see_through(self._end_answered(held, call, ended))
        if error is not None:
            raise error

    async def failed(self, held: Held, call: Call, error: MeshError | None = None) -> None:
        """Store that a turn has failed, and why."""
        await self._see_through(self._end_failed(held, call, error))

    async def cancelled(self, held: Held, call: Call) -> None:
        """Store that a turn was called off."""
        await self._see_through(self._end_quietly(held, call, {"state": "cancelled"}))

    async def _end_answered(self, held: Held, call: Call, ended: Turn) -> MeshError | None:
        try:
            await self._end(held, call.tenant, ended)
        except TooLarge as exc:
            size, limit = exc.details.get("size"), exc.details.get("limit")
            error = AgentFailed(
                f"the answer of agent {ended.agent!r} takes {size} bytes where its conversation "
                f"is kept, and {limit} is the limit",
                hint="ask for less",
                limit=limit,
            )
            await self._end_failed(held, call, error)
            return error
        except MeshError as error:
            await self._end_failed(held, call, error)
            return error
        return None

    async def _end_failed(self, held: Held, call: Call, error: MeshError | None) -> None:
        problem = error_of(error.problem()) if error else None
        await self._end_quietly(held, call, {"state": "failed", "error": problem})

    async def _end_quietly(self, held: Held, call: Call, outcome: dict[str, Any]) -> None:
        """Store an end that is not the caller's concern."""
        ended = held.turn.model_copy(update={"ended": self._clock(), **outcome})
        try:
            async with asyncio.timeout(2.0):
                await self._end(held, call.tenant, ended)
        except (MeshError, TimeoutError) as exc:
            logger.warning("could not store the end of a turn: %s", exc)

    async def _see_through(self, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
        """Have it done to its end, also if the turn is called off meanwhile.

        A turn that is begun in the store and not ended there keeps the next one waiting.
        """
        task = self._bus.spawn(work)
        return None if task is None else cast("ResultT", await asyncio.shield(task))
