"""When vectors decide alone, when a language model is asked, what holds if they differ. Pure.

Both are taken for witnesses. The vectors say how likely each agent is, calibrated; the model names
one and is known to be right about so often. What follows from both together is Bayes' rule, so a
model overrules vectors that are in doubt and not such as are nearly certain, and where neither
convinces, the user is asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lmos_mesh.things import DEFAULT_SUBSET
from lmos_mesh_router.llm import Choice, NoHelp, Requirements

Key = tuple[str, str]
"""An agent and its subset."""

Outcome = Literal["routed", "unsure", "out_of_scope", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An agent that it could be.

    Attributes:
        capability: The id of its likeliest capability.
        probability: How likely it is the right one, given that one of them is; calibrated.
    """

    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    probability: float

    @property
    def key(self) -> Key:
        """Which agent it is."""
        return self.agent, self.subset


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the vectors say of a message.

    Attributes:
        options: The agents, the likeliest first.
        in_scope: The share of messages in scope that are further from what is known than this one.
        could_be: The agents that it is with 95 % probability (a conformal set).
    """

    options: tuple[Option, ...] = ()
    in_scope: float = 1.0
    could_be: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is sure enough.

    Attributes:
        sure: The least probability with which the vectors decide alone.
        in_scope: The least share at which a message counts as in scope.
        reject: The share below which it is refused without asking a model.
        route: The least confidence to route with in the end.
        candidates: How many agents a model chooses from.
        model_right: How often a model that names an agent, or none, is right.
        strangers: How many of all messages are for nobody.
        fast_track: LMOS's rule for when to ask a model, instead of `sure` and `in_scope`; the
            model's word then stands.
    """

    sure: float = 0.9
    in_scope: float = 0.05
    reject: float = 0.01
    route: float = 0.5
    candidates: int = 5
    model_right: float = 0.9
    strangers: float = 0.1
    fast_track: Literal["", "lmos", "lmos-readme"] = ""

    def at(self, threshold: float | None) -> "Policy":
        """The policy for a caller who says how sure the router must be."""
        if threshold is None:
            return self
        return replace(self, route=threshold, sure=max(self.sure, threshold))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What is decided.

    Attributes:
        chosen: None unless routed.
        order: All options, the likeliest first, with what is thought of them in the end.
        could_be: Those that it could be, where the user is to be asked.
        method: What decided in the end.
        how: Whether model and vectors agreed, or the model's word changed what they said.
    """

    outcome: Outcome
    chosen: Option | None = None
    confidence: float = 0.0
    order: tuple[Option, ...] = ()
    could_be: tuple[Key, ...] = ()
    method: Literal["vector", "llm", "hybrid"] = "vector"
    reason: str = ""
    how: Literal["", "agreed", "overruled"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskModel:
    """A language model shall decide.

    Attributes:
        options: Whom to offer it.
        because: Why the vectors do not decide, as a clause.
    """

    options: tuple[Option, ...]
    because: str


# -- before a model is asked --


def first_look(seen: Seen, policy: Policy, hits: Sequence["Hit"] = ()) -> Settled | AskModel:
    """What the method `hybrid` does with what the vectors say.

    Args:
        seen: What the vectors say.
        policy: What is sure enough.
        hits: The nearest examples, the nearest first; for LMOS's rule only.
    """
    if not seen.options:
        return _nobody()
    if policy.fast_track:
        return _as_lmos(seen, policy, hits)
    first = seen.options[0]
    if seen.in_scope < policy.reject:
        return _out_of_scope(seen, "nothing that the agents can do is anywhere near")
    if seen.in_scope >= policy.in_scope:
        if first.probability >= policy.sure:
            return _routed(seen, f"{first.agent} is clearly the nearest ({_said(first)})")
        because = f"{first.agent} is the nearest but not clearly ({_said(first)})"
    else:
        because = f"it is further from {first.agent} than nearly all that is in scope"
    return AskModel(options=offered(seen, policy.candidates), because=because)


def offered(seen: Seen, count: int) -> tuple[Option, ...]:
    """The agents that a model chooses from: those that it could be, then the next likely."""
    possible = set(seen.could_be)
    ordered = sorted(seen.options, key=lambda one: (one.key not in possible, -one.probability))
    return tuple(ordered[: max(1, count)])


def alone(seen: Seen, policy: Policy, note: str = "") -> Settled:
    """What the vectors decide without a model.

    Args:
        seen: What they say.
        policy: What is sure enough.
        note: Why no model helped, as a clause.
    """
    if not seen.options:
        return _nobody()
    first = seen.options[0]
    behind = f"; {note}" if note else ""
    if seen.in_scope < policy.in_scope:
        return _out_of_scope(seen, f"it is too far from what the agents can do{behind}")
    if first.probability >= policy.route:
        return _routed(seen, f"{first.agent} is the nearest ({_said(first)}){behind}")
    return _unsure(
        seen.options,
        seen.could_be or (first.key,),
        first.probability,
        f"{first.agent} is the nearest but not convincing ({_said(first)}){behind}",
        method="vector",
    )


# -- after it was asked --


def settle(
    seen: Seen,
    said: Choice | NoHelp,
    policy: Policy,
    *,
    method: Literal["llm", "hybrid"] = "hybrid",
    otherwise: Settled | None = None,
) -> Settled:
    """What holds after a model was asked.

    By `llm`, and by LMOS's rule, its word stands and the vectors only say how sure that is.

    Args:
        seen: What the vectors say.
        said: What the model says.
        policy: What is sure enough.
        method: What was asked for.
        otherwise: What to decide if the model did not help; by itself what the vectors say.
    """
    if isinstance(said, NoHelp):
        if otherwise is None:
            return alone(seen, policy, said.note)
        return _noted(otherwise, said.note)
    if not seen.options:
        return _nobody()
    known = {one.key: one for one in seen.options}
    named = _option(said, known)
    if said.card is not None and named is None:
        left = f"{said.card.agent}, which the model chose, has left"
        return alone(seen, policy, left) if otherwise is None else _noted(otherwise, left)
    told = f": {said.reason}" if said.reason else ""
    possible = tuple(
        (card.agent, card.subset) for card in said.could_be if (card.agent, card.subset) in known
    )
    if named is None and len(possible) > 1:
        belief = _before(seen, policy)
        order = _ordered(seen.options, belief)
        asked = tuple(one.key for one in order if one.key in possible)
        names = " or ".join(agent for agent, _ in asked)
        return _unsure(
            order, asked, belief[asked[0]], f"the model says it could be {names}{told}", method
        )
    if named is None and possible:
        named = known[possible[0]]  # all that it could be is one
    belief = beliefs(seen, named.key if named else None, policy)
    if method == "llm" or policy.fast_track:
        return _believed(seen, named, belief, policy, method, told)
    return _weighed(seen, named, belief, policy, told)


def settle_search(
    seen: Seen,
    needs: Requirements,
    found: Seen,
    policy: Policy,
    *,
    method: Literal["llm", "hybrid"] = "hybrid",
) -> Settled:
    """What holds after a model said what is needed and that was searched for.

    Args:
        seen: What the vectors say of the message.
        needs: What the model says is needed.
        found: What the vectors say of that; the same as `seen` if nothing is.
        policy: What is sure enough.
        method: What was asked for.
    """
    if not seen.options:
        return _nobody()
    before = alone(seen, policy)
    if not needs.texts:
        settled = _out_of_scope(seen, "the model finds nothing that is asked for")
    else:
        settled = alone(found, policy)
        settled = replace(settled, reason=f"it needs: {' '.join(needs.texts)}: {settled.reason}")
    same = (settled.outcome, settled.chosen and settled.chosen.key) == (
        before.outcome,
        before.chosen and before.chosen.key,
    )
    return replace(settled, method=method, how="agreed" if same else "overruled")


def beliefs(seen: Seen, named: Key | None, policy: Policy) -> Mapping[Key | None, float]:
    """How likely each agent is, and nobody (None), once a model has named one, or nobody.

    Args:
        seen: What the vectors say.
        named: What the model said; None for nobody.
        policy: How much a model is worth.
    """
    prior = _before(seen, policy)
    wrong = (1 - policy.model_right) / max(1, min(len(seen.options), policy.candidates))
    weighed = {
        key: before * (policy.model_right if key == named else wrong)
        for key, before in prior.items()
    }
    whole = sum(weighed.values())
    return {key: weight / whole for key, weight in weighed.items()}


def _before(seen: Seen, policy: Policy) -> dict[Key | None, float]:
    """What is believed before a model has said anything."""
    stranger = _stranger(seen, policy)
    total = sum(one.probability for one in seen.options) or 1.0
    believed: dict[Key | None, float] = {
        one.key: (1 - stranger) * max(one.probability / total, 1e-6) for one in seen.options
    }
    believed[None] = stranger
    return believed


def _stranger(seen: Seen, policy: Policy) -> float:
    """How likely a message on this side of the gate is for nobody.

    The gate lets pass what it is set to of those in scope, and a quarter of the others, as measured
    on CLINC150.
    """
    own, others = 1 - policy.strangers, policy.strangers
    if seen.in_scope >= policy.in_scope:
        passed = others * 0.25
        return passed / (passed + own * (1 - policy.in_scope))
    stopped = others * 0.75
    return stopped / (stopped + own * policy.in_scope)


def _option(said: Choice, known: Mapping[Key, Option]) -> Option | None:
    if said.card is None:
        return None
    found = known.get((said.card.agent, said.card.subset))
    if found is None:
        return None
    return replace(found, capability=said.capability or found.capability)


def _believed(
    seen: Seen,
    named: Option | None,
    belief: Mapping[Key | None, float],
    policy: Policy,
    method: Literal["llm", "hybrid"],
    told: str,
) -> Settled:
    order = _ordered(seen.options, belief)
    first = seen.options[0]
    if named is None:
        return Settled(
            outcome="out_of_scope",
            confidence=belief[order[0].key],
            order=order,
            method=method,
            reason=f"the model says that none of the agents can do this{told}",
            how="agreed" if alone(seen, policy).outcome == "out_of_scope" else "overruled",
        )
    chosen = replace(named, probability=belief[named.key])
    rest = tuple(one for one in order if one.key != named.key)
    return Settled(
        outcome="routed",
        chosen=chosen,
        confidence=chosen.probability,
        order=(chosen, *rest),
        could_be=(named.key,),
        method=method,
        reason=f"the model chose {named.agent}{told}",
        how="agreed" if named.key == first.key else "overruled",
    )


def _weighed(
    seen: Seen,
    named: Option | None,
    belief: Mapping[Key | None, float],
    policy: Policy,
    told: str,
) -> Settled:
    first = seen.options[0]
    order = _ordered(seen.options, belief, named)
    top = order[0]
    nearest = f"{first.agent} is the nearest ({_said(first)})"
    if named is None:
        if belief[None] >= max(policy.route, belief[top.key]):
            return Settled(
                outcome="out_of_scope",
                confidence=belief[top.key],
                order=order,
                method="hybrid",
                reason=f"{nearest}, but the model says that nobody can do this{told}",
                how="overruled",
            )
        clause = f"{nearest}, the model says that nobody can do this"
    elif named.key == first.key:
        clause = f"{nearest} and the model says so too"
    else:
        clause = f"{nearest}, the model says {named.agent}"
    agreed = named is not None and named.key == first.key
    if belief[top.key] >= policy.route:
        if not agreed:
            whose = "the model" if named is not None and top.key == named.key else "the vectors"
            clause = f"{clause}; {whose} outweighed"
        changed = named is not None and top.key == named.key and not agreed
        return Settled(
            outcome="routed",
            chosen=top,
            confidence=top.probability,
            order=order,
            could_be=(top.key,),
            method="hybrid",
            reason=f"{clause}{told}",
            how="agreed" if agreed else "overruled" if changed else "",
        )
    if agreed and belief[None] > belief[top.key]:
        return Settled(
            outcome="out_of_scope",
            confidence=top.probability,
            order=order,
            method="hybrid",
            reason=f"{clause}, but it is too far from what the agents can do{told}",
        )
    possible = [first.key, *([named.key] if named else []), *seen.could_be]
    asked = tuple(dict.fromkeys(possible))
    return _unsure(order, asked, top.probability, f"{clause}; neither convinces{told}")


def _ordered(
    options: Iterable[Option], belief: Mapping[Key | None, float], named: Option | None = None
) -> tuple[Option, ...]:
    judged = [
        replace(
            named if named is not None and one.key == named.key else one,
            probability=belief[one.key],
        )
        for one in options
    ]
    return tuple(sorted(judged, key=lambda one: -one.probability))


# -- what is said --


def _noted(settled: Settled, note: str) -> Settled:
    return replace(settled, reason=f"{settled.reason}; {note}")


def _said(option: Option) -> str:
    return f"{option.probability:.2f}"


def _nobody() -> Settled:
    return Settled(outcome="nobody", reason="there is no agent to choose from")


def _routed(seen: Seen, reason: str) -> Settled:
    first = seen.options[0]
    return Settled(
        outcome="routed",
        chosen=first,
        confidence=first.probability,
        order=seen.options,
        could_be=seen.could_be or (first.key,),
        reason=reason,
    )


def _out_of_scope(seen: Seen, reason: str) -> Settled:
    return Settled(
        outcome="out_of_scope",
        confidence=seen.options[0].probability,
        order=seen.options,
        reason=reason,
    )


def _unsure(
    order: tuple[Option, ...],
    could_be: tuple[Key, ...],
    confidence: float,
    reason: str,
    method: Literal["vector", "llm", "hybrid"] = "hybrid",
) -> Settled:
    return Settled(
        outcome="unsure",
        confidence=confidence,
        order=order,
        could_be=could_be,
        method=method,
        reason=reason,
    )


# -- as LMOS does it --


@dataclass(frozen=True, slots=True)
class Hit:
    """An example that is near.

    Attributes:
        score: On the scale that LMOS's thresholds are for: `lmos_score` of a cosine.
    """

    agent: str
    score: float
    subset: str = DEFAULT_SUBSET


@dataclass(frozen=True, slots=True, kw_only=True)
class FastTrack:
    """LMOS's thresholds of when no model is needed, with the values in its code."""

    score: float = 5.0
    mean_score: float = 0.8
    distance: float = 4.0
    relative_distance: float = 0.3

    def decide(self, hits: Sequence[Hit]) -> Key | None:
        """The agent that needs no model, as LMOS's `SingleAgentEmbeddingRanker` has it."""
        if not hits:
            return None
        if len(hits) == 1:
            return hits[0].agent, hits[0].subset
        scores: dict[Key, list[float]] = {}
        for hit in hits:
            scores.setdefault((hit.agent, hit.subset), []).append(hit.score)
        ranked = sorted(scores.items(), key=lambda one: -sum(one[1]))
        key, of_first = ranked[0]
        total = sum(of_first)
        enough = total >= self.score and total / len(of_first) >= self.mean_score
        if len(ranked) > 1:
            distance = total - sum(ranked[1][1])
            enough = (
                enough
                and distance >= self.distance
                and distance / len(of_first) >= self.relative_distance
            )
        return key if enough else None


