"""JSONPath (RFC 9535) over Descriptions, at a cost that nobody's query can drive up without bound.

Pure. Nodes and comparisons are counted, and a query that takes too many is given up; regular
expressions run in linear time. Still it may take seconds: call it in a thread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast, overload

import jsonschema_rs
from jsonpath import JSONPath, JSONPathEnvironment, JSONPathError, JSONPathMatch
from jsonpath.filter import (
    BaseExpression,
    FilterQuery,
    InfixExpression,
    RelativeFilterQuery,
    StringLiteral,
)
from jsonpath.function_extensions import ExpressionType, FilterFunction
from jsonpath.segments import JSONPathChildSegment
from jsonpath.selectors import Filter

from lmos_mesh.errors import InvalidMessage
from lmos_mesh.membership import Entered

LONGEST = 4096
MOST_STEPS = 3_000_000
"""Two to three microseconds each. All nodes of ten thousand Descriptions are about a million."""

_STEPS_TO_DESCRIBE = 10

_REGEX_BYTES = 1 << 20

_steps_left: ContextVar[list[int]] = ContextVar("_steps_left")


class BadPath(ValueError):
    """A text that is no JSONPath; the message says why."""


class _TooManySteps(Exception):
    """The query is given up."""


def checked_filter(text: str) -> str | None:
    """What is wrong with a filter for `fitting`; None if nothing is."""
    return _fault(_as_query(text))


def fitting(things: Iterable[Entered], text: str, *, steps: int = MOST_STEPS) -> list[Entered]:
    """Those whose Descriptions fit a filter, e.g. `$[?@.title == 'billing']`.

    The filter may also stand alone: `@.title == 'billing'`.

    Raises:
        InvalidMessage: It is no JSONPath, or takes too long.
    """
    path = _path_of(_as_query(text), "/jsonpath")
    named = _named(path)
    with_budget = _steps_left.set([steps])
    try:
        return [
            one
            for one in (things if not named else [one for one in things if _is_named(one, named)])
            if next(iter(path.finditer([_description(one)])), None) is not None
        ]
    except _TooManySteps:
        raise _too_long("/jsonpath", steps) from None
    except JSONPathError as exc:
        raise _refusal("/jsonpath", str(exc.message)) from None
    finally:
        _steps_left.reset(with_budget)


def search(
    things: Sequence[Entered], query: str, limit: int, *, steps: int = MOST_STEPS
) -> tuple[list[Any], int]:
    """What a JSONPath selects in the array of all Descriptions, and how much there is of it.

    Args:
        things: In the order of that array.
        query: E.g. `$[?@.title == 'billing'].id`.
        limit: How many values to give at most.
        steps: How many nodes and comparisons the query may take.

    Raises:
        InvalidMessage: It is no JSONPath, or takes too long.
    """
    path = _path_of(query, "/query")
    everything = _Descriptions(things)
    values: list[Any] = []
    total = 0
    with_budget = _steps_left.set([steps])
    try:
        for node in path.finditer(cast("Any", everything)):
            if node.obj is everything:
                raise _refusal("/query", "selects the whole array; select something in it")
            total += 1
            if len(values) < limit:
                values.append(node.obj)
    except _TooManySteps:
        raise _too_long("/query", steps) from None
    except JSONPathError as exc:
        raise _refusal("/query", str(exc.message)) from None
    finally:
        _steps_left.reset(with_budget)
    return values, total


def _named(path: JSONPath) -> dict[str, str]:
    """What a filter wants the `id` or the `title` to be.

    Looked at first, they cost next to nothing; to make a whole Description only to compare its
    title takes the longest of all.
    """
    wanted: dict[str, str] = {}
    first = path.segments[0] if path.segments else None
    if isinstance(first, JSONPathChildSegment) and len(first.selectors) == 1:
        (selector,) = first.selectors
        if isinstance(selector, Filter):
            pending: list[BaseExpression] = [selector.expression.expression]
            while pending:
                one = pending.pop()
                if not isinstance(one, InfixExpression):
                    continue
                if one.operator == "&&":
                    pending += (one.left, one.right)
                elif one.operator == "==":
                    wanted |= _compared(one.left, one.right) | _compared(one.right, one.left)
    return wanted


def _compared(query: BaseExpression, value: BaseExpression) -> dict[str, str]:
    if isinstance(query, RelativeFilterQuery) and isinstance(value, StringLiteral):
        for member in ("id", "title"):
            if str(query) == f"@['{member}']":
                return {member: str(value.value)}
    return {}


def _is_named(one: Entered, wanted: Mapping[str, str]) -> bool:
    thing = one.thing
    for member, value in wanted.items():
        if member in thing.omitted:
            return False
        held = thing.terms.get(member)
        if held is None:
            held = one.id if member == "id" else thing.title or thing.name
        if held != value:
            return False
    return True


def _as_query(text: str) -> str:
    stated = text.strip()
    return stated if stated.startswith("$") else f"$[?{stated}]"


def _fault(query: str) -> str | None:
    try:
        _compiled(query)
    except BadPath as exc:
        return str(exc)
    return None


def _path_of(query: str, field: str) -> "_Path":
    try:
        return _compiled(query)
    except BadPath as exc:
        raise _refusal(field, str(exc)) from None


def _refusal(field: str, said: str) -> InvalidMessage:
    return InvalidMessage(
        f"{field}: {said}", field=field, faults=[{"field": field, "description": said}]
    )


def _too_long(field: str, steps: int) -> InvalidMessage:
    return _refusal(field, f"takes more than {steps} steps; select more narrowly, or by `find`")


@lru_cache(maxsize=256)
def _compiled(query: str) -> "_Path":
    if len(query) > LONGEST:
        raise BadPath(f"has {len(query)} characters, and {LONGEST} is the limit")
    try:
        path = _ENVIRONMENT.compile(query)
    except JSONPathError as exc:
        at = ""
        if exc.token is not None:
            place = exc.token.index
            at = f" at character {place + 1}" if 0 <= place < len(query) else " at its end"
        raise BadPath(f"is not a JSONPath (RFC 9535){at}: {exc.message}") from None
    except RecursionError:
        raise BadPath("is nested too deeply") from None
    if not isinstance(path, JSONPath):
        raise BadPath("is more than one JSONPath (RFC 9535)")
    return _counting(path)


def _spend(steps: int = 1) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise _TooManySteps


def _description(one: Entered) -> dict[str, Any]:
    _spend(_STEPS_TO_DESCRIBE)
    return one.description


class _Descriptions(Sequence[Any]):
    """The array of Descriptions; each is made when it is looked at, since all are too much."""

    def __init__(self, things: Sequence[Entered]) -> None:
        self._things = things

    def __len__(self) -> int:
        return len(self._things)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Descriptions(self._things[index])
        return _description(self._things[index])

    def __iter__(self) -> Iterator[Any]:
        return map(_description, self._things)


class _Node(JSONPathMatch):
    """A node without what nobody asks for here: its parent, its path and its children."""

    __slots__ = ()

    def new_child(self, obj: object, key: int | str) -> JSONPathMatch:
        _spend()
        return _Node(
            filter_context=self._filter_context,
            obj=obj,
            parent=None,
            path="",
            parts=(),
            root=self.root,
        )

    def add_child(self, *children: JSONPathMatch) -> None:
        pass


class _Path(JSONPath):
    """A path of which every node is counted, also inside of filters."""

    __slots__ = ()

    def finditer(
        self, data: Any, *, filter_context: Mapping[str, Any] | None = None
    ) -> Iterable[JSONPathMatch]:
        _spend()
        # Whatever a filter looks at, `$` is the argument of the whole query.
        context = filter_context or {"root": data}
        nodes: Iterable[JSONPathMatch] = (
            _Node(
                filter_context=context,
                obj=data,
                parent=None,
                path="",
                parts=(),
                root=context["root"],
            ),
        )
        for segment in self.segments:
            nodes = segment.resolve(nodes)
        return nodes


def _counting(path: JSONPath) -> _Path:
    for segment in path.segments:
        for selector in segment.selectors:
            if isinstance(selector, Filter):
                _count_in(selector.expression)
    return _Path(env=path.env, segments=path.segments)


def _count_in(expression: BaseExpression) -> None:
    if isinstance(expression, FilterQuery):
        expression.path = _counting(expression.path)
        return
    for child in expression.children():
        _count_in(child)


class _Environment(JSONPathEnvironment):
    def setup_function_extensions(self) -> None:
        super().setup_function_extensions()
        self.function_extensions["match"] = _Regex("^(?:{})$")
        self.function_extensions["search"] = _Regex("{}")

    def compare(self, left: object, operator: str, right: object) -> bool:
        _spend()
        return super().compare(left, operator, right)


class _Regex(FilterFunction):
    """`match` and `search` in linear time, by the engine that checks our schemas."""

    def __init__(self, frame: str) -> None:
        self._frame = frame

    @property
    def arg_types(self) -> list[ExpressionType]:
        return [ExpressionType.VALUE, ExpressionType.VALUE]

    @property
    def return_type(self) -> ExpressionType:
        return ExpressionType.LOGICAL

    def __call__(self, value: object, pattern: object) -> bool:
        if not isinstance(value, str) or not isinstance(pattern, str):
            return False
        _spend(1 + len(value) // 100)
        known = _regex(self._frame, pattern)
        try:
            return known is not None and known.is_valid(value)
        except UnicodeEncodeError:
            return False  # half of a surrogate pair is no character that a pattern could match


@lru_cache(maxsize=256)
def _regex(frame: str, pattern: str) -> Any:
    """What tells whether a text fits; None for what is no I-Regexp (RFC 9485), which fits nothing.

    In a Description a pattern may be anything, so as RFC 9535 wants it, this is no error.
    """
    schema = {"pattern": frame.format(_with_dots(pattern))}
    limits = jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES)
    try:
        return jsonschema_rs.validator_for(schema, pattern_options=limits)
    except ValueError:
        return None


def _with_dots(pattern: str) -> str:
    """The pattern with dots that match no line break, as RFC 9485 wants it."""
    parts: list[str] = []
    escaped = in_class = False
    for character in pattern:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "[":
            in_class = True
        elif character == "]":
            in_class = False
        elif character == "." and not in_class:
            parts.append(r"[^\n\r]")
            continue
        parts.append(character)
    return "".join(parts)


_ENVIRONMENT = _Environment(strict=True)
