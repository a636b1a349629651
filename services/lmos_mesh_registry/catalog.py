"""Which Things fit a question, and in which order. Pure."""

import functools
import heapq
import operator
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from lmos_mesh.description import reachable
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.json_faults import Fault
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import FindThings, FoundThing
from lmos_mesh.semver import BadVersion, Range, Version
from lmos_mesh.things import ThingKey
from lmos_mesh_registry import jsonpaths

NEAREST = 256
"""How many Things can be near a text. A score is no yes or no, and nobody reads more."""

# What shares every word with the text is about as near to it as the nearest in meaning are.
_WORDS_AS_MEANING = 0.7


class Scores:
    """How near in meaning Things are to a text; those that are not named are far from it.

    Args:
        near: The Things that are near.
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
        self._near = near
        self.pending = frozenset(pending)
        self.total = total

    def nearest(
        self, count: int | None = None, among: Collection[ThingKey] | None = None
    ) -> dict[ThingKey, float]:
        """The nearest Things and how near they are, the nearest first.

        Args:
            count: How many at most; None for all that are near.
            among: None but these.
        """
        near = (
            self._near
            if among is None
            else {key: self._near[key] for key in among if key in self._near}
        )
        ordered = sorted(near.items(), key=lambda one: (-one[1], one[0]))
        return dict(ordered[:count])


class _ByWords(Scores):
    """How many words Things share with a text, looked up as far as somebody asks for it."""

    def __init__(self, membership: Membership, tenant: str, text: str) -> None:
        super().__init__({})
        self._membership = membership
        self._tenant = tenant
        self._text = text

    def nearest(
        self, count: int | None = None, among: Collection[ThingKey] | None = None
    ) -> dict[ThingKey, float]:
        most = count if among is None else None
        shares = self._membership.words(self._tenant, self._text, most)
        return Scores(shares).nearest(count, among)


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


def candidates(
    membership: Membership,
    tenant: str,
    wanted: FindThings,
    *,
    among: Collection[ThingKey] | None = None,
) -> list[Entered]:
    """The entries for which every condition holds, text and JSONPath apart, in no order.

    Args:
        membership: What there is.
        tenant: Whose Things.
        wanted: The conditions.
        among: None but these.

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
        among=among,
    )
    for fits in _remaining(membership, wanted):
        found = [one for one in found if fits(one)]
    return found


def find(
    membership: Membership,
    tenant: str,
    wanted: FindThings,
    *,
    scores: Scores | None = None,
    fitting: Collection[Entered] | None = None,
) -> Found:
    """The entries for which every condition holds, the best first.

    A JSONPath over many entries takes a while. Whoever must not wait looks at it before:
    `await asyncio.to_thread(jsonpaths.fitting, candidates(membership, tenant, wanted), path)`.

    Args:
        membership: What there is.
        tenant: Whose Things.
        wanted: The conditions.
        scores: How near Things are to the text in meaning; None to compare words. Either way
            no more than the `NEAREST` fit.
        fitting: What fits the JSONPath, where that is known already.

    Raises:
        InvalidMessage: A condition cannot be read; every such one is named.
    """
    among = None if fitting is None else {one.key for one in fitting}
    if fitting is None and wanted.jsonpath is not None:
        among = {one.key for one in _fitting(membership, tenant, wanted)}
    if wanted.text is None:
        found = candidates(membership, tenant, wanted, among=among)
        return Found(_page(found, membership, wanted), len(found))
    if scores is None:
        by_words = _ByWords(membership, tenant, wanted.text)
        found, shares = _nearest(membership, tenant, wanted, by_words, among)
        return Found(_page(found, membership, wanted, shares), len(found), "words")
    found, shares = _nearest(membership, tenant, wanted, scores, among)
    notes: tuple[str, ...] = ()
    if scores.pending:
        notes = (
            f"{len(scores.pending)} of {scores.total} not embedded yet; "
            "those were compared by words",
        )
    return Found(_page(found, membership, wanted, shares), len(found), "meaning", notes)


def _fitting(membership: Membership, tenant: str, wanted: FindThings) -> list[Entered]:
    return jsonpaths.fitting(candidates(membership, tenant, wanted), str(wanted.jsonpath))


def _common(some: Collection[ThingKey], others: Collection[ThingKey] | None) -> set[ThingKey]:
    return set(some) if others is None else set(some).intersection(others)


def search(membership: Membership, tenant: str, query: str, limit: int) -> tuple[list[Any], int]:
    """What a JSONPath selects in the array of a tenant's Descriptions, in order of their ids.

    It may take seconds, and be called in another thread than that of the membership: it begins
    with a copy that nothing changes.

    Returns:
        The values, `limit` of them at most, and how many there are in all.

    Raises:
        InvalidMessage: It is no JSONPath, or takes too long.
    """
    things = sorted(membership.for_tenant(tenant), key=lambda one: one.id)
    return jsonpaths.search(things, query, limit)


def rounded(score: float | None) -> float | None:
    """A score as it is told."""
    return None if score is None else round(score, 4)


