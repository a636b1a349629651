"""What `lmos doctor` says of what it found."""

import pytest

from lmos_mesh.cli.findings import ago, missing, peer_finding
from lmos_mesh.messages import PeerState


def test_a_service_that_nobody_asked_for_is_not_broken_and_what_is_missing_is_said() -> None:
    unasked = missing("router", chosen=["nats", "registry-1", "registry-2"], here=True)
    ended = missing("router", chosen=["registry", "router-1"], here=True)
    elsewhere = missing("router", chosen=(), here=False)

    assert (unasked.verdict, ended.verdict, elsewhere.verdict) == ("note", "broken", "broken")
    assert "none was asked for" in unasked.said
    assert "--replicas router=0" in unasked.remedy
    assert ended.remedy == "lmos logs router"
    for one in (unasked, ended, elsewhere):
        assert "texts are searched by words" in one.said


def test_an_adapter_that_does_not_answer_is_worth_knowing() -> None:
    assert missing("http", chosen=["http"], here=True).verdict == "note"
    assert "--no-http" in missing("http", chosen=["registry"], here=True).remedy


def test_of_a_peer_is_said_whether_it_answers_and_how_old_its_things_are() -> None:
    peer = PeerState(origin="north", url="http://n:1", answers=True, heard_at=90.0, things=2)

    fine = peer_finding(peer, now=100.0)
    partly = peer_finding(peer.model_copy(update={"refused": 1}), now=100.0)
    lost = peer_finding(peer.model_copy(update={"answers": False, "fault": "no route"}), now=400.0)
    never = peer_finding(PeerState(origin="north", url="http://n:1", fault="x"), now=1.0)

    assert (fine.check, fine.verdict) == ("peer north", "fine")
    assert fine.said == "2 Things, last heard 10 s ago (http://n:1)"
    assert (partly.verdict, lost.verdict, never.verdict) == ("note", "note", "note")
    assert "last heard 5 min ago: no route" in lost.said
    assert "http://n:1/things" in lost.remedy
    assert "never" in never.said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (3.4, "3 s"), (130, "2 min"), (7000, "2 h")]
)
def test_how_long_ago_it_was_is_said_in_one_unit(seconds: float, said: str) -> None:
    assert ago(seconds) == said
