"""The one seam to the network: packets to subjects, packets back, and what is kept there.

Nothing above this module knows NATS; nothing below it knows message types.
`tests/contract/test_transport.py` says what every transport must do.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmos_mesh.errors import InvalidMessage

Headers = Mapping[str, str]
_NO_HEADERS: Headers = {}


@dataclass(slots=True)
class Packet:
    """Bytes as they arrive. Never changed; not frozen only because one is made per frame."""

    subject: str
    payload: bytes
    headers: Headers = field(default_factory=lambda: _NO_HEADERS)
    reply: str = ""

    @property
    def nobody(self) -> bool:
        """Whether this is the bus saying that nobody listens where we asked."""
        return not self.payload and self.headers.get("Status") == "503"


OnPacket = Callable[[Packet], None]
"""Called for each packet as it arrives. It must not block, and should not raise."""


class Subscription(Protocol):
    """Interest in a subject."""

    async def unsubscribe(self) -> None:
        """Stop; everything that was accepted before has been handed over when this returns."""
        ...


class Inbox(Protocol):
    """A private address for the replies to one request."""

    @property
    def subject(self) -> str:
        """What to put as `reply`."""
        ...

    def close(self) -> None:
        """Listen no longer; later replies are dropped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A key-value bucket, made on first use.

    Args:
        name: `[A-Za-z0-9_-]+`.
        history: How many values per key are kept, 1 to 64.
        in_memory: Survives no server restart, and costs no disk.
        expiring: Whether values may be given a time to live.
        feed: Where changes are republished, with `{{wildcard(n)}}` for the n-th token of the
            key; empty for nowhere.
        tokens: How many tokens a key has.
    """

    name: str
    history: int = 1
    in_memory: bool = False
    expiring: bool = False
    feed: str = ""
    tokens: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One value of a key. `revision` rises with every change in the bucket."""

    key: str
    value: bytes
    revision: int
    created: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One version of a key that is kept. `value` is None where it was removed or had expired."""

    number: int
    at: float
    value: bytes | None


class KeyValue(Protocol):
    """Values by key, with compare-and-set and, where the bucket allows it, leases.

    Every method may raise `Unavailable` when the store does not answer.
    """

    async def get(self, key: str) -> Entry | None:
        """The live value; None when there is none, it was deleted, or it has expired."""
        ...

    async def put(
        self, key: str, value: bytes, *, expected: int | None = None, ttl_s: int | None = None
    ) -> int:
        """Store a value and return its revision.

        Args:
            key: Where.
            value: What.
            expected: The revision it must replace; 0 if there must be no live value.
            ttl_s: Whole seconds until it expires, 1 or more; each put renews it. The versions
                before it are kept no longer, or the one before would come back when it expires.

        Raises:
            Conflict: `expected` is not what is there.
        """
        ...

    async def delete(self, key: str, *, expected: int | None = None) -> int:
        """Remove a value, its history included; nothing happens if there is none.

        Returns:
            The revision of the removal; 0 if there was nothing.

        Raises:
            Conflict: `expected` is not what is there.
        """
        ...

    async def entries(self, pattern: str = ">") -> Sequence[Entry]:
        """The live entries whose keys match a NATS wildcard pattern."""
        ...

    async def history(self, key: str) -> Sequence[Revision]:
        """The versions of a key that are kept, oldest first; a removal is one, for a moment."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a bucket as its feed tells it. `value` is None when the key is gone.

    `expired` says that its time was over: nobody removed it.
    """

    key: str
    value: bytes | None
    revision: int
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """An append-only stream, made on first use.

    Args:
        name: `[A-Za-z0-9_-]+`.
        subjects: What it records.
        work: Each item is taken by one worker and gone when acknowledged.
        max_age_s: How long items are kept; 0 for ever.
        max_items: How many items are kept at most; 0 for any number.
        feed: Where items are republished once they are kept, with `{{wildcard(n)}}` for the n-th
            wildcard of the one subject, and their sequence in `Nats-Sequence`; empty for nowhere.
        in_memory: Survives no server restart, and costs no disk.
        ack_wait_s: How long a worker may be silent about an item before another gets it.
        max_deliver: How often an item is tried.
    """

    name: str
    subjects: tuple[str, ...]
    work: bool = False
    max_age_s: float = 0.0
    max_items: int = 0
    feed: str = ""
    in_memory: bool = False
    ack_wait_s: float = 30.0
    max_deliver: int = 5


class WorkItem(Protocol):
    """A piece of work in one worker's hands."""

    @property
    def packet(self) -> Packet:
        """What was put."""
        ...

    @property
    def delivery(self) -> int:
        """1 the first time, 2 the second."""
        ...

    async def done(self) -> None:
        """It is finished; nobody else gets it."""
        ...

    async def again(self, *, delay_s: float = 0.0) -> None:
        """Give it back for another try."""
        ...

    async def working(self) -> None:
        """It is still being worked on: do not give it to anybody else yet."""
        ...

    async def never(self, reason: str) -> None:
        """It cannot be done; do not try it again."""
        ...


