"""What has come to pass on the mesh, as CloudEvents that can be followed and read again.

Every replica of a service tells every event under the same id, and the stream keeps the first:
so each is told once, whoever dies. `docs/events.md` is the contract.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote, unquote

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidMessage, MeshError
from lmos_mesh.transport import CHANGE_SEQUENCE, Log, Packet

THING_CREATED = "lmos.thing.created"
THING_UPDATED = "lmos.thing.updated"
THING_DELETED = "lmos.thing.deleted"
INSTANCE_JOINED = "lmos.instance.joined"
INSTANCE_LEFT = "lmos.instance.left"
INSTANCE_DIED = "lmos.instance.died"
CHANNEL_RESOLVED = "lmos.channel.resolved"
CHANNEL_UNRESOLVED = "lmos.channel.unresolved"
ROLLOUT = "lmos.rollout."
"""Of a rollout: followed by what became of it."""

OF_REGISTRY = frozenset(
    {
        THING_CREATED,
        THING_UPDATED,
        THING_DELETED,
        INSTANCE_JOINED,
        INSTANCE_LEFT,
        INSTANCE_DIED,
    }
)
OF_OPERATOR = frozenset(
    {
        CHANNEL_RESOLVED,
        CHANNEL_UNRESOLVED,
        f"{ROLLOUT}pending",
        f"{ROLLOUT}invalid",
        f"{ROLLOUT}began",
        f"{ROLLOUT}stepped",
        f"{ROLLOUT}edited",
        f"{ROLLOUT}paused",
        f"{ROLLOUT}resumed",
        f"{ROLLOUT}promoted",
        f"{ROLLOUT}rolled_back",
        f"{ROLLOUT}aborted",
    }
)
NAMES = {type: type.removeprefix("lmos.").replace(".", "_") for type in OF_REGISTRY | OF_OPERATOR}
"""The name of each type as an event of a Thing: the last token of its subject."""

KEPT_S = 24 * 3600.0
EVENTS = Log(
    name="LMOS_EVENTS",
    # Not where they are heard: there, each would be heard from each replica.
    subjects=("lmos.*.told.*.*",),
    feed="lmos.{{wildcard(1)}}.event.{{wildcard(2)}}.{{wildcard(3)}}",
    max_age_s=KEPT_S,
    max_items=200_000,
)

_SPEC = "1.0"
_JSON = "application/json"
_PREFIX = "ce-"
# What a header may hold as it is, by the CloudEvents binding for NATS; the rest is
# percent-encoded.
_PLAIN = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"

_PAGE = 256
_BACKLOG = 1024
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """One thing that has come to pass.

    Attributes:
        id: Unique together with `source`; the same event has the same id whoever tells it.
        source: Who tells it: the registry or the operator of a tenant.
        subject: What it is about: the id of a Thing's Description or of an instance, or the
            namespace and name of a resource.
        time: RFC 3339.
        data: What there is to say, as JSON has it; None for nothing.
        more: Further attributes (extensions).
    """

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: Any
    more: dict[str, str] = field(default_factory=dict[str, str])

    def to_headers(self) -> dict[str, str]:
        """Its attributes in binary mode; `body` goes with them."""
        said = self._attributes()
        return {f"{_PREFIX}{name}": quote(value, safe=_PLAIN) for name, value in said.items()}

    def body(self) -> bytes:
        """Its data in binary mode."""
        return b"" if self.data is None else json.dumps(self.data, ensure_ascii=False).encode()

    def as_json(self) -> dict[str, Any]:
        """Itself in structured mode."""
        return {**self._attributes(), "data": self.data}

    def _attributes(self) -> dict[str, str]:
        return {
            "specversion": _SPEC,
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": _JSON,
            **self.more,
        }

    @classmethod
    def from_packet(cls, packet: Packet) -> "CloudEvent":
        """The event in a packet in binary mode.

        Raises:
            InvalidMessage: It is none, or its data are no JSON.
        """
        said = {
            name.lower().removeprefix(_PREFIX): unquote(value)
            for name, value in packet.headers.items()
            if name.lower().startswith(_PREFIX)
        }
        version = said.pop("specversion", "")
        said.pop("datacontenttype", None)
        if version != _SPEC:
            raise InvalidMessage(f"no CloudEvent of version {_SPEC} in binary mode: {version!r}")
        try:
            data: Any = json.loads(packet.payload) if packet.payload else None
            own = {name: said.pop(name) for name in ("id", "source", "type")}
        except KeyError as exc:
            raise InvalidMessage(f"a CloudEvent without {exc.args[0]!r}") from None
        except (ValueError, RecursionError) as exc:
            raise InvalidMessage(f"the data of a CloudEvent are no JSON: {exc}") from None
        return cls(
            **own,
            subject=said.pop("subject", ""),
            time=said.pop("time", ""),
            data=data,
            more=said,
        )


async def prepare(bus: Bus) -> None:
    """Have the stream made, so that what is told from now on is kept."""
    await bus.transport.stream(EVENTS).last()


def told_at(tenant: str, type: str) -> str:
    """Where a service tells an event; the stream passes on what is new, as `event` for `told`."""
    return f"lmos.{subjects.escape(tenant)}.told.{_teller_of(type)}.{NAMES[type]}"


def source_of(tenant: str, type: str) -> str:
    """Who tells an event, as its `source`."""
    return f"urn:lmos-mesh:{_teller_of(type)}:{subjects.escape(tenant)}"


def _teller_of(type: str) -> str:
    return "registry" if type in OF_REGISTRY else "operator"


def rfc3339(at: float) -> str:
    """A time in UTC, with milliseconds."""
    said = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return said.replace("+00:00", "Z")


def unix_time(said: str) -> float | None:
    """The Unix time of an RFC 3339 one; None if it is none."""
    try:
        read = datetime.fromisoformat(said)
    except ValueError:
        return None
    return read.timestamp() if read.tzinfo is not None else None


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What makes one JSON object of the other, by RFC 7396: members that differ, null if gone."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if name not in before:
            patch[name] = value
            continue
        held = before[name]
        if isinstance(held, dict) and isinstance(value, dict):
            inner = merge_patch(cast("dict[str, Any]", held), cast("dict[str, Any]", value))
            if inner:
                patch[name] = inner
        elif held != value or isinstance(held, bool) != isinstance(value, bool):
            patch[name] = value
    return patch


async def follow(
    bus: Bus, tenant: str, *, after: int | None = None, types: Collection[str] = ()
) -> AsyncGenerator[tuple[int, CloudEvent]]:
    """The events of a tenant as they come, each once, across restarts of the bus.

    Cancelling is safe. Close it (`contextlib.aclosing`) when it is left early.

    Args:
        bus: Where to listen.
        tenant: Whose.
        after: The sequence of the last event that is known; 0 for all that are kept; None for
            those from now on.
        types: Only these; none for all.

    Yields:
        The event's sequence in the stream, which may be given as `after` later, and the event.
    """
    heard = _Heard()
    subscriptions = [
        await bus.transport.subscribe(
            subjects.event(tenant, teller, "x").removesuffix("x") + "*", heard.on_packet
        )
        for teller in ("registry", "operator")
    ]
    bus.transport.on_reconnect(heard.miss)
    try:
        stream = bus.transport.stream(EVENTS)
        # Asked once the feed is heard, so that nothing falls between the two.
        newest = await stream.last()
        if after is None:
            last = newest
        else:
            # A sequence from before the stream was made anew says nothing.
            last = after if after <= newest else 0
            heard.miss()
        while True:
            await heard.some.wait()
            if heard.missed:
                heard.forget()
                try:
                    while page := await stream.read(_told(tenant), limit=_PAGE, after=last):
                        for packet in page:
                            last = _sequence(packet)
                            if (event := _event(packet, types)) is not None:
                                yield last, event
                except MeshError:
                    heard.miss()
                    await asyncio.sleep(_RETRY_S)
                continue
            packet = heard.next()
            if packet is not None and (sequence := _sequence(packet)) > last:
                last = sequence
                if (event := _event(packet, types)) is not None:
                    yield last, event
    finally:
        heard.closed = True
        for subscription in subscriptions:
            await subscription.unsubscribe()


async def kept(
    bus: Bus, tenant: str, *, after: int = 0, types: Collection[str] = ()
) -> AsyncGenerator[tuple[int, CloudEvent]]:
    """The events of a tenant that are kept, those that come meanwhile included.

    Otherwise as `follow`.
    """
    stream = bus.transport.stream(EVENTS)
    while page := await stream.read(_told(tenant), limit=_PAGE, after=after):
        for packet in page:
            after = _sequence(packet)
            if (event := _event(packet, types)) is not None:
                yield after, event


class _Heard:
    """What the feed has told and nobody has taken yet; more than that is read from the stream."""

    def __init__(self) -> None:
        self._packets: deque[Packet] = deque()
        self.some = asyncio.Event()
        self.missed = False
        self.closed = False

    def on_packet(self, packet: Packet) -> None:
        if len(self._packets) >= _BACKLOG:
            self.miss()
        elif not self.missed:
            self._packets.append(packet)
            self.some.set()

    def miss(self) -> None:
        """Some may be lost: the stream has them."""
        if not self.closed:
            self.missed = True
            self.some.set()

    def forget(self) -> None:
        """What was heard before is in the stream, which is read from now on."""
        self._packets.clear()
        self.missed = False
        self.some.clear()

    def next(self) -> Packet | None:
        packet = self._packets.popleft() if self._packets else None
        if not self._packets and not self.missed:
            self.some.clear()
        return packet


def _told(tenant: str) -> str:
    return f"lmos.{subjects.escape(tenant)}.told.*.*"


def _sequence(packet: Packet) -> int:
    said = packet.headers.get(CHANGE_SEQUENCE, "0")
    return int(said) if said.isdecimal() else 0


def _event(packet: Packet, types: Collection[str]) -> CloudEvent | None:
    try:
        event = CloudEvent.from_packet(packet)
    except InvalidMessage:
        return None  # told by somebody else, on our subject
    if event.type not in NAMES or not isinstance(event.data, dict):
        return None  # likewise
    return event if not types or event.type in types else None
