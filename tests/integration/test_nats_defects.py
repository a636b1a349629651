"""What nats-py 2.16 does wrong on a real server, and that our seam does not.

Each test takes one defect that touches us and shows its cure. What needs no server that dies or
freezes is shown a second time, with every other promise, by `tests/contract`.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
import uvloop
from nats.aio.client import Client

from lmos_mesh import calls, jetstream, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.errors import DeadlineExceeded, MeshError, SettingsError, Unavailable
from lmos_mesh.nats_config import Binary
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.reply_stream import Patience
from lmos_mesh.transport import Bucket, Change, Packet, Transport, change_of
from tests.conftest import FrailServer, NatsMesh, StartServer, new_name

SOON_S = 10.0
"""Far longer than anything here takes: a test that waits this long has failed."""

QUICK_PING_S = 0.2


class Number(Message):
    number: int


COUNT = Endpoint("counter", "count", Number, Number)


class Counter:
    """Answers with what it is asked, and remembers it."""

    def __init__(self, work_s: float = 0.0) -> None:
        self.seen: list[int] = []
        self._work_s = work_s

    async def __call__(self, number: Number, call: Call) -> Number:
        self.seen.append(number.number)
        await asyncio.sleep(self._work_s)
        return number

    async def serve(self, bus: Bus) -> "Counter":
        await bus.serve(COUNT.service, [route(COUNT, self)])
        return self


class Packets:
    """What a subscription was handed, to be awaited."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Packet] = asyncio.Queue()

    def __call__(self, packet: Packet) -> None:
        self._queue.put_nowait(packet)

    def __len__(self) -> int:
        return self._queue.qsize()

    async def get(self, within_s: float = SOON_S) -> Packet:
        async with asyncio.timeout(within_s):
            return await self._queue.get()


