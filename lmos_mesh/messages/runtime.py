"""What is said to runtimes, and what they report: carrying a conversation."""

from typing import Any, Literal

from pydantic import Field

from lmos_mesh.endpoint import Endpoint, Message
from lmos_mesh.messages.ids import DEFAULT_CHANNEL, Id
from lmos_mesh.messages.router import Decision, Method, Utterance
from lmos_mesh.things import DEFAULT_SUBSET


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
        agent: Who answered it, or was to; empty when the mesh asked back.
        state: `skipped` was not begun: what it needs has failed, or there are too many;
            `asked_back`: nobody was sure who can do this.
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
    state: Literal["done", "failed", "skipped", "asked_back"] = "done"
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
    state: Literal["done", "failed", "skipped", "asked_back"] = "done"
    error: str = ""
    handovers: int = 0
    total_s: float = 0.0


LeftOut = Literal["", "several", "once", "busy"]


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
        left_out: Of a shadow: why the turn was not asked of the other release line, its outcome
            being `cancelled`. It had `several` requests; it must be done only `once`; or too many
            were under way (`busy`).
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
    left_out: LeftOut = ""
    rollout: str = ""
