"""What is said to registries: who is there, and what they can do."""

from typing import Any, Literal

from pydantic import Field

from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.things import DEFAULT_SUBSET, Capability


class Instance(Message):
    """One running process that serves a Thing.

    Attributes:
        in_flight: Calls it is answering now.
        concurrency: How many it answers at a time.
    """

    instance: str
    version: str = ""
    in_flight: int = 0
    concurrency: int = 0
    host: str = ""
    pid: int = 0
    started: float = 0.0


class Registration(Message):
    """When an entry came and when it goes, as W3C WoT Discovery has it (section 7.3.1).

    Attributes:
        created: RFC 3339, as are `modified` and `expires`.
        ttl: Seconds that it stays after it was last written; None for no end.
    """

    created: str
    modified: str
    expires: str | None = None
    ttl: float | None = None


class Register(Message):
    """Note a Thing: by its Description, or by its record, from which one is made.

    Attributes:
        description: A WoT Thing Description 1.1; with the LMOS vocabulary if it is an agent or a
            tool.
        thing: A `Thing` as JSON.
        revision: The revision it replaces, 0 for none; a stale update is refused. None for
            whatever is there.
        ttl_s: Seconds after which it is forgotten unless it is registered again.
        expires: RFC 3339: when it is forgotten; give one of the two.
    """

    description: dict[str, Any] | None = None
    thing: dict[str, Any] | None = None
    revision: int | None = None
    ttl_s: float | None = Field(default=None, gt=0)
    expires: str | None = None


class Registered(Message):
    """The Thing is findable.

    Attributes:
        id: The `id` of its Description.
        created: Whether it was not there before.
        notes: What was filled in.
    """

    name: str
    subset: str
    revision: int
    id: str = ""
    created: bool = False
    notes: tuple[str, ...] = ()


class Deregister(Message):
    """Forget a Thing, named by its name and subset or by its id.

    Attributes:
        leaving: The instance that says so; the Thing stays while another instance serves it.
        revision: The revision that is known; of another one it is kept. None for any.
    """

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""
    leaving: str = ""
    revision: int | None = None


class Deregistered(Message):
    """Whether the Thing is gone now; not if others still serve it."""

    name: str
    subset: str
    gone: bool


class GetThing(Message):
    """One Thing, by its name and subset or by its id.

    Attributes:
        revision: An earlier version of it, as long as it is kept; None for what stands now.
    """

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""
    revision: int | None = None


class FoundThing(Message):
    """A Thing as the registry knows it.

    Attributes:
        id: The `id` of its Description.
        title: What people call it, where that is not its name.
        origin: The mesh that it belongs to; empty for ours.
        live: Whether at least one instance serves it; None where nobody here can know, as it is no
            process of this mesh and its own, if it has one, does not say.
        score: How well it fits the text that was looked for, 0 to 1; None without one.
        description: Its whole Description, where it was asked for.
        as_of: Unix seconds until which this is known to be true; 0 if it was not said.
    """

    name: str
    subset: str = DEFAULT_SUBSET
    tenant: str = ""
    id: str = ""
    title: str = ""
    kind: str = "agent"
    version: str = ""
    summary: str = ""
    capabilities: tuple[Capability, ...] = ()
    channels: tuple[str, ...] = ()
    external: bool = False
    origin: str = ""
    live: bool | None = None
    instances: tuple[Instance, ...] = ()
    revision: int = 0
    registration: Registration | None = None
    score: float | None = None
    description: dict[str, Any] | None = None
    as_of: float = 0.0


