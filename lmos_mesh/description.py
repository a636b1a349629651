"""Things as W3C WoT Thing Descriptions 1.1 with the LMOS vocabulary, and back again. Pure.

`docs/descriptions.md` is the contract.
"""

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes

from lmos_mesh import subjects
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.schemas.thing_description import TD_CONTEXT, td_faults
from lmos_mesh.things import (
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    Capability,
    Fault,
    Faults,
    Thing,
    faults_of,
    kind_of,
    label_of,
    named,
    pointer,
    quoted,
)

LMOS_CONTEXT = "https://eclipse.dev/lmos/protocol/v1"
MESH_CONTEXT = "urn:lmos-mesh:vocabulary#"
NATS_CONTEXT = "urn:lmos-mesh:vocabulary:nats#"
TYPES = {"agent": "lmos:Agent", "tool": "lmos:Tool"}

_URN = "urn:lmos-mesh:"
# What a Thing's members are called in its Description; the rest is in `_read`.
_TERMS = {
    "description": "description",
    "supported_channels": "mesh:supportedChannels",
    "supported_tenants": "mesh:supportedTenants",
    "metadata": "lmos:metadata",
    "external": "mesh:external",
}
_MORE_FIELDS = "mesh:fields"
# Members of a capability that the Description has in the capability's action.
_IN_ACTION = ("input", "output", "idempotent")


def id_of(thing: Thing) -> str:
    """The URN of a Thing: its tenant, name and subset, percent-encoded."""
    return _URN + ":".join(quote(one, safe="") for one in (thing.tenant, thing.name, thing.subset))


def describe(thing: Thing) -> dict[str, Any]:
    """The Description of a Thing that has no faults; `thing_of` is its inverse."""
    description: dict[str, Any] = {
        "@context": [
            TD_CONTEXT,
            {"lmos": LMOS_CONTEXT, "mesh": MESH_CONTEXT, "nats": NATS_CONTEXT},
        ],
        "@type": TYPES[thing.kind],
        "id": id_of(thing),
        "title": thing.name,
        "description": thing.description,
        "version": {"instance": thing.version},
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
        "mesh:tenant": thing.tenant,
        "mesh:subset": thing.subset,
        "mesh:supportedChannels": list(thing.supported_channels),
    }
    if thing.supported_tenants:
        description["mesh:supportedTenants"] = list(thing.supported_tenants)
    if thing.external:
        description["mesh:external"] = True
    if thing.metadata:
        description["lmos:metadata"] = thing.metadata
    if thing.model_extra:
        description[_MORE_FIELDS] = dict(thing.model_extra)
    description["lmos:capabilities"] = [_entry(thing, one) for one in thing.capabilities]
    if not thing.external:
        # What speaks another protocol does not answer at our subjects, so it has no such forms.
        description["actions"] = {one.id: _action(thing, one) for one in thing.capabilities}
    return description


def thing_of(description: Mapping[str, Any], *, tenant: str = DEFAULT_TENANT) -> Thing:
    """The Thing that a Description describes.

    Args:
        description: Decoded JSON.
        tenant: Whose it is, where the Description does not say.

    Raises:
        InvalidDescription: It breaks the rules of LMOS or of Things; every fault is listed.
    """
    found = Faults()
    raw = _read(description, tenant, found)
    if found:
        label = label_of({**raw, "name": description.get("title", raw.get("name"))})
        raise InvalidDescription.of(label, found.listed())
    return Thing.model_validate(raw)


