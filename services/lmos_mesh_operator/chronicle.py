"""What came to pass with a resource, as the audit has it: every step, by whom, when and why.

The versions that the store keeps of a resource are few, and of a rollout nearly all of them are
looks of its judge.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from lmos_mesh import audit, subjects
from lmos_mesh.bus import Bus
from lmos_mesh.calls import Call
from lmos_mesh.messages import ResourceStep
from lmos_mesh.resource_index import ResourceKey
from lmos_mesh.resources import Channel, ChannelRollout, ChannelRouting
from lmos_mesh.transport import CHANGE_SEQUENCE, Stream

logger = logging.getLogger(__name__)

_PAGE = 1000
_TEXT = 1000
# Of a year that a date can have.
_LATEST = 1e11
_APPLIED = "resource_"
_OF_ALL = ("resource_created", "resource_configured", "resource_deleted")
_OF_CHANNELS = (
    "routing_activated",
    "resource_restored",
    "resource_released",
    "channel_resolved",
    "channel_unresolved",
)
_OF_ROLLOUTS = ("rollout",)
# A Channel and its Routing have one story.
_WIRED = (Channel.__name__, ChannelRouting.__name__)


def write_step(
    bus: Bus, call: Call, what: str, key: ResourceKey, *, at: float, **more: object
) -> None:
    """Write down what was done, and when it was begun: what it led to comes after it."""
    logger.info("%s %s", what, key)
    told = {"at": at, "kind": key.kind, "namespace": key.namespace, "name": key.name, **more}
    audit.write(bus, call.tenant, f"{_APPLIED}{what}", told, caller=call.caller)


async def read_steps(
    bus: Bus, tenant: str, key: ResourceKey, *, limit: int, kept: Collection[int] = ()
) -> tuple[list[ResourceStep], int]:
    """The latest steps of a resource, the latest first, and how many there were before them.

    Args:
        bus: Where the audit is.
        tenant: Whose resource it is.
        key: Which one.
        limit: How many.
        kept: The revisions that can still be read.
    """
    stream = bus.transport.stream(audit.AUDIT)
    async with asyncio.TaskGroup() as tasks:
        reading = [
            tasks.create_task(_read(stream, tenant, kind, key, limit)) for kind in kinds_of(key)
        ]
    found = [one.result() for one in reading]
    records = [record for some, _ in found for record in some]
    steps = steps_of(records, kept=kept)
    return steps[:limit], sum(count for _, count in found) - len(steps[:limit])


def kinds_of(key: ResourceKey) -> tuple[str, ...]:
    """Under which kinds of the audit a resource is found."""
    if key.kind in _WIRED:
        return (*_OF_ALL, *_OF_CHANNELS)
    if key.kind == ChannelRollout.__name__:
        return (*_OF_ALL, *_OF_ROLLOUTS)
    return _OF_ALL


def concerns(record: Mapping[str, Any], key: ResourceKey) -> bool:
    """Whether a record of the audit is of a resource, or of a Channel and its Routing."""
    if key.kind == ChannelRollout.__name__ and "rollout" in record:
        return record["rollout"] == f"{key.namespace}/{key.name}"
    kinds = _WIRED if key.kind in _WIRED else (key.kind,)
    place = record.get("namespace"), record.get("name")
    return record.get("kind") in kinds and place == (key.namespace, key.name)


def steps_of(
    records: Iterable[tuple[str, Mapping[str, Any]]], *, kept: Collection[int] = ()
) -> list[ResourceStep]:
    """Records of the audit, each with its kind, as steps; the latest first."""
    steps = [_step(kind, record, kept) for kind, record in records]
    return sorted(steps, key=lambda one: one.at, reverse=True)


def _step(kind: str, record: Mapping[str, Any], kept: Collection[int]) -> ResourceStep:
    of_routing = kind == "routing_activated" or record.get("kind") == ChannelRouting.__name__
    revision = int(record.get("revision", 0)) if of_routing else 0
    state = ""
    if "phase" in record:
        state = f"{record['phase']}, {record.get('canary_weight', 0)} %"
    return ResourceStep(
        at=float(record.get("at", 0.0)),
        what=_what(kind, record),
        state=state,
        revision=revision,
        kept=revision in kept,
        by=str(record.get("asked_by") or ""),
        operator=str(record.get("by") or ""),
        message=str(record.get("message") or "")[:_TEXT],
        reason=str(record.get("reason") or "")[:_TEXT],
    )


def _what(kind: str, record: Mapping[str, Any]) -> str:
    if kind in _OF_ROLLOUTS:
        return str(record.get("what") or "")
    return kind.removeprefix(_APPLIED).removeprefix("channel_").removeprefix("routing_")


async def _read(
    stream: Stream, tenant: str, kind: str, key: ResourceKey, limit: int
) -> tuple[Sequence[tuple[str, Mapping[str, Any]]], int]:
    """The latest records of one kind, and how many there are in all."""
    subject = subjects.audit(tenant, kind)
    latest: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=limit)
    after = count = 0
    # To read all of them takes ten times as long as to see which cannot be meant.
    named = json.dumps(key.name)[1:-1].encode()
    while True:
        page = await stream.read(subject, limit=_PAGE, after=after)
        for packet in page:
            if named not in packet.payload:
                continue
            told = _record(packet.payload)
            if told is not None and concerns(told, key):
                latest.append((kind, told))
                count += 1
        if len(page) < _PAGE:
            return tuple(latest), count
        after = int(page[-1].headers[CHANGE_SEQUENCE])


def _record(payload: bytes) -> Mapping[str, Any] | None:
    """A record of the audit; None for what is none: whoever may write there can write anything."""
    try:
        told: Any = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, Mapping):
        return None
    record = cast("Mapping[str, Any]", told)
    at, revision = record.get("at", 0.0), record.get("revision", 0)
    if not isinstance(at, int | float) or not 0 <= at < _LATEST or not isinstance(revision, int):
        return None
    return record
