"""Made-up fleets of any size whose vectors lie as those of real sentences do.

A capability lies between two sentences of CLINC150, and what is said of it around that, as far
apart as examples of one capability are there. Nothing about accuracy can be learned from them;
how long a search takes, what it finds and what it needs can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from lmos_mesh.things import ThingKey
from lmos_mesh_router.encoder import Encoder
from lmos_mesh_router.evidence import Block, Evidence, EvidenceMatrix, Query

SPREAD = 1.0
"""How far what is said lies from the middle of its capability: a mean cosine of 0.5 of two."""

WORDS = 512


@dataclass(frozen=True)
class Shape:
    """How large a fleet is."""

    agents: int
    capabilities: int
    examples: int

    @property
    def vectors(self) -> int:
        return self.agents * self.capabilities * self.examples

    @property
    def classes(self) -> int:
        return self.agents * self.capabilities

    def __str__(self) -> str:
        return f"{self.agents:,} agents x {self.capabilities} x {self.examples}"


def unit(rows: np.ndarray) -> np.ndarray:
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    return (rows / length).astype(np.float32)


class MadeUp:
    """A fleet of a shape: the same for the same seed, agent by agent."""

    def __init__(self, shape: Shape, real: np.ndarray, *, seed: int = 0) -> None:
        self.shape = shape
        self._real, self._seed = real, seed
        chance = np.random.default_rng(seed)
        self._words = unit(chance.normal(size=(256, WORDS)))

    def key(self, agent: int) -> ThingKey:
        return ThingKey("bench", f"a{agent:05d}", "stable")

    def middles(self, agent: int, version: int = 0) -> np.ndarray:
        """Where the capabilities of an agent lie."""
        chance = np.random.default_rng([self._seed, agent, version])
        pairs = chance.integers(len(self._real), size=(self.shape.capabilities, 2))
        share = chance.uniform(0.3, 0.7, size=(self.shape.capabilities, 1))
        return unit(share * self._real[pairs[:, 0]] + (1 - share) * self._real[pairs[:, 1]])

    def around(self, middle: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:
        """What people say of a capability."""
        one, other = self._real[chance.integers(len(self._real), size=(2, count))]
        return unit(middle + SPREAD * unit(one - other))

    def block(self, agent: int, version: int = 0) -> Block:
        """All of an agent."""
        shape = self.shape
        chance = np.random.default_rng([self._seed, agent, version, 1])
        rows = [self.around(one, shape.examples, chance) for one in self.middles(agent, version)]
        key = self.key(agent)
        evidence = [
            Evidence(
                key, f"c{capability:03d}", "example", f"{agent} {capability} {number} {version}"
            )
            for capability in range(shape.capabilities)
            for number in range(shape.examples)
        ]
        spelled = self._words[chance.integers(len(self._words), size=len(evidence))]
        return Block.build(key, evidence, np.concatenate(rows), spelled)

    def blocks(self) -> Iterator[Block]:
        return (self.block(agent) for agent in range(self.shape.agents))

    def matrix(self) -> EvidenceMatrix:
        return EvidenceMatrix.of(self.blocks(), self._real.shape[1], WORDS)

    def messages(self, count: int, *, among: Sequence[int] | None = None) -> list[Query]:
        """Messages for capabilities of the fleet, drawn by chance."""
        chance = np.random.default_rng([self._seed, 7])
        agents = np.asarray(range(self.shape.agents) if among is None else among)
        found: list[Query] = []
        for _ in range(count):
            middles = self.middles(int(chance.choice(agents)))
            said = self.around(middles[chance.integers(len(middles))], 1, chance)[0]
            found.append(Query(said, self._words[chance.integers(len(self._words))]))
        return found


class Registered:
    """The agents of a fleet as they register, and the vectors of what they say.

    An encoder whose vectors are made up for what the fleet says, and the model's for the rest.
    """

    semantic = True
    reason = ""
    name = "made up"
    fingerprint = "made-up"

    def __init__(self, fleet: MadeUp, model: Encoder) -> None:
        self._fleet, self._model = fleet, model
        self._middles: dict[int, np.ndarray] = {}
        self.dimensions = model.dimensions

    def thing(self, agent: int) -> dict[str, Any]:
        """What an agent registers."""
        shape = self._fleet.shape
        return {
            "name": self._fleet.key(agent).name,
            "capabilities": [
                {
                    "id": f"c{capability:03d}",
                    "name": f"{agent} {capability} name",
                    "examples": [
                        f"{agent} {capability} example {number}" for number in range(shape.examples)
                    ],
                }
                for capability in range(shape.capabilities)
            ],
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """One row per text."""
        found = np.empty((len(texts), self.dimensions), np.float32)
        real: list[int] = []
        for at, text in enumerate(texts):
            agent, _, rest = text.partition(" ")
            capability, _, rest = rest.partition(" ")
            if not (agent.isdigit() and capability.isdigit()):
                real.append(at)
                continue
            middles = self._fleet.middles(int(agent))
            chance = np.random.default_rng(crc32(text.encode()))
            found[at] = self._fleet.around(middles[int(capability)], 1, chance)[0]
        if real:
            found[real] = self._model.encode([texts[at] for at in real])
        return found
