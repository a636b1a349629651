"""`lmos apply`: what people have written by hand becomes part of the mesh.

Everything is checked before anything is applied, and every fault of every file is named.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rich.text import Text

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.documents import Document, read_documents
from lmos_mesh.cli.lines import Lines, line_of, lines_in
from lmos_mesh.cli.screen import fail, out, plural, print_json
from lmos_mesh.description import description_faults, thing_of, with_id, with_security
from lmos_mesh.errors import (
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NotFound,
    SettingsError,
)
from lmos_mesh.messages import GET_THING, REGISTER, GetThing, Register
from lmos_mesh.things import DEFAULT_TENANT, Fault, Thing, quoted

_COLOURS = {"created": "green", "updated": "yellow", "unchanged": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one document.

    Attributes:
        what: `created`, `updated` or `unchanged`.
        notes: What was filled in.
    """

    where: str
    kind: str
    name: str
    subset: str
    id: str
    what: str
    revision: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why one document is not applied.

    Attributes:
        lines: At which line of the file each member is.
    """

    where: str
    faults: tuple[Fault, ...]
    lines: Lines = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What holds for all documents of one command."""

    tenant: str
    ttl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One kind of document: how it is recognised, checked, and applied."""

    fits: Callable[[Mapping[str, Any]], bool]
    faults: Callable[[Mapping[str, Any]], list[Fault]]
    apply: Callable[[Bus, Document, _Terms], Awaitable[Applied]]


def apply(
    files: Sequence[str],
    *,
    ttl_s: float | None,
    tenant: str | None,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Apply the documents of files; 1 if any is refused."""
    if ttl_s is not None and not 0 < ttl_s < math.inf:
        raise SettingsError(
            f"--ttl {ttl_s:g} is no time to live", hint="give a number of seconds above 0"
        )
    found, refused = check(files)
    if refused:
        _show_refused(refused, as_json=as_json)
        return 1
    applied, refused = run(_apply(found, ttl_s=ttl_s, tenant=tenant, mesh=mesh))
    if as_json:
        print_json(
            {
                "applied": [_as_json(one) for one in applied],
                "refused": [_refused_as_json(one) for one in refused],
            }
        )
        return 1 if refused else 0
    for one in applied:
        _show(one)
    if refused:
        _show_refused(refused, as_json=False)
    return 1 if refused else 0


def check(files: Sequence[str]) -> tuple[list[tuple[_Kind, Document]], list[Refused]]:
    """The documents of files with their kinds, and those that are refused."""
    found: list[tuple[_Kind, Document]] = []
    refused: list[Refused] = []
    for file in files:
        try:
            documents = read_documents(file)
        except MeshError as exc:
            refused.append(Refused(where=file, faults=({"field": "", "description": str(exc)},)))
            continue
        lines = lines_in(documents[0].text)
        for document in documents:
            kind = next((one for one in _KINDS if one.fits(document.value)), None)
            faults = kind.faults(document.value) if kind else [_stranger(document.value)]
            if kind is None or faults:
                told: Lines = lines[document.number - 1] if document.number <= len(lines) else {}
                refused.append(Refused(where=document.where, faults=tuple(faults), lines=told))
            else:
                found.append((kind, document))
    return found, refused


async def _apply(
    found: Sequence[tuple[_Kind, Document]],
    *,
    ttl_s: float | None,
    tenant: str | None,
    mesh: str | None,
) -> tuple[list[Applied], list[Refused]]:
    applied: list[Applied] = []
    refused: list[Refused] = []
    async with connected(mesh) as bus, answering("registry"):
        terms = _Terms(tenant=tenant or bus.tenant, ttl_s=ttl_s)
        for kind, document in found:
            try:
                applied.append(await kind.apply(bus, document, terms))
            except InvalidDescription as exc:
                faults = cast("list[Fault]", exc.details.get("faults") or [])
                said = faults or [{"field": "", "description": str(exc)}]
                refused.append(Refused(where=document.where, faults=tuple(said)))
            except MeshError as exc:
                if exc.retryable:
                    raise
                fault = {"field": "", "description": str(exc)}
                refused.append(Refused(where=document.where, faults=(fault,)))
    return applied, refused


# -- Thing Descriptions --


def _is_description(value: Mapping[str, Any]) -> bool:
    return "apiVersion" not in value and ("@context" in value or "title" in value)


