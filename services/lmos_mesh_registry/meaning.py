"""How near Things are to a text in meaning, by vectors that a router computes.

Each capability has one vector, of its name, description and examples together. They are got in the
background and kept; until a Thing's are there it can be compared by words only, and likewise
everything while no router answers, or none that knows meanings.
"""

import asyncio
import importlib.util
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lmos_mesh.bus import Bus
from lmos_mesh.errors import DeadlineExceeded, MeshError
from lmos_mesh.membership import Membership
from lmos_mesh.messages import EMBED, Embed, Embedded
from lmos_mesh.things import SHARED, Capability, Thing, ThingKey
from lmos_mesh_registry.catalog import Scores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

BATCH = 16
"""As many as a router embeds at a time: a question to it waits for no more than that."""

NEAR = 0.2
"""The least cosine that counts as near: what users say is nearer to one in a hundred of the
capabilities that they do not mean, and to two in three of those that they do mean."""

EXAMPLES = 8
CHARACTERS = 2_000
_REMEMBERED = 4096
_ROOM = 256
_QUERY_S = 0.5
_EMBED_S = 30.0
_RETRY_S = 2.0
_QUIET_S = 2.0
_WORDS_ONLY_S = 30.0

_NO_NUMPY = "meanings are not compared: numpy is missing; pip install 'lmos-mesh[registry]'"
_NO_ROUTER = "no router could be asked for meanings"
_NO_MEANINGS = "the router knows words only, not meanings"
_NOTHING_YET = "nothing is embedded yet"


def texts_of(thing: Thing) -> tuple[str, ...]:
    """What stands for the meaning of a Thing: a text for each capability, or one for all of it."""
    texts = [_text_of(one) for one in thing.capabilities]
    if not any(texts):
        texts = [_joined((thing.title or thing.name, thing.description))]
    return tuple(dict.fromkeys(text for text in texts if text))


def _text_of(capability: Capability) -> str:
    said = (capability.name, capability.description, *capability.examples[:EXAMPLES])
    return _joined(said)


def _joined(parts: Iterable[str]) -> str:
    """Parts as sentences, each once."""
    said = dict.fromkeys(" ".join(part.replace("_", " ").split()) for part in parts)
    return " ".join(one if one[-1] in ".!?" else f"{one}." for one in said if one)[:CHARACTERS]


