"""YAML as far as JSON can say it, with the line of everything, and in bounded time. Pure.

Values are built from the parser's events as they come, so that whatever is too deep, too much or
a reference is refused where it stands, before anything is made of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    import yaml

MOST_DEEP = 64
MOST_DOCUMENTS = 10_000
MOST_VALUES = 1_000_000
MOST_VALUES_SLOWLY = 100_000
"""Where PyYAML has no libyaml, which is ten times as fast."""

_STR, _MAP, _SEQ = (f"tag:yaml.org,2002:{one}" for one in ("str", "map", "seq"))
_NULL = frozenset({"", "~", "null"})
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_MOST_DIGITS = 1000


class YamlFault(ValueError):
    """What cannot be read, and at which line and column.

    Attributes:
        line: From 1; None if it is not known.
    """

    def __init__(self, said: str, *, line: int | None = None) -> None:
        super().__init__(said)
        self.line = line


@dataclass(slots=True)
class Marked:
    """Where something is written, and what is in it.

    Attributes:
        line: From 1; of a member that of its name.
        members: Of an object by name, of an array by number.
    """

    line: int
    members: "dict[str, Marked]" = field(default_factory=dict[str, "Marked"])


@dataclass(slots=True)
class _Open:
    """An object or array whose end has not come yet.

    Attributes:
        name: Of the member whose value comes next; None before its name.
    """

    value: Any
    marked: Marked
    is_object: bool
    name: str | None = None
    at: int = 0

    @property
    def awaits_name(self) -> bool:
        """Whether the name of a member comes next."""
        return self.is_object and self.name is None


def yaml_documents(text: str) -> Iterator[tuple[Any, Marked]]:
    """The documents of a text, one after the other, as they are read.

    Raises:
        YamlFault: It is no YAML, or says what JSON cannot, or is too much.
    """
    import yaml

    fast = bool(getattr(yaml, "__with_libyaml__", False))
    loader: Any = yaml.CSafeLoader if fast else yaml.SafeLoader
    try:
        yield from _documents(text, yaml.parse(text, Loader=loader), fast=fast)
    except yaml.MarkedYAMLError as exc:
        _refuse(_said(exc, text), exc.problem_mark)
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        code = exc.character if isinstance(exc.character, int) else ord(exc.character)
        raise YamlFault(
            f"line {line}: character U+{code:04X} is no text; is this a YAML file?", line=line
        ) from None
    except yaml.YAMLError as exc:
        raise YamlFault(str(exc)) from None


def _documents(text: str, events: Any, *, fast: bool) -> Iterator[tuple[Any, Marked]]:
    import yaml

    most = MOST_VALUES if fast else MOST_VALUES_SLOWLY
    open_: list[_Open] = []
    documents = values = 0
    for event in events:
        kind = cast("Any", type(event))
        if kind is yaml.ScalarEvent:
            if open_ and open_[-1].awaits_name:
                _name(open_[-1], event)
                continue
            done, marked = _scalar(event), Marked(event.start_mark.line + 1)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            _begin(open_, event, {} if kind is yaml.MappingStartEvent else [])
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            ended = open_.pop()
            done, marked = ended.value, ended.marked
        elif kind is yaml.AliasEvent:
            _refuse(
                f"*{event.anchor} is a reference; write out what it stands for", event.start_mark
            )
        elif kind is yaml.DocumentStartEvent:
            documents += 1
            if documents > MOST_DOCUMENTS:
                _refuse(f"there are more than {MOST_DOCUMENTS} documents", event.start_mark)
            continue
        else:
            continue
        values += 1
        if values > most:
            _refuse(f"there are more than {most} values; split the file", event.start_mark)
        if open_:
            _put(open_[-1], done, marked)
        else:
            yield done, marked


def _name(holder: _Open, event: Any) -> None:
    if event.value in holder.value:
        _refuse(f"{event.value!r} is there twice in one object", event.start_mark)
    holder.name, holder.at = event.value, event.start_mark.line + 1


def _begin(open_: list[_Open], event: Any, value: Any) -> None:
    mark = event.start_mark
    if open_ and open_[-1].awaits_name:
        _refuse("the name of a member must be a text", mark)
    if len(open_) >= MOST_DEEP:
        _refuse(f"it is nested more than {MOST_DEEP} deep", mark)
    if event.tag not in (None, "!", _MAP if isinstance(value, dict) else _SEQ):
        _refuse_tag(event)
    open_.append(_Open(value, Marked(mark.line + 1), isinstance(value, dict)))


def _put(holder: _Open, value: Any, marked: Marked) -> None:
    if holder.name is None:
        holder.marked.members[str(len(holder.value))] = marked
        holder.value.append(value)
        return
    marked.line = holder.at
    holder.marked.members[holder.name] = marked
    holder.value[holder.name] = value
    holder.name = None


def _scalar(event: Any) -> Any:
    """A text, unless it is plain and looks like what JSON has besides: `yes` and dates do not."""
    text: str = event.value
    tag: str | None = event.tag
    if tag is None:
        return _plain(text) if event.implicit[0] else text
    if tag in ("!", _STR):
        return text
    value = _plain(text)
    kinds: dict[str, tuple[type, ...]] = {
        "tag:yaml.org,2002:null": (type(None),),
        "tag:yaml.org,2002:bool": (bool,),
        "tag:yaml.org,2002:int": (int,),
        "tag:yaml.org,2002:float": (int, float),
    }
    if not isinstance(value, kinds.get(tag, ())):
        _refuse_tag(event)
    return value


def _plain(text: str) -> Any:
    if text in _NULL:
        return None
    if text == "true" or text == "false":
        return text == "true"
    if text[0] not in "-0123456789":
        return text
    if len(text) <= _MOST_DIGITS:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _refuse_tag(event: Any) -> NoReturn:
    _refuse(f"{event.tag} is no type that JSON has", event.start_mark)


def _refuse(said: str, mark: "yaml.Mark | Any") -> NoReturn:
    at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    raise YamlFault(f"{at}{said}", line=mark.line + 1 if mark is not None else None) from None


def _said(exc: "yaml.MarkedYAMLError", text: str) -> str:
    """What the parser says; and what it leaves out: that a tab is one."""
    mark: Any = exc.problem_mark
    said = exc.problem or exc.context or "it cannot be read"
    if mark is not None:
        at = int(mark.line)
        line = "".join(text.split("\n", at + 1)[at : at + 1])
        before = line[: mark.column + 1]
        if before.endswith("\t") or before[:-1].strip(" ") == "\t":
            return "there is a tab; YAML is indented with spaces"
    return said
