"""Be an agent: decorate plain functions, and they are capabilities that the mesh finds.

Types become JSON Schema and docstrings become descriptions. A coroutine or a plain function gives
one answer, a generator streams it; plain ones run in threads. Properties are read and written by
functions, and events are told to whoever listens.
"""

import asyncio
import contextvars
import difflib
import inspect
import json
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Generic, TypeVar, cast, overload

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lmos_mesh import calls, subjects, telemetry
from lmos_mesh.bus import CONCURRENCY, Bus
from lmos_mesh.calls import Call
from lmos_mesh.description import id_of
from lmos_mesh.errors import InvalidMessage, NotFound, SettingsError, Unavailable
from lmos_mesh.events import CloudEvent, rfc3339
from lmos_mesh.invocation import Circumstances
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import Utterance
from lmos_mesh.signatures import (
    adapter_of,
    data_schema,
    has_schema,
    hints_of,
    invalid,
    output_schema,
    type_name,
)
from lmos_mesh.things import (
    ANY_CHANNEL,
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    DEFAULT_VERSION,
    IN_PROPERTY,
    Capability,
    Fault,
    Thing,
    faults_of,
)
from lmos_mesh.wrong_fields import told, wrong_fields

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
DataT = TypeVar("DataT")
ResultT = TypeVar("ResultT")

_WORDS = re.compile(r"\w+", re.UNICODE)


class Context:
    """What a capability knows of the request it answers, and its way to the caller.

    Ask for it with a parameter of this type.
    """

    def __init__(self, call: Call, circumstances: Circumstances, presence: "Presence") -> None:
        self._call = call
        self._circumstances = circumstances
        self._presence = presence
        self._mesh: Mesh | None = None
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._said: list[str] = []

    @property
    def message(self) -> str:
        """The user's own words; empty if the action was invoked with input only."""
        return self._circumstances.message

    @property
    def conversation(self) -> str:
        """The conversation's id; empty outside of one."""
        return self._circumstances.conversation

    @property
    def turn(self) -> str:
        """The turn's id; empty outside of a conversation."""
        return self._circumstances.turn

    @property
    def user(self) -> str:
        """Who asks; empty if unknown."""
        return self._circumstances.user

    @property
    def channel(self) -> str:
        """The way in; empty if unknown."""
        return self._circumstances.channel

    @property
    def history(self) -> Sequence[Utterance]:
        """What was said before in this conversation, oldest first."""
        return self._circumstances.history

    @property
    def tenant(self) -> str:
        """Who the request belongs to."""
        return self._call.tenant

    @property
    def task(self) -> str:
        """The id of this piece of work. A repeated delivery has the same id."""
        return self._call.task

    @property
    def deadline(self) -> float | None:
        """Unix seconds after which nobody waits for the answer; None for no limit."""
        return self._call.deadline

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None for no limit."""
        return None if self.deadline is None else self.deadline - time.time()

    @property
    def cancelled(self) -> bool:
        """Whether the caller has left. A coroutine is cancelled; a thread must look here."""
        return self._cancelled.is_set()

    @property
    def mesh(self) -> Mesh:
        """The agent's tenant of the mesh: who else is there, and what they answer.

        What is asked there keeps the deadline of the request, and what is watched ends with it.
        """
        if self._mesh is None:
            self._mesh = self._presence.mesh.part()
        return self._mesh

    async def emit(self, event: "AgentEvent[DataT] | str", data: "DataT | None" = None) -> None:
        """Tell whoever listens that something has happened; see `Agent.emit`."""
        await self._presence.emit(event, data)

    async def say(self, text: str) -> None:
        """Send a piece of the answer now."""
        if text:
            self._said.append(text)
            await self._call.send("delta", text)

    async def status(self, **members: Any) -> None:
        """Tell the caller what is going on; not part of the answer."""
        await self._call.send("status", to_jsonable_python(members))

    def say_from_thread(self, text: str) -> None:
        """`say` for plain functions."""
        self.from_thread(self.say(text))

    def from_thread(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """For plain functions: have a coroutine done, e.g. `context.mesh.find()`, and wait."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def cancel(self) -> None:
        """Note that the caller has left."""
        self._cancelled.set()

    def close(self) -> None:
        """The request is answered: what it watches ends."""
        if self._mesh is not None:
            self._mesh.close()

    def output(self) -> str:
        """All that was said so far."""
        return "".join(self._said)


