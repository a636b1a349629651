"""What the agents of a turn say, passed on so that each one's words stay together."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from lmos_mesh.invocation import ANONYMIZATION
from lmos_mesh_runtime.choosing import Chosen
from lmos_mesh_runtime.jobs import Job
from lmos_mesh_runtime.merging import Frames, Merged
from lmos_mesh_runtime.reporting import Relay, objects_of
from lmos_mesh_runtime.several import Planned, heading


class Speaking:
    """Passes on what jobs say, so that each one's words stay together."""

    def __init__(self, relay: Relay, merged: Merged, jobs: Sequence[Job], *, tagged: bool) -> None:
        self._relay = relay
        self._merged = merged
        self._jobs = jobs
        self._tagged = tagged
        self._lock = asyncio.Lock()

    def sender(self, job: Job) -> Any:
        """How an agent's frames are passed on."""

        async def send(kind: str, body: Any) -> None:
            if kind == "delta":
                await self.say(job, body)
            elif kind == "restart":
                job.anonymization = None
                async with self._lock:
                    await self._pass_on(self._merged.restart(job.at, body))
            elif self._tagged and isinstance(body, dict):
                await self._tell(job, kind, cast("dict[str, Any]", body))
            else:
                await self._relay.send(kind, body)

        return send

    async def _tell(self, job: Job, kind: str, body: dict[str, Any]) -> None:
        entities = body.get(ANONYMIZATION)
        if kind == "status" and isinstance(entities, list):
            job.anonymization = objects_of(cast("list[Any]", entities))
        else:
            await self._relay.send(kind, {**body, "part": job.at})

    async def say(self, job: Job, text: str) -> None:
        """An agent says something, or something is said in its place."""
        async with self._lock:
            await self._pass_on(self._merged.say(job.at, text))

    async def end(self, job: Job) -> None:
        """It is the next one's turn."""
        async with self._lock:
            await self._pass_on(self._merged.end(job.at))

    async def _pass_on(self, frames: Frames) -> None:
        for kind, body in frames:
            await self._relay.send(kind, body)
        for one in self._jobs:
            if one.ask is not None:
                # What the caller has not seen yet can always begin anew.
                one.ask.restarts = one.restarts or not self._merged.seen(one.at)

    async def handed_over(self, job: Job, giver: Chosen, taker: Chosen) -> None:
        """What the first one said stays."""
        of = self._heading(taker) if self._tagged else ""
        self._merged.named(job.at, of)
        body = {
            "state": "handed_over",
            "from": giver.key.name,
            "to": taker.key.name,
            "capability": taker.capability.id,
        }
        await self._relay.send("status", {**body, "part": job.at} if self._tagged else body)

    def title(self, job: Job, planned: Planned) -> None:
        """What a request's answer stands under."""
        chosen = job.chosen
        part = planned.part
        of = self._heading(chosen) if chosen else heading(part.agent, part.capability, part.text)
        self._merged.named(job.at, of)

    def untitled(self, job: Job) -> None:
        """What is said from now on is not the agent's own."""
        if self._merged.words(job.at):
            self._merged.named(job.at, "")

    def words(self, job: Job) -> str:
        """What was answered to one request."""
        return self._merged.words(job.at)

    @staticmethod
    def _heading(chosen: Chosen) -> str:
        return heading(chosen.key.name, chosen.capability.name or chosen.capability.id)
