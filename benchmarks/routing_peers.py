"""The same vectors and messages, decided by others: LMOS's vote, and semantic-router."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from peers.setup import python_of

from lmos_mesh_router.evidence import EvidenceMatrix

PROGRAM = Path(__file__).parent / "peers" / "semantic_router_decide.py"


def given_to(matrix: EvidenceMatrix) -> tuple[np.ndarray, list[str]]:
    """What a peer gets: every example, name and description once; phrases are an idea of ours."""
    taken: list[int] = []
    seen: set[tuple[object, str]] = set()
    for row, one in enumerate(matrix.evidence):
        bare = one.kind != "name" or one.text == one.capability.replace("_", " ")
        if bare and (one.key, one.text) not in seen:
            seen.add((one.key, one.text))
            taken.append(row)
    return matrix.vectors[taken], [matrix.evidence[row].key.name for row in taken]


def lmos_vote(matrix: EvidenceMatrix, queries: np.ndarray) -> list[str]:
    """LMOS's first vector router: the agent that most of the five nearest texts are from."""
    vectors, agents = given_to(matrix)
    similar = queries @ vectors.T
    chosen: list[str] = []
    for row in similar:
        nearest = [agents[at] for at in np.argsort(-row, kind="stable")[:5]]
        chosen.append(Counter(nearest).most_common(1)[0][0])
    return chosen


def semantic_router(
    matrix: EvidenceMatrix, queries: np.ndarray, aggregation: str
) -> tuple[list[str], list[float]] | None:
    """What semantic-router chooses, and its milliseconds for each; None if it is not installed."""
    python = python_of("semantic_router")
    if not python.exists():
        return None
    vectors, agents = given_to(matrix)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.npz"
        np.savez(path, vectors=vectors, queries=queries, agents=np.array(agents))
        done = subprocess.run(
            [str(python), str(PROGRAM), str(path), aggregation], capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"benchmark: semantic-router failed:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return answer["chosen"], answer["ms"]
