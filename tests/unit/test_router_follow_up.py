"""A follow-up stays with its agent; what can be asked on its own begins something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_router.evidence import Evidence
from lmos_mesh_router.follow_up import stays, with_history
from lmos_mesh_router.ranking import Ranked, Ranking
from tests.router_fleets import key

scopes = st.floats(-30, 30)


def ranking(scope: float, **shares: float) -> Ranking:
    ranked = tuple(
        Ranked(key(name), share, "c", 1.0, 0.5, Evidence(key(name), "c", "example", "x"))
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    )
    return Ranking(ranked, scope, -6.0, (ranked[0].key,), 0.9, "head")


TOGETHER = ranking(0.0, billing=0.9, weather=0.1)


def test_what_is_far_from_everything_stays_with_the_agent_before() -> None:
    alone = ranking(-12.0, weather=0.6, billing=0.4)

    found = with_history("the smaller one", alone, TOGETHER, key("billing"))

    assert found.ranked[0].key == key("billing")
    assert found.in_scope


def test_what_can_be_asked_on_its_own_begins_something_else() -> None:
    alone = ranking(2.0, weather=0.97, billing=0.03)

    found = with_history("and will it rain tomorrow?", alone, TOGETHER, key("billing"))

    assert found.ranked[0].key == key("weather")


@given(st.text(max_size=60), scopes, scopes, st.floats(0, 1))
def test_a_mixture_adds_up_and_ranks_nobody_new(
    message: str, scope: float, other: float, share: float
) -> None:
    alone = ranking(scope, weather=share, music=1 - share)
    together = ranking(other, billing=0.5, weather=0.5)

    found = with_history(message, alone, together, key("billing"))

    assert sum(one.probability for one in found.ranked) == pytest.approx(1)
    assert {one.key.name for one in found.ranked} == {"weather", "music", "billing"}
    assert [x.probability for x in found.ranked] == sorted(
        (x.probability for x in found.ranked), reverse=True
    )


@given(st.text(max_size=60), scopes, scopes)
def test_the_nearer_a_message_is_alone_the_less_it_belongs_to_the_last(
    message: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))

    assert stays(message, ranking(low, a=1.0)) >= stays(message, ranking(high, a=1.0))


@pytest.mark.parametrize("before", [None, key("gone")])
def test_without_an_agent_before_that_may_be_chosen_the_message_stands_alone(
    before: object,
) -> None:
    alone = ranking(-12.0, weather=0.6, billing=0.4)

    assert with_history("why?", alone, TOGETHER, before) is alone  # type: ignore[arg-type]


def test_nobody_is_ranked_where_nobody_may_be_chosen() -> None:
    assert with_history("why?", Ranking(), Ranking(), key("billing")) == Ranking()
