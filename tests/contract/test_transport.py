"""What every `Transport` must do, run against each of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from lmos_mesh.errors import Conflict, DeadlineExceeded, InvalidMessage, TooLarge, Unavailable
from lmos_mesh.events import unix_time
from lmos_mesh.transport import (
    KEPT_AT,
    Bucket,
    Change,
    Entry,
    KeyValue,
    Log,
    Packet,
    Transport,
    WorkItem,
    change_of,
)
from tests.conftest import Mesh, new_name

SOON_S = 10.0
"""Far longer than anything here takes: a test that waits this long has failed."""


class Packets:
    """What a subscription was handed, to be awaited."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Packet] = asyncio.Queue()

    def __call__(self, packet: Packet) -> None:
        self._queue.put_nowait(packet)

    def __len__(self) -> int:
        return self._queue.qsize()

    async def get(self) -> Packet:
        async with asyncio.timeout(SOON_S):
            return await self._queue.get()

    async def take(self, count: int) -> list[Packet]:
        return [await self.get() for _ in range(count)]


def echo(transport: Transport, *, prefix: bytes = b"") -> "Echo":
    return Echo(transport, prefix)


class Echo:
    """Answers with what it was sent, one header included."""

    def __init__(self, transport: Transport, prefix: bytes) -> None:
        self._transport = transport
        self._prefix = prefix

    def __call__(self, packet: Packet) -> None:
        said = {"Said": packet.headers["Say"]} if "Say" in packet.headers else None
        self._transport.publish(packet.reply, self._prefix + packet.payload, headers=said)


async def all_sent(*transports: Transport) -> None:
    """Everything that was sent before has reached everybody who is connected."""
    for transport in transports:
        await transport.flush()
    for transport in transports:
        await transport.flush()


# -- publish and subscribe --


@pytest.mark.parametrize(
    ("pattern", "heard", "not_heard"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.c", "b.a"]),
        ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
        ("*.b", ["a.b"], ["a.c", "b", "a.b.c"]),
        ("a.>", ["a.b", "a.b.c", "a.c"], ["a", "b.a"]),
        ("*.*.>", ["a.b.c", "a.b.c.d"], ["a.b", "a"]),
    ],
)
async def test_a_subscriber_hears_what_its_pattern_covers_and_nothing_else(
    mesh: Mesh, pattern: str, heard: list[str], not_heard: list[str]
) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.{pattern}", packets)

        for subject in [*not_heard, *heard]:
            sender.publish(f"{mesh.tenant}.{subject}", b"x")
        await all_sent(sender, receiver)

        found = [packet.subject for packet in await packets.take(len(heard))]
        assert found == [f"{mesh.tenant}.{subject}" for subject in heard]
        assert not packets


