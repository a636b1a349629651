"""Following who fits a question: what is told, and when nobody is asked."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.errors import InvalidMessage, Unavailable
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    FIND_THINGS,
    FindThings,
    FoundThing,
    Instance,
    Registration,
    ThingsFound,
)
from lmos_mesh.watching import Change, Key, differences, find, key_of
from tests.conftest import MemoryMesh

SOON_S = 10.0

# -- what is told --

things = st.builds(
    FoundThing,
    name=st.sampled_from(["a", "b", "c"]),
    subset=st.sampled_from(["stable", "canary"]),
    version=st.sampled_from(["1.0.0", "2.0.0"]),
    live=st.booleans(),
    revision=st.integers(1, 3),
    score=st.floats(0, 1),
    instances=st.lists(
        st.builds(Instance, instance=st.sampled_from("xyz"), in_flight=st.integers(0, 5)),
        max_size=2,
        unique_by=lambda one: one.instance,
    ).map(tuple),
)
sets_of_things = st.lists(things, max_size=6, unique_by=key_of)


@given(before=sets_of_things, after=sets_of_things)
def test_the_changes_lead_from_what_was_known_to_what_is_found(
    before: list[FoundThing], after: list[FoundThing]
) -> None:
    known = {key_of(one): one for one in before}
    changes = differences(known, after)

    followed = dict(known)
    for change in changes:
        if change.kind == "left":
            del followed[key_of(change.thing)]
        else:
            assert (change.kind == "changed") == (key_of(change.thing) in followed)
            followed[key_of(change.thing)] = change.thing
    assert followed.keys() == {key_of(one) for one in after}
    assert differences(followed, after) == []
    assert len({key_of(one.thing) for one in changes}) == len(changes)


@given(one=things)
def test_how_busy_a_thing_is_and_how_well_it_fits_is_no_change(one: FoundThing) -> None:
    busy = tuple(each.model_copy(update={"in_flight": 99}) for each in one.instances)
    now = one.model_copy(update={"instances": busy, "score": 0.5, "as_of": 1.0})

    assert differences({key_of(one): one}, [now]) == []


def test_an_entry_that_is_written_again_only_to_stay_has_not_changed() -> None:
    at = Registration(created="2026-01-01T00:00:00Z", modified="2026-01-01T00:00:00Z")
    lasting = FoundThing(name="a", revision=1, registration=at)
    expiring = lasting.model_copy(
        update={"registration": at.model_copy(update={"expires": "2027-01-01T00:00:00Z"})}
    )

    def again(one: FoundThing) -> list[Change]:
        return differences({key_of(one): one}, [one.model_copy(update={"revision": 2})])

    assert again(expiring) == []
    assert [one.kind for one in again(lasting)] == ["changed"]


def test_an_entry_that_expires_has_changed_when_only_its_metadata_have() -> None:
    at = Registration(
        created="2026-01-01T00:00:00Z",
        modified="2026-01-01T00:00:00Z",
        expires="2027-01-01T00:00:00Z",
    )
    before = FoundThing(name="a", revision=1, registration=at)
    modified = at.model_copy(update={"modified": "2026-01-01T00:00:05Z"})
    now = before.model_copy(update={"revision": 2, "registration": modified})

    assert [one.kind for one in differences({key_of(before): before}, [now])] == ["changed"]


# -- when --


class Answers:
    """A registry that says what the test wants it to."""

    def __init__(self) -> None:
        self.things: dict[Key, FoundThing] = {}
        self.asked: list[FindThings] = []
        self.tenants: list[str] = []
        self.revision = 0
        self.matched: Any = ""
        self.failure: Exception | None = None
        self.page = 100

    async def find(self, request: FindThings, call: Call) -> ThingsFound:
        self.asked.append(request)
        self.tenants.append(call.tenant)
        if self.failure is not None:
            raise self.failure
        until = request.offset + min(self.page, request.limit)
        found = tuple(self.things.values())
        return ThingsFound(
            things=found[request.offset : until],
            total=len(found),
            revision=self.revision,
            next=until if until < len(found) else None,
            matched=self.matched,
        )

    def has(self, *names: str, **more: Any) -> None:
        self.things = {(name, "stable"): FoundThing(name=name, live=True, **more) for name in names}


class Scene:
    """A registry that is played, and somebody who watches."""

    def __init__(self, bus: Bus, answers: Answers) -> None:
        self.bus = bus
        self.answers = answers
        self.mesh = Mesh(bus)

    async def change_entry(self, name: str) -> None:
        await self.bus.transport.key_value(REGISTRY).put(
            subjects.key(self.bus.tenant, name, "stable"), b"{}"
        )

    async def write_lease(self, instance: str, *names: str, started: float = 0.0) -> None:
        lease = Lease(
            instance=instance,
            things=tuple(Served(name=name, subset="stable") for name in names),
            started=started,
        )
        await self.bus.transport.key_value(LEASES).put(
            subjects.key(self.bus.tenant, instance), lease.model_dump_json().encode()
        )


@asynccontextmanager
async def played(mesh: MemoryMesh) -> AsyncGenerator[Scene]:
    answers = Answers()
    async with asyncio.timeout(20), mesh.bus() as registry, mesh.bus() as bus:
        await registry.serve("registry", [route(FIND_THINGS, answers.find)])
        yield Scene(bus, answers)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def next_of(changes: Any) -> tuple[str, str]:
    async with asyncio.timeout(SOON_S):
        change = await anext(changes)
    return change.kind, change.thing.name


async def test_who_fits_joins_first_and_then_changes_are_told(memory_mesh: MemoryMesh) -> None:
    async with played(memory_mesh) as scene:
        scene.answers.has("a")
        async with scene.mesh.watch(capability="x", version=">=1.2", tags="t") as changes:
            assert await next_of(changes) == ("joined", "a")
            wanted = scene.answers.asked[0]
            assert (wanted.capability, wanted.version, wanted.tags) == ("x", ">=1.2", ("t",))

            scene.answers.has("a", "b")
            await scene.change_entry("b")
            assert await next_of(changes) == ("joined", "b")

            scene.answers.has("a", "b", version="2.0.0")
            await scene.change_entry("b")
            assert {await next_of(changes) for _ in "ab"} == {("changed", "a"), ("changed", "b")}

            scene.answers.has("b", version="2.0.0")
            await scene.change_entry("a")
            assert await next_of(changes) == ("left", "a")
            assert [one.name for one in changes.things] == ["b"]


async def test_a_lease_is_news_when_it_serves_something_else_or_ends(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene:
        async with scene.mesh.watch() as changes:

            async def look() -> None:
                await next_of(changes)

            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(look())
                await scene.write_lease("old", "b")  # it was there before
                for _ in range(20):
                    await scene.write_lease("old", "b")
                    await asyncio.sleep(0.005)
                assert len(scene.answers.asked) == 1

                await scene.write_lease("old", "b", "c")
                await until(lambda: len(scene.answers.asked) == 2)

                scene.answers.has("a")
                await scene.bus.transport.key_value(LEASES).delete(
                    subjects.key(scene.bus.tenant, "old")
                )
                await looking
        assert len(scene.answers.asked) == 3


async def test_what_changes_together_is_asked_about_once(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmos_mesh.watching.GATHER_S", 0.5)
    async with played(memory_mesh) as scene:
        async with scene.mesh.watch() as changes:
            scene.answers.has(*[f"n{number}" for number in range(50)])
            for number in range(50):
                await scene.change_entry(f"n{number}")
            assert len({await next_of(changes) for _ in range(50)}) == 50

        assert len(scene.answers.asked) == 2


async def test_a_watch_that_is_cancelled_while_it_waits_loses_nothing(
    memory_mesh: MemoryMesh,
) -> None:
    followed: set[str] = set()
    async with played(memory_mesh) as scene, scene.mesh.watch() as changes:

        async def follow(for_s: float) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(for_s):
                    async for change in changes:
                        if change.kind == "left":
                            followed.remove(change.thing.name)
                        else:
                            assert change.thing.name not in followed
                            followed.add(change.thing.name)

        for number in range(60):
            scene.answers.has(f"n{number}", f"n{number + 1}")
            await scene.change_entry("n")
            await follow(0.001 * (number % 30))
        while followed != {"n59", "n60"}:
            await follow(0.1)


async def test_a_registry_that_is_gone_for_a_while_is_asked_again(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene, scene.mesh.watch() as changes:
        scene.answers.failure = Unavailable("being started")
        scene.answers.has("a")
        await scene.change_entry("a")
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(next_of(changes))
            await asyncio.sleep(0.2)
            scene.answers.failure = None
        assert told.result() == ("joined", "a")


async def test_a_question_that_is_refused_is_not_asked_again(memory_mesh: MemoryMesh) -> None:
    async with played(memory_mesh) as scene:
        scene.answers.failure = InvalidMessage("/version: no range")
        with pytest.raises(InvalidMessage, match="no range"):
            async with scene.mesh.watch(version="?"):
                pass
        scene.answers.failure = None
        async with scene.mesh.watch() as changes:
            scene.answers.failure = InvalidMessage("/version: no range")
            await scene.change_entry("a")
            with pytest.raises(InvalidMessage, match="no range"):
                await anext(changes)


async def test_a_router_that_is_gone_for_a_moment_makes_nobody_leave(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene:
        scene.answers.has("by meaning")
        scene.answers.matched = "meaning"
        async with scene.mesh.watch("who can help?") as changes:
            assert await next_of(changes) == ("joined", "by meaning")
            scene.answers.has("by words")
            scene.answers.matched = "words"
            await scene.change_entry("a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(changes)

            scene.answers.has("by meaning", "another")
            scene.answers.matched = "meaning"
            assert await next_of(changes) == ("joined", "another")


async def test_after_a_lost_bus_nobody_is_gone_before_their_leases_can_be_back(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmos_mesh.watching._LENIENT_S", 1.0)
    async with played(memory_mesh) as scene:
        regained: list[Callable[[], None]] = []
        monkeypatch.setattr(scene.bus.transport, "on_reconnect", regained.append)
        scene.answers.has("a", "b")
        async with scene.mesh.watch() as changes:
            assert {await next_of(changes) for _ in "ab"} == {("joined", "a"), ("joined", "b")}
            scene.answers.has("c")
            regained[0]()
            assert await next_of(changes) == ("joined", "c")
            scene.answers.has("c", "a")
            assert await next_of(changes) == ("left", "b")
            assert {one.name for one in changes.things} == {"a", "c"}


async def test_a_replica_that_has_not_heard_of_a_change_is_asked_again(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene:
        async with scene.mesh.watch() as changes, asyncio.TaskGroup() as tasks:
            told = tasks.create_task(next_of(changes))
            await asyncio.sleep(0)
            await scene.change_entry("a")
            await until(lambda: len(scene.answers.asked) == 2)
            scene.answers.has("a")
            scene.answers.revision = 1
        assert told.result() == ("joined", "a")
        assert len(scene.answers.asked) == 3


@pytest.mark.parametrize("changed", ["other", "shared"])
async def test_a_part_for_another_tenant_watches_that_one_and_the_shared_agents(
    memory_mesh: MemoryMesh, changed: str
) -> None:
    async with played(memory_mesh) as scene:
        scene.answers.has("a")
        part = scene.mesh.part(tenant="other")
        async with part.watch() as changes:
            assert await next_of(changes) == ("joined", "a")

            scene.answers.has("a", "b")
            await scene.bus.transport.key_value(REGISTRY).put(
                subjects.key(changed, "b", "stable"), b"{}"
            )
            assert await next_of(changes) == ("joined", "b")

        assert set(scene.answers.tenants) == {"other"}


async def test_watches_share_a_subscription_that_ends_with_the_last(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene:
        transport = scene.bus.transport
        subscribed: list[str] = []
        subscribe = transport.subscribe

        async def counted(subject: str, *arguments: Any, **named: Any) -> Any:
            subscribed.append(subject)
            return await subscribe(subject, *arguments, **named)

        transport.subscribe = counted
        part = scene.mesh.part()
        async with scene.mesh.watch(), scene.mesh.watch(), part.watch():
            assert len(subscribed) == 4
        async with part.watch():
            assert len(subscribed) == 8


async def test_whoever_iterates_comes_to_the_end_when_the_mesh_is_left(
    memory_mesh: MemoryMesh,
) -> None:
    async with played(memory_mesh) as scene:
        told: list[Change] = []

        async def follow() -> None:
            async for change in scene.mesh.watch():
                told.append(change)  # noqa: PERF401

        scene.answers.has("a")
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(follow())
            await until(lambda: bool(told))
            scene.mesh.close()
        assert following.done()
        assert [change async for change in scene.mesh.watch()] == []


# -- once --


async def test_what_does_not_fit_into_one_answer_is_read_on(memory_mesh: MemoryMesh) -> None:
    async with played(memory_mesh) as scene:
        scene.answers.has(*[f"n{number}" for number in range(25)])
        scene.answers.page = 10
        assert len(await scene.mesh.find()) == 25
        assert [one.offset for one in scene.answers.asked] == [0, 10, 20]
        found = await find(scene.bus, FindThings(limit=12))
        assert (len(found.things), found.next, found.total) == (12, 12, 25)


async def test_conditions_reach_the_registry(memory_mesh: MemoryMesh) -> None:
    async with played(memory_mesh) as scene:
        await scene.mesh.find("somebody", live=None, origin="", metadata={"a.b": 1}, tags=["x"])
        wanted = scene.answers.asked[0]

    assert (wanted.text, wanted.live, wanted.origin) == ("somebody", None, "")
    assert (wanted.metadata, wanted.tags) == ({"a.b": 1}, ("x",))
    assert json.loads(wanted.model_dump_json())
