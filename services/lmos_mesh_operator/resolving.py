"""Which agents provide what a channel requires, or what is missing and who nearly does. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from lmos_mesh.indices import folded
from lmos_mesh.resources import (
    CapabilityGroup,
    Channel,
    NearMiss,
    RequiredCapability,
    Unresolved,
    WiredCapability,
)
from lmos_mesh.semver import BadVersion, Range, Version

MostSimilar = Literal["nearest", "lowest"]
"""What `MOST_SIMILAR` takes: the version nearest to the range's own, or, as LMOS, the lowest."""

NEAR = 5
"""How many agents that nearly match are named for each capability that is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A capability of a candidate.

    Attributes:
        said: Its version as it was written; no range admits what is no version.
    """

    id: str
    name: str
    said: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An agent that a channel could be given.

    Attributes:
        tenants: Whom it serves; None for anybody.
        channels: The ways in that it serves; None for any.
        live: Whether an instance serves it.
        declared: Whether somebody vouches for it, so that it counts without an instance.
        own: Whether it is of the channel's own tenant.
    """

    name: str
    subset: str
    host: str
    id: str = ""
    description: str = ""
    offers: tuple[Offer, ...] = ()
    tenants: frozenset[str] | None = None
    channels: frozenset[str] | None = None
    live: bool = True
    declared: bool = False
    own: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a channel comes to.

    Attributes:
        groups: Who provides what, whole: empty if anything required is missing.
        missing: What is required and nobody provides.
        missing_optional: What would be taken and nobody provides.
        fallback: Who answers what nobody else can.
        fallback_fault: Why that agent cannot be asked now; empty if it can, or none is wanted.
    """

    groups: tuple[CapabilityGroup, ...] = ()
    missing: tuple[Unresolved, ...] = ()
    missing_optional: tuple[Unresolved, ...] = ()
    fallback: str | None = None
    fallback_fault: str = ""

    @property
    def resolved(self) -> bool:
        """Whether everything that is required is provided."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class _Place:
    tenant: str
    channel: str
    subset: str

    def admits(self, one: Candidate) -> bool:
        return (
            one.subset == self.subset
            and (one.tenants is None or self.tenant in one.tenants)
            and (one.channels is None or self.channel in one.channels)
            and (one.live or one.declared)
        )

    def faults(self, one: Candidate) -> list[str]:
        """Why a candidate may not answer here."""
        said: list[str] = []
        if one.tenants is not None and self.tenant not in one.tenants:
            said.append(f"it does not support tenant {self.tenant!r}")
        if one.channels is not None and self.channel not in one.channels:
            said.append(f"it does not serve channel {self.channel!r}")
        if one.subset != self.subset:
            said.append(f"it is in subset {one.subset!r}, not {self.subset!r}")
        if not (one.live or one.declared):
            said.append("no instance of it is live")
        return said


@dataclass(slots=True)
class _Group:
    candidate: Candidate
    wired: list[WiredCapability] = field(default_factory=list[WiredCapability])


def resolve(
    channel: Channel, candidates: Iterable[Candidate], *, most_similar: MostSimilar = "nearest"
) -> Resolution:
    """Find one provider for everything that a channel requires.

    All or nothing: unless everything required is provided, nobody is named. The order of the
    candidates does not matter, nor do those that offer nothing that is required.
    """
    place = _Place(channel.tenant, channel.channel, channel.subset)
    known = tuple(candidates)
    groups: dict[tuple[str, str, str], _Group] = {}
    missing: list[Unresolved] = []
    optional: list[Unresolved] = []
    for wanted in channel.spec.required_capabilities:
        found = _provider(wanted, place, known, most_similar)
        if found is None:
            (optional if wanted.optional else missing).append(_unresolved(wanted, place, known))
            continue
        candidate, offer = found
        group = groups.setdefault(
            (candidate.name, candidate.host, candidate.subset), _Group(candidate)
        )
        wire = _wire(wanted, candidate, offer)
        if wire not in group.wired:
            group.wired.append(wire)
    fallback, fault = _fallback(channel.spec.fallback_agent, place, known)
    return Resolution(
        groups=() if missing else tuple(_shown(groups[key]) for key in sorted(groups)),
        missing=tuple(missing),
        missing_optional=tuple(optional),
        fallback=fallback,
        fallback_fault=fault,
    )


def term(word: str) -> str:
    """What capabilities are listed under; those that are only called alike share one."""
    return folded(word) or word


def words_of(wanted: RequiredCapability) -> frozenset[str]:
    """What a capability may be called to be the required one: its id or its name."""
    return frozenset(word for word in (wanted.id, wanted.name) if word)


def _provider(
    wanted: RequiredCapability,
    place: _Place,
    candidates: Sequence[Candidate],
    most_similar: MostSimilar,
) -> tuple[Candidate, Offer] | None:
    words = words_of(wanted)
    try:
        admitted = Range.parse(wanted.version)
    except BadVersion:
        return None
    fitting = [
        (one, offer)
        for one in candidates
        if place.admits(one)
        for offer in one.offers
        if (offer.id in words or offer.name in words) and _admits(wanted.version, offer.said)
    ]
    if not fitting:
        return None
    # Of many candidates few differ in their version.
    known = {offer.said for _, offer in fitting}
    versions = [Version.parse(said) for said in known]
    if wanted.strategy == "HIGHEST":
        best = max(versions, key=_precedence)
    elif most_similar == "lowest":
        best = min(versions, key=_precedence)
    else:
        best = _nearest(versions, admitted)
    best_said = {one for one in known if Version.parse(one).precedence == best.precedence}
    # Whoever is there first: one that nobody has seen alive is worse than any that is.
    return min(
        ((one, offer) for one, offer in fitting if offer.said in best_said),
        key=lambda pair: (
            not pair[0].live,
            pair[0].name,
            not pair[0].own,
            pair[0].host,
            pair[1].id,
            pair[1].name,
            pair[1].said,
        ),
    )


def _precedence(version: Version) -> tuple[Any, ...]:
    return version.precedence


@lru_cache(maxsize=1 << 16)
def _admits(wanted: str, said: str) -> bool:
    try:
        return Range.parse(wanted).admits(Version.parse(said))
    except BadVersion:
        return False


def _nearest(versions: Iterable[Version], admitted: Range) -> Version:
    """The version nearest to one that the range names; of two as near the higher one."""
    named = anchors(admitted)
    known = sorted(set(versions))
    if not named:
        return known[-1]
    # On either side of a named version only the next one can be the nearest.
    near: list[tuple[tuple[int, int, int, bool], Version]] = []
    for one in named:
        below = [version for version in known if version <= one]
        above = [version for version in known if version >= one]
        near += [(_distance(version, one), version) for version in (*above[:1], *below[-1:])]
    least = min(distance for distance, _ in near)
    return max(version for distance, version in near if distance == least)


def anchors(admitted: Range) -> tuple[Version, ...]:
    """The versions that a range names: of each alternative its lower bound, else its upper one.

    `^1.2` names 1.2.0, `[1.0,2.0[` 1.0.0, `<3` 3.0.0; `*` names none.
    """
    found: list[Version] = []
    for bounds in admitted.alternatives:
        lower = [bound.version for bound in bounds if bound.operator in (">=", ">", "=")]
        upper = [bound.version for bound in bounds if bound.operator in ("<=", "<")]
        if lower:
            found.append(max(lower))
        elif upper:
            found.append(min(upper))
    return tuple(found)


def _distance(version: Version, named: Version) -> tuple[int, int, int, bool]:
    apart = (abs(a - b) for a, b in zip(version.release, named.release, strict=True))
    major, minor, patch = apart
    return major, minor, patch, version.prerelease != named.prerelease


@lru_cache(maxsize=1 << 16)
def _apart(wanted: str, said: str) -> tuple[int, ...]:
    """How far a version is from those that a range names, to say who is nearest."""
    try:
        admitted, version = Range.parse(wanted), Version.parse(said)
    except BadVersion:
        return ()
    if admitted.admits(version):
        return ()
    return min((_distance(version, named) for named in anchors(admitted)), default=())


def _wire(wanted: RequiredCapability, one: Candidate, offer: Offer) -> WiredCapability:
    return WiredCapability(
        id=offer.id,
        name=offer.name,
        required_version=wanted.version,
        provided_version=offer.said,
        host=one.host,
        description=offer.description,
    )


def _shown(group: _Group) -> CapabilityGroup:
    one = group.candidate
    return CapabilityGroup(
        id=one.id or one.name,
        name=one.name,
        description=one.description,
        subset=one.subset,
        capabilities=tuple(group.wired),
    )


def _unresolved(
    wanted: RequiredCapability, place: _Place, candidates: Iterable[Candidate]
) -> Unresolved:
    words = words_of(wanted)
    alike = {term(word) for word in words}
    near: list[tuple[tuple[Any, ...], NearMiss]] = []
    for one in candidates:
        offers = [o for o in one.offers if term(o.id) in alike or term(o.name) in alike]
        told = [(_faults(wanted, words, place, one, offer), offer) for offer in offers]
        if not told:
            continue
        faults, offer = min(told, key=lambda pair: (len(pair[0]), pair[1].said, pair[1].name))
        near.append(
            (
                (len(faults), _apart(wanted.version, offer.said)),
                NearMiss(
                    agent=one.name,
                    subset=one.subset,
                    capability=offer.name or offer.id,
                    version=offer.said,
                    reason="; ".join(faults),
                ),
            )
        )
    near.sort(key=lambda pair: (pair[0], pair[1].agent, pair[1].subset, pair[1].reason))
    return Unresolved(
        id=wanted.id,
        name=wanted.name,
        version=wanted.version,
        strategy=wanted.strategy,
        near=tuple(miss for _, miss in near[:NEAR]),
    )


def _faults(
    wanted: RequiredCapability,
    words: frozenset[str],
    place: _Place,
    one: Candidate,
    offer: Offer,
) -> list[str]:
    """Why this capability of this candidate is not the required one."""
    said: list[str] = []
    if offer.id not in words and offer.name not in words:
        said.append(f"it is called {offer.name or offer.id!r} there")
    try:
        Range.parse(wanted.version)
    except BadVersion as exc:
        said.append(str(exc))
    else:
        if not _admits(wanted.version, offer.said):
            said.append(f"it offers version {offer.said}, not {wanted.version}")
    return said + place.faults(one)


def _fallback(
    name: str | None, place: _Place, candidates: Sequence[Candidate]
) -> tuple[str | None, str]:
    """Who answers what nobody else can; not one that may not answer here at all."""
    if name is None:
        return None, ""
    called = [one for one in candidates if one.name == name]
    if any(place.admits(one) for one in called):
        return name, ""
    here = [one for one in called if one.subset == place.subset]
    if not here:
        return name, f"fallback agent {name!r} is not there in subset {place.subset!r}"
    faults = place.faults(min(here, key=lambda one: len(place.faults(one))))
    barred = all(
        (one.tenants is not None and place.tenant not in one.tenants)
        or (one.channels is not None and place.channel not in one.channels)
        for one in here
    )
    return (None if barred else name), f"fallback agent {name!r} cannot answer: {faults[0]}"
