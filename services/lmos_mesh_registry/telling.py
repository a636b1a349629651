"""Which events the changes of the mesh are, and which of them have been told already. Pure.

Each event has an id that every replica makes alike: of a Thing, from the revision of its entry;
of an instance, from the sequence of what was told of it last.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from lmos_mesh import subjects
from lmos_mesh.directory import DISCONNECTED, EXPIRED, FOUND_DEAD, GOODBYE, MISSING
from lmos_mesh.events import (
    INSTANCE_DIED,
    INSTANCE_JOINED,
    INSTANCE_LEFT,
    KEPT_S,
    NAMES,
    THING_CREATED,
    THING_DELETED,
    THING_UPDATED,
    CloudEvent,
    merge_patch,
    rfc3339,
    source_of,
    unix_time,
)
from lmos_mesh.liveness import Lease
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.things import ThingKey

KEY = "Lmos-Key"
REVISION = "Lmos-Revision"
DIGEST = "Lmos-Digest"
KIND = "Lmos-Kind"

_REMEMBERED_GONE = 4096
# Told as long ago as this, an event is about to be forgotten by the stream, by some replicas first.
_CERTAIN_S = 0.9 * KEPT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """An event to be told, unless its `message_id` has been."""

    tenant: str
    event: CloudEvent
    message_id: str
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def all_headers(self) -> dict[str, str]:
        """What goes with it."""
        return {**self.event.to_headers(), **self.headers}


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToldThing:
    revision: int
    digest: str
    id: str
    kind: str
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToldInstance:
    sequence: int
    joined: bool
    at: float


class Told:
    """What has been told of each Thing and each instance, by whichever replica."""

    def __init__(self) -> None:
        self._things: dict[ThingKey, _ToldThing] = {}
        self._gone: OrderedDict[ThingKey, _ToldThing] = OrderedDict()
        self._instances: OrderedDict[tuple[str, str], _ToldInstance] = OrderedDict()

    def heard(self, tenant: str, type: str, sequence: int, headers: Mapping[str, str]) -> None:
        """Note an event that is in the stream.

        Args:
            tenant: Whose.
            type: Its type.
            sequence: Its place in the stream.
            headers: Those that it was told with.
        """
        ids = subjects.ids_of(headers.get(KEY, ""))
        if type in (INSTANCE_JOINED, INSTANCE_LEFT, INSTANCE_DIED):
            if len(ids) == 2:
                at = unix_time(headers.get("ce-time", "")) or 0.0
                self._note_instance((tenant, ids[1]), sequence, type == INSTANCE_JOINED, at)
        elif type in NAMES and len(ids) == 3 and headers.get(REVISION, "").isdecimal():
            told = _ToldThing(
                revision=int(headers[REVISION]),
                digest=headers.get(DIGEST, ""),
                id=unquote(headers.get("ce-subject", "")),
                kind=headers.get(KIND, "agent"),
                gone=type == THING_DELETED,
            )
            self._note_thing(ThingKey(*ids), told)

    def _note_thing(self, key: ThingKey, told: _ToldThing) -> None:
        known = self._things.get(key) or self._gone.get(key)
        if known is not None and (known.revision, known.gone) > (told.revision, told.gone):
            return
        if told.gone:
            self._things.pop(key, None)
            self._gone[key] = told
            self._gone.move_to_end(key)
            if len(self._gone) > _REMEMBERED_GONE:
                self._gone.popitem(last=False)
        else:
            self._gone.pop(key, None)
            self._things[key] = told

    def _note_instance(
        self, owner: tuple[str, str], sequence: int, joined: bool, at: float
    ) -> None:
        known = self._instances.get(owner)
        if known is not None and known.sequence > sequence:
            return
        self._instances[owner] = _ToldInstance(sequence=sequence, joined=joined, at=at)
        self._instances.move_to_end(owner)

    # -- things --

    def of_thing(
        self,
        key: ThingKey,
        before: Entered | None,
        after: Entered | None,
        *,
        expired: bool,
        now: float,
    ) -> Telling | None:
        """The event that a change of an entry is; None for none, or if it has been told."""
        known = self._things.get(key) or self._gone.get(key)
        if after is not None:
            if known is not None and known.revision >= after.revision:
                return None
            if before is None:
                return _created(key, after, now)
            return _updated(key, before.description, after, now)
        if before is None or (
            known is not None
            and (
                known.revision > before.revision
                or (known.gone and known.revision == before.revision)
            )
        ):
            return None
        told = _ToldThing(revision=before.revision, digest="", id=before.id, kind=before.thing.kind)
        return _deleted(key, told, expired=expired, now=now)

    def untold_entries(self, membership: Membership, *, now: float) -> list[Entered]:
        """The entries whose last change has never been told.

        Of those that changed longer ago than events are kept, it is forgotten, not missing.
        """
        untold = [one for one in membership if self.is_untold(one, now=now)]
        return sorted(untold, key=lambda one: one.revision)

    def is_untold(self, one: Entered, *, now: float) -> bool:
        """Whether nobody has told yet that an entry is, or was, so."""
        told = self._things.get(one.key) or self._gone.get(one.key)
        if told is not None and (told.revision >= one.revision):
            return False
        if told is not None and not told.gone:
            return told.digest != digest_of(one.description)
        return now - _modified(one) < _CERTAIN_S

    def untold_removals(self, membership: Membership) -> list[ThingKey]:
        """The Things that were told to be there, and are not."""
        return [key for key in self._things if membership.get(key) is None]

    def removal(self, key: ThingKey, *, now: float) -> Telling | None:
        """The event that a Thing is gone of which only what was told is known."""
        told = self._things.get(key)
        return _deleted(key, told, expired=False, now=now) if told is not None else None

    def known(self, key: ThingKey) -> bool:
        """Whether a Thing was told to be there."""
        return key in self._things

    # -- instances --

    def joined(self, tenant: str, lease: Lease, *, now: float) -> Telling | None:
        """The event that a process has joined; None if that has been told."""
        told = self._certain(tenant, lease.instance, now)
        if told is not None and told.joined:
            return None
        # One that was thought dead is back now, however long ago it started.
        first = told is None and 0 < lease.started <= now
        at = lease.started if first else now
        return _of_instance(INSTANCE_JOINED, tenant, lease, "", told, at)

    def ended(self, tenant: str, lease: Lease, reason: str, *, now: float) -> Telling | None:
        """The event that a process has left or died; None if that has been told."""
        told = self._certain(tenant, lease.instance, now)
        if told is not None and not told.joined:
            return None
        type = INSTANCE_LEFT if reason == GOODBYE else INSTANCE_DIED
        return _of_instance(type, tenant, lease, reason, told, now)

    def untold_joins(self, membership: Membership, *, now: float) -> list[tuple[str, Lease]]:
        """The processes that are there, and were not told to be."""
        return [
            (tenant, lease)
            for tenant, lease, _ in membership.leases()
            if now - lease.started < _CERTAIN_S and not self.is_joined(tenant, lease.instance)
        ]

    def untold_ends(self, membership: Membership) -> list[tuple[str, str]]:
        """(tenant, instance) of the processes that were told to be there, and are not."""
        return [
            owner
            for owner, told in self._instances.items()
            if told.joined and membership.lease(*owner) is None
        ]

    def is_joined(self, tenant: str, instance: str) -> bool:
        """Whether a process was told to be there, and not told to be gone since."""
        told = self._instances.get((tenant, instance))
        return told is not None and told.joined

    def forget_instances(self, *, now: float) -> None:
        """Forget what the stream is about to forget too."""
        while self._instances:
            owner, told = next(iter(self._instances.items()))
            if now - told.at < _CERTAIN_S:
                break
            del self._instances[owner]

    def _certain(self, tenant: str, instance: str, now: float) -> _ToldInstance | None:
        told = self._instances.get((tenant, instance))
        return told if told is not None and now - told.at < _CERTAIN_S else None


def reason_of(lease: Lease, ended: str, membership: Membership) -> str:
    """Why a process ended, as far as is known by now."""
    if ended in (FOUND_DEAD, MISSING) and membership.closed(lease.connection):
        return DISCONNECTED
    return ended


def is_sure(reason: str) -> bool:
    """Whether a process that ended so does not come back in a moment."""
    return reason in (GOODBYE, DISCONNECTED, EXPIRED)


def digest_of(description: Mapping[str, Any]) -> str:
    """What tells one Description from another."""
    said = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _created(key: ThingKey, after: Entered, now: float) -> Telling:
    description = after.description
    more = {"description": description, "registration": _registration(after)}
    return _of_thing(THING_CREATED, key, after, digest_of(description), more, now)


def _updated(
    key: ThingKey, before: Mapping[str, Any], after: Entered, now: float
) -> Telling | None:
    description = after.description
    diff = merge_patch(before, description)
    if not diff:
        return None  # written again only to stay
    more = {"diff": diff, "registration": _registration(after)}
    return _of_thing(THING_UPDATED, key, after, digest_of(description), more, now)


def updated_from(
    key: ThingKey, before: Mapping[str, Any], after: Entered, *, now: float
) -> Telling | None:
    """The event that an entry was updated, from its Description before; None if it is the same."""
    return _updated(key, before, after, now)


def _of_thing(
    type: str, key: ThingKey, after: Entered, digest: str, more: dict[str, Any], now: float
) -> Telling:
    message_id = f"thing.{after.revision}"
    told = _ToldThing(revision=after.revision, digest=digest, id=after.id, kind=after.thing.kind)
    return Telling(
        tenant=key.tenant,
        event=CloudEvent(
            id=message_id,
            source=source_of(key.tenant, type),
            type=type,
            subject=after.id,
            time=rfc3339(_modified(after) or now),
            data={**_said_of(key, told), **more},
        ),
        message_id=message_id,
        headers=_headers(key, told),
    )


def _deleted(key: ThingKey, told: _ToldThing, *, expired: bool, now: float) -> Telling:
    message_id = f"thing.{told.revision}.gone"
    return Telling(
        tenant=key.tenant,
        event=CloudEvent(
            id=message_id,
            source=source_of(key.tenant, THING_DELETED),
            type=THING_DELETED,
            subject=told.id,
            time=rfc3339(now),
            data={**_said_of(key, told), "reason": "expired" if expired else "removed"},
        ),
        message_id=message_id,
        headers=_headers(key, told),
    )


def _said_of(key: ThingKey, told: _ToldThing) -> dict[str, Any]:
    return {
        "id": told.id,
        "name": key.name,
        "subset": key.subset,
        "kind": told.kind,
        "revision": told.revision,
    }


def _headers(key: ThingKey, told: _ToldThing) -> dict[str, str]:
    return {
        KEY: subjects.key(*key),
        REVISION: str(told.revision),
        DIGEST: told.digest,
        KIND: told.kind,
    }


def _of_instance(
    type: str, tenant: str, lease: Lease, reason: str, told: _ToldInstance | None, at: float
) -> Telling:
    key = subjects.key(tenant, lease.instance)
    message_id = f"instance.{key}.{told.sequence if told is not None else 0}"
    return Telling(
        tenant=tenant,
        event=CloudEvent(
            id=message_id,
            source=source_of(tenant, type),
            type=type,
            subject=lease.instance,
            time=rfc3339(at),
            data={
                "instance": lease.instance,
                "things": [
                    {"name": one.name, "subset": one.subset, "version": one.version}
                    for one in lease.things
                ],
                "host": lease.host,
                "pid": lease.pid,
                "reason": reason,
            },
        ),
        message_id=message_id,
        headers={KEY: key},
    )


def _registration(entered: Entered) -> dict[str, Any] | None:
    told = entered.registration
    return told.model_dump(mode="json", exclude_none=True) if told is not None else None


def _modified(entered: Entered) -> float:
    told = entered.registration
    return (unix_time(told.modified) if told is not None else None) or entered.created
