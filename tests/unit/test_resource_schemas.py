"""What editors and Kubernetes are told of the resources is what the models say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import pytest
import yaml

from lmos_mesh.cli.crds import file_name, file_text
from lmos_mesh.resource_faults import resource_faults
from lmos_mesh.resource_schemas import crd, json_schema, parts_of
from lmos_mesh.resources import KINDS

ROOT = Path(__file__).parents[2]

# What LMOS has, as its own CustomResourceDefinitions name it.
LMOS: dict[str, dict[str, set[str]]] = {
    "Agent": {
        "spec": {
            "id",
            "description",
            "supportedTenants",
            "supportedChannels",
            "providedCapabilities",
        },
        "spec.providedCapabilities": {"id", "name", "version", "description", "examples"},
        "status": set(),
    },
    "Channel": {
        "spec": {"requiredCapabilities"},
        "spec.requiredCapabilities": {"id", "name", "version", "strategy"},
        "status": {"resolveStatus", "unresolvedRequiredCapabilities"},
        "status.unresolvedRequiredCapabilities": {"id", "name", "version", "strategy"},
    },
    "ChannelRouting": {
        "spec": {"capabilityGroups"},
        "spec.capabilityGroups": {"id", "name", "description", "capabilities"},
        "spec.capabilityGroups.capabilities": {
            "id",
            "name",
            "requiredVersion",
            "providedVersion",
            "host",
            "description",
        },
    },
    "ChannelRollout": {
        "spec": {"strategy"},
        "spec.strategy": {"canary"},
        "spec.strategy.canary": {"canaryChannel", "stableChannel"},
        "spec.strategy.canary.canaryChannel": {"name", "weight"},
        "spec.strategy.canary.stableChannel": {"name", "weight"},
    },
}
# Those of a status are what Kubernetes expects of any, or of no consequence to whoever writes.
USUAL = {"conditions", "observedGeneration"}

VALID: list[dict[str, Any]] = [
    {
        "kind": "Agent",
        "spec": {
            "supportedTenants": ["acme"],
            "supportedChannels": ["web"],
            "providedCapabilities": [{"id": "refund", "version": "1.2.0", "examples": ["money"]}],
        },
    },
    {
        "kind": "Channel",
        "spec": {
            "requiredCapabilities": [
                {"name": "refund", "version": "^1", "strategy": "MOST_SIMILAR", "optional": True}
            ],
            "router": {"method": "hybrid", "threshold": 0.4},
            "settings": {"answers": "short", "deep": {"er": [1]}},
        },
    },
    {
        "kind": "ChannelRollout",
        "spec": {
            "strategy": {
                "canary": {
                    "canaryChannel": {"name": "b", "weight": 10},
                    "stableChannel": {"name": "a", "weight": 90},
                    "steps": [{"weight": 10, "holdSeconds": 30}, {"weight": 50, "pause": True}],
                    "match": {"attributes": {"country": ["de"]}},
                    "analysis": {"windowSeconds": 10, "checks": [{"metric": "errors"}]},
                }
            }
        },
    },
]
INVALID: list[dict[str, Any]] = [
    {"kind": "Channel", "spec": {}},
    {"kind": "Channel", "spec": {"requiredCapabilities": [{"version": "1"}]}},
    {"kind": "Channel", "spec": {"requiredCapabilities": [{"name": "", "version": "1"}]}},
    {"kind": "Channel", "spec": {"requiredCapabilities": [{"name": "a"}]}},
    {"kind": "Channel", "spec": {"requiredCapabilities": [], "router": {"method": "luck"}}},
    {"kind": "ChannelRollout", "spec": {"strategy": {}}},
    {
        "kind": "ChannelRollout",
        "spec": {"strategy": {"canary": {"canaryChannel": {"name": "b", "weight": 101}}}},
    },
    {
        "kind": "ChannelRollout",
        "spec": {
            "strategy": {
                "shadow": {
                    "canaryChannel": {"name": "b"},
                    "stableChannel": {"name": "a"},
                    "analysis": {"alpha": 0},
                }
            }
        },
    },
]


def resource(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "metadata": {"name": "one", "labels": {"tenant": "acme", "channel": "web"}},
        **part,
    }


def open_api(kind: str) -> dict[str, Any]:
    (version,) = crd(kind)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def as_json_schema(value: Any) -> Any:
    """A schema of Kubernetes in words that a validator of JSON Schema knows."""
    if isinstance(value, list):
        return [as_json_schema(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    made = {name: as_json_schema(one) for name, one in given.items() if name != "nullable"}
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if made.get(bound) is True:
            made[bound] = made.pop(limit)
    if given.get("nullable"):
        made["type"] = [made["type"], "null"]
    return made


def schemas_in(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a structural one, apart from the conditions of `anyOf` and `oneOf`."""
    yield at, schema
    for name, one in schema.get("properties", {}).items():
        yield from schemas_in(one, f"{at}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from schemas_in(schema[name], at)


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_published_is_what_the_models_say(kind: str, schemas: bool) -> None:
    folder = ROOT / ("docs/schemas" if schemas else "deploy/crds")

    published = (folder / file_name(kind, schemas=schemas)).read_text("utf-8")

    made = file_text(kind, schemas=schemas)
    option = " --schema" if schemas else ""
    assert published == made, f"run: lmos crds{option} --into {folder.relative_to(ROOT)}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_structural(kind: str) -> None:
    text = yaml.safe_dump(crd(kind))

    assert "$ref" not in text
    assert "$defs" not in text
    for at, schema in schemas_in(open_api(kind)):
        assert isinstance(schema.get("type"), str), f"{at} has no type"
        assert not {"default", "const", "title", "$schema"} & schema.keys(), at
        assert schema.get("additionalProperties") not in (True, False), at
        assert not ("properties" in schema and "additionalProperties" in schema), at
        assert not (schema.get("nullable") and "enum" in schema), f"null is refused at {at}"
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert schema.get(bound, True) is True, at
        for choice in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            assert not {"type", "description", "default", "nullable"} & choice.keys(), at
            assert choice.get("properties", {}).keys() <= schema["properties"].keys(), at


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_has_the_names_of_lmos(kind: str) -> None:
    spec = crd(kind)["spec"]
    (version,) = spec["versions"]

    assert spec["group"] == "lmos.eclipse"
    assert version["name"] == "v1"
    assert (
        spec["names"]["shortNames"]
        == {
            "Agent": ["ag"],
            "Channel": ["ch"],
            "ChannelRouting": ["cr"],
            "ChannelRollout": ["crl"],
        }[kind]
    )
    assert version["subresources"] == {"status": {}}
    columns = {one["name"]: one["jsonPath"] for one in version["additionalPrinterColumns"]}
    if kind == "Channel":
        assert columns["RESOLVE_STATUS"] == ".status.resolveStatus"
    known = [at for at, _ in schemas_in(open_api(kind))]
    assert all(path in known for path in columns.values() if path.startswith((".spec", ".status")))


@pytest.mark.parametrize("kind", LMOS)
def test_members_of_lmos_are_all_there_and_the_others_say_that_they_are_not(kind: str) -> None:
    ours: set[str] = set()
    for at, schema in schemas_in(open_api(kind)):
        path = at.removeprefix(".")
        if path.partition(".")[0] not in ("spec", "status") or any(
            path == one or path.startswith(f"{one}.") for one in ours
        ):
            continue
        said = schema.get("description", "")
        above, _, member = path.rpartition(".")
        if said.startswith("Not in LMOS") or member in USUAL:
            ours.add(path)
            assert member not in LMOS[kind].get(above, set()), path
        elif above:
            assert member in LMOS[kind].get(above, set()), f"{path} does not say that it is ours"
    for above, members in LMOS[kind].items():
        known = {at.removeprefix(".") for at, _ in schemas_in(open_api(kind))}
        assert {f"{above}.{one}" for one in members} <= known


@pytest.mark.parametrize("kind", LMOS)
def test_nothing_that_lmos_does_not_have_is_required(kind: str) -> None:
    for at, schema in schemas_in(open_api(kind)):
        if (known := LMOS[kind].get(at.removeprefix("."))) is not None:
            assert set(schema.get("required", ())) <= known, at


@pytest.mark.parametrize("part", VALID)
def test_what_the_models_take_every_schema_takes(part: dict[str, Any]) -> None:
    value = resource(part)

    assert resource_faults(value) == []
    kind = value["kind"]
    jsonschema_rs.validator_for(json_schema(kind)).validate(value)
    jsonschema_rs.validator_for(as_json_schema(open_api(kind))).validate(value)


@pytest.mark.parametrize("part", INVALID)
def test_what_the_models_refuse_every_schema_refuses(part: dict[str, Any]) -> None:
    value = resource(part)

    assert resource_faults(value)
    kind = value["kind"]
    assert not jsonschema_rs.validator_for(json_schema(kind)).is_valid(value)
    assert not jsonschema_rs.validator_for(as_json_schema(open_api(kind))).is_valid(value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_optional_member_may_be_null_on_a_cluster(kind: str) -> None:
    validator = jsonschema_rs.validator_for(as_json_schema(open_api(kind)))
    for part in VALID:
        if part["kind"] == kind:
            read = KINDS[kind].model_validate(resource(part))
            written = json.loads(read.model_dump_json(by_alias=True))
            strategy = written["spec"].get("strategy", {})
            for name in [name for name, one in strategy.items() if one is None]:
                del strategy[name]  # one of them is said by leaving out the others
            written.pop("status")
            validator.validate(written)


def test_every_part_of_a_kind_is_known() -> None:
    assert {"Canary", "Step", "Analysis", "Check", "Verdict"} <= parts_of(
        KINDS["ChannelRollout"]
    ).keys()


def test_descriptions_are_in_the_words_of_yaml() -> None:
    text = "".join(file_text(kind, schemas=True) for kind in KINDS)

    assert "Ours" not in text
    assert "None" not in text
    assert "Attributes:" not in text
    assert "canary_weight" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_that_people_write_is_told_of(kind: str) -> None:
    text = (ROOT / "docs" / "channels.md").read_text("utf-8")

    spec = open_api(kind)["properties"]["spec"]
    members = {at.rpartition(".")[2] for at, _ in schemas_in(spec) if at}
    assert {one for one in members if f"`{one}`" not in text and f".{one}`" not in text} == set()
