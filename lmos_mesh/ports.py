"""Which TCP ports of this machine are free, and who has those that are not."""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmos_mesh.errors import SettingsError

_TRIED = 100
_LAST = 65535


@dataclass(slots=True)
class ClaimedPort:
    """A port that other meshes leave alone from now on, although nobody listens there yet."""

    number: int
    _claim: socket.socket

    def release(self) -> None:
        """Let others have it; a process that ends does so by itself."""
        self._claim.close()


def claim_port(host: str, given: int | None, *, first: int, what: str) -> ClaimedPort:
    """The given port, any free one for 0, or the first free one from `first` on.

    Raises:
        SettingsError: It is taken, or this user may not have it.
    """
    if given == 0:
        given = _any_port(host)
    for port in range(first, first + _TRIED) if given is None else (given,):
        if is_free(host, port) and (claim := _claim(port)):
            return ClaimedPort(port, claim)
    if given is not None:
        raise SettingsError(
            f"port {given} for {what} is taken{holder(given)}",
            hint="give another one, or none to take the next free one",
        )
    raise SettingsError(
        f"every port from {first} to {first + _TRIED - 1} of {host} is taken",
        hint=f"give one for {what}",
    )


def _claim(port: int) -> socket.socket | None:
    """Keep others who ask here from a port; None if one of them has it.

    Whoever will listen does so seconds later, in a process of its own, and could not if the port
    itself were held.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if sys.platform == "linux":
        try:
            # A name without a file: it is gone with the process, and nobody has to clean up.
            claim.bind(f"\0lmos-mesh/port/{port}")
        except OSError:
            claim.close()
            return None
    return claim


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there.

    Raises:
        SettingsError: No server could: this user lacks the rights, or there is no such place.
    """
    with socket.socket(_family(host, port), socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as exc:
            raise SettingsError(
                f"port {port} needs rights that this user lacks", hint="give one above 1023"
            ) from exc
        except OverflowError as exc:
            raise SettingsError(
                f"there is no port {port}", hint=f"give one from 1 to {_LAST}"
            ) from exc
        except OSError:
            return False
    return True


def _any_port(host: str) -> int:
    family = _family(host, 0)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _family(host: str, port: int) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (socket.gaierror, OverflowError) as exc:
        if not 0 <= port <= _LAST:
            raise SettingsError(
                f"there is no port {port}", hint=f"give one from 1 to {_LAST}"
            ) from exc
        raise SettingsError(
            f"cannot listen on {host}:{port}: {exc}", hint="give an address of this machine"
        ) from exc


def holder(port: int) -> str:
    """Who listens on a port, as far as Linux lets this user see: ` by process 7 (nats-server)`."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in _text(Path(table)).splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                for pid in filter(str.isdigit, os.listdir("/proc")):
                    if _has_open(pid, f"socket:[{inode}]"):
                        name = _text(Path(f"/proc/{pid}/comm")).strip()
                        return f" by process {pid} ({name})"
    return ""


def _has_open(pid: str, target: str) -> bool:
    opened = f"/proc/{pid}/fd"
    with suppress(OSError):
        return any(_links_to(f"{opened}/{file}", target) for file in os.listdir(opened))
    return False


def _links_to(path: str, target: str) -> bool:
    with suppress(OSError):
        return os.readlink(path) == target
    return False


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
