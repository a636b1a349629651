"""What is near in meaning is known as soon as somebody can say it, and forgotten with the Thing."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.description import describe
from lmos_mesh.errors import Unavailable
from lmos_mesh.membership import Membership
from lmos_mesh.messages import EMBED, Embed, Embedded
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import ThingKey
from lmos_mesh_registry import meaning
from lmos_mesh_registry.meaning import CHARACTERS, EXAMPLES, Matrix, Meanings, texts_of
from tests.conftest import MemoryMesh
from tests.integration.processes import until

TOPICS = ("bill", "rain", "book", "train")


class Encoder:
    """Stands in for a router's: a text means the topics whose words it has."""

    def __init__(self, fingerprint: str = "one", *, semantic: bool = True) -> None:
        self.fingerprint = fingerprint
        self.semantic = semantic
        self.asked: list[str] = []
        self.hold_back = ""
        self.hold = asyncio.Event()
        self.hold.set()

    async def embed(self, request: Embed, call: Call) -> Embedded:
        await self.hold.wait()
        if self.hold_back and any(self.hold_back in text for text in request.texts):
            raise Unavailable("busy")
        self.asked.extend(request.texts)
        return Embedded(
            vectors=tuple(tuple(vector_of(text).tolist()) for text in request.texts),
            dimensions=len(TOPICS) + 1,
            encoder="stand-in",
            fingerprint=self.fingerprint,
            semantic=self.semantic,
        )


def vector_of(text: str) -> npt.NDArray[np.float32]:
    found = np.array([0.01, *(float(topic in text.casefold()) for topic in TOPICS)], np.float32)
    return (found / np.linalg.norm(found)).astype(np.float32)


@asynccontextmanager
async def router(mesh: MemoryMesh, encoder: Encoder) -> AsyncGenerator[None]:
    async with mesh.bus() as bus:
        await bus.serve("router", [route(EMBED, encoder.embed)])
        yield


class Registered:
    """A membership that meanings follow."""

    def __init__(self, bus: Bus) -> None:
        self.membership = Membership()
        self.meanings = Meanings(bus, self.membership)
        self._revision = 0

    def enter(self, name: str, *said: str, tenant: str = "demo", **more: Any) -> ThingKey:
        capabilities = [{"id": f"c{at}", "description": text} for at, text in enumerate(said)]
        raw = {"name": name, "tenant": tenant, "capabilities": capabilities, **more}
        self._revision += 1
        value = json.dumps(describe(thing_from(raw))).encode()
        key = ThingKey(tenant, name, "stable")
        self.meanings.changed(
            self.membership.apply_entry(subjects.key(*key), value, self._revision)
        )
        return key

    def leave(self, key: ThingKey) -> None:
        self._revision += 1
        self.meanings.changed(self.membership.apply_entry(subjects.key(*key), None, self._revision))

    async def embedded(self, tenant: str = "demo") -> None:
        async def done() -> bool:
            return not self.meanings.pending(tenant)[0]

        await until(done, within_s=5)


@pytest.fixture
async def registered(memory_mesh: MemoryMesh) -> AsyncGenerator[Registered]:
    async with memory_mesh.bus() as bus:
        yield Registered(bus)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "_RETRY_S", 0.01)
    monkeypatch.setattr(meaning, "_WORDS_ONLY_S", 0.01)
    monkeypatch.setattr(meaning, "_QUERY_S", 0.2)


