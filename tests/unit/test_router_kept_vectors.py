"""Vectors that are kept are found again, and whatever else is there is not taken for one."""

import asyncio
import time
from collections.abc import AsyncGenerator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.transport import Entry, KeyValue
from lmos_mesh_router.kept_vectors import EMBEDDINGS, KEPT_S, KeptVectors, read, written
from tests.conftest import Mesh
from tests.integration.processes import until

WIDTH = 4
VECTOR = np.array([0.5, -0.5, 0.5, 0.5], np.float32)


@pytest.fixture
async def store(mesh: Mesh) -> AsyncGenerator[KeyValue]:
    async with mesh.transport() as transport:
        yield transport.key_value(EMBEDDINGS)


async def write(kept: KeptVectors, store: KeyValue, pattern: str, count: int) -> None:
    """Let it write until so many entries are there."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(kept.run())
        await until(written_to, store, pattern, count, within_s=5)
        work.cancel()


async def written_to(store: KeyValue, pattern: str, count: int) -> bool:
    return len(await store.entries(pattern)) >= count


async def test_a_vector_is_there_again_after_a_restart(store: KeyValue, mesh: Mesh) -> None:
    print_ = mesh.tenant
    before = KeptVectors(store, print_, WIDTH)
    texts = ["show my bill", "", "ünïcode 🙂", "\ud800", "x" * 10_000]
    for text in texts:
        before.put(text, VECTOR)
    await write(before, store, f"{print_}.*", len(texts))

    after = KeptVectors(store, print_, WIDTH)
    other = KeptVectors(store, f"other-{print_}", WIDTH)
    await after.read(now=time.time())
    await other.read(now=time.time())

    for text in texts:
        assert np.array_equal(after.take(text), VECTOR)  # pyright: ignore[reportArgumentType]
    assert after.take("something else") is None
    assert len(other) == 0


async def test_what_is_damaged_or_foreign_is_ignored(store: KeyValue, mesh: Mesh) -> None:
    print_ = mesh.tenant
    before = KeptVectors(store, print_, WIDTH)
    for text in ("whole", "cut", "moved", "flipped"):
        before.put(text, VECTOR)
    await write(before, store, f"{print_}.*", 4)
    keys = {text: before.key_of(text) for text in ("whole", "cut", "moved", "flipped")}
    values = {entry.key: entry.value for entry in await store.entries(f"{print_}.*")}
    await store.put(keys["cut"], values[keys["cut"]][:-1])
    await store.put(keys["moved"], values[keys["whole"]])
    flipped = bytearray(values[keys["flipped"]])
    flipped[-1] ^= 1
    await store.put(keys["flipped"], bytes(flipped))
    await store.put(f"{print_}.junk", b"\x00" * (8 + 4 * WIDTH))

    after = KeptVectors(store, print_, WIDTH)
    await after.read(now=time.time())

    assert len(after) == 1
    assert after.take("whole") is not None


async def test_what_was_taken_is_read_once_more_for_whoever_asks_again(
    store: KeyValue, mesh: Mesh
) -> None:
    before = KeptVectors(store, mesh.tenant, WIDTH)
    before.put("a", VECTOR)
    await write(before, store, f"{mesh.tenant}.*", 1)
    after = KeptVectors(store, mesh.tenant, WIDTH)
    await after.read(now=time.time())
    assert after.take("a") is not None
    assert after.take("a") is None

    for kept in (before, after):
        again = await kept.again(["a", "b"])

        assert again.keys() == {"a"}
        assert np.array_equal(again["a"], VECTOR)


async def test_only_so_many_are_kept(store: KeyValue, mesh: Mesh) -> None:
    kept = KeptVectors(store, mesh.tenant, WIDTH, most=2)
    for text in "abc":
        kept.put(text, VECTOR)

    assert len(kept) == 2
    assert kept.take("c") is None


async def test_what_is_used_is_kept_for_longer(store: KeyValue, mesh: Mesh) -> None:
    first = KeptVectors(store, mesh.tenant, WIDTH)
    first.put("a", VECTOR)
    await write(first, store, f"{mesh.tenant}.*", 1)
    (entry,) = await store.entries(f"{mesh.tenant}.*")

    later = KeptVectors(store, mesh.tenant, WIDTH)
    await later.read(now=time.time() + 0.6 * KEPT_S)
    assert later.take("a") is not None
    assert later.take("a") is None

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(later.run())
        await until(renewed, store, entry, within_s=5)
        work.cancel()


async def renewed(store: KeyValue, entry: Entry) -> bool:
    found = await store.get(entry.key)
    return found is not None and found.revision > entry.revision


@given(st.binary(max_size=64))
def test_no_bytes_are_taken_for_a_vector(value: bytes) -> None:
    assert read("key", value, WIDTH) is None


@given(st.lists(st.floats(-1, 1, width=32), min_size=WIDTH, max_size=WIDTH), st.text())
def test_what_is_written_is_read(numbers: list[float], key: str) -> None:
    vector = np.array(numbers, np.float32)

    found = read(key, written(key, vector), WIDTH)

    assert found is not None
    assert np.array_equal(found, vector)
