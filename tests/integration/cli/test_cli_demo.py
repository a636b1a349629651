"""`lmos demo --once`: what a newcomer sees first works from start to end."""

import pytest

from lmos_mesh.cli.demo import TOUR
from lmos_mesh.models import installed_model
from tests.integration.cli.conftest import StartLmos


@pytest.mark.timeout(180)
def test_the_tour_shows_every_answer_with_who_gave_it_and_why(start_lmos: StartLmos) -> None:
    demo = start_lmos("demo", "--once")

    code = demo.end(timeout_s=170)

    assert code == 0, demo.text
    assert demo.text.count("▸  ") == len(TOUR)
    for question in TOUR:
        assert question.text in demo.text
    assert demo.lines[-1].endswith("everything is stopped")
    if installed_model() is None:
        assert "hashing embedder" in demo.text
        return
    chosen = [line.strip() for line in demo.lines if line.endswith("sure")]
    agents = [line.split(" · ")[0] for line in chosen]
    assert agents == ["billing", "weather", "travel", "travel", "support"]
    assert "so it asks back" in demo.text
    assert demo.text.count("nearest: “") == 5
    assert "For 2 travellers" in demo.text
    assert "5. Still nothing?" in demo.text


def test_the_demo_can_be_left_before_it_is_over(start_lmos: StartLmos) -> None:
    demo = start_lmos("demo", "--once")
    demo.until("✓ nats")

    demo.interrupt()

    assert demo.end() == 130, demo.text
    assert "Traceback" not in demo.text
