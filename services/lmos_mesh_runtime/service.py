"""The runtime on the bus: carries a message to an agent and its answer back, and keeps both."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from pydantic import Field

from lmos_mesh import subjects
from lmos_mesh.bus import RESTART_S, Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import encode_value
from lmos_mesh.directory import Directory
from lmos_mesh.errors import (
    AgentNotFound,
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
    Record,
    all_turns,
    answer_of,
    ask_back,
    history_of,
    likely,
    said_before,
)
from lmos_mesh_runtime.turns import Turns

logger = logging.getLogger(__name__)

_CHOICES = 5


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
        self._turns = Turns(
            bus,
            self._store,
            self._history,
            turn_timeout_s=self._settings.runtime_turn_timeout_s,
            clock=self._clock,
        )
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
        claimed = await self._turns.claim(request, call, turn, conversation)
        if isinstance(claimed, Turn):
            return await self._repeat(claimed, call, conversation)
        history = said_before(claimed.record.turns)
        try:
            answer, ended = await self._answer(request, call, turn, conversation, history)
        except asyncio.CancelledError:
            await self._turns.cancelled(claimed, call)
            raise
        except MeshError as error:
            await self._turns.failed(claimed, call, error)
            raise
        except Exception:
            await self._turns.failed(claimed, call)
            raise
        await self._turns.answered(claimed, call, ended)
        return answer

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
                for one in likely(decision)[:_CHOICES]
            ]
            text = ask_back(choices, out_of_scope=decision.outcome == "out_of_scope")
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
                method="explicit" if request.agent else request.method,
                agent=request.agent,
            ),
            tenant=call.tenant,
            nobody_s=RESTART_S,
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
