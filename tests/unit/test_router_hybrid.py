"""Vectors decide where they are sure, a model decides the rest, and both say how it was settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_router.hybrid import (
    AskModel,
    FastTrack,
    Hit,
    Key,
    Option,
    Policy,
    Seen,
    Settled,
    alone,
    beliefs,
    first_look,
    lmos_score,
    offered,
    settle,
    settle_search,
)
from lmos_mesh_router.llm import Choice, NoHelp, Requirements
from lmos_mesh_router.prompts import Card

NAMES = ("a", "b", "c", "d", "e", "f", "g")
NO_HELP = NoHelp(failure="timeout", note="the model is slow")


def seen(*probabilities: float, in_scope: float = 0.5, could_be: str = "") -> Seen:
    options = tuple(
        Option(agent=name, capability=f"{name}-first", probability=probability)
        for name, probability in zip(NAMES, probabilities, strict=False)
    )
    return Seen(
        options=options, in_scope=in_scope, could_be=tuple((name, "stable") for name in could_be)
    )


def chose(agent: str | None, could_be: str = "", capability: str = "") -> Choice:
    return Choice(
        card=Card(agent=agent) if agent else None,
        capability=capability,
        could_be=tuple(Card(agent=name) for name in could_be),
        reason="because",
    )


def agents(keys: tuple[Key, ...]) -> str:
    return "".join(agent for agent, _ in keys)


def test_vectors_that_are_sure_decide_alone() -> None:
    step = first_look(seen(0.93, 0.07), Policy())

    assert isinstance(step, Settled)
    assert (step.outcome, step.method, step.confidence) == ("routed", "vector", 0.93)
    assert step.chosen is not None
    assert step.chosen.capability == "a-first"


@pytest.mark.parametrize(
    ("said", "asks"),
    [
        (seen(0.9, 0.1), False),
        (seen(0.89, 0.11), True),
        (seen(0.99, 0.01, in_scope=0.05), False),
        (seen(0.99, 0.01, in_scope=0.04), True),  # sure of the agent, not of the scope
        (seen(0.99, 0.01, in_scope=0.009), False),  # so far out that nobody is asked
    ],
)
def test_a_model_is_asked_where_agent_or_scope_is_open(said: Seen, asks: bool) -> None:
    assert isinstance(first_look(said, Policy()), AskModel) == asks


def test_what_is_far_out_is_refused_without_a_model() -> None:
    step = first_look(seen(0.99, 0.01, in_scope=0.0), Policy())

    assert isinstance(step, Settled)
    assert step.outcome == "out_of_scope"


def test_nobody_to_choose_from_is_no_question() -> None:
    for step in (first_look(Seen(), Policy()), alone(Seen(), Policy())):
        assert isinstance(step, Settled)
        assert step.outcome == "nobody"
    assert settle(Seen(), chose("a"), Policy()).outcome == "nobody"


def test_the_model_is_offered_those_that_it_could_be_and_then_the_next() -> None:
    said = seen(0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02, could_be="ac")

    assert [one.agent for one in offered(said, 5)] == ["a", "c", "b", "d", "e"]
    assert [one.agent for one in offered(said, 1)] == ["a"]


def test_agreement_makes_surer_and_says_so() -> None:
    settled = settle(seen(0.6, 0.4), chose("a"), Policy())

    assert (settled.outcome, settled.method, settled.how) == ("routed", "hybrid", "agreed")
    assert settled.confidence > 0.9
    assert settled.reason == "a is the nearest (0.60) and the model says so too: because"


def test_a_model_overrules_vectors_that_are_in_doubt() -> None:
    settled = settle(seen(0.6, 0.4), chose("b", capability="other"), Policy())

    assert (settled.outcome, settled.how) == ("routed", "overruled")
    assert settled.chosen is not None
    assert (settled.chosen.agent, settled.chosen.capability) == ("b", "other")
    assert settled.order[0] == settled.chosen
    assert "a is the nearest (0.60), the model says b; the model outweighed" in settled.reason


def test_a_model_does_not_overrule_vectors_that_are_nearly_certain() -> None:
    settled = settle(seen(0.999, 0.001), chose("b"), Policy())

    assert settled.chosen is not None
    assert settled.chosen.agent == "a"
    assert "the vectors outweighed" in settled.reason


def test_where_neither_convinces_the_user_is_asked() -> None:
    settled = settle(seen(0.94, 0.06), chose("b"), Policy(route=0.8))

    assert settled.outcome == "unsure"
    assert agents(settled.could_be) == "ab"
    assert "neither convinces" in settled.reason


def test_a_model_that_finds_nobody_is_believed_where_the_scope_is_open() -> None:
    assert settle(seen(0.6, 0.4, in_scope=0.03), chose(None), Policy()).outcome == "out_of_scope"
    assert settle(seen(0.6, 0.4, in_scope=0.9), chose(None), Policy()).outcome != "routed"


def test_a_model_that_cannot_tell_two_apart_asks_back() -> None:
    settled = settle(seen(0.5, 0.3, 0.2), chose(None, could_be="ca"), Policy())

    assert settled.outcome == "unsure"
    assert agents(settled.could_be) == "ac"
    assert settled.reason == "the model says it could be a or c: because"


def test_a_model_that_did_not_help_leaves_it_to_the_vectors_and_the_reason_says_so() -> None:
    settled = settle(seen(0.6, 0.4), NO_HELP, Policy())
    assert (settled.outcome, settled.method) == ("routed", "vector")
    assert settled.reason == "a is the nearest (0.60); the model is slow"

    assert settle(seen(0.4, 0.3, could_be="ab"), NO_HELP, Policy()).outcome == "unsure"
    assert settle(seen(0.9, in_scope=0.01), NO_HELP, Policy()).outcome == "out_of_scope"
    own = Settled(outcome="unsure", reason="as the service has it")
    given = settle(seen(0.6), NO_HELP, Policy(), otherwise=own)
    assert (given.outcome, given.reason) == ("unsure", "as the service has it; the model is slow")


def test_what_a_model_says_is_needed_is_searched_for() -> None:
    needs = Requirements(texts=("Show a bill.",))
    unclear = seen(0.4, 0.35, 0.25)

    same = settle_search(seen(0.7, 0.3), needs, seen(0.9, 0.1), Policy())
    other = settle_search(unclear, needs, seen(0.9, 0.1), Policy(), method="llm")
    none = settle_search(unclear, Requirements(), unclear, Policy())

    assert (same.outcome, same.method, same.how) == ("routed", "hybrid", "agreed")
    assert same.reason == "it needs: Show a bill.: a is the nearest (0.90)"
    assert (other.outcome, other.method, other.how) == ("routed", "llm", "overruled")
    assert none.outcome == "out_of_scope"
    assert settle_search(Seen(), needs, Seen(), Policy()).outcome == "nobody"


def test_an_agent_that_left_meanwhile_is_not_routed_to() -> None:
    settled = settle(seen(0.6, 0.4), chose("gone"), Policy(), method="llm")

    assert settled.chosen is not None
    assert settled.chosen.agent == "a"
    assert "gone, which the model chose, has left" in settled.reason


def test_by_llm_its_word_stands_and_vectors_say_how_sure_that_is() -> None:
    against = settle(seen(0.999, 0.001), chose("b"), Policy(), method="llm")
    with_it = settle(seen(0.999, 0.001), chose("a"), Policy(), method="llm")

    assert against.chosen is not None
    assert against.chosen.agent == "b"
    assert against.method == "llm"
    assert against.confidence < 0.1 < 0.9 < with_it.confidence
    assert settle(seen(0.99), chose(None), Policy(), method="llm").outcome == "out_of_scope"


def test_a_caller_may_say_how_sure_to_be() -> None:
    strict = Policy().at(0.97)

    assert isinstance(first_look(seen(0.95, 0.05), strict), AskModel)
    assert settle(seen(0.6, 0.4), chose("b"), strict).outcome == "unsure"
    assert Policy().at(None) == Policy()


probabilities = st.lists(st.floats(0.001, 1), min_size=1, max_size=7).map(
    lambda weights: sorted((w / sum(weights) for w in weights), reverse=True)
)


@given(
    probabilities,
    st.floats(0, 1),
    st.sampled_from([*NAMES, "gone", None]),
    st.text("abcz", max_size=3),
    st.sampled_from(["llm", "hybrid"]),
    st.sampled_from(["", "lmos", "lmos-readme"]),
    st.floats(0, 1),
)
def test_whatever_both_say_something_that_exists_is_decided(
    shares: list[float],
    in_scope: float,
    named: str | None,
    could_be: str,
    method: str,
    fast_track: str,
    route: float,
) -> None:
    said = seen(*shares, in_scope=in_scope, could_be=NAMES[0])
    policy = Policy(fast_track=fast_track, route=route)  # type: ignore[arg-type]

    for answer in (chose(named, could_be), NO_HELP):
        settled = settle(said, answer, policy, method=method)  # type: ignore[arg-type]
        keys = {one.key for one in said.options}
        assert (settled.outcome == "routed") == (settled.chosen is not None)
        assert settled.chosen is None or settled.chosen.key in keys
        assert {one.key for one in settled.order} == keys
        assert set(settled.could_be) <= keys
        assert 0 <= settled.confidence <= 1
        assert settled.reason
        assert settled.outcome != "unsure" or settled.could_be


@given(probabilities, st.floats(0, 1), st.sampled_from([0, None]))
def test_beliefs_are_probabilities_and_a_word_for_something_makes_it_likelier(
    shares: list[float], in_scope: float, named: int | None
) -> None:
    said = seen(*shares, in_scope=in_scope)
    key = None if named is None else said.options[named].key

    belief = beliefs(said, key, Policy())
    against = beliefs(said, None if key else said.options[0].key, Policy())

    assert sum(belief.values()) == pytest.approx(1)
    assert belief[key] > against[key]


def hits(*scores: tuple[str, float]) -> list[Hit]:
    return [Hit(agent, score) for agent, score in scores]


@pytest.mark.parametrize(
    ("rule", "near", "agent"),
    [
        (FastTrack(), hits(), None),
        (FastTrack(), hits(("a", 0.01)), "a"),  # one hit alone passes unjudged
        (FastTrack(), hits(*[("a", 0.9)] * 6), "a"),  # no second agent, no distances
        (FastTrack(), hits(*[("a", 0.9)] * 5), None),  # 4.5 in all
        (FastTrack(), hits(*[("a", 0.79)] * 15), None),  # the mean is too low
        (FastTrack(mean_score=0.5), hits(*[("a", 0.79)] * 15), "a"),
        (FastTrack(), hits(*[("a", 0.9)] * 6, ("b", 0.9)), "a"),  # 5.4, 4.5 apart
        (FastTrack(), hits(*[("a", 0.9)] * 6, *[("b", 0.9)] * 2), None),  # 3.6 apart
        (FastTrack(distance=0.0), hits(*[("a", 0.9)] * 7, *[("b", 0.9)] * 5), None),  # 0.26 a hit
        (FastTrack(distance=0.0), hits(*[("a", 0.9)] * 7, *[("b", 0.9)] * 4), "a"),
        (FastTrack(), hits(("b", 0.9), *[("a", 0.9)] * 6), "a"),  # the sum decides, not the first
        # At the bounds, which are included.
        (FastTrack(), hits(*[("a", 1.0)] * 5, ("b", 1.0)), "a"),
        (FastTrack(score=2.0, distance=0.0, relative_distance=0.0), hits(*[("b", 1.0)] * 2), "b"),
        (
            FastTrack(score=1.0, distance=0.0, relative_distance=0.0),
            hits(("b", 1.0), ("a", 1.0)),
            "b",  # of equals the one that was hit first
        ),
    ],
)
def test_the_fast_track_is_that_of_lmos(
    rule: FastTrack, near: list[Hit], agent: str | None
) -> None:
    found = rule.decide(near)

    assert (found[0] if found else None) == agent


def test_as_lmos_the_fast_track_decides_or_the_model_chooses_from_what_was_hit() -> None:
    said = seen(0.5, 0.4, 0.1, in_scope=0.0)
    policy = Policy(fast_track="lmos")

    fast = first_look(said, policy, hits(*[("b", 0.9)] * 7))
    slow = first_look(said, policy, hits(("b", 0.9), ("c", 0.8), ("b", 0.7)))

    assert isinstance(fast, Settled)
    assert fast.chosen is not None
    assert fast.chosen.agent == "b"
    assert isinstance(slow, AskModel)
    assert [one.agent for one in slow.options] == ["b", "c"]
    settled = settle(said, chose("c"), policy)
    assert settled.chosen is not None
    assert (settled.chosen.agent, settled.method) == ("c", "hybrid")


def test_a_cosine_on_the_scale_of_lmos() -> None:
    assert [lmos_score(cosine) for cosine in (-1.0, 0.0, 1.0)] == [0.0, 0.5, 1.0]
