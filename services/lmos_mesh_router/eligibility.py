"""Who may be chosen where: live agents that a tenant means, and that serve the channel. Pure."""

from lmos_mesh.membership import Membership
from lmos_mesh.things import ThingKey
from lmos_mesh.wiring import Wiring, Wirings
from lmos_mesh_router.evidence import EvidenceMatrix, Mask
from lmos_mesh_router.tenant import Place, Tenant
from lmos_mesh_router.view import View, wired

_MOST_VIEWS = 256


class Eligibility:
    """Who may be chosen by a tenant, on a channel and in a subset.

    Args:
        membership: Who is registered and alive.
        wirings: What closed channels let through.
    """

    def __init__(self, membership: Membership, wirings: Wirings | None) -> None:
        self._membership = membership
        self._wirings = wirings

    def wiring(self, tenant: str, channel: str, subset: str) -> Wiring | None:
        """What a closed channel lets through; None for an open one."""
        return self._wirings.of(tenant, channel, subset) if self._wirings is not None else None

    def forget_wirings(self) -> None:
        """Other agents may serve the channels from now on."""
        if self._wirings is not None:
            self._wirings.forget()

    def view(self, state: Tenant, place: Place) -> View:
        """What of a tenant's index may be used somewhere."""
        tenant, channel, subset = place
        view = state.views.get(place)
        if view is None:
            matrix = state.learned.matrix
            wiring = self.wiring(tenant, channel, subset)
            if wiring is None:
                mask = matrix.mask(self._allowed(state, place))
            else:
                mask = self._wired_mask(tenant, matrix, wiring)
            if len(state.views) >= _MOST_VIEWS:
                state.views.clear()
            view = state.views[place] = View(state.learned, mask)
        return view

    def _allowed(self, state: Tenant, place: Place) -> set[ThingKey]:
        """Who may be chosen on an open channel."""
        allowed = state.allowed.get(place)
        if allowed is None:
            if len(state.allowed) >= _MOST_VIEWS:
                state.allowed.clear()
            agents = state.learned.matrix.agents
            allowed = {key for key in agents if self._eligible(*place, key)}
            state.allowed[place] = allowed
        return allowed

    def look_again(self, state: Tenant, key: ThingKey) -> None:
        """Whether an agent may be chosen, wherever somebody asked."""
        state.views.clear()
        for place, allowed in state.allowed.items():
            if self._eligible(*place, key):
                allowed.add(key)
            else:
                allowed.discard(key)

    def _wired_mask(self, tenant: str, matrix: EvidenceMatrix, wiring: Wiring) -> Mask:
        things = {
            key: wiring.narrowed(entered.thing, key)
            for key in wiring.agents
            if self._eligible(tenant, wiring.channel, key.subset, key)
            and (entered := self._membership.get(key)) is not None
        }
        return wired(matrix, matrix.mask(things), things.__getitem__)

    def _eligible(self, tenant: str, channel: str, subset: str, key: ThingKey) -> bool:
        membership = self._membership
        return (
            key.subset == subset
            and membership.live(key)
            and membership.is_meant(tenant, key)
            and (entered := membership.get(key)) is not None
            and entered.thing.kind == "agent"
            and entered.thing.serves(channel)
        )
