"""The router on the bus: what is asked of it, and what it answers."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.directory import Directory
from lmos_mesh.errors import AgentNotFound, InvalidMessage
from lmos_mesh.membership import Membership, ThingKey
from lmos_mesh.messages import (
    DECIDE,
    EMBED,
    REPORT_OUTCOME,
    ROUTER_STATUS,
    Decide,
    Decision,
    Embed,
    Embedded,
    ModelUse,
    OutcomeNoted,
    ReportedOutcome,
    ReportOutcome,
    RouterState,
    RouterStatus,
)
from lmos_mesh.service import announce_service, run_forever
from lmos_mesh.things import Thing
from lmos_mesh.transport import Log
from lmos_mesh_router.deciding import (
    agent_before,
    cards,
    decision_for,
    decision_of,
    decision_of_parts,
    message_before,
    nearest_examples,
    policy_for,
    seen_of,
    still_there,
    untied,
)
from lmos_mesh_router.embedding import Embedder
from lmos_mesh_router.encoder import load_encoder
from lmos_mesh_router.evidence import Query
from lmos_mesh_router.fits import Fits
from lmos_mesh_router.follow_up import stays, with_history
from lmos_mesh_router.hybrid import (
    AskModel,
    Policy,
    Settled,
    alone,
    first_look,
    offered,
    settle,
    settle_search,
)
from lmos_mesh_router.indexing import Index, View
from lmos_mesh_router.kept_vectors import EMBEDDINGS, KeptVectors
from lmos_mesh_router.llm import Account, Answer, NoHelp, Requirements
from lmos_mesh_router.model_client import LanguageModel, ModelSettings, read_prompts
from lmos_mesh_router.prompts import Card, Prompts, prompt_for
from lmos_mesh_router.ranking import Ranking
from lmos_mesh_router.splitting import Heard, Span, heard, parts, spans
from lmos_mesh_router.tools import NOBODY, Tools

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

_LEAST_SHARE = 0.1
_NO_MODEL = "no language model is configured (LMOS_ROUTER_LLM_BASE_URL)"


class RouterSettings(ModelSettings):
    """Settings of the router.

    Attributes:
        router_method: How to decide where the caller does not say.
        router_threshold: The least confidence to route with, 0 to 1.
        router_threads: Cores for one embedding.
        router_feedback: Whether reported outcomes are kept.
    """

    router_method: Literal["vector", "llm", "hybrid"] = "vector"
    router_threshold: float = Field(default=0.5, ge=0, le=1)
    router_threads: int = Field(default=1, ge=1)
    router_feedback: bool = False


class Router:
    """Answers which agent should answer."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._outcomes: Counter[str] = Counter()
        self._account = Account()
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
                "LMOS_ROUTER_METHOD=%s, but %s; vectors decide", settings.router_method, _NO_MODEL
            )
        try:
            await self._serve(ready)
        finally:
            if self._model is not None:
                await self._model.close()

    async def _serve(self, ready: Callable[[], None]) -> None:
        bus = self._bus
        encoder = await asyncio.to_thread(load_encoder, threads=self._settings.router_threads)
        if not encoder.semantic:
            logger.warning("routing by words, not by meaning: %s", encoder.reason)
        self._encoder = encoder
        self._embedder = Embedder(encoder)
        bus.spawn(self._embedder.run(), name="embedder")
        kept = KeptVectors(
            bus.transport.key_value(EMBEDDINGS), encoder.fingerprint, encoder.dimensions
        )
        if encoder.semantic:  # spelling is faster computed than kept
            await kept.read(now=time.time())
            bus.spawn(kept.run(), name="kept vectors")
        self._directory = Directory(bus)
        self._index = Index(self._directory, self._embedder, kept)
        await self._directory.follow()
        await audit.prepare(bus)
        self._fits = Fits(bus, encoder.fingerprint)
        await self._fits.follow()
        tools = Tools(
            index=self._index,
            directory=self._directory,
            fits=self._fits,
            encoder=encoder,
            threshold=self._settings.router_threshold,
            in_scope=Policy().in_scope,
            feedback=bus.transport.stream(FEEDBACK),
            keeps_feedback=self._settings.router_feedback,
        )
        bus.spawn(self._index.run(), name="index")
        if not await self._index.until_whole(within_s=READY_S):
            logger.warning("%d texts are yet to be embedded", self._index.waiting)
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

    @property
    def _membership(self) -> Membership:
        return self._directory.membership

    def _find(self, key: ThingKey) -> Thing | None:
        entered = self._membership.get(key)
        return entered.thing if entered else None

    def _view(self, request: Decide, tenant: str) -> View:
        """What is true now, by the numbers of the channel."""
        view = self._index.view(tenant, request.channel, request.subset)
        learned = self._fits.learned(tenant, request.channel, view.learned)
        return view if learned is view.learned else View(learned, view.eligible)

    def _policy(self, request: Decide, call: Call, policy: Policy) -> Policy:
        """What is sure enough: by the settings, the channel's numbers, the caller."""
        fit = self._fits.of(call.tenant, request.channel)
        return policy_for(policy if fit is None else fit.policy(policy), request.threshold)

    # -- deciding --

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
            decision = await self._decide(request, call)
        times = {**decision.time_ms, "total": _ms(began)}
        self._outcomes[decision.outcome] += 1
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
        ranking = Ranking()
        if len(entered.thing.capabilities) > 1:
            (query,) = await self._index.queries([request.message])
            view = self._view(request, tenant)
            ranking = view.only(key).rank(query)
        return decision_for(key, entered.thing, ranking, encoder=self._encoder.name)

    async def _decide(self, request: Decide, call: Call) -> Decision:
        times: dict[str, float] = {}
        began = time.perf_counter()
        (query,) = await self._index.queries([request.message])
        times["embed"] = _ms(began)
        began = time.perf_counter()
        # Taken after the wait: what is decided by is what is true now.
        view = self._view(request, call.tenant)
        ranking = view.rank(query)
        times["search"] = _ms(began)
        message, together = request.message, False
        if before := message_before(request.history):
            began = time.perf_counter()
            ranking, together = await self._in_conversation(request, call, before, ranking)
            if together:
                message = f"{before}\n{message}"
            times["history"] = _ms(began)
        ranking = untied(ranking, self._membership.load)
        method = request.method or self._settings.router_method
        decision = None
        if request.parts and method != "llm" and not together:
            began = time.perf_counter()
            decision = await self._in_parts(request, view, ranking, call.tenant)
            times["split"] = _ms(began)
        if decision is None:
            decision = await self._settled(
                request, call, method, message, query, view, ranking, together, times
            )
        return decision.model_copy(update={"time_ms": times})

    async def _in_conversation(
        self, request: Decide, call: Call, before: str, ranking: Ranking
    ) -> tuple[Ranking, bool]:
        """The ranking of a message that comes after another, and whether they belong together."""
        if stays(request.message, ranking) < _LEAST_SHARE:
            return ranking, False
        earlier, both = await self._index.queries([before, f"{before}\n{request.message}"])
        view = self._view(request, call.tenant)
        if name := agent_before(request.history):
            key = ThingKey(call.tenant, name, request.subset)
        else:
            first = view.rank(earlier)
            if not first.ranked or not first.in_scope:
                return ranking, False
            key = first.ranked[0].key
        found = with_history(request.message, ranking, view.rank(both), key)
        return found, bool(found.ranked) and found is not ranking and found.ranked[0].key == key

    async def _in_parts(
        self, request: Decide, view: View, whole: Ranking, tenant: str
    ) -> Decision | None:
        """The decision for a message of several requests; None if it is one."""
        message = request.message
        wanted = spans(message)
        if not wanted:
            return None
        queries = await self._index.queries([span.of(message) for span in wanted])
        rankings: dict[Span, Ranking] = {
            span: view.rank(query) for span, query in zip(wanted, queries, strict=True)
        }
        rankings[Span(0, len(message))] = whole
        routed: dict[Span, Heard] = {}
        for span, ranking in rankings.items():
            if (one := heard(ranking)) is not None:
                routed[span] = one
        found = parts(message, routed)
        if len(found) < 2:
            return None
        return decision_of_parts(
            message,
            found,
            rankings,
            whole,
            tenant,
            self._find,
            limit=request.limit,
            encoder=self._encoder.name,
        )

    async def _settled(
        self,
        request: Decide,
        call: Call,
        method: str,
        message: str,
        query: Query,
        view: View,
        ranking: Ranking,
        together: bool,
        times: dict[str, float],
    ) -> Decision:
        used: ModelUse | None = None
        if method in ("llm", "hybrid"):
            began = time.perf_counter()
            by: Literal["llm", "hybrid"] = "llm" if method == "llm" else "hybrid"
            settled, ranking, used = await self._by_model(
                request, call, by, message, query, view, ranking
            )
            if used is not None:
                times["model"] = _ms(began)
        else:
            policy = self._policy(request, call, Policy(route=self._settings.router_threshold))
            settled = alone(seen_of(ranking), policy)
        return decision_of(
            settled,
            ranking,
            call.tenant,
            self._find,
            limit=request.limit,
            encoder=self._encoder.name,
            used=used,
            together=together,
        )

    async def _by_model(
        self,
        request: Decide,
        call: Call,
        method: Literal["llm", "hybrid"],
        message: str,
        query: Query,
        view: View,
        ranking: Ranking,
    ) -> tuple[Settled, Ranking, ModelUse | None]:
        """What is decided where a language model may be asked; and what was asked of it."""
        settings = self._settings
        policy = self._policy(
            request, call, settings.policy(method, route=settings.router_threshold)
        )
        seen = seen_of(ranking)
        if method == "llm":
            options = offered(seen, policy.candidates)
        else:
            hits = nearest_examples(query, view.learned, view.eligible) if policy.fast_track else ()
            look = first_look(seen, policy, hits)
            if not isinstance(look, AskModel):
                self._account.note(None, None)
                return look, ranking, None
            options = look.options
        if not options:
            return alone(seen, policy), ranking, None
        answer, used = await self._ask(
            request, call, message, cards(options, call.tenant, self._find)
        )
        # Whoever left meanwhile cannot be chosen any more.
        now = self._view(request, call.tenant)
        ranking = still_there(ranking, now.agents.__contains__)
        seen = seen_of(ranking)
        if isinstance(answer, Requirements):
            found = ranking
            if answer.texts:
                (needed,) = await self._index.queries([" ".join(answer.texts)])
                found = untied(now.rank(needed), self._membership.load)
            settled = settle_search(seen, answer, seen_of(found), policy, method=method)
            ranking = found
        else:
            settled = settle(seen, answer, policy, method=method)
        self._account.note(used, answer, settled.how)
        return settled, ranking, used

    async def _ask(
        self, request: Decide, call: Call, message: str, offer: list[Card]
    ) -> tuple[Answer, ModelUse | None]:
        if self._model is None:
            return NoHelp(failure="unreachable", note=_NO_MODEL), None
        task: Literal["classify", "extract"] = self._settings.router_llm_design
        prompt = prompt_for(
            task,
            message,
            offer,
            prompts=self._prompts,
            channel=request.channel,
            language=request.language,
        )
        return await self._model.ask(prompt, remaining_s=call.remaining_s)

    # -- the other endpoints --

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
            membership = self._membership
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
        index, progress, account = self._index, self._index.progress, self._account
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
            embedded=progress.embedded,
            kept=progress.kept,
            decided=dict(self._outcomes),
            model=self._settings.router_llm_model,
            model_note=self._model.resting if self._model else "",
            model_share=round(account.share, 4),
            model_calls=account.calls,
            model_cost=account.cost,
            model_failed=dict(account.fell_back),
        )


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
