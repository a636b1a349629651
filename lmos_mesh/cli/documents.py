"""Files that people write by hand: JSON or YAML, several documents in one.

Of YAML, only what JSON can say is taken, so that a value means what it looks like: a date is a
text, `yes` is a text, and what is said twice in one object is a mistake. How much is read has
limits, so that a file that is a mistake is refused in seconds.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from lmos_mesh.cli.lines import Lines, lines_in_json
from lmos_mesh.cli.yaml_reading import MOST_DEEP, MOST_DOCUMENTS, Marked, yaml_documents
from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.json_faults import kind_of

STDIN = "-"

_MOST_BYTES = 8 * 1024 * 1024

_Read = tuple[Any, Callable[[], Marked | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One object of a file.

    Attributes:
        where: The file, and which of its documents if there are several.
        lines: At which line of the file each member is.
        number: Which of its documents, from 1.
    """

    where: str
    value: Mapping[str, Any]
    lines: Lines = field(default_factory=Lines)
    number: int = 1


def shown(file: str) -> str:
    """What a file is called."""
    return "standard input" if file == STDIN else file


def read_documents(file: str) -> list[Document]:
    """Every document of a file; `-` is the standard input.

    Raises:
        NotFound: There is no such file.
        InvalidMessage: It is neither JSON nor YAML, or a document of it is no object.
    """
    name = shown(file)
    text = _read(file)
    values = _values(name, text, as_json=Path(file).suffix.lower() == ".json")
    if not values:
        raise InvalidMessage(
            f"{name} is empty", hint="write a resource or a Thing Description in it"
        )
    documents: list[Document] = []
    for number, (value, find) in enumerate(values, start=1):
        where = f"{name} (document {number})" if len(values) > 1 else name
        if not isinstance(value, dict):
            raise InvalidMessage(f"{where} must be an object, not {kind_of(value)}")
        taken = cast("dict[str, Any]", value)
        documents.append(Document(where=where, value=taken, lines=Lines(find), number=number))
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
        raise InvalidMessage(
            f"{file} has more than {most // 2**20} MiB, which is the most that is read",
            hint="split it",
        )
    return raw


def _read(file: str) -> str:
    raw = read_bytes(file, most=_MOST_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidMessage(
            f"{file} is not UTF-8 at byte {exc.start}", hint="save it as UTF-8"
        ) from None


def _values(name: str, text: str, *, as_json: bool) -> list[_Read]:
    """The documents, and what finds out where they are."""
    try:
        if as_json:
            return _json_values(text)
        if text.lstrip().startswith(("{", "[")):
            # Nearly all of JSON is YAML, and it means the same; not so beyond the 65,536th letter.
            with suppress(ValueError):
                return _json_values(text)
        return [
            (value, lambda marked=marked: marked)
            for value, marked in yaml_documents(text)
            if value is not None
        ]
    except RecursionError:
        raise InvalidMessage(f"{name} is nested more than {MOST_DEEP} deep") from None
    except ValueError as exc:
        kind = "JSON" if as_json else "YAML"
        said = " ".join(str(exc).split())
        line: int | None = getattr(exc, "line", None) or getattr(exc, "lineno", None)
        raise InvalidMessage(f"{name} is no {kind} that can be read: {said}", line=line) from None


def _json_values(text: str) -> list[_Read]:
    read = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    values = cast("list[Any]", read) if isinstance(read, list) else [read]
    if len(values) > MOST_DOCUMENTS:
        raise ValueError(f"there are more than {MOST_DOCUMENTS} documents")
    if _depth(values) > MOST_DEEP + 1:
        raise RecursionError
    lines = cache(lambda: lines_in_json(text))

    def at(index: int) -> Marked | None:
        return lines()[index] if index < len(lines()) else None

    return [(value, lambda index=index: at(index)) for index, value in enumerate(values)]


def _depth(value: Any) -> int:
    """How deep arrays and objects are nested, without going deeper than is allowed."""
    level: list[Any] = [value]
    deep = 0
    while level and deep <= MOST_DEEP + 1:
        inner: list[Any] = []
        for one in level:
            members = cast("dict[str, Any]", one).values() if isinstance(one, dict) else one
            inner.extend(cast("Iterable[Any]", members))
        level = [one for one in inner if isinstance(one, dict | list)]
        deep += 1
    return deep


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"{name!r} is there twice in one object")
        read[name] = value
    return read


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
