"""The state of one tenant's index, and whom of its agents somebody may choose where."""

import asyncio
from dataclasses import dataclass, field

from lmos_mesh.membership import ThingKey
from lmos_mesh.things import Thing
from lmos_mesh_router.pending import Pending
from lmos_mesh_router.ranking import Learned
from lmos_mesh_router.view import View


@dataclass(eq=False)
class Tenant:
    """The state of one tenant's index.

    Attributes:
        things: What the agents were when they were last looked at.
        views: By channel and subset, of the latest that is known.
        allowed: Who may be chosen there. Agents are looked at one by one as they change: to look
            at thousands for the first message after each change would keep it waiting.
        changed_s: Since when there is something that was not learned from; None if there is not.
    """

    learned: Learned
    things: dict[ThingKey, Thing] = field(default_factory=dict[ThingKey, Thing])
    pending: dict[ThingKey, Pending] = field(default_factory=dict[ThingKey, Pending])
    views: dict[tuple[str, str], View] = field(default_factory=dict[tuple[str, str], View])
    allowed: dict[tuple[str, str], set[ThingKey]] = field(
        default_factory=dict[tuple[str, str], set[ThingKey]]
    )
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    shown_s: float = 0.0
    took_s: float = 0.0
    changed_s: float | None = None
    last_changed_s: float = 0.0
    trained: bool = False
