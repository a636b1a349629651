"""`lmos run`: have the agents of a file join the mesh, and start them anew when it changes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from lmos_mesh.cli.connection import bus_url
from lmos_mesh.cli.log_lines import WORTH_SAYING, read_line, shown
from lmos_mesh.cli.screen import either, err, out
from lmos_mesh.errors import SettingsError
from lmos_mesh.mesh_state import MeshRecord, running_meshes
from lmos_mesh.restarts import Crashes
from lmos_mesh.settings import Settings, load_settings
from lmos_mesh.supervisor import exit_of, how_it_ended
from lmos_mesh.tether import tethered

_KILL_AFTER_S = 3.0
_LAST_WORDS_S = 1.0
_TRY_AGAIN_S = 15.0
_DEBOUNCE_MS = 200
_STEP_MS = 50
_LOOK_EVERY_MS = 1000


def run(
    files: Sequence[Path],
    *,
    reload: bool,
    tenant: str | None,
    subset: str | None,
    instances: int,
    mesh: str | None,
) -> int:
    """Serve the agents of these files until told to stop."""
    for file in files:
        _check(file)
    url = bus_url(mesh)
    record = next((one for one in running_meshes() if one.nats_url == url), None)
    environment = {
        **os.environ,
        "LMOS_NATS_URL": url,
        "LMOS_LOG_FORMAT": "json",
        "PYTHONUNBUFFERED": "1",
    }
    if tenant is not None:
        environment["LMOS_TENANT"] = tenant
    settings = load_settings(Settings, environment)
    serving = [
        _File(
            file,
            subset=subset,
            environment=environment,
            drain_timeout_s=settings.drain_timeout_s,
            log=_log_of(file, record),
            instances=instances,
        )
        for file in dict.fromkeys(files)
    ]
    where = f"mesh {record.name}" if record else "the mesh"
    with asyncio.Runner() as runner:
        return runner.run(_Runner(serving, reload=reload, where=where).run())


def _check(file: Path) -> None:
    if not file.exists():
        raise SettingsError(f"there is no file {file}", hint="give a Python file with an agent")
    if not file.is_file():
        raise SettingsError(f"{file} is no file", hint="give a Python file with an agent")


def _log_of(file: Path, record: MeshRecord | None) -> Path | None:
    """Where `lmos logs` looks for what its agents say; None if the mesh is elsewhere."""
    if record is None:
        return None
    taken = {one.name for one in record.processes}
    return record.log_dir / f"{f'agent-{file.stem}' if file.stem in taken else file.stem}.log"


class _NotServing(Exception):
    """A process of agents has ended before it served; its text says why."""


class _Lines(asyncio.Protocol):
    """Hands over what comes through a pipe line by line, as bytes without their end."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._begun = b""
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._on_line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._begun:
            self._on_line(self._begun)
        self.closed.set()

    @classmethod
    async def open(cls, on_line: Callable[[bytes], None]) -> "tuple[int, _Lines]":
        """A pipe: the descriptor to write to, for a child; and its reading side."""
        reading, writing = os.pipe()
        _, lines = await asyncio.get_running_loop().connect_read_pipe(
            lambda: cls(on_line), os.fdopen(reading, "rb", buffering=0)
        )
        return writing, lines


class _Copy:
    """One process that serves the agents of a file."""

    def __init__(self, file: "_File") -> None:
        self._file = file
        self.agents: list[dict[str, Any]] = []
        self.files: list[str] = []
        self._error = ""
        self._serving = asyncio.Event()
        self._popen: subprocess.Popen[bytes] | None = None
        self._output: _Lines | None = None

    async def start(self) -> None:
        """Start it and wait until it serves. Cancelling ends it.

        Raises:
            _NotServing: It has ended instead.
        """
        report, reports = await _Lines.open(self._on_report)
        saying, self._output = await _Lines.open(self._file.on_output)
        try:
            self._spawn(report, saying)
        finally:
            os.close(report)
            os.close(saying)
        try:
            await self._until_settled(reports)
        except asyncio.CancelledError:
            self.kill()
            raise
        if not self._serving.is_set():
            code = await self.ended()
            raise _NotServing(self._error or f"{self._file.path} {how_it_ended(code)}")

    def _spawn(self, report: int, saying: int) -> None:
        command = [sys.executable, "-P", "-m", "lmos_mesh.cli.serving", str(self._file.path)]
        command += ["--report-fd", str(report)]
        if self._file.subset is not None:
            command += ["--subset", self._file.subset]
        self._popen = subprocess.Popen(
            tethered(command, signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=saying,
            stderr=saying,
            env=self._file.environment,
            pass_fds=(report,),
            start_new_session=True,
        )

    async def _until_settled(self, reports: _Lines) -> None:
        """Its side of the pipe closes when it ends."""
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(one.wait()) for one in (self._serving, reports.closed)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    def _on_report(self, line: bytes) -> None:
        with suppress(ValueError):
            news = json.loads(line)
            self.agents = news.get("agents", self.agents)
            self.files = news.get("files", self.files)
            self._error = news.get("error", self._error)
            if "serving" in news:
                self._serving.set()

    async def ended(self) -> int:
        """Wait for its end, and for its last words."""
        assert self._popen is not None, "it has not been started"
        code = await exit_of(self._popen)
        if self._output is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._output.closed.wait()
        return code

    async def stop(self) -> None:
        """Let it finish what it does, and make it end if that takes too long."""
        if self._popen is None or self._popen.poll() is not None:
            return
        self._popen.terminate()
        try:
            async with asyncio.timeout(self._file.drain_timeout_s + _KILL_AFTER_S):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen is not None and self._popen.poll() is None

    def kill(self) -> None:
        """End it at once."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()


_Stamp = tuple[int, int]


def _stamp(path: str) -> _Stamp | None:
    """What tells one state of a file from another; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size)


