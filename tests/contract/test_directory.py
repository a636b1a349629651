"""What a process knows of the others when a lease ends although nobody has died."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from lmos_mesh import directory, subjects
from lmos_mesh.directory import EXPIRED, MISSING, Directory, LeaseNews
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.things import ThingKey
from tests.conftest import Mesh, new_name

SOON_S = 10.0


class Follower:
    """A directory, and the ends of a tenant's leases that it told of."""

    def __init__(self, directory: Directory, tenant: str) -> None:
        self.directory = directory
        self._tenant = tenant
        self._ended: asyncio.Queue[str] = asyncio.Queue()
        directory.on_news(lambda _: None, self._on_lease)

    def _on_lease(self, news: LeaseNews) -> None:
        if news.ended and news.tenant == self._tenant:
            self._ended.put_nowait(news.ended)

    async def ended(self) -> str:
        """Why the next lease ended."""
        async with asyncio.timeout(SOON_S):
            return await self._ended.get()

    @property
    def told(self) -> bool:
        """Whether the end of a lease was told that nobody has read."""
        return not self._ended.empty()


@asynccontextmanager
async def follower(mesh: Mesh) -> AsyncGenerator[Follower]:
    async with mesh.bus() as bus:
        following = Follower(Directory(bus), mesh.tenant)
        await following.directory.follow()
        yield following


def lease(instance: str, connection: str) -> bytes:
    served = Served(name="billing", subset="stable")
    return (
        Lease(instance=instance, connection=connection, things=(served,)).model_dump_json().encode()
    )


async def seen(true: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def heard(following: Follower, mesh: Mesh, *, live: bool) -> None:
    key = ThingKey(mesh.tenant, "billing", "stable")
    await seen(lambda: following.directory.membership.live(key) == live)


async def test_who_answers_is_alive_though_its_lease_could_not_be_renewed(mesh: Mesh) -> None:
    instance = new_name("agent")
    async with mesh.bus(instance) as bus, follower(mesh) as following:
        store = bus.transport.key_value(LEASES)
        key = subjects.key(mesh.tenant, instance)
        value = lease(instance, bus.transport.connection)
        await store.put(key, value, ttl_s=1)
        await heard(following, mesh, live=True)
        until = time.monotonic() + SOON_S
        while await store.get(key) is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        await store.put(key, value, ttl_s=60)
        await asyncio.sleep(0.1)

        assert following.directory.membership.live(ThingKey(mesh.tenant, "billing", "stable"))
        assert not following.told


async def test_who_does_not_answer_has_died_with_its_lease(mesh: Mesh) -> None:
    instance = new_name("agent")
    async with mesh.bus() as bus, follower(mesh) as following:
        store = bus.transport.key_value(LEASES)
        key = subjects.key(mesh.tenant, instance)
        await store.put(key, lease(instance, "elsewhere:7"), ttl_s=1)
        await heard(following, mesh, live=True)

        assert await following.ended() == EXPIRED
        await heard(following, mesh, live=False)


async def test_who_listens_badly_to_the_end_of_a_lease_does_not_end_the_bus(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    instance = new_name("agent")

    def fail(_: object) -> None:
        raise RuntimeError("badly")

    async with mesh.bus() as bus, follower(mesh) as following:
        store = bus.transport.key_value(LEASES)
        key = subjects.key(mesh.tenant, instance)
        await store.put(key, lease(instance, "elsewhere:7"), ttl_s=1)
        await heard(following, mesh, live=True)
        following.directory.on_news(fail, fail)
        await heard(following, mesh, live=False)
        await seen(lambda: f"the end of the lease of {instance}" in caplog.text)
        await store.put(key, lease(instance, "elsewhere:8"), ttl_s=60)
        await heard(following, mesh, live=True)


async def test_who_answers_and_never_renews_is_given_up(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_RENEWED_S", 0.2)
    instance = new_name("agent")
    async with mesh.bus(instance) as bus, follower(mesh) as following:
        store = bus.transport.key_value(LEASES)
        key = subjects.key(mesh.tenant, instance)
        await store.put(key, lease(instance, bus.transport.connection), ttl_s=1)

        assert await following.ended() == EXPIRED
        await heard(following, mesh, live=False)


async def test_who_is_missing_when_all_is_read_again_is_asked_first(mesh: Mesh) -> None:
    alive, dead = new_name("agent"), new_name("agent")
    async with mesh.bus(alive) as bus, follower(mesh) as following:
        known = following.directory.membership
        store = bus.transport.key_value(LEASES)
        for instance in (alive, dead):
            value = lease(instance, bus.transport.connection)
            await store.put(subjects.key(mesh.tenant, instance), value, ttl_s=60)
        thing = ThingKey(mesh.tenant, "billing", "stable")
        await seen(lambda: len(known.serving(thing)) == 2)
        following.directory._keep_leases({})  # pyright: ignore[reportPrivateUsage]

        assert await following.ended() == MISSING
        assert known.lease(mesh.tenant, dead) is None
        assert known.lease_revision(mesh.tenant, alive) == 0, "it may renew it with any revision"
        value = lease(alive, bus.transport.connection)
        renewed = await store.put(subjects.key(mesh.tenant, alive), value, ttl_s=60)
        await seen(lambda: known.lease_revision(mesh.tenant, alive) == renewed)
        assert not following.told
