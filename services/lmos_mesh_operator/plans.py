"""What a rollout's spec comes to, and what keeps it from beginning. Pure."""

import math
from dataclasses import dataclass
from typing import Literal

from lmos_mesh.resources import (
    Analysis,
    Channel,
    ChannelRollout,
    RolloutStrategy,
    Step,
    WeightedChannel,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """What a rollout moves traffic between.

    Attributes:
        canary: None if there is no such Channel, as of `stable`.
        busy: Another rollout of the same tenant and channel that is under way; empty for none.
    """

    canary: Channel | None
    stable: Channel | None
    busy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A strategy as steps, which all three come down to.

    Attributes:
        shadow_percent: Of turns that are mirrored while it progresses.
        drawn_only: Whether only those turns of the canary count that the rollout sent there.
    """

    canary: WeightedChannel
    stable: WeightedChannel
    steps: tuple[Step, ...]
    analysis: Analysis | None
    shadow_percent: int = 0
    drawn_only: bool = False

    @property
    def is_looked_at(self) -> bool:
        """Whether turns are read: to judge the canary, or to compare its answers."""
        return self.analysis is not None or self.shadow_percent > 0

    @property
    def window_s(self) -> float:
        """Over what stretch of time it is looked at."""
        return (self.analysis or Analysis()).window_s

    def hold_s(self, step: int) -> float:
        """How long a step lasts at least."""
        given = self.steps[step].hold_s
        return self.window_s if given is None else given


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a rollout cannot begin: for good as it is written, or for now."""

    message: str
    phase: Literal["Invalid", "Pending"]


def plan_of(strategy: RolloutStrategy) -> Plan:
    """The steps of a strategy."""
    if strategy.canary is not None:
        canary = strategy.canary
        return Plan(
            canary=canary.canary_channel,
            stable=canary.stable_channel,
            # LMOS's weights alone: a weight of stable that is not given is the rest.
            steps=canary.steps
            or (Step(weight=canary.canary_channel.weight, hold_s=0, pause=True),),
            analysis=canary.analysis,
            drawn_only=True,
        )
    if strategy.shadow is not None:
        shadow = strategy.shadow
        # Without an analysis it is a person who looks, for as long as that takes.
        hold_s = math.inf if shadow.analysis is None else None
        return Plan(
            canary=shadow.canary_channel,
            stable=shadow.stable_channel,
            steps=(Step(weight=0, hold_s=hold_s, pause=True),),
            analysis=shadow.analysis,
            shadow_percent=shadow.percent,
        )
    assert strategy.blue_green is not None
    both = strategy.blue_green
    hold_s = 0.0 if both.analysis is None else None
    return Plan(
        canary=both.canary_channel,
        stable=both.stable_channel,
        steps=(Step(weight=0, hold_s=hold_s, pause=not both.auto_promote),),
        analysis=both.analysis,
    )


def place_of(strategy: RolloutStrategy) -> str:
    """Where in a rollout its strategy is, as a JSON Pointer."""
    name = "canary" if strategy.canary else "shadow" if strategy.shadow else "blueGreen"
    return f"/spec/strategy/{name}"


def unready(rollout: ChannelRollout, channels: Channels) -> Reason | None:
    """Why a rollout cannot begin; None if it can."""
    plan = plan_of(rollout.spec.strategy)
    if fault := _unfit(rollout, plan) or fault_of(rollout, channels):
        return Reason(fault, "Invalid")
    for named, found in ((plan.canary, channels.canary), (plan.stable, channels.stable)):
        if found is None:
            namespace = rollout.metadata.namespace
            missing = f"there is no Channel {named.name!r} in namespace {namespace!r} yet"
            return Reason(missing, "Pending")
    if reason := not_served(channels.canary) or _not_looked_at(channels.canary):
        return Reason(reason, "Pending")
    if channels.busy:
        return Reason(f"rollout {channels.busy!r} of the same channel is under way", "Pending")
    return None


def _unfit(rollout: ChannelRollout, plan: Plan) -> str:
    """What is wrong with a rollout by itself; empty if nothing is."""
    if plan.canary.name == plan.stable.name:
        return f"canaryChannel and stableChannel are both {plan.canary.name!r}: they must be two"
    weights = [step.weight for step in plan.steps]
    if weights != sorted(weights):
        said = ", ".join(map(str, weights))
        return f"the weights of steps must rise, these are {said}: to go back is `abort`"
    canary = rollout.spec.strategy.canary
    if canary is not None and not canary.steps:
        new, old = canary.canary_channel.weight, canary.stable_channel.weight
        if new and old and new + old != 100:
            return f"the weights of both Channels must be 100 together, {new} and {old} are not"
    for check in plan.analysis.checks if plan.analysis else ():
        if check.metric == "custom" and len(check.event.split(".")) != 2:
            return (
                f"a custom check needs the `event` that carries its figure, as `thing.event`; "
                f"this one has {check.event!r}"
            )
    return ""


def fault_of(rollout: ChannelRollout, channels: Channels) -> str:
    """What is wrong with the two Channels; empty if nothing is, or one is not there."""
    canary, stable = channels.canary, channels.stable
    for one in (canary, stable):
        if one is not None and rollout.tenant and one.tenant != rollout.tenant:
            return (
                f"Channel {one.metadata.name!r} is of tenant {one.tenant!r}, and the rollout of "
                f"{rollout.tenant!r}"
            )
    if canary is None or stable is None:
        return ""
    both = f"Channels {canary.metadata.name!r} and {stable.metadata.name!r}"
    if canary.tenant != stable.tenant:
        return f"{both} are of two tenants, {canary.tenant!r} and {stable.tenant!r}"
    if canary.channel != stable.channel:
        return f"{both} are of two channels, {canary.channel!r} and {stable.channel!r}"
    if canary.subset == stable.subset:
        return f"{both} have the same subset, {canary.subset!r}: their labels must differ in it"
    return ""


def not_served(canary: Channel | None) -> str | None:
    """Why nobody may be sent to the canary; None if anybody may."""
    if canary is None:
        return "there is no such Channel any more"
    status = canary.status
    if status is not None and status.resolve_status == "RESOLVED":
        return None
    said = f": {status.message}" if status is not None and status.message else ""
    return f"Channel {canary.metadata.name!r} is not resolved{said}"


def _not_looked_at(canary: Channel | None) -> str | None:
    """Whether the canary has changed since it was resolved."""
    if canary is None or canary.status is None:
        return None
    if 0 < canary.status.observed_generation < canary.metadata.generation:
        return f"Channel {canary.metadata.name!r} is being resolved"
    return None
