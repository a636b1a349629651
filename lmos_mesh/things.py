"""What the mesh knows about an agent or a tool.

A `Thing` is the one record that Descriptions and every other outside form are made from. Making
one checks types only; `thing_faults.faults_of` checks the rules. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from pydantic import Field, model_validator

from lmos_mesh import subjects
from lmos_mesh.endpoint import Message
from lmos_mesh.semver import BadVersion, Range, Version

DEFAULT_TENANT = "demo"
DEFAULT_SUBSET = "stable"
DEFAULT_VERSION = "1.0.0"
SHARED = "shared"
"""The tenant whose agents, and what it declares of agents, are for those that they support."""

ANY_CHANNEL = "*"
KINDS = ("agent", "tool", "thing")

OUR_IDS = "urn:lmos-mesh:"

IN_PROPERTY = frozenset({"description", "readOnly", "writeOnly", "observable", "forms"})
"""Members of a property in a Description that its schema has no part in."""


class ThingKey(NamedTuple):
    """What names one registry entry."""

    tenant: str
    name: str
    subset: str


class Capability(Message):
    """What an agent can do: channels require it, routers match it, an action performs it.

    Where only one of `id` and `name` is given it stands for both.

    Attributes:
        examples: What a user might say to ask for it.
        idempotent: Whether doing it twice does no harm, so that it may be sent again.
        input: JSON Schema of what it takes.
        output: JSON Schema of what it gives.
    """

    id: str = ""
    name: str = ""
    version: str = DEFAULT_VERSION
    description: str = ""
    examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    idempotent: bool = True
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_both(cls, data: Any) -> Any:
        # Whoever asks the registry reads hundreds of them; to ask a dict for its kind is cheap.
        if isinstance(data, dict) or isinstance(data, Mapping):  # noqa: SIM101
            return named(cast("Mapping[str, Any]", data))
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """A value of a Thing that others may read, write or watch.

    Attributes:
        schema: JSON Schema of the value, and whatever else a Description says of it (`title`,
            `unit`, …); not what the other members say.
        observable: Whether its changes are published, as its Description says; what answers on the
            mesh publishes none, so no Description that is made here says so.
    """

    name: str
    description: str = ""
    schema: dict[str, Any] = field(default_factory=dict[str, Any])
    readable: bool = True
    writable: bool = False
    observable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a Thing tells whoever listens.

    Attributes:
        data: JSON Schema of what it tells.
    """

    name: str
    description: str = ""
    data: dict[str, Any] | None = None


class Thing(Message):
    """An agent, a tool or another vendor's thing, as it is registered.

    Attributes:
        name: Of an agent or tool, its name; of a `thing`, the id of its Description.
        id: The id of its Description, where that is not the URN of its names.
        title: What people call it, where that is not its name.
        origin: The mesh that it is mirrored from; empty for ours.
        tenant: Who it is for.
        subset: Its release line, e.g. `stable` or `canary`.
        supported_channels: The ways in that it serves; `*` is all of them.
        supported_tenants: Of an agent of tenant `shared`, whom it serves; none means anybody.
        external: It is no process of this mesh: it speaks for itself, in its own protocol.
        links: As in its Description: objects with `href`, `rel`, `type`, …
        terms: The members of its Description that do not follow from the rest of the record.
        omitted: The members that would follow from it, and are not there.
    """

    name: str
    tenant: str = DEFAULT_TENANT
    subset: str = DEFAULT_SUBSET
    id: str = ""
    title: str = ""
    origin: str = ""
    kind: Literal["agent", "tool", "thing"] = "agent"
    version: str = DEFAULT_VERSION
    description: str = ""
    capabilities: tuple[Capability, ...] = ()
    properties: tuple[Property, ...] = ()
    events: tuple[Event, ...] = ()
    links: tuple[dict[str, Any], ...] = ()
    supported_channels: tuple[str, ...] = (ANY_CHANNEL,)
    supported_tenants: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    external: bool = False
    terms: dict[str, Any] = Field(default_factory=dict[str, Any])
    omitted: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its key in the registry: one entry per tenant, name and subset."""
        return subjects.key(self.tenant, self.name, self.subset)

    @property
    def answers_here(self) -> bool:
        """Whether it is answered for at the subjects of this mesh."""
        return not self.external and self.kind != "thing"

    def serves(self, channel: str) -> bool:
        """Whether it may be reached through a channel; without any it serves none."""
        return ANY_CHANNEL in self.supported_channels or channel in self.supported_channels

    def supports(self, tenant: str) -> bool:
        """Whether it is for a tenant: its own, or as an agent of `shared` one that it names.

        A shared one that names none is for anybody.
        """
        if tenant == self.tenant:
            return True
        named = self.supported_tenants
        return self.tenant == SHARED and self.kind == "agent" and (not named or tenant in named)

    def matching(self, wanted: str, version_range: str | None = None) -> tuple[Capability, ...]:
        """Its capabilities of that id or name, in a version of the range.

        Raises:
            BadVersion: The range cannot be read.
        """
        return tuple(
            capability
            for capability in self.capabilities
            if capability_matches(capability, wanted, version_range)
        )


def capability_matches(
    capability: Capability, wanted: str, version_range: str | None = None
) -> bool:
    """Whether a capability has this id or name, exactly, in a version of the range.

    A capability whose version cannot be read is in no range.

    Raises:
        BadVersion: The range cannot be read.
    """
    if wanted not in (capability.id, capability.name):
        return False
    if version_range is None:
        return True
    return _admitted(version_range, capability.version)


@lru_cache(maxsize=4096)
def _admitted(version_range: str, version: str) -> bool:
    """Whether a version is in a range; many capabilities have the same few versions."""
    admitted = Range.parse(version_range)
    try:
        return admitted.admits(Version.parse(version))
    except BadVersion:
        return False


def named(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A raw capability with both `id` and `name`, if it has one of them."""
    known_as, title = raw.get("id"), raw.get("name")
    if known_as and title:
        return raw
    if not known_as and title:
        return {**raw, "id": title}
    if not title and known_as:
        return {**raw, "name": known_as}
    return raw
