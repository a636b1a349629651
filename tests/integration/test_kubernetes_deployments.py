"""Deployments that are agents, and agents whose processes are Deployments."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, Literal

import pytest

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import caller_headers
from lmos_mesh.errors import Conflict, InvalidMessage, NotFound
from lmos_mesh.messages import STEER_AGENT, AgentSteered, SteerAgent
from lmos_mesh.resources import Agent
from lmos_mesh.transport import Packet
from lmos_mesh_operator.kubernetes.cluster import DEPLOYMENTS, OURS, SERVICES
from lmos_mesh_operator.kubernetes.steering import STOPPED_AT, KubernetesSteering
from tests.conftest import MemoryMesh
from tests.kube_town import Town, condition, kube_town

DESCRIBED: dict[str, Any] = {
    "id": "anything",
    "description": "Knows bills.",
    "supportedTenants": [],
    "supportedChannels": ["web"],
    "capabilities": [
        {
            "id": "view-bill",
            "name": "View bill",
            "version": "1.0.0",
            "description": "Shows it.",
            "examples": ["show my bill"],
        }
    ],
}


class Pods:
    """What the Deployments of a test say of themselves."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.body: Any = DESCRIBED
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(request.split()[1].decode())
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        head = (
            f"HTTP/1.1 {self.status} OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    @property
    def template(self) -> str:
        return f"http://127.0.0.1:{self.port}/{{scheme}}/{{service}}.{{namespace}}/{{port}}/c.json"


@pytest.fixture
async def pods() -> AsyncGenerator[Pods]:
    one = Pods()
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one


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


def deployment(name: str = "billing", *, agent: str = "", **labels: str) -> dict[str, Any]:
    if agent:
        labels["lmos.eclipse/agent"] = agent
    status = {"observedGeneration": 9, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"lmos-agent": "true", **labels},
        },
        "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": name}}}},
        "status": status,
    }


def service(name: str = "billing", *, app: str = "billing", port: Any = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": app}, "ports": [port or {"name": "http", "port": 8080}]},
    }


