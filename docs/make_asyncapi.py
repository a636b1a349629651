"""Writes `asyncapi.yaml` from the messages themselves: `python docs/make_asyncapi.py`."""

from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import models_json_schema

from lmos_mesh import messages
from lmos_mesh.endpoint import Endpoint, InstanceEndpoint, Message

TARGET = Path(__file__).parent / "asyncapi.yaml"


def endpoints() -> list[Endpoint[Message, Message]]:
    """Every endpoint, in the order of definition."""
    return [one for one in vars(messages).values() if isinstance(one, Endpoint)]


def instance_endpoints() -> list[InstanceEndpoint[Message, Message]]:
    """Every endpoint that each process answers for itself."""
    return [one for one in vars(messages).values() if isinstance(one, InstanceEndpoint)]


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document."""
    of_one = instance_endpoints()
    found = [*endpoints(), *(one.of("{instance}") for one in of_one)]
    kinds = list(dict.fromkeys(kind for one in found for kind in (one.request, one.reply)))
    _, defined = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    channels: dict[str, Any] = {
        "replies": {"address": None, "messages": {}, "description": "The caller's inbox."}
    }
    operations: dict[str, Any] = {}
    named: dict[str, Any] = {}
    for one in found:
        service = one.service.removesuffix(".{instance}")
        parameters = {"tenant": {"$ref": "#/components/parameters/tenant"}}
        if service != one.service:
            parameters["instance"] = {"$ref": "#/components/parameters/instance"}
        name = f"{service}.{one.operation}"
        for kind in (one.request, one.reply):
            named[kind.__name__] = {
                "name": kind.__name__,
                "summary": (kind.__doc__ or "").split("\n", 1)[0],
                "contentType": "application/json",
                "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
            }
        request, reply = one.request.__name__, one.reply.__name__
        channels[name] = {
            "address": one.subject("{tenant}"),
            "parameters": parameters,
            "messages": {request: {"$ref": f"#/components/messages/{request}"}},
        }
        channels["replies"]["messages"][reply] = {"$ref": f"#/components/messages/{reply}"}
        operations[name] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{request}"}],
            **({} if service != one.service else _shared_by_replicas(service)),
            "reply": {
                "channel": {"$ref": "#/channels/replies"},
                "messages": [{"$ref": f"#/channels/replies/messages/{reply}"}],
            },
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "lmos-mesh",
            "version": "0.1.0",
            "description": "Requests to the services of a mesh. JSON is shown; msgpack with the "
            "same members is taken and given too. Headers, errors, streams and feeds are described "
            "in subjects.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "parameters": {
                "tenant": {"description": "Whose request it is.", "default": "demo"},
                "instance": {"description": "The process that is asked."},
            },
            "messages": named,
            "schemas": defined["$defs"],
        },
    }


def _shared_by_replicas(service: str) -> dict[str, Any]:
    return {"bindings": {"nats": {"queue": f"lmos-{service}"}}}


def text() -> str:
    """The document as YAML."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    TARGET.write_text(text())
