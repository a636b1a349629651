"""Server-sent events as bytes. Pure; the data must hold no line break, as compact JSON does not."""

MEDIA_TYPE = "text/event-stream"

WORKING = b": working\n\n"
"""A comment, which clients skip: the line is alive although nothing is said."""


OPEN = b": open\n\n"
"""A comment at the beginning, so that the client sees that it is heard."""


def event(name: str, seq: int, data: bytes) -> bytes:
    """A named event with an id."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), seq, data)


def comment(text: str) -> bytes:
    """Something for a person who looks; clients skip it."""
    return f": {' '.join(text.split())}\n\n".encode()


def data(data: bytes) -> bytes:
    """An event without a name."""
    return b"data: %s\n\n" % data