async def test_a_deployment_that_is_ready_becomes_the_agent_that_it_describes(
    town: Town, pods: Pods
):
    async with town.operator(operator_capabilities_url=pods.template):
        made = await town.cluster.post(DEPLOYMENTS, deployment(subset="canary"))
        await town.cluster.post(SERVICES, service())
        found = await town.until("Agent", "billing", lambda o: condition(o, "Described"))
        await town.until("Agent", "billing", lambda o: condition(o, "Accepted"))

        assert found["metadata"]["labels"]["lmos-agent"] == "true"
        assert found["metadata"]["labels"]["subset"] == "canary"
        assert found["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        assert found["spec"]["id"] == "billing"
        assert found["spec"]["providedCapabilities"][0]["id"] == "view-bill"
        assert pods.asked == ["/http/billing.default/8080/c.json"]
        kept = town.applied.get(Agent, "default", "billing")
        assert kept is not None
        assert kept.subset == "canary"
        await town.quiet()
        assert pods.asked == ["/http/billing.default/8080/c.json"]
        await town.seen(lambda: town.events("Described"))

        await town.cluster.delete(DEPLOYMENTS, "default", "billing")
        await town.until("Agent", "billing", lambda o: o is None)
        await town.seen(lambda: town.applied.get(Agent, "default", "billing") is None)


async def test_a_new_version_of_a_deployment_is_asked_again_when_it_is_ready(
    town: Town, pods: Pods
):
    async with town.operator(operator_capabilities_url=pods.template):
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.until("Agent", "billing", lambda o: condition(o, "Described"))
        newer = [{**DESCRIBED["capabilities"][0], "version": "2.0.0"}]
        pods.body = {**DESCRIBED, "capabilities": newer}
        image = {"template": {"metadata": {"labels": {"app": "billing", "v": "2"}}}}
        await town.cluster.patch(DEPLOYMENTS, "default", "billing", {"spec": image})

        await town.until(
            "Agent",
            "billing",
            lambda o: o["spec"]["providedCapabilities"][0]["version"] == "2.0.0",
        )


@pytest.mark.parametrize(
    ("services", "reason", "said"),
    [
        ([], "NoSingleService", "none does"),
        ([service(), service("second")], "NoSingleService", "2 do: billing, second"),
        (
            [service(port={"name": "grpc", "port": 1, "protocol": "UDP"})],
            "NoHttpPort",
            "'billing' has no port",
        ),
    ],
)
async def test_what_stands_in_the_way_is_an_event(
    town: Town, pods: Pods, services: list[dict[str, Any]], reason: str, said: str
):
    async with town.operator(operator_capabilities_url=pods.template):
        for one in services:
            await town.cluster.post(SERVICES, one)
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.seen(lambda: any(said in one["message"] for one in town.events(reason)))

    assert await town.object("Agent", "billing") is None
    assert pods.asked == []


async def test_one_that_cannot_say_what_it_can_do_is_asked_again_and_people_are_told(
    town: Town, pods: Pods
):
    pods.status = 503
    async with town.operator(operator_capabilities_url=pods.template, operator_ask_again_s=0.05):
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.seen(lambda: town.events("NotDescribed"))
        await town.seen(lambda: len(pods.asked) >= 3)
        pods.status, pods.body = 200, {**DESCRIBED, "capabilities": [{"id": "a"}]}
        await town.seen(
            lambda: any("version" in one["message"] for one in town.events("BadDescription"))
        )
        pods.body = DESCRIBED
        await town.until("Agent", "billing", lambda o: o is not None)


async def test_an_agent_that_cannot_be_described_any_more_keeps_what_it_said_and_says_so(
    town: Town, pods: Pods
):
    async with town.operator(operator_capabilities_url=pods.template):
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.until("Agent", "billing", lambda o: condition(o, "Described"))
        await town.quiet()
        await town.cluster.post(SERVICES, service("second"))
        found = await town.until(
            "Agent", "billing", lambda o: condition(o, "Described").get("status") == "False"
        )
        await town.cluster.delete(SERVICES, "default", "second")
        await town.until(
            "Agent", "billing", lambda o: condition(o, "Described").get("status") == "True"
        )

    assert "2 do" in condition(found, "Described")["message"]
    assert found["spec"]["providedCapabilities"]


async def test_an_agent_that_was_declared_by_hand_stays_as_it_is(town: Town, pods: Pods):
    by_hand = {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Agent",
        "metadata": {"name": "billing", "namespace": "default"},
        "spec": {"description": "by hand"},
    }
    async with town.operator(operator_capabilities_url=pods.template):
        await town.create(by_hand)
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.seen(lambda: town.events("NameTaken"))
        await town.cluster.delete(DEPLOYMENTS, "default", "billing")
        await town.quiet()

    found = await town.object("Agent", "billing")
    assert found is not None
    assert found["spec"]["description"] == "by hand"


async def test_a_deployment_whose_label_is_taken_away_is_no_agent_any_more(town: Town, pods: Pods):
    async with town.operator(operator_capabilities_url=pods.template):
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.until("Agent", "billing", lambda o: condition(o, "Accepted"))
        labels = {"metadata": {"labels": {"lmos-agent": "false"}}}
        await town.cluster.patch(DEPLOYMENTS, "default", "billing", labels)
        await town.until("Agent", "billing", lambda o: o is None)


async def test_a_deployment_that_went_while_nobody_looked_takes_its_agent_along(
    town: Town, pods: Pods
):
    async with town.operator(operator_capabilities_url=pods.template):
        await town.cluster.post(SERVICES, service())
        await town.cluster.post(DEPLOYMENTS, deployment())
        await town.until("Agent", "billing", lambda o: condition(o, "Accepted"))
        await town.quiet()
    await town.cluster.delete(DEPLOYMENTS, "default", "billing")
    async with town.operator(operator_capabilities_url=pods.template):
        await town.until("Agent", "billing", lambda o: o is None)


# -- steering --

Act = Literal["scale", "restart", "drain", "stop", "start"]


async def steer(bus: Bus, action: Act, **more: Any) -> AgentSteered:
    request = SteerAgent(agent=more.pop("agent", "billing"), action=action, **more)
    return await bus.call(STEER_AGENT, request)


@pytest.fixture
async def steered(town: Town) -> Town:
    steering = KubernetesSteering(
        town.bus, serving=lambda key: {"i-7"} if key.name == "billing" else ()
    )
    await town.bus.serve("operator", [route(STEER_AGENT, steering.steer)])
    await town.cluster.post(DEPLOYMENTS, deployment())
    canary = deployment("billing-canary", subset="canary", agent="billing")
    await town.cluster.post(DEPLOYMENTS, canary)
    return town


async def replicas(town: Town, name: str = "billing") -> int:
    found = await town.cluster.get(DEPLOYMENTS, "default", name)
    return found["spec"]["replicas"]


async def test_an_agent_is_scaled_stopped_and_started_through_its_deployment(steered: Town):
    said = await steer(steered.bus, "scale", instances=3)
    assert (said.instances, said.where) == (3, ("Deployment default/billing",))
    assert await replicas(steered) == 3
    scaled = [path for method, path, _ in steered.kube.written if method == "PATCH"]
    assert scaled[0].endswith("/deployments/billing/scale")

    await steer(steered.bus, "stop")
    assert await replicas(steered) == 0
    await steer(steered.bus, "stop")
    found = await steered.cluster.get(DEPLOYMENTS, "default", "billing")
    assert found["metadata"]["annotations"][STOPPED_AT] == "3"
    assert (await steer(steered.bus, "start")).instances == 3
    assert await replicas(steered) == 3
    assert await replicas(steered, "billing-canary") == 2


async def test_who_has_steered_what_is_written_down(steered: Town):
    heard: list[Packet] = []
    subject = subjects.audit(steered.bus.tenant, "steered")
    await steered.bus.transport.subscribe(subject, heard.append)
    await steer(steered.bus, "scale", instances=3)
    await steered.seen(lambda: heard)

    said = json.loads(heard[0].payload)
    assert (said["action"], said["before"], said["after"]) == ("scale", 2, 3)
    assert said["deployment"] == "default/billing"


async def test_a_release_line_is_restarted_by_itself(steered: Town):
    await steer(steered.bus, "restart", subset="canary")

    found = await steered.cluster.get(DEPLOYMENTS, "default", "billing-canary")
    template = found["spec"]["template"]["metadata"]
    assert "kubectl.kubernetes.io/restartedAt" in template["annotations"]
    other = await steered.cluster.get(DEPLOYMENTS, "default", "billing")
    assert "annotations" not in other["spec"]["template"]["metadata"]


async def test_what_cannot_be_steered_is_told(steered: Town):
    with pytest.raises(NotFound, match="no Deployment runs agent 'nobody'"):
        await steer(steered.bus, "stop", agent="nobody")
    with pytest.raises(InvalidMessage, match="scale needs"):
        await steer(steered.bus, "scale")
    with pytest.raises(InvalidMessage, match="cannot be told to stop"):
        await steer(steered.bus, "stop", instance="i-1")
    with pytest.raises(NotFound, match=r"has no instance 'i-1'.*there are i-7"):
        await steer(steered.bus, "drain", instance="i-1")
    await steer(steered.bus, "stop")
    with pytest.raises(Conflict, match=r"is stopped.*agents start billing"):
        await steer(steered.bus, "restart")
    await steered.cluster.post(DEPLOYMENTS, deployment("b2", agent="billing"))
    with pytest.raises(Conflict, match="default/b2, default/billing"):
        await steer(steered.bus, "stop")


async def test_a_tenant_steers_only_what_is_its_own(steered: Town):
    theirs = deployment("theirs", tenant="theirs")
    await steered.cluster.post(DEPLOYMENTS, theirs)
    with pytest.raises(NotFound):
        await steer(steered.bus, "stop", agent="theirs")
    request = SteerAgent(agent="theirs", action="scale", instances=1)
    await audit.prepare(steered.bus)
    mine = caller_headers("ann@laptop")
    said = await steered.bus.call(STEER_AGENT, request, tenant="theirs", headers=mine)
    assert said.instances == 1
    stream = steered.bus.transport.stream(audit.AUDIT)
    (written,) = await stream.read(subjects.audit("theirs", "steered"))
    record = json.loads(written.payload)
    assert (record["action"], record["after"], record["asked_by"]) == ("scale", 1, "ann@laptop")


async def test_one_instance_is_drained_on_the_bus(steered: Town):
    drained: list[str] = []
    async with steered.mesh.bus("i-7") as instance:
        instance.on_drain = lambda: drained.append("i-7")
        await instance.serve("nothing", [])
        await steer(steered.bus, "restart", instance="i-7")

    assert drained == ["i-7"]


async def test_an_instance_that_serves_several_tenants_is_drained_too(town: Town):
    drained: list[str] = []
    await town.cluster.post(DEPLOYMENTS, deployment("helpdesk", agent="helpdesk"))
    await town.join("helpdesk", tenant="shared")
    async with town.operator(), town.mesh.bus("i-helpdesk-0") as instance:
        instance.on_drain = lambda: drained.append("i-helpdesk-0")
        await instance.serve("nothing", [])
        await steer(town.bus, "restart", agent="helpdesk", instance="i-helpdesk-0")

    assert drained == ["i-helpdesk-0"]


def test_kinds_have_paths():
    assert OURS["Channel"].at("n", "c", "status") == (
        "/apis/lmos.eclipse/v1/namespaces/n/channels/c/status"
    )
