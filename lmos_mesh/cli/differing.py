"""What would be different about a document, line by line. Pure but for the screen's colours."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from rich.text import Text

from lmos_mesh.cli.yaml_text import yaml_text

# What the mesh says of a document, and nobody writes.
_KEPT_BY_THE_MESH = ("generation", "resourceVersion", "uid", "creationTimestamp", "managedFields")
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def written(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a resource or a Description that people write; nothing of what is not there."""
    if document is None:
        return {}
    own = {
        name: value for name, value in document.items() if name not in ("status", "registration")
    }
    if isinstance(own.get("metadata"), Mapping):
        metadata = cast("Mapping[str, Any]", own["metadata"])
        own["metadata"] = {
            name: value
            for name, value in metadata.items()
            if name not in _KEPT_BY_THE_MESH and value not in ({}, None)
        }
    return own


def difference(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, *, name: str
) -> str:
    """A unified diff of two documents as YAML; empty if people wrote the same."""
    old, new = written(before), written(after)
    if old == new:
        return ""
    # In one order of members, so that what has only moved is no difference.
    was, will = (yaml_text(_ordered(one)).splitlines() if one else [] for one in (old, new))
    told = difflib.unified_diff(
        was, will, f"{name} as it is", f"{name} as applied", lineterm="", n=2
    )
    return "\n".join(told)


def coloured(diff: str) -> Iterable[Text]:
    """Its lines for the screen."""
    for line in diff.splitlines():
        yield Text(line, _COLOURS.get(line[:1], ""))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        return {name: _ordered(given[name]) for name in sorted(given)}
    if isinstance(value, list | tuple):
        return [_ordered(one) for one in cast("list[Any]", value)]
    return value
