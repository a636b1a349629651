"""How an agent's action is asked for: its input, and beside it who asks, in which conversation.

The payload is the input as the action's schema has it, so that anybody can write one by hand;
the member `lmos:context` is optional. A property is written with its value alone. Pure.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field

from lmos_mesh import codec
from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.messages import Utterance
from lmos_mesh.things import Capability

CONTEXT = "lmos:context"
MESSAGE = "message"
ANONYMIZATION = "anonymization"
"""The member of a status frame with which an agent says what stands for what in its answer."""

_ASCII = 0x80


class Circumstances(Message):
    """Who asks, and what was said before.

    Attributes:
        message: The user's own words.
        subset: The release line whose agents answer.
        history: Oldest first.
        settings: What the channel says of its answers, e.g. `answers: short`.
        parameters: What is known of the way in.
        attributes: What is known of the user, besides the id.
        user_token: What may be shown to others in the user's name.
        anonymization: What stands for what in the message: objects with `type`, `value` and
            `replacement`; None if the caller said nothing of it.
        handovers: The agents that have handed the request over, in order.
        shadow: Whether nobody will see the answer, which is only compared with another one.
    """

    message: str = ""
    conversation: str = ""
    turn: str = ""
    channel: str = ""
    subset: str = ""
    user: str = ""
    history: tuple[Utterance, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    parameters: dict[str, str] = Field(default_factory=dict[str, str])
    attributes: dict[str, str] = Field(default_factory=dict[str, str])
    user_token: str | None = Field(default=None, repr=False)
    anonymization: tuple[dict[str, Any], ...] | None = Field(default=None, repr=False)
    handovers: tuple[str, ...] = ()
    shadow: bool = False


def input_for(capability: Capability, message: str) -> dict[str, Any]:
    """The input of a capability that a user's words alone can give.

    Raises:
        InvalidMessage: It needs more than one text.
    """
    schema = capability.input or {}
    properties = _members(schema.get("properties"))
    listed = schema.get("required")
    required = [str(one) for one in cast("list[Any]", listed)] if isinstance(listed, list) else []
    texts = [name for name, of in properties.items() if _takes_text(of)]
    named = [name for name in texts if name in required] or texts
    chosen = named[0] if named else None
    missing = [name for name in required if name != chosen]
    if missing:
        raise InvalidMessage(
            f"capability {capability.id!r} needs {', '.join(missing)}, which a message alone "
            "does not give",
            hint="invoke its action with all of its input",
        )
    if properties and chosen is None:
        return {}
    return {chosen or MESSAGE: message}


def _members(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _takes_text(schema: Any) -> bool:
    """Whether any words will do; a date or one of a few words is not what a message is."""
    given = _members(schema)
    if not given.keys().isdisjoint(("enum", "const", "format", "pattern")):
        return False
    choices = given.get("anyOf") or given.get("oneOf")
    if isinstance(choices, list):
        return any(_takes_text(one) for one in cast("list[Any]", choices))
    kind = given.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def split(payload: Any) -> tuple[dict[str, Any], Circumstances]:
    """An action's input and its circumstances.

    Raises:
        InvalidMessage: The payload is no object, or its context is malformed.
    """
    if payload is None:
        return {}, Circumstances()
    if isinstance(payload, str):
        return {MESSAGE: payload}, Circumstances(message=payload)
    if not isinstance(payload, Mapping):
        raise InvalidMessage("an action's input must be an object", field="")
    given = dict(cast("Mapping[str, Any]", payload))
    context = given.pop(CONTEXT, None)
    if context is None:
        return given, Circumstances()
    return given, codec.validate(Circumstances, context, at=f"/{CONTEXT}")


def written_as_json(payload: bytes) -> bool:
    """Whether a value is written as JSON, be it a bare number; nothing at all counts as JSON.

    JSON texts begin with ASCII. In msgpack only whole numbers from 0 to 127 do, so that these are
    written as JSON.
    """
    return not payload or payload[0] < _ASCII


def value_of(payload: bytes) -> Any:
    """The value that a property is given.

    Raises:
        InvalidMessage: There is none, or it is neither JSON nor msgpack.
    """
    if not payload:
        raise InvalidMessage("there is no value to write", hint="send it as JSON")
    if not written_as_json(payload):
        return codec.decode_value(payload)
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise InvalidMessage(
            f"the value is not JSON: {exc}", hint='texts stand in quotes: "hello"'
        ) from None
