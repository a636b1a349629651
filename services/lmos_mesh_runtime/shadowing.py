"""Turns that are asked of another release line as well, so that its answers can be compared.

Nobody sees these answers and no turn waits for them: they begin when the user has an answer, only
so many run at a time, and what is too much is left out. What must not be done twice is not done.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmos_mesh import calls
from lmos_mesh.bus import Bus
from lmos_mesh.errors import HandedOver, MeshError
from lmos_mesh.messages import Converse, Decision, LeftOut, TurnReport, Utterance
from lmos_mesh_runtime.asking import Ask
from lmos_mesh_runtime.reporting import Relay, is_same
from lmos_mesh_runtime.routing import Mirrored, Way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrorable:
    """A turn that has been answered.

    Attributes:
        answer: What the user got.
        answered: Whether an agent gave it; else the mesh has asked back.
        handed_over: Whether one agent handed over to another.
        left_out: Why it is only counted, and nobody is asked; empty if it is asked.
        conversation: Its id.
        turn: Its id.
    """

    request: Converse
    way: Way
    conversation: str
    turn: str
    history: Sequence[Utterance]
    answer: str
    answered: bool
    handed_over: bool = False
    left_out: LeftOut = ""


Decide = Callable[[Converse, Way, Sequence[Utterance]], Awaitable[Decision]]
MakeAsk = Callable[[Mirrorable, Decision, Relay], Ask | None]
"""What is asked of an agent; None if it must not be done twice."""


class Shadows:
    """Asks for the answers that are only compared, and tells which turns nobody was asked for."""

    def __init__(
        self,
        bus: Bus,
        *,
        decide: Decide,
        make_ask: MakeAsk,
        ask: Callable[[Ask], Awaitable[str]],
        tell: Callable[[str, TurnReport], None],
        most: int,
    ) -> None:
        self._bus = bus
        self._decide = decide
        self._make_ask = make_ask
        self._ask = ask
        self._tell = tell
        self._most = most
        self._running = 0

    def mirror(self, turn: Mirrorable, to: Mirrored) -> None:
        """Begin to ask another release line the same; there is nothing to wait for."""
        turn = replace(turn, way=replace(turn.way, subset=to.subset, rollout=to.rollout))
        left_out = turn.left_out or ("busy" if self._running >= self._most else "")
        if left_out:
            self._tell_left_out(turn, left_out)
            return
        self._running += 1
        if self._bus.spawn(self._carry(turn), name="shadow") is None:
            self._running -= 1

    def _tell_left_out(self, turn: Mirrorable, why: LeftOut) -> None:
        relay = Relay(turn.way, _unheard, time.perf_counter)
        named: dict[str, Any] = {"conversation": turn.conversation, "turn": turn.turn}
        report = relay.report("cancelled", shadow=True, left_out=why, **named)
        self._tell(turn.way.tenant, report)

    async def _carry(self, turn: Mirrorable) -> None:
        # The user's turn is over, and its deadline is none of ours.
        calls.current.set(None)
        try:
            await self._compare(turn)
        except Exception:
            logger.exception("a turn could not be mirrored")
        finally:
            self._running -= 1

    async def _compare(self, turn: Mirrorable) -> None:
        relay = Relay(turn.way, _unheard, time.perf_counter)
        named: dict[str, Any] = {"conversation": turn.conversation, "turn": turn.turn}
        request = turn.request.model_copy(update={"subset": turn.way.subset})
        try:
            decision = await self._decide(request, turn.way, turn.history)
            if decision.outcome != "routed":
                report = relay.report("asked_back", shadow=True, same=not turn.answered, **named)
            else:
                ask = self._make_ask(turn, decision, relay) if turn.answered else None
                if turn.answered and ask is None:
                    self._tell_left_out(turn, "once")
                    return
                if ask is None:
                    # The user was asked back: that this one would not is what there is to know.
                    report = relay.report("answered", shadow=True, same=False, **named)
                else:
                    text = await self._ask(ask)
                    same = is_same(text, turn.answer)
                    report = relay.report("answered", shadow=True, same=same, **named)
        except asyncio.CancelledError:
            raise
        except HandedOver:
            # Nobody is asked in its place: what that one does need not be harmless.
            relay.handovers = 1
            report = relay.report("answered", shadow=True, same=turn.handed_over, **named)
        except MeshError as error:
            report = relay.report("failed", shadow=True, error=error.code, **named)
        self._tell(turn.way.tenant, report)


async def _unheard(kind: str, body: Any) -> None:
    """Nobody is told of it."""