async def test_the_nearest_capability_counts(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    billing = registered.enter("billing", "shows a bill", "sends a book")
    registered.enter("weather", "says whether there will be rain")
    registered.enter("billing", "shows a bill", tenant="acme")

    async with router(memory_mesh, Encoder()):
        registered.meanings.start()
        await registered.embedded()
        scores = await registered.meanings.score("demo", "the bill please")

    assert scores is not None
    assert scores.nearest() == {billing: pytest.approx(1.0, abs=0.01)}
    assert (scores.pending, scores.total) == (frozenset(), 2)
    assert registered.meanings.note == ""


async def test_without_a_router_words_have_to_do_until_one_comes(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    key = registered.enter("billing", "shows a bill")
    registered.meanings.start()

    assert await registered.meanings.score("demo", "bill") is None
    assert "no router" in registered.meanings.note

    async with router(memory_mesh, Encoder()):
        await registered.embedded()
        scores = await registered.meanings.score("demo", "bill")
    assert scores is not None
    assert set(scores.nearest()) == {key}


async def test_a_router_that_knows_words_only_is_not_asked_for_meanings(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    registered.enter("billing", "shows a bill")
    encoder = Encoder(semantic=False)

    async with router(memory_mesh, encoder):
        registered.meanings.start()
        assert await registered.meanings.score("demo", "bill") is None
        assert "words only" in registered.meanings.note
        assert registered.meanings.pending("demo") == (1, 1)

        encoder.semantic = True
        await registered.embedded()
        assert await registered.meanings.score("demo", "bill") is not None


async def test_vectors_of_another_encoder_are_got_anew(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    key = registered.enter("billing", "shows a bill")
    encoder = Encoder()

    async with router(memory_mesh, encoder):
        registered.meanings.start()
        await registered.embedded()
        encoder.fingerprint = "two"
        encoder.asked.clear()

        # Nothing that is known can be compared with this question.
        assert await registered.meanings.score("demo", "bill") is None
        await registered.embedded()
        scores = await registered.meanings.score("demo", "bill")

    assert scores is not None
    assert set(scores.nearest()) == {key}
    assert sum("shows" in text for text in encoder.asked) == 1


async def test_who_is_not_embedded_yet_is_told(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    registered.enter("weather", "rain")
    encoder = Encoder()

    async with router(memory_mesh, encoder):
        registered.meanings.start()
        await registered.embedded()
        encoder.hold_back = "bill"
        late = registered.enter("billing", "shows a bill")
        scores = await registered.meanings.score("demo", "rain")

    assert scores is not None
    assert (scores.pending, scores.total) == ({late}, 2)
    assert registered.meanings.pending("demo") == (1, 2)


async def test_the_same_words_are_embedded_once_and_remembered_for_a_while(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    encoder = Encoder()

    async with router(memory_mesh, encoder):
        registered.meanings.start()
        first = registered.enter("billing", "shows a bill")
        registered.enter("billing-2", "shows a bill")
        await registered.embedded()
        registered.leave(first)
        registered.leave(registered.enter("billing-2", "shows a bill"))
        registered.enter("billing", "shows a bill")

        assert registered.meanings.pending("demo") == (0, 1)
    assert len(encoder.asked) == 1


async def test_what_has_gone_leaves_nothing_behind(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    async with router(memory_mesh, Encoder()):
        registered.meanings.start()
        for number in range(20):
            registered.enter("billing", f"shows bill number {number}")
            if number % 3:
                await registered.embedded()
        await registered.embedded()
        assert registered.meanings.state()["vectors"] == 1
        registered.leave(ThingKey("demo", "billing", "stable"))

        state = registered.meanings.state()
        assert (state["vectors"], state["wanted"]) == (0, 0)
        assert registered.meanings.pending("demo") == (0, 0)
        assert await registered.meanings.score("demo", "bill") is None


async def test_a_thing_that_changes_while_it_is_embedded_is_known_as_it_is_now(
    registered: Registered, memory_mesh: MemoryMesh
) -> None:
    encoder = Encoder()
    encoder.hold.clear()

    async with router(memory_mesh, encoder):
        key = registered.enter("billing", "shows a bill")
        registered.meanings.start()
        await asyncio.sleep(0.02)
        registered.enter("billing", "knows when it will rain")
        encoder.hold.set()
        await registered.embedded()
        by_old = await registered.meanings.score("demo", "bill")
        by_new = await registered.meanings.score("demo", "rain")

    assert by_old is not None
    assert by_old.nearest() == {}
    assert by_new is not None
    assert set(by_new.nearest()) == {key}


async def test_a_router_that_does_not_answer_holds_up_one_question_and_not_the_next(
    registered: Registered, memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmos_mesh_registry.meaning._QUERY_S", 2.0)
    encoder = Encoder()
    async with router(memory_mesh, encoder):
        registered.enter("billing", "shows a bill")
        registered.meanings.start()
        await registered.embedded()
        encoder.hold.clear()

        async with asyncio.timeout(20):
            assert await registered.meanings.score("demo", "bill") is None
        async with asyncio.timeout(1.8):
            assert await registered.meanings.score("demo", "bill") is None
        encoder.hold.set()


def test_each_capability_has_a_text_of_all_that_speaks_for_it() -> None:
    thing = thing_from(
        {
            "name": "billing",
            "capabilities": [
                {"id": "view_bill", "description": "Shows a bill", "examples": ["my bill?"]},
                {"id": "pay", "name": "Pay", "examples": [f"pay {n}" for n in range(50)]},
                {"id": "long", "description": "x" * 8000},
            ],
        }
    )

    first, second, third = texts_of(thing)

    assert first == "view bill. Shows a bill. my bill?"
    assert second.endswith(f"pay {EXAMPLES - 1}.")
    assert len(third) == CHARACTERS


def test_a_thing_without_capabilities_is_known_by_its_description() -> None:
    thing = thing_from({"name": "lamp_1", "description": "Lights the hall."})

    assert texts_of(thing) == ("lamp 1. Lights the hall.",)


changes = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40)


@given(changes)
def test_a_matrix_is_what_was_added_and_not_removed(steps: list[tuple[str, bool]]) -> None:
    matrix = Matrix()
    kept: dict[str, npt.NDArray[np.float32]] = {}
    for number, (name, adds) in enumerate(steps):
        vector = np.array([1.0, number, -number], np.float32)
        if adds and name not in kept:
            matrix.add(name, vector)
            kept[name] = vector
        elif not adds:
            removed = matrix.remove(name)
            expected = kept.pop(name, None)
            assert (removed is None) == (expected is None)
            if removed is not None and expected is not None:
                assert np.array_equal(removed, expected)

    names, cosines = matrix.cosines(np.array([0.0, 1.0, 0.0], np.float32))

    assert dict(zip(names, cosines.tolist(), strict=True)) == {
        name: float(vector[1]) for name, vector in kept.items()
    }
    assert len(matrix) == len(kept)
    assert all((name in matrix) == (name in kept) for name in "abcdef")


async def test_a_tenant_finds_what_is_near_of_its_own_and_of_the_shared_that_are_for_it(
    memory_mesh: MemoryMesh, registered: Registered
) -> None:
    async with router(memory_mesh, Encoder()):
        own = registered.enter("own", "what is on my bill")
        anybodys = registered.enter("anybodys", "pay a bill", tenant="shared")
        registered.enter("others", "split a bill", tenant="shared", supported_tenants=["other"])
        registered.enter("own", "never mind the bill", tenant="shared")
        registered.meanings.start()
        for tenant in ("demo", "shared"):
            await registered.embedded(tenant)
        found = {
            tenant: await registered.meanings.score(tenant, "the bill")
            for tenant in ("demo", "other", "stranger")
        }

    def near(tenant: str, *given: Any) -> set[ThingKey]:
        scores = found[tenant]
        assert scores is not None
        return set(scores.nearest(*given))

    shared = {ThingKey("shared", name, "stable") for name in ("own", "anybodys", "others")}
    assert near("demo") == {own, anybodys}
    assert near("demo", None, [own]) == {own}
    assert len(near("demo", 1)) == 1
    assert near("other") == shared
    assert near("stranger") == shared - {ThingKey("shared", "others", "stable")}
