"""`lmos demo --once`: what a newcomer sees first works from start to end."""

import pytest

from lmos_mesh.cli.demo import TOUR
from lmos_mesh.models import installed_model
from tests.integration.cli.conftest import Lmos, StartLmos


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


def test_its_agents_are_scaled_and_stopped_like_those_of_anybody(
    start_lmos: StartLmos, lmos: Lmos
) -> None:
    demo = start_lmos("demo")
    line = demo.until("✓ agents")

    scaled = lmos("agents", "scale", "billing", "2")
    stopped = lmos("agents", "stop", "weather")

    demo.interrupt()
    assert line.endswith("billing, concierge, planner, reception and 3 more")
    assert "billing scaled from 1 to 2" in scaled.stdout, scaled.stderr
    assert "billing.py on " in scaled.stdout
    assert "1 instance stopped, 0 running" in stopped.stdout, stopped.stderr
    assert demo.end() == 0, demo.text


def test_the_demo_can_be_left_before_it_is_over(start_lmos: StartLmos) -> None:
    demo = start_lmos("demo", "--once")
    demo.until("✓ nats")

    demo.interrupt()

    assert demo.end() == 130, demo.text
    assert "Traceback" not in demo.text
