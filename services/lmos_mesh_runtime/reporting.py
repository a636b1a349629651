"""What is noted of a turn while it is carried, and what is reported of it at its end.

Pure: the caller brings the time.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, cast

from lmos_mesh.invocation import ANONYMIZATION
from lmos_mesh.messages import LeftOut, ReportedPart, TurnReport
from lmos_mesh_runtime.routing import Way

Send = Callable[[str, Any], Awaitable[None]]
Outcome = Literal["answered", "asked_back", "failed", "cancelled"]


class Relay:
    """Passes frames on to the caller, and notes what they say of the turn.

    Attributes:
        way: Where the turn goes.
        began: When the turn was ready to be carried.
        first: When the first word came; None if none has.
        agent: Who answers; empty for nobody. Several are joined by commas.
        capability: What that agent is asked for; likewise.
        handovers: How often one agent has handed over to another.
        parts: How each of several requests went.
        repeatable: Whether that may be done twice.
        anonymization: What the agent says stands for what in its answer; None if it says nothing.
    """

    __slots__ = (
        *("_clock", "_send", "agent", "anonymization", "began", "capability", "first"),
        *("handovers", "parts", "repeatable", "way"),
    )

    def __init__(self, way: Way, send: Send, clock: Callable[[], float]) -> None:
        self.way = way
        self.began = clock()
        self.first: float | None = None
        self.agent = self.capability = ""
        self.handovers = 0
        self.parts: tuple[ReportedPart, ...] = ()
        self.repeatable = True
        self.anonymization: tuple[dict[str, Any], ...] | None = None
        self._send = send
        self._clock = clock

    async def send(self, kind: str, body: Any) -> None:
        """Pass a frame on; what stands for what goes with the whole answer."""
        if kind == "delta":
            if self.first is None:
                self.first = self._clock()
        elif kind == "restart":
            self.anonymization = None
        elif kind == "status" and isinstance(body, dict):
            entities = cast("dict[str, Any]", body).get(ANONYMIZATION)
            if isinstance(entities, list):
                self.anonymization = objects_of(cast("list[Any]", entities))
                return
        await self._send(kind, body)

    def report(
        self,
        outcome: Outcome,
        *,
        conversation: str,
        turn: str,
        error: str = "",
        shadow: bool = False,
        same: bool | None = None,
        left_out: LeftOut = "",
    ) -> TurnReport:
        """How the turn went, at its end."""
        return TurnReport(
            conversation=conversation,
            turn=turn,
            channel=self.way.channel,
            subset=self.way.subset,
            agent=self.agent,
            capability=self.capability,
            outcome=outcome,
            error=error,
            first_s=None if self.first is None else self.first - self.began,
            total_s=self._clock() - self.began,
            handovers=self.handovers,
            parts=self.parts,
            shadow=shadow,
            same=same,
            left_out=left_out,
            rollout=self.way.rollout,
        )


def is_same(answer: str, other: str) -> bool:
    """Whether two answers say the same, however they are spaced."""
    return answer.split() == other.split()


def objects_of(entities: list[Any]) -> tuple[dict[str, Any], ...]:
    """What stands for what, without what is no object."""
    return tuple(
        dict(cast("Mapping[str, Any]", one)) for one in entities if isinstance(one, Mapping)
    )
