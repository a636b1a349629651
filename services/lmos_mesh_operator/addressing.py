"""Which resource, and which version of it, is meant, and what is said if it is not there. Pure."""

from collections.abc import Iterable

from lmos_mesh.errors import Conflict, InvalidMessage, NotFound
from lmos_mesh.resource_index import Kept, ResourceIndex, ResourceKey
from lmos_mesh.resource_store import PastResource
from lmos_mesh.resources import KINDS, ChannelRouting, kind_named
from lmos_mesh_operator import resource_rules as rules

TRIES = 12
"""How often a resource is written anew where others write it, too."""


def kind_of_named(name: str) -> str:
    """The kind that somebody means.

    Raises:
        InvalidMessage: That is no kind.
    """
    kind = kind_named(name)
    if kind is None:
        raise InvalidMessage(
            f"/kind: {name!r} is no kind; there are {', '.join(KINDS)}", field="/kind"
        )
    return kind


def key_of_named(kind: str, namespace: str, name: str) -> ResourceKey:
    """The resource that somebody means.

    Raises:
        InvalidMessage: That is no kind, or a name is empty.
    """
    key = ResourceKey(kind_of_named(kind), namespace, name)
    if not name or not namespace:
        field = "/namespace" if name else "/name"
        raise InvalidMessage(f"{field}: is empty", field=field)
    return key


def past_of(
    kept: Iterable[PastResource], key: ResourceKey, revision: int | None, tenant: str
) -> PastResource:
    """A version of a resource that is kept and that a tenant may see.

    Raises:
        NotFound: That one is not kept.
    """
    known = [
        one for one in kept if one.resource is not None and rules.concerns(one.resource, tenant)
    ]
    for one in known:
        if one.revision == revision:
            return one
    numbers = ", ".join(str(one.revision) for one in known)
    raise NotFound(
        f"revision {revision} of {key} is not kept",
        hint=f"kept are {numbers}" if numbers else "nothing of it is kept",
    )


def routing_before(kept: Iterable[PastResource], active: Kept, key: ResourceKey) -> PastResource:
    """The last Routing that said something else than the active one."""
    assert isinstance(active.resource, ChannelRouting)
    for one in reversed(list(kept)):
        if (
            one.revision < active.revision
            and isinstance(one.resource, ChannelRouting)
            and one.resource.spec != active.resource.spec
        ):
            return one
    raise NotFound(f"{key} was never any other", hint="`lmos rollout history` lists what there was")


def check_revision(key: ResourceKey, revision: int, wanted: int | None) -> None:
    """Whether a resource is at the revision that somebody knows.

    Raises:
        Conflict: It is at another.
    """
    if wanted is not None and wanted != revision:
        raise Conflict(
            f"{key} is at revision {revision}, not {wanted}",
            hint="read it again and repeat the change",
            revision=revision,
        )


def unknown(index: ResourceIndex, key: ResourceKey, tenant: str) -> NotFound:
    """There is none of that name, and what there is instead."""
    others = sorted(
        one.key
        for one in index
        if one.key.kind == key.kind and rules.concerns(one.resource, tenant)
    )
    if same := [one for one in others if one.name == key.name]:
        hint = f"there is one in namespace {same[0].namespace!r}"
    else:
        names = ", ".join(sorted({one.name for one in others})[:5])
        hint = f"there are {names}" if names else f"tenant {tenant!r} has no {key.kind}"
    held = index.kept(key)
    if held is not None and (holder := rules.holder_of(held.resource)):
        hint = f"that name is held by {holder}; {hint}"
    return NotFound(f"{key} does not exist", hint=hint)


def busy(key: ResourceKey) -> Conflict:
    """Others were faster each time."""
    return Conflict(f"{key} was changed by others {TRIES} times meanwhile", hint="try again")
