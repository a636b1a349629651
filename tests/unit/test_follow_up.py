"""A follow-up is short and opened as one."""

import pytest

from lmos_mesh_router.follow_up import follows


@pytest.mark.parametrize(
    "message",
    [
        "and for last month?",
        "What about tomorrow?",
        "  why?",
        "the same for Bonn",
        "und im März?",
        "was ist mit morgen",
        "THAT one",
    ],
)
def test_what_is_opened_as_a_continuation_follows(message: str) -> None:
    assert follows(message)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "show my bill",
        "android does not work",  # not the word `and`
        "whyever not",
        "and now tell me all about the contract that my mother signed",  # stands on its own
    ],
)
def test_what_stands_on_its_own_does_not(message: str) -> None:
    assert not follows(message)
