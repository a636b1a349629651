"""Reads the members of the cluster's objects, which are JSON of anybody's making. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

_NONE: Mapping[str, Any] = {}


def members(value: Any) -> Mapping[str, Any]:
    """A JSON object; an empty one if it is something else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else _NONE


def member(body: Any, *names: str) -> Mapping[str, Any]:
    """The JSON object that is found by these names, one in the other."""
    for name in names:
        body = members(body).get(name)
    return members(body)


def items(value: Any) -> Sequence[Mapping[str, Any]]:
    """The JSON objects of a list."""
    if not isinstance(value, list):
        return ()
    return [members(one) for one in cast("list[Any]", value)]


def metadata(body: Any) -> Mapping[str, Any]:
    """What names an object."""
    return member(body, "metadata")


def labels(body: Any) -> Mapping[str, str]:
    """The labels of an object."""
    return member(body, "metadata", "labels")


def annotations(body: Any) -> Mapping[str, str]:
    """The annotations of an object."""
    return member(body, "metadata", "annotations")
