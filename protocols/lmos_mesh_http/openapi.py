"""The OpenAPI document: made by FastAPI, and put right where it does not know what we do.

The busiest paths read their own parameters and bodies, so that they describe them here; and what
FastAPI says of validation (422) is not what happens (400, in the form of the surface).
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json
from starlette.responses import Response

from lmos_mesh_http.errors import JSON, PROBLEM, Problem
from lmos_mesh_http.parameters import LONGEST, PATTERN

_REF = "#/components/schemas/{model}"
_MEANINGS = {
    400: "The request cannot be used; the message names every wrong field.",
    404: "What was named does not exist.",
    406: "It cannot be given in a form that the request accepts.",
    408: "The body did not come in time.",
    409: "It collides with what is going on, or was called off.",
    412: "It is not at the revision that the request names.",
    413: "It is too large; the message names the limit.",
    415: "The content type is not JSON.",
    500: "The agent or the mesh failed.",
    501: "This directory cannot do that.",
    502: "The agent was lost while it answered.",
    503: "Nobody is there to answer, or they have too much to do; try again.",
    504: "No answer came in time; try again.",
    508: "Agents ask each other in a circle.",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds until another try.", "schema": {"type": "integer"}}
}


def json_reply(value: BaseModel | tuple[BaseModel, ...]) -> Response:
    """A value as JSON, with its names on the wire."""
    return Response(to_json(value, by_alias=True), media_type=JSON)


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to a model that `document` is told of."""
    return {"$ref": _REF.format(model=model.__name__)}


def parameter(name: str, where: str, description: str, *, required: bool = False) -> dict[str, Any]:
    """A parameter of an operation that reads it by itself; one of the path is required."""
    return {
        "name": name,
        "in": where,
        "required": required or where == "path",
        "description": description,
        "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST, "pattern": PATTERN},
    }


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body of an operation that reads it by itself."""
    return {"required": True, "content": {JSON: {"schema": schema_of(model)}}}


def errors(
    body: type[BaseModel], *statuses: int, media_type: str = JSON
) -> dict[int | str, dict[str, Any]]:
    """How an operation may fail."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {media_type: {"schema": schema_of(body)}},
        }
        | ({"headers": _RETRY_AFTER} if status == 503 else {})
        for status in statuses
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How an operation may fail that tells it as problem+json."""
    return errors(Problem, *statuses, media_type=PROBLEM)


def content(*media_types: str, description: str, **schema: Any) -> dict[str, Any]:
    """A response that an operation writes by itself."""
    return {
        "description": description,
        "content": {one: {"schema": schema or {"type": "object"}} for one in media_types},
    }


def add_reading(app: FastAPI, path: str, endpoint: Callable[..., Any], **described: Any) -> None:
    """Add what is read by GET, and by HEAD for its headers alone, which is not described again."""
    app.add_api_route(path, endpoint, methods=["GET"], **described)
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, **described)


def describe(
    app: FastAPI, *, taken: tuple[type[BaseModel], ...], given: tuple[type[BaseModel], ...]
) -> None:
    """Have the app describe itself as it is.

    Args:
        app: With all of its routes.
        taken: Models that requests refer to by `schema_of`.
        given: Models that responses refer to by `schema_of`.
    """
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(_document(app, taken, given))
        return document

    app.openapi = openapi


def _document(
    app: FastAPI, taken: tuple[type[BaseModel], ...], given: tuple[type[BaseModel], ...]
) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for models, mode in ((taken, "validation"), (given, "serialization")):
        _, found = models_json_schema(
            [(model, mode) for model in models],  # pyright: ignore[reportArgumentType]
            ref_template=_REF,
        )
        schemas.update(found.get("$defs", {}))
    for path in document["paths"].values():
        for operation in path.values():
            _put_right(operation)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _put_right(operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    for response in responses.values():
        headers = response.setdefault("headers", {})
        headers["x-request-id"] = {
            "description": "The request's id, as it was sent or made up.",
            "schema": {"type": "string"},
        }
