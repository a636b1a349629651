"""What is noted of a turn while it is carried, and what is reported of it at its end.

Pure: the caller brings the time.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, cast

from lmos_mesh.invocation import ANONYMIZATION
from lmos_mesh.membership import ThingKey
from lmos_mesh.messages import TurnReport
from lmos_mesh_runtime.routing import Way

Send = Callable[[str, Any], Awaitable[None]]
Outcome = Literal["answered", "asked_back", "failed", "cancelled"]


class Relay:
    """Passes frames on to the caller, and notes what they say of the turn.

    Attributes:
        way: Where the turn goes.
        began: When the turn was ready to be carried.
        first: When the first word came; None if none has.
        key: Who answers; None for nobody.
        capability: What that agent is asked for.
        repeatable: Whether that may be done twice.
        anonymization: What the agent says stands for what in its answer; None if it says nothing.
    """

    __slots__ = (
        *("_clock", "_send", "anonymization", "began", "capability", "first", "key"),
        *("repeatable", "way"),
    )

    def __init__(self, way: Way, send: Send, clock: Callable[[], float]) -> None:
        self.way = way
        self.began = clock()
        self.first: float | None = None
        self.key: ThingKey | None = None
        self.capability = ""
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
                self.anonymization = _objects(cast("list[Any]", entities))
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
    ) -> TurnReport:
        """How the turn went, at its end."""
        return TurnReport(
            conversation=conversation,
            turn=turn,
            channel=self.way.channel,
            subset=self.way.subset,
            agent=self.key.name if self.key else "",
            capability=self.capability,
            outcome=outcome,
            error=error,
            first_s=None if self.first is None else self.first - self.began,
            total_s=self._clock() - self.began,
            shadow=shadow,
            same=same,
            rollout=self.way.rollout,
        )


def is_same(answer: str, other: str) -> bool:
    """Whether two answers say the same, however they are spaced."""
    return answer.split() == other.split()


def _objects(entities: list[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(
        dict(cast("Mapping[str, Any]", one)) for one in entities if isinstance(one, Mapping)
    )
