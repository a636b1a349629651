# pyright: reportUnknownMemberType=false
# nats-py types its options as nothing at all; what it gives is used as `Any`.
"""A mesh of real processes on a real nats-server, as it is deployed, each with its log at hand."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import nats

from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import FIND_THINGS, FindThings, FoundThing
from lmos_mesh.tether import tethered

READY_S = 60.0
STOP_S = 45.0
ANSWERED_S = 15.0
POLL_S = 0.02

# What a process logs when something is wrong with it, whatever its level.
_WRONG = ("exception", "error", "critical")


class Process:
    """One process of the mesh. Its log is read by a thread, so that nobody has to poll for it."""

    def __init__(
        self, name: str, command: list[str], *, env: Mapping[str, str], log_path: Path
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.instance = ""
        self.expected = ""
        self.told_to_end = False
        self._entries: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._popen = subprocess.Popen(
            tethered(command, signal.SIGKILL),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._popen.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<{self.name} {self.instance or self.pid}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def log(self) -> str:
        """Everything it has logged, for a person to read."""
        with self._changed:
            return "\n".join(_shown(entry) for entry in self._entries)

    def entries(self, text: str = "") -> list[dict[str, Any]]:
        """The log entries whose event contains a text."""
        with self._changed:
            return [one for one in self._entries if text in str(one.get("event", ""))]

    def complaints(self) -> list[str]:
        """What it logged that should not have come to pass; `expected` says what may."""
        with self._changed:
            return [
                f"{self.name}: {_shown(entry)}"
                for entry in self._entries
                if (entry.get("level") in _WRONG or "exception" in entry or "level" not in entry)
                and not (self.expected and self.expected in _shown(entry))
            ]

    def wait_ready(self, timeout_s: float = READY_S) -> "Process":
        """Wait until it says that it is ready.

        Raises:
            AssertionError: It ended first, or took too long; with its log.
        """
        self.wait_logged("is ready", timeout_s)
        return self

    async def ready(self) -> "Process":
        """`wait_ready` for coroutines: a program that stands still is cut by its nats-server."""
        return await asyncio.to_thread(self.wait_ready)

    def wait_logged(self, text: str, timeout_s: float = READY_S) -> dict[str, Any]:
        """Wait until it has logged an event that contains a text, and give that entry."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for entry in self._entries:
                    if text in str(entry.get("event", "")):
                        return entry
                left_s = until - time.monotonic()
                if self._ended or left_s <= 0:
                    break
                self._changed.wait(left_s)
        said = "ended" if self._ended else f"took more than {timeout_s:g} s"
        raise AssertionError(f"{self.name} {said} before it logged {text!r}:\n{self.log()}")

    async def logged(self, text: str, timeout_s: float = READY_S) -> dict[str, Any]:
        """`wait_logged` for coroutines."""
        return await asyncio.to_thread(self.wait_logged, text, timeout_s)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.told_to_end = True
        self._popen.kill()
        self._popen.wait()

    def terminate(self) -> None:
        """Tell it to end, without waiting."""
        self.told_to_end = True
        with suppress(ProcessLookupError):
            self._popen.terminate()

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Its exit code, once it has ended."""
        code = self._popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    async def ended(self, timeout_s: float = STOP_S) -> int:
        """`wait` for coroutines."""
        return await asyncio.to_thread(self.wait, timeout_s)

    def freeze(self) -> None:
        """Let it do nothing, without closing anything."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _read(self, output: IO[str]) -> None:
        with output, self.log_path.open("w") as log:
            for line in output:
                log.write(line)
                log.flush()
                with self._changed:
                    self._entries.append(_entry(line.rstrip("\n")))
                    self.instance = self.instance or str(self._entries[-1].get("instance", ""))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Deployment:
    """Processes on one nats-server. Whatever a test does to them, `stop` leaves none behind.

    Args:
        url: Where the nats-server is.
        directory: Where agents and logs are written.
        env: What every process is told.
    """

    def __init__(self, url: str, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.directory = directory
        self.processes: list[Process] = []
        self._env = {
            "LMOS_NATS_URL": url,
            "LMOS_LOG_FORMAT": "json",
            "LMOS_DRAIN_TIMEOUT_S": "5",
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }

    def start(self, service: str, **env: str) -> Process:
        """Start a service or an adapter; it is not ready yet."""
        return self._spawn(service, ["-P", "-m", f"lmos_mesh_{service}"], env)

    def start_agent(self, source: str, *, name: str = "agent", **env: str) -> Process:
        """Start an agent from its file, as its author would; it is not ready yet."""
        path = self.directory / f"{name}-{len(self.processes)}.py"
        path.write_text(textwrap.dedent(source))
        return self._spawn(name, [str(path)], env)

    def service(self, name: str, **env: str) -> Process:
        """A service that is ready."""
        return self.start(name, **env).wait_ready()

    def services(self, *names: str, **env: str) -> list[Process]:
        """Services that are ready, started side by side."""
        return [one.wait_ready() for one in [self.start(name, **env) for name in names]]

    def agent(self, source: str, *, name: str = "agent", **env: str) -> Process:
        """An agent that is registered."""
        return self.start_agent(source, name=name, **env).wait_ready()

    @asynccontextmanager
    async def client(self, tenant: str = "demo", **more: Any) -> AsyncGenerator[Mesh]:
        """A program's connection to the mesh, more patient than they usually are."""
        async with Mesh.connect(self.url, tenant=tenant, **more) as mesh:
            mesh.bus._timeout_s = ANSWERED_S  # pyright: ignore[reportPrivateUsage]
            yield mesh

    def of(self, instance: str) -> Process:
        """The process that calls itself so."""
        return next(one for one in self.processes if one.instance == instance)

    def died(self) -> list[Process]:
        """The processes that ended although nobody told them to."""
        return [one for one in self.processes if not one.alive and not one.told_to_end]

    def complaints(self) -> list[str]:
        """What any process logged that should not have come to pass."""
        return [said for one in self.processes for said in one.complaints()]

    def stop(self) -> dict[str, int]:
        """Tell all to end, and give the exit codes of those that were alive."""
        living = [one for one in self.processes if one.alive]
        for one in living:
            with suppress(ProcessLookupError):
                one.thaw()
            one.terminate()
        codes: dict[str, int] = {}
        for one in living:
            try:
                codes[repr(one)] = one.wait()
            except subprocess.TimeoutExpired:
                one.kill()
                codes[repr(one)] = -signal.SIGKILL
        for one in self.processes:
            one.wait()
        return codes

    def check_stop(self) -> None:
        """Stop, and insist that all ended in order and none had anything to complain of."""
        codes = self.stop()
        assert all(code == 0 for code in codes.values()), codes
        assert not self.complaints(), "\n".join(self.complaints())

    def _spawn(self, name: str, arguments: list[str], env: Mapping[str, str]) -> Process:
        process = Process(
            name,
            [sys.executable, *arguments],
            env={**self._env, **env},
            log_path=self.directory / f"{name}-{len(self.processes)}.log",
        )
        self.processes.append(process)
        return process


@asynccontextmanager
async def plain_client(url: str) -> AsyncGenerator[Any]:
    """A connection of nats-py, as somebody who knows nothing of the mesh has it."""
    client: Any = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def until(
    true: Callable[..., Awaitable[bool]], *arguments: Any, within_s: float = 30.0
) -> float:
    """Ask again and again until something is true, and say how many seconds it took."""
    began = time.perf_counter()
    while not await true(*arguments):
        took_s = time.perf_counter() - began
        assert took_s < within_s, f"not within {within_s:g} s: {_asked(true, arguments)}"
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - began


async def find_one(mesh: Mesh, name: str, **conditions: Any) -> FoundThing | None:
    """The Thing of that name if it is live."""
    found = await mesh.bus.call(FIND_THINGS, FindThings(name=name, **conditions))
    return found.things[0] if found.things else None


async def instances_of(mesh: Mesh, name: str) -> set[str]:
    """The live instances of an agent, as the registry has them."""
    found = await find_one(mesh, name)
    return {one.instance for one in found.instances} if found else set()


def _asked(true: Callable[..., object], arguments: Iterable[object]) -> str:
    """What was waited for, as it is written, with what it could see: `is_first('x', 'a1/c1')`."""
    given = [repr(one) for one in arguments if not isinstance(one, Mesh)]
    bound: Mapping[str, Any] = {}
    if inspect.isfunction(true):
        bound = inspect.getclosurevars(true).nonlocals
    seen = [f"{name}={value!r}" for name, value in bound.items() if not isinstance(value, Mesh)]
    name = getattr(true, "__qualname__", repr(true)).replace("<locals>.", "")
    return f"{name}({', '.join([*given, *seen])})"


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return cast("dict[str, Any]", entry) if isinstance(entry, dict) else {"event": line}


def _shown(entry: Mapping[str, Any]) -> str:
    rest: Iterable[str] = (
        f"{key}={value}"
        for key, value in entry.items()
        if key not in ("event", "exception", "timestamp", "service", "instance", "level")
    )
    said = f"[{entry.get('level', '-')}] {entry.get('event', '')} {' '.join(rest)}".rstrip()
    return f"{said}\n{entry['exception']}" if "exception" in entry else said
