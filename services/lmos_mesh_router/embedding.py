"""Vectors for texts: computed in a thread, the most urgent first, each text once."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmos_mesh_router.encoder import Encoder

Vector = npt.NDArray[np.float32]

BATCH = 8
"""Twice as many take twice as long, and whoever asks meanwhile waits for all of them."""

Urgency = Literal["now", "soon", "later"]
"""Somebody waits for an answer; an agent waits to be chosen; it is for a search to come."""


class Embedder:
    """Batches what is asked while the encoder is busy. One thread: the encoder has one core."""

    def __init__(self, encoder: Encoder, *, remembered: int = 20_000) -> None:
        self.encoder = encoder
        self._remembered = remembered
        self._known: OrderedDict[str, Vector] = OrderedDict()
        self._asked: dict[str, asyncio.Future[Vector]] = {}
        self._queues: dict[Urgency, deque[str]] = {
            "now": deque(),
            "soon": deque(),
            "later": deque(),
        }
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    def known(self, text: str) -> Vector | None:
        """The vector of a text that was embedded before."""
        vector = self._known.get(text)
        if vector is not None:
            self._known.move_to_end(text)
        return vector

    async def embed(self, texts: Sequence[str], *, urgency: Urgency = "now") -> list[Vector]:
        """One vector per text."""
        waiting: list[Vector | asyncio.Future[Vector]] = []
        for text in texts:
            known = self.known(text)
            waiting.append(known if known is not None else self._ask(text, urgency))
        return [
            await asyncio.shield(one) if isinstance(one, asyncio.Future) else one for one in waiting
        ]

    def _ask(self, text: str, urgency: Urgency) -> "asyncio.Future[Vector]":
        future = self._asked.get(text)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._asked[text] = future
            self._queues[urgency].append(text)
            self._wake.set()
            return future
        for other, queue in reversed(self._queues.items()):
            if other == urgency:
                break  # it is waited for as urgently already
            if text in queue:
                queue.remove(text)
                self._queues[urgency].append(text)
                break
        return future

    async def run(self) -> None:
        """Embed what is asked until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            queue = next((one for one in self._queues.values() if one), self._queues["now"])
            batch = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
            if not batch:
                self._wake.clear()
                continue
            try:
                vectors = await loop.run_in_executor(self._thread, self.encoder.encode, batch)
            except Exception as exc:  # whoever asked is told; the others are still served
                for text in batch:
                    future = self._asked.pop(text)
                    if not future.done():
                        future.set_exception(exc)
                        future.exception()  # nobody may be left to look
                continue
            for text, vector in zip(batch, vectors, strict=True):
                self._remember(text, vector)
                future = self._asked.pop(text)
                if not future.done():
                    future.set_result(vector)

    def _remember(self, text: str, vector: Vector) -> None:
        self._known[text] = vector
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
