"""What `tests/contract` does not ask: the wildcard matcher, and what only memory promises."""

import asyncio
import json
from functools import lru_cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmos_mesh import subjects
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport, matches
from lmos_mesh.transport import CHANGE_MARKER, Bucket, Log, Packet, change_of

tokens = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5).map(".".join)
patterns = st.tuples(
    st.lists(st.sampled_from(["a", "b", "ab", "*"]), min_size=1, max_size=4).map(".".join),
    st.sampled_from(["", ".>"]),
).map("".join)


@lru_cache
def subjects_up_to(length: int) -> frozenset[str]:
    """Every subject that the strategy above can make."""
    found = {"a", "b", "ab"}
    for _ in range(length - 1):
        found |= {f"{one}.{token}" for one in found for token in ("a", "b", "ab")}
    return frozenset(found)


def covered(pattern: str) -> frozenset[str]:
    """The subjects that a pattern covers, found the slow way: by writing them all out."""
    found = {""}
    for token in pattern.split("."):
        if token == ">":
            return frozenset(
                one
                for one in subjects_up_to(5)
                if any(one.startswith(f"{start}.") for start in found)
            )
        found = {
            f"{start}.{one}".lstrip(".")
            for start in found
            for one in (("a", "b", "ab") if token == "*" else (token,))
        }
    return frozenset(found)


@given(patterns, tokens)
@example("a.>", "a")
@example("*.>", "a.b")
@example("a.*", "a")
@example("a", "a.b")
def test_a_pattern_covers_what_writing_it_out_covers(pattern: str, subject: str) -> None:
    assert matches(pattern, subject) == (subject in covered(pattern))


def test_a_lone_tail_covers_everything() -> None:
    assert all(matches(">", subject) for subject in subjects_up_to(3))


async def test_transports_without_an_inbox_of_their_own_do_not_share_one() -> None:
    broker = MemoryBroker()
    one, two = MemoryTransport(broker), MemoryTransport(broker)
    await one.subscribe("x", lambda packet: one.publish(packet.reply, packet.payload))

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(one.request("x", b"one", timeout_s=1))
        second = tasks.create_task(two.request("x", b"two", timeout_s=1))

    assert (first.result().payload, second.result().payload) == (b"one", b"two")


async def test_a_closed_connection_is_told_as_a_server_tells_it() -> None:
    broker = MemoryBroker()
    watcher = MemoryTransport(broker)
    told: list[Packet] = []
    await watcher.subscribe(subjects.DISCONNECTS, told.append)
    leaver = MemoryTransport(broker, name=subjects.connection_name("t", "a.b"))

    await leaver.close()
    await leaver.close()
    await watcher.flush()

    (event,) = told
    client = json.loads(event.payload)["client"]
    server = json.loads(event.payload)["server"]["id"]
    assert f"{server}:{client['id']}" == leaver.connection
    assert subjects.instance_of_connection(client["name"]) == ("t", "a.b")


async def test_whoever_opens_a_bucket_or_a_log_by_name_gets_the_same() -> None:
    broker = MemoryBroker()
    one, two = MemoryTransport(broker), MemoryTransport(broker)
    await one.key_value(Bucket(name="b")).put("k", b"v")
    log = Log(name="l", subjects=("l.>",))
    await one.stream(log).append("l.x", b"item")

    entry = await two.key_value(Bucket(name="b")).get("k")
    assert entry is not None
    assert entry.value == b"v"
    assert [packet.payload for packet in await two.stream(log).read("l.>")] == [b"item"]


async def test_two_brokers_have_nothing_in_common() -> None:
    one, two = MemoryTransport(MemoryBroker()), MemoryTransport(MemoryBroker())
    heard: list[Packet] = []
    await two.subscribe(">", heard.append)

    one.publish("x", b"")
    await one.key_value(Bucket(name="b")).put("k", b"v")
    await two.flush()

    assert heard == []
    assert await two.key_value(Bucket(name="b")).get("k") is None


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ({}, b"x"),
        ({"KV-Operation": "PUT"}, b"x"),
        ({"KV-Operation": "DEL"}, None),
        ({"KV-Operation": "PURGE"}, None),
        ({CHANGE_MARKER: "MaxAge"}, None),
        ({CHANGE_MARKER: "Remove"}, None),
    ],
)
def test_a_feeds_packet_says_what_has_changed(headers: dict[str, str], value: bytes | None) -> None:
    packet = Packet(
        "lmos.t.changed.lease.a",
        b"x",
        headers | {"Nats-Subject": "$KV.lmos_leases.t.a.b", "Nats-Sequence": "7"},
    )

    change = change_of(packet)

    assert (change.key, change.value, change.revision) == ("t.a.b", value, 7)
