"""One decision from what is known and what was asked: between rankings and the wire. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmos_mesh.messages import Candidate, Decide, Decision, ModelUse, Part, Utterance
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh.wiring import Wiring
from lmos_mesh_router.evidence import Mask, Query
from lmos_mesh_router.hybrid import FAST_TRACK_HITS, Hit, Option, Policy, Seen, Settled, lmos_score
from lmos_mesh_router.prompts import Card
from lmos_mesh_router.ranking import Learned, Ranked, Ranking
from lmos_mesh_router.splitting import Span

TIED = 0.02
"""Probabilities that differ by no more than this say nothing about which is the right one."""

Find = Callable[[ThingKey], Thing | None]


# -- rankings --


def untied(ranking: Ranking, load: Callable[[ThingKey], float]) -> Ranking:
    """The same with the least busy of the agents first that are as likely as the first.

    Agents for which the very same words spoke loudest can do the same thing: it does not matter
    which of them it is, and so the one that is chosen is as likely as they are together.
    """
    if len(ranking.ranked) < 2:
        return ranking
    first = ranking.ranked[0]
    tied = [one for one in ranking.ranked if first.probability - one.probability <= TIED]
    if len(tied) < 2:
        return ranking
    ordered = sorted(tied, key=lambda one: (load(one.key), -one.probability, one.key))
    best = ordered[0]
    alike = [one for one in tied if _says(one) == _says(best)]
    if len(alike) > 1:
        total = min(1.0, sum(one.probability for one in alike))
        same = {one.key for one in alike}
        rest = [one._replace(probability=0.0) if one.key in same else one for one in ordered[1:]]
        others = [*rest, *ranking.ranked[len(tied) :]]
        others.sort(key=lambda one: -one.probability)
        possible = (best.key, *(key for key in ranking.possible if key not in same))
        return replace(
            ranking,
            ranked=(best._replace(probability=total), *others),
            possible=possible,
        )
    return replace(ranking, ranked=(*ordered, *ranking.ranked[len(tied) :]))


def _says(one: Ranked) -> str:
    return " ".join(one.evidence.text.casefold().split())


def still_there(ranking: Ranking, eligible: Callable[[ThingKey], bool]) -> Ranking:
    """The same without agents that left while somebody else was asked."""
    kept = tuple(one for one in ranking.ranked if eligible(one.key))
    if len(kept) == len(ranking.ranked):
        return ranking
    whole = sum(one.probability for one in kept) or 1.0
    return replace(
        ranking,
        ranked=tuple(one._replace(probability=one.probability / whole) for one in kept),
        possible=tuple(key for key in ranking.possible if eligible(key)),
    )


def nearest_examples(query: Query, learned: Learned, eligible: Mask) -> list[Hit]:
    """The nearest of all examples, as LMOS's rule wants them."""
    matrix = learned.matrix
    allowed = np.repeat(eligible, np.diff(matrix.starts))
    rows = np.flatnonzero(allowed)
    rows = rows[[matrix.evidence[int(row)].kind == "example" for row in rows]]
    if not len(rows):
        return []
    near = matrix.vectors[rows] @ query.vector
    order = np.argsort(-near, kind="stable")[:FAST_TRACK_HITS]
    found: list[Hit] = []
    for at in order.tolist():
        key = matrix.evidence[int(rows[at])].key
        found.append(Hit(agent=key.name, subset=key.subset, score=lmos_score(float(near[at]))))
    return found


# -- a conversation --


def message_before(history: Sequence[Utterance]) -> str:
    """What the user said last; empty if nothing."""
    return next((one.content for one in reversed(history) if one.role == "user"), "")


def agent_before(history: Sequence[Utterance]) -> str:
    """Who answered last; empty if that is not known."""
    for one in reversed(history):
        if one.role == "user":
            return ""
        if one.role == "assistant" and one.agent:
            return one.agent
    return ""


# -- what is seen --


