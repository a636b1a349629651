"""The router's index follows the registry: at once, without a gap, alike in every replica."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lmos_mesh.directory import Directory
from lmos_mesh.messages import LINT_EXAMPLES, LintExamples
from lmos_mesh_router import indexing, nearest, relearning
from lmos_mesh_router.embedding import Embedder
from lmos_mesh_router.encoder import HashingEncoder
from lmos_mesh_router.fits import Fits
from lmos_mesh_router.indexing import Index
from lmos_mesh_router.kept_lessons import KeptLessons
from lmos_mesh_router.kept_vectors import EMBEDDINGS, KeptVectors
from lmos_mesh_router.ranking import Ranking
from lmos_mesh_router.service import FEEDBACK
from lmos_mesh_router.tools import Tools
from lmos_mesh_router.training import TrainingFailed
from lmos_mesh_router.view import View
from tests.conftest import MemoryMesh
from tests.integration.processes import until
from tests.router_town import TENANT, Town

SOON_S = 10.0
DECIDED_S = 0.5
LEARNED_S = 90.0
"""What learns gives way to all else that the machine is at."""

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty")


class Spelling(HashingEncoder):
    """Compares spelling and says that it knows meanings, so that all is done that is done then."""

    semantic = True


def says(agent: int, capability: int, number: int) -> str:
    """An example that shares no word with those of other agents."""
    word = f"{WORDS[agent % len(WORDS)]}{agent}"
    return f"{word} {word}{capability} {WORDS[number]}"


def record(agent: int, capabilities: int = 3, examples: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "name": f"a{agent}",
        "capabilities": [
            {
                "id": f"c{capability}",
                "examples": [says(agent, capability, number) for number in range(examples)],
            }
            for capability in range(capabilities)
        ],
        **more,
    }


class Slow(Spelling):
    """Takes its time for each batch."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        time.sleep(0.1)
        return super().encode(texts)


@asynccontextmanager
async def replica(
    mesh: MemoryMesh, *, learns: bool = False, encoder: Spelling | None = None
) -> AsyncGenerator[Index]:
    async with mesh.bus() as bus:
        encoder = encoder or Spelling()
        embedder = Embedder(encoder)
        bus.spawn(embedder.run())
        store = bus.transport.key_value(EMBEDDINGS)
        kept = KeptVectors(store, encoder.fingerprint, encoder.dimensions)
        await kept.read(now=time.time())
        bus.spawn(kept.run())
        directory = Directory(bus)
        index = Index(directory, embedder, kept, KeptLessons(store, encoder.fingerprint))
        await directory.follow()
        bus.spawn(index.run())
        assert await index.until_whole(within_s=SOON_S)
        if learns:
            bus.spawn(index.learn())
        yield index


@pytest.fixture
async def town(memory_mesh: MemoryMesh) -> AsyncGenerator[Town]:
    async with memory_mesh.bus() as bus:
        yield Town(bus)


async def ranked(index: Index, text: str, channel: str = "web", subset: str = "stable") -> Ranking:
    (query,) = await index.queries([text])
    return index.view(TENANT, channel, subset).rank(query)


async def first(index: Index, text: str, **more: str) -> str:
    found = await ranked(index, text, **more)
    return f"{found.ranked[0].key.name}/{found.ranked[0].capability}" if found.ranked else ""


async def is_first(index: Index, text: str, wanted: str) -> bool:
    return await first(index, text) == wanted


async def join_all(town: Town, agents: Iterable[int]) -> None:
    for agent in agents:
        await town.join(record(agent))


