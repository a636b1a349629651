"""Names, descriptions and examples speak for capabilities, side by side in one matrix."""

import numpy as np
import pytest

from lmos_mesh.thing_faults import thing_from
from lmos_mesh_router.evidence import (
    AGENT_WEIGHT,
    ENOUGH_EXAMPLES,
    PHRASES,
    ClassKey,
    Evidence,
    EvidenceMatrix,
    evidence_of,
    most_telling_first,
)
from tests.router_fleets import DIMENSIONS, WORDS, fleet, key

billing = key("billing-agent")


def test_a_name_and_the_phrases_around_it_weigh_as_much_as_one_example() -> None:
    thing = thing_from(
        {"name": "billing-agent", "capabilities": [{"id": "view_bill", "examples": ["my bill"]}]}
    )

    said = evidence_of(billing, thing)

    names = [one for one in said if one.kind == "name"]
    assert len(names) == len(PHRASES)
    assert sum(one.weight for one in names) == pytest.approx(1)
    assert {"view bill", "billing: view bill", "how do I view bill?"} <= {x.text for x in names}
    assert Evidence(billing, "view_bill", "example", "my bill", 1.0) in said


def test_with_many_examples_only_the_name_itself_speaks_beside_them() -> None:
    texts = [f"example {number}" for number in range(ENOUGH_EXAMPLES)]
    thing = thing_from({"name": "x", "capabilities": [{"id": "pay", "examples": texts}]})

    said = evidence_of(billing, thing)

    assert [one.text for one in said if one.kind == "name"] == ["pay"]


def test_one_text_of_each_capability_comes_first_and_phrases_last() -> None:
    thing = thing_from(
        {
            "name": "x",
            "description": "Helps people.",
            "capabilities": [
                {"id": "pay", "description": "Pays bills.", "examples": ["pay it", "pay now"]},
                {"id": "told", "description": "Says what is owed."},
                {"id": "bare"},
            ],
        }
    )
    said = evidence_of(billing, thing)

    staged = most_telling_first(said)

    assert sorted(one for _, one in staged) == sorted(said)
    assert [stage for stage, _ in staged] == sorted(stage for stage, _ in staged)
    by_stage = {at: {one.text for stage, one in staged if stage == at} for at in range(3)}
    assert by_stage[0] == {"pay it", "Says what is owed.", "bare"}
    assert by_stage[1] == {"pay now", "Pays bills.", "pay", "told"}
    assert {"Helps people.", "I want to pay", "pay: Pays bills."} <= by_stage[2]


def test_what_all_descriptions_begin_with_is_also_left_out() -> None:
    text = "This capability is responsible for paying bills."
    thing = thing_from({"name": "x", "capabilities": [{"id": "pay", "description": text}]})

    said = {
        one.text: one.weight for one in evidence_of(billing, thing) if one.kind == "description"
    }

    assert said == pytest.approx(
        {text: 1 / 3, "paying bills.": 1 / 3, "pay: paying bills.": 1 / 3, "paying bills": 1.0}
    )


def test_what_a_description_lists_also_speaks_one_by_one() -> None:
    text = "Handles delivery options such as the estimated time, and delivery methods or queries."
    thing = thing_from({"name": "x", "capabilities": [{"id": "pay", "description": text}]})

    said = {x.text: x.weight for x in evidence_of(billing, thing) if x.kind == "description"}

    pieces = {"Handles delivery options", "the estimated time", "delivery methods"}
    assert pieces <= said.keys()
    assert sum(said.values()) == pytest.approx(2)
    assert sum(said[one] for one in pieces) <= 1


@pytest.mark.parametrize(
    ("capabilities", "weight"),
    [
        ([{"id": "pay"}, {"id": "view"}], 1.0),
        ([{"id": "pay"}, {"id": "view", "examples": ["my bill"]}], 0.5),
        ([{"id": "pay", "description": "Pays."}, {"id": "view", "examples": ["my bill"]}], 0.0),
    ],
)
def test_an_agents_own_description_counts_where_its_capabilities_say_nothing_of_themselves(
    capabilities: list[dict[str, object]], weight: float
) -> None:
    thing = thing_from({"name": "x", "description": "All bills", "capabilities": capabilities})

    said = sum(one.weight for one in evidence_of(billing, thing) if one.kind == "agent")

    assert said == pytest.approx(weight * AGENT_WEIGHT)


def test_an_agents_own_description_speaks_for_each_of_its_capabilities_a_little() -> None:
    evidence = [
        Evidence(billing, "pay", "example", "p"),
        Evidence(billing, "view", "example", "v"),
        Evidence(billing, "", "agent", "knows bills"),
        Evidence(key("other"), "x", "example", "x"),
    ]

    matrix = EvidenceMatrix.build(evidence, np.eye(4, 6, dtype=np.float32), np.zeros((4, 0)))

    assert matrix.evidence[-1].text == "knows bills"
    assert matrix.targets()[-1].tolist() == [0.5, 0.5, 0.0]
    assert matrix.starts.tolist() == [0, 1, 2, 3]


def test_an_agent_that_can_do_nothing_has_nothing_to_speak_for_it() -> None:
    thing = thing_from({"name": "x", "description": "Knows everything.", "capabilities": []})

    assert evidence_of(billing, thing) == []


def test_rows_are_sorted_by_class_whatever_order_they_come_in() -> None:
    matrix = fleet(3)
    order: list[int] = np.random.default_rng(0).permutation(len(matrix)).tolist()

    again = EvidenceMatrix.build(
        [matrix.evidence[at] for at in order], matrix.vectors[order], matrix.words[order]
    )

    assert again.classes == matrix.classes
    assert again.said_of() == matrix.said_of()
    np.testing.assert_allclose(again.means, matrix.means, atol=1e-6)


def test_a_mask_names_the_classes_of_the_eligible_agents() -> None:
    matrix = fleet(3, capabilities=2)

    mask = matrix.mask([key("a1"), key("nobody")])

    assert [matrix.classes[at] for at in np.flatnonzero(mask)] == [
        ClassKey(key("a1"), "c0"),
        ClassKey(key("a1"), "c1"),
    ]


def test_a_class_that_loses_all_its_rows_is_gone() -> None:
    matrix = fleet(2, capabilities=1, examples=1, names=False)

    rest = matrix.without([0])

    assert rest.classes == (ClassKey(key("a1"), "c0"),)
    assert rest.agents == (key("a1"),)


def test_no_evidence_is_a_matrix_too() -> None:
    empty = EvidenceMatrix.build([], np.empty((0, DIMENSIONS), np.float32), np.empty((0, WORDS)))

    assert len(empty) == 0
    assert empty.mask([billing]).shape == (0,)
    assert empty.targets().shape == (0, 0)


def test_opposite_texts_have_no_direction_and_no_faults() -> None:
    evidence = [Evidence(billing, "pay", "example", text) for text in ("yes", "no")]
    vectors = np.array([[1, 0], [-1, 0]], np.float32)

    matrix = EvidenceMatrix.build(evidence, vectors, np.zeros((2, 0)))

    assert np.isfinite(matrix.means).all()
    assert float(np.linalg.norm(matrix.means)) < 1e-3
