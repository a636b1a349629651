"""How a found agent is called over HTTP: with which form, and what the answer means. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urljoin

from lmos_mesh.errors import AgentFailed, InvalidMessage, MeshError, NotFound, Overloaded
from lmos_mesh.errors import Unavailable as NotThere
from lmos_mesh.things import Thing
from lmos_mesh_mdns.found import same_origin
from lmos_mesh_mdns.records import Target

_JSON = "application/json"
_SAID = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Where an action is invoked."""

    url: str
    method: str


def forms_of(
    thing: Thing, description: Mapping[str, Any], target: Target
) -> dict[str, Form] | None:
    """The form of each capability of a found agent; None if it cannot be called for all of them.

    Only what is at the host and port where its Description was found is called, with JSON, and
    without any credential: we have none for it.
    """
    if thing.kind != "agent" or not thing.capabilities or not _open(description):
        return None
    actions = _object(description.get("actions"))
    base = description.get("base")
    root = urljoin(target.url, base) if isinstance(base, str) else target.url
    found: dict[str, Form] = {}
    for capability in thing.capabilities:
        form = _form(_object(actions.get(capability.id)), root, target)
        if form is None:
            return None
        found[capability.id] = form
    return found


def answer_from(status: int, content_type: str, body: bytes) -> Any:
    """What an agent answered.

    Raises:
        MeshError: It refused, or failed.
    """
    if status >= 400:
        raise _error(status, body)
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        if content_type.startswith("text/plain"):
            return body.decode(errors="replace")
        raise AgentFailed("the agent's answer is not JSON") from None


def _error(status: int, body: bytes) -> MeshError:
    said = f"the agent answers with status {status}: {body[:_SAID].decode(errors='replace')}"
    if status in (404, 410):
        return NotFound(said)
    if status == 429:
        return Overloaded(said)
    if status in (502, 503, 504):
        return NotThere(said)
    return InvalidMessage(said) if status < 500 else AgentFailed(said)


def _open(description: Mapping[str, Any]) -> bool:
    definitions = _object(description.get("securityDefinitions"))
    named = description.get("security")
    needed = cast("list[Any]", named) if isinstance(named, list) else [named]
    return all(_object(definitions.get(str(one))).get("scheme") == "nosec" for one in needed)


def _form(action: Mapping[str, Any], root: str, target: Target) -> Form | None:
    forms = action.get("forms")
    for one in cast("list[Any]", forms) if isinstance(forms, list) else []:
        form = _object(one)
        stated = form.get("op", "invokeaction")
        ops = cast("list[Any]", stated) if isinstance(stated, list) else [stated]
        href, method = form.get("href"), form.get("htv:methodName", "POST")
        if (
            "invokeaction" not in ops
            or not isinstance(href, str)
            or method not in ("POST", "PUT")
            or "security" in form
            or "subprotocol" in form
            or "{" in href
            or str(form.get("contentType", _JSON)).partition(";")[0].strip() != _JSON
        ):
            continue
        try:
            url = urljoin(root, href)
        except ValueError:
            continue
        if same_origin(url, target):
            return Form(url=url, method=str(method))
    return None


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
