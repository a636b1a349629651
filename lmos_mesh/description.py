"""Things as W3C WoT Thing Descriptions 1.1 with the LMOS vocabulary, and back again. Pure.

`docs/descriptions.md` is the contract.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.schemas.assertions import LMOS_CONTEXT
from lmos_mesh.schemas.thing_description import TD_CONTEXT, td_faults
from lmos_mesh.semver import BadVersion, Version
from lmos_mesh.things import (
    AFFORDANCES,
    ANY_CHANNEL,
    CAPABILITIES,
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    DEFAULT_VERSION,
    DOCUMENT_BYTES,
    IN_PROPERTY,
    LINKS,
    NESTING,
    OUR_IDS,
    OUTER_NESTING,
    Capability,
    Event,
    Fault,
    Faults,
    Property,
    Thing,
    check_json,
    describable,
    faults_of,
    kind_of,
    label_of,
    nameable,
    named,
    pointer,
    quoted,
)

MESH_CONTEXT = "urn:lmos-mesh:vocabulary#"
NATS_CONTEXT = "urn:lmos-mesh:vocabulary:nats#"
TYPES = {"agent": "lmos:Agent", "tool": "lmos:Tool"}
LIVE = "mesh:live"
"""Whether somebody serves a Thing: told in `registration`, and kept of what is mirrored."""

_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+\Z")
_BUS = "nats:"
_OUR_SUBJECTS = "nats:lmos."
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_IN_QUEUE = {"nats:queue": subjects.AGENT_QUEUE}
_KIND_WANTED = '"lmos:Agent" or "lmos:Tool", since it has capabilities of LMOS'
# What a Thing's members are called in its Description; the rest is in `_read`.
_TERMS = {
    "description": "description",
    "supported_channels": "mesh:supportedChannels",
    "supported_tenants": "mesh:supportedTenants",
    "metadata": "lmos:metadata",
    "external": "mesh:external",
    "origin": "mesh:origin",
    "links": "links",
}
_MORE_FIELDS = "mesh:fields"
# Where in a Description the members of the raw Thing come from: pointers, or the steps of one.
_Places = dict[str, str | tuple[str, ...]]
_ALL_GIVEN: dict[type[Message], set[str]] = {
    model: set(model.model_fields) for model in (Capability, Thing)
}
# Members of a capability that the Description has in the capability's action.
_IN_ACTION = ("input", "output", "idempotent")


def id_of(thing: Thing) -> str:
    """The id of a Thing's Description: its own, or the URN of its tenant, name and subset."""
    return thing.id or (
        thing.name if thing.kind == "thing" else _urn(thing.tenant, thing.name, thing.subset)
    )


def describe(thing: Thing) -> dict[str, Any]:
    """The Description of a Thing that has no faults; `thing_of` is its inverse.

    Parts of it are parts of the record: change a copy.
    """
    description = _derived(thing)
    for member in thing.omitted:
        description.pop(member, None)
    return description | thing.terms if thing.terms else description


def thing_of(
    description: Mapping[str, Any], *, tenant: str = DEFAULT_TENANT, trusted: bool = False
) -> Thing:
    """The Thing that a Description describes.

    Args:
        description: Decoded JSON.
        tenant: Whose it is, where the Description does not say.
        trusted: A registry has checked it already, so that the rules are not checked again.

    Raises:
        InvalidDescription: It breaks the rules of LMOS or of Things; every fault is listed.
    """
    found = Faults()
    raw = _read(description, tenant, found, trusted=trusted)
    if not trusted and not found:
        check_json(dict(description), "", found, nesting=NESTING + OUTER_NESTING)
        if not found:
            _check_size(description, found)
    if found:
        raise InvalidDescription.of(_label(description, raw), found.listed())
    try:
        thing = _lean(Thing.model_validate(raw))
    except ValidationError as exc:
        # Only a registry's mistake leads here: what is not trusted has been checked.
        faults: list[Fault] = [
            {"field": pointer(*one["loc"]), "description": one["msg"]} for one in exc.errors()
        ]
        raise InvalidDescription.of(_label(description, raw), faults) from None
    derived = _derived(thing)
    terms = {
        member: value
        for member, value in description.items()
        if member not in derived or derived[member] != value
    }
    omitted = tuple(member for member in derived if member not in description)
    if not terms and not omitted:
        return thing
    return thing.model_copy(update={"terms": terms, "omitted": omitted})


def _lean(thing: Thing) -> Thing:
    """The same Thing without the notes of which members were given: half of its memory."""
    for model in (thing, *thing.capabilities):
        object.__setattr__(model, "__pydantic_fields_set__", _ALL_GIVEN[type(model)])
    return thing


