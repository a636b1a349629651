"""Embeds at once: vectors as long as a model's, from the words of a text.

To embed fifty thousand texts takes a model minutes. What the registry does with the vectors can be
measured without it: texts that share words come out alike, as they do with a model.
"""

import asyncio
import json
import os
import sys
from functools import cache

import numpy as np
import numpy.typing as npt

from lmos_mesh import Mesh
from lmos_mesh.bus import route
from lmos_mesh.calls import Call
from lmos_mesh.indices import words_of
from lmos_mesh.messages import EMBED, Embed, Embedded

DIMENSIONS = 384

Vector = npt.NDArray[np.float32]


@cache
def of_word(word: str) -> Vector:
    """The direction of a word, the same in every process."""
    seed = int.from_bytes(word.encode()[:16].ljust(16, b"\0"), "big")
    return np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)


@cache
def of_text(text: str) -> tuple[float, ...]:
    """The unit vector of a text."""
    found = np.sum([of_word(word) for word in words_of(text)] or [of_word("")], axis=0)
    return tuple((found / np.linalg.norm(found)).tolist())


async def embed(request: Embed, call: Call) -> Embedded:
    """One vector per text."""
    return Embedded(
        vectors=tuple(of_text(text) for text in request.texts),
        dimensions=DIMENSIONS,
        encoder="stand-in",
        fingerprint="stand-in",
        semantic=True,
    )


async def main() -> None:
    """Serve until told to end."""
    async with Mesh.connect(os.environ["LMOS_NATS_URL"], name="stand-in-router") as mesh:
        await mesh.bus.serve("router", [route(EMBED, embed)])
        print(json.dumps({"event": "READY"}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
