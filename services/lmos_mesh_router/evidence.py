"""What speaks for which capability: the texts of an agent, and their vectors as one matrix. Pure.

A capability is a class of its own and an agent is the set of its capabilities: an agent that can
do fifteen different things has no middle that a message could be near to. Names and descriptions
speak like examples do. A name is also put into the phrases that people use around one, which
together weigh as much as one example; they matter where examples are few, and are left out where
there are many.

Everything here is immutable. Rows of one capability lie side by side, and what a tenant, channel
or subset may see is a mask over classes, not a matrix of its own.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmos_mesh.membership import ThingKey
from lmos_mesh.things import Thing

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

WORDS_WEIGHT = 0.5
"""How much spelling counts beside meaning. From 0.3 to 0.7 alike on CLINC150 validation data."""

ENOUGH_EXAMPLES = 10
"""With so many examples of a capability, phrases around its name add nothing."""

AGENT_WEIGHT = 0.5
"""What an agent's own description weighs, spread over its capabilities."""

PHRASES = (
    "{name}",
    "{agent}: {name}",
    "I want to {name}",
    "how do I {name}?",
    "can you help me with {name}?",
    "what is my {name}",
    "a question about {name}",
    "please {name}",
    "tell me about {name}",
)
# Words that most descriptions begin with and that tell no two of them apart.
_PREAMBLE = re.compile(
    r"^\s*(?:this|the|an?)?\s*(?:capability|agent|assistant|skill|tool|function|service)\s+"
    r"(?:(?:is|are)\s+(?:responsible|used|meant|intended|designed)\s+(?:for|to)|can|will|lets you|"
    r"allows you to|helps? (?:you )?(?:to|with)|handles?|answers?|provides?|deals? with|is for)\s+",
    re.IGNORECASE,
)
_TITLE = re.compile(r"[-_ ]+(agent|bot|assistant|service)$", re.IGNORECASE)


class Evidence(NamedTuple):
    """One text that speaks for a capability.

    Attributes:
        kind: `example`, `name` (and phrases around it), `description`, or `agent`: said of the
            whole agent, and so for each of its capabilities a little; its capability is empty.
        weight: What it counts in training; an example counts 1.
    """

    key: ThingKey
    capability: str
    kind: str
    text: str
    weight: float = 1.0


class ClassKey(NamedTuple):
    """A capability of an agent: what a message is told apart by."""

    key: ThingKey
    capability: str


def evidence_of(key: ThingKey, thing: Thing) -> list[Evidence]:
    """What speaks for an agent and its capabilities; nothing for one that has none."""
    agent = _TITLE.sub("", thing.name).replace("_", " ").replace("-", " ").strip()
    found: dict[tuple[str, str], Evidence] = {}

    def say(capability: str, kind: str, text: str, weight: float = 1.0) -> None:
        text = text.strip()
        if text:
            found.setdefault((capability, text), Evidence(key, capability, kind, text, weight))

    for capability in thing.capabilities:
        id = capability.id
        for text in capability.examples:
            say(id, "example", text)
        name = capability.name.replace("_", " ").replace("-", " ").strip()
        few = len(capability.examples) < ENOUGH_EXAMPLES
        phrases = [phrase.format(name=name, agent=agent) for phrase in PHRASES] if few else [name]
        for text in phrases if name else ():
            say(id, "name", text, 1 / len(phrases))
        for text, weight in _descriptions(name, capability.description):
            say(id, "description", text, weight)
    if thing.capabilities:
        for text, weight in _descriptions(agent, thing.description):
            say("", "agent", text, weight * AGENT_WEIGHT)
    return list(found.values())


def _descriptions(name: str, description: str) -> Iterator[tuple[str, float]]:
    if not description.strip():
        return
    said = _PREAMBLE.sub("", description)
    texts = list(dict.fromkeys((description, said, f"{name}: {said}" if name else said)))
    for text in texts:
        yield text, 1 / len(texts)


class Query(NamedTuple):
    """A message as vectors, each of length one: by meaning, and by spelling (may be empty)."""

    vector: Floats
    words: Floats


