"""What becomes of a Description that was found on the network before it is registered. Pure."""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote, urljoin, urlsplit

from lmos_mesh.description import MESH_CONTEXT
from lmos_mesh.things import OUR_IDS
from lmos_mesh_mdns.records import Kind, Target

FOUND_BY = "mesh:foundBy"
MDNS = "mdns"
FOUND_AS = "mesh:foundAs"

_AFFORDANCES = ("properties", "actions", "events")
_THINGS = "/things"


class UnusableAnswer(ValueError):
    """What a found service answered is not what it should be; says why."""


def description_from(body: bytes) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        UnusableAnswer: It is none.
    """
    value = _json(body)
    if not isinstance(value, dict):
        raise UnusableAnswer("its Description is not a JSON object")
    return cast("dict[str, Any]", value)


def page_from(body: bytes) -> tuple[list[dict[str, Any]], str]:
    """The Descriptions on a page of a directory, and the URL of the next page if it says so.

    Raises:
        UnusableAnswer: It is neither an array nor a collection.
    """
    value, following = _json(body), ""
    if isinstance(value, dict):
        collection = cast("dict[str, Any]", value)
        stated = collection.get("next")
        value, following = collection.get("members"), stated if isinstance(stated, str) else ""
    if not isinstance(value, list):
        raise UnusableAnswer("its list of Things is neither a JSON array nor a collection")
    members = cast("list[Any]", value)
    return [cast("dict[str, Any]", one) for one in members if isinstance(one, dict)], following


def things_url(directory: Mapping[str, Any], url: str) -> str:
    """Where a directory lists its Things, by the Description of it that was read at `url`."""
    href = _THINGS
    property_ = _object(_object(directory.get("properties")).get("things"))
    forms = property_.get("forms")
    if isinstance(forms, list) and forms:
        stated = _object(cast("list[Any]", forms)[0]).get("href")
        # What a template asks for may all be left out.
        href = stated.partition("{")[0] if isinstance(stated, str) else _THINGS
    base = directory.get("base")
    return urljoin(urljoin(url, base if isinstance(base, str) else ""), href)


def same_origin(url: str, target: Target) -> bool:
    """Whether a URL leads to the very host and port that the records name."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        hosts = (target.address, target.host.lower())
        return (
            parts.scheme == target.scheme
            and port == target.port
            and (parts.hostname or "") in hosts
            and parts.username is None
        )
    except ValueError:
        return False


def prepared(
    description: Mapping[str, Any], target: Target, source: str, tenant: str
) -> dict[str, Any]:
    """A found Description as it is to be registered: as not ours, whatever it says of itself.

    Args:
        description: As it was read.
        target: Where it was read.
        source: The service that was announced.
        tenant: Whose it becomes.
    """
    made: dict[str, Any] = {
        name: value
        for name, value in description.items()
        # Written by a registry, or about another mesh's dealings.
        if name not in ("registration", "mesh:origin")
    }
    if not isinstance(made.get("id"), str) or not made["id"]:
        # The same each time, so that it is the same Thing.
        made["id"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, source)}"
    _move(made, tenant)
    if "base" not in made and any(_is_relative(href) for href in _hrefs(made)):
        made["base"] = target.url
    _drop_foreign_subjects(made)
    made["mesh:external"] = True
    made[FOUND_BY] = MDNS
    _declare_mesh(made)
    return made


def _move(description: dict[str, Any], tenant: str) -> None:
    """Have an agent of another mesh belong to our tenant; it may be called as theirs is, or not."""
    if "mesh:tenant" in description:
        description["mesh:tenant"] = tenant
    stated = str(description["id"])
    prefix, _, names = stated.partition(OUR_IDS)
    theirs, colon, rest = names.partition(":")
    if prefix or not colon or theirs == (ours := quote(tenant, safe="")):
        return
    description["id"] = f"{OUR_IDS}{ours}:{rest}"
    description[FOUND_AS] = stated


def second_hand(description: Mapping[str, Any], kind: Kind) -> bool:
    """Whether another mesh's directory has this from elsewhere itself.

    Two meshes that told each other what both have only heard of would keep it for ever.
    """
    return kind == "Directory" and (
        bool(description.get("mesh:external")) or bool(description.get("mesh:origin"))
    )


def found_by_us(description: Mapping[str, Any] | None) -> bool:
    """Whether an entry of the registry was found on the network, and so may be replaced."""
    return bool(description) and (
        description.get(FOUND_BY) == MDNS and description.get("mesh:external") is True
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise UnusableAnswer(f"its answer is not JSON: {str(exc)[:200]}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _forms(description: Mapping[str, Any]) -> Iterator[list[Any]]:
    for several in _AFFORDANCES:
        for affordance in _object(description.get(several)).values():
            forms = _object(affordance).get("forms")
            if isinstance(forms, list):
                yield cast("list[Any]", forms)
    if isinstance(forms := description.get("forms"), list):
        yield cast("list[Any]", forms)


def _hrefs(description: Mapping[str, Any]) -> Iterator[str]:
    for forms in _forms(description):
        for form in forms:
            if isinstance(href := _object(form).get("href"), str):
                yield href


def _is_relative(href: str) -> bool:
    try:
        return not urlsplit(href).scheme
    except ValueError:
        return False


def _drop_foreign_subjects(description: dict[str, Any]) -> None:
    """Leave out forms on another mesh's bus where there are others: nobody here can use them."""
    for several in _AFFORDANCES:
        affordances = _object(description.get(several))
        kept = {name: _without_subjects(one) for name, one in affordances.items()}
        if affordances:
            description[several] = kept


def _without_subjects(affordance: Any) -> Any:
    forms = _object(affordance).get("forms")
    if not isinstance(forms, list):
        return affordance
    kept = [
        form
        for form in cast("list[Any]", forms)
        if not str(_object(form).get("href", "")).startswith("nats:")
    ]
    return {**affordance, "forms": kept} if kept else affordance


def _declare_mesh(description: dict[str, Any]) -> None:
    """Give the `mesh:` terms their meaning, where the Description does not."""
    stated = description.get("@context")
    if stated is None:
        return  # invalid anyway, and the registry says so
    context: list[Any] = list(cast("list[Any]", stated)) if isinstance(stated, list) else [stated]
    if not any(_object(one).get("mesh") == MESH_CONTEXT for one in context):
        description["@context"] = [*context, {"mesh": MESH_CONTEXT}]
