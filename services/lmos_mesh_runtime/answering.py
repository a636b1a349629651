"""A turn answered: by one agent, by those it hands over to, or by several at the same time."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from lmos_mesh.calls import Call
from lmos_mesh.errors import Cancelled, DeadlineExceeded, HandedOver, MeshError
from lmos_mesh.messages import Answer, Converse, Decision, Turn, Utterance
from lmos_mesh.reply_stream import Patience
from lmos_mesh_runtime.asking import ACK_S, Ask, Asker
from lmos_mesh_runtime.asking_back import question_for, question_for_part, spoken
from lmos_mesh_runtime.choosing import Chooser, Chosen, in_a_circle, too_far
from lmos_mesh_runtime.contexts import circumstances_of
from lmos_mesh_runtime.conversation import answer_of
from lmos_mesh_runtime.jobs import (
    Job,
    anonymization_of,
    answered_part,
    exchange_of,
    note,
    reported_part,
)
from lmos_mesh_runtime.merging import Merged
from lmos_mesh_runtime.picking import pick_of
from lmos_mesh_runtime.reporting import Relay
from lmos_mesh_runtime.routing import Ways
from lmos_mesh_runtime.settings import RuntimeSettings
from lmos_mesh_runtime.several import Planned, all_failed, apology, plan, skipped
from lmos_mesh_runtime.speaking import Speaking

logger = logging.getLogger(__name__)

_MARGIN_SHARE, _MARGIN_S = 0.1, 0.5
"""Of the time of a turn of several: parts end so long before it, so that the others count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A turn as it is to be answered.

    Attributes:
        until: When it must be answered, by `time.monotonic`.
    """

    request: Converse
    call: Call
    turn: Turn
    conversation: str
    history: Sequence[Utterance]
    relay: Relay
    until: float


class Answering:
    """Has turns answered."""

    def __init__(
        self, settings: RuntimeSettings, chooser: Chooser, asker: Asker, ways: Ways
    ) -> None:
        self._settings = settings
        self._chooser = chooser
        self._asker = asker
        self._ways = ways

    def patience(self, total_s: float) -> Patience:
        """How long an agent may take."""
        return Patience(ACK_S, self._settings.runtime_idle_timeout_s, total_s)

    async def answer(
        self,
        request: Converse,
        call: Call,
        turn: Turn,
        conversation: str,
        history: Sequence[Utterance],
        relay: Relay,
        *,
        now: float,
    ) -> tuple[Answer, Turn]:
        """The answer, and the turn as it is kept but for its end.

        Raises:
            AgentNotFound: The agent that the caller names is not there, or not in the channel.
            LoopDetected: Agents ask, or hand over to, each other in a circle.
            MeshError: The agent failed, or died and the answer cannot be begun anew.
        """
        total_s = self._settings.runtime_turn_timeout_s
        remaining_s = call.remaining_s
        told = Told(
            request=request,
            call=call,
            turn=turn,
            conversation=conversation,
            history=history,
            relay=relay,
            until=now + (total_s if remaining_s is None else min(total_s, remaining_s)),
        )
        picked = self._picked(told)
        if picked is not None:
            told, decision, chosen = picked
        else:
            decision, chosen = await self._chooser.choose(request, relay.way, history)
        await relay.send("status", {"state": "routed", "decision": decision.model_dump()})
        if not chosen:
            text = question_for(decision, self._language(told))
            await relay.send("delta", text)
            more: dict[str, Any] = {"answer": text, "asked_back": True}
        elif decision.outcome == "several":
            more = await self._several(told, decision, chosen)
        else:
            more = await self._single(told, chosen[0])
        if picked is not None:
            relay.repeatable = False  # by itself it says nothing that could be asked of a shadow
        ended = turn.model_copy(update={"state": "done", **more})
        shown = {"decision": decision, "anonymization": relay.anonymization}
        return answer_of(ended, conversation).model_copy(update=shown), ended

    def _picked(self, told: Told) -> tuple[Told, Decision, tuple[Chosen]] | None:
        """The turn as what the user was asked about; None if it is no answer to a question."""
        request = told.request
        pick = None if request.agent else pick_of(request.message, told.history)
        if pick is None:
            return None
        chosen = self._chooser.named(told.relay.way, pick.agent, pick.capability)
        if chosen is None:
            return None
        decision = Decision(
            outcome="routed",
            agent=chosen.key.name,
            subset=chosen.key.subset,
            capability=chosen.capability.id,
            confidence=1.0,
            could_be=(chosen.key.name,),
            method="explicit",
            reason=f"the user chose {chosen.key.name} of what was offered",
        )
        request = request.model_copy(update={"message": pick.message})
        return replace(told, request=request, history=told.history[:-2]), decision, (chosen,)

    def _language(self, told: Told) -> str:
        wiring = self._ways.wiring(told.relay.way)
        language = wiring.router.language if wiring is not None else None
        before = [one.content for one in told.history if one.role == "user"]
        return spoken(told.request.message, told.request.language, language, before=before)

    def _task(self, told: Told) -> str:
        return f"{told.conversation}.{told.turn.turn}.{told.call.task}"

    # -- one agent, and those it hands over to --

    async def _single(self, told: Told, chosen: Chosen | None) -> dict[str, Any]:
        assert chosen is not None, "one that may not be asked is refused"
        job = Job(
            at=0,
            text=told.request.message,
            chosen=chosen,
            history=told.history,
            task=self._task(told),
            restarts=told.request.restarts or not told.call.streaming,
            until=told.until,
        )
        merged = Merged(1)
        speaking = Speaking(told.relay, merged, [job], tagged=False)
        try:
            await self._work(told, job, chosen, speaking)
        finally:
            note(told.relay, [job])
        assert job.ask is not None, "who has answered was asked"
        return {
            "answer": merged.text(),
            "agent": job.ask.key.name,
            "subset": job.ask.key.subset,
            "capability": job.ask.capability.id,
            "instance": job.instance,
            "attempts": job.attempts,
            "handovers": job.handovers,
        }

    def _check(self, path: Sequence[str], chosen: Chosen, number: int) -> None:
        """Nobody is asked twice, and not too many are."""
        if chosen.key.name in path:
            raise in_a_circle(path, chosen.key.name)
        if number > self._settings.runtime_handovers:
            raise too_far(path, chosen.key.name, self._settings.runtime_handovers)

    async def _work(self, told: Told, job: Job, chosen: Chosen, speaking: Speaking) -> None:
        """Have an agent answer, and then those that it hands over to."""
        way = told.relay.way
        path = list(told.call.path)
        text = job.text
        self._check(path, chosen, 0)
        while True:
            number = len(job.asked)
            job.asked.append(chosen)
            path.append(chosen.key.name)
            ask = job.ask = Ask(
                tenant=way.tenant,
                key=chosen.key,
                capability=chosen.capability,
                circumstances=circumstances_of(
                    told.request,
                    way,
                    conversation=told.conversation,
                    turn=told.turn.turn,
                    history=job.history,
                    settings=self._ways.settings(way),
                    message=text,
                    handovers=job.handovers,
                ),
                task=f"{job.task}.{number}" if number else job.task,
                restarts=job.restarts,
                send=speaking.sender(job),
                patience=self.patience(max(0.001, job.until - time.monotonic())),
            )
            try:
                await self._asker.ask(ask)
                return
            except HandedOver as handed:
                text = str(handed.details.get("question") or text)
                request = told.request.model_copy(update={"message": text})
                taker = await self._chooser.taker(
                    handed, chosen.key, request, way, job.history, path
                )
                self._check(path, taker, number + 1)
                await speaking.handed_over(job, chosen, taker)
                chosen = taker
            finally:
                job.attempts += ask.attempts
                job.instance = ask.instance

    # -- several at the same time --

    async def _several(
        self, told: Told, decision: Decision, chosen: Sequence[Chosen | None]
    ) -> dict[str, Any]:
        most = self._settings.runtime_parts
        planned = plan(told.request.message, decision.parts, most)
        now = time.monotonic()
        left_s = max(0.0, told.until - now)
        until = told.until - min(_MARGIN_S, left_s * _MARGIN_SHARE)
        jobs = [
            Job(
                at=at,
                text=one.part.text,
                chosen=of,
                history=told.history,
                task=f"{self._task(told)}.p{at}",
                restarts=told.request.restarts or not told.call.streaming,
                until=until,
            )
            for at, (one, of) in enumerate(zip(planned, chosen, strict=True))
        ]
        merged = Merged(len(jobs))
        speaking = Speaking(told.relay, merged, jobs, tagged=True)
        language = self._language(told)
        try:
            async with asyncio.TaskGroup() as tasks:
                for job, one in zip(jobs, planned, strict=True):
                    tasks.create_task(self._part(told, job, one, jobs, speaking, language))
        finally:
            note(told.relay, jobs)
            parts = tuple(answered_part(job, one) for job, one in zip(jobs, planned, strict=True))
            told.relay.parts = tuple(map(reported_part, parts))
        answered = any(one.state == "done" for one in parts)
        if not answered and any(one.state == "failed" for one in parts):
            raise all_failed(parts)
        told.relay.anonymization = anonymization_of(jobs, told.request.anonymization or ())
        asked = [one for one in parts if one.state not in ("skipped", "asked_back")]
        return {
            "answer": merged.text(),
            "agent": told.relay.agent,
            "subset": parts[0].subset,
            "capability": told.relay.capability,
            "instance": ",".join(dict.fromkeys(one.instance for one in asked if one.instance)),
            "attempts": sum(one.attempts for one in asked),
            "parts": parts,
            "asked_back": not answered,
            "handovers": tuple(name for one in parts for name in one.handovers),
        }

    async def _part(
        self,
        told: Told,
        job: Job,
        planned: Planned,
        jobs: Sequence[Job],
        speaking: Speaking,
        language: str,
    ) -> None:
        """See to one request of several; that it fails is no concern of the others."""
        speaking.title(job, planned)
        try:
            before = [jobs[at] for at in planned.waits_for]
            for one in before:
                await one.ended.wait()
            if before:
                job.skipped = any(one.unanswered for one in before)
                job.after = frozenset(
                    (*planned.waits_for, *(at for one in before for at in one.after))
                )
                said = [exchange_of(jobs[at]) for at in sorted(job.after)]
                job.history = (*job.history, *chain.from_iterable(said))
            job.skipped = job.skipped or planned.left_out
            began = time.monotonic()
            if job.skipped:
                most = self._settings.runtime_parts
                await speaking.say(job, skipped(planned, language=language, most=most))
                await speaking.end(job)
                return
            if planned.part.outcome != "routed":
                job.asked_back = True
                await speaking.say(job, question_for_part(planned.part, language))
                await speaking.end(job)
                return
            try:
                if job.chosen is None:
                    raise self._ways.refused(told.relay.way, planned.part.agent)
                async with asyncio.timeout(job.until - began):
                    await self._work(told, job, job.chosen, speaking)
            except MeshError as error:
                job.error = error
            except TimeoutError:
                job.error = DeadlineExceeded("there was no answer in time", hint="ask again")
            except Exception:
                logger.exception("a part of turn %s failed", told.turn.turn)
                job.error = MeshError("the runtime failed", hint="its log has the traceback")
            job.took_s = time.monotonic() - began
            job.words = speaking.words(job)
            if job.error is not None:
                said = apology(job.error, language=language, begun=bool(job.words))
                speaking.untitled(job)
                await speaking.say(job, said)
            await speaking.end(job)
        except asyncio.CancelledError:
            job.error = job.error or Cancelled("the turn was called off")
            raise
        finally:
            job.ended.set()
