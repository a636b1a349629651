"""`lmos up` and `lmos down`: a whole mesh on one machine, and its end."""

import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.status import Status
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.screen import out, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.mesh_events import (
    AgentChanged,
    Died,
    Event,
    Serving,
    Stopped,
    Stopping,
    Up,
)
from lmos_mesh.mesh_state import MeshPlace, MeshRecord, find_mesh, place_of
from lmos_mesh.ports import claim_port
from lmos_mesh.programs import USUAL_ADAPTERS, Program, installed_programs, replicas_from
from lmos_mesh.restarts import LOOPING_AFTER
from lmos_mesh.service import VERSION
from lmos_mesh.settings import Settings, load_settings
from lmos_mesh.supervisor import NATS, MeshPlan, Supervisor

HTTP_PORT = 8420
HTTP_HOST = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_DOWN_TIMEOUT_S = 60.0
_REMIND_EVERY = 20


def up(
    *,
    name: str,
    nats_port: int | None,
    http_port: int | None,
    replicas: str,
    no_http: bool,
    adapters: Sequence[str],
    peers: Sequence[str],
    as_json: bool,
) -> int:
    """Run a mesh until told to stop."""
    plan = plan_of(
        name,
        nats_port=nats_port,
        http_port=http_port,
        replicas=replicas_from(replicas),
        no_http=no_http,
        adapters=adapters,
        peers=peers,
    )
    if as_json:
        return supervise(plan, _tell_json)
    screen = UpScreen(plan)
    try:
        code = supervise(plan, screen.tell)
    finally:
        screen.close()
    screen.end()
    return code


def plan_of(
    name: str,
    *,
    nats_port: int | None = None,
    http_port: int | None = None,
    replicas: dict[str, int] | None = None,
    no_http: bool = False,
    adapters: Sequence[str] = (),
    peers: Sequence[str] = (),
    agents: tuple[Program, ...] = (),
    own_nats: bool = False,
) -> MeshPlan:
    """What this mesh is made of.

    Args:
        name: Of the mesh.
        nats_port: For the NATS server that is started.
        http_port: For the HTTP adapter.
        replicas: How many of each service; one unless given.
        no_http: Leave the HTTP adapter out.
        adapters: What runs besides the usual ones.
        peers: Meshes whose agents are to be known here: names of those on this machine, or URLs
            of their HTTP adapters.
        agents: What runs beside the services.
        own_nats: Start a NATS server even if `LMOS_NATS_URL` names one.

    Raises:
        SettingsError: A setting, a port or a name cannot be used.
    """
    place = place_of(name)
    settings = load_settings(Settings)
    nats_url = None if own_nats else os.environ.get("LMOS_NATS_URL") or None
    if nats_url and nats_port is not None:
        raise SettingsError(
            "--nats-port is for a server that the mesh starts, and LMOS_NATS_URL names one that "
            "is there already",
            hint="give only one of them",
        )
    wanted = {*adapters, *(() if no_http else USUAL_ADAPTERS)}
    told = {"registry": {"LMOS_REGISTRY_MESH": os.environ.get("LMOS_REGISTRY_MESH") or name}}
    if peers:
        told["registry"]["LMOS_REGISTRY_PEERS"] = ",".join(map(_peer, peers))
    port, http_url = None, None
    programs = installed_programs(replicas or {}, adapters=wanted)
    if any(one.role == "http" for one in programs):
        host = os.environ.get("LMOS_HTTP_HOST") or HTTP_HOST
        port = claim_port(host, _http_port(http_port), first=HTTP_PORT, what="HTTP")
        http_url = f"http://{_reachable(host)}:{port.number}"
        told["http"] = {"LMOS_HTTP_HOST": host, "LMOS_HTTP_PORT": str(port.number)}
    return MeshPlan(
        place=place,
        programs=(*(replace(one, env=told.get(one.role, {})) for one in programs), *agents),
        settings=settings,
        nats_url=nats_url,
        nats_port=nats_port,
        http_port=port,
        http_url=http_url,
    )


