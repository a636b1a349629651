"""At which lines of a JSON or YAML file the members of its documents are. Pure."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from lmos_mesh.things import pointer

if TYPE_CHECKING:
    from yaml import Node

Lines = Mapping[str, int]


def lines_in(text: str) -> list[Lines]:
    """For each document of a file, the line of every JSON Pointer in it.

    What cannot be read has no lines. An array at the top of JSON holds several documents, and an
    empty document of YAML is none, as they are read.
    """
    import yaml

    # JSON is YAML, apart from tabs between its members; inside of its strings there are none.
    shown = text.replace("\t", " ")
    is_json = shown.lstrip().startswith(("{", "["))
    found: list[Lines] = []
    try:
        # Nothing is constructed; only the positions of what is written are looked at.
        for node in yaml.compose_all(shown, Loader=yaml.SafeLoader):
            for document in _documents(node, is_json=is_json):
                lines = {"": _line(document)}
                lines.update(_lines_below(document, ""))
                found.append(lines)
    except (yaml.YAMLError, RecursionError, ValueError):
        pass
    return found


def line_of(at: str, lines: Lines) -> int | None:
    """The line of a JSON Pointer, or of what a missing member should be in; None if unknown."""
    while at not in lines:
        if not at:
            return None
        at = at.rpartition("/")[0]
    return lines[at]


def _documents(node: "Node", *, is_json: bool) -> "list[Node]":
    from yaml import SequenceNode

    if is_json and isinstance(node, SequenceNode):
        return cast("list[Node]", node.value)
    empty = node.tag == "tag:yaml.org,2002:null"
    return [] if empty else [node]


def _lines_below(node: "Node", at: str) -> Iterator[tuple[str, int]]:
    from yaml import MappingNode, SequenceNode

    # An explicit stack: how deep a file is nested is up to whoever wrote it.
    ahead: list[tuple[Any, str]] = [(node, at)]
    seen: set[int] = set()
    while ahead:
        holder, above = ahead.pop()
        if id(holder) in seen:
            continue  # a reference to what is written elsewhere
        seen.add(id(holder))
        if isinstance(holder, MappingNode):
            for key, value in cast("list[tuple[Any, Any]]", holder.value):
                here = above + pointer(str(key.value))
                yield here, _line(key)
                ahead.append((value, here))
        elif isinstance(holder, SequenceNode):
            for index, value in enumerate(cast("list[Any]", holder.value)):
                here = f"{above}/{index}"
                yield here, _line(value)
                ahead.append((value, here))


def _line(node: "Node") -> int:
    return cast("Any", node).start_mark.line + 1
