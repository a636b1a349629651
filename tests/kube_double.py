# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
"""A cluster's API in this process: kmock, and what of a real server the operator relies on.

Added are uids, resource versions and generations, replacing by PUT with its conflict, status and
scale as parts of their own, preconditions of deletion, and a log of what was written.
"""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp.web
import kmock
import yaml
from kmock._internal import k8s

from lmos_mesh.resources import GROUP, KINDS, VERSION

_VERBS = ["get", "list", "watch", "create", "update", "patch", "delete"]


class Kube(kmock.KubernetesEmulator):
    """The server.

    Attributes:
        written: Method, path and body of every request that was to change something.
        pruned: Members of a spec that the definitions do not know.
        unknown: Whether it has none of our definitions.
        closed: Namespaces in which nobody has any rights.
    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.written: list[tuple[str, str, Any]] = []
        self.pruned: tuple[str, ...] = ()
        self.unknown = False
        self.closed: set[str] = set()
        self._versions = itertools.count(1)
        for model in KINDS.values():
            self._declare(f"{GROUP}/{VERSION}/{model.plural}", model.__name__, {"status"})
        self._declare("apps/v1/deployments", "Deployment", {"status", "scale"})
        self._declare("v1/services", "Service", set())
        self._declare("v1/events", "Event", set())
        # Never asked for, but kopf waits until it knows of them.
        self._declare("v1/namespaces", "Namespace", set())
        definitions = "apiextensions.k8s.io/v1/customresourcedefinitions"
        self._declare(definitions, "CustomResourceDefinition", set())

    def _declare(self, path: str, kind: str, parts: set[str]) -> None:
        said: Any = {
            "namespaced": True,
            "kind": kind,
            "singular": kind.lower(),
            "verbs": _VERBS,
            "subresources": parts,
        }
        self.resources[path] = said

    async def _handle(self, request: Any) -> Any:
        data = request.data
        method = request.method.value.upper() if request.method else ""
        if self.unknown and request.resource is not None and request.resource.group == GROUP:
            return await self._render_error(k8s.KubernetesResourceNotFoundError())
        if request.namespace in self.closed:
            denied = k8s.KubernetesError(status=403, reason="Forbidden", message="it is forbidden")
            return await self._render_error(denied)
        if request.resource is not None and method not in ("", "GET"):
            self.written.append((method, str(request.url), json.loads(json.dumps(data))))
        try:
            if request.resource is not None and isinstance(data, dict):
                self._prepare(request, method, data)
        except k8s.KubernetesError as exc:
            return await self._render_error(exc)
        if request.resource is not None and method == "PUT":
            return await self._replace(request, data)  # kmock has no such thing
        return await super()._handle(request)

    async def _replace(self, request: Any, patch: Any) -> aiohttp.web.StreamResponse:
        key = (request.resource, request.namespace, request.name)
        async with self._lock:
            if self._current(request) is None:
                return await self._render_error(k8s.KubernetesObjectNotFoundError())
            held = self._objects[key]
            before = held.raw["metadata"]["resourceVersion"]
            held.patch(patch)
            raw = json.loads(json.dumps(held.raw))
            metadata = raw["metadata"]
            gone = metadata.get("deletionTimestamp") and not metadata.get("finalizers")
            bus = self._buses[request.resource]
            await bus.put({"type": "DELETED" if gone else "MODIFIED", "object": raw})
            if gone:
                held.delete()
                # As a real one answers: in the version that was replaced.
                raw = {**raw, "metadata": {**metadata, "resourceVersion": before}}
        return aiohttp.web.json_response(raw)

    def _prepare(self, request: Any, method: str, data: dict[str, Any]) -> None:
        current = self._current(request)
        if isinstance(data.get("spec"), dict):
            for name in self.pruned:
                data["spec"].pop(name, None)
        if method == "POST":
            metadata = data.setdefault("metadata", {})
            if "generateName" in metadata:
                metadata.setdefault("name", metadata["generateName"] + uuid.uuid4().hex[:6])
            metadata.setdefault("namespace", request.namespace)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata.update(
                uid=str(uuid.uuid4()),
                resourceVersion=str(next(self._versions)),
                generation=1,
                creationTimestamp=now,
            )
            if request.resource.group == GROUP:
                data.pop("status", None)
        elif method == "DELETE":
            known = (current or {}).get("metadata", {})
            for name, value in (data.get("preconditions") or {}).items():
                if known.get(name) != value:
                    raise k8s.KubernetesError(
                        status=409, reason="Conflict", message=f"{name} changed"
                    )
        elif method in ("PUT", "PATCH") and current is not None:
            self._prepare_change(request, method, data, current)

    def _prepare_change(
        self, request: Any, method: str, data: dict[str, Any], current: Mapping[str, Any]
    ) -> None:
        metadata: dict[str, Any] = dict(current["metadata"])
        if method == "PUT":
            given = data["metadata"].get("resourceVersion")
            if given not in (None, metadata["resourceVersion"]):
                raise k8s.KubernetesError(status=409, reason="Conflict", message="it was modified")
            if request.subresource == "status":
                wanted = {**current, "status": data.get("status")}
            else:
                own = ("uid", "generation", "creationTimestamp", "deletionTimestamp")
                kept = {name: metadata[name] for name in own if name in metadata}
                wanted = {**data, "metadata": {**data["metadata"], **kept}}
                wanted["status"] = current.get("status")
            patch = _difference(current, wanted)
            data.clear()
            data.update(patch)
        changes = data.setdefault("metadata", {})
        changes["resourceVersion"] = str(next(self._versions))
        if "spec" in data and request.subresource in (None, "scale"):
            changes["generation"] = metadata["generation"] + 1

    def _current(self, request: Any) -> dict[str, Any] | None:
        key = (request.resource, request.namespace, request.name)
        if request.name is None or key not in self._objects or self._objects[key].deleted:
            return None
        return self._objects[key].raw


def _difference(before: Any, after: Any) -> dict[str, Any]:
    """The merge patch that makes one of the other."""
    patch: dict[str, Any] = {name: None for name in before if after.get(name) is None}
    for name, value in after.items():
        known = before.get(name)
        if value is None or value == known:
            continue
        nested = isinstance(value, dict) and isinstance(known, dict)
        patch[name] = _difference(known, value) if nested else value
    return json.loads(json.dumps(patch))


@asynccontextmanager
async def kube_double(directory: Path) -> AsyncGenerator[tuple[Kube, Path]]:
    """A server, and the kubeconfig that leads to it."""
    async with Kube() as kube, kmock.Server(kube):
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(str(kube.url))))
        yield kube, path
        await asyncio.sleep(0)


def kubeconfig(server: str, **user: Any) -> dict[str, Any]:
    """A kubeconfig for one server."""
    cluster = {"server": server, "insecure-skip-tls-verify": True}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}
        ],
    }
