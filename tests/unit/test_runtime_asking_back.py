"""Users are asked back in their language, or in the channel's."""

import pytest

from lmos_mesh.messages import Candidate, Decision
from lmos_mesh_runtime.asking_back import LANGUAGES, ask_back, question_for, spoken


def test_asking_back_names_what_the_mesh_could_do() -> None:
    text = ask_back([("view bill", "billing"), ("forecast", "weather")])
    other = ask_back([("view bill", "billing")], out_of_scope=True)

    assert "view bill (billing); forecast (weather)" in text
    assert "not sure who" in text
    assert "anybody here" in other
    assert "no agent is there for it" in ask_back([])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_words_for_all_of_it(language: str) -> None:
    said = {
        ask_back([], language=language),
        ask_back([("a", "b")], language=language),
        ask_back([("a", "b")], language=language, out_of_scope=True),
    }

    assert len(said) == 3
    assert all("a (b)" in one for one in said if one != ask_back([], language=language))


@pytest.mark.parametrize(
    ("message", "wanted", "language"),
    [
        ("how much do I owe?", (), "en"),
        ("wie viel muss ich zahlen?", (), "de"),
        ("wie viel muss ich zahlen?", ("en",), "en"),
        ("wie viel muss ich zahlen?", (None, "en-GB"), "en"),
        ("how much do I owe?", (None, "de_AT"), "de"),
        ("how much do I owe?", ("fr", "de"), "en"),
        ("wie viel muss ich zahlen?", ("",), "de"),
    ],
)
def test_who_says_a_language_is_obeyed_and_else_the_message_tells(
    message: str, wanted: tuple[str | None, ...], language: str
) -> None:
    assert spoken(message, *wanted) == language


def test_what_it_could_be_is_offered_first() -> None:
    decision = Decision(
        outcome="unsure",
        candidates=(
            Candidate(agent="weather", capability="forecast", score=0.4),
            Candidate(agent="billing", capability="view", capability_name="View bill", score=0.4),
        ),
        could_be=("billing",),
    )

    assert "View bill (billing); forecast (weather)" in question_for(decision, "de")
