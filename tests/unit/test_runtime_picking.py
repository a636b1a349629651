"""What a user means who was asked which of several things to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.messages import Utterance
from lmos_mesh_runtime.asking_back import ask_back, choices_in
from lmos_mesh_runtime.picking import Pick, pick_of, picked

CHOICES = [("view bill", "billing"), ("Rechnung zeigen", "kasse"), ("forecast", "weather")]

NAMES = st.text("abcäß -:,.", min_size=1, max_size=12).map(str.strip).filter(bool)


@given(
    choices=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5),
    out_of_scope=st.booleans(),
    language=st.sampled_from(["en", "de"]),
)
def test_what_was_offered_is_read_off_the_question(
    choices: list[tuple[str, str]], out_of_scope: bool, language: str
) -> None:
    question = ask_back(choices, out_of_scope=out_of_scope, language=language)

    assert choices_in(question) == tuple(choices)


@given(st.text(max_size=80))
def test_no_other_words_offer_anything(text: str) -> None:
    assert choices_in(text) == ()


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("the first one", 0),
        ("1", 0),
        ("number 2 please", 1),
        ("I'd like the second", 1),
        ("the last one, thanks", 2),
        ("billing", 0),
        ("the weather one", 2),
        ("die Rechnung bitte", 1),
        ("Rechnung", 1),
        ("das erste", 0),
        ("die zweite bitte", 1),
        ("ich nehme das dritte", 2),
        ("das letzte", 2),
        ("the fourth one", None),
        ("yes", None),
        ("no", None),
        ("not the first", None),
        ("asdf qwer", None),
        ("", None),
        ("please", None),
        ("the first bill that I got from you was much too high, why?", None),
        ("play some jazz", None),
    ],
)
def test_a_choice_is_taken_by_its_number_or_its_name(said: str, at: int | None) -> None:
    assert picked(said, CHOICES) == at


def test_a_name_that_two_of_them_have_is_no_choice() -> None:
    assert picked("bill", [("view bill", "billing"), ("pay bill", "billing")]) is None
    assert picked("pay bill", [("view bill", "billing"), ("pay bill", "billing")]) == 1


def test_who_was_offered_one_thing_may_say_yes() -> None:
    assert picked("Yes, sure!", CHOICES[:1]) == 0
    assert picked("ja bitte", CHOICES[:1]) == 0


@given(st.text(max_size=60), st.lists(st.tuples(NAMES, NAMES), max_size=5))
def test_whatever_is_said_one_of_them_is_meant_or_none(
    said: str, choices: list[tuple[str, str]]
) -> None:
    assert picked(said, choices) in (None, *range(len(choices)))


def test_a_choice_is_the_answer_to_the_message_that_was_asked_back() -> None:
    asked = Utterance(role="user", content="I have something with paper")
    question = Utterance(role="assistant", content=ask_back(CHOICES, language="en"))
    answered = Utterance(role="assistant", content=question.content, agent="parrot")

    assert pick_of("the first one", [asked, question]) == Pick(
        "view bill", "billing", "I have something with paper"
    )
    assert pick_of("the first one", [asked, answered]) is None
    assert pick_of("the first one", [question]) is None
    assert pick_of("the first one", [asked, question, asked, answered]) is None
