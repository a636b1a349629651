"""How commands speak of resources: which ones are meant, read through the operator, followed."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lmos_mesh.bus import RESTART_S, Bus
from lmos_mesh.cli.connection import answering
from lmos_mesh.cli.crds import known_kind
from lmos_mesh.errors import InvalidMessage, NotFound
from lmos_mesh.messages import GET_RESOURCE, LIST_RESOURCES, GetResource, ListResources
from lmos_mesh.resource_store import RESOURCE_FEED
from lmos_mesh.resources import DEFAULT_NAMESPACE, KINDS, kind_named
from lmos_mesh.transport import Packet

Raw = dict[str, Any]

ALL = "all"
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_REFRESH_S = 1.0
# What changes together is looked at once.
_GATHER_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a command is about.

    Attributes:
        name: None for all of the kind.
    """

    kind: str
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else KINDS[self.kind].plural


def targets_of(words: Sequence[str]) -> list[Target]:
    """What is meant by `KIND`, `KIND,KIND`, `KIND NAME…`, `KIND/NAME…` and `all`.

    Raises:
        NotFound: A word means no kind.
        InvalidMessage: The forms are mixed.
    """
    if any("/" in word for word in words):
        if not all("/" in word for word in words):
            raise InvalidMessage(
                f"{' '.join(words)} mixes KIND NAME with KIND/NAME", hint="use one of the two"
            )
        pairs = [word.split("/", 1) for word in words]
        return [Target(kind=known_kind(kind), name=name or None) for kind, name in pairs]
    first, *names = words
    kinds = list(KINDS) if first == ALL else [known_kind(word) for word in first.split(",")]
    if names and len(kinds) > 1:
        raise InvalidMessage(
            f"{first} are several kinds, and {names[0]} is of one", hint="use KIND/NAME"
        )
    if not names:
        return [Target(kind=kind) for kind in kinds]
    return [Target(kind=kinds[0], name=name) for name in names]


def named_targets(words: Sequence[str]) -> list[Target]:
    """The same, each with a name.

    Raises:
        InvalidMessage: One has none.
    """
    targets = targets_of(words)
    for one in targets:
        if one.name is None:
            raise InvalidMessage(
                f"which of the {one}?", hint=f"say {KINDS[one.kind].plural.removesuffix('s')}/NAME"
            )
    return targets


def resource_target(name: str, second: str | None) -> Target | None:
    """What `describe` is about if it is a resource: `KIND NAME` or `KIND/NAME`."""
    if second is not None:
        return Target(kind=known_kind(name), name=second)
    kind, slash, rest = name.partition("/")
    if slash and rest and (known := kind_named(kind)):
        return Target(kind=known, name=rest)
    return None


def labels_of(selectors: Sequence[str]) -> dict[str, str]:
    """Labels from `label=value`, several by commas or one by one.

    Raises:
        InvalidMessage: One is something else.
    """
    labels: dict[str, str] = {}
    for selector in selectors:
        for one in selector.split(","):
            label, equals, value = (part.strip() for part in one.partition("="))
            if not (label and equals):
                raise InvalidMessage(f"{one!r} is no label=value", hint="e.g. -l channel=web")
            labels[label] = value.removeprefix("=")
    return labels


def seconds_of(text: str) -> float:
    """A time as people write it: `30`, `30s`, `500ms`, `5m`, `1h`.

    Raises:
        InvalidMessage: It is none.
    """
    if not (found := _TIME.fullmatch(text.strip())):
        raise InvalidMessage(f"{text!r} is no time", hint="write it like 30s, 500ms, 5m or 1h")
    return float(found[1]) * _UNITS[found[2] or "s"]


async def listed(
    bus: Bus,
    kind: str | None = None,
    *,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    tenant: str | None = None,
) -> list[Raw]:
    """Every resource that fits, however many answers that takes."""
    found: list[Raw] = []
    offset: int | None = 0
    async with answering("operator"):
        while offset is not None:
            wanted = ListResources(
                kind=kind, namespace=namespace, labels=dict(labels or {}), offset=offset
            )
            page = await bus.call(LIST_RESOURCES, wanted, tenant=tenant, nobody_s=RESTART_S)
            found.extend(page.resources)
            offset = page.next
    return found


async def got(
    bus: Bus,
    target: Target,
    *,
    namespace: str | None = None,
    tenant: str | None = None,
    revision: int | None = None,
) -> Raw:
    """One resource: of the namespace, or else of `default`, or else the only one of that name.

    Raises:
        NotFound: There is none, or several of other namespaces.
    """
    assert target.name is not None
    wanted = GetResource(
        kind=target.kind,
        name=target.name,
        namespace=namespace or DEFAULT_NAMESPACE,
        revision=revision,
    )
    async with answering("operator"):
        try:
            found = await bus.call(GET_RESOURCE, wanted, tenant=tenant, nobody_s=RESTART_S)
        except NotFound:
            if namespace is not None or revision is not None:
                raise
            there = await listed(bus, target.kind, tenant=tenant)
            alike = [one for one in there if one["metadata"]["name"] == target.name]
            if len(alike) == 1:
                return alike[0]
            if alike:
                spaces = ", ".join(sorted(one["metadata"]["namespace"] for one in alike))
                raise NotFound(
                    f"there is a {target} in each of the namespaces {spaces}",
                    hint="say which: --namespace",
                ) from None
            raise
    return found.resource


class Changes:
    """Waits for the next change of any resource."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def note(self, packet: Packet) -> None:
        """Something has changed."""
        del packet
        self._changed.set()

    async def wait(self, *, at_most_s: float = _REFRESH_S) -> None:
        """Wait until something has; a second at most, as news may get lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(at_most_s, _REFRESH_S)):
                await self._changed.wait()
                await asyncio.sleep(_GATHER_S)
        self._changed.clear()


@asynccontextmanager
async def changes(bus: Bus) -> AsyncGenerator[Changes]:
    """What tells of changes while the block lasts; those of other tenants count, too."""
    told = Changes()
    subscription = await bus.transport.subscribe(RESOURCE_FEED, told.note)
    try:
        yield told
    finally:
        await subscription.unsubscribe()
