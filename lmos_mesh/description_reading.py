"""Reads a Description into the raw Thing that it describes. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from lmos_mesh.description_terms import MORE_FIELDS, TYPES, listed, urn_of
from lmos_mesh.json_faults import Faults, kind_of, pointer, quoted
from lmos_mesh.schemas.assertions import LMOS_CONTEXT
from lmos_mesh.semver import BadVersion, Version
from lmos_mesh.thing_faults import (
    AFFORDANCES,
    CAPABILITIES,
    LINKS,
    describable,
    faults_of,
    nameable,
)
from lmos_mesh.things import DEFAULT_SUBSET, IN_PROPERTY, OUR_IDS, Thing, named

_BUS = "nats:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_KIND_WANTED = '"lmos:Agent" or "lmos:Tool", since it has capabilities of LMOS'
# What a Thing's members are called in its Description; the rest is in `read`.
_TERMS = {
    "description": "description",
    "supported_channels": "mesh:supportedChannels",
    "supported_tenants": "mesh:supportedTenants",
    "metadata": "lmos:metadata",
    "external": "mesh:external",
    "origin": "mesh:origin",
    "links": "links",
}
# Members of a capability that the Description has in the capability's action.
_IN_ACTION = ("input", "output", "idempotent")
# Where in a Description the members of the raw Thing come from: pointers, or the steps of one.
_Places = dict[str, str | tuple[str, ...]]


def read(
    description: Mapping[str, Any], tenant: str, found: Faults, *, trusted: bool = False
) -> dict[str, Any]:
    """The raw Thing in a Description; notes every fault at the place where it is written."""
    raw: dict[str, Any] = {}
    places: _Places = {}
    _read_fields(description, raw, places, found)
    _read_kind(description, raw, found)
    plain = raw.get("kind") == "thing"
    if not plain:
        _read_context(description, found)
    _read_names(description, tenant, raw, places, found)
    for member, term in _TERMS.items():
        if term in description:
            raw[member] = description[term]
            places[f"/{member}"] = f"/{term}"
    if plain:
        _read_plain(description, raw)
    else:
        _read_version(description, raw, places, found)
    _read_capabilities(description, raw, places)
    _read_affordances(description, raw, places)
    if not plain and "external" not in raw and _lives_elsewhere(description):
        raw["external"] = True
    if not trusted:
        for fault in faults_of(_with_terms(raw, description)):
            found.add(_place(fault["field"], places), fault["description"])
    return raw


def _with_terms(raw: dict[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """The raw Thing with those terms that its rules ask for."""
    terms = {
        member: cast("Any", None)
        for member in ("actions", "properties", "events")
        if member in description
    }
    return {**raw, "terms": terms} if terms else raw


def _place(at: str, places: _Places) -> str:
    """Where in the Description a member of the raw Thing comes from."""
    head, rest = at, ""
    while head and head not in places:
        head, _, step = head.rpartition("/")
        rest = f"/{step}{rest}"
    there = places.get(head, head)
    return (there if isinstance(there, str) else pointer(*there)) + rest


def _read_fields(
    description: Mapping[str, Any], raw: dict[str, Any], places: _Places, found: Faults
) -> None:
    fields = description.get(MORE_FIELDS, {})
    if not isinstance(fields, dict):
        found.add(pointer(MORE_FIELDS), f"must be an object, not {kind_of(fields)}")
        return
    for name, value in cast("dict[str, Any]", fields).items():
        at = pointer(MORE_FIELDS, name)
        if name in Thing.model_fields:
            found.add(at, "has a term of its own; move it there")
        else:
            raw[name] = value
            places[pointer(name)] = at


def _read_context(description: Mapping[str, Any], found: Faults) -> None:
    context = description.get("@context")
    if context is None:
        found.add("/@context", "is missing")
        return
    for entry in listed(context):
        if entry == LMOS_CONTEXT:
            return
        if isinstance(entry, dict) and cast("dict[str, Any]", entry).get("lmos") == LMOS_CONTEXT:
            return
    found.add("/@context", f'must declare the prefix "lmos" as "{LMOS_CONTEXT}"')


def _read_kind(description: Mapping[str, Any], raw: dict[str, Any], found: Faults) -> None:
    stated = [one for one in listed(description.get("@type")) if isinstance(one, str)]
    kinds = [kind for kind, term in TYPES.items() if term in stated]
    if len(kinds) == 1:
        raw["kind"] = kinds[0]
    elif kinds:
        found.add("/@type", 'must be "lmos:Agent" or "lmos:Tool", and not both')
    elif "lmos:capabilities" not in description:
        raw["kind"] = "thing"
    elif "@type" in description:
        found.add("/@type", f"must be, or include, {_KIND_WANTED}")
    else:
        found.add("/@type", f"is missing; it must be {_KIND_WANTED}")


def _read_names(
    description: Mapping[str, Any],
    tenant: str,
    raw: dict[str, Any],
    places: _Places,
    found: Faults,
) -> None:
    stated = {"tenant": "mesh:tenant", "subset": "mesh:subset"}
    plain = raw.get("kind") == "thing"
    ours = None if plain else _names_in(description.get("id"))
    if ours is not None and description.get("mesh:origin") and not _is_named(description, ours):
        ours = None  # what it is called in the mesh that it comes from
    if ours is None:
        raw |= {"tenant": tenant, "subset": DEFAULT_SUBSET}
        for member, term in {"name": "id" if plain else "title", **stated}.items():
            if term in description:
                raw[member] = description[term]
                places[f"/{member}"] = f"/{term}"
        places.setdefault("/name", "/id" if plain else "/title")
        if plain and "id" not in description:
            found.add("/id", "is missing; what is no agent or tool of LMOS is known by it")
            # Only so that no fault of the name is reported on top.
            raw["name"] = "urn:unknown"
        if not plain and "id" in description:
            raw["id"] = description["id"]
        return
    if len(ours) != 3 or not all(ours):
        found.add(
            "/id", f"must be {OUR_IDS}{{tenant}}:{{name}}:{{subset}}, percent-encoded as UTF-8"
        )
        # Only so that no fault of the name is reported on top.
        raw["name"] = "?"
        return
    if (canonical := urn_of(*ours)) != description.get("id"):
        found.add("/id", f"must be written as {canonical}")
    raw |= dict(zip(("tenant", "name", "subset"), ours, strict=True))
    places |= {"/tenant": "/id", "/name": "/id", "/subset": "/id"}
    _read_title(description, raw)
    for member, term in stated.items():
        if description.get(term, raw[member]) != raw[member]:
            found.add(
                f"/{term}",
                f"is {quoted(description[term])}, and the id says {quoted(raw[member])};"
                " make them agree",
            )


def _lives_elsewhere(description: Mapping[str, Any]) -> bool:
    """Whether every form leads away from the bus, so that no process of the mesh can serve it."""
    targets = list(_targets(description))
    return bool(targets) and not any(one.startswith(_BUS) for one in targets)


def _targets(description: Mapping[str, Any]) -> Iterator[str]:
    """Where all forms lead."""
    base = description.get("base")
    holders: list[object] = [description]
    for several in ("actions", "properties", "events"):
        affordances = description.get(several)
        if isinstance(affordances, Mapping):
            holders += cast("Mapping[str, object]", affordances).values()
    for holder in holders:
        forms = (
            cast("Mapping[str, Any]", holder).get("forms") if isinstance(holder, Mapping) else None
        )
        for form in cast("list[Any]", forms) if isinstance(forms, list) else []:
            href = cast("Any", form).get("href") if isinstance(form, Mapping) else None
            if isinstance(href, str):
                yield href if _SCHEME.match(href) or not isinstance(base, str) else base


def _is_named(description: Mapping[str, Any], names: list[str]) -> bool:
    """Whether a Description's own terms say these names."""
    said = [description.get(term) for term in ("mesh:tenant", "title", "mesh:subset")]
    return said == names


