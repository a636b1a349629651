"""What is said to operators: channels, rollouts and agents as people apply them."""

from typing import Any, Literal

from pydantic import Field

from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.messages.ids import Id
from lmos_mesh.things import DEFAULT_SUBSET


class ApplyResource(Message):
    """Keep a resource of `lmos.eclipse/v1`; the tenant that asks must be the resource's own.

    Attributes:
        resource: As in its YAML. Its `status` is left out of account.
        revision: The revision that it replaces, 0 for none; a stale one is refused. None for
            whatever is there.
        dry_run: Whether to check it only, and say what would be changed.
    """

    resource: dict[str, Any]
    revision: int | None = Field(default=None, ge=0)
    dry_run: bool = False


class ResourceApplied(Message):
    """The resource is kept, or would be.

    Attributes:
        what: What became of it.
        before: As it was; None if it is new.
        after: As it is.
        notes: What was filled in, and what whoever applies should know.
    """

    kind: str
    namespace: str
    name: str
    what: Literal["created", "configured", "unchanged"]
    revision: int
    before: dict[str, Any] | None = None
    after: dict[str, Any]
    notes: tuple[str, ...] = ()


class GetResource(Message):
    """One resource.

    Attributes:
        kind: Its kind, plural or short name: `Channel`, `channels`, `ch`.
        revision: As it was then; None for what stands now.
    """

    kind: str
    name: Id
    namespace: Id = "default"
    revision: int | None = None


class FoundResource(Message):
    """A resource as it is kept."""

    resource: dict[str, Any]
    revision: int


class ListResources(Message):
    """Which resources fit; every given condition must hold.

    Attributes:
        kind: Kind, plural or short name; None for all.
        namespace: None for all.
        labels: What the labels must be; a missing `subset` counts as `stable`.
    """

    kind: str | None = None
    namespace: Id | None = None
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class ResourcesListed(Message):
    """The resources that fit, by kind, namespace and name.

    Attributes:
        next: The offset of those that come after these; None if these are the last.
    """

    resources: tuple[dict[str, Any], ...]
    total: int
    next: int | None = None


class DeleteResource(Message):
    """Forget a resource; a Channel takes its Routing with it."""

    kind: str
    name: Id
    namespace: Id = "default"
    revision: int | None = None


class ResourceDeleted(Message):
    """It is forgotten."""

    kind: str
    namespace: str
    name: str
    also: tuple[str, ...] = ()


class GetResourceHistory(Message):
    """The versions of a resource that are kept."""

    kind: str
    name: Id
    namespace: Id = "default"


class ResourceVersion(Message):
    """A resource as it was.

    Attributes:
        revision: 0 of a rollout's step that only the audit has.
        at: Unix seconds.
        summary: What it said then, in a few words.
        gone: Whether it was deleted then.
    """

    revision: int
    at: float
    generation: int = 0
    summary: str = ""
    gone: bool = False


class ResourceHistory(Message):
    """The versions that are kept, the latest first."""

    kind: str
    namespace: str
    name: str
    versions: tuple[ResourceVersion, ...]


class RestoreRouting(Message):
    """Put an earlier Routing of a Channel back, and keep it there until it is released.

    Attributes:
        revision: Which one; None for the one before the active one; 0 releases it.
    """

    name: Id
    namespace: Id = "default"
    revision: int | None = Field(default=None, ge=0)


class SteerRollout(Message):
    """Tell a rollout what to do.

    Attributes:
        action: `promote`: on to the next step; `promote_fully`: all traffic at once; `pause`;
            `resume`; `abort`: all traffic back to stable at once; `restart`: from the first step.
        reason: Kept in the audit.
    """

    name: Id
    namespace: Id = "default"
    action: Literal["promote", "promote_fully", "pause", "resume", "abort", "restart"]
    reason: str = Field(default="", max_length=1024)


class SteerAgent(Message):
    """Change how an agent runs, wherever its processes are: on this machine, or in a cluster.

    Attributes:
        action: `scale` to `instances`; `restart` one after the other, each drained; `drain`:
            finish what is running and take nothing more; `stop` all; `start` again.
        instance: Only this one; empty for all of the agent.
    """

    agent: Id
    subset: str = DEFAULT_SUBSET
    action: Literal["scale", "restart", "drain", "stop", "start"]
    instances: int | None = Field(default=None, ge=0, le=1000)
    instance: Id = ""


class AgentSteered(Message):
    """What is being done.

    Attributes:
        where: Who does it: the machines, or the cluster.
        done: Whether it is done; what is not goes on.
        also: Other agents that the same processes serve: it happens to them, too.
    """

    agent: str
    subset: str = DEFAULT_SUBSET
    instances: int | None = None
    where: tuple[str, ...] = ()
    message: str = ""
    done: bool = False
    also: tuple[str, ...] = ()


APPLY_RESOURCE = Endpoint("operator", "apply", ApplyResource, ResourceApplied)
GET_RESOURCE = Endpoint("operator", "get", GetResource, FoundResource)
LIST_RESOURCES = Endpoint("operator", "list", ListResources, ResourcesListed)
DELETE_RESOURCE = Endpoint("operator", "delete", DeleteResource, ResourceDeleted)
GET_RESOURCE_HISTORY = Endpoint("operator", "history", GetResourceHistory, ResourceHistory)
RESTORE_ROUTING = Endpoint("operator", "restore", RestoreRouting, FoundResource)
STEER_ROLLOUT = Endpoint("operator", "rollout", SteerRollout, FoundResource)
STEER_AGENT = Endpoint("operator", "agent", SteerAgent, AgentSteered)
