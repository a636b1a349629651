"""How an error is told over HTTP: its status, headers and body, in the form of each surface. Pure.

* under the LMOS bases: `{"errorCode", "message"}`
* under `/v1`: `{"error": {"message", "type", "param", "code"}}`, as OpenAI clients expect it
* elsewhere: problem+json (RFC 9457)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_json

from lmos_mesh.errors import (
    AgentNotFound,
    Cancelled,
    InvalidDescription,
    MeshError,
    ThingNotFound,
)

Surface = Literal["lmos", "openai", "problem"]

LMOS_BASES = ("/apis/v1", "/lmos/runtime/apis/v1")
OPENAI_BASE = "/v1"

JSON = "application/json"
PROBLEM = "application/problem+json"
RETRY_AFTER_S = 1

# The codes that LMOS has. Every other one is ours: the code on the bus in capitals.
_LMOS_CODES = {
    "invalid-message": "INVALID_REQUEST",
    "invalid-description": "INVALID_REQUEST",
    "thing-not-found": "AGENT_NOT_FOUND",
    "agent-failed": "AGENT_CLIENT_EXCEPTION",
    "internal": "INTERNAL_SERVER_ERROR",
}
_HTTP_CODES = {
    400: "invalid-message",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "request-timeout",
    409: "conflict",
    412: "precondition-failed",
    413: "too-large",
    415: "unsupported-media-type",
    501: "not-implemented",
}
_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


class LmosError(BaseModel):
    """An error on the LMOS paths."""

    errorCode: str  # noqa: N815 - its name on the wire
    message: str


class OpenAIErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error under `/v1`."""

    error: OpenAIErrorDetail


class FieldFault(BaseModel):
    """One fault.

    Attributes:
        field: JSON Pointer of what is wrong.
    """

    field: str
    description: str


class Problem(BaseModel):
    """An error anywhere else (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    validationErrors: tuple[FieldFault, ...] | None = None  # noqa: N815 - its name on the wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error, before any surface has given it its form.

    Args:
        status: HTTP status.
        code: Its code on the bus, e.g. `agent-not-found`.
        message: What went wrong and what to do about it.
        problem: The whole problem document.
        retryable: Whether the same request may succeed later.
        param: JSON Pointer of the first field at fault, if it is one's fault.
        headers: Further headers of the reply.
    """

    status: int
    code: str
    message: str
    problem: Mapping[str, Any]
    retryable: bool = False
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An error as it goes out."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def surface_of(path: str) -> Surface:
    """Whose form an error at this path has."""
    if any(_under(path, base) for base in LMOS_BASES):
        return "lmos"
    return "openai" if _under(path, OPENAI_BASE) else "problem"


def fault_of(error: MeshError) -> Fault:
    """The fault that an error of the mesh is."""
    status = error.status if 400 <= error.status < 600 else 500
    if isinstance(error, Cancelled):
        # 499 is nobody's standard; the request lost against whoever called it off.
        status = 409
    elif isinstance(error, InvalidDescription):
        # W3C WoT Discovery has no other status for it.
        status = 400
    param = ""
    if isinstance(error, AgentNotFound):
        param = "/model"
    elif faults := error.details.get("faults"):
        param = str(faults[0].get("field", ""))
    return Fault(
        status=status,
        code=error.code,
        message=str(error),
        problem=error.problem() | {"status": status},
        retryable=error.retryable,
        param=param,
    )


def http_fault(status: int, message: str, headers: Mapping[str, str] | None = None) -> Fault:
    """The fault of a request that no handler has seen: wrong path, method or content type."""
    code = _HTTP_CODES.get(status, "internal" if status >= 500 else "refused")
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return Fault(
        status=status,
        code=code,
        message=message,
        problem={"type": "about:blank", "title": title, "status": status, "detail": message},
        headers=dict(headers or {}),
    )


def told(fault: Fault, surface: Surface) -> Told:
    """A fault in the form of a surface."""
    headers = {"content-type": PROBLEM if surface == "problem" else JSON, **fault.headers}
    if fault.status in (429, 503):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if surface == "openai" and not fault.retryable and fault.status in (409, *range(500, 600)):
        # Its clients repeat every 409 and 5xx by themselves, also what may have been done already.
        headers["x-should-retry"] = "false"
    return Told(status=fault.status, headers=headers, body=_BODIES[surface](fault))


def lmos_body(fault: Fault) -> bytes:
    """`{"errorCode", "message"}`."""
    return to_json({"errorCode": lmos_code(fault.code), "message": fault.message})


def lmos_code(code: str) -> str:
    """A code of the bus as LMOS writes its own."""
    return _LMOS_CODES.get(code) or code.upper().replace("-", "_")


def openai_body(fault: Fault) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    code = fault.code.replace("-", "_")
    if fault.code in (AgentNotFound.code, ThingNotFound.code):
        code = "model_not_found"
    return to_json(
        {
            "error": {
                "message": fault.message,
                "type": "server_error" if fault.status >= 500 else "invalid_request_error",
                "param": _dotted(fault.param),
                "code": code,
            }
        }
    )


def problem_body(fault: Fault) -> bytes:
    """A problem document; faults are called as W3C WoT Discovery calls them."""
    problem = dict(fault.problem)
    if (faults := problem.pop("faults", None)) is not None:
        problem["validationErrors"] = faults
    return to_json(problem, serialize_unknown=True)


_BODIES = {"lmos": lmos_body, "openai": openai_body, "problem": problem_body}


def _under(path: str, base: str) -> bool:
    return path == base or path.startswith(f"{base}/")


def _dotted(pointer: str) -> str | None:
    """A JSON Pointer as OpenAI names a parameter: `/messages/0/content` is messages[0].content."""
    return _INDEX.sub(r"[\1]", pointer.strip("/").replace("/", ".")) or None
