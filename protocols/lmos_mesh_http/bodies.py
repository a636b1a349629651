"""Request bodies: bounded in size and time, JSON by their content type, and checked once."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from lmos_mesh.errors import InvalidMessage, TooLarge
from lmos_mesh.wrong_fields import told, wrong_fields

BODY_TIMEOUT_S = 30.0

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1

ModelT = TypeVar("ModelT", bound=BaseModel)


async def read_json(request: Request, kind: type[ModelT], *, limit: int) -> ModelT:
    """The body of a request.

    Raises:
        HTTPException: It is not plain JSON by its headers (415), or it does not come (408).
        TooLarge: It has more than `limit` bytes.
        InvalidMessage: It is no JSON, or not of this kind; every wrong field is named.
    """
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        # Also for safety: without it any web page could post here, no questions asked.
        raise HTTPException(
            415, f"the content type is {content_type!r}; send Content-Type: application/json"
        )
    return parsed(kind, await read_bytes(request, limit=limit))


async def read_object(request: Request, *, limit: int, taken: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a request brings.

    Args:
        request: Whose body it is.
        limit: How many bytes it may have.
        taken: The media types that it may be of.

    Raises:
        HTTPException: It is of another media type (415), or it does not come (408).
        TooLarge: It has more than `limit` bytes.
        InvalidMessage: It is no JSON object.
    """
    content_type = request.headers.get("content-type", "")
    if media_type_of(content_type) not in taken:
        raise HTTPException(415, f"the content type is {content_type!r}; send {' or '.join(taken)}")
    value = value_of(await read_bytes(request, limit=limit))
    if not isinstance(value, dict):
        raise InvalidMessage("the body is no JSON object")
    return cast("dict[str, Any]", value)


async def read_value(request: Request, *, limit: int, required: bool = False) -> Any:
    """The JSON value that a request brings; None without a body, unless it is required.

    Raises:
        HTTPException: It is not plain JSON by its headers (415), or it does not come (408).
        TooLarge: It has more than `limit` bytes.
        InvalidMessage: It is no JSON.
    """
    headers = request.headers
    content_type = headers.get("content-type", "")
    body = await read_bytes(request, limit=limit)
    # Web pages that may post anywhere without asking say where they are from.
    if not is_json(content_type) and (body or content_type or "origin" in headers):
        raise HTTPException(
            415, f"the content type is {content_type!r}; send Content-Type: application/json"
        )
    return value_of(body) if body or required else None


def value_of(body: bytes) -> Any:
    """The JSON value in a body, if the mesh can carry it.

    Raises:
        InvalidMessage: It is no JSON, or has numbers that the bus has no room for.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidMessage(f"the body is no JSON: {exc}") from None
    pending: list[Any] = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(cast("dict[str, Any]", one).values())
        elif isinstance(one, list):
            pending.extend(cast("list[Any]", one))
        elif isinstance(one, float) and not math.isfinite(one):
            raise InvalidMessage("the body has a number that is too large for a double")
        elif isinstance(one, int) and not _SMALLEST <= one <= _LARGEST:
            raise InvalidMessage(f"the body has the number {one}, which needs more than 64 bits")
    return value


async def read_bytes(request: Request, *, limit: int) -> bytes:
    """The body of a request as it comes.

    Raises:
        HTTPException: It is packed (415), or it does not come (408).
        TooLarge: It has more than `limit` bytes.
    """
    headers = request.headers
    if (encoding := headers.get("content-encoding", "identity")) != "identity":
        raise HTTPException(415, f"the content encoding is {encoding!r}; send it plain")
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > limit:
        raise _too_large(limit)
    return await _read(request, limit)


def media_type_of(content_type: str) -> str:
    """A content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    """Whether a content type is JSON's, parameters apart."""
    media_type = media_type_of(content_type)
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def parsed(kind: type[ModelT], body: bytes) -> ModelT:
    """The value in a body.

    Raises:
        InvalidMessage: It is no JSON, or not of this kind; every wrong field is named.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as exc:
        try:
            value = from_json(body)
        except ValueError:
            value = None
        faults = wrong_fields(exc, value)
    raise InvalidMessage(f"the body cannot be used: {told(faults)}", faults=faults)


async def _read(request: Request, limit: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            parts: list[bytes] = []
            size = 0
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise HTTPException(408, f"the body was not complete within {BODY_TIMEOUT_S:g} s") from None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the body has more than {limit} bytes",
        hint="send less, or raise LMOS_HTTP_BODY_LIMIT",
        limit=limit,
    )
