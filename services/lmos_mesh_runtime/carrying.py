"""One turn from its message to its answer: decided, asked, reported, and mirrored if need be."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import MeshError
from lmos_mesh.messages import (
    Answer,
    Converse,
    Decision,
    LeftOut,
    Turn,
    TurnReport,
    Utterance,
)
from lmos_mesh_runtime.answering import Answering
from lmos_mesh_runtime.asking import Ask, Asker
from lmos_mesh_runtime.choosing import Chooser
from lmos_mesh_runtime.contexts import circumstances_of
from lmos_mesh_runtime.reporting import Outcome, Relay
from lmos_mesh_runtime.routing import Way, Ways
from lmos_mesh_runtime.settings import RuntimeSettings
from lmos_mesh_runtime.shadowing import Mirrorable, Shadows
from lmos_mesh_runtime.telling import Teller

logger = logging.getLogger(__name__)

_SHADOW_S = 60.0


class Carrier:
    """Carries turns, one by one, on the ways that their channels give them."""

    def __init__(
        self,
        bus: Bus,
        settings: RuntimeSettings,
        directory: Directory,
        ways: Ways,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._ways = ways
        self._clock = clock
        self._teller = Teller(bus, clock=clock)
        asker = Asker(bus, directory.membership)
        directory.on_change(asker.lost)
        self._chooser = Chooser(bus, directory.membership, ways, most_parts=settings.runtime_parts)
        self._answering = Answering(settings, self._chooser, asker, ways)
        self._shadows = Shadows(
            bus,
            decide=self._chooser.decide,
            make_ask=self._shadow_ask,
            ask=asker.ask,
            tell=self._tell,
            most=settings.runtime_shadows,
        )

    async def carry(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        way: Way,
        *,
        conversation: str,
        history: Sequence[Utterance],
    ) -> tuple[Answer, Turn]:
        """The answer, and the turn as it is kept; however it ends, that is reported.

        Raises:
            AgentNotFound: The agent that the caller names is not there, or not in the channel.
            MeshError: The agent failed, or died and the answer cannot be begun anew.
        """
        relay = Relay(way, call.send, time.perf_counter)
        outcome: Outcome = "failed"
        code = ""
        try:
            answer, ended = await self._answering.answer(
                request, call, turn, conversation, history, relay, now=time.monotonic()
            )
            ended = ended.model_copy(update={"ended": self._clock()})
            outcome = "asked_back" if ended.asked_back else "answered"
            code = next((one.error for one in relay.parts if one.error), "")
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except MeshError as error:
            code = error.code
            raise
        except Exception:
            code = MeshError.code
            raise
        finally:
            report = relay.report(outcome, conversation=conversation, turn=turn.turn, error=code)
            self._tell(call.tenant, report)
        mirrored = self._ways.mirrored(relay.way, f"{conversation}.{turn.turn}")
        if mirrored is not None:
            mirrorable = Mirrorable(
                request=request,
                way=relay.way,
                conversation=conversation,
                turn=turn.turn,
                history=history,
                answer=ended.answer,
                answered=not ended.asked_back,
                handed_over=bool(ended.handovers),
                left_out=self._left_out(ended, relay),
            )
            asyncio.get_running_loop().call_soon(self._shadows.mirror, mirrorable, mirrored)
        return answer, ended

    @staticmethod
    def _left_out(ended: Turn, relay: Relay) -> LeftOut:
        """Why a turn is not mirrored; empty if it is."""
        # What several agents make of a message is not compared: each would have to be the same.
        if ended.parts:
            return "several"
        return "" if relay.repeatable else "once"

    def _shadow_ask(self, turn: Mirrorable, decision: Decision, relay: Relay) -> Ask | None:
        """What a shadow asks of an agent; None if that must not be done twice."""
        way = turn.way
        chosen = self._chooser.admitted(way, decision.agent, decision.subset, decision.capability)
        if chosen is None:
            raise self._ways.refused(way, decision.agent)
        key, capability = chosen
        if not capability.idempotent:
            return None
        relay.agent, relay.capability = key.name, capability.id
        return Ask(
            tenant=way.tenant,
            key=key,
            capability=capability,
            circumstances=circumstances_of(
                turn.request,
                way,
                conversation=turn.conversation,
                turn=turn.turn,
                history=turn.history,
                settings=self._ways.settings(way),
                shadow=True,
            ),
            task=f"{turn.conversation}.{turn.turn}.{secrets.token_hex(8)}",
            restarts=True,
            send=relay.send,
            patience=self._answering.patience(
                min(_SHADOW_S, self._settings.runtime_turn_timeout_s)
            ),
        )

    def _tell(self, tenant: str, report: TurnReport) -> None:
        if self._settings.runtime_reports:
            self._teller.tell(tenant, report)

    def close(self) -> None:
        """Tell what is yet to be told."""
        self._teller.flush()