def _peer(peer: str) -> str:
    """A peer as the registry's settings have it: a URL, or a name and a URL."""
    if "://" in peer:
        url = peer.partition("=")[2] if "=" in peer.partition("://")[0] else peer
        if not url.startswith(("http://", "https://")):
            raise SettingsError(
                f"--peer {peer!r} is not where a mesh's directory is read",
                hint="write http://HOST:8420, NAME=http://HOST:8420, or the name of a mesh here",
            )
        return peer
    url = find_mesh(peer).http_url
    if url is None:
        raise SettingsError(
            f"mesh {peer!r} has no HTTP adapter, so its directory cannot be read",
            hint="start it without --no-http",
        )
    return f"{peer}={url}"


def supervise(
    plan: MeshPlan,
    tell: Callable[[Event], None],
    *,
    beside: Callable[[Supervisor], Any] | None = None,
) -> int:
    """Run the mesh in this thread until a signal ends it.

    Args:
        plan: What to run.
        tell: Shows what happens.
        beside: A coroutine function to run as long as the mesh does.
    """
    with asyncio.Runner() as runner:
        return runner.run(_supervise(plan, tell, beside))


async def _supervise(
    plan: MeshPlan, tell: Callable[[Event], None], beside: Callable[[Supervisor], Any] | None
) -> int:
    other: asyncio.Task[Any] | None = None

    def tell_all(event: Event) -> None:
        if isinstance(event, Stopping) and other is not None:
            other.cancel()
        try:
            tell(event)
        except OSError:
            # Nobody reads it any more: the terminal is closed, or the other end of the pipe.
            _mute()

    supervisor = Supervisor(plan, tell_all)
    loop = asyncio.get_running_loop()
    for signum in SIGNALS:
        loop.add_signal_handler(signum, supervisor.stop)
    with _OwnLog(plan.place):
        async with asyncio.TaskGroup() as tasks:
            if beside is not None:
                other = tasks.create_task(beside(supervisor))
            try:
                await supervisor.run()
            finally:
                if other is not None:
                    other.cancel()
    return 130 if supervisor.killed else 0


def _mute() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def down(*, name: str | None, as_json: bool) -> int:
    """Stop a mesh that was started in another terminal."""
    record = find_mesh(name)
    place = place_of(record.name)
    began = time.monotonic()
    with suppress(ProcessLookupError):
        try:
            os.kill(record.pid, signal.SIGTERM)
        except PermissionError as exc:
            raise SettingsError(
                f"mesh {record.name!r} belongs to another user (process {record.pid})",
                hint="ask them to stop it",
            ) from exc
    with _status(f"Stopping mesh {record.name}"):
        while place.running():
            if time.monotonic() - began > _DOWN_TIMEOUT_S:
                raise SettingsError(
                    f"mesh {record.name!r} has not ended within {_DOWN_TIMEOUT_S:g} s",
                    hint=f"`kill -9 {record.pid}` ends it and all of its processes",
                )
            time.sleep(0.02)
    took_s = time.monotonic() - began
    if as_json:
        print_json({"stopped": record.name, "took_s": round(took_s, 2)})
    else:
        out().print(Text.assemble(("✓ ", "green"), f"mesh {record.name} is stopped"))
    return 0