def _kill_all(copies: Sequence[_Copy]) -> None:
    """End processes at once."""
    for copy in copies:
        copy.kill()


@dataclass(slots=True)
class _File:
    """One file of agents, and the processes that serve them."""

    path: Path
    subset: str | None
    environment: dict[str, str]
    drain_timeout_s: float
    log: Path | None
    instances: int
    copies: list[_Copy] = field(default_factory=list[_Copy])
    stamps: dict[str, "_Stamp | None"] = field(default_factory=dict[str, "_Stamp | None"])
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    mended: asyncio.Event = field(default_factory=asyncio.Event)

    def on_output(self, line: bytes) -> None:
        """What agents print is shown as it is; of what is logged, what needs attention."""
        if self.log is not None:
            with suppress(OSError), self.log.open("ab") as log:
                log.write(line + b"\n")
        read = read_line(line.decode(errors="replace").rstrip("\r"))
        if read.told is None:
            out().print(Text(read.raw), soft_wrap=True)
        elif read.level in WORTH_SAYING or self.environment.get("LMOS_LOG_LEVEL"):
            err().print(shown(read), soft_wrap=True)

    @property
    def sources(self) -> set[str]:
        """The files whose change is a change of its agents."""
        found = {str(self.path.resolve())}
        for copy in self.copies:
            found.update(copy.files)
        return found

    def has_changed(self) -> bool:
        """Whether a source is another than when the processes were last started.

        One that is gone is not: editors remove a file for a moment when they save it.
        """
        now = {path: _stamp(path) for path in self.sources}
        return any(stamp and stamp != self.stamps.get(path) for path, stamp in now.items())

    async def start_all(self) -> list[_Copy]:
        """New processes that serve; none is left if one of them does not.

        Raises:
            _NotServing: One of them has ended instead.
        """
        self.stamps = {path: _stamp(path) for path in self.sources}
        copies = [_Copy(self) for _ in range(self.instances)]
        try:
            async with asyncio.TaskGroup() as tasks:
                for copy in copies:
                    tasks.create_task(copy.start())
        except BaseExceptionGroup as group:
            _kill_all(copies)
            failed = group.subgroup(_NotServing)
            if failed is None:
                raise
            raise _first(failed) from None
        except asyncio.CancelledError:
            _kill_all(copies)
            raise
        for path in {path for copy in copies for path in copy.files}:
            self.stamps.setdefault(path, _stamp(path))
        return copies