def shown(
    one: Entered,
    membership: Membership,
    *,
    whole: bool,
    tenant: str | None = None,
    score: float | None = None,
    as_of: float = 0.0,
) -> FoundThing:
    """An entry as it is told to whoever asked.

    Args:
        one: The entry.
        membership: Which instances it has, and through which adapters it is reached.
        whole: Whether with its Description.
        tenant: Who asks, and through whose adapters it is reached; its own tenant by default.
        score: How well it fits the text that was looked for.
        as_of: Until when this is known to be true.
    """
    description = None
    if whole:
        addresses = membership.addresses(tenant or one.key.tenant)
        description = reachable(one.description, one.thing, addresses)
    return FoundThing(
        **steady(one),
        live=membership.liveness(one),
        instances=membership.instances(one.key),
        score=rounded(score),
        description=description,
        as_of=as_of,
    )


def steady(one: Entered) -> dict[str, Any]:
    """The members of a `FoundThing` that stay as long as the entry does."""
    thing = one.thing
    return {
        "name": one.key.name,
        "subset": one.key.subset,
        "tenant": one.key.tenant,
        "id": one.id,
        "title": thing.title,
        "kind": thing.kind,
        "version": thing.version,
        "summary": thing.description,
        "capabilities": thing.capabilities,
        "channels": thing.supported_channels,
        "external": thing.external,
        "origin": thing.origin,
        "revision": one.revision,
        "registration": one.registration,
    }


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
        # What nobody can know of has no instance either.
        conditions.append(lambda one: (membership.liveness(one) is True) is wanted.live)
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


def _nearest(
    membership: Membership,
    tenant: str,
    wanted: FindThings,
    scores: Scores,
    among: Collection[ThingKey] | None,
) -> tuple[list[Entered], dict[ThingKey, float]]:
    """The nearest for which every condition holds, and how near they are."""
    text = str(wanted.text)
    also = dict.fromkeys(membership.called(tenant, text), 1.0)
    if scores.pending:
        shared = membership.words(tenant, text)
        for key in shared.keys() & scores.pending:
            also.setdefault(key, shared[key] * _WORDS_AS_MEANING)
    # Most Things are live; to look at those only that are near costs a tenth of looking at all.
    more = NEAREST * 3 // 2
    near = scores.nearest(more, among) if not _selective(wanted) else {}
    found = candidates(membership, tenant, wanted, among=_common({**near, **also}, among))
    if _selective(wanted) or (len(near) == more and len(found) < NEAREST):
        found = candidates(membership, tenant, wanted, among=among)
        near = scores.nearest(None, {one.key for one in found})
    shares = dict(near)
    for key, score in also.items():
        shares[key] = max(score, near.get(key, 0.0))
    found = [one for one in found if one.key in shares]
    if len(found) > NEAREST:
        found = heapq.nsmallest(NEAREST, found, key=functools.partial(_by_score, shares))
    return found, shares


def _selective(wanted: FindThings) -> bool:
    """Whether few Things may be left by the conditions, apart from being live."""
    told = wanted.name, wanted.id, wanted.capability, wanted.channel, wanted.subset, wanted.origin
    if any(one is not None for one in told) or wanted.tags or wanted.metadata:
        return True
    return wanted.live is False or wanted.kind not in (None, "agent")


# -- order --


def _page(
    found: list[Entered],
    membership: Membership,
    wanted: FindThings,
    shares: Mapping[ThingKey, float] | None = None,
) -> list[tuple[Entered, float | None]]:
    """The part of them that was asked for, best first, with their scores."""
    shares = shares or {}
    descending = wanted.descending
    sort = wanted.sort or ("name" if wanted.text is None else "score")
    by: Callable[[Entered], Any] = operator.attrgetter("key")
    if sort == "score":
        # Best first either way: nobody wants to see the worst.
        descending = False
        by = functools.partial(_by_score, shares)
    elif sort != "name":
        by = functools.partial(_by_value, _value_of(sort, found, membership))
    end = wanted.offset + wanted.limit
    if end * 4 > len(found):
        first = sorted(found, key=by, reverse=descending)[:end]
    else:
        first = (heapq.nlargest if descending else heapq.nsmallest)(end, found, key=by)
    return [(one, shares.get(one.key)) for one in first[wanted.offset :]]


def _by_score(shares: Mapping[ThingKey, float], one: Entered) -> tuple[float, ThingKey]:
    return -shares[one.key], one.key


def _by_value(value: Callable[[Entered], Any], one: Entered) -> tuple[Any, ThingKey]:
    return value(one), one.key


def _value_of(sort: str, found: list[Entered], membership: Membership) -> Callable[[Entered], Any]:
    """What to sort by."""
    if sort == "load":
        return lambda one: membership.load(one.key)
    if sort == "version":
        # There are far fewer versions than Things.
        places = _places({one.thing.version for one in found})
        return lambda one: places[one.thing.version]
    if sort == "id":
        return lambda one: one.id
    return lambda one: _moment(one, sort)


def _places(versions: set[str]) -> dict[str, int]:
    """The place of each version; equal ones share it, and what is no version comes first."""
    read: dict[str, Version] = {}
    for text in versions:
        with suppress(BadVersion):
            read[text] = Version.parse(text)
    places = {version: place for place, version in enumerate(sorted(set(read.values())), 1)}
    return {text: places[read[text]] if text in read else 0 for text in versions}


def _moment(one: Entered, which: str) -> float:
    """When it was `created` or `modified`."""
    if one.registration is None:
        return one.created
    try:
        return datetime.fromisoformat(getattr(one.registration, which)).timestamp()
    except ValueError:
        return one.created
