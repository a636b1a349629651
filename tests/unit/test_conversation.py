"""What a message does to a conversation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.messages import AnsweredPart, Turn
from lmos_mesh_runtime.conversation import (
    HISTORY_BYTES,
    WINDOW_BYTES,
    WINDOW_TURNS,
    Again,
    Begin,
    Record,
    Running,
    Wait,
    all_turns,
    answer_of,
    begin,
    error_of,
    finish,
    said_before,
)

NOW = 1000.0


def turn(id: str, **more: Any) -> Turn:
    return Turn.model_validate({"turn": id, "message": f"message of {id}", **more})


def running(id: str, *, holder: str = "runtime-1", until: float = NOW + 60) -> Running:
    return Running(turn=id, holder=holder, task=f"task-{id}", until=until)


def begun(
    record: Record | None, id: str, *, now: float = NOW, holder_is_dead: bool = False, **more: Any
) -> Begin | Again | Wait:
    return begin(
        record,
        turn(id, **more),
        running(id),
        conversation="c",
        channel="web",
        now=now,
        holder_is_dead=holder_is_dead,
    )


def after(outcome: Begin | Again | Wait, *, state: str = "done", answer: str = "answer") -> Record:
    """The conversation once the turn that was begun has ended."""
    assert isinstance(outcome, Begin)
    record = outcome.record
    assert record.running is not None
    ended = record.turns[-1].model_copy(update={"state": state, "answer": answer})
    return finish(record, ended)[0]


def test_the_first_message_creates_the_conversation() -> None:
    outcome = begun(None, "t1")

    assert isinstance(outcome, Begin)
    assert outcome.record.conversation == "c"
    assert [one.turn for one in outcome.record.turns] == ["t1"]
    assert outcome.record.running == running("t1")


def test_the_second_message_waits_for_the_first() -> None:
    first = begun(None, "t1")
    assert isinstance(first, Begin)

    outcome = begun(first.record, "t2")

    assert outcome == Wait(running("t1"))


def test_the_next_message_follows_the_last() -> None:
    record = after(begun(None, "t1"))

    record = after(begun(record, "t2"))

    assert [(one.turn, one.state) for one in record.turns] == [("t1", "done"), ("t2", "done")]


def test_the_same_turn_again_gives_what_it_gave() -> None:
    record = after(begun(None, "t1"), answer="the answer")

    outcome = begun(record, "t1", message="other words")

    assert isinstance(outcome, Again)
    assert (outcome.turn.answer, outcome.turn.message) == ("the answer", "message of t1")


def test_the_same_turn_again_while_it_runs_waits_for_it() -> None:
    first = begun(None, "t1")
    assert isinstance(first, Begin)

    assert isinstance(begun(first.record, "t1"), Wait)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_turn_that_came_to_nothing_may_be_tried_again(state: str) -> None:
    record = after(begun(None, "t1"))
    record = after(begun(record, "t2"), state=state, answer="")

    outcome = begun(record, "t2")

    assert isinstance(outcome, Begin)
    assert [(one.turn, one.state) for one in outcome.record.turns] == [
        ("t1", "done"),
        ("t2", "running"),
    ]


@pytest.mark.parametrize(("now", "dead"), [(NOW, True), (NOW + 61, False)])
def test_a_turn_whose_holder_died_or_took_too_long_is_given_up(now: float, dead: bool) -> None:
    first = begun(None, "t1")
    assert isinstance(first, Begin)

    outcome = begun(first.record, "t2", now=now, holder_is_dead=dead)

    assert isinstance(outcome, Begin)
    assert [(one.turn, one.state, one.ended) for one in outcome.record.turns] == [
        ("t1", "failed", now),
        ("t2", "running", 0.0),
    ]
    assert outcome.record.running == running("t2")


def test_the_turn_of_a_dead_holder_is_taken_over_under_its_own_id() -> None:
    first = begun(None, "t1")
    assert isinstance(first, Begin)

    outcome = begun(first.record, "t1", holder_is_dead=True)

    assert isinstance(outcome, Begin)
    assert [(one.turn, one.state) for one in outcome.record.turns] == [("t1", "running")]


def test_ending_a_turn_frees_the_conversation_and_keeps_the_others() -> None:
    record = after(begun(None, "t1"))
    second = begun(record, "t2")
    assert isinstance(second, Begin)

    record, evicted = finish(second.record, turn("t2", state="done", answer="two"))

    assert record.running is None
    assert [one.answer for one in record.turns] == ["answer", "two"]
    assert evicted == ()


# -- the window --


def test_the_oldest_turns_leave_when_there_are_too_many() -> None:
    record: Record | None = None
    left: list[str] = []
    for number in range(WINDOW_TURNS + 3):
        outcome = begun(record, f"t{number}")
        assert isinstance(outcome, Begin)
        record, evicted = finish(outcome.record, turn(f"t{number}", state="done"))
        left += [one.turn for one in evicted]

    assert record is not None
    assert left == ["t0", "t1", "t2"]
    assert len(record.turns) == WINDOW_TURNS
    assert record.archived == 3


@pytest.mark.parametrize("letter", ["x", "€", "\N{GRINNING FACE}", '"', "\n", "\x00"])
def test_the_window_has_a_size_whatever_the_words_are_made_of(letter: str) -> None:
    record: Record | None = None
    for number in range(12):
        outcome = begun(record, f"t{number}", message=letter * 8192)
        assert isinstance(outcome, Begin)
        answer = letter * 8192
        ended = outcome.record.turns[-1].model_copy(update={"state": "done", "answer": answer})
        record, _ = finish(outcome.record, ended)

        stored = record.model_dump_json().encode()
        assert len(stored) <= WINDOW_BYTES + 4096
    assert record is not None
    assert len(record.turns) >= 2


def test_the_last_turn_stays_however_large_it_is() -> None:
    record = after(begun(None, "t1"))

    record = after(begun(record, "t2"), answer="x" * WINDOW_BYTES)

    assert [one.turn for one in record.turns] == ["t2"]


def test_a_turn_that_was_put_aside_twice_or_in_vain_is_read_once() -> None:
    record = after(begun(None, "t3"))
    older = [turn("t1"), turn("t2"), turn("t1", answer="again"), turn("t3")]

    turns = all_turns(older, record)

    assert [one.turn for one in turns] == ["t1", "t2", "t3"]
    assert turns[-1].answer == "answer"


# -- what is told of it --


def test_only_what_was_answered_was_said_before_and_oldest_comes_first() -> None:
    turns = [
        turn("t1", state="done", answer="one", agent="billing"),
        turn("t2", state="failed"),
        turn("t3", state="cancelled", answer="half"),
        turn("t4", state="done", answer="four", agent="weather"),
        turn("t5"),
    ]

    said = said_before(turns)

    assert [(one.role, one.content, one.agent) for one in said] == [
        ("user", "message of t1", ""),
        ("assistant", "one", "billing"),
        ("user", "message of t4", ""),
        ("assistant", "four", "weather"),
    ]


def test_what_was_said_before_is_cut_at_its_oldest_end() -> None:
    turns = [turn(f"t{at}", state="done", answer="€" * (HISTORY_BYTES // 16)) for at in range(20)]

    said = said_before(turns)

    assert said[-1].content == turns[-1].answer
    assert 2 <= len(said) < 40
    assert sum(len(one.content.encode()) for one in said) <= HISTORY_BYTES


def test_the_answer_of_a_turn_is_told_as_it_was() -> None:
    ended = turn("t1", state="done", answer="a", agent="x", capability="y", attempts=2)

    answer = answer_of(ended, "c")

    assert (answer.answer, answer.agent, answer.capability, answer.attempts) == ("a", "x", "y", 2)
    assert (answer.conversation, answer.turn) == ("c", "t1")


def test_only_the_outline_of_an_error_is_kept() -> None:
    kept = error_of({"code": "x", "status": 500, "detail": "d", "hint": "h", "more": {"big": 1}})

    assert kept == {"code": "x", "status": 500, "detail": "d"}


# -- in any order --

steps = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from(["begin", "done", "failed", "cancelled"]),
        st.booleans(),
        st.floats(0, 40),
    ),
    max_size=60,
)


@given(steps)
def test_at_most_one_turn_runs_and_an_answer_is_never_lost_or_changed(
    story: list[tuple[str, str, bool, float]],
) -> None:
    record: Record | None = None
    answered: dict[str, str] = {}
    now = NOW
    for number, (id, what, dead, passed) in enumerate(story):
        now += passed
        if what == "begin":
            outcome = begin(
                record,
                turn(id),
                running(id, until=now + 60),
                conversation="c",
                channel="web",
                now=now,
                holder_is_dead=dead,
            )
            if isinstance(outcome, Begin):
                assert id not in answered
                record = outcome.record
            elif isinstance(outcome, Again):
                assert outcome.turn.answer == answered[id]
            else:
                assert record is not None
                assert record.running == outcome.running
                assert not dead
        elif record is not None and record.running is not None:
            at_it = record.running.turn
            answer = f"answer {number}" if what == "done" else ""
            record, _ = finish(record, turn(at_it, state=what, answer=answer))
            if what == "done":
                answered[at_it] = answer
        if record is not None:
            ids = [one.turn for one in record.turns]
            at_work = [one.turn for one in record.turns if one.state == "running"]
            assert len(ids) == len(set(ids))
            assert at_work == ([record.running.turn] if record.running else [])
            assert {one.turn: one.answer for one in record.turns if one.state == "done"} == answered


def test_of_a_turn_of_several_requests_each_that_was_answered_was_said() -> None:
    parts = (
        AnsweredPart(text="show my bill", agent="billing", answer="39.99 €"),
        AnsweredPart(text="play jazz", agent="music", state="failed"),
        AnsweredPart(text="will it rain?", agent="weather", answer="It will."),
    )
    one = turn("a", state="done", answer="all of it", agent="billing,weather", parts=parts)

    assert [(said.role, said.content, said.agent) for said in said_before([one])] == [
        ("user", "show my bill", ""),
        ("assistant", "39.99 €", "billing"),
        ("user", "will it rain?", ""),
        ("assistant", "It will.", "weather"),
    ]
    assert answer_of(one, "c").parts == parts


def test_the_parts_of_a_turn_count_for_the_room_that_it_takes() -> None:
    part = AnsweredPart(text="x", agent="a", answer="y" * WINDOW_BYTES)
    record = after(begun(None, "a"))
    second = begun(record, "b")
    assert isinstance(second, Begin)
    ended = second.record.turns[-1].model_copy(update={"state": "done", "parts": (part,)})

    kept, evicted = finish(second.record, ended)

    assert [one.turn for one in kept.turns] == ["b"]
    assert [one.turn for one in evicted] == ["a"]
