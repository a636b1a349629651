"""Be an agent: decorate plain functions, and they are capabilities that the mesh finds.

Types become JSON Schema and docstrings become descriptions. A coroutine or a plain function gives
one answer, a generator streams it; plain ones run in threads.
"""

import asyncio
import contextvars
import inspect
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar, cast, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lmos_mesh.bus import CONCURRENCY
from lmos_mesh.calls import Call
from lmos_mesh.errors import InvalidMessage, SettingsError
from lmos_mesh.invocation import Circumstances
from lmos_mesh.messages import Utterance
from lmos_mesh.things import (
    ANY_CHANNEL,
    DEFAULT_SUBSET,
    DEFAULT_TENANT,
    DEFAULT_VERSION,
    Capability,
    faults_of,
)
from lmos_mesh.wrong_fields import told, wrong_fields

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_WORDS = re.compile(r"\w+", re.UNICODE)


class Context:
    """What a capability knows of the request it answers, and its way to the caller.

    Ask for it with a parameter of this type.
    """

    def __init__(self, call: Call, circumstances: Circumstances) -> None:
        self._call = call
        self._circumstances = circumstances
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
        asyncio.run_coroutine_threadsafe(self.say(text), self._loop).result()

    def cancel(self) -> None:
        """Note that the caller has left."""
        self._cancelled.set()

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

    Attributes:
        in_threads: One object for each plain function that is running now.
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
    ) -> None:
        self.name = name
        self.description = description
        self.version = version
        self.subset = subset
        self.channels = tuple(channels)
        self.tenants = tuple(tenants)
        self.concurrency = concurrency
        self.metadata = dict(metadata or {})
        self.in_threads: set[object] = set()
        self._actions: list[Action] = []
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
            "supported_channels": list(self.channels),
            "supported_tenants": list(self.tenants),
            "metadata": self.metadata,
        }

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


class Action:
    """A function as a capability: its input checked, its answer streamed."""

    def __init__(
        self, function: Callable[..., Any], capability: Capability, wrong: Sequence[str] = ()
    ) -> None:
        self._function = function
        faults = list(wrong)
        hints = _hints_of(function, faults)
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
            unknown = [name for name, annotation in types.items() if not _has_schema(annotation)]
            faults += [
                f"{name} is of type {_named(types[name])}, which JSON cannot carry"
                for name in unknown
            ] or ["its parameters have no JSON Schema"]
        if faults:
            raise SettingsError(f"capability {capability.id!r}: {'; '.join(faults)}") from None
        self.capability = capability.model_copy(
            update={
                "input": _data_schema(schema),
                "output": _output_schema(hints.get("return")),
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
            faults = wrong_fields(exc, given)
            raise InvalidMessage(
                f"input of {self.capability.id!r}: {told(faults)}", faults=faults
            ) from None
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


def _hints_of(function: Callable[..., Any], faults: list[str]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as exc:
        faults.append(
            f"the annotation {exc.name!r} is not known at run time; import it outside of "
            "TYPE_CHECKING, at the top of the module"
        )
        return {}


def _has_schema(annotation: Any) -> bool:
    try:
        TypeAdapter(annotation).json_schema()
    except PydanticUserError:
        return False
    return True


def _named(annotation: Any) -> str:
    """A type as its author writes it."""
    return annotation.__qualname__ if inspect.isclass(annotation) else str(annotation)


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


def _output_schema(returned: Any) -> dict[str, Any]:
    if returned in (None, type(None), str) or _is_iterator(returned):
        return {"type": "string"}
    try:
        return _data_schema(TypeAdapter(returned).json_schema())
    except Exception:  # an annotation that pydantic has no schema for says nothing about it
        return {}


def _is_iterator(annotation: Any) -> bool:
    origin = getattr(annotation, "__origin__", annotation)
    return inspect.isclass(origin) and (
        hasattr(cast("Any", origin), "__anext__")
        or hasattr(cast("Any", origin), "__aiter__")
        or hasattr(cast("Any", origin), "__next__")
    )


def _data_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema as a WoT data schema: references resolved, for a TD has no `$defs`.

    Titles go too: pydantic titles every field with its own name, which says nothing.
    """
    definitions = cast("dict[str, Any]", schema.get("$defs", {}))

    def resolve(value: Any, within: frozenset[str]) -> Any:
        if isinstance(value, list):
            return [resolve(one, within) for one in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        if isinstance(reference := given.get("$ref"), str):
            name = reference.rpartition("/")[2]
            if name in within:
                return {"type": "object"}  # a type that contains itself has no end here
            rest = {key: one for key, one in given.items() if key != "$ref"}
            return {**resolve(definitions.get(name, {}), within | {name}), **rest}
        return {
            key: resolve(one, within)
            for key, one in given.items()
            if key != "$defs" and not (key == "title" and isinstance(one, str))
        }

    return cast("dict[str, Any]", resolve(schema, frozenset()))
