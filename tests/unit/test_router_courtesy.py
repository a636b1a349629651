"""What asks for nothing by itself, in English and German."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_router.courtesy import is_courtesy, is_remark


@pytest.mark.parametrize(
    "text",
    [
        "hi",
        "Hello there!",
        "good morning",
        "how are you today?",
        "I need help",
        "please help me",
        "can you help?",
        "could you please help me with it?",
        "is there anyone who can help me",
        "thank you very much",
        "Thanks in advance!",
        "I don\u2019t know how",
        "I have a problem",
        "it is urgent",
        "danke",
        "vielen Dank im Voraus",
        "ich brauche Hilfe",
        "Guten Tag",
        "K\u00f6nnen Sie mir bitte helfen?",
        "es ist dringend",
        "ich wei\u00df nicht, wie",
        "Mit freundlichen Gr\u00fc\u00dfen",
    ],
)
def test_courtesy_asks_for_nothing(text: str) -> None:
    assert is_courtesy(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "help me find my phone",
        "I need help cancelling my order",
        "thank you letter to my boss",
        "what time is it",
        "I need to know what time it is",
        "I do not know where my parcel is",
        "two in the morning",
        "how much is it",
        "and you",
        "danke, aber die Rechnung stimmt nicht",
        "hilf mir bei der Rechnung",
        "wo bin ich",
        "please " * 40,
    ],
)
def test_whatever_names_something_is_no_courtesy(text: str) -> None:
    assert not is_courtesy(text)


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("I am in a hurry", True),
        ("my daughter is waiting", True),
        ("it does not work for me", True),
        ("es geht nicht", True),
        ("I want to pay", False),
        ("it would be nice to know, is it open?", False),
        ("knit me a sweater", False),
        ("ich m\u00f6chte zahlen", False),
        ("strick mir einen Pullover", False),
    ],
)
def test_a_remark_tells_and_wishes_for_nothing(text: str, remark: bool) -> None:
    assert is_remark(text) is remark


@given(st.text(max_size=200))
def test_any_words_can_be_looked_at(text: str) -> None:
    assert is_courtesy(text) in (True, False)
    assert is_remark(text) in (True, False)
