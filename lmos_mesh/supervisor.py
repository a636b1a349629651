"""Keeps the processes of one mesh alive: starts them, starts them again, stops them in order.

What happens is told as events; whoever shows them decides how.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmos_mesh import subjects
from lmos_mesh.answering import Answering
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.directory import Directory
from lmos_mesh.endings import how_it_ended
from lmos_mesh.errors import MeshError
from lmos_mesh.kept_process import KeptProcess, begin_log
from lmos_mesh.mesh_events import (
    AgentChanged,
    Died,
    Event,
    Serving,
    Stopped,
    Stopping,
    Up,
)
from lmos_mesh.mesh_state import MeshPlace, MeshRecord, ProcessRecord
from lmos_mesh.messages import ROUTER_STATUS, RouterState, RouterStatus
from lmos_mesh.nats_config import Binary, ServerSettings
from lmos_mesh.nats_server import NatsServer, find_binary
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.ports import ClaimedPort
from lmos_mesh.programs import Program, stopping_stages
from lmos_mesh.restarts import Crashes
from lmos_mesh.service import BAD_SETTINGS, VERSION
from lmos_mesh.settings import Settings
from lmos_mesh.things import ThingKey

NATS = "nats"

_ASK_EVERY_S = 0.05
_ELSEWHERE_S = 0.2
_SETTLE_TIMEOUT_S = 60.0
_KILL_AFTER_S = 3.0
_NAMED = 4
# Whoever is killed from outside does not know of it: its last line is no reason.
_SILENT_ENDS = (-signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """What makes this mesh.

    Args:
        place: Its directory.
        programs: What runs beside NATS.
        settings: Those that all processes share.
        nats_url: A server that is there already; None starts one.
        nats_port: For the server to start; None takes 4222 or the next free one.
        http_port: The port that is kept for the HTTP adapter; None without one.
        http_url: Where it will answer.
    """

    place: MeshPlace
    programs: tuple[Program, ...]
    settings: Settings
    nats_url: str | None = None
    nats_port: int | None = None
    http_port: ClaimedPort | None = None
    http_url: str | None = None


class Supervisor:
    """Runs one mesh. Start it from the main thread: its children end when that thread does."""

    def __init__(self, plan: MeshPlan, tell: Callable[[Event], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._began = time.monotonic()
        self._started = time.time()
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self._killed = False
        self._up = False
        self._nats: NatsServer | None = None
        self._nats_url = ""
        self._kept = [KeptProcess(one, plan.place.log_path(one.name)) for one in plan.programs]
        self._answering = Answering()
        self._joined: set[ThingKey] = set()

    def stop(self) -> None:
        """Stop everything in order; told a second time, at once."""
        if self._stop.is_set():
            self.kill()
        self._stop.set()

    def kill(self) -> None:
        """End every process at once."""
        self._stop.set()
        self._killed = True
        for process in self._kept:
            process.kill()
        if self._nats is not None and self._nats.alive():
            with suppress(ProcessLookupError):
                os.kill(self._nats.pid, signal.SIGKILL)

    @property
    def killed(self) -> bool:
        """Whether it was ended at once."""
        return self._killed

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked it to stop."""
        return self._stop.is_set()

    async def run(self) -> None:
        """Be the mesh until told to stop. Cancelling kills what runs.

        Raises:
            Conflict: This mesh runs already.
            SettingsError: It cannot run as configured.
            Unavailable: There is no NATS server where there should be one.
        """
        place = self._plan.place
        with place.claim():
            for process in self._kept:
                begin_log(process.log)
            try:
                await self._start_nats()
                if not self.stopping:
                    await self._run_on_bus()
            finally:
                for process in self._kept:
                    process.end()
                if self._nats is not None:
                    await self._nats.stop()
                if self._plan.http_port is not None:
                    self._plan.http_port.release()

    async def _start_nats(self) -> None:
        plan = self._plan
        if plan.nats_url is not None:
            self._nats_url = plan.nats_url
            return
        began = time.monotonic()
        binary = await asyncio.to_thread(find_binary)
        log = plan.place.log_path(NATS)
        begin_log(log)
        settings = ServerSettings(
            data_dir=plan.place.nats_dir,
            name=f"lmos-{plan.place.name}",
            port=plan.nats_port,
            log_file=log,
        )
        self._nats = NatsServer(settings, binary=binary)
        await self._nats.start()
        self._nats_url = self._nats.url
        self._tell(
            Serving(
                name=NATS, took_s=time.monotonic() - began, detail=_nats_detail(self._nats, binary)
            )
        )

    async def _run_on_bus(self) -> None:
        settings = self._plan.settings
        instance = new_instance("up")
        async with (
            NatsTransport.connect(
                self._nats_url,
                name=subjects.connection_name(settings.tenant, instance),
                inbox=subjects.inbox(settings.tenant, instance),
                credentials=settings.nats_credentials,
                timeout_s=min(5.0, settings.connect_timeout_s),
                keeping=settings.keeping,
            ) as transport,
            Bus(transport, tenant=settings.tenant, instance=instance) as bus,
        ):
            self._write_record()
            directory = Directory(bus)
            await directory.follow()
            await self._answering.listen(bus)
            if self._nats is None:
                # Somebody else's replicas may answer on this server; ours are the ones to come.
                self._answering.ask("$SRV.PING")
                await asyncio.sleep(_ELSEWHERE_S)
            self._joined = {one.key for one in directory.membership if _live(directory, one.key)}
            directory.on_change(lambda names: self._agents_changed(directory, names))
            async with asyncio.TaskGroup() as tasks:
                keeping = [
                    tasks.create_task(self._keep(process, directory)) for process in self._kept
                ]
                if self._nats is not None:
                    keeping.append(tasks.create_task(self._keep_nats(self._nats)))
                keeping.append(tasks.create_task(self._announce(bus)))
                await self._stop.wait()
                for task in keeping:
                    task.cancel()
            await self._stop_all()

    # -- keeping alive --

    async def _keep(self, process: KeptProcess, directory: Directory) -> None:
        crashes = Crashes()
        while True:
            began = time.monotonic()
            code = 1
            if fault := process.spawn(self._environment(process.program)):
                how = fault
            else:
                self._write_record()
                await self._until_serving(process, directory, began, again=crashes.in_a_row > 0)
                code = await process.ended()
                how = how_it_ended(code)
            crashes = crashes.one_more(lived_s=time.monotonic() - began)
            process.serving = False
            given_up = code == BAD_SETTINGS
            process.looping = crashes.looping or given_up
            self._check_settled()
            self._write_record()
            said = process.said() if code not in _SILENT_ENDS else ""
            self._tell_death(
                process.program.name, how, said, process.log, crashes, given_up=given_up
            )
            if given_up:
                return
            await asyncio.sleep(crashes.delay_s)

    async def _until_serving(
        self, process: KeptProcess, directory: Directory, began: float, *, again: bool
    ) -> None:
        """Return when the process serves, or has ended before it did."""
        before = self._answering.known(process.program.micro)
        while process.alive():
            if self._serves(process, directory, before):
                process.serving = True
                process.looping = False
                self._check_settled()
                self._write_record()
                self._tell(
                    Serving(
                        name=process.program.name,
                        took_s=time.monotonic() - began,
                        again=again,
                        detail=_run_by(process.pid, directory),
                    )
                )
                return
            await asyncio.sleep(_ASK_EVERY_S)

    def _serves(self, process: KeptProcess, directory: Directory, before: frozenset[str]) -> bool:
        if process.program.kind != "agent":
            return self._answering.claim(process.program.micro, before)
        membership = directory.membership
        return any(
            # Its agents are processes of their own; it has a lease when they serve.
            lease.pid == process.pid
            and all(membership.live(ThingKey(tenant, one.name, one.subset)) for one in lease.runs)
            for tenant, lease, _ in membership.leases()
        )

    async def _keep_nats(self, server: NatsServer) -> None:
        crashes = Crashes()
        began = time.monotonic()
        while True:
            code = await server.wait()
            how, said = how_it_ended(code), server.fault()
            while True:
                crashes = crashes.one_more(lived_s=time.monotonic() - began)
                self._tell_death(NATS, how, said, server.settings.log_path, crashes)
                await asyncio.sleep(crashes.delay_s)
                began = time.monotonic()
                try:
                    await server.start()
                    break
                except MeshError as exc:
                    how, said = "cannot start", str(exc)
            self._write_record()
            self._tell(Serving(name=NATS, took_s=time.monotonic() - began, again=True))

    def _tell_death(
        self,
        name: str,
        how: str,
        said: str,
        log: Path,
        crashes: Crashes,
        *,
        given_up: bool = False,
    ) -> None:
        self._tell(
            Died(
                name=name,
                how=how,
                said=said,
                log=log,
                retry_s=crashes.delay_s,
                times=crashes.in_a_row,
                looping=crashes.looping,
                given_up=given_up,
            )
        )

    def _check_settled(self) -> None:
        if all(one.serving or one.looping for one in self._kept):
            self._settled.set()

    async def _announce(self, bus: Bus) -> None:
        """Tell when everything serves, or what does not come up."""
        self._check_settled()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                await self._settled.wait()
        encoder: RouterState | None = None
        if any(one.program.role == "router" and one.serving for one in self._kept):
            with suppress(MeshError):
                encoder = await bus.call(ROUTER_STATUS, RouterStatus())
        self._up = True
        self._write_record()
        self._tell(
            Up(
                record=self._record(),
                took_s=time.monotonic() - self._began,
                encoder=encoder,
                failing=tuple(one.program.name for one in self._kept if not one.serving),
            )
        )

    def _agents_changed(self, directory: Directory, names: list[ThingKey]) -> None:
        for name in dict.fromkeys(names):
            entered = directory.membership.get(name)
            live = entered is not None and _live(directory, name)
            if live == (name in self._joined):
                continue
            (self._joined.add if live else self._joined.discard)(name)
            self._tell(
                AgentChanged(
                    tenant=name.tenant,
                    name=name.name,
                    subset=name.subset,
                    version=entered.thing.version if entered else "",
                    joined=live,
                )
            )

    # -- stopping --

    async def _stop_all(self) -> None:
        self._tell(Stopping())
        by_name = {one.program.name: one for one in self._kept}
        for stage in stopping_stages(self._plan.programs):
            async with asyncio.TaskGroup() as tasks:
                for program in stage:
                    tasks.create_task(self._stop_one(by_name[program.name]))

    async def _stop_one(self, process: KeptProcess) -> None:
        if not process.alive():
            return
        killed = self._killed
        process.terminate()
        try:
            async with asyncio.timeout(self._plan.settings.drain_timeout_s + _KILL_AFTER_S):
                await process.ended()
        except TimeoutError:
            killed = True
            process.kill()
            await process.ended()
        self._tell(Stopped(name=process.program.name, killed=killed or self._killed))

    # -- what is told to others --

    def _environment(self, program: Program) -> dict[str, str]:
        return {**os.environ, "LMOS_NATS_URL": self._nats_url, **program.env}

    def _write_record(self) -> None:
        with suppress(MeshError):
            # A full disk must not end a mesh that runs.
            self._plan.place.write(self._record())

    def _record(self) -> MeshRecord:
        place = self._plan.place
        processes = [
            ProcessRecord(
                name=one.program.name,
                kind=one.program.kind,
                pid=one.pid if one.alive() else None,
                serving=one.serving and one.alive(),
                log=one.log,
            )
            for one in self._kept
        ]
        if self._nats is not None:
            pid = self._nats.pid if self._nats.alive() else None
            log = self._nats.settings.log_path
            nats = ProcessRecord(name=NATS, kind=NATS, pid=pid, serving=pid is not None, log=log)
            processes.insert(0, nats)
        return MeshRecord(
            name=place.name,
            pid=os.getpid(),
            version=VERSION,
            started=self._started,
            ready=self._up,
            tenant=self._plan.settings.tenant,
            nats_url=self._nats_url,
            http_url=self._plan.http_url,
            log_dir=place.log_dir,
            processes=tuple(processes),
        )


def _live(directory: Directory, name: ThingKey) -> bool:
    return directory.membership.live(name)


def _run_by(pid: int, directory: Directory) -> str:
    """The first of the agents that a process runs, and how many more there are."""
    leases = [lease for _, lease, _ in directory.membership.leases() if lease.pid == pid]
    names = sorted({one.name for lease in leases for one in lease.runs})
    left = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {left} more" if left > 0 else "")


def _nats_detail(server: NatsServer, binary: Binary) -> str:
    return f"{server.url}  nats-server {binary.version}"
