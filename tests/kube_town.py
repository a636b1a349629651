"""A mesh and a cluster that an operator keeps alike, for the tests of its Kubernetes mode."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh import subjects
from lmos_mesh.applied import Applied
from lmos_mesh.bus import Bus
from lmos_mesh.description import describe
from lmos_mesh.errors import NotFound
from lmos_mesh.liveness import LEASES, Lease, Served
from lmos_mesh.membership import REGISTRY
from lmos_mesh.messages import APPLY_RESOURCE, DELETE_RESOURCE, ApplyResource, DeleteResource
from lmos_mesh.resources import Channel
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_operator import Operator, OperatorSettings
from lmos_mesh_operator.kubernetes.cluster import OURS, Cluster, connected
from lmos_mesh_operator.kubernetes.objects import items, member
from tests.conftest import Mesh
from tests.kube_double import Kube, kube_double

SOON_S = 10.0
QUIET_S = 0.4
_POLL_S = 0.02


def channel(name: str = "web", version: str = "^1.0", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Channel",
        "metadata": {"name": name, "namespace": "default", "labels": {"channel": name, **labels}},
        "spec": {"requiredCapabilities": [{"id": "view-bill", "version": version}]},
    }


def agent(name: str = "billing", version: str = "1.0.0") -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "supportedChannels": ["web"],
            "providedCapabilities": [{"id": "view-bill", "version": version}],
        },
    }


class Town:
    """A mesh and a cluster, which an operator keeps alike."""

    def __init__(self, mesh: Mesh, bus: Bus, applied: Applied, kube: Kube, cluster: Cluster):
        self.mesh, self.bus, self.applied = mesh, bus, applied
        self.kube, self.cluster = kube, cluster

    @asynccontextmanager
    async def operator(self, *, dies: bool = False, **settings: Any) -> AsyncGenerator[Operator]:
        given: dict[str, Any] = {"operator_kubernetes": True, **settings}
        serving = Operator(OperatorSettings(**given))
        ready = asyncio.Event()
        async with self.mesh.bus() as bus, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(serving.run(bus, ready.set))
            async with asyncio.timeout(SOON_S):
                await ready.wait()
            try:
                yield serving
            finally:
                if not dies:
                    await serving.leave()
                running.cancel()

    async def object(self, kind: str, name: str) -> dict[str, Any] | None:
        try:
            return await self.cluster.get(OURS[kind], "default", name)
        except NotFound:
            return None

    async def apply(self, resource: dict[str, Any]) -> None:
        await self.bus.call(APPLY_RESOURCE, ApplyResource(resource=resource), nobody_s=SOON_S)

    async def delete(self, kind: str, name: str) -> None:
        await self.bus.call(DELETE_RESOURCE, DeleteResource(kind=kind, name=name), nobody_s=SOON_S)

    async def create(self, resource: dict[str, Any]) -> dict[str, Any]:
        return await self.cluster.post(OURS[resource["kind"]], resource)

    async def change(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        await self.cluster.patch(OURS[kind], "default", name, patch)

    async def until(self, kind: str, name: str, true: Callable[[Any], Any]) -> Any:
        until = time.perf_counter() + SOON_S
        while True:
            found = await self.object(kind, name)
            if true(found):
                return found
            assert time.perf_counter() < until, json.dumps(found, indent=1)
            await asyncio.sleep(_POLL_S)

    async def seen(self, true: Callable[[], Any]) -> None:
        until = time.perf_counter() + SOON_S
        while not true():
            assert time.perf_counter() < until, "not in time"
            await asyncio.sleep(_POLL_S)

    async def join(self, name: str, *, instances: int = 1, tenant: str | None = None) -> None:
        """Have an agent on the mesh, in the tenant of the bus unless another one is named."""
        tenant = tenant or self.bus.tenant
        offered = {"id": "view-bill", "version": "2.0.0"}
        thing = thing_from({"name": name, "tenant": tenant, "capabilities": [offered]})
        registry = self.bus.transport.key_value(REGISTRY)
        await registry.put(thing.key, json.dumps(describe(thing)).encode())
        for number in range(instances):
            served = Served(name=thing.name, subset=thing.subset, concurrency=1)
            lease = Lease(instance=f"i-{name}-{number}", things=(served,))
            await self.bus.transport.key_value(LEASES).put(
                subjects.key(tenant, lease.instance), lease.model_dump_json().encode()
            )

    async def leave(self, name: str) -> None:
        """Have it go, for good."""
        tenant = self.bus.tenant
        await self.bus.transport.key_value(LEASES).delete(subjects.key(tenant, f"i-{name}-0"))
        await self.bus.transport.key_value(REGISTRY).delete(subjects.key(tenant, name, "stable"))

    async def quiet(self) -> int:
        """How often the cluster was written, once that has ended."""
        while True:
            before = self.writes()
            await asyncio.sleep(QUIET_S)
            if self.writes() == before:
                return before

    def events(self, reason: str = "") -> list[dict[str, Any]]:
        return [
            body
            for method, path, body in self.kube.written
            if method == "POST" and path.endswith("/events") and reason in ("", body["reason"])
        ]

    def writes(self) -> int:
        return sum("/events" not in path for _, path, _ in self.kube.written)


@asynccontextmanager
async def kube_town(
    mesh: Mesh, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Town]:
    """On a cluster's API in this process."""
    async with kube_double(directory) as (kube, path):
        monkeypatch.setenv("KUBECONFIG", str(path))
        async with connected() as cluster, mesh.bus() as bus, mesh.bus() as reader:
            applied = Applied(reader)
            await applied.follow()
            yield Town(mesh, bus, applied, kube, cluster)


def resolved(found: Any) -> bool:
    return bool(found) and found.get("status", {}).get("resolveStatus") == "RESOLVED"


def condition(found: Any, name: str) -> dict[str, Any]:
    """The condition of that type; an empty one if there is none."""
    conditions = items(member(found, "status").get("conditions"))
    named: list[dict[str, Any]] = [dict(one) for one in conditions if one["type"] == name]
    return named[0] if named else {}


def required(town: Town) -> str:
    found = town.applied.get(Channel, "default", "web")
    return found.spec.required_capabilities[0].version if found is not None else ""


def version_of(found: Any) -> str:
    return found["spec"]["requiredCapabilities"][0]["version"]


@asynccontextmanager
async def local_operator(town: Town) -> AsyncGenerator[None]:
    async with town.operator(operator_kubernetes=False):
        yield