class UpScreen:
    """What `lmos up` shows."""

    def __init__(self, plan: MeshPlan, *, title: str = "", tries: bool = True) -> None:
        self._plan = plan
        self._tries = tries
        self._began = False
        self._up = False
        self._stopping = False
        self._crashing: dict[str, str] = {}
        self._given_up: set[str] = set()
        self._title = title or f"mesh {plan.place.name}"
        self._waiting = [one.name for one in plan.programs]
        self._width = max(map(len, ["nats", *self._waiting]))
        self._spinner: Status | None = None

    def tell(self, event: Event) -> None:
        """Show what has happened."""
        self._begin()
        match event:
            case Serving(again=False) if not self._up:
                self._started(event)
            case Serving():
                self._crashing.pop(event.name, None)
                self._line("✓", "green", f"{event.name} serves again ({event.took_s:.1f} s)")
            case Died():
                self._died(event)
            case AgentChanged() if self._up and not self._stopping:
                self._agent(event)
            case Up():
                self._everything(event)
            case Stopping():
                self._stopping = True
                self._spin("Stopping; Ctrl-C again ends it at once")
            case Stopped(killed=True):
                self._line("!", "yellow", f"{event.name} was killed")
            case _:
                pass

    def end(self) -> None:
        """Say that nothing runs any more."""
        self._line("✓", "green", "everything is stopped")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _begin(self) -> None:
        if self._began:
            return
        self._began = True
        out().print(Text.assemble((f"{self._title}", "bold"), (f"  lmos-mesh {VERSION}", "dim")))
        self._spin(f"starting {', '.join(self._waiting)}")

    def _spin(self, text: str) -> None:
        """Say what is being waited for; on a terminal only, and gone when it is over."""
        if not out().is_terminal:
            return
        if self._spinner is None:
            self._spinner = _status(text)
            self._spinner.start()
        else:
            self._spinner.update(f"[dim]{text}[/dim]")

    def _started(self, event: Serving) -> None:
        if event.name in self._waiting:
            self._waiting.remove(event.name)
        detail = event.detail
        if event.name == "http" and self._plan.http_url:
            detail = self._plan.http_url
        out().print(
            Text.assemble(
                ("  ✓ ", "green"),
                event.name.ljust(self._width),
                (f"  {event.took_s:4.1f} s  ", "dim"),
                detail,
            )
        )
        if self._waiting:
            self._spin(f"starting {', '.join(self._waiting)}")

    def _died(self, event: Died) -> None:
        if event.given_up:
            self._given_up.add(event.name)
            # Its last words begin with its role.
            said = event.said or f"{event.name} {event.how}"
            self._line("✗", "red", said, "it is not started again; mend that, and start the mesh")
            return
        again = "at once" if event.retry_s < 0.5 else f"in {event.retry_s:.0f} s"
        # The same again is one word, and from then on now and then a reminder.
        known = self._crashing.get(event.name) == event.said and event.times > 1
        self._crashing[event.name] = event.said
        said = f": {event.said}" if event.said and not known else ""
        if event.times == LOOPING_AFTER or (event.looping and event.times % _REMIND_EVERY == 0):
            said = f": {event.said}" if event.said else ""
            self._line(
                "✗",
                "red",
                f"{event.name} {event.how}, {event.times} times in a row{said}",
                f"trying goes on, quietly; its log is {short(event.log)}{_remedy(event.said)}",
            )
        elif not event.looping:
            how = f"{event.how} again" if known else event.how
            self._line("✗", "red", f"{event.name} {how}{said}; it is started again {again}")

    def _agent(self, event: AgentChanged) -> None:
        subset = "" if event.subset == "stable" else f" ({event.subset})"
        tenant = "" if event.tenant == self._plan.settings.tenant else f" of tenant {event.tenant}"
        if event.joined:
            self._line("+", "cyan", f"{event.name} {event.version}{subset}{tenant} has joined")
        else:
            self._line("-", "cyan", f"{event.name}{subset}{tenant} has left")

    def _everything(self, event: Up) -> None:
        self._up = True
        self.close()
        record = event.record
        if event.failing:
            self._line(
                "✗",
                "red",
                f"{', '.join(event.failing)} did not start"
                + ("" if self._given_up.issuperset(event.failing) else "; trying goes on"),
                "`lmos logs` says why",
            )
        if event.encoder is not None and not event.encoder.semantic:
            self._line("!", "yellow", *_stand_in(event.encoder.note))
        out().print()
        out().print(where(record, event.encoder.encoder if event.encoder else "", event.took_s))
        out().print()
        if self._tries:
            out().print(tries(record))
            out().print()

    def _line(self, mark: str, style: str, text: str, more: str = "") -> None:
        at = f"{time.strftime('%H:%M:%S')} " if self._up else "  "
        lead = Text.assemble((at, "dim"), (f"{mark} ", style))
        said = Text.assemble(text, (f"\n{more}" if more else "", "dim"))
        if out().is_terminal:
            row = Table.grid()
            row.add_column(no_wrap=True)
            row.add_column(overflow="fold")
            row.add_row(lead, said)
            out().print(row)
        else:
            out().print(Text.assemble(lead, text))
            if more:
                out().print(f"{' ' * (len(at) + 2)}{more}")


