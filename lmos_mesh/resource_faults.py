"""What is wrong with a resource that somebody wrote, member by member, all of it at once. Pure."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, cast

from pydantic import ValidationError

from lmos_mesh.json_faults import Fault, kind_of, pointer, quoted
from lmos_mesh.resource_schemas import parts_of
from lmos_mesh.resources import (
    API_VERSION,
    CHANNEL_LABEL,
    KINDS,
    Analysis,
    Canary,
    Channel,
    ChannelRollout,
    Resource,
)
from lmos_mesh.semver import BadVersion, Range, Version
from lmos_mesh.wrong_fields import wrong_fields

_UNKNOWN = "Extra inputs are not permitted"
_NO_TEXT = "must be a string"
_LABEL_LENGTH = 253
MOST_ITEMS = 1000
"""How many items any array of a resource may have, and members any object."""
MOST_VALUES = 50_000
MOST_DEEP = 32
MOST_FAULTS = 100
"""How many faults are told; for so many, there is one reason."""
_MEANT = 20
_VERSIONED: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "Agent": ("providedCapabilities", Version.parse),
    "Channel": ("requiredCapabilities", Range.parse),
}


def resource_faults(value: Mapping[str, Any]) -> list[Fault]:
    """Every reason to refuse a resource: a JSON Pointer to the `field`, and a `description`."""
    return read_resource(value)[1]


def read_resource(value: Mapping[str, Any]) -> tuple[Resource | None, list[Fault]]:
    """A resource as it was written; None, and why, if it cannot be used."""
    if value.get("apiVersion") != API_VERSION:
        said = f"must be {quoted(API_VERSION)}, not {quoted(value.get('apiVersion'))}"
        return None, [_fault("/apiVersion", said)]
    given = value.get("kind")
    model = KINDS.get(given) if isinstance(given, str) else None
    if model is None:
        known = ", ".join(KINDS)
        return None, [_fault("/kind", f"must be one of {known}, not {quoted(given)}")]
    if too_much := _of_extent(value):
        return None, [too_much]
    read, faults = _read(value, model)
    if len(faults) > MOST_FAULTS:
        more = _fault("", f"has {len(faults) - MOST_FAULTS} more faults")
        return None, [*faults[:MOST_FAULTS], more]
    return read, faults


def _read(value: Mapping[str, Any], model: type[Resource]) -> tuple[Resource | None, list[Fault]]:
    faults = list(_of_texts(value, kind=model.__name__))
    try:
        # What became of it is the operator's to say, and is not taken from anybody else.
        read = model.model_validate({**value, "status": None})
    except ValidationError as exc:
        found = wrong_fields(exc, value)
        # What may have been meant takes long to find out.
        meant = [_told(one, value, model) for one in found[:_MEANT]]
        return None, [*meant, *found[_MEANT:], *faults]
    faults += _MEANING.get(model, _nothing)(read)
    return (None if faults else read), faults


def _of_extent(value: Mapping[str, Any]) -> Fault | None:
    """Why a resource is too large to be looked at; None if it is not."""
    level: list[tuple[str, Any]] = [("", value)]
    values = deep = 0
    while level:
        deep += 1
        inner: list[tuple[str, Any]] = []
        for at, held in level:
            one = cast("Mapping[Any, Any] | list[Any]", held)
            if deep > MOST_DEEP:
                return _fault(at, f"is nested more than {MOST_DEEP} deep")
            if len(one) > MOST_ITEMS:
                kind = "members" if isinstance(one, Mapping) else "items"
                return _fault(at, f"has {len(one)} {kind}, and {MOST_ITEMS} are the most")
            values += len(one)
            if values > MOST_VALUES:
                return _fault("", f"has more than {MOST_VALUES} values in all")
            named = one.items() if isinstance(one, Mapping) else enumerate(one)
            pairs = cast("Iterable[tuple[Any, Any]]", named)
            for name, each in pairs:
                if isinstance(each, Mapping | list | tuple):
                    inner.append((at + pointer(name), cast("Any", each)))
        level = inner
    return None


def _of_texts(value: Mapping[str, Any], *, kind: str) -> Iterator[Fault]:
    """What is wrong with texts that are there, whatever else is wrong."""
    labels = _at(value, "/metadata/labels")
    known = cast("Mapping[str, Any]", labels if isinstance(labels, Mapping) else {})
    is_place = isinstance(value.get("metadata"), Mapping) and labels in (None, known)
    if kind == Channel.__name__ and is_place and not known.get(CHANNEL_LABEL):
        said = f"`{CHANNEL_LABEL}` is missing: which channel of the tenant this is"
        yield _fault("/metadata/labels", said)
    for name, label in known.items():
        if isinstance(label, str) and len(label) > _LABEL_LENGTH:
            at = pointer("metadata", "labels", name)
            yield _fault(at, f"must have at most {_LABEL_LENGTH} characters")
    if kind not in _VERSIONED:
        return
    member, parse = _VERSIONED[kind]
    listed = _at(value, pointer("spec", member))
    for index, one in enumerate(cast("list[Any]", listed) if isinstance(listed, list) else ()):
        text = _at(one, "/version")
        if isinstance(text, str):
            yield from _unless(parse, text, pointer("spec", member, index, "version"))


def _of_rollout(read: Resource) -> Iterator[Fault]:
    assert isinstance(read, ChannelRollout)
    found = read.spec.strategy
    for name, one in (
        ("canary", found.canary),
        ("shadow", found.shadow),
        ("blueGreen", found.blue_green),
    ):
        if one is None:
            continue
        at = pointer("spec", "strategy", name)
        if one.canary_channel.name == one.stable_channel.name:
            said = f"is {quoted(one.canary_channel.name)}, as the stable one; two are needed"
            yield _fault(f"{at}/canaryChannel/name", said)
        yield from _of_analysis(one.analysis, f"{at}/analysis")
    if found.canary is not None:
        yield from _of_weights(found.canary)


def _of_weights(canary: Canary) -> Iterator[Fault]:
    at = pointer("spec", "strategy", "canary")
    weights = [step.weight for step in canary.steps]
    for index, (before, weight) in enumerate(pairwise(weights), start=1):
        if weight < before:
            said = f"is {weight}, less than the {before} before it: weights rise, `abort` goes back"
            yield _fault(at + pointer("steps", index, "weight"), said)
    new, old = canary.canary_channel.weight, canary.stable_channel.weight
    # With steps these two are of no account, and one that is not given is the rest.
    if not weights and new and old and new + old != 100:
        said = f"is {new}, and that of stableChannel {old}: they must be 100 together"
        yield _fault(f"{at}/canaryChannel/weight", said)


def _of_analysis(analysis: Analysis | None, at: str) -> Iterator[Fault]:
    for index, check in enumerate(analysis.checks if analysis else ()):
        if check.metric != "custom":
            continue
        if not check.event:
            said = "needs `event`, the `{thing}.{event}` that carries the figure"
            yield _fault(f"{at}/checks/{index}", said)
        elif len(check.event.split(".")) != 2:
            said = f"must be `thing.event`, which {quoted(check.event)} is not"
            yield _fault(f"{at}/checks/{index}/event", said)


def _nothing(read: Resource) -> Iterator[Fault]:
    del read
    return iter(())


_MEANING: Mapping[type[Resource], Callable[[Resource], Iterator[Fault]]] = {
    ChannelRollout: _of_rollout,
}


def _unless(parse: Callable[[str], object], text: str, at: str) -> Iterator[Fault]:
    try:
        parse(text)
    except BadVersion as exc:
        yield _fault(at, str(exc))


def _fault(at: str, description: str) -> Fault:
    return {"field": at, "description": description}


def _told(fault: Fault, value: Mapping[str, Any], model: type[Resource]) -> Fault:
    """A fault with what may have been meant."""
    at, said = fault["field"], fault["description"]
    if said == _UNKNOWN:
        member = at.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        # The same name elsewhere, in a status say, is no help.
        others = [one for one in _members(model) if one != member]
        near = difflib.get_close_matches(member, others, n=1, cutoff=0.75)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        return _fault(at, f"is no member of {_owner(at, model)}{meant}")
    if said == _NO_TEXT:
        found = _at(value, at)
        if isinstance(found, int | float):
            return _fault(at, f"{said}, not {kind_of(found)}; put it in quotes")
    return fault


def _owner(at: str, model: type[Resource]) -> str:
    """In words, what a pointer's member is in."""
    steps = at.split("/")[1:-1]
    named = [one for one in steps if not one.isdecimal()]
    return f"`{named[-1]}`" if named else f"the kind {model.model_fields['kind'].default}"


def _at(value: Any, at: str) -> Any:
    for step in at.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(name)
        elif isinstance(value, list) and name.isdecimal():
            value = cast("list[Any]", value)[int(name)]
        else:
            return None
    return value


@cache
def _members(model: type[Resource]) -> tuple[str, ...]:
    """The names of all members of a kind and of what is in it."""
    return tuple(
        dict.fromkeys(
            field.alias or name
            for part in parts_of(model).values()
            for name, field in part.model_fields.items()
        )
    )
