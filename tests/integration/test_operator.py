"""The operator keeps what is applied and makes the mesh match it, whoever of several is killed."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh import subjects
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.calls import caller_headers
from lmos_mesh.description import describe
from lmos_mesh.errors import Conflict, InvalidMessage, MeshError, NotFound
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    DELETE_RESOURCE,
    GET_RESOURCE,
    GET_RESOURCE_HISTORY,
    LIST_RESOURCES,
    RESTORE_ROUTING,
    ApplyResource,
    DeleteResource,
    GetResource,
    GetResourceHistory,
    ListResources,
    ResourceApplied,
    RestoreRouting,
)
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resource_store import ResourceStore
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting, ChannelStatus
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.transport import Packet
from lmos_mesh_operator import Operator, OperatorSettings
from lmos_mesh_operator.leading import LEADERS
from tests.conftest import FrailServer, MemoryMesh, Mesh, NatsMesh, new_name
from tests.integration.processes import POLL_S, Deployment, Process

SOON_S = 10.0


def channel(name: str, version: str = "^1.0", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Channel",
        "metadata": {"name": name, "labels": {"channel": name, **labels}},
        "spec": {"requiredCapabilities": [{"id": "view-bill", "version": version}]},
    }


class Town:
    """Agents of a tenant that a test writes itself."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._open = bus.transport.key_value

    async def join(self, name: str, version: str = "1.0.0", **more: Any) -> None:
        tenant = self.bus.tenant
        offered = {"id": "view-bill", "version": version}
        thing = thing_from({"name": name, "tenant": tenant, "capabilities": [offered], **more})
        await self._open(REGISTRY).put(thing.key, json.dumps(describe(thing)).encode())
        served = Served(name=thing.name, subset=thing.subset, concurrency=1)
        lease = Lease(instance=f"i-{name}", things=(served,))
        await self._open(LEASES).put(
            subjects.key(tenant, lease.instance), lease.model_dump_json().encode()
        )

    async def die(self, name: str) -> None:
        await self._open(LEASES).delete(subjects.key(self.bus.tenant, f"i-{name}"))

    async def apply(self, resource: dict[str, Any], **more: Any) -> ResourceApplied:
        return await self.bus.call(
            APPLY_RESOURCE, ApplyResource(resource=resource, **more), nobody_s=SOON_S
        )


@asynccontextmanager
async def operator(mesh: Mesh) -> AsyncGenerator[Operator]:
    """An operator that is ready, and leaves as the process of one would."""
    serving = Operator(OperatorSettings())
    ready = asyncio.Event()
    async with mesh.bus() as bus, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(serving.run(bus, ready.set))
        async with asyncio.timeout(SOON_S):
            await ready.wait()
        try:
            yield serving
        finally:
            await serving.leave()
            running.cancel()


@asynccontextmanager
async def town(mesh: Mesh) -> AsyncGenerator[tuple[Town, Applied]]:
    """An operator, agents, and a view of what there is."""
    async with mesh.bus() as bus, mesh.bus() as reader, operator(mesh):
        applied = Applied(reader)
        await applied.follow()
        yield Town(bus), applied


async def seen(true: Callable[[], bool], *, within_s: float = SOON_S) -> float:
    began = time.perf_counter()
    while not true():
        took_s = time.perf_counter() - began
        assert took_s < within_s, f"not within {within_s:g} s"
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - began


def status(applied: Applied, name: str) -> ChannelStatus:
    found = applied.get(Channel, "default", name)
    return (found and found.status) or ChannelStatus()


def wired(applied: Applied, name: str) -> list[str]:
    found = applied.get(ChannelRouting, "default", name)
    groups = found.spec.capability_groups if found is not None else ()
    return [f"{g.name} {one.provided_version}" for g in groups for one in g.capabilities]


