"""Rollouts step as they may, whatever becomes of them, and can always go back."""

import random
from dataclasses import replace
from typing import Any, Literal

import pytest

from lmos_mesh.errors import Conflict
from lmos_mesh.messages import SteerRollout
from lmos_mesh.resources import (
    Channel,
    ChannelRollout,
    ChannelSpec,
    ChannelStatus,
    Compared,
    Metadata,
    RolloutStatus,
    Verdict,
)
from lmos_mesh.weights import RUNNING, Side, Speaker, side_of
from lmos_mesh_operator.plans import Channels, not_served, plan_of
from lmos_mesh_operator.stepping import ENDED, Stepped, look_due, next_step, steer

ACTIONS = ("promote", "promote_fully", "pause", "resume", "abort", "restart")
Outcome = Literal["pass", "fail", "waiting"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "pass", "pass", "waiting", "fail")


def channel(
    subset: str, *, resolved: bool = True, tenant: str = "acme", of: str = "web"
) -> Channel:
    return Channel(
        metadata=Metadata(
            name=f"{of}-{subset}", labels={"tenant": tenant, "channel": of, "subset": subset}
        ),
        spec=ChannelSpec(required_capabilities=()),
        status=ChannelStatus(resolve_status="RESOLVED" if resolved else "UNRESOLVED"),
    )


def rollout(generation: int = 1, tenant: str = "acme", **strategy: Any) -> ChannelRollout:
    (kind, said), *_ = (strategy or {"canary": {}}).items()
    names = {"canaryChannel": {"name": "web-canary"}, "stableChannel": {"name": "web-stable"}}
    return ChannelRollout.model_validate(
        {
            "metadata": {"name": "web", "labels": {"tenant": tenant}, "generation": generation},
            "spec": {"strategy": {kind: {**names, **said}}},
        }
    )


BOTH = Channels(canary=channel("canary"), stable=channel("stable"))
STEPS = [{"weight": 5}, {"weight": 25, "pause": True}, {"weight": 50}]
ANALYSED = {"steps": STEPS, "analysis": {"windowSeconds": 60}}


def verdict(outcome: Outcome) -> tuple[Verdict, ...]:
    p = None if outcome == "waiting" else 0.5
    return (Verdict(metric="errors", outcome=outcome, p=p, message=f"errors {outcome}"),)


class Story:
    """A rollout over time, as a leader would step it."""

    def __init__(self, of: ChannelRollout, channels: Channels = BOTH) -> None:
        self.rollout = of
        self.channels = channels
        self.now = 1000.0
        self.kinds: list[str] = []

    @property
    def status(self) -> RolloutStatus:
        assert self.rollout.status is not None
        return self.rollout.status

    def become(self, stepped: Stepped | None) -> None:
        if stepped is not None:
            self.rollout = self.rollout.model_copy(update={"status": stepped.status})
            if stepped.kind is not None:
                self.kinds.append(stepped.kind)

    def wait(self, seconds: float = 0.0, outcome: Outcome | None = None) -> "Story":
        self.now += seconds
        verdicts = verdict(outcome) if outcome is not None else None
        self.become(next_step(self.rollout, self.channels, now=self.now, verdicts=verdicts))
        return self

    def steer(self, action: str, reason: str = "") -> "Story":
        request = SteerRollout.model_validate({"name": "web", "action": action, "reason": reason})
        self.become(steer(self.rollout, self.channels, request, now=self.now))
        return self

    def edit(self, **strategy: Any) -> "Story":
        edited = rollout(self.rollout.metadata.generation + 1, **strategy)
        self.rollout = edited.model_copy(update={"status": self.rollout.status})
        return self.wait()


def test_a_good_canary_is_promoted_step_by_step() -> None:
    story = Story(rollout(canary=ANALYSED)).wait()
    weights = [story.status.canary_weight]

    story.wait(60, "pass")
    weights.append(story.status.canary_weight)
    story.wait(60, "pass")
    assert story.status.paused_for == "step"
    story.steer("promote")
    weights.append(story.status.canary_weight)
    story.wait(60, "pass")
    weights.append(story.status.canary_weight)

    assert weights == [5, 25, 50, 100]
    assert story.status.phase == "Promoted"
    assert story.kinds == ["began", "stepped", "paused", "stepped", "promoted"]