def seen_of(ranking: Ranking) -> Seen:
    """What vectors say of a message."""
    return Seen(
        options=tuple(
            Option(
                agent=one.key.name,
                subset=one.key.subset,
                capability=one.capability,
                probability=one.probability,
            )
            for one in ranking.ranked
        ),
        in_scope=ranking.share,
        could_be=tuple((key.name, key.subset) for key in ranking.possible),
    )


def policy_for(policy: Policy, threshold: float | None) -> Policy:
    """The policy for a caller; one who needs no certainty gets whatever is nearest."""
    if threshold == 0:
        return replace(policy, route=0.0, in_scope=0.0, reject=0.0)
    return policy.at(threshold)


def cards(options: Iterable[Option], tenant: str, find: Find) -> list[Card]:
    """What a language model may know of these agents."""
    found: list[Card] = []
    for one in options:
        thing = find(ThingKey(tenant, one.agent, one.subset))
        if thing is not None:
            found.append(
                Card(
                    agent=one.agent,
                    subset=one.subset,
                    description=thing.description,
                    capabilities=thing.capabilities,
                )
            )
    return found


# -- what is answered --


def decision_of(
    settled: Settled,
    ranking: Ranking,
    tenant: str,
    find: Find,
    *,
    limit: int,
    encoder: str,
    used: ModelUse | None = None,
    together: bool = False,
) -> Decision:
    """What is answered.

    Args:
        settled: What was decided.
        ranking: What vectors say: the evidence for each agent.
        tenant: Whose agents they are.
        find: Gives the record of an agent.
        limit: How many candidates to name.
        encoder: What the vectors came from.
        used: What was asked of a language model.
        together: Whether the message was read together with the one before it.
    """
    by_key = {(one.key.name, one.key.subset): one for one in ranking.ranked}
    candidates = tuple(
        _candidate(one, by_key.get(one.key), find(ThingKey(tenant, *one.key)))
        for one in settled.order[:limit]
    )
    chosen = settled.chosen
    routed = settled.outcome == "routed" and chosen is not None
    best = by_key.get(settled.order[0].key) if settled.order else None
    return Decision(
        outcome=settled.outcome,
        agent=chosen.agent if routed and chosen else "",
        subset=chosen.subset if routed and chosen else "stable",
        capability=candidates[0].capability if routed and candidates else "",
        confidence=settled.confidence,
        candidates=candidates,
        in_scope=ranking.share,
        could_be=tuple(agent for agent, _ in settled.could_be),
        method=settled.method,
        reason=_reason(settled.reason, best, together=together),
        encoder=encoder,
        used=used,
    )


def _candidate(option: Option, ranked: Ranked | None, thing: Thing | None) -> Candidate:
    known = thing.capabilities if thing else ()
    found = next((one for one in known if one.id == option.capability), None)
    if found is None and known:
        # What it was before it changed a moment ago.
        found = known[0]
    return Candidate(
        agent=option.agent,
        subset=option.subset,
        capability=found.id if found else option.capability,
        capability_name=found.name if found else option.capability,
        score=round(option.probability, 4),
        similarity=round(ranked.similarity, 4) if ranked else 0.0,
        evidence=ranked.evidence.text if ranked else "",
    )


def _reason(reason: str, best: Ranked | None, *, together: bool) -> str:
    said = [reason]
    if best is not None:
        said.append(f"what is nearest is {quoted(best)}")
    if together:
        said.append("it was read together with the message before it")
    return "; ".join(said)


def quoted(one: Ranked) -> str:
    """The text that spoke for an agent, shortened."""
    text = one.evidence.text if len(one.evidence.text) <= 60 else f"{one.evidence.text[:57]}…"
    return f"its {_KINDS[one.evidence.kind]} “{text}” ({one.similarity:.2f})"


_KINDS: Mapping[str, str] = {
    "example": "example",
    "name": "name, as in",
    "description": "description",
    "agent": "description",
}


