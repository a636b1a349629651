"""Logs that a person reads in a terminal and a machine reads as JSON."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from lmos_mesh import calls, telemetry


def configure(*, level: str, style: str, service: str, instance: str) -> None:
    """Send all logs to standard error.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        style: `console` or `json`; empty for console on a terminal and JSON elsewhere.
        service: Which process this is.
        instance: Which one of them.
    """
    as_json = style == "json" or (not style and not sys.stderr.isatty())

    def add_context(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Any:
        event["service"] = service
        event["instance"] = instance
        if trace := telemetry.trace_id():
            event["trace_id"] = trace
        call = calls.current.get()
        if call is not None:
            event["tenant"] = call.notes.get("tenant", call.tenant)
            if conversation := call.notes.get("conversation"):
                event["conversation"] = conversation
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_context,
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer()
                if as_json
                else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("nats", "httpx", "httpcore", "opentelemetry"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
