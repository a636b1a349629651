"""What is said on the mesh, and where: the endpoints of the services with both their types."""

from typing import Annotated, Any, Literal

from pydantic import Field

from lmos_mesh.endpoint import Endpoint, InstanceEndpoint, Message
from lmos_mesh.things import DEFAULT_SUBSET, Capability

DEFAULT_CHANNEL = "web"

Id = Annotated[str, Field(max_length=256)]
"""An id that callers make up. It becomes a token of a key, and a server hangs up on long ones."""

# -- who is there --


class Instance(Message):
    """One running process that serves a Thing.

    Attributes:
        in_flight: Calls it is answering now.
        concurrency: How many it answers at a time.
    """

    instance: str
    version: str = ""
    in_flight: int = 0
    concurrency: int = 0
    host: str = ""
    pid: int = 0
    started: float = 0.0


class Registration(Message):
    """When an entry came and when it goes, as W3C WoT Discovery has it (section 7.3.1).

    Attributes:
        created: RFC 3339, as are `modified` and `expires`.
        ttl: Seconds that it stays after it was last written; None for no end.
    """

    created: str
    modified: str
    expires: str | None = None
    ttl: float | None = None


class Register(Message):
    """Note a Thing: by its Description, or by its record, from which one is made.

    Attributes:
        description: A WoT Thing Description 1.1; with the LMOS vocabulary if it is an agent or a
            tool.
        thing: A `Thing` as JSON.
        revision: The revision it replaces, 0 for none; a stale update is refused. None for
            whatever is there.
        ttl_s: Seconds after which it is forgotten unless it is registered again.
        expires: RFC 3339: when it is forgotten; give one of the two.
    """

    description: dict[str, Any] | None = None
    thing: dict[str, Any] | None = None
    revision: int | None = None
    ttl_s: float | None = Field(default=None, gt=0)
    expires: str | None = None


class Registered(Message):
    """The Thing is findable.

    Attributes:
        id: The `id` of its Description.
        created: Whether it was not there before.
        notes: What was filled in.
    """

    name: str
    subset: str
    revision: int
    id: str = ""
    created: bool = False
    notes: tuple[str, ...] = ()


class Deregister(Message):
    """Forget a Thing, named by its name and subset or by its id.

    Attributes:
        leaving: The instance that says so; the Thing stays while another instance serves it.
        revision: The revision that is known; of another one it is kept. None for any.
    """

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""
    leaving: str = ""
    revision: int | None = None


class Deregistered(Message):
    """Whether the Thing is gone now; not if others still serve it."""

    name: str
    subset: str
    gone: bool


class GetThing(Message):
    """One Thing, by its name and subset or by its id.

    Attributes:
        revision: An earlier version of it, as long as it is kept; None for what stands now.
    """

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""
    revision: int | None = None


class FoundThing(Message):
    """A Thing as the registry knows it.

    Attributes:
        id: The `id` of its Description.
        title: What people call it, where that is not its name.
        origin: The mesh that it belongs to; empty for ours.
        live: Whether at least one instance serves it; None where nobody here can know, as it is no
            process of this mesh and its own, if it has one, does not say.
        score: How well it fits the text that was looked for, 0 to 1; None without one.
        description: Its whole Description, where it was asked for.
        as_of: Unix seconds until which this is known to be true; 0 if it was not said.
    """

    name: str
    subset: str = DEFAULT_SUBSET
    tenant: str = ""
    id: str = ""
    title: str = ""
    kind: str = "agent"
    version: str = ""
    summary: str = ""
    capabilities: tuple[Capability, ...] = ()
    channels: tuple[str, ...] = ()
    external: bool = False
    origin: str = ""
    live: bool | None = None
    instances: tuple[Instance, ...] = ()
    revision: int = 0
    registration: Registration | None = None
    score: float | None = None
    description: dict[str, Any] | None = None
    as_of: float = 0.0


