"""How parts of resources are written in the cluster: statuses in its generations, nothing empty.

Pure.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from lmos_mesh.resources import KINDS, Agent, Channel, ChannelRollout, Resource
from lmos_mesh_operator.kubernetes.objects import items


def as_of(status: Mapping[str, Any], generation: int, reached: int) -> dict[str, Any]:
    """A status of the store in the generations of the cluster, which counts them itself."""
    translated = copied(status)
    for one in (translated, *translated.get("conditions", ())):
        if "observedGeneration" in one:
            is_latest = one["observedGeneration"] >= generation
            one["observedGeneration"] = reached if is_latest else max(0, reached - 1)
    return translated


_STATUSES: dict[str, type[Resource]] = {
    name: KINDS[name] for name in (Agent.__name__, Channel.__name__, ChannelRollout.__name__)
}
_CHANNELS = {"canaryChannel": {"name": "a"}, "stableChannel": {"name": "b"}}
_EMPTY: dict[str, dict[str, Any]] = {
    "Agent": {"metadata": {"name": "n"}, "spec": {}},
    "Channel": {"metadata": {"name": "n"}, "spec": {"requiredCapabilities": []}},
    "ChannelRollout": {
        "metadata": {"name": "n"},
        "spec": {"strategy": {"canary": _CHANNELS}},
    },
}


def normal_status(kind: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """A status with what goes without saying, and without what is empty."""
    part = _STATUSES.get(kind)
    if part is None:
        return dict(status)
    try:
        read = part.model_validate({**_EMPTY[kind], "status": dict(status)})
    except ValidationError:
        return dict(status)
    found: dict[str, Any] = lean(getattr(read, "status", None))
    return found


def lean(value: Any) -> Any:
    """A part of a resource as JSON, without members that are empty, as nobody would write them.

    Some API servers take an empty text for none, which a definition then refuses.
    """
    if isinstance(value, BaseModel):
        return {
            field.alias or name: lean(said)
            for name, field in type(value).model_fields.items()
            if (said := getattr(value, name)) is not None
            and (field.is_required() or said or not isinstance(said, str | tuple | dict))
        }
    if isinstance(value, tuple):
        return [lean(one) for one in cast("tuple[Any, ...]", value)]
    if isinstance(value, dict):
        return {name: lean(one) for name, one in cast("dict[str, Any]", value).items()}
    return value


def condition(status: Mapping[str, Any], type: str) -> Mapping[str, Any] | None:
    """The condition of that type; None if there is none."""
    return next((one for one in items(status.get("conditions")) if one.get("type") == type), None)


def copied(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object that may be changed."""
    return json.loads(json.dumps(value))