async def becomes(condition: Callable[[], object], within_s: float = SOON_S) -> float:
    """Wait for what nothing announces; returns how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def becomes_lost(transport: Transport) -> None:
    """Return in the very turn of the loop in which the loss is noticed."""
    async with asyncio.timeout(SOON_S):
        while transport.connected:  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def plain_client(url: str) -> AsyncGenerator[Client]:
    """A client that knows nothing of us."""
    client = await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def own_server(binary: Binary, directory: Path, settings: str) -> Generator[int]:
    """A server that is configured otherwise than ours; gives its port."""
    config = directory / "own.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: "{directory}"\n{settings}\n')
    with subprocess.Popen([binary.path, "-c", config], stderr=subprocess.DEVNULL) as process:
        ports = directory / f"nats-server_{process.pid}.ports"
        try:
            until = time.monotonic() + SOON_S
            while not (ports.exists() and ports.read_text().strip()):
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.01)
            yield int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
        finally:
            process.terminate()


# -- a server that freezes --


async def fails_over_from_a_frozen_server(start_nats: StartServer) -> None:
    servers = [await start_nats(), await start_nats()]
    mesh = NatsMesh(",".join(server.url for server in servers), ping_interval_s=QUICK_PING_S)
    ids: dict[str, FrailServer] = {}
    for server in servers:
        async with NatsMesh(server.url).transport() as probe:
            ids[probe.connection.split(":")[0]] = server
    async with mesh.transport() as transport:
        packets = Packets()
        await transport.subscribe(f"{mesh.tenant}.x", packets)
        frozen = ids[transport.connection.split(":")[0]]
        frozen.freeze()
        try:
            for _ in range(200):  # more than the kernel takes for a peer that reads nothing
                transport.publish(f"{mesh.tenant}.elsewhere", b"x" * 100_000)
            await becomes(lambda: ids[transport.connection.split(":")[0]] is not frozen)
            await transport.wait_connected(timeout_s=SOON_S)

            transport.publish(f"{mesh.tenant}.x", b"here")
            assert (await packets.get()).payload == b"here"
        finally:
            frozen.thaw()


async def test_unsent_data_does_not_keep_us_with_a_frozen_server(start_nats: StartServer) -> None:
    await fails_over_from_a_frozen_server(start_nats)


async def test_a_connection_to_a_frozen_server_closes_in_bounded_time(
    fresh_nats: FrailServer,
) -> None:
    async with NatsMesh(fresh_nats.url).transport() as transport:
        client: Any = transport._client  # pyright: ignore[reportPrivateUsage]
        socket_of = client._transport._io_writer.transport
        fresh_nats.freeze()
        try:
            for _ in range(200):
                transport.publish("x", b"x" * 100_000)
            began = time.monotonic()
            await transport.close()
            assert time.monotonic() - began < 8
            assert socket_of.is_closing()
        finally:
            fresh_nats.thaw()


async def test_a_server_that_was_frozen_for_a_moment_leaves_nobody_deaf(
    fresh_nats: FrailServer,
) -> None:
    """An answered ping that nobody waits for any more must not end the reading."""
    mesh = NatsMesh(fresh_nats.url, ping_interval_s=60)
    async with mesh.bus("caller") as caller, mesh.bus("counter") as answering:
        await Counter().serve(answering)
        fresh_nats.freeze()
        try:
            with pytest.raises(Unavailable, match="ping"):
                await caller.transport.flush(timeout_s=0.1)
        finally:
            fresh_nats.thaw()

        for number in range(3):
            assert await caller.call(COUNT, Number(number=number)) == Number(number=number)


# -- requests that come back as ghosts --


async def test_a_request_that_timed_out_at_a_frozen_server_is_not_done_when_it_thaws(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url, ping_interval_s=60)
    async with mesh.bus("caller") as caller, mesh.bus("counter") as answering:
        counter = await Counter().serve(answering)
        fresh_nats.freeze()
        try:
            with pytest.raises(DeadlineExceeded):
                await caller.call(COUNT, Number(number=1), timeout_s=0.2)
        finally:
            fresh_nats.thaw()
        await caller.transport.flush()
        await answering.transport.flush()

        await caller.call(COUNT, Number(number=2))

        assert counter.seen == [2]


async def test_a_request_to_a_lost_bus_is_not_sent_when_it_returns(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.transport() as caller, mesh.transport() as responder:
        asked = Packets()
        await responder.subscribe(f"{mesh.tenant}.x", asked)
        # The second time too, when the bus has already come back once.
        for _ in range(2):
            await fresh_nats.kill()
            await becomes_lost(caller)
            with pytest.raises(Unavailable, match="lost"):
                await caller.request(f"{mesh.tenant}.x", b"ghost", timeout_s=0.1)
            await fresh_nats.start()
            for transport in (caller, responder):
                await transport.wait_connected(timeout_s=SOON_S)
                await transport.flush()

        assert len(asked) == 0


async def test_a_stream_is_not_asked_for_when_the_bus_returns_after_its_patience(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.bus("caller") as caller, mesh.transport() as responder:
        asked = Packets()
        await responder.subscribe(f"lmos.{mesh.tenant}.x", asked)
        await fresh_nats.kill()
        await becomes_lost(caller.transport)
        with pytest.raises(Unavailable, match="lost"):
            await caller.open_stream(
                f"lmos.{mesh.tenant}.x",
                b"",
                patience=Patience(first_s=0.1),
            )
        await fresh_nats.start()
        for transport in (caller.transport, responder):
            await transport.wait_connected(timeout_s=SOON_S)
            await transport.flush()

        assert len(asked) == 0


# -- a server that goes and comes back --


async def waits_for_a_lost_bus(start_nats: StartServer) -> None:
    server = await start_nats()
    mesh = NatsMesh(server.url)
    async with mesh.bus("caller") as caller, mesh.bus("counter") as answering:
        counter = await Counter().serve(answering)
        came_back = asyncio.Event()

        def broken() -> None:
            raise RuntimeError("a bug in a callback")

        caller.transport.on_reconnect(broken)
        caller.transport.on_reconnect(came_back.set)
        for number, end in enumerate((server.stop, server.kill)):
            await end()
            await becomes_lost(caller.transport)
            await becomes_lost(answering.transport)
            async with asyncio.TaskGroup() as tasks:
                # Asked while there is nobody to ask; who is back before those who answer, is told.
                waiting = tasks.create_task(
                    failure_of(caller.call(COUNT, Number(number=number), timeout_s=SOON_S))
                )
                await asyncio.sleep(0.1)
                assert not waiting.done()
                await server.start()
                await until_answered(caller, Number(number=100))
                assert isinstance(await waiting, Unavailable | None)

        assert came_back.is_set()
        assert counter.seen.count(100) == 2


async def until_answered(bus: Bus, number: Number) -> Number:
    """Ask as callers do: `Unavailable` is worth another try."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                return await bus.call(COUNT, number)
            except Unavailable:
                await asyncio.sleep(0.02)


async def failure_of(doing: Awaitable[object]) -> MeshError | None:
    try:
        await doing
    except MeshError as error:
        return error
    return None


