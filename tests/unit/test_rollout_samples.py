"""Both sides of a rollout are sampled from the same stretch of time."""

from typing import Any

import pytest

from lmos_mesh.messages import TurnReport
from lmos_mesh.resources import Compared
from lmos_mesh_operator.samples import Figure, Place, Window, figure_from

CANARY, STABLE = Place("web", "canary"), Place("web", "stable")


def report(subset: str = "canary", outcome: str = "answered", **more: Any) -> TurnReport:
    return TurnReport.model_validate(
        {
            "conversation": "c",
            "turn": "t",
            "channel": "web",
            "subset": subset,
            "outcome": outcome,
            "total_s": 0.5,
            **more,
        }
    )


def test_what_each_turn_came_to_is_counted() -> None:
    window = Window()
    for outcome in ("answered", "answered", "asked_back", "failed", "cancelled"):
        window.add(10.0, report(outcome=outcome))
    window.add(10.0, report(handovers=2, total_s=2.0))
    window.add(10.0, report("stable"))

    found = window.sample(CANARY, since=0, until=20)

    assert (found.turns, found.answered, found.failed, found.asked_back) == (5, 3, 1, 1)
    assert found.handed_over == 1
    assert found.seconds == (0.5, 0.5, 2.0)
    assert window.sample(STABLE, since=0, until=20).turns == 1


def test_a_turn_of_several_requests_of_which_one_failed_has_failed() -> None:
    window = Window()
    done, failed, left_out = (
        {"agent": "a", "state": state} for state in ("done", "failed", "skipped")
    )
    for parts in ([done, done], [done, failed], [done, left_out]):
        window.add(10.0, report(parts=parts, total_s=len(parts)))

    found = window.sample(CANARY, since=0, until=20)

    assert (found.turns, found.answered, found.failed) == (3, 2, 1)
    assert len(found.seconds) == 2


def test_only_turns_of_the_window_count_however_late_they_are_told() -> None:
    window = Window()
    for at in (1.0, 5.0, 3.0, 9.0, 2.0):
        window.add(at, report(total_s=at))

    assert window.sample(CANARY, since=2, until=5).seconds == (2.0, 3.0, 5.0)
    window.forget(before=3)
    assert window.sample(CANARY, since=0, until=99).seconds == (3.0, 5.0, 9.0)


def test_turns_that_a_caller_sent_there_may_be_left_out() -> None:
    window = Window()
    window.add(1.0, report(rollout="default/web"))
    window.add(1.0, report())

    assert window.sample(CANARY, since=0, until=2, rollouts=("default/web",)).turns == 1
    assert window.sample(CANARY, since=0, until=2).turns == 2


def test_a_shadow_is_apart() -> None:
    window = Window()
    window.add(1.0, report(shadow=True))

    assert window.sample(CANARY, since=0, until=2).turns == 0
    assert window.sample(Place("web", "canary", shadow=True), since=0, until=2).turns == 1


def test_what_became_of_mirrored_turns_is_counted_and_what_was_not_mirrored_too() -> None:
    window, shadow = Window(), Place("web", "canary", shadow=True)
    told: list[dict[str, Any]] = [
        *[{"same": True}] * 3,
        {"same": False},
        {"outcome": "asked_back", "same": True},
        {"outcome": "failed"},
        {"outcome": "cancelled", "left_out": "several"},
        {"outcome": "cancelled", "left_out": "once"},
        {"outcome": "cancelled", "left_out": "busy"},
        {"outcome": "cancelled"},
        {"same": True, "rollout": "default/another"},
    ]
    for one in told:
        given: dict[str, Any] = {"shadow": True, "rollout": "default/web", **one}
        window.add(5.0, report(**given))

    found = window.compared(shadow, since=0, until=9, rollout="default/web")

    assert found == Compared(same=4, different=1, failed=1, several=1, once=1, busy=1)
    assert window.compared(shadow, since=6, until=9, rollout="default/web") == Compared()
    judged = window.sample(shadow, since=0, until=9, rollouts=("default/web",))
    assert (judged.turns, judged.failed, judged.asked_back) == (6, 1, 1)


def test_figures_belong_to_a_subset_and_perhaps_a_channel() -> None:
    window = Window()
    for subset, channel, value in (
        ("canary", "", 1.0),
        ("canary", "app", 2.0),
        ("stable", "", 3.0),
    ):
        window.add_figure(
            Figure(at=1.0, name="shop.csat#score", subset=subset, value=value, channel=channel)
        )

    found = window.sample(CANARY, since=0, until=2, figures=("shop.csat#score", "shop.x#y"))

    assert found.figures == {"shop.csat#score": (1.0,), "shop.x#y": ()}


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ({"subset": "canary", "score": 4}, 4.0),
        ({"subset": "canary", "score": True}, None),
        ({"subset": "canary", "score": float("nan")}, None),
        ({"subset": "canary", "score": "4"}, None),
        ({"score": 4}, None),
        ({"subset": 4, "score": 4}, None),
        ({"subset": "canary", "channel": 1, "score": 4}, None),
    ],
)
def test_a_figure_must_be_a_number_and_say_whose_it_is(
    data: dict[str, Any], value: float | None
) -> None:
    found = figure_from("shop.csat#score", data, at=1.0)

    assert (found.value if found else None) == value


def test_a_figure_may_lie_deep_in_its_event() -> None:
    found = figure_from("a.b#result.score", {"subset": "s", "result": {"score": 2}}, at=1.0)

    assert found is not None
    assert found.value == 2.0