class Agent:
    """An agent and what it can do.

    Args:
        name: What it is called in its tenant.
        description: What it is for, in a sentence; routers read it.
        version: Semver.
        subset: Its release line, e.g. `stable` or `canary`.
        channels: The ways in that it serves; `*` for all.
        tenants: Whom it serves besides its own tenant.
        concurrency: How many requests one instance answers at a time.
        metadata: Further facts for its Description, as `lmos:metadata`.
        links: Where more is to be found: URLs, or objects with `href`, `rel`, `type`.

    Attributes:
        in_threads: One object for each plain function that is running now.
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
        self.in_threads: set[object] = set()
        self.presence: Presence | None = None
        self.events: list[AgentEvent[Any]] = []
        self.backgrounds: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._actions: list[Action] = []
        self._properties: list[AgentProperty] = []
        self._threads: ThreadPoolExecutor | None = None
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
        """The agent's tenant of the mesh, for what it does in the background.

        Raises:
            Unavailable: The agent is on no mesh.
        """
        return self._present().mesh

    def _present(self) -> "Presence":
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

    def thing(self, tenant: str) -> dict[str, Any]:
        """The record to register, not yet checked."""
        return {
            "name": self.name,
            "tenant": tenant,
            "subset": self.subset,
            "version": self.version,
            "description": self.description,
            "capabilities": [action.capability.model_dump() for action in self._actions],
            "properties": [one.record() for one in self._properties],
            "events": [one.record() for one in self.events],
            "links": self.links,
            "supported_channels": list(self.channels),
            "supported_tenants": list(self.tenants),
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
        words = set(_WORDS.findall(message.casefold()))
        return max(self._actions, key=lambda one: len(words & one.words))

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where plain functions run."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self.concurrency, thread_name_prefix=f"agent-{self.name}"
            )
        return self._threads

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
        raise _unknown(self.name, "property", name, [one.name for one in self._properties])

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
            one = AgentProperty(self, decorated, name=name, description=description)
            self._properties.append(one)
            return one

        return decorate if function is None else decorate(function)


class AgentProperty:
    """A value of an agent: a function gives it, and another one may take a new one.

    Attributes:
        faults: What is wrong with the functions.
    """

    def __init__(
        self,
        agent: Agent,
        function: Callable[..., Any],
        *,
        name: str | None,
        description: str | None,
    ) -> None:
        self.name = function.__name__ if name is None else name
        self.faults: list[str] = []
        self._agent = agent
        self._reader = function
        self._writer: Callable[..., Any] | None = None
        self._adapter: TypeAdapter[Any] | None = None
        hints = _hints(function, self.faults)
        self._schema = self._schema_of(hints["return"]) if "return" in hints else {}
        told = self._schema.pop("description", "")
        self.description = description or inspect.getdoc(function) or str(told)
        for member in IN_PROPERTY:
            self._schema.pop(member, None)
        self._context_of_reader, others = _split_parameters(function, hints)
        if others:
            self.faults.append(
                f"its function takes {', '.join(others)}; it may take a Context only"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            self.faults.append("its function yields; a property has one value, so return it")
        self._context_of_writer, self._value = "", ""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function gives, as if it were not decorated."""
        return self._reader(*arguments, **named)

    @property
    def writable(self) -> bool:
        """Whether others may write it."""
        return self._writer is not None

    def writer(self, function: FunctionT) -> FunctionT:
        """Have a function take what others write; it is handed the value, and maybe a `Context`."""
        if self._writer is not None:
            self.faults.append("has two writers")
        self._writer = function
        hints = _hints(function, self.faults)
        self._context_of_writer, others = _split_parameters(function, hints)
        if len(others) != 1:
            self.faults.append(
                f"its writer takes {', '.join(others) or 'nothing'}; it is given one value"
            )
            return function
        self._value = others[0]
        if self._value in hints:
            schema = self._schema_of(hints[self._value])
            for member in IN_PROPERTY:
                schema.pop(member, None)
            if not self._schema:
                self._schema = schema
            elif schema != self._schema:
                self.faults.append("its writer takes another type than its reader gives")
        return function

    def record(self) -> dict[str, Any]:
        """What its Description says of it, not yet checked."""
        return {
            "name": self.name,
            "description": self.description,
            "schema": self._schema,
            "writable": self.writable,
        }

    async def read(self, context: Context) -> Any:
        """Its value, as JSON has it."""
        given = {self._context_of_reader: context} if self._context_of_reader else {}
        value = await self._done(self._reader, given, context)
        return to_jsonable_python(value, inf_nan_mode="null")

    async def write(self, value: Any, context: Context) -> None:
        """Give it a value.

        Raises:
            InvalidMessage: It is read-only, or the value is not of its type.
        """
        if self._writer is None:
            raise InvalidMessage(
                f"property {self.name!r} of agent {self._agent.name!r} is read-only",
                hint="it answers to `read`",
                read_only=True,
            )
        if self._adapter is not None:
            try:
                value = self._adapter.validate_python(value)
            except ValidationError as exc:
                raise invalid(f"property {self.name!r}", exc, value) from None
        given = {self._context_of_writer: context} if self._context_of_writer else {}
        await self._done(self._writer, {**given, self._value: value}, context)

    async def _done(
        self, function: Callable[..., Any], given: dict[str, Any], context: Context
    ) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(**given)
        try:
            return await _in_thread(self._agent, lambda: function(**given))
        except asyncio.CancelledError:
            context.cancel()
            raise

    def _schema_of(self, annotation: Any) -> dict[str, Any]:
        try:
            self._adapter, schema = adapter_of(annotation, "it")
        except SettingsError as exc:
            self.faults.append(str(exc).removeprefix("it "))
            return {}
        return schema


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
        mesh: The agent's way to others.
    """

    def __init__(self, agent: Agent, bus: Bus) -> None:
        self.mesh = Mesh(bus)
        self._agent = agent
        self._bus = bus
        self._source = id_of(Thing(name=agent.name, tenant=bus.tenant, subset=agent.subset))

    async def emit(self, event: "AgentEvent[Any] | str", data: Any) -> None:
        """See `Agent.emit`."""
        named = event if isinstance(event, str) else event.name
        own = self._agent.events
        found = next((one for one in own if one is event or one.name == named), None)
        if found is None:
            raise _unknown(self._agent.name, "event", named, [one.name for one in own])
        said = found.told(data)
        told = CloudEvent(
            id=secrets.token_hex(16),
            source=self._source,
            type=f"lmos.agent.{found.name}",
            subject=self._agent.name,
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
            subjects.event(self._bus.tenant, self._agent.name, found.name),
            b"" if said is None else told.body(),
            headers=headers,
        )
        await transport.writable()


def _unknown(agent: str, kind: str, name: str, known: Sequence[str]) -> NotFound:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    else:
        hint = f"it has {', '.join(known)}" if known else f"it has no {kind}"
    return NotFound(f"agent {agent!r} has no {kind} {name!r}", hint=hint, near=near)


def _split_parameters(
    function: Callable[..., Any], hints: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """The name of the parameter that takes a Context, or nothing; and the others."""
    context, others = "", list[str]()
    for name in inspect.signature(function).parameters:
        if hints.get(name) is Context:
            context = name
        else:
            others.append(name)
    return context, others


class Action:
    """A function as a capability: its input checked, its answer streamed."""

    def __init__(
        self, function: Callable[..., Any], capability: Capability, wrong: Sequence[str] = ()
    ) -> None:
        self._function = function
        faults = list(wrong)
        hints = _hints(function, faults)
        types: dict[str, Any] = {}
        # By place, with the parameter's name as alias: it may be one that pydantic needs itself.
        fields: dict[str, Any] = {}
        self._parameters: list[str] = []
        self._context_parameter = ""
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                stars = "*" if parameter.kind == parameter.VAR_POSITIONAL else "**"
                faults.append(f"{stars}{name} has no schema; name its parameters")
                continue
            annotation = hints.get(name, str)
            if annotation is Context:
                self._context_parameter = name
                continue
            types[name] = annotation
            fields[f"at_{len(fields)}"] = _field(name, annotation, parameter.default)
            self._parameters.append(name)
        try:
            self._input: type[BaseModel] = create_model(
                f"{capability.id}_input", __config__=ConfigDict(extra="ignore"), **fields
            )
            schema = self._input.model_json_schema()
        except PydanticUserError:
            schema = {}
            unknown = [name for name, annotation in types.items() if not has_schema(annotation)]
            faults += [
                f"{name} is of type {type_name(types[name])}, which JSON cannot carry"
                for name in unknown
            ] or ["its parameters have no JSON Schema"]
        if faults:
            raise SettingsError(f"capability {capability.id!r}: {'; '.join(faults)}") from None
        self.capability = capability.model_copy(
            update={
                "input": data_schema(schema),
                "output": output_schema(hints.get("return")),
            }
        )
        texts = [capability.id.replace("_", " "), capability.name, capability.description]
        self.words = set(_WORDS.findall(" ".join([*texts, *capability.examples]).casefold()))

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The function's arguments from an action's input.

        Raises:
            InvalidMessage: The input does not fit; every wrong field is named.
        """
        if len(self._parameters) == 1 and set(given) == {"message"}:
            given = {self._parameters[0]: given["message"]}
        try:
            checked = self._input.model_validate(given)
        except ValidationError as exc:
            raise invalid(f"input of {self.capability.id!r}", exc, given) from None
        return {name: getattr(checked, f"at_{at}") for at, name in enumerate(self._parameters)}

    async def perform(self, arguments: dict[str, Any], context: Context, agent: Agent) -> Any:
        """Run the function and give its output; text is said as it comes."""
        if self._context_parameter:
            arguments = {**arguments, self._context_parameter: context}
        function = self._function
        if inspect.isasyncgenfunction(function):
            return await _say_all(function(**arguments), context)
        if inspect.iscoroutinefunction(function):
            result = await function(**arguments)
        else:
            try:
                result = await _in_thread(agent, lambda: function(**arguments))
            except asyncio.CancelledError:
                context.cancel()
                raise
        if inspect.isgenerator(result):
            pieces = cast("Generator[Any, Any, Any]", result)
            return await _say_all(_in_threads(agent, pieces, context), context)
        if inspect.isasyncgen(result):
            return await _say_all(result, context)
        if isinstance(result, str):
            await context.say(result)
            return context.output()
        if result is None:
            return context.output()
        return to_jsonable_python(result)


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