def test_no_step_ends_before_its_time_or_without_a_verdict() -> None:
    story = Story(rollout(canary=ANALYSED)).wait()

    for outcome in ("pass", None, "waiting"):
        story.wait(19, outcome)
        assert story.status.canary_weight == 5
    story.wait(60)
    assert story.status.canary_weight == 5
    story.wait(0, "waiting")
    assert story.status.canary_weight == 5
    story.wait(0, "pass")
    assert story.status.canary_weight == 25


@pytest.mark.parametrize("paused", [True, False])
def test_a_bad_canary_is_rolled_back_at_once_paused_or_not(paused: bool) -> None:
    story = Story(rollout(canary=ANALYSED)).wait()
    if paused:
        story.steer("pause")

    story.wait(10, "fail")

    assert story.status.phase == "RolledBack"
    assert story.status.canary_weight == 0
    assert "errors fail" in story.status.message


def test_without_analysis_time_alone_decides() -> None:
    story = Story(rollout(canary={"steps": [{"weight": 10, "holdSeconds": 5}]})).wait()

    story.wait(4)
    assert story.status.canary_weight == 10
    story.wait(1)
    assert story.status.phase == "Promoted"


def test_weights_alone_are_held_until_a_person_promotes() -> None:
    of = rollout(canary={"canaryChannel": {"name": "web-canary", "weight": 20}})
    story = Story(of).wait().wait()

    assert (story.status.phase, story.status.canary_weight) == ("Paused", 20)
    story.wait(1e6)
    assert (story.status.phase, story.status.canary_weight) == ("Paused", 20)
    assert story.steer("promote").status.phase == "Promoted"


@pytest.mark.parametrize(
    ("inconclusive", "phase", "weight"),
    [("wait", "Progressing", 5), ("pause", "Paused", 5), ("abort", "Aborted", 0)],
)
def test_too_few_turns_wait_pause_or_abort(inconclusive: str, phase: str, weight: int) -> None:
    analysis = {"windowSeconds": 60, "inconclusive": inconclusive}
    story = Story(rollout(canary={"steps": STEPS, "analysis": analysis})).wait()

    story.wait(60, "waiting")

    assert (story.status.phase, story.status.canary_weight) == (phase, weight)


def test_a_shadow_is_compared_and_moves_nobody() -> None:
    story = Story(rollout(shadow={"percent": 30, "analysis": {"windowSeconds": 60}})).wait()
    assert (story.status.canary_weight, story.status.shadow_percent) == (0, 30)
    assert story.status.message == "30 % of turns are asked of both: it began"

    story.wait(60, "pass")

    assert story.status.phase == "Paused"
    assert (story.status.canary_weight, story.status.shadow_percent) == (0, 0)
    assert story.steer("resume").status.shadow_percent == 30
    assert story.steer("promote").status.canary_weight == 100


def test_a_shadow_without_analysis_goes_on_until_a_person_ends_it() -> None:
    story = Story(rollout(shadow={})).wait().wait(1e6)

    assert (story.status.phase, story.status.shadow_percent) == ("Progressing", 100)
    assert story.steer("abort").status.shadow_percent == 0


def test_what_a_shadow_s_answers_look_like_is_known_to_the_person_who_ends_it() -> None:
    story = Story(rollout(shadow={})).wait()
    assert not look_due(story.rollout, now=story.now + 9)
    assert look_due(story.rollout, now=story.now + 10)
    compared = Compared(same=9, different=1)

    looked = next_step(story.rollout, BOTH, now=story.now + 10, verdicts=(), compared=compared)
    story.become(looked)

    assert story.kinds == ["began"]
    assert (story.status.compared, story.status.phase) == (compared, "Progressing")
    assert story.steer("promote").status.compared == compared
    assert story.steer("restart").status.compared is None


@pytest.mark.parametrize(("auto", "phase"), [(True, "Promoted"), (False, "Paused")])
def test_blue_and_green_change_places_at_once(auto: bool, phase: str) -> None:
    said = {"autoPromote": auto, "analysis": {"windowSeconds": 60}}
    story = Story(rollout(blueGreen=said)).wait()
    assert story.status.canary_weight == 0
    assert story.status.message == "nobody is moved yet: it began"

    story.wait(60, "pass")

    assert story.status.phase == phase
    assert story.status.canary_weight == (100 if auto else 0)


# -- what is refused, and why --


