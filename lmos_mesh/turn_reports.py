"""How turns went: told by whoever carries them, read by whoever judges a release.

Telling waits for nobody. What was told is kept for an hour in memory, so that whoever takes over
a judgement reads on where the one before it stopped. Never the text of a message.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pydantic import ValidationError

from lmos_mesh import subjects
from lmos_mesh.bus import Bus
from lmos_mesh.errors import InvalidMessage
from lmos_mesh.events import CloudEvent, rfc3339, unix_time
from lmos_mesh.messages import TurnReport
from lmos_mesh.transport import CHANGE_SEQUENCE, Log, Packet

TURN_ENDED = "lmos.turn.ended"
KEPT_S = 3600.0

TURNS = Log(
    name="LMOS_TURNS",
    subjects=("lmos.*.event.runtime.turn_ended",),
    in_memory=True,
    max_age_s=KEPT_S,
    # About 80 MB: half an hour of 50 turns a second.
    max_items=100_000,
)

_PAGE = 1000
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A turn that has ended.

    Attributes:
        sequence: Its number in the stream.
        at: When it ended, in Unix seconds.
    """

    sequence: int
    at: float
    report: TurnReport


async def prepare(bus: Bus) -> None:
    """Have the stream made, so that what is told from now on is kept."""
    await bus.transport.stream(TURNS).last()


def tell(bus: Bus, tenant: str, report: TurnReport, *, at: float | None = None) -> None:
    """Tell how a turn went; nobody is waited for.

    Raises:
        MeshError: The bus is lost, and so much waits for its return that this has no room.
    """
    event = event_of(tenant, report, at=time.time() if at is None else at)
    bus.transport.publish(heard_at(tenant), event.body(), headers=event.to_headers())


def heard_at(tenant: str) -> str:
    """Where the reports of a tenant are heard."""
    return subjects.event(tenant, "runtime", "turn_ended")


def event_of(tenant: str, report: TurnReport, *, at: float) -> CloudEvent:
    """A report as an event of its own, however often its turn is tried."""
    return CloudEvent(
        id=f"{report.turn}.{secrets.token_hex(4)}",
        source=f"urn:lmos-mesh:runtime:{subjects.escape(tenant)}",
        type=TURN_ENDED,
        subject=report.conversation,
        time=rfc3339(at),
        data=report.model_dump(mode="json"),
    )


def reported(packet: Packet) -> Reported:
    """The report in a packet of the stream or of its subject.

    Raises:
        InvalidMessage: It is none.
    """
    event = CloudEvent.from_packet(packet)
    at = unix_time(event.time)
    if event.type != TURN_ENDED or at is None:
        raise InvalidMessage(f"no report of a turn: {event.type!r} of {event.time!r}")
    try:
        report = TurnReport.model_validate(event.data)
    except ValidationError as exc:
        raise InvalidMessage(f"no report of a turn: {exc}") from None
    sequence = packet.headers.get(CHANGE_SEQUENCE, "0")
    return Reported(sequence=int(sequence), at=at, report=report)


class Reader:
    """Reads the reports of a tenant on and on, each once, without a subscription.

    A stream that was lost with its server begins anew, and so does the reading.
    """

    def __init__(self, bus: Bus, tenant: str) -> None:
        self._stream = bus.transport.stream(TURNS)
        self._pattern = heard_at(tenant)
        self._after = 0

    async def begin(self, *, since: float) -> None:
        """Go to the first report at or after a time (Unix seconds)."""
        low, high = 0, await self._stream.last()
        # By halves: a page of each would be an hour of everybody's turns.
        while low < high:
            middle = (low + high) // 2
            found = await self._stream.read(self._pattern, limit=1, after=middle)
            if found and _at(found[0]) < since:
                low = _sequence(found[0])
            else:
                high = middle
        self._after = low

    async def read(self) -> list[Reported]:
        """What has come since it was read last; empty if nothing has.

        Raises:
            Unavailable: The stream does not answer; nothing is passed over.
        """
        found: list[Reported] = []
        while True:
            page = await self._stream.read(self._pattern, limit=_PAGE, after=self._after)
            for packet in page:
                self._after = max(self._after, _sequence(packet))
                try:
                    found.append(reported(packet))
                except InvalidMessage:
                    continue  # told by somebody else, on our subject
            if len(page) < _PAGE:
                break
        if not found and await self._stream.last() < self._after:
            self._after = 0
        return found


async def follow(bus: Bus, tenant: str, *, since: float | None = None) -> AsyncGenerator[Reported]:
    """The reports of a tenant as they come, each once. Cancelling is safe.

    Args:
        bus: Where to read.
        tenant: Whose.
        since: Unix seconds; None for those from now on.
    """
    reader = Reader(bus, tenant)
    await reader.begin(since=time.time() if since is None else since)
    while True:
        for one in await reader.read():
            yield one
        await asyncio.sleep(_POLL_S)


def _sequence(packet: Packet) -> int:
    return int(packet.headers.get(CHANGE_SEQUENCE, "0"))


def _at(packet: Packet) -> float:
    return unix_time(packet.headers.get("ce-time", "")) or 0.0
