"""Which processes make a mesh: found by entry point, never by import."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from lmos_mesh.errors import SettingsError

SERVICES = "lmos_mesh.services"
PROTOCOLS = "lmos_mesh.protocols"

USUAL_ADAPTERS = frozenset({"http"})
"""Those that a mesh has unasked; every other one speaks to somewhere that somebody must choose."""

Kind = Literal["service", "adapter", "agent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to start and to keep alive.

    Args:
        name: On the screen, and of its log file.
        kind: What it is.
        role: What it is one of: `registry` for `registry-2`.
        command: What to run.
        env: What it is told besides this process's own environment.
    """

    name: str
    kind: Kind
    role: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def micro(self) -> str:
        """What it calls itself as a NATS micro service."""
        return f"lmos-{self.role}"


def installed_programs(
    replicas: Mapping[str, int], *, adapters: Iterable[str] = USUAL_ADAPTERS
) -> list[Program]:
    """Every service that is installed, and these adapters.

    Args:
        replicas: How many of a service; one unless given, none for 0.
        adapters: Which ones to run, of those that are installed.

    Raises:
        SettingsError: `replicas` or `adapters` names what is not installed.
    """
    wanted = set(adapters)
    installed = {one.name: one for one in _by_name(PROTOCOLS)}
    if missing := sorted(wanted - installed.keys() - USUAL_ADAPTERS):
        raise SettingsError(
            f"no adapter is called {missing[0]!r}",
            hint=f"there are {', '.join(sorted(installed))}",
        )
    found: list[tuple[Kind, EntryPoint]] = [
        *(("service", one) for one in _by_name(SERVICES)),
        *(("adapter", one) for name, one in installed.items() if name in wanted),
    ]
    services = [point.name for kind, point in found if kind == "service"]
    if unknown := sorted(set(replicas) - set(services)):
        raise SettingsError(
            f"no service is called {unknown[0]!r}", hint=f"there are {', '.join(services)}"
        )
    return [
        Program(
            name=point.name if number == 1 else f"{point.name}-{number}",
            kind=kind,
            role=point.name,
            command=command_of(point),
        )
        for kind, point in found
        for number in range(1, replicas.get(point.name, 1) + 1)
    ]


def command_of(point: EntryPoint) -> tuple[str, ...]:
    """How to run an entry point as a process of its own."""
    # -P: a file in the working directory must not shadow one of the program's modules.
    if point.module.endswith(".__main__"):
        return (sys.executable, "-P", "-m", point.module.removesuffix(".__main__"))
    call = f"import sys; from {point.module} import {point.attr} as main; sys.exit(main())"
    return (sys.executable, "-P", "-c", call)


def replicas_from(text: str) -> dict[str, int]:
    """How many of each service, from `registry=2,router=1`.

    Raises:
        SettingsError: It cannot be read.
    """
    found: dict[str, int] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, count = (one.strip() for one in part.partition("="))
        if not count.isdecimal() or int(count) > 100:
            raise SettingsError(
                f"{part!r} does not say how many", hint="write it as registry=2,runtime=3"
            )
        found[name] = int(count)
    return found


def stopping_stages(programs: Sequence[Program]) -> list[list[Program]]:
    """In which order to stop: first who lets work in, last what the others lean on."""
    stages: dict[int, list[Program]] = {}
    for program in programs:
        stages.setdefault(_stage(program), []).append(program)
    return [stages[stage] for stage in sorted(stages)]


def _stage(program: Program) -> int:
    if program.kind == "adapter":
        return 0
    if program.kind == "agent":
        return 2
    # The operator before the agents: that they leave is no news about channels then.
    return {"runtime": 1, "operator": 1, "router": 4, "registry": 5}.get(program.role, 3)


def _by_name(group: str) -> list[EntryPoint]:
    # A distribution that is found on two paths lists its entry points twice.
    return sorted({point.name: point for point in entry_points(group=group)}.values())


def packages_of(group: str) -> list[str]:
    """The packages that the entry points of a group are in."""
    return sorted({point.module.partition(".")[0] for point in _by_name(group)})


def roles_of(group: str) -> list[str]:
    """What the entry points of a group are called."""
    return [point.name for point in _by_name(group)]
