"""Every process answers as a NATS micro service, as ADR-32 has it."""

import json
import re
import socket
from typing import Any

import pytest

from lmos_mesh.micro import MicroEndpoint, MicroService, Tally, announce
from lmos_mesh.service import announce_service
from tests.conftest import MemoryMesh

service = MicroService(
    name="lmos-router",
    id="router-1",
    version="1.2.3",
    description="Which agent should answer",
    metadata={"tenant": "demo"},
    endpoints=(
        MicroEndpoint(name="decide", subject="lmos.*.router.decide", queue_group="lmos-router"),
    ),
    tally=lambda name: (
        Tally(requests=4, errors=1, busy_ns=1000, last_error="500:no")
        if name == "decide"
        else Tally()
    ),
)


def test_ping_says_who_it_is_and_nothing_else() -> None:
    assert service.ping() == {
        "type": "io.nats.micro.v1.ping_response",
        "name": "lmos-router",
        "id": "router-1",
        "version": "1.2.3",
        "metadata": {"tenant": "demo"},
    }


def test_info_adds_what_it_answers() -> None:
    info = service.info()

    assert info["type"] == "io.nats.micro.v1.info_response"
    assert info["description"] == "Which agent should answer"
    assert info["endpoints"] == [
        {
            "name": "decide",
            "subject": "lmos.*.router.decide",
            "queue_group": "lmos-router",
            "metadata": {},
        }
    ]


def test_stats_adds_what_it_has_done() -> None:
    stats = service.stats()

    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", stats["started"])
    assert stats["endpoints"] == [
        {
            "name": "decide",
            "subject": "lmos.*.router.decide",
            "queue_group": "lmos-router",
            "num_requests": 4,
            "num_errors": 1,
            "last_error": "500:no",
            "processing_time": 1000,
            "average_processing_time": 250,
        }
    ]


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
@pytest.mark.parametrize("of", ["", ".lmos-router", ".lmos-router.router-1"])
async def test_it_answers_to_all_by_name_and_by_id(
    memory_mesh: MemoryMesh, verb: str, of: str
) -> None:
    async with memory_mesh.transport() as served, memory_mesh.transport() as client:
        await announce(served, service)

        packet = await client.request(f"$SRV.{verb}{of}", b"", timeout_s=1)

    answer: dict[str, Any] = json.loads(packet.payload)
    assert answer["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
    assert answer["id"] == "router-1"


async def test_verbs_it_does_not_know_are_left_alone(memory_mesh: MemoryMesh) -> None:
    async with memory_mesh.transport() as served, memory_mesh.transport() as client:
        await announce(served, service)

        client.publish("$SRV.DANCE", b"")
        client.publish("$SRV.PING", b"")  # nobody to answer to
        packet = await client.request("$SRV.PING", b"", timeout_s=1)

    assert json.loads(packet.payload)["id"] == "router-1"


async def test_a_service_of_the_mesh_counts_its_calls(memory_mesh: MemoryMesh) -> None:
    async with memory_mesh.bus("router-1") as bus, memory_mesh.bus() as client:
        await announce_service(bus, "router", "Which agent should answer", ["decide", "embed"])
        bus.tally("router.decide").requests += 2

        packet = await client.transport.request("$SRV.STATS.lmos-router", b"", timeout_s=1)

    stats: dict[str, Any] = json.loads(packet.payload)
    counted = {one["name"]: one["num_requests"] for one in stats["endpoints"]}
    assert counted == {"decide": 2, "embed": 0}
    assert stats["metadata"] == {"tenant": memory_mesh.tenant, "host": socket.gethostname()}
