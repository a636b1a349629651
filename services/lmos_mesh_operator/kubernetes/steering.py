"""Scales, restarts, stops and starts agents whose processes are in the cluster."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.errors import Conflict, InvalidMessage, NotFound
from lmos_mesh.events import rfc3339
from lmos_mesh.membership import how_to_start
from lmos_mesh.messages import AgentSteered, SteerAgent
from lmos_mesh.things import ThingKey
from lmos_mesh_operator.kubernetes import deployments
from lmos_mesh_operator.kubernetes.cluster import DEPLOYMENTS, Cluster, connected
from lmos_mesh_operator.kubernetes.objects import annotations, member

logger = logging.getLogger(__name__)

STOPPED_AT = "lmos.eclipse/instances-before-stop"
"""The annotation of a Deployment that was stopped: how many instances it had."""
_RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"


class KubernetesSteering:
    """Answers for the agents that run as Deployments; on every replica of the operator.

    Args:
        bus: Where an instance is drained.
        serving: The instances of an agent that are there.
        namespaces: Where to look for Deployments; none for everywhere.
        open_cluster: Connects to the cluster's API.
        clock: Unix seconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        serving: Callable[[ThingKey], Collection[str]],
        namespaces: Sequence[str] = (),
        open_cluster: Callable[[], AbstractAsyncContextManager[Cluster]] = connected,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._serving = serving
        self._namespaces = tuple(namespaces)
        self._open = open_cluster
        self._clock = clock

    async def steer(self, request: SteerAgent, call: Call) -> AgentSteered:
        """Change how an agent runs.

        Raises:
            NotFound: No Deployment runs it, or it has no such instance.
            Conflict: Several do; or it is stopped, and cannot be restarted.
            InvalidMessage: The request lacks something.
            Forbidden: The cluster does not allow it.
        """
        if request.action == "scale" and request.instances is None:
            raise InvalidMessage("scale needs `instances`", field="/instances")
        async with self._open() as cluster:
            found = await self._find(cluster, request, call.tenant)
            at = str(found["metadata"]["namespace"]), str(found["metadata"]["name"])
            if request.instance:
                instances, said = await self._steer_one(request, call)
            else:
                instances, said = await self._steer_all(cluster, at, found, request, call.tenant)
        logger.info("Deployment %s/%s: %s", *at, said)
        what = {
            "agent": request.agent,
            "subset": request.subset,
            "action": request.action,
            "instance": request.instance,
            "before": _running(found),
            "after": _running(found) if instances is None else instances,
            "deployment": "/".join(at),
        }
        audit.write(self._bus, call.tenant, "steered", what, caller=call.caller)
        return AgentSteered(
            agent=request.agent,
            subset=request.subset,
            instances=instances,
            where=(f"Deployment {at[0]}/{at[1]}",),
            message=said,
        )

    async def _find(self, cluster: Cluster, request: SteerAgent, tenant: str) -> Mapping[str, Any]:
        found = [
            one
            for one in await cluster.list(DEPLOYMENTS, self._namespaces)
            if deployments.runs(one, request.agent, request.subset)
            and deployments.tenant_of(one, self._bus.tenant) == tenant
        ]
        named = f"agent {request.agent!r} ({request.subset})"
        if not found:
            raise NotFound(
                f"no Deployment runs {named}",
                hint=f"label it `{deployments.NAME_LABEL}: {request.agent}` and "
                f"`subset: {request.subset}`",
            )
        if len(found) > 1:
            metadata = [one["metadata"] for one in found]
            names = sorted(f"{one['namespace']}/{one['name']}" for one in metadata)
            raise Conflict(
                f"{len(found)} Deployments run {named}: {', '.join(names)}",
                hint="give all but one of them another `subset`",
            )
        return found[0]

    async def _steer_all(
        self,
        cluster: Cluster,
        at: tuple[str, str],
        found: Mapping[str, Any],
        request: SteerAgent,
        tenant: str,
    ) -> tuple[int | None, str]:
        running = _running(found)
        noted = annotations(found).get(STOPPED_AT, "")
        match request.action:
            case "scale":
                assert request.instances is not None
                await self._scale(cluster, at, request.instances)
                return request.instances, f"scaled from {running} to {request.instances}"
            case "restart":
                if not running:
                    raise Conflict(
                        f"agent {request.agent!r} ({request.subset}) is stopped",
                        hint=how_to_start(ThingKey(tenant, request.agent, request.subset)),
                    )
                told = {_RESTARTED_AT: rfc3339(self._clock())}
                template = {"template": {"metadata": {"annotations": told}}}
                await cluster.patch(DEPLOYMENTS, *at, {"spec": template})
                return running, "its pods are replaced, each drained before it ends"
            case "stop" | "drain":
                if running:
                    note = {"metadata": {"annotations": {STOPPED_AT: str(running)}}}
                    await cluster.patch(DEPLOYMENTS, *at, note)
                await self._scale(cluster, at, 0)
                return 0, "its pods finish what they are at, and end"
            case "start":
                if running:
                    return running, f"it has {running} instances already"
                wanted = int(noted) if noted.isdecimal() and int(noted) else 1
                await self._scale(cluster, at, wanted)
                return wanted, f"started with {wanted}"

    async def _steer_one(self, request: SteerAgent, call: Call) -> tuple[int | None, str]:
        """One instance is drained on the bus; the kubelet starts its container again."""
        if request.action not in ("restart", "drain"):
            raise InvalidMessage(
                f"one instance of a Deployment cannot be told to {request.action}",
                hint="restart or drain it, or scale the agent",
                field="/action",
            )
        there = self._serving(ThingKey(call.tenant, request.agent, request.subset))
        if request.instance not in there:
            raise NotFound(
                f"agent {request.agent!r} ({request.subset}) has no instance {request.instance!r}",
                hint=f"there are {', '.join(sorted(there))}" if there else "none of it is there",
            )
        subject = subjects.instance(call.tenant, request.instance, "drain")
        await self._bus.request(subject, b"{}")
        return None, f"instance {request.instance} drains; its container is started again"

    async def _scale(self, cluster: Cluster, at: tuple[str, str], instances: int) -> None:
        wanted = {"spec": {"replicas": instances}}
        await cluster.patch(DEPLOYMENTS, *at, wanted, part="scale")


def _running(deployment: Mapping[str, Any]) -> int:
    return int(member(deployment, "spec").get("replicas", 1))
