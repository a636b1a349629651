"""The router on the bus: an index that follows the registry, and decisions made from it."""

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
from pydantic import Field

from lmos_mesh import audit
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import AgentNotFound, InvalidMessage
from lmos_mesh.membership import Membership, ThingKey
from lmos_mesh.messages import (
    DECIDE,
    EMBED,
    ROUTER_STATUS,
    Decide,
    Decision,
    Embed,
    Embedded,
    RouterState,
    RouterStatus,
)
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.settings import Settings
from lmos_mesh.things import Thing
from lmos_mesh_router.embedding import Embedder
from lmos_mesh_router.encoder import load_encoder
from lmos_mesh_router.follow_up import follows
from lmos_mesh_router.index import (
    Evidence,
    Ranking,
    Snapshot,
    View,
    decide,
    evidence_of,
    explicit,
)

logger = logging.getLogger(__name__)


class RouterSettings(Settings):
    """Settings of the router.

    Attributes:
        router_threshold: The least confidence to route with, 0 to 1.
        router_threads: Cores for one embedding.
    """

    router_threshold: float = Field(default=0.3, ge=0, le=1)
    router_threads: int = Field(default=1, ge=1)


class Router:
    """Answers which agent should answer."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._views: dict[tuple[str, str, str], View] = {}
        self._dirty = asyncio.Event()

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the router's endpoints until cancelled."""
        self._bus = bus
        encoder = await asyncio.to_thread(load_encoder, threads=self._settings.router_threads)
        if not encoder.semantic:
            logger.warning("routing by words, not by meaning: %s", encoder.reason)
        self._encoder = encoder
        self._embedder = Embedder(encoder)
        self._snapshot = Snapshot.build(
            [], np.empty((0, encoder.dimensions), np.float32), version=0
        )
        bus.spawn(self._embedder.run(), name="embedder")
        self._directory = Directory(bus)
        self._directory.on_change(self._on_change)
        await self._directory.follow()
        await audit.prepare(bus)
        await self._rebuild()
        bus.spawn(self._keep_built(), name="index")
        await bus.serve(
            "router",
            [
                route(DECIDE, self.decide),
                route(EMBED, self.embed),
                route(ROUTER_STATUS, self.status),
            ],
        )
        await announce_service(
            bus, "router", "Which agent should answer", ["decide", "embed", "status"]
        )
        ready()
        await run_forever()

    @property
    def _membership(self) -> Membership:
        return self._directory.membership

    # -- the index --

    def _on_change(self, changed: list[ThingKey]) -> None:
        self._views.clear()
        known = self._snapshot.agents
        for key in changed:
            entered = self._membership.get(key)
            if entered is not None or key in known:
                self._dirty.set()
                return

    async def _keep_built(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._rebuild()
            except Exception:
                logger.exception("the index could not be rebuilt; the last one stays in use")
                await asyncio.sleep(1.0)
                self._dirty.set()

    async def _rebuild(self) -> None:
        """Bring the index up to date; what is embedded already is routable at once."""
        wanted = [
            one
            for entered in self._membership
            if entered.thing.kind == "agent"
            for one in evidence_of(entered.key, entered.thing)
        ]
        if wanted == list(self._snapshot.evidence):
            return
        missing = list(
            dict.fromkeys(one.text for one in wanted if self._embedder.known(one.text) is None)
        )
        vectors: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
        for one in wanted:
            known = self._embedder.known(one.text)
            if known is not None:
                vectors[one.text] = known
        step = 16
        for begin in range(0, len(missing), step):
            self._publish(wanted, vectors)
            texts = missing[begin : begin + step]
            vectors.update(zip(texts, await self._embedder.embed(texts, urgent=False), strict=True))
        self._publish(wanted, vectors)

    def _publish(self, wanted: list[Evidence], vectors: dict[str, np.ndarray]) -> None:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        ready = [one for one in wanted if one.text in vectors]
        matrix = (
            np.stack([vectors[one.text] for one in ready])
            if ready
            else np.empty((0, self._encoder.dimensions), np.float32)
        )
        self._snapshot = Snapshot.build(ready, matrix, version=self._snapshot.version + 1)
        self._views.clear()

    def _view(self, tenant: str, channel: str, subset: str) -> View:
        """The evidence of live agents that serve this channel; made anew only after a change."""
        place = (tenant, channel, subset)
        view = self._views.get(place)
        if view is None:
            membership = self._membership
            view = self._snapshot.among(
                key
                for key in self._snapshot.agents
                if key.tenant == tenant
                and key.subset == subset
                and membership.live(key)
                and (entered := membership.get(key)) is not None
                and entered.thing.serves(channel)
            )
            if len(self._views) > 1024:
                self._views.clear()
            self._views[place] = view
        return view

    # -- the endpoints --

    async def decide(self, request: Decide, call: Call) -> Decision:
        """Which agent should answer.

        Raises:
            AgentNotFound: The agent that the caller names is not there.
            InvalidMessage: `explicit` without an agent.
        """
        began = time.perf_counter()
        tenant = call.tenant
        if request.agent is not None:
            decision = await self._explicit(request, tenant)
        elif request.method == "explicit":
            raise InvalidMessage("/agent: is needed with method `explicit`", field="/agent")
        else:
            decision = await self._by_vector(request, tenant)
        times = {**decision.time_ms, "total": _ms(began)}
        audit.write(
            self._bus,
            tenant,
            "decided",
            {
                "outcome": decision.outcome,
                "agent": decision.agent,
                "capability": decision.capability,
                "confidence": round(decision.confidence, 3),
                "method": decision.method,
                "channel": request.channel,
            },
        )
        return decision.model_copy(update={"time_ms": times})

    async def _explicit(self, request: Decide, tenant: str) -> Decision:
        assert request.agent is not None
        key = ThingKey(tenant, request.agent, request.subset)
        entered = self._membership.get(key)
        if entered is None or not self._membership.live(key):
            near = self._membership.near(tenant, request.agent)
            hint = "see `lmos agents`"
            if entered is not None:
                state = "has no instance running"
            elif subsets := self._membership.subsets(tenant, request.agent):
                state = f"has no subset {request.subset!r}"
                hint = f"it has {', '.join(subsets)}"
            else:
                state = "does not exist"
                hint = f"did you mean {', '.join(near)}?" if near else hint
            raise AgentNotFound(
                f"agent {request.agent!r} {state} in {tenant!r}", hint=hint, near=near
            )
        ranking = Ranking(())
        if len(entered.thing.capabilities) > 1:
            vector = (await self._embedder.embed([request.message]))[0]
            ranking = self._snapshot.among([key]).search(vector)
        return explicit(key, entered.thing, ranking, encoder=self._encoder.name)

    async def _by_vector(self, request: Decide, tenant: str) -> Decision:
        view = self._view(tenant, request.channel, request.subset)
        decision = await self._decide_text(request.message, view, request, together=False)
        before = _message_before(request)
        if decision.outcome == "unsure" and before and follows(request.message):
            # A follow-up ("and for last month?") means something only with what it follows.
            both = await self._decide_text(
                f"{before}\n{request.message}", view, request, together=True
            )
            if both.outcome == "routed":
                return both
        return decision

    async def _decide_text(
        self, text: str, view: View, request: Decide, *, together: bool
    ) -> Decision:
        began = time.perf_counter()
        vector = (await self._embedder.embed([text]))[0]
        embedded = time.perf_counter()
        ranking = view.search(vector)
        threshold = (
            self._settings.router_threshold if request.threshold is None else request.threshold
        )
        decision = decide(
            ranking,
            self._things(ranking),
            threshold=threshold,
            limit=request.limit,
            encoder=self._encoder.name,
            together=together,
        )
        return decision.model_copy(
            update={"time_ms": {"embed": _ms(began, embedded), "search": _ms(embedded)}}
        )

    def _things(self, ranking: Ranking) -> dict[ThingKey, Thing]:
        found: dict[ThingKey, Thing] = {}
        for one in ranking.ranked:
            entered = self._membership.get(one.key)
            found[one.key] = entered.thing if entered else Thing(name=one.key.name)
        return found

    async def embed(self, request: Embed, call: Call) -> Embedded:
        """One unit vector per text."""
        vectors = await self._embedder.embed(request.texts, urgent=request.urgent)
        return Embedded(
            vectors=tuple(tuple(float(x) for x in vector) for vector in vectors),
            dimensions=self._encoder.dimensions,
            encoder=self._encoder.name,
            fingerprint=self._encoder.fingerprint,
            semantic=self._encoder.semantic,
        )

    async def status(self, request: RouterStatus, call: Call) -> RouterState:
        """How the router is."""
        membership = self._membership
        return RouterState(
            encoder=self._encoder.name,
            fingerprint=self._encoder.fingerprint,
            semantic=self._encoder.semantic,
            note=self._encoder.reason,
            agents=sum(1 for key in self._snapshot.agents if membership.live(key)),
            evidence=len(self._snapshot.evidence),
            version=self._snapshot.version,
        )


def _message_before(request: Decide) -> str:
    """What the user said last."""
    return next((one.content for one in reversed(request.history) if one.role == "user"), "")


def _ms(began: float, ended: float | None = None) -> float:
    return round(((time.perf_counter() if ended is None else ended) - began) * 1000, 3)
