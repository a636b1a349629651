"""A mesh on a NATS cluster: kept by several servers, of which one may be lost at any time."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.errors import DeadlineExceeded, SettingsError, Unavailable
from lmos_mesh.jetstream import JetStreamError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import FIND_THINGS, FindThings
from lmos_mesh.nats_config import Binary
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.settings import Keeping
from lmos_mesh.transport import Bucket, Log, Packet, change_of
from tests.conftest import new_name
from tests.integration.nats_cluster import NatsCluster, api, stream
from tests.integration.processes import Deployment, until

SOON_S = 20.0
# The servers need 4 to 9 s to agree on another leader, on an idle machine.
AGREED_S = 60.0

TELLER = '''
from lmos_mesh import Agent

agent = Agent("teller", description="Tells balances.")

@agent.capability(examples=["what is my balance?"])
async def balance(question: str) -> str:
    """Tell the balance."""
    return "39.99"

if __name__ == "__main__":
    agent.run()
'''


@pytest.fixture(scope="module")
def cluster(
    nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory
) -> Generator[NatsCluster]:
    """Three servers that all tests here share and none may kill."""
    servers = NatsCluster(nats_binary, tmp_path_factory.mktemp("cluster"))
    try:
        asyncio.run(servers.ready())
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def frail(nats_binary: Binary, tmp_path: Path) -> Generator[NatsCluster]:
    """Three servers of this test alone."""
    servers = NatsCluster(nats_binary, tmp_path)
    try:
        asyncio.run(servers.ready())
        yield servers
    finally:
        servers.stop()


@asynccontextmanager
async def asking(
    cluster: NatsCluster, replicas: int | None, *tags: str
) -> AsyncGenerator[NatsTransport]:
    """A connection of a process with these settings."""
    keeping = Keeping(replicas=replicas, tags=tags)
    async with NatsTransport.connect(cluster.url, name="x", keeping=keeping) as transport:
        yield transport


async def whole(transport: NatsTransport, names: list[str], replicas: int = 3) -> bool:
    """Whether as many servers keep these streams, and all are up to date."""
    return all([_whole(await stream(transport, name), replicas) for name in names])


def _whole(told: dict[str, Any], replicas: int) -> bool:
    peers = told.get("cluster", {}).get("replicas", ())
    up = [one for one in peers if one["current"] and not one.get("offline")]
    return bool(told.get("cluster", {}).get("leader")) and len(up) == replicas - 1


# -- what is kept --


async def test_buckets_and_streams_are_kept_by_as_many_servers_as_asked(
    cluster: NatsCluster,
) -> None:
    bucket, log = new_name("bucket"), new_name("log")
    async with asking(cluster, 3) as transport:
        store = transport.key_value(Bucket(name=bucket, in_memory=True))
        kept = transport.stream(Log(name=log, subjects=(f"{log}.*",)))
        await store.put("a", b"1")
        assert await kept.append(f"{log}.x", b"1") == 1

        await until(whole, transport, [f"KV_{bucket}", log], within_s=SOON_S)
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"1"


async def test_without_a_setting_one_server_keeps_each(cluster: NatsCluster) -> None:
    name = new_name("bucket")
    async with asking(cluster, None) as transport:
        await transport.key_value(Bucket(name=name)).put("a", b"1")

        assert (await stream(transport, f"KV_{name}"))["config"]["num_replicas"] == 1


async def test_what_is_made_by_many_at_once_can_be_used_by_each(cluster: NatsCluster) -> None:
    """A cluster says that a stream is made before anybody leads it."""
    name = new_name("log")

    async def one() -> int:
        async with asking(cluster, 3) as transport:
            return await transport.stream(Log(name=name, subjects=(f"{name}.*",))).last()

    async with asyncio.TaskGroup() as tasks:
        all_last = [tasks.create_task(one()) for _ in range(5)]
    assert [task.result() for task in all_last] == [0] * 5


async def test_who_reads_everything_misses_nothing_that_was_kept_before(
    cluster: NatsCluster,
) -> None:
    """It is read from a server that may be a moment behind the one that leads."""
    bucket = Bucket(name=new_name("bucket"), tokens=1)
    written = cluster.url_of("n0"), cluster.url_of("n1"), cluster.url_of("n2")
    async with AsyncExitStack() as stack:
        stores = [
            (
                await stack.enter_async_context(
                    NatsTransport.connect(url, name="x", keeping=Keeping(replicas=3))
                )
            ).key_value(bucket)
            for url in written
        ]
        await stores[0].put("gone", b"0")
        for number in range(60):
            revision = await stores[number % 3].put(f"k{number}", b"1")
            entries = {one.key: one for one in await stores[(number + 1) % 3].entries()}
            assert entries[f"k{number}"].revision == revision
            assert entries[f"k{number}"].created == pytest.approx(time.time(), abs=60)
        await stores[0].delete("gone")
        assert "gone" not in {one.key for one in await stores[1].entries()}


async def test_what_a_server_has_not_read_yet_is_had_from_the_one_that_leads(
    cluster: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(cluster, 3) as transport:
        store = transport.key_value(Bucket(name=new_name("bucket"), tokens=1))
        await store.put("old", b"1")
        await store.put("changed", b"1")
        await store.put("gone", b"1")
        jetstream = transport._jetstream  # pyright: ignore[reportPrivateUsage]
        fetch = jetstream.fetch

        async def behind(*arguments: Any, **more: Any) -> list[Packet]:
            found = await fetch(*arguments, **more)
            return [packet for packet in found if not packet.subject.endswith(".new")]

        changed = await store.put("changed", b"2")
        await store.delete("gone")
        new = await store.put("new", b"3")
        # As from a server that has all but the last change.
        monkeypatch.setattr(jetstream, "fetch", behind)
        entries = {one.key: one for one in await store.entries()}

    assert {key: (one.value, one.revision) for key, one in entries.items()} == {
        "old": (b"1", 1),
        "changed": (b"2", changed),
        "new": (b"3", new),
    }
    assert entries["new"].created == pytest.approx(time.time(), abs=60)


async def test_what_fewer_keep_is_raised_by_many_at_once_and_all_else_stays(
    cluster: NatsCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lmos_mesh.replication")
    name = new_name("bucket")
    bucket = Bucket(
        name=name, history=4, expiring=True, tokens=2, feed=f"{name}.{{{{wildcard(1)}}}}"
    )
    changes: asyncio.Queue[Packet] = asyncio.Queue()
    async with asking(cluster, None) as transport:
        await transport.subscribe(f"{name}.*", changes.put_nowait)
        store = transport.key_value(bucket)
        revision = await store.put("a.b", b"1")
        before = (await stream(transport, f"KV_{name}"))["config"]
        mine = {**before, "description": "ours", "max_bytes": 1_000_000}
        assert "error" not in await api(transport, f"STREAM.UPDATE.KV_{name}", mine)

        async def start() -> None:
            async with asking(cluster, 3) as process:
                entry = await process.key_value(bucket).get("a.b")
                assert entry is not None
                assert (entry.value, entry.revision) == (b"1", revision)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(start())
        await until(whole, transport, [f"KV_{name}"], within_s=SOON_S)

        after = (await stream(transport, f"KV_{name}"))["config"]
        assert after.pop("num_replicas") == 3
        assert mine.pop("num_replicas") == 1
        for one in (after, mine):
            one.pop("metadata")  # the server's own notes
        assert after == mine
        await store.put("c.d", b"2", ttl_s=1)
        async with asyncio.timeout(SOON_S):
            told = [change_of(await changes.get()) for _ in range(3)]
        assert [(one.key, one.value, one.expired) for one in told] == [
            ("a.b", b"1", False),
            ("c.d", b"2", False),
            ("c.d", None, True),
        ]
    said = f"KV_{name} is kept by 3 servers from now on; it was 1"
    assert said in [record.message for record in caplog.records]


async def test_what_more_keep_stays_and_that_is_said_once(
    cluster: NatsCluster, caplog: pytest.LogCaptureFixture
) -> None:
    name = new_name("bucket")
    async with asking(cluster, 3) as transport:
        await transport.key_value(Bucket(name=name)).put("a", b"1")
    async with asking(cluster, 1) as fewer, asking(cluster, None) as silent:
        await silent.key_value(Bucket(name=name)).put("a", b"2")
        assert not caplog.records
        for _ in range(2):
            await fewer.key_value(Bucket(name=name)).put("a", b"2")
            fewer._jetstream.forget()  # pyright: ignore[reportPrivateUsage]

        assert (await stream(fewer, f"KV_{name}"))["config"]["num_replicas"] == 3
    (said,) = [record.message for record in caplog.records]
    assert f"KV_{name} is kept by 3 servers and stays so" in said
    assert f"nats stream edit KV_{name} --replicas 1" in said


async def test_of_what_is_there_too_few_servers_change_nothing(
    cluster: NatsCluster, caplog: pytest.LogCaptureFixture
) -> None:
    name = new_name("bucket")
    async with asking(cluster, 1) as one, asking(cluster, 5) as five:
        await one.key_value(Bucket(name=name)).put("a", b"1")
        await five.key_value(Bucket(name=name)).put("a", b"2")

        with pytest.raises(JetStreamError, match="has no 5 servers that could keep") as refused:
            await five.key_value(Bucket(name=new_name("bucket"))).put("a", b"1")
    assert cluster.url_of("n0") in str(refused.value)
    assert "LMOS_NATS_REPLICAS=5" in str(refused.value)
    (said,) = [record.message for record in caplog.records]
    assert f"KV_{name} stays with 1 of 5 replicas" in said


async def test_a_tag_says_which_servers_may_keep_what_is_made(cluster: NatsCluster) -> None:
    name = new_name("bucket")
    async with asking(cluster, None, "zone:east") as transport:
        await transport.key_value(Bucket(name=name)).put("a", b"1")
        assert (await stream(transport, f"KV_{name}"))["cluster"]["leader"] == "n0"
    async with asking(cluster, 3, "zone:west") as transport:
        with pytest.raises(JetStreamError, match="tagged zone:west"):
            await transport.key_value(Bucket(name=new_name("bucket"))).put("a", b"1")


async def test_a_single_server_is_not_asked_for_three(nats_url: str) -> None:
    async with NatsTransport.connect(nats_url, name="x") as plain:
        there = Bucket(name=new_name("bucket"))
        await plain.key_value(there).put("a", b"1")
    keeping = Keeping(replicas=3)
    async with NatsTransport.connect(nats_url, name="x", keeping=keeping) as transport:
        for bucket in (there, Bucket(name=new_name("bucket"))):
            with pytest.raises(SettingsError, match="is a single one") as refused:
                await transport.key_value(bucket).put("a", b"1")
            assert nats_url in str(refused.value)
            assert "unset LMOS_NATS_REPLICAS" in str(refused.value)


def test_a_process_that_asks_a_single_server_for_three_says_so_and_ends(
    nats_url: str, tmp_path: Path
) -> None:
    deployment = Deployment(nats_url, tmp_path, env={"LMOS_NATS_REPLICAS": "3"})
    process = deployment.start("registry")

    assert process.wait(SOON_S) != 0
    assert "LMOS_NATS_REPLICAS is 3, but the NATS server at" in process.log()
    assert "Traceback" not in process.log()


# -- what is lost --


async def test_nobody_notices_that_the_server_which_leads_is_lost(
    frail: NatsCluster, tmp_path: Path
) -> None:
    """Answers wait until the others have agreed who leads; no agent counts as dead meanwhile."""
    deployment = Deployment(frail.url, tmp_path, env={"LMOS_NATS_REPLICAS": "3"})
    try:
        await asyncio.to_thread(deployment.services, "registry", "router", "runtime")
        agent = await asyncio.to_thread(deployment.agent, TELLER)
        async with (
            NatsTransport.connect(frail.url, name="looking") as transport,
            deployment.client() as mesh,
        ):
            await balance(mesh)
            names: list[str] = (await api(transport, "STREAM.NAMES"))["streams"]
            assert {"KV_lmos_leases", "KV_lmos_registry", "KV_lmos_conversations"} <= {*names}
            assert "LMOS_TURNS" in names
            await until(whole, transport, names, within_s=SOON_S)
            leader = (await stream(transport, "KV_lmos_leases"))["cluster"]["leader"]
            async with (
                # It is told of one server, and learns of the others from that one.
                NatsTransport.connect(frail.url_of(leader), name="there") as there,
                asyncio.TaskGroup() as tasks,
            ):
                frail.kill(leader)
                await asyncio.sleep(0.3)  # what is on its way through it is lost
                answers = [tasks.create_task(balance(mesh)) for _ in range(8)]
                began, looked = time.monotonic(), 0
                renewed = tasks.create_task(until(has_leader, transport, within_s=AGREED_S))
                while not renewed.done() or time.monotonic() - began < 7:  # a lease lasts 4
                    with suppress(DeadlineExceeded, Unavailable):  # lost with that server
                        assert await found(mesh, "teller") == {agent.instance}
                        looked += 1
                    await asyncio.sleep(0.2)
                assert looked > 10
                await there.flush(timeout_s=SOON_S)
            assert [task.result() for task in answers] == ["39.99"] * 8

            frail.start(leader)
            await until(whole, transport, names, within_s=AGREED_S)
            await balance(mesh)
            assert await found(mesh, "teller") == {agent.instance}
        assert not deployment.died()
    finally:
        deployment.stop()


async def found(mesh: Mesh, name: str) -> set[str]:
    """Who lives, by a registry that may have lost the question."""
    things = (await mesh.bus.call(FIND_THINGS, FindThings(name=name), timeout_s=1.0)).things
    return {one.instance for thing in things for one in thing.instances}


async def balance(mesh: Mesh) -> str:
    return (await mesh.ask("what is my balance?", agent="teller")).answer


async def has_leader(transport: NatsTransport) -> bool:
    return bool((await stream(transport, "KV_lmos_leases")).get("cluster", {}).get("leader"))


def test_the_doctor_names_a_server_that_is_lost(frail: NatsCluster) -> None:
    async def make() -> None:
        async with asking(frail, 3) as transport:
            await transport.key_value(Bucket(name="lmos_leases", in_memory=True)).put("a.b", b"1")
            await until(whole, transport, ["KV_lmos_leases"], within_s=SOON_S)

    asyncio.run(make())
    frail.kill("n1")
    said = doctor(frail)

    assert f"✓ bus {frail.url_of('n0')}, {frail.url_of('n2')} answer " in said
    assert f"! bus no NATS server answers at {frail.url_of('n1')}" in said


def doctor(cluster: NatsCluster) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lmos_mesh.cli", "doctor"],
        env={"LMOS_NATS_URL": cluster.url, "LMOS_LOG_FORMAT": "console", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return " ".join(done.stdout.split())
