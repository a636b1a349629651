"""What was learned outlives the process and serves every replica, so that it is learned once.

A lesson is kept under what it was learned from: the encoder, the code that learns, and every text
with what it speaks for. Whoever needs one that nobody has claims it first, so that of several
replicas one learns and the others wait for it. A cache, bounded in number and size, which may be
deleted at any time; without it each replica learns for itself and comes to the same.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path

from lmos_mesh import subjects
from lmos_mesh.errors import Conflict, MeshError
from lmos_mesh.transport import Entry, KeyValue
from lmos_mesh_router import calibration, evidence, head, learning, ranking, scope, training
from lmos_mesh_router.evidence import EvidenceMatrix
from lmos_mesh_router.training import Lesson, packed, unpacked

logger = logging.getLogger(__name__)

KEPT_S = 30 * 24 * 3600
MOST_LESSONS = 16
MOST_BYTES = 128 * 1024 * 1024
"""Of all lessons of one encoder; the oldest are dropped first."""

_PART_BYTES = 256 * 1024
_CLAIM_S = 5
_RENEWED_S = 1.5
_LOOK_S = 0.2
_WHOLE, _CLAIM = "whole", "claim"

Train = Callable[[EvidenceMatrix], Awaitable[Lesson]]


class KeptLessons:
    """The lessons of one encoder, which all replicas have in common."""

    def __init__(self, store: KeyValue, fingerprint: str) -> None:
        self._store = store
        self._space = f"{fingerprint}-lessons"

    async def lesson(self, matrix: EvidenceMatrix, train: Train) -> tuple[Lesson, bool]:
        """What there is to learn from a matrix, and whether this process had to learn it.

        Cancelling is safe: a claim is over within seconds.

        Args:
            matrix: The evidence.
            train: Learns it if nobody has.

        Raises:
            TrainingFailed: `train` failed.
        """
        name = await asyncio.to_thread(name_of, matrix)
        try:
            while True:
                if (found := await self._read(name, matrix)) is not None:
                    return found, False
                claim = await self._claim(name)
                if claim is not None:
                    break
                await asyncio.sleep(_LOOK_S)
            # It may have been written between the look and the claim.
            if (found := await self._read(name, matrix)) is not None:
                await self._store.delete(self._key(name, _CLAIM))
                return found, False
        except MeshError as exc:
            logger.warning("kept lessons cannot be read; all is learned anew: %s", exc)
            return await train(matrix), True
        lesson = await self._trained(name, claim, matrix, train)
        return lesson, True

    def _key(self, name: str, part: str) -> str:
        return subjects.key(self._space, name, part)

    async def _claim(self, name: str) -> int | None:
        """The revision of the claim; None if somebody else has it."""
        try:
            return await self._store.put(self._key(name, _CLAIM), b"1", expected=0, ttl_s=_CLAIM_S)
        except Conflict:
            return None

    async def _trained(self, name: str, claim: int, matrix: EvidenceMatrix, train: Train) -> Lesson:
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(name, claim))
                try:
                    lesson = await train(matrix)
                    await self._write(name, await asyncio.to_thread(packed, lesson))
                finally:
                    renewing.cancel()
        except ExceptionGroup as group:
            # Only `train` raises here.
            raise group.exceptions[0] from None
        finally:
            try:
                await asyncio.shield(self._store.delete(self._key(name, _CLAIM)))
            except MeshError as exc:
                logger.info("a claim is left to end by itself: %s", exc)
        return lesson

    async def _renew(self, name: str, claim: int) -> None:
        while True:
            await asyncio.sleep(_RENEWED_S)
            try:
                claim = await self._store.put(
                    self._key(name, _CLAIM), b"1", expected=claim, ttl_s=_CLAIM_S
                )
            except MeshError as exc:
                # Somebody else may learn the same meanwhile, which does no harm.
                logger.info("a claim could not be renewed: %s", exc)
                return

    async def _read(self, name: str, matrix: EvidenceMatrix) -> Lesson | None:
        """A lesson that is whole; None if there is none, or a part of it is gone or damaged."""
        entry = await self._store.get(self._key(name, _WHOLE))
        if entry is None or (told := _manifest(entry)) is None:
            return None
        parts, check, _ = told
        found: list[bytes] = []
        for part in range(parts):
            one = await self._store.get(self._key(name, str(part)))
            if one is None:
                return None
            found.append(one.value)
        content = b"".join(found)
        if sha256(content).hexdigest() != check:
            return None
        try:
            return await asyncio.to_thread(unpacked, matrix, content)
        except (ValueError, KeyError, TypeError, OSError, EOFError) as exc:
            logger.warning("a kept lesson cannot be read and is learned anew: %s", exc)
            return None

    async def _write(self, name: str, content: bytes) -> None:
        if len(content) > MOST_BYTES:
            return
        parts = [
            content[begin : begin + _PART_BYTES] for begin in range(0, len(content), _PART_BYTES)
        ]
        told = {"parts": len(parts), "sha256": sha256(content).hexdigest(), "bytes": len(content)}
        try:
            await self._make_room(name, len(content))
            for number, part in enumerate(parts):
                await self._store.put(self._key(name, str(number)), part, ttl_s=KEPT_S)
            # Last, as it says that the rest is there.
            whole = json.dumps(told).encode()
            await self._store.put(self._key(name, _WHOLE), whole, ttl_s=KEPT_S)
        except MeshError as exc:
            logger.warning("a lesson cannot be kept: %s", exc)

    async def _make_room(self, name: str, size: int) -> None:
        """Drop the oldest until there is room for one more."""
        entries = await self._store.entries(f"{subjects.key(self._space)}.*.{_WHOLE}")
        count, total = 1, size
        for entry in sorted(entries, key=lambda one: -one.revision):
            other = subjects.ids_of(entry.key)[1]
            parts, _, own = _manifest(entry) or (0, "", 0)
            if other == name:
                continue
            count, total = count + 1, total + own
            if count > MOST_LESSONS or total > MOST_BYTES:
                for part in (_WHOLE, *map(str, range(parts))):
                    await self._store.delete(self._key(other, part))


def _manifest(entry: Entry) -> tuple[int, str, int] | None:
    """How many parts a lesson has, what they add up to, and how large it is."""
    try:
        told = json.loads(entry.value)
        parts, check, size = int(told["parts"]), str(told["sha256"]), int(told["bytes"])
    except (ValueError, KeyError, TypeError):
        return None
    return (parts, check, size) if 0 < parts <= MOST_BYTES // _PART_BYTES + 1 else None


def name_of(matrix: EvidenceMatrix) -> str:
    """Stands for all that is learned from; who says it does not matter, only in which order."""
    digest = blake2b(_code(), digest_size=16)
    for part in matrix.parts:
        said = [(one.capability, one.kind, one.text, one.weight) for one in part.evidence]
        digest.update(json.dumps(said).encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code() -> bytes:
    """Stands for how it is learned: another version comes to something else."""
    digest = blake2b(digest_size=16)
    for module in (calibration, evidence, head, learning, ranking, scope, training):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.digest()
