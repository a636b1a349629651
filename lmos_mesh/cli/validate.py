"""`lmos validate`: whether what people wrote is valid, and if not, where and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from lmos_mesh.cli.documents import Document, shown
from lmos_mesh.cli.lines import Lines
from lmos_mesh.cli.manifests import (
    Manifest,
    clashes,
    documents_of,
    files_of,
    is_resource,
    notes_on,
)
from lmos_mesh.cli.screen import out, plural, print_json
from lmos_mesh.description import description_faults, thing_of, with_id, with_security
from lmos_mesh.errors import MeshError
from lmos_mesh.json_faults import Fault
from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resources import Resource
from lmos_mesh.things import DEFAULT_TENANT, Thing

# Stands for the id that the registry gives to what has none.
_ANY_ID = "urn:uuid:00000000-0000-4000-8000-000000000000"
_NO_ID = "it has no `id`; each time that it is registered, it gets a new one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of one document.

    Attributes:
        file: The file, `-` for the standard input.
        document: Which one of the file, from 1; 0 if the file cannot be read at all.
        where: Both, as it is shown.
        thing: What it describes, if it is a valid Description.
        resource: What it says, if it is a valid resource.
        faults: With the line of each, where that can be told.
        notes: What the registry would fill in, or a cluster would refuse.
        lines: At which line of the file each member is.
    """

    file: str
    document: int
    where: str
    thing: Thing | None = None
    resource: Resource | None = None
    faults: tuple[tuple[Fault, int | None], ...] = ()
    notes: tuple[str, ...] = ()
    lines: Lines = field(default_factory=Lines)

    @property
    def named(self) -> tuple[str, str, str] | None:
        """Its kind, name, and what to call it; None if it is not valid."""
        if self.thing is not None:
            return self.thing.kind, self.thing.name, self.thing.title or self.thing.name
        if self.resource is not None:
            name = self.resource.metadata.name
            return type(self.resource).__name__, name, name
        return None


def validate(files: Sequence[Path], *, as_json: bool) -> int:
    """Say of every document whether it is valid; 1 if any is not."""
    verdicts = _beside([verdict for path in files for verdict in _verdicts_below(path)])
    if as_json:
        print_json([_as_json(one) for one in verdicts])
    else:
        for one in verdicts:
            _show(one)
    return 1 if any(one.named is None for one in verdicts) else 0


def verdicts_on(file: Path) -> list[Verdict]:
    """What is to be said of each document of a file."""
    name = str(file)
    try:
        documents = documents_of(name)
    except MeshError as exc:
        return [_unreadable(name, exc)]
    return [_verdict(name, one, lines) for one, lines in documents]


def _verdicts_below(path: Path) -> list[Verdict]:
    try:
        files = files_of(str(path))
    except MeshError as exc:
        return [_unreadable(str(path), exc)]
    return [verdict for file in files for verdict in verdicts_on(Path(file))]


def _beside(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same, and what cannot stand beside another of them is not valid."""
    found = [
        Manifest(where=one.where, value={}, resource=one.resource, lines=one.lines)
        for one in verdicts
        if one.resource is not None
    ]
    clashing: dict[str, list[Fault]] = {}
    for refused in clashes(found):
        clashing.setdefault(refused.where, []).extend(refused.faults)
    return [
        replace(
            one,
            resource=None,
            faults=tuple((fault, one.lines.at(fault["field"])) for fault in faults),
        )
        if (faults := clashing.get(one.where))
        else one
        for one in verdicts
    ]


def _unreadable(name: str, exc: MeshError) -> Verdict:
    fault = {"field": "", "description": str(exc)}
    line = exc.details.get("line")
    return Verdict(file=name, document=0, where=shown(name), faults=((fault, line),))


def _verdict(file: str, document: Document, lines: Lines) -> Verdict:
    if is_resource(document.value):
        resource, found = read_resource(document.value)
        return Verdict(
            file=file,
            document=document.number,
            where=document.where,
            resource=resource,
            faults=tuple((fault, lines.at(fault["field"])) for fault in found),
            notes=notes_on(resource, lines),
            lines=lines,
        )
    filled, notes = with_security(document.value)
    identified = with_id(filled, tenant=DEFAULT_TENANT, fresh=_ANY_ID)
    if identified.get("id") == _ANY_ID and "id" not in filled:
        notes = (*notes, _NO_ID)
    # Where the registration of a directory stands beside it, it is checked, and no part of it.
    faults = description_faults(identified)
    own = {member: value for member, value in identified.items() if member != "registration"}
    return Verdict(
        file=file,
        document=document.number,
        where=document.where,
        thing=None if faults else thing_of(own),
        faults=tuple((fault, lines.at(fault["field"])) for fault in faults),
        notes=notes,
    )


def _show(one: Verdict) -> None:
    if one.named is not None:
        kind, _, title = one.named
        line = Text.assemble(("✓ ", "green"), one.where, f" is valid: {kind} {title}")
        out().print(line)
    else:
        faults = plural(len(one.faults), "fault")
        out().print(Text.assemble(("✗ ", "red"), one.where, f" is not valid: {faults}"))
    for fault, line in one.faults:
        at = f"{one.file}:{line}" if line else one.file
        field = f" {fault['field']}" if fault["field"] else ""
        told = Text.assemble(("  " + at, "dim"), (field, "bold"), f" {fault['description']}")
        out().print(told, soft_wrap=True)
    for note in one.notes:
        out().print(Text.assemble(("  ! ", "yellow"), note), soft_wrap=True)


def _as_json(one: Verdict) -> dict[str, Any]:
    kind, name, _ = one.named or (None, None, None)
    return {
        "file": one.file,
        "document": one.document,
        "valid": one.named is not None,
        "kind": kind,
        "name": name,
        "faults": [{**fault, "line": line} for fault, line in one.faults],
        "notes": list(one.notes),
    }
