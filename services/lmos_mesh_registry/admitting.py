"""What may be registered, in view of what there is. Pure."""

from typing import Any, cast

from lmos_mesh.description import (
    describe,
    description_faults,
    id_of,
    named_in_words,
    thing_of,
    with_security,
)
from lmos_mesh.errors import Conflict, InvalidDescription, InvalidMessage
from lmos_mesh.membership import Membership
from lmos_mesh.messages import Register
from lmos_mesh.semver import Version
from lmos_mesh.thing_faults import label_of, thing_from
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_registry.registering import REGISTRATION, Lifetime, Stored


def described(
    request: Register, tenant: str
) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """A valid Description of what is to be registered, its `registration`, what was filled in.

    Raises:
        InvalidDescription: It breaks the rules; every fault is listed.
        InvalidMessage: It is not clear what is to be registered.
    """
    if (request.description is None) == (request.thing is None):
        raise InvalidMessage("give either `description` or `thing`")
    if request.thing is not None:
        description = describe(thing_from({"tenant": tenant, **request.thing}))
        # Its schemas and its terms are the writer's own.
        if faults := description_faults(description):
            raise InvalidDescription.of(label_of(request.thing), faults)
        return description, None, ()
    description = dict(request.description or {})
    told: Any = description.pop(REGISTRATION, None)
    if told is not None and not isinstance(told, dict):
        raise InvalidMessage("/description/registration: must be an object")
    description, notes = with_security(description)
    if faults := description_faults(description):
        raise InvalidDescription.of(named_in_words(description), faults)
    if "id" not in description:
        # It is known by the URN of its names.
        description["id"] = id_of(thing_of(description, tenant=tenant))
    return description, cast("dict[str, Any] | None", told), notes


def refuse_others(thing: Thing, tenant: str, *, at: str) -> None:
    """Refuse what says that it is somebody else's.

    Raises:
        InvalidDescription: It does.
    """
    if thing.tenant != tenant:
        said = f"is of tenant {thing.tenant!r}, and it is registered in {tenant!r}"
        fault = {"field": at, "description": said}
        raise InvalidDescription.of(label_of({"name": thing.name, "kind": thing.kind}), [fault])
    if thing.origin:
        said = "names the mesh that a Thing is mirrored from; only a registry may say that"
        fault = {"field": "/mesh:origin", "description": said}
        raise InvalidDescription.of(label_of({"name": thing.name, "kind": thing.kind}), [fault])


def check(
    request: Register, key: ThingKey, thing: Thing, held: Stored | None, membership: Membership
) -> None:
    """Whether it may be registered, over what is there.

    Raises:
        Conflict: It is at another revision, another mesh's, or its id is another Thing's.
    """
    revision = held.revision if held else 0
    if request.revision is not None and request.revision != revision:
        raise Conflict(
            f"{key.name!r} is at revision {revision}, not {request.revision}",
            hint="read it again and repeat the change",
            revision=revision,
        )
    refuse_mirrored(key, held)
    refuse_taken(membership, key, id_of(thing))


def refuse_mirrored(key: ThingKey, held: Stored | None) -> None:
    """Refuse to change what belongs to another mesh.

    Raises:
        Conflict: It does.
    """
    origin = held.description.get("mesh:origin") if held is not None else None
    if origin:
        raise Conflict(
            f"{key.name!r} is a mirror of what mesh {origin!r} has, and is changed only there",
            origin=origin,
        )


def refuse_taken(membership: Membership, key: ThingKey, id: str, before: int | None = None) -> None:
    """Refuse an id that another Thing of the tenant has, or had before a revision.

    Raises:
        Conflict: It is taken.
    """
    for other in membership.looked_up(key.tenant, id=id):
        if other.key.tenant != key.tenant:
            continue  # a shared one, which this hides or stands beside
        if other.thing.origin and key.name != id:
            continue  # a mirror of another mesh's gives way
        if other.key != key and (before is None or other.revision < before):
            raise Conflict(
                f"{id!r} is the id of {other.key.name!r} ({other.key.subset}) already",
                hint="ids are unique in a tenant: give this one another, or deregister that",
                name=other.key.name,
                subset=other.key.subset,
            )


def outranked(membership: Membership, key: ThingKey, held: Stored, version: str) -> bool:
    """Whether an instance with a higher version is live: its Description stands."""
    if not (instances := membership.instances(key)):
        return False
    known = thing_of(held.description, tenant=key.tenant, trusted=True)
    return Version.parse(known.version) > Version.parse(version) and any(
        one.version == known.version for one in instances
    )


def stays(held: Stored, description: dict[str, Any], life: Lifetime) -> bool:
    """Whether nothing is to be written: the same, and neither has an end to be moved."""
    lasting = held.registration is None or held.registration.expires is None
    return lasting and life.ends is None and held.description == description
