import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft7Validator

from lmos_mesh.description import thing_of
from lmos_mesh.projections import (
    WOT_BINDING,
    adr32_metadata,
    agent_card,
    agent_json,
    capabilities_json,
    mdns_txt,
)
from lmos_mesh.thing_faults import faults_of, thing_from
from lmos_mesh.things import Capability, Thing

VALID = sorted((Path(__file__).parents[1] / "data" / "descriptions" / "valid").iterdir())
URL = "https://mesh.example/agents/billing/stable"

billing = thing_from(
    {
        "name": "billing",
        "version": "1.2.0",
        "description": "Answers questions about bills.",
        "capabilities": [
            {
                "id": "view-bill",
                "name": "View bill",
                "examples": ["show my bill"],
                "tags": ["money"],
            },
            {"id": "pay"},
        ],
        "supported_channels": ["web"],
        "supported_tenants": ["acme"],
        "metadata": {"lmos:vendor": {"lmos:name": "ACME", "lmos:url": "https://acme.example"}},
        "links": [
            {"rel": "service-doc", "href": "https://acme.example/manual"},
            {"rel": "icon", "href": "https://acme.example/icon.png", "sizes": "16x16"},
        ],
    }
)


def validator(schema: str) -> Draft7Validator:
    text = (files("lmos_mesh.schemas") / schema).read_text("utf-8")
    return Draft7Validator(json.loads(text), validate_formats=True)


def faults(schema: str, document: Any) -> list[str]:
    return [error.message for error in validator(schema).iter_errors(document)]


def card_faults(card: dict[str, Any]) -> list[Any]:
    """What the official SDK has against a card; an unknown member fails the parsing itself."""
    proto_utils = pytest.importorskip("a2a.utils.proto_utils")
    from a2a.types import AgentCard
    from google.protobuf import json_format

    parsed = json_format.Parse(json.dumps(card), AgentCard())
    back = json_format.MessageToDict(parsed)
    assert back["name"] == card["name"]
    assert [one["id"] for one in back["skills"]] == [one["id"] for one in card["skills"]]
    return proto_utils._validate_proto_required_fields_internal(parsed)


def test_an_agent_has_an_a2a_card_that_the_official_sdk_reads() -> None:
    card = agent_card(billing, URL)

    assert card_faults(card) == []
    assert card == {
        "name": "billing",
        "description": "Answers questions about bills.",
        "version": "1.2.0",
        "supportedInterfaces": [
            {"url": URL, "protocolBinding": WOT_BINDING, "protocolVersion": "1.1"}
        ],
        "provider": {"organization": "ACME", "url": "https://acme.example"},
        "documentationUrl": "https://acme.example/manual",
        "iconUrl": "https://acme.example/icon.png",
        "capabilities": {"streaming": True, "pushNotifications": False},
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain", "application/json"],
        "skills": [
            {
                "id": "view-bill",
                "name": "View bill",
                "description": "View bill",
                "tags": ["money"],
                "examples": ["show my bill"],
            },
            {"id": "pay", "name": "pay", "description": "pay", "tags": ["agent"]},
        ],
    }


def test_the_sdk_refuses_a_card_that_lacks_something() -> None:
    card = agent_card(billing, URL)
    del card["skills"][0]["tags"]

    assert [fault["field"] for fault in card_faults(card)] == ["skills[0].tags"]


def test_a_card_names_the_a2a_interfaces_that_are_served_in_their_order() -> None:
    card = agent_card(
        billing, URL, interfaces=[("JSONRPC", f"{URL}/a2a"), ("HTTP+JSON", f"{URL}/rest")]
    )

    assert card_faults(card) == []
    assert [one["protocolBinding"] for one in card["supportedInterfaces"]] == [
        "JSONRPC",
        "HTTP+JSON",
    ]
    assert card["supportedInterfaces"][0]["protocolVersion"] == "1.0"


