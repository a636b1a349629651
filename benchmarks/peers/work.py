"""The work that every contender does, so that figures compare like with like.

There are three kinds: `echo` (1 KiB there and back), `stream` (many small frames to one inbox) and
`turn` (one question, answered in ten chunks by an agent that repeats the question).
"""

import functools
from typing import Any

CHUNKS = 10
FRAMES = 2_000
FRAME_BYTES = 48
MESSAGE_BYTES = 1_024


class WrongAnswer(Exception):
    """A reply is not what was asked for; a contender that gives one has not done the work."""


@functools.cache
def question(worker: int) -> str:
    """What one worker asks, time after time: few questions, so a router may cache embeddings.

    Workers ask different things, so that an answer delivered to the wrong one is noticed.
    """
    return f"please echo no {worker % 1000:03d}"


@functools.cache
def answer_chunks(asked: str) -> tuple[str, ...]:
    """How the echo agent answers: ten chunks of 21 bytes."""
    return tuple(f"{asked[:18]:<18} {index:02d}" for index in range(CHUNKS))


@functools.cache
def answer(asked: str) -> str:
    """The whole answer to a question."""
    return "".join(answer_chunks(asked))


def check(expected: object, got: object) -> None:
    """Refuse a reply that is not the expected one.

    Raises:
        WrongAnswer: It differs; the start of both is shown.
    """
    if got != expected:
        raise WrongAnswer(f"expected {expected!r:.120}, got {got!r:.300}")


@functools.cache
def payload(size: int, worker: int) -> bytes:
    """Bytes for an echo of a given size; the end of them tells the workers apart."""
    return (b"0123456789abcdef" * (size // 16 + 1))[: size - 8] + b"%08d" % worker


@functools.cache
def frames(count: int, size: int) -> tuple[bytes, ...]:
    """A stream of frames of one size, each beginning with its own number."""
    return tuple(b"%08d" % index + b"." * (size - 8) for index in range(count))


def message_fields(worker: int) -> dict[str, Any]:
    """The values of one worker's typed message; `message.Work` has these fields.

    They are 1 KiB on the wire, in msgpack and in JSON.
    """
    return {
        "number": 100_000_000 + worker,
        "tenant": "demo",
        "conversation": "conversation-0123456789abcdef",
        "capability": "view-bill",
        "question": "How much do I owe this month, and when is it due? " * 11,
        "history": [f"An earlier utterance of this conversation, number {i}." for i in range(5)],
        "metadata": {"channel": "web", "locale": "en-GB", "client": "benchmark"},
        "created": 1_700_000_000.25,
        "urgent": False,
    }
