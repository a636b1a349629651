"""The directory's own Thing Description: what can be asked of it, and where. Pure.

The names of the interactions are those of the Thing Model of W3C WoT Discovery, section 7.3.2.4.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from lmos_mesh_http.enriched import DISCOVERY
from lmos_mesh_http.errors import JSON, PROBLEM

TD = "application/td+json"
LD = "application/ld+json"
MERGE_PATCH = "application/merge-patch+json"

_CONTEXT = "https://www.w3.org/2022/wot/td/v1.1"
_ID = {"@type": "ThingID", "title": "Id of a Thing", "type": "string", "format": "iri-reference"}
_DIFF = {"title": "Whether to tell what has changed", "type": "boolean", "default": False}
_OBJECT = {"type": "object", "description": "As its content type says"}

_REFUSED = (400, "It cannot be used; `validationErrors` names every fault")
_UNKNOWN = (404, "There is no Thing of that id")
_STALE = (412, "It is not at the revision that the request names")


def directory_td(base: str, *, tenant: str, named: bool, version: str) -> dict[str, Any]:
    """The Thing Description of the directory.

    Args:
        base: Its URL, without a slash at the end.
        tenant: Whose directory it is.
        named: Whether the request has named the tenant; then every form does.
        version: Of this software.
    """
    query = f"tenant={quote(tenant, safe='')}" if named else ""
    return {
        "@context": [_CONTEXT, DISCOVERY],
        "@type": "ThingDirectory",
        "title": f"Agents and other Things of {tenant}",
        "description": "The directory of a mesh of agents.",
        "version": {"instance": version},
        "base": f"{base}/",
        "securityDefinitions": {"nosec_sc": {"scheme": "nosec"}},
        "security": "nosec_sc",
        "properties": {"things": _things(query)},
        "actions": _actions(query),
        "events": _events(query),
        "links": [{"rel": "service-desc", "href": "openapi.json", "type": JSON}],
    }


def _things(query: str) -> dict[str, Any]:
    return {
        "title": "Every Thing of the directory",
        "readOnly": True,
        "uriVariables": {
            "offset": {"title": "How many to leave out", "type": "integer", "default": 0},
            "limit": {"title": "How many to give at most", "type": "integer", "minimum": 1},
            "format": {
                "title": "Their array, or an object around it",
                "type": "string",
                "enum": ["array", "collection"],
                "default": "array",
            },
            "sort_by": {
                "title": "What to sort by",
                "type": "string",
                "enum": ["id", "name", "version", "created", "modified", "load"],
                "default": "id",
            },
            "sort_order": {
                "title": "Which end first",
                "type": "string",
                "enum": ["ASC", "DESC"],
                "default": "ASC",
            },
        },
        "forms": [
            {
                "op": "readproperty",
                **_form(
                    "GET",
                    _href("things", query, "offset", "limit", "format", "sort_by", "sort_order"),
                    _gives(200, LD, "Link"),
                    (400, "An argument cannot be used"),
                ),
                "contentType": LD,
            }
        ],
    }


def _actions(query: str) -> dict[str, Any]:
    thing = _href("things/{id}", query)
    id = {"id": _ID}
    found = {
        "uriVariables": {"query": {"title": "What to look for", "type": "string"}},
        "safe": True,
        "idempotent": True,
    }
    return {
        "createThing": {
            "title": "Register a Thing",
            "uriVariables": id,
            "input": _OBJECT,
            "idempotent": True,
            "forms": [_form("PUT", thing, _gives(201), _REFUSED, _STALE, takes=TD)],
        },
        "createAnonymousThing": {
            "title": "Register a Thing without an id; it is given one",
            "input": _OBJECT,
            "forms": [
                _form(
                    "POST", _href("things", query), _gives(201, "", "Location"), _REFUSED, takes=TD
                )
            ],
        },
        "retrieveThing": {
            "title": "The Description of a Thing",
            "uriVariables": id,
            "output": _OBJECT,
            "safe": True,
            "idempotent": True,
            "forms": [_form("GET", thing, _gives(200, TD, "ETag"), _UNKNOWN)],
        },
        "updateThing": {
            "title": "Put another Description in its place",
            "uriVariables": id,
            "input": _OBJECT,
            "idempotent": True,
            "forms": [_form("PUT", thing, _gives(204), _REFUSED, _STALE, takes=TD)],
        },
        "partiallyUpdateThing": {
            "title": "Change some of its Description",
            "uriVariables": id,
            "input": _OBJECT,
            "forms": [
                _form("PATCH", thing, _gives(204), _REFUSED, _UNKNOWN, _STALE, takes=MERGE_PATCH)
            ],
        },
        "deleteThing": {
            "title": "Forget a Thing",
            "uriVariables": id,
            "idempotent": True,
            "forms": [_form("DELETE", thing, _gives(204), _UNKNOWN, _STALE)],
        },
        "searchJSONPath": {
            "title": "What a JSONPath (RFC 9535) selects of the array of all Descriptions",
            "output": {"type": "array"},
            **found,
            "forms": [
                _form(
                    "GET",
                    _href("search/jsonpath", query, "query"),
                    _gives(200, JSON),
                    (400, "It is missing, or no JSONPath"),
                )
            ],
        },
    }


def _events(query: str) -> dict[str, Any]:
    return {
        "thingCreated": _event(
            "A Thing was registered", "thing_created", query, {"title": "Its id, or all of it"}
        ),
        "thingUpdated": _event(
            "A Description was changed",
            "thing_updated",
            query,
            {"title": "Its id, and what has changed", "contentMediaType": MERGE_PATCH},
        ),
        "thingDeleted": _event(
            "A Thing was forgotten", "thing_deleted", query, {"title": "Its id"}, diff=False
        ),
        "instanceJoined": _instance("A process has come", "instance_joined", query),
        "instanceLeft": _instance("A process has said goodbye", "instance_left", query),
        "instanceDied": _instance("A process has died", "instance_died", query),
    }


def _instance(title: str, name: str, query: str) -> dict[str, Any]:
    return _event(title, name, query, {"title": "Which, and what it serves"}, diff=False)


def _event(
    title: str, name: str, query: str, data: Mapping[str, Any], *, diff: bool = True
) -> dict[str, Any]:
    return {
        "title": title,
        **({"uriVariables": {"diff": _DIFF}} if diff else {}),
        "data": {"type": "object", **data},
        "forms": [
            {
                "op": "subscribeevent",
                "href": _href(f"events/{name}", query, *(("diff",) if diff else ())),
                "subprotocol": "sse",
                "contentType": JSON,
                "htv:methodName": "GET",
                "htv:headers": [
                    {"htv:fieldName": "Last-Event-ID", "description": "The last one that came"}
                ],
            }
        ],
    }


def _href(path: str, query: str, *variables: str) -> str:
    """A path below the base, as a URI template."""
    named = ",".join(variables)
    if query:
        return f"{path}?{query}" + (f"{{&{named}}}" if named else "")
    return path + (f"{{?{named}}}" if named else "")


def _form(
    method: str,
    href: str,
    response: Mapping[str, Any],
    *errors: tuple[int, str],
    takes: str = JSON,
) -> dict[str, Any]:
    return {
        "href": href,
        "htv:methodName": method,
        "contentType": takes,
        "response": dict(response),
        "additionalResponses": [
            {
                "success": False,
                "contentType": PROBLEM,
                "htv:statusCodeValue": status,
                "description": said,
            }
            for status, said in errors
        ],
    }


def _gives(status: int, content_type: str = "", *headers: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        # An answer without a body has a content type all the same: a form must name one.
        "contentType": content_type or JSON,
        "htv:statusCodeValue": status,
    }
    if headers:
        given["htv:headers"] = _fields(headers)
    return given


def _fields(headers: Sequence[str]) -> list[dict[str, str]]:
    return [{"htv:fieldName": one} for one in headers]
