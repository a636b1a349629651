"""What commands about resources take, and what they show."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console, RenderableType

from lmos_mesh.cli.channels import overview, overview_table
from lmos_mesh.cli.crds import crds
from lmos_mesh.cli.differing import difference
from lmos_mesh.cli.resource_calls import (
    Target,
    labels_of,
    named_targets,
    resource_target,
    seconds_of,
    targets_of,
)
from lmos_mesh.cli.resource_screens import rollout_line, screen_of
from lmos_mesh.cli.resource_tables import Around, lasting, table_of
from lmos_mesh.cli.rollout import steps_table
from lmos_mesh.cli.wait import condition_of
from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.messages import ResourceHistory, ResourceStep


def shown(what: RenderableType) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(what)
    return " ".join(capture.get().split())


def channel(name: str = "web", subset: str = "stable", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "lmos.eclipse/v1",
        "kind": "Channel",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"tenant": "acme", "channel": "web", "subset": subset},
            "generation": 2,
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"requiredCapabilities": [{"name": "refund", "version": "^1"}]},
        "status": status or None,
    }


def routing(name: str = "web", subset: str = "stable") -> dict[str, Any]:
    wired = {
        "id": "refund",
        "name": "refund",
        "requiredVersion": "^1",
        "providedVersion": "1.2.0",
        "host": "nats:lmos.acme.agent.shop.stable",
    }
    group = {"name": "shop", "subset": subset, "capabilities": [wired]}
    return {
        **channel(name, subset),
        "kind": "ChannelRouting",
        "spec": {"capabilityGroups": [group]},
    }


def rollout(**status: Any) -> dict[str, Any]:
    canary = {
        "canaryChannel": {"name": "next", "weight": 10},
        "stableChannel": {"name": "web", "weight": 90},
        "steps": [{"weight": 10}, {"weight": 50, "pause": True}],
    }
    told = {
        "tenant": "acme",
        "channel": "web",
        "stableSubset": "stable",
        "canarySubset": "canary",
        **status,
    }
    return {
        "kind": "ChannelRollout",
        "metadata": {"name": "new", "namespace": "default"},
        "spec": {"strategy": {"canary": canary, "shadow": None}},
        "status": told if status else None,
    }


# -- what is meant --


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["channels"], [("Channel", None)]),
        (["ch", "web", "ivr"], [("Channel", "web"), ("Channel", "ivr")]),
        (["crl/new", "channel/web"], [("ChannelRollout", "new"), ("Channel", "web")]),
        (["ag,cr"], [("Agent", None), ("ChannelRouting", None)]),
        (["ROLLOUTS"], [("ChannelRollout", None)]),
        (["channel/with/slash"], [("Channel", "with/slash")]),
    ],
)
def test_kinds_and_names_are_said_in_several_ways(
    words: list[str], meant: list[tuple[str, str | None]]
) -> None:
    assert targets_of(words) == [Target(kind=kind, name=name) for kind, name in meant]


def test_all_means_every_kind() -> None:
    assert len(targets_of(["all"])) == 4


@pytest.mark.parametrize("words", [["ch", "cr/web"], ["ch,cr", "web"]])
def test_what_may_mean_two_things_is_refused(words: list[str]) -> None:
    with pytest.raises(InvalidMessage, match="KIND/NAME"):
        targets_of(words)


def test_an_unknown_kind_is_told_with_those_that_there_are() -> None:
    with pytest.raises(NotFound, match=r"channels \(ch\)"):
        targets_of(["pods"])
    with pytest.raises(InvalidMessage, match="say channel/NAME"):
        named_targets(["channels"])


def test_describe_takes_a_word_for_a_thing_unless_a_kind_stands_before_it() -> None:
    assert resource_target("billing", None) is None
    assert resource_target("urn:acme:x/y", None) is None
    assert resource_target("acme/billing", None) is None
    assert resource_target("channel/", None) is None
    assert resource_target("ch/web", None) == Target(kind="Channel", name="web")
    assert resource_target("agent", "billing") == Target(kind="Agent", name="billing")
    with pytest.raises(NotFound):
        resource_target("billing", "web")


def test_labels_and_times_are_read_as_people_write_them() -> None:
    assert labels_of(["a=1,b==2", "c="]) == {"a": "1", "b": "2", "c": ""}
    assert [seconds_of(one) for one in ("30", "500ms", "1.5s", "2m", "1h", "0")] == [
        30.0,
        0.5,
        1.5,
        120.0,
        3600.0,
        0.0,
    ]
    for wrong in ("", "soon", "-1s", "1d", "5 m"):
        with pytest.raises(InvalidMessage, match="is no time"):
            seconds_of(wrong)
    with pytest.raises(InvalidMessage, match="is no label=value"):
        labels_of(["web"])


def test_definitions_are_printed_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crds(["ch", "rollout"], schemas=False, as_json=False, into=None) == 0
    kinds = [one["spec"]["names"]["kind"] for one in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["Channel", "ChannelRollout"]

    assert crds(["ag"], schemas=True, as_json=False, into=None) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Agent"

    assert crds([], schemas=False, as_json=False, into=tmp_path / "new") == 0
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == [
        "agents.yaml",
        "channelrollouts.yaml",
        "channelroutings.yaml",
        "channels.yaml",
    ]


# -- what is waited for --


@pytest.mark.parametrize(
    ("condition", "one", "met"),
    [
        ("resolved", channel(resolveStatus="RESOLVED", observedGeneration=2), True),
        ("resolved", channel(resolveStatus="RESOLVED", observedGeneration=1), False),
        ("resolved", channel(resolveStatus="UNRESOLVED"), False),
        ("unresolved", channel(resolveStatus="UNRESOLVED"), True),
        ("resolved", channel(), False),
        ("resolved", None, False),
        ("promoted", rollout(phase="Promoted"), True),
        ("promoted", rollout(phase="Progressing"), False),
        ("promoted", rollout(), False),
        ("phase=paused", rollout(phase="Paused"), True),
        ("deleted", None, True),
        ("deleted", channel(), False),
        ("condition=Ready", channel(conditions=[{"type": "Ready", "status": "True"}]), True),
        ("condition=Ready", channel(conditions=[{"type": "Ready", "status": "False"}]), False),
        ("condition=Ready=False", channel(conditions=[{"type": "Ready", "status": "False"}]), True),
        ("live", {**channel(live=True), "kind": "Agent"}, True),
    ],
)
def test_a_condition_is_met_or_not_yet(
    condition: str, one: dict[str, Any] | None, met: bool
) -> None:
    assert condition_of(condition)(one) is met


@pytest.mark.parametrize("phase", ["Aborted", "RolledBack", "Invalid"])
def test_what_has_ended_otherwise_will_not_be_promoted(phase: str) -> None:
    said = condition_of("promoted")(rollout(phase=phase, message="too slow"))

    assert said == f"it is {phase}: too slow"


@pytest.mark.parametrize("text", ["", "ready", "resolved=now", "phase", "condition="])
def test_nobody_waits_for_what_means_nothing(text: str) -> None:
    with pytest.raises(InvalidMessage, match="is nothing to wait for"):
        condition_of(text)


# -- what is shown --


def test_a_channel_that_nobody_has_looked_at_is_shown_as_pending() -> None:
    assert "web web stable pending" in shown(table_of("Channel", [channel()], Around()))


def test_tables_name_the_namespace_only_if_there_is_another_one() -> None:
    other = channel("x")
    other["metadata"]["namespace"] = "far"

    assert "namespace" not in shown(table_of("Channel", [channel()], Around()))
    assert "web default web stable" in shown(table_of("Channel", [channel(), other], Around()))


def test_a_pinned_channel_says_so_and_who_answers() -> None:
    one = channel(resolveStatus="RESOLVED", pinned=True)
    other = routing()
    other["spec"]["capabilityGroups"][0]["subset"] = "canary"
    around = Around(routings={("default", "web"): other})

    assert "RESOLVED (pinned) shop (canary)" in shown(table_of("Channel", [one], around))


def test_a_screen_says_who_provides_what_and_who_nearly_would() -> None:
    missing = {
        "name": "refund",
        "version": "^3",
        "near": [{"agent": "shop", "version": "1.2.0", "reason": "it offers 1.2.0"}],
    }
    one = channel(resolveStatus="UNRESOLVED", unresolvedRequiredCapabilities=[missing])

    said = shown(screen_of(one, routing=routing(), rollouts=[rollout(phase="Paused")]))

    assert "refund ^1 HIGHEST shop 1.2.0 nats:lmos.acme.agent.shop.stable" in said
    assert "refund ^3 shop 1.2.0 it offers 1.2.0" in said
    assert "new Paused 0 %, step 1/2" in said


def test_a_rollout_shows_its_steps_and_what_was_measured() -> None:
    verdict = {
        "metric": "errors",
        "outcome": "fail",
        "canary": 20.0,
        "stable": 1.0,
        "canaryTurns": 50,
        "stableTurns": 450,
        "p": 0.00012,
        "message": "worse",
    }
    one = rollout(phase="RolledBack", canaryWeight=0, verdicts=[verdict], message="errors")

    said = shown(screen_of(one))

    assert "10 % → 50 % (pause)" in said
    assert "errors fail 20 % 50 1 % 450 0.00012 worse" in said
    assert rollout_line(one).plain == "new  RolledBack  0 %, step 1/2: errors"


@pytest.mark.parametrize(
    ("status", "stable", "canary"),
    [
        ({"phase": "Progressing", "canaryWeight": 25}, 75, 25),
        ({"phase": "Paused", "canaryWeight": 25}, 75, 25),
        ({"phase": "Promoted", "canaryWeight": 100}, 0, 100),
        ({"phase": "Aborted", "canaryWeight": 0}, 100, None),
    ],
)
def test_the_shares_of_a_channel_are_a_hundred(
    status: dict[str, Any], stable: int, canary: int | None
) -> None:
    rows = overview([channel(), channel("next", "canary")], [routing()], [rollout(**status)])

    assert {one["subset"]: one["percent"] for one in rows} == {"stable": stable, "canary": canary}
    assert ("by name" in shown(overview_table(rows))) is (canary is None)


def test_times_are_short() -> None:
    assert [lasting(one) for one in (0, 59, 119, 120, 7199, 7200, 86_400, 1e6)] == [
        "0s",
        "59s",
        "119s",
        "2m",
        "119m",
        "2h",
        "1d",
        "11d",
    ]


# -- what is different --


def test_only_what_people_write_is_a_difference() -> None:
    before = channel(resolveStatus="RESOLVED")
    after = channel()
    after["metadata"] |= {"resourceVersion": "9", "generation": 3, "annotations": {}}

    assert difference(before, after, name="Channel web") == ""


def test_a_difference_names_both_sides() -> None:
    after = channel()
    after["spec"]["requiredCapabilities"][0]["version"] = "^2"

    lines = difference(channel(), after, name="Channel web").splitlines()

    assert lines[0] == "--- Channel web as it is"
    assert [one for one in lines if one.startswith(("+ ", "- "))] == [
        "-      version: ^1",
        "+      version: ^2",
    ]
    assert difference(None, after, name="x").count("\n+") >= 10


def test_each_step_is_told_with_who_asked_for_it_and_a_routing_that_can_be_put_back() -> None:
    steps = (
        ResourceStep(at=3.0, what="restored", revision=9, kept=True, by="ann@laptop (cli-1)"),
        ResourceStep(at=2.0, what="activated", revision=7, kept=True, message="its agents changed"),
        ResourceStep(at=1.0, what="activated", revision=5, message="it was resolved"),
    )
    name: dict[str, Any] = {"kind": "ChannelRouting", "namespace": "default", "name": "web"}

    history = ResourceHistory(**name, versions=(), steps=steps)
    told = " ".join(shown(steps_table(history, active=9)).split())

    at = told.index("restored")
    assert "restored 9 ● ann@laptop" in told[at:]
    assert "activated 7 operator its agents changed" in told[at:]
    assert told.endswith("activated operator it was resolved")


def test_a_rollout_is_told_with_where_it_was_and_a_reason_once() -> None:
    steps = (
        ResourceStep(
            at=2.0, what="rolled_back", state="RolledBack, 0 %", message="slow", reason="it hurts"
        ),
        ResourceStep(
            at=1.0, what="stepped", state="Progressing, 10 %", message="by hand: go", reason="go"
        ),
    )
    name: dict[str, Any] = {"kind": "ChannelRollout", "namespace": "default", "name": "web"}

    told = " ".join(shown(steps_table(ResourceHistory(**name, versions=(), steps=steps))).split())

    assert "rolled back RolledBack, 0 % operator slow: it hurts" in told
    assert told.endswith("stepped Progressing, 10 % operator by hand: go")
