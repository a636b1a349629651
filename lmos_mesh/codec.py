"""How messages become bytes: msgpack, or JSON for whoever speaks JSON.

The first byte tells them apart: a JSON text begins with white space, `{` or `[`; a msgpack
map or array never does.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import ormsgpack
from pydantic import ValidationError
from pydantic_core import to_json

from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.wrong_fields import told, wrong_fields

MessageT = TypeVar("MessageT", bound=Message)

_JSON_STARTS = frozenset(b" \t\r\n{[")


@dataclass(frozen=True, slots=True)
class Packed:
    """A reply that is msgpack already, for whoever can make it so with less work than `encode`.

    It may be given to a caller who takes msgpack, and no frames.
    """

    payload: bytes


def is_json(payload: bytes) -> bool:
    """Whether the sender speaks JSON."""
    return bool(payload) and payload[0] in _JSON_STARTS


def encode(message: Message, *, as_json: bool = False) -> bytes:
    """A message as msgpack, or as JSON without the fields that are null."""
    if as_json:
        return message.model_dump_json(by_alias=True, exclude_none=True).encode()
    if _is_plain(type(message)):
        return ormsgpack.packb(message, option=ormsgpack.OPT_SERIALIZE_PYDANTIC)
    return ormsgpack.packb(message.model_dump(by_alias=True))


def encode_value(value: Any, *, as_json: bool = False) -> bytes:
    """Any JSON-like value as msgpack or JSON."""
    return to_json(value) if as_json else ormsgpack.packb(value)


def decode(kind: type[MessageT], payload: bytes) -> MessageT:
    """The message in a payload.

    Raises:
        InvalidMessage: It is no message of this kind; every wrong field is named.
    """
    try:
        if is_json(payload):
            return kind.model_validate_json(payload)
        # As `model_validate`, without looking at its many options.
        return kind.__pydantic_validator__.validate_python(_unpack(payload))
    except ValidationError as exc:
        value = None
        with suppress(InvalidMessage):
            value = decode_value(payload)
        raise _invalid(exc, value) from None


def decode_value(payload: bytes) -> Any:
    """The JSON-like value in a payload; None for an empty one.

    Raises:
        InvalidMessage: It is neither JSON nor msgpack.
    """
    if is_json(payload):
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as exc:
            raise InvalidMessage(f"not JSON: {exc}") from None
    return _unpack(payload) if payload else None


def validate(kind: type[MessageT], value: Any, *, at: str = "") -> MessageT:
    """The message that an already decoded value is, at a JSON Pointer of what was sent.

    Raises:
        InvalidMessage: It is no message of this kind; every wrong field is named.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc, value, at) from None


def _unpack(payload: bytes) -> Any:
    if not payload:
        return {}
    try:
        return ormsgpack.unpackb(payload)
    except ValueError as exc:
        raise InvalidMessage(
            f"neither JSON nor msgpack: {exc}", hint="send a JSON object or a msgpack map"
        ) from None


def _invalid(exc: ValidationError, value: Any, at: str = "") -> InvalidMessage:
    faults = wrong_fields(exc, value, at=at)
    return InvalidMessage(f"the message cannot be used: {told(faults)}", faults=faults)


@cache
def _is_plain(kind: type[Message]) -> bool:
    """Whether msgpack may read the model's fields directly: no alias, nothing computed or hidden.

    The direct way is seven times faster and ignores all of these, in every model inside as well.
    """
    pending: list[Any] = [kind.__pydantic_core_schema__]
    while pending:
        schema = pending.pop()
        if isinstance(schema, Mapping):
            told = cast("Mapping[str, Any]", schema)
            # Without a type it maps the names of fields, which may be called as they like.
            known = isinstance(told.get("type"), str)
            if known and any(told.get(name) for name in _NOT_PLAIN):
                return False
            pending.extend(told[name] for name in told if not known or name not in _NO_SCHEMA)
        elif isinstance(schema, list | tuple):
            pending.extend(cast("Sequence[Any]", schema))
    return True


_NOT_PLAIN = (
    "serialization",
    "serialization_alias",
    "serialization_exclude",
    "computed_fields",
    "root_model",
)
_NO_SCHEMA = ("metadata", "default", "expected")
