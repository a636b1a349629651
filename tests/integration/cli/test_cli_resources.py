"""The commands about resources, with the operator as it is deployed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.cli.apply import apply
from lmos_mesh.cli.channels import channels, describe_resource
from lmos_mesh.cli.delete import delete
from lmos_mesh.cli.get import get
from lmos_mesh.cli.resource_calls import resource_target
from lmos_mesh.cli.resources import describe
from lmos_mesh.cli.rollout import history, restore, status, steer
from lmos_mesh.cli.wait import wait
from lmos_mesh.errors import Conflict, InvalidMessage, NotFound, SettingsError, Unavailable
from lmos_mesh.nats_config import Binary
from tests.conftest import session_server
from tests.integration.cli.conftest import LMOS
from tests.integration.processes import Deployment

Told = Callable[[], str]

AGENTS = """
apiVersion: lmos.eclipse/v1
kind: Agent
metadata:
  name: billing
  labels: {version: "1.0.0", subset: stable}
spec:
  supportedChannels: [web, ivr]
  providedCapabilities:
    - {id: view-bill-id, name: view-bill, version: 1.0.0, description: Shows a bill}
    - {id: pay-bill-id, name: pay-bill, version: 1.4.0}
---
apiVersion: lmos.eclipse/v1
kind: Agent
metadata:
  name: billing-next
  labels: {version: "2.0.0", subset: canary}
spec:
  supportedChannels: [web]
  providedCapabilities:
    - {id: view-bill-id, name: view-bill, version: 2.0.0}
    - {id: pay-bill-id, name: pay-bill, version: 2.0.0}
"""

WEB = """
apiVersion: lmos.eclipse/v1
kind: Channel
metadata:
  name: web
  labels: {channel: web, version: "1.0.0"}
spec:
  requiredCapabilities:
    - {name: view-bill, version: ">=1.0.0"}
    - {id: pay-bill-id, version: "^1"}
"""

CANARY = """
apiVersion: lmos.eclipse/v1
kind: Channel
metadata:
  name: web-next
  labels: {channel: web, version: "2.0.0", subset: canary}
spec:
  requiredCapabilities:
    - {name: view-bill, version: ">=2"}
"""

ROLLOUT = """
apiVersion: lmos.eclipse/v1
kind: ChannelRollout
metadata: {name: to-next}
spec:
  strategy:
    canary:
      canaryChannel: {name: web-next, weight: 20}
      stableChannel: {name: web, weight: 80}
      steps:
        - {weight: 20, holdSeconds: 0, pause: true}
        - {weight: 60, holdSeconds: 0, pause: true}
"""

LAMP = """
"@context": https://www.w3.org/2022/wot/td/v1.1
id: urn:example:lamp
title: Lamp
securityDefinitions: {open: {scheme: nosec}}
security: open
"""


@pytest.fixture(scope="module")
def operated(nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An operator and a registry on a server of theirs."""
    directory = tmp_path_factory.mktemp("operated")
    with session_server(nats_binary, directory) as url:
        deployment = Deployment(url, directory)
        try:
            deployment.services("registry", "operator")
            yield deployment
            deployment.check_stop()
        finally:
            deployment.stop()


@pytest.fixture(autouse=True)
def at(operated: Deployment, tenant: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tenant of commands, which nobody else uses."""
    monkeypatch.setenv("LMOS_NATS_URL", operated.url)
    monkeypatch.setenv("LMOS_TENANT", tenant)
    return tenant


@pytest.fixture
def space(tenant: str) -> str:
    """A namespace of the test's own: names are unique in it for all tenants."""
    return f"ns-{tenant}"


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """What was said on standard output since it was last asked."""
    return lambda: capfd.readouterr().out


@pytest.fixture
def put(tmp_path: Path, space: str, told: Told) -> Callable[..., Any]:
    """Applies texts as files and gives what was said in JSON."""

    def applied(*texts: str, code: int = 0, **terms: Any) -> Any:
        files = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, "utf-8")
        told()
        given: dict[str, Any] = {"namespace": space, "tenant": None, "ttl_s": None, **terms}
        assert apply([str(one) for one in files], as_json=True, mesh=None, **given) == code
        return json.loads(told())

    return applied