@pytest.mark.parametrize(
    ("path", "schemes", "ways"),
    [
        ("weather-agent.json", {"login": "httpAuthSecurityScheme"}, [["login"]]),
        (
            "camera.yaml",
            dict.fromkeys(["people", "machines"], "oauth2SecurityScheme"),
            [["people"]],
        ),
        ("printer.yaml", {"login": "httpAuthSecurityScheme"}, [["login"]]),
        ("door.yaml", {"phone": "httpAuthSecurityScheme"}, [["phone"]]),
    ],
)
def test_security_is_told_in_the_words_of_a2a(
    path: str, schemes: dict[str, str], ways: list[list[str]]
) -> None:
    [there] = [one for one in VALID if one.name == path]
    thing = thing_of(yaml.safe_load(there.read_text("utf-8")))

    card = agent_card(thing, URL)

    assert card_faults(card) == []
    assert {name: next(iter(one)) for name, one in card["securitySchemes"].items()} == schemes
    assert [list(one["schemes"]) for one in card["securityRequirements"]] == ways


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_every_thing_has_every_form(path: Path) -> None:
    thing = thing_of(yaml.safe_load(path.read_text("utf-8")))

    assert card_faults(agent_card(thing, URL)) == []
    assert faults("agent.json", agent_json(thing, URL)) == []
    assert faults("capabilities.json", capabilities_json(thing)) == []


def test_agent_json_is_what_lmos_serves_and_the_older_a2a_reads() -> None:
    card = agent_json(billing, URL)

    assert faults("agent.json", card) == []
    assert card["url"] == URL
    assert card["capabilities"]["stateTransitionHistory"] is False
    older = pytest.importorskip("a2a.compat.v0_3.types")
    assert older.AgentCard.model_validate(card).skills[0].id == "view-bill"


def test_capabilities_json_is_what_the_operator_of_lmos_reads() -> None:
    document = capabilities_json(billing)

    assert faults("capabilities.json", document) == []
    assert document == {
        "id": "billing",
        "description": "Answers questions about bills.",
        "supportedTenants": ["acme"],
        "supportedChannels": ["web"],
        "capabilities": [
            {
                "id": "view-bill",
                "name": "View bill",
                "version": "1.0.0",
                "description": "",
                "examples": ["show my bill"],
            },
            {"id": "pay", "name": "pay", "version": "1.0.0", "description": "", "examples": []},
        ],
    }
    del document["supportedTenants"]
    assert faults("capabilities.json", document)


def test_metadata_of_a_micro_service_are_strings() -> None:
    assert adr32_metadata(billing) == {
        "agent": "lmos",
        "owner": "demo",
        "session": "billing",
        "protocol_version": "0.3",
        "lmos_id": "urn:lmos-mesh:demo:billing:stable",
        "lmos_kind": "agent",
        "lmos_tenant": "demo",
        "lmos_name": "billing",
        "lmos_subset": "stable",
        "lmos_capabilities": '["view-bill@1.0.0","pay@1.0.0"]',
    }


def test_metadata_stay_small_however_much_an_agent_can_do() -> None:
    many = thing_from(
        {"name": "a", "capabilities": [{"id": f"{n:03}" + "x" * 120} for n in range(256)]}
    )

    metadata = adr32_metadata(many)

    assert len(metadata["lmos_capabilities"]) <= 4096
    assert len(json.loads(metadata["lmos_capabilities"])) > 20


def test_a_txt_record_leaves_out_what_has_its_default() -> None:
    assert mdns_txt("/.well-known/wot") == {"td": "/.well-known/wot"}
    assert mdns_txt("/x", kind="Directory", scheme="https") == {
        "td": "/x",
        "type": "Directory",
        "scheme": "https",
    }


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=9)
texts = st.text(st.characters(codec="utf-8"), max_size=9)
things = st.builds(
    Thing,
    name=names,
    title=st.just("") | names,
    tenant=names,
    kind=st.sampled_from(["agent", "tool"]),
    description=texts,
    capabilities=st.lists(
        st.builds(Capability, id=names, name=names, description=texts),
        max_size=3,
        unique_by=lambda one: one.id,
    ).map(tuple),
    metadata=st.dictionaries(st.just("lmos:vendor"), st.dictionaries(texts, texts, max_size=2)),
    external=st.booleans(),
)


@settings(deadline=None)
@given(things)
def test_whatever_a_thing_is_called_its_forms_are_valid(thing: Thing) -> None:
    assert faults_of(thing) == []

    assert card_faults(agent_card(thing, URL)) == []
    assert faults("agent.json", agent_json(thing, URL)) == []
    assert faults("capabilities.json", capabilities_json(thing)) == []
    assert all(isinstance(value, str) for value in adr32_metadata(thing).values())
