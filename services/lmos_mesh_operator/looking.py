"""One look at a canary: which turns count, and what they say. Pure.

The last window counts. Where it holds too little to tell, the whole step does, so that a channel
with few turns comes to a verdict, too.
"""

from collections.abc import Collection
from dataclasses import dataclass

from lmos_mesh.resources import Analysis, ChannelRollout, Compared, RolloutStatus, Verdict
from lmos_mesh.weights import RUNNING, name_of
from lmos_mesh_operator import judging
from lmos_mesh_operator.plans import Plan, plan_of
from lmos_mesh_operator.samples import Place, Sample, Watched, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look has shown.

    Attributes:
        spent: How many times every check was tested.
        compared: Of a shadow: what its answers look like.
    """

    verdicts: tuple[Verdict, ...] = ()
    spent: int = 0
    compared: Compared | None = None


def look(rollout: ChannelRollout, window: Window, *, now: float) -> Seen:
    """Judge a canary that is under way, by what is known until `now`.

    One without an analysis is not judged; a shadow's answers are compared all the same.
    """
    status, plan = rollout.status, plan_of(rollout.spec.strategy)
    assert status is not None
    compared = _compared(rollout, status, plan, window, now=now)
    if plan.analysis is None:
        return Seen(compared=compared)
    spent = 0
    verdicts: tuple[Verdict, ...] = ()
    recent = max(status.step_began, now - plan.analysis.window_s)
    for since in dict.fromkeys((recent, status.step_began)):
        canary, stable = _sides(rollout, status, plan, window, since=since, until=now)
        verdicts = judging.judge(
            plan.analysis,
            canary,
            stable,
            alpha=judging.alpha_of(
                plan.analysis.alpha, steps=len(plan.steps), look=status.looks + spent + 1
            ),
            alone=status.canary_weight == 100,
        )
        spent += any(one.p is not None for one in verdicts)
        if judging.outcome_of(verdicts) != "waiting":
            break
    return Seen(verdicts=verdicts, spent=spent, compared=compared)


def watched_of(rollouts: Collection[ChannelRollout]) -> list[Watched]:
    """Of which rollouts turns are needed, and from when on."""
    found: list[Watched] = []
    for rollout in rollouts:
        plan, status = plan_of(rollout.spec.strategy), rollout.status
        if plan.is_looked_at and status is not None and status.phase in RUNNING:
            events = tuple(_custom(plan.analysis))
            found.append(Watched(tenant=rollout.tenant, since=status.step_began, events=events))
    return found


def unwatched_of(rollouts: Collection[ChannelRollout]) -> set[tuple[str, str]]:
    """The events, each after its tenant, that rollouts have needed and none needs now."""
    named = {
        (rollout.tenant, event)
        for rollout in rollouts
        for event, _ in _custom(plan_of(rollout.spec.strategy).analysis)
    }
    needed = {(one.tenant, event) for one in watched_of(rollouts) for event, _ in one.events}
    return named - needed


def _compared(
    rollout: ChannelRollout, status: RolloutStatus, plan: Plan, window: Window, *, now: float
) -> Compared | None:
    if not plan.shadow_percent:
        return None
    if status.phase != "Progressing":
        return status.compared  # nothing is mirrored meanwhile, and what was is not forgotten
    place = Place(status.channel, status.canary_subset, shadow=True)
    return window.compared(place, since=status.step_began, until=now, rollout=name_of(rollout))


def _sides(
    rollout: ChannelRollout,
    status: RolloutStatus,
    plan: Plan,
    window: Window,
    *,
    since: float,
    until: float,
) -> tuple[Sample, Sample]:
    """What canary and stable did in the same stretch of time."""
    figures = [name for _, name in _custom(plan.analysis)]
    canary = window.sample(
        Place(status.channel, status.canary_subset, shadow=plan.shadow_percent > 0),
        since=since,
        until=until,
        # Whoever names the canary's subset tries it out, and is not what it is judged by.
        rollouts=(name_of(rollout),) if plan.drawn_only else None,
        figures=figures,
    )
    stable = window.sample(
        Place(status.channel, status.stable_subset), since=since, until=until, figures=figures
    )
    return canary, stable


def _custom(analysis: Analysis | None) -> list[tuple[str, str]]:
    """The events that carry figures, and what the figures are called."""
    checks = judging.checks_of(analysis) if analysis else ()
    return [(one.event, judging.figure_of(one)) for one in checks if one.metric == "custom"]