async def test_a_channel_follows_the_agents_that_come_and_go(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        await here.apply(channel(name))
        await seen(lambda: status(applied, name).message != "")
        assert status(applied, name).resolve_status == "UNRESOLVED"

        await here.join("billing")
        await seen(lambda: status(applied, name).resolve_status == "RESOLVED")
        await here.join("better", "1.5.0")
        await seen(lambda: wired(applied, name) == ["better 1.5.0"])
        await here.die("better")
        await seen(lambda: wired(applied, name) == ["billing 1.0.0"])
        await here.die("billing")
        await seen(lambda: status(applied, name).resolve_status == "UNRESOLVED")

        assert wired(applied, name) == ["billing 1.0.0"]
        assert applied.routing(mesh.tenant, name, "stable") is not None
        near = status(applied, name).unresolved_required_capabilities[0].near
        assert "billing" in {one.agent for one in near}


async def test_what_becomes_of_a_channel_is_told_and_written_down(memory_mesh: MemoryMesh):
    heard: list[Packet] = []
    async with town(memory_mesh) as (here, applied):
        tenant = memory_mesh.tenant
        for pattern in (f"lmos.{tenant}.event.operator.*", f"lmos.{tenant}.audit.*"):
            await here.bus.transport.subscribe(pattern, heard.append)

        await here.apply(channel("web"))
        await here.join("billing")
        await seen(lambda: status(applied, "web").resolve_status == "RESOLVED")
        await here.die("billing")
        await seen(lambda: len([one for one in heard if ".event." in one.subject]) == 3)

    events = [one for one in heard if ".event." in one.subject]
    names = [one.subject.rpartition(".")[2] for one in events]
    assert names == ["channel_unresolved", "channel_resolved", "channel_unresolved"]
    assert events[1].headers["ce-type"] == "lmos.channel.resolved"
    assert json.loads(events[2].payload)["missing"][0]["id"] == "view-bill"
    audited = {one.subject.rpartition(".")[2] for one in heard if ".audit." in one.subject}
    assert {"resource_created", "routing_activated", "channel_resolved"} <= audited


async def test_applying_says_what_became_of_it(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        foreseen = await here.apply(channel(name), dry_run=True)
        assert applied.get(Channel, "default", name) is None
        created = await here.apply(channel(name))
        again = await here.apply(channel(name))
        await seen(lambda: status(applied, name).message != "")
        changed = await here.apply(channel(name, "^2.0"))

        assert (foreseen.what, foreseen.revision) == ("created", 0)
        assert [one.what for one in (created, again, changed)] == [
            "created",
            "unchanged",
            "configured",
        ]
        assert created.after["metadata"]["labels"]["tenant"] == mesh.tenant
        assert any("`tenant`" in note for note in created.notes)
        assert not any("`tenant`" in note for note in again.notes)
        assert any("was open" in note for note in created.notes)
        assert any("nobody provides 'view-bill'" in note for note in created.notes)
        assert created.after["metadata"]["generation"] == 1
        assert changed.after["metadata"]["generation"] == 2
        assert changed.after["metadata"]["uid"] == created.after["metadata"]["uid"]
        assert changed.before is not None
        assert changed.before["spec"]["requiredCapabilities"][0]["version"] == "^1.0"


async def test_every_fault_is_named_at_once(memory_mesh: MemoryMesh):
    async with town(memory_mesh) as (here, _):
        wrong = channel("web")
        wrong["spec"] = {
            "requiredCapabilities": [{"version": 1}, {"id": "a", "version": "banana"}],
            "mood": "good",
        }

        with pytest.raises(InvalidMessage) as refused:
            await here.apply(wrong)

        pointers = {fault["field"] for fault in refused.value.details["faults"]}
        assert "/spec/requiredCapabilities/0/version" in pointers
        assert "/spec/mood" in pointers


async def test_what_is_somebody_elses_is_refused_and_not_seen(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, _), mesh.bus(tenant=new_name("other")) as elsewhere:
        theirs = Town(elsewhere)
        await here.apply(channel(name))

        with pytest.raises(InvalidMessage, match="/metadata/labels/tenant"):
            await theirs.apply(channel(name, tenant=mesh.tenant))
        with pytest.raises(Conflict, match="is held by tenant") as refused:
            await theirs.apply(channel(name, version=">=7.7.7"))
        # Who holds the name, and what to do; nothing of what it says.
        assert mesh.tenant in str(refused.value)
        assert "a namespace of your own" in refused.value.hint
        assert "^1.0" not in str(refused.value.problem())
        with pytest.raises(NotFound) as unknown:
            await elsewhere.call(GET_RESOURCE, GetResource(kind="ch", name=name))
        assert "that name is held by tenant" in unknown.value.hint
        with pytest.raises(NotFound):
            await elsewhere.call(DELETE_RESOURCE, DeleteResource(kind="ch", name=name))
        with pytest.raises(NotFound):
            await elsewhere.call(GET_RESOURCE_HISTORY, GetResourceHistory(kind="ch", name=name))
        with pytest.raises(NotFound):
            await elsewhere.call(RESTORE_ROUTING, RestoreRouting(name=name))
        listed = await elsewhere.call(LIST_RESOURCES, ListResources(kind="Channel"))
        assert listed.total == 0


async def test_what_a_tenant_declares_is_its_own(mesh: Mesh):
    name = new_name("billing")
    told: dict[str, Any] = {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {"providedCapabilities": []},
    }
    async with town(mesh) as (here, _), mesh.bus(tenant=new_name("other")) as elsewhere:
        applied = await here.apply(told)

        assert applied.after is not None
        assert applied.after["metadata"]["labels"] == {"tenant": mesh.tenant}
        with pytest.raises(Conflict, match="is held by tenant"):
            await Town(elsewhere).apply(told)
        with pytest.raises(NotFound):
            await elsewhere.call(DELETE_RESOURCE, DeleteResource(kind="ag", name=name))
        with pytest.raises(NotFound):
            await elsewhere.call(GET_RESOURCE, GetResource(kind="ag", name=name))


async def test_a_rollout_between_two_channels_that_cannot_be_is_refused_with_the_reason(mesh: Mesh):
    stable, other, across = new_name("web"), new_name("ivr"), new_name("across")

    def rollout(name: str, canary: str) -> dict[str, Any]:
        both = {"canaryChannel": {"name": canary}, "stableChannel": {"name": stable}}
        return {
            "apiVersion": "lmos.eclipse/v1",
            "kind": "ChannelRollout",
            "metadata": {"name": name},
            "spec": {"strategy": {"canary": both}},
        }

    async with town(mesh) as (here, applied):
        await here.apply(channel(stable))
        await here.apply(channel(other))
        for dry_run in (True, False):
            with pytest.raises(Conflict, match="are of two channels") as refused:
                await here.apply(rollout(across, other), dry_run=dry_run)
            assert refused.value.details["faults"][0]["field"] == "/spec/strategy/canary"
        # It is checked with what shall be there before it.
        moved = channel(other, channel=stable, subset="canary")
        would = await here.apply(rollout(across, other), dry_run=True, beside=[moved])
        # One that is not there yet may come.
        early = await here.apply(rollout(new_name("early"), new_name("web-canary")))

        assert would.what == "created"
        assert early.what == "created"
        assert applied.get(ChannelRollout, "default", across) is None


async def test_one_place_has_one_channel(mesh: Mesh):
    first, second = new_name("one"), new_name("two")
    async with town(mesh) as (here, applied):
        await here.apply(channel(first))

        with pytest.raises(Conflict, match=first):
            await here.apply(channel(second, channel=first))
        await here.apply(channel(second, channel=first, subset="canary"))
        with pytest.raises(InvalidMessage, match="made by the operator"):
            await here.apply(channel("x") | {"kind": "ChannelRouting", "spec": {}})

        assert applied.index.subsets(mesh.tenant, first) == ["canary", "stable"]


async def test_of_two_that_are_applied_for_one_place_at_once_one_stays(nats_mesh: NatsMesh):
    place = new_name("web")
    async with town(nats_mesh) as (here, applied), operator(nats_mesh):

        async def apply(number: int) -> str:
            try:
                return (await here.apply(channel(f"{place}-{number}", channel=place))).name
            except Conflict as refused:
                return refused.code

        async with asyncio.TaskGroup() as tasks:
            tried = [tasks.create_task(apply(number)) for number in range(6)]
        said = sorted(one.result() for one in tried)

        assert said[:5] == ["conflict"] * 5
        await seen(
            lambda: (
                [
                    one.metadata.name
                    for one in applied.of_kind(Channel)
                    if one.tenant == nats_mesh.tenant
                ]
                == said[5:]
            )
        )


async def test_a_stale_change_is_refused(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        first = await here.apply(channel(name), revision=0)
        await seen(lambda: status(applied, name).message != "")

        with pytest.raises(Conflict) as refused:
            await here.apply(channel(name, "^3.0"), revision=first.revision)
        with pytest.raises(Conflict):
            await here.apply(channel(name, "^3.0"), revision=0)

        await here.apply(channel(name, "^3.0"), revision=refused.value.details["revision"])


async def test_resources_are_got_listed_and_deleted_with_their_routing(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        await here.join("billing")
        await here.apply(channel(name))
        await seen(lambda: status(applied, name).routing_revision > 0)

        got = await here.bus.call(GET_RESOURCE, GetResource(kind="channels", name=name))
        listed = await here.bus.call(
            LIST_RESOURCES, ListResources(labels={"channel": name, "subset": "stable"})
        )
        gone = await here.bus.call(DELETE_RESOURCE, DeleteResource(kind="ch", name=name))

        assert got.resource["status"]["resolveStatus"] == "RESOLVED"
        assert got.resource["metadata"]["resourceVersion"] == str(got.revision)
        assert [one["kind"] for one in listed.resources] == ["Channel", "ChannelRouting"]
        assert gone.also == (f"ChannelRouting/{name}",)
        await seen(lambda: applied.get(ChannelRouting, "default", name) is None)
        with pytest.raises(NotFound):
            await here.bus.call(GET_RESOURCE, GetResource(kind="ch", name=name))
        with pytest.raises(InvalidMessage, match="no kind"):
            await here.bus.call(GET_RESOURCE, GetResource(kind="pod", name=name))


async def test_an_earlier_routing_is_put_back_until_it_is_released(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        await here.join("billing")
        await here.apply(channel(name))
        await seen(lambda: wired(applied, name) == ["billing 1.0.0"])
        await here.join("better", "1.5.0")
        await seen(lambda: wired(applied, name) == ["better 1.5.0"])

        back = await here.bus.call(RESTORE_ROUTING, RestoreRouting(name=name))
        await here.join("best", "1.9.0")
        await seen(lambda: "put back" in status(applied, name).message)
        while_pinned = wired(applied, name)
        known = await here.bus.call(GET_RESOURCE_HISTORY, GetResourceHistory(kind="cr", name=name))
        await here.bus.call(RESTORE_ROUTING, RestoreRouting(name=name, revision=0))
        await seen(lambda: wired(applied, name) == ["best 1.9.0"])
        with pytest.raises(NotFound, match="is not kept"):
            await here.bus.call(RESTORE_ROUTING, RestoreRouting(name=name, revision=10**9))

        assert while_pinned == ["billing 1.0.0"]
        assert back.resource["spec"]["capabilityGroups"][0]["name"] == "billing"
        said = [one.summary for one in known.versions]
        assert said == ["billing: view-bill 1.0.0", "better: view-bill 1.5.0", said[0]]


async def test_a_routing_of_agents_that_are_gone_is_put_back_with_a_warning(mesh: Mesh):
    name = new_name("web")
    async with town(mesh) as (here, applied):
        await here.join("billing")
        await here.apply(channel(name))
        await seen(lambda: wired(applied, name) == ["billing 1.0.0"])
        await here.join("better", "1.5.0")
        await seen(lambda: wired(applied, name) == ["better 1.5.0"])
        await here.die("billing")
        back = await here.bus.call(RESTORE_ROUTING, RestoreRouting(name=name))
        # Once the operator knows that it is gone, it says so.
        while not back.notes:
            back = await here.bus.call(
                RESTORE_ROUTING, RestoreRouting(name=name, revision=back.revision)
            )

        assert len(back.notes) == 1
        assert "agent 'billing' (stable) has no live instance" in back.notes[0]


async def test_history_tells_every_step_and_who_asked_for_it(mesh: Mesh):
    name = new_name("web")
    mine = caller_headers("ann@laptop (cli-1)")
    async with town(mesh) as (here, applied):
        wanted = ApplyResource(resource=channel(name))
        await here.bus.call(APPLY_RESOURCE, wanted, headers=mine, nobody_s=SOON_S)
        await here.join("billing")
        await seen(lambda: status(applied, name).resolve_status == "RESOLVED")
        # Nothing is to be released, so nothing has come to pass.
        release = RestoreRouting(name=name, revision=0)
        await here.bus.call(RESTORE_ROUTING, release, headers=mine)
        await here.bus.call(DELETE_RESOURCE, DeleteResource(kind="ch", name=name), headers=mine)
        asked = GetResourceHistory(kind="cr", name=name, steps=100)
        told = await here.bus.call(GET_RESOURCE_HISTORY, asked)
        never = GetResourceHistory(kind="cr", name="never", steps=100)
        with pytest.raises(NotFound):
            await here.bus.call(GET_RESOURCE_HISTORY, never)

    steps = [(one.what, one.by, one.kept) for one in reversed(told.steps)]
    assert ("activated", "", False) in steps  # it went with its Channel
    assert [one for one in steps if one[1]] == [
        ("created", "ann@laptop (cli-1)", False),
        ("deleted", "ann@laptop (cli-1)", False),
    ]
    activated = next(one for one in told.steps if one.what == "activated")
    assert activated.message == "the Channel was resolved: view-bill by billing 1.0.0"


async def test_a_lost_bus_is_no_reason_to_call_a_channel_unresolved(fresh_nats: FrailServer):
    mesh = NatsMesh(fresh_nats.url)
    async with town(mesh) as (here, applied):
        await here.join("billing")
        await here.apply(channel("web"))
        await seen(lambda: status(applied, "web").routing_revision > 0)

        # Leases are kept in memory, so nobody seems to be there until they are written anew.
        await fresh_nats.kill()
        await fresh_nats.start()
        await here.bus.transport.wait_connected(timeout_s=SOON_S)
        await here.apply(channel("late"))
        await seen(lambda: status(applied, "late").resolve_status == "RESOLVED")
        await here.join("billing")

        past = await ResourceStore(here.bus).history(ResourceKey("Channel", "default", "web"))
        told = [one.resource.status for one in past if isinstance(one.resource, Channel)]
        assert [one.resolve_status for one in told if one is not None] == ["RESOLVED"]


async def test_an_operator_that_just_started_waits_for_agents_before_it_calls_them_lost(
    memory_mesh: MemoryMesh,
):
    async with town(memory_mesh) as (here, applied):
        await here.join("billing")
        await here.apply(channel("web"))
        await seen(lambda: status(applied, "web").routing_revision > 0)
        written = applied.index.revision
    async with memory_mesh.bus() as bus:
        await Town(bus).die("billing")

    async with town(memory_mesh) as (here, applied):
        await here.apply(channel("other"))
        await seen(lambda: status(applied, "other").message != "")
        assert status(applied, "web").resolve_status == "RESOLVED"
        await here.join("billing")
        await seen(lambda: status(applied, "other").resolve_status == "RESOLVED")

        kept = applied.index.kept(ResourceKey("Channel", "default", "web"))
        assert kept is not None
        assert kept.revision <= written


# -- several --


class Replicas:
    """Operators in processes of their own, and a view of what they write."""

    def __init__(self, deployment: Deployment, here: Town, applied: Applied) -> None:
        self.deployment = deployment
        self.here = here
        self.applied = applied

    async def leader(self) -> Process | None:
        entry = await self.here.bus.transport.key_value(LEADERS).get("leader")
        if entry is None:
            return None
        instance = json.loads(entry.value)["instance"]
        alive = [one for one in self.deployment.processes if one.alive]
        return next((one for one in alive if one.instance == instance), None)

    async def until_led(self, *, but: Process | None = None, within_s: float) -> float:
        began = time.perf_counter()
        while True:
            leader = await self.leader()
            if leader is not None and leader is not but:
                return time.perf_counter() - began
            assert time.perf_counter() - began < within_s, f"nobody leads within {within_s:g} s"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def replicas(server: FrailServer, directory: Path) -> AsyncGenerator[Replicas]:
    mesh = NatsMesh(server.url)
    deployment = Deployment(server.url, directory)
    try:
        await asyncio.to_thread(deployment.services, *["operator"] * 3)
        async with mesh.bus() as bus:
            applied = Applied(bus)
            await applied.follow()
            yield Replicas(deployment, Town(bus), applied)
    finally:
        await asyncio.to_thread(deployment.stop)


async def test_another_operator_takes_over_when_the_leader_is_killed_frozen_or_leaves(
    fresh_nats: FrailServer, tmp_path: Path
):
    async with replicas(fresh_nats, tmp_path) as them:
        here, applied = them.here, them.applied
        await them.until_led(within_s=SOON_S)
        await here.apply(channel("web"))

        killed = await them.leader()
        assert killed is not None
        killed.kill()
        await here.join("billing")
        after_kill_s = await seen(lambda: wired(applied, "web") == ["billing 1.0.0"])

        frozen = await them.leader()
        assert frozen is not None
        frozen.freeze()
        await here.join("better", "1.5.0")
        after_freeze_s = await seen(
            lambda: wired(applied, "web") == ["better 1.5.0"], within_s=2 * SOON_S
        )
        frozen.thaw()

        left = await them.leader()
        assert left is not None
        left.terminate()
        after_leave_s = await them.until_led(but=left, within_s=SOON_S)
        await here.join("best", "1.9.0")
        await seen(lambda: wired(applied, "web") == ["best 1.9.0"])

        print(f"killed {after_kill_s:.3f} s, frozen {after_freeze_s:.2f} s, {after_leave_s:.3f} s")
        assert after_leave_s < 3.5, "sooner than its lead would have ended of itself"


async def test_whenever_the_leader_is_killed_all_converges_and_nothing_is_written_twice(
    fresh_nats: FrailServer, tmp_path: Path
):
    count = 40
    async with replicas(fresh_nats, tmp_path) as them:
        here, applied = them.here, them.applied
        store = ResourceStore(here.bus)
        await them.until_led(within_s=SOON_S)

        async def turbulence() -> None:
            for number in range(4):
                for one in range(count // 4):
                    name = f"c{number * (count // 4) + one}"
                    for _ in range(20):  # whoever was asked may have just been killed
                        try:
                            await here.apply(channel(name))
                            break
                        except MeshError:
                            await asyncio.sleep(0.05)
                await here.join(f"a{number}", f"1.{number}.0")

        async def killing() -> None:
            for pause_s in (0.05, 0.13):
                await asyncio.sleep(pause_s)
                await them.until_led(within_s=SOON_S)
                leader = await them.leader()
                if leader is not None:
                    leader.kill()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(turbulence())
            tasks.create_task(killing())
        await seen(
            lambda: all(
                wired(applied, f"c{n}") == ["a3 1.3.0"]
                and status(applied, f"c{n}").resolve_status == "RESOLVED"
                for n in range(count)
            ),
            within_s=3 * SOON_S,
        )
        await asyncio.sleep(0.5)  # what fights writes on

        for number in range(count):
            routings = await store.history(ResourceKey("ChannelRouting", "default", f"c{number}"))
            said = [one.resource for one in routings if isinstance(one.resource, ChannelRouting)]
            specs = [one.spec for one in said]
            # One version per agent that joined at most, and no two alike one after the other.
            assert len(specs) <= 4
            assert all(a != b for a, b in pairwise(specs))
            assert all(len(one.capability_groups) == 1 for one in specs)
            statuses = await store.history(ResourceKey("Channel", "default", f"c{number}"))
            told = [one.resource for one in statuses if isinstance(one.resource, Channel)]
            assert all(a.status != b.status for a, b in pairwise(told))
