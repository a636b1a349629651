# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The operator against a real API server, as the ServiceAccount that the Helm chart gives it.

Takes programs that few machines have: it is skipped without them, and says how to get them. With
LMOS_KUBE_KUBECONFIG it runs on that cluster instead, which should be one to throw away.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from lmos_mesh.bus import Bus
from lmos_mesh.errors import Conflict, InvalidMessage, MeshError, NotFound
from lmos_mesh.messages import (
    APPLY_RESOURCE,
    GET_RESOURCE,
    STEER_AGENT,
    ApplyResource,
    GetResource,
    SteerAgent,
)
from lmos_mesh_operator.kubernetes.cluster import (
    DEPLOYMENTS,
    OURS,
    SERVICES,
    Api,
    Cluster,
    connected,
)
from tests.conftest import NatsMesh, StartServer, new_name
from tests.e2e.kube.control_plane import binaries, control_plane, fake_kubelet, missing
from tests.integration.processes import Deployment
from tests.kube_double import kubeconfig
from tests.kube_town import channel, condition, resolved

SOON_S = 30.0
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "lmos-mesh"
CRDS = Path(__file__).parents[2] / "deploy" / "crds"
EVENTS = Api("/api/v1", "events")
NAMESPACES = Api("/api/v1", "namespaces")
ACCOUNTS = Api("/api/v1", "serviceaccounts")
_PATHS = {
    "CustomResourceDefinition": Api("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "ServiceAccount": ACCOUNTS,
    "ClusterRole": Api("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": Api("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    "Role": Api("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Api("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
}
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="session")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The kubeconfig of an administrator of a cluster."""
    if given := os.environ.get("LMOS_KUBE_KUBECONFIG", ""):
        yield Path(given)
        return
    if why := missing(binaries()):
        if os.environ.get("LMOS_KUBE_REQUIRED") == "1":
            pytest.fail(why)
        pytest.skip(why)
    with control_plane(Path(binaries()), tmp_path_factory.mktemp("kube")) as path:
        yield path


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart, with a stand-in for that of NATS, and for any version of Kubernetes."""
    path = tmp_path_factory.mktemp("chart") / "lmos-mesh"
    shutil.copytree(CHART, path)
    nats = path / "charts" / "nats"
    nats.mkdir(parents=True)
    (nats / "Chart.yaml").write_text("apiVersion: v2\nname: nats\nversion: 2.14.2\n")
    said = (path / "Chart.yaml").read_text()
    (path / "Chart.yaml").write_text(
        "".join(line for line in said.splitlines(True) if "kubeVersion" not in line)
    )
    return path


class Site:
    """A namespace of a real cluster, and a mesh of real processes beside it."""

    def __init__(self, cluster: Cluster, namespace: str, account: Path, mesh: Deployment, bus: Bus):
        self.cluster, self.namespace, self.account = cluster, namespace, account
        self.mesh, self.bus = mesh, bus

    def operator(self, **env: str) -> Any:
        """An operator as its own process, with the rights of its ServiceAccount."""
        said = {
            "KUBECONFIG": str(self.account),
            "LMOS_TENANT": self.bus.tenant,
            "LMOS_OPERATOR_KUBERNETES": "1",
            "LMOS_OPERATOR_NAMESPACES": self.namespace,
            "LMOS_OPERATOR_HOME_NAMESPACE": self.namespace,
            "LMOS_OPERATOR_ASK_AGAIN_S": "0.3",
        }
        return self.mesh.service("operator", **(said | env))

    def named(self, resource: dict[str, Any], **labels: str) -> dict[str, Any]:
        metadata: dict[str, Any] = {**resource["metadata"], "namespace": self.namespace}
        metadata["labels"] = metadata.get("labels", {}) | {"tenant": self.bus.tenant} | labels
        return {**resource, "metadata": metadata}

    async def object(self, api: Api, name: str) -> dict[str, Any] | None:
        try:
            return await self.cluster.get(api, self.namespace, name)
        except NotFound:
            return None

    async def until(self, api: Api, name: str, true: Callable[[Any], Any]) -> Any:
        until = time.monotonic() + SOON_S
        while True:
            found = await self.object(api, name)
            if true(found):
                return found
            assert time.monotonic() < until, json.dumps(found, indent=1)
            await asyncio.sleep(0.05)

    async def kept(self, kind: str, name: str) -> dict[str, Any] | None:
        request = GetResource(kind=kind, name=name, namespace=self.namespace)
        try:
            return (await self.bus.call(GET_RESOURCE, request, nobody_s=SOON_S)).resource
        except NotFound:
            return None

    async def eventually(self, true: Callable[[], Awaitable[Any]]) -> Any:
        until = time.monotonic() + SOON_S
        while not (found := await true()):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        return found


async def made(cluster: Cluster, body: dict[str, Any]) -> None:
    api = _PATHS[body["kind"]]
    with suppress(Conflict):
        await cluster.request("POST", api.at(body["metadata"].get("namespace", "")), body=body)


async def make_namespace(cluster: Cluster, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await cluster.request("POST", NAMESPACES.at(), body=body)


async def account_of(
    cluster: Cluster,
    chart: Path,
    namespace: str,
    admin: Path,
    directory: Path,
    *,
    everywhere: bool = False,
) -> Path:
    """The kubeconfig of the operator's ServiceAccount, which has the roles of the chart."""
    values = {"operator": {"namespaces": [] if everywhere else [namespace]}}
    with helm.Chart.load(str(chart)) as loaded:
        texts = loaded.render(values, name="demo", namespace=namespace)
    for name, text in texts.items():
        if name.endswith("accounts.yaml"):
            for body in yaml.safe_load_all(text):
                await made(cluster, body)
    path = ACCOUNTS.at(namespace, "demo-lmos-operator", "token")
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await cluster.request("POST", path, body=asked))["status"]["token"]
    return written(directory / "operator.kubeconfig", admin, token)


def written(path: Path, admin: Path, token: str) -> Path:
    """The kubeconfig of somebody else on the same cluster."""
    server = yaml.safe_load(admin.read_text())["clusters"][0]["cluster"]["server"]
    path.write_text(yaml.safe_dump(kubeconfig(server, token=token)))
    return path


@asynccontextmanager
async def as_user(monkeypatch: pytest.MonkeyPatch, path: Path) -> AsyncGenerator[Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(path))
    async with connected() as cluster:
        yield cluster


@pytest.fixture
async def site(
    admin: Path,
    chart: Path,
    start_nats: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncGenerator[Site]:
    url = (await start_nats()).url
    mesh = Deployment(url, tmp_path)
    namespace = new_name("n")
    async with (
        as_user(monkeypatch, admin) as cluster,
        NatsMesh(url).bus() as bus,
        asyncio.TaskGroup() as tasks,
    ):
        kubelet = tasks.create_task(fake_kubelet(cluster))
        for file in sorted(CRDS.glob("*.yaml")):
            await made(cluster, yaml.safe_load(file.read_text()))
        await until_served(cluster)
        await make_namespace(cluster, namespace)
        account = await account_of(cluster, chart, namespace, admin, tmp_path)
        try:
            yield Site(cluster, namespace, account, mesh, bus)
        finally:
            mesh.stop()
            kubelet.cancel()


async def until_served(cluster: Cluster) -> None:
    until = time.monotonic() + SOON_S
    for api in OURS.values():
        while True:
            try:
                await cluster.list(api)
                break
            except MeshError:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)


def agent(name: str, version: str = "1.0.0") -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {
            "supportedChannels": ["web"],
            "providedCapabilities": [{"id": "view-bill", "version": version}],
        },
    }


async def test_both_sides_say_the_same_with_no_more_rights_than_the_chart_gives(site: Site):
    operator = site.operator()
    await site.cluster.post(OURS["Agent"], site.named(agent("billing")))
    await site.cluster.post(OURS["Channel"], site.named(channel()))
    found = await site.until(OURS["Channel"], "web", resolved)
    routing = await site.until(OURS["ChannelRouting"], "web", lambda o: o is not None)
    assert routing["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]
    assert (await site.kept("Channel", "web")) is not None

    changed = site.named(channel(version="^9.0"))
    await site.bus.call(APPLY_RESOURCE, ApplyResource(resource=changed))
    unresolved = await site.until(
        OURS["Channel"], "web", lambda o: o["status"]["resolveStatus"] == "UNRESOLVED"
    )
    assert unresolved["spec"]["requiredCapabilities"][0]["version"] == "^9.0"
    events = await site.eventually(lambda: told(site, "Unresolved"))
    assert "view-bill" in events[0]["message"]

    versions = [(await site.object(OURS["Channel"], "web") or {})["metadata"]["resourceVersion"]]
    await asyncio.sleep(1.5)
    versions.append(
        (await site.object(OURS["Channel"], "web") or {})["metadata"]["resourceVersion"]
    )
    assert versions[0] == versions[1]

    await site.cluster.delete(OURS["Channel"], site.namespace, "web")
    await site.until(OURS["Channel"], "web", lambda o: o is None)
    await site.until(OURS["ChannelRouting"], "web", lambda o: o is None)
    assert await site.kept("Channel", "web") is None
    assert [one for one in operator.complaints() if "403" in one] == []


async def told(site: Site, reason: str) -> list[dict[str, Any]]:
    found = await site.cluster.list(EVENTS, [site.namespace])
    return [one for one in found if one["reason"] == reason]


async def test_the_cluster_itself_collects_the_routing_of_a_channel(site: Site):
    operator = site.operator()
    await site.cluster.post(OURS["Agent"], site.named(agent("billing")))
    await site.cluster.post(OURS["Channel"], site.named(channel()))
    await site.until(OURS["ChannelRouting"], "web", lambda o: o is not None)
    await site.until(OURS["Channel"], "web", resolved)
    operator.terminate()
    operator.wait()

    await site.cluster.delete(OURS["Channel"], site.namespace, "web")
    released = {"metadata": {"finalizers": None}}
    await site.cluster.patch(OURS["Channel"], site.namespace, "web", released)

    await site.until(OURS["ChannelRouting"], "web", lambda o: o is None)


async def test_the_definitions_refuse_what_is_not_as_it_should_be(site: Site):
    wrong = site.named(channel())
    wrong["spec"] = {"requiredCapabilities": [{"version": "^1.0"}]}
    with pytest.raises(InvalidMessage, match="requiredCapabilities"):
        await site.cluster.post(OURS["Channel"], wrong)


async def test_the_operator_may_do_nothing_else_in_the_cluster(site: Site):
    user = f"system:serviceaccount:{site.namespace}:demo-lmos-operator"

    async def can(verb: str, resource: str, group: str = "", part: str = "", at: str = "") -> bool:
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "resourceAttributes": {
                    "namespace": at or site.namespace,
                    "verb": verb,
                    "group": group,
                    "resource": resource,
                    "subresource": part,
                },
            },
        }
        return (await site.cluster.request("POST", REVIEWS, body=asked))["status"]["allowed"]

    assert await can("update", "channels", "lmos.eclipse")
    assert await can("update", "channels", "lmos.eclipse", "status")
    assert await can("watch", "deployments", "apps")
    assert await can("patch", "deployments", "apps", "scale")
    assert await can("create", "events")
    for verb, resource, group in (
        ("get", "secrets", ""),
        ("create", "pods", ""),
        ("delete", "deployments", "apps"),
        ("create", "deployments", "apps"),
        ("get", "customresourcedefinitions", "apiextensions.k8s.io"),
        ("bind", "roles", "rbac.authorization.k8s.io"),
    ):
        assert not await can(verb, resource, group), (verb, resource)
    assert not await can("get", "channels", "lmos.eclipse", at="kube-system")


def deployment(site: Site, name: str, **labels: str) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "a", "image": "billing:1"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": site.namespace, "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


async def test_a_deployment_becomes_an_agent_when_its_pods_are_ready_and_is_scaled(
    site: Site,
):
    described = {
        "id": "x",
        "description": "",
        "supportedTenants": [],
        "supportedChannels": ["web"],
        "capabilities": [{"id": "view-bill", "name": "View bill", "version": "1.2.0"}],
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(described).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "billing", "namespace": site.namespace},
        "spec": {"selector": {"app": "billing"}, "ports": [{"name": "http", "port": 80}]},
    }
    async with server:
        site.operator(LMOS_OPERATOR_CAPABILITIES_URL=f"http://127.0.0.1:{port}/{{service}}")
        labels = {"lmos-agent": "true", "tenant": site.bus.tenant}
        await site.cluster.post(DEPLOYMENTS, deployment(site, "billing", **labels))
        await site.cluster.post(SERVICES, service)
        found = await site.until(OURS["Agent"], "billing", lambda o: condition(o, "Described"))
        assert found["spec"]["providedCapabilities"][0]["version"] == "1.2.0"
        await site.cluster.post(OURS["Channel"], site.named(channel()))
        await site.until(OURS["Channel"], "web", resolved)

        await steered(site, "scale", 3)
        await site.until(
            DEPLOYMENTS, "billing", lambda o: o["status"].get("availableReplicas") == 3
        )
        await steered(site, "restart")
        await site.until(
            DEPLOYMENTS,
            "billing",
            lambda o: (
                o["status"].get("observedGeneration") == 3
                and o["status"].get("updatedReplicas") == 3
                and o["status"].get("replicas") == 3
            ),
        )
        await steered(site, "stop")
        await site.until(DEPLOYMENTS, "billing", lambda o: not o["status"].get("replicas"))
        await steered(site, "start")
        await site.until(
            DEPLOYMENTS, "billing", lambda o: o["status"].get("availableReplicas") == 3
        )

        await site.cluster.delete(DEPLOYMENTS, site.namespace, "billing")
        await site.until(OURS["Agent"], "billing", lambda o: o is None)
        await site.until(
            OURS["Channel"], "web", lambda o: o["status"]["resolveStatus"] == "UNRESOLVED"
        )


