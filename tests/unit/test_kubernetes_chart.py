# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The Helm chart, rendered by Helm itself, and every object of it against the cluster's schemas."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from lmos_mesh.resource_schemas import crd
from lmos_mesh.resources import KINDS
from lmos_mesh_operator.kubernetes.cluster import DEPLOYMENTS, OURS, SERVICES

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "lmos-mesh"
CHOICES = sorted(path.name for path in (CHART / "ci").glob("*.yaml"))
VERSION = "1.34"
# Of somebody else: the cluster's own schemas do not know them.
_FOREIGN = ("ScaledObject",)

Object = dict[str, Any]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with a stand-in for the one of NATS, which is fetched when it is installed."""
    path = tmp_path_factory.mktemp("chart") / "lmos-mesh"
    shutil.copytree(CHART, path)
    nats = path / "charts" / "nats"
    nats.mkdir(parents=True)
    (nats / "Chart.yaml").write_text("apiVersion: v2\nname: nats\nversion: 2.14.2\n")
    return path


def rendered(
    chart: Path,
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "demo",
    namespace: str = "prod",
) -> list[Object]:
    with helm.Chart.load(str(chart)) as loaded:
        texts = loaded.render(dict(values or {}), name=name, namespace=namespace)
    return [
        one
        for path, text in texts.items()
        if not path.endswith(".txt")
        for one in yaml.safe_load_all(text)
        if one
    ]


def choice(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / name).read_text())


def both(*names: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        found |= choice(name)
    return found


def named(objects: list[Object], kind: str, name: str) -> Object:
    found = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, [(one["kind"], one["metadata"]["name"]) for one in objects]
    return found[0]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def pods(objects: list[Object]) -> list[Object]:
    return [one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment")]


@pytest.mark.parametrize("name", ["", *CHOICES])
def test_every_object_is_as_the_cluster_wants_it(chart: Path, name: str):
    values = both("agents-values.yaml", name) if name else {}
    objects = rendered(chart, values)

    assert objects
    for one in objects:
        if one["kind"] not in _FOREIGN:
            kubernetes_validate.validate(one, VERSION, strict=True)
    names = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects
    ]
    assert len(set(names)) == len(names)


def notes(chart: Path, values: Mapping[str, Any]) -> str:
    with helm.Chart.load(str(chart)) as loaded:
        texts = loaded.render(dict(values), name="demo", namespace="prod")
    return next(text for path, text in texts.items() if path.endswith("NOTES.txt"))


def test_the_notes_tell_of_what_is_there_alone(chart: Path):
    said = notes(chart, {})
    assert "svc/demo-lmos-http 8420:80" in said
    assert "LMOS_NATS_URL=nats://demo-nats.prod.svc:4222" in said

    without = notes(
        chart,
        {
            "adapters": {"http": {"enabled": False}},
            "operator": {"kubernetes": False},
            **choice("agents-values.yaml"),
        },
    )
    assert "port-forward" not in without
    assert "kubectl get agents" not in without
    assert "no agents yet" not in without


def test_helm_finds_nothing_to_complain_of(chart: Path):
    found = helm.lint(str(chart))

    assert found["errors"] == []
    assert [one for one in found["messages"] if "icon" not in one["error"]] == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tenant": ""}, "tenant"),
        ({"image": {"repository": "a", "pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"agents": [{"name": "Billing", "command": ["a"]}]}, "name"),
        ({"agents": [{"name": "billing"}]}, "command"),
        ({"nope": 1}, "nope"),
        ({"nats": {"enabled": False}}, "nats.url"),
        ({"nats": {"streamReplicas": 2}}, "streamReplicas"),
        ({"nats": {"enabled": False, "url": "ws://nats"}}, "/nats/url"),
        ({"nats": {"enabled": False, "url": "nats://eve:secret@nats"}}, "into a Secret"),
        ({"nats": {"url": "nats://nats"}}, "nats.enabled to false"),
        ({"tenant": "a b"}, "/tenant"),
        ({"affinty": {}}, "affinty"),
        ({"services": {"regstry": {"replicas": 3}}}, "/services/regstry"),
        ({"services": {"registry": {"replicas": "two"}}}, "/services/registry/replicas"),
        ({"adapters": {"http": {"ingress": {"enabled": True}}}}, "ingress.host"),
        (
            {
                "agents": [
                    {"name": "billing-canary", "command": ["a"]},
                    {"name": "billing", "subset": "canary", "command": ["a"]},
                ]
            },
            "two of them would be Deployment demo-lmos-agent-billing-canary",
        ),
        (
            {
                "nats": {"enabled": False, "url": "nats://nats"},
                "keda": {"enabled": True},
                "agents": [
                    {"name": "a", "command": ["a"], "queue": {"stream": "S", "consumer": "c"}}
                ],
            },
            "monitoringEndpoint",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(
    chart: Path, values: dict[str, Any], said: str
):
    with pytest.raises(Exception, match=said):
        rendered(chart, values)


def test_what_is_named_in_digits_is_text_all_the_same(chart: Path):
    values = {"agents": [{"name": "1", "subset": "2", "tenant": "3", "command": ["a"]}]}
    for one in rendered(
        chart, {**values, "image": {"pullSecrets": ["4"]}}, name="5", namespace="6"
    ):
        kubernetes_validate.validate(one, VERSION, strict=True)


def test_names_are_as_long_as_they_may_be_and_those_of_one_agent(chart: Path):
    of_two: list[Object] = [
        {"name": "a" * 40, "subset": subset, "command": ["a"]} for subset in ("b" * 40, "c" * 40)
    ]
    of_tenants: list[Object] = [
        {"name": "billing", "command": ["a"]},
        {"name": "billing", "tenant": "ACME_2", "command": ["a"]},
    ]
    objects = rendered(chart, {"agents": [*of_two, *of_tenants]}, name="r" * 50)

    agents = [
        one for one in of_kind(objects, "Deployment") if "lmos.eclipse/agent" in labels_of(one)
    ]
    names = [one["metadata"]["name"] for one in agents]
    assert len(set(names)) == 4
    assert {len(name) <= 63 for name in names} == {True}
    assert {len(value) <= 63 for one in agents for value in labels_of(one).values()} == {True}
    assert names[3].endswith("-agent-billing-acme-2")
    assert labels_of(agents[3])["tenant"] == "ACME_2"


def labels_of(one: Object) -> dict[str, str]:
    return one["metadata"]["labels"]


def test_none_is_a_number_of_replicas(chart: Path):
    queue = {"stream": "S", "consumer": "c", "minReplicas": 0}
    agents: list[Object] = [
        {"name": "stopped", "command": ["a"], "replicas": 0},
        {"name": "steered", "command": ["a"]},
        {"name": "queued", "command": ["a"], "queue": queue},
    ]
    objects = rendered(chart, {"agents": agents, "keda": {"enabled": True}})

    stopped = named(objects, "Deployment", "demo-lmos-agent-stopped")
    assert stopped["spec"]["replicas"] == 0
    # Nobody's but those who scale it.
    steered = named(objects, "Deployment", "demo-lmos-agent-steered")
    assert "replicas" not in steered["spec"]
    assert of_kind(objects, "ScaledObject")[0]["spec"]["minReplicaCount"] == 0


def test_the_url_of_nats_may_come_from_a_secret(chart: Path):
    secret = {"secretKeyRef": {"name": "nats", "key": "url"}}
    values: Object = {"nats": {"enabled": False}, "env": {"LMOS_NATS_URL": secret}}
    for pod in pods(rendered(chart, values)):
        (url,) = (one for one in pod["containers"][0]["env"] if one["name"] == "LMOS_NATS_URL")
        assert url == {"name": "LMOS_NATS_URL", "valueFrom": secret}


def test_pods_go_where_they_are_told_to(chart: Path):
    terms = [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    where: Object = {
        "affinity": {"nodeAffinity": required},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "mesh", "operator": "Exists"}],
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 90,
    }
    agents = choice("agents-values.yaml")
    objects = rendered(chart, {**agents, **where, "podAnnotations": {"a": "b"}})

    for one in of_kind(objects, "Deployment"):
        kubernetes_validate.validate(one, VERSION, strict=True)
        assert one["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
        pod = one["spec"]["template"]["spec"]
        assert {name: pod[name] for name in where} == where


def test_a_model_can_be_mounted_in_the_router(chart: Path):
    router: Object = {
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "volumeMounts": [{"name": "models", "mountPath": "/opt/lmos-models"}],
    }
    objects = rendered(chart, {"services": {"router": router}})

    found = named(objects, "Deployment", "demo-lmos-router")
    kubernetes_validate.validate(found, VERSION, strict=True)
    pod = found["spec"]["template"]["spec"]
    assert router["volumes"][0] in pod["volumes"]
    assert router["volumeMounts"][0] in pod["containers"][0]["volumeMounts"]


def test_an_adapter_that_waits_for_the_mesh_is_not_started_again_and_again(chart: Path):
    http = named(rendered(chart), "Deployment", "demo-lmos-http")
    container = http["spec"]["template"]["spec"]["containers"][0]

    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # The answer takes as long as the slowest of those whom it asks, who have a second each.
    assert container["readinessProbe"]["timeoutSeconds"] > 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "http://mesh.example"),
        (
            {"ingress": {"enabled": True, "host": "a.example", "tlsSecret": "t"}},
            "https://a.example",
        ),
        ({"env": {"LMOS_HTTP_PUBLIC_URL": "https://b.example/lmos"}}, "https://b.example/lmos"),
    ],
)
def test_an_adapter_behind_an_ingress_says_the_name_of_that(
    chart: Path, more: dict[str, Any], said: str
):
    http: Object = {"ingress": {"enabled": True, "host": "mesh.example"}, **more}
    objects = rendered(chart, {"adapters": {"http": http}})

    pod = named(objects, "Deployment", "demo-lmos-http")["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert env["LMOS_HTTP_PUBLIC_URL"] == said


def test_an_adapter_of_somebody_else_needs_to_say_no_more_than_its_port(chart: Path):
    mine: Object = {"enabled": True, "module": "mine", "replicas": 1, "port": 99}
    objects = rendered(chart, {"adapters": {"mine": mine}})

    service = named(objects, "Service", "demo-lmos-mine")
    kubernetes_validate.validate(service, VERSION, strict=True)
    assert service["spec"]["type"] == "ClusterIP"


def test_nobody_is_root_or_writes_to_the_image(chart: Path):
    for pod in pods(rendered(chart, choice("agents-values.yaml"))):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {"readinessProbe", "livenessProbe", "startupProbe"} <= set(container)


def test_only_the_operator_has_a_token_of_the_cluster(chart: Path):
    deployments = of_kind(rendered(chart, choice("agents-values.yaml")), "Deployment")
    with_token = [
        one["metadata"]["name"]
        for one in deployments
        if one["spec"]["template"]["spec"]["automountServiceAccountToken"]
    ]
    assert with_token == ["demo-lmos-operator"]


def allowed(objects: list[Object], kind: str = "ClusterRole") -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for role in of_kind(objects, kind)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_operator_may_do_what_it_does_and_no_more(chart: Path):
    may = allowed(rendered(chart))

    ours = {api.plural for api in OURS.values()}
    verbs = ("get", "list", "watch", "create", "update", "delete")
    watched = {("apps", DEPLOYMENTS.plural), ("", SERVICES.plural)}
    assert may == {
        *(("lmos.eclipse", plural, verb) for plural in ours for verb in verbs),
        # A Routing has no status, and what else there is is listed.
        *(("lmos.eclipse", f"{plural}/status", "update") for plural in ours - {"channelroutings"}),
        *((group, plural, verb) for group, plural in watched for verb in ("list", "watch")),
        ("apps", "deployments", "patch"),
        ("apps", "deployments/scale", "patch"),
        ("", "events", "create"),
    }
    assert not {one for one in may if "*" in one}


def test_an_operator_of_some_namespaces_has_rights_there_only(chart: Path):
    objects = rendered(chart, {"operator": {"namespaces": ["default", "shop"], "steering": False}})

    assert of_kind(objects, "ClusterRole") == []
    where = [one["metadata"]["namespace"] for one in of_kind(objects, "RoleBinding")]
    assert where == ["default", "shop"]
    assert not [one for one in allowed(objects, "Role") if one[2] == "patch"]
    operator = named(objects, "Deployment", "demo-lmos-operator")
    env = {
        one["name"]: one["value"]
        for one in operator["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert env["LMOS_OPERATOR_NAMESPACES"] == "default,shop"
    assert env["LMOS_OPERATOR_KUBERNETES"] == "1"


def test_the_definitions_are_those_of_the_models_and_stay(chart: Path):
    found = of_kind(rendered(chart), "CustomResourceDefinition")

    assert {one["spec"]["names"]["kind"] for one in found} == set(KINDS)
    for one in found:
        assert one["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        made = json.loads(json.dumps(crd(one["spec"]["names"]["kind"])))
        assert one["spec"] == made["spec"]


def test_an_agent_can_be_found_by_its_name_and_release_line(chart: Path):
    objects = rendered(chart, choice("agents-values.yaml"))
    canary = named(objects, "Deployment", "demo-lmos-agent-billing-canary")

    labels = canary["metadata"]["labels"]
    assert labels["lmos.eclipse/agent"] == "billing"
    assert labels["subset"] == "canary"
    assert labels["tenant"] == "demo"
    assert canary["spec"]["template"]["spec"]["containers"][0]["image"] == "lmos-mesh:next"


def test_keda_alone_says_how_many_where_it_is_asked_to(chart: Path):
    agents = choice("agents-values.yaml")
    without, objects = (
        rendered(chart, agents),
        rendered(chart, {**agents, "keda": {"enabled": True}}),
    )

    assert of_kind(without, "ScaledObject") == []
    scaled = of_kind(objects, "ScaledObject")
    assert [one["metadata"]["name"] for one in scaled] == ["demo-lmos-agent-billing-canary"]
    trigger = scaled[0]["spec"]["triggers"][0]
    assert trigger["type"] == "nats-jetstream"
    assert trigger["metadata"] == {
        "natsServerMonitoringEndpoint": "demo-nats-headless.prod.svc.cluster.local:8222",
        "account": "MESH",
        "stream": "BILLS",
        "consumer": "billing",
        "lagThreshold": "5",
        "activationLagThreshold": "0",
    }
    target = named(objects, "Deployment", scaled[0]["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"]


def test_nats_is_reached_by_the_mesh_and_by_nobody_else(chart: Path):
    objects = rendered(chart, choice("agents-values.yaml"))
    policy = named(objects, "NetworkPolicy", "demo-lmos-nats")

    rules = policy["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [4222, 4222, 6222]
    wanted = rules[0]["from"][0]["podSelector"]["matchLabels"]
    for one in of_kind(objects, "Deployment"):
        assert wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("nats", "replicas"),
    [
        ({}, "3"),
        ({"config": {"cluster": {"replicas": 5}}}, "3"),
        ({"config": {"cluster": {"replicas": 5}}, "streamReplicas": 5}, "5"),
        ({"config": {"cluster": {"replicas": 2}}}, None),
        ({"config": {"cluster": {"enabled": False}}}, None),
        ({"streamReplicas": 1}, "1"),
        ({"enabled": False, "url": "nats://there:4222"}, None),
        ({"enabled": False, "url": "nats://there:4222", "streamReplicas": 3}, "3"),
    ],
)
def test_as_many_nats_servers_keep_each_stream_as_the_cluster_allows(
    chart: Path, nats: dict[str, Any], replicas: str | None
):
    for pod in pods(rendered(chart, {**choice("agents-values.yaml"), "nats": nats})):
        said = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert said.get("LMOS_NATS_REPLICAS") == replicas


def egress(objects: list[Object], name: str = "demo-lmos") -> list[Object]:
    return named(objects, "NetworkPolicy", name)["spec"]["egress"]


def test_nats_that_is_elsewhere_is_called_at_the_ports_of_its_url(chart: Path):
    url = "tls://a.example:7422, tls://b.example ,tls://c.example:7422/"
    objects = rendered(chart, {"nats": {"enabled": False, "url": url}})

    bus = egress(objects)[1]
    assert [one["port"] for one in bus["ports"]] == [7422, 4222]
    assert "to" not in bus


def test_who_else_may_reach_nats_and_where_the_clusters_api_is_can_be_said(chart: Path):
    mine = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}}
    policies = {"natsClients": [mine], "apiServerPorts": [16443]}
    objects = rendered(chart, {"networkPolicies": policies, "nats": {"nameOverride": "bus"}})

    for one in of_kind(objects, "NetworkPolicy"):
        kubernetes_validate.validate(one, VERSION, strict=True)
    policy = named(objects, "NetworkPolicy", "demo-lmos-nats")["spec"]
    assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "bus"
    assert policy["ingress"][0]["from"][1] == mine
    assert [one["port"] for one in egress(objects, "demo-lmos-operator")[0]["ports"]] == [16443]
    (url,) = (
        one["value"]
        for one in pods(objects)[0]["containers"][0]["env"]
        if one["name"] == "LMOS_NATS_URL"
    )
    assert url == "nats://demo-bus.prod.svc:4222"


def test_what_selects_pods_selects_those_of_one_part(chart: Path):
    objects = rendered(chart, choice("agents-values.yaml"))
    deployments = of_kind(objects, "Deployment")

    for one in (*deployments, *of_kind(objects, "PodDisruptionBudget")):
        selector = one["spec"]["selector"]["matchLabels"]
        found = [
            two
            for two in deployments
            if selector.items() <= two["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(found) == 1, one["metadata"]["name"]


def test_the_bus_is_configured_as_in_a_container():
    merged = yaml.safe_load((CHART / "values.yaml").read_text())["nats"]["config"]["merge"]
    told = (CHART.parents[1] / "nats.conf").read_text().replace('"', "")

    accounts = merged.pop("accounts")
    for name, value in merged.items():
        assert f"{name}: {value}" in told, name
    (exported,), (imported,) = accounts["SYS"]["exports"], accounts["MESH"]["imports"]
    assert f"stream: {exported['stream']}, account_token_position: 3" in told
    assert exported["account_token_position"] == 3
    assert f"account: SYS, subject: {imported['stream']['subject']}}}, to: {imported['to']}" in told
    assert accounts["MESH"]["users"][0]["permissions"]["publish"]["deny"] == [imported["to"]]