class Stream(Protocol):
    """What a `Log` keeps."""

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str = "",
        headers: Headers | None = None,
    ) -> int:
        """Write one item and return its sequence; the same `message_id` again writes nothing."""
        ...

    async def read(self, pattern: str, *, limit: int = 1000, after: int = 0) -> Sequence[Packet]:
        """The oldest `limit` items whose subjects match, of those after a sequence.

        Each has its own sequence in the header `Nats-Sequence`, and in `Nats-Time-Stamp` when it
        was kept.
        """
        ...

    async def last(self) -> int:
        """The sequence of the newest item that was ever kept; 0 before the first."""
        ...

    async def erase(self, pattern: str) -> None:
        """Remove every item whose subject matches."""
        ...

    async def drop(self) -> None:
        """Remove it with all that it keeps. Whoever uses it again has it made anew."""
        ...

    async def take(self, worker: str, *, limit: int = 1, wait_s: float = 5.0) -> Sequence[WorkItem]:
        """Work for `worker` (a name that many processes may share); empty after `wait_s`."""
        ...


class Transport(Protocol):
    """A connection to the bus."""

    @property
    def max_payload(self) -> int:
        """The most bytes that one packet may carry, headers included."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the bus is there right now."""
        ...

    @property
    def connection(self) -> str:
        """Which connection this is, as disconnect events name it; changes on reconnect."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called each time a lost bus is back."""
        ...

    async def wait_connected(self, *, timeout_s: float) -> None:
        """Wait for a lost bus.

        Raises:
            Unavailable: It was not back in time.
        """
        ...

    def publish(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send a packet. It is on its way when this returns; `flush` waits for the server.

        Raises:
            TooLarge: It is over `max_payload`.
            Unavailable: The bus is lost and the buffer for its return is full, or we have left.
            InvalidMessage: `subject` or `reply` is no subject.
        """
        ...

    def request(
        self, subject: str, payload: bytes, *, headers: Headers | None = None, timeout_s: float
    ) -> Coroutine[Any, Any, Packet]:
        """Send a packet and wait for one reply. Cancelling is safe: a late reply is dropped.

        Raises:
            Unavailable: Nobody listens there.
            DeadlineExceeded: No reply came in time.
            TooLarge: It is over `max_payload`.
        """
        ...

    def open_inbox(self, on_packet: OnPacket) -> Inbox:
        """An address for many replies. Costs no subscription of its own."""
        ...

    async def subscribe(
        self, subject: str, on_packet: OnPacket, *, queue: str = ""
    ) -> Subscription:
        """Have packets handed over; transports in the same queue share them."""
        ...

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """Wait until the server has seen all that was sent.

        Raises:
            Unavailable: It has not answered in time.
        """
        ...

    async def writable(self) -> None:
        """Wait while more is buffered than the network takes."""
        ...

    def key_value(self, bucket: Bucket) -> KeyValue:
        """Open a bucket; it is made on first use."""
        ...

    def stream(self, log: Log) -> Stream:
        """Open a stream; it is made on first use."""
        ...

    async def close(self) -> None:
        """Send what is buffered and leave."""
        ...


def check_subject(subject: str) -> None:
    """Refuse what would end a protocol line early, or read as two of its words.

    Raises:
        InvalidMessage: It is no subject.
    """
    if not subject or " " in subject or not subject.isprintable():
        raise InvalidMessage(
            f"{subject!r} is no subject", hint="write ids as tokens with `subjects.escape`"
        )


# The headers of a republished change, which every transport's feed carries. A stream's items carry
# their sequence likewise.
CHANGE_SUBJECT = "Nats-Subject"
CHANGE_SEQUENCE = "Nats-Sequence"
CHANGE_OPERATION = "KV-Operation"
CHANGE_MARKER = "Nats-Marker-Reason"
KEPT_AT = "Nats-Time-Stamp"


def change_of(packet: Packet) -> Change:
    """The change that a packet of a bucket's feed tells: a put, a delete or an expiry marker."""
    headers = packet.headers
    key = headers.get(CHANGE_SUBJECT, "").split(".", 2)[-1]
    gone = CHANGE_MARKER in headers or headers.get(CHANGE_OPERATION) in ("DEL", "PURGE")
    return Change(
        key=key,
        value=None if gone else packet.payload,
        revision=int(headers.get(CHANGE_SEQUENCE, "0")),
        expired=CHANGE_MARKER in headers,
    )
