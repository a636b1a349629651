"""What one agent of a turn is to do, and what is told of how that went."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lmos_mesh.errors import MeshError
from lmos_mesh.messages import AnsweredPart, ReportedPart, Utterance
from lmos_mesh_runtime.asking import Ask
from lmos_mesh_runtime.choosing import Chosen
from lmos_mesh_runtime.conversation import error_of
from lmos_mesh_runtime.reporting import Relay
from lmos_mesh_runtime.several import Planned


@dataclass(slots=True, kw_only=True)
class Job:
    """What one agent is to do, or several one after the other that hand it over.

    Attributes:
        at: Which request of the message it is.
        task: What is asked of agents is known by this and a number.
        restarts: Whether the caller can be told that the answer begins anew.
        asked: The agents that were asked, in order.
        ask: What is asked of the one that is at it.
        words: What was answered.
        after: The requests whose answers it knows.
    """

    at: int
    text: str
    chosen: Chosen | None
    history: Sequence[Utterance]
    task: str
    restarts: bool
    until: float
    asked: list[Chosen] = field(default_factory=list[Chosen])
    attempts: int = 0
    instance: str = ""
    ask: Ask | None = None
    anonymization: tuple[dict[str, Any], ...] | None = None
    words: str = ""
    error: MeshError | None = None
    skipped: bool = False
    asked_back: bool = False
    after: frozenset[int] = frozenset()
    took_s: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> Literal["done", "failed", "skipped", "asked_back"]:
        """How it ended."""
        if self.skipped:
            return "skipped"
        if self.asked_back:
            return "asked_back"
        return "failed" if self.error else "done"

    @property
    def unanswered(self) -> bool:
        """Whether nobody can build on it."""
        return self.skipped or self.asked_back or self.error is not None

    @property
    def handovers(self) -> tuple[str, ...]:
        """Those that handed it over, in order."""
        return tuple(one.key.name for one in self.asked[:-1])


def exchange_of(job: Job) -> tuple[Utterance, ...]:
    """A request and its answer, as what was said before the next."""
    agent = job.asked[-1].key.name if job.asked else ""
    return (
        Utterance(role="user", content=job.text),
        Utterance(role="assistant", content=job.words, agent=agent),
    )


def note(relay: Relay, jobs: Sequence[Job]) -> None:
    """What a report says of who has answered."""
    last = [job.asked[-1] for job in jobs if job.asked]
    relay.agent = ",".join(dict.fromkeys(one.key.name for one in last))
    relay.capability = ",".join(dict.fromkeys(one.capability.id for one in last))
    relay.handovers = sum(len(job.handovers) for job in jobs)
    asked = [one for job in jobs for one in job.asked]
    relay.repeatable = all(one.capability.idempotent for one in asked)


def answered_part(job: Job, planned: Planned) -> AnsweredPart:
    """What the answer says of one request of several."""
    last = job.asked[-1] if job.asked else job.chosen
    return AnsweredPart(
        text=job.text,
        agent=last.key.name if last else planned.part.agent,
        subset=last.key.subset if last else planned.part.subset,
        capability=last.capability.id if last else planned.part.capability,
        instance=job.instance,
        state=job.state,
        answer=job.words,
        error=error_of(job.error.problem()) if job.error else None,
        needs=planned.needs,
        handovers=job.handovers,
        attempts=job.attempts,
        total_s=round(job.took_s, 4),
    )


def reported_part(part: AnsweredPart) -> ReportedPart:
    """What a report says of one request of several."""
    return ReportedPart(
        agent=part.agent,
        capability=part.capability,
        state=part.state,
        error=str((part.error or {}).get("code", "")),
        handovers=len(part.handovers),
        total_s=part.total_s,
    )


def anonymization_of(
    jobs: Sequence[Job], before: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], ...] | None:
    """What stands for what in all answers; None if no agent has changed anything."""
    if all(job.anonymization is None for job in jobs):
        return None
    found: list[dict[str, Any]] = []
    for job in jobs:
        own = job.anonymization
        for one in before if own is None else own:
            if one not in found:
                found.append(one)
    return tuple(found)