def _faults_of_description(value: Mapping[str, Any]) -> list[Fault]:
    faults = description_faults(with_security(value)[0])
    # The id of an agent or a tool follows from its names; of others it has to be given.
    if not faults and not with_id(value, tenant=DEFAULT_TENANT, fresh="").get("id"):
        said = "is missing; without it, this would be another Thing each time that it is applied"
        faults.append({"field": "/id", "description": said})
    return faults


async def _apply_description(bus: Bus, document: Document, terms: _Terms) -> Applied:
    # A registration stands beside it and is no part of it.
    own = {name: value for name, value in document.value.items() if name != "registration"}
    ttl_s, expires = _lifetime(document.value, terms)
    thing = thing_of(with_security(own)[0], tenant=terms.tenant)
    before = await _revision_of(bus, thing, terms.tenant)
    try:
        registered = await bus.call(
            REGISTER,
            Register(description=own, ttl_s=ttl_s, expires=expires),
            tenant=terms.tenant,
            nobody_s=RESTART_S,
        )
    except InvalidMessage as exc:
        if (field := str(exc.details.get("field"))) not in _LIFETIMES:
            raise
        said = exc.message.removeprefix(f"{field}: ")
        fault = {"field": _LIFETIMES[field], "description": said}
        raise InvalidDescription.of(document.where, [fault]) from None
    if registered.created or before is None:
        what = "created"
    else:
        what = "unchanged" if registered.revision == before else "updated"
    return Applied(
        where=document.where,
        kind=thing.kind,
        name=registered.name,
        subset=registered.subset,
        id=registered.id,
        what=what,
        revision=registered.revision,
        notes=registered.notes,
    )


_LIFETIMES = {"/expires": "/registration/expires", "/ttl_s": "/registration/ttl"}


def _lifetime(value: Mapping[str, Any], terms: _Terms) -> tuple[float | None, str | None]:
    """How long it shall stay: seconds, or until when.

    When an entry of some directory ends that it was copied from says nothing of this one.
    """
    stated = value.get("registration")
    if terms.ttl_s is not None or not isinstance(stated, Mapping):
        return terms.ttl_s, None
    told = cast("Mapping[str, Any]", stated)
    if told.get("ttl") is not None:
        return told["ttl"], None
    return None, None if "created" in told else told.get("expires")


async def _revision_of(bus: Bus, thing: Thing, tenant: str) -> int | None:
    """The revision that is there now; None if there is none."""
    try:
        wanted = GetThing(name=thing.name, subset=thing.subset)
        return (await bus.call(GET_THING, wanted, tenant=tenant, nobody_s=RESTART_S)).revision
    except NotFound:
        return None


_KINDS: tuple[_Kind, ...] = (
    _Kind(fits=_is_description, faults=_faults_of_description, apply=_apply_description),
)


def _stranger(value: Mapping[str, Any]) -> Fault:
    if "apiVersion" in value:
        said = f"has the kind {quoted(value.get('kind'))}, which cannot be applied (yet)"
        return {"field": "/kind", "description": said}
    said = "is no Thing Description: it has neither `@context` nor `title`"
    return {"field": "", "description": said}


# -- on the screen --


def _show(one: Applied) -> None:
    subset = f" ({one.subset})" if one.subset != "stable" else ""
    line = Text.assemble(
        (f"{one.what:<9}", _COLOURS[one.what]),
        " ",
        f"{one.kind} ",
        (one.name, "bold"),
        f"{subset} ",
        (f"revision {one.revision}, from {one.where}", "dim"),
    )
    out().print(line)
    for note in one.notes:
        out().print(Text(f"          {note}", "dim"))


def _show_refused(refused: Sequence[Refused], *, as_json: bool) -> None:
    if as_json:
        print_json({"applied": [], "refused": [_refused_as_json(one) for one in refused]})
        return
    for one in refused:
        faults = plural(len(one.faults), "fault")
        fail(f"{one.where} is refused for {faults}:")
        for fault in one.faults:
            line = line_of(fault["field"], one.lines)
            at = f"{fault['field']}: " if fault["field"] else ""
            fail(f"  {f'line {line}, ' if line else ''}{at}{fault['description']}")


def _as_json(one: Applied) -> dict[str, Any]:
    return {
        "where": one.where,
        "kind": one.kind,
        "name": one.name,
        "subset": one.subset,
        "id": one.id,
        "what": one.what,
        "revision": one.revision,
        "notes": list(one.notes),
    }


def _refused_as_json(one: Refused) -> dict[str, Any]:
    faults = [{**fault, "line": line_of(fault["field"], one.lines)} for fault in one.faults]
    return {"where": one.where, "faults": faults}
