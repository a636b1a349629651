"""One process of a mesh that is kept alive, and its log."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmos_mesh.endings import exit_of, last_words
from lmos_mesh.programs import Program
from lmos_mesh.tether import tethered


@dataclass(slots=True)
class KeptProcess:
    """One process that is kept alive."""

    program: Program
    log: Path
    serving: bool = False
    looping: bool = False
    _popen: "subprocess.Popen[bytes] | None" = None
    _log_from: int = 0

    @property
    def pid(self) -> int:
        """Its process id; 0 before it is started."""
        return self._popen.pid if self._popen is not None else 0

    def alive(self) -> bool:
        """Whether it runs."""
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
        """Wait for its end."""
        assert self._popen is not None, "it has not been started"
        return await exit_of(self._popen)

    def terminate(self) -> None:
        """Ask it to end."""
        if self._popen is not None and self.alive():
            self._popen.terminate()

    def kill(self) -> None:
        """End it at once."""
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


def begin_log(log: Path) -> None:
    """Begin an empty log; the one of the last run is kept beside it."""
    with suppress(OSError):
        if log.stat().st_size:
            log.replace(log.with_suffix(".log.1"))
