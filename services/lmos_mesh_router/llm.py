"""A language model's part in a decision: the question, what its answer is worth, what next. Pure.

An `Inquiry` is one question on its way. It is handed what came back and returns what to do: ask
again, take the answer, or go on without one. It asks at most once more, and never believes a
model that names something it was not told of.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from lmos_mesh_router.prompts import Card, Prompt

REPLY_BYTES = 256 * 1024
"""More than this is no answer to our question; it is not read to its end."""

_REASON_CHARS = 300
_REQUIREMENTS = 5
_REQUIREMENT_CHARS = 300
_TOLD_BACK_CHARS = 1_000
_OBJECTS_TRIED = 64
_ENUMERATED = 100

Failure = Literal[
    "unreachable",
    "timeout",
    "rate_limited",
    "refused",
    "server_error",
    "bad_reply",
    "budget",
    "busy",
]
"""Why a model did not help."""


# -- what a model answers --


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The agent that a model chose.

    Attributes:
        card: None if it chose none.
        capability: The id of one of its capabilities; empty if the model named none of them.
        could_be: The agents that it could not tell apart.
    """

    card: Card | None = None
    capability: str = ""
    could_be: tuple[Card, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What is needed, in a model's words; nothing if nothing was asked for."""

    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoHelp:
    """No model decided.

    Attributes:
        note: Why, as the end of a sentence.
    """

    failure: Failure
    note: str


Answer = Choice | Requirements | NoHelp


class Unusable(ValueError):
    """A reply that cannot be used; the message tells the model why."""


# -- how a server likes to be asked --

Form = Literal["json_schema", "json_object", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server understands; learned from what it refuses.

    Attributes:
        form: How it is told to answer in JSON: by a schema, by asking, or by the prompt alone.
        limit: What it calls the most tokens it may write.
        temperature: Whether it may be told to choose the likeliest words.
    """

    form: Form = "json_schema"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True

    def after(self, complaint: str) -> "Dialect | None":
        """How to ask after a refusal; None if it was not about the way of asking."""
        said = complaint.lower()
        if "max_completion_tokens" in said and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if "temperature" in said and self.temperature:
            return replace(self, temperature=False)
        if self.form != "text" and (not said.strip() or _ABOUT_FORM.search(said)):
            return replace(self, form="json_object" if self.form == "json_schema" else "text")
        return None


_ABOUT_FORM = re.compile(r"response_?format|json|schema|structured|grammar|guided|extra_forbidden")


# -- one question --


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came back.

    Attributes:
        status: Of HTTP; 0 if nothing came, and `text` says why.
        text: The body.
        wait_s: How long the server asks to wait; None if it does not.
        whole: Whether all of it was read.
    """

    status: int
    text: str = field(repr=False)
    wait_s: float | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send the inquiry's request, after a pause."""

    inquiry: "Inquiry"
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """One question to a model, on its way.

    Attributes:
        told: What was said after the prompt: a bad reply, and what is wrong with it.
        retried: Whether it has been asked once more already.
    """

    prompt: Prompt
    model: str
    dialect: Dialect = field(default_factory=Dialect)
    most_tokens: int = 500
    told: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    retried: bool = False

    def request(self) -> dict[str, Any]:
        """The body to send to `chat/completions`."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.prompt.system},
                {"role": "user", "content": self.prompt.user},
                *({"role": role, "content": content} for role, content in self.told),
            ],
            self.dialect.limit: self.most_tokens,
        }
        if self.dialect.temperature:
            body["temperature"] = 0
        if self.dialect.form == "json_schema":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": self.prompt.task,
                    "strict": True,
                    "schema": schema_for(self.prompt),
                },
            }
        elif self.dialect.form == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def received(self, reply: Received, *, left_s: float) -> Ask | Answer:
        """What to do now.

        Args:
            reply: What came back.
            left_s: Seconds until nobody waits any more.
        """
        if reply.status == 200:
            return self._answered(reply)
        if reply.status in (400, 404, 415, 422, 501):
            dialect = self.dialect.after(_complaint(reply.text))
            if dialect is not None and (reply.status != 404 or _complaint(reply.text)):
                return Ask(inquiry=replace(self, dialect=dialect))
        if reply.status == 429:
            return self._limited(reply, left_s)
        if reply.status == 0 or reply.status >= 500 or reply.status in (408, 409, 425):
            failure: Failure = "server_error" if reply.status else "unreachable"
            note = (
                f"the language model's server answered {_status(reply)}"
                if reply.status
                else f"the language model is not reachable: {shown(reply.text)}"
            )
            pause_s = min(reply.wait_s or _PAUSE_S, 60.0)
            if self.retried or pause_s >= left_s:
                return NoHelp(failure=failure, note=note)
            return Ask(inquiry=replace(self, retried=True), pause_s=pause_s)
        why = f"{_status(reply)}{_remedy(reply.status)}"
        return NoHelp(failure="refused", note=f"the language model's server refused with {why}")

    def _limited(self, reply: Received, left_s: float) -> Ask | NoHelp:
        pause_s = reply.wait_s if reply.wait_s is not None else 1.0
        if self.retried or pause_s >= left_s:
            said = f", to be asked again in {pause_s:g} s" if reply.wait_s is not None else ""
            return NoHelp(
                failure="rate_limited",
                note=f"the language model's server has too much to do (429{said})",
            )
        return Ask(inquiry=replace(self, retried=True), pause_s=pause_s)

    def _answered(self, reply: Received) -> Ask | Answer:
        content = ""
        try:
            if not reply.whole:
                raise Unusable(f"the reply has more than {REPLY_BYTES:,} bytes")
            content = content_of(reply.text)
            return read(content, self.prompt)
        except Unusable as fault:
            note = f"the language model gave no usable answer: {shown(str(fault))}"
            if self.retried:
                return NoHelp(failure="bad_reply", note=note)
            told = (
                ("assistant", _sendable(content)[:_TOLD_BACK_CHARS] or "(nothing)"),
                ("user", _mended(fault, self.prompt)),
            )
            return Ask(inquiry=replace(self, told=told, retried=True))


_PAUSE_S = 0.1


def _mended(fault: Unusable, prompt: Prompt) -> str:
    said = f"That cannot be used: {shown(str(fault))}. Answer with the one JSON object only."
    if prompt.task == "classify":
        labels = json.dumps(list(prompt.labels), ensure_ascii=False)
        said += f" The agents are {labels}; if it is none of them, `agent` is null."
    return said


def _status(reply: Received) -> str:
    complaint = shown(_complaint(reply.text))
    return f"{reply.status}: {complaint}" if complaint else str(reply.status)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return " (check LMOS_ROUTER_LLM_API_KEY)"
    if status == 404:
        return " (check LMOS_ROUTER_LLM_BASE_URL and LMOS_ROUTER_LLM_MODEL)"
    if 300 <= status < 400:
        return " (it wants to send us elsewhere; name the right LMOS_ROUTER_LLM_BASE_URL)"
    return ""


def _complaint(text: str) -> str:
    """What a server says is wrong, whatever its form of saying so."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text[:_REASON_CHARS]
    if isinstance(body, dict):
        said = cast("dict[str, Any]", body)
        error = said.get("error", said.get("detail", said.get("message", said)))
        if isinstance(error, dict):
            told = cast("dict[str, Any]", error)
            parts = [told.get("message"), told.get("param"), told.get("code")]
            return " ".join(str(part)[:_REASON_CHARS] for part in parts if part)
        return str(error)[: 2 * _REASON_CHARS]
    return text[:_REASON_CHARS]


# -- what it may answer --


def schema_for(prompt: Prompt) -> dict[str, Any]:
    """The JSON Schema of an answer, within what strict structured output allows."""
    if prompt.task == "extract":
        return _object({"requirements": {"type": "array", "items": {"type": "string"}}})
    labels = list(prompt.labels)
    ids = list(
        dict.fromkeys(one.id for card in prompt.labels.values() for one in card.capabilities)
    )
    capability: dict[str, Any] = {"type": ["string", "null"]}
    if ids and len(ids) + 2 * len(labels) <= _ENUMERATED:
        capability["enum"] = [*ids, None]
    return _object(
        {
            "reason": {"type": "string"},
            "could_be": {"type": "array", "items": {"type": "string", "enum": labels}},
            "agent": {"type": ["string", "null"], "enum": [*labels, None]},
            "capability": capability,
        }
    )


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def content_of(text: str) -> str:
    """The words of a chat completion.

    Raises:
        Unusable: There are none.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable("the server's reply is not JSON") from None
    match body:
        case {"choices": [{"message": {**message}, **choice}, *_]}:
            said = cast("dict[str, Any]", message)
            ended = cast("dict[str, Any]", choice).get("finish_reason")
        case {"choices": []}:
            raise Unusable("the reply holds no choice")
        case _:
            raise Unusable("the server's reply is no chat completion")
    content = said.get("content")
    if isinstance(content, list):
        texts = [_text_of(part) for part in cast("list[Any]", content)]
        content = "".join(texts)
    if isinstance(content, str) and content.strip():
        return content
    if isinstance(refusal := said.get("refusal"), str) and refusal:
        raise Unusable(f"it was refused: {refusal[:_REASON_CHARS]}")
    if said.get("tool_calls") or said.get("function_call"):
        raise Unusable("a tool was called where an answer was asked for")
    if ended == "length":
        raise Unusable("the answer was cut off before it began")
    raise Unusable("the answer is empty")


def _text_of(part: Any) -> str:
    match part:
        case {"text": str(text)}:
            return text
        case _:
            return ""


def read(content: str, prompt: Prompt) -> Choice | Requirements:
    """What a model answered, checked.

    Raises:
        Unusable: It is not what was asked for.
    """
    member = "agent" if prompt.task == "classify" else "requirements"
    answer = _object_with(member, content)
    if prompt.task == "extract":
        return _requirements(answer["requirements"])
    could_be = answer.get("could_be")
    if not isinstance(could_be, list):
        if could_be is not None:
            raise Unusable("`could_be` must be an array of agents")
        could_be = []
    reason = answer.get("reason")
    card = None if answer["agent"] is None else _card(answer["agent"], prompt)
    if card is not None and answer.get("subset") not in (None, "", card.subset):
        raise Unusable(f"the agent {card.agent} is not offered in that subset")
    others: dict[str, Card] = {}
    for one in cast("list[Any]", could_be):
        other = _card(one, prompt)
        others.setdefault(f"{other.agent}@{other.subset}", other)
    return Choice(
        card=card,
        capability=_capability(answer.get("capability"), card),
        could_be=tuple(others.values()),
        reason=shown(reason) if isinstance(reason, str) else "",
    )


def _card(said: Any, prompt: Prompt) -> Card:
    if not isinstance(said, str):
        raise Unusable("an agent must be named by a string, or be null")
    name = said.strip()
    if name in prompt.labels:
        return prompt.labels[name]
    alike = [label for label in prompt.labels if label.casefold() == name.casefold()]
    if len(alike) == 1:
        return prompt.labels[alike[0]]
    raise Unusable(f"there is no agent {json.dumps(name[:80], ensure_ascii=False)} in the list")


def _capability(said: Any, card: Card | None) -> str:
    """A slip here costs nothing: the search knows the capability that fits best."""
    if card is None or not isinstance(said, str):
        return ""
    return next((one.id for one in card.capabilities if said in (one.id, one.name)), "")


def _requirements(said: Any) -> Requirements:
    if not isinstance(said, list):
        raise Unusable("`requirements` must be an array of sentences")
    texts: list[str] = []
    for one in cast("list[Any]", said):
        if not isinstance(one, str):
            raise Unusable("`requirements` must be an array of sentences")
        text = shown(one)[:_REQUIREMENT_CHARS]
        if text and text not in texts:
            texts.append(text)
    return Requirements(texts=tuple(texts[:_REQUIREMENTS]))


_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_DECODER = json.JSONDecoder()


def _object_with(member: str, content: str) -> dict[str, Any]:
    """The last JSON object in a text that has a member; models like to talk around it."""
    text = _THOUGHTS.sub("", content)
    found: dict[str, Any] | None = None
    at = text.find("{")
    for _ in range(_OBJECTS_TRIED):
        if at < 0:
            break
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if member in value:
                found = value
        at = text.find("{", end)
    if found is None:
        raise Unusable(f"it holds no JSON object with the member `{member}`")
    return found


_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]+")


def shown(text: str) -> str:
    """A stranger's words, fit for a table, a log and one sentence of ours."""
    said = " ".join(_CONTROLS.sub(" ", _sendable(text[: 4 * _REASON_CHARS])).split())
    return said if len(said) <= _REASON_CHARS else f"{said[: _REASON_CHARS - 1]}…"


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# -- when a server is left alone --

_FAILURES_IN_A_ROW = 3
_REST_S = 5.0
_LONGEST_REST_S = 300.0


class Breaker:
    """Leaves a server alone that asked for it, or that failed time and again."""

    def __init__(self) -> None:
        self._failed = 0
        self._until = 0.0
        self._why = ""
        self._failure: Failure = "unreachable"

    def resting(self, *, now: float) -> NoHelp | None:
        """Why not to ask now; None if it may be asked."""
        if now >= self._until:
            return None
        note = f"{self._why}; it is asked again in {self._until - now:.0f} s"
        return NoHelp(failure=self._failure, note=note)

    def heard(self, reply: Received | None, *, now: float) -> None:
        """Note what came back; None for nothing in time."""
        if reply is not None and reply.status == 429 and reply.wait_s:
            why = "the language model's server asked for a pause"
            self._rest(reply.wait_s, why, "rate_limited", now)
        elif reply is None or reply.status == 0 or reply.status >= 500:
            self._failed += 1
            if self._failed >= _FAILURES_IN_A_ROW:
                # Whoever asks after the pause finds out; if that fails too, the next one follows.
                why = f"the language model failed {self._failed} times in a row"
                self._rest(_REST_S, why, "unreachable", now)
        else:
            self._failed = 0

    def _rest(self, rest_s: float, why: str, failure: Failure, now: float) -> None:
        self._until = max(self._until, now + min(rest_s, _LONGEST_REST_S))
        self._why, self._failure = why, failure
