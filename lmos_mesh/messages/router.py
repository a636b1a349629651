"""What is said to routers: which agent should answer, and how it went."""

from typing import Literal

from pydantic import Field

from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.messages.ids import DEFAULT_CHANNEL, Id
from lmos_mesh.things import DEFAULT_SUBSET


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
    """One of several requests in a message, and who it is for.

    Attributes:
        outcome: As in `Decision`; what nobody is sure about is a part as well.
        agent: Empty unless routed.
        candidates: Who was considered, where nobody is sure.
    """

    text: str
    agent: str = ""
    subset: str = DEFAULT_SUBSET
    capability: str = ""
    confidence: float = 0.0
    outcome: Literal["routed", "unsure", "out_of_scope", "nobody"] = "routed"
    candidates: tuple[Candidate, ...] = ()


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
