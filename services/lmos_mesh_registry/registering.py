"""What the registry keeps of a Thing: its Description, and when it came and goes. Pure."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.events import rfc3339, unix_time
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import Register, Registration
from lmos_mesh.things import DEFAULT_SUBSET, ThingKey
from lmos_mesh.transport import Entry

REGISTRATION = "registration"

_OURS = "urn:lmos-mesh:"
_LONGEST_S = 100 * 366 * 24 * 3600
_FAR = "is more than a hundred years away; leave it out for what shall stay"
# What a reply says beside its Things, and what msgpack may take more than JSON for odd numbers.
_ROOM = 0.9
_ROOM_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is kept of a Thing."""

    description: dict[str, Any]
    registration: Registration | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """How long a Thing is kept.

    Attributes:
        ttl: What it was given, in seconds; None if only its end was given, or nothing.
        ends: Unix seconds; None for no end.
    """

    ttl: float | None = None
    ends: float | None = None

    def left_s(self, now: float) -> int | None:
        """The whole seconds until its end, 1 at least."""
        return None if self.ends is None else max(1, math.ceil(self.ends - now))


FOR_GOOD = Lifetime()


def lifetime_of(request: Register, told: Mapping[str, Any] | None, *, now: float) -> Lifetime:
    """How long what is registered is to be kept.

    Args:
        request: What was asked.
        told: The `registration` in the Description, heeded where the request says nothing.
        now: Unix seconds.

    Raises:
        InvalidMessage: Both are given, one cannot be read, or the end has passed.
    """
    ttl_s, expires, at = request.ttl_s, request.expires, "/"
    if ttl_s is None and expires is None and told is not None:
        ttl_s, expires, at = told.get("ttl"), told.get("expires"), "/description/registration/"
        if ttl_s is not None:
            expires = None  # what is read from a registry has both, and the former made the latter
    if ttl_s is not None and expires is not None:
        raise InvalidMessage("give either `ttl_s` or `expires`", field="/expires")
    if ttl_s is not None:
        name = "ttl_s" if at == "/" else "ttl"
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not ttl_s > 0:
            raise InvalidMessage(f"{at}{name}: must be a number above 0", field=f"{at}{name}")
        if not ttl_s <= _LONGEST_S:
            raise InvalidMessage(f"{at}{name}: {_FAR}", field=f"{at}{name}")
        return Lifetime(ttl=float(ttl_s), ends=now + ttl_s)
    if expires is None:
        return FOR_GOOD
    ends = unix_time(expires) if isinstance(expires, str) else None
    if ends is None:
        raise InvalidMessage(
            f"{at}expires: must be a time like {rfc3339(now + 3600)}, not {expires!r}",
            field=f"{at}expires",
        )
    if ends <= now:
        raise InvalidMessage(f"{at}expires: {expires} has passed", field=f"{at}expires")
    if ends > now + _LONGEST_S:
        raise InvalidMessage(f"{at}expires: {_FAR}", field=f"{at}expires")
    return Lifetime(ends=ends)


def registration_for(
    held: Stored | None, description: Mapping[str, Any], life: Lifetime, *, now: float
) -> Registration:
    """What is noted beside a Description that is written now.

    It was modified now, unless it only stays for longer.
    """
    said = rfc3339(now)
    before = held.registration if held is not None else None
    same = held is not None and held.description == description
    return Registration(
        created=before.created if before is not None else said,
        modified=before.modified if before is not None and same else said,
        expires=rfc3339(life.ends) if life.ends is not None else None,
        ttl=life.ttl,
    )


def value_of(description: Mapping[str, Any], registration: Registration) -> bytes:
    """What is stored."""
    told = registration.model_dump(mode="json", exclude_none=True)
    return json.dumps({**description, REGISTRATION: told}, ensure_ascii=False).encode()


def stored_in(entry: Entry) -> Stored:
    """What was stored."""
    read: Any = json.loads(entry.value)
    description = cast("dict[str, Any]", read)
    told = description.pop(REGISTRATION, None)
    try:
        registration = Registration.model_validate(told) if told is not None else None
    except ValidationError:
        registration = None
    return Stored(description=description, registration=registration, revision=entry.revision)


def entered_from(key: ThingKey, entry: Entry) -> Entered | None:
    """The entry that a stored value is; None if it cannot be read."""
    alone = Membership()
    alone.apply_entry(subjects.key(*key), entry.value, entry.revision, created=entry.created)
    return alone.get(key)


def key_of_id(tenant: str, id: str) -> ThingKey:
    """Where the Thing of an id is kept, unless it is an agent or a tool with an id of its own."""
    if id.startswith(_OURS):
        names = [unquote(one) for one in id.removeprefix(_OURS).split(":")]
        if len(names) == 3 and names[0] == tenant:
            return ThingKey(*names)
    return ThingKey(tenant, id, DEFAULT_SUBSET)


def fitting(sizes: Iterable[int], max_payload: int) -> int:
    """How many of the first fit into one reply; one at least, or nothing would ever come."""
    room = int(max_payload * _ROOM) - _ROOM_BYTES
    count = 0
    for size in sizes:
        room -= size
        if room < 0 and count:
            break
        count += 1
    return count
