"""`lmos run`: have the agents of a file join the mesh, and start them anew when it changes."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from lmos_mesh.cli.agent_file import AgentFile, first_of, kill_all
from lmos_mesh.cli.agent_process import NotServing, Source
from lmos_mesh.cli.connection import bus_url
from lmos_mesh.cli.log_lines import WORTH_SAYING, read_line, shown
from lmos_mesh.cli.runner import Runner
from lmos_mesh.cli.screen import either, err, out
from lmos_mesh.errors import SettingsError
from lmos_mesh.mesh_state import MeshRecord, running_meshes
from lmos_mesh.settings import Settings, load_settings
from lmos_mesh.things import SHARED

_DEBOUNCE_MS = 200
_STEP_MS = 50
_LOOK_EVERY_MS = 1000
_REACHED_S = 2.0


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
    if "LMOS_LOG_LEVEL" not in environment:
        # What our own connection notes, those of the agents do too, and they are shown.
        logging.getLogger().addHandler(logging.NullHandler())
    told = _Screen(f"mesh {record.name}" if record else "the mesh")
    serving = [
        AgentFile(
            Source(
                path=file,
                subset=subset,
                environment=environment,
                drain_timeout_s=settings.drain_timeout_s,
                on_output=_Output(
                    _log_of(file, record), everything=bool(environment.get("LMOS_LOG_LEVEL"))
                ).on_line,
            ),
            instances=instances,
            told=told,
        )
        for file in dict.fromkeys(files)
    ]
    running = _Run(serving, Runner(serving, settings), told, reload=reload)
    told.runner = running.runner
    with asyncio.Runner() as runner:
        return runner.run(running.run())


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


class _Run:
    """Serves files until told to stop."""

    def __init__(
        self, files: Sequence[AgentFile], runner: Runner, told: "_Screen", *, reload: bool
    ) -> None:
        self.runner = runner
        self._files = files
        self._told = told
        self._reload = reload
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
            failed = group.subgroup(NotServing)
            if failed is None:
                raise
            await self._leave()
            raise SettingsError(str(first_of(failed))) from None
        finally:
            self._kill()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._kill()
        self._stop.set()

    def _kill(self) -> None:
        for file in self._files:
            kill_all(file.processes)

    async def _leave(self) -> int:
        processes = [process for file in self._files for process in file.processes]
        if any(process.alive() for process in processes):
            self._told.note("finishing what was begun; Ctrl-C again ends it at once")
        async with asyncio.TaskGroup() as tasks:
            for process in processes:
                tasks.create_task(process.stop())
        return 0

    async def _work(self) -> None:
        """Start everything, and keep it alive, up to date and steerable until cancelled."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.runner.run())
            async with asyncio.TaskGroup() as beginning:
                for file in self._files:
                    beginning.create_task(file.begin())
            for file in self._files:
                self._told.serving(file, time.monotonic() - began)
                tasks.create_task(file.keep())
            await self.runner.begin(at_most_s=_REACHED_S)
            watched = either(str(file.path) for file in self._files)
            ends = "Ctrl-C ends it"
            self._told.note(f"watching {watched}; {ends}" if self._reload else ends)
            if self._reload:
                tasks.create_task(self._watch())

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
                    if file.has_changed() and await file.reload():
                        self._rewatch.set()


class _Screen:
    """Tells whoever sits at the terminal; and the bus, which agents there are."""

    def __init__(self, where: str) -> None:
        self.runner: Runner | None = None
        self._where = where

    def serving(self, file: AgentFile, took_s: float) -> None:
        """Its processes serve."""
        if self.runner is not None:
            self.runner.changed()
        count = len(file.running)
        times = f", {count} instances," if count > 1 else ""
        for agent in file.agents:
            subset = "" if agent["subset"] == "stable" else f" ({agent['subset']})"
            can = either(agent["capabilities"], "nothing yet")
            home = ""
            if agent.get("tenant") == SHARED:
                whom = either(agent.get("tenants") or (), "any tenant")
                home = f"\n  from tenant {SHARED}, for {whom}"
            out().print(
                Text.assemble(
                    ("✓ ", "green"),
                    (f"{agent['name']} {agent['version']}{subset}{times}", "bold"),
                    f" serves on {self._where}",
                    (f"  {took_s:.1f} s", "dim"),
                    (f"\n  {can}{home}", "dim"),
                )
            )

    def wrong(self, text: str) -> None:
        """Something has failed."""
        self._mark("✗", "red", text)

    def changed(self, text: str) -> None:
        """Something is done about it."""
        self._mark("↻", "cyan", text)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        out().print(Text(f"  {text}", "dim"), soft_wrap=True)

    def _mark(self, mark: str, style: str, text: str) -> None:
        out().print(Text.assemble((f"{mark} ", style), text), soft_wrap=True)


class _Output:
    """What agents print is shown as it is; of what is logged, what needs attention."""

    def __init__(self, log: Path | None, *, everything: bool) -> None:
        self._log = log
        self._everything = everything

    def on_line(self, line: bytes) -> None:
        """Show a line, and keep it."""
        if self._log is not None:
            with suppress(OSError), self._log.open("ab") as log:
                log.write(line + b"\n")
        read = read_line(line.decode(errors="replace").rstrip("\r"))
        if read.told is None:
            out().print(Text(read.raw), soft_wrap=True)
        elif read.level in WORTH_SAYING or self._everything:
            err().print(shown(read), soft_wrap=True)
