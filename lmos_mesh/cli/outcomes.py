"""What became of the documents of one command, and how that is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from lmos_mesh.cli.differing import coloured
from lmos_mesh.cli.manifests import Manifest, Refused
from lmos_mesh.cli.screen import fail, out, plural
from lmos_mesh.things import DEFAULT_SUBSET

_COLOURS = {"created": "green", "updated": "yellow", "configured": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one document.

    Attributes:
        namespace: Of a resource; empty for a Thing.
        what: `created`, `updated` or `configured`, `unchanged`, or `left out`.
        notes: What was filled in.
        diff: What is different now; empty unless asked for.
    """

    where: str
    kind: str
    name: str
    subset: str
    tenant: str
    id: str = ""
    namespace: str = ""
    what: str
    revision: int
    notes: tuple[str, ...] = ()
    diff: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of all documents.

    Attributes:
        ahead: What was not come to, as something before it was refused.
    """

    applied: Sequence[Applied] = ()
    refused: Sequence[Refused] = ()
    ahead: Sequence[Manifest] = ()


def show(one: Applied, *, dry_run: bool) -> None:
    """Say what became of a document."""
    subset = f" ({one.subset})" if one.subset != DEFAULT_SUBSET else ""
    space = f" in {one.namespace}" if one.namespace not in ("", "default") else ""
    revision = "dry run, " if dry_run else f"revision {one.revision}, " if one.revision else ""
    line = Text.assemble(
        (f"{one.what:<11}", _COLOURS.get(one.what, "dim")),
        f"{one.kind} ",
        (one.name, "bold"),
        f"{subset}{space} ",
        (f"{revision}from {one.where}", "dim"),
    )
    out().print(line)
    for note in one.notes:
        out().print(Text(f"           {note}", "dim"), soft_wrap=True)
    for shown in coloured(one.diff):
        out().print(Text("           ").append_text(shown), soft_wrap=True)


def show_refused(refused: Sequence[Refused]) -> None:
    """Say what is wrong with documents."""
    for one in refused:
        fail(f"{one.where} is refused for {plural(len(one.faults), 'fault')}:")
        for sentence in one.sentences():
            fail(f"  {sentence}")


def show_extent(outcome: Outcome) -> None:
    """Say how far it went: nothing is taken back."""
    if not outcome.applied:
        fail("nothing is applied")
        return
    count = len(outcome.applied)
    fail(f"{plural(count, 'document')} before it {'is' if count == 1 else 'are'} applied, and stay")
    for one in outcome.ahead:
        told = name_of(one)
        fail(f"  not applied: {told['kind']} {told['name']} from {one.where}")
    fail("mend it and apply all again: what is applied already is left as it is")


def name_of(one: Manifest) -> dict[str, Any]:
    """Which document it is."""
    metadata = one.resource.metadata if one.resource is not None else None
    name: Any = metadata.name if metadata is not None else one.value.get("title", "")
    return {"where": one.where, "kind": one.kind, "name": name}


def report_of(one: Applied, *, diff: bool) -> dict[str, Any]:
    """What became of a document, as JSON."""
    told = {
        "where": one.where,
        "kind": one.kind,
        "name": one.name,
        "namespace": one.namespace,
        "subset": one.subset,
        "tenant": one.tenant,
        "id": one.id,
        "what": one.what,
        "revision": one.revision,
        "notes": list(one.notes),
    }
    return told | {"diff": one.diff} if diff else told
