"""The registry as deployed: two replicas that keep one truth about who is there."""

import asyncio
import json
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest

from lmos_mesh.description import describe, description_faults
from lmos_mesh.errors import (
    AgentNotFound,
    Conflict,
    InvalidDescription,
    InvalidMessage,
    MeshError,
    NotFound,
)
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_HISTORY,
    GET_THING,
    REGISTER,
    SEARCH_THINGS,
    Deregister,
    FindThings,
    GetHistory,
    GetThing,
    Register,
    SearchThings,
)
from lmos_mesh.thing_faults import thing_from
from tests.integration.processes import (
    Deployment,
    find_one,
    instances_of,
    plain_client,
    until,
)

SOON_S = 15.0

AGENT = """
from lmos_mesh import Agent

agent = Agent(
    "billing",
    description="Answers questions about bills.",
    version={version!r},
    channels={channels!r},
)

@agent.capability(id={capability!r}, version="1.4.2", examples=["show my bill"])
async def answer(question: str) -> str:
    return "Your bill is 39.99 €."

agent.run()
"""


def agent(
    version: str = "1.0.0", channels: tuple[str, ...] = ("*",), capability: str = "view-bill"
) -> str:
    return AGENT.format(version=version, channels=channels, capability=capability)


def record(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"Is {name}.",
        "capabilities": [{"id": "act", "version": "1.0.0"}],
        **more,
    }


async def names(mesh: Mesh, **conditions: Any) -> list[str]:
    return [one.name for one in await mesh.find(**conditions)]


# -- joining and being found --


@pytest.fixture(scope="module")
def billing(services: Deployment) -> Generator[str]:
    """A tenant with one agent process in it."""
    tenant = "registry-tests"
    process = services.agent(agent("1.2.0", ("web", "ivr")), name="billing", LMOS_TENANT=tenant)
    yield tenant
    process.terminate()
    process.wait()


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, True),
        ({"name": "billing"}, True),
        ({"name": "weather"}, False),
        ({"capability": "view-bill"}, True),
        ({"capability": "pay"}, False),
        ({"capability": "view-bill", "version": "^1.2"}, True),
        ({"capability": "view-bill", "version": "[2.0,3.0["}, False),
        ({"channel": "ivr"}, True),
        ({"channel": "mobile"}, False),
        ({"subset": "stable"}, True),
        ({"subset": "canary"}, False),
        ({"text": "questions about my bill"}, True),
        ({"text": "rain"}, False),
        ({"live": False}, False),
        ({"live": None}, True),
    ],
)
async def test_an_agent_is_found_by_what_it_is(
    services: Deployment, billing: str, conditions: dict[str, Any], found: bool
) -> None:
    async with services.client(billing) as mesh:
        assert await names(mesh, **conditions) == (["billing"] if found else [])


