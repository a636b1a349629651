"""Carries one decision through: gets vectors, takes what is true, asks a model where it must."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from lmos_mesh.calls import Call
from lmos_mesh.errors import AgentNotFound, InvalidMessage
from lmos_mesh.membership import Membership, how_to_start
from lmos_mesh.messages import Decide, Decision, ModelUse
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh.wiring import Wiring, not_in
from lmos_mesh_router.deciding import (
    Find,
    agent_before,
    as_the_channel_has_it,
    cards,
    decision_for,
    decision_of,
    decision_of_parts,
    fallen_back,
    message_before,
    nearest_examples,
    policy_for,
    seen_of,
    still_there,
    unresolved,
    untied,
)
from lmos_mesh_router.evidence import Query
from lmos_mesh_router.fits import Fits
from lmos_mesh_router.follow_up import stays, with_history
from lmos_mesh_router.hybrid import (
    AskModel,
    Option,
    Policy,
    Settled,
    alone,
    first_look,
    offered,
    settle,
    settle_search,
)
from lmos_mesh_router.indexing import Index
from lmos_mesh_router.llm import Answer, NoHelp, Requirements
from lmos_mesh_router.model_client import LanguageModel
from lmos_mesh_router.prompts import Prompts, prompt_for
from lmos_mesh_router.ranking import Ranking
from lmos_mesh_router.settings import RouterSettings
from lmos_mesh_router.spending import Account
from lmos_mesh_router.splitting import Heard, Span, heard, parts, spans
from lmos_mesh_router.view import View

NO_MODEL = "no language model is configured (LMOS_ROUTER_LLM_BASE_URL)"

_LEAST_SHARE = 0.1
"""Of belonging to the message before; below it that message is not looked at."""


@dataclass(frozen=True, eq=False)
class _Question:
    """A message on its way to a decision.

    Attributes:
        text: What was said; with the message before it, if both belong together.
        query: The message alone, as vectors.
        find: Gives the record of an agent, as the channel sees it.
        view: What was true when it was ranked.
        ranking: What vectors say of it.
        times: Milliseconds per step; filled as it goes.
    """

    request: Decide
    call: Call
    text: str
    query: Query
    find: Find
    view: View
    ranking: Ranking
    together: bool = False
    times: dict[str, float] = field(default_factory=dict[str, float])


class Decider:
    """Decides who should answer.

    Attributes:
        outcomes: Decisions so far, by outcome.
        account: What the language model did and cost so far.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        index: Index,
        fits: Fits,
        membership: Membership,
        encoder: str,
        model: LanguageModel | None,
        prompts: Prompts,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.account = Account()
        self._settings = settings
        self._index = index
        self._fits = fits
        self._membership = membership
        self._encoder = encoder
        self._model = model
        self._prompts = prompts

    async def decide(self, request: Decide, call: Call) -> Decision:
        """Which agent should answer.

        Raises:
            AgentNotFound: The agent that the caller names is not there, or not in the channel.
            InvalidMessage: `explicit` without an agent.
        """
        began = time.perf_counter()
        wiring = self._index.wiring(call.tenant, request.channel, request.subset)
        if request.agent is not None:
            decision = await self._named(request, request.agent, call.tenant, wiring)
        elif request.method == "explicit":
            raise InvalidMessage("/agent: is needed with method `explicit`", field="/agent")
        elif wiring is not None and not wiring.resolved:
            decision = unresolved(wiring)
        else:
            decision = await self._found(as_the_channel_has_it(request, wiring), call)
            decision = self._or_fallback(decision, request, call.tenant)
        self.outcomes[decision.outcome] += 1
        return decision.model_copy(update={"time_ms": {**decision.time_ms, "total": _ms(began)}})

    def _find(self, key: ThingKey) -> Thing | None:
        """Whom the tenant of a key means by it."""
        meant = self._membership.meant(*key)
        entered = self._membership.get(meant) if meant is not None else None
        return entered.thing if entered else None

    def _finder(self, request: Decide, tenant: str) -> Find:
        """Gives agents with the capabilities that they have in the channel."""
        wiring = self._index.wiring(tenant, request.channel, request.subset)
        if wiring is None:
            return self._find

        def find(key: ThingKey) -> Thing | None:
            one = self._find(key)
            if one is None:
                return None
            return wiring.narrowed(one, ThingKey(one.tenant, one.name, one.subset))

        return find

    def _or_fallback(self, decision: Decision, request: Decide, tenant: str) -> Decision:
        """The decision, or where nobody is sure, who answers then on the channel."""
        wiring = self._index.wiring(tenant, request.channel, request.subset)
        if wiring is None or wiring.fallback is None or decision.outcome in ("routed", "several"):
            return decision
        key = self._membership.meant(*wiring.fallback)
        thing = self._find(key) if key is not None else None
        if (
            key is None
            or thing is None
            or not self._membership.live(key)
            or not thing.serves(request.channel)
        ):
            return decision
        return fallen_back(decision, key, wiring.narrowed(thing, key))

    def _view(self, request: Decide, tenant: str) -> View:
        """What is true now, by the numbers of the channel."""
        view = self._index.view(tenant, request.channel, request.subset)
        learned = self._fits.learned(tenant, request.channel, view.learned)
        return view if learned is view.learned else View(learned, view.eligible)

    def _policy(self, request: Decide, call: Call, policy: Policy) -> Policy:
        """What is sure enough: by the settings, the channel's numbers, the caller."""
        fit = self._fits.of(call.tenant, request.channel)
        return policy_for(policy if fit is None else fit.policy(policy), request.threshold)

    # -- by name --

    async def _named(
        self, request: Decide, name: str, tenant: str, wiring: Wiring | None
    ) -> Decision:
        key = self._membership.meant(tenant, name, request.subset)
        thing = self._find(key) if key is not None else None
        if key is None or thing is None or not self._membership.live(key):
            wanted = ThingKey(tenant, name, request.subset)
            raise self._missing(wanted, registered=thing is not None)
        if wiring is not None:
            if not wiring.admits(key) or not thing.serves(request.channel):
                raise not_in(wiring, name)
            thing = wiring.narrowed(thing, key)
        ranking = Ranking()
        if len(thing.capabilities) > 1:
            (query,) = await self._index.queries([request.message])
            ranking = self._view(request, tenant).only(key, thing).rank(query)
        return decision_for(key, thing, ranking, encoder=self._encoder)

    def _missing(self, key: ThingKey, *, registered: bool) -> AgentNotFound:
        near = self._membership.near(key.tenant, key.name)
        hint = "see `lmos agents`"
        if registered:
            state = "has no instance running"
        elif self._membership.stopped(key):
            state = "is stopped"
            hint = how_to_start(key)
        elif subsets := self._membership.subsets(key.tenant, key.name):
            state = f"has no subset {key.subset!r}"
            hint = f"it has {', '.join(subsets)}"
        else:
            state = "does not exist"
            hint = f"did you mean {', '.join(near)}?" if near else hint
        return AgentNotFound(f"agent {key.name!r} {state} in {key.tenant!r}", hint=hint, near=near)

    # -- by what was said --

    async def _found(self, request: Decide, call: Call) -> Decision:
        began = time.perf_counter()
        (query,) = await self._index.queries([request.message])
        times = {"embed": _ms(began)}
        began = time.perf_counter()
        # Taken after the wait: what is decided by is what is true now.
        view = self._view(request, call.tenant)
        find = self._finder(request, call.tenant)
        question = _Question(
            request, call, request.message, query, find, view, view.rank(query), times=times
        )
        times["search"] = _ms(began)
        if before := message_before(request.history):
            began = time.perf_counter()
            question = await self._in_conversation(question, before)
            times["history"] = _ms(began)
        question = replace(question, ranking=untied(question.ranking, self._membership.load))
        method = request.method or self._settings.router_method
        decision = None
        if request.parts and method != "llm" and not question.together:
            began = time.perf_counter()
            decision = await self._in_parts(question, method)
            times["split"] = _ms(began)
        if decision is None:
            decision = await self._whole(question, method)
        return decision.model_copy(update={"time_ms": times})

    async def _in_conversation(self, question: _Question, before: str) -> _Question:
        """The same, ranked as what comes after another message."""
        request, alone_ = question.request, question.ranking
        if stays(request.message, alone_) < _LEAST_SHARE:
            return question
        text = f"{before}\n{request.message}"
        earlier, both = await self._index.queries([before, text])
        view = self._view(request, question.call.tenant)
        if name := agent_before(request.history):
            key = self._membership.meant(question.call.tenant, name, request.subset)
        else:
            first = view.rank(earlier)
            if not first.ranked or not first.in_scope:
                return question
            key = first.ranked[0].key
        found = with_history(request.message, alone_, view.rank(both), key)
        if found is alone_ or not found.ranked:
            return question
        if found.ranked[0].key != key:
            return replace(question, ranking=found)
        return replace(question, text=text, ranking=found, together=True)

    async def _in_parts(self, question: _Question, method: str) -> Decision | None:
        """The decision for a message of several requests; None if it is one."""
        message = question.request.message
        wanted = spans(message)
        if not wanted:
            return None
        vectors = await self._index.queries([span.of(message) for span in wanted])
        queries = dict(zip(wanted, vectors, strict=True))
        rankings = {span: question.view.rank(query) for span, query in queries.items()}
        rankings[Span(0, len(message))] = question.ranking
        routed: dict[Span, Heard] = {}
        for span, ranking in rankings.items():
            if (one := heard(ranking)) is not None:
                routed[span] = one
        found = parts(message, routed)
        if len(found) < 2:
            return None
        decided: dict[Span, Decision] = {}
        for span in found:
            part = replace(
                question,
                text=span.of(message),
                query=queries[span],
                ranking=untied(rankings[span], self._membership.load),
            )
            decision = await self._whole(part, method)
            decided[span] = self._or_fallback(decision, question.request, question.call.tenant)
        return decision_of_parts(
            message,
            decided,
            question.ranking,
            question.call.tenant,
            question.find,
            limit=question.request.limit,
            encoder=self._encoder,
        )

    async def _whole(self, question: _Question, method: str) -> Decision:
        """The decision for a message that is taken for one request."""
        request, call, ranking = question.request, question.call, question.ranking
        used: ModelUse | None = None
        if method == "vector":
            policy = Policy(route=self._settings.router_threshold)
            settled = alone(seen_of(ranking), self._policy(request, call, policy))
        else:
            began = time.perf_counter()
            settled, ranking, used = await self._by_model(
                question, "llm" if method == "llm" else "hybrid"
            )
            if used is not None:
                question.times["model"] = _ms(began)
        return decision_of(
            settled,
            ranking,
            call.tenant,
            question.find,
            limit=request.limit,
            encoder=self._encoder,
            used=used,
            together=question.together,
        )

    # -- by a language model --

    async def _by_model(
        self, question: _Question, method: Literal["llm", "hybrid"]
    ) -> tuple[Settled, Ranking, ModelUse | None]:
        """What is decided where a model may be asked; and what was asked of it."""
        request, call, ranking = question.request, question.call, question.ranking
        policy = self._settings.policy(method, route=self._settings.router_threshold)
        policy = self._policy(request, call, policy)
        seen = seen_of(ranking)
        if method == "llm":
            options = offered(seen, policy.candidates)
        else:
            view = question.view
            hits = (
                nearest_examples(question.query, view.learned, view.eligible)
                if policy.fast_track
                else ()
            )
            look = first_look(seen, policy, hits)
            if not isinstance(look, AskModel):
                self.account.note(None, None)
                return look, ranking, None
            options = look.options
        if not options:
            return alone(seen, policy), ranking, None
        answer, used = await self._ask(question, options)
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
        self.account.note(used, answer, settled.how)
        return settled, ranking, used

    async def _ask(
        self, question: _Question, options: tuple[Option, ...]
    ) -> tuple[Answer, ModelUse | None]:
        if self._model is None:
            return NoHelp(failure="unreachable", note=NO_MODEL), None
        prompt = prompt_for(
            self._settings.router_llm_design,
            question.text,
            cards(options, question.call.tenant, question.find),
            prompts=self._prompts,
            channel=question.request.channel,
            language=question.request.language,
        )
        return await self._model.ask(prompt, remaining_s=question.call.remaining_s)


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