async def steered(site: Site, action: Any, instances: int | None = None) -> None:
    request = SteerAgent(agent="billing", action=action, instances=instances)
    said = await site.bus.call(STEER_AGENT, request)
    assert said.where == (f"Deployment {site.namespace}/billing",)


async def test_the_second_operator_goes_on_when_the_first_is_killed(site: Site):
    first, second = site.operator(), site.operator()
    await site.cluster.post(OURS["Channel"], site.named(channel()))
    await site.until(OURS["Channel"], "web", lambda o: condition(o, "Accepted"))
    leader = first if first.entries("mirroring") else second
    leader.told_to_end = True
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()

    began = time.monotonic()
    await site.cluster.post(OURS["Channel"], site.named(channel("app")))
    await site.until(OURS["Channel"], "app", lambda o: condition(o, "Accepted"))
    assert time.monotonic() - began < 15


async def test_a_namespace_can_go(site: Site, chart: Path, admin: Path, tmp_path: Path):
    # From another one: in its own it would lose its rights, and be ended with it.
    home = new_name("home")
    await make_namespace(site.cluster, home)
    site.account = await account_of(site.cluster, chart, home, admin, tmp_path, everywhere=True)
    operator = site.operator(LMOS_OPERATOR_NAMESPACES="", LMOS_OPERATOR_HOME_NAMESPACE=home)
    operator.expected = "being terminated"
    await site.cluster.post(OURS["Channel"], site.named(channel()))
    await site.until(OURS["Channel"], "web", lambda o: condition(o, "Accepted"))

    gone = {"apiVersion": "v1", "kind": "DeleteOptions"}
    await site.cluster.request("DELETE", NAMESPACES.at("", site.namespace), body=gone)

    await site.until(OURS["Channel"], "web", lambda o: o is None)
    await site.eventually(lambda: is_gone(site, "Channel", "web"))


