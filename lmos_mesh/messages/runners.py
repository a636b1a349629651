"""What is said to those who start and stop agents."""

from typing import Literal

from pydantic import Field

from lmos_mesh.endpoint import InstanceEndpoint, Message
from lmos_mesh.messages.ids import Id
from lmos_mesh.things import DEFAULT_SUBSET


class RunInstance(Message):
    """One process that serves the agents of a file.

    Attributes:
        instance: Its id; of one that is stopped, the last one.
        started: Unix seconds.
        state: `running`, or `stopped` until somebody starts it again.
    """

    instance: str
    pid: int = 0
    started: float = 0.0
    state: Literal["running", "stopped"] = "running"


class RunAgent(Message):
    """An agent that a file has."""

    name: str
    subset: str = DEFAULT_SUBSET
    version: str = ""


class RunFile(Message):
    """A file whose agents somebody runs; each of its instances serves all of them.

    Attributes:
        revision: Rises whenever the number of its instances is changed.
    """

    file: str
    agents: tuple[RunAgent, ...] = ()
    instances: tuple[RunInstance, ...] = ()
    revision: int = 0


class GetRuns(Message):
    """What a runner runs."""


class Runs(Message):
    """What a runner runs.

    Attributes:
        host: Its machine.
        limit: How many instances of a file it starts at most.
    """

    host: str = ""
    pid: int = 0
    limit: int = 100
    files: tuple[RunFile, ...] = ()


class SteerRun(Message):
    """Change how the agents of a file run; see `SteerAgent`.

    Attributes:
        revision: The one that is known: of another one nothing is changed. None for any.
    """

    file: str
    action: Literal["scale", "restart", "drain", "stop", "start"]
    instances: int | None = Field(default=None, ge=0)
    instance: Id = ""
    revision: int | None = None


class RunSteered(Message):
    """What has become of it.

    Attributes:
        before: How many instances there were.
        instances: How many there are, or will be when it is done.
        done: Whether it is done; what is not goes on.
    """

    file: str
    before: int
    instances: int
    done: bool


GET_RUNS = InstanceEndpoint("runner", "get", GetRuns, Runs)
STEER_RUN = InstanceEndpoint("runner", "steer", SteerRun, RunSteered)
