"""How an agent's action is asked for: its input, and beside it who asks, in which conversation.

The payload is the input as the action's schema has it, so that anybody can write one by hand;
the member `lmos:context` is optional. Pure.
"""

from collections.abc import Mapping
from typing import Any, cast

from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.messages import Utterance
from lmos_mesh.things import Capability

CONTEXT = "lmos:context"
MESSAGE = "message"


class Circumstances(Message):
    """Who asks, and what was said before.

    Attributes:
        message: The user's own words.
        history: Oldest first.
    """

    message: str = ""
    conversation: str = ""
    turn: str = ""
    channel: str = ""
    user: str = ""
    history: tuple[Utterance, ...] = ()


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
    from lmos_mesh.codec import validate

    return given, validate(Circumstances, context, at=f"/{CONTEXT}")