async def test_who_joins_changes_or_leaves_is_decided_for_at_once(
    memory_mesh: MemoryMesh, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only once all is quiet."""
    monkeypatch.setattr(relearning, "QUIET_S", 10 * SOON_S)
    monkeypatch.setattr(relearning, "PATIENCE_S", 10 * SOON_S)
    await join_all(town, range(8))
    async with replica(memory_mesh) as index:
        for agent in range(8, 12):
            await town.join(record(agent))
            await until(is_first, index, says(agent, 1, 0), f"a{agent}/c1", within_s=SOON_S)

        other = {"name": "a9", "capabilities": [{"id": "new", "examples": ["zephyr quartz"]}]}
        await town.join(other)
        await until(is_first, index, "zephyr quartz", "a9/new", within_s=SOON_S)

        await town.leave("a9")
        await until(is_gone, index, "a9", within_s=SOON_S)


async def is_gone(index: Index, name: str) -> bool:
    found = await ranked(index, "zephyr quartz")
    return name not in {one.key.name for one in found.ranked}


async def test_lint_looks_at_all_examples_also_of_an_agent_that_has_just_come(
    memory_mesh: MemoryMesh, town: Town
) -> None:
    encoder = Slow()
    async with replica(memory_mesh, encoder=encoder) as index, memory_mesh.bus() as bus:
        directory = Directory(bus)
        await directory.follow()
        tools = Tools(
            index=index,
            directory=directory,
            fits=Fits(bus, encoder.fingerprint),
            encoder=encoder,
            threshold=0.5,
            in_scope=0.05,
            feedback=bus.transport.stream(FEEDBACK),
            keeps_feedback=False,
        )
        await join_all(town, range(2))
        # Its first examples are known by then, the others are not.
        await until(is_first, index, says(1, 1, 0), "a1/c1", within_s=SOON_S)
        await bus.serve("router", tools.routes())

        found = await town.bus.call(LINT_EXAMPLES, LintExamples(), tenant=TENANT, timeout_s=60)

    assert (found.agents, found.examples) == (2, 2 * 3 * 4)


async def test_only_the_living_of_a_channel_and_subset_are_candidates(
    memory_mesh: MemoryMesh, town: Town
) -> None:
    await town.join(record(1))
    await town.join(record(1, subset="canary"))
    await town.join(record(2, supported_channels=["ivr"]))
    await town.join(record(3), live=False)
    await town.join({"name": "lamp", "kind": "tool", "capabilities": [{"id": "c0"}]})
    async with replica(memory_mesh) as index:

        def who(channel: str, subset: str = "stable") -> set[str]:
            view = index.view(TENANT, channel, subset)
            return {f"{one.name}@{one.subset}" for one in view.agents}

        assert who("web") == {"a1@stable"}
        assert who("ivr") == {"a1@stable", "a2@stable"}
        assert who("web", "canary") == {"a1@canary"}
        assert who("web", "beta") == set()
        assert index.view("nobody", "web", "stable").agents == frozenset()

        await town.die("a1")
        await until(is_first, index, says(1, 1, 1), "", within_s=SOON_S)
        assert who("web") == set()


@pytest.mark.timeout(300)
async def test_whatever_changes_nobody_is_missing_or_wrong_meanwhile(
    memory_mesh: MemoryMesh, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six agents stay as they are while others join, change and leave, and all is learned anew."""
    monkeypatch.setattr(relearning, "QUIET_S", 0.05)
    monkeypatch.setattr(relearning, "PATIENCE_S", 0.3)
    await join_all(town, range(6))
    chance = random.Random(7)
    asked = 0
    slowest_s = 0.0
    async with replica(memory_mesh, learns=True) as index, asyncio.timeout(LEARNED_S):

        async def change() -> None:
            for step in range(60):
                agent = 6 + chance.randrange(8)
                if chance.random() < 0.3:
                    await town.leave(f"a{agent}")
                else:
                    await town.join(record(agent, capabilities=1 + step % 4))
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            changing = tasks.create_task(change())
            while not changing.done() or index.progress.trainings == 0:
                agent, capability = asked % 6, asked % 3
                # Of this thread alone: what the machine does meanwhile says nothing.
                began = time.thread_time()
                found = await first(index, says(agent, capability, asked % 4))
                slowest_s = max(slowest_s, time.thread_time() - began)
                assert found == f"a{agent}/c{capability}"
                asked += 1
                await asyncio.sleep(0)

        assert asked > 100
        assert index.progress.version > 10
        assert slowest_s < DECIDED_S


async def test_hammered_from_tasks_and_threads_while_agents_come_and_go_it_is_never_wrong(
    memory_mesh: MemoryMesh, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above in the large: an approximate index is made anew under whoever asks."""
    monkeypatch.setattr(nearest, "EXACT", 48)
    monkeypatch.setattr(nearest, "FEW", 8)
    monkeypatch.setattr(indexing, "_SHARE_OF_SHOWING", 0)
    stay = 20
    await join_all(town, range(stay))
    chance = random.Random(11)
    asked = [0, 0]
    async with replica(memory_mesh) as index, asyncio.timeout(60):
        await until(has_index, index, within_s=SOON_S)
        queries = {
            (agent, capability): (await index.queries([says(agent, capability, 1)]))[0]
            for agent in range(stay)
            for capability in range(3)
        }
        changing = True

        async def change() -> None:
            nonlocal changing
            step = 0
            while step < 40 or min(asked) < 100 or index.progress.frozen < 3:
                step += 1
                agent = stay + chance.randrange(12)
                if chance.random() < 0.4:
                    await town.leave(f"a{agent}")
                else:
                    await town.join(record(agent, capabilities=1 + step % 4, examples=2))
                await asyncio.sleep(0.01)
            changing = False

        def rank_all(view: View) -> int:
            for agent, capability in chance.sample(sorted(queries), 5):
                query = queries[agent, capability]
                found = view.rank(query).ranked[0]
                assert (found.key.name, found.capability) == (f"a{agent}", f"c{capability}")
            return 5

        async def ask() -> None:
            while changing:
                agent, capability = chance.randrange(stay), chance.randrange(3)
                found = await first(index, says(agent, capability, 2))
                assert found == f"a{agent}/c{capability}"
                asked[0] += 1
                await asyncio.sleep(0.001)

        async def ask_in_a_thread() -> None:
            while changing:
                view = index.view(TENANT, "web", "stable")
                asked[1] += await asyncio.to_thread(rank_all, view)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            for work in (change, ask, ask, ask_in_a_thread, ask_in_a_thread):
                tasks.create_task(work())

        assert index.progress.version > 8


async def has_index(index: Index) -> bool:
    return index.progress.frozen > 0


async def test_without_faiss_all_is_compared_one_by_one_and_it_says_so(
    memory_mesh: MemoryMesh,
    town: Town,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(nearest, "EXACT", 8)
    monkeypatch.setattr(indexing, "available", lambda: False)
    await join_all(town, range(4))
    async with replica(memory_mesh) as index:
        assert await first(index, says(3, 2, 1)) == "a3/c2"
        await town.join(record(5))
        await until(is_first, index, says(5, 1, 0), "a5/c1", within_s=SOON_S)
    assert "pip install 'lmos-mesh[router]'" in caplog.text


@pytest.mark.timeout(300)
async def test_when_it_is_quiet_all_is_learned_and_replicas_agree(
    memory_mesh: MemoryMesh, town: Town
) -> None:
    await join_all(town, range(6))
    async with replica(memory_mesh, learns=True) as one:
        await join_all(town, range(6, 9))
        async with replica(memory_mesh, learns=True) as other:
            for index in (one, other):
                await until(has_learned, index, within_s=LEARNED_S)
            for at in range(27):
                text = f"{says(at % 9, at % 3, 1)} {says((at + 1) % 9, 0, 2)}"
                here, there = await ranked(one, text), await ranked(other, text)
                assert here.method == there.method == "head"
                assert here.possible == there.possible
                assert [a.key for a in here.ranked] == [b.key for b in there.ranked]
                assert here.confidence == pytest.approx(there.confidence, abs=1e-3)
                assert here.share == pytest.approx(there.share, abs=1e-3)
            assert one.progress.trainings + other.progress.trainings <= 2
        async with replica(memory_mesh, learns=True) as later:
            await until(has_learned, later, within_s=SOON_S)
            assert (later.progress.trainings, later.progress.recalled) == (0, 1)


async def has_learned(index: Index) -> bool:
    return index.texts > 0 and index.learned_all and not index.waiting


async def test_a_restart_embeds_nothing_that_was_embedded_before(
    memory_mesh: MemoryMesh, town: Town
) -> None:
    await join_all(town, range(5))
    async with replica(memory_mesh) as index:
        texts = index.progress.embedded
        assert texts > 0
        await until(kept, town, within_s=SOON_S)
        wanted = await ranked(index, says(3, 1, 2))

    async with replica(memory_mesh) as again:
        assert (again.progress.embedded, again.progress.kept > 0) == (0, True)
        found = await ranked(again, says(3, 1, 2))
        assert found == wanted


async def kept(town: Town) -> bool:
    entries = await town.bus.transport.key_value(EMBEDDINGS).entries()
    return len(entries) >= 5 * 3 * 4


async def test_what_cannot_be_learned_leaves_what_is_known(
    memory_mesh: MemoryMesh,
    town: Town,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(_: object) -> None:
        raise TrainingFailed("it was killed")

    monkeypatch.setattr(relearning, "train_apart", fails)
    monkeypatch.setattr(relearning, "QUIET_S", 0.01)
    await join_all(town, range(3))
    async with replica(memory_mesh, learns=True) as index:
        await until(has_failed, index, within_s=SOON_S)

        assert await first(index, says(2, 1, 3)) == "a2/c1"
        assert not index.learned_all
    assert "it was killed" in caplog.text


async def has_failed(index: Index) -> bool:
    return "killed" in index.progress.failed


@pytest.mark.timeout(300)
async def test_many_that_join_at_once_are_learned_once(memory_mesh: MemoryMesh, town: Town) -> None:
    async with replica(memory_mesh, learns=True) as index:
        await join_all(town, range(10))
        await until(has_learned, index, within_s=LEARNED_S)

        assert index.progress.trainings == 1


async def test_vectors_that_are_no_numbers_do_no_harm(memory_mesh: MemoryMesh, town: Town) -> None:
    await join_all(town, range(3))
    async with replica(memory_mesh) as index:
        (query,) = await index.queries([says(1, 1, 1)])
        found = index.view(TENANT, "web", "stable").rank(
            query._replace(vector=np.full_like(query.vector, np.nan))
        )

        assert not found.in_scope
