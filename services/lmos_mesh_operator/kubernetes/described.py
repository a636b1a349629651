"""Makes an Agent of every Deployment that is one, from what it says that it can do."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lmos_mesh.errors import Conflict, MeshError, NotFound, Unavailable
from lmos_mesh.events import rfc3339
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resources import Agent
from lmos_mesh_operator.kubernetes import deployments
from lmos_mesh_operator.kubernetes.cluster import DEPLOYMENTS, OURS, SERVICES, Cluster
from lmos_mesh_operator.kubernetes.deployments import Fault, Wait
from lmos_mesh_operator.kubernetes.levels import Levels
from lmos_mesh_operator.kubernetes.mirror import Mirror, Tell
from lmos_mesh_operator.kubernetes.mirroring import DESCRIBED, Seen
from lmos_mesh_operator.kubernetes.objects import labels, metadata
from lmos_mesh_operator.kubernetes.statuses import condition, normal_status

logger = logging.getLogger(__name__)

# As LMOS asks again; but it gives up after three times.
_FIRST_S = 5.0
_FACTOR = 1.5
_MOST_S = 60.0
_FETCH_S = 10.0
_SOON_S = 0.2

Named = tuple[str, str]
"""Namespace and name."""


class Described:
    """The Deployments and Services of the cluster, and the Agents that follow from them.

    Args:
        template: Where they say what they can do (`deployments.CAPABILITIES_URL`).
        first_s: How long to wait before asking again.
    """

    def __init__(
        self,
        cluster: Cluster,
        mirror: Mirror,
        *,
        tell: Tell,
        template: str,
        namespaces: Iterable[str],
        is_leader: Callable[[], bool],
        clock: Callable[[], float],
        first_s: float = _FIRST_S,
    ) -> None:
        self._cluster = cluster
        self._mirror = mirror
        self._tell = tell
        self._template = template
        self._namespaces = sorted(namespaces)
        self._is_leader = is_leader
        self._clock = clock
        self._deployments: dict[Named, Mapping[str, Any]] = {}
        self._services: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._asked: dict[Named, tuple[str, str]] = {}
        self._told: dict[Named, str] = {}
        self.levels = Levels[Named](
            self._level, failed=self._failed, first_s=first_s, factor=_FACTOR, most_s=_MOST_S
        )

    def on_object(self, kind: str, body: Mapping[str, Any], gone: bool) -> None:
        """A Deployment or a Service of the cluster has changed."""
        named = metadata(body)
        at = str(named.get("namespace", "")), str(named["name"])
        if kind == "Service":
            services = self._services.setdefault(at[0], {})
            if gone:
                services.pop(at[1], None)
            else:
                services[at[1]] = body
            self.levels.look_at(
                [
                    one
                    for one, known in self._deployments.items()
                    if one[0] == at[0] and deployments.is_agent(known)
                ]
            )
            return
        known = self._deployments.get(at)
        if gone:
            self._deployments.pop(at, None)
        else:
            self._deployments[at] = body
        if deployments.is_agent(body) or (known is not None and deployments.is_agent(known)):
            self.levels.look_at([at])

    async def read(self) -> None:
        """Read the Deployments and Services that there are; those that are not are forgotten."""
        found = await self._cluster.list(SERVICES, self._namespaces)
        self._services.clear()
        for body in found:
            self.on_object("Service", body, False)
        gone = dict(self._deployments)
        for body in await self._cluster.list(DEPLOYMENTS, self._namespaces):
            gone.pop((body["metadata"]["namespace"], body["metadata"]["name"]), None)
            self.on_object("Deployment", body, False)
        for body in gone.values():
            self.on_object("Deployment", body, True)
        for agent in self._mirror.agents():
            if (owner := deployments.made_by_deployment(agent.body)) is not None:
                self.levels.look_at([(agent.key.namespace, owner[0])])

    async def _level(self, at: Named) -> None:
        if not self._is_leader():
            return
        deployment = self._deployments.get(at)
        if deployment is None or not deployments.is_agent(deployment):
            await self._withdraw(at)
            return
        services = self._services.get(at[0], {}).values()
        outlook = deployments.look(deployment, services, template=self._template)
        if isinstance(outlook, Wait):
            return
        if isinstance(outlook, Fault):
            await self._fault(at, deployment, outlook)
            return
        uid = str(deployment["metadata"].get("uid", ""))
        agent = self._agent(at)
        if agent is not None and self._asked.get(at) == (uid, outlook.revision):
            # Said again: it may not have been written, or something was in the way meanwhile.
            await self._condition(at, DESCRIBED, "")
            return
        body, wrong = await self._ask(deployment, outlook.url)
        if body is None:
            said = f"GET {outlook.url}: {wrong}"
            await self._fault(at, deployment, Fault(reason="BadDescription", message=said))
            raise Unavailable(said)
        try:
            if await self._write(at, deployment, body):
                self._asked[at] = uid, outlook.revision
        except (Conflict, NotFound):
            await self._mirror.refresh(ResourceKey(Agent.__name__, *at))
            self.levels.look_at_later(at, _SOON_S)  # the mirror was faster

    async def _ask(
        self, deployment: Mapping[str, Any], url: str
    ) -> tuple[dict[str, Any] | None, str]:
        document = await self._cluster.fetch(url, timeout_s=_FETCH_S, most=deployments.MOST_BYTES)
        try:
            return deployments.agent_of(deployment, json.loads(document))
        except (ValueError, RecursionError) as exc:
            return None, f"it is no JSON: {exc}"

    async def _write(self, at: Named, deployment: Mapping[str, Any], body: dict[str, Any]) -> bool:
        """Make the Agent what the Deployment says; False if it is not ours to make."""
        agent = self._agent(at)
        if agent is None:
            after = await self._cluster.post(OURS["Agent"], body)
            self._mirror.on_object("Agent", after, False)
        else:
            owner = deployments.made_by_deployment(agent.body)
            if owner is None or owner[0] != at[1]:
                said = (
                    f"an Agent {at[1]!r} was declared by hand: it stays; delete it, or rename one"
                )
                await self._fault(at, deployment, Fault(reason="NameTaken", message=said))
                return False
            if agent.leaving:
                raise Unavailable(f"Agent {at[1]!r} is being deleted")
            made: dict[str, Any] = {**agent.body, "spec": body["spec"]}
            made["metadata"] = {
                **agent.metadata,
                "labels": {**labels(agent.body), **labels(body)},
                "ownerReferences": metadata(body)["ownerReferences"],
            }
            if made != agent.body:
                after = await self._cluster.put(OURS["Agent"], made)
                self._mirror.on_object("Agent", after, False)
        count = len(body["spec"].get("providedCapabilities", ()))
        said = f"Agent {at[1]!r} provides {count} capabilit{'y' if count == 1 else 'ies'}"
        if self._told.get(at) != said:
            logger.info("Deployment %s/%s: %s", *at, said)
            self._told[at] = said
            self._tell(deployment, normal=True, reason="Described", message=said)
        await self._condition(at, DESCRIBED, "")
        return True

    async def _withdraw(self, at: Named) -> None:
        """Delete the Agent of a Deployment that is gone, or is no agent any more."""
        self._asked.pop(at, None)
        self._told.pop(at, None)
        agent = self._agent(at)
        if agent is None or agent.leaving:
            return
        owner = deployments.made_by_deployment(agent.body)
        if owner is None or owner[0] != at[1]:
            return
        logger.info("Deployment %s/%s is no agent any more: its Agent is deleted", *at)
        try:
            await self._cluster.delete(OURS["Agent"], *at, uid=agent.uid)
        except NotFound:
            logger.debug("the garbage collector was faster")

    async def _fault(self, at: Named, deployment: Mapping[str, Any], fault: Fault) -> None:
        if self._told.get(at) != fault.message:
            self._told[at] = fault.message
            logger.warning("Deployment %s/%s: %s", *at, fault.message)
            self._tell(deployment, normal=False, reason=fault.reason, message=fault.message)
        await self._condition(at, fault.reason, fault.message)

    async def _condition(self, at: Named, reason: str, message: str) -> None:
        """Say in the Agent, if there is one, whether its Deployment has described it."""
        agent = self._agent(at)
        if agent is None or agent.leaving:
            return
        owner = deployments.made_by_deployment(agent.body)
        if owner is None or owner[0] != at[1]:
            return
        status = dict(agent.body.get("status") or {})
        before = condition(status, DESCRIBED)
        holds = "False" if message else "True"
        now: dict[str, Any] = {
            "type": DESCRIBED,
            "status": holds,
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(self._clock()),
            "observedGeneration": agent.generation,
        }
        if before is not None and before.get("status") == holds:
            now["lastTransitionTime"] = before.get("lastTransitionTime", "")
            if before.get("reason") == reason and before.get("message", "") == message:
                return
        others = [one for one in status.get("conditions") or () if one.get("type") != DESCRIBED]
        status["conditions"] = [*others, now]
        body = {**agent.body, "status": normal_status(Agent.__name__, status)}
        try:
            after = await self._cluster.put(OURS["Agent"], body, part="status")
        except (Conflict, NotFound):
            self.levels.look_at_later(at, _SOON_S)  # the mirror has just written it
        else:
            self._mirror.on_object("Agent", after, False)

    def _failed(self, at: Named, error: MeshError) -> None:
        deployment = self._deployments.get(at)
        said = str(error)
        known = self._told.get(at)
        if deployment is None or (known is not None and known in said):
            return
        self._told[at] = said
        logger.warning("Deployment %s/%s, asking again: %s", *at, said)
        self._tell(deployment, normal=False, reason="NotDescribed", message=said)

    def _agent(self, at: Named) -> Seen | None:
        return self._mirror.seen(ResourceKey(Agent.__name__, *at))
