"""What happens to the processes of a mesh, for whoever shows it."""

from dataclasses import dataclass
from pathlib import Path

from lmos_mesh.mesh_state import MeshRecord
from lmos_mesh.messages import RouterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that whoever watches the mesh should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Event):
    """A process does its work. `again`: after a crash."""

    name: str
    took_s: float
    again: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Died(Event):
    """A process has ended although nobody asked it to.

    Attributes:
        how: `was killed by SIGKILL`, `ended with status 1`.
        said: The last line of its log since it started; '' if somebody killed it.
        retry_s: When it is started again.
        looping: It has died too often for an accident.
        given_up: It is not started again, as its settings cannot be used.
    """

    name: str
    how: str
    said: str
    log: Path
    retry_s: float
    times: int
    looping: bool
    given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Up(Event):
    """Everything has started, `failing` apart.

    Attributes:
        encoder: How the router turns text into vectors; None if it does not say.
    """

    record: MeshRecord
    took_s: float
    encoder: RouterState | None
    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanged(Event):
    """An agent has its first instance, or has lost its last one."""

    tenant: str
    name: str
    subset: str
    version: str
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    """The processes are being stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """A process has ended because it was asked to. `killed`: it had to be made to."""

    name: str
    killed: bool