class _Runner:
    """Serves files until told to stop."""

    def __init__(self, files: Sequence[_File], *, reload: bool, where: str) -> None:
        self._files = files
        self._reload = reload
        self._where = where
        self._stop = asyncio.Event()
        self._rewatch = asyncio.Event()

    async def run(self) -> int:
        """Serve; returns the exit status."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._on_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                working = tasks.create_task(self._work())
                stopping = tasks.create_task(self._stop.wait())
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                working.cancel()
            return await self._leave()
        except BaseExceptionGroup as group:
            failed = group.subgroup(_NotServing)
            if failed is None:
                raise
            await self._leave()
            raise SettingsError(str(_first(failed))) from None
        finally:
            self._kill()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._kill()
        self._stop.set()

    def _kill(self) -> None:
        for file in self._files:
            _kill_all(file.copies)

    async def _leave(self) -> int:
        if any(copy.alive() for file in self._files for copy in file.copies):
            self._note("finishing what was begun; Ctrl-C again ends it at once")
        async with asyncio.TaskGroup() as tasks:
            for file in self._files:
                for copy in file.copies:
                    tasks.create_task(copy.stop())
        return 0

    async def _work(self) -> None:
        """Start everything, and keep it alive and up to date until cancelled."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for file in self._files:
                tasks.create_task(self._begin(file))
        for file in self._files:
            self._tell_serving(file, began)
        watched = either(str(file.path) for file in self._files)
        self._note(f"watching {watched}; Ctrl-C ends it" if self._reload else "Ctrl-C ends it")
        async with asyncio.TaskGroup() as tasks:
            for file in self._files:
                for slot in range(file.instances):
                    tasks.create_task(self._keep(file, slot))
            if self._reload:
                tasks.create_task(self._watch())

    async def _begin(self, file: _File) -> None:
        file.copies = await file.start_all()

    # -- keeping alive --

    async def _keep(self, file: _File, slot: int) -> None:
        """Start a process again that has ended by itself."""
        crashes = Crashes()
        while True:
            copy, began = file.copies[slot], time.monotonic()
            code = await copy.ended()
            async with file.changing:
                if file.copies[slot] is not copy:
                    continue  # a reload has replaced it
                crashes = crashes.one_more(lived_s=time.monotonic() - began)
                self._mark("✗", "red", f"{file.path} {how_it_ended(code)}; it is started again")
            await asyncio.sleep(crashes.delay_s)
            await self._start_again(file, slot, copy)

    async def _start_again(self, file: _File, slot: int, dead: _Copy) -> None:
        while True:
            began = time.monotonic()
            async with file.changing:
                if file.copies[slot] is not dead:
                    return
                file.mended.clear()
                fresh = _Copy(file)
                try:
                    await fresh.start()
                except _NotServing as exc:
                    self._mark("✗", "red", str(exc))
                else:
                    file.copies[slot] = fresh
                    self._tell_serving(file, began)
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(_TRY_AGAIN_S):
                    await file.mended.wait()

    # -- keeping up to date --

    async def _watch(self) -> None:
        # Its annotation names a class of an optional dependency.
        from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType]

        while True:
            self._rewatch.clear()
            folders = {str(Path(path).parent) for file in self._files for path in file.sources}
            # What has changed is for the files themselves to say: an event may be of anything in
            # the folder, and none comes of what happened before the watch began.
            async for _ in awatch(
                *sorted(folders),
                recursive=False,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                stop_event=self._rewatch,
                rust_timeout=_LOOK_EVERY_MS,
                yield_on_timeout=True,
            ):
                for file in self._files:
                    if file.has_changed():
                        await self._reload_file(file)

    async def _reload_file(self, file: _File) -> None:
        """New processes first; the old ones leave when those serve, and stay if they do not."""
        self._mark("↻", "cyan", f"{file.path} has changed")
        began, before = time.monotonic(), file.sources
        async with file.changing:
            old = file.copies
            try:
                fresh = await file.start_all()
            except _NotServing as exc:
                self._mark("✗", "red", str(exc))
                if any(copy.alive() for copy in old):
                    self._note("the version before goes on serving")
                return
            file.copies = fresh
            file.mended.set()
            self._tell_serving(file, began)
        if file.sources != before:
            self._rewatch.set()
        async with asyncio.TaskGroup() as tasks:
            for copy in old:
                tasks.create_task(copy.stop())

    # -- telling --

    def _tell_serving(self, file: _File, began: float) -> None:
        times = f", {file.instances} instances," if file.instances > 1 else ""
        for agent in file.copies[0].agents:
            subset = "" if agent["subset"] == "stable" else f" ({agent['subset']})"
            can = either(agent["capabilities"], "nothing yet")
            out().print(
                Text.assemble(
                    ("✓ ", "green"),
                    (f"{agent['name']} {agent['version']}{subset}{times}", "bold"),
                    f" serves on {self._where}",
                    (f"  {time.monotonic() - began:.1f} s", "dim"),
                    (f"\n  {can}", "dim"),
                )
            )

    def _mark(self, mark: str, style: str, text: str) -> None:
        out().print(Text.assemble((f"{mark} ", style), text), soft_wrap=True)

    def _note(self, text: str) -> None:
        out().print(Text(f"  {text}", "dim"), soft_wrap=True)


def _first(group: BaseExceptionGroup[_NotServing]) -> _NotServing:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
