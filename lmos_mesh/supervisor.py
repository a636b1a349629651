"""Keeps the processes of one mesh alive: starts them, starts them again, stops them in order.

What happens is told as events; whoever shows them decides how.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, new_instance
from lmos_mesh.directory import Directory
from lmos_mesh.errors import MeshError
from lmos_mesh.membership import ThingKey
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
from lmos_mesh.tether import tethered
from lmos_mesh.transport import Packet

NATS = "nats"

_ASK_EVERY_S = 0.05
_ELSEWHERE_S = 0.2
_POLL_S = 0.05
_SETTLE_TIMEOUT_S = 60.0
_KILL_AFTER_S = 3.0
_TAIL_BYTES = 16 * 1024
# Whoever is killed from outside does not know of it: its last line is no reason.
_SILENT_ENDS = (-signal.SIGKILL, -signal.SIGTERM)


# -- what happens --


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that whoever watches the mesh should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Event):
    """A process does its work. `again`: after a crash."""

    name: str
    took_s: float
    again: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Died(Event):
    """A process has ended although nobody asked it to.

    Attributes:
        how: `was killed by SIGKILL`, `ended with status 1`.
        said: The last line of its log since it started; '' if somebody killed it.
        retry_s: When it is started again.
        looping: It has died too often for an accident.
        given_up: It is not started again, as its settings cannot be used.
    """

    name: str
    how: str
    said: str
    log: Path
    retry_s: float
    times: int
    looping: bool
    given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Up(Event):
    """Everything has started, `failing` apart.

    Attributes:
        encoder: How the router turns text into vectors; None if it does not say.
    """

    record: MeshRecord
    took_s: float
    encoder: RouterState | None
    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanged(Event):
    """An agent has its first instance, or has lost its last one."""

    tenant: str
    name: str
    subset: str
    version: str
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    """The processes are being stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """A process has ended because it was asked to. `killed`: it had to be made to."""

    name: str
    killed: bool


# -- what is run --


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
        self._kept = [_Process(one, plan.place.log_path(one.name)) for one in plan.programs]
        self._answering = _Answering()
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
                _begin_log(process.log)
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
        _begin_log(log)
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

    async def _keep(self, process: "_Process", directory: Directory) -> None:
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
        self, process: "_Process", directory: Directory, began: float, *, again: bool
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
                    Serving(name=process.program.name, took_s=time.monotonic() - began, again=again)
                )
                return
            await asyncio.sleep(_ASK_EVERY_S)

    def _serves(self, process: "_Process", directory: Directory, before: frozenset[str]) -> bool:
        if process.program.kind != "agent":
            return self._answering.claim(process.program.micro, before)
        membership = directory.membership
        return any(
            lease.pid == process.pid
            and all(
                membership.get(ThingKey(tenant, thing.name, thing.subset)) for thing in lease.things
            )
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

    async def _stop_one(self, process: "_Process") -> None:
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


@dataclass(slots=True)
class _Process:
    """One process that is kept alive."""

    program: Program
    log: Path
    serving: bool = False
    looping: bool = False
    _popen: "subprocess.Popen[bytes] | None" = None
    _log_from: int = 0

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen is not None else 0

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def spawn(self, environment: Mapping[str, str]) -> str:
        """Start it; returns why that was not possible."""
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as exc:
            return f"cannot write its log {self.log}: {exc.strerror}"
        try:
            self._log_from = os.fstat(log).st_size
            # It keeps nothing that is not on the bus, so what a lost supervisor leaves is killed.
            self._popen = subprocess.Popen(
                tethered(self.program.command, signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                # Ctrl-C in the terminal is for us; we stop it when its turn comes.
                start_new_session=True,
            )
        except OSError as exc:
            return f"cannot be started: {exc.strerror}"
        finally:
            os.close(log)
        return ""

    async def ended(self) -> int:
        assert self._popen is not None, "it has not been started"
        return await exit_of(self._popen)

    def terminate(self) -> None:
        if self._popen is not None and self.alive():
            self._popen.terminate()

    def kill(self) -> None:
        if self._popen is not None and self.alive():
            self._popen.kill()

    def end(self) -> None:
        """Leave nothing behind."""
        self.kill()
        if self._popen is not None:
            self._popen.wait()

    def said(self) -> str:
        """The last line of its log since it was started."""
        return last_words(self.log, self._log_from)


@dataclass(slots=True)
class _Answering:
    """Which micro services answer on the bus: a process that does has started."""

    _ids: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _claimed: set[str] = field(default_factory=set[str])
    _bus: Bus | None = None
    _inbox: str = ""

    async def listen(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.transport.open_inbox(self._on_answer).subject

    def ask(self, subject: str) -> None:
        assert self._bus is not None, "listen first"
        with suppress(MeshError):
            self._bus.transport.publish(subject, b"", reply=self._inbox)

    def known(self, service: str) -> frozenset[str]:
        """Who has answered so far: a process that starts now is none of them."""
        return frozenset(self._ids.get(service, ()))

    def claim(self, service: str, before: frozenset[str]) -> bool:
        """Whether a new instance answers that nobody has claimed; if not, ask again."""
        if fresh := self._ids.get(service, set()) - before - self._claimed:
            self._claimed.add(fresh.pop())
            return True
        self.ask(f"$SRV.PING.{service}")
        return False

    def _on_answer(self, packet: Packet) -> None:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(packet.payload)
            self._ids.setdefault(str(told["name"]), set()).add(str(told["id"]))


async def exit_of(process: "subprocess.Popen[bytes]") -> int:
    """Wait until a child has ended, without a moment's delay on Linux. Cancelling is safe."""
    if sys.platform == "linux":
        with suppress(OSError):
            watched = os.pidfd_open(process.pid)
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(watched, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
    while True:
        if (code := process.poll()) is not None:
            return code
        await asyncio.sleep(_POLL_S)


def last_words(log: Path, since: int = 0) -> str:
    """What the last line of a log says: its event if it is JSON, else the line itself."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    line = next((one.strip() for one in reversed(text.splitlines()) if one.strip()), "")
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict):
            return _event_of(told)  # pyright: ignore[reportUnknownArgumentType]
    return line


def _event_of(told: Mapping[str, object]) -> str:
    trace = str(told.get("exception") or "").strip().splitlines()
    said = str(told.get("event", ""))
    return f"{said}: {trace[-1]}" if trace else said


def _begin_log(log: Path) -> None:
    """Begin an empty log; the one of the last run is kept beside it."""
    with suppress(OSError):
        if log.stat().st_size:
            log.replace(log.with_suffix(".log.1"))


def how_it_ended(code: int) -> str:
    """What an exit status says, as the rest of a sentence."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with status {code}"


def _live(directory: Directory, name: ThingKey) -> bool:
    return directory.membership.live(name)


def _nats_detail(server: NatsServer, binary: Binary) -> str:
    return f"{server.url}  nats-server {binary.version}"
