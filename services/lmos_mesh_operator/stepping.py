"""What becomes of a rollout next: one status after another. Pure: the caller brings the time.

The rules: traffic rises by one step at a time, and only by a person's word or after every check of
a full step has passed; a canary that fails a check, or that nobody serves, has none from then on;
and all there is to know is in the status, so that whoever reads it can go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from lmos_mesh.errors import Conflict
from lmos_mesh.messages import SteerRollout
from lmos_mesh.resources import (
    ChannelRollout,
    Compared,
    Condition,
    Phase,
    RolloutStatus,
    Verdict,
)
from lmos_mesh.weights import RUNNING, name_of
from lmos_mesh_operator.judging import outcome_of
from lmos_mesh_operator.plans import (
    Channels,
    Plan,
    Reason,
    fault_of,
    not_served,
    plan_of,
    unready,
)

Kind = Literal[
    "pending",
    "invalid",
    "began",
    "stepped",
    "edited",
    "paused",
    "resumed",
    "promoted",
    "aborted",
    "rolled_back",
]
"""What came to pass; the last word of the event's type."""
KINDS: tuple[Kind, ...] = get_args(Kind)

ENDED: frozenset[Phase] = frozenset({"Promoted", "Aborted", "RolledBack"})
LOOKS_PER_WINDOW = 6
_CONDITION = "Progressing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What a rollout is now.

    Attributes:
        kind: What came to pass; None if it was only looked at.
    """

    status: RolloutStatus
    kind: Kind | None


def look_due(rollout: ChannelRollout, *, now: float) -> bool:
    """Whether the canary is to be looked at now."""
    status, plan = rollout.status, plan_of(rollout.spec.strategy)
    if status is None or not plan.is_looked_at or status.phase not in RUNNING:
        return False
    if status.paused_for == "stable" or status.step >= len(plan.steps):
        return False
    every_s = plan.window_s
    if status.phase == "Progressing":
        every_s /= LOOKS_PER_WINDOW
        over = status.step_began + plan.hold_s(status.step)
        # A step does not end on what was seen before its end.
        if status.looked_at < over <= now:
            return True
    return now >= max(status.looked_at, status.step_began) + every_s


def next_step(
    rollout: ChannelRollout,
    channels: Channels,
    *,
    now: float,
    verdicts: Sequence[Verdict] | None = None,
    spent: int = 1,
    compared: Compared | None = None,
) -> Stepped | None:
    """What a rollout becomes; None if it stays as it is.

    Args:
        rollout: As it is.
        channels: The two that it names.
        now: Unix seconds.
        verdicts: Of a look at the canary now, which `look_due` asks for; None without one.
        spent: How many tests of every check that look took; 0 if there was too little to test.
        compared: What that look has shown of a shadow's answers.
    """
    status = rollout.status
    if status is None or status.phase in ("Pending", "Invalid"):
        return _begin_or_wait(rollout, channels, now=now)
    if status.phase in ENDED:
        return _after_the_end(rollout, status, channels, now=now)
    if verdicts is not None:
        status = _looked(status, verdicts, now=now, spent=spent, compared=compared)
    return _go_on(_Run(rollout, status, channels, now), verdicts)


def steer(
    rollout: ChannelRollout, channels: Channels, request: SteerRollout, *, now: float
) -> Stepped:
    """What a person makes of a rollout.

    Raises:
        Conflict: That cannot be done now; it says why, and what can.
    """
    status = rollout.status or RolloutStatus()
    run = _Run(rollout, status, channels, now)
    why = f"by hand: {request.reason}" if request.reason else "by hand"
    if request.action == "abort":
        return _abort(run, why)
    if request.action == "restart":
        if (reason := unready(rollout, channels)) is not None:
            raise Conflict(f"rollout {name_of(rollout)!r} cannot begin: {reason.message}")
        return _begin(rollout, channels, now=now, why=f", {why}")
    if status.phase not in RUNNING:
        hint = "restart it" if status.phase in ENDED else status.message
        raise Conflict(f"rollout {name_of(rollout)!r} is {status.phase}", hint=hint)
    if request.action == "pause":
        if status.paused_for == "person":
            raise Conflict(f"rollout {name_of(run.rollout)!r} is paused already: {status.message}")
        # What was edited a moment ago is seen to by the next step, and stays paused.
        seen = status.observed_generation
        return run.to(
            "Paused", "paused", f"paused {why}", paused_for="person", observed_generation=seen
        )
    if run.edited and request.action != "promote_fully":
        raise Conflict(
            f"rollout {name_of(rollout)!r} was edited, and nobody has seen to that yet",
            hint="try again",
        )
    if request.action == "resume":
        return _resume(run, why)
    if (reason := not_served(channels.canary)) is not None:
        raise Conflict(f"rollout {name_of(rollout)!r} cannot go on: {reason}")
    if request.action == "promote_fully":
        return run.promote(why)
    return run.advance(why)


def reason_of(kind: Kind) -> str:
    """What came to pass, as the reason of a condition."""
    return "".join(word.title() for word in kind.split("_"))


def salt_of(rollout: ChannelRollout, *, now: float) -> str:
    """What the draws of one run are made with."""
    return f"{name_of(rollout)}@{now:.3f}"


@dataclass(frozen=True, slots=True)
class _Run:
    """A rollout at a moment, and what it may become."""

    rollout: ChannelRollout
    status: RolloutStatus
    channels: Channels
    now: float

    @property
    def plan(self) -> Plan:
        return plan_of(self.rollout.spec.strategy)

    @property
    def edited(self) -> bool:
        spec_changed = self.status.observed_generation != self.rollout.metadata.generation
        return spec_changed or self.status.step >= len(self.plan.steps)

    def to(self, phase: Phase, kind: Kind, message: str, **more: object) -> Stepped:
        status = self.status.model_copy(
            update={
                "phase": phase,
                "message": message,
                "paused_for": "",
                "observed_generation": self.rollout.metadata.generation,
                **more,
            }
        )
        return Stepped(status=_told(status, kind, self.now), kind=kind)

    def end(self, phase: Phase, kind: Kind, message: str, *, weight: int) -> Stepped:
        return self.to(
            phase, kind, message, canary_weight=weight, shadow_percent=0, step_began=self.now
        )

    def roll_back(self, why: str) -> Stepped:
        return self.end("RolledBack", "rolled_back", f"rolled back: {why}", weight=0)

    def promote(self, why: str) -> Stepped:
        return self.end("Promoted", "promoted", f"promoted: {why}", weight=100)

    def advance(self, why: str) -> Stepped:
        step = self.status.step + 1
        if step >= len(self.plan.steps):
            return self.promote(why)
        return self.at(step, "stepped", why)

    def at(self, step: int, kind: Kind, why: str, *, phase: Phase = "Progressing") -> Stepped:
        """Begin a step."""
        plan = self.plan
        weight = plan.steps[step].weight
        return self.to(
            phase,
            kind,
            f"{_moved(plan, step)}: {why}",
            step=step,
            canary_weight=weight,
            shadow_percent=plan.shadow_percent,
            step_began=self.now,
            looks=0,
            looked_at=0.0,
            compared=None,
            # Paused, it is still who paused it that it waits for.
            paused_for=self.status.paused_for if phase == "Paused" else "",
        )


def _moved(plan: Plan, step: int) -> str:
    """Who is asked of the canary in a step."""
    if plan.shadow_percent:
        return f"{plan.shadow_percent} % of turns are asked of both"
    if not plan.drawn_only:
        return "nobody is moved yet"
    return f"step {step + 1} of {len(plan.steps)}, {plan.steps[step].weight} % of conversations"


# -- before it runs, and after --


def _begin_or_wait(rollout: ChannelRollout, channels: Channels, *, now: float) -> Stepped | None:
    reason = unready(rollout, channels)
    if reason is None:
        return _begin(rollout, channels, now=now)
    run = _Run(rollout, rollout.status or RolloutStatus(), channels, now)
    status = rollout.status
    if status is not None and not run.edited:
        was = (status.phase, status.message)
        return None if was == (reason.phase, reason.message) else _refuse(run, reason)
    return _refuse(run, reason)


def _refuse(run: _Run, reason: Reason) -> Stepped:
    kind: Kind = "invalid" if reason.phase == "Invalid" else "pending"
    return run.to(
        reason.phase,
        kind,
        reason.message,
        canary_weight=0,
        shadow_percent=0,
        tenant=run.rollout.tenant,
    )


def _begin(rollout: ChannelRollout, channels: Channels, *, now: float, why: str = "") -> Stepped:
    assert channels.canary is not None
    assert channels.stable is not None
    begun = RolloutStatus(
        tenant=channels.stable.tenant,
        channel=channels.stable.channel,
        canary_subset=channels.canary.subset,
        stable_subset=channels.stable.subset,
        salt=salt_of(rollout, now=now),
    )
    return _Run(rollout, begun, channels, now).at(0, "began", f"it began{why}")


def _after_the_end(
    rollout: ChannelRollout, status: RolloutStatus, channels: Channels, *, now: float
) -> Stepped | None:
    run = _Run(rollout, status, channels, now)
    if run.edited:
        anew = unready(rollout, channels) is None and (
            status.phase != "Promoted" or _is_of_others(status, channels)
        )
        if anew:
            return _begin(rollout, channels, now=now, why=" anew: it was edited")
        seen = {"observed_generation": rollout.metadata.generation}
        return Stepped(status=status.model_copy(update=seen), kind=None)
    if status.phase == "Promoted" and channels.canary is None and channels.stable is not None:
        return run.roll_back(f"there is no Channel {run.plan.canary.name!r} any more")
    return None


# -- while it runs --


def _go_on(run: _Run, verdicts: Sequence[Verdict] | None) -> Stepped | None:
    status, channels, plan = run.status, run.channels, run.plan
    if channels.canary is not None and channels.stable is not None:
        if fault := fault_of(run.rollout, channels):
            return _refuse(run, Reason(fault, "Invalid"))
        if _is_of_others(status, channels):
            # Other Channels, or their labels are others: what was seen is of no account.
            if (reason := unready(run.rollout, channels)) is not None:
                return _refuse(run, reason)
            return _begin(run.rollout, channels, now=run.now, why=" anew: its Channels are others")
    if (reason := not_served(channels.canary)) is not None:
        return run.roll_back(reason if channels.canary else f"{plan.canary.name!r}: {reason}")
    if channels.stable is None:
        if status.paused_for == "stable":
            return None
        gone = f"paused: there is no Channel {plan.stable.name!r} any more"
        # An edit is seen to once there is somewhere to go back to.
        seen = status.observed_generation
        return run.to("Paused", "paused", gone, paused_for="stable", observed_generation=seen)
    if run.edited:
        return _refit(run)
    if status.paused_for == "stable":
        return run.at(status.step, "resumed", f"Channel {plan.stable.name!r} is back")
    if verdicts is not None:
        failed = [one.message for one in verdicts if one.outcome == "fail"]
        if failed:
            return run.roll_back("; ".join(failed))
    settled = _if_over(run, verdicts) if status.phase == "Progressing" else None
    if settled is not None:
        return settled
    return Stepped(status=run.status, kind=None) if verdicts is not None else None


def _if_over(run: _Run, verdicts: Sequence[Verdict] | None) -> Stepped | None:
    """What follows a step whose time is over; None if it is not, or goes on."""
    status, plan = run.status, run.plan
    if run.now < status.step_began + plan.hold_s(status.step):
        return None
    passed = "its time is over" if plan.hold_s(status.step) else ""
    if plan.analysis is not None:
        if verdicts is None:
            return None
        if outcome_of(verdicts) == "waiting":
            few = "; ".join(one.message for one in verdicts if one.outcome == "waiting")
            if plan.analysis.inconclusive == "pause":
                return run.to("Paused", "paused", f"paused: {few}", paused_for="turns")
            if plan.analysis.inconclusive == "abort":
                return run.end("Aborted", "aborted", f"aborted: {few}", weight=0)
            return None
        passed = "every check passed"
    if plan.steps[status.step].pause:
        passed += ", and " if passed else ""
        waits = f"paused: {passed}a person has to promote it"
        # A shadow that has passed has shown what it could.
        return run.to("Paused", "paused", waits, paused_for="step", shadow_percent=0)
    return run.advance(passed or "it has no time to wait for")


def _looked(
    status: RolloutStatus,
    verdicts: Sequence[Verdict],
    *,
    now: float,
    spent: int,
    compared: Compared | None,
) -> RolloutStatus:
    seen: dict[str, object] = {
        "verdicts": tuple(verdicts),
        "looks": status.looks + spent,
        "looked_at": now,
        "compared": compared,
    }
    return status.model_copy(update=seen)


def _refit(run: _Run) -> Stepped:
    """An edited rollout goes on at the step that it has earned, and begins that anew."""
    plan, status = run.plan, run.status
    earned = [at for at, step in enumerate(plan.steps) if step.weight <= status.canary_weight]
    phase: Phase = "Paused" if status.paused_for == "person" else "Progressing"
    return run.at(max(earned, default=0), "edited", "it was edited", phase=phase)


def _resume(run: _Run, why: str) -> Stepped:
    status = run.status
    if status.phase != "Paused":
        raise Conflict(f"rollout {name_of(run.rollout)!r} is not paused")
    if status.paused_for == "stable":
        raise Conflict(
            f"rollout {name_of(run.rollout)!r} cannot go on: {status.message}",
            hint="apply that Channel again, or promote the rollout fully",
        )
    if status.paused_for == "step" and not run.plan.shadow_percent:
        return run.advance(why)
    if status.paused_for in ("turns", "step"):
        return run.at(status.step, "resumed", why)
    return run.to("Progressing", "resumed", f"resumed {why}")


def _abort(run: _Run, why: str) -> Stepped:
    status = run.status
    if status.phase in ("Aborted", "RolledBack", "Invalid"):
        raise Conflict(
            f"rollout {name_of(run.rollout)!r} is {status.phase}, no conversation is on its canary",
            hint=status.message,
        )
    if status.phase == "Promoted" and run.channels.stable is None:
        raise Conflict(
            f"rollout {name_of(run.rollout)!r} cannot go back: there is no Channel "
            f"{run.plan.stable.name!r} any more",
            hint="apply it first",
        )
    return run.end("Aborted", "aborted", f"aborted {why}", weight=0)


def _is_of_others(status: RolloutStatus, channels: Channels) -> bool:
    """Whether the Channels are of other subsets than those that conversations were sent to."""
    if channels.canary is None or channels.stable is None:
        return False
    stable = channels.stable
    now = (stable.tenant, stable.channel, channels.canary.subset, stable.subset)
    return now != (status.tenant, status.channel, status.canary_subset, status.stable_subset)


def _told(status: RolloutStatus, kind: Kind, now: float) -> RolloutStatus:
    """What came to pass, in the status: whoever takes over can tell it again."""
    condition = Condition(
        type=_CONDITION,
        status="True" if status.phase == "Progressing" else "False",
        reason=reason_of(kind),
        message=status.message,
        last_transition_time=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        observed_generation=status.observed_generation,
    )
    return status.model_copy(update={"conditions": (condition,)})
