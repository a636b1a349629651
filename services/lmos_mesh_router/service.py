"""The router on the bus: what is asked of it, and what it answers."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable

from lmos_mesh import audit, subjects
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.messages import (
    DECIDE,
    EMBED,
    REPORT_OUTCOME,
    ROUTER_STATUS,
    Decide,
    Decision,
    Embed,
    Embedded,
    OutcomeNoted,
    ReportedOutcome,
    ReportOutcome,
    RouterState,
    RouterStatus,
)
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.transport import Log
from lmos_mesh.wiring import Wirings
from lmos_mesh_router.decider import NO_MODEL, Decider
from lmos_mesh_router.embedding import Embedder
from lmos_mesh_router.encoder import load_encoder
from lmos_mesh_router.fits import Fits
from lmos_mesh_router.hybrid import Policy
from lmos_mesh_router.indexing import Index
from lmos_mesh_router.kept_lessons import KeptLessons
from lmos_mesh_router.kept_vectors import EMBEDDINGS, KeptVectors
from lmos_mesh_router.model_client import LanguageModel, read_prompts
from lmos_mesh_router.prompts import Prompts
from lmos_mesh_router.settings import RouterSettings
from lmos_mesh_router.tools import NOBODY, Tools

__all__ = ["Router", "RouterSettings"]

logger = logging.getLogger(__name__)

FEEDBACK = Log(
    name="LMOS_FEEDBACK",
    subjects=("lmos.*.feedback.*",),
    max_age_s=90 * 24 * 3600.0,
    max_items=100_000,
)
"""What was reported, at `lmos.{tenant}.feedback.{outcome}`, as a `ReportedOutcome`."""

READY_S = 20.0
"""How long a router waits with its first answer for everything to be embedded."""


class Router:
    """Answers which agent should answer."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._model: LanguageModel | None = None
        self._prompts = Prompts()

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve the router's endpoints until cancelled."""
        settings = self._settings
        self._bus = bus
        self._prompts = read_prompts(settings.router_prompts)
        if settings.router_has_llm:
            self._model = LanguageModel(settings)
        elif settings.router_method != "vector":
            logger.warning(
                "LMOS_ROUTER_METHOD=%s, but %s; vectors decide", settings.router_method, NO_MODEL
            )
        try:
            await self._serve(ready)
        finally:
            if self._model is not None:
                await self._model.close()

    async def _serve(self, ready: Callable[[], None]) -> None:
        bus = self._bus
        settings = self._settings
        encoder = await asyncio.to_thread(
            load_encoder, threads=settings.router_threads, precision=settings.router_encoder
        )
        if not encoder.semantic:
            logger.warning("routing by words, not by meaning: %s", encoder.reason)
        elif encoder.reason:
            logger.warning(
                "LMOS_ROUTER_ENCODER=%s, but fp32 is used: %s",
                settings.router_encoder,
                encoder.reason,
            )
        self._encoder = encoder
        self._embedder = Embedder(encoder)
        bus.spawn(self._embedder.run(), name="embedder")
        store = bus.transport.key_value(EMBEDDINGS)
        kept = KeptVectors(store, encoder.fingerprint, encoder.dimensions)
        if encoder.semantic:  # spelling is faster computed than kept
            await kept.read(now=time.time())
            bus.spawn(kept.run(), name="kept vectors")
        self._directory = Directory(bus)
        applied = Applied(bus)
        lessons = KeptLessons(store, encoder.fingerprint)
        wirings = Wirings(applied.index)
        self._index = Index(self._directory, self._embedder, kept, lessons, wirings)
        applied.on_change(lambda _: self._index.forget_views())
        await self._directory.follow()
        await applied.follow()
        await audit.prepare(bus)
        fits = Fits(bus, encoder.fingerprint)
        await fits.follow()
        self._decider = Decider(
            self._settings,
            index=self._index,
            fits=fits,
            membership=self._directory.membership,
            encoder=encoder.name,
            model=self._model,
            prompts=self._prompts,
        )
        tools = Tools(
            index=self._index,
            directory=self._directory,
            fits=fits,
            encoder=encoder,
            threshold=self._settings.router_threshold,
            in_scope=Policy().in_scope,
            feedback=bus.transport.stream(FEEDBACK),
            keeps_feedback=self._settings.router_feedback,
        )
        bus.spawn(self._index.run(), name="index")
        if not await self._index.until_whole(within_s=READY_S):
            logger.warning("%d texts are yet to be embedded", self._index.waiting)
        # What is known stays; to look through it for garbage again and again delays decisions.
        gc.freeze()
        bus.spawn(self._index.learn(), name="learning")
        if self._model is not None:
            bus.spawn(self._check(self._model), name="language model")
        await bus.serve(
            "router",
            [
                route(DECIDE, self.decide),
                route(EMBED, self.embed),
                route(ROUTER_STATUS, self.status),
                route(REPORT_OUTCOME, self.report),
                *tools.routes(),
            ],
        )
        await announce_service(
            bus,
            "router",
            "Which agent should answer",
            ["decide", "embed", "status", "report", "reported", "lint", "fit"],
        )
        ready()
        await run_forever()

    async def _check(self, model: LanguageModel) -> None:
        if wrong := await model.check():
            logger.warning("%s", wrong)

    async def decide(self, request: Decide, call: Call) -> Decision:
        """Which agent should answer.

        Raises:
            AgentNotFound: The agent that the caller names is not there.
            InvalidMessage: `explicit` without an agent.
        """
        decision = await self._decider.decide(request, call)
        audit.write(
            self._bus,
            call.tenant,
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
        return decision

    async def embed(self, request: Embed, call: Call) -> Embedded:
        """One unit vector per text."""
        vectors = await self._embedder.embed(
            request.texts, urgency="now" if request.urgent else "later"
        )
        return Embedded(
            vectors=tuple(tuple(float(x) for x in vector) for vector in vectors),
            dimensions=self._encoder.dimensions,
            encoder=self._encoder.name,
            fingerprint=self._encoder.fingerprint,
            semantic=self._encoder.semantic,
        )

    async def report(self, request: ReportOutcome, call: Call) -> OutcomeNoted:
        """Keep what became of a decision, where the operator wants that.

        Raises:
            InvalidMessage: It does not say who was right, or names somebody who is not there.
        """
        if request.outcome == "accepted" and not request.decided:
            raise InvalidMessage("/decided: is needed with outcome `accepted`", field="/decided")
        if request.outcome == "corrected" and not request.agent:
            raise InvalidMessage("/agent: is needed with outcome `corrected`", field="/agent")
        if not self._settings.router_feedback:
            return OutcomeNoted(
                kept=False,
                reason="outcomes are not kept here; LMOS_ROUTER_FEEDBACK=true keeps them",
            )
        if request.outcome == "corrected" and request.agent != NOBODY:
            membership = self._directory.membership
            if not membership.subsets(call.tenant, request.agent):
                near = membership.near(call.tenant, request.agent)
                raise InvalidMessage(
                    f"/agent: no agent is named {request.agent!r}",
                    hint=f"did you mean {', '.join(near)}?" if near else "see `lmos agents`",
                    field="/agent",
                )
        told = request.model_dump(include=set(ReportOutcome.model_fields))
        kept = ReportedOutcome(**told, at=time.time())
        same = f"{call.tenant}/{request.turn}/{request.outcome}/{request.agent}"
        await self._bus.transport.stream(FEEDBACK).append(
            f"lmos.{subjects.escape(call.tenant)}.feedback.{request.outcome}",
            kept.model_dump_json(exclude_defaults=True).encode(),
            message_id=same if request.turn else "",
        )
        return OutcomeNoted(kept=True)

    async def status(self, request: RouterStatus, call: Call) -> RouterState:
        """How the router is."""
        index, progress, account = self._index, self._index.progress, self._decider.account
        return RouterState(
            encoder=self._encoder.name,
            fingerprint=self._encoder.fingerprint,
            semantic=self._encoder.semantic,
            note=self._encoder.reason,
            agents=index.live_agents,
            capabilities=index.capabilities,
            evidence=index.texts,
            version=progress.version,
            method=self._settings.router_method,
            waiting=index.waiting,
            trained=index.learned_all,
            training=progress.training,
            training_s=round(progress.training_s, 3),
            trained_at=progress.trained_at,
            training_failed=progress.failed,
            recalled=progress.recalled,
            approximate_recall=round(progress.recall, 4),
            embedded=progress.embedded,
            kept=progress.kept,
            decided=dict(self._decider.outcomes),
            model=self._settings.router_llm_model,
            model_note=self._model.resting if self._model else "",
            model_share=round(account.share, 4),
            model_calls=account.calls,
            model_cost=account.cost,
            model_failed=dict(account.fell_back),
        )
