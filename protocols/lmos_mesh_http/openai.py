"""The chat surface that OpenAI clients speak, and what it means on the mesh. Pure.

What the mesh cannot do is refused where ignoring it would mislead (several choices, a forced
tool, a promised JSON schema, attachments) and ignored where it would not (sampling parameters,
offered tools).
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from lmos_mesh import codec
from lmos_mesh.errors import InvalidMessage, MeshError, StreamBroken
from lmos_mesh.messages import Answer, Converse, FoundThing, Utterance
from lmos_mesh.reply_stream import Frame
from lmos_mesh_http import sse
from lmos_mesh_http.errors import fault_of, openai_body

AUTO = "auto"
OWNER = "lmos-mesh"

# An agent's words are not counted in tokens; made-up numbers would be billed or budgeted by.
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

_DONE = sse.data(b"[DONE]")


class OpenAIJson(BaseModel):
    """JSON of an OpenAI client; what we do not know is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ContentPart(OpenAIJson):
    """A part of a message; only text is taken."""

    type: str
    text: str | None = None


class ChatMessage(OpenAIJson):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | tuple[ContentPart, ...] | None = None


class StreamOptions(OpenAIJson):
    """What a stream has besides the words."""

    include_usage: bool | None = None


class ResponseFormat(OpenAIJson):
    """The form of the answer; agents choose theirs, so only `text` is possible."""

    type: str


class ChatCompletionRequest(OpenAIJson):
    """A chat to be continued.

    Attributes:
        model: An agent's name, or `auto` to have the mesh find one.
        n: One answer at a time; more are refused.
        tools: Offered tools are ignored: agents bring their own.
        tool_choice: A forced tool is refused.
        user: Who speaks, for rollouts and agents.
        metadata: What else is known of them, likewise.
    """

    model: str = Field(min_length=1)
    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    tools: tuple[Any, ...] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class Model(OpenAIJson):
    """An agent, as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = OWNER


class ModelList(OpenAIJson):
    """All that can be named as `model`."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


