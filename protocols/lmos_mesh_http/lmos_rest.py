"""The REST contract of the LMOS runtime: its JSON, and what it means on the mesh. Pure."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from lmos_mesh import codec, subjects
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.messages import (
    DEFAULT_CHANNEL,
    Answer,
    Conversation,
    Converse,
    FoundThing,
    Turn,
)
from lmos_mesh.reply_stream import Frame
from lmos_mesh_http import sse
from lmos_mesh_http.errors import fault_of, lmos_body
from lmos_mesh_http.parameters import LONGEST, PATTERN

Name = Annotated[str, Field(min_length=1, max_length=LONGEST, pattern=PATTERN)]


class LmosJson(BaseModel):
    """JSON with names in camel case; what we do not know is ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


class BinaryData(LmosJson):
    """An attachment of a message."""

    mime_type: str
    data_as_base64: str | None = None
    source: str | None = None


class LmosMessage(LmosJson):
    """One message of a chat."""

    role: str
    content: str
    format: str = "text"
    turn_id: str | None = None
    binary_data: tuple[BinaryData, ...] | None = None


class ContextParameter(LmosJson):
    """A fact about the system or the user; agents are told, and rollouts may go by it."""

    key: str
    value: str


class InputContext(LmosJson):
    """What is said: the last message of the user is the one to answer."""

    messages: tuple[LmosMessage, ...] = Field(min_length=1)
    explicit_agent: str | None = Field(default=None, max_length=LONGEST)
    anonymization_entities: tuple[dict[str, Any], ...] | None = None


class SystemContext(LmosJson):
    """The way in."""

    channel_id: Name = DEFAULT_CHANNEL
    context_params: tuple[ContextParameter, ...] | None = None


class UserContext(LmosJson):
    """Who asks."""

    user_id: str | None = Field(default=None, max_length=LONGEST)
    user_token: str | None = Field(default=None, repr=False)
    context_params: tuple[ContextParameter, ...] | None = None


class ChatRequest(LmosJson):
    """A message to a conversation."""

    input_context: InputContext
    system_context: SystemContext = SystemContext()
    user_context: UserContext = UserContext()


class ChatReply(LmosJson):
    """The answer to a message."""

    content: str
    anonymization_entities: tuple[dict[str, Any], ...] = ()


class ListedCapability(LmosJson):
    """What an agent can do."""

    id: str
    name: str
    version: str
    description: str


class Address(LmosJson):
    """Where an agent is reached."""

    protocol: str
    uri: str


class ListedAgent(LmosJson):
    """An agent that is there now."""

    id: str
    name: str
    version: str
    description: str
    capabilities: tuple[ListedCapability, ...] = ()


class AddressedAgent(ListedAgent):
    """An agent and where it is reached."""

    addresses: tuple[Address, ...] = ()


class AgentList(LmosJson):
    """The agents of a release line."""

    subset: str
    agents: tuple[ListedAgent, ...] = ()


class ShownTurn(LmosJson):
    """One message and its answer.

    Attributes:
        state: `running`, `done`, `failed` or `cancelled`.
        began: Unix seconds.
    """

    turn_id: str
    message: str
    state: str
    content: str
    agent: str
    subset: str
    capability: str
    asked_back: bool
    user_id: str
    began: float
    ended: float
    attempts: int
    error: dict[str, Any] | None = None


class ShownConversation(LmosJson):
    """A conversation, its turns oldest first."""

    conversation_id: str
    channel_id: str
    turns: tuple[ShownTurn, ...] = ()


def converse_of(
    request: ChatRequest, *, conversation: str, turn: str, subset: str | None
) -> Converse:
    """The question that a chat request asks of the mesh.

    Raises:
        InvalidMessage: The user says nothing in it, or sends what the mesh cannot carry.
    """
    given = request.input_context
    at, message = _last_of_user(given.messages)
    if message.binary_data:
        reason = "agents take text only; leave binaryData out"
        raise InvalidMessage(
            f"/inputContext/messages/{at}/binaryData: {reason}",
            faults=[{"field": f"/inputContext/messages/{at}/binaryData", "description": reason}],
        )
    return Converse(
        message=message.content,
        conversation=conversation,
        turn=turn,
        subset=subset,
        channel=request.system_context.channel_id,
        user=request.user_context.user_id or None,
        agent=given.explicit_agent or None,
        attributes=_by_key(request.user_context.context_params),
        parameters=_by_key(request.system_context.context_params),
        user_token=request.user_context.user_token,
        anonymization=given.anonymization_entities,
    )


