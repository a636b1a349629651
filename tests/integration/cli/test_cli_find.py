"""`lmos find`, `describe`, `agents` and `apply` on a mesh of processes."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.cli.agents import agents, describe, history
from lmos_mesh.cli.apply import apply
from lmos_mesh.cli.find import find, metadata_of
from lmos_mesh.errors import AgentNotFound, InvalidMessage, SettingsError
from tests.integration.processes import Deployment

SHOP = """
from lmos_mesh import Agent

agent = Agent("shop", description="Gives money back to customers.", version="1.4.0")

@agent.capability(examples=["I want my money back"], tags=["money"], version="1.2.0")
async def refund(question: str) -> str:
    "Refund an order."
    return "done"

@agent.capability(examples=["will it rain tomorrow?"])
async def forecast(question: str) -> str:
    "Forecast the weather."
    return "done"

agent.run()
"""

LAMP = """
"@context": https://www.w3.org/2022/wot/td/v1.1
id: urn:example:lamp
title: Lamp
securityDefinitions:
  basic: {scheme: basic}
security: basic
properties:
  on:
    type: boolean
    forms: [{href: "http://lamp.example/on"}]
"""

ELSEWHERE = """
"@context":
  - https://www.w3.org/2022/wot/td/v1.1
  - lmos: https://eclipse.dev/lmos/protocol/v1
    mesh: urn:lmos-mesh:vocabulary#
"@type": lmos:Agent
title: elsewhere
description: Translates texts, on another machine.
version: {instance: 2.0.0}
mesh:external: true
lmos:capabilities:
  - id: translate
    name: translate
    version: 2.0.0
actions:
  translate:
    forms: [{href: "https://elsewhere.example/translate"}]
"""

Told = Callable[[], str]


@pytest.fixture
def at(services: Deployment, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The mesh that commands talk to, in a tenant of its own."""
    monkeypatch.setenv("LMOS_NATS_URL", services.url)
    monkeypatch.setenv("LMOS_TENANT", tenant)
    monkeypatch.setenv("COLUMNS", "160")
    return services


@pytest.fixture
def shop(at: Deployment, tenant: str) -> Iterator[None]:
    process = at.agent(SHOP, name="shop", LMOS_TENANT=tenant)
    yield
    process.terminate()
    assert process.wait() == 0


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """What was said on standard output since it was last asked."""
    return lambda: capfd.readouterr().out


def find_by(text: str | None = None, *, as_json: bool = False, **more: Any) -> int:
    conditions: dict[str, Any] = {
        "capability": None,
        "version": None,
        "tags": (),
        "kind": None,
        "channel": None,
        "subset": None,
        "everyone": False,
        "metadata": (),
        "jsonpath": None,
        "origin": None,
        "sort": None,
        "offset": 0,
        "limit": None,
        **more,
    }
    return find(text, as_json=as_json, mesh=None, **conditions)


def apply_files(*files: Path | str, as_json: bool = True, **more: Any) -> int:
    terms: dict[str, Any] = {"ttl_s": None, "tenant": None, **more}
    return apply([str(one) for one in files], as_json=as_json, mesh=None, **terms)