class FindThings(Message):
    """Which Things fit; every given condition must hold.

    Attributes:
        name: Exact name.
        id: Exact id.
        kind: `agent`, `tool`, or `thing` for everything that speaks no LMOS.
        capability: Id or name of a capability.
        version: A semver range for that capability, in NPM or Ivy notation.
        channel: A channel it must serve.
        tags: All of them must be tags of the Thing's capabilities.
        metadata: Members of `lmos:metadata` and the values that they must have; a name with dots
            goes into objects: `{"vendor.name": "ACME"}`.
        text: What somebody would say to describe it; the best match first. By meaning where a
            router can be asked, else by words, and the answer says which.
        jsonpath: An RFC 9535 filter over its Description, e.g. `$[?@.title == 'billing']`, or
            the filter alone: `@.title == 'billing'`.
        origin: The mesh it belongs to; `""` for ours, None for any.
        live: Only those that are known to be there (true), only the others (false), or all (null).
            Of a peer mesh's Things, that mesh says so.
        sort: What to sort by; by default `score` with a text, else `name`.
        descriptions: Whether to give the whole Descriptions.
        offset: How many of those that fit to leave out.
        limit: How many to give at most. Fewer come if they would not fit into one reply.
    """

    name: str | None = None
    id: str | None = None
    kind: str | None = None
    capability: str | None = None
    version: str | None = None
    channel: str | None = None
    subset: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    text: str | None = None
    jsonpath: str | None = None
    origin: str | None = None
    live: bool | None = True
    sort: Literal["name", "id", "version", "created", "modified", "load", "score"] | None = None
    descending: bool = False
    descriptions: bool = False
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class ThingsFound(Message):
    """The Things that fit, and how fresh the answer is.

    Attributes:
        total: How many fit, `offset` and `limit` apart.
        next: The offset of those that come after these; None if these are the last.
        revision: The last change of the registry that this answer knows of.
        as_of: Unix seconds until which the answer is known to be true: now, or when the replica
            that answers lost the bus.
        matched: How the text was compared: `meaning` or `words`; empty without one.
        notes: What whoever asked should know, e.g. that nobody could compare meanings.
    """

    things: tuple[FoundThing, ...]
    total: int
    revision: int
    next: int | None = None
    as_of: float = 0.0
    matched: Literal["", "meaning", "words"] = ""
    notes: tuple[str, ...] = ()


class SearchThings(Message):
    """A JSONPath (RFC 9535) over the array of all Descriptions of a tenant.

    Attributes:
        query: E.g. `$[?@.title == 'billing'].id`.
    """

    query: str = Field(max_length=4096)
    limit: int = Field(default=1000, ge=1, le=10_000)


class SearchFound(Message):
    """What the JSONPath selects, and how much there was of it, `limit` apart."""

    values: tuple[Any, ...]
    total: int
    revision: int
    as_of: float = 0.0


class GetHistory(Message):
    """The versions of a Thing's Description that are kept, by its name and subset or by its id."""

    name: str = ""
    subset: str = DEFAULT_SUBSET
    id: str = ""


class ThingVersion(Message):
    """A Thing as it was.

    Attributes:
        at: Unix seconds.
        version: Its version; empty where it was removed.
        gone: Whether it was removed then, or expired.
    """

    revision: int
    at: float
    version: str = ""
    gone: bool = False


class History(Message):
    """The versions that are kept, the latest first."""

    name: str
    subset: str
    versions: tuple[ThingVersion, ...]


class RegistryStatus(Message):
    """No conditions: how is the registry?"""


class PeerState(Message):
    """Another mesh that is mirrored.

    Attributes:
        origin: What it is called here.
        answers: Whether its directory answered when it was last asked.
        heard_at: Unix seconds when it last answered; 0 for never.
        things: How many Things it had when all of them were last read.
        refused: How many of them cannot be listed here; the log says why.
        fault: Why it does not answer.
    """

    origin: str
    url: str
    answers: bool = False
    heard_at: float = 0.0
    things: int = 0
    refused: int = 0
    fault: str = ""


class RegistryState(Message):
    """How the registry is.

    Attributes:
        things: How many Things the replica that answers knows, in all tenants.
        peers: The meshes whose Things are mirrored.
        revision: The last change that it knows of.
        as_of: As in `ThingsFound`.
    """

    things: int
    peers: tuple[PeerState, ...] = ()
    revision: int = 0
    as_of: float = 0.0


REGISTER = Endpoint("registry", "register", Register, Registered)
DEREGISTER = Endpoint("registry", "deregister", Deregister, Deregistered)
GET_THING = Endpoint("registry", "get", GetThing, FoundThing)
FIND_THINGS = Endpoint("registry", "find", FindThings, ThingsFound)
SEARCH_THINGS = Endpoint("registry", "search", SearchThings, SearchFound)
GET_HISTORY = Endpoint("registry", "history", GetHistory, History)
REGISTRY_STATUS = Endpoint("registry", "status", RegistryStatus, RegistryState)

