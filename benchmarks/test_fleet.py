"""A fleet must be the same for everybody who measures with it, and one that a registry takes."""

from fleet import agent, agents
from registry import on_paper

from lmos_mesh.thing_faults import faults_of


def test_every_agent_of_a_fleet_can_be_registered() -> None:
    fleet = list(agents(300))

    assert [faults_of(one) for one in fleet] == [[]] * 300
    assert len({one["name"] for one in fleet}) == 300
    assert {len(one["capabilities"]) for one in fleet} == {5}
    assert all(len(each["examples"]) == 1 for one in fleet for each in one["capabilities"])


def test_an_agent_is_the_same_in_every_fleet_of_its_seed() -> None:
    assert list(agents(3, first=7)) == [agent(7), agent(8), agent(9)]
    assert agent(7) != agent(7, seed=1)


def test_what_was_not_measured_is_where_a_straight_line_leads() -> None:
    assert on_paper({1: 12.0, 2: 14.0, 3: 16.0}, 100) == 210.0
