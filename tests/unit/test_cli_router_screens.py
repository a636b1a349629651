"""Files of labelled messages as people write them, and what the router's tools show."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from lmos_mesh.bus import Bus, route
from lmos_mesh.cli.labelled import Row, contradictions, read_rows, rows_in, sample, within
from lmos_mesh.cli.metrics import Judged, report
from lmos_mesh.cli.route import in_full, model_use, plain
from lmos_mesh.cli.router_eval import Asking, as_data, ask_all, judge, shown
from lmos_mesh.cli.router_fit import beside, reported
from lmos_mesh.cli.router_lint import shown as lint_shown
from lmos_mesh.cli.router_lint import summary
from lmos_mesh.errors import DeadlineExceeded, InvalidMessage, MeshError, NobodyAnswers, NotFound
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.messages import (
    DECIDE,
    Candidate,
    Decide,
    Decision,
    Finding,
    FitFigures,
    LintFound,
    ModelUse,
    OutcomesListed,
    Part,
    ReportedOutcome,
)


def text_of(renderable: RenderableType, *, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def lines_of(text: str, name: str = "rows.csv") -> list[tuple[str, str, int]]:
    return [(one.text, one.agent, one.line) for one in rows_in(text, name)]


# -- files --


@pytest.mark.parametrize("column", ["text", "message", "instruction", "query", "Query "])
@pytest.mark.parametrize("label", ["agent", "label", "LABEL"])
def test_columns_have_any_of_their_names(column: str, label: str) -> None:
    assert lines_of(f"id,{label},{column}\n7,billing,show my bill\n") == [
        ("show my bill", "billing", 2)
    ]


@pytest.mark.parametrize("nobody", ["", "oos", "OOS", "none", "out_of_scope", '""', " "])
def test_what_stands_for_nobody_is_nobody(nobody: str) -> None:
    assert lines_of(f"text,agent\nhello,{nobody}\n") == [("hello", "", 2)]


def test_lines_are_counted_as_an_editor_does() -> None:
    text = 'text,agent\n\n"two\nlines",a\n,,\nlast,b\n'.replace(",,", "")

    assert lines_of(text) == [("two\nlines", "a", 3), ("last", "b", 6)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("text;agent\na, b;x\n", "rows.csv"),
        ("text\tagent\na, b\tx\n", "rows.tsv"),
        ("text\tagent\na, b\tx\n", "standard input"),
        ('{"text": "a, b", "agent": "x"}\n', "rows.jsonl"),
        ('\n{"label": "x", "Message": "a, b"}\r\n', "standard input"),
    ],
)
def test_forms_are_told_apart(text: str, name: str) -> None:
    assert [row[:2] for row in lines_of(text, name)] == [("a, b", "x")]


def test_null_is_nobody_in_json() -> None:
    assert lines_of('{"text": "x\\u2028y", "agent": null}', "a.jsonl") == [("x\u2028y", "", 1)]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.csv", "utterance,agent\nx,y\n", r"line 1: no column is named text, message"),
        ("a.csv", "text,intent\nx,y\n", r"line 1: no column is named agent or label"),
        ("a.csv", "text,agent\nx,y\na,b,c\n", r"line 3: 3 columns, and the header has 2"),
        ("a.csv", "text,agent\n ,y\n", r"line 2: the message is empty"),
        ("a.csv", 'text,agent\n"x,y\n', r"line 2: is no CSV"),
        ("a.csv", "text,agent\n" + "x" * 20_000 + ",y\n", r"line 2: .* 16384 characters"),
        ("a.jsonl", '{"text": "x", "agent": "y"}\n{"text"\n', r"line 2: is no JSON"),
        ("a.jsonl", '["x", "y"]\n', r"line 1: must be an object, not an array"),
        ("a.jsonl", '{"agent": "y"}\n', r"line 1: has no member text"),
        ("a.jsonl", '{"text": 5, "agent": "y"}\n', r"line 1: the message must be a text"),
        ("a.jsonl", '{"text": "x", "agent": ["y"]}\n', r"line 1: the agent must be a text"),
        ("a.jsonl", "[" * 100_000, r"line 1: is no JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(name: str, text: str, fault: str) -> None:
    with pytest.raises(InvalidMessage, match=fault) as refused:
        rows_in(text, name)

    assert str(refused.value).startswith(f"{name}, line ")
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.csv", tmp_path / "latin.csv"
    empty.write_text("text,agent\n")
    latin.write_bytes(b"text,agent\ngr\xfc\xdfe,a\n")

    with pytest.raises(NotFound, match="cannot read"):
        read_rows(str(tmp_path / "missing.csv"))
    with pytest.raises(NotFound, match="cannot read"):
        read_rows(str(tmp_path))
    with pytest.raises(InvalidMessage, match="has no messages"):
        read_rows(str(empty))
    with pytest.raises(InvalidMessage, match="line 2: byte 13 is not UTF-8"):
        read_rows(str(latin))


@given(st.text(max_size=200), st.sampled_from(["a.csv", "a.jsonl", "a.tsv", "standard input"]))
def test_no_text_is_more_than_refused(text: str, name: str) -> None:
    try:
        rows = rows_in(text, name)
    except InvalidMessage:
        return
    assert all(row.text.strip() for row in rows)


def test_the_same_text_with_two_labels_is_noticed() -> None:
    rows = rows_in("text,agent\nHi  there,a\nhi there,b\nhi there,a\n", "a.csv")

    assert [(one.line, other.line) for one, other in contradictions(rows)] == [(2, 3)]


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order() -> None:
    rows = [Row(text=str(at), agent="", line=at) for at in range(100)]

    first = sample(rows, 10, seed=1)
    assert first == sample(rows, 10, seed=1) != sample(rows, 10, seed=2)
    assert [one.line for one in first] == sorted(one.line for one in first)
    assert sample(rows, 1000, seed=1) == rows == sample(rows, None, seed=1)


# -- one decision --

LONG = "an-agent-whose-name-was-thought-up-by-a-committee-over-lunch"
CANDIDATES = (
    Candidate(
        agent="billing",
        capability="view_bill",
        score=0.93,
        similarity=0.81,
        evidence="show my bill",
    ),
    Candidate(
        agent=LONG,
        subset="canary",
        capability=LONG,
        score=0.04,
        similarity=-0.22,
        evidence="\x1b[2Jwill it\nrain? " * 30,
    ),
)
DECISIONS: dict[str, Decision] = {
    "→ billing · view_bill · 93 % sure": Decision(
        outcome="routed",
        agent="billing",
        capability="view_bill",
        confidence=0.93,
        candidates=CANDIDATES,
        could_be=("billing",),
        time_ms={"embed": 6.1, "total": 6.5},
        used=ModelUse(model="m", calls=2, prompt_tokens=5, completion_tokens=6, cost=0.001),
    ),
    "→ billing · view_bill · as you said": Decision(
        outcome="routed",
        agent="billing",
        method="explicit",
        confidence=1,
        candidates=CANDIDATES[:1],
    ),
    "ask back: 50 % sure at best; it could be billing, an-agent": Decision(
        outcome="unsure", confidence=0.5, candidates=CANDIDATES, could_be=("billing", LONG)
    ),
    "out of scope: nobody": Decision(
        outcome="out_of_scope", candidates=CANDIDATES, in_scope=0.004, reason="x" * 300
    ),
    "2 requests in one message": Decision(
        outcome="several",
        parts=(
            Part(text="show my bill", agent="billing", capability="view_bill", confidence=0.9),
            Part(text="and\x07 the rain", agent=LONG, confidence=0.8),
        ),
    ),
    "nobody: no agent may be chosen here": Decision(outcome="nobody"),
}


@pytest.mark.parametrize("first", DECISIONS)
def test_a_decision_says_first_what_came_of_it(first: str) -> None:
    text = text_of(in_full(DECISIONS[first]))

    assert text.startswith(first)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_decision_shows_all_that_led_to_it() -> None:
    text = text_of(in_full(DECISIONS["→ billing · view_bill · 93 % sure"]))

    for said in ("▸  billing", "93 %", "0.81", "show my bill", "-0.22", "could be  billing"):
        assert said in text
    assert "6.5 ms (embed 6.1 ms)" in text
    assert "m, 2 calls, 5 + 6 tokens, cost 0.001000" in text


def test_markup_in_what_users_and_agents_say_is_text() -> None:
    odd = Candidate(agent="[bold]x", capability="[/]", score=1, evidence="[red]y[/red]")
    decision = Decision(outcome="unsure", reason="[/nothing]", candidates=(odd,))

    text = text_of(in_full(decision))
    for said in ("[bold]x", "[/]", "[red]y[/red]", "[/nothing]"):
        assert said in text


def test_texts_are_plain_and_short() -> None:
    assert plain("a\x00b\n c", 0) == "a b c"
    assert plain("abcdef", 4) == "abc…"
    assert model_use(ModelUse(calls=1)) == "a language model, 1 call, 0 + 0 tokens"


# -- the reports --


def test_a_report_is_readable_in_80_columns() -> None:
    judged = [
        Judged(
            truth=f"agent-with-a-rather-long-name-{at % 40}",
            first=f"agent-with-a-rather-long-name-{at % 39}",
            routed=at % 5 > 0,
            confidence=at % 10 / 10,
            in_scope=at % 7 / 7,
            could_be=("a",),
            took_ms=1.0,
            router_ms=0.5,
            calls=at % 2,
        )
        for at in range(400)
    ] + [Judged(truth="", routed=True, first="[red]"), Judged(truth="", failed="too late")]
    found = report(judged)

    text = text_of(shown(found, took_s=2.0))

    assert max(map(len, text.splitlines())) <= 80
    for said in ("accuracy", "AUROC", "and 15 more, none worse", "nobody", "[red]", "failed"):
        assert said in text
    data = as_data(found, judged)
    assert data["whole_curve"][-1]["coverage"] == 1.0
    assert len(data["whole_curve"]) <= 202
    assert data["failures"] == ["too late"]


def test_a_report_of_nothing_is_shown() -> None:
    assert "messages" in text_of(shown(report([])))


def test_findings_are_shown_by_kind() -> None:
    findings = (
        Finding(kind="misrouted", agent="a", message="[x] would go to b"),
        Finding(kind="no_examples", agent="c", subset="canary", message="c has no examples"),
    )
    found = LintFound(
        findings=findings,
        total=3,
        agents=1,
        capabilities=2,
        examples=5,
        judged=4,
        misrouted=1,
    )

    text = text_of(lint_shown(found))
    assert "examples that would go to another agent: 1\n  ✗ [x] would go to b" in text
    assert "! c has no examples [canary]" in text
    assert "of 4 that were held out 25.0% go to another agent; 1 more" in summary(found)
    tidy = found.model_copy(update={"findings": (), "total": 0})
    assert "Nothing collides" in text_of(lint_shown(tidy))


def test_before_and_after_stand_side_by_side() -> None:
    before = FitFigures(threshold=0.5, in_scope_at=0.05, temperature=2, accuracy=0.9)
    after = FitFigures(threshold=0.7, in_scope_at=0.02, temperature=2.5, accuracy=0.9, error=0.01)

    text = text_of(beside(before, after))

    assert "threshold     0.500   0.700" in text
    assert max(map(len, text.splitlines())) <= 80


def test_outcomes_are_a_table() -> None:
    one = ReportedOutcome(message="x\ny" * 90, outcome="corrected", decided="a", agent="b", at=5.0)

    text = text_of(reported(OutcomesListed(outcomes=(one,), total=1, keeps=True)))
    assert "corrected" in text
    assert max(map(len, text.splitlines())) <= 80
    nothing = OutcomesListed(outcomes=(), total=0, keeps=False)
    assert "Nothing was reported" in text_of(reported(nothing))


# -- asking --

ROWS = [Row(text=f"message {at}", agent="a", line=at) for at in range(60)]


def asking(**more: Any) -> Asking:
    given: dict[str, Any] = {
        "method": None,
        "channel": "web",
        "subset": "stable",
        "language": None,
        "concurrency": 4,
        "timeout_s": 2.0,
        **more,
    }
    return Asking(**given)


async def asked_of(decide: Any, rows: list[Row], **more: Any) -> list[Judged]:
    broker = MemoryBroker()
    async with (
        Bus(MemoryTransport(broker), tenant="t", instance="router") as serving,
        Bus(MemoryTransport(broker), tenant="t", instance="cli") as bus,
    ):
        await serving.serve("router", [route(DECIDE, decide)])
        return await ask_all(bus, rows, asking(**more))


async def test_rows_and_decisions_stay_together_and_no_more_run_than_allowed() -> None:
    running = most = 0

    async def decide(request: Decide, call: Any) -> Decision:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002 if request.message.endswith("3") else 0)
        running -= 1
        return Decision(outcome="routed", agent=request.message)

    judged = await asked_of(decide, ROWS)

    assert [one.first for one in judged] == [row.text for row in ROWS]
    assert most <= 4


async def test_decisions_that_fail_are_counted() -> None:
    async def decide(request: Decide, call: Any) -> Decision:
        if request.message == "message 7":
            raise DeadlineExceeded("too late")
        return Decision(outcome="routed", agent="a")

    judged = await asked_of(decide, ROWS)

    assert [at for at, one in enumerate(judged) if one.failed] == [7]
    assert report(judged).failed == 1


async def test_if_nothing_can_be_decided_it_is_given_up() -> None:
    asked = 0

    async def decide(request: Decide, call: Any) -> Decision:
        nonlocal asked
        asked += 1
        raise DeadlineExceeded("too late")

    with pytest.raises(MeshError, match="too late"):
        await asked_of(decide, ROWS)
    assert asked <= 25


async def test_without_a_router_that_is_the_error() -> None:
    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="cli") as bus:
        with pytest.raises(NobodyAnswers):
            await ask_all(bus, ROWS, asking(timeout_s=0.2))


def test_who_would_be_chosen_counts_also_where_nobody_is() -> None:
    row = Row(text="x", agent="billing", line=1)

    judged = judge(row, DECISIONS["out of scope: nobody"], 5.0)

    assert (judged.first, judged.routed, judged.right) == ("billing", False, True)
    assert judge(row, Decision(outcome="nobody"), 5.0).first == ""


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(0, 3_000), st.integers(0, 9))
def test_of_a_large_file_as_much_is_sent_as_goes_in_a_message(
    sizes: list[int], most: int, seed: int
) -> None:
    rows = [Row(text="x" * size, agent="a", line=at) for at, size in enumerate(sizes)]

    chosen = within(rows, most, seed=seed)

    assert [row.line for row in chosen] == sorted({row.line for row in chosen})
    assert sum(len(row.text) + 33 for row in chosen) <= most
    if sum(size + 33 for size in sizes) <= most:
        assert chosen == rows
    if any(size + 33 <= most for size in sizes):
        assert chosen
    assert within(rows, most, seed=seed) == chosen
