"""Vectors of registered texts that outlive the process, so that a restart embeds nothing anew.

A cache: everything in it can be computed again, and it may be deleted at any time. What users say
is never put into it. An entry is taken only if it is what was written under its key. Whoever takes
a vector has it from then on: here only its key is remembered, so that no vector is held twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b, sha256

import numpy as np
import numpy.typing as npt

from lmos_mesh import subjects
from lmos_mesh.errors import MeshError
from lmos_mesh.transport import Bucket, KeyValue

logger = logging.getLogger(__name__)

Vector = npt.NDArray[np.float32]

EMBEDDINGS = Bucket(name="lmos_embeddings", expiring=True)

KEPT_S = 30 * 24 * 3600
"""What nobody has used for so long is forgotten."""

MOST = 1_000_000
"""1.6 GB in the store. Of a vector that was taken 0.2 kB stay in memory, of another one 2 kB."""

_UNREADABLE = "kept vectors cannot be read"
_AT_A_TIME = 64
_AGAIN_S = 5.0
_CHECK_BYTES = 8


class KeptVectors:
    """The vectors of one encoder."""

    def __init__(
        self, store: KeyValue, fingerprint: str, dimensions: int, *, most: int = MOST
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._dimensions = dimensions
        self._most = most
        self._known: dict[str, Vector | None] = {}
        self._old: set[str] = set()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._known)

    async def read(self, *, now: float) -> None:
        """Read everything at once; without the store there is nothing, and that is no error."""
        try:
            entries = await self._store.entries(f"{subjects.key(self._fingerprint)}.*")
        except MeshError as exc:
            logger.warning("%s; texts are embedded anew: %s", _UNREADABLE, exc)
            return
        for entry in entries[: self._most]:
            vector = read(entry.key, entry.value, self._dimensions)
            if vector is None:
                continue
            self._known[entry.key] = vector
            if now - entry.created > KEPT_S / 2:
                self._old.add(entry.key)

    def take(self, text: str) -> Vector | None:
        """The vector of a text, if it is kept and nobody has taken it yet."""
        key = self.key_of(text)
        vector = self._known.get(key)
        if vector is not None:
            self._known[key] = None
            if key in self._old:
                self._old.discard(key)
                self._write(key, vector)
        return vector

    async def again(self, texts: Iterable[str]) -> dict[str, Vector]:
        """What was taken before of these, read from the store once more."""
        wanted = {text: key for text in texts if (key := self.key_of(text)) in self._known}
        found: dict[str, Vector] = {}

        async def read_one(text: str, key: str) -> None:
            entry = await self._store.get(key)
            vector = read(key, entry.value, self._dimensions) if entry is not None else None
            if vector is not None:
                found[text] = vector

        waiting = list(wanted.items())
        try:
            for begin in range(0, len(waiting), _AT_A_TIME):
                async with asyncio.TaskGroup() as tasks:
                    for text, key in waiting[begin : begin + _AT_A_TIME]:
                        tasks.create_task(read_one(text, key))
        except* MeshError as group:
            logger.warning("%s; texts are embedded anew: %s", _UNREADABLE, group.exceptions[0])
        return found

    def put(self, text: str, vector: Vector) -> None:
        """Keep a vector; it is written soon."""
        key = self.key_of(text)
        if key not in self._known and len(self._known) < self._most:
            self._known[key] = None
            self._write(key, vector)

    def _write(self, key: str, vector: Vector) -> None:
        self._waiting.append((key, written(key, vector)))
        self._wake.set()

    def key_of(self, text: str) -> str:
        """Under what the vector of a text is kept; the text cannot be told from it."""
        digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return subjects.key(self._fingerprint, digest[:32])

    async def run(self) -> None:
        """Write what is to be kept until cancelled."""
        while True:
            await self._wake.wait()
            batch = [self._waiting.popleft() for _ in range(min(_AT_A_TIME, len(self._waiting)))]
            if not batch:
                self._wake.clear()
                continue
            try:
                async with asyncio.TaskGroup() as tasks:
                    for key, value in batch:
                        tasks.create_task(self._put(key, value))
            except* MeshError as group:
                logger.warning("vectors cannot be kept: %s", group.exceptions[0])
                self._waiting.extendleft(reversed(batch))
                await asyncio.sleep(_AGAIN_S)

    async def _put(self, key: str, value: bytes) -> None:
        await self._store.put(key, value, ttl_s=KEPT_S)


def written(key: str, vector: Vector) -> bytes:
    """A vector as it is kept: what it is for and its numbers, summed up, and the numbers."""
    numbers = np.ascontiguousarray(vector, "<f4").tobytes()
    return _check(key, numbers) + numbers


def read(key: str, value: bytes, dimensions: int) -> Vector | None:
    """The vector that was kept under a key; None if this is something else."""
    check, numbers = value[:_CHECK_BYTES], value[_CHECK_BYTES:]
    if len(numbers) != 4 * dimensions or check != _check(key, numbers):
        return None
    return np.frombuffer(value, "<f4", offset=_CHECK_BYTES)


def _check(key: str, numbers: bytes) -> bytes:
    return blake2b(key.encode() + numbers, digest_size=_CHECK_BYTES).digest()
