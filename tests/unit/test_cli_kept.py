"""What `lmos doctor` says of the servers that keep the buckets and streams."""

from typing import Any

import pytest

from lmos_mesh.cli.kept import kept_findings, no_jetstream


def told(
    name: str, replicas: int = 3, *peers: dict[str, Any], leader: str = "n0"
) -> dict[str, Any]:
    cluster = {"name": "mesh", "leader": leader, "replicas": list(peers)}
    return {"config": {"name": name, "num_replicas": replicas}, "cluster": cluster}


def peer(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "current": True, "active": 900_000_000, **more}


def test_it_is_said_how_many_servers_keep_each() -> None:
    streams = [
        told("KV_lmos_leases", 3, peer("n1"), peer("n2")),
        told("LMOS_AUDIT", 3, peer("n1"), peer("n2")),
        told("KV_lmos_router", 5),
        told("ORDERS", 1),
    ]

    found = kept_findings(streams, [], wanted=3)

    assert [(one.verdict, one.said) for one in found] == [
        ("fine", "by 3 servers: LMOS_AUDIT, lmos_leases"),
        ("fine", "by 5 servers: lmos_router"),
    ]


def test_a_single_server_that_keeps_all_is_fine() -> None:
    alone = {"config": {"name": "LMOS_AUDIT", "num_replicas": 1}, "cluster": {"leader": "N"}}

    (found,) = kept_findings([alone], [], wanted=None)

    assert (found.verdict, found.said) == ("fine", "by 1 server: LMOS_AUDIT")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"offline": True, "current": False}, "is away"),
        ({"active": 8_000_000_000}, "has been silent for 8 s"),
        ({"current": False}, "is not up to date yet"),
    ],
)
def test_a_server_that_does_not_do_its_part_is_named_once(fault: dict[str, Any], said: str) -> None:
    names = [f"KV_lmos_{number}" for number in range(6)]
    streams = [told(name, 3, peer("n1", **fault), peer("n2")) for name in names]

    _, found = kept_findings(streams, [], wanted=3)

    assert found.verdict == "note"
    assert found.said.startswith(f"server n1 {said}; it keeps lmos_0, lmos_1, lmos_2 and 3 more")
    assert "start it again" in found.remedy


def test_what_nobody_leads_is_broken() -> None:
    found = kept_findings([told("LMOS_AUDIT", leader="")], ["KV_lmos_leases", "X"], wanted=3)

    broken = [one for one in found if one.verdict == "broken"]
    assert [one.said for one in broken] == [
        "nobody leads LMOS_AUDIT, lmos_leases: nothing is read or written there"
    ]


def test_fewer_than_asked_for_and_one_of_many_are_worth_knowing() -> None:
    _, low = kept_findings([told("LMOS_AUDIT", 1)], [], wanted=3)
    _, alone = kept_findings([told("LMOS_AUDIT", 1)], [], wanted=None)

    assert (low.verdict, alone.verdict) == ("note", "note")
    assert "fewer than the 3 servers that LMOS_NATS_REPLICAS asks for" in low.said
    assert "by one server of a cluster" in alone.said
    assert "LMOS_NATS_REPLICAS=3" in alone.remedy


def test_where_there_is_no_jetstream_it_is_said_whose_fault_it_is() -> None:
    silent = no_jetstream("", None, clustered=False)
    refused = no_jetstream("JetStream not enabled for account", 10039, clustered=True)
    leaderless = no_jetstream("system temporarily unavailable", 10008, clustered=True)

    assert silent.said == "this server has none"
    assert refused.said == "this server has none (JetStream not enabled for account)"
    assert "for ours" in refused.remedy
    assert leaderless.said.startswith("the servers of this cluster have not agreed who leads them")
    assert no_jetstream("", None, clustered=True).said == leaderless.said.partition(" (")[0]
