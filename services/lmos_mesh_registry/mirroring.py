"""What another mesh's Things are here: theirs, said to be theirs, and never in our own's way. Pure.

Their ids are kept unless we have a Thing of that id. Agents and tools are called
`{name}@{origin}`, so that no other mesh can take a name from one of ours. What comes from a third
mesh is left out: it is mirrored from there or not at all, and nothing goes round in circles.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from lmos_mesh.description import (
    LIVE,
    MESH_CONTEXT,
    description_faults,
    id_of,
    named_in_words,
    thing_of,
)
from lmos_mesh.description_terms import TYPES
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.thing_faults import NAME_BYTES, thing_from
from lmos_mesh.things import DEFAULT_SUBSET, OUR_IDS, ThingKey

ORIGIN = "mesh:origin"

_DISCOVERY = "https://www.w3.org/2022/wot/discovery"
_AFFORDANCES = ("properties", "actions", "events")


def origin_of(url: str) -> str:
    """What a mesh is called of which only the address is known."""
    return urlsplit(url).netloc.rpartition("@")[2] or url


def mirrored(
    description: Mapping[str, Any],
    *,
    origin: str,
    tenant: str,
    taken: Callable[[str], bool],
) -> tuple[ThingKey, dict[str, Any]] | None:
    """Where and how a Thing of another mesh is entered here; None if it is not to be.

    Args:
        description: As the other mesh's directory gives it.
        origin: What that mesh is called.
        tenant: Whose it is here.
        taken: Whether a Thing of ours has an id.

    Raises:
        InvalidDescription: It breaks the rules; every fault is listed.
    """
    if description.get(ORIGIN):
        return None
    ours = copy.deepcopy(dict(description))
    registration: Any = ours.pop("registration", None)
    ours.pop(LIVE, None)
    _leave_out_discovery(ours)
    _check(ours)
    stated: Any = ours.get("@type")
    types = cast("list[Any]", stated) if isinstance(stated, list) else [stated]
    ours[ORIGIN] = origin
    if (live := _told_live(registration)) is not None:
        ours[LIVE] = live
    _declare_prefix(ours)
    is_lmos = any(term in types for term in TYPES.values())
    if is_lmos or "mesh:tenant" in ours:
        ours["mesh:tenant"] = tenant
    for several in _AFFORDANCES:
        _leave_out_their_bus(ours, several)
    if is_lmos:
        _name(ours, description, origin, tenant)
        if taken(str(ours.get("id"))):
            ours["id"] = id_of(
                thing_from({"name": ours["title"], "tenant": tenant, "subset": ours["mesh:subset"]})
            )
    elif taken(str(ours.get("id"))):
        return None
    _check(ours)
    thing = thing_of(ours, tenant=tenant)
    return ThingKey(tenant, thing.name, thing.subset), ours


def is_called(description: Mapping[str, Any], name: str, subset: str) -> bool:
    """Whether an event of another mesh about a Thing of that name is about this one."""
    ours = str(description.get("id")).removeprefix(OUR_IDS).split(":")
    if len(ours) == 3:
        return [unquote(one) for one in ours[1:]] == [name, subset]
    return (description.get("title"), description.get("mesh:subset", DEFAULT_SUBSET)) == (
        name,
        subset,
    )


def _told_live(registration: Any) -> bool | None:
    """Whether their directory says that somebody serves it; those of other vendors do not."""
    told = cast("Any", registration).get(LIVE) if isinstance(registration, Mapping) else None
    return told if isinstance(told, bool) else None


def _check(description: Mapping[str, Any]) -> None:
    if faults := description_faults(description):
        raise InvalidDescription.of(named_in_words(description), faults)


def _name(ours: dict[str, Any], description: Mapping[str, Any], origin: str, tenant: str) -> None:
    theirs = thing_of(description)
    ending = f"@{origin}"
    room = NAME_BYTES - len(ending.encode())
    ours["title"] = theirs.name.encode()[: max(room, 1)].decode(errors="ignore").strip() + ending
    ours["mesh:subset"] = theirs.subset or DEFAULT_SUBSET
    # No process of this mesh, so none of our subjects leads to it.
    ours["mesh:external"] = True


def _leave_out_discovery(ours: dict[str, Any]) -> None:
    """What their directory has added to say when the Thing came."""
    context: Any = ours.get("@context")
    if isinstance(context, list) and len(cast("list[Any]", context)) > 1:
        ours["@context"] = [one for one in cast("list[Any]", context) if one != _DISCOVERY]


def _declare_prefix(ours: dict[str, Any]) -> None:
    """What we add is in our vocabulary, which others do not declare."""
    stated: Any = ours.get("@context")
    context = cast("list[Any]", stated) if isinstance(stated, list) else [stated]
    if not any(isinstance(one, dict) and "mesh" in one for one in context):
        ours["@context"] = [*context, {"mesh": MESH_CONTEXT}]


def _leave_out_their_bus(ours: dict[str, Any], several: str) -> None:
    """Subjects of their bus mean something else on ours, or nothing."""
    stated: Any = ours.get(several)
    if not isinstance(stated, dict):
        return
    affordances = cast("dict[str, Any]", stated)
    for name, one in list(affordances.items()):
        forms: Any = cast("dict[str, Any]", one).get("forms") if isinstance(one, dict) else None
        if not isinstance(forms, list):
            continue
        kept = [form for form in cast("list[Any]", forms) if not _is_on_a_bus(form)]
        if kept:
            one["forms"] = kept
        else:
            del affordances[name]
    if not affordances:
        del ours[several]


def _is_on_a_bus(form: Any) -> bool:
    href: Any = cast("dict[str, Any]", form).get("href") if isinstance(form, dict) else None
    return isinstance(href, str) and href.startswith("nats:")
