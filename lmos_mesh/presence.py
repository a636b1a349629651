"""An agent's place on a mesh: what it tells whoever listens, and its way to the others."""

import difflib
import secrets
import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from lmos_mesh import calls, subjects, telemetry
from lmos_mesh.bus import Bus
from lmos_mesh.description import id_of
from lmos_mesh.errors import InvalidMessage, NotFound, SettingsError
from lmos_mesh.events import CloudEvent, rfc3339
from lmos_mesh.mesh import Mesh
from lmos_mesh.signatures import adapter_of, invalid
from lmos_mesh.things import Thing

DataT = TypeVar("DataT")


class AgentEvent(Generic[DataT]):
    """Something that an agent tells whoever listens.

    Attributes:
        faults: What is wrong with its type.
    """

    def __init__(self, name: str, data: type[DataT] | None, description: str) -> None:
        self.name = name
        self.description = description
        self.faults: list[str] = []
        self._adapter: TypeAdapter[Any] | None = None
        self._schema: dict[str, Any] | None = None
        if data is not None:
            try:
                self._adapter, self._schema = adapter_of(data, "it")
            except SettingsError as exc:
                self.faults.append(str(exc).removeprefix("it "))

    def record(self) -> dict[str, Any]:
        """What its Description says of it, not yet checked."""
        return {"name": self.name, "description": self.description, "data": self._schema}

    def told(self, data: Any) -> Any:
        """The data as JSON has them.

        Raises:
            InvalidMessage: They are not of its type.
        """
        if self._adapter is None:
            if data is not None:
                raise InvalidMessage(
                    f"event {self.name!r} tells nothing", hint="give `agent.event` a type: data="
                )
            return None
        try:
            return to_jsonable_python(self._adapter.validate_python(data), inf_nan_mode="null")
        except ValidationError as exc:
            raise invalid(f"event {self.name!r}", exc, data) from None


class Presence:
    """An agent's place on a mesh, while a process serves it.

    Attributes:
        mesh: The way to others, in the tenant of its process.
        tenant: The tenant that it is served from; `shared`, if it serves others as well.
    """

    def __init__(
        self,
        name: str,
        subset: str,
        events: "Sequence[AgentEvent[Any]]",
        bus: Bus,
        *,
        tenant: str | None = None,
    ) -> None:
        self.tenant = tenant or bus.tenant
        self.mesh = Mesh(bus)
        self._name = name
        self._events = events
        self._bus = bus
        self._source = id_of(Thing(name=name, tenant=self.tenant, subset=subset))

    async def emit(self, event: "AgentEvent[Any] | str", data: Any) -> None:
        """See `Agent.emit`."""
        named = event if isinstance(event, str) else event.name
        found = next((one for one in self._events if one is event or one.name == named), None)
        if found is None:
            raise unknown_part(self._name, "event", named, [one.name for one in self._events])
        said = found.told(data)
        told = CloudEvent(
            id=secrets.token_hex(16),
            source=self._source,
            type=f"lmos.agent.{found.name}",
            subject=self._name,
            time=rfc3339(time.time()),
            data=said,
        )
        headers = told.to_headers()
        call = calls.current.get()
        if call is not None:
            headers.update(call.trace_headers())
        telemetry.inject(headers)
        transport = self._bus.transport
        transport.publish(
            subjects.event(self.tenant, self._name, found.name),
            b"" if said is None else told.body(),
            headers=headers,
        )
        await transport.writable()


def unknown_part(agent: str, kind: str, name: str, known: Sequence[str]) -> NotFound:
    """The error for a property or event that an agent does not have; near names are told."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    else:
        hint = f"it has {', '.join(known)}" if known else f"it has no {kind}"
    return NotFound(f"agent {agent!r} has no {kind} {name!r}", hint=hint, near=near)
