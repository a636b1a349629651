"""What was seen on the local network: what to visit when, and what stays listed. Pure.

A *source* is a service that is announced. It gives Descriptions, each with an id; several sources
may give the same one. The caller brings the time and does the talking.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from lmos_mesh_mdns.records import Kind

# After so many failures in a row, what a source gave counts as gone.
FAILURES = 3
_RETRY_S = 2.0
# How many wait for each that is looked at.
_WAITING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A found Thing that is in the registry by us.

    Attributes:
        revision: Of its entry; if another one stands there, the entry is not ours any more.
    """

    id: str
    name: str
    subset: str
    revision: int


@dataclass(slots=True)
class _Source:
    due: float | None
    types: set[str] = field(default_factory=set[str])
    kind: Kind = "Directory"
    gives: set[str] = field(default_factory=set[str])
    failures: int = 0
    # Visited now; a change meanwhile makes it due again.
    busy: bool = False
    again: bool = False
    said: str = ""


class Sightings:
    """Every `lose`, `release` and `fail` says which listed Things are to be removed by it."""

    def __init__(self, *, sources_max: int, things_max: int, refresh_s: float) -> None:
        self._sources: dict[str, _Source] = {}
        # Those that there is no room for, by the types that they were announced with.
        self._waiting = OrderedDict[str, set[str]]()
        self._owners: dict[str, str] = {}
        self._listed: dict[str, Listed] = {}
        self.sources_max = sources_max
        self._things_max = things_max
        self._refresh_s = refresh_s

    def __contains__(self, source: str) -> bool:
        return source in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def full(self) -> bool:
        """Whether no more Things are taken."""
        return len(self._owners) >= self._things_max

    @property
    def listed(self) -> tuple[Listed, ...]:
        """Everything that is in the registry by us."""
        return tuple(self._listed.values())

    # -- what is announced --

    def see(self, source: str, service_type: str, now: float) -> bool:
        """A source was announced or has changed; False if it has to wait until there is room."""
        known = self._sources.get(source)
        if known is None:
            if len(self._sources) >= self.sources_max:
                self._waiting.setdefault(source, set()).add(service_type)
                if len(self._waiting) > self.sources_max * _WAITING:
                    self._waiting.popitem(last=False)
                return False
            known = self._sources[source] = _Source(due=now)
        known.types.add(service_type)
        if known.busy:
            known.again = True
        else:
            known.due = now
        return True

    def lose(self, source: str, service_type: str) -> list[Listed]:
        """A source has said goodbye, or its records have expired."""
        known = self._sources.get(source)
        types = self._waiting.get(source, set()) if known is None else known.types
        types.discard(service_type)
        if types:
            return []
        self._waiting.pop(source, None)
        if known is None:
            return []
        gone = self.release(source, known.gives)
        del self._sources[source]
        self._admit()
        return gone

    def _admit(self) -> None:
        """There is room for one more: for the latest, so that a flood keeps nobody waiting."""
        if self._waiting and len(self._sources) < self.sources_max:
            source, types = self._waiting.popitem()
            self._sources[source] = _Source(due=0.0, types=types)

    # -- visits --

    def next(self, now: float) -> str | None:
        """The source to visit now, if there is one; then `succeed` or `fail` is to be called."""
        due = [
            (one.due, name)
            for name, one in self._sources.items()
            if not one.busy and one.due is not None and one.due <= now
        ]
        if not due:
            return None
        _, source = min(due)
        self._sources[source].busy = True
        return source

    def wait_s(self, now: float) -> float | None:
        """How long until a source is to be visited; None if there is none."""
        due = [one.due for one in self._sources.values() if not one.busy and one.due is not None]
        return max(0.0, min(due) - now) if due else None

    def succeed(self, source: str, given: set[str], now: float) -> list[Listed]:
        """A source was read, and gives exactly these."""
        known = self._sources.get(source)
        if known is None:
            return []
        gone = self.release(source, known.gives - given)
        known.failures = 0
        self._rest(known, now + self._refresh_s, now)
        return gone

    def fail(self, source: str, now: float) -> list[Listed]:
        """A source could not be read; what it gave goes after a few times."""
        known = self._sources.get(source)
        if known is None:
            return []
        known.failures += 1
        gone = self.release(source, set(known.gives)) if known.failures >= FAILURES else []
        if known.failures >= FAILURES and self._waiting:
            # Somebody else's turn; its own comes again when they fail too.
            del self._sources[source]
            self._admit()
            self._waiting[source] = known.types
            self._waiting.move_to_end(source, last=False)
            return gone
        self._rest(
            known, now + min(self._refresh_s, _RETRY_S * 2 ** min(known.failures - 1, 16)), now
        )
        return gone

    def postpone(self, source: str, now: float) -> None:
        """Nothing can be said of a source now, through no fault of its own."""
        if (known := self._sources.get(source)) is not None:
            self._rest(known, now + _RETRY_S, now)

    def news(self, source: str, said: str) -> bool:
        """Whether this was not the last that was said of a source, so that it is worth a line."""
        known = self._sources.get(source)
        if known is None or known.said == said:
            return False
        known.said = said
        return bool(said)

    @staticmethod
    def _rest(known: _Source, until: float, now: float) -> None:
        # A source that changes all the time is visited once a second.
        known.due = now + 1.0 if known.again else until
        known.busy = known.again = False

    # -- what they give --

    def claim(self, source: str, kind: Kind, thing_id: str) -> bool:
        """Whether a source's Description of an id is the one that stands.

        The first source that gives it stands; but what a Thing announces of itself goes before
        what a directory says of it.
        """
        known = self._sources.get(source)
        if known is None:
            return False
        known.kind = kind
        owner = self._owners.get(thing_id)
        if owner is None and self.full:
            return False
        known.gives.add(thing_id)
        if owner is None or (kind == "Thing" and self._sources[owner].kind == "Directory"):
            self._owners[thing_id] = source
        return self._owners[thing_id] == source

    def held(self, thing_id: str) -> Listed | None:
        """How an id is in the registry by us."""
        return self._listed.get(thing_id)

    def hold(self, listed: Listed) -> bool:
        """It is in the registry now; False if its source has gone meanwhile, so that it must go."""
        if self._owners.get(listed.id) is None:
            return False
        self._listed[listed.id] = listed
        return True

    def forget(self, thing_id: str) -> None:
        """It is not in the registry by us."""
        self._listed.pop(thing_id, None)

    def release(self, source: str, ids: set[str]) -> list[Listed]:
        """A source gives these no more."""
        known = self._sources[source]
        gone: list[Listed] = []
        for one in sorted(ids):
            known.gives.discard(one)
            if self._owners.get(one) != source:
                continue
            heir = next((name for name, other in self._sources.items() if one in other.gives), None)
            if heir is not None:
                self._owners[one] = heir
                if not self._sources[heir].busy:
                    self._sources[heir].due = 0.0
                continue
            del self._owners[one]
            if (listed := self._listed.pop(one, None)) is not None:
                gone.append(listed)
        return gone
