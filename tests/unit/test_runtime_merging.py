"""Several answers as one text."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_runtime.merging import Frames, Merged


def heard(frames: Frames) -> str:
    """What a caller has who obeys `restart`."""
    said: list[str] = []
    for kind, body in frames:
        if kind == "restart":
            said.clear()
        else:
            assert body
            said.append(body)
    return "".join(said)


def test_the_first_answer_is_passed_on_as_it_comes_and_the_second_when_it_is_its_turn() -> None:
    merged = Merged(2)
    merged.named(0, "A:")
    merged.named(1, "B:")

    assert merged.say(1, "two") == []
    assert merged.say(0, "one") == [("delta", "A:\none")]
    assert merged.say(0, " more") == [("delta", " more")]
    assert merged.end(0) == [("delta", "\n\nB:\ntwo")]
    assert merged.say(1, "!") == [("delta", "!")]
    assert merged.end(1) == []
    assert merged.text() == "A:\none more\n\nB:\ntwo!"
    assert (merged.words(0), merged.words(1)) == ("one more", "two!")


def test_an_answer_that_is_ready_before_its_turn_is_passed_on_whole() -> None:
    merged = Merged(3)
    for at, text in ((2, "three"), (1, "two")):
        merged.say(at, text)
        assert merged.end(at) == []
    merged.say(0, "one")

    assert heard(merged.end(0)) == "\n\ntwo\n\nthree"


def test_what_begins_anew_takes_nothing_from_the_others() -> None:
    merged = Merged(2)
    merged.say(0, "one")
    merged.end(0)
    merged.say(1, "tw")

    assert merged.restart(1, {"lost": "i"}) == [("restart", {"lost": "i"}), ("delta", "one")]
    assert merged.say(1, "two") == [("delta", "\n\ntwo")]


def test_what_nobody_has_seen_begins_anew_without_a_word() -> None:
    merged = Merged(2)
    merged.say(1, "tw")

    assert not merged.seen(1)
    assert merged.restart(1, {}) == []
    merged.say(1, "two")
    assert heard(merged.say(0, "one") + merged.end(0) + merged.end(1)) == "one\n\ntwo"


def test_what_an_agent_said_before_it_handed_over_stays_whatever_comes_after() -> None:
    merged = Merged(1)
    merged.say(0, "One moment.")
    merged.named(0, "")
    assert not merged.seen(0)
    merged.say(0, "Your b")

    assert merged.seen(0)
    assert heard([("delta", "gone"), *merged.restart(0, {})]) == "One moment."
    merged.say(0, "Your bill")
    assert merged.text() == merged.words(0) == "One moment.\n\nYour bill"


def test_a_long_answer_is_passed_on_in_pieces_that_the_bus_takes() -> None:
    merged = Merged(2)
    for _ in range(10):
        merged.say(1, "x" * 90_000)

    frames = merged.end(0)

    assert max(len(body) for _, body in frames) <= 100_000
    assert heard(frames) == merged.words(1)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["say", "say", "say", "restart", "named", "end"]),
        st.sampled_from(["a", "bc", "d e ", ""]),
    ),
    max_size=40,
)


@given(steps=STEPS, headings=st.booleans())
def test_what_was_heard_is_the_whole_text_whatever_happened(
    steps: list[tuple[int, str, str]], headings: bool
) -> None:
    merged = Merged(4)
    ended: set[int] = set()
    kept: dict[int, str] = {}
    frames: Frames = []
    steps = [*steps, *((at, "end", "") for at in range(4))]
    for at, what, text in steps:
        if at in ended:
            continue
        seen = merged.seen(at)
        new: list[tuple[str, Any]] = []
        match what:
            case "say":
                new = merged.say(at, text)
            case "restart":
                new = merged.restart(at, {})
                assert seen == any(kind == "restart" for kind, _ in new)
                assert merged.words(at) == kept.get(at, "")
            case "named":
                merged.named(at, f"H{at}:" if headings else "")
                kept[at] = merged.words(at)
            case _:
                new = merged.end(at)
                ended.add(at)
        frames += new

    assert heard(frames) == merged.text()
    if not headings:
        assert merged.text() == "\n\n".join(filter(None, map(merged.words, range(4))))
