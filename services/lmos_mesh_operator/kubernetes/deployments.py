"""Which Deployments are agents, where each says what it can do, and the Agent that it makes. Pure.

As LMOS has it: a label says that it is one; when it is ready, the one Service that selects it is
asked. What stands in the way is told, and looked at again when something changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lmos_mesh.resource_faults import read_resource
from lmos_mesh.resource_index import shown
from lmos_mesh.resources import API_VERSION, DEFAULT_SUBSET, SUBSET_LABEL, TENANT_LABEL
from lmos_mesh.wrong_fields import told
from lmos_mesh_operator.kubernetes.objects import items, labels, members, metadata
from lmos_mesh_operator.kubernetes.statuses import lean

AGENT_LABEL = "lmos-agent"
NAME_LABEL = "lmos.eclipse/agent"
"""The label of a Deployment that runs an agent of another name than its own."""
CAPABILITIES_URL = (
    "{scheme}://{service}.{namespace}.svc.cluster.local:{port}/.well-known/capabilities.json"
)
"""Where a Deployment says what it can do."""
MOST_BYTES = 512 * 1024

_TEXTS = ("id", "name", "version", "description")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask there what the Deployment can do.

    Attributes:
        revision: What the answer is good for: another one is worth asking again.
    """

    url: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """It is not ready; nobody has to be told."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that a person has to mend."""

    reason: str
    message: str


Outlook = Ask | Wait | Fault


def is_agent(deployment: Mapping[str, Any]) -> bool:
    """Whether a Deployment's label says that it is an agent."""
    return labels(deployment).get(AGENT_LABEL) == "true"


def subset_of(deployment: Mapping[str, Any]) -> str:
    """Its release line."""
    return labels(deployment).get(SUBSET_LABEL) or DEFAULT_SUBSET


def agent_named(deployment: Mapping[str, Any]) -> str:
    """The agent that it runs."""
    return labels(deployment).get(NAME_LABEL) or str(metadata(deployment).get("name", ""))


def tenant_of(deployment: Mapping[str, Any], tenant: str) -> str:
    """Who may steer it: whoever its label `tenant` names, else the operator's own tenant."""
    return labels(deployment).get(TENANT_LABEL) or tenant


def runs(deployment: Mapping[str, Any], agent: str, subset: str) -> bool:
    """Whether a Deployment says that it runs that agent, in that release line."""
    labelled = is_agent(deployment) or bool(labels(deployment).get(NAME_LABEL))
    return labelled and (agent_named(deployment), subset_of(deployment)) == (agent, subset)


def template_fault(template: str) -> str:
    """What is wrong with a template of the URL; empty if nothing is."""
    try:
        url = template.format(scheme="http", service="s", namespace="n", port=80)
    except (LookupError, ValueError, AttributeError, TypeError) as exc:
        return f"it cannot be filled in: {type(exc).__name__} {exc}"
    return "" if url.startswith(("http://", "https://")) else f"it makes {url!r}, which is no URL"


def look(
    deployment: Mapping[str, Any], services: Iterable[Mapping[str, Any]], *, template: str
) -> Outlook:
    """What is to be done about a Deployment that is an agent.

    Args:
        deployment: As the cluster has it.
        services: Those of its namespace.
        template: The URL, with the fields of `CAPABILITIES_URL`.
    """
    if not _is_ready(deployment):
        return Wait(message="it is not ready yet")
    selecting = [one for one in services if _selects(one, _pod_labels(deployment))]
    if len(selecting) != 1:
        names = ", ".join(sorted(str(metadata(one).get("name", "")) for one in selecting))
        found = f"{len(selecting)} do: {names}" if names else "none does"
        said = f"exactly one Service must select its pods, and {found}"
        return Fault(reason="NoSingleService", message=said)
    service = selecting[0]
    port = _port(items(members(service.get("spec")).get("ports")))
    name = str(metadata(service).get("name", ""))
    if port is None:
        said = f"Service {name!r} has no port with `appProtocol` or name http or https"
        return Fault(reason="NoHttpPort", message=said)
    scheme, number = port
    fields = {
        "scheme": scheme,
        "service": name,
        "namespace": str(metadata(deployment).get("namespace", "")),
        "port": number,
    }
    url = template.format(**fields)
    return Ask(url=url, revision=f"{metadata(deployment).get('generation', 0)} {url}")


