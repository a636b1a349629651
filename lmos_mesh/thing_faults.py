"""Every reason to refuse a Thing, so that who refuses one names all its faults at once. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from lmos_mesh.endpoint import Message
from lmos_mesh.errors import InvalidDescription
from lmos_mesh.json_faults import (
    NESTING,
    OUTER_NESTING,
    Fault,
    Faults,
    check_json,
    encodable,
    kind_of,
    quoted,
)
from lmos_mesh.semver import BadVersion, Version
from lmos_mesh.things import IN_PROPERTY, KINDS, OUR_IDS, Capability, Thing, named

NAME_BYTES = 128
ID_BYTES = 512
DESCRIPTION_BYTES = 8 * 1024
EXAMPLE_BYTES = 4 * 1024
CAPABILITIES = 256
EXAMPLES = 1_000
TAGS = 64
CHANNELS = 256
TENANTS = 1_024
AFFORDANCES = 1_024
LINKS = 256
# A Thing and its Description each fit into one NATS message of the usual 1 MiB.
THING_BYTES = 256 * 1024
DOCUMENT_BYTES = 960 * 1024

# Control characters and line separators: they break tables, logs and prompts.
_UNNAMEABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+\Z")

# `model_fields` is computed anew at each access.
_FIELDS: dict[type[Message], frozenset[str]] = {
    model: frozenset(model.model_fields) for model in (Capability, Thing)
}


def thing_from(raw: Mapping[str, Any]) -> Thing:
    """The Thing that decoded JSON or msgpack describes.

    Raises:
        InvalidDescription: It breaks the rules; every fault is listed.
    """
    if faults := faults_of(raw):
        raise InvalidDescription.of(label_of(raw), faults)
    return Thing.model_validate(raw)


def faults_of(thing: Mapping[str, Any] | Thing) -> list[Fault]:
    """Every reason to refuse a Thing: a JSON Pointer to the `field`, and a `description`.

    What has no faults is taken by `Thing`.
    """
    found = Faults()
    raw: Any = thing.model_dump() if isinstance(thing, Thing) else thing
    if isinstance(raw, Mapping):
        _check_thing(cast("Mapping[Any, Any]", raw), found)
    else:
        found.add("", f"must be an object, not {kind_of(raw)}")
    return found.listed()


def label_of(raw: Mapping[str, Any]) -> str:
    """What to call a Thing in a message, whatever it looks like."""
    name, kind = raw.get("name"), raw.get("kind", "agent")
    word = kind if isinstance(kind, str) and kind in KINDS else "thing"
    return f"{word} {quoted(name)}" if isinstance(name, str) and name else f"{word} without a name"


def _check_thing(raw: Mapping[Any, Any], found: Faults) -> None:
    _check_names(raw, found)
    if raw.get("kind", "agent") not in KINDS:
        found.add("/kind", f'must be "agent", "tool" or "thing", not {quoted(raw["kind"])}')
    _check_version(raw, "", found)
    if "description" in raw:
        _check_text(raw["description"], "/description", found, limit=DESCRIPTION_BYTES)
    if "capabilities" in raw:
        _check_capabilities(raw["capabilities"], found)
    _check_affordances(raw, found)
    for name, limit in (("supported_channels", CHANNELS), ("supported_tenants", TENANTS)):
        if name in raw:
            _check_texts(raw[name], f"/{name}", found, count=limit, limit=NAME_BYTES)
    if "metadata" in raw:
        _check_object(raw["metadata"], "/metadata", found)
    if "external" in raw:
        _check_boolean(raw["external"], "/external", found)
    _check_terms(raw, found)
    _check_unknown(raw, Thing, "", found)
    if not found and (size := _size_of(raw)) > THING_BYTES:
        found.add("", f"takes {size} bytes as JSON, and {THING_BYTES} is the limit; shorten it")


def _check_names(raw: Mapping[Any, Any], found: Faults) -> None:
    plain = raw.get("kind") == "thing"
    if "name" not in raw:
        found.add("/name", "is missing; a Thing needs a name")
    elif plain:
        _check_id(raw["name"], "/name", found)
    else:
        _check_name(raw["name"], "/name", found)
    for name in ("tenant", "subset"):
        if name in raw:
            _check_name(raw[name], f"/{name}", found)
    for name in ("title", "origin"):
        if raw.get(name, "") != "":
            _check_name(raw[name], f"/{name}", found)
    stated = raw.get("id", "")
    if not plain and raw.get("title") and (stated or raw.get("origin")):
        found.add("/title", "is the name of what has an id or an origin of its own; leave it out")
    if stated == "":
        return
    if plain:
        found.add("/id", "is the name of a thing; leave it out")
    elif isinstance(stated, str) and stated.startswith(OUR_IDS) and not raw.get("origin"):
        found.add("/id", "follows from tenant, name and subset; leave it out")
    else:
        _check_id(stated, "/id", found)


def _check_id(value: object, at: str, found: Faults) -> None:
    if _check_text(value, at, found, limit=ID_BYTES) and not _URI.match(cast("str", value)):
        found.add(at, f"{quoted(value)} is no absolute URI, e.g. urn:uuid:… or https://…")


def _check_affordances(raw: Mapping[Any, Any], found: Faults) -> None:
    for several, check in (("properties", _check_property), ("events", _check_event)):
        seen: dict[str, int] = {}
        for index, item in _items(raw.get(several, ()), f"/{several}", found, count=AFFORDANCES):
            at = f"/{several}/{index}"
            if not isinstance(item, Mapping):
                found.add(at, f"must be an object, not {kind_of(item)}")
                continue
            one = cast("Mapping[Any, Any]", item)
            if "name" not in one:
                found.add(f"{at}/name", "is missing")
            elif _check_name(one["name"], f"{at}/name", found) and (
                (first := seen.setdefault(one["name"], index)) != index
            ):
                found.add(
                    f"{at}/name", f"{quoted(one['name'])} is there already, as number {first}"
                )
            if "description" in one:
                _check_text(one["description"], f"{at}/description", found, limit=DESCRIPTION_BYTES)
            check(one, at, found)
    for index, item in _items(raw.get("links", ()), "/links", found, count=LINKS):
        _check_object(item, f"/links/{index}", found)


def _check_property(raw: Mapping[Any, Any], at: str, found: Faults) -> None:
    for name in ("readable", "writable", "observable"):
        if name in raw:
            _check_boolean(raw[name], f"{at}/{name}", found)
    if raw.get("readable") is False and not raw.get("writable"):
        found.add(f"{at}/readable", "is false, and it is not writable either; nobody could use it")
    schema = raw.get("schema", {})
    _check_object(schema, f"{at}/schema", found)
    if isinstance(schema, dict):
        for name in cast("dict[Any, Any]", schema).keys() & IN_PROPERTY:
            found.add(f"{at}/schema/{name}", "is said by the property itself; leave it out")


def _check_event(raw: Mapping[Any, Any], at: str, found: Faults) -> None:
    if raw.get("data") is not None:
        _check_object(raw["data"], f"{at}/data", found)


def _check_terms(raw: Mapping[Any, Any], found: Faults) -> None:
    terms = raw.get("terms", {})
    if isinstance(terms, dict):
        check_json(cast("object", terms), "/terms", found, nesting=NESTING + OUTER_NESTING)
    else:
        found.add("/terms", f"must be an object, not {kind_of(terms)}")
        return
    for index, item in _items(raw.get("omitted", ()), "/omitted", found, count=AFFORDANCES):
        _check_text(item, f"/omitted/{index}", found, limit=ID_BYTES)
    # Of what we do not answer for, we cannot say how it is reached.
    plain = raw.get("kind") == "thing"
    foreign = (
        {"properties": "properties", "events": "events"} if plain or raw.get("external") else {}
    )
    if plain:
        foreign["capabilities"] = "actions"
    for member, term in foreign.items():
        if raw.get(member) and term not in terms:
            found.add(
                f"/{member}", "cannot say how it is reached; register its Description instead"
            )


def _check_capabilities(value: object, found: Faults) -> None:
    seen: dict[str, int] = {}
    for index, item in _items(value, "/capabilities", found, count=CAPABILITIES):
        at = f"/capabilities/{index}"
        if not isinstance(item, Mapping):
            found.add(at, f"must be an object, not {kind_of(item)}")
            continue
        raw = cast("Mapping[Any, Any]", item)
        _check_capability(raw, at, found)
        known_as = named(raw).get("id")
        if not isinstance(known_as, str) or not known_as:
            continue
        if (first := seen.setdefault(known_as, index)) != index:
            given = "id" if raw.get("id") else "name"
            found.add(
                f"{at}/{given}",
                f"{quoted(known_as)} is the id of capability {first} already; ids are unique",
            )


def _check_capability(raw: Mapping[Any, Any], at: str, found: Faults) -> None:
    if not raw.get("id") and not raw.get("name"):
        found.add(f"{at}/id", "is empty, and so is the name; give the capability one of them")
    for name in ("id", "name"):
        # Absent or empty is fine as long as the other one is there.
        if name in raw and raw[name] != "":
            _check_name(raw[name], f"{at}/{name}", found)
    _check_version(raw, at, found)
    if "description" in raw:
        _check_text(raw["description"], f"{at}/description", found, limit=DESCRIPTION_BYTES)
    for name, count, limit in (("examples", EXAMPLES, EXAMPLE_BYTES), ("tags", TAGS, NAME_BYTES)):
        if name in raw:
            _check_texts(raw[name], f"{at}/{name}", found, count=count, limit=limit)
    if "idempotent" in raw:
        _check_boolean(raw["idempotent"], f"{at}/idempotent", found)
    for name in ("input", "output"):
        if raw.get(name) is not None:
            _check_object(raw[name], f"{at}/{name}", found)
    _check_unknown(raw, Capability, at, found)


def _check_version(raw: Mapping[Any, Any], at: str, found: Faults) -> None:
    if "version" not in raw:
        return
    value = raw["version"]
    if not isinstance(value, str):
        found.add(f"{at}/version", f"must be a string like 1.4.2, not {kind_of(value)}")
        return
    try:
        Version.parse(value)
    except BadVersion as exc:
        found.add(f"{at}/version", str(exc))


def nameable(value: object) -> bool:
    """Whether a value can be a name in the mesh."""
    return not _named_wrongly(value)


def describable(value: object) -> bool:
    """Whether a value can be the description of a Thing or of a part of it."""
    return _check_text(value, "", Faults(), limit=DESCRIPTION_BYTES)


def _check_name(value: object, at: str, found: Faults) -> bool:
    if wrong := _named_wrongly(value):
        found.add(at, wrong)
    return not wrong


def _named_wrongly(value: object) -> str:
    found = Faults()
    if not _check_text(value, "", found, limit=NAME_BYTES):
        return found.listed()[0]["description"]
    text = cast("str", value)
    if not text.strip():
        return "is empty"
    if _UNNAMEABLE.search(text):
        return f"{quoted(text)} has a control character or a line break"
    return "" if text == text.strip() else f"{quoted(text)} begins or ends with a space"


def _check_text(value: object, at: str, found: Faults, *, limit: int) -> bool:
    if not isinstance(value, str):
        found.add(at, f"must be a string, not {kind_of(value)}")
    elif not encodable(value):
        found.add(at, "is not Unicode text: it has half of a surrogate pair")
    elif (size := len(value) if value.isascii() else len(value.encode())) > limit:
        found.add(at, f"takes {size} bytes of UTF-8, and {limit} is the limit; shorten it")
    else:
        return True
    return False


def _check_texts(value: object, at: str, found: Faults, *, count: int, limit: int) -> None:
    seen: dict[str, int] = {}
    for index, item in _items(value, at, found, count=count):
        if not _check_text(item, f"{at}/{index}", found, limit=limit):
            continue
        text = cast("str", item).strip()
        if not text:
            found.add(f"{at}/{index}", "is empty")
        elif (first := seen.setdefault(text, index)) != index:
            found.add(f"{at}/{index}", f"{quoted(text)} is there already, as number {first}")


def _items(value: object, at: str, found: Faults, *, count: int) -> Iterator[tuple[int, object]]:
    """The items of an array with their indices; none if it is no array or too long a one."""
    if not isinstance(value, list | tuple):
        found.add(at, f"must be an array, not {kind_of(value)}")
        return
    items = cast("list[object]", value)
    if len(items) > count:
        found.add(at, f"has {len(items)} entries, and {count} is the limit")
        return
    for index, item in enumerate(items):
        if found.overflows:
            return
        yield index, item


def _check_object(value: object, at: str, found: Faults) -> None:
    if isinstance(value, dict):
        check_json(cast("object", value), at, found)
    else:
        found.add(at, f"must be an object, not {kind_of(value)}")


def _check_boolean(value: object, at: str, found: Faults) -> None:
    if not isinstance(value, bool):
        found.add(at, f"must be true or false, not {kind_of(value)}")


def _check_unknown(raw: Mapping[Any, Any], model: type[Message], at: str, found: Faults) -> None:
    """Members that a newer peer may know are kept, so they have to be JSON."""
    known = _FIELDS[model]
    unknown = {name: value for name, value in raw.items() if name not in known}
    if unknown:
        check_json(unknown, at, found, nesting=NESTING + 1)


def _size_of(raw: Mapping[Any, Any]) -> int:
    # What is in the terms as well is there once only.
    counted = {name: raw[name] for name in raw if name not in (raw.get("terms") or ())}
    # Mappings of other kinds are let in at two levels only: the Thing and its capabilities.
    return len(json.dumps(counted, ensure_ascii=False, default=dict).encode())
