"""What people apply and the operator keeps: the resources of `lmos.eclipse/v1`, field for field.

One pydantic source for the bus, the JSON Schemas and the CustomResourceDefinitions. Members that
LMOS does not have are optional, and each says so in its description. Pure.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

GROUP = "lmos.eclipse"
VERSION = "v1"
API_VERSION: Literal["lmos.eclipse/v1"] = "lmos.eclipse/v1"
DEFAULT_NAMESPACE = "default"
DEFAULT_SUBSET = "stable"

TENANT_LABEL = "tenant"
CHANNEL_LABEL = "channel"
SUBSET_LABEL = "subset"
VERSION_LABEL = "version"

Strategy = Literal["HIGHEST", "MOST_SIMILAR"]


def _outside(name: str) -> str:
    """How a member is called outside, as Kubernetes has it: `window_s` is `windowSeconds`."""
    return to_camel(f"{name[:-2]}_seconds" if name.endswith("_s") else name)


_NAMED: JsonDict = {
    "anyOf": [
        {"required": ["name"], "properties": {"name": {"minLength": 1}}},
        {"required": ["id"], "properties": {"id": {"minLength": 1}}},
    ]
}
_ONE_STRATEGY: JsonDict = {
    "oneOf": [{"required": ["canary"]}, {"required": ["shadow"]}, {"required": ["blueGreen"]}]
}


class Member(BaseModel):
    """A part of a resource: camel case outside, unknown members are refused with their pointer."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_outside, populate_by_name=True
    )


class Metadata(BaseModel):
    """Kubernetes object metadata; what the mesh does not know of it is kept.

    Attributes:
        labels: `tenant`, `channel`, `subset` (else `stable`) and `version`, as LMOS has them.
        generation: Rises with every change of the spec.
        resource_version: The revision in the mesh's store, as text.
    """

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True
    )

    name: str = Field(min_length=1, max_length=253)
    namespace: str = Field(default=DEFAULT_NAMESPACE, min_length=1, max_length=63)
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    annotations: dict[str, str] = Field(default_factory=dict[str, str])
    generation: int = 0
    resource_version: str = ""
    uid: str = ""
    creation_timestamp: str = ""


class Condition(Member):
    """One aspect of a status, as Kubernetes has conditions."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class Resource(BaseModel):
    """One resource.

    Attributes:
        kind: One of `KINDS`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )
    plural: ClassVar[str]
    short: ClassVar[str]

    api_version: Literal["lmos.eclipse/v1"] = API_VERSION
    metadata: Metadata

    @property
    def tenant(self) -> str:
        """Whom it is for; empty if no label says so."""
        return self.metadata.labels.get(TENANT_LABEL, "")

    @property
    def channel(self) -> str:
        """The channel it belongs to; empty if no label says so."""
        return self.metadata.labels.get(CHANNEL_LABEL, "")

    @property
    def subset(self) -> str:
        """Its release line."""
        return self.metadata.labels.get(SUBSET_LABEL, "") or DEFAULT_SUBSET


# -- Agent --


class ProvidedCapability(Member):
    """What an agent can do; where one of `id` and `name` is given it stands for both."""

    model_config = ConfigDict(json_schema_extra=_NAMED)

    id: str = ""
    name: str = ""
    version: str
    description: str = ""
    examples: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_named(self) -> "ProvidedCapability":
        if not (self.id or self.name):
            raise ValueError("needs `name` or `id`")
        return self


class AgentSpec(Member):
    """What LMOS knows of an agent; an empty list of channels serves none, of tenants any."""

    id: str = ""
    description: str = ""
    supported_tenants: tuple[str, ...] = ()
    supported_channels: tuple[str, ...] = ()
    provided_capabilities: tuple[ProvidedCapability, ...] = ()


class AgentStatus(Member):
    """Ours: whether the agent runs.

    Attributes:
        live: Whether at least one instance serves it.
    """

    live: bool = False
    instances: int = 0
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


class Agent(Resource):
    """An agent, as an operator declares it; agents of the mesh need no such resource."""

    plural = "agents"
    short = "ag"

    kind: Literal["Agent"] = "Agent"
    spec: AgentSpec
    status: AgentStatus | None = None