Put = Callable[..., Any]


def got(told: Told, *words: str, **more: Any) -> Any:
    told()
    assert get(words, output="json", **more) == 0
    return json.loads(told())


# -- apply --


def test_resources_are_applied_in_the_order_in_which_they_need_each_other(
    put: Put, space: str, told: Told
) -> None:
    applied = put(ROLLOUT, CANARY, WEB, AGENTS)["applied"]

    assert [(one["kind"], one["name"]) for one in applied] == [
        ("Agent", "billing"),
        ("Agent", "billing-next"),
        ("Channel", "web-next"),
        ("Channel", "web"),
        ("ChannelRollout", "to-next"),
    ]
    assert {one["what"] for one in applied} == {"created"}
    assert {one["namespace"] for one in applied} == {space}
    assert wait(["ch", "web", "web-next"], condition="resolved", namespace=space) == 0
    told()
    again = put(ROLLOUT, CANARY, WEB, AGENTS)["applied"]
    assert {one["what"] for one in again} == {"unchanged"}


def test_a_dry_run_changes_nothing_and_a_diff_says_what_would_change(
    put: Put, space: str, told: Told
) -> None:
    would = put(WEB, dry_run=True, diff=True)
    assert would["applied"][0]["what"] == "created"
    assert "+      version: '>=1.0.0'" in would["applied"][0]["diff"]
    assert got(told, "channels", namespace=space) == []

    put(WEB)
    changed = WEB.replace(">=1.0.0", ">=1.1.0")
    applied = put(changed, diff=True)["applied"][0]
    assert applied["what"] == "configured"
    lines = [line for line in applied["diff"].splitlines() if re.match(r"[+-] ", line)]
    assert lines == ["-      version: '>=1.0.0'", "+      version: '>=1.1.0'"]
    assert put(changed, diff=True)["applied"][0]["diff"] == ""


def test_nothing_is_applied_if_the_operator_refuses_one_of_several(
    put: Put, space: str, told: Told
) -> None:
    put(WEB)
    rival = WEB.replace("name: web\n", "name: rival\n", 1)

    said = put(AGENTS, rival, code=1)

    assert said["applied"] == []
    (refused,) = said["refused"]
    assert refused["where"].endswith("1.yaml")
    assert "'web'" in refused["faults"][0]["description"]
    assert got(told, "agents", namespace=space) == []


UNFIT = (
    (CANARY.replace("subset: canary", "subset: stable").replace("channel: web", "channel: ivr"),),
    (CANARY.replace(", subset: canary", "").replace("channel: web", "channel: web2"), WEB),
    (CANARY.replace(", subset: canary", ", subset: canary, tenant: other"), WEB),
)


@pytest.mark.parametrize("channels", UNFIT)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_rollout_is_checked_with_the_channels_that_come_with_it_and_those_that_are_there(
    put: Put, space: str, told: Told, channels: tuple[str, ...], dry_run: bool
) -> None:
    if len(channels) == 1:
        put(WEB)
    there = len(got(told, "all", namespace=space))

    said = put(*channels, ROLLOUT, code=1, dry_run=dry_run)

    assert said["applied"] == [] or dry_run
    (refused,) = said["refused"]
    assert refused["where"].endswith(f"{len(channels)}.yaml")
    (fault,) = refused["faults"]
    assert (fault["line"], fault["field"]) == (7, "/spec/strategy/canary")
    assert "channel" in fault["description"] or "tenant" in fault["description"]
    assert len(got(told, "all", namespace=space)) == there


