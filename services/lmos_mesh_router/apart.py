"""Runs what takes a core for seconds in a process of its own: decisions must not wait for it.

A thread would do for work that leaves the interpreter alone; what people ask for (`lint`, `fit`) is
half Python, and makes decisions several times slower. The process gives way to all others, and
ends with whoever started it. What goes there and back goes through its own pipes.
"""

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from lmos_mesh.errors import MeshError
from lmos_mesh.tether import tethered

T = TypeVar("T")

_GIVES_WAY = 10


class WorkFailed(MeshError):
    """The process ended without a result."""


async def apart(work: Callable[..., T], *given: object) -> T:
    """Run a function of a module in a process of its own. Cancelling ends the process.

    Args:
        work: The function.
        given: What it is called with.

    Raises:
        WorkFailed: It raised, or the process was ended.
    """
    content = await asyncio.to_thread(_packed, (work, given))
    process = await asyncio.create_subprocess_exec(
        *tethered([sys.executable, "-m", "lmos_mesh_router.apart"], signal.SIGKILL),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        answer, said = await process.communicate(content)
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise WorkFailed(
            f"{work.__name__} ended with status {process.returncode}: {last}",
            hint="the router goes on; try again, and report it if it happens again",
        )
    result: T = pickle.loads(answer)
    return result


class _Sink:
    """Takes what is pickled piece by piece, so that others can run in between."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        """Take a piece; a large one comes as a buffer."""
        taken = bytes(piece)
        self.pieces.append(taken)
        return len(taken)


def _packed(what: object) -> bytes:
    sink = _Sink()
    pickle.Pickler(sink, protocol=5).dump(what)
    return b"".join(sink.pieces)


def main() -> None:
    """Do what standard input says, and write the result to standard output."""
    os.nice(_GIVES_WAY)
    # Whatever the work prints must not get into the answer.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    work, given = pickle.load(sys.stdin.buffer)
    with answer:
        pickle.dump(work(*given), answer, protocol=5)


if __name__ == "__main__":
    main()