def _hints(function: Callable[..., Any], faults: list[str]) -> dict[str, Any]:
    try:
        return hints_of(function, "it")
    except SettingsError as exc:
        faults.append(str(exc).removeprefix("it: "))
        return {}


def _field(name: str, annotation: Any, default: Any) -> Any:
    """The model field of a parameter."""
    if isinstance(default, FieldInfo):
        return Annotated[annotation, default], Field(alias=name)
    return annotation, Field(... if default is inspect.Parameter.empty else default, alias=name)


async def _say_all(pieces: AsyncIterator[Any], context: Context) -> str:
    try:
        async for piece in pieces:
            await context.say(piece if isinstance(piece, str) else _as_text(piece))
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
    return context.output()


async def _in_thread(agent: Agent, work: Callable[[], Any]) -> Any:
    """Run it in a thread that knows which call it answers, so that its logs say so."""
    here = contextvars.copy_context()
    mark = object()

    def run() -> Any:
        agent.in_threads.add(mark)
        try:
            return here.run(work)
        except StopIteration as exc:
            # A future does not take this one: whoever waits for it would wait for ever.
            raise RuntimeError("raised StopIteration") from exc
        finally:
            agent.in_threads.discard(mark)

    return await asyncio.get_running_loop().run_in_executor(agent.threads, run)


async def _in_threads(
    agent: Agent, pieces: "Generator[Any, Any, Any]", context: Context
) -> AsyncIterator[Any]:
    end = object()
    try:
        while (piece := await _in_thread(agent, lambda: next(pieces, end))) is not end:
            yield piece
    except (asyncio.CancelledError, GeneratorExit):
        context.cancel()
        raise


def _as_text(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)
