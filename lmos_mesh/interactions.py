"""Functions as what others may do with an agent: perform an action, read and write a property."""

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lmos_mesh.context import Context
from lmos_mesh.errors import InvalidMessage, SettingsError
from lmos_mesh.signatures import (
    adapter_of,
    data_schema,
    has_schema,
    hints_of,
    invalid,
    output_schema,
    type_name,
)
from lmos_mesh.things import IN_PROPERTY, Capability
from lmos_mesh.threads import Threads

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_WORDS = re.compile(r"\w+", re.UNICODE)


def words_of(text: str) -> set[str]:
    """The words of a text, whatever their case."""
    return set(_WORDS.findall(text.casefold()))


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
        self.words = words_of(" ".join([*texts, *capability.examples]))

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

    async def perform(self, arguments: dict[str, Any], context: Context, threads: Threads) -> Any:
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
                result = await threads.run(lambda: function(**arguments))
            except asyncio.CancelledError:
                context.cancel()
                raise
        if inspect.isgenerator(result):
            pieces = cast("Generator[Any, Any, Any]", result)
            try:
                return await _say_all(threads.each(pieces), context)
            except asyncio.CancelledError:
                context.cancel()
                raise
        if inspect.isasyncgen(result):
            return await _say_all(result, context)
        if isinstance(result, str):
            await context.say(result)
            return context.output()
        if result is None:
            return context.output()
        return to_jsonable_python(result)


class AgentProperty:
    """A value of an agent: a function gives it, and another one may take a new one.

    Attributes:
        faults: What is wrong with the functions.
    """

    def __init__(
        self,
        agent: str,
        threads: Threads,
        function: Callable[..., Any],
        *,
        name: str | None,
        description: str | None,
    ) -> None:
        self.name = function.__name__ if name is None else name
        self.faults: list[str] = []
        self._agent = agent
        self._threads = threads
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
                f"property {self.name!r} of agent {self._agent!r} is read-only",
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
            return await self._threads.run(lambda: function(**given))
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


def _as_text(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)
