"""What speaks for which agent, and the decision made from it. Pure; snapshots never change.

Every name, description and example of a capability is evidence for it, as a unit vector. The
nearest evidence is weighted by exp(similarity / TEMPERATURE) and summed per agent: one very close
example outweighs many vague ones. FAISS finds the nearest; it is searched exactly, and only
among the agents that may be chosen.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from lmos_mesh.membership import ThingKey
from lmos_mesh.messages import Candidate, Decision
from lmos_mesh.things import Thing

Vectors = npt.NDArray[np.float32]

TEMPERATURE = 0.08
NEAREST = 64
# The odds that the first agent is right: a logistic regression on the CLINC150 validation data as
# ten agents with 1, 2 and 5 examples a capability, one in five messages out of scope.
_MARGIN_WEIGHT = 1.189
_SIMILARITY_WEIGHT = 9.991
_BIAS = -5.561
_MOST_MARGIN = 3.0
_ALONE = 1.0

faiss.omp_set_num_threads(1)


class Evidence(NamedTuple):
    """One text that speaks for a capability. `kind` is name, description or example."""

    key: ThingKey
    capability: str
    kind: str
    text: str


def evidence_of(key: ThingKey, thing: Thing) -> list[Evidence]:
    """What speaks for an agent; what matters most comes first."""
    first: list[Evidence] = []
    second: list[Evidence] = []
    for capability in thing.capabilities:
        id = capability.id
        first.append(Evidence(key, id, "name", capability.name.replace("_", " ")))
        if capability.description:
            first.append(Evidence(key, id, "description", capability.description))
        examples = [Evidence(key, id, "example", text) for text in capability.examples]
        first.extend(examples[:1])
        second.extend(examples[1:])
    if thing.description and thing.capabilities:
        first.append(Evidence(key, "", "description", thing.description))
    found: dict[tuple[str, str], Evidence] = {}
    for one in (*first, *second):
        if one.text.strip():
            found.setdefault((one.capability, one.text), one)
    return list(found.values())


@dataclass(frozen=True)
class Snapshot:
    """All evidence at one moment."""

    evidence: tuple[Evidence, ...]
    vectors: Vectors
    version: int
    index: Any = field(repr=False)
    rows: Mapping[ThingKey, npt.NDArray[np.int64]] = field(repr=False)

    @classmethod
    def build(cls, evidence: Sequence[Evidence], vectors: Vectors, *, version: int) -> "Snapshot":
        """An index of evidence whose vectors are the rows of `vectors`, float32[n, d]."""
        index: Any = faiss.IndexFlatIP(vectors.shape[1])
        if len(evidence):
            index.add(np.ascontiguousarray(vectors))
        rows: dict[ThingKey, list[int]] = {}
        for at, one in enumerate(evidence):
            rows.setdefault(one.key, []).append(at)
        return cls(
            tuple(evidence),
            vectors,
            version,
            index,
            {key: np.array(found, dtype=np.int64) for key, found in rows.items()},
        )

    @property
    def agents(self) -> Collection[ThingKey]:
        """The agents that something speaks for."""
        return self.rows.keys()

    def among(self, eligible: Iterable[ThingKey]) -> "View":
        """The part of the evidence that speaks for agents that may be chosen."""
        keys = [key for key in eligible if key in self.rows]
        ids = np.concatenate([self.rows[key] for key in keys]) if keys else np.empty(0, np.int64)
        ids.sort()
        return View(self, ids, frozenset(keys))


class View:
    """The evidence that one question may use."""

    def __init__(
        self, snapshot: Snapshot, ids: npt.NDArray[np.int64], agents: frozenset[ThingKey]
    ) -> None:
        self.snapshot = snapshot
        self.agents = agents
        self._ids = ids
        self._parameters: Any = None
        if len(ids) < len(snapshot.evidence):
            # The selector refers to the array and does not keep it alive; we do.
            self._selector = faiss.IDSelectorBatch(ids)
            parameters: Any = faiss.SearchParameters
            self._parameters = parameters(sel=self._selector)

    def search(self, vector: Vectors) -> "Ranking":
        """The agents by what speaks for them, given a message's unit vector float32[d]."""
        count = min(NEAREST, len(self._ids))
        if count == 0:
            return Ranking(())
        found = self.snapshot.index.search(vector.reshape(1, -1), count, params=self._parameters)
        similarities, ids = found[0][0], found[1][0]
        nearest = float(similarities[0])
        weights = np.exp((similarities - nearest) / TEMPERATURE)
        return _rank(self.snapshot, similarities, ids, weights)


class Ranked(NamedTuple):
    """An agent, its share of the evidence, and the text that spoke for it loudest."""

    key: ThingKey
    capability: str
    share: float
    similarity: float
    evidence: Evidence


