"""What `lmos run` answers on the bus: which agents it runs, and what is to become of them.

It listens on `lmos.{tenant}.runner.{instance}.*` alone, in the tenant of its agents.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lmos_mesh import codec, subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.calls import Call
from lmos_mesh.cli.agent_file import MOST, AgentFile
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import MeshError, NotFound, Unavailable
from lmos_mesh.lease import LeaseKeeper
from lmos_mesh.liveness import Served
from lmos_mesh.messages import GET_RUNS, STEER_RUN, GetRuns, Runs, RunSteered, SteerRun
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.settings import Settings

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0
# A caller without a deadline is a person with a NATS client, who waits about as long.
_WAITED_S = 4.0
# Kept of the time that a caller waits, to tell it how far things are.
_ANSWERING_S = 0.5
_LEAVE_S = 1.0


class Runner:
    """Answers on the bus for the files that this process runs.

    Args:
        files: What it runs.
        settings: Where the bus is, and whose agents they are.
    """

    def __init__(self, files: Sequence[AgentFile], settings: Settings) -> None:
        self.instance = new_instance("run")
        self._files = {str(one.path.resolve()): one for one in files}
        self._settings = settings
        self._begun = asyncio.Event()
        self._reached = asyncio.Event()
        self._lease: LeaseKeeper | None = None
        self._tasks: asyncio.TaskGroup | None = None

    async def begin(self, *, at_most_s: float) -> None:
        """Be found on the bus from now on: its files serve. Waits until it is, or for so long."""
        self._begun.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._reached.wait()

    async def run(self) -> None:
        """Answer until cancelled; agents run on while the bus is away."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                try:
                    await self._run_on_bus()
                except* MeshError as group:
                    # Its agents say the same, and louder: it is they who are missed.
                    logger.info("not on the bus, trying again: %s", group)
                self._reached.clear()
                await asyncio.sleep(_AGAIN_S)

    async def leave(self) -> None:
        """Say goodbye: nobody should look for it here."""
        if self._lease is not None:
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await self._lease.leave()

    async def _run_on_bus(self) -> None:
        settings = self._settings
        async with (
            NatsTransport.connect(
                settings.nats_url,
                name=subjects.connection_name(settings.tenant, self.instance),
                inbox=subjects.inbox(settings.tenant, self.instance),
                credentials=settings.nats_credentials,
                timeout_s=settings.connect_timeout_s,
                ping_interval_s=settings.nats_ping_interval_s,
                keeping=settings.keeping,
            ) as transport,
            Bus(transport, tenant=settings.tenant, instance=self.instance) as bus,
        ):
            await bus.respond(subjects.runner(settings.tenant, self.instance), self._respond)
            # It names the agents, and they are known when they serve.
            await self._begun.wait()
            self._lease = LeaseKeeper(bus, runs=self._runs)
            await self._lease.begin()
            self._reached.set()
            try:
                await asyncio.Event().wait()
            finally:
                await self.leave()

    def changed(self) -> None:
        """Its files have other agents than before: say so at once."""
        if self._lease is not None:
            self._lease.changed()

    def _runs(self) -> tuple[Served, ...]:
        agents = (agent for file in self._files.values() for agent in file.state().agents)
        return tuple(
            Served(name=one.name, subset=one.subset, version=one.version) for one in agents
        )

    # -- being asked --

    async def _respond(self, call: Call) -> Message:
        operation = call.subject.rsplit(".", 1)[1]
        if operation == GET_RUNS.operation:
            codec.decode(GetRuns, call.payload)
            return self._state()
        if operation == STEER_RUN.operation:
            return await self._steer(codec.decode(SteerRun, call.payload), call)
        raise NotFound(
            f"a runner has no operation {operation!r}",
            hint=f"it has {GET_RUNS.operation} and {STEER_RUN.operation}",
        )

    def _state(self) -> Runs:
        return Runs(
            host=socket.gethostname(),
            pid=os.getpid(),
            limit=MOST,
            files=tuple(one.state() for one in self._files.values()),
        )

    async def _steer(self, request: SteerRun, call: Call) -> RunSteered:
        file = self._files.get(request.file)
        if file is None:
            raise NotFound(
                f"{self.instance} does not run {request.file}",
                hint=f"it runs {', '.join(self._files)}",
            )
        before = len(file.running)
        work = _Work(lambda: file.steer(request))
        if self._tasks is None:
            raise Unavailable(f"{self.instance} is stopping")
        # Not ours alone: it goes on when the caller has gone.
        self._tasks.create_task(work.run())
        remaining_s = call.remaining_s
        waited_s = _WAITED_S if remaining_s is None else max(0.0, remaining_s - _ANSWERING_S)
        done = await work.wait(at_most_s=waited_s)
        after = len(file.running)
        if not done and request.action in ("scale", "start"):
            # What it will be: new ones count when they serve.
            after = (
                request.instances
                if request.instances is not None
                else before + 1
                if request.instance
                else max(1, len(file.state().instances))
            )
        return RunSteered(file=request.file, before=before, instances=after, done=done)


@dataclass(slots=True)
class _Work:
    """Something that goes on whoever waits for it, and how it ended."""

    do: Callable[[], Coroutine[Any, Any, None]]
    _error: MeshError | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        try:
            await self.do()
        except MeshError as exc:
            self._error = exc
        except Exception as exc:
            logger.exception("could not do what was asked")
            self._error = MeshError(f"it failed: {exc}")
        finally:
            self._ended.set()

    async def wait(self, *, at_most_s: float) -> bool:
        """Whether it has ended well by then; raises what it ended with otherwise."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._ended.is_set()