class Matrix:
    """Vectors by name, as rows of one matrix: added and removed without moving the others."""

    def __init__(self) -> None:
        self._rows: Vectors | None = None
        self._names: list[str] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add(self, name: str, vector: "Vectors") -> None:
        """Add a vector under a name that is not there."""
        import numpy as np

        place = len(self._names)
        if self._rows is None:
            self._rows = np.empty((_ROOM, len(vector)), np.float32)
        elif place == len(self._rows):
            grown = np.empty((place + max(_ROOM, place // 2), len(vector)), np.float32)
            grown[:place] = self._rows
            self._rows = grown
        self._rows[place] = vector
        self._names.append(name)
        self._places[name] = place

    def remove(self, name: str) -> "Vectors | None":
        """Remove a vector and give it back; the last one takes its place."""
        place = self._places.pop(name, None)
        if place is None or self._rows is None:
            return None
        removed = self._rows[place].copy()
        last = self._names.pop()
        if last != name:
            self._rows[place] = self._rows[len(self._names)]
            self._names[place] = last
            self._places[last] = place
        return removed

    def cosines(self, vector: "Vectors") -> tuple[Sequence[str], "Vectors"]:
        """The names of all vectors, and the cosine of each."""
        import numpy as np

        if self._rows is None:
            return [], np.empty(0, np.float32)
        return self._names, self._rows[: len(self._names)] @ vector

    def some(self, names: Iterable[str], vector: "Vectors") -> dict[str, float]:
        """The cosines of some vectors, of those that are there."""
        chosen = [name for name in names if name in self._places]
        if self._rows is None or not chosen:
            return {}
        if len(chosen) * 4 > len(self._names):
            every = self._rows[: len(self._names)] @ vector
            cosines = every[[self._places[name] for name in chosen]]
        else:
            cosines = self._rows[[self._places[name] for name in chosen]] @ vector
        return dict(zip(chosen, cosines.tolist(), strict=True))


class Compared(Scores):
    """What is near, looked up as far as somebody asks for it.

    Args:
        vector: Of the text.
        known: What it is compared with.
    """

    def __init__(self, vector: "Vectors", known: "_Tenant") -> None:
        super().__init__({}, pending=known.lacking.keys(), total=len(known.texts))
        self._vector = vector
        self._known = known

    def nearest(
        self, count: int | None = None, among: Collection[ThingKey] | None = None
    ) -> dict[ThingKey, float]:
        """See `Scores.nearest`."""
        if among is not None:
            return self._nearest_of(among, count)
        return self._nearest(count)

    def _nearest_of(self, among: Collection[ThingKey], count: int | None) -> dict[ThingKey, float]:
        texts = {key: self._known.texts.get(key, ()) for key in among}
        distinct = {text for several in texts.values() for text in several}
        cosines = self._known.matrix.some(distinct, self._vector)
        near: dict[ThingKey, float] = {}
        for key, several in texts.items():
            best = max((cosines.get(text, 0.0) for text in several), default=0.0)
            if best >= NEAR:
                near[key] = min(1.0, best)
        return Scores(near).nearest(count)

    def _nearest(self, count: int | None) -> dict[ThingKey, float]:
        import numpy as np

        names, cosines = self._known.matrix.cosines(self._vector)
        rows = np.flatnonzero(cosines >= NEAR)
        found: dict[ThingKey, float] = {}
        taken = len(rows) if count is None else min(len(rows), count * 2)
        while True:
            # The nearest of them only: to put all in order would take the longest of all.
            best = rows
            if taken < len(rows):
                best = rows[np.argpartition(-cosines[rows], taken - 1)[:taken]]
            best = best[np.argsort(-cosines[best], kind="stable")]
            pairs: Iterable[tuple[int, float]] = zip(
                best.tolist(), cosines[best].tolist(), strict=True
            )
            for row, cosine in pairs:
                for key in self._known.owners.get(names[row], ()):
                    found.setdefault(key, min(1.0, cosine))
                if count is not None and len(found) >= count:
                    return dict(list(found.items())[:count])
            if taken >= len(rows):
                return found
            taken = min(len(rows), taken * 4)


class Together(Scores):
    """What is near of a tenant's own Things and of those that others share with it.

    Args:
        several: What is near of each.
        is_meant: Whether the tenant means a Thing at all.
    """

    def __init__(self, several: Sequence[Compared], is_meant: Callable[[ThingKey], bool]) -> None:
        pending = [key for one in several for key in one.pending if is_meant(key)]
        super().__init__({}, pending=pending, total=sum(one.total for one in several))
        self._several = several
        self._is_meant = is_meant

    def nearest(
        self, count: int | None = None, among: Collection[ThingKey] | None = None
    ) -> dict[ThingKey, float]:
        """See `Scores.nearest`."""
        near: dict[ThingKey, float] = {}
        for one in self._several:
            # Those that are for somebody else leave room for more.
            found = one.nearest(None if among is None else count, among)
            near |= {key: found[key] for key in found if self._is_meant(key)}
        return Scores(near).nearest(count)


class _Tenant:
    """The meanings of one tenant's Things. Things that say the same share a vector."""

    def __init__(self) -> None:
        self.matrix = Matrix()
        self.texts: dict[ThingKey, tuple[str, ...]] = {}
        self.owners: dict[str, set[ThingKey]] = {}
        # How many of its vectors each Thing lacks.
        self.lacking: dict[ThingKey, int] = {}

    def took(self, text: str) -> None:
        """The vector of a text has come."""
        for key in self.owners.get(text, ()):
            left = self.lacking[key] - 1
            if left:
                self.lacking[key] = left
            else:
                del self.lacking[key]

    def forget_vectors(self) -> None:
        """Every vector is worth nothing any more."""
        self.matrix = Matrix()
        self.lacking = {key: len(texts) for key, texts in self.texts.items() if texts}


class Meanings:
    """Keeps the vectors of what is registered, and compares texts with them.

    Args:
        bus: Where a router is asked.
        membership: What is registered.
    """

    def __init__(self, bus: Bus, membership: Membership) -> None:
        self._bus = bus
        self._membership = membership
        self._able = importlib.util.find_spec("numpy") is not None
        self._tenants: dict[str, _Tenant] = {}
        # The texts that have no vector yet, and the tenants that have them.
        self._wanted: dict[str, set[str]] = {}
        self._left: OrderedDict[str, Vectors] = OrderedDict()
        self._fingerprint = ""
        self._wake = asyncio.Event()
        self._retry = asyncio.Event()
        self._quiet_until = 0.0
        self.note = "" if self._able else _NO_NUMPY

    def start(self) -> None:
        """Get the vectors of what is registered, and go on doing so, as long as the bus lives."""
        if not self._able:
            return
        self.changed([one.key for one in self._membership])
        self._bus.spawn(self._keep_embedded(), name="meanings")

    def changed(self, keys: Iterable[ThingKey]) -> None:
        """Things have come, changed or gone; for `Directory.on_change`."""
        if not self._able:
            return
        for key in keys:
            entered = self._membership.get(key)
            self._say(key, texts_of(entered.thing) if entered is not None else ())

    def pending(self, tenant: str) -> tuple[int, int]:
        """How many Things of a tenant are not wholly embedded yet, and how many there are."""
        known = self._tenants.get(tenant)
        return (len(known.lacking), len(known.texts)) if known is not None else (0, 0)

    async def score(self, tenant: str, text: str) -> Scores | None:
        """How near Things are to a text; None if words have to do, and `note` says why."""
        if not self._able or not text.strip():
            return None
        embedded = await self._asked(text)
        if embedded is None:
            return None
        places = (tenant,) if tenant == SHARED else (tenant, SHARED)
        known = [one for name in places if (one := self._tenants.get(name)) is not None]
        if not any(len(one.matrix) for one in known):
            self.note = _NOTHING_YET
            return None
        import numpy as np

        self.note = ""
        vector = np.asarray(embedded.vectors[0], np.float32)
        compared = [Compared(vector, one) for one in known]
        if self._tenants.get(SHARED) is not known[-1] or tenant == SHARED:
            return compared[0]
        return Together(compared, lambda key: self._membership.is_meant(tenant, key))

    # -- what is to be known --

    def _say(self, key: ThingKey, texts: tuple[str, ...]) -> None:
        """From now on these texts stand for a Thing; none if it is gone."""
        known = self._tenants.get(key.tenant)
        if known is None:
            if not texts:
                return
            known = self._tenants[key.tenant] = _Tenant()
        before = known.texts.get(key, ())
        if before == texts:
            return
        for text in set(before) - set(texts):
            owners = known.owners[text]
            owners.discard(key)
            if not owners:
                del known.owners[text]
                self._drop(key.tenant, known, text)
        for text in texts:
            known.owners.setdefault(text, set()).add(key)
            if text not in known.matrix:
                self._want(key.tenant, known, text)
        known.lacking.pop(key, None)
        if lacking := sum(text not in known.matrix for text in texts):
            known.lacking[key] = lacking
        if texts:
            known.texts[key] = texts
        else:
            known.texts.pop(key, None)
            if not known.texts:
                del self._tenants[key.tenant]

    def _want(self, tenant: str, known: _Tenant, text: str) -> None:
        if (vector := self._left.pop(text, None)) is not None:
            # Somebody said so a while ago: a process that was started anew says the same again.
            known.matrix.add(text, vector)
            return
        self._wanted.setdefault(text, set()).add(tenant)
        self._wake.set()

    def _drop(self, tenant: str, known: _Tenant, text: str) -> None:
        vector = known.matrix.remove(text)
        if vector is not None:
            self._left[text] = vector
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)
        tenants = self._wanted.get(text)
        if tenants is not None:
            tenants.discard(tenant)
            if not tenants:
                del self._wanted[text]

    # -- getting vectors --

    async def _keep_embedded(self) -> None:
        while True:
            await self._wake.wait()
            batch = [text for text, _ in zip(self._wanted, range(BATCH), strict=False)]
            if not batch:
                self._wake.clear()
                continue
            try:
                embedded = await self._bus.call(
                    EMBED, Embed(texts=tuple(batch), urgent=False), timeout_s=_EMBED_S
                )
            except MeshError as exc:
                logger.debug("no meanings for now: %s", exc)
                await self._pause(_RETRY_S)
                continue
            if not self._adopt(embedded):
                await self._pause(_WORDS_ONLY_S)
                continue
            self._take(batch, embedded.vectors)

    async def _pause(self, seconds: float) -> None:
        """Wait, or until a question has shown that a router is there."""
        self._retry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retry.wait()

    async def _asked(self, text: str) -> Embedded | None:
        """The vector of a question; None if nobody who knows meanings says it in time."""
        if time.monotonic() < self._quiet_until:
            return None
        try:
            embedded = await self._bus.call(EMBED, Embed(texts=(text,)), timeout_s=_QUERY_S)
        except MeshError as exc:
            self.note = _NO_ROUTER
            if isinstance(exc, DeadlineExceeded):
                # Not every question has to wait for one that is overloaded.
                self._quiet_until = time.monotonic() + _QUIET_S
            return None
        if not self._adopt(embedded):
            return None
        self._retry.set()
        return embedded

    def _adopt(self, embedded: Embedded) -> bool:
        """Whether vectors of this encoder stand for meanings; those of another one are dropped."""
        if not embedded.semantic:
            self.note = _NO_MEANINGS
            return False
        if embedded.fingerprint != self._fingerprint:
            self._fingerprint = embedded.fingerprint
            self._left.clear()
            for tenant, known in self._tenants.items():
                known.forget_vectors()
                for text in known.owners:
                    self._wanted.setdefault(text, set()).add(tenant)
            if self._wanted:
                self._wake.set()
        return True

    def _take(self, texts: Sequence[str], vectors: Collection[Sequence[float]]) -> None:
        import numpy as np

        rows = np.asarray(vectors, np.float32)
        for text, row in zip(texts, rows, strict=True):
            for tenant in self._wanted.pop(text, ()):
                known = self._tenants[tenant]
                known.matrix.add(text, row)
                known.took(text)

    def state(self) -> Mapping[str, Any]:
        """What is kept, for tests and status screens."""
        return {
            "fingerprint": self._fingerprint,
            "wanted": len(self._wanted),
            "vectors": sum(len(known.matrix) for known in self._tenants.values()),
        }
