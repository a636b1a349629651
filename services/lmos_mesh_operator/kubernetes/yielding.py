"""Notices that another mesh's operator writes the same objects, and lets it have them a while.

Both would write for ever, since each takes what the other has written for a store that was lost.
Pure.
"""

from lmos_mesh.resource_index import ResourceKey
from lmos_mesh_operator.kubernetes.mirroring import Seen

PAUSE_S = 60.0
"""For how long an object is left alone."""
OTHER_MESH = (
    "another mesh mirrors it as well, and each undoes what the other has written: tell the "
    "operator of each which namespaces are its own (`operator.namespaces` of the chart, or "
    "LMOS_OPERATOR_NAMESPACES)"
)


class Yielding:
    """Which objects are left alone, and until when.

    Args:
        store: The identity of our own mesh's store.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._until: dict[ResourceKey, float] = {}

    def saw(self, before: Seen, after: Seen, now: float) -> bool:
        """Take how an object was, and is; whether somebody else has made it theirs meanwhile."""
        ours, theirs = before.memory, after.memory
        if ours is None or theirs is None or before.uid != after.uid:
            return False
        if ours.store != self._store or theirs.store == self._store:
            return False
        self._until[after.key] = now + PAUSE_S
        return True

    def left_s(self, key: ResourceKey, now: float) -> float:
        """For how long it is to be left alone still; 0 if it is not."""
        left_s = self._until.get(key, now) - now
        if left_s <= 0:
            self._until.pop(key, None)
        return max(0.0, left_s)
