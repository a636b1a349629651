"""What every request and its response have, whatever they are about: an id and a place in a trace.

Plain ASGI, around everything else.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmos_mesh import telemetry

REQUEST_ID = "x-request-id"

_TRACE = "lmos_mesh.trace"
_REQUEST_ID = "lmos_mesh.request_id"
_NO_TRACE: Mapping[str, str] = {}
_TRACE_VALUES = {
    b"traceparent": re.compile(
        rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,64})?"
    ),
    b"tracestate": re.compile(rb"[ -~]{1,512}"),
}
_GIVEN_ID = re.compile(rb"[!-~]{1,128}")


class Edge:
    """Gives each response its `x-request-id` and, if traces are recorded, its `traceparent`.

    A request that brings an id keeps it. Its trace goes on: as a span of ours where traces are
    recorded, and else unchanged, by `trace_of`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, trace = _read(scope["headers"])
        scope[_REQUEST_ID] = request_id
        added = [(REQUEST_ID.encode(), request_id)]
        if telemetry.recording():
            await self._in_span(scope, receive, send, trace, added)
            return
        scope[_TRACE] = trace

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, send_on)

    async def _in_span(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        trace: Mapping[str, str],
        added: list[tuple[bytes, bytes]],
    ) -> None:
        method = str(scope["method"])
        attributes = {
            "http.request.method": method,
            "url.path": str(scope["path"]),
            "url.scheme": str(scope["scheme"]),
        }
        with telemetry.span(
            method, kind=SpanKind.SERVER, carrier=trace, attributes=attributes
        ) as span:
            carrier: dict[str, str] = {}
            telemetry.inject(carrier)
            if ours := carrier.get("traceparent"):
                added.append((b"traceparent", ours.encode()))

            async def send_on(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), *added]
                    _note_status(span, int(message["status"]))
                await send(message)

            try:
                await self._app(scope, receive, send_on)
            finally:
                _note_route(span, method, scope)


def trace_of(request: Request) -> Mapping[str, str]:
    """The caller's trace headers, to be sent on; empty where spans of ours carry it."""
    return request.scope.get(_TRACE, _NO_TRACE)


def request_id_of(request: Request) -> str:
    """The id that the response carries, so that a log line can be found by it."""
    return str(request.scope.get(_REQUEST_ID, b""), "ascii")


def _read(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, dict[str, str]]:
    """The request's id, made up if it has none, and its trace headers as far as they are sound."""
    request_id = b""
    trace: dict[str, str] = {}
    for name, value in headers:
        if name == b"x-request-id":
            request_id = value if _GIVEN_ID.fullmatch(value) else b""
        elif (sound := _TRACE_VALUES.get(name)) and sound.fullmatch(value):
            trace[name.decode()] = value.decode()
    return request_id or f"req_{secrets.token_hex(12)}".encode(), trace


def _note_status(span: Span | None, status: int) -> None:
    if span is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))


def _note_route(span: Span | None, method: str, scope: Mapping[str, Any]) -> None:
    """Only routing knows the template, and span names must not hold ids."""
    path: Any = getattr(scope.get("route"), "path", None)
    if span is not None and isinstance(path, str):
        span.update_name(f"{method} {path}")
        span.set_attribute("http.route", path)
