"""Be an agent: decorate plain functions, and they are capabilities that the mesh finds.

Types become JSON Schema and docstrings become descriptions. A coroutine or a plain function gives
one answer, a generator streams it; plain ones run in threads. Properties are read and written by
functions, and events are told to whoever listens.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from lmos_mesh.bus import CONCURRENCY
from lmos_mesh.errors import SettingsError, Unavailable
from lmos_mesh.interactions import Action, AgentProperty, words_of
from lmos_mesh.json_faults import Fault
from lmos_mesh.mesh import Mesh
from lmos_mesh.presence import AgentEvent, Presence, unknown_part
from lmos_mesh.thing_faults import faults_of
from lmos_mesh.things import (
    ANY_CHANNEL,
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    DEFAULT_VERSION,
    SHARED,
    Capability,
)
from lmos_mesh.threads import Threads
from lmos_mesh.wrong_fields import told, wrong_fields

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
DataT = TypeVar("DataT")


class Agent:
    """An agent and what it can do.

    Args:
        name: What it is called in its tenant.
        description: What it is for, in a sentence; routers read it.
        version: Semver.
        subset: Its release line, e.g. `stable` or `canary`.
        channels: The ways in that it serves; `*` for all.
        tenants: Whom it serves besides its own tenant; with any, it is served from tenant
            `shared`. One whose own tenant is `shared` serves these alone, and anybody without.
        concurrency: How many requests one instance answers at a time.
        metadata: Further facts for its Description, as `lmos:metadata`.
        links: Where more is to be found: URLs, or objects with `href`, `rel`, `type`.

    Attributes:
        threads: Where its plain functions run.
        presence: Its place on a mesh; None while it is on none.
    """

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        version: str = DEFAULT_VERSION,
        subset: str = DEFAULT_SUBSET,
        channels: Sequence[str] = (ANY_CHANNEL,),
        tenants: Sequence[str] = (),
        concurrency: int = CONCURRENCY,
        metadata: dict[str, Any] | None = None,
        links: Sequence[str | Mapping[str, Any]] = (),
    ) -> None:
        self.name = name
        self.description = description
        self.version = version
        self.subset = subset
        self.channels = tuple(channels)
        self.tenants = tuple(tenants)
        self.concurrency = concurrency
        self.metadata = dict(metadata or {})
        self.links = [{"href": one} if isinstance(one, str) else dict(one) for one in links]
        self.threads = Threads(f"agent-{name}", concurrency)
        self.presence: Presence | None = None
        self.events: list[AgentEvent[Any]] = []
        self.backgrounds: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._actions: list[Action] = []
        self._properties: list[AgentProperty] = []
        if wrong := _wrong_arguments(concurrency, channels=channels, tenants=tenants):
            # What else is wrong is said when it joins; whoever has to mend this hears of it now.
            no_texts = {"supported_channels": (), "supported_tenants": ()}
            found = [told([one]) for one in faults_of({**self.thing(DEFAULT_TENANT), **no_texts})]
            raise SettingsError(f"agent {name!r}: {'; '.join([*wrong, *found])}")

    def __repr__(self) -> str:
        can = ", ".join(action.capability.id for action in self._actions) or "nothing yet"
        return f"<Agent {self.name} {self.version} ({self.subset}): {can}>"

    @overload
    def capability(self, function: FunctionT) -> FunctionT: ...

    @overload
    def capability(
        self,
        *,
        id: str | None = None,
        name: str | None = None,
        version: str | None = None,
        description: str | None = None,
        examples: Sequence[str] = (),
        tags: Sequence[str] = (),
        idempotent: bool = True,
    ) -> Callable[[FunctionT], FunctionT]: ...

    def capability(
        self,
        function: FunctionT | None = None,
        *,
        id: str | None = None,
        name: str | None = None,
        version: str | None = None,
        description: str | None = None,
        examples: Sequence[str] = (),
        tags: Sequence[str] = (),
        idempotent: bool = True,
    ) -> FunctionT | Callable[[FunctionT], FunctionT]:
        """Make a function one of the agent's capabilities.

        Args:
            function: A coroutine function, a plain one, or a generator of either kind.
            id: What channels require; the function's name by default.
            name: What people read; the id with spaces by default.
            version: Semver; the agent's by default.
            description: The docstring by default.
            examples: What a user might say; the router learns from them.
            tags: Words to find it by.
            idempotent: Whether doing it twice does no harm. If not, it is never repeated after an
                instance has begun.
        """

        def decorate(decorated: FunctionT) -> FunctionT:
            given = str(id or decorated.__name__)
            record = {
                "id": given,
                "name": name or given.replace("_", " "),
                "version": version or self.version,
                "description": description or inspect.getdoc(decorated) or "",
                "examples": examples,
                "tags": tags,
                "idempotent": idempotent,
            }
            wrong: list[str] = []
            try:
                capability = Capability.model_validate(record)
            except ValidationError as exc:
                wrong = [told([one]).removeprefix("/") for one in wrong_fields(exc, record)]
                capability = Capability(id=given)
            self._actions.append(Action(decorated, capability, wrong))
            return decorated

        return decorate if function is None else decorate(function)

    @overload
    def event(self, name: str, *, description: str = "") -> "AgentEvent[None]": ...

    @overload
    def event(
        self, name: str, *, data: type[DataT], description: str = ""
    ) -> "AgentEvent[DataT]": ...

    def event(
        self, name: str, *, data: type[Any] | None = None, description: str = ""
    ) -> "AgentEvent[Any]":
        """Something that the agent will tell whoever listens, by `emit`.

        Args:
            name: What it is called.
            data: The type of what it tells; None for nothing but that it happened.
            description: When it happens.
        """
        event = AgentEvent[Any](name, data, description)
        self.events.append(event)
        return event

    def background(
        self, function: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Have a coroutine function run for as long as the agent is on a mesh.

        If it fails, that is logged, and it begins anew a little later.
        """
        self.backgrounds.append(function)
        return function

    async def emit(self, event: "AgentEvent[DataT] | str", data: "DataT | None" = None) -> None:
        """Tell whoever listens that something has happened.

        It reaches those who listen now; nobody keeps it for others.

        Raises:
            Unavailable: The agent is on no mesh, or the bus is lost.
            NotFound: It has no such event.
            InvalidMessage: The data are not of the event's type.
            TooLarge: The data are more than a packet may carry.
        """
        await self._present().emit(event, data)

    @property
    def mesh(self) -> Mesh:
        """The part of the mesh that its process lives in, for what it does in the background.

        Raises:
            Unavailable: The agent is on no mesh.
        """
        return self._present().mesh

    def _present(self) -> Presence:
        if self.presence is None:
            raise Unavailable(
                f"agent {self.name!r} is on no mesh now",
                hint="do this in its functions, or in one that is marked `@agent.background`",
            )
        return self.presence

    @property
    def actions(self) -> tuple["Action", ...]:
        """What it can do, in the order of definition."""
        return tuple(self._actions)

    def home(self, tenant: str) -> str:
        """The tenant that it is served from by a process of this one.

        That is `shared` for an agent which serves others, too.
        """
        return SHARED if any(one != tenant for one in self.tenants) else tenant

    def thing(self, tenant: str) -> dict[str, Any]:
        """The record to register, not yet checked, for a process of this tenant."""
        home = self.home(tenant)
        supported = list(self.tenants)
        if home != tenant and tenant not in supported:
            supported.insert(0, tenant)
        return {
            "name": self.name,
            "tenant": home,
            "subset": self.subset,
            "version": self.version,
            "description": self.description,
            "capabilities": [action.capability.model_dump() for action in self._actions],
            "properties": [one.record() for one in self._properties],
            "events": [one.record() for one in self.events],
            "links": self.links,
            "supported_channels": list(self.channels),
            "supported_tenants": supported,
            "metadata": self.metadata,
        }

    def faults(self) -> list[Fault]:
        """What is wrong with its properties and events beyond what their record shows."""
        found: list[Fault] = []
        for several, ones in (("properties", self._properties), ("events", self.events)):
            for index, one in enumerate(ones):
                found += [
                    {"field": f"/{several}/{index}", "description": fault} for fault in one.faults
                ]
        if self.events and self.name == "registry":
            found.append({"field": "/name", "description": "is where the registry's events are"})
        return found

    def action(self, id: str) -> "Action | None":
        """The action of a capability."""
        return next((one for one in self._actions if one.capability.id == id), None)

    def action_for(self, message: str) -> "Action | None":
        """The action that shares most words with a message, for callers that name none."""
        if len(self._actions) < 2:
            return self._actions[0] if self._actions else None
        words = words_of(message)
        return max(self._actions, key=lambda one: len(words & one.words))

    def run(self) -> None:
        """Serve this agent as this process until it is told to stop."""
        from lmos_mesh.hosting import run_agents

        run_agents([self])

    @property
    def properties(self) -> tuple["AgentProperty", ...]:
        """What can be read of it, in the order of definition."""
        return tuple(self._properties)

    def property_called(self, name: str) -> "AgentProperty":
        """The property of that name.

        Raises:
            NotFound: There is none; those that are called much alike are named.
        """
        for one in self._properties:
            if one.name == name:
                return one
        raise unknown_part(self.name, "property", name, [one.name for one in self._properties])

    @overload
    def property(self, function: Callable[..., Any]) -> "AgentProperty": ...

    @overload
    def property(
        self, *, name: str | None = None, description: str | None = None
    ) -> Callable[[Callable[..., Any]], "AgentProperty"]: ...

    # The last of the class: below it, `property` is not the decorator of Python any more.
    def property(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> "AgentProperty | Callable[[Callable[..., Any]], AgentProperty]":
        """Make what a function gives a value of the agent that others may read.

        ```python
        @agent.property
        def opening_hours() -> Hours:
            return hours

        @opening_hours.writer
        def set_opening_hours(value: Hours) -> None:
            ...
        ```

        Args:
            function: A coroutine function or a plain one, without parameters but a `Context`.
            name: The function's name by default.
            description: The docstring by default.
        """

        def decorate(decorated: Callable[..., Any]) -> AgentProperty:
            one = AgentProperty(
                self.name, self.threads, decorated, name=name, description=description
            )
            self._properties.append(one)
            return one

        return decorate if function is None else decorate(function)


def _wrong_arguments(concurrency: Any, **listed: Any) -> list[str]:
    """What is wrong with an agent's arguments beyond what its record shows."""
    wrong: list[str] = []
    if not isinstance(concurrency, int) or concurrency < 1:
        wrong.append(f"concurrency is {concurrency!r}, must be a whole number, 1 or more")
    wrong += [
        f"{name} is {value!r}, must be a list: [{value!r}]"
        for name, value in listed.items()
        if isinstance(value, str)
    ]
    return wrong
