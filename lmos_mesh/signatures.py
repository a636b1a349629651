"""What Python types say as the data schemas of Descriptions, and how wrong values are told. Pure.

A data schema is JSON Schema without references, for a Description has no `$defs`.
"""

import inspect
from collections.abc import Callable
from typing import Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from lmos_mesh.errors import InvalidMessage, SettingsError
from lmos_mesh.wrong_fields import told, wrong_fields


def hints_of(function: Callable[..., Any], what: str) -> dict[str, Any]:
    """The types of a function's parameters, and of its `return`.

    Raises:
        SettingsError: One of them does not exist at run time.
    """
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as exc:
        raise SettingsError(
            f"{what}: the annotation {exc.name!r} is not known at run time",
            hint="import it outside of TYPE_CHECKING, at the top of the module",
        ) from None


def adapter_of(annotation: Any, what: str) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """What checks a value of this type, and its data schema.

    Raises:
        SettingsError: There is no JSON Schema of it.
    """
    try:
        adapter = TypeAdapter[Any](annotation)
        return adapter, data_schema(adapter.json_schema())
    except PydanticUserError as exc:
        raise SettingsError(
            f"{what} has a type without a JSON Schema: {exc.message.splitlines()[0]}",
            hint="give it a type that JSON can carry",
        ) from None


def output_schema(returned: Any) -> dict[str, Any]:
    """The data schema of what a function gives; what is streamed or said is text."""
    if returned in (None, type(None), str) or _is_iterator(returned):
        return {"type": "string"}
    try:
        return data_schema(TypeAdapter(returned).json_schema())
    except Exception:  # an annotation that pydantic has no schema for says nothing about it
        return {}


def data_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema as a WoT data schema: references resolved.

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


def has_schema(annotation: Any) -> bool:
    """Whether JSON can carry values of a type."""
    try:
        TypeAdapter(annotation).json_schema()
    except PydanticUserError:
        return False
    return True


def type_name(annotation: Any) -> str:
    """A type as its author writes it."""
    return annotation.__qualname__ if inspect.isclass(annotation) else str(annotation)


def invalid(what: str, exc: ValidationError, value: Any) -> InvalidMessage:
    """A wrong value as the error that its sender is told; every wrong member is named."""
    faults = wrong_fields(exc, value)
    return InvalidMessage(f"{what}: {told(faults)}", faults=faults)


def _is_iterator(annotation: Any) -> bool:
    origin = getattr(annotation, "__origin__", annotation)
    return inspect.isclass(origin) and (
        hasattr(cast("Any", origin), "__anext__")
        or hasattr(cast("Any", origin), "__aiter__")
        or hasattr(cast("Any", origin), "__next__")
    )
