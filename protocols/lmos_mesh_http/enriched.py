"""What a directory adds to a Thing Description when it shows one, and takes off one it is sent.

W3C WoT Discovery, section 7.3.1: the member `registration` and the context that defines it. The
forms that adapters lend to the agents of the mesh are not theirs either. Pure.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote

from lmos_mesh.description import LIVE
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.messages import FoundThing

DISCOVERY = "https://www.w3.org/2022/wot/discovery"
REGISTRATION = "registration"
LARGEST_ID = 512

_AFFORDANCES = ("properties", "actions", "events")
_OUR_SUBJECTS = "nats:lmos."
_LENT = re.compile(r"https?://.+/agents/[^/]+/[^/]+/[a-z]+/[^/]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A Thing Description that somebody wants registered.

    Args:
        description: Without what the directory adds.
        ttl_s: Seconds that it stays.
        expires: RFC 3339: when it goes.
    """

    description: dict[str, Any]
    ttl_s: float | None = None
    expires: str | None = None


def enriched(found: FoundThing) -> dict[str, Any]:
    """The Description of a Thing, with when it came, when it goes, and whether it is there."""
    description = dict(found.description or {})
    description["@context"] = _with_discovery(description.get("@context"))
    registration: dict[str, Any] = {}
    if found.registration is not None:
        registration = found.registration.model_dump(exclude_none=True)
    if found.live is not None:
        registration[LIVE] = found.live
    if registration:
        description[REGISTRATION] = registration
    return description


def draft_of(sent: Mapping[str, Any], *, id: str) -> Draft:
    """What is to be registered of a Description that was sent.

    `created` and `modified` are the directory's to say and are passed over. A `ttl` is stronger
    than an `expires`.

    Args:
        sent: As it came.
        id: The id it must have.

    Raises:
        InvalidDescription: It has another id, or its `registration` cannot be used.
    """
    description = dict(sent)
    faults: list[dict[str, str]] = []
    if "id" not in description:
        faults.append(_fault("/id", f"is missing; it must be {id!r}, as in the path"))
    elif description["id"] != id:
        faults.append(_fault("/id", f"must be {id!r}, as in the path"))
    registration = description.pop(REGISTRATION, None)
    ttl_s, expires = _term(registration, faults)
    if faults:
        raise InvalidDescription.of(f"the description of {id!r}", faults)
    if "@context" in description:
        description["@context"] = _without_discovery(description["@context"])
    return Draft(description=_without_lent(description), ttl_s=ttl_s, expires=expires)


def patched(found: FoundThing, patch: Mapping[str, Any]) -> dict[str, Any]:
    """What a Description becomes by a merge patch, to be handed to `draft_of`.

    The patch sees `registration` with what may be set in it; of an entry with a `ttl` that is
    the `ttl` alone, so that every patch renews it.
    """
    before = dict(found.description or {})
    registration = found.registration
    if registration is not None and registration.ttl is not None:
        before[REGISTRATION] = {"ttl": registration.ttl}
    elif registration is not None and registration.expires is not None:
        before[REGISTRATION] = {"expires": registration.expires}
    return cast("dict[str, Any]", merged(before, patch))


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch applied (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(cast("Mapping[str, Any]", target)) if isinstance(target, Mapping) else {}
    for name, value in cast("Mapping[str, Any]", patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def id_faults(id: str) -> str:
    """Why an id cannot be one; empty if it can."""
    if not id:
        return "is empty"
    if len(id.encode("utf-8", "replace")) > LARGEST_ID:
        return f"has more than {LARGEST_ID} bytes"
    if _CONTROL.search(id):
        return "has control characters"
    return ""


def _term(registration: Any, faults: list[dict[str, str]]) -> tuple[float | None, str | None]:
    if registration is None:
        return None, None
    if not isinstance(registration, Mapping):
        faults.append(_fault("/registration", "must be an object"))
        return None, None
    told = cast("Mapping[str, Any]", registration)
    ttl, expires = told.get("ttl"), told.get("expires")
    if ttl is not None:
        if isinstance(ttl, bool) or not isinstance(ttl, int | float):
            faults.append(_fault("/registration/ttl", "must be a number of seconds"))
        elif not (math.isfinite(ttl) and ttl > 0):
            faults.append(_fault("/registration/ttl", "must be more than 0"))
        return ttl, None
    if expires is not None and not _is_time(expires):
        faults.append(
            _fault("/registration/expires", "must be a time as RFC 3339 has it, with its zone")
        )
    return None, expires


def _is_time(value: Any) -> bool:
    if not isinstance(value, str) or "T" not in value.upper():
        return False
    try:
        return datetime.fromisoformat(value.upper()).tzinfo is not None
    except ValueError:
        return False


def _with_discovery(context: Any) -> list[Any]:
    listed: list[Any] = list(cast("list[Any]", context)) if isinstance(context, list) else [context]
    listed = [one for one in listed if one is not None]
    return listed if DISCOVERY in listed else [*listed, DISCOVERY]


def _without_discovery(context: Any) -> Any:
    """The context as it was before `_with_discovery` put its own at the end."""
    if not isinstance(context, list):
        return context
    listed = cast("list[Any]", context)
    if len(listed) < 2 or listed[-1] != DISCOVERY:
        return listed
    return listed[0] if len(listed) == 2 and isinstance(listed[0], str) else listed[:-1]


def _without_lent(description: dict[str, Any]) -> dict[str, Any]:
    """Without the forms that lead to an agent of the mesh by way of an adapter.

    They are given anew whenever the Description is read, by those adapters that are there then.
    What does not answer on the mesh has forms of its own only.
    """
    kept = dict(description)
    for kind in _AFFORDANCES:
        affordances = description.get(kind)
        if isinstance(affordances, Mapping):
            kept[kind] = {
                name: _unlent(one, f"/{kind}/{quote(name, safe='')}")
                for name, one in cast("Mapping[str, Any]", affordances).items()
            }
    return kept


def _unlent(affordance: Any, path: str) -> Any:
    if not isinstance(affordance, Mapping):
        return affordance
    told = cast("Mapping[str, Any]", affordance)
    forms = told.get("forms")
    if not isinstance(forms, list):
        return told
    listed = cast("list[Any]", forms)
    if not any(_href(one).startswith(_OUR_SUBJECTS) for one in listed):
        return told
    own = [one for one in listed if not (_LENT.fullmatch(_href(one)) and _href(one).endswith(path))]
    return {**told, "forms": own}


def _href(form: Any) -> str:
    href = cast("Any", form).get("href") if isinstance(form, Mapping) else None
    return href if isinstance(href, str) else ""


def _fault(field: str, description: str) -> dict[str, str]:
    return {"field": field, "description": description}
