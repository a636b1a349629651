"""Files that people write by hand: JSON or YAML, several documents in one.

Of YAML, only what JSON can say is taken, so that a value means what it looks like: a date is a
text, `yes` is a text, and what is said twice in one object is a mistake.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.things import kind_of

if TYPE_CHECKING:
    import yaml

STDIN = "-"

_MOST_BYTES = 16 * 1024 * 1024
_BOOLEAN = r"^(?:true|false)$"
_INTEGER = r"^-?(?:0|[1-9][0-9]*)$"
_FLOAT = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One object of a file.

    Attributes:
        where: The file, and which of its documents if there are several.
        text: The whole file, for whoever says at which line of it something is.
        number: Which of its documents, from 1.
    """

    where: str
    value: Mapping[str, Any]
    text: str = ""
    number: int = 1


def read_documents(file: str) -> list[Document]:
    """Every document of a file; `-` is the standard input.

    Raises:
        NotFound: There is no such file.
        InvalidMessage: It is neither JSON nor YAML, or a document of it is no object.
    """
    name = "standard input" if file == STDIN else file
    text = _read(file)
    values = _values(name, text, as_json=Path(file).suffix.lower() == ".json")
    if not values:
        raise InvalidMessage(
            f"{name} is empty", hint="write a resource or a Thing Description in it"
        )
    documents: list[Document] = []
    for number, value in enumerate(values, start=1):
        where = f"{name} (document {number})" if len(values) > 1 else name
        if not isinstance(value, dict):
            raise InvalidMessage(f"{where} must be an object, not {kind_of(value)}")
        taken = cast("dict[str, Any]", value)
        documents.append(Document(where=where, value=taken, text=text, number=number))
    return documents


def read_bytes(file: str, *, most: int) -> bytes:
    """What is in a file, or for `-` on standard input.

    Raises:
        NotFound: It cannot be read.
        InvalidMessage: It has more than `most` bytes.
    """
    try:
        if file == STDIN:
            raw = sys.stdin.buffer.read(most + 1)
        else:
            with Path(file).open("rb") as opened:
                raw = opened.read(most + 1)
    except OSError as exc:
        raise NotFound(f"cannot read {file}: {exc.strerror or exc}") from None
    if len(raw) > most:
        raise InvalidMessage(f"{file} has more than {most} bytes", hint="split it")
    return raw


def _read(file: str) -> str:
    raw = read_bytes(file, most=_MOST_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidMessage(
            f"{file} is not UTF-8 at byte {exc.start}", hint="save it as UTF-8"
        ) from None


def _values(name: str, text: str, *, as_json: bool) -> list[Any]:
    try:
        if as_json:
            return _json_values(text)
        if text.lstrip().startswith(("{", "[")):
            # Nearly all of JSON is YAML, and it means the same; not so beyond the 65,536th letter.
            with suppress(ValueError):
                return _json_values(text)
        return [value for value in _yaml_values(text) if value is not None]
    except RecursionError:
        raise InvalidMessage(f"{name} is nested too deeply") from None
    except ValueError as exc:
        kind = "JSON" if as_json else "YAML"
        said = " ".join(str(exc).split())
        raise InvalidMessage(f"{name} is no {kind} that can be read: {said}") from None


def _json_values(text: str) -> list[Any]:
    value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"{name!r} is there twice in one object")
        read[name] = value
    return read


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _yaml_values(text: str) -> Iterator[Any]:
    import yaml

    try:
        yield from yaml.load_all(text, Loader=_loader())  # a SafeLoader with less
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{at}{exc.problem or exc.context}") from None
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from None


@cache
def _loader() -> "type[yaml.SafeLoader]":
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        """Reads what JSON can say."""

        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # as the library has it

        def compose_node(self, parent: Any, index: Any) -> Any:
            parser = cast("Any", self)
            if parser.check_event(yaml.AliasEvent):
                event = parser.peek_event()
                raise yaml.MarkedYAMLError(
                    problem=f"*{event.anchor} is a reference; write out what it stands for",
                    problem_mark=event.start_mark,
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set[str]()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(
                        problem="the name of a member must be a text", problem_mark=key.start_mark
                    )
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is there twice in one object",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
                key.tag = "tag:yaml.org,2002:str"
            return super().construct_mapping(node, deep=deep)

    for tag, pattern, first in (
        ("null", r"^(?:null|~|)$", ["n", "~", ""]),
        ("bool", _BOOLEAN, ["t", "f"]),
        ("int", _INTEGER, list("-0123456789")),
        ("float", _FLOAT, list("-0123456789")),
    ):
        cast("Any", Loader).add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(pattern), first
        )
    return Loader