def _by_key(parameters: tuple[ContextParameter, ...] | None) -> dict[str, str]:
    return {one.key: one.value for one in parameters or ()}


def _last_of_user(messages: Sequence[LmosMessage]) -> tuple[int, LmosMessage]:
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if message.role.lower() == "user":
            if message.content.strip():
                return at, message
            raise InvalidMessage(
                f"/inputContext/messages/{at}/content: the message is empty",
                faults=[
                    {
                        "field": f"/inputContext/messages/{at}/content",
                        "description": "is empty",
                    }
                ],
            )
    raise InvalidMessage(
        "/inputContext/messages: none has the role 'user'",
        faults=[{"field": "/inputContext/messages", "description": "none has the role 'user'"}],
    )


def reply_body(request: ChatRequest, answer: Answer) -> bytes:
    """The whole answer as one JSON object."""
    return to_json(_reply(request, answer))


def _reply(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    entities = answer.anonymization
    if entities is None:  # the agent has changed nothing of it
        entities = request.input_context.anonymization_entities
    return {"content": answer.answer, "anonymizationEntities": entities or ()}


class LmosEvents:
    """An answer as server-sent events: `routed`, `status`, `delta`, `restart`, `end`, `error`.

    Their ids are the numbers of the frames on the bus, so they rise; some are left out.
    """

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._seq = 0

    def take(self, frame: Frame) -> bytes:
        """What is told of a frame; nothing for what concerns the bus alone."""
        seq, kind, body = frame
        self._seq = seq
        if kind == "delta":
            return sse.event("delta", seq, b'{"content":%s}' % to_json(body))
        if kind == "status" and isinstance(body, dict):
            return self._status(seq, cast("dict[str, Any]", body))
        if kind == "restart":
            return sse.event("restart", seq, to_json(body))
        if kind == "end":
            return self._end(seq, codec.validate(Answer, body))
        return b""

    def failed(self, error: MeshError) -> bytes:
        """The last event of an answer that will not come."""
        return sse.event("error", self._seq + 1, lmos_body(fault_of(error)))

    def _status(self, seq: int, body: dict[str, Any]) -> bytes:
        state = body.get("state")
        if state == "working":
            return sse.WORKING
        if state == "routed":
            return sse.event("routed", seq, to_json(body.get("decision")))
        return sse.event("status", seq, to_json(body))

    def _end(self, seq: int, answer: Answer) -> bytes:
        told = _reply(self._request, answer) | {
            "conversationId": answer.conversation,
            "turnId": answer.turn,
            "agent": answer.agent,
            "subset": answer.subset,
            "capability": answer.capability,
            "askedBack": answer.asked_back,
            "attempts": answer.attempts,
        }
        if answer.handovers:
            told["handovers"] = answer.handovers
        if answer.parts:
            told["parts"] = [one.model_dump(by_alias=True) for one in answer.parts]
        return sse.event("end", seq, to_json(told))


def listed(thing: FoundThing) -> ListedAgent:
    """An agent as it is listed."""
    return ListedAgent(
        id=thing.name,
        name=thing.name,
        version=thing.version,
        description=thing.summary,
        capabilities=tuple(
            ListedCapability(
                id=one.id, name=one.name, version=one.version, description=one.description
            )
            for one in thing.capabilities
        ),
    )


def addressed(thing: FoundThing, tenant: str) -> AddressedAgent:
    """An agent as it is listed, with the subjects that invoke its capabilities."""
    home = thing.tenant or tenant
    return AddressedAgent(
        **dict(listed(thing)),
        addresses=tuple(
            Address(
                protocol="nats",
                uri="nats:" + subjects.agent_invoke(home, thing.name, thing.subset, one.id),
            )
            for one in thing.capabilities
        ),
    )


def shown(conversation: Conversation) -> ShownConversation:
    """A conversation as it is shown."""
    return ShownConversation(
        conversation_id=conversation.conversation,
        channel_id=conversation.channel,
        turns=tuple(_shown_turn(turn) for turn in conversation.turns),
    )


def _shown_turn(turn: Turn) -> ShownTurn:
    return ShownTurn(
        turn_id=turn.turn,
        message=turn.message,
        state=turn.state,
        content=turn.answer,
        agent=turn.agent,
        subset=turn.subset,
        capability=turn.capability,
        asked_back=turn.asked_back,
        user_id=turn.user,
        began=turn.began,
        ended=turn.ended,
        attempts=turn.attempts,
        error=turn.error,
    )
