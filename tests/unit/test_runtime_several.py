"""Which requests of a message wait for another, and what is said of those that fail."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.errors import AgentFailed, NotFound
from lmos_mesh.messages import AnsweredPart, Part
from lmos_mesh_runtime.following_on import built_on
from lmos_mesh_runtime.several import all_failed, apology, heading, plan, skipped

LABELLED = Path(__file__).parents[1] / "data" / "follow_on.csv"


def parts(*texts: str) -> list[Part]:
    return [Part(text=text, agent=f"agent-{at}") for at, text in enumerate(texts)]


def needs_of(message: str, *texts: str) -> list[int | None]:
    return [one.needs for one in plan(message, parts(*texts), 10)]


@pytest.mark.parametrize(
    ("message", "texts", "needs"),
    [
        ("show my bill and will it rain?", ("show my bill", "will it rain?"), [None, None]),
        ("show my bill and send it to me", ("show my bill", "send it to me"), [None, 0]),
        ("show my bill, then find a hotel", ("show my bill", "find a hotel"), [None, 0]),
        (
            "zeig die Rechnung, danach schick sie mir und wie wird das Wetter",
            ("zeig die Rechnung", "schick sie mir", "wie wird das Wetter"),
            [None, 0, None],
        ),
        ("pay it and send it and file it", ("pay it", "send it", "file it"), [None, 0, 1]),
        (
            "show my bill, play some jazz and pay the bill",
            ("show my bill", "play some jazz", "pay the bill"),
            [None, None, 0],
        ),
        (
            "such ein Hotel, zeig meine Rechnung und buch das Hotel danach",
            ("such ein Hotel", "zeig meine Rechnung", "buch das Hotel danach"),
            [None, None, 1],
        ),
        ("show my bill and then pay it", ("show my bill", "pay it"), [None, 0]),
        ("show my bill and then pay it", ("show my bill", "then pay it"), [None, 0]),
        # A router that has its own words for the requests.
        ("bill, then mail", ("show the bill", "mail it"), [None, 0]),
    ],
)
def test_a_request_waits_for_the_one_that_it_builds_on(
    message: str, texts: tuple[str, ...], needs: list[int | None]
) -> None:
    assert needs_of(message, *texts) == needs


@pytest.mark.parametrize(
    ("message", "texts"),
    [
        (
            "find a flight, find a train and compare the two",
            ("find a flight", "find a train", "compare the two"),
        ),
        (
            "such einen Flug, such einen Zug und schick mir beides",
            ("such einen Flug", "such einen Zug", "schick mir beides"),
        ),
    ],
)
def test_a_request_may_wait_for_all_before_it(message: str, texts: tuple[str, ...]) -> None:
    assert plan(message, parts(*texts), 4)[-1].waits_for == (0, 1)


def test_it_is_seldom_wrong_about_requests_that_it_was_not_made_for() -> None:
    with LABELLED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong: dict[str, list[str]] = {"seen": [], "held": [], "fresh": []}
    needless: list[str] = []
    for row in rows:
        waits = bool(built_on(row["text"], row["joint"], [row["before"]]))
        if waits != (row["waits"] == "1"):
            wrong[row["set"]].append(row["text"])
            needless += [row["text"]] if waits else []

    assert wrong["seen"] == []
    assert len(wrong["held"]) <= 1
    assert len(wrong["fresh"]) <= 3
    assert needless == []


TEXTS = st.text(alphabet="abi tes.", min_size=1, max_size=12).map(str.strip).filter(bool)


@given(texts=st.lists(TEXTS, min_size=1, max_size=6), most=st.integers(1, 6), joint=TEXTS)
def test_every_request_is_planned_once_in_order_and_waits_for_earlier_ones_only(
    texts: list[str], most: int, joint: str
) -> None:
    planned = plan(joint.join(texts), parts(*texts), most)

    assert [one.part.text for one in planned] == texts
    assert all(0 <= other < at for at, one in enumerate(planned) for other in one.waits_for)
    assert all(one.needs == max(one.waits_for, default=None) for one in planned)
    assert [one.left_out for one in planned] == [at >= most for at in range(len(texts))]


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=5), message=st.text(max_size=60))
def test_any_words_can_be_planned(texts: list[str], message: str) -> None:
    assert len(plan(message, parts(*texts), 4)) == len(texts)


def test_what_is_said_of_a_part_that_failed_is_in_the_language_of_the_user() -> None:
    error = NotFound("no such customer.", hint="check the number")

    assert apology(error, language="en", begun=False) == (
        "This could not be answered: no such customer."
    )
    assert apology(error, language="de", begun=True) == (
        "Der Rest konnte nicht beantwortet werden: no such customer."
    )


def test_what_was_not_begun_says_why() -> None:
    waits, too_many = plan("a then b", parts("a", "b"), 1)[1], plan("a b", parts("a", "b"), 1)[1]

    assert "4 requests at a time" in skipped(too_many, language="en", most=4)
    assert "at a time" in skipped(waits, language="en", most=1)
    assert "needs" in skipped(plan("a then b", parts("a", "b"), 2)[1], language="en", most=4)
    assert "auf einmal" in skipped(too_many, language="de", most=4)


def test_a_heading_is_plain_words() -> None:
    assert heading("billing", "view bill") == "view bill (billing):"
    assert heading("billing", "") == "billing:"


def failed(agent: str, **error: Any) -> AnsweredPart:
    return AnsweredPart(text="x", agent=agent, state="failed", error=error)


def test_the_error_of_a_turn_of_which_nothing_was_answered_names_all_reasons() -> None:
    same = all_failed([failed("a", code="not-found", detail="no a"), failed("b", code="not-found")])
    mixed = all_failed(
        [
            failed("a", code="not-found", detail="no a"),
            failed("b", code="unavailable", detail="b is down"),
            AnsweredPart(text="x", agent="c", state="skipped"),
        ]
    )

    assert isinstance(same, NotFound)
    assert isinstance(mixed, AgentFailed)
    assert mixed.message == "none of 3 requests could be answered: a: no a; b: b is down"