@pytest.mark.parametrize(
    ("channels", "of", "phase", "said"),
    [
        (
            replace(BOTH, canary=channel("canary", of="app")),
            rollout(),
            "Invalid",
            "of two channels, 'app' and 'web'",
        ),
        (
            replace(BOTH, canary=channel("stable")),
            rollout(),
            "Invalid",
            "the same subset, 'stable'",
        ),
        (
            replace(BOTH, canary=channel("canary", tenant="other")),
            rollout(),
            "Invalid",
            "of tenant 'other', and the rollout of 'acme'",
        ),
        (
            replace(BOTH, canary=channel("canary", tenant="other")),
            rollout(tenant=""),
            "Invalid",
            "of two tenants, 'other' and 'acme'",
        ),
        (replace(BOTH, canary=None), rollout(), "Pending", "no Channel 'web-canary'"),
        (replace(BOTH, stable=None), rollout(), "Pending", "no Channel 'web-stable'"),
        (
            replace(BOTH, canary=channel("canary", resolved=False)),
            rollout(),
            "Pending",
            "is not resolved",
        ),
        (replace(BOTH, busy="default/other"), rollout(), "Pending", "'default/other'"),
        (BOTH, rollout(canary={"steps": [{"weight": 50}, {"weight": 5}]}), "Invalid", "must rise"),
        (
            BOTH,
            rollout(
                canary={
                    "canaryChannel": {"name": "a", "weight": 20},
                    "stableChannel": {"name": "b", "weight": 20},
                }
            ),
            "Invalid",
            "100 together",
        ),
        (
            BOTH,
            rollout(canary={"stableChannel": {"name": "web-canary"}}),
            "Invalid",
            "they must be two",
        ),
        (
            BOTH,
            rollout(canary={"analysis": {"checks": [{"metric": "custom", "event": "csat"}]}}),
            "Invalid",
            "`thing.event`",
        ),
    ],
)
def test_what_cannot_be_rolled_out_is_refused_with_the_reason(
    channels: Channels, of: ChannelRollout, phase: str, said: str
) -> None:
    story = Story(of, channels).wait()

    assert story.status.phase == phase
    assert story.status.canary_weight == 0
    assert said in story.status.message
    assert next_step(story.rollout, channels, now=2000.0) is None
    for action in ACTIONS:
        if action == "abort" and phase == "Pending":
            continue
        with pytest.raises(Conflict):
            story.steer(action)


def test_a_rollout_begins_once_its_channels_are_there() -> None:
    story = Story(rollout(canary=ANALYSED), replace(BOTH, canary=None)).wait()

    story.channels = BOTH
    story.wait()

    assert story.status.phase == "Progressing"
    assert story.kinds == ["pending", "began"]


# -- what may change midway --


def test_a_canary_that_nobody_serves_any_more_is_rolled_back() -> None:
    for canary in (None, channel("canary", resolved=False)):
        story = Story(rollout(canary=ANALYSED)).wait()
        story.channels = replace(BOTH, canary=canary)

        story.wait(1)

        assert (story.status.phase, story.status.canary_weight) == ("RolledBack", 0)


def test_without_stable_nothing_moves_until_it_is_back() -> None:
    story = Story(rollout(canary=ANALYSED)).wait()
    story.channels = replace(BOTH, stable=None)

    story.wait(1).wait(100, "pass")
    assert (story.status.phase, story.status.paused_for) == ("Paused", "stable")
    assert story.status.canary_weight == 5
    story.channels = BOTH
    story.wait(1)

    assert (story.status.phase, story.status.canary_weight) == ("Progressing", 5)
    assert story.kinds[-2:] == ["paused", "resumed"]


def test_a_promoted_canary_that_is_deleted_leaves_everybody_to_stable() -> None:
    story = Story(rollout(canary=ANALYSED)).wait().steer("promote_fully")
    story.channels = replace(BOTH, stable=None)
    assert story.wait(1).status.phase == "Promoted"

    story.channels = replace(BOTH, canary=None)

    assert (story.wait(1).status.phase, story.status.canary_weight) == ("RolledBack", 0)


@pytest.mark.parametrize(
    ("steps", "step", "weight"),
    [
        ([{"weight": 1}, {"weight": 10}, {"weight": 40}], 1, 10),
        ([{"weight": 25}, {"weight": 30}], 0, 25),
        ([{"weight": 60}], 0, 60),
    ],
)
def test_an_edited_rollout_goes_on_at_the_step_that_it_has_earned(
    steps: list[dict[str, Any]], step: int, weight: int
) -> None:
    story = Story(rollout(canary=ANALYSED)).wait().wait(60, "pass")
    assert story.status.canary_weight == 25
    salt = story.status.salt

    story.edit(canary={"steps": steps, "analysis": {}})

    assert (story.status.step, story.status.canary_weight) == (step, weight)
    assert (story.status.salt, story.status.looks) == (salt, 0)