def where(record: MeshRecord, encoder: str, took_s: float) -> Table:
    """Where things are."""
    from lmos_mesh.nats_transport import shown

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=6)
    table.add_column(overflow="fold")
    ours = any(one.kind == NATS for one in record.processes)
    moved = _moved(record.nats_url, 4222) if ours else ""
    table.add_row("  NATS", shown(record.nats_url) + moved)
    if record.http_url:
        moved = _moved(record.http_url, HTTP_PORT)
        table.add_row("  HTTP", Text.assemble(f"{record.http_url}/docs", moved))
    if encoder:
        table.add_row("  model", encoder)
    table.add_row("  logs", short(record.log_dir))
    table.add_row("  state", short(record.log_dir.parent))
    table.add_row("", Text(f"up in {took_s:.1f} s", style="dim"))
    return table


def tries(record: MeshRecord) -> Table:
    """What to try next."""
    mesh = "" if record.name == "default" else f" --mesh {record.name}"
    example = Path("examples/billing.py")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="dim")
    table.add_row(Text("Try in a second terminal", style="bold"), "")
    file = str(example) if example.exists() else "my_agent.py"
    table.add_row(f"  lmos run {file}{mesh}", "an agent joins")
    table.add_row(f'  lmos ask{mesh} "how much do I owe?"', "a question finds it")
    table.add_row(f"  lmos agents{mesh}", "who is there")
    table.add_row(f"  lmos doctor{mesh}", "whether all is well")
    table.add_row(Text("Ctrl-C stops everything", style="dim"), "")
    return table


def short(path: Path) -> str:
    """A path as a person would type it in a shell."""
    with suppress(ValueError, RuntimeError):
        return f"~/{shlex.quote(str(path.relative_to(Path.home())))}"
    return shlex.quote(str(path))


def _stand_in(note: str) -> tuple[str, str]:
    return (
        "the hashing embedder stands in for the embedding model: it knows words, not their meaning",
        f"{note or 'lmos models install'}; then start the mesh again",
    )


def _remedy(said: str) -> str:
    """What to do about a crash, where its last words tell."""
    if "ModuleNotFoundError" in said or "No module named" in said:
        return "; a package is missing: pip install 'lmos-mesh[all]'"
    return ""


def _moved(url: str, usual: int) -> str:
    port = url.rpartition(":")[2]
    return f"  ({usual} is taken)" if port.isdigit() and int(port) != usual else ""


def _http_port(option: int | None) -> int | None:
    if option is not None:
        return option
    given = os.environ.get("LMOS_HTTP_PORT")
    if not given:
        return None
    if not given.isdecimal():
        raise SettingsError(f"LMOS_HTTP_PORT={given!r} is no port", hint="give a number")
    return int(given)


def _reachable(host: str) -> str:
    """What to type for a host that was bound to."""
    if host in ("0.0.0.0", "::", ""):
        return HTTP_HOST
    return f"[{host}]" if ":" in host else host


def _status(text: str) -> Status:
    return out().status(f"[dim]{text}[/dim]", spinner="dots")


class _OwnLog:
    """What this process itself logs goes beside the logs of those that it started."""

    def __init__(self, place: MeshPlace) -> None:
        self._handler = logging.FileHandler(place.log_path("up"), delay=True)
        self._handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )

    def __enter__(self) -> None:
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


def _tell_json(event: Event) -> None:
    """One line per event, for a program to read."""
    told = {"event": type(event).__name__.lower(), "at": time.time(), **asdict(event)}
    if isinstance(event, Up):
        told["record"] = event.record.model_dump(mode="json")
        told["encoder"] = event.encoder.model_dump(mode="json") if event.encoder else None
    if isinstance(event, Died):
        told["log"] = str(event.log)
    print_json(told, compact=True)
