"""The runtime on the bus: carries a message to an agent and its answer back, and keeps both."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from pydantic import Field

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import encode_value
from lmos_mesh.directory import Directory
from lmos_mesh.errors import (
    AgentNotFound,
    Conflict,
    MeshError,
    NotFound,
    Unavailable,
)
from lmos_mesh.invocation import Circumstances
from lmos_mesh.membership import ThingKey
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    DECIDE,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    Answer,
    CancelTurn,
    Conversation,
    ConversationForgotten,
    Converse,
    Decide,
    Decision,
    ForgetConversation,
    GetConversation,
    Turn,
    TurnCancelled,
    Utterance,
)
from lmos_mesh.reply_stream import Patience
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.settings import Settings
from lmos_mesh.things import Capability
from lmos_mesh_runtime.asking import ACK_S, Ask, Asker
from lmos_mesh_runtime.conversation import (
    CONVERSATIONS,
    HISTORY,
    Again,
    Begin,
    Record,
    Running,
    Wait,
    all_turns,
    answer_of,
    ask_back,
    begin,
    error_of,
    finish,
    history_of,
    said_before,
)

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_POLL_S = 0.02
_POLL_MOST_S = 0.25
_CHOICES = 5
_STORE_AGAIN_S = (0.1, 0.3, 1.0, 2.0)


class RuntimeSettings(Settings):
    """Settings of the runtime.

    Attributes:
        runtime_turn_timeout_s: How long a turn may take if the caller sets no deadline.
        runtime_idle_timeout_s: How long an agent may be silent in mid-answer.
        runtime_concurrency: How many turns one replica carries at a time.
    """

    runtime_turn_timeout_s: float = Field(default=300.0, gt=0)
    runtime_idle_timeout_s: float = Field(default=30.0, gt=0)
    runtime_concurrency: int = Field(default=1024, ge=1)


@dataclass(slots=True)
class _Held:
    """A turn that this replica carries, and where it is kept."""

    key: str
    record: Record
    revision: int
    turn: Turn


class Runtime:
    """Carries conversations. It holds none: kill it between turns and nothing is lost."""

    def __init__(
        self, settings: RuntimeSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the runtime's endpoints until cancelled."""
        self._bus = bus
        self._store = bus.transport.key_value(CONVERSATIONS)
        self._history = bus.transport.stream(HISTORY)
        self._directory = Directory(bus)
        self._asker = Asker(bus, self._directory.membership)
        self._directory.on_change(self._asker.lost)
        await self._directory.follow()
        await bus.serve(
            "runtime",
            [
                route(CONVERSE, self.converse),
                route(GET_CONVERSATION, self.conversation),
                route(CANCEL_TURN, self.cancel),
                route(FORGET_CONVERSATION, self.forget),
            ],
            concurrency=self._settings.runtime_concurrency,
        )
        await announce_service(
            bus,
            "runtime",
            "Carries conversations to their answers",
            ["converse", "conversation", "cancel", "forget"],
        )
        ready()
        await run_forever()

    # -- a turn --

    async def converse(self, request: Converse, call: Call) -> Answer:
        """Answer a message.

        Raises:
            AgentNotFound: The agent that the caller names is not there.
            Conflict: Another turn of the conversation was still running at the deadline.
            MeshError: The agent failed, or died and the answer cannot be begun anew.
        """
        conversation = request.conversation or _new_id("c")
        call.notes["conversation"] = conversation
        turn = Turn(
            turn=request.turn or _new_id("t"),
            message=request.message,
            began=self._clock(),
            user=request.user or "",
        )
        if not request.store:
            answered = await self._answer(request, call, turn, conversation, request.history)
            return answered[0]
        claimed = await self._claim(request, call, turn, conversation)
        if isinstance(claimed, Turn):
            return await self._repeat(claimed, call, conversation)
        history = said_before(claimed.record.turns)
        try:
            answer, ended = await self._answer(request, call, turn, conversation, history)
        except asyncio.CancelledError:
            await self._see_through(self._end_quietly(claimed, call, {"state": "cancelled"}))
            raise
        except MeshError as error:
            await self._see_through(self._end_failed(claimed, call, error))
            raise
        except Exception:
            await self._see_through(self._end_quietly(claimed, call, {"state": "failed"}))
            raise
        failure = await self._see_through(self._end_answered(claimed, call, ended))
        if failure is not None:
            raise failure
        return answer

    async def _see_through(self, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
        """Have it done to its end, also if the turn is called off meanwhile.

        A turn that is begun in the store and not ended there keeps the next one waiting.
        """
        task = self._bus.spawn(work)
        return None if task is None else cast("ResultT", await asyncio.shield(task))

    async def _answer(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        conversation: str,
        history: Sequence[Utterance],
    ) -> tuple[Answer, Turn]:
        decision = await self._decide(request, call, history)
        await call.send("status", {"state": "routed", "decision": decision.model_dump()})
        if decision.outcome != "routed":
            choices = [
                (one.capability_name or one.capability, one.agent)
                for one in decision.candidates[:_CHOICES]
            ]
            text = ask_back(choices)
            await call.send("delta", text)
            ended = turn.model_copy(
                update={
                    "state": "done",
                    "answer": text,
                    "asked_back": True,
                    "ended": self._clock(),
                }
            )
            return self._shown(ended, conversation, decision), ended
        ask = self._ask(request, call, turn, conversation, history, decision)
        text = await self._asker.ask(ask)
        ended = turn.model_copy(
            update={
                "state": "done",
                "answer": text,
                "agent": decision.agent,
                "subset": decision.subset,
                "capability": ask.capability.id,
                "instance": ask.instance,
                "attempts": ask.attempts,
                "ended": self._clock(),
            }
        )
        return self._shown(ended, conversation, decision), ended

    @staticmethod
    def _shown(turn: Turn, conversation: str, decision: Decision) -> Answer:
        return answer_of(turn, conversation).model_copy(update={"decision": decision})

    async def _decide(
        self, request: Converse, call: Call, history: Sequence[Utterance]
    ) -> Decision:
        return await self._bus.call(
            DECIDE,
            Decide(
                message=request.message,
                history=tuple(history[-10:]),
                channel=request.channel,
                subset=request.subset,
                method="explicit" if request.agent else request.method or "vector",
                agent=request.agent,
            ),
            tenant=call.tenant,
        )

    def _ask(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        conversation: str,
        history: Sequence[Utterance],
        decision: Decision,
    ) -> Ask:
        key = ThingKey(call.tenant, decision.agent, decision.subset)
        entered = self._directory.membership.get(key)
        known = entered.thing.capabilities if entered else ()
        capability = next(
            (one for one in known if one.id == decision.capability),
            known[0] if known else Capability(id=decision.capability),
        )
        if entered is None:
            raise AgentNotFound(f"agent {key.name!r} ({key.subset}) has just left")
        remaining_s = call.remaining_s
        total_s = self._settings.runtime_turn_timeout_s
        return Ask(
            key=key,
            capability=capability,
            circumstances=Circumstances(
                message=request.message,
                conversation=conversation,
                turn=turn.turn,
                channel=request.channel,
                user=request.user or "",
                history=tuple(history),
            ),
            task=f"{conversation}.{turn.turn}.{call.task}",
            restarts=request.restarts or not call.streaming,
            send=call.send,
            patience=Patience(
                ACK_S,
                self._settings.runtime_idle_timeout_s,
                total_s if remaining_s is None else min(total_s, remaining_s),
            ),
        )

    async def _repeat(self, turn: Turn, call: Call, conversation: str) -> Answer:
        """The same turn again gives the same answer."""
        if turn.answer:
            await call.send("delta", turn.answer)
        return answer_of(turn, conversation)

    # -- what is kept --

    async def _claim(
        self, request: Converse, call: Call, turn: Turn, conversation: str
    ) -> _Held | Turn:
        """Make the turn the running one, waiting for the one before it; or find it done.

        Raises:
            Conflict: The one before it was still running at the deadline.
        """
        key = subjects.key(call.tenant, conversation)
        limit_s = self._settings.runtime_turn_timeout_s
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
                holder_is_dead=holder_is_dead,
            )
            if isinstance(outcome, Again):
                return outcome.turn
            if isinstance(outcome, Begin):
                expected = stored.revision if stored else 0
                held = await self._begin(_Held(key, outcome.record, expected, turn), call)
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

    async def _begin(self, held: _Held, call: Call) -> _Held | None:
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
        if isinstance(outcome, MeshError):
            raise outcome
        return cast("_Held", outcome)

    async def _store_begin(self, held: _Held) -> _Held | MeshError:
        try:
            value = held.record.model_dump_json().encode()
            revision = await self._store.put(held.key, value, expected=held.revision)
        except MeshError as error:
            return error
        return replace(held, revision=revision)

    async def _end_begun(self, storing: "asyncio.Task[_Held | MeshError]", call: Call) -> None:
        outcome = await storing
        if isinstance(outcome, _Held):
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

    async def _end(self, held: _Held, tenant: str, ended: Turn) -> None:
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

    async def _end_answered(self, held: _Held, call: Call, ended: Turn) -> MeshError | None:
        try:
            await self._end(held, call.tenant, ended)
        except MeshError as error:
            # Too large to be kept, most likely.
            await self._end_failed(held, call, error)
            return error
        return None

    async def _end_failed(self, held: _Held, call: Call, error: MeshError) -> None:
        problem = error_of(error.problem())
        await self._end_quietly(held, call, {"state": "failed", "error": problem})

    async def _end_quietly(self, held: _Held, call: Call, outcome: dict[str, Any]) -> None:
        """Store an end that is not the caller's concern."""
        ended = held.turn.model_copy(update={"ended": self._clock(), **outcome})
        try:
            async with asyncio.timeout(2.0):
                await self._end(held, call.tenant, ended)
        except (MeshError, TimeoutError) as exc:
            logger.warning("could not store the end of a turn: %s", exc)

    # -- conversations --

    async def conversation(self, request: GetConversation, call: Call) -> Conversation:
        """All turns of a conversation.

        Raises:
            NotFound: There is none of that id.
        """
        record, _ = await self._known(request.conversation, call)
        older: tuple[Turn, ...] = ()
        if record.archived:
            subject = history_of(call.tenant, request.conversation)
            kept = await self._history.read(subject, limit=10_000)
            older = tuple(Turn.model_validate_json(packet.payload) for packet in kept)
        return Conversation(
            conversation=record.conversation,
            channel=record.channel,
            turns=all_turns(older, record),
        )

    async def cancel(self, request: CancelTurn, call: Call) -> TurnCancelled:
        """Call off a running turn.

        Raises:
            NotFound: There is no such conversation, or no such turn is running in it.
        """
        record, _ = await self._known(request.conversation, call)
        running = record.running
        if running is None or request.turn not in (None, running.turn):
            named = f"turn {request.turn!r}" if request.turn else "no turn"
            raise NotFound(
                f"{named} is {'not ' if request.turn else ''}running in conversation "
                f"{request.conversation!r}"
            )
        subject = subjects.instance(call.tenant, running.holder, "cancel")
        try:
            await self._bus.request(subject, encode_value({"task": running.task}))
        except (Unavailable, NotFound):
            logger.info("turn %s was running nowhere any more", running.turn)
        return TurnCancelled(conversation=request.conversation, turn=running.turn)

    async def forget(self, request: ForgetConversation, call: Call) -> ConversationForgotten:
        """Erase a conversation.

        Raises:
            NotFound: There is none of that id.
        """
        _, key = await self._known(request.conversation, call)
        # In this order, so that it can be repeated if the store fails between the two.
        await self._history.erase(history_of(call.tenant, request.conversation))
        await self._store.delete(key)
        return ConversationForgotten(conversation=request.conversation)

    async def _known(self, conversation: str, call: Call) -> tuple[Record, str]:
        key = subjects.key(call.tenant, conversation)
        stored = await self._store.get(key)
        if stored is None:
            raise NotFound(f"conversation {conversation!r} does not exist")
        return Record.model_validate_json(stored.value), key


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(8)}"
