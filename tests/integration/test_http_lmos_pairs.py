"""What clients of LMOS's operator and runtime ask, and what they get: pairs kept as JSON."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx

from lmos_mesh.bus import route
from lmos_mesh.calls import Call
from lmos_mesh.messages import FIND_THINGS, FindThings, FoundThing, ThingsFound
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import KINDS
from lmos_mesh.things import Capability
from lmos_mesh_http import HttpAdapter, HttpSettings
from tests.conftest import MemoryMesh
from tests.integration.processes import until

KEPT = json.loads((Path(__file__).parents[1] / "data" / "lmos" / "rest.json").read_text())
PAIRS: list[dict[str, Any]] = KEPT["pairs"]
ANY = "<any>"
SOON_S = 15.0

BILLING = FoundThing(
    name="billing",
    version="1.0.0",
    summary="Answers questions about bills.",
    capabilities=(
        Capability(id="view-bill-id", name="view-bill", description="Shows a bill."),
        Capability(id="pay-bill", name="pay-bill", version="2.0.0"),
    ),
    channels=("chat", "web"),
    live=True,
)


async def find(request: FindThings, call: Call) -> ThingsFound:
    """A registry that knows one agent of one tenant."""
    fits = (
        call.tenant in ("acme", "fresh")
        and request.subset == "stable"
        and request.channel in (None, *BILLING.channels)
    )
    return ThingsFound(things=(BILLING,) if fits else (), total=int(fits), revision=1)


@asynccontextmanager
async def serving(mesh: MemoryMesh) -> AsyncGenerator[httpx.AsyncClient]:
    """An adapter that has read the resources."""
    adapter = HttpAdapter(HttpSettings(http_port=0, tenant=mesh.tenant))
    ready = asyncio.Event()
    async with mesh.bus() as behind, mesh.bus() as bus:
        await behind.serve("registry", [route(FIND_THINGS, find)])
        store = ResourceStore(behind)
        for one in KEPT["resources"]:
            await store.put(KINDS[one["kind"]].model_validate(one), expected=0)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(adapter.run(bus, ready.set))
            await ready.wait()
            try:
                async with httpx.AsyncClient(base_url=adapter.url, timeout=SOON_S) as client:
                    await until(has_read, client, within_s=SOON_S)
                    yield client
            finally:
                task.cancel()


async def has_read(client: httpx.AsyncClient) -> bool:
    return (await client.get("/apis/v1/tenants/x/channels")).status_code == 200


def alike(told: Any, wanted: Any) -> bool:
    """Whether they are equal, whatever is where `wanted` does not mind."""
    if wanted == ANY:
        return isinstance(told, str) and told != ""
    if isinstance(wanted, dict) and isinstance(told, dict):
        theirs, ours = cast("dict[str, Any]", wanted), cast("dict[str, Any]", told)
        return theirs.keys() == ours.keys() and all(alike(ours[one], theirs[one]) for one in ours)
    if isinstance(wanted, list) and isinstance(told, list):
        expected, given = cast("list[Any]", wanted), cast("list[Any]", told)
        return len(expected) == len(given) and all(map(alike, given, expected))
    return bool(told == wanted)


async def test_clients_of_lmos_get_what_they_expect(memory_mesh: MemoryMesh) -> None:
    wrong: list[str] = []
    async with serving(memory_mesh) as client:
        for pair in PAIRS:
            request, response = pair["request"], pair["response"]
            reply = await client.get(request["path"], headers=request["headers"])
            assert reply.headers["content-type"] == "application/json", pair["about"]
            told = reply.json()
            if reply.status_code != response["status"] or not alike(told, response["body"]):
                wrong.append(f"{pair['about']}: {reply.status_code} {json.dumps(told, indent=1)}")

    assert not wrong, "\n".join(wrong)


async def test_who_applied_no_channel_is_listed_those_that_agents_name(
    memory_mesh: MemoryMesh,
) -> None:
    async with serving(memory_mesh) as client:
        listed = (await client.get("/apis/v1/tenants/fresh/channels")).json()

    assert [one["metadata"]["labels"]["channel"] for one in listed] == ["chat", "web"]


async def test_a_header_that_cannot_be_used_is_refused_as_the_runtime_does(
    memory_mesh: MemoryMesh,
) -> None:
    async with serving(memory_mesh) as client:
        reply = await client.get("/apis/v1/tenants/acme/channels", headers={"x-subset": "x" * 200})

    assert reply.status_code == 400
    assert reply.json()["errorCode"] == "INVALID_REQUEST"


def test_no_host_is_ever_empty() -> None:
    hosts = [
        capability["host"]
        for pair in PAIRS
        if pair["response"]["status"] == 200 and isinstance(pair["response"]["body"], dict)
        for group in pair["response"]["body"].get("spec", {}).get("capabilityGroups", ())
        for capability in group["capabilities"]
    ]

    assert len(hosts) == 4
    assert all(hosts)
