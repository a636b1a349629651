"""Which Things fit a question, and in which order. Pure."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast

from lmos_mesh.description import reachable
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.membership import Entered, Membership, ThingKey
from lmos_mesh.messages import FindThings, FoundThing
from lmos_mesh.semver import BadVersion, Range, Version
from lmos_mesh.things import Fault
from lmos_mesh_registry import jsonpaths

# What shares every word with the text is about as near to it as the nearest in meaning are.
_WORDS_AS_MEANING = 0.7


class Scores(dict[ThingKey, float]):
    """How near in meaning Things are to a text; those that are not named here are far from it.

    Attributes:
        pending: Things whose meaning is not known yet; words must do for them.
        total: How many Things there are to compare.
    """

    def __init__(
        self,
        near: Mapping[ThingKey, float],
        *,
        pending: Collection[ThingKey] = (),
        total: int = 0,
    ) -> None:
        super().__init__(near)
        self.pending = frozenset(pending)
        self.total = total


@dataclass(frozen=True, slots=True)
class Found:
    """The Things that fit.

    Attributes:
        entries: Best first, each with its score if there was a text; `limit` of them at most.
        total: How many fit in all.
        matched: How the text was compared; empty without one.
        notes: What whoever asked should know about it.
    """

    entries: list[tuple[Entered, float | None]]
    total: int
    matched: Literal["", "meaning", "words"] = ""
    notes: tuple[str, ...] = ()


class _Ranked(NamedTuple):
    entered: Entered
    score: float | None


def candidates(membership: Membership, tenant: str, wanted: FindThings) -> list[Entered]:
    """The entries for which every condition holds, text and JSONPath apart, in no order.

    Raises:
        InvalidMessage: A condition cannot be read; every such one is named.
    """
    _check(wanted)
    found = membership.looked_up(
        tenant,
        name=wanted.name,
        id=wanted.id,
        kind=wanted.kind,
        capability=wanted.capability,
        tags=wanted.tags,
    )
    for fits in _remaining(membership, wanted):
        found = [one for one in found if fits(one)]
    return found


def find(
    membership: Membership,
    tenant: str,
    wanted: FindThings,
    *,
    scores: Mapping[ThingKey, float] | None = None,
    among: list[Entered] | None = None,
) -> Found:
    """The entries for which every condition holds, the best first.

    A JSONPath over many entries takes a while. To keep the loop free, narrow them down first:
    `await asyncio.to_thread(jsonpaths.fitting, candidates(membership, tenant, wanted), path)`.

    Args:
        membership: What there is.
        tenant: Whose Things.
        wanted: The conditions.
        scores: How near Things are to the text in meaning; None to compare words.
        among: The candidates that fit the JSONPath, where that was looked at already.

    Raises:
        InvalidMessage: A condition cannot be read; every such one is named.
    """
    if among is None:
        among = candidates(membership, tenant, wanted)
        if wanted.jsonpath is not None:
            among = jsonpaths.fitting(among, wanted.jsonpath)
    narrowed = len(among) < len(membership)
    if wanted.text is None:
        ranked = [_Ranked(one, None) for one in among]
        return Found(_page(ranked, membership, wanted), len(ranked))
    if scores is None:
        ranked = _by_words(membership, tenant, wanted.text, among, narrowed=narrowed)
        return Found(_page(ranked, membership, wanted), len(ranked), "words")
    ranked, pending = _by_meaning(membership, tenant, wanted.text, among, scores)
    notes: tuple[str, ...] = ()
    if pending:
        notes = (f"{pending} of {len(among)} not embedded yet; those were compared by words",)
    return Found(_page(ranked, membership, wanted), len(ranked), "meaning", notes)


def search(membership: Membership, tenant: str, query: str, limit: int) -> tuple[list[Any], int]:
    """What a JSONPath selects in the array of a tenant's Descriptions, in order of their ids.

    It may take seconds, and be called in another thread than that of the membership: it begins
    with a copy that nothing changes.

    Returns:
        The values, `limit` of them at most, and how many there are in all.

    Raises:
        InvalidMessage: It is no JSONPath, or takes too long.
    """
    things = sorted(membership.in_tenant(tenant), key=lambda one: one.id)
    return jsonpaths.search(things, query, limit)


def shown(
    one: Entered,
    membership: Membership,
    *,
    whole: bool,
    score: float | None = None,
    as_of: float = 0.0,
) -> FoundThing:
    """An entry as it is told to whoever asked.

    Args:
        one: The entry.
        membership: Which instances it has, and through which adapters it is reached.
        whole: Whether with its Description.
        score: How well it fits the text that was looked for.
        as_of: Until when this is known to be true.
    """
    thing = one.thing
    instances = membership.instances(one.key)
    description = None
    if whole:
        description = reachable(one.description, thing, membership.addresses(one.key.tenant))
    return FoundThing(
        name=one.key.name,
        subset=one.key.subset,
        tenant=one.key.tenant,
        id=one.id,
        title=thing.title,
        kind=thing.kind,
        version=thing.version,
        summary=thing.description,
        capabilities=thing.capabilities,
        channels=thing.supported_channels,
        external=thing.external,
        origin=thing.origin,
        live=bool(instances),
        instances=instances,
        revision=one.revision,
        registration=one.registration,
        score=None if score is None else round(score, 4),
        description=description,
        as_of=as_of,
    )


# -- conditions --


def _check(wanted: FindThings) -> None:
    faults: list[Fault] = []

    def refuse(field: str, said: str) -> None:
        faults.append({"field": field, "description": said})

    if wanted.version is not None:
        if wanted.capability is None:
            refuse("/version", "a range is of a capability; give `capability` too")
        try:
            Range.parse(wanted.version)
        except BadVersion as exc:
            refuse("/version", str(exc))
    if wanted.jsonpath is not None and (said := jsonpaths.checked_filter(wanted.jsonpath)):
        refuse("/jsonpath", said)
    if wanted.sort == "score" and wanted.text is None:
        refuse("/sort", "a score is of a text; give `text` too")
    for path in wanted.metadata:
        if not all(path.split(".")):
            at = path.replace("~", "~0").replace("/", "~1")
            refuse(f"/metadata/{at}", "has an empty name; write it like vendor.name")
    if faults:
        said = "; ".join(f"{fault['field']}: {fault['description']}" for fault in faults)
        raise InvalidMessage(said, field=faults[0]["field"], faults=faults)


def _remaining(membership: Membership, wanted: FindThings) -> list[Callable[[Entered], bool]]:
    """The conditions that nothing is listed by, the cheapest first."""
    conditions: list[Callable[[Entered], bool]] = []
    if wanted.subset is not None:
        conditions.append(lambda one: one.key.subset == wanted.subset)
    if wanted.live is not None:
        conditions.append(lambda one: membership.live(one.key) is wanted.live)
    if wanted.origin is not None:
        conditions.append(lambda one: one.thing.origin == wanted.origin)
    if (channel := wanted.channel) is not None:
        conditions.append(lambda one: one.thing.serves(channel))
    if (capability := wanted.capability) is not None and wanted.version is not None:
        conditions.append(lambda one: bool(one.thing.matching(capability, wanted.version)))
    for path, value in wanted.metadata.items():
        conditions.append(lambda one, path=path, value=value: _has(one.thing.metadata, path, value))
    return conditions


def _has(metadata: Mapping[str, Any], path: str, value: object) -> bool:
    """Whether a member has a value; a dot goes into an object, unless it is part of a name."""
    for name, held in metadata.items():
        if name == path:
            if _same(held, value):
                return True
        elif path.startswith(f"{name}.") and isinstance(held, Mapping):
            inside = cast("Mapping[str, Any]", held)
            if _has(inside, path[len(name) + 1 :], value):
                return True
    return False


def _same(held: object, wanted: object) -> bool:
    """Equal as JSON: Python takes `true` for 1."""
    if isinstance(held, bool) or isinstance(wanted, bool):
        return held is wanted
    if isinstance(held, list | tuple) and isinstance(wanted, list | tuple):
        ours, theirs = cast("list[object]", held), cast("list[object]", wanted)
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        mine, other = cast("Mapping[str, object]", held), cast("Mapping[str, object]", wanted)
        return mine.keys() == other.keys() and all(_same(mine[one], other[one]) for one in mine)
    return held == wanted


# -- texts --


def _by_words(
    membership: Membership, tenant: str, text: str, among: list[Entered], *, narrowed: bool
) -> list[_Ranked]:
    keys = [one.key for one in among] if narrowed else None
    shared = membership.words(tenant, text, keys)
    called = membership.called(tenant, text)
    return [
        _Ranked(one, 1.0 if one.key in called else score)
        for one in among
        if (score := shared.get(one.key)) is not None
    ]


def _by_meaning(
    membership: Membership,
    tenant: str,
    text: str,
    among: list[Entered],
    scores: Mapping[ThingKey, float],
) -> tuple[list[_Ranked], int]:
    """What is near, and how many were compared by words because nothing better is known yet."""
    waiting = scores.pending if isinstance(scores, Scores) else frozenset[ThingKey]()
    pending = [one.key for one in among if one.key in waiting] if waiting else []
    shared = membership.words(tenant, text, pending) if pending else {}
    called = membership.called(tenant, text)
    ranked: list[_Ranked] = []
    for one in among:
        score = scores.get(one.key)
        if one.key in called:
            score = 1.0
        elif (share := shared.get(one.key)) is not None:
            score = max(score or 0.0, share * _WORDS_AS_MEANING)
        if score is not None:
            ranked.append(_Ranked(one, min(1.0, max(0.0, score))))
    return ranked, len(pending)


# -- order --


def _page(
    ranked: list[_Ranked], membership: Membership, wanted: FindThings
) -> list[tuple[Entered, float | None]]:
    sort = wanted.sort or ("name" if wanted.text is None else "score")
    ranked.sort(key=lambda one: one.entered.key)
    if sort == "score":
        # Best first either way: nobody wants to see the worst.
        ranked.sort(key=lambda one: -(one.score or 0.0))
    elif sort == "name":
        if wanted.descending:
            ranked.reverse()
    else:
        by = _BY[sort]
        ranked.sort(key=lambda one: by(one.entered, membership), reverse=wanted.descending)
    return [(one.entered, one.score) for one in ranked[wanted.offset :][: wanted.limit]]


def _version(one: Entered, _: Membership) -> Any:
    try:
        return (1, Version.parse(one.thing.version))
    except BadVersion:
        return (0, Version(major=0))


def _load(one: Entered, membership: Membership) -> float:
    """The share of its instances' places that are taken; what has no instance comes last."""
    instances = membership.instances(one.key)
    if not instances:
        return float("inf")
    taken = sum(instance.in_flight for instance in instances)
    return taken / max(1, sum(instance.concurrency for instance in instances))


def _moment(told: str | None) -> float:
    try:
        return datetime.fromisoformat(told).timestamp() if told else 0.0
    except ValueError:
        return 0.0


def _created(one: Entered, _: Membership) -> float:
    return _moment(one.registration.created) if one.registration else one.created


def _modified(one: Entered, _: Membership) -> float:
    return _moment(one.registration.modified) if one.registration else one.created


_BY: Mapping[str, Callable[[Entered, Membership], Any]] = {
    "id": lambda one, _: one.id,
    "version": _version,
    "created": _created,
    "modified": _modified,
    "load": _load,
}
