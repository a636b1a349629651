# pyright: reportUnknownMemberType=false
"""Conversations are drawn exactly, alike everywhere, and do not change sides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from lmos_mesh.resources import (
    BlueGreen,
    Canary,
    ChannelRollout,
    ChannelRolloutSpec,
    Match,
    Metadata,
    Phase,
    RolloutStatus,
    RolloutStrategy,
    Shadow,
    WeightedChannel,
)
from lmos_mesh.weights import Side, Speaker, is_drawn, shadow_of, side_of

NEW, OLD = WeightedChannel(name="web-canary"), WeightedChannel(name="web-stable")


def rollout(
    weight: int = 0,
    phase: Phase = "Progressing",
    *,
    salt: str = "salt",
    strategy: RolloutStrategy | None = None,
    shadow: int = 0,
    **canary: object,
) -> ChannelRollout:
    if strategy is None:
        strategy = RolloutStrategy(
            canary=Canary.model_validate({"canaryChannel": NEW, "stableChannel": OLD, **canary})
        )
    status = RolloutStatus(
        phase=phase,
        canary_weight=weight,
        shadow_percent=shadow,
        canary_subset="canary",
        stable_subset="stable",
        salt=salt,
    )
    return ChannelRollout(
        metadata=Metadata(name="web"), spec=ChannelRolloutSpec(strategy=strategy), status=status
    )


def subset(of: ChannelRollout, conversation: str = "c", kept: Side | None = None) -> str:
    side = side_of(of, Speaker(conversation=conversation), kept)
    assert side is not None
    return side.subset


@pytest.mark.parametrize("salt", ["a", "b", "default/web/1"])
@pytest.mark.parametrize("weight", [1, 10, 50, 99])
def test_of_ten_thousand_conversations_as_many_are_drawn_as_chance_allows(
    salt: str, weight: int
) -> None:
    drawn = sum(subset(rollout(weight, salt=salt), f"c-{n}") == "canary" for n in range(10_000))

    assert float(stats.binomtest(drawn, 10_000, weight / 100).pvalue) > 0.001


def test_two_rollouts_pick_different_conversations() -> None:
    both = sum(
        is_drawn("one", f"c-{n}", 10) and is_drawn("other", f"c-{n}", 10) for n in range(10_000)
    )

    assert float(stats.binomtest(both, 10_000, 0.01).pvalue) > 0.001


@given(st.text(), st.text(max_size=200))
def test_none_are_drawn_at_0_and_all_at_100(id: str, salt: str) -> None:
    assert not is_drawn(salt, id, 0)
    assert is_drawn(salt, id, 100)


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_a_rising_weight_only_adds(id: str, one: int, other: int) -> None:
    low, high = sorted((one, other))

    assert not is_drawn("salt", id, low) or is_drawn("salt", id, high)


@settings(max_examples=200)
@given(st.text(min_size=1), st.lists(st.integers(0, 100), min_size=1), st.booleans())
def test_nobody_flips_while_a_rollout_runs(id: str, weights: list[int], begun: bool) -> None:
    kept = Side(subset="stable") if begun else None
    sides: list[str] = []
    for weight in weights:
        for phase in ("Progressing", "Paused"):
            kept = side_of(rollout(weight, phase), Speaker(conversation=id), kept)
            assert kept is not None
            sides.append(kept.subset)

    assert len(set(sides)) == 1
    assert not begun or sides[0] == "stable"


@pytest.mark.parametrize("phase", ["Aborted", "RolledBack", "Invalid", "Pending"])
def test_after_a_roll_back_everybody_is_on_stable(phase: Phase) -> None:
    kept = Side(subset="canary", rollout="default/web", salt="salt")

    assert subset(rollout(100, phase), kept=kept) == "stable"


def test_after_a_promotion_everybody_is_on_the_canary() -> None:
    assert subset(rollout(100, "Promoted"), kept=Side(subset="stable")) == "canary"


def test_a_canary_of_an_earlier_run_stays_only_where_this_run_lets_anybody_be() -> None:
    kept = Side(subset="canary", rollout="default/web", salt="an earlier one")

    assert subset(rollout(0), kept=kept) == "stable"
    assert subset(rollout(1), kept=kept) == "canary"


def test_a_user_keeps_to_a_side_with_all_their_conversations() -> None:
    by_user = rollout(50, sticky="user")

    for user in ("ada", "ben", "cleo", "dan"):
        sides = {
            side.subset
            for n in range(50)
            if (side := side_of(by_user, Speaker(conversation=f"c{n}", user=user), None))
        }
        assert len(sides) == 1


def test_matching_users_and_attributes_go_to_the_canary_whatever_the_weight() -> None:
    match = Match(users=("ada",), attributes={"beta": ("true",), "country": ("de", "at")})
    matching = rollout(0, match=match)

    def go(user: str, **attributes: object) -> str:
        side = side_of(matching, Speaker(conversation="c", user=user, attributes=attributes), None)
        assert side is not None
        return side.subset

    assert go("ada") == "canary"
    assert go("ben", beta=True, country="at") == "canary"
    assert go("ben", beta=True) == "stable"
    assert go("ben", beta="false", country="de") == "stable"


def test_without_a_rollout_nothing_is_chosen() -> None:
    unread = rollout().model_copy(update={"status": None})

    assert side_of(None, Speaker(conversation="c"), None) is None
    assert side_of(unread, Speaker(conversation="c"), None) is None
    assert shadow_of(None, "turn") is None


def test_a_shadow_gets_its_share_of_turns_and_no_conversation() -> None:
    strategy = RolloutStrategy(shadow=Shadow(canary_channel=NEW, stable_channel=OLD, percent=30))
    shadowed = rollout(0, strategy=strategy, shadow=30)

    mirrored = sum(shadow_of(shadowed, f"t-{n}") == "canary" for n in range(10_000))

    assert float(stats.binomtest(mirrored, 10_000, 0.3).pvalue) > 0.001
    assert {subset(shadowed, f"c-{n}") for n in range(100)} == {"stable"}
    assert shadow_of(rollout(0, "Paused", strategy=strategy, shadow=30), "t") is None


def test_blue_and_green_move_at_once() -> None:
    strategy = RolloutStrategy(
        blue_green=BlueGreen(canary_channel=NEW, stable_channel=OLD, match=Match(users=("ada",)))
    )
    before = rollout(0, strategy=strategy)
    seen = side_of(before, Speaker(conversation="c", user="ada"), None)

    assert {subset(before, f"c-{n}") for n in range(100)} == {"stable"}
    assert seen is not None
    assert seen.subset == "canary"