def write(tmp_path: Path, text: str, name: str = "thing.yaml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


# -- find --


@pytest.mark.usefixtures("shop")
def test_find_shows_who_fits_all_conditions(told: Told) -> None:
    assert find_by(capability="refund", version=">=1.1", tags=["money"]) == 0
    lines = told().splitlines()
    assert lines[0].split() == ["name", "version", "can", "health"]
    assert lines[1].split() == ["shop", "1.4.0", "refund", "1.2.0", "●", "live"]
    assert len(lines) == 2

    assert find_by(capability="refund", version=">=2") == 0
    assert "Nobody fits" in told()
    with pytest.raises(InvalidMessage, match="version"):
        find_by(capability="refund", version="newest")
    with pytest.raises(SettingsError, match="robot"):
        find_by(kind="robot")


@pytest.mark.usefixtures("shop")
def test_what_its_description_says_can_be_asked_for(told: Told) -> None:
    fitting: list[dict[str, Any]] = [
        {"jsonpath": "@.title == 'shop'"},
        {"origin": "", "sort": "version"},
        {"offset": 0, "limit": 1},
    ]
    for fits in fitting:
        assert find_by(as_json=True, **fits) == 0
        assert [one["name"] for one in json.loads(told())["things"]] == ["shop"]
    missing: list[dict[str, Any]] = [
        {"jsonpath": "@.title == 'ship'"},
        {"metadata": ["vendor.name=ACME"]},
        {"origin": "elsewhere"},
        {"offset": 1},
    ]
    for misses in missing:
        assert find_by(as_json=True, **misses) == 0
        assert json.loads(told())["things"] == []
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        find_by(metadata=["vendor"])


def test_what_metadata_must_be_is_json_where_it_can_be() -> None:
    assert metadata_of(["a.b=ACME", "n=3", "on=true", "t=x=y"]) == {
        "a.b": "ACME",
        "n": 3,
        "on": True,
        "t": "x=y",
    }


@pytest.mark.usefixtures("shop")
def test_a_text_that_says_nothing_is_none(told: Told) -> None:
    assert find_by(" ", as_json=True) == 0
    assert [one["name"] for one in json.loads(told())["things"]] == ["shop"]


@pytest.mark.usefixtures("shop")
def test_find_says_how_a_text_was_compared(told: Told, capfd: pytest.CaptureFixture[str]) -> None:
    assert find_by("give me my money back", as_json=True) == 0
    answer = json.loads(told())
    assert answer["things"][0]["name"] == "shop"
    assert answer["matched"] in ("words", "meaning")
    assert 0 < answer["things"][0]["score"] <= 1

    assert find_by("give me my money back") == 0
    shown = capfd.readouterr()
    assert f"by {answer['matched']}" in shown.err
    assert "score" in shown.out.splitlines()[0]


# -- apply --


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
def test_a_ttl_that_is_none_is_refused_in_a_sentence(tmp_path: Path, ttl_s: float) -> None:
    with pytest.raises(SettingsError, match="--ttl"):
        apply_files(write(tmp_path, LAMP), ttl_s=ttl_s)


def test_a_file_may_say_how_long_it_is_to_stay(
    at: Deployment, tmp_path: Path, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    lamp = LAMP.replace("urn:example:lamp", "urn:example:brief")
    brief = lamp + "registration: {ttl: 60}\n"
    copied = lamp + (
        'registration: {created: "2001-01-01T00:00:00Z", expires: "2001-01-02T00:00:00Z"}\n'
    )
    past = lamp + 'registration: {expires: "2001-01-02T00:00:00Z"}\n'

    assert apply_files(write(tmp_path, brief)) == 0
    assert json.loads(told())["applied"][0]["what"] == "created"
    assert find_by(everyone=True, jsonpath="@.id == 'urn:example:brief'", as_json=True) == 0
    assert json.loads(told())["things"][0]["registration"]["ttl"] == 60
    assert apply_files(write(tmp_path, past)) == 1
    said = capfd.readouterr()
    assert "/registration/expires" in said.out + said.err
    # Of an entry elsewhere this is said, which it was copied from.
    assert apply_files(write(tmp_path, copied)) == 0


def test_what_was_written_by_hand_is_applied_and_found(
    at: Deployment, tmp_path: Path, told: Told
) -> None:
    file = write(tmp_path, LAMP + "---" + ELSEWHERE)

    assert apply_files(file) == 0
    applied = json.loads(told())["applied"]
    assert [(one["what"], one["kind"], one["name"]) for one in applied] == [
        ("created", "thing", "urn:example:lamp"),
        ("created", "agent", "elsewhere"),
    ]
    assert [one["notes"] != [] for one in applied] == [False, True]
    assert "nosec" in applied[1]["notes"][0]

    assert apply_files(file) == 0
    assert [one["what"] for one in json.loads(told())["applied"]] == ["unchanged", "unchanged"]

    file.write_text(LAMP.replace("title: Lamp", "title: Big lamp"))
    assert apply_files(file, as_json=False) == 0
    assert told().startswith("updated    thing urn:example:lamp")

    assert find_by(everyone=True) == 0
    shown = told()
    assert "Big lamp" in shown
    assert "external" in shown
    assert agents(watch=False, everyone=True, as_json=False, mesh=None) == 0
    assert "elsewhere" in told()


def test_a_description_may_expire_and_may_be_for_another_tenant(
    at: Deployment, tmp_path: Path, told: Told, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, LAMP)
    assert apply_files(file, ttl_s=3600, tenant=f"{tenant}-other") == 0
    assert json.loads(told())["applied"]
    assert find_by(everyone=True, as_json=True) == 0
    assert json.loads(told())["total"] == 0

    monkeypatch.setenv("LMOS_TENANT", f"{tenant}-other")
    assert find_by(everyone=True, as_json=True) == 0
    found = json.loads(told())["things"][0]
    assert found["registration"]["expires"]


def test_nothing_is_applied_if_anything_is_refused_and_every_fault_is_said(
    at: Deployment, tmp_path: Path, told: Told
) -> None:
    good = write(tmp_path, LAMP)
    bad = write(
        tmp_path,
        LAMP.replace("security: basic", "security: other").replace("title: Lamp", "title: 5")
        + "---\napiVersion: lmos.eclipse/v1\nkind: Channel\n---\nhello: world\n",
        "bad.yaml",
    )
    missing = tmp_path / "missing.yaml"

    assert apply_files(good, bad, missing) == 1
    refused = json.loads(told())["refused"]
    assert [one["where"].rpartition("/")[2] for one in refused] == [
        "bad.yaml (document 1)",
        "bad.yaml (document 2)",
        "bad.yaml (document 3)",
        "missing.yaml",
    ]
    assert {"/title"} <= {one["field"] for one in refused[0]["faults"]}
    assert refused[0]["faults"][0]["line"]
    assert [one["field"] for one in refused[1]["faults"]] == ["/metadata", "/spec"]
    assert find_by(everyone=True, as_json=True) == 0
    assert json.loads(told())["total"] == 0


def test_a_thing_without_an_id_is_not_applied(at: Deployment, tmp_path: Path, told: Told) -> None:
    assert apply_files(write(tmp_path, LAMP.replace("id: urn:example:lamp\n", ""))) == 1
    assert json.loads(told())["refused"][0]["faults"][0]["field"] == "/id"


def test_standard_input_is_applied(
    at: Deployment, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LAMP.encode())))
    assert apply_files("-") == 0
    assert json.loads(told())["applied"][0]["where"] == "standard input"


