"""The state of one tenant's index, and whom of its agents somebody may choose where."""

import asyncio
from dataclasses import dataclass, field

from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_router.pending import Pending
from lmos_mesh_router.ranking import Learned
from lmos_mesh_router.view import View

Place = tuple[str, str, str]
"""Who asks where: a tenant, a channel and a subset."""


@dataclass(eq=False)
class Tenant:
    """The state of one tenant's index.

    Attributes:
        name: What the tenant is called.
        things: What its own agents were when they were last looked at.
        views: By tenant, channel and subset, of the latest that is known. The tenant is another
            one only in the index of `shared`, by which those are served without an agent of
            their own.
        allowed: Who may be chosen there. Agents are looked at one by one as they change: to look
            at thousands for the first message after each change would keep it waiting.
        begun: Whether it was ever shown.
        shared_due: Whether it is to be shown again for the sake of agents of tenant `shared`.
        changed_s: Since when there is something that was not learned from; None if there is not.
    """

    name: str
    learned: Learned
    things: dict[ThingKey, Thing] = field(default_factory=dict[ThingKey, Thing])
    pending: dict[ThingKey, Pending] = field(default_factory=dict[ThingKey, Pending])
    views: dict[Place, View] = field(default_factory=dict[Place, View])
    allowed: dict[Place, set[ThingKey]] = field(default_factory=dict[Place, set[ThingKey]])
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    shown_s: float = 0.0
    took_s: float = 0.0
    changed_s: float | None = None
    last_changed_s: float = 0.0
    trained: bool = False
    begun: bool = False
    shared_due: bool = False

    @property
    def due(self) -> bool:
        """Whether there is something to be shown, now or later."""
        return self.shared_due or bool(self.pending)
