"""The operator in its Kubernetes mode, on a cluster's API in this process."""

import asyncio
import gc
import shutil
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.applied import Applied
from lmos_mesh.errors import SettingsError
from lmos_mesh.resource_store import RESOURCES
from lmos_mesh.resources import Agent, Channel, ChannelRouting
from lmos_mesh_operator import Operator, OperatorSettings
from lmos_mesh_operator.kubernetes import mode
from lmos_mesh_operator.kubernetes.cluster import OURS
from lmos_mesh_operator.kubernetes.mode import identity
from tests.conftest import MemoryMesh, NatsMesh, StartServer
from tests.kube_town import (
    SOON_S,
    Town,
    agent,
    channel,
    condition,
    kube_town,
    local_operator,
    required,
    resolved,
    version_of,
)

# What serves the cluster's API here leaves the connections of those open that leave a watch.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_to_the_next_module() -> Generator[None]:
    yield
    gc.collect()


@pytest.fixture
async def town(
    memory_mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Town]:
    async with kube_town(memory_mesh, tmp_path, monkeypatch) as one:
        yield one


async def test_what_kubectl_applies_is_on_the_mesh_and_its_status_in_the_cluster(town: Town):
    async with town.operator():
        await town.create(channel())
        await town.create(agent())

        found = await town.until("Channel", "web", resolved)
        routing = await town.until("ChannelRouting", "web", lambda o: o is not None)
        await town.quiet()

    assert town.applied.get(Channel, "default", "web") is not None
    assert found["metadata"]["finalizers"] == ["lmos.eclipse/mirror"]
    assert routing["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]
    group = routing["spec"]["capabilityGroups"][0]
    assert group["capabilities"][0]["host"] == "billing.default.svc.cluster.local"
    assert condition(found, "Accepted")["status"] == "True"
    assert found["status"]["observedGeneration"] == 1
    assert [one["involvedObject"]["name"] for one in town.events("Resolved")] == ["web"]


async def test_what_is_applied_on_the_bus_is_in_the_cluster(town: Town):
    async with town.operator():
        await town.apply(channel())
        made = await town.until("Channel", "web", lambda o: o is not None)
        await town.apply(channel(version="^2.0", subset="canary"))
        await town.until(
            "Channel",
            "web",
            lambda o: (
                o["spec"]["requiredCapabilities"][0]["version"] == "^2.0"
                and o["metadata"]["labels"]["subset"] == "canary"
            ),
        )

    assert made["metadata"]["labels"]["tenant"] == town.mesh.tenant
    assert made["metadata"]["finalizers"] == ["lmos.eclipse/mirror"]


async def test_nothing_is_written_when_nothing_changes(town: Town):
    async with town.operator():
        await town.create(agent())
        await town.until("Agent", "billing", lambda o: condition(o, "Accepted"))
        await town.create(channel())
        await town.until("Channel", "web", resolved)
        await town.until("ChannelRouting", "web", lambda o: o is not None)
        before = await town.quiet()
        # The test's own two are among them: adopted, remembered and a status or two for each.
        assert before <= 14, [(one[0], one[1]) for one in town.kube.written]
        revision = town.applied.index.revision

        # What only the cluster cares for, it keeps to itself.
        await town.change("Channel", "web", {"metadata": {"annotations": {"note": "mine"}}})
        assert await town.quiet() == before + 1
    async with town.operator():
        await town.quiet()

    assert town.writes() == before + 1, town.kube.written[before:]
    assert town.applied.index.revision == revision


async def test_a_change_of_either_side_reaches_the_other_once(town: Town):
    wanted = {"requiredCapabilities": [{"id": "view-bill", "version": "^3.0"}]}
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        before = await town.quiet()
        await town.change("Channel", "web", {"spec": wanted})
        await town.seen(lambda: required(town) == "^3.0")
        # Ours, what it remembers, and its status; perhaps in two steps.
        assert await town.quiet() - before <= 4

        before = await town.quiet()
        await town.apply(channel(version="^4.0"))
        await town.until("Channel", "web", lambda o: version_of(o) == "^4.0")
        assert await town.quiet() - before <= 3


async def test_where_both_have_changed_meanwhile_the_cluster_counts(town: Town):
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()
        await town.apply(channel(version="^2.0"))
        await town.until("Channel", "web", lambda o: version_of(o) == "^2.0")
        await town.quiet()
    async with local_operator(town):
        await town.apply(channel(version="^5.0"))
    wanted = {"requiredCapabilities": [{"id": "view-bill", "version": "^6.0"}]}
    await town.change("Channel", "web", {"spec": wanted})

    async with town.operator():
        await town.seen(lambda: required(town) == "^6.0")
        await town.quiet()

    assert version_of(await town.object("Channel", "web")) == "^6.0"


@pytest.mark.parametrize("away", [False, True])
async def test_what_is_deleted_in_the_cluster_is_gone_from_the_mesh(town: Town, away: bool):
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()
        if not away:
            await town.cluster.delete(OURS["Channel"], "default", "web")
            await town.until("Channel", "web", lambda o: o is None)
    if away:
        await town.cluster.delete(OURS["Channel"], "default", "web")
        async with town.operator():
            await town.until("Channel", "web", lambda o: o is None)

    await town.seen(lambda: town.applied.get(Channel, "default", "web") is None)


async def test_what_is_deleted_is_let_go_by_one_write(town: Town, caplog: pytest.LogCaptureFixture):
    async with town.operator():
        for name in ("web", "app", "ivr"):
            await town.create(channel(name))
            await town.until("Channel", name, lambda o: condition(o, "Accepted"))
        before = await town.quiet()
        for name in ("web", "app", "ivr"):
            await town.cluster.delete(OURS["Channel"], "default", name)
        for name in ("web", "app", "ivr"):
            await town.until("Channel", name, lambda o: o is None)

        # Each is deleted by somebody, and let go by the operator.
        assert await town.quiet() == before + 3 * 2
    assert [one.getMessage() for one in caplog.records if "cannot mirror" in one.message] == []


@pytest.mark.parametrize("away", [False, True])
async def test_what_is_deleted_on_the_mesh_is_gone_from_the_cluster(town: Town, away: bool):
    async with town.operator():
        await town.create(agent())
        await town.create(channel())
        await town.until("ChannelRouting", "web", lambda o: o is not None)
        await town.quiet()
        if not away:
            await town.delete("Channel", "web")
            await town.until("Channel", "web", lambda o: o is None)
            await town.until("ChannelRouting", "web", lambda o: o is None)
    if away:
        async with local_operator(town):
            await town.delete("Channel", "web")
        async with town.operator():
            await town.until("Channel", "web", lambda o: o is None)
            await town.until("ChannelRouting", "web", lambda o: o is None)

    assert town.applied.get(Channel, "default", "web") is None


async def test_what_is_wrong_is_told_in_the_cluster_and_what_was_good_stays(town: Town):
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()
        await town.change(
            "Channel",
            "web",
            {"spec": {"requiredCapabilities": [{"id": "view-bill", "version": "one"}]}},
        )
        refused = await town.until(
            "Channel", "web", lambda o: condition(o, "Accepted")["status"] == "False"
        )
        assert "/spec/requiredCapabilities/0/version" in condition(refused, "Accepted")["message"]
        assert refused["status"]["observedGeneration"] < refused["metadata"]["generation"]
        assert required(town) == "^1.0"
        await town.seen(lambda: town.events("Refused"))

        wanted = {"requiredCapabilities": [{"id": "view-bill", "version": "^2.0"}]}
        await town.change("Channel", "web", {"spec": wanted})
        await town.until("Channel", "web", lambda o: condition(o, "Accepted")["status"] == "True")

    assert required(town) == "^2.0"


async def test_a_channel_whose_place_is_taken_says_by_whom(town: Town):
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        second = channel("other")
        second["metadata"]["labels"]["channel"] = "web"
        await town.create(second)
        found = await town.until("Channel", "other", lambda o: condition(o, "Accepted"))
        assert "'web'" in condition(found, "Accepted")["message"]
        assert town.applied.get(Channel, "default", "other") is None

        # It was never the mesh's, so the mesh loses nothing.
        await town.cluster.delete(OURS["Channel"], "default", "other")
        await town.until("Channel", "other", lambda o: o is None)

    assert town.applied.get(Channel, "default", "web") is not None


async def test_a_routing_that_is_edited_or_deleted_is_as_it_was(town: Town):
    async with town.operator():
        await town.create(agent())
        await town.create(channel())
        first = await town.until("ChannelRouting", "web", lambda o: o is not None)
        await town.quiet()
        await town.change("ChannelRouting", "web", {"spec": {"capabilityGroups": []}})
        await town.until("ChannelRouting", "web", lambda o: o["spec"] == first["spec"])
        await town.cluster.delete(OURS["ChannelRouting"], "default", "web")
        await town.until(
            "ChannelRouting",
            "web",
            lambda o: o and o["metadata"]["uid"] != first["metadata"]["uid"],
        )


async def test_a_routing_that_somebody_else_has_made_is_left_alone(town: Town):
    theirs: dict[str, Any] = {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "ChannelRouting",
        "metadata": {"name": "theirs", "namespace": "default"},
        "spec": {"capabilityGroups": []},
    }
    async with town.operator():
        await town.create(theirs)
        await town.seen(lambda: town.events("Refused"))
        await town.quiet()

    assert await town.object("ChannelRouting", "theirs") is not None
    assert town.applied.get(ChannelRouting, "default", "theirs") is None


async def test_agents_of_the_mesh_are_shown_and_never_taken_for_declared_ones(town: Town):
    name = f"billing.{town.mesh.tenant}"
    async with town.operator():
        await town.join("billing", instances=2)
        found = await town.until("Agent", name, lambda o: o and o.get("status", {}).get("live"))
        assert found["status"]["instances"] == 2
        assert found["spec"]["providedCapabilities"][0]["version"] == "2.0.0"
        assert town.applied.of_kind(Agent) == []

        await town.leave("billing")
        await town.until("Agent", name, lambda o: o is None)


async def test_an_agent_that_is_declared_is_not_shown_twice(town: Town):
    async with town.operator():
        await town.join("billing")
        await town.until("Agent", f"billing.{town.mesh.tenant}", lambda o: o is not None)
        await town.create(agent())
        await town.until("Agent", f"billing.{town.mesh.tenant}", lambda o: o is None)
        await town.until("Agent", "billing", lambda o: o.get("status", {}).get("live"))


async def test_a_store_that_is_lost_takes_nothing_from_the_cluster(town: Town):
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()

    mesh = MemoryMesh()
    async with mesh.bus() as bus, mesh.bus() as reader:
        anew = Town(mesh, bus, Applied(reader), town.kube, town.cluster)
        await anew.applied.follow()
        async with anew.operator():
            await anew.seen(lambda: required(anew) == "^1.0")
            await anew.quiet()

    found = await town.object("Channel", "web")
    assert found is not None
    assert "deletionTimestamp" not in found["metadata"]


async def test_a_store_that_is_lost_under_a_running_operator_takes_nothing_from_the_cluster(
    start_nats: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mode, "_AGAIN_S", 0.2)
    server = await start_nats()
    names = [f"web-{number}" for number in range(8)]
    async with (
        kube_town(NatsMesh(server.url), tmp_path, monkeypatch) as town,
        town.operator(),
    ):
        for name in names:
            await town.create(channel(name))
        for name in names:
            await town.until("Channel", name, lambda o: condition(o, "Accepted"))
        first = await identity(town.bus)

        await server.stop()
        shutil.rmtree(server.settings.data_dir)
        await server.start()

        for name in names:
            await town.seen(lambda name=name: town.applied.get(Channel, "default", name))
        assert await identity(town.bus) != first
        for name in names:
            found = await town.object("Channel", name)
            assert found is not None, name
            assert "deletionTimestamp" not in found["metadata"], name
    deleted = [path for method, path, _ in town.kube.written if method == "DELETE"]
    assert [path for path in deleted if "/channels/" in path] == []


async def test_what_is_missing_in_a_store_made_anew_is_not_deleted_from_the_cluster(
    town: Town, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mode, "_AGAIN_S", 0.2)
    bucket = town.bus.transport.key_value(RESOURCES)
    async with town.operator():
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()
        # Before anything else: it is what tells a store that was lost.
        keys = [one.key for one in await bucket.entries()]
        for key in sorted(keys, key=lambda one: "identity" not in one):
            await bucket.delete(key)
        await town.seen(lambda: town.applied.get(Channel, "default", "web") is None)
        await town.seen(lambda: required(town) == "^1.0")

    deleted = [path for method, path, _ in town.kube.written if method == "DELETE"]
    assert [path for path in deleted if "/channels/" in path] == []


async def test_a_cluster_with_older_definitions_loses_nothing_of_the_mesh(town: Town):
    resource = channel()
    resource["spec"]["fallbackAgent"] = "concierge"
    town.kube.pruned = ("fallbackAgent",)
    async with town.operator():
        await town.apply(resource)
        await town.until("Channel", "web", lambda o: o is not None)
        await town.quiet()
        await town.apply({**resource, "spec": {**resource["spec"], "fallbackAgent": "other"}})
        await town.quiet()

    kept = town.applied.get(Channel, "default", "web")
    assert kept is not None
    assert kept.spec.fallback_agent == "other"


async def test_another_operator_goes_on_when_the_one_that_leads_is_gone(town: Town):
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(town.operator(dies=True))
        await second.enter_async_context(town.operator())
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        await town.quiet()
        await first.aclose()
        await town.create(channel("app"))
        await town.until("Channel", "app", lambda o: condition(o, "Accepted"))


async def test_two_meshes_on_one_cluster_are_told_of_and_do_not_write_for_ever(town: Town):
    mesh = MemoryMesh()
    async with mesh.bus() as bus, mesh.bus() as reader:
        applied = Applied(reader)
        await applied.follow()
        other = Town(mesh, bus, applied, town.kube, town.cluster)
        async with town.operator(), other.operator():
            await town.create(channel())
            await other.seen(lambda: applied.get(Channel, "default", "web") is not None)
            await town.seen(lambda: town.applied.get(Channel, "default", "web") is not None)
            await town.seen(lambda: town.events("OtherMesh"))
            async with asyncio.timeout(SOON_S):
                await town.quiet()

    assert len(town.events("OtherMesh")) == 1
    assert "LMOS_OPERATOR_NAMESPACES" in town.events("OtherMesh")[0]["message"]


async def test_only_the_namespaces_that_are_named_are_mirrored(town: Town):
    away = channel()
    away["metadata"]["namespace"] = "elsewhere"
    async with town.operator(operator_namespaces="default, second"):
        await town.create(away)
        await town.create(channel("app"))
        await town.until("Channel", "app", lambda o: condition(o, "Accepted"))
        await town.apply(
            {
                **channel("mine"),
                "metadata": {**channel("mine")["metadata"], "namespace": "elsewhere"},
            }
        )
        await town.quiet()

    assert town.applied.get(Channel, "elsewhere", "web") is None
    assert [
        path for _, path, _ in town.kube.written if path.endswith("elsewhere/channels/mine")
    ] == []


@pytest.mark.parametrize("running", [False, True])
async def test_a_namespace_in_which_we_have_no_rights_any_more_leaves_the_others_alone(
    town: Town, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, running: bool
):
    monkeypatch.setattr(mode, "_FIRST_READ_AGAIN_S", 0.2)
    monkeypatch.setattr(mode, "_READ_AGAIN_S", 0.2)
    monkeypatch.setattr(mode, "_AGAIN_S", 0.2)
    caplog.set_level("INFO")
    if not running:
        town.kube.closed = {"gone"}
    async with town.operator(operator_namespaces="gone,default"):
        if running:
            await town.seen(lambda: "mirroring gone, default" in caplog.text)
            town.kube.closed = {"gone"}
        await town.seen(lambda: "mirroring default of the cluster" in caplog.text)
        await town.create(channel())
        await town.until("Channel", "web", lambda o: condition(o, "Accepted"))
        assert caplog.text.count("namespace 'gone' is not mirrored: GET") == 1

        town.kube.closed = set()
        caplog.clear()
        await town.seen(lambda: "mirroring gone, default of the cluster" in caplog.text)


async def test_a_cluster_without_our_definitions_is_told_of_and_tried_again(
    town: Town, caplog: pytest.LogCaptureFixture
):
    town.kube.unknown = True
    async with town.operator():
        await town.seen(lambda: "CustomResourceDefinitions (deploy/crds)" in caplog.text)
        await town.apply(channel())

    assert required(town) == "^1.0"


async def test_without_a_cluster_the_operator_does_not_begin(
    memory_mesh: MemoryMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    operator = Operator(OperatorSettings(operator_kubernetes=True))
    async with memory_mesh.bus() as bus:
        with pytest.raises(SettingsError, match="no cluster is known"):
            await operator.run(bus, lambda: None)


async def test_a_place_of_descriptions_that_is_none_is_a_setting_to_mend(town: Town):
    url = "http://{svc}.{namespace}/capabilities.json"
    operator = Operator(OperatorSettings(operator_kubernetes=True, operator_capabilities_url=url))
    with pytest.raises(SettingsError, match=r"LMOS_OPERATOR_CAPABILITIES_URL=.*KeyError 'svc'"):
        await operator.run(town.bus, lambda: None)


async def test_what_the_mode_takes_is_imported_by_it_alone():
    code = (
        "import lmos_mesh_operator.service, sys; "
        "print([one for one in ('kopf', 'kubernetes_asyncio') if one in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert told.decode().strip() == "[]"