# -- Channel --


class RequiredCapability(Member):
    """What a channel needs.

    Attributes:
        version: A range in NPM or Ivy notation.
        strategy: Which of several versions: the highest, or the one nearest to the range's own.
        optional: Ours: without it the channel is resolved all the same.
    """

    model_config = ConfigDict(json_schema_extra=_NAMED)

    id: str = ""
    name: str = ""
    version: str
    strategy: Strategy = "HIGHEST"
    optional: bool = False

    @model_validator(mode="after")
    def _is_named(self) -> "RequiredCapability":
        if not (self.id or self.name):
            raise ValueError("needs `name` or `id`")
        return self


class ChannelRouter(Member):
    """Ours: how messages of the channel find their agent.

    Attributes:
        method: None for the router's own setting.
        threshold: How sure the router must be, 0 to 1.
        language: What to speak to a language model, and to ask back, in; None for the message's.
        parts: Whether a message of several requests may be answered by several agents; None for
            yes.
    """

    method: Literal["vector", "llm", "hybrid"] | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    language: str | None = Field(default=None, max_length=35)
    parts: bool | None = None


class ChannelSpec(Member):
    """What a channel needs, and how it answers.

    Attributes:
        fallback_agent: Ours: who answers what nobody else can; by its name.
        router: Ours.
        settings: Ours: what the agents of the channel are told, e.g. `answers: short`,
            `markup: none` for one that is spoken.
    """

    required_capabilities: tuple[RequiredCapability, ...]
    fallback_agent: str | None = None
    router: ChannelRouter | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


class NearMiss(Member):
    """Ours: an agent that would nearly do, and why it does not."""

    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    version: str = ""
    reason: str


class Unresolved(Member):
    """A required capability that nobody provides.

    Attributes:
        near: Ours: who nearly matches.
    """

    id: str = ""
    name: str = ""
    version: str
    strategy: Strategy = "HIGHEST"
    near: tuple[NearMiss, ...] = ()


class ChannelStatus(Member):
    """What became of a channel.

    Attributes:
        message: Ours: all of it in one sentence.
        routing_revision: Ours: the revision of the Routing that is active; 0 for none.
        pinned: Ours: whether the Routing was put back by hand and stays until it is released.
        unresolved_optional: Ours: optional capabilities that nobody provides.
    """

    resolve_status: Literal["RESOLVED", "UNRESOLVED"] = "UNRESOLVED"
    unresolved_required_capabilities: tuple[Unresolved, ...] = ()
    unresolved_optional: tuple[Unresolved, ...] = ()
    message: str = ""
    routing_revision: int = 0
    pinned: bool = False
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


class Channel(Resource):
    """A way in for users of a tenant, and what it must be able to do."""

    plural = "channels"
    short = "ch"

    kind: Literal["Channel"] = "Channel"
    spec: ChannelSpec
    status: ChannelStatus | None = None


# -- ChannelRouting --


class WiredCapability(Member):
    """A required capability and who provides it."""

    model_config = ConfigDict(json_schema_extra=_NAMED)

    id: str = ""
    name: str = ""
    required_version: str
    provided_version: str
    host: str = Field(min_length=1)
    description: str = ""

    @model_validator(mode="after")
    def _is_named(self) -> "WiredCapability":
        if not (self.id or self.name):
            raise ValueError("needs `name` or `id`")
        return self


class CapabilityGroup(Member):
    """What one agent provides.

    Attributes:
        id: The agent's id, which is its name on the mesh.
        name: The agent's name.
        subset: Ours: the release line of the agent.
    """

    id: str = ""
    name: str
    description: str = ""
    subset: str = DEFAULT_SUBSET
    capabilities: tuple[WiredCapability, ...]


class ChannelRoutingSpec(Member):
    """Which agents provide what the channel requires.

    Attributes:
        fallback_agent: Ours: the channel's own, so that whoever carries a turn reads this
            resource alone.
        router: Ours: the channel's own.
        settings: Ours: the channel's own.
    """

    capability_groups: tuple[CapabilityGroup, ...] = ()
    fallback_agent: str | None = None
    router: ChannelRouter | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