def agent_of(deployment: Mapping[str, Any], described: Any) -> tuple[dict[str, Any] | None, str]:
    """The Agent object that a Deployment makes; or None, and what is wrong with what it says."""
    if not isinstance(described, Mapping):
        return None, "it is no JSON object"
    says = cast("Mapping[str, Any]", described)
    told_of = metadata(deployment)
    name = str(told_of.get("name", ""))
    capabilities = says.get("capabilities")
    if not isinstance(capabilities, list):
        return None, "/capabilities: must be a list"
    provided: list[Any] = [_capability(one) for one in cast("list[Any]", capabilities)]
    resource, faults = read_resource(
        {
            "apiVersion": API_VERSION,
            "kind": "Agent",
            "metadata": {
                "name": name,
                "namespace": told_of.get("namespace"),
                "labels": {AGENT_LABEL: "true", SUBSET_LABEL: subset_of(deployment)},
            },
            "spec": {
                "id": name,
                "description": says.get("description") or "",
                "supportedTenants": says.get("supportedTenants") or [],
                "supportedChannels": says.get("supportedChannels") or [],
                "providedCapabilities": provided,
            },
        }
    )
    if resource is None:
        return None, told(faults)
    body = shown(resource)
    body["metadata"]["ownerReferences"] = [owner_of(deployment)]
    body["spec"] = lean(getattr(resource, "spec", None))
    return body, ""


def owner_of(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """What an Agent says of the Deployment that made it; it goes with that."""
    told_of = metadata(deployment)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": told_of.get("name"),
        "uid": told_of.get("uid"),
        "controller": True,
        "blockOwnerDeletion": False,
    }


def made_by_deployment(agent: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and uid of the Deployment that an Agent is from; None if somebody declared it."""
    for one in items(metadata(agent).get("ownerReferences")):
        if one.get("kind") == "Deployment":
            return str(one.get("name", "")), str(one.get("uid", ""))
    return None


def _capability(one: Any) -> Any:
    if not isinstance(one, Mapping):
        return one
    said = cast("Mapping[str, Any]", one)
    known = {name: said[name] for name in _TEXTS if said.get(name) is not None}
    return {**known, "examples": said.get("examples") or []}


def _is_ready(deployment: Mapping[str, Any]) -> bool:
    status = members(deployment.get("status"))
    wanted = members(deployment.get("spec")).get("replicas", 1)
    return (
        wanted > 0
        and status.get("observedGeneration", 0) >= metadata(deployment).get("generation", 0)
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("availableReplicas", 0) >= wanted
        and status.get("replicas", 0) == wanted
    )


def _pod_labels(deployment: Mapping[str, Any]) -> Mapping[str, str]:
    template = members(members(deployment.get("spec")).get("template"))
    return labels(template)


def _selects(service: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    selector = members(members(service.get("spec")).get("selector"))
    return bool(selector) and all(labels.get(name) == value for name, value in selector.items())


def _port(ports: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
    """The port that says it speaks HTTP, by its protocol and then by its name; or the only one."""
    for says in ("appProtocol", "name"):
        for scheme in ("https", "http"):
            for one in ports:
                if str(one.get(says) or "").lower().partition("-")[0] == scheme:
                    return scheme, int(one.get("port", 0))
    if len(ports) == 1 and ports[0].get("protocol", "TCP") == "TCP":
        return "http", int(ports[0].get("port", 0))
    return None
