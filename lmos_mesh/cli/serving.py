"""The process in which `lmos run` serves a file's agents: `python -m lmos_mesh.cli.serving FILE`.

It tells its parent through a pipe what it found in the file, and when it serves; or, in a few
lines that a person can act upon, why it does not. SIGUSR1 has it leave like SIGTERM, but finish
what it is at however long that takes.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from lmos_mesh.agent import Agent
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidDescription, MeshError, SettingsError
from lmos_mesh.hosting import AgentHost, AgentSettings
from lmos_mesh.service import run_service
from lmos_mesh.settings import load_settings
from lmos_mesh.thing_faults import faults_of, label_of

MODULE = "lmos_agents"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the agents of a file until told to stop."""
    parser = argparse.ArgumentParser(prog="lmos-serving", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--subset")
    parser.add_argument("--report-fd", type=int)
    given = parser.parse_args(arguments)
    tell = _telling(given.report_fd)
    try:
        agents = load_agents(given.file, subset=given.subset)
    except MeshError as exc:
        tell({"error": str(exc)})
        sys.exit(str(exc) if given.report_fd is None else 1)
    own = load_settings(AgentSettings).tenant
    tell({"agents": [_shown(agent, own) for agent in agents], "files": local_files(given.file)})
    run_service(given.file.stem, AgentSettings, lambda settings: _Reporting(agents, settings, tell))


def load_agents(file: Path, *, subset: str | None = None) -> list[Agent]:
    """The agents that a Python file defines or imports.

    Raises:
        SettingsError: It cannot be loaded, or has none.
        InvalidDescription: One of them breaks the rules; every reason is named.
    """
    module = _load(file)
    agents = list(
        {id(one): one for one in vars(module).values() if isinstance(one, Agent)}.values()
    )
    if not agents:
        raise SettingsError(
            f"{file} has no agent", hint="make one: agent = Agent('my-agent'), at its top level"
        )
    tenant = load_settings(AgentSettings).tenant
    for agent in agents:
        if subset is not None:
            agent.subset = subset
        raw = agent.thing(tenant)
        if faults := [*faults_of(raw), *agent.faults()]:
            raise InvalidDescription.of(f"{label_of(raw)} of {file}", faults)
    return agents


def local_files(file: Path) -> list[str]:
    """The file and the modules beside it that it has imported: what a reload depends on."""
    home = file.resolve().parent
    found = {file.resolve()}
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if not source or not source.endswith(".py"):
            continue
        path = Path(source).resolve()
        if path.is_relative_to(home) and "site-packages" not in path.parts:
            found.add(path)
    return sorted(map(str, found - _OURS))


_OURS = {
    Path(source).resolve()
    for name, module in list(sys.modules.items())
    if name.partition(".")[0] == "lmos_mesh" and (source := getattr(module, "__file__", None))
}


def _load(file: Path) -> ModuleType:
    path = file.resolve()
    # As Python does for a script: what lies beside it can be imported.
    sys.path.insert(0, str(path.parent))
    # Compiled files are told apart by whole seconds, which is too coarse for edit and reload.
    sys.dont_write_bytecode = True
    loader = SourceFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        loader.exec_module(module)
    except SyntaxError as exc:
        raise SettingsError(_syntax(file, exc)) from exc
    except (UnicodeDecodeError, ValueError) as exc:
        if _lines_of(file, exc):
            raise SettingsError(_raised(file, exc)) from exc
        raise SettingsError(f"{file} is not Python: {exc}") from exc
    except OSError as exc:
        if _lines_of(file, exc):
            raise SettingsError(_raised(file, exc)) from exc
        raise SettingsError(f"{file} cannot be read: {exc.strerror}") from exc
    except SystemExit as exc:
        raise SettingsError(
            f"{file} ends itself while it is loaded (status {exc.code})",
            hint="put what runs under `if __name__ == '__main__':`",
        ) from exc
    except Exception as exc:
        raise SettingsError(_raised(file, exc)) from exc
    return module


def _syntax(file: Path, exc: SyntaxError) -> str:
    where = file if exc.filename is None or Path(exc.filename) == file.resolve() else exc.filename
    at = f", line {exc.lineno}" if exc.lineno else ""
    code = (exc.text or "").strip()
    return f"{where} is not valid Python{at}: {exc.msg}" + (f"\n    {code}" if code else "")


def _raised(file: Path, exc: BaseException) -> str:
    """What went wrong and where in the user's own code, without our lines or the library's."""
    said = str(exc) if isinstance(exc, MeshError) else f"{type(exc).__name__}: {exc}"
    lines = [f"{file} cannot be loaded: {said}"]
    for frame in _lines_of(file, exc)[-3:]:
        shown = Path(frame.filename)
        with suppress(ValueError):
            shown = shown.relative_to(Path.cwd())
        lines.append(f"    {shown}, line {frame.lineno}: {frame.line}")
    return "\n".join(lines)


def _lines_of(file: Path, exc: BaseException) -> list[traceback.FrameSummary]:
    home = str(file.resolve().parent)
    ours = {str(path) for path in _OURS}
    return [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.filename.startswith(home)
        and "site-packages" not in frame.filename
        and frame.filename not in ours
    ]


def _shown(agent: Agent, tenant: str) -> dict[str, Any]:
    thing = agent.thing(tenant)
    return {
        "name": agent.name,
        "version": agent.version,
        "subset": agent.subset,
        "tenant": thing["tenant"],
        "tenants": thing["supported_tenants"],
        "capabilities": [action.capability.name for action in agent.actions],
    }


def _telling(descriptor: int | None) -> Callable[[dict[str, Any]], None]:
    if descriptor is None:
        return lambda _: None
    # What the agents start is none of the parent's business.
    os.set_inheritable(descriptor, False)

    def tell(news: dict[str, Any]) -> None:
        with suppress(OSError):
            os.write(descriptor, json.dumps(news).encode() + b"\n")

    return tell


class _Reporting:
    """Agents whose host says when it serves.

    Attributes:
        drain_timeout_s: How long it may finish what it is at; None for as long as that takes.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        settings: AgentSettings,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._host = AgentHost(agents, settings)
        self._tell = tell
        self.drain_timeout_s: float | None = settings.drain_timeout_s

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Join the mesh and serve until cancelled."""

        def drain() -> None:
            self.drain_timeout_s = None
            if bus.on_drain is not None:
                bus.on_drain()

        def tell_ready() -> None:
            ready()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, drain)
            self._tell({"serving": bus.instance})

        try:
            await self._host.run(bus, tell_ready)
        except MeshError as exc:
            self._tell({"error": str(exc)})
            raise

    async def leave(self) -> None:
        """Say goodbye before draining."""
        await self._host.leave()


if __name__ == "__main__":
    main()