@dataclass(frozen=True)
class Ranking:
    """The agents that were found, the most likely first."""

    ranked: tuple[Ranked, ...]

    @property
    def confidence(self) -> float:
        """How likely the first agent is right, 0 to 1."""
        if not self.ranked:
            return 0.0
        first = self.ranked[0]
        second = self.ranked[1].share if len(self.ranked) > 1 else None
        margin = (
            _ALONE
            if second is None
            else min(_MOST_MARGIN, math.log(first.share) - math.log(second + 1e-3))
        )
        odds = _MARGIN_WEIGHT * margin + _SIMILARITY_WEIGHT * first.similarity + _BIAS
        return 1 / (1 + math.exp(-odds))


def _rank(
    snapshot: Snapshot, similarities: Vectors, ids: npt.NDArray[np.int64], weights: Vectors
) -> Ranking:
    agents: dict[ThingKey, float] = {}
    capabilities: dict[tuple[ThingKey, str], float] = {}
    loudest: dict[ThingKey, tuple[float, Evidence]] = {}
    total = 0.0
    rows: Iterable[tuple[float, int, float]] = zip(
        similarities.tolist(), ids.tolist(), weights.tolist(), strict=True
    )
    for similarity, id, weight in rows:
        if id < 0:
            continue
        one = snapshot.evidence[id]
        total += weight
        agents[one.key] = agents.get(one.key, 0.0) + weight
        if one.key not in loudest:
            loudest[one.key] = (similarity, one)
        if one.capability:
            place = (one.key, one.capability)
            capabilities[place] = capabilities.get(place, 0.0) + weight
    ranked: list[Ranked] = []
    for key, weight in sorted(agents.items(), key=lambda item: (-item[1], item[0])):
        similarity, one = loudest[key]
        own = {id: said for (agent, id), said in capabilities.items() if agent == key}
        # The agent's own description may be all that was near; then any capability will do.
        capability = max(own, key=lambda id: own[id]) if own else ""
        ranked.append(Ranked(key, capability, weight / total, similarity, one))
    return Ranking(tuple(ranked))


def decide(
    ranking: Ranking,
    things: Mapping[ThingKey, Thing],
    *,
    threshold: float,
    limit: int,
    encoder: str,
    method: str = "vector",
    together: bool = False,
) -> Decision:
    """The decision that a ranking amounts to.

    Args:
        ranking: The agents by what speaks for them.
        things: The records of the ranked agents.
        threshold: The least confidence to route with.
        limit: How many candidates to name.
        encoder: What the vectors came from.
        method: How it was decided.
        together: Whether the message was read together with the one before it.
    """
    candidates = tuple(_candidate(one, things[one.key]) for one in ranking.ranked[:limit])
    if not candidates:
        return Decision(
            outcome="nobody", method=method, encoder=encoder, reason="no agent may be chosen here"
        )
    first, confidence = candidates[0], ranking.confidence
    like = _said(ranking.ranked[0])
    context = ", read together with the message before it," if together else ""
    if confidence < threshold:
        return Decision(
            outcome="unsure",
            confidence=confidence,
            candidates=candidates,
            method=method,
            encoder=encoder,
            reason=(
                f"the message{context} is nearest to {like} of {first.agent}, and "
                f"{confidence:.0%} is below the {threshold:.0%} needed"
            ),
        )
    return Decision(
        outcome="routed",
        agent=first.agent,
        subset=first.subset,
        capability=first.capability,
        confidence=confidence,
        candidates=candidates,
        method=method,
        encoder=encoder,
        reason=f"the message{context} is like {like} of {first.agent}",
    )


def explicit(key: ThingKey, thing: Thing, ranking: Ranking, *, encoder: str) -> Decision:
    """The decision for an agent that the caller named: which of its capabilities."""
    best = ranking.ranked[0] if ranking.ranked else None
    capability = (best.capability if best else "") or (
        thing.capabilities[0].id if thing.capabilities else ""
    )
    found = next((one for one in thing.capabilities if one.id == capability), None)
    return Decision(
        outcome="routed",
        agent=key.name,
        subset=key.subset,
        capability=capability,
        confidence=1.0,
        candidates=(
            Candidate(
                agent=key.name,
                subset=key.subset,
                capability=capability,
                capability_name=found.name if found else capability,
                score=1.0,
                similarity=best.similarity if best else 0.0,
                evidence=best.evidence.text if best else "",
            ),
        ),
        method="explicit",
        encoder=encoder,
        reason=f"the caller asked for {key.name}",
    )


def _candidate(one: Ranked, thing: Thing) -> Candidate:
    capability = one.capability or (thing.capabilities[0].id if thing.capabilities else "")
    found = next((known for known in thing.capabilities if known.id == capability), None)
    return Candidate(
        agent=one.key.name,
        subset=one.key.subset,
        capability=capability,
        capability_name=found.name if found else capability,
        score=round(one.share, 4),
        similarity=round(one.similarity, 4),
        evidence=one.evidence.text,
    )


def _said(one: Ranked) -> str:
    text = one.evidence.text if len(one.evidence.text) <= 60 else one.evidence.text[:57] + "…"
    return f"the {one.evidence.kind} “{text}” ({one.similarity:.2f})"
