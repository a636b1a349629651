"""The resources of `lmos.eclipse/v1` as JSON Schemas, for editors, and as Kubernetes' definitions.

Both are made from the models, so that nobody has to keep them alike. Pure.
"""

import re
from collections.abc import Mapping
from functools import cache
from textwrap import dedent
from typing import Any, cast, get_args

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from lmos_mesh.resources import (
    CHANNEL_LABEL,
    GROUP,
    KINDS,
    SUBSET_LABEL,
    TENANT_LABEL,
    VERSION,
    Resource,
)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OURS, _NOT_LMOS = re.compile(r"^Ours(?=[:.])"), "Not in LMOS"
_MEMBER = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")
_NONE = re.compile(r"\bNone\b")
_ATTRIBUTE = re.compile(r"^(\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)

_LABELLED = tuple(
    (label.upper(), "string", f".metadata.labels.{label}")
    for label in (TENANT_LABEL, CHANNEL_LABEL, SUBSET_LABEL)
)
_COLUMNS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "Agent": (
        ("SUBSET", "string", f".metadata.labels.{SUBSET_LABEL}"),
        ("LIVE", "boolean", ".status.live"),
    ),
    "Channel": (*_LABELLED, ("RESOLVE_STATUS", "string", ".status.resolveStatus")),
    "ChannelRouting": _LABELLED,
    "ChannelRollout": (
        ("PHASE", "string", ".status.phase"),
        ("WEIGHT", "integer", ".status.canaryWeight"),
        ("STEP", "integer", ".status.step"),
    ),
}
_KEPT = frozenset(
    {"type", "description", "enum", "format", "pattern", "required", "oneOf", "anyOf"}
    | {"minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"}
)


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a kind, as people write it."""
    model = KINDS[kind]
    schema = model.model_json_schema(by_alias=True, mode="validation")
    for name, part in parts_of(model).items():
        told = schema if part is model else schema["$defs"].get(name)
        if told is not None:
            _describe(told, part)
    described = cast("dict[str, Any]", _untitled(schema))
    described["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$schema": _DIALECT, "title": kind, **described}


def crd(kind: str) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, with a structural schema.

    It has no defaults: what is applied to a cluster stays as it was written, and is filled in by
    whoever reads it, on the cluster as elsewhere.
    """
    model = KINDS[kind]
    schema = json_schema(kind)
    parts: dict[str, Any] = schema.get("$defs", {})
    spec = _structural(schema["properties"]["spec"], parts)
    status = _structural(schema["properties"]["status"], parts)
    status.pop("nullable", None)
    columns = [
        {"name": name, "type": kind_of_value, "jsonPath": path}
        for name, kind_of_value, path in _COLUMNS[kind]
    ]
    age = {"name": "AGE", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": model.plural,
                "singular": kind.lower(),
                "shortNames": [model.short],
                "categories": ["lmos"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*columns, age],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": schema["description"],
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                        }
                    },
                }
            ],
        },
    }


@cache
def parts_of(model: type[Resource]) -> Mapping[str, type[BaseModel]]:
    """A model and every model in it, by name."""
    found: dict[str, type[BaseModel]] = {}
    ahead: list[Any] = [model]
    while ahead:
        one = ahead.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one.__name__ not in found:
                found[one.__name__] = one
                ahead.extend(field.annotation for field in one.model_fields.values())
        else:
            ahead.extend(get_args(one))
    return found


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Say of every member what the docstring says of it."""
    own, told = _docstring(model)
    schema["description"] = own
    for name, field in model.model_fields.items():
        # Of what is only said to be ours, its type says more.
        if (said := told.get(name)) and said != f"{_NOT_LMOS}.":
            schema["properties"][field.alias or name]["description"] = said


@cache
def _docstring(model: type[BaseModel]) -> tuple[str, Mapping[str, str]]:
    """What it says of the whole, and of each member."""
    own, _, attributes = (model.__doc__ or "").partition("Attributes:\n")
    first, _, rest = own.partition("\n")
    told = {
        name: _said(description)
        for name, description in cast(
            "list[tuple[str, str]]", _ATTRIBUTE.findall(dedent(attributes))
        )
    }
    return _said(f"{first}\n{dedent(rest)}"), told


def _said(text: str) -> str:
    """A text in one line, in words that are true elsewhere, too: what is ours is not LMOS's."""
    said = _NONE.sub("null", _OURS.sub(_NOT_LMOS, " ".join(text.split())))
    return _MEMBER.sub(lambda found: f"`{to_camel(found[1])}`", said)


def _untitled(value: Any, *, named: bool = False) -> Any:
    """A schema without the titles that only repeat the names of members."""
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        return {
            name: _untitled(one, named=name in ("properties", "$defs") and not named)
            for name, one in given.items()
            if named or name != "title"
        }
    if isinstance(value, list):
        return [_untitled(one) for one in cast("list[Any]", value)]
    return value


def _structural(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as Kubernetes wants it: nothing referred to, every type said, no null as a type."""
    if "$ref" in schema:
        meant = parts[schema["$ref"].rpartition("/")[2]]
        made = _structural(meant, parts)
        return made | {name: schema[name] for name in ("description",) if name in schema}
    choices = schema.get("anyOf")
    if choices and {"type": "null"} in choices:
        (wanted,) = (one for one in choices if one != {"type": "null"})
        rest = {name: one for name, one in schema.items() if name != "anyOf"}
        made = _structural({**wanted, **rest}, parts) | {"nullable": True}
        if allowed := cast("list[str]", made.pop("enum", [])):
            # An enum refuses null, even one that names it; a pattern asks texts only.
            made["pattern"] = f"^({'|'.join(allowed)})$"
        return made
    made = {name: one for name, one in schema.items() if name in _KEPT}
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            made |= {limit: schema[bound], bound: True}
    if "items" in schema:
        made["items"] = _structural(schema["items"], parts)
    if "properties" in schema:
        made["properties"] = {
            name: _structural(one, parts) for name, one in schema["properties"].items()
        }
    more = schema.get("additionalProperties", False)
    if more is True:
        made["x-kubernetes-preserve-unknown-fields"] = True
    elif more:
        made["additionalProperties"] = _structural(more, parts)
    return made
