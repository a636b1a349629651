"""What keeps a value from being JSON that every peer reads: where it is, and in words. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

NESTING = 24
# Between the root of a Description and a schema in it.
OUTER_NESTING = 8
LISTED_FAULTS = 64

Fault = dict[str, str]
"""`{"field": JSON Pointer, "description": sentence}`."""


def pointer(*steps: str | int) -> str:
    """The JSON Pointer (RFC 6901) of these steps from the root."""
    return "".join(["/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps])


def quoted(value: object) -> str:
    """A value as a message shows it: short, and of arrays and objects only what they are."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not encodable(value))
        return text if len(text) <= 64 else text[:60] + '..."'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float) and abs(value) < 2**64:
        return str(value)
    return kind_of(value)


def kind_of(value: object) -> str:
    """What a JSON value is, with its article."""
    if value is None:
        return "null"
    for kinds, word in _KINDS_OF_VALUE:
        if isinstance(value, kinds):
            return word
    return f"a Python {type(value).__name__}"


_KINDS_OF_VALUE: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    ((list, tuple), "an array"),
    (Mapping, "an object"),
    (bytes, "bytes"),
)


@dataclass(slots=True)
class Faults:
    """The faults found so far; the list stays readable however bad the input is."""

    _listed: list[Fault] = field(default_factory=list[Fault])
    _more: int = 0

    def add(self, at: str, description: str) -> None:
        """Note one fault at a JSON Pointer."""
        if len(self._listed) < LISTED_FAULTS:
            self._listed.append({"field": at, "description": description})
        else:
            self._more += 1

    def listed(self) -> list[Fault]:
        """Every fault; the last entry counts those left off."""
        if not self._more:
            return list(self._listed)
        return [*self._listed, {"field": "", "description": f"has {self._more} or more others"}]

    @property
    def overflows(self) -> bool:
        """Whether there are more than are listed, so that looking for others is no use."""
        return self._more > 0

    def __bool__(self) -> bool:
        return bool(self._listed)


def check_json(value: object, at: str, found: Faults, *, nesting: int = NESTING) -> None:
    """Note what keeps a value from being JSON that every peer can read."""
    if not _is_json(value, nesting):
        _explain_json(value, at, found, nesting)


def _is_json(value: object, nesting: int) -> bool:
    # On the path of every registration: ten times as fast as saying where and why.
    if isinstance(value, str):
        return value.isascii() or encodable(value)
    if isinstance(value, dict):
        if nesting < 0:
            return False
        for key, item in cast("dict[object, object]", value).items():
            if not isinstance(key, str) or not (key.isascii() or encodable(key)):
                return False
            if not _is_json(item, nesting - 1):
                return False
        return True
    if isinstance(value, list | tuple):
        if nesting < 0:
            return False
        for item in cast("list[object]", value):  # noqa: SIM110  # a generator takes twice as long
            if not _is_json(item, nesting - 1):
                return False
        return True
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, float) and math.isfinite(value)


def _explain_json(value: object, at: str, found: Faults, nesting: int) -> None:
    if nesting < 0 and isinstance(value, dict | list | tuple):
        found.add(at, "is nested too deeply")
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, str):
        if not encodable(value):
            found.add(at, "is not Unicode text: it has half of a surrogate pair")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            found.add(at, "is an integer of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            found.add(at, "must be a finite number")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(cast("list[object]", value)):
            _explain_json(item, f"{at}/{index}", found, nesting - 1)
    elif isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            if not isinstance(key, str) or not encodable(key):
                found.add(at, f"has the member name {quoted(key)}, which is not Unicode text")
            else:
                _explain_json(item, at + pointer(key), found, nesting - 1)
    else:
        found.add(at, f"must be a JSON value, not {kind_of(value)}")


def encodable(value: object) -> bool:
    """Whether a value is no text, or text that has UTF-8."""
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
