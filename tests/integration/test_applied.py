"""Every process has the same live view of the resources, over a lost change and a lost bus too."""

import asyncio

import pytest

from lmos_mesh.applied import Applied
from lmos_mesh.errors import Conflict
from lmos_mesh.resource_index import ResourceKey, key_of
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel
from tests.conftest import Mesh, NatsMesh, StartServer, new_name


def channel(name: str, tenant: str, version: str = "^1.0") -> Channel:
    return Channel.model_validate(
        {
            "metadata": {"name": name, "labels": {"tenant": tenant, "channel": "web"}},
            "spec": {"requiredCapabilities": [{"id": "view-bill", "version": version}]},
        }
    )


async def test_a_view_has_what_was_there_and_hears_of_what_comes(mesh: Mesh):
    async with mesh.bus() as writer, mesh.bus() as reader:
        store, applied = ResourceStore(writer), Applied(reader)
        before, after = channel(new_name("one"), mesh.tenant), channel(new_name("two"), "other")
        await store.put(before, expected=0)
        heard: list[ResourceKey] = []
        applied.on_change(heard.extend)

        await applied.follow()
        revision = await store.put(after, expected=0)

        assert await applied.until_known(key_of(after), revision, within_s=2)
        assert applied.closed(mesh.tenant, "web")
        assert {key_of(before), key_of(after)} <= set(heard)
        assert applied.as_of > 0


async def test_a_write_that_replaces_what_it_has_not_seen_is_refused(mesh: Mesh):
    async with mesh.bus() as bus:
        store, one = ResourceStore(bus), channel(new_name("web"), mesh.tenant)
        revision = await store.put(one, expected=0)

        with pytest.raises(Conflict):
            await store.put(one, expected=0)
        second = await store.put(one, expected=revision)
        with pytest.raises(Conflict):
            await store.delete(key_of(one), expected=revision)
        assert [past.revision for past in await store.history(key_of(one))] == [revision, second]
        assert await store.delete(key_of(one), expected=second)
        assert await store.get(key_of(one)) is None
        assert await store.put(one, expected=0) > second


async def test_a_view_is_whole_again_after_the_bus_was_lost(start_nats: StartServer):
    server = await start_nats()
    mesh = NatsMesh(server.url)
    async with mesh.bus() as writer, mesh.bus() as reader:
        store, applied = ResourceStore(writer), Applied(reader)
        await applied.follow()
        await store.put(channel("web", mesh.tenant), expected=0)

        await server.kill()
        await server.start()
        await writer.transport.wait_connected(timeout_s=10)
        late = channel("late", mesh.tenant)
        revision = await store.put(late, expected=0)

        assert await applied.until_known(key_of(late), revision, within_s=10)
        await asyncio.sleep(0)
        assert {one.metadata.name for one in applied.of_kind(Channel)} == {"web", "late"}