def test_an_edit_does_not_undo_a_persons_pause() -> None:
    story = Story(rollout(canary=ANALYSED)).wait().steer("pause")

    story.edit(canary={**ANALYSED, "sticky": "user"})

    assert (story.status.phase, story.status.paused_for) == ("Paused", "person")
    assert story.status.conditions[0].status == "False"


def test_what_was_rolled_back_begins_anew_when_it_is_edited_and_what_was_promoted_does_not() -> (
    None
):
    bad = Story(rollout(canary=ANALYSED)).wait().wait(1, "fail")
    good = Story(rollout(canary=ANALYSED)).wait().steer("promote_fully")

    bad.edit(canary={**ANALYSED, "sticky": "user"})
    good.edit(canary={**ANALYSED, "sticky": "user"})

    assert bad.status.phase == "Progressing"
    assert good.status.phase == "Promoted"
    assert good.kinds == ["began", "promoted"]


def test_channels_with_other_labels_begin_it_anew() -> None:
    story = Story(rollout(canary=ANALYSED)).wait().wait(60, "pass")

    story.channels = replace(BOTH, canary=channel("beta"))
    story.wait(1)

    assert (story.status.canary_subset, story.status.canary_weight) == ("beta", 5)


# -- what people tell it --


def test_people_pause_resume_abort_and_restart_it() -> None:
    story = Story(rollout(canary=ANALYSED)).wait()

    story.steer("pause", "lunch")
    with pytest.raises(Conflict, match="lunch"):
        story.steer("pause")
    assert "lunch" in story.status.message
    story.wait(600, "pass")
    assert story.status.canary_weight == 5
    assert story.steer("resume").status.phase == "Progressing"
    assert story.steer("abort").status.canary_weight == 0
    salt = story.status.salt
    story.now += 1
    assert story.steer("restart").status.canary_weight == 5
    assert story.status.salt != salt


def test_resuming_a_step_that_waits_for_a_person_promotes_it() -> None:
    story = Story(rollout(canary=ANALYSED)).wait().wait(60, "pass").wait(60, "pass")

    assert story.steer("resume").status.canary_weight == 50


def test_looks_are_due_through_the_step_and_at_its_end() -> None:
    story = Story(rollout(canary=ANALYSED)).wait()
    looks: list[int] = []

    for second in range(61):
        if look_due(story.rollout, now=story.now + second):
            story.become(
                next_step(
                    story.rollout,
                    BOTH,
                    now=story.now + second,
                    verdicts=verdict("waiting"),
                    spent=second // 50,
                )
            )
            looks.append(second)

    assert looks == [10, 20, 30, 40, 50, 60]
    assert story.status.looks == 2
    story.wait(61, "pass")
    assert story.status.looks == 0


def test_a_short_step_is_looked_at_when_it_ends() -> None:
    steps = [{"weight": 5, "holdSeconds": 4}, {"weight": 25}]
    story = Story(rollout(canary={"steps": steps, "analysis": {"windowSeconds": 60}})).wait()

    due = [second for second in range(9) if look_due(story.rollout, now=story.now + second)]

    assert due == [4, 5, 6, 7, 8]


# -- whatever becomes of it --


def _strategy(dice: random.Random) -> dict[str, Any]:
    analysis = {
        "windowSeconds": dice.choice([10, 60]),
        "inconclusive": dice.choice(["wait", "pause", "abort"]),
    }
    said: dict[str, Any] = {"analysis": analysis} if dice.random() < 0.7 else {}
    kind = dice.choice(["canary", "canary", "canary", "shadow", "blueGreen"])
    if kind == "canary":
        weights = sorted(dice.choices(range(101), k=dice.randrange(5)))
        said["steps"] = [
            {"weight": one, "pause": dice.random() < 0.2, "holdSeconds": dice.choice([0, 5, 30])}
            for one in weights
        ]
    elif kind == "blueGreen":
        said["autoPromote"] = dice.random() < 0.5
    return {kind: said}


def _channels(dice: random.Random, channels: Channels) -> Channels:
    """One of both vanishes, is back, or is not served."""
    if dice.random() < 0.5:
        return BOTH
    if dice.random() < 0.5:
        return replace(channels, stable=dice.choice([None, channel("stable")]))
    return replace(
        channels,
        canary=dice.choice([None, channel("canary"), channel("canary", resolved=False)]),
    )