async def test_other_tenants_do_not_see_it(services: Deployment, billing: str, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        assert await names(mesh, live=None) == []


async def test_it_is_told_with_its_instance_and_its_description(
    services: Deployment, billing: str
) -> None:
    async with services.client(billing) as mesh:
        found = await mesh.bus.call(GET_THING, GetThing(name="billing"))

    assert (found.version, found.live, found.channels) == ("1.2.0", True, ("web", "ivr"))
    assert [one.version for one in found.instances] == ["1.2.0"]
    assert services.of(found.instances[0].instance).pid == found.instances[0].pid
    assert found.description is not None
    assert description_faults(found.description) == []


async def test_what_is_stored_is_a_valid_description_in_plain_json(
    services: Deployment, billing: str
) -> None:
    async with plain_client(services.url) as client:
        bucket = await client.jetstream().key_value("lmos_registry")
        stored = await bucket.get(f"{billing}.billing.stable")

    assert stored.value is not None
    description = json.loads(stored.value)
    assert description_faults(description) == []
    assert "https://www.w3.org/2022/wot/td/v1.1" in description["@context"]
    assert description["title"] == "billing"


async def test_a_range_that_cannot_be_read_is_refused(services: Deployment, billing: str) -> None:
    async with services.client(billing) as mesh:
        with pytest.raises(InvalidMessage, match="/version"):
            await mesh.find(capability="view-bill", version="latest greatest")


async def test_an_unknown_name_is_a_404_that_names_what_is_near(
    services: Deployment, billing: str
) -> None:
    async with services.client(billing) as mesh:
        with pytest.raises(AgentNotFound, match="did you mean billing") as missing:
            await mesh.bus.call(GET_THING, GetThing(name="biling"))
        with pytest.raises(AgentNotFound, match="it is there as stable"):
            await mesh.bus.call(GET_THING, GetThing(name="billing", subset="canary"))

    assert missing.value.details["near"] == ["billing"]


async def test_changes_are_told_in_plain_json_to_whoever_listens(
    services: Deployment, tenant: str
) -> None:
    async with plain_client(services.url) as client:
        feed = await client.subscribe(f"lmos.{tenant}.changed.registry.*.*")
        await client.flush()
        async with services.client(tenant) as mesh:
            await mesh.bus.call(REGISTER, Register(thing=record("news")))
            await mesh.bus.call(DEREGISTER, Deregister(name="news"))

        put = await feed.next_msg(timeout=SOON_S)
        gone = await feed.next_msg(timeout=SOON_S)

    assert put.subject == gone.subject == f"lmos.{tenant}.changed.registry.news.stable"
    assert json.loads(put.data)["title"] == "news"
    assert not gone.data
    assert gone.headers is not None
    assert gone.headers["KV-Operation"] in ("DEL", "PURGE")


# -- being refused --


async def test_a_bad_record_is_refused_with_every_reason_at_once(
    services: Deployment, tenant: str
) -> None:
    bad = record(
        "",
        version="one",
        capabilities=[
            {"id": "a", "version": "1.x"},
            {"id": "a", "examples": ["x", "x"]},
            {"name": ""},
            7,
        ],
        supported_channels="web",
    )
    async with services.client(tenant) as mesh:
        with pytest.raises(InvalidDescription) as refused:
            await mesh.bus.call(REGISTER, Register(thing=bad))
        assert await names(mesh, live=None) == []

    assert {fault["field"] for fault in refused.value.details["faults"]} == {
        "/name",
        "/version",
        "/capabilities/0/version",
        "/capabilities/1/id",
        "/capabilities/1/examples/1",
        "/capabilities/2/id",
        "/capabilities/3",
        "/supported_channels",
    }
    assert all(fault["description"] for fault in refused.value.details["faults"])


async def test_a_bad_description_is_refused_with_every_reason_at_once(
    services: Deployment, tenant: str
) -> None:
    good = describe(thing_from(record("good", tenant=tenant)))
    bad = {**good, "title": 7, "actions": {"act": {"forms": "none"}}, "created": "yesterday"}
    async with services.client(tenant) as mesh:
        with pytest.raises(InvalidDescription) as refused:
            await mesh.bus.call(REGISTER, Register(description=bad))

    fields = {fault["field"] for fault in refused.value.details["faults"]}
    assert {"/title", "/created"} <= fields
    assert any(field.startswith("/actions/act") for field in fields)


async def test_a_description_of_another_make_is_taken_and_missing_security_filled_in(
    services: Deployment, tenant: str
) -> None:
    description = describe(thing_from(record("mine", tenant=tenant)))
    del description["security"], description["securityDefinitions"]
    async with services.client(tenant) as mesh:
        registered = await mesh.bus.call(REGISTER, Register(description=description))
        assert await names(mesh, live=False) == ["mine"]

    assert "security" in registered.notes[0]


@pytest.mark.parametrize("both", [False, True])
async def test_a_registration_is_of_one_thing(
    services: Deployment, tenant: str, both: bool
) -> None:
    one = record("x")
    request = Register(thing=one, description=one) if both else Register()
    async with services.client(tenant) as mesh:
        with pytest.raises(InvalidMessage, match="either"):
            await mesh.bus.call(REGISTER, request)


async def test_nobody_registers_in_another_tenant(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        stolen = describe(thing_from(record("thief", tenant="other")))
        for request, at in (
            (Register(thing=record("spy", tenant="other")), "/tenant"),
            (Register(description=stolen), "/id"),
        ):
            with pytest.raises(InvalidDescription, match=f"'other'.*{tenant}") as refused:
                await mesh.bus.call(REGISTER, request)
            assert [one["field"] for one in refused.value.details["faults"]] == [at]
        assert await names(mesh, live=None) == []
    async with services.client("other") as mesh:
        assert await names(mesh, live=None) == []


async def test_a_stale_update_is_refused(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        first = await mesh.bus.call(REGISTER, Register(thing=record("x")))
        newer = record("x", description="Newer.")
        second = await mesh.bus.call(REGISTER, Register(thing=newer, revision=first.revision))
        with pytest.raises(Conflict, match=f"revision {second.revision}"):
            await mesh.bus.call(
                REGISTER, Register(thing=record("x", description="!"), revision=first.revision)
            )
        with pytest.raises(Conflict):
            await mesh.bus.call(REGISTER, Register(thing=record("x"), revision=0))


async def test_registering_the_same_again_changes_nothing(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        first = await mesh.bus.call(REGISTER, Register(thing=record("x")))
        again = await mesh.bus.call(REGISTER, Register(thing=record("x")))

    assert again.revision == first.revision


def test_a_process_with_a_bad_agent_ends_with_one_line_that_says_everything(
    services: Deployment, tenant: str
) -> None:
    source = """
    from lmos_mesh import Agent

    agent = Agent("", version="one")

    @agent.capability(id="a")
    async def first() -> str: ...

    @agent.capability(id="a", version="two")
    async def second() -> str: ...

    agent.run()
    """
    process = services.start_agent(source, name="bad", LMOS_TENANT=tenant)
    process.expected = "is refused"
    process.told_to_end = True

    assert process.wait() == 1

    said = process.log()
    assert "Traceback" not in said
    for reason in ("/name", "/version", "/capabilities/1/id", "/capabilities/1/version"):
        assert reason in said


# -- leaving --


async def test_a_thing_that_nobody_serves_can_be_forgotten(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        await mesh.bus.call(REGISTER, Register(thing=record("x")))
        gone = await mesh.bus.call(DEREGISTER, Deregister(name="x"))
        await until(is_unknown, mesh, "x", within_s=SOON_S)
        with pytest.raises(AgentNotFound):
            await mesh.bus.call(DEREGISTER, Deregister(name="x"))

    assert gone.gone


async def is_unknown(mesh: Mesh, name: str) -> bool:
    return name not in await names(mesh, live=None)


async def test_an_agent_that_runs_and_was_forgotten_registers_again(
    services: Deployment, tenant: str
) -> None:
    process = services.agent(agent(), LMOS_TENANT=tenant, LMOS_AGENT_CHECK_S="0.3")
    async with services.client(tenant) as mesh:
        before = await mesh.bus.call(GET_THING, GetThing(name="billing"))
        await mesh.bus.call(DEREGISTER, Deregister(name="billing"))

        await until(is_described_as, mesh, "1.0.0", within_s=SOON_S)

        after = await mesh.bus.call(GET_THING, GetThing(name="billing"))
        assert after.live
        assert after.description == before.description
    process.terminate()
    assert await process.ended() == 0


async def test_an_agent_stays_while_another_instance_serves_it(
    services: Deployment, tenant: str
) -> None:
    first = services.agent(agent(), name="billing", LMOS_TENANT=tenant)
    second = services.agent(agent(), name="billing", LMOS_TENANT=tenant)
    async with services.client(tenant) as mesh:
        assert await instances_of(mesh, "billing") == {first.instance, second.instance}

        first.terminate()
        assert await first.ended() == 0
        assert await instances_of(mesh, "billing") == {second.instance}

        second.terminate()
        assert await second.ended() == 0
        assert await find_one(mesh, "billing", live=None) is None


async def test_the_highest_version_that_is_live_describes_the_agent(
    services: Deployment, tenant: str
) -> None:
    new = services.agent(agent("2.0.0", capability="pay"), name="new", LMOS_TENANT=tenant)
    old = services.agent(agent("1.0.0"), name="old", LMOS_TENANT=tenant, LMOS_AGENT_CHECK_S="0.2")
    async with services.client(tenant) as mesh:
        found = await find_one(mesh, "billing")
        assert found is not None
        assert found.version == "2.0.0"
        assert [one.id for one in found.capabilities] == ["pay"]
        assert sorted(one.version for one in found.instances) == ["1.0.0", "2.0.0"]

        new.terminate()
        assert await new.ended() == 0
        await until(is_described_as, mesh, "1.0.0", within_s=SOON_S)
        found = await find_one(mesh, "billing")
        assert found is not None
        assert [one.id for one in found.capabilities] == ["view-bill"]

    old.terminate()
    assert await old.ended() == 0


async def is_described_as(mesh: Mesh, version: str) -> bool:
    found = await find_one(mesh, "billing")
    return found is not None and found.version == version


# -- replicas --


async def test_replicas_share_the_work_and_agree(services: Deployment, tenant: str) -> None:
    """Each replica has answered, and all gave the same answer."""
    replicas = [one for one in services.processes if one.name == "registry" and one.alive]
    assert len(replicas) == 2
    async with services.client(tenant) as mesh:
        before = {one.instance: await finds_answered(mesh, one.instance) for one in replicas}
        for at in range(10):
            await mesh.bus.call(REGISTER, Register(thing=record(f"thing-{at}")))
            await until(has, mesh, f"thing-{at}", within_s=SOON_S)
        answers = {tuple(await names(mesh, live=None)) for _ in range(40)}
        after = {one.instance: await finds_answered(mesh, one.instance) for one in replicas}

    assert len(answers) == 1
    assert len(answers.pop()) == 10
    for one in replicas:
        assert after[one.instance] > before[one.instance]


async def has(mesh: Mesh, name: str) -> bool:
    return name in await names(mesh, live=None)


async def finds_answered(mesh: Mesh, instance: str) -> int:
    """How many `find`s a replica has answered, as it says itself."""
    packet = await mesh.bus.transport.request(
        f"$SRV.STATS.lmos-registry.{instance}", b"", timeout_s=SOON_S
    )
    stats = json.loads(packet.payload)
    return next(one["num_requests"] for one in stats["endpoints"] if one["name"] == "find")


async def test_what_one_replica_was_told_another_knows_when_the_first_is_killed(
    services: Deployment, tenant: str
) -> None:
    third = services.service("registry")
    async with services.client(tenant) as mesh:
        registered: list[str] = []
        before = await registrations_of(mesh, third.instance)
        while await registrations_of(mesh, third.instance) == before:
            registered.append(f"thing-{len(registered)}")
            await mesh.bus.call(REGISTER, Register(thing=record(registered[-1])))

        third.kill()

        for _ in range(20):
            assert sorted(await names(mesh, live=None)) == sorted(registered)


async def registrations_of(mesh: Mesh, instance: str) -> int:
    packet = await mesh.bus.transport.request(
        f"$SRV.STATS.lmos-registry.{instance}", b"", timeout_s=SOON_S
    )
    stats = json.loads(packet.payload)
    return next(one["num_requests"] for one in stats["endpoints"] if one["name"] == "register")


async def test_what_is_registered_is_found_at_once_at_the_same_replica_and_soon_at_all(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        for at in range(20):
            await mesh.bus.call(REGISTER, Register(thing=record(f"t{at}")))
            await until(everyone_has, mesh, f"t{at}", within_s=SOON_S)


async def everyone_has(mesh: Mesh, name: str) -> bool:
    return all([await has(mesh, name) for _ in range(6)])


async def test_registrations_are_written_down(services: Deployment, tenant: str) -> None:
    async with plain_client(services.url) as client:
        kept = await client.subscribe(f"lmos.{tenant}.audit.>")
        await client.flush()
        async with services.client(tenant) as mesh:
            await mesh.bus.call(REGISTER, Register(thing=record("x")))
        said = json.loads((await kept.next_msg(timeout=SOON_S)).data)
        stored = await client.jetstream().get_last_msg(
            "LMOS_AUDIT", f"lmos.{tenant}.audit.registered"
        )

    assert said["thing"] == "x"
    assert stored.data is not None
    assert json.loads(stored.data) == said


# -- bad input --

GARBAGE = [
    b"",
    b"\x00",
    b"\xc1\xff",
    b"{",
    b"[1,2]",
    b"null",
    b"{" * 50_000,
    b'{"name":7}',
    b'{"thing":{"name":{"x":1}}}',
    b'{"thing":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    json.dumps({"name": "x" * 100_000}).encode(),
    b'{"name":"\\ud800"}',
]


@pytest.mark.parametrize("operation", ["register", "deregister", "get", "find", "nothing", "a.b"])
async def test_no_bytes_stop_a_registry(services: Deployment, tenant: str, operation: str) -> None:
    async with services.client(tenant) as mesh:
        for payload in GARBAGE:
            subject = f"lmos.{tenant}.registry.{operation}"
            status = 200
            try:
                await mesh.bus.request(subject, payload, timeout_s=SOON_S)
            except MeshError as error:
                status = error.status
            assert status < 500 or operation == "a.b", payload[:40]
        for hostile in ("not JSON", "7", "[]", '{"agent":"x","instance_id":"a b","interval_s":1}'):
            mesh.bus.transport.publish("agents.hb.x.y.z", hostile.encode())
            mesh.bus.transport.publish("lmos.sys.disconnect", hostile.encode())
            mesh.bus.transport.publish(f"lmos.{tenant}.changed.registry.x.y", hostile.encode())
            mesh.bus.transport.publish(f"lmos.{tenant}.changed.lease.x", hostile.encode())
        await mesh.bus.transport.flush()

        await mesh.bus.call(REGISTER, Register(thing=record("after")))
        assert await names(mesh, live=None) == ["after"]
    assert services.died() == []


async def test_ids_that_are_no_tokens_are_taken(services: Deployment) -> None:
    name, tenant, subset = "it's 1.0 > *", "my tenant.x", "ünstable"
    async with services.client(tenant) as mesh:
        await mesh.bus.call(REGISTER, Register(thing=record(name, subset=subset)))
        found = await mesh.find(live=None)
        await mesh.bus.call(DEREGISTER, Deregister(name=name, subset=subset))

    assert [(one.name, one.tenant, one.subset) for one in found] == [(name, tenant, subset)]


async def test_an_answer_that_would_be_too_large_comes_in_pages(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        for at in range(24):
            thing = record(f"t{at:02}", description="ä" * 2000, metadata={"more": "y" * 50_000})
            await mesh.bus.call(REGISTER, Register(thing=thing))
        told: list[str] = []
        pages = 0
        offset: int | None = 0
        while offset is not None:
            wanted = FindThings(live=None, descriptions=True, offset=offset, sort="name")
            page = await mesh.bus.call(FIND_THINGS, wanted)
            assert page.total == 24
            told += [one.name for one in page.things]
            pages, offset = pages + 1, page.next

    assert told == [f"t{at:02}" for at in range(24)]
    assert 1 < pages < 6


# -- versions and lifetimes --


async def test_earlier_versions_are_kept_and_can_be_read(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        versions = ["1.0.0", "1.1.0", "2.0.0"]
        revisions = [
            (await mesh.bus.call(REGISTER, Register(thing=record("x", version=one)))).revision
            for one in versions
        ]

        history = await mesh.bus.call(GET_HISTORY, GetHistory(name="x"))
        first = await mesh.bus.call(GET_THING, GetThing(name="x", revision=revisions[0]))
        now = await mesh.bus.call(GET_THING, GetThing(name="x"))
        with pytest.raises(NotFound, match=f"revision {revisions[2] + 9}"):
            await mesh.bus.call(GET_THING, GetThing(name="x", revision=revisions[2] + 9))
        with pytest.raises(AgentNotFound):
            await mesh.bus.call(GET_HISTORY, GetHistory(name="y"))

        assert [(one.revision, one.version) for one in history.versions] == [
            *zip(reversed(revisions), reversed(versions), strict=True)
        ]
        assert all(abs(one.at - time.time()) < 60 for one in history.versions)
        assert (first.version, first.revision) == ("1.0.0", revisions[0])
        assert first.description is not None
        assert first.description["version"]["instance"] == "1.0.0"
        assert (now.version, now.revision) == ("2.0.0", revisions[2])
        assert now.registration is not None
        assert first.registration is not None
        assert now.registration.created == first.registration.created
        assert now.registration.modified > first.registration.modified
        assert abs(now.as_of - time.time()) < 60

        await mesh.bus.call(DEREGISTER, Deregister(name="x"))
        gone = await mesh.bus.call(GET_HISTORY, GetHistory(name="x"))
        assert [one.gone for one in gone.versions] == [True]


async def test_what_is_registered_for_a_time_is_gone_after_it(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        # Over one that stays: it must not come back.
        await mesh.bus.call(REGISTER, Register(thing=record("x", version="1.0.0")))
        await mesh.bus.call(REGISTER, Register(thing=record("x", version="2.0.0"), ttl_s=2))
        found = await mesh.bus.call(GET_THING, GetThing(name="x"))
        assert found.registration is not None
        assert found.registration.ttl == 2
        assert found.registration.expires is not None

        await until(is_unknown, mesh, "x", within_s=SOON_S)
        for _ in range(8):
            await asyncio.sleep(0.25)
            assert await is_unknown(mesh, "x")


async def test_what_is_registered_again_in_time_stays(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        first = await mesh.bus.call(REGISTER, Register(thing=record("x"), ttl_s=2))
        told = await mesh.bus.call(GET_THING, GetThing(name="x"))
        for _ in range(6):
            await asyncio.sleep(0.4)
            again = await mesh.bus.call(REGISTER, Register(thing=record("x"), ttl_s=2))
            assert again.revision > first.revision
            assert not await is_unknown(mesh, "x")
        renewed = await mesh.bus.call(GET_THING, GetThing(name="x"))
        for_good = await mesh.bus.call(REGISTER, Register(thing=record("x")))
        await asyncio.sleep(2.2)
        kept = await mesh.bus.call(GET_THING, GetThing(name="x"))

    assert told.registration is not None
    assert renewed.registration is not None
    assert renewed.registration.modified == told.registration.modified
    assert renewed.registration.expires is not None
    assert told.registration.expires is not None
    assert renewed.registration.expires > told.registration.expires
    assert kept.revision == for_good.revision
    assert kept.registration is not None
    assert kept.registration.expires is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ttl_s": 5, "expires": "2100-01-01T00:00:00Z"}, "either"),
        ({"ttl_s": 1e300}, "ttl_s"),
        ({"ttl_s": float("inf")}, "ttl_s"),
        ({"expires": "tomorrow"}, "expires"),
        ({"expires": "2100-01-01T00:00:00"}, "expires"),
        ({"expires": "2001-01-01T00:00:00Z"}, "passed"),
    ],
)
async def test_a_lifetime_that_cannot_be_is_refused(
    services: Deployment, tenant: str, asked: dict[str, Any], said: str
) -> None:
    async with services.client(tenant) as mesh:
        with pytest.raises(InvalidMessage, match=said):
            await mesh.bus.call(REGISTER, Register(thing=record("x"), **asked))
        assert await is_unknown(mesh, "x")


# -- ids --

LAMP: dict[str, Any] = {
    "@context": "https://www.w3.org/2022/wot/td/v1.1",
    "id": "urn:uuid:0804d572-cce8-422a-bb7c-4412fcd56f06",
    "title": "A lamp",
    "vendor:colour": "green",
    "securityDefinitions": {"basic_sc": {"scheme": "basic", "in": "header"}},
    "security": "basic_sc",
    "properties": {"on": {"type": "boolean", "forms": [{"href": "https://lamp.example/on"}]}},
}


async def test_a_thing_that_speaks_no_lmos_is_known_by_its_id(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh:
        registered = await mesh.bus.call(REGISTER, Register(description=LAMP, revision=0))
        found = await mesh.bus.call(GET_THING, GetThing(id=LAMP["id"]))
        listed = await mesh.find(kind="thing", live=None)
        searched = await mesh.bus.call(
            SEARCH_THINGS, SearchThings(query="$[?@['vendor:colour'] == 'green'].title")
        )
        with pytest.raises(Conflict):
            await mesh.bus.call(REGISTER, Register(description=LAMP, revision=0))
        gone = await mesh.bus.call(
            DEREGISTER, Deregister(id=LAMP["id"], revision=registered.revision)
        )
        with pytest.raises(AgentNotFound, match="urn:uuid"):
            await mesh.bus.call(GET_THING, GetThing(id=LAMP["id"]))

    assert registered.created
    assert registered.id == LAMP["id"]
    assert (found.kind, found.id, found.title) == ("thing", LAMP["id"], "A lamp")
    assert found.description == LAMP
    assert [one.id for one in listed] == [LAMP["id"]]
    assert (searched.values, searched.total) == (("A lamp",), 1)
    assert gone.gone


async def test_two_things_of_a_tenant_do_not_share_an_id(services: Deployment, tenant: str) -> None:
    def named(name: str) -> dict[str, Any]:
        description = describe(thing_from(record(name, tenant=tenant)))
        return {**description, "id": "urn:example:one", "title": name}

    async with services.client(tenant) as mesh:
        await mesh.bus.call(REGISTER, Register(description=named("first")))
        with pytest.raises(Conflict, match="'first'"):
            await mesh.bus.call(REGISTER, Register(description=named("second")))
        again = await mesh.bus.call(REGISTER, Register(description=named("first")))
        assert not again.created
        assert await names(mesh, live=None, id="urn:example:one") == ["first"]
        async with services.client(f"{tenant}-2") as other:
            await other.bus.call(
                REGISTER,
                Register(
                    description=named("second")
                    | {
                        "mesh:tenant": f"{tenant}-2",
                    }
                ),
            )


async def test_of_two_that_take_an_id_at_the_same_time_one_gets_it(
    services: Deployment, tenant: str
) -> None:
    taken: list[str] = []

    async def register(mesh: Mesh, name: str) -> None:
        description = describe(thing_from(record(name, tenant=tenant)))
        request = Register(description={**description, "id": "urn:example:one", "title": name})
        with suppress(Conflict):
            await mesh.bus.call(REGISTER, request)
            taken.append(name)

    async with services.client(tenant) as mesh:
        async with asyncio.TaskGroup() as tasks:
            for at in range(12):
                tasks.create_task(register(mesh, f"t{at}"))
        await until(only, mesh, taken, within_s=SOON_S)

    assert len(taken) == 1


async def only(mesh: Mesh, expected: list[str]) -> bool:
    return await names(mesh, live=None) == expected


async def test_nobody_says_that_a_thing_is_another_meshs(services: Deployment, tenant: str) -> None:
    description = describe(thing_from(record("x", tenant=tenant)))
    async with services.client(tenant) as mesh:
        with pytest.raises(InvalidDescription, match="mirrored"):
            await mesh.bus.call(
                REGISTER, Register(description={**description, "mesh:origin": "elsewhere"})
            )


async def test_a_stale_removal_is_refused(services: Deployment, tenant: str) -> None:
    async with services.client(tenant) as mesh:
        first = await mesh.bus.call(REGISTER, Register(thing=record("x")))
        await mesh.bus.call(REGISTER, Register(thing=record("x", description="Newer.")))
        with pytest.raises(Conflict, match="revision"):
            await mesh.bus.call(DEREGISTER, Deregister(name="x", revision=first.revision))
        assert not await is_unknown(mesh, "x")


async def test_many_who_register_one_agent_at_the_same_time_all_succeed(
    services: Deployment, tenant: str
) -> None:
    async with services.client(tenant) as mesh, asyncio.TaskGroup() as tasks:
        for at in range(6):
            thing = record("x", description=f"Made by {at}.")
            tasks.create_task(mesh.bus.call(REGISTER, Register(thing=thing)))
