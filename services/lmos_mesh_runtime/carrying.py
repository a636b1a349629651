"""One turn from its message to its answer: decided, asked, reported, and mirrored if need be."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import MeshError
from lmos_mesh.membership import ThingKey
from lmos_mesh.messages import (
    DECIDE,
    Answer,
    Converse,
    Decide,
    Decision,
    Turn,
    TurnReport,
    Utterance,
)
from lmos_mesh.reply_stream import Patience
from lmos_mesh.things import Capability
from lmos_mesh_runtime.asking import ACK_S, Ask, Asker
from lmos_mesh_runtime.asking_back import question_for, spoken
from lmos_mesh_runtime.contexts import circumstances_of
from lmos_mesh_runtime.conversation import answer_of
from lmos_mesh_runtime.reporting import Outcome, Relay
from lmos_mesh_runtime.routing import Way, Ways
from lmos_mesh_runtime.settings import RuntimeSettings
from lmos_mesh_runtime.shadowing import Mirrorable, Shadows
from lmos_mesh_runtime.telling import Teller

logger = logging.getLogger(__name__)

_AGAIN_S = (0.02, 0.05, 0.1, 0.3)
"""Between decisions, while not everybody knows yet what has just been applied."""
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
        self._directory = directory
        self._ways = ways
        self._clock = clock
        self._teller = Teller(bus, clock=clock)
        self._asker = Asker(bus, directory.membership)
        directory.on_change(self._asker.lost)
        self._shadows = Shadows(
            bus,
            decide=self._decide,
            make_ask=self._shadow_ask,
            ask=self._asker.ask,
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
            answer, ended = await self._answer(request, call, turn, conversation, history, relay)
            outcome = "asked_back" if ended.asked_back else "answered"
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
        if mirrored is not None and relay.repeatable:
            mirrorable = Mirrorable(
                request=request,
                way=relay.way,
                conversation=conversation,
                turn=turn.turn,
                history=history,
                answer=ended.answer,
                answered=not ended.asked_back,
            )
            asyncio.get_running_loop().call_soon(self._shadows.mirror, mirrorable, mirrored)
        return answer, ended

    async def _answer(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        conversation: str,
        history: Sequence[Utterance],
        relay: Relay,
    ) -> tuple[Answer, Turn]:
        way = relay.way
        decision, capability = await self._decided(request, way, history)
        await relay.send("status", {"state": "routed", "decision": decision.model_dump()})
        if capability is None:
            wiring = self._ways.wiring(way)
            language = wiring.router.language if wiring is not None else None
            text = question_for(decision, spoken(request.message, request.language, language))
            await relay.send("delta", text)
            ended = turn.model_copy(
                update={
                    "state": "done",
                    "answer": text,
                    "asked_back": True,
                    "ended": self._clock(),
                }
            )
            return self._shown(ended, conversation, decision, relay), ended
        relay.key = ThingKey(call.tenant, decision.agent, decision.subset)
        relay.capability, relay.repeatable = capability.id, capability.idempotent
        circumstances = circumstances_of(
            request,
            way,
            conversation=conversation,
            turn=turn.turn,
            history=history,
            settings=self._ways.settings(way),
        )
        total_s = self._settings.runtime_turn_timeout_s
        remaining_s = call.remaining_s
        ask = Ask(
            key=relay.key,
            capability=capability,
            circumstances=circumstances,
            task=f"{conversation}.{turn.turn}.{call.task}",
            restarts=request.restarts or not call.streaming,
            send=relay.send,
            patience=self._patience(total_s if remaining_s is None else min(total_s, remaining_s)),
        )
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
        return self._shown(ended, conversation, decision, relay), ended

    def _patience(self, total_s: float) -> Patience:
        return Patience(ACK_S, self._settings.runtime_idle_timeout_s, total_s)

    @staticmethod
    def _shown(turn: Turn, conversation: str, decision: Decision, relay: Relay) -> Answer:
        more = {"decision": decision, "anonymization": relay.anonymization}
        return answer_of(turn, conversation).model_copy(update=more)

    async def _decided(
        self, request: Converse, way: Way, history: Sequence[Utterance]
    ) -> tuple[Decision, Capability | None]:
        """Who answers, and what that agent is asked for; None for nobody.

        What the router decides by and what this replica knows may differ for a moment: nobody is
        asked who is not let through by both. A channel that was closed just now is resolved soon.

        Raises:
            AgentNotFound: They go on to differ, or the agent has just left.
        """
        for wait_s in (*_AGAIN_S, None):
            decision = await self._decide(request, way, history)
            if decision.outcome != "routed":
                if wait_s is None or not self._ways.is_awaited(way):
                    return decision, None
                await asyncio.sleep(wait_s)
                continue
            key = ThingKey(way.tenant, decision.agent, decision.subset)
            entered = self._directory.membership.get(key)
            if entered is not None:
                found = self._ways.admitted(way, entered.thing, key, decision.capability)
                if found is not None:
                    return decision, found
            if wait_s is None:
                raise self._ways.refused(way, decision.agent)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last round returns or raises")

    async def _decide(self, request: Converse, way: Way, history: Sequence[Utterance]) -> Decision:
        return await self._bus.call(
            DECIDE,
            Decide(
                message=request.message,
                history=tuple(history[-10:]),
                channel=way.channel,
                subset=way.subset,
                method="explicit" if request.agent else request.method,
                agent=request.agent,
                threshold=request.threshold,
                language=request.language,
            ),
            tenant=way.tenant,
            nobody_s=RESTART_S,
        )

    def _shadow_ask(self, turn: Mirrorable, decision: Decision, relay: Relay) -> Ask | None:
        """What a shadow asks of an agent; None if that must not be done twice."""
        way = turn.way
        key = ThingKey(way.tenant, decision.agent, decision.subset)
        entered = self._directory.membership.get(key)
        if entered is None:
            raise self._ways.refused(way, decision.agent)
        capability = self._ways.admitted(way, entered.thing, key, decision.capability)
        if capability is None:
            raise self._ways.refused(way, decision.agent)
        if not capability.idempotent:
            return None
        relay.key, relay.capability = key, capability.id
        return Ask(
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
            patience=self._patience(min(_SHADOW_S, self._settings.runtime_turn_timeout_s)),
        )

    def _tell(self, tenant: str, report: TurnReport) -> None:
        if self._settings.runtime_reports:
            self._teller.tell(tenant, report)

    def close(self) -> None:
        """Tell what is yet to be told."""
        self._teller.flush()
