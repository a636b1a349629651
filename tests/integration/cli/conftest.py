"""Meshes started with the command line itself, as a person in a terminal would."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from lmos_mesh.mesh_state import MeshRecord
from tests.integration.processes import plain_client

LMOS = (sys.executable, "-m", "lmos_mesh.cli")
START_S = 90.0

LIGHT = ("--no-http", "--replicas", "router=0,runtime=0")
"""A mesh that starts quickly, for what any mesh would show."""

Lmos = Callable[..., "subprocess.CompletedProcess[str]"]


class Program:
    """`lmos` as a process of its own, its output line by line."""

    def __init__(self, arguments: Sequence[str], environ: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*LMOS, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environ,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._fresh.put(line.rstrip("\n"))
        self._fresh.put(None)

    def until(self, part: str, *, timeout_s: float = START_S) -> str:
        """The next line that has this part."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"no line with {part!r} came; these did:\n{self.text}")
            self.lines.append(line)
            if part in line:
                return line

    @property
    def text(self) -> str:
        """What it has said so far, as far as it was waited for."""
        return "\n".join(self.lines)

    def interrupt(self) -> None:
        """Ctrl-C in its terminal, which reaches every process of its group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, *, timeout_s: float = 30.0) -> int:
        """Its exit status, once it has ended."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        while (line := self._fresh.get(timeout=timeout_s)) is not None:
            self.lines.append(line)
        return code

    def close(self) -> None:
        """End it, whatever has become of it."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGCONT)
                os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Mesh:
    """A mesh that `lmos up --json` runs."""

    def __init__(self, program: Program, home: Path, environ: dict[str, str]) -> None:
        self.program = program
        self.home = home
        self.environ = environ
        self.up = self.event("up")
        self.name: str = self.up["record"]["name"]

    def event(self, kind: str, *, timeout_s: float = START_S, **wanted: Any) -> dict[str, Any]:
        """The next event of a kind, e.g. `died`, with these members."""
        while True:
            told: dict[str, Any] = json.loads(
                self.program.until(f'"event": "{kind}"', timeout_s=timeout_s)
            )
            if all(told.get(name) == value for name, value in wanted.items()):
                return told

    def so_far(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind that have come by."""
        told = [json.loads(line) for line in self.program.lines]
        return [one for one in told if one["event"] == kind]

    @property
    def record(self) -> MeshRecord:
        """What its `mesh.json` says now."""
        return MeshRecord.model_validate_json((self.home / self.name / "mesh.json").read_bytes())

    def pid(self, name: str) -> int:
        """The process id of one of its processes."""
        (found,) = (one.pid for one in self.record.processes if one.name == name)
        assert found is not None, f"{name} does not run"
        return found

    def processes(self) -> list[psutil.Process]:
        """All of its processes, itself included."""
        pids = [one.pid for one in self.record.processes if one.pid is not None]
        return [psutil.Process(pid) for pid in (self.program.process.pid, *pids)]


@asynccontextmanager
async def asked_by_commands(
    mesh: Mesh, question: str
) -> "AsyncGenerator[Callable[[], Awaitable[None]]]":
    """Tells of each time that a command asks the mesh something, e.g. `registry.find`.

    What a command shows of a screen that changes is seen at its end only; what it asks tells
    earlier how far it has come.
    """
    async with plain_client(mesh.record.nats_url) as client:
        heard = await client.subscribe(f"lmos.*.{question}")
        await client.flush()

        async def asked() -> None:
            async with asyncio.timeout(START_S):
                while ".cli-" not in (await heard.next_msg(timeout=START_S)).reply:
                    pass

        yield asked


class StartMesh(Protocol):
    """Starts meshes of a test's own."""

    def __call__(self, *arguments: str, **environ: str) -> Mesh:
        """`lmos up` with these arguments, once everything serves; stopped after the test."""
        ...


class StartLmos(Protocol):
    """Starts `lmos` for a test, to be watched."""

    def __call__(self, *arguments: str, **environ: str) -> Program:
        """A running process, ended after the test."""
        ...


def environ_of(home: Path, **more: str) -> dict[str, str]:
    """An environment in which no setting of this machine's user counts."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LMOS_")}
    kept = {"LMOS_MODELS_DIR": os.environ.get("LMOS_MODELS_DIR", "")}
    return {
        **own,
        **{name: value for name, value in kept.items() if value},
        "LMOS_STATE_DIR": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        **more,
    }


def start_up(home: Path, *arguments: str, **environ: str) -> Mesh:
    """A mesh on ports that nobody else has."""
    where = environ_of(home, **environ)
    ports = ["--nats-port", "0", "--http-port", "0"]
    ports = [] if "LMOS_NATS_URL" in environ or "--nats-port" in arguments else ports
    program = Program(["up", "--json", *ports, *arguments], where)
    try:
        return Mesh(program, home, where)
    except BaseException:
        program.close()
        raise


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state directory of the test's own."""
    return tmp_path / "state"


@pytest.fixture
def start_mesh(home: Path) -> Iterator[StartMesh]:
    """Starts meshes that belong to this test alone."""
    started: list[Mesh] = []

    def start(*arguments: str, **environ: str) -> Mesh:
        started.append(start_up(home, *arguments, **environ))
        return started[-1]

    yield start
    for mesh in started:
        mesh.program.close()


@pytest.fixture
def start_lmos(home: Path) -> Iterator[StartLmos]:
    """Starts `lmos` in this test's state directory, or in one that it is given."""
    started: list[Program] = []

    def start(*arguments: str, **environ: str) -> Program:
        started.append(Program(arguments, environ_of(home, **environ)))
        return started[-1]

    yield start
    for program in started:
        program.close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mesh]:
    """A mesh that the tests of a module share: leave it as it was."""
    started = start_up(tmp_path_factory.mktemp("shared") / "state")
    try:
        yield started
    finally:
        started.program.close()


@pytest.fixture
def lmos(home: Path) -> Lmos:
    """Runs `lmos` to its end; beside a mesh if its environment is given."""

    def run(
        *arguments: str,
        environ: dict[str, str] | None = None,
        stdin: str = "",
        timeout_s: float = START_S,
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*LMOS, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=environ or environ_of(home),
            timeout=timeout_s,
            check=False,
        )

    return run