async def test_a_lost_bus_is_waited_for_and_everything_works_again(
    start_nats: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    await waits_for_a_lost_bus(start_nats)
    assert "a bug in a callback" in caplog.text


@pytest.mark.parametrize("scenario", [waits_for_a_lost_bus, fails_over_from_a_frozen_server])
def test_it_is_the_same_on_uvloop(
    start_nats: StartServer, scenario: Callable[[StartServer], Coroutine[Any, Any, None]]
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(start_nats))


async def test_what_is_published_while_the_bus_is_lost_arrives_in_its_order_when_it_returns(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.x", packets)
        await fresh_nats.kill()
        await becomes_lost(sender)
        await becomes_lost(receiver)
        late = Packets()
        number = 0

        async with asyncio.TaskGroup() as tasks:
            # Subscribed while there is nobody to tell; and sending goes on while all returns.
            subscribing = tasks.create_task(receiver.subscribe(f"{mesh.tenant}.y", late))
            sender.publish(f"{mesh.tenant}.x", b"0")
            starting = tasks.create_task(fresh_nats.start())
            while not (starting.done() and sender.connected and receiver.connected):
                await asyncio.sleep(0)
                if receiver.connected or not starting.done():
                    number += 1
                    if number < 20_000:
                        sender.publish(f"{mesh.tenant}.x", str(number).encode())
            await subscribing
        number = min(number, 19_999)
        await sender.flush()
        await receiver.flush()

        # Who was not back yet has missed the first; what came is in order, and whole to the end.
        found = [int((await packets.get()).payload) for _ in range(len(packets))]
        assert found == list(range(number + 1 - len(found), number + 1))
        sender.publish(f"{mesh.tenant}.y", b"late")
        assert (await late.get()).payload == b"late"


async def test_a_bus_that_is_lost_for_long_refuses_more_instead_of_filling_the_memory(
    fresh_nats: FrailServer,
) -> None:
    async with NatsMesh(fresh_nats.url).transport() as transport:
        await fresh_nats.kill()
        await becomes_lost(transport)

        def publish_much() -> None:
            for _ in range(200):
                transport.publish("x", b"x" * 100_000)

        with pytest.raises(Unavailable, match="already wait"):
            publish_much()


async def test_who_leaves_while_the_bus_is_lost_need_not_wait_for_it(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.transport() as transport:
        async with Bus(transport, tenant=mesh.tenant, instance="leaver") as bus:
            for number in range(5):
                await bus.respond(f"lmos.{mesh.tenant}.{number}", never)
            await fresh_nats.kill()
            await becomes_lost(transport)
            began = time.monotonic()
        assert time.monotonic() - began < 1.8


async def never(call: Call) -> None:
    await asyncio.Event().wait()


# -- errors from the server --


async def test_an_error_from_the_server_does_not_close_for_good(fresh_nats: FrailServer) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.transport() as transport:
        packets = Packets()
        await transport.subscribe(f"{mesh.tenant}.x", packets)
        before = {transport.connection}
        for _ in range(2):
            # The server answers `-ERR 'Unknown Protocol Operation'` and hangs up.
            transport._client.send(b"NONSENSE\r\n")  # pyright: ignore[reportPrivateUsage]
            await becomes(lambda: transport.connection not in before and transport.connected)
            before.add(transport.connection)

        await transport.flush()
        transport.publish(f"{mesh.tenant}.x", b"still here")
        assert (await packets.get()).payload == b"still here"


async def test_who_is_thrown_out_by_a_reload_comes_back(fresh_nats: FrailServer) -> None:
    mesh = NatsMesh(fresh_nats.url)
    async with mesh.bus("caller") as caller, mesh.bus("counter") as answering:
        await Counter().serve(answering)
        before = caller.transport.connection
        config = fresh_nats.settings.config_path
        text = config.read_text()
        password = json.loads(text.split("\n", 1)[1])["accounts"]["MESH"]["users"][0]["password"]
        config.write_text(text.replace(password, "x" * 40))
        os.kill(fresh_nats.pid, signal.SIGHUP)

        await becomes(lambda: caller.transport.connection != before and caller.transport.connected)

        assert await until_answered(caller, Number(number=1)) == Number(number=1)


async def test_a_subject_that_is_forbidden_costs_no_connection(
    nats_binary: Binary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    permissions = '{publish: {deny: ["secret.>"]}, subscribe: {deny: ["secret.>"]}}'
    users = f'users: [{{user: "u", password: "p", permissions: {permissions}}}]'
    with own_server(nats_binary, tmp_path, f"authorization: {{{users}}}") as port:
        async with NatsTransport.connect(f"nats://u:p@127.0.0.1:{port}", name="x") as transport:
            before = transport.connection
            packets = Packets()
            await transport.subscribe("open", packets)
            await transport.subscribe("secret.x", packets)
            transport.publish("secret.x", b"")
            await transport.flush()
            transport.publish("open", b"yes")

            assert (await packets.get()).payload == b"yes"
            assert transport.connection == before
    assert "permissions violation" in caplog.text


# -- many at a time, and leaving --


async def test_ten_slow_requests_of_a_plain_client_run_side_by_side(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus("counter") as bus, plain_client(nats_mesh.url) as client:
        await Counter(work_s=1.0).serve(bus)
        subject = f"lmos.{nats_mesh.tenant}.counter.count"
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(client.request(subject, b'{"number":%d}' % number, timeout=15))
                for number in range(10)
            ]

        assert time.monotonic() - began < 9
        assert [json.loads(one.result().data) for one in asked] == [
            {"number": number} for number in range(10)
        ]


async def test_drain_answers_every_request_that_the_server_has_handed_over(
    nats_mesh: NatsMesh,
) -> None:
    async with plain_client(nats_mesh.url) as client:
        subject = f"lmos.{nats_mesh.tenant}.counter.count"
        async with asyncio.TaskGroup() as tasks, nats_mesh.bus("counter") as bus:
            counter = await Counter(work_s=0.05).serve(bus)
            asked = [
                tasks.create_task(client.request(subject, b'{"number":%d}' % one, timeout=5))
                for one in range(200)
            ]
            await becomes(lambda: counter.seen)
            await client.flush()
            await bus.drain()

        assert [json.loads(one.result().data)["number"] for one in asked] == list(range(200))


async def test_no_request_header_is_echoed_to_a_plain_client(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus("counter") as bus, plain_client(nats_mesh.url) as client:
        await Counter().serve(bus)
        headers = {"Authorization": "Bearer secret", "Nats-Msg-Id": "1"}
        subject = f"lmos.{nats_mesh.tenant}.counter.count"

        answered = await client.request(subject, b'{"number":1}', headers=headers)
        refused = await client.request(subject, b'{"number":"x"}', headers=headers)

        assert not answered.headers
        assert set(refused.headers or {}) == {calls.ERROR, calls.ERROR_CODE}


async def test_two_connections_without_names_do_not_get_each_others_replies(
    nats_url: str,
) -> None:
    tenant = new_name("tenant")
    async with (
        NatsTransport.connect(nats_url, name="one") as one,
        NatsTransport.connect(nats_url, name="two") as two,
    ):
        await one.subscribe(f"{tenant}.x", lambda packet: one.publish(packet.reply, packet.payload))
        async with asyncio.TaskGroup() as tasks:
            asked = {
                name: [
                    tasks.create_task(transport.request(f"{tenant}.x", name, timeout_s=SOON_S))
                    for _ in range(50)
                ]
                for name, transport in ((b"one", one), (b"two", two))
            }
        for name, tasks_of_one in asked.items():
            assert {task.result().payload for task in tasks_of_one} == {name}


async def test_a_stored_message_under_a_subject_that_ends_like_an_inbox_reaches_no_inbox(
    nats_mesh: NatsMesh,
) -> None:
    """What a consumer hands over comes under its own subject, beside the replies."""
    async with nats_mesh.transport("reader") as transport:
        prefix = subjects.inbox(nats_mesh.tenant, "reader")
        where = Bucket(name=new_name("b"), tokens=2)
        store = transport.key_value(where)
        misled = Packets()
        inboxes = [transport.open_inbox(misled) for _ in range(40)]
        tail = len(prefix) - len(f"$KV.{where.name}.")
        for number in range(1, 60):
            await store.put(f"{'k' * (tail - 1)}.{number}", b"a value")

        assert len(await store.entries()) == 59
        await transport.flush()

        assert len(misled) == 0
        for inbox in inboxes:
            inbox.close()


# -- leases and their feed --


def leases(tenant: str) -> Bucket:
    return Bucket(
        name=new_name("leases"),
        in_memory=True,
        expiring=True,
        tokens=2,
        feed=f"{tenant}.changed.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
    )


async def test_an_expiry_marker_is_no_value(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.transport() as transport, plain_client(nats_mesh.url) as client:
        where = leases(nats_mesh.tenant)
        changes = Packets()
        await transport.subscribe(f"{nats_mesh.tenant}.changed.>", changes)
        store = transport.key_value(where)
        await store.put("a.b", b"alive", ttl_s=1)
        await changes.get()
        marker = await changes.get()

        stored = await client.request(f"$JS.API.DIRECT.GET.KV_{where.name}.$KV.{where.name}.a.b")
        assert (stored.headers or {})["Nats-Marker-Reason"] == "MaxAge"  # it is there to be read
        assert change_of(marker).value is None
        assert await store.get("a.b") is None
        assert await store.entries() == []
        await store.put("a.b", b"again", expected=0, ttl_s=5)
        entry = await store.get("a.b")
        assert entry is not None
        assert entry.value == b"again"


async def test_after_a_restart_the_feeds_go_on_and_the_leases_are_made_anew(
    fresh_nats: FrailServer,
) -> None:
    mesh = NatsMesh(fresh_nats.url)
    kept = Bucket(name="kept", tokens=2, feed="kept.{{wildcard(1)}}.{{wildcard(2)}}")
    fleeting = leases(mesh.tenant)
    async with mesh.transport() as writer, mesh.transport() as watcher:
        changes, of_leases = Packets(), Packets()
        await watcher.subscribe("kept.>", changes)
        await watcher.subscribe(f"{mesh.tenant}.changed.>", of_leases)
        store, lease = writer.key_value(kept), writer.key_value(fleeting)
        first = await store.put("a.b", b"1")
        await lease.put("a.b", b"alive", ttl_s=30)
        await changes.get()
        await of_leases.get()

        await fresh_nats.stop()
        await becomes_lost(writer)
        await becomes_lost(watcher)
        await fresh_nats.start()
        for transport in (writer, watcher):
            await transport.wait_connected(timeout_s=SOON_S)

        assert await watcher.key_value(fleeting).entries() == []
        assert [one.value for one in await watcher.key_value(kept).entries()] == [b"1"]
        second = await store.put("a.b", b"2", expected=first)
        revision = await lease.put("a.b", b"alive again", ttl_s=30, expected=0)
        assert change_of(await changes.get()) == Change(key="a.b", value=b"2", revision=second)
        told = change_of(await of_leases.get())
        assert told == Change(key="a.b", value=b"alive again", revision=revision)
        # Memory forgets its numbers too: whoever compares revisions must read all anew.
        assert revision == 1


async def test_a_lease_is_renewed_though_nobody_was_told_that_its_bucket_is_gone(
    nats_mesh: NatsMesh,
) -> None:
    async with nats_mesh.transport() as transport, plain_client(nats_mesh.url) as client:
        where = leases(nats_mesh.tenant)
        store = transport.key_value(where)
        await store.put("a.b", b"1", ttl_s=30)
        for ask in (store.get, store.entries, None):
            await client.request(f"$JS.API.STREAM.DELETE.KV_{where.name}")
            if ask == store.get:
                assert await store.get("a.b") is None
            elif ask == store.entries:
                assert await store.entries() == []
            await store.put("a.b", b"2", ttl_s=30)
            entry = await store.get("a.b")
            assert entry is not None
            assert entry.value == b"2"


async def test_without_jetstream_the_store_says_so_and_the_bus_lives_on(
    nats_binary: Binary, tmp_path: Path
) -> None:
    with own_server(nats_binary, tmp_path, "") as port:
        async with NatsTransport.connect(f"nats://127.0.0.1:{port}", name="x") as transport:
            store = transport.key_value(Bucket(name="x"))
            began = time.monotonic()
            with pytest.raises(Unavailable, match="JetStream"):
                await store.put("a.b", b"")
            with pytest.raises(Unavailable, match="JetStream"):
                await store.entries()
            assert time.monotonic() - began < 2
            await transport.flush()


async def test_a_silent_store_is_waited_for_once_and_a_write_is_not_repeated(
    fresh_nats: FrailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "_TIMEOUT_S", 0.3)
    mesh = NatsMesh(fresh_nats.url, ping_interval_s=60)
    async with mesh.transport() as transport:
        store = transport.key_value(Bucket(name="x", history=10))
        await store.put("a.b", b"1")
        fresh_nats.freeze()
        try:
            async with asyncio.TaskGroup() as tasks:
                putting = tasks.create_task(failure_of(store.put("a.b", b"2")))
                await asyncio.sleep(0.45)  # a second attempt would find it awake
                fresh_nats.thaw()
        finally:
            fresh_nats.thaw()
        assert isinstance(putting.result(), Unavailable)
        await transport.flush()

        assert await store.put("a.b", b"3") == 3


# -- connecting --


@asynccontextmanager
async def impostor(greeting: bytes) -> AsyncGenerator[int]:
    """A listener that greets and answers every ping, and whose greeting may be a lie."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        try:
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def leaking_nothing() -> AsyncGenerator[None]:
    """Whatever is left open in the block is a warning here, and so an error."""
    yield
    await asyncio.sleep(0.05)
    gc.collect()


async def test_a_port_where_nobody_listens_is_unavailable_and_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        async with leaking_nothing():
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}") as raised:
                async with NatsTransport.connect(
                    f"nats://me:secret@127.0.0.1:{port}", name="x", timeout_s=0.3
                ):
                    pytest.fail("there is nobody")
    assert "secret" not in str(raised.value)
    assert "LMOS_NATS_URL" in str(raised.value)


async def test_a_server_that_says_nothing_is_unavailable_in_time() -> None:
    async with leaking_nothing(), impostor(b"") as port:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            async with NatsTransport.connect(f"nats://127.0.0.1:{port}", name="x", timeout_s=0.3):
                pytest.fail("it is silent")
        assert time.monotonic() - began < 3


async def test_a_server_that_is_too_old_is_refused_with_what_to_do() -> None:
    info = {"server_id": "x", "version": "2.9.10", "max_payload": 1024, "headers": True}
    async with leaking_nothing(), impostor(b"INFO %s\r\n" % json.dumps(info).encode()) as port:
        with pytest.raises(SettingsError, match=r"2\.9\.10.*2\.12\.0 or newer.*upgrade"):
            async with NatsTransport.connect(f"nats://127.0.0.1:{port}", name="x", timeout_s=5):
                pytest.fail("it is too old")


async def test_a_wrong_password_is_refused_at_once_and_not_shown(
    nats_binary: Binary, tmp_path: Path
) -> None:
    settings = 'authorization: {user: "me", password: "right"}'
    with own_server(nats_binary, tmp_path, settings) as port:
        async with leaking_nothing():
            began = time.monotonic()
            with pytest.raises(SettingsError, match="refuses us") as raised:
                async with NatsTransport.connect(f"nats://me:wrong@127.0.0.1:{port}", name="x"):
                    pytest.fail("it is wrong")
            assert time.monotonic() - began < 3
            assert "wrong" not in str(raised.value)
        async with NatsTransport.connect(f"nats://me:right@127.0.0.1:{port}", name="x") as right:
            await right.flush()


_NKEY = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
_FORM = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("", "holds no NATS credentials"),
        ("nonsense", "holds no NATS credentials"),
        (_FORM.format(jwt="a", seed="SUAA"), "cannot use"),
    ],
    ids=["missing", "empty", "nonsense", "broken seed"],
)
async def test_credentials_that_cannot_be_used_are_named_at_once(
    nats_binary: Binary, tmp_path: Path, content: str | None, said: str
) -> None:
    credentials = tmp_path / "mesh.creds"
    if content is not None:
        credentials.write_text(content)
    with own_server(
        nats_binary, tmp_path, f"authorization: {{users: [{{nkey: {_NKEY}}}]}}"
    ) as port:
        began = time.monotonic()
        with pytest.raises(SettingsError, match=f"{said}.*LMOS_NATS_CREDENTIALS") as raised:
            async with NatsTransport.connect(
                f"nats://127.0.0.1:{port}", name="x", credentials=str(credentials)
            ):
                pytest.fail("they are no good")
        assert time.monotonic() - began < 3
        assert str(credentials) in str(raised.value)
        assert "SUAA" not in str(raised.value)


@pytest.mark.parametrize("url", ["nats://127.0.0.1:port", "nats://", "", " , "])
async def test_an_address_that_is_none_is_a_setting_to_mend(url: str) -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError, match="LMOS_NATS_URL"):
        async with NatsTransport.connect(url, name="x", timeout_s=5):
            pytest.fail("there is no such address")
    assert time.monotonic() - began < 2


async def test_a_server_that_starts_a_little_later_is_waited_for(start_nats: StartServer) -> None:
    server = await start_nats()
    await server.stop()
    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(connect_once(server.url))
        await asyncio.sleep(0.3)
        await server.start()
    assert connecting.result()


async def connect_once(url: str) -> str:
    async with NatsTransport.connect(url, name="x", timeout_s=SOON_S) as transport:
        return transport.connection
