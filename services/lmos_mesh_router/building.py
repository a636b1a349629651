"""Builds what is known of a tenant anew, with other evidence for some of its agents. Pure."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lmos_mesh.things import SHARED, ThingKey
from lmos_mesh_router.embedding import Vector
from lmos_mesh_router.evidence import Block, Evidence, EvidenceMatrix
from lmos_mesh_router.hashing import MAX_CHARACTERS, hash_text
from lmos_mesh_router.ranking import Learned


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds from evidence and its vectors.

    Attributes:
        dimensions: Of the vectors.
        words: Of what they are told of spelling beside; 0 for an encoder that knows it already.
    """

    dimensions: int
    words: int

    def nothing(self) -> Learned:
        """What is known where there are no agents."""
        return Learned.of(EvidenceMatrix.of([], self.dimensions, self.words))

    def spelling(self, text: str) -> Vector:
        """How a text is spelled; nothing where the vectors know that."""
        return _spelled(text[:MAX_CHARACTERS]) if self.words else _NO_WORDS

    def built(
        self,
        before: Learned,
        parts: dict[ThingKey, tuple[list[Evidence], dict[str, Vector]]],
        shared: dict[ThingKey, Block] | None,
    ) -> Learned:
        """The same knowledge with other evidence for some agents. Runs in a thread.

        Args:
            before: What was known.
            parts: The evidence.
            shared: All that is known of shared agents; None for the index of these.
        """
        blocks = before.matrix.blocks()
        for key, (evidence, vectors) in parts.items():
            old = blocks.pop(key, None)
            if evidence:
                blocks[key] = self._block(key, evidence, vectors, old)
        if shared is not None:
            blocks = {key: one for key, one in blocks.items() if key.tenant != SHARED} | shared
        matrix = EvidenceMatrix.of(
            blocks.values(), self.dimensions, self.words, frozen=before.matrix.nearest.frozen
        )
        return before.changed_to(matrix)

    def _block(
        self,
        key: ThingKey,
        evidence: list[Evidence],
        vectors: dict[str, Vector],
        old: Block | None,
    ) -> Block:
        spelled: dict[str, npt.NDArray[Any]] = {}
        if old is not None:
            texts = (one.text for one in old.evidence)
            spelled = dict(zip(texts, old.words, strict=True))
        words = [
            known if (known := spelled.get(one.text)) is not None else self.spelling(one.text)
            for one in evidence
        ]
        return Block.build(
            key, evidence, np.stack([vectors[one.text] for one in evidence]), np.stack(words)
        )


_NO_WORDS = np.zeros(0, np.float32)


@lru_cache(maxsize=8192)
def _spelled(text: str) -> Vector:
    return hash_text(text)
