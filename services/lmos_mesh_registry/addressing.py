"""Which Thing is meant, and what is said if it is not there. Pure."""

from lmos_mesh import subjects
from lmos_mesh.errors import Conflict, InvalidMessage, ThingNotFound
from lmos_mesh.membership import Membership, how_to_start
from lmos_mesh.things import ThingKey
from lmos_mesh_registry.registering import key_of_id

TRIES = 8
"""How often a Thing is written anew where others write it, too."""

# A server hangs up on longer subjects; names and ids as long as they may be stay below.
_KEY_BYTES = 2_000


def key_asked_for(
    membership: Membership, tenant: str, name: str, subset: str, id: str, *, own: bool = False
) -> ThingKey:
    """What is asked for: the tenant's own, or, unless that is said, a shared one it means.

    Raises:
        InvalidMessage: It is named in no way or in two, or in one that no Thing is.
    """
    if bool(name) == bool(id):
        raise InvalidMessage("give either `name` or `id`", field="/name")
    if name:
        key = ThingKey(tenant, name, subset)
        if not own:
            key = membership.meant(*key) or key
    else:
        entered = membership.by_id(tenant, id)
        if entered is not None and own and entered.key.tenant != tenant:
            entered = None
        key = entered.key if entered is not None else key_of_id(tenant, id)
    if len(subjects.key(*key)) > _KEY_BYTES:
        field = "/name" if name else "/id"
        raise InvalidMessage(f"{field}: is longer than any Thing's", field=field)
    return key


def unknown(membership: Membership, key: ThingKey, id: str) -> ThingNotFound:
    """There is none of that name or id, and what there is instead."""
    if id:
        return ThingNotFound(
            f"nothing with the id {id!r} is registered in {key.tenant!r}",
            hint="see `lmos agents --all`",
        )
    near = membership.near(key.tenant, key.name)
    hint = f"did you mean {', '.join(near)}?" if near else "see `lmos agents`"
    if membership.stopped(key):
        hint = f"it is stopped; {how_to_start(key)}"
    elif subsets := membership.subsets(key.tenant, key.name):
        hint = f"it is there as {', '.join(subsets)}"
    return ThingNotFound(
        f"nothing called {key.name!r} ({key.subset}) is registered in {key.tenant!r}",
        hint=hint,
        near=near,
    )


def busy(key: ThingKey) -> Conflict:
    """Others were faster each time."""
    return Conflict(
        f"{key.name!r} ({key.subset}) was changed by others {TRIES} times meanwhile",
        hint="try again; two processes may be registering different agents under one name",
    )
