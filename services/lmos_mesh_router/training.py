"""Has a head trained in a process of its own: it takes seconds, and decisions must not wait for it.

Only numbers are handed over, in files of a directory that both see: what texts and names were is
of no matter to them. The process has one core and gives way to whoever decides.
"""

import asyncio
import io
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lmos_mesh.errors import MeshError
from lmos_mesh.tether import tethered
from lmos_mesh.things import ThingKey
from lmos_mesh_router.calibration import Calibration
from lmos_mesh_router.evidence import Evidence, EvidenceMatrix
from lmos_mesh_router.head import Head
from lmos_mesh_router.learning import learn
from lmos_mesh_router.ranking import Learned, Method
from lmos_mesh_router.scope import Gate

MOST_ROWS = 50_000
"""Of more evidence nothing is learned: the answer in closed form and its defaults serve then."""

_GIVEN, _LEARNED = "given.npz", "learned.npz"
_METHODS: tuple[Method, ...] = ("head", "instant")
_KINDS = ("example", "name", "description", "agent")
_GIVES_WAY = 10

Arrays = Mapping[str, npt.NDArray[Any]]


class TrainingFailed(MeshError):
    """The process that trains ended without a result."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What was learned from a matrix."""

    head: Head | None = field(repr=False)
    calibration: Mapping[Method, Calibration]
    gate: Mapping[Method, Gate]

    def of(self, matrix: EvidenceMatrix) -> Learned:
        """The same, for what the evidence has become meanwhile."""
        return Learned.of(matrix, self.head, self.calibration, self.gate)


async def train_apart(matrix: EvidenceMatrix) -> Lesson:
    """Learn from a matrix in another process. Cancelling ends it.

    Raises:
        TrainingFailed: It ended without a result.
    """
    # What a head is good for is known by the texts, which stay here.
    said_of = await asyncio.to_thread(matrix.said_of)
    with tempfile.TemporaryDirectory(prefix="lmos-router-") as directory:
        place = Path(directory)
        given = cast("Any", numbers_of(matrix))
        await asyncio.to_thread(lambda: np.savez(place / _GIVEN, **given))
        command = tethered(
            [sys.executable, "-m", "lmos_mesh_router.training", directory], signal.SIGKILL
        )
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if process.returncode != 0:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise TrainingFailed(f"training ended with status {process.returncode}: {last}")
        with np.load(place / _LEARNED, allow_pickle=False) as learned:
            return _lesson(matrix, dict(said_of), dict(learned))


def numbers_of(matrix: EvidenceMatrix) -> dict[str, npt.NDArray[Any]]:
    """All of a matrix that learning looks at."""
    return {
        "kinds": np.array([_KINDS.index(one.kind) for one in matrix.evidence], np.int8),
        "vectors": matrix.vectors,
        "words": matrix.words,
        "weights": matrix.weights,
        "starts": matrix.starts,
        "agent_of": matrix.agent_of,
        "of_agents": matrix.of_agents,
    }


def matrix_of(numbers: Arrays) -> EvidenceMatrix:
    """The matrix of these numbers, in which agents, capabilities and texts are called by theirs."""
    starts, agent_of = numbers["starts"], numbers["agent_of"]
    kinds, weights = numbers["kinds"], numbers["weights"]
    of_agents = numbers["of_agents"]
    owners = [
        *(
            (int(agent), at)
            for at, agent in enumerate(agent_of)
            for _ in range(*starts[at : at + 2])
        ),
        *((at, -1) for at in range(len(of_agents) - 1) for _ in range(*of_agents[at : at + 2])),
    ]
    evidence = [
        Evidence(
            # Names sort like the numbers that they are.
            ThingKey("", f"{agent:09d}", ""),
            f"{capability:09d}" if capability >= 0 else "",
            _KINDS[int(kinds[row])],
            str(row),
            float(weights[row]),
        )
        for row, (agent, capability) in enumerate(owners)
    ]
    return EvidenceMatrix.build(evidence, numbers["vectors"], numbers["words"])


def packed(lesson: Lesson) -> bytes:
    """A lesson as it is kept."""
    content = io.BytesIO()
    np.savez(content, **cast("Any", _numbers_learned(lesson)))
    return content.getvalue()


def unpacked(matrix: EvidenceMatrix, content: bytes) -> Lesson:
    """The lesson of a matrix from what was kept of it."""
    with np.load(io.BytesIO(content), allow_pickle=False) as learned:
        return _lesson(matrix, dict(matrix.said_of()), dict(learned))


def _numbers_learned(learned: Learned | Lesson) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    if learned.head is not None:
        found |= {"weights": learned.head.weights, "bias": learned.head.bias}
    for method in _METHODS:
        for kind, fitted in (("calibration", learned.calibration), ("gate", learned.gate)):
            for name, value in asdict(fitted[method]).items():
                found[f"{kind}.{method}.{name}"] = np.array(value)
    return found


def _lesson(matrix: EvidenceMatrix, said_of: dict[Any, frozenset[str]], learned: Arrays) -> Lesson:
    head = None
    if "weights" in learned:
        head = Head(matrix.classes, learned["weights"], learned["bias"], said_of)

    def fitted(kind: str, method: Method) -> dict[str, Any]:
        prefix = f"{kind}.{method}."
        return {
            name.removeprefix(prefix): tuple(value.tolist()) if value.ndim else value.item()
            for name, value in learned.items()
            if name.startswith(prefix)
        }

    return Lesson(
        head,
        {method: Calibration(**fitted("calibration", method)) for method in _METHODS},
        {method: Gate(**fitted("gate", method)) for method in _METHODS},
    )


def main() -> None:
    """Learn what is in the directory that is named, and leave the result there."""
    os.nice(_GIVES_WAY)
    place = Path(sys.argv[1])
    with np.load(place / _GIVEN, allow_pickle=False) as given:
        matrix = matrix_of(dict(given))
    found = cast("Any", _numbers_learned(learn(matrix)))
    np.savez(place / _LEARNED, **found)


if __name__ == "__main__":
    main()
