"""Texts become vectors in a thread: each once, questions first, and a failure is only its own."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import numpy.typing as npt
import pytest

from lmos_mesh_router.embedding import BATCH, Embedder

SOON_S = 10.0


class SlowEncoder:
    """Encodes a text as its length, once the test lets it."""

    name = "slow"
    fingerprint = "slow"
    dimensions = 2
    semantic = False
    reason = ""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.at_it = threading.Event()
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(list(texts))
        self.at_it.set()
        assert self.may_go.wait(SOON_S)
        if "bad" in texts:
            raise ValueError("cannot be encoded")
        return np.array([[len(text), 1] for text in texts], np.float32)


@asynccontextmanager
async def running(encoder: SlowEncoder, *, remembered: int = 100) -> AsyncGenerator[Embedder]:
    embedder = Embedder(encoder, remembered=remembered)
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(embedder.run())
        try:
            yield embedder
        finally:
            encoder.may_go.set()
            work.cancel()


async def test_every_text_gets_its_own_vector_in_order() -> None:
    async with running(SlowEncoder()) as embedder:
        vectors = await embedder.embed(["a", "ccc", "bb", "a"])

    assert [vector[0] for vector in vectors] == [1, 3, 2, 1]


async def test_no_texts_are_no_vectors() -> None:
    async with running(SlowEncoder()) as embedder:
        assert await embedder.embed([]) == []


async def test_a_text_is_embedded_once_however_many_ask_for_it() -> None:
    encoder = SlowEncoder()

    async with running(encoder) as embedder:
        async with asyncio.TaskGroup() as askers:
            for _ in range(5):
                askers.create_task(embedder.embed(["same"]))
        await embedder.embed(["same"])

    assert [text for batch in encoder.batches for text in batch] == ["same"]


async def test_what_waits_while_the_encoder_is_busy_goes_in_one_batch() -> None:
    encoder = SlowEncoder()
    encoder.may_go.clear()

    async with running(encoder) as embedder, asyncio.TaskGroup() as askers:
        askers.create_task(embedder.embed(["first"]))
        await asyncio.to_thread(encoder.at_it.wait, SOON_S)
        for at in range(BATCH + 1):
            askers.create_task(embedder.embed([f"text {at}"]))
        await asyncio.sleep(0)
        encoder.may_go.set()

    assert [len(batch) for batch in encoder.batches] == [1, BATCH, 1]


async def test_questions_overtake_the_texts_of_the_index() -> None:
    encoder = SlowEncoder()
    encoder.may_go.clear()

    async with running(encoder) as embedder, asyncio.TaskGroup() as askers:
        askers.create_task(embedder.embed(["first"]))
        await asyncio.to_thread(encoder.at_it.wait, SOON_S)
        index = [f"index {at}" for at in range(3 * BATCH)]
        askers.create_task(embedder.embed(index, urgency="later"))
        await asyncio.sleep(0)
        askers.create_task(embedder.embed(["question", "index 40"]))
        await asyncio.sleep(0)
        encoder.may_go.set()

    assert encoder.batches[1] == ["question", "index 40"]
    assert sorted(text for batch in encoder.batches[2:] for text in batch) == sorted(
        text for text in index if text != "index 40"
    )


async def test_a_text_that_fails_fails_those_who_asked_and_nobody_after() -> None:
    async with running(SlowEncoder()) as embedder:
        with pytest.raises(ValueError, match="cannot be encoded"):
            await embedder.embed(["bad"])

        assert (await embedder.embed(["good"]))[0][0] == 4


async def test_whoever_leaves_does_not_take_the_vector_from_the_others() -> None:
    encoder = SlowEncoder()
    encoder.may_go.clear()

    async with running(encoder) as embedder, asyncio.TaskGroup() as askers:
        impatient = askers.create_task(embedder.embed(["text"]))
        patient = askers.create_task(embedder.embed(["text"]))
        await asyncio.to_thread(encoder.at_it.wait, SOON_S)
        impatient.cancel()
        await asyncio.sleep(0)
        encoder.may_go.set()

    assert (await patient)[0][0] == 4


async def test_only_so_many_vectors_are_remembered_and_the_least_used_are_forgotten() -> None:
    async with running(SlowEncoder(), remembered=2) as embedder:
        await embedder.embed(["a"])
        await embedder.embed(["b"])
        await embedder.embed(["a"])
        await embedder.embed(["c"])

        assert embedder.known("a") is not None
        assert embedder.known("b") is None
        assert embedder.known("c") is not None
