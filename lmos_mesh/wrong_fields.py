"""What is wrong with an input, field by field, in the words of JSON and not of Python. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Fault = dict[str, str]
_Steps = tuple[int | str, ...]

_TOLD = 16

_SAID = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be an array",
    "tuple_type": "must be an array",
    "set_type": "must be an array",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "none_required": "must be null",
}
_AT_LEAST = re.compile(r" should have at least (\d+) (\w+) after validation, not \d+")
_AT_MOST = re.compile(r" should have at most (\d+) (\w+) after validation, not \w+( \w+)?")


def wrong_fields(exc: ValidationError, value: Any, *, at: str = "") -> list[Fault]:
    """Every wrong field once: a JSON Pointer below `at`, and what is wrong there.

    Args:
        exc: What pydantic found.
        value: What it was given, decoded; it tells fields from the names of types.
        at: Where the value is in what was sent.
    """
    said: dict[_Steps, list[str]] = {}
    for error in exc.errors(include_url=False, include_context=False, include_input=False):
        steps = _fields_of(error, value)
        descriptions = said.setdefault(steps, [])
        if (description := description_of(error)) not in descriptions:
            descriptions.append(description)
    # What is wrong further down says more: an array of which no item is left is the same fault.
    within = {steps[:depth] for steps in said for depth in range(len(steps))}
    return [
        {
            "field": at + pointer(steps),
            "description": " or ".join(
                [descriptions[0], *(one.removeprefix("must be ") for one in descriptions[1:])]
            ),
        }
        for steps, descriptions in said.items()
        if steps not in within
    ]


def told(faults: Sequence[Mapping[str, str]]) -> str:
    """Faults as the rest of a sentence that says what cannot be used."""
    said = "; ".join(
        f"{fault['field']}: {fault['description']}"
        if fault["field"]
        else f"it {fault['description']}"
        for fault in faults[:_TOLD]
    )
    return f"{said}; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else said


def pointer(steps: _Steps) -> str:
    """Where a field is, as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def _fields_of(error: ErrorDetails, value: Any) -> _Steps:
    """The way to what is wrong, without the names of the types that were tried on the way."""
    steps: list[int | str] = []
    for number, step in enumerate(error["loc"], 1):
        if isinstance(value, Mapping) and step in value:
            value = cast("Mapping[Any, Any]", value)[step]
        elif isinstance(value, list | tuple) and isinstance(step, int):
            value = cast("Sequence[Any]", value)[step]
        elif not (error["type"] == "missing" and number == len(error["loc"])):
            continue
        steps.append(step)
    return tuple(steps)


def description_of(error: ErrorDetails) -> str:
    """What is wrong, to be read after the name of the field."""
    if known := _SAID.get(error["type"]):
        return known
    said = error["msg"]
    if error["type"] == "json_invalid":
        return "is no JSON: " + said.removeprefix("Invalid JSON: ")
    for bound, words in ((_AT_LEAST, "at least"), (_AT_MOST, "at most")):
        if found := bound.search(said):
            return f"must have {words} {found[1]} {found[2]}"
    said = said.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    for beginning, ours in (("Input should be a valid ", "must be a "), ("Input should ", "must ")):
        if said.startswith(beginning):
            return ours + said.removeprefix(beginning)
    return f"must {said[14:]}" if said.startswith("String should ") else said