class ChannelRouting(Resource):
    """What a Channel was resolved to; made by the operator."""

    plural = "channelroutings"
    short = "cr"

    kind: Literal["ChannelRouting"] = "ChannelRouting"
    spec: ChannelRoutingSpec
    status: dict[str, Any] | None = None


# -- ChannelRollout --


class WeightedChannel(Member):
    """A Channel by name, and the percentage of conversations that go its way at the beginning."""

    name: str = Field(min_length=1)
    weight: int = Field(default=0, ge=0, le=100)


Metric = Literal["errors", "latency", "abstentions", "handovers", "custom"]


class Check(Member):
    """Ours: one thing to judge the canary by, against stable over the same window.

    `errors`, `abstentions` and `handovers` are shares of turns: one-sided Fisher's exact test.
    `latency` is seconds to the whole answer: one-sided Mann-Whitney U test. `custom` is a number
    that somebody publishes: the same.

    Attributes:
        margin: How much worse it may be without harm: percentage points of a share; a factor of
            the median of latency and custom figures (1.2: a fifth slower).
        most: The canary fails above it whatever stable does; a share in percent, else the unit.
        event: For `custom`: the event `{thing}.{event}` on the bus that carries the figure.
        field: For `custom`: the member of its data; `subset` beside it says whose it is.
        better: For `custom`: which way is better.
    """

    metric: Metric
    margin: float | None = Field(default=None, ge=0)
    most: float | None = Field(default=None, ge=0)
    event: str = ""
    field: str = "value"
    better: Literal["lower", "higher"] = "lower"


