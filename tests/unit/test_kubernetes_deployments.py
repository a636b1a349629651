"""Which Deployments are agents, and what is to be done about them."""

from typing import Any

import pytest

from lmos_mesh_operator.kubernetes.deployments import (
    CAPABILITIES_URL,
    Ask,
    Fault,
    Wait,
    agent_of,
    look,
    made_by_deployment,
    runs,
    template_fault,
)

READY = {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
DESCRIBED: dict[str, Any] = {
    "id": "whatever",
    "description": "Knows bills.",
    "supportedTenants": ["acme"],
    "supportedChannels": ["web"],
    "capabilities": [{"id": "bill", "name": "Bill", "version": "1.0.0", "extra": 1}],
    "later": True,
}


def deployment(
    status: dict[str, Any] | None = None, *, subset: str = "", **labels: str
) -> dict[str, Any]:
    if subset:
        labels["subset"] = subset
    return labelled({"lmos-agent": "true", **labels}, status)


def labelled(labels: dict[str, str], status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "billing",
            "namespace": "shop",
            "uid": "u1",
            "generation": 3,
            "labels": labels,
        },
        "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": "b", "v": "1"}}}},
        "status": READY if status is None else status,
    }


def service(*ports: dict[str, Any], name: str = "front", **selector: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": selector or {"app": "b"}, "ports": list(ports)},
    }


@pytest.mark.parametrize(
    ("ports", "url"),
    [
        ([{"name": "http", "port": 80}], "http://front.shop.svc.cluster.local:80"),
        ([{"name": "https-web", "port": 443}], "https://front.shop.svc.cluster.local:443"),
        (
            [{"name": "a", "port": 1}, {"name": "b", "port": 2, "appProtocol": "HTTP"}],
            "http://front.shop.svc.cluster.local:2",
        ),
        (
            [{"name": "http", "port": 1}, {"name": "b", "port": 2, "appProtocol": "https"}],
            "https://front.shop.svc.cluster.local:2",
        ),
        ([{"port": 9}], "http://front.shop.svc.cluster.local:9"),
    ],
)
def test_the_port_is_the_one_that_says_it_speaks_http(ports: list[dict[str, Any]], url: str):
    outlook = look(deployment(), [service(*ports)], template=CAPABILITIES_URL)

    assert isinstance(outlook, Ask)
    assert outlook.url == f"{url}/.well-known/capabilities.json"


@pytest.mark.parametrize(
    "status",
    [
        {},
        {**READY, "observedGeneration": 2},
        {**READY, "availableReplicas": 1},
        {**READY, "updatedReplicas": 1},
        {**READY, "replicas": 3},
    ],
)
def test_one_that_is_not_ready_is_waited_for(status: dict[str, Any]):
    found = look(deployment(status), [service({"port": 1})], template=CAPABILITIES_URL)
    assert isinstance(found, Wait)


@pytest.mark.parametrize(
    ("services", "reason"),
    [
        ([], "NoSingleService"),
        ([service({"port": 1}, app="other")], "NoSingleService"),
        ([service({"port": 1}), service({"port": 1}, name="two")], "NoSingleService"),
        ([service({"port": 1}, app="b", v="2")], "NoSingleService"),
        ([service({"name": "a", "port": 1}, {"name": "b", "port": 2})], "NoHttpPort"),
    ],
)
def test_what_a_person_has_to_mend_is_said(services: list[dict[str, Any]], reason: str):
    found = look(deployment(), services, template=CAPABILITIES_URL)
    assert isinstance(found, Fault)
    assert found.reason == reason


def test_a_service_without_selector_selects_nothing():
    outside = {"metadata": {"name": "x", "namespace": "shop"}, "spec": {"ports": [{"port": 1}]}}
    found = look(deployment(), [outside, service({"port": 1})], template=CAPABILITIES_URL)
    assert isinstance(found, Ask)


def test_the_agent_is_called_as_the_deployment_whatever_it_calls_itself():
    body, wrong = agent_of(deployment(subset="canary"), DESCRIBED)

    assert wrong == ""
    assert body is not None
    assert body["metadata"]["name"] == "billing"
    assert body["metadata"]["namespace"] == "shop"
    assert body["metadata"]["labels"] == {"lmos-agent": "true", "subset": "canary"}
    assert made_by_deployment(body) == ("billing", "u1")
    assert body["spec"] == {
        "id": "billing",
        "description": "Knows bills.",
        "supportedTenants": ["acme"],
        "supportedChannels": ["web"],
        "providedCapabilities": [{"id": "bill", "name": "Bill", "version": "1.0.0"}],
    }


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ([], "no JSON object"),
        ({}, "/capabilities"),
        ({"capabilities": [1]}, "/spec/providedCapabilities/0"),
        ({"capabilities": [{"id": "a"}]}, "/spec/providedCapabilities/0/version"),
        ({"capabilities": [{"version": "1.0.0"}]}, "name"),
        ({"capabilities": [], "supportedTenants": "acme"}, "/spec/supportedTenants"),
    ],
)
def test_what_it_says_of_itself_may_be_wrong(described: Any, said: str):
    body, wrong = agent_of(deployment(), described)

    assert body is None
    assert said in wrong


def test_a_deployment_runs_the_agent_of_its_label_or_of_its_name():
    assert runs(deployment(), "billing", "stable")
    assert not runs(deployment(), "billing", "canary")
    renamed = labelled({"subset": "canary", "lmos.eclipse/agent": "bills"})
    assert runs(renamed, "bills", "canary")
    assert not runs(renamed, "billing", "canary")
    assert not runs(labelled({"lmos-agent": "false"}), "billing", "stable")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CAPABILITIES_URL, ""),
        ("{scheme}://{service}.mesh/{namespace}", ""),
        ("http://{svc}", "KeyError 'svc'"),
        ("http://{}", "cannot be filled in"),
        ("http://{service", "cannot be filled in"),
        ("{service.nothing}", "cannot be filled in"),
        ("{service}/x", "'s/x', which is no URL"),
    ],
)
def test_where_deployments_are_asked_may_be_written_wrong(template: str, said: str):
    fault = template_fault(template)
    assert said in fault
    assert bool(fault) == bool(said)
