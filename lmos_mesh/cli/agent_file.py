"""One file of agents and the processes that serve it: kept alive, up to date, as many as wanted."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmos_mesh.cli.agent_process import AgentProcess, NotServing, Source
from lmos_mesh.endings import how_it_ended
from lmos_mesh.errors import AgentFailed, Conflict, InvalidMessage, NotFound
from lmos_mesh.messages import RunAgent, RunFile, RunInstance, SteerRun
from lmos_mesh.restarts import Crashes

MOST = 100
"""So many instances of one file, and no more: each is a process."""

_TRY_AGAIN_S = 15.0
# A start is a second of work for one core, and a hundred at once would all be late.
_STARTED_AT_A_TIME = 8


class Told(Protocol):
    """Whoever shows what becomes of a file."""

    def serving(self, file: "AgentFile", took_s: float) -> None:
        """Its processes serve."""
        ...

    def wrong(self, text: str) -> None:
        """Something has failed."""
        ...

    def changed(self, text: str) -> None:
        """Something is done about it."""
        ...

    def note(self, text: str) -> None:
        """Something worth knowing."""
        ...


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for one process, whichever is in it.

    Attributes:
        process: None while it is stopped.
        instance: The last one that served here.
        kept: Whether somebody waits for its end.
    """

    process: AgentProcess | None = None
    instance: str = ""
    kept: bool = False


_Stamp = tuple[int, int]


