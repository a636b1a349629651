"""Things as W3C WoT Thing Descriptions 1.1 with the LMOS vocabulary, and back again. Pure.

`docs/descriptions.md` is the contract.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast
from urllib.parse import quote

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.description_reading import read
from lmos_mesh.description_terms import MORE_FIELDS, TYPES, listed, urn_of
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.json_faults import NESTING, OUTER_NESTING, Fault, Faults, check_json, pointer
from lmos_mesh.schemas.assertions import LMOS_CONTEXT
from lmos_mesh.schemas.thing_description import TD_CONTEXT, td_faults
from lmos_mesh.thing_faults import DOCUMENT_BYTES, label_of, nameable
from lmos_mesh.things import (
    ANY_CHANNEL,
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    DEFAULT_VERSION,
    Capability,
    Event,
    Property,
    Thing,
)

MESH_CONTEXT = "urn:lmos-mesh:vocabulary#"
NATS_CONTEXT = "urn:lmos-mesh:vocabulary:nats#"
LIVE = "mesh:live"
"""Whether somebody serves a Thing: told in `registration`, and kept of what is mirrored."""

_OUR_SUBJECTS = "nats:lmos."
_IN_QUEUE = {"nats:queue": subjects.AGENT_QUEUE}
_ALL_GIVEN: dict[type[Message], set[str]] = {
    model: set(model.model_fields) for model in (Capability, Thing)
}


def id_of(thing: Thing) -> str:
    """The id of a Thing's Description: its own, or the URN of its tenant, name and subset."""
    return thing.id or (
        thing.name if thing.kind == "thing" else urn_of(thing.tenant, thing.name, thing.subset)
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
    raw = read(description, tenant, found, trusted=trusted)
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
        read(description, DEFAULT_TENANT, more)
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
    stated = listed(description.get("@type"))
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
    if not any(term in listed(description.get("@type")) for term in TYPES.values()):
        return {**identified, "id": fresh}
    named_as = (
        description.get("mesh:tenant", tenant),
        description.get("title"),
        description.get("mesh:subset", DEFAULT_SUBSET),
    )
    if all(nameable(one) for one in named_as):
        identified["id"] = urn_of(*cast("tuple[str, ...]", named_as))
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
    stated = listed(description.get("@type"))
    kind = next((kind for kind, term in TYPES.items() if term in stated), "thing")
    return label_of({"name": description.get("title") or description.get("id"), "kind": kind})


def _label(description: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    return label_of({**raw, "name": description.get("title", raw.get("name"))})


def _derived(thing: Thing) -> dict[str, Any]:
    """What the record makes of its Description by itself."""
    plain = thing.kind == "thing"
    description: dict[str, Any] = {
        "@context": [
            TD_CONTEXT,
            {"lmos": LMOS_CONTEXT, "mesh": MESH_CONTEXT, "nats": NATS_CONTEXT},
        ],
        "id": thing.name if plain else thing.id or urn_of(thing.tenant, thing.name, thing.subset),
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
        description[MORE_FIELDS] = dict(thing.model_extra)
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


def _check_size(description: Mapping[str, Any], found: Faults) -> None:
    size = len(json.dumps(dict(description), ensure_ascii=False).encode())
    if size > DOCUMENT_BYTES:
        found.add("", f"takes {size} bytes as JSON, and {DOCUMENT_BYTES} is the limit")