class Analysis(Member):
    """Ours: what decides between two steps.

    Attributes:
        window_s: Seconds over which both are compared; the whole step if there are too few turns.
        min_turns: The fewest turns of the canary that a verdict needs.
        alpha: The chance of calling a canary worse that is not: over all looks, checks and steps
            together.
        inconclusive: What to do when a step's time is over and there are too few turns to tell.
        checks: What to judge by; none means errors and latency.
    """

    window_s: float = Field(default=60.0, gt=0, le=86_400)
    min_turns: int = Field(default=50, ge=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    inconclusive: Literal["wait", "pause", "abort"] = "wait"
    checks: tuple[Check, ...] = ()


class Step(Member):
    """Ours: one step of a canary.

    Attributes:
        weight: The percentage of conversations for the canary from now on.
        hold_s: How long the step lasts at least; None for the analysis's window.
        pause: Whether a person has to promote it.
    """

    weight: int = Field(ge=0, le=100)
    hold_s: float | None = Field(default=None, ge=0)
    pause: bool = False


class Match(Member):
    """Ours: who goes to the canary whatever the weight.

    Attributes:
        users: Ids of users.
        attributes: Names of `userContext` and the values that count; every name must match.
    """

    users: tuple[str, ...] = ()
    attributes: dict[str, tuple[str, ...]] = Field(default_factory=dict[str, tuple[str, ...]])


class Canary(Member):
    """Two Channels of one tenant and channel, and how traffic moves from one to the other.

    Attributes:
        steps: Ours: none means what LMOS's weights say: one step, held until a person promotes.
        sticky: Ours: who keeps to a side: a conversation, or a user with all of theirs.
        match: Ours.
        analysis: Ours: None judges nothing.
    """

    canary_channel: WeightedChannel
    stable_channel: WeightedChannel
    steps: tuple[Step, ...] = ()
    sticky: Literal["conversation", "user"] = "conversation"
    match: Match | None = None
    analysis: Analysis | None = None


class Shadow(Member):
    """Ours: turns of stable are asked of the canary as well; its answers are only compared.

    Attributes:
        percent: Of turns; those whose capability must not be done twice are never mirrored.
    """

    canary_channel: WeightedChannel
    stable_channel: WeightedChannel
    percent: int = Field(default=100, ge=1, le=100)
    analysis: Analysis | None = None


class BlueGreen(Member):
    """Ours: everybody moves at once, after a look at the new one by those who name its subset.

    Attributes:
        auto_promote: Whether the analysis promotes it; else a person does.
    """

    canary_channel: WeightedChannel
    stable_channel: WeightedChannel
    auto_promote: bool = False
    match: Match | None = None
    analysis: Analysis | None = None


class RolloutStrategy(Member):
    """Exactly one of the three."""

    model_config = ConfigDict(json_schema_extra=_ONE_STRATEGY)

    canary: Canary | None = None
    shadow: Shadow | None = None
    blue_green: BlueGreen | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "RolloutStrategy":
        if sum(one is not None for one in (self.canary, self.shadow, self.blue_green)) != 1:
            raise ValueError("needs exactly one of `canary`, `shadow` and `blueGreen`")
        return self


class ChannelRolloutSpec(Member):
    """How a channel gets from one release line to another."""

    strategy: RolloutStrategy


Phase = Literal["Pending", "Progressing", "Paused", "Promoted", "Aborted", "RolledBack", "Invalid"]


class Verdict(Member):
    """What one check said.

    Attributes:
        outcome: `pass`, `fail`, or `waiting` for more turns.
        p: The test's p-value; None if there was none.
    """

    metric: str
    outcome: Literal["pass", "fail", "waiting"]
    canary: float | None = None
    stable: float | None = None
    canary_turns: int = 0
    stable_turns: int = 0
    p: float | None = None
    message: str = ""


class Compared(Member):
    """Ours: what a shadow's turns came to since its step began, in the last hour at most.

    Attributes:
        same: Answers that say what the user got, however they are spaced.
        different: Those that do not.
        failed: Turns that the canary failed.
        several: Turns that were not compared, as the message had several requests.
        once: Likewise, as they must not be done twice.
        busy: Likewise, as too many were under way.
    """

    same: int = 0
    different: int = 0
    failed: int = 0
    several: int = 0
    once: int = 0
    busy: int = 0


class RolloutStatus(Member):
    """Ours: where a rollout is. Whoever carries a turn reads `canary_weight` from here.

    Attributes:
        canary_weight: Percentage of conversations; what counts.
        step: Index of the step that is running.
        step_began: Unix seconds.
        looks: How often this step was judged; the test's alpha is spent over them.
        looked_at: Unix seconds of the last of them; 0 before the first.
        paused_for: What a paused one waits for: a person to promote its step or who paused it,
            more turns, or the Channel of stable to be back.
        canary_subset: Release line of the canary Channel, as `stable_subset` of the other.
        salt: What draws are made with, so that two rollouts pick different conversations.
        compared: Of a shadow: what its answers look like beside those that users got.
        message: All of it in one sentence.
    """

    phase: Phase = "Pending"
    canary_weight: int = 0
    step: int = 0
    step_began: float = 0.0
    looks: int = 0
    looked_at: float = 0.0
    paused_for: Literal["", "step", "person", "turns", "stable"] = ""
    shadow_percent: int = 0
    tenant: str = ""
    channel: str = ""
    canary_subset: str = ""
    stable_subset: str = ""
    salt: str = ""
    verdicts: tuple[Verdict, ...] = ()
    compared: Compared | None = None
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0


class ChannelRollout(Resource):
    """Moves a channel's traffic from one release line to another."""

    plural = "channelrollouts"
    short = "crl"

    kind: Literal["ChannelRollout"] = "ChannelRollout"
    spec: ChannelRolloutSpec
    status: RolloutStatus | None = None


KINDS: dict[str, type[Resource]] = {
    "Agent": Agent,
    "Channel": Channel,
    "ChannelRouting": ChannelRouting,
    "ChannelRollout": ChannelRollout,
}
AnyResource = Annotated[
    Agent | Channel | ChannelRouting | ChannelRollout, Field(discriminator="kind")
]

_BY_WORD = {
    word: kind
    for kind, model in KINDS.items()
    for word in (kind.lower(), model.plural, model.short)
}
# In full they are long to type.
for _word, _kind in (("routing", "ChannelRouting"), ("rollout", "ChannelRollout")):
    _BY_WORD.update({_word: _kind, f"{_word}s": _kind})


def kind_named(word: str) -> str | None:
    """The kind that a word means: `Channel`, `channels` and `ch` are one; None for no kind."""
    return _BY_WORD.get(word.lower())
