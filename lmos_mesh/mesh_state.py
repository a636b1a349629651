"""Which meshes run on this machine, and where: what `lmos up` notes and other commands read.

A mesh runs as long as its lock is held. The kernel lets go of it with the process, so neither a
crash nor a process id that somebody else has got since makes a dead mesh look alive.
"""

import fcntl
import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lmos_mesh.errors import Conflict, NotFound, SettingsError

DEFAULT_NAME = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_CLAIM_WAIT_S = 0.5


class ProcessRecord(BaseModel):
    """One process of a mesh.

    Attributes:
        pid: None while it waits to be started again.
        serving: Whether it has started well and not ended since.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    pid: int | None
    serving: bool
    log: Path


class MeshRecord(BaseModel):
    """What `mesh.json` says.

    Attributes:
        pid: Of `lmos up`.
        ready: Whether everything has started.
        nats_url: Where clients connect; it may hold a password, so nobody else reads the file.
        http_url: Where the HTTP adapter answers; None without one.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    version: str
    started: float
    ready: bool
    tenant: str
    nats_url: str
    http_url: str | None
    log_dir: Path
    processes: tuple[ProcessRecord, ...]


@dataclass(frozen=True, slots=True)
class MeshPlace:
    """The directory of one mesh."""

    name: str
    directory: Path

    @property
    def record_path(self) -> Path:
        """Where it is noted what runs where."""
        return self.directory / "mesh.json"

    @property
    def log_dir(self) -> Path:
        """One log file per process."""
        return self.directory / "logs"

    @property
    def nats_dir(self) -> Path:
        """What the embedded NATS server keeps."""
        return self.directory / "nats"

    def log_path(self, process: str) -> Path:
        """The log of one process."""
        return self.log_dir / f"{process}.log"

    @contextmanager
    def claim(self) -> Generator[None]:
        """Be this mesh while the block lasts; what an earlier one left in `mesh.json` is gone.

        Raises:
            Conflict: It runs already.
            SettingsError: The directory cannot be written.
        """
        with _writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.log_dir.mkdir(exist_ok=True)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock(lock)
            with _writing(self.directory):
                self.record_path.unlink(missing_ok=True)
            yield
            with suppress(OSError):
                self.record_path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def running(self) -> bool:
        """Whether some process is this mesh now."""
        try:
            lock = os.open(self._lock_path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(lock)
        return False

    def read(self) -> MeshRecord | None:
        """What was noted last, whether or not it runs; None if nothing readable was."""
        try:
            return MeshRecord.model_validate_json(self.record_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, record: MeshRecord) -> None:
        """Note what runs where, for the eyes of this user only; readers see old or new."""
        fresh = self.record_path.with_suffix(f".{os.getpid()}")
        with _writing(self.directory):
            fresh.unlink(missing_ok=True)
            private = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(private, "w") as file:
                file.write(record.model_dump_json(indent=2) + "\n")
            fresh.replace(self.record_path)

    @property
    def _lock_path(self) -> Path:
        return self.directory / "mesh.lock"

    def _lock(self, lock: int) -> None:
        until = time.monotonic() + _CLAIM_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Whoever only looks holds it for an instant.
                if time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                record = self.read()
                raise Conflict(
                    f"mesh {self.name!r} runs already"
                    + (f", as process {record.pid}" if record else ""),
                    hint=f"`lmos down --name {self.name}` stops it; "
                    "another one can run beside it: `lmos up --name NAME`",
                ) from None
            return


def state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The directory that holds one directory per mesh; it need not exist yet.

    Raises:
        SettingsError: There is no home directory to put it in.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("LMOS_STATE_DIR"):
        return Path(os.path.abspath(Path(named).expanduser()))
    # The XDG specification has relative paths ignored.
    if os.path.isabs(xdg := environ.get("XDG_STATE_HOME", "")):
        return Path(xdg) / "lmos-mesh"
    try:
        return Path.home() / ".local" / "state" / "lmos-mesh"
    except RuntimeError as exc:
        raise SettingsError(
            "there is no home directory to keep the mesh's state in",
            hint="set LMOS_STATE_DIR to a folder",
        ) from exc


def place_of(name: str) -> MeshPlace:
    """Where the mesh of a name lives.

    Raises:
        SettingsError: No mesh can have that name.
    """
    if not _NAME.match(name):
        raise SettingsError(
            f"{name!r} cannot be the name of a mesh",
            hint="use at most 64 letters, digits, - and _, and begin with a letter or digit",
        )
    return MeshPlace(name, state_dir() / name)


def known_meshes() -> list[MeshPlace]:
    """Every mesh that has ever been started here, by name."""
    try:
        names = sorted(entry.name for entry in state_dir().iterdir() if entry.is_dir())
    except OSError:
        return []
    return [place_of(name) for name in names if _NAME.match(name)]


def running_meshes() -> list[MeshRecord]:
    """Every mesh that runs here and has said where, by name."""
    return [record for place in known_meshes() if place.running() and (record := place.read())]


def find_mesh(name: str | None) -> MeshRecord:
    """The running mesh of that name, or the only one that runs.

    Raises:
        NotFound: It does not run, or there is none, or more than one to choose from.
    """
    if name is not None:
        place = place_of(name)
        record = place.read() if place.running() else None
        if record is None:
            others = [one.name for one in running_meshes()]
            do = "does" if len(others) == 1 else "do"
            raise NotFound(
                f"mesh {name!r} does not run" + (f"; {', '.join(others)} {do}" if others else ""),
                hint=f"start it with `lmos up --name {name}`",
            )
        return record
    running = running_meshes()
    if not running:
        raise NotFound(
            "no mesh runs here",
            hint="start one with `lmos up`, or set LMOS_NATS_URL to where one is",
        )
    if len(running) > 1:
        raise NotFound(
            f"{len(running)} meshes run here: {', '.join(one.name for one in running)}",
            hint="say which with --mesh NAME",
        )
    return running[0]


@contextmanager
def _writing(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise SettingsError(
            f"cannot write to the state directory {directory}: {exc.strerror}",
            hint="make it writable, or set LMOS_STATE_DIR to another folder",
        ) from exc