class AgentFile:
    """A file of agents that is served.

    Args:
        source: What its processes have in common.
        instances: How many there are at first.
        told: Whoever shows what becomes of it.
    """

    def __init__(self, source: Source, *, instances: int, told: Told) -> None:
        self.source = source
        self.agents: list[dict[str, Any]] = []
        self._files: list[str] = []
        self._told = told
        self._first = instances
        self._slots: list[_Slot] = []
        self._leaving: set[AgentProcess] = set()
        self._stamps: dict[str, _Stamp | None] = {}
        self._revision = 0
        # The first guards which process is in which slot; the second, that one is done with what
        # it was told before it is told the next.
        self._changing = asyncio.Lock()
        self._steering = asyncio.Lock()
        self._mended = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    @property
    def running(self) -> list[AgentProcess]:
        """The processes that serve it, the oldest first, those that leave apart."""
        found = [slot.process for slot in self._slots if slot.process is not None]
        return sorted(found, key=lambda one: one.started)

    @property
    def processes(self) -> list[AgentProcess]:
        """All of its processes."""
        return [*self.running, *self._leaving]

    def state(self) -> RunFile:
        """How it is, for others."""
        return RunFile(
            file=str(self.path.resolve()),
            agents=tuple(
                RunAgent(name=one["name"], subset=one["subset"], version=one["version"])
                for one in self.agents
            ),
            instances=tuple(_shown(slot) for slot in self._slots),
            revision=self._revision,
        )

    # -- starting --

    async def begin(self) -> None:
        """Start the first processes.

        Raises:
            NotServing: One of them has ended instead.
        """
        self._note_sources()
        for process in await self._started(self._first):
            self._slots.append(_Slot(process, process.instance))

    async def keep(self) -> None:
        """Keep its processes alive until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for slot in self._slots:
                self._keep_alive(slot)
            await asyncio.Event().wait()

    async def _started(self, count: int) -> list[AgentProcess]:
        """New processes that serve; none is left if one of them does not.

        Raises:
            NotServing: One of them has ended instead.
        """
        processes = [AgentProcess(self.source) for _ in range(count)]
        places = asyncio.Semaphore(_STARTED_AT_A_TIME)

        async def start(process: AgentProcess) -> None:
            async with places:
                await process.start()

        try:
            async with asyncio.TaskGroup() as tasks:
                for process in processes:
                    tasks.create_task(start(process))
        except BaseExceptionGroup as group:
            kill_all(processes)
            failed = group.subgroup(NotServing)
            if failed is None:
                raise
            raise first_of(failed) from None
        except asyncio.CancelledError:
            kill_all(processes)
            raise
        for process in processes:
            self.agents, self._files = process.agents, process.files
        for path in self._files:
            self._stamps.setdefault(path, _stamp(path))
        return processes

    # -- keeping alive --

    def _keep_alive(self, slot: _Slot) -> None:
        if not slot.kept:
            assert self._tasks is not None, "it is not kept yet"
            slot.kept = True
            self._tasks.create_task(self._keep(slot))

    async def _keep(self, slot: _Slot) -> None:
        """Start a process again that has ended by itself, until its slot is empty."""
        crashes = Crashes()
        while (process := slot.process) is not None:
            began = time.monotonic()
            code = await process.ended()
            async with self._changing:
                if slot.process is not process:
                    continue  # it was replaced, or stopped
                crashes = crashes.one_more(lived_s=time.monotonic() - began)
                self._told.wrong(f"{self.path} {how_it_ended(code)}; it is started again")
            await asyncio.sleep(crashes.delay_s)
            await self._start_again(slot, process)
        slot.kept = False

    async def _start_again(self, slot: _Slot, dead: AgentProcess) -> None:
        while True:
            began = time.monotonic()
            async with self._changing:
                if slot.process is not dead:
                    return
                self._mended.clear()
                try:
                    (fresh,) = await self._started(1)
                except NotServing as exc:
                    self._told.wrong(str(exc))
                else:
                    slot.process, slot.instance = fresh, fresh.instance
                    self._told.serving(self, time.monotonic() - began)
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(_TRY_AGAIN_S):
                    await self._mended.wait()

    # -- keeping up to date --

    @property
    def sources(self) -> set[str]:
        """The files whose change is a change of its agents."""
        return {str(self.path.resolve()), *self._files}

    def has_changed(self) -> bool:
        """Whether a source is another than when the processes were last started.

        One that is gone is not: editors remove a file for a moment when they save it.
        """
        now = {path: _stamp(path) for path in self.sources}
        return any(stamp and stamp != self._stamps.get(path) for path, stamp in now.items())

    def _note_sources(self) -> None:
        self._stamps = {path: _stamp(path) for path in self.sources}

    async def reload(self) -> bool:
        """New processes first; the old ones leave when those serve, and stay if they do not.

        Returns:
            Whether what it depends on is something else now.
        """
        self._told.changed(f"{self.path} has changed")
        began, before = time.monotonic(), self.sources
        async with self._changing:
            self._note_sources()
            slots = [slot for slot in self._slots if slot.process is not None]
            if not slots:
                name = self.agents[0]["name"]
                self._told.note(f"it is stopped; `lmos agents start {name}` starts it as it is now")
                return False
            old = [slot.process for slot in slots if slot.process is not None]
            try:
                fresh = await self._started(len(slots))
            except NotServing as exc:
                self._told.wrong(str(exc))
                if any(process.alive() for process in old):
                    self._told.note("the version before goes on serving")
                return False
            for slot, process in zip(slots, fresh, strict=True):
                slot.process, slot.instance = process, process.instance
            self._mended.set()
            self._told.serving(self, time.monotonic() - began)
        async with asyncio.TaskGroup() as tasks:
            for process in old:
                tasks.create_task(self._retire(process, drained=False))
        return self.sources != before

    # -- being told --

    async def steer(self, request: SteerRun) -> None:
        """Change how it runs; returns when that is done. Cancelling it leaves it as far as it is.

        Raises:
            NotFound: There is no such instance.
            Conflict: Somebody else has changed it meanwhile.
            InvalidMessage: It cannot be told so.
            AgentFailed: New processes do not serve; those that did still do.
        """
        leaving: list[asyncio.Task[None]] = []
        try:
            async with self._steering:
                if request.revision not in (None, self._revision):
                    raise Conflict(f"the instances of {self.path} have changed", hint="try again")
                await self._steer(request, leaving)
        except NotServing as exc:
            # Its reason may have lines of their own, so that nothing can stand behind it.
            left = ", and what was running goes on" if self.running else ""
            raise AgentFailed(f"no new instance of {self.path} serves{left}: {exc}") from exc
        # Not within: what is left to finish must not keep anybody from starting more.
        if leaving:
            await asyncio.wait(leaving)

    async def _steer(self, request: SteerRun, leaving: "list[asyncio.Task[None]]") -> None:
        match request.action:
            case "scale":
                leaving += await self._scale(request)
            case "restart":
                # One after the other, and each serves before the one that it replaces leaves.
                for slot in self._meant(request.instance, running=True):
                    leaving += await self._replace(slot)
            case "drain" | "stop":
                slots = self._meant(request.instance, running=True)
                leaving += await self._stop(slots, drained=request.action == "drain")
            case "start":
                await self._start(self._meant(request.instance, running=False))

    def _meant(self, instance: str, *, running: bool) -> list[_Slot]:
        """The slots that are meant, the oldest first.

        Raises:
            NotFound: There is no such instance.
            Conflict: It is what it is to become.
        """
        if instance:
            found = [slot for slot in self._slots if slot.instance == instance]
            if not found:
                raise NotFound(f"{self.path} has no instance {instance!r}")
            if (found[0].process is not None) != running:
                raise Conflict(f"instance {instance!r} {'is stopped' if running else 'runs'}")
            return found
        found = [slot for slot in self._slots if (slot.process is not None) == running]
        return sorted(found, key=_started_at)

    async def _scale(self, request: SteerRun) -> "list[asyncio.Task[None]]":
        wanted = request.instances
        if wanted is None or request.instance:
            raise InvalidMessage("scale needs `instances`, and is of all", field="/instances")
        if wanted > MOST:
            raise InvalidMessage(
                f"{wanted} instances of {self.path} are too many for one machine",
                hint=f"{MOST} at most; start `lmos run` on other machines, too",
                field="/instances",
            )
        running = self._meant("", running=True)
        if wanted > len(running):
            await self._add(wanted - len(running))
        # Whoever says how many there are to be does not want those back that were stopped.
        self._slots = [slot for slot in self._slots if slot.process is not None]
        # The newest leave: they know least.
        return await self._stop(running[wanted:], drained=True, forget=True)

    async def _add(self, count: int) -> None:
        began = time.monotonic()
        async with self._changing:
            if not self.running:
                self._note_sources()
            for process in await self._started(count):
                slot = _Slot(process, process.instance)
                self._slots.append(slot)
                self._keep_alive(slot)
            self._count_changed(began)

    async def _start(self, slots: Sequence[_Slot]) -> None:
        if not slots:
            if not self._slots:
                await self._add(1)
            return
        began = time.monotonic()
        async with self._changing:
            if not self.running:
                self._note_sources()
            for slot, process in zip(slots, await self._started(len(slots)), strict=True):
                slot.process, slot.instance = process, process.instance
                self._keep_alive(slot)
            self._count_changed(began)

    def _count_changed(self, began: float) -> None:
        self._revision += 1
        self._mended.set()
        self._told.serving(self, time.monotonic() - began)

    async def _stop(
        self, slots: Sequence[_Slot], *, drained: bool, forget: bool = False
    ) -> "list[asyncio.Task[None]]":
        async with self._changing:
            old = [slot.process for slot in slots if slot.process is not None]
            for slot in slots:
                slot.process = None
            if forget:
                self._slots = [slot for slot in self._slots if slot not in slots]
            if not old:
                return []
            self._revision += 1
        left = len(self.running)
        ending = "finish what they are at and end" if drained else "are stopped"
        self._told.changed(f"{self.path}: {len(old)} of {len(old) + left} instances {ending}")
        return [self._retiring(process, drained=drained) for process in old]

    async def _replace(self, slot: _Slot) -> "list[asyncio.Task[None]]":
        old, began = slot.process, time.monotonic()
        async with self._changing:
            if old is None or slot.process is not old:
                return []  # it has been replaced already
            (fresh,) = await self._started(1)
            slot.process, slot.instance = fresh, fresh.instance
            self._mended.set()
        took_s = time.monotonic() - began
        self._told.changed(
            f"{self.path}: {fresh.instance} takes the place of {old.instance}  {took_s:.1f} s"
        )
        return [self._retiring(old, drained=True)]

    def _retiring(self, process: AgentProcess, *, drained: bool) -> "asyncio.Task[None]":
        assert self._tasks is not None, "it is not kept yet"
        return self._tasks.create_task(self._retire(process, drained=drained))

    async def _retire(self, process: AgentProcess, *, drained: bool) -> None:
        self._leaving.add(process)
        await (process.drain() if drained else process.stop())
        self._leaving.discard(process)


def kill_all(processes: Sequence[AgentProcess]) -> None:
    """End processes at once."""
    for process in processes:
        process.kill()


def first_of(group: BaseExceptionGroup[NotServing]) -> NotServing:
    """One of several errors."""
    found = group.exceptions[0]
    return first_of(found) if isinstance(found, BaseExceptionGroup) else found


def _started_at(slot: _Slot) -> float:
    return slot.process.started if slot.process is not None else 0.0


def _shown(slot: _Slot) -> RunInstance:
    if slot.process is None:
        return RunInstance(instance=slot.instance, state="stopped")
    process = slot.process
    return RunInstance(instance=slot.instance, pid=process.pid, started=process.started)


def _stamp(path: str) -> _Stamp | None:
    """What tells one state of a file from another; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size)