def _read_title(description: Mapping[str, Any], raw: dict[str, Any]) -> None:
    title = description.get("title")
    if nameable(title) and title != raw.get("name"):
        raw["title"] = title


def _read_plain(description: Mapping[str, Any], raw: dict[str, Any]) -> None:
    """Take what fits into the record; the rest is valid too, and stays in its terms."""
    _read_title(description, raw)
    if not describable(raw.get("description")):
        raw.pop("description", None)
    version = description.get("version")
    stated = cast("dict[str, Any]", version).get("instance") if isinstance(version, dict) else None
    if isinstance(stated, str) and _is_version(stated):
        raw["version"] = stated
    links = raw.get("links")
    if not isinstance(links, list) or len(cast("list[Any]", links)) > LINKS:
        raw.pop("links", None)


def _is_version(text: str) -> bool:
    try:
        Version.parse(text)
    except BadVersion:
        return False
    return True


def _read_affordances(description: Mapping[str, Any], raw: dict[str, Any], places: _Places) -> None:
    for several, read in (("properties", _read_property), ("events", _read_event)):
        affordances = description.get(several)
        if not isinstance(affordances, Mapping):
            continue
        taken: list[dict[str, Any]] = []
        for name, one in cast("Mapping[str, Any]", affordances).items():
            # What cannot be a part of the record stays in its terms.
            if not isinstance(one, dict) or not nameable(name) or len(taken) == AFFORDANCES:
                continue
            affordance = cast("dict[str, Any]", one)
            if affordance.get("readOnly") is True and affordance.get("writeOnly") is True:
                continue
            at = f"/{several}/{len(taken)}"
            places[at] = places[f"{at}/schema"] = (several, name)
            taken.append(read(name, affordance))
        if taken:
            raw[several] = taken


