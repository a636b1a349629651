"""What lint finds is what would go wrong, and a tidy fleet is left in peace."""

import numpy as np
import pytest

from lmos_mesh.messages import Finding
from lmos_mesh.things import Capability, Thing, ThingKey
from lmos_mesh_router.evidence import Evidence, EvidenceMatrix
from lmos_mesh_router.linting import Linted, lint, says_nothing
from lmos_mesh_router.ranking import Learned
from tests.router_fleets import DIMENSIONS, WORDS, fleet, key, middle_of, near, unit


class Registered:
    """Agents with examples at chosen places."""

    def __init__(self) -> None:
        self._evidence: list[Evidence] = []
        self._vectors: list[np.ndarray] = []
        self.things: dict[ThingKey, Thing] = {}

    def add(
        self,
        name: str,
        capability: str,
        examples: dict[str, np.ndarray],
        *,
        subset: str = "stable",
        channels: tuple[str, ...] = ("*",),
    ) -> None:
        at = ThingKey("demo", name, subset)
        able = Capability(id=capability, name=capability, examples=tuple(examples))
        known = self.things.get(at)
        self.things[at] = Thing(
            name=name,
            subset=subset,
            capabilities=(*(known.capabilities if known else ()), able),
            supported_channels=channels,
        )
        for text, vector in examples.items():
            self._evidence.append(Evidence(at, capability, "example", text))
            self._vectors.append(vector)

    def lint(self) -> Linted:
        matrix = EvidenceMatrix.build(
            self._evidence,
            np.array(self._vectors, np.float32).reshape(-1, DIMENSIONS),
            np.zeros((len(self._evidence), WORDS), np.float32),
        )
        return lint(Learned.of(matrix), self.things)


def around(agent: int, count: int, *, first: int = 0, say: str = "text") -> dict[str, np.ndarray]:
    """Examples of a topic."""
    return {
        f"{say} {agent} {number}": near(agent, 0, number).vector
        for number in range(first, first + count)
    }


def kinds(found: Linted) -> list[str]:
    return [one.kind for one in found.findings]


def only(found: Linted, kind: str) -> Finding:
    (one,) = (one for one in found.findings if one.kind == kind)
    return one


def test_a_tidy_fleet_is_left_in_peace() -> None:
    matrix = fleet(6, capabilities=3, examples=5)
    things = {
        key(f"a{agent}"): Thing(
            name=f"a{agent}",
            capabilities=tuple(
                Capability(
                    id=f"c{at}",
                    name=f"topic{agent}of{at}things",
                    examples=tuple(f"example {agent} {at} {number}" for number in range(5)),
                )
                for at in range(3)
            ),
        )
        for agent in range(6)
    }

    found = lint(Learned.of(matrix), things)

    assert kinds(found) == []
    assert (found.agents, found.capabilities, found.examples) == (6, 18, 90)
    assert (found.judged, found.misrouted) == (90, 0)


def test_an_example_in_the_midst_of_another_agents_would_go_there() -> None:
    fleet = Registered()
    fleet.add("billing", "view_bill", {**around(1, 5), "lost in the crowd": middle_of(2, 0)})
    fleet.add("weather", "forecast", around(2, 5))

    found = fleet.lint()

    one = only(found, "misrouted")
    assert (one.agent, one.capability, one.text) == ("billing", "view_bill", "lost in the crowd")
    assert (one.other_agent, one.other_capability) == ("weather", "forecast")
    assert one.probability >= 0.5
    assert one.other_text.startswith("text 2")
    assert "“lost in the crowd” of billing would go to weather" in one.message
    assert found.misrouted == 3  # two of weather follow it, and are not told


def test_the_same_words_at_two_agents_are_a_duplicate_and_said_once() -> None:
    fleet = Registered()
    shared = near(3, 0, 99).vector
    fleet.add("shop", "refund", {**around(1, 4), "I want my money back!": shared})
    fleet.add("bank", "transfer", {**around(2, 4), "i want my  money back": shared})

    found = fleet.lint()

    one = only(found, "duplicate")
    assert {one.agent, one.other_agent} == {"shop", "bank"}
    assert "misrouted" not in kinds(found)


def test_the_same_meaning_at_two_agents_is_a_duplicate() -> None:
    fleet = Registered()
    shared = near(3, 0, 99).vector
    almost = unit(shared + 0.01 * middle_of(4, 0))
    fleet.add("shop", "refund", {**around(1, 4), "give it back": shared})
    fleet.add("bank", "transfer", {**around(2, 4), "return the money": almost})

    one = only(fleet.lint(), "duplicate")

    assert one.similarity == pytest.approx(1, abs=0.01)


def test_capabilities_that_claim_each_others_examples_collide() -> None:
    fleet = Registered()
    fleet.add("shop", "refund", around(1, 6, say="shop"))
    fleet.add("bank", "repay", around(1, 6, first=10, say="bank"))
    fleet.add("weather", "forecast", around(2, 6))

    found = fleet.lint()

    one = only(found, "collision")
    assert {(one.agent, one.capability), (one.other_agent, one.other_capability)} == {
        ("shop", "refund"),
        ("bank", "repay"),
    }
    assert 0.25 <= one.probability <= 1
    assert all("weather" not in (one.agent, one.other_agent) for one in found.findings)


def test_what_can_never_be_chosen_between_does_not_collide() -> None:
    by_channel, by_subset, at_one_agent = Registered(), Registered(), Registered()
    by_channel.add("shop", "refund", around(1, 6, say="a"), channels=("web",))
    by_channel.add("bank", "repay", around(1, 6, first=10), channels=("ivr",))
    by_subset.add("shop", "refund", around(1, 6, say="a"))
    by_subset.add("shop", "refund", around(1, 6, say="a"), subset="canary")
    at_one_agent.add("shop", "refund", around(1, 6, say="a"))
    at_one_agent.add("shop", "repay", around(1, 6, first=10))
    for each in (by_channel, by_subset, at_one_agent):
        each.add("weather", "forecast", around(2, 6))

        assert kinds(each.lint()) == []


def test_a_capability_without_examples_and_one_whose_name_says_nothing_are_named() -> None:
    fleet = Registered()
    fleet.add("shop", "refund", {})
    fleet.add("bank", "handle_request", around(1, 3))

    found = fleet.lint()

    assert [(one.kind, one.agent) for one in found.findings] == [
        ("no_examples", "shop"),
        ("vague_name", "bank"),
    ]


def test_nothing_registered_is_nothing_found() -> None:
    assert Registered().lint() == Linted(
        findings=(), agents=0, capabilities=0, examples=0, judged=0, misrouted=0
    )


@pytest.mark.parametrize("name", ["do", "handle_request", "runTask", "c1", "Agent", "x", "", "foo"])
def test_names_that_say_nothing(name: str) -> None:
    assert says_nothing(name)


@pytest.mark.parametrize(
    "name", ["view_bill", "getWeather", "refund", "SIM", "Rechnung anzeigen", "请求退款", "état"]
)
def test_names_that_say_something(name: str) -> None:
    assert not says_nothing(name)
