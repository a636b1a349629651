"""What one question may use: what is known of a tenant, and whom of it may be chosen. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_router.evidence import EvidenceMatrix, Mask, Query
from lmos_mesh_router.ranking import Learned, Ranking, rank


@dataclass(frozen=True, eq=False)
class View:
    """What one question may use.

    Attributes:
        learned: All that is known of the tenant.
        eligible: The classes of live agents that serve the channel in the subset.
    """

    learned: Learned
    eligible: Mask

    @property
    def agents(self) -> frozenset[ThingKey]:
        """The agents that may be chosen."""
        matrix = self.learned.matrix
        chosen: list[int] = np.unique(matrix.agent_of[self.eligible]).tolist()
        return frozenset(matrix.agents[at] for at in chosen)

    def rank(self, query: Query) -> Ranking:
        """The agents that a message could be for."""
        return rank(query, self.learned, self.eligible)

    def only(self, key: ThingKey, thing: Thing) -> "View":
        """The same with a single agent, and of that no capabilities but those of `thing`."""
        matrix = self.learned.matrix
        return View(self.learned, wired(matrix, matrix.mask([key]), lambda _: thing))


def wired(matrix: EvidenceMatrix, mask: Mask, thing_of: Callable[[ThingKey], Thing]) -> Mask:
    """Of these classes those that are a capability of their agent."""
    for at in np.flatnonzero(mask).tolist():
        key, capability = matrix.classes[at]
        mask[at] = any(one.id == capability for one in thing_of(key).capabilities)
    return mask