async def test_a_packet_arrives_with_its_payload_its_headers_and_its_reply_subject(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.x", packets)
        payload = bytes(range(256))

        sender.publish(
            f"{mesh.tenant}.x",
            payload,
            headers={"Plain": "1", "Colon": "a: b", "Words": "grüß dich", "Empty": ""},
            reply=f"{mesh.tenant}.reply",
        )

        packet = await packets.get()
        assert packet.payload == payload
        assert dict(packet.headers) == {
            "Plain": "1",
            "Colon": "a: b",
            "Words": "grüß dich",
            "Empty": "",
        }
        assert packet.reply == f"{mesh.tenant}.reply"


async def test_packets_of_one_sender_arrive_in_their_order(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.x", packets)

        for number in range(2_000):
            sender.publish(f"{mesh.tenant}.x", str(number).encode())
            if number % 100 == 0:
                await asyncio.sleep(0)  # over several turns of the loop, as real senders do

        found = [int(packet.payload) for packet in await packets.take(2_000)]
        assert found == list(range(2_000))


async def test_a_line_break_in_a_header_cannot_smuggle_in_another_header(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.x", packets)

        sender.publish(f"{mesh.tenant}.x", b"", headers={"A": "1\r\nLmos-Hops: 0\r\n\r\nx"})

        assert set((await packets.get()).headers) == {"A"}


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "a\n"])
async def test_what_is_no_subject_is_refused_and_the_connection_lives_on(
    mesh: Mesh, subject: str
) -> None:
    async with mesh.transport() as transport:
        packets = Packets()
        await transport.subscribe(f"{mesh.tenant}.x", packets)

        with pytest.raises(InvalidMessage, match="subject"):
            transport.publish(subject, b"")
        with pytest.raises(InvalidMessage, match="subject"):
            transport.publish(f"{mesh.tenant}.x", b"", reply=f"{subject} ")
        with pytest.raises(InvalidMessage, match="subject"):
            await transport.request(subject, b"", timeout_s=1)

        transport.publish(f"{mesh.tenant}.x", b"fine")
        assert (await packets.get()).payload == b"fine"


async def test_a_queue_group_shares_packets_and_others_hear_all(mesh: Mesh) -> None:
    async with (
        mesh.transport() as sender,
        mesh.transport() as first,
        mesh.transport() as second,
        mesh.transport() as third,
    ):
        shared_one, shared_two, everything = Packets(), Packets(), Packets()
        await first.subscribe(f"{mesh.tenant}.x", shared_one, queue="q")
        await second.subscribe(f"{mesh.tenant}.x", shared_two, queue="q")
        await third.subscribe(f"{mesh.tenant}.x", everything)

        for number in range(200):
            sender.publish(f"{mesh.tenant}.x", str(number).encode())
        await all_sent(sender, first, second, third)

        shared = await shared_one.take(len(shared_one)) + await shared_two.take(len(shared_two))
        numbers = Counter(packet.payload for packet in shared)
        assert numbers == Counter(str(number).encode() for number in range(200))
        assert len(everything) == 200


async def test_both_members_of_a_queue_group_get_a_fair_part(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as one, mesh.transport() as two:
        first, second = Packets(), Packets()
        await one.subscribe(f"{mesh.tenant}.x", first, queue="q")
        await two.subscribe(f"{mesh.tenant}.x", second, queue="q")

        for _ in range(200):
            sender.publish(f"{mesh.tenant}.x", b"")
        await all_sent(sender, one, two)

        assert min(len(first), len(second)) > 20


async def test_a_handler_that_raises_does_not_make_the_connection_deaf(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()

        def broken(packet: Packet) -> None:
            packets(packet)
            raise RuntimeError("a bug in a handler")

        await receiver.subscribe(f"{mesh.tenant}.x", broken)
        sender.publish(f"{mesh.tenant}.x", b"1")
        sender.publish(f"{mesh.tenant}.x", b"2")

        assert [packet.payload for packet in await packets.take(2)] == [b"1", b"2"]
        await receiver.flush()
    assert "a bug in a handler" in caplog.text


# -- unsubscribe --


async def test_unsubscribe_hands_over_all_that_was_accepted_and_nothing_after(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        subscription = await receiver.subscribe(f"{mesh.tenant}.x", packets)
        for _ in range(500):
            sender.publish(f"{mesh.tenant}.x", b"before")
        await sender.flush()

        await subscription.unsubscribe()

        assert len(packets) == 500
        sender.publish(f"{mesh.tenant}.x", b"after")
        await all_sent(sender, receiver)
        assert len(packets) == 500


async def test_nothing_is_handed_over_any_more_once_unsubscribe_has_returned(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as receiver:
        packets = Packets()
        subscription = await receiver.subscribe(f"{mesh.tenant}.x", packets)
        stop = asyncio.Event()

        async def keep_sending() -> None:
            while not stop.is_set():
                sender.publish(f"{mesh.tenant}.x", b"")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_sending())
            await packets.take(10)
            await subscription.unsubscribe()
            had = len(packets)
            for _ in range(50):
                await asyncio.sleep(0)
            await receiver.flush()
            stop.set()

        assert len(packets) == had


async def test_to_unsubscribe_twice_or_after_close_does_no_harm(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        subscription = await transport.subscribe(f"{mesh.tenant}.x", Packets())
        await subscription.unsubscribe()
        await subscription.unsubscribe()
        other = await transport.subscribe(f"{mesh.tenant}.y", Packets())
    await other.unsubscribe()


async def test_a_subscription_that_ends_leaves_its_queue_to_the_others(mesh: Mesh) -> None:
    async with mesh.transport() as sender, mesh.transport() as one, mesh.transport() as two:
        first, second = Packets(), Packets()
        leaving = await one.subscribe(f"{mesh.tenant}.x", first, queue="q")
        await two.subscribe(f"{mesh.tenant}.x", second, queue="q")
        await leaving.unsubscribe()

        for _ in range(50):
            sender.publish(f"{mesh.tenant}.x", b"")
        await all_sent(sender, one, two)

        assert (len(first), len(second)) == (0, 50)


# -- request and reply --


async def test_a_request_is_answered_headers_included(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        await responder.subscribe(f"{mesh.tenant}.x", echo(responder))

        reply = await caller.request(f"{mesh.tenant}.x", b"hi", headers={"Say": "so"}, timeout_s=2)

        assert (reply.payload, dict(reply.headers)) == (b"hi", {"Said": "so"})


async def test_concurrent_requests_get_their_own_answers(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        waiting: list[Packet] = []

        def answer_in_reverse(packet: Packet) -> None:
            waiting.append(packet)
            if len(waiting) == 50:
                for one in reversed(waiting):
                    responder.publish(one.reply, one.payload)

        await responder.subscribe(f"{mesh.tenant}.x", answer_in_reverse)

        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(
                    caller.request(f"{mesh.tenant}.x", str(number).encode(), timeout_s=SOON_S)
                )
                for number in range(50)
            ]

        assert [int(one.result().payload) for one in asked] == list(range(50))


async def test_where_nobody_listens_a_request_fails_at_once(mesh: Mesh) -> None:
    async with mesh.transport() as caller:
        began = time.monotonic()

        with pytest.raises(Unavailable, match=rf"nobody answers on '{mesh.tenant}\.x'"):
            await caller.request(f"{mesh.tenant}.x", b"", timeout_s=30)

        assert time.monotonic() - began < SOON_S


async def test_a_silent_responder_costs_the_timeout_and_its_late_reply_is_dropped(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        asked = Packets()
        await responder.subscribe(f"{mesh.tenant}.x", asked)

        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            await caller.request(f"{mesh.tenant}.x", b"1", timeout_s=0.05)

        responder.publish((await asked.get()).reply, b"late")
        await all_sent(responder, caller)
        async with asyncio.TaskGroup() as tasks:
            again = tasks.create_task(caller.request(f"{mesh.tenant}.x", b"2", timeout_s=SOON_S))
            responder.publish((await asked.get()).reply, b"in time")
        assert again.result().payload == b"in time"


async def test_each_request_ends_at_its_own_time_whichever_was_first(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as silent:
        await silent.subscribe(f"{mesh.tenant}.x", Packets())
        took: dict[float, float] = {}

        async def ask(timeout_s: float) -> None:
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await caller.request(f"{mesh.tenant}.x", b"", timeout_s=timeout_s)
            took[timeout_s] = time.monotonic() - began

        async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
            longest = tasks.create_task(ask(3 * SOON_S))
            shorter = [tasks.create_task(ask(timeout_s)) for timeout_s in (0.2, 0.4)]
            await asyncio.wait(shorter)
            longest.cancel()
        assert list(took) == [0.2, 0.4]
        assert all(timeout_s <= spent + 0.01 for timeout_s, spent in took.items())


async def test_a_cancelled_request_leaves_nothing_behind(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        asked = Packets()
        await responder.subscribe(f"{mesh.tenant}.x", asked)
        async with asyncio.TaskGroup() as tasks:
            request = tasks.create_task(caller.request(f"{mesh.tenant}.x", b"", timeout_s=30))
            packet = await asked.get()
            request.cancel()

        responder.publish(packet.reply, b"late")
        await all_sent(responder, caller)

        with pytest.raises(Unavailable):
            await caller.request(f"{mesh.tenant}.nobody", b"", timeout_s=1)


async def test_only_the_first_of_two_replies_counts(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:

        def twice(packet: Packet) -> None:
            responder.publish(packet.reply, b"first")
            responder.publish(packet.reply, b"second")

        await responder.subscribe(f"{mesh.tenant}.x", twice)

        assert (await caller.request(f"{mesh.tenant}.x", b"", timeout_s=2)).payload == b"first"
        await all_sent(caller, responder)


async def test_an_inbox_takes_many_replies_in_their_order_until_it_is_closed(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        packets, other = Packets(), Packets()
        inbox = caller.open_inbox(packets)
        beside = caller.open_inbox(other)
        assert inbox.subject != beside.subject

        for number in range(1_000):
            responder.publish(inbox.subject, str(number).encode())
        responder.publish(beside.subject, b"beside")

        found = [int(packet.payload) for packet in await packets.take(1_000)]
        assert found == list(range(1_000))
        assert (await other.get()).payload == b"beside"
        inbox.close()
        responder.publish(inbox.subject, b"late")
        await all_sent(responder, caller)
        assert not packets


async def test_an_inbox_is_told_when_nobody_listens(mesh: Mesh) -> None:
    async with mesh.transport() as caller:
        packets = Packets()
        inbox = caller.open_inbox(packets)

        caller.publish(f"{mesh.tenant}.nobody", b"", reply=inbox.subject)

        assert (await packets.get()).nobody


async def test_an_empty_reply_is_an_answer_and_not_the_news_that_nobody_is_there(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        await responder.subscribe(f"{mesh.tenant}.x", echo(responder))

        assert (await caller.request(f"{mesh.tenant}.x", b"", timeout_s=2)).payload == b""


# -- limits, leaving --


async def test_what_is_over_the_limit_is_refused_with_the_limit(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        await responder.subscribe(f"{mesh.tenant}.x", echo(responder))
        limit = caller.max_payload

        largest = await caller.request(f"{mesh.tenant}.x", b"x" * limit, timeout_s=10)
        assert len(largest.payload) == limit
        for size, headers in ((limit + 1, None), (limit, {"Say": "so"})):
            with pytest.raises(TooLarge, match=f"limit of {limit} bytes") as refused:
                await caller.request(f"{mesh.tenant}.x", b"x" * size, headers=headers, timeout_s=10)
            assert refused.value.details["limit"] == limit

        assert (await caller.request(f"{mesh.tenant}.x", b"ok", timeout_s=2)).payload == b"ok"


async def test_after_close_nothing_is_sent_any_more(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        assert transport.connected
    assert not transport.connected
    with pytest.raises(Unavailable, match="closed"):
        transport.publish(f"{mesh.tenant}.x", b"")
    with pytest.raises(Unavailable):
        await transport.request(f"{mesh.tenant}.x", b"", timeout_s=0.2)
    await transport.close()


async def test_close_sends_what_is_buffered(mesh: Mesh) -> None:
    async with mesh.transport() as receiver:
        packets = Packets()
        await receiver.subscribe(f"{mesh.tenant}.x", packets)

        async with mesh.transport() as sender:
            for _ in range(300):
                sender.publish(f"{mesh.tenant}.x", b"x" * 1000)

        await packets.take(300)


async def test_a_closed_connection_is_no_longer_there_to_answer(mesh: Mesh) -> None:
    async with mesh.transport() as caller:
        for _ in range(30):  # a server that is not told first learns it a moment too late
            async with mesh.transport() as responder:
                await responder.subscribe(f"{mesh.tenant}.x", echo(responder))
                await caller.request(f"{mesh.tenant}.x", b"", timeout_s=2)

            with pytest.raises(Unavailable):
                await caller.request(f"{mesh.tenant}.x", b"", timeout_s=2)


async def test_a_cancelled_flush_does_not_make_the_connection_deaf(mesh: Mesh) -> None:
    async with mesh.transport() as caller, mesh.transport() as responder:
        await responder.subscribe(f"{mesh.tenant}.x", echo(responder))
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await caller.flush()

        for _ in range(5):
            reply = await caller.request(f"{mesh.tenant}.x", b"hi", timeout_s=SOON_S)
            assert reply.payload == b"hi"
            await caller.flush(timeout_s=SOON_S)


async def test_waiting_for_a_bus_that_is_there_takes_no_time(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        await transport.wait_connected(timeout_s=0.001)
        await transport.writable()


async def test_connections_have_names_of_their_own(mesh: Mesh) -> None:
    async with mesh.transport() as one, mesh.transport() as two:
        assert one.connection != two.connection
        server, client = one.connection.split(":")
        assert server
        assert client.isdigit()


# -- key-value --


def bucket(**settings: object) -> Bucket:
    return Bucket(name=new_name("bucket"), **settings)  # pyright: ignore[reportArgumentType]


async def live(store: KeyValue, pattern: str = ">") -> dict[str, bytes]:
    return {entry.key: entry.value for entry in await store.entries(pattern)}


async def test_a_value_is_read_back_with_its_revision_and_its_time(mesh: Mesh) -> None:
    async with mesh.transport() as one, mesh.transport() as two:
        where = bucket()
        revision = await one.key_value(where).put("a.b", b"value")

        entry = await two.key_value(where).get("a.b")

        assert entry is not None
        assert (entry.key, entry.value, entry.revision) == ("a.b", b"value", revision)
        assert abs(entry.created - time.time()) < 60


async def test_what_was_never_put_is_none(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket())
        assert await store.get("a.b") is None
        await store.put("a.b", b"")
        assert await store.get("a.c") is None


async def test_any_bytes_are_a_value(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket())
        for value in (b"", b"\x00\xff\r\n", b"x" * 100_000):
            await store.put("a.b", value)
            entry = await store.get("a.b")
            assert entry is not None
            assert entry.value == value
            assert await live(store) == {"a.b": value}


async def test_revisions_rise_with_every_change_of_the_bucket(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(history=5))
        revisions = [
            await store.put("a.b", b"1"),
            await store.put("a.c", b"2"),
            await store.put("a.b", b"3"),
        ]
        revisions.append(await store.delete("a.b"))
        revisions.append(await store.put("a.b", b"4"))

        assert revisions == sorted(set(revisions))
        assert await store.delete("a.nothing") == 0


async def test_a_put_that_expects_another_revision_is_a_conflict_and_changes_nothing(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket())
        first = await store.put("a.b", b"1")
        second = await store.put("a.b", b"2", expected=first)

        with pytest.raises(Conflict, match=r"'a\.b'"):
            await store.put("a.b", b"3", expected=first)
        with pytest.raises(Conflict):
            await store.put("a.b", b"3", expected=0)
        with pytest.raises(Conflict):
            await store.put("a.new", b"3", expected=7)

        entry = await store.get("a.b")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", second)
        assert await store.get("a.new") is None


async def test_of_many_who_create_a_key_one_succeeds(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        where = bucket()
        won: list[int] = []

        async def create(number: int) -> None:
            try:
                await transport.key_value(where).put("a.b", str(number).encode(), expected=0)
            except Conflict:
                return
            won.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(create(number))

        entry = await transport.key_value(where).get("a.b")
        assert entry is not None
        assert [entry.value] == [str(number).encode() for number in won]


@pytest.mark.parametrize("expiring", [False, True])
async def test_a_deleted_key_is_gone_and_can_be_created_anew(mesh: Mesh, expiring: bool) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(expiring=expiring, history=8))
        await store.put("a.b", b"1")
        await store.put("a.b", b"2")
        await store.put("a.c", b"3")

        await store.delete("a.b")

        assert await store.get("a.b") is None
        assert await live(store) == {"a.c": b"3"}
        await store.delete("a.b")
        await store.delete("a.never")
        await store.put("a.b", b"4", expected=0)
        assert await live(store) == {"a.b": b"4", "a.c": b"3"}


async def test_a_delete_that_expects_another_revision_is_a_conflict(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket())
        revision = await store.put("a.b", b"1")

        with pytest.raises(Conflict):
            await store.delete("a.b", expected=revision + 1)
        assert await store.get("a.b") is not None
        await store.delete("a.b", expected=revision)

        assert await store.get("a.b") is None
        with pytest.raises(Conflict):
            await store.delete("a.b", expected=revision)


async def test_entries_are_chosen_by_pattern(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(tokens=3, history=4))
        for key in ("t.a.s", "t.a.c", "t.b.s", "u.a.s"):
            await store.put(key, b"old")
            await store.put(key, key.encode())

        assert set(await live(store)) == {"t.a.s", "t.a.c", "t.b.s", "u.a.s"}
        assert set(await live(store, "t.>")) == {"t.a.s", "t.a.c", "t.b.s"}
        assert set(await live(store, "*.a.s")) == {"t.a.s", "u.a.s"}
        assert await live(store, "t.b.s") == {"t.b.s": b"t.b.s"}
        assert await live(store, "v.>") == {}


async def test_entries_of_a_new_bucket_are_none(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        assert await live(transport.key_value(bucket())) == {}


async def test_entries_come_with_their_revisions_however_many_there_are(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(in_memory=True))
        put: dict[str, int] = {}

        async def fill(worker: int) -> None:
            for number in range(60):
                put[f"{worker}.{number}"] = await store.put(f"{worker}.{number}", b"x" * 50)

        async with asyncio.TaskGroup() as tasks:
            for worker in range(20):
                tasks.create_task(fill(worker))

        entries: Sequence[Entry] = await store.entries()
        assert {entry.key: entry.revision for entry in entries} == put
        assert all(abs(entry.created - time.time()) < 60 for entry in entries)


async def test_reading_entries_leaves_nothing_behind_however_often_it_is_done(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(in_memory=True))
        await store.put("a.b", b"")

        # A server that keeps a consumer for each has no more room after a thousand.
        for _ in range(60):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(20):
                    tasks.create_task(store.entries("nothing.>"))

        assert len(await store.entries()) == 1


# -- leases --


LEASES = {"in_memory": True, "expiring": True}


class Feed:
    """The changes of a bucket as its feed tells them."""

    def __init__(self) -> None:
        self._packets = Packets()

    @classmethod
    async def of(cls, transport: Transport, mesh: Mesh) -> tuple["Feed", Bucket]:
        feed = cls()
        await transport.subscribe(f"{mesh.tenant}.feed.>", feed._packets)
        return feed, bucket(
            **LEASES, tokens=2, feed=f"{mesh.tenant}.feed.{{{{wildcard(2)}}}}.{{{{wildcard(1)}}}}"
        )

    def __len__(self) -> int:
        return len(self._packets)

    async def next(self) -> Change:
        return change_of(await self._packets.get())

    async def next_packet(self) -> Packet:
        return await self._packets.get()


async def test_a_feed_tells_puts_and_deletes_on_subjects_made_of_the_key(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        feed, where = await Feed.of(watcher, mesh)
        store = transport.key_value(where)
        first = await store.put("a.b", b"1")
        second = await store.put("a.b", b"2", ttl_s=30)
        await store.delete("a.b")

        packet = await feed.next_packet()
        assert packet.subject == f"{mesh.tenant}.feed.b.a"
        assert change_of(packet) == Change(key="a.b", value=b"1", revision=first)
        assert await feed.next() == Change(key="a.b", value=b"2", revision=second)
        gone = await feed.next()
        assert (gone.key, gone.value) == ("a.b", None)
        assert gone.revision > second
        assert not feed


async def test_a_lease_expires_and_its_feed_says_so_once(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        feed, where = await Feed.of(watcher, mesh)
        store = transport.key_value(where)
        began = time.monotonic()
        revision = await store.put("a.b", b"alive", ttl_s=1)
        assert (await feed.next()).value == b"alive"

        gone = await feed.next()

        assert time.monotonic() - began > 0.8
        assert (gone.key, gone.value) == ("a.b", None)
        assert gone.revision > revision
        assert await store.get("a.b") is None
        assert await live(store) == {}
        assert not feed


async def test_what_takes_over_an_expired_lease_need_not_wait_for_its_marker(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        feed, where = await Feed.of(watcher, mesh)
        store = transport.key_value(where)
        await store.put("a.b", b"first", ttl_s=1, expected=0)
        with pytest.raises(Conflict):
            await store.put("a.b", b"second", ttl_s=1, expected=0)
        await feed.next()
        gone = await feed.next()
        assert gone.value is None

        revision = await store.put("a.b", b"second", ttl_s=30, expected=0)

        assert revision > gone.revision
        assert await live(store) == {"a.b": b"second"}
        assert await feed.next() == Change(key="a.b", value=b"second", revision=revision)
        with pytest.raises(Conflict):
            await store.put("a.b", b"third", ttl_s=1, expected=0)


async def test_a_lease_lives_on_if_it_is_renewed_or_put_for_good(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        feed, where = await Feed.of(watcher, mesh)
        store = transport.key_value(where)
        await store.put("a.good", b"lease", ttl_s=1)
        await store.put("a.good", b"for good")
        revision = await store.put("a.renewed", b"alive", ttl_s=2)
        await store.put("a.left", b"", ttl_s=1)
        for _ in range(6):
            await asyncio.sleep(0.4)
            revision = await store.put("a.renewed", b"alive", ttl_s=2, expected=revision)

        changes = [await feed.next() for _ in range(11)]
        assert {change.key for change in changes if change.value is None} == {"a.left"}
        assert await live(store) == {"a.good": b"for good", "a.renewed": b"alive"}
        entry = await store.get("a.renewed")
        assert entry is not None
        assert entry.revision == revision


async def test_a_create_at_any_moment_of_a_lease_and_its_marker_succeeds_or_conflicts(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(**LEASES))
        outcomes: list[str] = []
        until = time.monotonic() + SOON_S
        await store.put("a.b", b"", ttl_s=1)
        while outcomes.count("won") < 30 and time.monotonic() < until:
            try:
                await store.put("a.b", b"", ttl_s=1, expected=0)
                await store.delete("a.b")
                outcomes.append("won")
            except Conflict:
                outcomes.append("lost")
            await asyncio.sleep(0.005)

        assert outcomes[0] == "lost"
        assert outcomes[-1] == "won"


async def test_the_versions_of_a_key_are_kept_as_many_as_the_bucket_says(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(history=3))
        assert await store.history("a.b") == []
        began = time.time()
        revisions = [await store.put("a.b", str(at).encode()) for at in range(5)]
        await store.put("a.c", b"another")

        kept = await store.history("a.b")

        assert [(one.number, one.value) for one in kept] == [
            (revisions[at], str(at).encode()) for at in (2, 3, 4)
        ]
        assert all(began - 5 < one.at < time.time() + 5 for one in kept)
        assert [one.value for one in await store.history("a.c")] == [b"another"]


async def test_of_a_removed_key_nothing_is_kept_but_that_it_was_removed(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        store = transport.key_value(bucket(history=3))
        for value in (b"1", b"2"):
            await store.put("a.b", value)
        await store.delete("a.b")

        assert [one.value for one in await store.history("a.b")] == [None]


async def test_no_version_from_before_comes_back_when_one_expires(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        packets = Packets()
        await watcher.subscribe(f"{mesh.tenant}.feed.>", packets)
        feed = f"{mesh.tenant}.feed.{{{{wildcard(2)}}}}.{{{{wildcard(1)}}}}"
        store = transport.key_value(bucket(history=8, expiring=True, tokens=2, feed=feed))
        await store.put("a.b", b"for good")
        await store.put("a.b", b"for long", ttl_s=60)
        await store.put("a.b", b"for a second", ttl_s=1)

        told = [change_of(packet) for packet in await packets.take(4)]

        assert [one.value for one in told] == [b"for good", b"for long", b"for a second", None]
        assert [one.expired for one in told] == [False, False, False, True]
        for _ in range(8):
            assert await store.get("a.b") is None
            assert await live(store) == {}
            await asyncio.sleep(0.2)


# -- streams --


def log(mesh: Mesh, **settings: object) -> Log:
    return Log(
        name=new_name("log"),
        subjects=(f"{mesh.tenant}.log.>",),
        **settings,  # pyright: ignore[reportArgumentType]
    )


async def test_a_log_keeps_what_is_appended_in_its_order(mesh: Mesh) -> None:
    async with mesh.transport() as writer, mesh.transport() as reader:
        where = log(mesh)
        stream = writer.stream(where)
        sequences = [
            await stream.append(f"{mesh.tenant}.log.{name}", name.encode())
            for name in ("a", "b", "a", "c")
        ]

        everything = await reader.stream(where).read(f"{mesh.tenant}.log.>")
        only_a = await reader.stream(where).read(f"{mesh.tenant}.log.a")

        assert sequences == [1, 2, 3, 4]
        assert [packet.payload for packet in everything] == [b"a", b"b", b"a", b"c"]
        assert [packet.subject for packet in only_a] == [f"{mesh.tenant}.log.a"] * 2


async def test_a_log_keeps_what_others_publish_on_its_subjects_with_their_headers(
    mesh: Mesh,
) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        assert await stream.read(f"{mesh.tenant}.log.>") == []

        transport.publish(f"{mesh.tenant}.log.x", b"1", headers={"Lmos-Hops": "2"})
        await transport.flush()
        await stream.append(f"{mesh.tenant}.log.y", b"2")

        found = await stream.read(f"{mesh.tenant}.log.>")
        assert [packet.payload for packet in found] == [b"1", b"2"]
        assert found[0].headers["Lmos-Hops"] == "2"


async def test_a_message_id_that_comes_again_writes_nothing(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        subject = f"{mesh.tenant}.log.x"
        first = await stream.append(subject, b"1", message_id="one")
        await stream.append(subject, b"2", message_id="two")

        again = await stream.append(subject, b"3", message_id="one")

        assert again == first
        found = await stream.read(subject)
        assert [packet.payload for packet in found] == [b"1", b"2"]


async def test_read_gives_the_oldest_up_to_its_limit(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        for number in range(25):
            await stream.append(f"{mesh.tenant}.log.x", str(number).encode())

        found = await stream.read(f"{mesh.tenant}.log.>", limit=10)

        assert [int(packet.payload) for packet in found] == list(range(10))


async def test_a_log_is_read_on_after_what_was_read(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        assert await stream.last() == 0
        for number in range(25):
            await stream.append(f"{mesh.tenant}.log.x", str(number).encode())

        read: list[int] = []
        after = 0
        while found := await stream.read(f"{mesh.tenant}.log.x", limit=10, after=after):
            read += [int(packet.payload) for packet in found]
            after = int(found[-1].headers["Nats-Sequence"])

        assert read == list(range(25))
        assert after == 25
        assert await stream.last() == 25
        await stream.erase(f"{mesh.tenant}.log.>")
        assert await stream.last() == 25


async def test_a_log_says_when_it_kept_what_it_keeps(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        before = time.time()
        await stream.append(f"{mesh.tenant}.log.x", b"1")
        (found,) = await stream.read(f"{mesh.tenant}.log.>")

        at = unix_time(found.headers[KEPT_AT])
        assert at is not None
        assert before - 1 < at < time.time() + 1


async def test_a_log_that_is_dropped_keeps_nothing_until_it_is_used_again(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as other:
        where = log(mesh)
        stream, theirs = transport.stream(where), other.stream(where)
        subject = f"{mesh.tenant}.log.x"
        await stream.append(subject, b"1")
        assert len(await theirs.read(subject)) == 1

        await stream.drop()
        await stream.drop()
        transport.publish(subject, b"2")
        await transport.flush()

        assert await theirs.read(subject) == []
        await stream.append(subject, b"3")
        assert [packet.payload for packet in await theirs.read(subject)] == [b"3"]


async def test_a_log_forgets_the_oldest_of_more_than_it_keeps(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh, max_items=3))
        for number in range(5):
            await stream.append(f"{mesh.tenant}.log.x", str(number).encode())

        found = await stream.read(f"{mesh.tenant}.log.>")

        assert [packet.payload for packet in found] == [b"2", b"3", b"4"]


async def test_a_log_tells_what_it_keeps_once_with_its_sequence(mesh: Mesh) -> None:
    async with mesh.transport() as transport, mesh.transport() as watcher:
        packets = Packets()
        await watcher.subscribe(f"{mesh.tenant}.told.>", packets)
        where = Log(
            name=new_name("log"),
            subjects=(f"{mesh.tenant}.log.*.x.*",),
            feed=f"{mesh.tenant}.told.{{{{wildcard(2)}}}}.{{{{wildcard(1)}}}}",
        )
        stream = transport.stream(where)
        for payload, message_id in ((b"1", "one"), (b"again", "one"), (b"2", "two")):
            await stream.append(
                f"{mesh.tenant}.log.a.x.b", payload, message_id=message_id, headers={"Say": "x"}
            )

        told = await packets.take(2)

        assert [packet.payload for packet in told] == [b"1", b"2"]
        assert [packet.subject for packet in told] == [f"{mesh.tenant}.told.b.a"] * 2
        assert [packet.headers["Nats-Sequence"] for packet in told] == ["1", "2"]
        assert [packet.headers["Say"] for packet in told] == ["x", "x"]
        assert [packet.headers["Nats-Msg-Id"] for packet in told] == ["one", "two"]
        assert not packets


async def test_erase_removes_what_matches_and_nothing_else(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))
        for name in ("a.1", "b.1", "a.2"):
            await stream.append(f"{mesh.tenant}.log.{name}", name.encode())

        await stream.erase(f"{mesh.tenant}.log.a.*")

        found = await stream.read(f"{mesh.tenant}.log.>")
        assert [packet.payload for packet in found] == [b"b.1"]
        await stream.erase(f"{mesh.tenant}.log.nothing")


async def test_an_append_to_a_subject_that_the_log_does_not_record_is_refused(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(log(mesh))

        with pytest.raises(Unavailable):
            await stream.append(f"{mesh.tenant}.elsewhere", b"")


# -- work --


def work(mesh: Mesh, **settings: object) -> Log:
    return log(mesh, work=True, **settings)


async def taken(items: Sequence[WorkItem]) -> list[bytes]:
    return [item.packet.payload for item in items]


async def test_work_is_taken_once_and_gone_when_done(mesh: Mesh) -> None:
    async with mesh.transport() as boss, mesh.transport() as worker:
        where = work(mesh)
        for number in range(3):
            await boss.stream(where).append(f"{mesh.tenant}.log.x", str(number).encode())

        items = await worker.stream(where).take("w", limit=2)
        others = await boss.stream(where).take("w", limit=5)

        assert await taken(items) == [b"0", b"1"]
        assert await taken(others) == [b"2"]
        assert [item.delivery for item in [*items, *others]] == [1, 1, 1]
        assert items[0].packet.subject == f"{mesh.tenant}.log.x"
        for item in [*items, *others]:
            await item.done()
        assert await boss.stream(where).read(f"{mesh.tenant}.log.>") == []
        assert await worker.stream(where).take("w", wait_s=0.05) == []


async def test_take_returns_at_once_with_what_there_is(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(work(mesh))
        await stream.append(f"{mesh.tenant}.log.x", b"1")
        await stream.append(f"{mesh.tenant}.log.x", b"2")
        began = time.monotonic()

        items = await stream.take("w", limit=10, wait_s=3 * SOON_S)

        assert await taken(items) == [b"1", b"2"]
        assert time.monotonic() - began < SOON_S


async def test_take_waits_for_work(mesh: Mesh) -> None:
    async with mesh.transport() as boss, mesh.transport() as worker:
        where = work(mesh)
        stream = worker.stream(where)
        began = time.monotonic()
        assert await stream.take("w", wait_s=0.1) == []
        assert time.monotonic() - began > 0.08

        async with asyncio.TaskGroup() as tasks:
            began = time.monotonic()
            waiting = tasks.create_task(stream.take("w", limit=4, wait_s=3 * SOON_S))
            await asyncio.sleep(0.05)
            await boss.stream(where).append(f"{mesh.tenant}.log.x", b"1")

        assert await taken(waiting.result()) == [b"1"]
        assert time.monotonic() - began < SOON_S


async def test_work_given_back_comes_again_and_counts_its_deliveries(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(work(mesh))
        await stream.append(f"{mesh.tenant}.log.x", b"1")
        (item,) = await stream.take("w")

        await item.again()
        (second,) = await stream.take("w")
        began = time.monotonic()
        await second.again(delay_s=0.2)
        (third,) = await stream.take("w")

        assert time.monotonic() - began > 0.15
        assert [second.delivery, third.delivery] == [2, 3]
        await third.done()
        assert await stream.take("w", wait_s=0.05) == []


async def test_work_of_a_silent_worker_goes_to_another(mesh: Mesh) -> None:
    async with mesh.transport() as one, mesh.transport() as two:
        where = work(mesh, ack_wait_s=0.3)
        await one.stream(where).append(f"{mesh.tenant}.log.x", b"1")
        await one.stream(where).take("w")

        (again,) = await two.stream(where).take("w", wait_s=SOON_S)

        assert again.delivery == 2
        await again.done()


async def test_work_that_is_still_worked_on_is_not_given_away(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(work(mesh, ack_wait_s=1))
        await stream.append(f"{mesh.tenant}.log.x", b"1")
        (item,) = await stream.take("w")

        for _ in range(6):
            await asyncio.sleep(0.2)
            await item.working()
            assert await stream.take("w", wait_s=0.01) == []

        await item.done()
        assert await stream.take("w", wait_s=1.1) == []


async def test_work_that_can_never_be_done_is_not_tried_again(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(work(mesh, ack_wait_s=0.6))
        await stream.append(f"{mesh.tenant}.log.x", b"poison")
        (item,) = await stream.take("w")

        await item.never("it is malformed")

        assert await stream.take("w", wait_s=0.7) == []


async def test_work_is_tried_no_more_often_than_allowed(mesh: Mesh) -> None:
    async with mesh.transport() as transport:
        stream = transport.stream(work(mesh, ack_wait_s=0.2, max_deliver=2))
        await stream.append(f"{mesh.tenant}.log.x", b"1")
        for _ in range(2):
            (item,) = await stream.take("w", wait_s=SOON_S)
            await item.again()

        assert await stream.take("w", wait_s=0.3) == []


async def test_two_workers_of_one_name_share_and_lose_nothing(mesh: Mesh) -> None:
    async with mesh.transport() as one, mesh.transport() as two:
        where = work(mesh)
        for number in range(30):
            await one.stream(where).append(f"{mesh.tenant}.log.x", str(number).encode())
        done: list[int] = []

        async def work_off(transport: Transport) -> None:
            stream = transport.stream(where)
            while len(done) < 30:
                for item in await stream.take("w", limit=3, wait_s=0.1):
                    done.append(int(item.packet.payload))
                    await item.done()

        async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(work_off(one))
            tasks.create_task(work_off(two))

        assert sorted(done) == list(range(30))
