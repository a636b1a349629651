"""One trace over all hops, if anybody wants it.

Without an exporter configured by the standard `OTEL_*` variables nothing is recorded, and the
caller's `traceparent` is passed on unchanged, so that a trace is never broken by us.
"""

import os
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from lmos_mesh.errors import HandedOver

TRACE_HEADERS = ("traceparent", "tracestate")

_WANTED = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
_tracer: trace.Tracer | None = None
_provider: Any = None


def configure(service: str, *, instance: str) -> str:
    """Record traces if the environment names an exporter.

    Args:
        service: `service.name`, unless OTEL_SERVICE_NAME says otherwise.
        instance: `service.instance.id`.

    Returns:
        What was not possible, as a sentence; empty if all is well or nothing was asked for.
    """
    global _tracer, _provider
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if not any(os.environ.get(name) for name in _WANTED) or exporter == "none":
        return ""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        return "OTEL_* asks for traces, but the SDK is missing: pip install 'lmos-mesh[otel]'"
    named = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(
        resource=Resource.create({"service.name": named, "service.instance.id": instance})
    )
    if exporter == "console":
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    else:
        made = _otlp_exporter()
        if made is None:
            return "the OTLP exporter is missing: pip install 'lmos-mesh[otel]'"
        provider.add_span_processor(BatchSpanProcessor(made))
    _provider = provider
    _tracer = provider.get_tracer("lmos_mesh")
    return ""


def _otlp_exporter() -> Any:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        return None
    return OTLPSpanExporter()


def shutdown() -> None:
    """Send what is still buffered."""
    global _tracer, _provider
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        provider.shutdown()


def recording() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    carrier: Mapping[str, str] | None = None,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Generator[Span | None]:
    """A span around the block; None when nothing is recorded.

    Args:
        name: What is done.
        kind: Which side of a hop.
        carrier: Headers whose trace this continues; else the current one.
        attributes: OpenTelemetry attributes. No prompt content.
    """
    if _tracer is None:
        yield None
        return
    parent = propagate.extract(cast("Any", carrier)) if carrier is not None else None
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except HandedOver:  # that is an answer, and no mistake
            raise
        except Exception as exc:
            current.set_attribute("error.type", type(exc).__name__)
            current.set_status(Status(StatusCode.ERROR, str(exc)[:200]))
            raise


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the current trace into outgoing headers."""
    if _tracer is not None:
        propagate.inject(headers)


def trace_id() -> str:
    """The current trace's id in hex, or empty."""
    found = trace.get_current_span(context.get_current()).get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else ""
