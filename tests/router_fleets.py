"""Made-up fleets of agents with made-up vectors, for the tests of the router's pure parts."""

import numpy as np

from lmos_mesh.things import ThingKey
from lmos_mesh_router.evidence import Evidence, EvidenceMatrix, Floats, Query

DIMENSIONS = 24
WORDS = 8


def key(name: str) -> ThingKey:
    return ThingKey("demo", name, "stable")


def unit(rows: np.ndarray) -> Floats:
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    return (rows / length).astype(np.float32)


def middle_of(agent: int, capability: int) -> Floats:
    """Where the texts of a capability are scattered around."""
    chance = np.random.default_rng(1_000 * agent + capability)
    return unit(chance.normal(size=DIMENSIONS))


def near(agent: int, capability: int, seed: int, width: float = 0.15) -> Query:
    """A message for a capability."""
    chance = np.random.default_rng([agent, capability, seed])
    vector = middle_of(agent, capability) + width * chance.normal(size=DIMENSIONS)
    return Query(unit(vector), unit(chance.normal(size=WORDS)))


def fleet(
    agents: int, capabilities: int = 2, examples: int = 3, *, first: int = 0, names: bool = True
) -> EvidenceMatrix:
    """Agents `a0`, `a1`, … with so many capabilities, each with a name and examples."""
    evidence: list[Evidence] = []
    queries: list[Query] = []
    for agent in range(first, first + agents):
        for capability in range(capabilities):
            for number in range(examples + names):
                kind = "name" if names and number == examples else "example"
                text = f"{kind} {agent} {capability} {number}"
                evidence.append(Evidence(key(f"a{agent}"), f"c{capability}", kind, text))
                queries.append(near(agent, capability, 10_000 + number))
    return EvidenceMatrix.build(
        evidence,
        np.array([one.vector for one in queries], np.float32).reshape(-1, DIMENSIONS),
        np.array([one.words for one in queries], np.float32).reshape(-1, WORDS),
    )
