"""A mesh of AI agents on NATS: Eclipse LMOS in Python.

Start at `Agent` to be part of the mesh, at `Mesh` to talk to it. Only what is exported here is
public; it is loaded when it is first used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmos_mesh.agent import Agent
    from lmos_mesh.bus import Bus, Route, route
    from lmos_mesh.context import Context
    from lmos_mesh.endpoint import Endpoint, Message
    from lmos_mesh.errors import MeshError
    from lmos_mesh.hosting import AgentHost, run_agents
    from lmos_mesh.interactions import AgentProperty
    from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
    from lmos_mesh.mesh import Mesh
    from lmos_mesh.messages import Answer, Converse, Decision
    from lmos_mesh.nats_transport import NatsTransport
    from lmos_mesh.presence import AgentEvent
    from lmos_mesh.reply_stream import Frame, Patience, ReplyStream
    from lmos_mesh.service import Service, run_service
    from lmos_mesh.settings import Settings, load_settings
    from lmos_mesh.things import Capability, Thing
    from lmos_mesh.transport import Transport
    from lmos_mesh.watching import Change, Watch

_WHERE = {
    "Agent": "agent",
    "AgentEvent": "presence",
    "AgentHost": "hosting",
    "AgentProperty": "interactions",
    "Answer": "messages",
    "Bus": "bus",
    "Capability": "things",
    "Change": "watching",
    "Context": "context",
    "Converse": "messages",
    "Decision": "messages",
    "Endpoint": "endpoint",
    "Frame": "reply_stream",
    "MemoryBroker": "memory_transport",
    "MemoryTransport": "memory_transport",
    "Mesh": "mesh",
    "MeshError": "errors",
    "Message": "endpoint",
    "NatsTransport": "nats_transport",
    "Patience": "reply_stream",
    "ReplyStream": "reply_stream",
    "Route": "bus",
    "Service": "service",
    "Settings": "settings",
    "Thing": "things",
    "Transport": "transport",
    "Watch": "watching",
    "load_settings": "settings",
    "route": "bus",
    "run_agents": "hosting",
    "run_service": "service",
}

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentHost",
    "AgentProperty",
    "Answer",
    "Bus",
    "Capability",
    "Change",
    "Context",
    "Converse",
    "Decision",
    "Endpoint",
    "Frame",
    "MemoryBroker",
    "MemoryTransport",
    "Mesh",
    "MeshError",
    "Message",
    "NatsTransport",
    "Patience",
    "ReplyStream",
    "Route",
    "Service",
    "Settings",
    "Thing",
    "Transport",
    "Watch",
    "load_settings",
    "route",
    "run_agents",
    "run_service",
]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'lmos_mesh' has no attribute {name!r}")
    return getattr(import_module(f"lmos_mesh.{module}"), name)
