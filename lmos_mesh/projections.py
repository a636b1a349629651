"""What others call a Thing: the outside forms of its record, each valid by its own rules. Pure.

They are one way: only the Description leads back to the record.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from lmos_mesh import synadia
from lmos_mesh.description import describe, id_of
from lmos_mesh.things import Capability, Thing

A2A_VERSION = "1.0"
"""Of the Agent2Agent protocol that its interfaces on a card speak."""
WOT_BINDING = "https://www.w3.org/2022/wot/td/v1.1"
"""What an agent speaks where no A2A is served: the Description beside the card says how."""

_MODES = ("text/plain", "application/json")
# A reply to `$SRV.INFO` names every agent of a process, so each says little.
_METADATA_BYTES = 4 * 1024


def agent_card(
    thing: Thing, url: str, *, interfaces: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The A2A 1.0 agent card of a Thing, in the JSON form of its protobuf.

    Args:
        thing: Without faults.
        url: Where its Description is, without `/.well-known/wot`.
        interfaces: (binding, URL) of the A2A interfaces that are served, the preferred one first.
    """
    served = [
        {"url": where, "protocolBinding": binding, "protocolVersion": A2A_VERSION}
        for binding, where in interfaces
    ]
    schemes = _security_schemes(thing)
    return {
        "name": thing.title or thing.name,
        "description": _sentence(thing),
        "version": thing.version,
        "supportedInterfaces": served
        or [{"url": url, "protocolBinding": WOT_BINDING, "protocolVersion": "1.1"}],
        "capabilities": {"streaming": thing.answers_here, "pushNotifications": False},
        "defaultInputModes": list(_MODES),
        "defaultOutputModes": list(_MODES),
        "skills": _skills(thing),
        **_provided(thing),
        **_linked(thing, "icon", "iconUrl"),
        **({"securitySchemes": schemes} if schemes else {}),
        **_requirements(thing, schemes),
    }


def agent_json(thing: Thing, url: str) -> dict[str, Any]:
    """The card that agents of LMOS serve at `/.well-known/agent.json`: A2A as it was before 1.0."""
    schemes = sorted({str(one.get("scheme")) for one in _definitions(thing).values()} - {"nosec"})
    return {
        "name": thing.title or thing.name,
        "description": _sentence(thing),
        "url": url,
        "version": thing.version,
        "capabilities": {
            "streaming": thing.answers_here,
            "pushNotifications": False,
            "stateTransitionHistory": False,
        },
        "defaultInputModes": list(_MODES),
        "defaultOutputModes": list(_MODES),
        "skills": _skills(thing),
        **_provided(thing),
        **({"authentication": {"schemes": schemes}} if schemes else {}),
    }


def capabilities_json(thing: Thing) -> dict[str, Any]:
    """What the operator of LMOS reads at `/.well-known/capabilities.json`, all of it."""
    return {
        "id": thing.name,
        "description": thing.description,
        "supportedTenants": list(thing.supported_tenants),
        "supportedChannels": list(thing.supported_channels),
        "capabilities": [
            {
                "id": one.id,
                "name": one.name,
                "version": one.version,
                "description": one.description,
                "examples": list(one.examples),
            }
            for one in thing.capabilities
        ],
    }


def adr32_metadata(thing: Thing) -> dict[str, str]:
    """What its NATS micro service says of an agent (ADR-32: strings only).

    The first four are those of the Synadia Agent Protocol.
    """
    return {
        **synadia.metadata(thing.tenant, thing.name, thing.subset),
        "lmos_id": id_of(thing),
        "lmos_kind": thing.kind,
        "lmos_tenant": thing.tenant,
        "lmos_name": thing.name,
        "lmos_subset": thing.subset,
        "lmos_capabilities": _listed(thing.capabilities),
    }


def mdns_txt(
    path: str, *, kind: Literal["Thing", "Directory"] = "Thing", scheme: str = "http"
) -> dict[str, str]:
    """The TXT record of a Thing or directory on the local network (W3C WoT Discovery, 6.3).

    Args:
        path: Of its Description, beginning with a slash.
        kind: What is announced.
        scheme: How it is fetched: `http`, `https` or `coap+tcp`.
    """
    # What is not there has its default.
    said = {"td": path}
    if kind != "Thing":
        said["type"] = kind
    if scheme != "http":
        said["scheme"] = scheme
    return said


def _sentence(thing: Thing) -> str:
    # Cards must not leave it empty.
    return thing.description.strip() or f"{thing.kind.capitalize()} {thing.title or thing.name}"