# -- which agent should answer --


class Utterance(Message):
    """One thing said in a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str
    agent: str = ""


Method = Literal["vector", "llm", "hybrid", "explicit"]
"""How it is decided: by meaning; by a language model; by meaning where that is sure, and by a
language model for the rest; or by the caller, who names the agent."""


class Decide(Message):
    """Which agent should answer a message?

    Attributes:
        history: What was said before, oldest first.
        method: None for the router's own setting; `explicit` needs `agent`.
        agent: The agent that the caller names.
        language: What to speak to a language model in, e.g. `de`; None for what the message is in.
        threshold: How sure the router must be, 0 to 1; None for its own setting.
        limit: How many candidates to name.
        parts: Whether a message of several requests may be taken apart.
    """

    message: str
    history: tuple[Utterance, ...] = ()
    channel: str = DEFAULT_CHANNEL
    subset: str = DEFAULT_SUBSET
    method: Method | None = None
    agent: str | None = None
    language: str | None = Field(default=None, max_length=35)
    threshold: float | None = Field(default=None, ge=0, le=1)
    limit: int = Field(default=5, ge=1, le=100)
    parts: bool = False


class Candidate(Message):
    """An agent that was considered.

    Attributes:
        capability: The id of its capability that fits best.
        capability_name: That capability's name.
        score: How likely it is the right one, 0 to 1; all agents together have 1.
        similarity: Cosine of the message and the nearest evidence, -1 to 1.
        evidence: The name, description or example that spoke for it.
    """

    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str
    capability_name: str = ""
    score: float
    similarity: float = 0.0
    evidence: str = ""


class Part(Message):
    """One of several requests in a message, and who it is for."""

    text: str
    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    confidence: float = 0.0


class ModelUse(Message):
    """What a language model was asked for one decision.

    Attributes:
        calls: How many times, retries included.
        cost: In the currency of the settings' prices; 0 without prices.
    """

    model: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Decision(Message):
    """What the router answers.

    Attributes:
        outcome: `routed`; `several` when the message is several requests, in `parts`; `unsure`
            when candidates exist and none is convincing, or several are; `out_of_scope` when
            nobody here can do this; `nobody` when there is no agent to choose from.
        agent: The chosen agent; empty unless routed.
        confidence: The probability that the first candidate is right, 0 to 1, calibrated.
        in_scope: The share of messages in scope that are further from what is known than this
            one, 0 to 1: low is out of scope.
        could_be: The agents that it is with 95 % probability (a conformal set), the likeliest
            first: one of them is sure, several ask back.
        parts: The requests of a message of several, in order.
        method: How it was decided in the end: `vector`, `llm`, `hybrid` where both agreed or one
            overruled the other, `explicit`; `fallback` where nobody was sure and the channel
            names who answers then.
        reason: Why, in one sentence.
        encoder: What turned text into vectors; `hashing…` knows words, not meaning.
        used: What was asked of a language model; None if nothing was.
        time_ms: Milliseconds per step.
    """

    outcome: Literal["routed", "several", "unsure", "out_of_scope", "nobody"]
    agent: str = ""
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    confidence: float = 0.0
    candidates: tuple[Candidate, ...] = ()
    in_scope: float = 1.0
    could_be: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    method: str = "vector"
    reason: str = ""
    encoder: str = ""
    used: ModelUse | None = None
    time_ms: dict[str, float] = Field(default_factory=dict[str, float])


class Embed(Message):
    """Turn texts into vectors.

    Attributes:
        urgent: Whether somebody waits for them; texts to be searched later let others go first.
    """

    texts: tuple[str, ...] = Field(max_length=1024)
    urgent: bool = True


class Embedded(Message):
    """One unit vector per text.

    Attributes:
        fingerprint: Vectors of different fingerprints must not be compared.
        semantic: Whether they stand for meaning, or only for words.
    """

    vectors: tuple[tuple[float, ...], ...]
    dimensions: int
    encoder: str
    fingerprint: str
    semantic: bool


class RouterStatus(Message):
    """No conditions: how is the router?"""


class RouterState(Message):
    """How the router is.

    Attributes:
        agents: How many live agents it can choose from.
        capabilities: How many capabilities it tells apart, those of dead agents included.
        evidence: How many texts speak for them.
        version: Rises with everything that it has learned of.
        method: How it decides where nobody says how.
        waiting: How many texts of agents are yet to be embedded.
        trained: Whether it has learned from all that is registered; until then agents that
            changed are told apart by an answer in closed form.
        training: Whether it is learning at the moment.
        training_s: How long that took the last time.
        trained_at: When it was done, as Unix time.
        training_failed: Why it failed the last time; empty if it did not.
        recalled: How often it had not to learn, as what is learned from the same was kept.
        approximate_recall: The share of the nearest capabilities that its approximate index names;
            1 where all are compared.
        embedded: How many texts of agents it has embedded since it started.
        kept: How many it had not to embed, as their vectors were kept.
        decided: Its decisions since it started, by outcome.
        model: The language model; empty for none.
        model_note: Why that is not asked at the moment; empty if it is.
        model_share: The share of decisions by `llm` and `hybrid` that reached it.
        model_calls: Requests to it, retries included.
        model_cost: What they cost, in the currency of the settings' prices.
        model_failed: How often it did not help, by why.
    """

    encoder: str
    fingerprint: str
    semantic: bool
    note: str = ""
    agents: int
    capabilities: int = 0
    evidence: int
    version: int
    method: str = "vector"
    waiting: int = 0
    trained: bool = False
    training: bool = False
    training_s: float = 0.0
    trained_at: float = 0.0
    training_failed: str = ""
    recalled: int = 0
    approximate_recall: float = 1.0
    embedded: int = 0
    kept: int = 0
    decided: dict[str, int] = Field(default_factory=dict[str, int])
    model: str = ""
    model_note: str = ""
    model_share: float = 0.0
    model_calls: int = 0
    model_cost: float = 0.0
    model_failed: dict[str, int] = Field(default_factory=dict[str, int])


class ReportOutcome(Message):
    """What became of a decision. Kept only where the operator asks for it.

    Attributes:
        message: What the user said.
        decided: The agent that was chosen; empty if none was.
        outcome: It was right; it should have been `agent`; or a person had to help.
        agent: The right one, where it was corrected; `none` if nobody here is.
        turn: The turn that it is about.
    """

    message: str = Field(min_length=1, max_length=16_384)
    decided: str = ""
    outcome: Literal["accepted", "corrected", "escalated"]
    agent: str = ""
    channel: str = DEFAULT_CHANNEL
    subset: str = DEFAULT_SUBSET
    turn: Id | None = None


class OutcomeNoted(Message):
    """Whether it is kept; `reason` says why not."""

    kept: bool
    reason: str = ""


class ListOutcomes(Message):
    """What was reported, the latest first.

    Attributes:
        outcome: Of this kind only; None for all.
    """

    outcome: Literal["accepted", "corrected", "escalated"] | None = None
    limit: int = Field(default=100, ge=1, le=1000)


class ReportedOutcome(ReportOutcome):
    """An outcome that was reported.

    Attributes:
        at: Unix seconds.
    """

    at: float = 0.0


class OutcomesListed(Message):
    """What was reported.

    Attributes:
        total: How many are kept, `limit` apart.
        keeps: Whether new ones are kept.
    """

    outcomes: tuple[ReportedOutcome, ...]
    total: int
    keeps: bool


class LintExamples(Message):
    """Which of the registered examples would be misunderstood?

    Attributes:
        channel: Only among agents that serve it; None for all channels.
        subset: Only of this release line; None for all of them.
        limit: How many findings to give at most, the gravest first.
    """

    channel: str | None = None
    subset: str | None = None
    limit: int = Field(default=200, ge=1, le=2000)


class Finding(Message):
    """Something about an agent's capabilities that will mislead the router.

    Attributes:
        kind: `misrouted`: judged by all the other texts, the example goes to another agent;
            `duplicate`: two agents have the same example; `collision`: two capabilities of
            different agents claim each other's examples; `no_examples`; `vague_name`: the
            capability's name says nothing of what it does.
        text: The example that it is about.
        similarity: Cosine of both texts, -1 to 1.
        probability: How likely the router takes it for the other agent's, 0 to 1.
        message: All of this, and what to do, in one sentence.
    """

    kind: Literal["misrouted", "duplicate", "collision", "no_examples", "vague_name"]
    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    text: str = ""
    other_agent: str = ""
    other_subset: str = ""
    other_capability: str = ""
    other_text: str = ""
    similarity: float = 0.0
    probability: float = 0.0
    message: str = ""


class LintFound(Message):
    """What will mislead the router, the gravest first.

    Attributes:
        total: How many findings there are, `limit` apart.
        judged: How many examples were held out and judged by the others.
        misrouted: How many of them went to another agent.
    """

    findings: tuple[Finding, ...]
    total: int
    agents: int
    capabilities: int
    examples: int
    judged: int
    misrouted: int
    encoder: str = ""


class Labelled(Message):
    """A message and the agent that it is for; empty if it is for nobody."""

    message: str = Field(min_length=1, max_length=16_384)
    agent: str = ""


class FitRouter(Message):
    """Set how sure the router must be, by messages whose right agents are known.

    Attributes:
        rows: The messages.
        feedback: Whether to learn from what was reported of this channel, too.
        precision: How many of the messages that are routed shall go to the right agent.
        keep: Whether the router goes on with what was fitted, or only shows it.
        forget: Whether to drop what was fitted for this channel before, instead.
    """

    rows: tuple[Labelled, ...] = Field(default=(), max_length=20_000)
    feedback: bool = False
    channel: str = DEFAULT_CHANNEL
    subset: str = DEFAULT_SUBSET
    precision: float = Field(default=0.95, gt=0, lt=1)
    keep: bool = True
    forget: bool = False


class FitFigures(Message):
    """How the router does on labelled messages; a share is None where nothing is counted.

    Attributes:
        threshold: The least confidence to route with.
        in_scope_at: The least `Decision.in_scope` of a message that counts as in scope.
        temperature: What sharpens scores into probabilities.
        routed: The share of messages in scope that are routed.
        precision: The share of routed messages that go to the right agent.
        rejected: The share of messages for nobody that are not routed.
        error: Expected calibration error of the confidence.
    """

    threshold: float
    in_scope_at: float
    temperature: float
    accuracy: float | None = None
    routed: float | None = None
    precision: float | None = None
    rejected: float | None = None
    error: float | None = None


class Fitted(Message):
    """What was fitted.

    Attributes:
        before: How the router did with what it had.
        after: How it does with what was fitted on the other four fifths of the messages; its
            first three figures are those of all of them.
        rows: How many messages it was fitted on; `strangers` of them are for nobody.
        unknown: Agents of the file that may not be chosen here; their messages were left out.
        kept: Whether the router goes on with it.
        notes: What whoever asked should know.
    """

    before: FitFigures | None = None
    after: FitFigures | None = None
    rows: int = 0
    strangers: int = 0
    reported: int = 0
    unknown: tuple[str, ...] = ()
    kept: bool = False
    encoder: str = ""
    notes: tuple[str, ...] = ()


DECIDE = Endpoint("router", "decide", Decide, Decision)
EMBED = Endpoint("router", "embed", Embed, Embedded)
ROUTER_STATUS = Endpoint("router", "status", RouterStatus, RouterState)
REPORT_OUTCOME = Endpoint("router", "report", ReportOutcome, OutcomeNoted)
LIST_OUTCOMES = Endpoint("router", "reported", ListOutcomes, OutcomesListed)
LINT_EXAMPLES = Endpoint("router", "lint", LintExamples, LintFound)
FIT_ROUTER = Endpoint("router", "fit", FitRouter, Fitted)

# -- carrying a conversation --


class Converse(Message):
    """A user's message.

    Attributes:
        conversation: Its id; the first message creates it. None for a new one.
        turn: Id of this turn; the same again gives the same answer. None for a new one.
        subset: The release line; None for whatever a rollout of the channel gives this
            conversation, which is `stable` without one.
        user: Who speaks.
        agent: Ask this agent, one of the channel's, whatever the router thinks.
        method: How to decide; None for the channel's own way, as for the next two.
        threshold: How sure the router must be, 0 to 1.
        language: What to ask back in, e.g. `de`; by itself what the message is in.
        attributes: What else is known of the user, for rollouts and agents: LMOS's `contextParams`
            of `userContext`.
        parameters: What the agents are told of the way in: those of `systemContext`.
        user_token: What agents may show to others in the user's name; it is never kept.
        anonymization: What stands for what in the message: LMOS's `anonymizationEntities`; never
            kept.
        history: What was said before, for callers that keep it themselves; used with `store`
            false.
        store: Whether the conversation is kept.
        restarts: Whether the caller can be told `restart` and begin the answer anew; one that
            cannot gets an error if an instance dies after its first word.
        parts: Whether a message of several requests may be answered by several agents; None for
            the channel's own way, which is yes without one.
    """

    message: str = Field(min_length=1)
    conversation: Id | None = None
    turn: Id | None = None
    channel: str = DEFAULT_CHANNEL
    subset: str | None = None
    user: str | None = None
    agent: str | None = None
    method: Method | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    language: str | None = Field(default=None, max_length=35)
    attributes: dict[str, str] = Field(default_factory=dict[str, str])
    parameters: dict[str, str] = Field(default_factory=dict[str, str])
    user_token: str | None = Field(default=None, repr=False)
    anonymization: tuple[dict[str, Any], ...] | None = Field(default=None, repr=False)
    history: tuple[Utterance, ...] = ()
    store: bool = True
    restarts: bool = True
    parts: bool | None = None


class AnsweredPart(Message):
    """What became of one of several requests in a message.

    Attributes:
        text: The user's words for it.
        agent: Who answered it, or was to.
        state: `skipped` was not begun: what it needs has failed, or there are too many.
        answer: The agent's words alone, without a heading.
        error: Why it failed, as a problem document.
        needs: The number of the part whose answer it builds on, the first being 0; None if it
            was answered beside the others.
        handovers: As in `Answer`.
        total_s: Seconds that it took.
    """

    text: str
    agent: str
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    instance: str = ""
    state: Literal["done", "failed", "skipped"] = "done"
    answer: str = ""
    error: dict[str, Any] | None = None
    needs: int | None = None
    handovers: tuple[str, ...] = ()
    attempts: int = 1
    total_s: float = 0.0


class Answer(Message):
    """The answer to a message.

    Attributes:
        answer: The whole text.
        agent: Who answered; empty when the mesh asked back. Several: joined by commas, as their
            capabilities and instances are.
        asked_back: No agent was convincing, so the answer names what the mesh could do.
        decision: Why this agent.
        attempts: How many instances were asked.
        anonymization: What stands for what in the answer, where the agent says so; None for what
            the message came with.
        parts: The requests of a message of several, in order, and what became of each; the turn
            has failed only if all of them have. Empty for one request.
        handovers: The agents that handed the turn over, in order; `agent` is who got it at last.
    """

    answer: str
    conversation: str
    turn: str
    agent: str = ""
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    instance: str = ""
    asked_back: bool = False
    decision: Decision | None = None
    attempts: int = 1
    anonymization: tuple[dict[str, Any], ...] | None = Field(default=None, repr=False)
    parts: tuple[AnsweredPart, ...] = ()
    handovers: tuple[str, ...] = ()


class GetConversation(Message):
    """One conversation by id."""

    conversation: Id


class Turn(Message):
    """One request and its answer.

    Attributes:
        state: `running`, `done`, `failed` or `cancelled`.
        began: Unix seconds.
        error: Why it failed, as a problem document.
        parts: As in `Answer`, as is `handovers`.
    """

    turn: str
    message: str
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    answer: str = ""
    agent: str = ""
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    instance: str = ""
    asked_back: bool = False
    began: float = 0.0
    ended: float = 0.0
    attempts: int = 1
    user: str = ""
    error: dict[str, Any] | None = None
    parts: tuple[AnsweredPart, ...] = ()
    handovers: tuple[str, ...] = ()


class Conversation(Message):
    """A conversation, its turns oldest first."""

    conversation: str
    channel: str = DEFAULT_CHANNEL
    turns: tuple[Turn, ...] = ()


class CancelTurn(Message):
    """Call off the running turn of a conversation, or one of a given id."""

    conversation: Id
    turn: Id | None = None


class TurnCancelled(Message):
    """The turn that was called off."""

    conversation: str
    turn: str


class ForgetConversation(Message):
    """Erase a conversation."""

    conversation: Id


class ConversationForgotten(Message):
    """It is erased."""

    conversation: str


CONVERSE = Endpoint("runtime", "converse", Converse, Answer)
GET_CONVERSATION = Endpoint("runtime", "conversation", GetConversation, Conversation)
CANCEL_TURN = Endpoint("runtime", "cancel", CancelTurn, TurnCancelled)
FORGET_CONVERSATION = Endpoint("runtime", "forget", ForgetConversation, ConversationForgotten)


class ReportedPart(Message):
    """How one of several requests in a message went.

    Attributes:
        error: Code of what failed.
    """

    agent: str
    capability: str = ""
    state: Literal["done", "failed", "skipped"] = "done"
    error: str = ""
    handovers: int = 0
    total_s: float = 0.0


class TurnReport(Message):
    """How a turn went: the data of the event `turn_ended` of the runtime. No text of anybody.

    Attributes:
        subset: Release line of the Channel whose Routing was used.
        agent: Who answered; empty when the mesh asked back. Several: joined by commas.
        outcome: `asked_back` is an abstention.
        error: Code of what failed; of a turn that was answered, of the first part that was not.
        first_s: Seconds to the first word; None if none came.
        total_s: Seconds to the last.
        handovers: How often one agent handed over to another.
        parts: The requests of a message of several, in order.
        shadow: Whether the answer was only compared, and nobody has seen it.
        same: Of a shadow: whether it is the answer that the user got; None if one has failed.
        rollout: The rollout that chose the subset; empty if none did.
    """

    conversation: str
    turn: str
    channel: str
    subset: str = DEFAULT_SUBSET
    agent: str = ""
    capability: str = ""
    outcome: Literal["answered", "asked_back", "failed", "cancelled"]
    error: str = ""
    first_s: float | None = None
    total_s: float = 0.0
    handovers: int = 0
    parts: tuple[ReportedPart, ...] = ()
    shadow: bool = False
    same: bool | None = None
    rollout: str = ""


# -- what people apply: channels, rollouts, agents --


class ApplyResource(Message):
    """Keep a resource of `lmos.eclipse/v1`; the tenant that asks must be the resource's own.

    Attributes:
        resource: As in its YAML. Its `status` is left out of account.
        revision: The revision that it replaces, 0 for none; a stale one is refused. None for
            whatever is there.
        dry_run: Whether to check it only, and say what would be changed.
    """

    resource: dict[str, Any]
    revision: int | None = Field(default=None, ge=0)
    dry_run: bool = False


class ResourceApplied(Message):
    """The resource is kept, or would be.

    Attributes:
        what: What became of it.
        before: As it was; None if it is new.
        after: As it is.
        notes: What was filled in, and what whoever applies should know.
    """

    kind: str
    namespace: str
    name: str
    what: Literal["created", "configured", "unchanged"]
    revision: int
    before: dict[str, Any] | None = None
    after: dict[str, Any]
    notes: tuple[str, ...] = ()


class GetResource(Message):
    """One resource.

    Attributes:
        kind: Its kind, plural or short name: `Channel`, `channels`, `ch`.
        revision: As it was then; None for what stands now.
    """

    kind: str
    name: Id
    namespace: Id = "default"
    revision: int | None = None


class FoundResource(Message):
    """A resource as it is kept."""

    resource: dict[str, Any]
    revision: int


class ListResources(Message):
    """Which resources fit; every given condition must hold.

    Attributes:
        kind: Kind, plural or short name; None for all.
        namespace: None for all.
        labels: What the labels must be; a missing `subset` counts as `stable`.
    """

    kind: str | None = None
    namespace: Id | None = None
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class ResourcesListed(Message):
    """The resources that fit, by kind, namespace and name.

    Attributes:
        next: The offset of those that come after these; None if these are the last.
    """

    resources: tuple[dict[str, Any], ...]
    total: int
    next: int | None = None


class DeleteResource(Message):
    """Forget a resource; a Channel takes its Routing with it."""

    kind: str
    name: Id
    namespace: Id = "default"
    revision: int | None = None


class ResourceDeleted(Message):
    """It is forgotten."""

    kind: str
    namespace: str
    name: str
    also: tuple[str, ...] = ()


class GetResourceHistory(Message):
    """The versions of a resource that are kept."""

    kind: str
    name: Id
    namespace: Id = "default"


class ResourceVersion(Message):
    """A resource as it was.

    Attributes:
        at: Unix seconds.
        summary: What it said then, in a few words.
        gone: Whether it was deleted then.
    """

    revision: int
    at: float
    generation: int = 0
    summary: str = ""
    gone: bool = False


class ResourceHistory(Message):
    """The versions that are kept, the latest first."""

    kind: str
    namespace: str
    name: str
    versions: tuple[ResourceVersion, ...]


class RestoreRouting(Message):
    """Put an earlier Routing of a Channel back, and keep it there until it is released.

    Attributes:
        revision: Which one; None for the one before the active one; 0 releases it.
    """

    name: Id
    namespace: Id = "default"
    revision: int | None = Field(default=None, ge=0)


class SteerRollout(Message):
    """Tell a rollout what to do.

    Attributes:
        action: `promote`: on to the next step; `promote_fully`: all traffic at once; `pause`;
            `resume`; `abort`: all traffic back to stable at once; `restart`: from the first step.
        reason: Kept in the audit.
    """

    name: Id
    namespace: Id = "default"
    action: Literal["promote", "promote_fully", "pause", "resume", "abort", "restart"]
    reason: str = Field(default="", max_length=1024)


class SteerAgent(Message):
    """Change how an agent runs, wherever its processes are: on this machine, or in a cluster.

    Attributes:
        action: `scale` to `instances`; `restart` one after the other, each drained; `drain`:
            finish what is running and take nothing more; `stop` all; `start` again.
        instance: Only this one; empty for all of the agent.
    """

    agent: Id
    subset: str = DEFAULT_SUBSET
    action: Literal["scale", "restart", "drain", "stop", "start"]
    instances: int | None = Field(default=None, ge=0, le=1000)
    instance: Id = ""


class AgentSteered(Message):
    """What is being done.

    Attributes:
        where: Who does it: the machines, or the cluster.
        done: Whether it is done; what is not goes on.
        also: Other agents that the same processes serve: it happens to them, too.
    """

    agent: str
    subset: str = DEFAULT_SUBSET
    instances: int | None = None
    where: tuple[str, ...] = ()
    message: str = ""
    done: bool = False
    also: tuple[str, ...] = ()


APPLY_RESOURCE = Endpoint("operator", "apply", ApplyResource, ResourceApplied)
GET_RESOURCE = Endpoint("operator", "get", GetResource, FoundResource)
LIST_RESOURCES = Endpoint("operator", "list", ListResources, ResourcesListed)
DELETE_RESOURCE = Endpoint("operator", "delete", DeleteResource, ResourceDeleted)
GET_RESOURCE_HISTORY = Endpoint("operator", "history", GetResourceHistory, ResourceHistory)
RESTORE_ROUTING = Endpoint("operator", "restore", RestoreRouting, FoundResource)
STEER_ROLLOUT = Endpoint("operator", "rollout", SteerRollout, FoundResource)
STEER_AGENT = Endpoint("operator", "agent", SteerAgent, AgentSteered)

# -- those who start and stop agents --


class RunInstance(Message):
    """One process that serves the agents of a file.

    Attributes:
        instance: Its id; of one that is stopped, the last one.
        started: Unix seconds.
        state: `running`, or `stopped` until somebody starts it again.
    """

    instance: str
    pid: int = 0
    started: float = 0.0
    state: Literal["running", "stopped"] = "running"


class RunAgent(Message):
    """An agent that a file has."""

    name: str
    subset: str = DEFAULT_SUBSET
    version: str = ""


class RunFile(Message):
    """A file whose agents somebody runs; each of its instances serves all of them.

    Attributes:
        revision: Rises whenever the number of its instances is changed.
    """

    file: str
    agents: tuple[RunAgent, ...] = ()
    instances: tuple[RunInstance, ...] = ()
    revision: int = 0


class GetRuns(Message):
    """What a runner runs."""


class Runs(Message):
    """What a runner runs.

    Attributes:
        host: Its machine.
        limit: How many instances of a file it starts at most.
    """

    host: str = ""
    pid: int = 0
    limit: int = 100
    files: tuple[RunFile, ...] = ()


class SteerRun(Message):
    """Change how the agents of a file run; see `SteerAgent`.

    Attributes:
        revision: The one that is known: of another one nothing is changed. None for any.
    """

    file: str
    action: Literal["scale", "restart", "drain", "stop", "start"]
    instances: int | None = Field(default=None, ge=0)
    instance: Id = ""
    revision: int | None = None


class RunSteered(Message):
    """What has become of it.

    Attributes:
        before: How many instances there were.
        instances: How many there are, or will be when it is done.
        done: Whether it is done; what is not goes on.
    """

    file: str
    before: int
    instances: int
    done: bool


GET_RUNS = InstanceEndpoint("runner", "get", GetRuns, Runs)
STEER_RUN = InstanceEndpoint("runner", "steer", SteerRun, RunSteered)
