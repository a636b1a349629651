"""Registers a Thing Description that was written by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import asking
from lmos_mesh.cli.differing import difference, written
from lmos_mesh.cli.manifests import Manifest
from lmos_mesh.cli.outcomes import Applied
from lmos_mesh.description import thing_of, with_id, with_security
from lmos_mesh.errors import InvalidDescription, InvalidMessage, NotFound
from lmos_mesh.messages import GET_THING, REGISTER, FoundThing, GetThing, Register
from lmos_mesh.things import Thing

_LIFETIMES = {"/expires": "/registration/expires", "/ttl_s": "/registration/ttl"}


async def register(
    bus: Bus, one: Manifest, *, tenant: str, ttl_s: float | None, dry_run: bool, diff: bool
) -> Applied:
    """Register what a document describes, or say what would become of it.

    Raises:
        MeshError: The registry refuses it, or cannot be asked.
    """
    # A registration stands beside it and is no part of it.
    own = {name: value for name, value in one.value.items() if name != "registration"}
    thing = thing_of(with_security(own)[0], tenant=tenant)
    before = await _found(bus, thing, tenant)
    changes = _difference(before, own, thing, tenant) if diff or dry_run else ""
    applied = Applied(
        where=one.where,
        kind=thing.kind,
        name=thing.name,
        subset=thing.subset,
        tenant=tenant,
        what="created" if before is None else "updated" if changes else "unchanged",
        revision=before.revision if before else 0,
        diff=changes if diff else "",
    )
    if dry_run:
        return applied
    ttl_s, expires = _lifetime(one.value, ttl_s)
    wanted = Register(description=own, ttl_s=ttl_s, expires=expires)
    try:
        kept = await bus.call(
            REGISTER, wanted, tenant=tenant, headers=asking(bus), nobody_s=RESTART_S
        )
    except InvalidMessage as exc:
        if (field := str(exc.details.get("field"))) not in _LIFETIMES:
            raise
        said = exc.message.removeprefix(f"{field}: ")
        fault = {"field": _LIFETIMES[field], "description": said}
        raise InvalidDescription.of(one.where, [fault]) from None
    if kept.created or before is None:
        what = "created"
    else:
        what = "unchanged" if kept.revision == before.revision else "updated"
    return replace(
        applied,
        name=kept.name,
        subset=kept.subset,
        id=kept.id,
        what=what,
        revision=kept.revision,
        notes=kept.notes,
    )


def _lifetime(value: Mapping[str, Any], ttl_s: float | None) -> tuple[float | None, str | None]:
    """How long it shall stay: seconds, or until when.

    When an entry of some directory ends that it was copied from says nothing of this one.
    """
    stated = value.get("registration")
    if ttl_s is not None or not isinstance(stated, Mapping):
        return ttl_s, None
    told = cast("Mapping[str, Any]", stated)
    if told.get("ttl") is not None:
        return told["ttl"], None
    return None, None if "created" in told else told.get("expires")


def _difference(before: FoundThing | None, own: dict[str, Any], thing: Thing, tenant: str) -> str:
    # The registry fills in what is missing here, and it is no difference.
    after = with_id(with_security(own)[0], tenant=tenant, fresh=thing.id)
    there = written(before.description if before else None)
    filled = {name: value for name, value in there.items() if name not in own}
    known = {name: value for name, value in filled.items() if name in ("created", "modified")}
    return difference(there, {**after, **known}, name=f"{thing.kind} {thing.name}")


async def _found(bus: Bus, thing: Thing, tenant: str) -> FoundThing | None:
    """What is there now; None if there is nothing."""
    try:
        wanted = GetThing(name=thing.name, subset=thing.subset)
        found = await bus.call(GET_THING, wanted, tenant=tenant, nobody_s=RESTART_S)
    except NotFound:
        return None
    # A shared one of that name stays, and is hidden by what is applied.
    return found if found.tenant == tenant else None