def _skills(thing: Thing) -> list[dict[str, Any]]:
    skills = [
        {
            "id": one.id,
            "name": one.name,
            "description": one.description.strip() or one.name,
            # Required, and not to be empty; whoever looks for tags finds at least what it is.
            "tags": list(one.tags) or [thing.kind],
            **({"examples": list(one.examples)} if one.examples else {}),
        }
        for one in thing.capabilities
    ]
    name = thing.title or thing.name
    whole = {"id": name, "name": name, "description": _sentence(thing), "tags": [thing.kind]}
    return skills or [whole]


def _provided(thing: Thing) -> dict[str, Any]:
    """Who made it, and where it is documented."""
    said: dict[str, Any] = {}
    vendor = thing.metadata.get("lmos:vendor")
    if isinstance(vendor, Mapping):
        known = cast("Mapping[str, Any]", vendor)
        name, url = known.get("lmos:name"), known.get("lmos:url")
        if isinstance(name, str) and name and isinstance(url, str) and url:
            said["provider"] = {"organization": name, "url": url}
    return said | _linked(thing, "service-doc", "documentationUrl")


def _linked(thing: Thing, rel: str, called: str) -> dict[str, str]:
    for link in thing.links:
        href = str(link.get("href", ""))
        if link.get("rel") == rel and href.startswith(("http://", "https://")):
            return {called: href}
    return {}


def _definitions(thing: Thing) -> dict[str, dict[str, Any]]:
    defined = describe(thing).get("securityDefinitions")
    if not isinstance(defined, Mapping):
        return {}
    schemes = cast("Mapping[str, Any]", defined)
    return {
        name: cast("dict[str, Any]", one) for name, one in schemes.items() if isinstance(one, dict)
    }


def _security_schemes(thing: Thing) -> dict[str, Any]:
    schemes = {name: _security_scheme(one) for name, one in _definitions(thing).items()}
    return {name: scheme for name, scheme in schemes.items() if scheme}


def _security_scheme(one: Mapping[str, Any]) -> dict[str, Any]:
    """A security scheme as A2A writes it; empty for what A2A does not know."""
    kind = one.get("scheme")
    if kind in ("basic", "digest"):
        return {"httpAuthSecurityScheme": {"scheme": kind}}
    if kind == "bearer":
        bearer = {"scheme": "bearer", "bearerFormat": str(one.get("format", "jwt"))}
        return {"httpAuthSecurityScheme": bearer}
    if (
        kind == "apikey"
        and one.get("in", "query") in ("query", "header", "cookie")
        and "name" in one
    ):
        key = {"location": one.get("in", "query"), "name": str(one["name"])}
        return {"apiKeySecurityScheme": key}
    if kind == "oauth2":
        return _oauth2(one)
    return {}


def _oauth2(one: Mapping[str, Any]) -> dict[str, Any]:
    scopes = one.get("scopes", [])
    offered = {str(scope): str(scope) for scope in _several(scopes)}
    flow: dict[str, Any] = {"tokenUrl": str(one.get("token", "")), "scopes": offered}
    if "refresh" in one:
        flow["refreshUrl"] = str(one["refresh"])
    if one.get("flow") == "client":
        return {"oauth2SecurityScheme": {"flows": {"clientCredentials": flow}}}
    if one.get("flow") == "code":
        flow["authorizationUrl"] = str(one.get("authorization", ""))
        return {"oauth2SecurityScheme": {"flows": {"authorizationCode": flow}}}
    return {}


def _requirements(thing: Thing, schemes: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller needs: all of what `security` names, or one of what it combines."""
    needed = [str(name) for name in _several(describe(thing).get("security"))]
    definitions = _definitions(thing)
    ways = [needed]
    if len(needed) == 1 and (one := definitions.get(needed[0], {})).get("scheme") == "combo":
        ways = (
            [[str(name)] for name in _several(one["oneOf"])]
            if "oneOf" in one
            else [[str(name) for name in _several(one.get("allOf"))]]
        )
    said = [
        {"schemes": {name: {"list": list[str]()} for name in way}}
        for way in ways
        if way and all(name in schemes for name in way)
    ]
    return {"securityRequirements": said} if said else {}


def _listed(capabilities: Iterable[Capability]) -> str:
    """`id@version` of each as a JSON array; as many as there is room for."""
    listed: list[str] = []
    size = 2
    for one in capabilities:
        entry = f"{one.id}@{one.version}"
        size += len(json.dumps(entry)) + 1
        if size > _METADATA_BYTES:
            break
        listed.append(entry)
    return json.dumps(listed, separators=(",", ":"))


def _several(value: object) -> list[object]:
    if value is None:
        return []
    return cast("list[object]", value) if isinstance(value, list) else [value]