class FindThings(Message):
    """Which Things fit; every given condition must hold.

    Attributes:
        name: Exact name.
        id: Exact id.
        kind: `agent`, `tool`, or `thing` for everything that speaks no LMOS.
        capability: Id or name of a capability.
        version: A semver range for that capability, in NPM or Ivy notation.
        channel: A channel it must serve.
        tags: All of them must be tags of the Thing's capabilities.
        metadata: Members of `lmos:metadata` and the values that they must have; a name with dots
            goes into objects: `{"vendor.name": "ACME"}`.
        text: What somebody would say to describe it; the best match first. By meaning where a
            router can be asked, else by words, and the answer says which.
        jsonpath: An RFC 9535 filter over its Description, e.g. `$[?@.title == 'billing']`, or
            the filter alone: `@.title == 'billing'`.
        origin: The mesh it belongs to; `""` for ours, None for any.
        live: Only those that are known to be there (true), only the others (false), or all (null).
            Of a peer mesh's Things, that mesh says so.
        sort: What to sort by; by default `score` with a text, else `name`.
        descriptions: Whether to give the whole Descriptions.
        offset: How many of those that fit to leave out.
        limit: How many to give at most. Fewer come if they would not fit into one reply.
    """

    name: str | None = None
    id: str | None = None
    kind: str | None = None
    capability: str | None = None
    version: str | None = None
    channel: str | None = None
    subset: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    text: str | None = None
    jsonpath: str | None = None
    origin: str | None = None
    live: bool | None = True
    sort: Literal["name", "id", "version", "created", "modified", "load", "score"] | None = None
    descending: bool = False
    descriptions: bool = False
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class ThingsFound(Message):
    """The Things that fit, and how fresh the answer is.

    Attributes:
        total: How many fit, `offset` and `limit` apart.
        next: The offset of those that come after these; None if these are the last.
        revision: The last change of the registry that this answer knows of.
        as_of: Unix seconds until which the answer is known to be true: now, or when the replica
            that answers lost the bus.
        matched: How the text was compared: `meaning` or `words`; empty without one.
        notes: What whoever asked should know, e.g. that nobody could compare meanings.
    """

    things: tuple[FoundThing, ...]
    total: int
    revision: int
    next: int | None = None
    as_of: float = 0.0
    matched: Literal["", "meaning", "words"] = ""
    notes: tuple[str, ...] = ()


class SearchThings(Message):
    """A JSONPath (RFC 9535) over the array of all Descriptions of a tenant.

    Attributes:
        query: E.g. `$[?@.title == 'billing'].id`.
    """

    query: str = Field(max_length=4096)
    limit: int = Field(default=1000, ge=1, le=10_000)


class SearchFound(Message):
    """What the JSONPath selects, and how much there was of it, `limit` apart."""

    values: tuple[Any, ...]
    total: int
    revision: int
    as_of: float = 0.0


class GetHistory(Message):
    """The versions of a Thing's Description that are kept, by its name and subset or by its id."""

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""


class ThingVersion(Message):
    """A Thing as it was.

    Attributes:
        at: Unix seconds.
        version: Its version; empty where it was removed.
        gone: Whether it was removed then, or expired.
    """

    revision: int
    at: float
    version: str = ""
    gone: bool = False


class History(Message):
    """The versions that are kept, the latest first."""

    name: str
    subset: str
    versions: tuple[ThingVersion, ...]


class RegistryStatus(Message):
    """No conditions: how is the registry?"""


class PeerState(Message):
    """Another mesh that is mirrored.

    Attributes:
        origin: What it is called here.
        answers: Whether its directory answered when it was last asked.
        heard_at: Unix seconds when it last answered; 0 for never.
        things: How many Things it had when all of them were last read.
        refused: How many of them cannot be listed here; the log says why.
        fault: Why it does not answer.
    """

    origin: str
    url: str
    answers: bool = False
    heard_at: float = 0.0
    things: int = 0
    refused: int = 0
    fault: str = ""


class RegistryState(Message):
    """How the registry is.

    Attributes:
        things: How many Things the replica that answers knows, in all tenants.
        peers: The meshes whose Things are mirrored.
        revision: The last change that it knows of.
        as_of: As in `ThingsFound`.
    """

    things: int
    peers: tuple[PeerState, ...] = ()
    revision: int = 0
    as_of: float = 0.0


REGISTER = Endpoint("registry", "register", Register, Registered)
DEREGISTER = Endpoint("registry", "deregister", Deregister, Deregistered)
GET_THING = Endpoint("registry", "get", GetThing, FoundThing)
FIND_THINGS = Endpoint("registry", "find", FindThings, ThingsFound)
SEARCH_THINGS = Endpoint("registry", "search", SearchThings, SearchFound)
GET_HISTORY = Endpoint("registry", "history", GetHistory, History)
REGISTRY_STATUS = Endpoint("registry", "status", RegistryStatus, RegistryState)