@dataclass(frozen=True, eq=False)
class EvidenceMatrix:
    """All evidence at one moment, sorted by class.

    Attributes:
        evidence: One per row; those said of whole agents come last.
        vectors: Unit vectors by meaning, float32[rows, d].
        words: Unit vectors by spelling, float16[rows, w]; no columns where spelling is all there
            is and `vectors` has it.
        weights: What each row counts, float32[rows].
        classes: The capabilities, in the order of their rows.
        starts: Where each class begins, int64[classes + 1]; rows from `starts[-1]` on are said of
            whole agents.
        agents: In the order of their classes.
        agent_of: The agent of each class, int64[classes].
        centroids: The direction of each class, by meaning and spelling, float32[classes, d + w].
        means: The direction of each class by meaning alone, float32[classes, d].
        masses: The sum of the weights of each class, float32[classes].
    """

    evidence: tuple[Evidence, ...]
    vectors: Floats
    words: npt.NDArray[np.float16]
    weights: Floats
    classes: tuple[ClassKey, ...]
    starts: Rows
    agents: tuple[ThingKey, ...]
    agent_of: Rows
    centroids: Floats = field(repr=False)
    means: Floats = field(repr=False)
    masses: Floats = field(repr=False)

    @classmethod
    def build(
        cls, evidence: Sequence[Evidence], vectors: Floats, words: npt.NDArray[np.floating]
    ) -> "EvidenceMatrix":
        """A matrix of evidence; `vectors` and `words` have one row for each.

        What is said of an agent none of whose capabilities has evidence is left out.
        """
        keys = sorted({ClassKey(one.key, one.capability) for one in evidence if one.capability})
        place = {key: at for at, key in enumerate(keys)}
        agents = tuple(dict.fromkeys(key.key for key in keys))
        known = set(agents)
        order = sorted(
            (
                at
                for at, one in enumerate(evidence)
                if one.capability or one.key in known  # an agent without a class says nothing
            ),
            key=lambda at: (
                place[ClassKey(evidence[at].key, evidence[at].capability)]
                if evidence[at].capability
                else len(keys)
            ),
        )
        rows = np.array(order, np.int64)
        of_rows = np.array(
            [
                place[ClassKey(evidence[at].key, evidence[at].capability)]
                for at in order
                if evidence[at].capability
            ],
            np.int64,
        )
        starts = np.searchsorted(of_rows, np.arange(len(keys) + 1)).astype(np.int64)
        number = {key: at for at, key in enumerate(agents)}
        agent_of = np.array([number[key.key] for key in keys], np.int64)
        weights = np.array([evidence[at].weight for at in order], np.float32)
        chosen = np.ascontiguousarray(vectors[rows], np.float32)
        spelled = np.ascontiguousarray(words[rows], np.float16)
        centroids, means = _centroids(chosen, spelled, weights, starts)
        return cls(
            tuple(evidence[at] for at in order),
            chosen,
            spelled,
            weights,
            tuple(keys),
            starts,
            agents,
            agent_of,
            centroids,
            means,
            np.add.reduceat(weights, starts[:-1]) if len(keys) else np.zeros(0, np.float32),
        )

    def __len__(self) -> int:
        return len(self.evidence)

    @property
    def features(self) -> int:
        """How long a vector by meaning and spelling is."""
        return self.vectors.shape[1] + self.words.shape[1]

    def class_rows(self, at: int) -> slice:
        """The rows of one class."""
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def joined(self, rows: slice | Rows | None = None) -> Floats:
        """Rows by meaning and spelling together, float32[rows, d + w]."""
        chosen = slice(None) if rows is None else rows
        spelled = self.words[chosen].astype(np.float32) * np.float32(WORDS_WEIGHT)
        return np.concatenate([self.vectors[chosen], spelled], axis=1)

    def targets(self) -> Floats:
        """Which classes each row speaks for, float32[rows, classes]; every row sums to one."""
        wanted = np.zeros((len(self), len(self.classes)), np.float32)
        for at in range(len(self.classes)):
            wanted[self.class_rows(at), at] = 1
        number = {key: at for at, key in enumerate(self.agents)}
        for row in range(int(self.starts[-1]), len(self)):
            own = self.agent_of == number[self.evidence[row].key]
            wanted[row, own] = 1 / np.count_nonzero(own)
        return wanted

    def mask(self, eligible: Iterable[ThingKey]) -> Mask:
        """The classes of agents that may be chosen, bool[classes]."""
        allowed = set(eligible)
        agents = np.array([key in allowed for key in self.agents], np.bool_)
        return agents[self.agent_of] if len(self.agents) else np.zeros(0, np.bool_)

    def without(self, rows: Collection[int]) -> "EvidenceMatrix":
        """The same without some rows; classes that lose all their rows are gone."""
        gone = set(rows)
        kept = np.array([at for at in range(len(self)) if at not in gone], np.int64)
        return EvidenceMatrix.build(
            [self.evidence[int(at)] for at in kept], self.vectors[kept], self.words[kept]
        )

    def said_of(self) -> Mapping[ClassKey, frozenset[str]]:
        """The texts of each class: two matrices say the same of a class when these are equal."""
        return {
            key: frozenset(one.text for one in self.evidence[self.class_rows(at)])
            for at, key in enumerate(self.classes)
        }


def joined(query: Query) -> Floats:
    """A message by meaning and spelling together, as `EvidenceMatrix.joined` has its rows."""
    if not len(query.words):
        return query.vector
    return np.concatenate([query.vector, query.words * np.float32(WORDS_WEIGHT)])


def _centroids(
    vectors: Floats, words: npt.NDArray[np.float16], weights: Floats, starts: Rows
) -> tuple[Floats, Floats]:
    count, width = len(starts) - 1, vectors.shape[1]
    sums = np.zeros((count, width + words.shape[1]), np.float32)
    for at in range(count):
        rows = slice(int(starts[at]), int(starts[at + 1]))
        weight = weights[rows]
        sums[at, :width] = weight @ vectors[rows]
        sums[at, width:] = weight @ words[rows].astype(np.float32) * np.float32(WORDS_WEIGHT)
    return _directions(sums), _directions(np.ascontiguousarray(sums[:, :width]))


def _directions(sums: Floats) -> Floats:
    # Opposite examples cancel out: then there is no direction, and nothing is near to it.
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-6))