def decision_of_parts(
    message: str,
    parts: Mapping[Span, Decision],
    whole: Ranking,
    tenant: str,
    find: Find,
    *,
    limit: int,
    encoder: str,
) -> Decision | None:
    """What is answered to a message of several requests; None where it is one after all.

    Args:
        message: All that was said.
        parts: What is decided for each of its requests, in order.
        whole: What vectors say of all of it.
        tenant: Whose agents they are.
        find: Gives the record of an agent.
        limit: How many candidates to name.
        encoder: What the vectors came from.
    """
    routed = [one for one in parts.values() if one.outcome == "routed"]
    if all(one.method == "fallback" for one in routed):
        return None
    names = " and ".join(dict.fromkeys(one.agent or "nobody" for one in parts.values()))
    options = seen_of(whole).options
    by_key = {(one.key.name, one.key.subset): one for one in whole.ranked}
    used = [one.used for one in parts.values() if one.used is not None]
    return Decision(
        outcome="several",
        confidence=min(one.confidence for one in parts.values()),
        candidates=tuple(
            _candidate(one, by_key.get(one.key), find(ThingKey(tenant, *one.key)))
            for one in options[:limit]
        ),
        in_scope=min(one.in_scope for one in parts.values()),
        could_be=tuple(dict.fromkeys(one.agent for one in routed)),
        parts=tuple(_part(span.of(message).strip(), one) for span, one in parts.items()),
        method=next((one.method for one in parts.values() if one.used is not None), "vector"),
        reason=f"the message is {len(parts)} requests, for {names}",
        encoder=encoder,
        used=_summed(used),
    )


def _part(text: str, decision: Decision) -> Part:
    routed = decision.outcome == "routed"
    return Part(
        text=text,
        agent=decision.agent,
        subset=decision.subset,
        capability=decision.capability,
        confidence=decision.confidence,
        outcome="nobody" if decision.outcome == "several" else decision.outcome,
        candidates=() if routed else decision.candidates,
    )


def _summed(used: Sequence[ModelUse]) -> ModelUse | None:
    """What all parts have asked of a language model."""
    if not used:
        return None
    return ModelUse(
        model=used[0].model,
        calls=sum(one.calls for one in used),
        prompt_tokens=sum(one.prompt_tokens for one in used),
        completion_tokens=sum(one.completion_tokens for one in used),
        cost=sum(one.cost for one in used),
    )


def as_the_channel_has_it(request: Decide, wiring: Wiring | None) -> Decide:
    """The question with what the channel says where the caller says nothing."""
    if wiring is None:
        return request
    said = {
        name: value
        for name in ("method", "threshold", "language")
        if getattr(request, name) is None and (value := getattr(wiring.router, name)) is not None
    }
    return request.model_copy(update=said) if said else request


def unresolved(wiring: Wiring) -> Decision:
    """What is answered where nobody may be asked yet."""
    return Decision(outcome="nobody", reason=f"{wiring} has never been resolved to a Routing")


def fallen_back(decision: Decision, key: ThingKey, thing: Thing) -> Decision:
    """The same, for the agent that answers where nobody is sure."""
    first = thing.capabilities[0].id if thing.capabilities else ""
    return decision.model_copy(
        update={
            "outcome": "routed",
            "agent": key.name,
            "subset": key.subset,
            "capability": first,
            "method": "fallback",
            "reason": f"{decision.reason}; {key.name} is who answers then on this channel",
        }
    )


def decision_for(key: ThingKey, thing: Thing, ranking: Ranking, *, encoder: str) -> Decision:
    """The decision for an agent that the caller named: which of its capabilities."""
    best = ranking.ranked[0] if ranking.ranked else None
    option = Option(
        agent=key.name,
        subset=key.subset,
        capability=best.capability if best else "",
        probability=1.0,
    )
    candidate = _candidate(option, best, thing)
    return Decision(
        outcome="routed",
        agent=key.name,
        subset=key.subset,
        capability=candidate.capability,
        confidence=1.0,
        candidates=(candidate,),
        could_be=(key.name,),
        method="explicit",
        encoder=encoder,
        reason=f"the caller asked for {key.name}",
    )