def description_faults(description: Mapping[str, Any]) -> list[Fault]:
    """Every reason to refuse a Description.

    That is what the schema of the W3C refuses, and what breaks the rules of LMOS or of Things.
    """
    found = td_faults(description)
    if isinstance(description, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        known = {fault["field"] for fault in found.listed()}
        more = Faults()
        _read(description, DEFAULT_TENANT, more)
        if not found and not more:
            _check_size(description, more)
        for fault in more.listed():
            # What has the wrong type for the W3C has it for us too; once is enough.
            if fault["field"] not in known:
                found.add(fault["field"], fault["description"])
    return found.listed()


def with_security(description: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A Description of an agent or tool with its `security`, and what was filled in.

    The examples of LMOS leave it out, and it is required: where neither it nor any definition of
    it is there, `nosec` is meant. Descriptions of other Things are left as they are.
    """
    filled = dict(description)
    stated = _several(description.get("@type"))
    if not any(term in stated for term in TYPES.values()):
        return filled, ()
    if "security" in description or description.get("securityDefinitions"):
        return filled, ()
    filled["securityDefinitions"] = {"nosec_sc": {"scheme": "nosec"}}
    filled["security"] = "nosec_sc"
    return filled, ("`security` was missing; `nosec` was filled in",)


def with_id(description: Mapping[str, Any], *, tenant: str, fresh: str) -> dict[str, Any]:
    """A Description with an `id`, by which it can be found.

    Args:
        description: Whether valid or not.
        tenant: Whose it is, where the Description does not say.
        fresh: The id for what is no agent or tool, e.g. a new `urn:uuid:…`.
    """
    identified = dict(description)
    if "id" in identified:
        return identified
    if not any(term in _several(description.get("@type")) for term in TYPES.values()):
        return {**identified, "id": fresh}
    named_as = (
        description.get("mesh:tenant", tenant),
        description.get("title"),
        description.get("mesh:subset", DEFAULT_SUBSET),
    )
    if all(nameable(one) for one in named_as):
        identified["id"] = _urn(*cast("tuple[str, ...]", named_as))
    return identified


def reachable(
    description: Mapping[str, Any], thing: Thing, addresses: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """A Description with the forms of the adapters that are there now.

    Args:
        description: Of the Thing, as it is kept.
        thing: What speaks for itself keeps its own forms only.
        addresses: (protocol, URL) of each adapter.
    """
    shown = dict(description)
    if not thing.answers_here:
        return shown
    # In order, so that replicas of the registry say the same.
    for base in sorted({url.rstrip("/") for protocol, url in addresses if protocol == "http"}):
        root = f"{base}/agents/{quote(thing.name, safe='')}/{quote(thing.subset, safe='')}"
        for several, forms_of in _HTTP_FORMS.items():
            if isinstance(affordances := shown.get(several), Mapping):
                shown[several] = {
                    name: _with_forms(
                        one, forms_of(f"{root}/{several}/{quote(name, safe='')}", one)
                    )
                    for name, one in cast("Mapping[str, dict[str, Any]]", affordances).items()
                }
    return shown


def _with_forms(affordance: dict[str, Any], forms: list[dict[str, Any]]) -> dict[str, Any]:
    own = cast("list[dict[str, Any]]", affordance["forms"])
    if not any(str(form.get("href")).startswith(_OUR_SUBJECTS) for form in own):
        return affordance  # it is answered somewhere else
    return {**affordance, "forms": [*own, *forms]}


def _http_of_action(href: str, _action: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_form(href, "invokeaction", {"htv:methodName": "POST"})]


def _http_of_property(href: str, one: Mapping[str, Any]) -> list[dict[str, Any]]:
    forms: list[dict[str, Any]] = []
    if not one.get("writeOnly"):
        forms.append(_form(href, "readproperty", {"htv:methodName": "GET"}))
    if not one.get("readOnly"):
        forms.append(_form(href, "writeproperty", {"htv:methodName": "PUT"}))
    return forms


def _http_of_event(href: str, _event: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "href": href,
            "op": ["subscribeevent", "unsubscribeevent"],
            # Of the data of an event; consumers decode each one by it.
            "contentType": "application/json",
            "subprotocol": "sse",
            "htv:methodName": "GET",
        }
    ]


_HTTP_FORMS: dict[str, Callable[[str, Mapping[str, Any]], list[dict[str, Any]]]] = {
    "actions": _http_of_action,
    "properties": _http_of_property,
    "events": _http_of_event,
}


def _form(href: str, op: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"href": href, "op": op, "contentType": "application/json", **more}


def named_in_words(description: Mapping[str, Any]) -> str:
    """What to call what a Description is about in a message, whether valid or not."""
    stated = _several(description.get("@type"))
    kind = next((kind for kind, term in TYPES.items() if term in stated), "thing")
    return label_of({"name": description.get("title") or description.get("id"), "kind": kind})


def _label(description: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    return label_of({**raw, "name": description.get("title", raw.get("name"))})


def _urn(*names: str) -> str:
    return OUR_IDS + ":".join([_encoded(one) for one in names])


def _encoded(name: str) -> str:
    return name if _UNRESERVED.match(name) else quote(name, safe="")


def _derived(thing: Thing) -> dict[str, Any]:
    """What the record makes of its Description by itself."""
    plain = thing.kind == "thing"
    description: dict[str, Any] = {
        "@context": [
            TD_CONTEXT,
            {"lmos": LMOS_CONTEXT, "mesh": MESH_CONTEXT, "nats": NATS_CONTEXT},
        ],
        "id": thing.name if plain else thing.id or _urn(thing.tenant, thing.name, thing.subset),
        "title": thing.title or thing.name,
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
    }
    if plain:
        _add_unless_default(thing, description)
    else:
        description["@type"] = TYPES[thing.kind]
        description["description"] = thing.description
        description["version"] = {"instance": thing.version}
        description["mesh:tenant"] = thing.tenant
        description["mesh:subset"] = thing.subset
        description["mesh:supportedChannels"] = list(thing.supported_channels)
        description["lmos:capabilities"] = [_entry(thing, one) for one in thing.capabilities]
    if thing.supported_tenants:
        description["mesh:supportedTenants"] = list(thing.supported_tenants)
    if thing.external:
        description["mesh:external"] = True
    if thing.origin:
        description["mesh:origin"] = thing.origin
    if thing.metadata:
        description["lmos:metadata"] = thing.metadata
    if thing.links:
        description["links"] = list(thing.links)
    if thing.model_extra:
        description[_MORE_FIELDS] = dict(thing.model_extra)
    if thing.answers_here:
        # What speaks for itself does not answer at our subjects, so it has no such forms.
        description |= _interactions(thing)
    return description


def _add_unless_default(thing: Thing, description: dict[str, Any]) -> None:
    """What a plain Thing says only if there is something to say."""
    if thing.description:
        description["description"] = thing.description
    if thing.version != DEFAULT_VERSION:
        description["version"] = {"instance": thing.version}
    if thing.tenant != DEFAULT_TENANT:
        description["mesh:tenant"] = thing.tenant
    if thing.subset != DEFAULT_SUBSET:
        description["mesh:subset"] = thing.subset
    if thing.supported_channels != (ANY_CHANNEL,):
        description["mesh:supportedChannels"] = list(thing.supported_channels)


def _interactions(thing: Thing) -> dict[str, Any]:
    root = subjects.agent(thing.tenant, thing.name, thing.subset).removesuffix(">")
    interactions: dict[str, Any] = {
        "actions": {one.id: _action(root, one) for one in thing.capabilities}
    }
    if thing.properties:
        interactions["properties"] = {one.name: _property(root, one) for one in thing.properties}
    if thing.events:
        interactions["events"] = {one.name: _event(thing, one) for one in thing.events}
    return interactions


def _entry(thing: Thing, capability: Capability) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": capability.id,
        "name": capability.name,
        "version": capability.version,
    }
    if capability.description:
        entry["description"] = capability.description
    if capability.examples:
        entry["examples"] = list(capability.examples)
    if capability.tags:
        entry["tags"] = list(capability.tags)
    if not thing.answers_here:
        # Otherwise its action says these.
        if not capability.idempotent:
            entry["idempotent"] = False
        entry |= _schemas(capability)
    return entry | capability.model_extra if capability.model_extra else entry


def _schemas(capability: Capability) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    if capability.input is not None:
        schemas["input"] = capability.input
    if capability.output is not None:
        schemas["output"] = capability.output
    return schemas


def _action(root: str, capability: Capability) -> dict[str, Any]:
    href = f"nats:{root}invoke.{subjects.escape(capability.id)}"
    return {
        "title": capability.name,
        "description": capability.description,
        "safe": False,
        "idempotent": capability.idempotent,
        "synchronous": True,
        "forms": [_form(href, "invokeaction", _IN_QUEUE)],
        **_schemas(capability),
    }


def _property(root: str, one: Property) -> dict[str, Any]:
    affordance = dict(one.schema)
    if one.description:
        affordance["description"] = one.description
    if not one.writable:
        affordance["readOnly"] = True
    if not one.readable:
        affordance["writeOnly"] = True
    # Not `observable`: nobody tells on the mesh when a value changes, so no form could say how.
    href = f"nats:{root}property.{subjects.escape(one.name)}"
    affordance["forms"] = forms = list[dict[str, Any]]()
    if one.readable:
        forms.append(_form(f"{href}.read", "readproperty", _IN_QUEUE))
    if one.writable:
        forms.append(_form(f"{href}.write", "writeproperty", _IN_QUEUE))
    return affordance


def _event(thing: Thing, one: Event) -> dict[str, Any]:
    affordance: dict[str, Any] = {}
    if one.description:
        affordance["description"] = one.description
    if one.data is not None:
        affordance["data"] = one.data
    affordance["forms"] = [
        {
            "href": f"nats:{subjects.event(thing.tenant, thing.name, one.name)}",
            "op": ["subscribeevent", "unsubscribeevent"],
            "contentType": "application/json",
            "nats:envelope": "cloudevents",
        }
    ]
    return affordance


def _read(
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


def _check_size(description: Mapping[str, Any], found: Faults) -> None:
    size = len(json.dumps(dict(description), ensure_ascii=False).encode())
    if size > DOCUMENT_BYTES:
        found.add("", f"takes {size} bytes as JSON, and {DOCUMENT_BYTES} is the limit")


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
    if (canonical := _urn(*ours)) != description.get("id"):
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


def _several(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]