def _check_transition(
    before: RolloutStatus | None,
    story: Story,
    *,
    outcome: Outcome | None,
    by_hand: str,
) -> None:
    after, plan = story.status, plan_of(story.rollout.spec.strategy)
    was = before.canary_weight if before else 0
    kind = story.kinds[-1] if story.kinds else ""

    assert 0 <= after.canary_weight <= 100
    assert 0 <= after.shadow_percent <= 100
    if after.phase == "Promoted":
        assert after.canary_weight == 100
    elif after.phase not in RUNNING:
        assert (after.canary_weight, after.shadow_percent) == (0, 0)
    elif after.observed_generation == story.rollout.metadata.generation:
        assert after.canary_weight == plan.steps[after.step].weight
    if after.canary_weight > was:
        earned = outcome == "pass" if plan.analysis else True
        if kind in ("began", "edited"):
            assert after.step == 0
        elif kind == "stepped":
            assert before is not None
            assert after.step == before.step + 1
            assert earned or by_hand in ("promote", "resume")
        else:
            assert kind == "promoted"
            assert before is not None
            last = before.step == len(plan.steps) - 1
            assert by_hand == "promote_fully" or (last and (earned or bool(by_hand)))
        assert story.channels.canary is not None
        assert story.channels.canary.status is not None
        assert story.channels.canary.status.resolve_status == "RESOLVED"


def _check_way_back(story: Story) -> None:
    """From wherever it is, nobody need stay on the canary."""
    if story.status.phase in RUNNING or (
        story.status.phase == "Promoted" and story.channels.stable is not None
    ):
        request = SteerRollout(name="web", action="abort")
        back = steer(story.rollout, story.channels, request, now=story.now).status
        assert (back.phase, back.canary_weight, back.shadow_percent) == ("Aborted", 0, 0)


def _follow(story: Story, sides: dict[str, Side | None], salts: dict[str, str]) -> None:
    """Let conversations have a turn each: none of them flips while a run lasts."""
    for conversation, kept in sides.items():
        side = side_of(story.rollout, Speaker(conversation=conversation), kept)
        if story.status.phase in RUNNING:
            assert side is not None
            if kept is not None and salts.get(conversation) == story.status.salt:
                assert side.subset == kept.subset
            salts[conversation] = story.status.salt
        elif story.status.phase in ENDED and story.status.stable_subset:
            assert side is not None
            promoted = story.status.phase == "Promoted"
            assert side.subset == ("canary" if promoted else "stable")
        sides[conversation] = side


@pytest.mark.parametrize("seed", range(8))
def test_in_thousands_of_histories_no_rule_is_broken(seed: int) -> None:
    for number in range(250):
        dice = random.Random(f"{seed}.{number}")
        story = Story(rollout(**_strategy(dice)), _channels(dice, BOTH))
        sides: dict[str, Side | None] = {f"c-{n}": None for n in range(3)}
        salts: dict[str, str] = {}
        for _ in range(15):
            _live(story, dice)
            if story.rollout.status is not None:
                _check_way_back(story)
                _follow(story, sides, salts)


def _live(story: Story, dice: random.Random) -> None:
    """Something comes to pass, and every rule holds."""
    before, by_hand = story.rollout.status, ""
    outcome: Outcome | None = None
    what = dice.random()
    if what < 0.15:
        story.channels = _channels(dice, story.channels)
    elif what < 0.2:
        edited = rollout(story.rollout.metadata.generation + 1, **_strategy(dice))
        story.rollout = edited.model_copy(update={"status": before})
    if what < 0.75:
        story.now += dice.choice([0, 1, 10, 60])
        if look_due(story.rollout, now=story.now):
            outcome = dice.choice(OUTCOMES)
        verdicts = verdict(outcome) if outcome else None
        again = [
            next_step(one, story.channels, now=story.now, verdicts=verdicts)
            # A leader that has read it from the store decides alike.
            for one in (story.rollout, _read_again(story.rollout))
        ]
        assert again[0] == again[1]
        story.become(again[0])
        if not_served(story.channels.canary) and story.status.phase != "Promoted":
            assert story.status.canary_weight == 0
        if outcome == "fail":
            assert again[0] is not None
            assert again[0].kind is not None
            assert again[0].kind not in ("stepped", "promoted")
    else:
        by_hand = dice.choice(ACTIONS)
        if story.rollout.status is None:
            return
        try:
            story.steer(by_hand)
        except Conflict:
            assert story.rollout.status == before
            return
    _check_transition(before, story, outcome=outcome, by_hand=by_hand)


def _read_again(of: ChannelRollout) -> ChannelRollout:
    return ChannelRollout.model_validate_json(of.model_dump_json(by_alias=True))
