"""The arithmetic and the parsing that every published figure rests on."""

import asyncio
import math

import pytest
from closed_loop import Plan, percentile, run_cell
from display import table
from figures import Aim, Spread, differences, figures, ratios, rotated, spread
from http_load import Form, answer_of, text_at
from http_load import WrongAnswer as WrongHttpAnswer
from hypothesis import given
from hypothesis import strategies as st
from sse_client import BadResponse, Response, ResponseReader, events
from work import WrongAnswer, answer_chunks, check, payload, question

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_measured_and_not_exceeded_by_that_share(
    values: list[float], share: float
) -> None:
    ordered = sorted(values)

    found = percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


@given(st.lists(st.text(), min_size=1, max_size=6, unique=True))
def test_in_as_many_rounds_as_contenders_each_is_at_every_place_once(names: list[str]) -> None:
    orders = [rotated(names, turn) for turn in range(len(names))]

    for place in range(len(names)):
        assert {order[place] for order in orders} == set(names)


def test_a_ratio_is_taken_within_each_round_and_not_between_rounds() -> None:
    rounds = [
        {"a": {"cells": {"1": {"p50_ms": slow}}}, "b": {"cells": {"1": {"p50_ms": slow / 2}}}}
        for slow in (1.0, 10.0, 100.0)
    ]

    found = ratios(rounds, "a", "b", "1", "p50_ms")

    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_what_one_adds_to_another_is_taken_within_each_round() -> None:
    rounds = [
        {"a": {"cells": {"16": {"cpu": base + 2}}}, "b": {"cells": {"16": {"cpu": base}}}}
        for base in (1.0, 5.0, 3.0)
    ]

    found = differences(rounds, "a", "b", "16", "cpu")

    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("median", "at_least", "met"),
    [(0.9, False, True), (1.1, False, False), (1.1, True, True), (0.9, True, False)],
)
def test_an_aim_is_met_by_the_median_and_on_the_right_side(
    median: float, at_least: bool, met: bool
) -> None:
    measured = Spread(median=median, low=0.1, high=9)

    assert Aim(said="x", measured=measured, limit=1.0, at_least=at_least).met is met


@pytest.mark.parametrize("at_least", [True, False])
def test_an_aim_that_was_not_measured_is_not_met(at_least: bool) -> None:
    assert not Aim(said="x", measured=spread([]), limit=1.0, at_least=at_least).met


def test_what_was_not_measured_is_shown_as_a_dash_and_not_as_nought() -> None:
    rounds = [{"a": {"cells": {"1": {"p50_ms": None}}}}]

    assert str(figures(rounds, "a", "1", "p50_ms")) == "-"
    assert math.isnan(spread([]).median)
    assert table(("x", "y"), [("a", math.nan)]).endswith("-")


@given(
    body=st.lists(st.binary(min_size=1) | st.just(b"0\r\n\r\n"), max_size=5),
    size=st.integers(1, 40),
)
def test_a_chunked_response_is_read_whole_however_it_is_cut(body: list[bytes], size: int) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in body)
    wire = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    reader = ResponseReader()

    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    responses = [reader.feed(piece) for piece in pieces]

    assert responses[:-1] == [None] * (len(pieces) - 1)
    last = responses[-1]
    assert last is not None
    assert last.body == b"".join(body)


def test_a_response_that_breaks_off_is_an_error_and_not_an_answer() -> None:
    reader = ResponseReader()
    reader.feed(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhal")

    with pytest.raises(BadResponse, match="middle"):
        reader.feed_eof()


def test_events_have_their_names_and_comments_are_no_events() -> None:
    body = b"event: delta\r\ndata: {}\r\n\r\n: ping\r\n\r\ndata: one\ndata: two\n\n"

    assert list(events(body)) == [("delta", "{}"), ("message", "one\ntwo")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("choices.0.delta.content", "hi"), ("choices.1.delta", ""), ("choices.0.delta", "")],
)
def test_text_is_found_at_its_path_and_is_empty_elsewhere(path: str, expected: str) -> None:
    document = {"choices": [{"delta": {"content": "hi"}}]}

    assert text_at(document, path.split(".")) == expected


def test_an_event_stream_without_its_last_event_is_no_answer() -> None:
    form = Form(url="", headers={}, body="", text_at="content", event="delta", last="end")
    body = b'event: delta\ndata: {"content":"hi"}\n\n'
    headers = {"content-type": "text/event-stream"}

    with pytest.raises(WrongHttpAnswer, match="end"):
        answer_of(Response(200, headers, body), form)

    whole = Response(200, headers, body + b"event: end\ndata: {}\n\n")
    assert answer_of(whole, form) == "hi"


def test_an_answer_has_ten_chunks_of_21_bytes_and_belongs_to_one_worker() -> None:
    assert [len(chunk) for chunk in answer_chunks(question(7))] == [21] * 10
    assert answer_chunks(question(7)) != answer_chunks(question(8))
    assert len(payload(1024, 3)) == 1024


async def test_a_wrong_answer_is_counted_as_an_error_and_never_as_a_result() -> None:
    async def ask(worker: int, number: int) -> None:
        await asyncio.sleep(0)
        check(True, number % 2 == 0)

    cell = await run_cell(ask, 4, Plan(calls=100, seconds=5, warm_up=0))

    assert (cell["n"], cell["errors"]) == (50, 50)
    assert WrongAnswer.__name__ in cell["first_error"]


async def test_asks_that_are_never_answered_end_the_cell_as_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("closed_loop.GRACE_S", 0.05)

    async def ask(worker: int, number: int) -> None:
        await asyncio.Event().wait()

    cell = await run_cell(ask, 3, Plan(calls=10, seconds=0.05, warm_up=0))

    assert (cell["n"], cell["errors"], cell["p50_ms"]) == (0, 3, None)
