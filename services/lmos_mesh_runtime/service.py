"""The runtime on the bus: carries a message to an agent and its answer back, and keeps both."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from lmos_mesh import subjects, turn_reports
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.codec import encode_value
from lmos_mesh.directory import Directory
from lmos_mesh.errors import MeshError, NotFound, Unavailable
from lmos_mesh.messages import (
    CANCEL_TURN,
    CONVERSE,
    FORGET_CONVERSATION,
    GET_CONVERSATION,
    Answer,
    CancelTurn,
    Conversation,
    ConversationForgotten,
    Converse,
    ForgetConversation,
    GetConversation,
    Turn,
    TurnCancelled,
)
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.weights import Side
from lmos_mesh_runtime.carrying import Carrier
from lmos_mesh_runtime.conversation import (
    CONVERSATIONS,
    HISTORY,
    Record,
    all_turns,
    answer_of,
    history_of,
    said_before,
)
from lmos_mesh_runtime.routing import Ways, drawn_by
from lmos_mesh_runtime.settings import RuntimeSettings
from lmos_mesh_runtime.turns import Turns

logger = logging.getLogger(__name__)

__all__ = ["Runtime", "RuntimeSettings"]


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
        applied = Applied(bus)
        self._ways = Ways(applied.index)
        applied.on_change(lambda _: self._ways.forget())
        self._carrier = Carrier(bus, self._settings, self._directory, self._ways, clock=self._clock)
        await self._directory.follow()
        await applied.follow()
        if self._settings.runtime_reports:
            await turn_reports.prepare(bus)
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
        try:
            await run_forever()
        finally:
            self._carrier.close()

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
            named = drawn_by(request, conversation, request.history)
            side = self._ways.side(request, call.tenant, named, None)
            way = self._ways.way(request, call.tenant, side)
            answer, _ = await self._carrier.carry(
                request, call, turn, way, conversation=conversation, history=request.history
            )
            return answer

        def side_of(record: Record | None) -> Side | None:
            return self._side(request, call.tenant, conversation, record)

        claimed = await self._turns.claim(request, call, turn, conversation, side_of)
        if isinstance(claimed, Turn):
            return await self._repeat(claimed, call, conversation)
        way = self._ways.way(request, call.tenant, claimed.record.side)
        history = said_before(claimed.record.turns)
        try:
            answer, ended = await self._carrier.carry(
                request, call, turn, way, conversation=conversation, history=history
            )
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

    def _side(
        self, request: Converse, tenant: str, conversation: str, record: Record | None
    ) -> Side | None:
        """Which release line carries a conversation; one that changes channels is drawn anew."""
        if record is None or record.channel != request.channel:
            return self._ways.side(request, tenant, conversation, None)
        # One without a side is older than rollouts.
        kept = record.side or Side(subset=self._ways.usual(tenant, request.channel))
        began = max((one.began for one in record.turns), default=0.0)
        age_s = self._clock() - began
        return self._ways.side(request, tenant, conversation, kept, age_s=age_s)

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
