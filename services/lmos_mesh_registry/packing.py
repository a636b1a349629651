"""What is found, as msgpack of which the greater part is packed once and used again.

Most of a reply to `find` is what Things can do, which seldom changes; to build and to pack it anew
for every question takes longer than to find it. Pure.
"""

from collections.abc import Iterable
from typing import Any

import ormsgpack

from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import FoundThing, ThingsFound
from lmos_mesh.things import ThingKey
from lmos_mesh_registry.catalog import rounded, steady

MOST_BYTES = 16 << 20
"""How much is kept: ten thousand agents of five capabilities."""

# Of what is asked for with one's Description, nothing is packed here.
_UNTOLD: dict[str, Any] = {"description": None, "as_of": 0.0}
_REST = tuple(name for name in ThingsFound.model_fields if name != "things")
_MAP = b"\xde" + len(FoundThing.model_fields).to_bytes(2, "big")


class PackedThings:
    """Packs found Things, without their Descriptions, as `codec.encode` would.

    Args:
        most_bytes: How much to keep; what was packed first is forgotten first.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._size = 0
        self._kept: dict[ThingKey, tuple[Entered, bytes]] = {}
        self._unready: dict[ThingKey, None] = {}

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self._size

    def packed(self, one: Entered, membership: Membership, score: float | None) -> bytes:
        """A `FoundThing` as a msgpack map."""
        changing = {
            "live": membership.liveness(one),
            "instances": membership.told_instances(one.key),
            "score": rounded(score),
        }
        return b"".join((_MAP, self._steady(one), _members(changing)))

    def changed(self, keys: Iterable[ThingKey]) -> None:
        """Things have come, changed or gone; for `Directory.on_change`."""
        for key in keys:
            self._forget(key)
            self._unready[key] = None

    def prepare(self, membership: Membership, count: int) -> bool:
        """Pack some that came or changed, before anybody asks for them.

        Returns:
            Whether there are more.
        """
        while self._unready and count > 0:
            if self._size * 10 > self._most * 9:
                self._unready.clear()  # to pack one would only push another out
                break
            key, _ = self._unready.popitem()
            if (one := membership.get(key)) is not None:
                self._steady(one)
                count -= 1
        return bool(self._unready)

    def _forget(self, key: ThingKey) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._size -= len(kept[1])

    def _steady(self, one: Entered) -> bytes:
        kept = self._kept.get(one.key)
        if kept is not None and kept[0] is one:
            return kept[1]
        self._forget(one.key)
        members = _members(steady(one) | _UNTOLD)
        self._kept[one.key] = one, members
        self._size += len(members)
        while self._size > self._most:
            self._forget(next(iter(self._kept)))
        return members


def _members(told: dict[str, Any]) -> bytes:
    """The members of a map, without its head, so that others can be put beside them."""
    packed = ormsgpack.packb(told, option=ormsgpack.OPT_SERIALIZE_PYDANTIC)
    return packed[1 if len(told) < 16 else 3 :]


def page(things: Iterable[bytes], rest: ThingsFound) -> bytes:
    """A reply with these packed Things in the place of its own."""
    told = {name: getattr(rest, name) for name in _REST}
    return ormsgpack.packb({**told, "things": [ormsgpack.Fragment(one) for one in things]})