def test_a_channel_that_a_rollout_moves_to_is_not_changed_under_it(
    put: Put, space: str, told: Told
) -> None:
    put(AGENTS, WEB, CANARY, ROLLOUT)
    moved = CANARY.replace("channel: web", "channel: ivr")

    # Beside the rollout it is refused, alone it is told.
    refused = put(moved, ROLLOUT, code=1)["refused"]
    alone = put(moved, dry_run=True)["applied"]

    assert "two channels, 'ivr' and 'web'" in refused[0]["faults"][0]["description"]
    assert any("rollout 'to-next' cannot go on" in one for one in alone[0]["notes"])
    assert got(told, "ch/web-next", namespace=space)["metadata"]["labels"]["channel"] == "web"


def test_where_two_are_for_one_place_is_known_once_it_is_known_whose_they_are(
    put: Put, at: str, space: str, told: Told
) -> None:
    mine = WEB.replace("channel: web,", f"channel: web, tenant: {at},")
    rival = WEB.replace("name: web", f"name: rival\n  namespace: {space}", 1)

    refused = put(mine, rival, code=1)["refused"]

    assert refused[0]["faults"][0]["field"] == "/metadata/labels"
    assert got(told, "all", namespace=space) == []


def test_what_is_refused_in_the_middle_ends_the_work_there_and_says_how_far_it_went(
    put: Put, tmp_path: Path, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # Only the registry knows what time it is, and it is asked when its turn comes.
    late = LAMP.replace("lamp", "late") + 'registration: {expires: "2001-01-01T00:00:00Z"}\n'

    said = put(LAMP, late, AGENTS, WEB, code=1)
    files = [str(tmp_path / f"{number}.yaml") for number in range(4)]
    capfd.readouterr()
    code = apply(files, ttl_s=None, tenant=None, namespace=space, as_json=False, mesh=None)
    shown = capfd.readouterr().err

    assert [one["name"] for one in said["applied"]] == ["urn:example:lamp"]
    assert said["refused"][0]["faults"][0]["field"] == "/registration/expires"
    assert [one["name"] for one in said["not_applied"]] == ["billing", "billing-next", "web"]
    assert code == 1
    assert "1 document before it is applied, and stay" in shown
    assert "not applied: Channel web from" in shown


def test_every_fault_of_every_file_has_its_line(put: Put, space: str, told: Told) -> None:
    wrong = WEB.replace("channel: web, ", "channel: 5, ").replace('"^1"', '"^one"')

    said = put(wrong, "hello: world", ROLLOUT.replace("weight: 20}", "weight: 200}"), code=1)

    faults = [
        (one["where"].rpartition("/")[2], fault["line"], fault["field"])
        for one in said["refused"]
        for fault in one["faults"]
    ]
    assert ("0.yaml", 6, "/metadata/labels/channel") in faults
    assert ("1.yaml", 1, "") in faults
    at = "/spec/strategy/canary/canaryChannel/weight"
    assert ("2.yaml", 8, at) in faults
    assert got(told, "all", namespace=space) == []


def test_resources_are_applied_for_the_tenant_that_their_labels_name(
    put: Put, at: str, space: str, told: Told
) -> None:
    other = f"{at}-other"
    labelled = WEB.replace("channel: web,", f"channel: web, tenant: {other},")
    agents = AGENTS.replace(
        "  supportedChannels", f"  supportedTenants: [{other}]\n  supportedChannels"
    )

    # A rollout belongs to whom its Channels belong to.
    canary = CANARY.replace("channel: web,", f"channel: web, tenant: {other},")
    applied = put(labelled, agents, canary, ROLLOUT)["applied"]

    assert {one["tenant"] for one in applied} == {other}
    assert got(told, "all", namespace=space) == []
    assert len(got(told, "crl", namespace=space, tenant=other)) == 1
    refused = put(labelled, tenant=at, code=1)["refused"]
    assert refused[0]["faults"][0]["field"] == "/metadata/labels/tenant"


def test_a_folder_is_applied_with_all_below_and_what_was_read_can_be_applied_again(
    tmp_path: Path, space: str, told: Told
) -> None:
    folder = tmp_path / "all"
    (folder / "below").mkdir(parents=True)
    (folder / "agents.yaml").write_text(AGENTS)
    (folder / "below" / "web.yml").write_text(WEB)
    (folder / "notes.txt").write_text("no resource")

    def put_again(path: Path) -> list[str]:
        code = apply([str(path)], ttl_s=None, tenant=None, namespace=space, as_json=True, mesh=None)
        assert code == 0
        return [one["what"] for one in json.loads(told())["applied"]]

    assert put_again(folder) == ["created"] * 3
    assert wait(["channel/web"], condition="resolved", namespace=space) == 0
    told()
    assert get(["all"], namespace=space, output="yaml") == 0
    read = tmp_path / "read.yaml"
    read.write_text(told())
    # With them comes what the operator made, and makes.
    assert put_again(read) == ["unchanged"] * 3 + ["left out"]
    assert delete([], files=[str(read)], namespace=space, as_json=True) == 0
    deleted = json.loads(told())["deleted"]
    assert [one["name"] for one in deleted] == ["web", "billing-next", "billing"]
    assert deleted[0]["also"] == ["ChannelRouting/web"]


def test_descriptions_and_resources_may_be_in_one_file(put: Put, told: Told) -> None:
    text = f"{LAMP}---\n{AGENTS}"

    dry = put(text, dry_run=True)["applied"]
    assert [one["what"] for one in dry] == ["created"] * 3
    first = put(text)["applied"]
    assert [one["kind"] for one in first] == ["thing", "Agent", "Agent"]
    assert [one["what"] for one in first] == ["created"] * 3
    changed = put(text.replace("title: Lamp", "title: Big lamp"), dry_run=True, diff=True)
    assert changed["applied"][0]["what"] == "updated"
    assert "+title: Big lamp" in changed["applied"][0]["diff"]
    assert [one["what"] for one in put(text, dry_run=True)["applied"]] == ["unchanged"] * 3


def test_a_mesh_without_an_operator_is_told_so(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMOS_NATS_URL", nats_url)
    monkeypatch.setattr("lmos_mesh.cli.resource_calls.RESTART_S", 0.0)

    with pytest.raises(Unavailable, match="no operator answers on this mesh"):
        get(["channels"])


def test_there_must_be_something_to_apply() -> None:
    with pytest.raises(SettingsError, match="nothing to apply"):
        apply([], ttl_s=None, tenant=None, as_json=False, mesh=None)


# -- get, describe, channels --


def test_get_shows_what_one_wants_to_know_of_each_kind(put: Put, space: str, told: Told) -> None:
    put(AGENTS, WEB, CANARY, ROLLOUT)
    wait(["ch/web", "ch/web-next"], condition="resolved", namespace=space)
    wait(["rollout/to-next"], condition="phase=Paused", namespace=space)
    told()

    assert get(["all"], namespace=space) == 0
    shown = " ".join(told().split())
    assert f"web {space} web stable RESOLVED billing" in shown
    assert f"web-next {space} web canary RESOLVED billing-next" in shown
    assert f"to-next {space} Paused 20 % 1/2 canary web → web-next" in shown

    assert get(["ch"], namespace=space, output="wide") == 0
    assert "revision" in told().splitlines()[0]
    assert get(["routings"], namespace=space, labels=["subset=canary"], output="name") == 0
    assert told() == "channelrouting/web-next\n"
    assert got(told, "channel/web", namespace=space)["metadata"]["name"] == "web"
    assert [one["kind"] for one in got(told, "ch,crl", namespace=space)] == [
        "Channel",
        "Channel",
        "ChannelRollout",
    ]
    # In whichever namespace it is, if there is one only.
    assert got(told, "rollout", "to-next")["metadata"]["namespace"] == space


def test_an_unresolved_channel_says_what_is_missing_and_who_nearly_fits(
    put: Put, space: str, told: Told
) -> None:
    put(AGENTS, WEB.replace('"^1"', '"^3"'))
    assert wait(["ch/web"], condition="unresolved", namespace=space) == 0
    told()

    assert get(["ch"], namespace=space) == 0
    assert "pay-bill-id ^3" in told()
    target = resource_target("channel/web", None)
    assert target is not None
    assert describe_resource(target, namespace=space) == 0
    shown = " ".join(told().split())
    assert "UNRESOLVED" in shown
    assert "pay-bill-id ^3 billing 1.4.0 it offers version 1.4.0" in shown
    assert wait(["ch/web"], condition="resolved", namespace=space, timeout="0") == 1


def test_channels_shows_how_the_traffic_is_split(put: Put, space: str, told: Told) -> None:
    assert channels(namespace=space) == 0
    assert "every live agent answers" in told()

    put(AGENTS, WEB, CANARY, ROLLOUT)
    wait(["rollout/to-next"], condition="phase=Paused", namespace=space)
    told()
    assert channels(namespace=space, as_json=True) == 0
    rows = {one["subset"]: one for one in json.loads(told())}
    assert (rows["stable"]["percent"], rows["canary"]["percent"]) == (80, 20)
    assert rows["canary"]["agents"] == ["billing-next"]
    assert rows["stable"]["rollout"] == "to-next"
    assert channels(namespace=space) == 0
    assert "20 %" in told()


def test_describe_shows_each_kind_and_its_history(put: Put, space: str, told: Told) -> None:
    put(AGENTS, WEB)
    wait(["ch/web"], condition="resolved", namespace=space)
    put(WEB.replace(">=1.0.0", ">=1"))
    told()

    for word, known in (("agent/billing", "view-bill"), ("cr/web", "pay-bill"), ("ch/web", "^1")):
        target = resource_target(word, None)
        assert target is not None
        assert describe_resource(target, namespace=space) == 0
        assert known in told()
    target = resource_target("channel", "web")
    assert target is not None
    assert describe_resource(target, namespace=space, versions=True, as_json=True) == 0
    versions = json.loads(told())["versions"]
    assert len(versions) >= 2
    first = versions[-1]["revision"]
    assert describe_resource(target, namespace=space, revision=first, as_json=True) == 0
    required = json.loads(told())["spec"]["requiredCapabilities"]
    assert required[0]["version"] == ">=1.0.0"
    with pytest.raises(NotFound, match="lmos describe nobody"):
        describe_resource(resource_target("agent", "nobody") or target)


# -- delete and wait --


def test_delete_takes_names_or_files_and_says_what_is_not_there(
    put: Put, tmp_path: Path, space: str, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    put(AGENTS, WEB)
    wait(["ch/web"], condition="resolved", namespace=space)
    told()

    assert delete(["channel/web", "agent/nobody"], namespace=space, as_json=True) == 1
    said = json.loads(told())
    assert said["deleted"][0]["also"] == ["ChannelRouting/web"]
    assert [one["name"] for one in said["missing"]] == ["nobody"]
    assert wait(["ch/web", "cr/web"], condition="deleted", namespace=space) == 0
    told()
    files = [str(tmp_path / "0.yaml"), str(tmp_path / "1.yaml")]
    capfd.readouterr()
    assert delete([], files=files, namespace=space) == 1
    assert "there is no Channel web" in capfd.readouterr().err
    assert delete([], files=files, namespace=space, ignore_missing=True) == 0
    assert capfd.readouterr().err == ""
    assert got(told, "all", namespace=space) == []


def test_delete_forgets_descriptions_of_files_too(put: Put, tmp_path: Path, told: Told) -> None:
    put(LAMP)

    assert delete([], files=[str(tmp_path / "0.yaml")], as_json=True) == 0

    assert [one["name"] for one in json.loads(told())["deleted"]] == ["urn:example:lamp"]


def test_delete_needs_to_know_what() -> None:
    with pytest.raises(InvalidMessage, match="what shall be deleted"):
        delete([])
    with pytest.raises(InvalidMessage, match="which of the channels"):
        delete(["channels"])


def test_waiting_ends_when_it_cannot_come_true_any_more(
    put: Put, space: str, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    put(AGENTS, WEB, CANARY, ROLLOUT)
    wait(["rollout/to-next"], condition="phase=Paused", namespace=space)
    steer("to-next", "abort", reason="changed our minds", namespace=space)
    told()

    assert wait(["rollout/to-next"], condition="promoted", namespace=space, timeout="60s") == 1
    assert "changed our minds" in capfd.readouterr().err
    assert wait(["ch/web"], condition="condition=Resolved", namespace=space) == 0


# -- rollout --


def test_a_rollout_is_steered_by_its_name_or_its_channels(put: Put, space: str, told: Told) -> None:
    put(AGENTS, WEB, CANARY, ROLLOUT)
    assert wait(["rollout/to-next"], condition="phase=Paused", namespace=space) == 0
    told()

    assert status("channel/web", namespace=space) == 0
    assert "Paused  20 %, step 1/2" in told()
    assert steer("channel/web-next", "promote", namespace=space, as_json=True) == 0
    assert json.loads(told())["status"]["canaryWeight"] == 60
    assert steer("rollout/to-next", "promote_fully", namespace=space, as_json=True) == 0
    assert json.loads(told())["status"]["phase"] == "Promoted"
    assert status("to-next", watch=True, namespace=space) == 0
    assert "Promoted  100 %" in told()
    assert steer("to-next", "restart", namespace=space, as_json=True) == 0
    assert steer("to-next", "abort", namespace=space) == 0
    told()
    assert status("to-next", watch=True, namespace=space, as_json=True) == 1
    assert json.loads(told())["status"]["phase"] == "Aborted"
    assert history("to-next", namespace=space, as_json=True) == 0
    steps = json.loads(told())["steps"]
    assert (steps[0]["what"], steps[0]["state"]) == ("aborted", "Aborted, 0 %")
    by_hand = [one["what"] for one in steps if "@" in one["by"]]
    assert by_hand == ["aborted", "began", "promoted", "stepped", "created"]
    assert history("to-next", namespace=space) == 0
    assert "operator" in told()


def test_a_rollout_that_is_not_there_is_told_with_what_is(put: Put, space: str) -> None:
    put(AGENTS, WEB, CANARY, ROLLOUT)

    with pytest.raises(NotFound, match="say channel/web"):
        status("web", namespace=space)
    with pytest.raises(NotFound, match="no rollout speaks of Channel 'other'"):
        status("channel/other", namespace=space)
    with pytest.raises(InvalidMessage, match="names no rollout"):
        status("agent/billing", namespace=space)
    second = ROLLOUT.replace("to-next", "again")
    put(second)
    for name in ("to-next", "again"):
        steer(name, "abort", namespace=space)
    with pytest.raises(Conflict, match="several rollouts"):
        status("channel/web", namespace=space)


def test_an_earlier_routing_is_put_back_and_released(
    put: Put, space: str, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    put(AGENTS, WEB)
    wait(["ch/web"], condition="resolved", namespace=space)
    put(AGENTS.replace("version: 1.4.0", "version: 1.5.0"))
    told()
    assert wait(["ch/web"], condition="resolved", namespace=space) == 0

    def provided() -> str:
        told()
        (group,) = got(told, "cr/web", namespace=space)["spec"]["capabilityGroups"]
        return group["capabilities"][-1]["providedVersion"]

    for _ in range(100):
        if provided() == "1.5.0":
            break
    assert provided() == "1.5.0"
    assert history("channel/web", namespace=space, as_json=True) == 0
    kept = json.loads(told())
    assert kept["active"] == kept["versions"][0]["revision"]
    assert len(kept["versions"]) == 2
    wired = [one for one in kept["steps"] if one["what"] == "activated"]
    assert [one["kept"] for one in wired] == [True, True]
    assert wired[0]["message"] == "its agents changed: pay-bill by billing 1.5.0, not billing 1.4.0"

    assert restore("channel/web", None, namespace=space) == 0
    said = capfd.readouterr()
    assert "billing again, until it is released" in said.out
    # Nothing of the agents follows the Routing: what answers is what they are now.
    assert "provides 'pay-bill' in version 1.5.0 now, not 1.4.0" in said.err
    assert provided() == "1.4.0"
    assert got(told, "ch/web", namespace=space)["status"]["pinned"] is True
    assert restore("web", 0, namespace=space) == 0
    for _ in range(100):
        if provided() == "1.5.0":
            break
    assert provided() == "1.5.0"
    assert restore("web", 0, namespace=space) == 0
    assert "nothing to release" in told()
    assert history("channel/web", namespace=space, as_json=True) == 0
    steps = json.loads(told())["steps"]
    by_hand = [one["what"] for one in steps if "@" in one["by"]]
    assert by_hand == ["released", "restored", "created"]
    with pytest.raises(InvalidMessage, match="lmos rollout abort to-next"):
        restore("rollout/to-next", None, namespace=space)


@pytest.mark.parametrize(
    ("target", "condition", "said"),
    [
        (
            "ch/web",
            "promoted",
            "Channel web is never promoted: only a resource of kind ChannelRollout",
        ),
        ("crl/to-next", "resolved", "only a resource of kind Channel may be"),
        ("ch/web", "live", "only a resource of kind Agent may be"),
        ("crl/to-next", "phase=Done", '"Done" is no phase'),
        ("ch/web", "happy", "nothing to wait for"),
    ],
)
def test_nobody_waits_for_what_can_never_be(target: str, condition: str, said: str) -> None:
    with pytest.raises(InvalidMessage, match=said):
        wait([target], condition=condition)


def test_a_kind_alone_is_nothing_to_describe(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFound) as refused:
        describe("ch")

    assert refused.value.hint == "of a Channel say its name, too: ch/NAME"


def test_a_file_that_cannot_be_read_is_told_with_its_line(put: Put) -> None:
    refused = put("a: 1\nb: {c\n", code=1)["refused"]

    assert refused[0]["faults"][0]["line"] == 3


# -- as a program --


def test_what_changes_is_followed_as_lines_of_json(
    put: Put, operated: Deployment, at: str, space: str, told: Told
) -> None:
    environ = {**os.environ, "LMOS_NATS_URL": operated.url, "LMOS_TENANT": at}
    with subprocess.Popen(
        [*LMOS, "get", "agents", "-n", space, "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as watching:
        assert watching.stdout is not None
        put(AGENTS)
        names = {json.loads(watching.stdout.readline())["metadata"]["name"] for _ in range(2)}
        assert names == {"billing", "billing-next"}
        assert delete(["agent/billing"], namespace=space) == 0
        gone: dict[str, Any] = {}
        while not gone.get("gone"):  # its status may be written meanwhile
            gone = json.loads(watching.stdout.readline())
        assert gone["metadata"]["name"] == "billing"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0, watching.stderr and watching.stderr.read()


def test_every_command_fails_with_a_sentence(operated: Deployment, at: str) -> None:
    environ = {**os.environ, "LMOS_NATS_URL": operated.url, "LMOS_TENANT": at}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "lmos_mesh.cli", *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    failed = run("get", "chanels")
    assert failed.returncode == 1
    assert failed.stderr.startswith("lmos: no kind of resource is called 'chanels' (there are")
    failed = run("describe", "channel/nope")
    assert failed.returncode == 1
    assert "does not exist" in failed.stderr
    assert run("rollout", "status", "nope").returncode == 1
    assert run("crds", "ch").stdout.startswith("apiVersion: apiextensions.k8s.io/v1\n")
