"""What people hand to `lmos apply`: files, folders and lists, each document checked on its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lmos_mesh.cli.documents import STDIN, Document, read_documents, shown
from lmos_mesh.cli.lines import Lines
from lmos_mesh.cluster_names import cluster_faults
from lmos_mesh.description import description_faults, with_id, with_security
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.json_faults import Fault, pointer, quoted
from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resources import Channel, ChannelRollout, Resource
from lmos_mesh.things import DEFAULT_TENANT

_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_LISTS = ("List", "AgentList", "ChannelList", "ChannelRoutingList", "ChannelRolloutList")
# What is needed by others comes first.
_ORDER = ("Thing", "Agent", "Channel", "ChannelRouting", "ChannelRollout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One document that can be applied.

    Attributes:
        where: Its file, and which of its documents if there are several.
        value: The document.
        resource: What it says; None for a Thing Description.
        lines: At which line of the file each member is.
        notes: What whoever applies it should know.
    """

    where: str
    value: Mapping[str, Any]
    resource: Resource | None = None
    lines: Lines = field(default_factory=Lines)
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of resource, or `Thing`."""
        return type(self.resource).__name__ if self.resource else "Thing"

    def refused(self, faults: Iterable[Fault]) -> "Refused":
        """The same document, refused after all."""
        return Refused(where=self.where, faults=tuple(faults), lines=self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why one document is not applied.

    Attributes:
        lines: At which line of the file each member is.
        line: Where it cannot be read, which its fault says in words.
    """

    where: str
    faults: tuple[Fault, ...]
    lines: Lines = field(default_factory=Lines)
    line: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Itself, with the line of each fault."""
        faults = [
            {**fault, "line": self.lines.at(fault["field"]) or self.line} for fault in self.faults
        ]
        return {"where": self.where, "faults": faults}

    def sentences(self) -> Iterator[str]:
        """What is wrong, one fault in each."""
        for fault in self.faults:
            line = self.lines.at(fault["field"])
            at = f"{fault['field']}: " if fault["field"] else ""
            yield f"{f'line {line}, ' if line else ''}{at}{fault['description']}"


def read_manifests(paths: Sequence[str]) -> tuple[list[Manifest], list[Refused]]:
    """Every document of these files and folders, in the order in which they are to be applied."""
    found: list[Manifest] = []
    refused: list[Refused] = []
    for path in paths:
        try:
            for file in files_of(path):
                _read(file, found, refused)
        except MeshError as exc:
            refused.append(_unreadable(path, exc))
    refused.extend(clashes(found))
    found.sort(key=lambda one: _ORDER.index(one.kind))
    return _twice(found), refused


def files_of(path: str) -> list[str]:
    """A file itself, or every YAML and JSON file in a folder and below, by name.

    Raises:
        NotFound: There is none in the folder.
    """
    folder = Path(path)
    if path == STDIN or not folder.is_dir():
        return [path]
    inside = (
        one
        for one in sorted(folder.rglob("*"))
        if one.suffix.lower() in _SUFFIXES
        and one.is_file()
        and not any(part.startswith(".") for part in one.relative_to(folder).parts)
    )
    if not (files := [str(one) for one in inside]):
        raise NotFound(f"there is no YAML or JSON file in {path}")
    return files


def documents_of(file: str) -> list[tuple[Document, Lines]]:
    """The documents of a file, and where their members are; a List is what it holds.

    Raises:
        MeshError: It cannot be read.
    """
    found: list[tuple[Document, Lines]] = []
    for one in read_documents(file):
        items = one.value.get("items")
        if one.value.get("kind") not in _LISTS or not isinstance(items, list):
            found.append((one, one.lines))
            continue
        for index, item in enumerate(cast("list[Any]", items)):
            where = f"{one.where} (item {index + 1})"
            value = cast("dict[str, Any]", item if isinstance(item, dict) else {})
            lines = one.lines.below("items", str(index))
            found.append((replace(one, where=where, value=value), lines))
    return found


def is_resource(value: Mapping[str, Any]) -> bool:
    """Whether it says that it is one, and is no Thing Description."""
    return "apiVersion" in value


def faults_of_description(value: Mapping[str, Any]) -> list[Fault]:
    """Why a Thing Description, or what is none, cannot be applied."""
    if not ("@context" in value or "title" in value):
        said = "is no resource, as it has no `apiVersion`, and no Thing Description: it has neither"
        return [{"field": "", "description": f"{said} `@context` nor `title`"}]
    faults = description_faults(with_security(value)[0])
    # The id of an agent or a tool follows from its names; of others it has to be given.
    if not faults and not with_id(value, tenant=DEFAULT_TENANT, fresh="").get("id"):
        said = "is missing; without it, this would be another Thing each time that it is applied"
        faults.append({"field": "/id", "description": said})
    return faults


def _unreadable(file: str, exc: MeshError) -> Refused:
    fault = {"field": "", "description": str(exc)}
    return Refused(where=shown(file), faults=(fault,), line=exc.details.get("line"))


def notes_on(resource: Resource | None, lines: Lines) -> tuple[str, ...]:
    """What a cluster would refuse of a resource, and the mesh does not; with its lines."""
    faults = cluster_faults(resource) if resource is not None else []
    told = Refused(where="", faults=tuple(faults), lines=lines)
    return tuple(told.sentences())


def _read(file: str, found: list[Manifest], refused: list[Refused]) -> None:
    try:
        documents = documents_of(file)
    except MeshError as exc:
        refused.append(_unreadable(file, exc))
        return
    for document, lines in documents:
        resource: Resource | None = None
        if is_resource(document.value):
            resource, faults = read_resource(document.value)
        else:
            faults = faults_of_description(document.value)
        if faults:
            refused.append(Refused(where=document.where, faults=tuple(faults), lines=lines))
        else:
            one = Manifest(
                where=document.where,
                value=document.value,
                resource=resource,
                lines=lines,
                notes=notes_on(resource, lines),
            )
            found.append(one)


def clashes(found: Sequence[Manifest], *, tenant: str = "") -> Iterator[Refused]:
    """What cannot stand side by side, and would be refused in the middle of the work.

    Args:
        found: The documents.
        tenant: Whose those are that do not say so.
    """
    named = {
        (one.resource.metadata.namespace, one.resource.metadata.name): one.resource
        for one in found
        if isinstance(one.resource, Channel)
    }
    places: dict[tuple[str, ...], Manifest] = {}
    for one in found:
        match one.resource:
            case Channel() as channel:
                metadata = channel.metadata
                whose = channel.tenant or tenant
                place = (metadata.namespace, whose, channel.channel, channel.subset)
                first = places.setdefault(place, one)
                if first.resource and first.resource.metadata.name != metadata.name:
                    said = (
                        f"are those of Channel {quoted(first.resource.metadata.name)}, too, from "
                        f"{first.where}: one tenant, channel and subset have one Channel"
                    )
                    yield one.refused([{"field": "/metadata/labels", "description": said}])
            case ChannelRollout() as rollout:
                yield from _of_one_channel(one, rollout, named, tenant)
            case _:
                pass


def _of_one_channel(
    one: Manifest,
    rollout: ChannelRollout,
    named: Mapping[tuple[str, str], Channel],
    tenant: str,
) -> Iterator[Refused]:
    """Whether the two Channels of a rollout differ in their subset, and in it alone."""
    namespace = rollout.metadata.namespace
    for name, pair in channels_of(rollout):
        canary, stable = (named.get((namespace, each)) for each in pair)
        if canary is None or stable is None:
            continue  # at least one is there already; the operator knows
        said = ""
        new, old = (f"{each.tenant or tenant}/{each.channel}" for each in (canary, stable))
        if new != old:
            said = (
                f"names Channels of {quoted(new)} and {quoted(old)}; both must be of one tenant "
                "and channel"
            )
        elif canary.subset == stable.subset:
            said = f"names two Channels of subset {quoted(canary.subset)}; they must differ"
        if said:
            at = pointer("spec", "strategy", name)
            yield one.refused([{"field": at, "description": said}])


def channels_of(rollout: ChannelRollout) -> list[tuple[str, tuple[str, str]]]:
    """The strategy of a rollout, and the names of its canary and its stable Channel."""
    found = rollout.spec.strategy
    strategies = (("canary", found.canary), ("shadow", found.shadow))
    return [
        (name, (one.canary_channel.name, one.stable_channel.name))
        for name, one in (*strategies, ("blueGreen", found.blue_green))
        if one is not None
    ]


def _twice(found: Sequence[Manifest]) -> list[Manifest]:
    """The same, with a note at what replaces an earlier one; the last of them stays, as usual."""
    seen: dict[tuple[str, str, str], str] = {}
    told: list[Manifest] = []
    for one in found:
        if one.resource is None:
            told.append(one)
            continue
        metadata = one.resource.metadata
        key = (one.kind, metadata.namespace, metadata.name)
        note = f"replaces the one from {seen[key]}" if key in seen else ""
        seen[key] = one.where
        told.append(replace(one, notes=(*one.notes, note)) if note else one)
    return told
