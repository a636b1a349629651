"""The typed questions of the bus benchmark, as a service of the mesh would declare them."""

from lmos_mesh.endpoint import Endpoint, Message


class Work(Message):
    """The same message that the peers send; see `work.message_fields` for the values."""

    number: int
    tenant: str
    conversation: str
    capability: str
    question: str
    history: list[str]
    metadata: dict[str, str]
    created: float
    urgent: bool


class Wanted(Message):
    """A stream of so many frames, each with so many bytes of text."""

    frames: int
    bytes: int


class Sent(Message):
    """How many frames there were."""

    frames: int


ECHO = Endpoint("bench", "echo", Work, Work)
FRAMES = Endpoint("bench", "frames", Wanted, Sent)

# What a frame is on the wire beyond its text: the array, a sequence number of three bytes, the
# kind `delta`, and the length of the text.
FRAME_OVERHEAD = 1 + 3 + 6 + 2