def _read_property(name: str, affordance: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {
        "name": name,
        "schema": {
            member: value for member, value in affordance.items() if member not in IN_PROPERTY
        },
        "writable": affordance.get("readOnly") is not True,
        "readable": affordance.get("writeOnly") is not True,
        "observable": affordance.get("observable") is True,
    }
    if describable(affordance.get("description")):
        read["description"] = affordance["description"]
    return read


def _read_event(name: str, affordance: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {"name": name}
    if isinstance(affordance.get("data"), dict):
        read["data"] = affordance["data"]
    if describable(affordance.get("description")):
        read["description"] = affordance["description"]
    return read


def _names_in(stated: object) -> list[str] | None:
    """The names in a URN of ours, none if it is malformed; None for somebody else's id."""
    if not isinstance(stated, str) or not stated.startswith(OUR_IDS):
        return None
    try:
        return [
            unquote_to_bytes(one).decode() if "%" in one else one
            for one in stated[len(OUR_IDS) :].split(":")
        ]
    except UnicodeError:
        return []


def _read_version(
    description: Mapping[str, Any], raw: dict[str, Any], places: _Places, found: Faults
) -> None:
    if "version" not in description:
        return
    version = description["version"]
    if not isinstance(version, dict):
        found.add("/version", f"must be an object, not {kind_of(version)}")
    elif "instance" in version:
        raw["version"] = version["instance"]
        places["/version"] = "/version/instance"
    else:
        found.add("/version/instance", "is missing")


def _read_capabilities(
    description: Mapping[str, Any], raw: dict[str, Any], places: _Places
) -> None:
    if "lmos:capabilities" not in description:
        _read_actions(description, raw, places)
        return
    places["/capabilities"] = "/lmos:capabilities"
    raw["capabilities"] = entries = description["lmos:capabilities"]
    actions = description.get("actions")
    if not isinstance(entries, list) or not isinstance(actions, dict):
        return
    joined: list[Any] = []
    for index, entry in enumerate(cast("list[Any]", entries)):
        joined.append(entry)
        if not isinstance(entry, dict):
            continue
        capability = cast("dict[str, Any]", entry)
        known_as = named(capability).get("id")
        if not isinstance(known_as, str):
            continue
        action = cast("dict[str, Any]", actions).get(known_as)
        if not isinstance(action, dict):
            continue
        performed = cast("dict[str, Any]", action)
        taken = {
            member: performed[member]
            for member in _IN_ACTION
            if member in performed and member not in capability
        }
        if "idempotent" not in performed and "idempotent" not in capability:
            # Where an action is silent, the W3C's default holds, not ours.
            taken["idempotent"] = False
        joined[index] = capability | taken
        for member in taken:
            places[f"/capabilities/{index}/{member}"] = ("actions", known_as, member)
    raw["capabilities"] = joined


def _read_actions(description: Mapping[str, Any], raw: dict[str, Any], places: _Places) -> None:
    """Where no capabilities are named, the actions are what it can do."""
    actions = description.get("actions")
    if not isinstance(actions, Mapping):
        return
    taken: list[dict[str, Any]] = []
    for name, action in cast("Mapping[str, Any]", actions).items():
        if not isinstance(action, dict) or not nameable(name) or len(taken) == CAPABILITIES:
            continue
        performed = cast("dict[str, Any]", action)
        title = performed.get("title")
        capability: dict[str, Any] = {
            "id": name,
            "name": title if nameable(title) else name,
            "idempotent": performed.get("idempotent") is True,
        }
        if describable(performed.get("description")):
            capability["description"] = performed["description"]
        for member in ("input", "output"):
            if isinstance(performed.get(member), dict):
                capability[member] = performed[member]
                places[f"/capabilities/{len(taken)}/{member}"] = ("actions", name, member)
        taken.append(capability)
    if taken:
        raw["capabilities"] = taken
