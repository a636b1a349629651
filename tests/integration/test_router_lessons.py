"""What was learned is learned once: for every replica, and for the process after the next."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from lmos_mesh.bus import Bus
from lmos_mesh.transport import KeyValue
from lmos_mesh_router import kept_lessons
from lmos_mesh_router.evidence import EvidenceMatrix
from lmos_mesh_router.kept_lessons import KeptLessons, name_of
from lmos_mesh_router.kept_vectors import EMBEDDINGS
from lmos_mesh_router.learning import learn
from lmos_mesh_router.training import Lesson, TrainingFailed
from tests.conftest import Mesh
from tests.integration.processes import until
from tests.router_fleets import fleet

MATRIX = fleet(4)
SPACE = "encoder-lessons"


class Teacher:
    """Learns a matrix, and counts how often."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.lessons = 0
        self.takes_s = takes_s

    async def train(self, matrix: EvidenceMatrix) -> Lesson:
        self.lessons += 1
        await asyncio.sleep(self.takes_s)
        learned = learn(matrix)
        return Lesson(learned.head, learned.calibration, learned.gate)

    async def has_begun(self) -> bool:
        return self.lessons > 0


@pytest.fixture
async def bus(mesh: Mesh) -> AsyncIterator[Bus]:
    async with mesh.bus() as bus:
        yield bus


@pytest.fixture
async def store(bus: Bus) -> KeyValue:
    store = bus.transport.key_value(EMBEDDINGS)
    for entry in await store.entries(f"{SPACE}.>"):
        await store.delete(entry.key)
    return store


def alike(one: Lesson, other: Lesson) -> bool:
    assert one.head is not None
    assert other.head is not None
    return (
        np.array_equal(one.head.weights, other.head.weights)
        and one.head.classes == other.head.classes
        and one.head.said_of == other.head.said_of
        and (one.calibration, one.gate) == (other.calibration, other.gate)
    )


async def test_a_lesson_is_learned_once_and_then_recalled_as_it_was(store: KeyValue) -> None:
    teacher = Teacher()

    first, was_new = await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)
    again, is_new = await KeptLessons(store, "encoder").lesson(fleet(4), teacher.train)

    assert (was_new, is_new, teacher.lessons) == (True, False, 1)
    assert alike(first, again)


async def test_of_replicas_that_need_the_same_at_once_one_learns_it(store: KeyValue) -> None:
    teacher = Teacher(takes_s=0.3)
    found: list[tuple[Lesson, bool]] = []

    async def need() -> None:
        found.append(await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(need())

    assert teacher.lessons == 1
    assert sum(is_new for _, is_new in found) == 1
    assert all(alike(found[0][0], lesson) for lesson, _ in found)


async def test_whoever_fails_or_is_stopped_leaves_it_to_the_next(store: KeyValue) -> None:
    async def fails(_: EvidenceMatrix) -> Lesson:
        raise TrainingFailed("it was killed")

    teacher, slow = Teacher(), Teacher(takes_s=60)
    with pytest.raises(TrainingFailed, match="it was killed"):
        await KeptLessons(store, "encoder").lesson(MATRIX, fails)
    async with asyncio.TaskGroup() as tasks:
        stopped = tasks.create_task(KeptLessons(store, "encoder").lesson(MATRIX, slow.train))
        await until(slow.has_begun)
        stopped.cancel()
    async with asyncio.timeout(10):
        _, is_new = await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)

    assert is_new
    assert (slow.lessons, teacher.lessons) == (1, 1)


async def test_a_claim_of_a_process_that_died_is_over_within_seconds(
    store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_lessons, "_CLAIM_S", 1)
    await store.put(f"{SPACE}.{name_of(MATRIX)}.claim", b"1", ttl_s=1)
    teacher = Teacher()

    async with asyncio.timeout(20):
        await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)

    assert teacher.lessons == 1


async def test_a_claim_holds_for_as_long_as_it_is_being_learned(
    store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_lessons, "_CLAIM_S", 2)
    monkeypatch.setattr(kept_lessons, "_RENEWED_S", 0.3)
    teacher = Teacher(takes_s=2.5)

    async def need() -> None:
        await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(need())
        tasks.create_task(need())

    assert teacher.lessons == 1


@pytest.mark.parametrize("part", ["0", "whole"])
@pytest.mark.parametrize(
    "value", [None, b"", b"nonsense", b'{"parts": 1, "sha256": "", "bytes": 3}']
)
async def test_what_is_damaged_or_gone_is_learned_anew(
    store: KeyValue, part: str, value: bytes | None
) -> None:
    teacher = Teacher()
    await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)
    key = f"{SPACE}.{name_of(MATRIX)}.{part}"
    await (store.delete(key) if value is None else store.put(key, value))

    _, is_new = await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)
    _, again = await KeptLessons(store, "encoder").lesson(MATRIX, teacher.train)

    assert (is_new, again) == (True, False)


async def test_large_lessons_go_in_parts_and_only_so_many_are_kept(
    store: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_lessons, "_PART_BYTES", 500)
    monkeypatch.setattr(kept_lessons, "MOST_LESSONS", 2)
    teacher = Teacher()
    kept = KeptLessons(store, "encoder")
    fleets = [fleet(2, first=number) for number in range(4)]
    for matrix in fleets:
        await kept.lesson(matrix, teacher.train)

    entries = await store.entries(f"{SPACE}.>")
    assert {entry.key.split(".")[1] for entry in entries} == {name_of(one) for one in fleets[2:]}
    assert len(entries) > 4
    assert (await kept.lesson(fleets[3], teacher.train))[1] is False


def test_the_name_stands_for_every_text_and_what_it_speaks_for() -> None:
    names = {
        name_of(matrix)
        for matrix in (MATRIX, fleet(3), fleet(4, capabilities=3), fleet(4, names=False))
    }

    assert len(names) == 4
    assert name_of(fleet(4)) == name_of(MATRIX)