def description_faults(description: Mapping[str, Any]) -> list[Fault]:
    """Every reason to refuse a Description of an agent or a tool.

    That is what the schema of the W3C refuses, and what breaks the rules of LMOS or of Things.
    """
    found = td_faults(description)
    if isinstance(description, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        known = {fault["field"] for fault in found.listed()}
        more = Faults()
        _read(description, DEFAULT_TENANT, more)
        for fault in more.listed():
            # What has the wrong type for the W3C has it for us too; once is enough.
            if fault["field"] not in known:
                found.add(fault["field"], fault["description"])
    return found.listed()


def _entry(thing: Thing, capability: Capability) -> dict[str, Any]:
    in_action = set[str]() if thing.external else set(_IN_ACTION)
    entry: dict[str, Any] = {
        "id": capability.id,
        "name": capability.name,
        "version": capability.version,
    }
    entry |= capability.model_dump(exclude=in_action | {*entry}, exclude_defaults=True)
    for several in entry.keys() & {"examples", "tags"}:
        entry[several] = list(entry[several])
    return entry


def _action(thing: Thing, capability: Capability) -> dict[str, Any]:
    subject = subjects.agent_invoke(thing.tenant, thing.name, thing.subset, capability.id)
    action: dict[str, Any] = {
        "title": capability.name,
        "description": capability.description,
        "safe": False,
        "idempotent": capability.idempotent,
        "synchronous": True,
        "forms": [
            {
                "href": f"nats:{subject}",
                "op": "invokeaction",
                "contentType": "application/json",
                "nats:queue": subjects.AGENT_QUEUE,
            }
        ],
    }
    if capability.input is not None:
        action["input"] = capability.input
    if capability.output is not None:
        action["output"] = capability.output
    return action


def _read(description: Mapping[str, Any], tenant: str, found: Faults) -> dict[str, Any]:
    """The raw Thing in a Description; notes every fault at the place where it is written."""
    raw: dict[str, Any] = {}
    places: dict[str, str] = {}
    _read_fields(description, raw, places, found)
    _read_context(description, found)
    _read_kind(description, raw, found)
    _read_names(description, tenant, raw, places, found)
    _read_version(description, raw, places, found)
    for member, term in _TERMS.items():
        if term in description:
            raw[member] = description[term]
            places[f"/{member}"] = f"/{term}"
    _read_capabilities(description, raw, places)
    for fault in faults_of(raw):
        found.add(_place(fault["field"], places), fault["description"])
    return raw


def _place(at: str, places: Mapping[str, str]) -> str:
    """Where in the Description a member of the raw Thing comes from."""
    head, rest = at, ""
    while head and head not in places:
        head, _, step = head.rpartition("/")
        rest = f"/{step}{rest}"
    return places.get(head, head) + rest


def _read_fields(
    description: Mapping[str, Any], raw: dict[str, Any], places: dict[str, str], found: Faults
) -> None:
    fields = description.get(_MORE_FIELDS, {})
    if not isinstance(fields, dict):
        found.add(pointer(_MORE_FIELDS), f"must be an object, not {kind_of(fields)}")
        return
    for name, value in cast("dict[str, Any]", fields).items():
        at = pointer(_MORE_FIELDS, name)
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
    for entry in _several(context):
        if entry == LMOS_CONTEXT:
            return
        if isinstance(entry, dict) and cast("dict[str, Any]", entry).get("lmos") == LMOS_CONTEXT:
            return
    found.add("/@context", f'must declare the prefix "lmos" as "{LMOS_CONTEXT}"')


def _read_kind(description: Mapping[str, Any], raw: dict[str, Any], found: Faults) -> None:
    stated = [one for one in _several(description.get("@type")) if isinstance(one, str)]
    kinds = [kind for kind, term in TYPES.items() if term in stated]
    if len(kinds) == 1:
        raw["kind"] = kinds[0]
    elif kinds:
        found.add("/@type", 'must be "lmos:Agent" or "lmos:Tool", and not both')
    elif "@type" in description:
        found.add("/@type", 'must be, or include, "lmos:Agent" or "lmos:Tool"')
    else:
        found.add("/@type", 'is missing; it must be "lmos:Agent" or "lmos:Tool"')


def _read_names(
    description: Mapping[str, Any],
    tenant: str,
    raw: dict[str, Any],
    places: dict[str, str],
    found: Faults,
) -> None:
    stated = {"tenant": "mesh:tenant", "subset": "mesh:subset"}
    ours = _names_in(description.get("id"))
    if ours is None:
        raw |= {"tenant": tenant, "subset": DEFAULT_SUBSET}
        for member, term in {"name": "title", **stated}.items():
            if term in description:
                raw[member] = description[term]
                places[f"/{member}"] = f"/{term}"
        places.setdefault("/name", "/title")
        return
    if len(ours) != 3 or not all(ours):
        found.add("/id", f"must be {_URN}{{tenant}}:{{name}}:{{subset}}, percent-encoded as UTF-8")
        # Only so that no fault of the name is reported on top.
        raw["name"] = "?"
        return
    raw |= dict(zip(("tenant", "name", "subset"), ours, strict=True))
    places |= {"/tenant": "/id", "/name": "/id", "/subset": "/id"}
    for member, term in stated.items():
        if description.get(term, raw[member]) != raw[member]:
            found.add(
                f"/{term}",
                f"is {quoted(description[term])}, and the id says {quoted(raw[member])};"
                " make them agree",
            )


def _names_in(stated: object) -> list[str] | None:
    """The names in a URN of ours, none if it is malformed; None for somebody else's id."""
    if not isinstance(stated, str) or not stated.startswith(_URN):
        return None
    try:
        return [unquote_to_bytes(one).decode() for one in stated[len(_URN) :].split(":")]
    except UnicodeError:
        return []


def _read_version(
    description: Mapping[str, Any], raw: dict[str, Any], places: dict[str, str], found: Faults
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
    description: Mapping[str, Any], raw: dict[str, Any], places: dict[str, str]
) -> None:
    if "lmos:capabilities" not in description:
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
        # Where an action is silent, the W3C's default holds, not ours.
        performed = {"idempotent": False, **cast("dict[str, Any]", action)}
        taken = {member: performed[member] for member in _IN_ACTION if member in performed}
        joined[index] = {**taken, **capability}
        at = pointer("actions", known_as)
        for member in taken.keys() - capability.keys():
            places[f"/capabilities/{index}/{member}"] = f"{at}/{member}"
    raw["capabilities"] = joined


def _several(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]