async def is_gone(site: Site, kind: str, name: str) -> bool:
    return await site.kept(kind, name) is None


async def test_a_release_is_installed_upgraded_and_rolled_back(
    site: Site, chart: Path, admin: Path
):
    name = site.namespace
    values: dict[str, Any] = {
        "nats": {"enabled": False, "url": "nats://nats:4222"},
        "operator": {"kubernetes": False},
        "crds": {"install": False},
        # An API server of 2021 knows only their first version.
        "podDisruptionBudgets": {"enabled": False},
        "agents": [{"name": "billing", "command": ["lmos"]}],
    }
    more = {**values, "services": {"runtime": {"replicas": 4}}}
    runtime, billing = f"{name}-lmos-runtime", f"{name}-lmos-agent-billing"

    with helm.Config(namespace=name, kubeconfig_path=str(admin)) as config:
        await asyncio.to_thread(config.install, str(chart), name, values)
        await site.until(DEPLOYMENTS, runtime, available(2))
        await site.until(DEPLOYMENTS, billing, available(1))
        # As the operator does; an upgrade has no say in it.
        await site.cluster.patch(DEPLOYMENTS, name, billing, {"spec": {"replicas": 3}})
        await asyncio.to_thread(config.upgrade, str(chart), name, more)
        await site.until(DEPLOYMENTS, runtime, available(4))
        await site.until(DEPLOYMENTS, billing, available(3))
        await asyncio.to_thread(config.rollback, name, version=1)
        await site.until(DEPLOYMENTS, runtime, available(2))
        assert len(config.history(name)) == 3
        await asyncio.to_thread(config.uninstall, name)
    await site.until(DEPLOYMENTS, runtime, lambda o: o is None)


def available(count: int) -> Callable[[Any], bool]:
    return lambda o: (
        bool(o)
        and o["status"].get("availableReplicas") == count
        and o["status"].get("replicas") == count
    )
