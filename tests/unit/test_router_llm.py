"""A model's answer is believed only as far as it names what it was told of."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.messages import ModelUse
from lmos_mesh.things import Capability
from lmos_mesh_router.llm import (
    Ask,
    Breaker,
    Choice,
    Dialect,
    Inquiry,
    NoHelp,
    Received,
    Requirements,
    Unusable,
    read,
    schema_for,
    shown,
)
from lmos_mesh_router.prompts import Card, Prompts, prompt_for
from lmos_mesh_router.spending import Account, Budget, Limits, Prices, expected_use, use_of

CARDS = (
    Card(agent="billing", capabilities=(Capability(id="view-bill", name="View a bill"),)),
    Card(agent="shipping", capabilities=(Capability(id="track"),)),
)
PROMPT = prompt_for("classify", "show my bill", CARDS, prompts=Prompts(), channel="web")
NEEDS = prompt_for("extract", "show my bill", CARDS, prompts=Prompts(), channel="web")
INQUIRY = Inquiry(prompt=PROMPT, model="m")


def completion(content: Any, **more: Any) -> str:
    return json.dumps({"choices": [{"message": {"content": content}}], **more})


def received(content: Any) -> Received:
    return Received(status=200, text=completion(content))


def choice(content: str) -> Choice:
    answer = read(content, PROMPT)
    assert isinstance(answer, Choice)
    return answer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
answers = st.fixed_dictionaries(
    {},
    optional={
        "agent": json_values | st.sampled_from(["billing", " Shipping ", "admin-agent", None]),
        "could_be": json_values | st.lists(st.sampled_from(["billing", "shipping", "x"])),
        "capability": json_values | st.sampled_from(["view-bill", "track"]),
        "reason": json_values,
        "subset": json_values,
    },
)


@given(st.text() | json_values.map(json.dumps) | answers.map(json.dumps))
def test_whatever_a_model_writes_only_agents_that_it_was_told_of_can_be_chosen(text: str) -> None:
    try:
        answer = read(text, PROMPT)
    except Unusable:
        return
    assert isinstance(answer, Choice)
    assert answer.card is None or answer.card in CARDS
    assert {one.agent for one in answer.could_be} <= {"billing", "shipping"}
    own = [one.id for one in answer.card.capabilities] if answer.card else []
    assert answer.capability in ["", *own]
    assert len(answer.reason) <= 300
    assert "\n" not in answer.reason


@given(st.text() | json_values.map(json.dumps))
def test_whatever_a_model_says_is_needed_is_short_sentences(text: str) -> None:
    try:
        answer = read(text, NEEDS)
    except Unusable:
        return
    assert isinstance(answer, Requirements)
    assert len(answer.texts) <= 5
    assert all(0 < len(one) <= 300 for one in answer.texts)


@given(st.integers(0, 999), st.text() | json_values.map(json.dumps), st.booleans(), st.floats(0, 9))
def test_whatever_comes_back_there_is_an_end_to_asking(
    status: int, text: str, whole: bool, left_s: float
) -> None:
    inquiry = INQUIRY
    for _ in range(7):
        reply = Received(status=status, text=text, whole=whole, wait_s=0.01)
        step = inquiry.received(reply, left_s=left_s)
        if not isinstance(step, Ask):
            return
        inquiry = step.inquiry
        json.dumps(inquiry.request()).encode()
    pytest.fail("it would be asked for ever")


@pytest.mark.parametrize(
    "content",
    [
        '{"agent": "billing"}',
        '{"agent": "Billing "}',
        'I think:\n```json\n{"reason": "bills", "agent": "billing"}\n```\nAnything else?',
        '<think>is it {"agent": "shipping"}? no</think>{"agent": "billing"}',
        '{"agent": "billing"} <think>or {"agent": "shipping"}?</think>',
        'For example {"agent": "shipping"}, but here {"agent": "billing"}',
        '{{"agent": "billing"}',
        '{"x": {"agent": "shipping"}} {"agent": "billing", "could_be": null}',
    ],
)
def test_an_answer_is_found_in_what_a_model_writes_around_it(content: str) -> None:
    assert choice(content).card == CARDS[0]


def test_none_is_an_answer() -> None:
    assert choice('{"agent": null}') == Choice()
    both = choice('{"agent": null, "could_be": ["billing", "shipping", "billing"]}')
    assert both.could_be == CARDS


def test_a_capability_may_be_named_by_id_or_name_and_a_slip_costs_nothing() -> None:
    for said, meant in (("view-bill", "view-bill"), ("View a bill", "view-bill"), ("track", "")):
        assert choice(json.dumps({"agent": "billing", "capability": said})).capability == meant


def test_a_reply_that_cannot_be_used_is_told_to_the_model_once() -> None:
    step = INQUIRY.received(received('{"agent": "admin-agent"}'), left_s=1)

    assert isinstance(step, Ask)
    told = step.inquiry.request()["messages"][2:]
    assert told[0] == {"role": "assistant", "content": '{"agent": "admin-agent"}'}
    assert 'there is no agent "admin-agent" in the list' in told[1]["content"]
    assert '["billing", "shipping"]' in told[1]["content"]
    end = step.inquiry.received(received('{"agent": "admin-agent"}'), left_s=1)
    assert isinstance(end, NoHelp)
    assert end.failure == "bad_reply"


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_outlasts_the_caller_is_not_begun(status: int) -> None:
    late = Received(status=status, text="", wait_s=2.0)

    assert isinstance(INQUIRY.received(late, left_s=1.9), NoHelp)
    step = INQUIRY.received(late, left_s=2.1)
    assert isinstance(step, Ask)
    assert step.pause_s == 2.0


@pytest.mark.parametrize(
    ("complaint", "dialect"),
    [
        ("'response_format.type' must be one of text", Dialect(form="json_object")),
        ("", Dialect(form="json_object")),
        ("use 'max_completion_tokens' instead", Dialect(limit="max_completion_tokens")),
        ("temperature does not support 0", Dialect(temperature=False)),
        ("this model's maximum context length is 2048 tokens", None),
    ],
)
def test_a_refusal_teaches_how_to_ask(complaint: str, dialect: Dialect | None) -> None:
    text = json.dumps({"error": {"message": complaint}}) if complaint else ""

    step = INQUIRY.received(Received(status=400, text=text), left_s=1)

    assert (step.inquiry.dialect if isinstance(step, Ask) else None) == dialect


def test_the_schema_lets_a_model_name_nothing_else() -> None:
    members = schema_for(PROMPT)["properties"]

    assert members["agent"]["enum"] == ["billing", "shipping", None]
    assert members["could_be"]["items"]["enum"] == ["billing", "shipping"]
    assert members["capability"]["enum"] == ["view-bill", "track", None]


def test_what_a_server_does_not_count_is_counted_by_length() -> None:
    prices = Prices(prompt=1.0, completion=2.0)
    expected = expected_use(INQUIRY.request(), prices)
    for usage in (None, {"prompt_tokens": -5, "completion_tokens": "7"}, {"prompt_tokens": True}):
        text = completion("x" * 80, usage=usage)
        use = use_of(Received(status=200, text=text), expected, prices)
        assert use.prompt_tokens == expected.prompt_tokens > 100
        assert 20 <= use.completion_tokens <= 50
        assert use.cost == pytest.approx((use.prompt_tokens + 2 * use.completion_tokens) / 1e6)


def test_a_refused_call_costs_nothing() -> None:
    expected = expected_use(INQUIRY.request(), Prices(prompt=1.0))

    assert use_of(Received(status=500, text=""), expected, Prices(prompt=1.0)) == ModelUse(
        model="m", calls=1
    )


def test_a_budget_is_over_any_minute_and_any_day() -> None:
    budget = Budget(Limits(calls_per_minute=2, calls_per_day=3))

    assert [budget.take(0, now=now) for now in (0.0, 30.0)] == ["", ""]
    assert "2 calls that may be made in a minute" in budget.take(0, now=59.0)
    assert budget.take(0, now=61.0) == ""
    assert "3 calls that may be made in a day" in budget.take(0, now=130.0)
    assert budget.take(0, now=86_400.0 + 1_500) == ""


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 5), st.floats(0, 1))))
def test_no_minute_costs_more_than_it_may(calls: list[tuple[float, float, float]]) -> None:
    budget = Budget(Limits(cost_per_minute=10.0, calls_per_minute=5))
    now, made = 0.0, list[tuple[float, float]]()
    for pause, most, share in calls:
        now += pause
        if not budget.take(most, now=now):
            budget.settle(most, most * share, now=now)
            made.append((now, most * share))
        recent = [cost for at, cost in made if at > now - 59]
        assert len(recent) <= 5
        assert sum(recent) <= 10.0 + 1e-6


def test_no_budget_is_no_limit_and_zero_is_none() -> None:
    assert all(Budget(Limits()).take(1e9, now=0.0) == "" for _ in range(3))
    assert Budget(Limits(calls_per_day=0)).take(0, now=0.0)


def test_a_server_that_fails_in_a_row_is_left_alone_for_a_while() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0):
        breaker.heard(Received(status=500, text=""), now=now)
        assert breaker.resting(now=now) is None
    breaker.heard(None, now=2.0)
    resting = breaker.resting(now=2.0)
    assert resting is not None
    assert resting.failure == "unreachable"
    assert "failed 3 times in a row" in resting.note
    assert breaker.resting(now=7.0) is None
    breaker.heard(Received(status=200, text=""), now=7.0)
    breaker.heard(None, now=8.0)
    assert breaker.resting(now=8.0) is None


def test_no_server_can_ask_for_more_than_a_while() -> None:
    breaker = Breaker()
    breaker.heard(Received(status=429, text="", wait_s=1e6), now=0.0)

    resting = breaker.resting(now=299.0)
    assert resting is not None
    assert resting.failure == "rate_limited"
    assert breaker.resting(now=301.0) is None


def test_what_a_stranger_says_fits_into_a_sentence() -> None:
    assert shown("a\x1b[31m\n\u202eb\ud800") == "a [31m b?"
    assert len(shown("x" * 1_000_000)) == 300


def test_the_account_tells_the_share_that_reached_the_model() -> None:
    account = Account()
    account.note(None, None)
    used = ModelUse(calls=2, prompt_tokens=10, completion_tokens=5, cost=0.5)
    account.note(used, Choice(), "agreed")
    account.note(used, NoHelp(failure="bad_reply", note="x"))
    account.note(ModelUse(), NoHelp(failure="budget", note="x"))

    assert account.share == 0.5
    assert (account.decisions, account.asked, account.calls, account.retries) == (4, 2, 4, 2)
    assert (account.agreed, account.overruled, account.cost) == (1, 0, 1.0)
    assert account.fell_back == {"bad_reply": 1, "budget": 1}
