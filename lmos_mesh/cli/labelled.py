"""Files of messages whose right agents are known: CSV with a header, or one JSON object a line."""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from lmos_mesh.cli.documents import STDIN, read_bytes
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.json_faults import kind_of

TEXT = ("text", "message", "instruction", "query")
AGENT = ("agent", "label")
NOBODY = frozenset({"", "oos", "none", "out_of_scope"})
"""What stands for nobody in the column of agents."""

_MOST_BYTES = 64 * 1024 * 1024
_MOST_CHARACTERS = 16_384
_PER_ROW = 32
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A message of a file.

    Attributes:
        agent: Who it is for; empty if it is for nobody.
        line: Where it begins in the file, from 1.
    """

    text: str
    agent: str
    line: int


def read_rows(file: str) -> list[Row]:
    """The rows of a file; `-` is the standard input.

    Raises:
        NotFound: There is no such file.
        InvalidMessage: It is not what it should be; says at which line.
    """
    name = "standard input" if file == STDIN else file
    rows = rows_in(_read(file), name)
    if not rows:
        raise InvalidMessage(f"{name} has no messages", hint=_FORM)
    return rows


def rows_in(text: str, name: str) -> list[Row]:
    """The rows of a text. Pure.

    Args:
        text: What is in the file.
        name: Its name: its ending tells which form it has.

    Raises:
        InvalidMessage: It is not what it should be; says at which line.
    """
    suffix = Path(name).suffix.lower()
    is_json = suffix in _JSON_SUFFIXES or (
        suffix not in (".csv", ".tsv") and text.lstrip().startswith("{")
    )
    return list(_json_rows(text, name) if is_json else _csv_rows(text, name))


def sample(rows: Sequence[Row], limit: int | None, *, seed: int) -> list[Row]:
    """At most so many of the rows, drawn by chance, in the order of the file."""
    if limit is None or limit >= len(rows):
        return list(rows)
    chosen = random.Random(seed).sample(range(len(rows)), limit)  # nothing secret
    return [rows[at] for at in sorted(chosen)]


def within(rows: Sequence[Row], most: int, *, seed: int) -> list[Row]:
    """As many rows as make a message of so many bytes, drawn by chance, in the order of the file.

    A row that alone is too large is left out.
    """
    sizes = [len(row.text.encode()) + len(row.agent.encode()) + _PER_ROW for row in rows]
    order = [at for at in range(len(rows)) if sizes[at] <= most]
    if len(order) < len(rows) or sum(sizes) > most:
        random.Random(seed).shuffle(order)  # nothing secret
    chosen: list[int] = []
    for at in order:
        most -= sizes[at]
        if most < 0:
            break
        chosen.append(at)
    return [rows[at] for at in sorted(chosen)]


def contradictions(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Messages that are there twice, for different agents: the first of each, and the other."""
    first: dict[str, Row] = {}
    found: list[tuple[Row, Row]] = []
    for row in rows:
        before = first.setdefault(" ".join(row.text.split()).casefold(), row)
        if before.agent != row.agent:
            found.append((before, row))
    return found


_FORM = (
    "write CSV with a header, e.g. `text,agent`, or JSON objects, one a line: "
    '{"text": "show my bill", "agent": "billing"}'
)


def _refuse(name: str, line: int, fault: str, hint: str = "") -> NoReturn:
    raise InvalidMessage(f"{name}, line {line}: {fault}", hint=hint) from None


def _read(file: str) -> str:
    raw = read_bytes(file, most=_MOST_BYTES)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        _refuse(file, line, f"byte {exc.start} is not UTF-8", "save the file as UTF-8")


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    # Lines end as the reader takes them: a carriage return inside of quotes stays there.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(text, name), strict=True
    )
    columns: tuple[int, int] | None = None
    width = 0
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, width = _columns(cells, name, line), len(cells)
                continue
            if len(cells) != width:
                _refuse(
                    name,
                    line,
                    f"{len(cells)} columns, and the header has {width}",
                    "put a text with a comma in double quotes",
                )
            yield _row(cells[columns[0]], cells[columns[1]], name, line)
    except csv.Error as exc:
        _refuse(name, begins, f"is no CSV that can be read: {exc}")


def _delimiter(text: str, name: str) -> str:
    header = next((line for line in text.splitlines() if line.strip()), "")
    if Path(name).suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=header.count)


def _columns(header: Sequence[str], name: str, line: int) -> tuple[int, int]:
    names = [cell.strip().casefold() for cell in header]
    found: list[int] = []
    for wanted in (TEXT, AGENT):
        at = next((names.index(one) for one in wanted if one in names), None)
        if at is None:
            shown = ", ".join(cell.strip()[:30] for cell in header[:8])
            _refuse(
                name, line, f"no column is named {_or(wanted)}; the first line is: {shown}", _FORM
            )
        found.append(at)
    return found[0], found[1]


def _json_rows(text: str, name: str) -> Iterator[Row]:
    # Not `splitlines`: a JSON string may hold what that takes for the end of a line.
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            value = json.loads(written)
        except (ValueError, RecursionError) as exc:
            said = exc.msg if isinstance(exc, json.JSONDecodeError) else "it cannot be read"
            _refuse(name, line, f"is no JSON: {said}", _FORM)
        if not isinstance(value, dict):
            _refuse(name, line, f"must be an object, not {kind_of(value)}", _FORM)
        members = {str(key).casefold(): one for key, one in cast("Any", value).items()}
        message, agent = _member(members, TEXT, name, line), _member(members, AGENT, name, line)
        if not isinstance(message, str):
            _refuse(name, line, f"the message must be a text, not {kind_of(message)}")
        if agent is not None and not isinstance(agent, str):
            _refuse(name, line, f"the agent must be a text or null, not {kind_of(agent)}")
        yield _row(message, agent or "", name, line)


def _member(members: Mapping[str, Any], wanted: Sequence[str], name: str, line: int) -> Any:
    for one in wanted:
        if one in members:
            return members[one]
    return _refuse(name, line, f"has no member {_or(wanted)}", _FORM)


def _row(text: str, agent: str, name: str, line: int) -> Row:
    if not text.strip():
        _refuse(name, line, "the message is empty")
    if len(text) > _MOST_CHARACTERS:
        _refuse(name, line, f"the message has more than {_MOST_CHARACTERS} characters")
    agent = agent.strip()
    return Row(text=text, agent="" if agent.casefold() in NOBODY else agent, line=line)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
