"""The operator on the bus: keeps what people apply, and makes the mesh match it."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lmos_mesh import audit, events
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus, route
from lmos_mesh.directory import Directory
from lmos_mesh.messages import STEER_AGENT, STEER_ROLLOUT
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRouting
from lmos_mesh.service import announce_service
from lmos_mesh.settings import Settings
from lmos_mesh.things import ThingKey
from lmos_mesh_operator.acting import Acting
from lmos_mesh_operator.keeping import Keeping
from lmos_mesh_operator.leading import Leadership
from lmos_mesh_operator.planning import Planner
from lmos_mesh_operator.reconcile import missing_in
from lmos_mesh_operator.rewiring import gone_from
from lmos_mesh_operator.rollouts import Rollouts
from lmos_mesh_operator.steering import Steering

if TYPE_CHECKING:
    from lmos_mesh_operator.kubernetes.mode import KubernetesMode

# After a lost bus the leases of all are written anew, which takes as long as one is renewed.
_SETTLING_S = 5.0


class OperatorSettings(Settings):
    """Settings of the operator.

    Attributes:
        operator_most_similar: What the strategy `MOST_SIMILAR` takes: the version `nearest` to
            the one that the range names, or the `lowest`, as LMOS does.
        operator_kubernetes: Whether resources are mirrored with the cluster that this process
            runs in, or that `KUBECONFIG` names (docs/kubernetes.md).
        operator_namespaces: Which namespaces of it, separated by commas; empty for all.
        operator_home_namespace: Where agents of the mesh are shown; empty for our own namespace.
        operator_capabilities_url: Where a Deployment labelled `lmos-agent` says what it can do;
            empty for LMOS's place at its Service.
        operator_ask_again_s: How long after a Deployment could not say so it is asked again; and
            half as long again every time.
    """

    operator_most_similar: Literal["nearest", "lowest"] = "nearest"
    operator_kubernetes: bool = False
    operator_namespaces: str = ""
    operator_home_namespace: str = ""
    operator_capabilities_url: str = ""
    operator_ask_again_s: float = Field(default=5.0, gt=0)


class Operator:
    """Answers on every replica; acts on the one that leads."""

    def __init__(
        self, settings: OperatorSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._leadership: Leadership | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._unsettled: set[ThingKey] = set()

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the operator's endpoints until cancelled."""
        self._directory = Directory(bus)
        applied = Applied(bus)
        self._planner = Planner(applied.index, most_similar=self._settings.operator_most_similar)
        leadership = self._leadership = Leadership(bus)
        self._acting = Acting(
            bus, applied, self._planner, lambda: leadership.leading, clock=self._clock
        )
        rollouts = Rollouts(
            bus, applied, ResourceStore(bus), lambda: leadership.leading, clock=self._clock
        )
        keeping = Keeping(
            bus,
            applied,
            check=rollouts.fault_of,
            foresee=self._foresee,
            gone=self._gone,
            clock=self._clock,
        )
        # Before the directory's own: it must be known when everybody seems to be gone.
        bus.transport.on_reconnect(self._settle)
        self._directory.on_change(self._on_things)
        applied.on_change(self._on_resources)
        mode = await self._kubernetes(bus, applied) if self._settings.operator_kubernetes else None
        await self._directory.follow()
        await applied.follow()
        # What was read stays; to look through it for garbage takes 100 ms, again and again.
        gc.freeze()
        await audit.prepare(bus)
        await events.prepare(bus)
        routes = [
            *keeping.routes(),
            route(STEER_ROLLOUT, rollouts.steer),
            route(STEER_AGENT, self._steering(bus).steer),
        ]
        await bus.serve("operator", routes)
        await leadership.begin()
        await announce_service(
            bus,
            "operator",
            "Makes the mesh match what people applied",
            [one.operation for one in routes],
        )
        ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leadership.while_leading(self._acting.run))
            tasks.create_task(rollouts.run())
            if mode is not None:
                tasks.create_task(leadership.while_leading(mode.run))

    async def _kubernetes(self, bus: Bus, applied: Applied) -> "KubernetesMode":
        # Not before it is asked for: what it imports is large.
        from lmos_mesh_operator.kubernetes.deployments import CAPABILITIES_URL
        from lmos_mesh_operator.kubernetes.mode import KubernetesMode

        settings = self._settings
        leadership = self._leadership
        assert leadership is not None
        mode = KubernetesMode(
            bus,
            applied,
            self._directory,
            lambda: leadership.leading,
            namespaces=self._namespaces(),
            home=settings.operator_home_namespace,
            template=settings.operator_capabilities_url or CAPABILITIES_URL,
            ask_again_s=settings.operator_ask_again_s,
            clock=self._clock,
        )
        await mode.check()
        return mode

    def _steering(self, bus: Bus) -> Steering:
        if not self._settings.operator_kubernetes:
            return Steering(bus, self._directory)
        from lmos_mesh_operator.kubernetes.steering import KubernetesSteering

        elsewhere = KubernetesSteering(
            bus,
            serving=self._serving,
            namespaces=self._namespaces(),
            clock=self._clock,
        )
        return Steering(bus, self._directory, elsewhere=elsewhere)

    def _serving(self, key: ThingKey) -> frozenset[str]:
        """The instances of an agent as its tenant means it: it may be served from `shared`."""
        membership = self._directory.membership
        return membership.serving(membership.meant(*key) or key)

    def _namespaces(self) -> list[str]:
        names = self._settings.operator_namespaces.split(",")
        return [one.strip() for one in names if one.strip()]

    async def leave(self) -> None:
        """Let another replica lead at once."""
        if self._leadership is not None:
            await self._leadership.leave()

    def _on_resources(self, changed: Sequence[ResourceKey]) -> None:
        for key in changed:
            self._acting.look_at(self._planner.resource_changed(key))

    def _on_things(self, changed: Sequence[ThingKey]) -> None:
        membership = self._directory.membership
        for key in changed:
            entered = membership.get(key)
            count = len(membership.serving(key))
            if not count and self._settling is not None and self._planner.fleet.is_live(key):
                # It is about to say that it is there, and its channels must not flap meanwhile.
                self._unsettled.add(key)
                continue
            self._unsettled.discard(key)
            thing = entered.thing if entered is not None else None
            self._acting.look_at(self._planner.thing_changed(key, thing, count))

    def _settle(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        loop = asyncio.get_running_loop()
        self._settling = loop.call_later(_SETTLING_S, self._on_settled)

    def _on_settled(self) -> None:
        self._settling = None
        unsettled, self._unsettled = self._unsettled, set()
        self._on_things(sorted(unsettled))

    def _gone(self, channel: Channel, routing: ChannelRouting) -> Sequence[str]:
        names = [group.name for group in routing.spec.capability_groups]
        space = channel.metadata.namespace
        there = self._planner.fleet.candidates(channel.tenant, space, (), names=names)
        return gone_from(routing, there)

    def _foresee(self, channel: Channel) -> str:
        resolution = self._planner.resolution(channel)
        return "" if resolution.resolved else missing_in(resolution)
