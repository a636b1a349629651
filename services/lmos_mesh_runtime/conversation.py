"""What a conversation is, and what a new message does to it. Pure: the caller brings the time.

A conversation is one value, replaced by compare-and-set, so that its turns run one at a time over
all replicas: whoever writes the running turn has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from lmos_mesh import subjects
from lmos_mesh.endpoint import Message
from lmos_mesh.messages import (
    DEFAULT_CHANNEL,
    Answer,
    Turn,
    Utterance,
)
from lmos_mesh.transport import Bucket, Log
from lmos_mesh.weights import Side

CONVERSATIONS = Bucket(name="lmos_conversations", tokens=2)
HISTORY = Log(name="LMOS_HISTORY", subjects=("lmos.*.history.*",))

WINDOW_TURNS = 20
WINDOW_BYTES = 256 * 1024
HISTORY_BYTES = 64 * 1024


def history_of(tenant: str, conversation: str) -> str:
    """The subject of a conversation's older turns."""
    return f"lmos.{subjects.escape(tenant)}.history.{subjects.escape(conversation)}"


class Running(Message):
    """Who carries the running turn.

    Attributes:
        holder: The runtime instance that carries it.
        task: What that instance calls it, for calling it off.
        until: Unix seconds after which it is given up.
    """

    turn: str
    holder: str
    task: str
    until: float


class Record(Message):
    """A conversation as it is kept: the last turns here, older ones in a stream.

    Attributes:
        side: Which release line carries it, and what decided that; None if its callers always
            named one.
    """

    conversation: str
    channel: str = DEFAULT_CHANNEL
    side: Side | None = None
    turns: tuple[Turn, ...] = ()
    running: Running | None = None
    archived: int = 0

    def turn(self, id: str) -> Turn | None:
        """The turn of that id, if it is among the last."""
        return next((one for one in reversed(self.turns) if one.turn == id), None)


@dataclass(frozen=True, slots=True)
class Begin:
    """The message may be answered now, once this is stored."""

    record: Record


@dataclass(frozen=True, slots=True)
class Again:
    """This turn was answered before."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Wait:
    """Another turn is running, or this one is, elsewhere."""

    running: Running


def begin(
    record: Record | None,
    turn: Turn,
    running: Running,
    *,
    conversation: str,
    channel: str,
    now: float,
    side: Side | None = None,
    holder_is_dead: bool = False,
) -> Begin | Again | Wait:
    """What a message does to a conversation.

    Args:
        record: The conversation so far; None for a new one.
        turn: The message as a running turn.
        running: Who would carry it.
        conversation: Its id.
        channel: The way in.
        now: Unix seconds.
        side: Which release line carries the conversation from now on.
        holder_is_dead: Whether the one who carries the running turn is known to have died.
    """
    if record is None:
        return Begin(
            Record(
                conversation=conversation,
                channel=channel,
                side=side,
                turns=(turn,),
                running=running,
            )
        )
    known = record.turn(turn.turn)
    if known is not None and known.state == "done":
        return Again(known)
    if record.running is not None:
        if record.running.until > now and not holder_is_dead:
            return Wait(record.running)
        record = _given_up(record, now=now)
    # The same turn after a failure is another try.
    turns = tuple(one for one in record.turns if one.turn != turn.turn)
    begun = {"turns": (*turns, turn), "running": running, "side": side}
    return Begin(record.model_copy(update=begun))


def _given_up(record: Record, *, now: float) -> Record:
    """The running turn's holder has died or let its time pass."""
    turns = tuple(
        one.model_copy(update={"state": "failed", "ended": now}) if one.state == "running" else one
        for one in record.turns
    )
    return record.model_copy(update={"turns": turns, "running": None})


def finish(record: Record, ended: Turn) -> tuple[Record, tuple[Turn, ...]]:
    """The conversation with its running turn ended, and the turns that no longer fit in it."""
    turns = tuple(ended if one.turn == ended.turn else one for one in record.turns)
    keep = len(turns)
    size = 0
    for count, one in enumerate(reversed(turns), start=1):
        size += _bytes_of(one) + 512
        if count > 1 and (count > WINDOW_TURNS or size > WINDOW_BYTES):
            keep = count - 1
            break
    evicted = turns[: len(turns) - keep]
    return (
        record.model_copy(
            update={
                "turns": turns[len(turns) - keep :],
                "running": None,
                "archived": record.archived + len(evicted),
            }
        ),
        evicted,
    )


def all_turns(older: Sequence[Turn], record: Record) -> tuple[Turn, ...]:
    """Every turn once, oldest first. A turn put aside twice, or put aside in vain, counts once."""
    found = {one.turn: one for one in older}
    for one in record.turns:
        found.pop(one.turn, None)
    return (*found.values(), *record.turns)


def said_before(turns: Sequence[Turn]) -> tuple[Utterance, ...]:
    """What was said so far, oldest first, as much as may be sent along."""
    said: list[Utterance] = []
    size = 0
    for turn in reversed(turns):
        if turn.state != "done":
            continue
        size += _bytes_of(turn)
        if size > HISTORY_BYTES:
            break
        # Each request of several as if it had been asked alone: so it is known who said what.
        done = [one for one in turn.parts if one.state == "done"]
        for text, answer, agent in reversed(
            [(one.text, one.answer, one.agent) for one in done]
            or [(turn.message, turn.answer, turn.agent)]
        ):
            said.append(Utterance(role="assistant", content=answer, agent=agent))
            said.append(Utterance(role="user", content=text))
    return tuple(reversed(said))


def _bytes_of(turn: Turn) -> int:
    """What its words take when they are stored or sent; escapes and all."""
    parts = sum(len(to_json(one.text)) + len(to_json(one.answer)) for one in turn.parts)
    return len(to_json(turn.message)) + len(to_json(turn.answer)) + parts


def answer_of(turn: Turn, conversation: str) -> Answer:
    """The answer that a finished turn gave."""
    return Answer(
        answer=turn.answer,
        conversation=conversation,
        turn=turn.turn,
        agent=turn.agent,
        subset=turn.subset,
        capability=turn.capability,
        instance=turn.instance,
        asked_back=turn.asked_back,
        attempts=turn.attempts,
        parts=turn.parts,
        handovers=turn.handovers,
    )


def error_of(problem: dict[str, Any]) -> dict[str, Any]:
    """The part of a problem document that is kept with a failed turn."""
    return {key: problem[key] for key in ("code", "status", "detail") if key in problem}
