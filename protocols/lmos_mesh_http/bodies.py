"""Request bodies: bounded in size and time, JSON by their content type, and checked once."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from lmos_mesh.errors import InvalidMessage, TooLarge
from lmos_mesh.wrong_fields import told, wrong_fields

BODY_TIMEOUT_S = 30.0

ModelT = TypeVar("ModelT", bound=BaseModel)


async def read_json(request: Request, kind: type[ModelT], *, limit: int) -> ModelT:
    """The body of a request.

    Raises:
        HTTPException: It is not plain JSON by its headers (415), or it does not come (408).
        TooLarge: It has more than `limit` bytes.
        InvalidMessage: It is no JSON, or not of this kind; every wrong field is named.
    """
    headers = request.headers
    content_type = headers.get("content-type", "")
    if not is_json(content_type):
        # Also for safety: without it any web page could post here, no questions asked.
        raise HTTPException(
            415, f"the content type is {content_type!r}; send Content-Type: application/json"
        )
    if (encoding := headers.get("content-encoding", "identity")) != "identity":
        raise HTTPException(415, f"the content encoding is {encoding!r}; send it plain")
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > limit:
        raise _too_large(limit)
    return parsed(kind, await _read(request, limit))


def is_json(content_type: str) -> bool:
    """Whether a content type is JSON's, parameters apart."""
    media_type = content_type.partition(";")[0].strip().lower()
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
