"""Many clients follow the events of a registry, and the bus is listened to once."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from lmos_mesh.bus import Bus
from lmos_mesh.errors import Overloaded
from lmos_mesh.events import (
    EVENTS,
    THING_CREATED,
    THING_DELETED,
    CloudEvent,
    told_at,
)
from lmos_mesh.transport import Subscription
from lmos_mesh_http.shared_events import Event, SharedEvents
from tests.conftest import MemoryMesh

CLIENTS = 200


async def tell(bus: Bus, numbers: range, type: str = THING_CREATED) -> None:
    stream = bus.transport.stream(EVENTS)
    for number in numbers:
        said = CloudEvent(
            id=str(number), source="urn:x", type=type, subject="urn:y", time="", data={"n": number}
        )
        await stream.append(
            told_at(bus.tenant, type),
            said.body(),
            message_id=str(number),
            headers=said.to_headers(),
        )


async def some(events: AsyncGenerator[Event], count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found.append((await anext(events)).event.data["n"])
    return found


def subscribed(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects that are listened to from now on; taken off when they are not any more."""
    subjects: list[str] = []
    subscribe: Callable[..., Any] = bus.transport.subscribe

    class Counted:
        def __init__(self, subject: str, subscription: Subscription) -> None:
            self._subject = subject
            self._subscription = subscription
            subjects.append(subject)

        async def unsubscribe(self) -> None:
            subjects.remove(self._subject)
            await self._subscription.unsubscribe()

    async def counted(subject: str, *arguments: Any, **more: Any) -> Any:
        return Counted(subject, await subscribe(subject, *arguments, **more))

    monkeypatch.setattr(bus.transport, "subscribe", counted)
    return subjects


async def test_every_client_gets_every_event_once_and_the_bus_is_listened_to_once(
    memory_mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_mesh.bus() as bus:
        await tell(bus, range(100))
        first = await bus.transport.stream(EVENTS).last() - 99
        shared, subjects = SharedEvents(bus), subscribed(bus, monkeypatch)
        async with AsyncExitStack() as stack:
            clients: list[tuple[int, AsyncGenerator[Event]]] = []
            for number in range(CLIENTS):
                # Every other one has been here before, and has seen some.
                seen = number // 2 if number % 2 else None
                after = None if seen is None else first + seen - 1
                events = await stack.enter_async_context(shared.following(bus.tenant, after=after))
                clients.append((100 if seen is None else seen, events))
            async with asyncio.TaskGroup() as tasks:
                read = [
                    (since, tasks.create_task(some(events, 150 - since)))
                    for since, events in clients
                ]
                await tell(bus, range(100, 150))
            tellers = [one.split(".")[3] for one in subjects]
            assert tellers == ["registry", "operator"]
            assert all(task.result() == list(range(since, 150)) for since, task in read)
        await asyncio.sleep(0.01)
        assert subjects == []


async def test_who_reads_too_slowly_is_left_and_goes_on_where_it_was(
    memory_mesh: MemoryMesh,
) -> None:
    async with memory_mesh.bus() as bus:
        shared = SharedEvents(bus, backlog=10)
        async with (
            shared.following(bus.tenant, after=None) as slow,
            shared.following(bus.tenant, after=None) as quick,
        ):
            reading = asyncio.timeout(20)
            async with reading, asyncio.TaskGroup() as tasks:
                read = tasks.create_task(some(quick, 60))
                await tell(bus, range(5))
                last = await anext(slow)
                for number in range(5, 60):
                    await tell(bus, range(number, number + 1))
                    await asyncio.sleep(0)
            assert read.result() == list(range(60))

            assert last.event.data["n"] == 0
            with pytest.raises(Overloaded, match="Last-Event-ID"):
                await anext(slow)
        async with shared.following(bus.tenant, after=last.sequence) as again:
            rest = range(last.event.data["n"] + 1, 60)
            assert await some(again, len(rest)) == list(rest)


async def test_who_comes_back_is_told_all_that_it_missed_however_much_comes_meanwhile(
    memory_mesh: MemoryMesh,
) -> None:
    async with memory_mesh.bus() as bus:
        await tell(bus, range(30))
        shared = SharedEvents(bus, backlog=3)
        async with shared.following(bus.tenant, after=0) as events:
            found = await some(events, 5)
            await tell(bus, range(30, 60))
            await asyncio.sleep(0.01)

            found += await some(events, 55)

        assert found == list(range(60))


async def test_only_the_types_that_were_asked_for_are_told(memory_mesh: MemoryMesh) -> None:
    async with memory_mesh.bus() as bus:
        await tell(bus, range(3))
        shared = SharedEvents(bus)
        async with shared.following(bus.tenant, after=0, types=(THING_DELETED,)) as events:
            await tell(bus, range(3, 4), THING_DELETED)
            await tell(bus, range(4, 6))
            await tell(bus, range(6, 7), THING_DELETED)

            assert await some(events, 2) == [3, 6]


async def test_an_id_from_before_the_stream_was_made_anew_says_nothing(
    memory_mesh: MemoryMesh,
) -> None:
    async with memory_mesh.bus() as bus:
        await tell(bus, range(2))
        async with SharedEvents(bus).following(bus.tenant, after=10**9) as events:
            assert await some(events, 2) == [0, 1]
