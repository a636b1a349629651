"""The JSON Schema of Thing Description 1.1, with its errors told in sentences. Pure.

A validator says "is not valid under any of the given schemas"; here the alternative that the writer
likely meant is found, and its faults are told with JSON Pointers.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from lmos_mesh.json_faults import (
    NESTING,
    OUTER_NESTING,
    Faults,
    check_json,
    kind_of,
    pointer,
    quoted,
)
from lmos_mesh.schemas.assertions import (
    SAID_OF_DATE_TIME,
    TD_CONTEXTS,
    check_assertions,
    check_registration,
)

if TYPE_CHECKING:
    from jsonschema_rs import Draft7Validator, ValidationError

TD_CONTEXT = TD_CONTEXTS[0]

_SCHEMA = "td-json-schema-validation.json"
# All errors of a large document take seconds to list; of a larger one only the first is told.
_LISTABLE_VALUES = 10_000


def td_faults(description: object) -> Faults:
    """Every reason why something is no valid Thing Description, whatever it describes."""
    found = Faults()
    if not isinstance(description, Mapping):
        found.add("", f"must be an object, not {kind_of(description)}")
        return found
    document = dict(cast("Mapping[str, Any]", description))
    check_json(document, "", found, nesting=NESTING + OUTER_NESTING)
    if found:
        # The schema could not be trusted to see what is no JSON, or has no bottom.
        return found
    mistyped: set[str] = set()
    context_refused = document.get("@context") == []
    for error in _errors(document, found):
        if error.instance_path[:1] == ["@context"]:
            context_refused = True
            continue
        for leaf in _leaves(error):
            at = pointer(*leaf.path)
            if at not in mistyped:
                found.add(at, leaf.said)
            if leaf.types:
                mistyped.add(at)
        if found.overflows:
            break
    if context_refused:
        found.add(
            "/@context",
            f'must be "{TD_CONTEXT}", or an array that begins with it and has only URIs'
            " and objects of prefixes and their URIs besides",
        )
    _check_security(document, found)
    known = {fault["field"] for fault in found.listed()}
    more = Faults()
    check_registration(document, more)
    check_assertions(document, more)
    for fault in more.listed():
        if fault["field"] not in known:
            found.add(fault["field"], fault["description"])
    return found


def _errors(document: dict[str, Any], found: Faults) -> Iterable["ValidationError"]:
    validator = _validator()
    if validator.is_valid(document):
        return ()
    if _values_in(document) <= _LISTABLE_VALUES:
        return validator.iter_errors(document)
    found.add("", f"has over {_LISTABLE_VALUES} values, too many to name every fault at once")
    try:
        validator.validate(document)
    except ValueError as exc:
        return (cast("ValidationError", exc),)
    return ()


def _values_in(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(_values_in(one) for one in cast("dict[str, object]", value).values())
    if isinstance(value, list | tuple):
        return 1 + sum(_values_in(one) for one in cast("list[object]", value))
    return 1


@cache
def _validator() -> "Draft7Validator":
    # Costs 15 ms and some memory, which processes that check no Descriptions do not need.
    from jsonschema_rs import Draft7Validator

    schema = json.loads((files("lmos_mesh.schemas") / _SCHEMA).read_text("utf-8"))
    return Draft7Validator(schema, validate_formats=True, mask="it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """One plain fault out of an error of the schema.

    Attributes:
        types: What it may be, where it is of the wrong type.
        tells_apart: It shows that another alternative of the schema was meant.
    """

    path: tuple[str | int, ...]
    said: str
    types: tuple[str, ...] = ()
    tells_apart: bool = False


def _leaves(error: "ValidationError") -> list[_Leaf]:
    """The plain faults behind an error; of alternatives, those of the one that was likely meant."""
    path, keyword, value = tuple(error.instance_path), error.kind.name, error.kind.value
    if keyword in ("oneOf", "anyOf"):
        return _closest(path, value, error.instance)
    if keyword == "required":
        return [_Leaf(path=(*path, value), said="is missing")]
    if keyword == "type":
        return [_mistyped(path, tuple(value), error.instance)]
    said = _SAID.get(keyword, lambda _value, _path: error.message)(value, path)
    if keyword in ("enum", "const"):
        said = f"{said}, not {quoted(error.instance)}"
    return [
        _Leaf(
            path=path,
            said=said,
            tells_apart=keyword == "const" or (keyword == "enum" and len(value) == 1),
        )
    ]


def _closest(
    path: tuple[str | int, ...], alternatives: "list[list[ValidationError]]", instance: object
) -> list[_Leaf]:
    """The faults of the alternative that the writer likely meant."""
    branches = [[leaf for error in one for leaf in _leaves(error)] for one in alternatives]
    if not all(branches):
        return [_Leaf(path=path, said="combines members that exclude each other")]
    fitting = [
        branch
        for branch in branches
        if not any(leaf.types and leaf.path == path for leaf in branch)
    ]
    if not fitting:
        wanted = (kind for branch in branches for leaf in branch for kind in leaf.types)
        return [_mistyped(path, tuple(dict.fromkeys(wanted)), instance)]
    return min(fitting, key=lambda b: (sum(leaf.tells_apart for leaf in b), len(b)))


def _mistyped(path: tuple[str | int, ...], types: tuple[str, ...], instance: object) -> _Leaf:
    wanted = " or ".join(_A_TYPE.get(one, one) for one in types)
    return _Leaf(path=path, said=f"must be {wanted}, not {kind_of(instance)}", types=types)


_A_TYPE = {
    "string": "a string",
    "array": "an array",
    "object": "an object",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
}
_OF_PATTERN = {
    "scheme": "must be nosec, auto, combo, basic, digest, apikey, bearer, psk, oauth2"
    " or a term with a prefix from @context",
    "hreflang": "must be a language tag, e.g. en or de-CH",
    "sizes": "must be sizes like 16x16",
}
_OF_FORMAT = {
    "uri": "must be an absolute URI, e.g. urn:uuid:6f1d3a7a-1f97-4e6b-b45f-f3c2e1c84c77",
    "date-time": SAID_OF_DATE_TIME,
}


def _said_of_pattern(pattern: str, path: tuple[str | int, ...]) -> str:
    names = [step for step in path if isinstance(step, str)]
    return _OF_PATTERN.get(names[-1] if names else "", f"must match {pattern}")


def _said_of_not(schema: Any, _path: tuple[str | int, ...]) -> str:
    if schema == {"const": "tm:ThingModel"}:
        return "must not be tm:ThingModel: a model describes Things, and is none"
    refused = " and ".join(schema.get("required", ()))
    if "rel" in refused:
        return "is an icon or tm:extends link, which this form of a link cannot be"
    return f"must not have {refused}" if refused else "is not allowed"


_Said = Callable[[Any, tuple[str | int, ...]], str]

_SAID: dict[str, _Said] = {
    "enum": lambda options, _: "must be " + _either(options),
    "const": lambda wanted, _: "must be " + quoted(wanted),
    "pattern": _said_of_pattern,
    "format": lambda name, _: _OF_FORMAT.get(name, f"must be of the format {name}"),
    "minItems": lambda least, _: f"must have at least {least} entr{'y' if least == 1 else 'ies'}",
    "minProperties": lambda least, _: f"must have at least {least} member{'s' * (least != 1)}",
    "uniqueItems": lambda _, __: "has the same entry twice",
    "minimum": lambda least, _: f"must be at least {least}",
    "exclusiveMinimum": lambda bound, _: f"must be more than {bound}",
    "not": _said_of_not,
}


def _either(options: list[Any]) -> str:
    *most, last = [quoted(option) for option in options]
    return f"{', '.join(most)} or {last}" if most else last


def _check_security(document: Mapping[str, Any], found: Faults) -> None:
    """Note names of security schemes that nobody defined: the schema cannot see those."""
    definitions = document.get("securityDefinitions")
    if not isinstance(definitions, dict):
        return
    defined = cast("dict[str, Any]", definitions)
    for at, name in _named_schemes(document, defined):
        if name not in defined:
            found.add(at, f"names {quoted(name)}, which securityDefinitions does not define")


def _named_schemes(
    document: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    yield from _strings_at(document, "security", "")
    for name, scheme in definitions.items():
        for combined in ("oneOf", "allOf"):
            yield from _strings_at(scheme, combined, pointer("securityDefinitions", name))
    yield from _schemes_of_forms(document, "")
    for affordances in ("properties", "actions", "events"):
        for name, affordance in _members(document.get(affordances)):
            yield from _schemes_of_forms(affordance, pointer(affordances, name))


def _schemes_of_forms(holder: object, at: str) -> Iterator[tuple[str, str]]:
    forms = dict(_members(holder)).get("forms")
    if isinstance(forms, list):
        for index, form in enumerate(cast("list[object]", forms)):
            yield from _strings_at(form, "security", f"{at}/forms/{index}")


def _strings_at(holder: object, name: str, at: str) -> Iterator[tuple[str, str]]:
    value = dict(_members(holder)).get(name)
    if isinstance(value, str):
        yield f"{at}/{name}", value
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            if isinstance(item, str):
                yield f"{at}/{name}/{index}", item


def _members(value: object) -> Iterable[tuple[str, object]]:
    return cast("dict[str, object]", value).items() if isinstance(value, dict) else ()