# -- describe --


@pytest.mark.usefixtures("shop")
def test_describe_shows_an_agent_in_every_form(told: Told) -> None:
    assert describe("shop", mesh=None) == 0
    description = json.loads(told())
    assert description["@type"] == "lmos:Agent"

    assert describe(description["id"], mesh=None) == 0
    assert json.loads(told())["id"] == description["id"]
    assert describe("shop", form="card", mesh=None) == 0
    assert {one["id"] for one in json.loads(told())["skills"]} == {"refund", "forecast"}
    assert describe("shop", form="capabilities", mesh=None) == 0
    assert json.loads(told())["capabilities"]
    assert describe("shop", form="agent-json", mesh=None) == 0
    assert json.loads(told())["url"].endswith("/agents/shop/stable")

    with pytest.raises(AgentNotFound, match="did you mean shop"):
        describe("shopp", mesh=None)


def test_describe_shows_earlier_versions(at: Deployment, tmp_path: Path, told: Told) -> None:
    file = write(tmp_path, LAMP)
    assert apply_files(file) == 0
    first = json.loads(told())["applied"][0]["revision"]
    file.write_text(LAMP.replace("title: Lamp", "title: Big lamp"))
    assert apply_files(file) == 0
    second = json.loads(told())["applied"][0]["revision"]

    assert history("urn:example:lamp", as_json=True, mesh=None) == 0
    assert [one["revision"] for one in json.loads(told())["versions"]] == [second, first]
    assert history("urn:example:lamp", as_json=False, mesh=None) == 0
    assert told().splitlines()[1].split()[0] == str(second)
    assert describe("urn:example:lamp", revision=first, mesh=None) == 0
    assert json.loads(told())["title"] == "Lamp"
    assert describe("urn:example:lamp", mesh=None) == 0
    assert json.loads(told())["title"] == "Big lamp"
