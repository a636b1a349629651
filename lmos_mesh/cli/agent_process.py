"""One process that serves the agents of a file, as the one that starts it sees it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmos_mesh.endings import exit_of, how_it_ended
from lmos_mesh.tether import tethered

_KILL_AFTER_S = 3.0
_LAST_WORDS_S = 1.0


class NotServing(Exception):
    """A process of agents has ended before it served; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the processes of a file have in common.

    Args:
        path: The file.
        subset: The release line of its agents; None for what the file says.
        environment: What they are told.
        drain_timeout_s: How long one that is stopped may finish what it is at.
        on_output: Takes what they print, line by line.
    """

    path: Path
    subset: str | None
    environment: Mapping[str, str]
    drain_timeout_s: float
    on_output: Callable[[bytes], None]


class AgentProcess:
    """A process that serves the agents of a file.

    Attributes:
        agents: What it has found in the file.
        files: What it depends on: the file, and the modules beside it.
        instance: What it is called on the mesh, once it serves.
        started: When it was, in Unix seconds.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.agents: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.instance = ""
        self.started = 0.0
        self._error = ""
        self._serving = asyncio.Event()
        self._popen: subprocess.Popen[bytes] | None = None
        self._output: _Lines | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid if self._popen is not None else 0

    async def start(self) -> None:
        """Start it and wait until it serves. Cancelling ends it.

        Raises:
            NotServing: It has ended instead.
        """
        report, reports = await _Lines.open(self._on_report)
        saying, self._output = await _Lines.open(self._source.on_output)
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
            raise NotServing(self._error or f"{self._source.path} {how_it_ended(code)}")

    def _spawn(self, report: int, saying: int) -> None:
        source = self._source
        command = [sys.executable, "-P", "-m", "lmos_mesh.cli.serving", str(source.path)]
        command += ["--report-fd", str(report)]
        if source.subset is not None:
            command += ["--subset", source.subset]
        self.started = time.time()
        self._popen = subprocess.Popen(
            tethered(command, signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=saying,
            stderr=saying,
            env=dict(source.environment),
            pass_fds=(report,),
            start_new_session=True,
        )

    async def _until_settled(self, reports: "_Lines") -> None:
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
                self.instance = str(news["serving"])
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
        if not self.alive():
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._source.drain_timeout_s + _KILL_AFTER_S):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    async def drain(self) -> None:
        """Let it finish what it does, for as long as that takes."""
        if self.alive():
            self._signal(signal.SIGUSR1)
            await self.ended()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen is not None and self._popen.poll() is None

    def kill(self) -> None:
        """End it at once."""
        if self.alive():
            self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        assert self._popen is not None, "it has not been started"
        self._popen.send_signal(signum)


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