FAST_TRACK_HITS = 15
"""How many of the nearest examples LMOS looks at."""

FAST_TRACKS: Mapping[str, FastTrack] = {
    "lmos": FastTrack(),
    "lmos-readme": FastTrack(mean_score=0.5),
}


def lmos_score(cosine: float) -> float:
    """A cosine on the scale from 0 to 1 that LMOS's library has scores on."""
    return (cosine + 1) / 2


def _as_lmos(seen: Seen, policy: Policy, hits: Sequence[Hit]) -> Settled | AskModel:
    known = {one.key: one for one in seen.options}
    # The model chooses from the agents that were hit, in the order of their nearest example.
    hit = [known[key] for key in dict.fromkeys((h.agent, h.subset) for h in hits) if key in known]
    chosen = FAST_TRACKS[policy.fast_track].decide(hits)
    if chosen is None or chosen not in known:
        return AskModel(
            options=tuple(hit) or offered(seen, policy.candidates),
            because="the nearest examples do not pass LMOS's thresholds",
        )
    option = known[chosen]
    return Settled(
        outcome="routed",
        chosen=option,
        confidence=option.probability,
        order=(option, *(one for one in seen.options if one.key != chosen)),
        could_be=(chosen,),
        reason=f"the nearest examples of {option.agent} pass LMOS's thresholds",
    )
