"""What comes to pass is told once, with its reason, whoever of those who tell it dies."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.errors import MeshError
from lmos_mesh.events import (
    INSTANCE_DIED,
    INSTANCE_JOINED,
    INSTANCE_LEFT,
    THING_CREATED,
    THING_DELETED,
    THING_UPDATED,
    CloudEvent,
    kept,
)
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import DEREGISTER, REGISTER, Deregister, Register
from tests.conftest import StartServer
from tests.integration.processes import Deployment, plain_client, until

SOON_S = 15.0

AGENT = """
from lmos_mesh import Agent

agent = Agent("billing", description="Answers questions about bills.")

@agent.capability()
async def answer(question: str) -> str:
    return "Your bill is 39.99 €."

agent.run()
"""


def record(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "capabilities": [{"id": "act", "version": "1.0.0"}], **more}


async def told(mesh: Mesh, **more: Any) -> list[CloudEvent]:
    async with aclosing(kept(mesh.bus, mesh.bus.tenant, **more)) as events:
        return [event async for _, event in events]


async def count(mesh: Mesh, number: int) -> bool:
    return len(await told(mesh)) >= number


async def exactly(mesh: Mesh, number: int) -> list[CloudEvent]:
    """That many events, and no more after a while in which a second one would come."""
    await until(count, mesh, number, within_s=SOON_S)
    await asyncio.sleep(0.5)
    events = await told(mesh)
    assert len(events) == number, [
        (one.type, one.subject, one.data.get("reason")) for one in events
    ]
    return events


async def test_what_becomes_of_a_thing_is_told_once_by_two_replicas(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        await mesh.bus.call(REGISTER, Register(thing=record("x")))
        await mesh.bus.call(REGISTER, Register(thing=record("x")))
        await mesh.bus.call(REGISTER, Register(thing=record("x", description="New.")))
        await mesh.bus.call(DEREGISTER, Deregister(name="x"))
        await mesh.bus.call(REGISTER, Register(thing=record("x"), ttl_s=1))
        events = await exactly(mesh, 5)

    assert [one.type for one in events] == [
        THING_CREATED,
        THING_UPDATED,
        THING_DELETED,
        THING_CREATED,
        THING_DELETED,
    ]
    assert {one.subject for one in events} == {f"urn:lmos-mesh:{tenant}:x:stable"}
    assert events[0].data["description"]["title"] == "x"
    assert events[1].data["diff"] == {"description": "New."}
    assert [one.data.get("reason") for one in events if one.type == THING_DELETED] == [
        "removed",
        "expired",
    ]


async def test_on_the_public_subject_each_event_is_heard_once(
    services: Deployment, tenant: str
) -> None:
    async with plain_client(services.url) as client, services.client(tenant) as mesh:
        feed = await client.subscribe(f"lmos.{tenant}.event.registry.*")
        await client.flush()
        await mesh.bus.call(REGISTER, Register(thing=record("x")))
        message = await feed.next_msg(timeout=SOON_S)
        with pytest.raises(TimeoutError):
            await feed.next_msg(timeout=0.5)

    assert message.subject == f"lmos.{tenant}.event.registry.thing_created"
    assert message.headers["ce-type"] == THING_CREATED
    assert message.headers["ce-specversion"] == "1.0"
    assert json.loads(message.data)["name"] == "x"


@pytest.mark.parametrize(
    ("leave", "type", "reason"),
    [("terminate", INSTANCE_LEFT, "goodbye"), ("kill", INSTANCE_DIED, "disconnected")],
)
async def test_it_is_told_why_an_instance_is_gone(
    services: Deployment, tenant: str, leave: str, type: str, reason: str
) -> None:
    process = services.agent(AGENT, name="billing", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        getattr(process, leave)()
        await process.ended()

        async def gone() -> bool:
            return any(one.type == type for one in await told(mesh))

        await until(gone, within_s=SOON_S)
        await asyncio.sleep(0.5)
        events = [one for one in await told(mesh) if "instance" in one.type]

    assert [one.type for one in events] == [INSTANCE_JOINED, type]
    assert {one.subject for one in events} == {process.instance}
    assert events[1].data["reason"] == reason
    assert [one["name"] for one in events[1].data["things"]] == ["billing"]


async def test_an_instance_that_falls_silent_has_died_of_its_lease(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(AGENT, name="billing", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        process.freeze()
        try:

            async def died() -> bool:
                return any(one.type == INSTANCE_DIED for one in await told(mesh))

            await until(died, within_s=SOON_S)
        finally:
            process.thaw()
        events = [one for one in await told(mesh) if one.type == INSTANCE_DIED]
        # Of a frozen process that reads nothing the server may be tired first.
        (reason,) = (one.data["reason"] for one in events)
        assert reason in ("lease expired", "disconnected")

        async def back() -> bool:
            return [one.type for one in await told(mesh)].count(INSTANCE_JOINED) == 2

        await until(back, within_s=SOON_S)
    process.terminate()
    await process.ended()


async def test_a_replica_that_starts_tells_nothing_that_was_told(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        for at in range(20):
            await mesh.bus.call(REGISTER, Register(thing=record(f"x{at}")))
        await exactly(mesh, 20)

        third = await services.start("registry").ready()
        await asyncio.sleep(2.0)

        assert len(await told(mesh)) == 20
        third.terminate()
        await third.ended()


async def test_no_event_is_lost_with_the_replica_that_made_the_change(
    start_nats: StartServer, tmp_path: Path, tenant: str
) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        deployment.services("registry", "registry")
        acknowledged: list[str] = []
        async with deployment.client(tenant) as mesh:
            for round in range(3):
                async with asyncio.TaskGroup() as tasks:
                    for at in range(30):
                        name = f"x{round}-{at}"
                        tasks.create_task(register(mesh, name, acknowledged))
                    await asyncio.sleep(0.02)
                    deployment.processes[-1].kill()
                await deployment.start("registry").ready()

            async def all_told() -> bool:
                created = [one.data["name"] for one in await told(mesh, types={THING_CREATED})]
                return set(created) >= set(acknowledged)

            await until(all_told, within_s=SOON_S)
            await asyncio.sleep(1.5)
            created = Counter(one.data["name"] for one in await told(mesh, types={THING_CREATED}))
        assert max(created.values()) == 1
        # About half of them were asked of the replica that was killed, each time.
        assert len(acknowledged) > 20
    finally:
        deployment.stop()


async def register(mesh: Mesh, name: str, acknowledged: list[str]) -> None:
    try:
        await mesh.bus.call(REGISTER, Register(thing=record(name)), timeout_s=2.0)
    except MeshError:
        return  # the replica that was asked is the one that was killed
    acknowledged.append(name)


async def test_what_changed_while_no_registry_was_there_is_told_when_one_is(
    start_nats: StartServer, tmp_path: Path, tenant: str
) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        first = deployment.service("registry")
        async with deployment.client(tenant) as mesh:
            await mesh.bus.call(REGISTER, Register(thing=record("stays")))
            await mesh.bus.call(REGISTER, Register(thing=record("changes")))
            await mesh.bus.call(REGISTER, Register(thing=record("expires"), ttl_s=2))
            await exactly(mesh, 3)
            first.kill()
            async with plain_client(server.url) as client:
                bucket = await client.jetstream().key_value("lmos_registry")
                key = f"{tenant}.changes.stable"
                value = json.loads((await bucket.get(key)).value)
                value["description"] = "Changed."
                await bucket.put(key, json.dumps(value).encode())
            await asyncio.sleep(2.5)

            await deployment.start("registry").ready()
            events = await exactly(mesh, 5)

        assert {(one.type, one.data["name"]) for one in events[3:]} == {
            (THING_UPDATED, "changes"),
            (THING_DELETED, "expires"),
        }
        diffs = [one.data["diff"] for one in events if one.type == THING_UPDATED]
        assert diffs == [{"description": "Changed."}]
    finally:
        deployment.stop()


async def test_a_restart_of_the_bus_is_nobodys_death(
    start_nats: StartServer, tmp_path: Path, tenant: str
) -> None:
    server = await start_nats()
    deployment = Deployment(server.url, tmp_path)
    try:
        deployment.services("registry", "registry")
        agent = deployment.agent(AGENT, name="billing", LMOS_TENANT=tenant)
        shown: list[dict[str, Any]] = []
        follower = events_command(server.url, tenant)
        async with deployment.client(tenant) as mesh:
            await exactly(mesh, 2)
            await server.kill()
            await server.start()
            await until(registers, mesh, "after", within_s=20.0)
            # As long as a lease may be away before its process is told to be gone.
            await asyncio.sleep(9.0)
            events = await told(mesh)
        assert follower.stdout is not None
        lines = [await asyncio.to_thread(follower.stdout.readline) for _ in events]
        follower.terminate()
        rest, _ = await asyncio.to_thread(follower.communicate, timeout=10)
        shown = [json.loads(line) for line in [*lines, *rest.splitlines()]]
        assert agent.alive
        assert Counter(one.type for one in events) == {INSTANCE_JOINED: 1, THING_CREATED: 2}
        assert [one["id"] for one in shown] == [one.id for one in events]
    finally:
        deployment.stop()


async def registers(mesh: Mesh, name: str) -> bool:
    acknowledged: list[str] = []
    await register(mesh, name, acknowledged)
    return bool(acknowledged)


def events_command(url: str, tenant: str) -> "subprocess.Popen[str]":
    code = (
        "from lmos_mesh.cli.events import events;"
        "events(kinds=[], since=0, follow=True, as_json=True, mesh=None)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "LMOS_NATS_URL": url, "LMOS_TENANT": tenant},
        stdout=subprocess.PIPE,
        text=True,
    )
