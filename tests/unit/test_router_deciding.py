"""Between rankings and what is answered: ties, conversations, candidates, reasons."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.messages import Decision, Utterance
from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_router.deciding import (
    agent_before,
    cards,
    decision_for,
    decision_of,
    decision_of_parts,
    fallen_back,
    message_before,
    nearest_examples,
    policy_for,
    seen_of,
    still_there,
    untied,
)
from lmos_mesh_router.evidence import Evidence
from lmos_mesh_router.hybrid import Option, Policy, alone
from lmos_mesh_router.ranking import Learned, Ranked, Ranking, rank
from lmos_mesh_router.splitting import Span
from tests.router_fleets import fleet, key, near

A, B, C = (key(name) for name in "abc")


def ranked(
    agent: ThingKey, probability: float, text: str = "", capability: str = "do", kind: str = "name"
) -> Ranked:
    evidence = Evidence(agent, capability, kind, text or f"what {agent.name} does")
    return Ranked(agent, probability, capability, 1.0, 0.8, evidence)


def ranking(*all: Ranked, share: float = 0.5) -> Ranking:
    return Ranking(all, possible=tuple(one.key for one in all), share=share)


THINGS: Mapping[ThingKey, Thing] = {
    one: thing_from(
        {
            "name": one.name,
            "description": f"Is {one.name}.",
            "capabilities": [{"id": "do", "name": "do it"}, {"id": "other"}],
        }
    )
    for one in (A, B, C)
}


def names(found: Ranking) -> list[str]:
    return [one.key.name for one in found.ranked]


# -- ties --


def test_of_agents_that_are_as_likely_the_least_busy_comes_first() -> None:
    tied = ranking(ranked(A, 0.49), ranked(B, 0.48), ranked(C, 0.03))

    found = untied(tied, {A: 0.9, B: 0.1, C: 0.0}.__getitem__)

    assert names(found) == ["b", "a", "c"]
    assert found.ranked[0].probability == 0.48


def test_who_is_clearly_likelier_stays_first_however_busy() -> None:
    clear = ranking(ranked(A, 0.6), ranked(B, 0.4))

    assert untied(clear, {A: 1.0, B: 0.0}.__getitem__) is clear


def test_agents_that_say_the_very_same_count_as_one() -> None:
    same = ranking(
        ranked(A, 0.48, "Show my bill"), ranked(B, 0.48, "show my  bill"), ranked(C, 0.04)
    )

    found = untied(same, {A: 0.5, B: 0.25, C: 0.0}.__getitem__)

    assert (found.ranked[0].key, found.ranked[0].probability) == (B, 0.96)
    assert found.possible == (B, C)
    assert sum(one.probability for one in found.ranked) == pytest.approx(1)


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=6),
    st.lists(st.floats(0, 2), min_size=6, max_size=6),
    st.lists(st.sampled_from(["same", ""]), min_size=6, max_size=6),
)
def test_a_tie_is_settled_without_losing_anybody(
    weights: list[float], loads: list[float], texts: list[str]
) -> None:
    shares = sorted((one / sum(weights) for one in weights), reverse=True)
    keys = [key(f"a{at}") for at in range(len(shares))]
    before = ranking(
        *(ranked(one, share, text) for one, share, text in zip(keys, shares, texts, strict=False))
    )

    found = untied(before, dict(zip(keys, loads, strict=False)).__getitem__)

    assert sorted(names(found)) == sorted(names(before))
    assert sum(one.probability for one in found.ranked) == pytest.approx(1)
    assert set(found.possible) <= set(before.possible)
    assert found.ranked[0].probability >= before.ranked[0].probability - 0.02


def test_whoever_left_meanwhile_is_not_chosen() -> None:
    found = still_there(
        ranking(ranked(A, 0.6), ranked(B, 0.3), ranked(C, 0.1)), {B, C}.__contains__
    )

    assert names(found) == ["b", "c"]
    assert found.ranked[0].probability == pytest.approx(0.75)
    assert found.possible == (B, C)
    assert still_there(ranking(ranked(A, 1.0)), lambda _: False).ranked == ()


# -- what was said before --


def test_the_last_message_and_who_answered_it_are_found() -> None:
    history = [
        Utterance(role="user", content="first"),
        Utterance(role="assistant", content="x", agent="weather"),
        Utterance(role="user", content="second"),
        Utterance(role="assistant", content="y", agent="billing"),
    ]

    assert (message_before(history), agent_before(history)) == ("second", "billing")
    assert (message_before(history[:3]), agent_before(history[:3])) == ("second", "")
    assert (message_before([]), agent_before([])) == ("", "")


# -- what is answered --


def answered(found: Ranking, policy: Policy | None = None, limit: int = 5):
    settled = alone(seen_of(found), policy or Policy())
    return decision_of(settled, found, "demo", THINGS.get, limit=limit, encoder="e")


def test_a_decision_names_its_candidates_and_what_spoke_for_them() -> None:
    decision = answered(
        ranking(ranked(A, 0.9, "do it now", kind="example"), ranked(B, 0.1)), limit=1
    )

    assert (decision.outcome, decision.agent, decision.capability) == ("routed", "a", "do")
    assert [one.agent for one in decision.candidates] == ["a"]
    assert decision.candidates[0].capability_name == "do it"
    assert decision.candidates[0].evidence == "do it now"
    assert "example “do it now” (0.80)" in decision.reason
    assert (decision.in_scope, decision.could_be) == (0.5, ("a", "b"))


def test_what_is_far_out_is_out_of_scope_and_what_is_unclear_unsure() -> None:
    far = answered(ranking(ranked(A, 0.99), share=0.01))
    unclear = answered(ranking(ranked(A, 0.4), ranked(B, 0.35), ranked(C, 0.25)))
    nobody = answered(Ranking())

    assert (far.outcome, far.agent, len(far.candidates)) == ("out_of_scope", "", 1)
    assert (unclear.outcome, unclear.agent, unclear.capability) == ("unsure", "", "")
    assert unclear.could_be == ("a", "b", "c")
    assert (nobody.outcome, nobody.candidates) == ("nobody", ())


def test_who_needs_no_certainty_gets_the_nearest_and_who_needs_all_of_it_nobody() -> None:
    far = ranking(ranked(A, 0.3), ranked(B, 0.2), share=0.0)

    assert answered(far, policy_for(Policy(), 0)).agent == "a"
    sure = replace(far, share=0.9)
    assert answered(sure, policy_for(Policy(), 1)).outcome == "unsure"
    assert policy_for(Policy(), None) == Policy()


def test_a_capability_that_an_agent_no_longer_has_is_not_named() -> None:
    decision = answered(ranking(ranked(A, 0.9, capability="gone")))

    assert (decision.agent, decision.capability) == ("a", "do")


def several(*parts: Ranking) -> Decision | None:
    """The decision for "do x and do x" with these rankings for its parts."""
    return decision_of_parts(
        " and ".join(["do x"] * len(parts)),
        {Span(9 * at, 9 * at + 4): answered(one) for at, one in enumerate(parts)},
        ranking(ranked(A, 0.5), ranked(B, 0.5)),
        "demo",
        THINGS.get,
        limit=5,
        encoder="e",
    )


def test_a_message_of_several_requests_names_each_and_its_agent() -> None:
    decision = several(ranking(ranked(A, 0.9)), ranking(ranked(B, 0.8), share=0.2))

    assert decision is not None
    assert decision.outcome == "several"
    assert [(one.text, one.agent) for one in decision.parts] == [("do x", "a"), ("do x", "b")]
    assert (decision.agent, decision.confidence, decision.in_scope) == ("", 0.8, 0.2)


def test_a_request_that_nobody_can_do_is_a_part_without_an_agent() -> None:
    decision = several(
        ranking(ranked(A, 0.9)),
        ranking(ranked(B, 0.9), share=0.001),
        ranking(ranked(B, 0.3), ranked(C, 0.3)),
    )

    assert decision is not None
    assert [(one.outcome, one.agent) for one in decision.parts] == [
        ("routed", "a"),
        ("out_of_scope", ""),
        ("unsure", ""),
    ]
    assert [one.agent for one in decision.parts[2].candidates] == ["b", "c"]
    assert decision.could_be == ("a",)


def test_a_message_of_which_nobody_can_do_anything_is_not_taken_apart() -> None:
    stranger = ranking(ranked(A, 0.9), share=0.001)
    message, spans = "do x and do x", (Span(0, 4), Span(9, 13))
    caught = fallen_back(answered(stranger), C, THINGS[C])

    decision = decision_of_parts(
        message, dict.fromkeys(spans, caught), stranger, "demo", THINGS.get, limit=5, encoder="e"
    )

    assert several(stranger, stranger) is None
    assert decision is None, "who answers where nobody is sure is asked once"


def test_an_agent_that_is_named_is_chosen_with_the_capability_that_fits() -> None:
    decision = decision_for(A, THINGS[A], ranking(ranked(A, 1.0, capability="other")), encoder="e")
    without = decision_for(A, THINGS[A], Ranking(), encoder="e")
    empty = decision_for(A, Thing(name="a"), Ranking(), encoder="e")

    assert (decision.agent, decision.capability, decision.method) == ("a", "other", "explicit")
    assert (without.capability, empty.capability) == ("do", "")


def test_a_model_is_told_of_agents_that_are_there() -> None:
    options = [Option(agent="a", probability=0.5), Option(agent="gone", probability=0.5)]

    assert [(one.agent, one.description) for one in cards(options, "demo", THINGS.get)] == [
        ("a", "Is a.")
    ]


# -- LMOS's rule --


def test_the_nearest_examples_are_those_of_agents_that_may_be_chosen() -> None:
    matrix = fleet(4)
    learned = Learned.of(matrix)
    query = near(1, 0, 7)
    mask = matrix.mask([key("a1"), key("a2")])

    hits = nearest_examples(query, learned, mask)

    assert hits[0].agent == "a1"
    assert {one.agent for one in hits} == {"a1", "a2"}
    assert [one.score for one in hits] == sorted((one.score for one in hits), reverse=True)
    assert all(0 <= one.score <= 1 for one in hits)
    assert nearest_examples(query, learned, np.zeros(len(matrix.classes), np.bool_)) == []
    assert rank(query, learned, mask).ranked[0].key == key("a1")
