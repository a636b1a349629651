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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_router.nearest import Floats, Frozen, Mask, Nearest, Rows, freeze

WORDS_WEIGHT = 0.5
"""How much spelling counts beside meaning. From 0.3 to 0.7 alike on CLINC150 validation data."""

ENOUGH_EXAMPLES = 10
"""With so many examples of a capability, phrases around its name add nothing."""

AGENT_WEIGHT = 0.5
"""What an agent's own description weighs, spread over its capabilities, if it is all they have.

It is put more generally than they are ("cancellation of services and related queries"), and draws
messages away from other agents' capabilities that say just what they are for.
"""

MOST_PIECES = 12
"""A description may be an essay; of what it lists only so much is taken one by one."""

LEAST_PIECE = 4
"""Characters; shorter pieces are remains of a sentence."""

_TRIED = 256
"""Texts that an index is tried with."""

_TELLING = ("example", "description", "name", "agent")
"""Kinds of evidence by how much one text of it says of what users will say."""

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
_BREAK = re.compile(
    r"[,;:/()\n]+|\.\s|\b(?:and|or|such as|e\.g\.|i\.e\.|etc\b\.?|including|like|whether|when|"
    r"und|oder|sowie|wie|zum Beispiel|z\. ?B\.)(?=\s|$)",
    re.IGNORECASE,
)
_ENDING = re.compile(
    r"\s+(?:related\s+)?(?:queries|questions|requests|issues|matters)\W*$", re.IGNORECASE
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
    bare = [one for one in thing.capabilities if not (one.description.strip() or one.examples)]
    if bare:
        # Where some say for themselves what they are for, it matters that much less.
        share = AGENT_WEIGHT * len(bare) / len(thing.capabilities)
        for text, weight in _descriptions(agent, thing.description):
            say("", "agent", text, weight * share)
    return list(found.values())


def most_telling_first(evidence: Iterable[Evidence]) -> list[tuple[int, Evidence]]:
    """The evidence of an agent in the order to embed it, each with its stage.

    Stage 0 is enough to be chosen: one text of each capability, as a user would say it if there is
    one. Then come the name, the first description and the other examples, and then the phrases,
    and what is said of the whole agent, which matters only when all is learned.
    """
    begun: set[str] = set()
    said: set[tuple[str, str]] = set()
    staged: list[tuple[int, Evidence]] = []
    for one in sorted(evidence, key=lambda one: _TELLING.index(one.kind)):
        place = (one.capability, one.kind)
        if not one.capability:
            stage = 2
        elif one.capability not in begun:
            stage = 0
        else:
            stage = 1 if one.kind == "example" or place not in said else 2
        begun.add(one.capability)
        said.add(place)
        staged.append((stage, one))
    return sorted(staged, key=lambda pair: pair[0])


def _descriptions(name: str, description: str) -> Iterator[tuple[str, float]]:
    if not description.strip():
        return
    said = _PREAMBLE.sub("", description)
    texts = list(dict.fromkeys((description, said, f"{name}: {said}" if name else said)))
    for text in texts:
        yield text, 1 / len(texts)
    pieces = [one for one in _pieces(said) if one not in texts][:MOST_PIECES]
    for text in pieces:
        yield text, 1 / len(pieces)


def _pieces(said: str) -> list[str]:
    """What a description lists ("delivery methods, and the estimated time"), one by one."""
    found = (_ENDING.sub("", piece).strip(" .!?\"'") for piece in _BREAK.split(said))
    return list(dict.fromkeys(piece for piece in found if len(piece) >= LEAST_PIECE))


class Query(NamedTuple):
    """A message as vectors, each of length one: by meaning, and by spelling (may be empty)."""

    vector: Floats
    words: Floats


class Texts(NamedTuple):
    """The texts of one capability, as a decision looks at them."""

    vectors: Floats
    weights: Floats
    words: npt.NDArray[np.float16]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """The part of one agent in a matrix; made once and used again until the agent changes.

    Attributes:
        evidence: One per row, sorted by capability; those said of the whole agent come last.
        capabilities: In the order of their rows.
        starts: Where each capability begins, int64[capabilities + 1].
    """

    key: ThingKey
    evidence: tuple[Evidence, ...]
    vectors: Floats
    words: npt.NDArray[np.float16]
    weights: Floats
    capabilities: tuple[str, ...]
    starts: Rows
    centroids: Floats = field(repr=False)
    means: Floats = field(repr=False)
    masses: Floats = field(repr=False)

    @classmethod
    def build(
        cls,
        key: ThingKey,
        evidence: Sequence[Evidence],
        vectors: Floats,
        words: npt.NDArray[np.floating],
    ) -> "Block":
        """A block of evidence; `vectors` and `words` have one row for each."""
        names = sorted({one.capability for one in evidence if one.capability})
        place = {name: at for at, name in enumerate(names)}
        of = [place.get(one.capability, len(names)) for one in evidence]
        order = sorted(range(len(evidence)), key=of.__getitem__)
        starts = np.searchsorted([of[at] for at in order], np.arange(len(names) + 1))
        weights = np.array([evidence[at].weight for at in order], np.float32)
        chosen = np.ascontiguousarray(vectors[order], np.float32)
        spelled = np.ascontiguousarray(words[order], np.float16)
        centroids, means = _centroids(chosen, spelled, weights, starts)
        return cls(
            key,
            tuple(evidence[at] for at in order),
            chosen,
            spelled,
            weights,
            tuple(names),
            starts.astype(np.int64),
            centroids,
            means,
            np.array(
                [weights[starts[at] : starts[at + 1]].sum() for at in range(len(names))],
                np.float32,
            ),
        )

    @cached_property
    def classes(self) -> tuple[ClassKey, ...]:
        """Its capabilities as a matrix calls them."""
        return tuple(ClassKey(self.key, name) for name in self.capabilities)

    @cached_property
    def texts(self) -> tuple[Texts, ...]:
        """By capability. Cutting an array takes as long as comparing a message with the piece."""
        begins: list[int] = self.starts.tolist()
        return tuple(
            Texts(
                self.vectors[begin:end],
                self.weights[begin:end],
                self.words[begin:end],
                self.evidence[begin:end],
            )
            for begin, end in pairwise(begins)
        )

    @cached_property
    def said(self) -> tuple[frozenset[str], ...]:
        """The texts by capability, to compare one block with another."""
        return tuple(frozenset(one.text for one in texts.evidence) for texts in self.texts)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made when it is asked for."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, eq=False)
class EvidenceMatrix:
    """All evidence at one moment, sorted by class.

    A decision looks at few classes closely, and finds their rows in the blocks of their agents.
    So a new matrix with other blocks for some agents is made without copying any row; the
    properties that have them all side by side are put together when they are first asked for.

    Attributes:
        parts: The blocks of the agents, in order.
        widths: How long vectors are, by meaning and by spelling; the latter is 0 where spelling
            is all there is and vectors by meaning have it.
        classes: The capabilities, in the order of their rows.
        starts: Where each class begins, int64[classes + 1]; rows from `starts[-1]` on are said of
            whole agents.
        agents: In the order of their classes.
        agent_of: The agent of each class, int64[classes].
        first_of: The first class of each agent, int64[agents + 1].
        means: The direction of each class by meaning alone, float32[classes, d].
        masses: The sum of the weights of each class, float32[classes].
        of_agents: Where the rows said of each whole agent begin, int64[agents + 1].
        nearest: Says which classes are worth a look.
    """

    parts: tuple[Block, ...] = field(repr=False)
    widths: tuple[int, int]
    classes: tuple[ClassKey, ...]
    starts: Rows
    agents: tuple[ThingKey, ...]
    agent_of: Rows
    first_of: Rows
    means: Floats = field(repr=False)
    masses: Floats = field(repr=False)
    of_agents: Rows = field(repr=False)
    nearest: Nearest = field(repr=False)

    @classmethod
    def build(
        cls, evidence: Sequence[Evidence], vectors: Floats, words: npt.NDArray[np.floating]
    ) -> "EvidenceMatrix":
        """A matrix of evidence; `vectors` and `words` have one row for each.

        What is said of an agent none of whose capabilities has evidence is left out.
        """
        rows_of: dict[ThingKey, list[int]] = {}
        for at, one in enumerate(evidence):
            rows_of.setdefault(one.key, []).append(at)
        blocks = [
            Block.build(key, [evidence[at] for at in rows], vectors[rows], words[rows])
            for key, rows in rows_of.items()
        ]
        return cls.of(blocks, vectors.shape[1], words.shape[1])

    @classmethod
    def of(
        cls,
        blocks: Iterable[Block],
        dimensions: int,
        words: int,
        *,
        frozen: Frozen | None = None,
    ) -> "EvidenceMatrix":
        """A matrix of the blocks of agents, without looking at any row by itself.

        Args:
            blocks: One per agent, in any order.
            dimensions: How long vectors by meaning are.
            words: How long vectors by spelling are.
            frozen: An index that was made of other blocks or the same.
        """
        own = sorted((one for one in blocks if one.capabilities), key=lambda one: one.key)
        counts = np.array([len(one.capabilities) for one in own], np.int64)
        ends = np.cumsum([0, *(int(one.starts[-1]) for one in own)])
        more = np.cumsum([0, *(len(one.evidence) - int(one.starts[-1]) for one in own)])
        begins = [one.starts[:-1] + end for one, end in zip(own, ends[:-1], strict=True)]
        none = np.zeros((0, dimensions), np.float32)
        parts = tuple(own)
        first_of = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        means = np.concatenate([*(one.means for one in own), none])
        return cls(
            parts,
            (dimensions, words),
            tuple(chain.from_iterable(one.classes for one in own)),
            np.concatenate([*begins, ends[-1:]]).astype(np.int64),
            tuple(one.key for one in own),
            np.repeat(np.arange(len(own)), counts),
            first_of,
            means,
            np.concatenate([*(one.masses for one in own), none[:, 0]]),
            more + ends[-1],
            Nearest(parts, first_of, means, frozen),
        )

    def freeze(self) -> Frozen:
        """An index of the classes as they are now. Takes seconds where they are many."""
        step = max(1, len(self.parts) // _TRIED)
        # What people say is like the examples, not like their means.
        tried = np.stack(
            [one.vectors[at % len(one.vectors)] for at, one in enumerate(self.parts[::step])]
        )
        return freeze(self.parts, self.first_of, self.means, tried)

    def indexed(self, frozen: Frozen) -> "EvidenceMatrix":
        """The same with another index."""
        nearest = Nearest(self.parts, self.first_of, self.means, frozen)
        return replace(self, nearest=nearest)

    def __getstate__(self) -> dict[str, Any]:
        """What was put together from the parts can be put together again."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def evidence(self) -> tuple[Evidence, ...]:
        """One per row; those said of whole agents come last."""
        heads = (one.evidence[: one.starts[-1]] for one in self.parts)
        tails = (one.evidence[one.starts[-1] :] for one in self.parts)
        return tuple(chain(chain.from_iterable(heads), chain.from_iterable(tails)))

    @cached_property
    def vectors(self) -> Floats:
        """Unit vectors by meaning, float32[rows, d]."""
        return self._rows(lambda one: one.vectors, np.zeros((0, self.widths[0]), np.float32))

    @cached_property
    def words(self) -> npt.NDArray[np.float16]:
        """Unit vectors by spelling, float16[rows, w]."""
        return self._rows(lambda one: one.words, np.zeros((0, self.widths[1]), np.float16))

    @cached_property
    def weights(self) -> Floats:
        """What each row counts, float32[rows]."""
        return self._rows(lambda one: one.weights, np.zeros(0, np.float32))

    @cached_property
    def centroids(self) -> Floats:
        """The direction of each class, by meaning and spelling, float32[classes, d + w]."""
        none = np.zeros((0, sum(self.widths)), np.float32)
        return np.concatenate([*(one.centroids for one in self.parts), none])

    def _rows(
        self, part: Callable[[Block], npt.NDArray[Any]], none: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        heads = [part(one)[: one.starts[-1]] for one in self.parts]
        tails = [part(one)[one.starts[-1] :] for one in self.parts]
        return np.concatenate([*heads, *tails, none])

    def places(self, classes: Rows) -> list[tuple[Block, int]]:
        """Where some classes are: in which block, and the how many-eth of it."""
        agents = self.agent_of[classes]
        own: list[int] = (classes - self.first_of[agents]).tolist()
        of: list[int] = agents.tolist()
        return [(self.parts[agent], at) for agent, at in zip(of, own, strict=True)]

    def said(self, at: int, row: int) -> Evidence:
        """The evidence in a row of a class."""
        ((part, own),) = self.places(np.array([at]))
        within: int = row - int(self.starts[at])
        return part.texts[own].evidence[within]

    def blocks(self) -> dict[ThingKey, Block]:
        """The parts of which `of` makes the same matrix again."""
        return {one.key: one for one in self.parts}

    def __len__(self) -> int:
        return int(self.of_agents[-1])

    @property
    def features(self) -> int:
        """How long a vector by meaning and spelling is."""
        return sum(self.widths)

    def class_rows(self, at: int) -> slice:
        """The rows of one class."""
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def joined(self, rows: slice | Rows | None = None) -> Floats:
        """Rows by meaning and spelling together, float32[rows, d + w]."""
        chosen = slice(None) if rows is None else rows
        return side_by_side(self.vectors[chosen], self.words[chosen])

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
        said = chain.from_iterable(part.said for part in self.parts)
        return dict(zip(self.classes, said, strict=True))


def side_by_side(vectors: Floats, words: npt.NDArray[np.float16]) -> Floats:
    """Rows by meaning and spelling together, float32[rows, d + w]."""
    spelled = words.astype(np.float32) * np.float32(WORDS_WEIGHT)
    return np.concatenate([vectors, spelled], axis=1)


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