class Usage(OpenAIJson):
    """Always zero: the mesh does not count tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class AnswerMessage(OpenAIJson):
    """What was answered."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(OpenAIJson):
    """The one answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop"] = "stop"


class Provenance(OpenAIJson):
    """Our addition: who answered, and in which conversation."""

    agent: str
    subset: str
    capability: str
    conversation: str
    turn: str
    asked_back: bool
    attempts: int


class ChatCompletion(OpenAIJson):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    lmos: Provenance


def converse_of(
    request: ChatCompletionRequest,
    *,
    channel: str,
    subset: str | None,
    conversation: str | None = None,
    turn: str | None = None,
) -> Converse:
    """The question that a chat asks of the mesh.

    Args:
        request: The chat.
        channel: The way in.
        subset: The release line; None for what rollouts say.
        conversation: Where the mesh keeps the history; None if the client keeps it, in which
            case its messages are the history and nothing is stored.
        turn: Id of this turn, for a client that repeats it.

    Raises:
        InvalidMessage: It asks for what the mesh cannot do, or the user says nothing.
    """
    _check(request)
    said = [
        (at, message.role, text)
        for at, message in enumerate(request.messages)
        if (text := _text(message, at)).strip() and message.role not in ("tool", "function")
    ]
    last = next((one for one in reversed(said) if one[1] == "user"), None)
    if last is None:
        raise _refused("/messages", "no message of the user has any text")
    history = () if conversation else tuple(_uttered(one) for one in said if one is not last)
    return Converse(
        message=last[2],
        conversation=conversation,
        turn=turn,
        channel=channel,
        subset=subset,
        user=request.user or None,
        attributes=request.metadata or {},
        agent=None if request.model == AUTO else request.model,
        history=history,
        store=conversation is not None,
        restarts=not request.stream,
    )


def _uttered(said: tuple[int, str, str]) -> Utterance:
    _, role, text = said
    if role == "assistant" or role == "user":
        return Utterance(role=role, content=text)
    return Utterance(role="system", content=text)


def _check(request: ChatCompletionRequest) -> None:
    if request.n is not None and request.n != 1:
        raise _refused("/n", f"{request.n} answers were asked for; the mesh gives one")
    forced = isinstance(request.tool_choice, dict) or request.tool_choice == "required"
    if forced:
        raise _refused("/tool_choice", "agents bring their own tools; yours cannot be forced")
    wanted = request.response_format
    if wanted is not None and wanted.type != "text":
        raise _refused(
            "/response_format", f"the mesh cannot promise {wanted.type!r}; agents choose their form"
        )


def _text(message: ChatMessage, at: int) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type == "text" and part.text is not None:
            texts.append(part.text)
        elif part.type != "refusal":
            raise _refused(
                f"/messages/{at}/content/{index}", f"is {part.type!r}; agents take text only"
            )
    return "".join(texts)


def _refused(field: str, reason: str) -> InvalidMessage:
    return InvalidMessage(f"{field}: {reason}", faults=[{"field": field, "description": reason}])


def completion_body(answer: Answer, *, id: str, created: int, model: str) -> bytes:
    """The whole answer as one JSON object."""
    return to_json(
        {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model if answer.parts else answer.agent or model,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": answer.answer,
                        "refusal": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
            "lmos": _provenance(answer),
        }
    )


def _provenance(answer: Answer) -> dict[str, Any]:
    return {
        "agent": answer.agent,
        "subset": answer.subset,
        "capability": answer.capability,
        "conversation": answer.conversation,
        "turn": answer.turn,
        "asked_back": answer.asked_back,
        "attempts": answer.attempts,
        **_together(answer),
    }


def _together(answer: Answer) -> dict[str, Any]:
    """How several agents came to the answer, if they did."""
    found: dict[str, Any] = {}
    if answer.handovers:
        found["handovers"] = answer.handovers
    if answer.parts:
        found["parts"] = [one.model_dump(mode="json") for one in answer.parts]
    return found


class ChatChunks:
    """An answer as chat.completion.chunk events.

    Nothing is told before the first word, so that what fails until then has an HTTP status, by
    which the client decides whether to try again.
    """

    def __init__(self, *, id: str, created: int, model: str, include_usage: bool) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._include_usage = include_usage
        self._said: list[str] = []
        self._before = b""
        self._after = b""

    def take(self, frame: Frame) -> bytes:
        """What is told of a frame; nothing for what these clients have no words for."""
        _, kind, body = frame
        if kind == "delta":
            return self._delta(str(body))
        if kind == "end":
            return self._end(codec.validate(Answer, body))
        if kind == "status" and isinstance(body, dict):
            return self._status(cast("dict[str, Any]", body))
        if kind == "restart":
            raise StreamBroken("the answer began anew, which this client cannot take")
        return b""

    def failed(self, error: MeshError) -> bytes:
        """The last event of an answer that will not come. With [DONE] it would seem whole."""
        return sse.data(openai_body(fault_of(error)))

    def _status(self, body: dict[str, Any]) -> bytes:
        if body.get("state") == "routed" and not self._before:
            decision: dict[str, Any] = body.get("decision") or {}
            self._model = str(decision.get("agent") or self._model)
        elif body.get("state") == "handed_over" and "part" not in body and not self._before:
            self._model = str(body.get("to") or self._model)
        return sse.WORKING if body.get("state") == "working" else b""

    def _delta(self, text: str) -> bytes:
        first = b"" if self._before else self._begin()
        self._said.append(text)
        return first + self._before + to_json(text) + self._after

    def _begin(self) -> bytes:
        whole = self._chunk({"role": "assistant", "content": "", "refusal": None})
        # The rest of a chunk is the same for every word; it is made once.
        self._before, _, self._after = self._chunk({"content": "\0"}).rpartition(b'"\\u0000"')
        return whole

    def _end(self, answer: Answer) -> bytes:
        said = "".join(self._said)
        parts: list[bytes] = []
        # An answer that was not streamed, or only its beginning.
        if rest := answer.answer[len(said) :] if answer.answer.startswith(said) else "":
            parts.append(self._delta(rest))
        elif not self._before:
            parts.append(self._begin())
        parts.append(self._chunk({}, finish="stop", lmos=_provenance(answer)))
        if self._include_usage:
            parts.append(sse.data(to_json(self._members() | {"choices": [], "usage": _USAGE})))
        parts.append(_DONE)
        return b"".join(parts)

    def _members(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = self._members() | {"choices": [choice]} | more
        if self._include_usage:
            chunk["usage"] = None
        return sse.data(to_json(chunk))


def models_of(things: Sequence[FoundThing]) -> ModelList:
    """All that can be named as `model`: `auto` first."""
    names = {thing.name: thing for thing in things if thing.name != AUTO}
    return ModelList(data=(Model(id=AUTO), *(model_of(names[name]) for name in sorted(names))))


def model_of(thing: FoundThing) -> Model:
    """An agent as a model; it was created when its oldest instance started."""
    started = [one.started for one in thing.instances if one.started > 0]
    return Model(id=thing.name, created=int(min(started, default=0)))
