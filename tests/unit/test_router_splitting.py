"""One message, two requests: parts cover what was said, and one request stays whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_router.evidence import Evidence
from lmos_mesh_router.ranking import Ranked, Ranking
from lmos_mesh_router.splitting import (
    MOST_CUTS,
    Heard,
    Span,
    heard,
    joints,
    odds_of_two,
    parts,
    spans,
)
from tests.router_fleets import key

words = st.sampled_from(
    ["show", "my", "bill", "and", "also", "then", ",", ".", "?", "und", "außerdem", "\n", "!", " "]
)
messages = st.lists(words, max_size=40).map(" ".join) | st.text(max_size=120)


def routed_by(message: str, choose: st.DataObject) -> dict[Span, Heard]:
    return {
        span: Heard(
            key(choose.draw(st.sampled_from(["a", "b", "c"]))),
            choose.draw(st.floats(0, 1)),
            choose.draw(st.floats(-20, 20)),
        )
        for span in (Span(0, len(message)), *spans(message))
    }


@pytest.mark.parametrize(
    ("message", "pieces"),
    [
        ("show my bill and play some jazz", ["show my bill", "play some jazz"]),
        ("show my bill, and also play some jazz", ["show my bill", "play some jazz"]),
        ("show my bill. play some jazz", ["show my bill", "play some jazz"]),
        ("show my bill then play some jazz", ["show my bill", "play some jazz"]),
        ("Zeig die Rechnung und spiel Jazz", ["Zeig die Rechnung", "spiel Jazz"]),
        ("Zeig die Rechnung, außerdem spiel Jazz", ["Zeig die Rechnung", "spiel Jazz"]),
        ("Zeig die Rechnung und dann spiel Jazz!", ["Zeig die Rechnung", "spiel Jazz!"]),
        ("show my bill", ["show my bill"]),
        ("my android sandwich", ["my android sandwich"]),  # not the word `and`
        ("and show my bill", ["and show my bill"]),
        ("at 3.50 euros", ["at 3.50 euros"]),
        ("", [""]),
    ],
)
def test_a_message_is_cut_at_what_joins_requests(message: str, pieces: list[str]) -> None:
    cuts = joints(message)

    starts = [0, *(one.end for one in cuts)]
    ends = [*(one.start for one in cuts), len(message)]
    assert [message[a:b] for a, b in zip(starts, ends, strict=True)] == pieces


@given(messages, st.data())
def test_parts_and_joints_cover_the_message_in_order(message: str, choose: st.DataObject) -> None:
    found = parts(message, routed_by(message, choose))

    between = {(one.start, one.end) for one in joints(message)}
    assert found[0].start == 0
    assert found[-1].end == len(message)
    for left, right in itertools.pairwise(found):
        assert (left.end, right.start) in between


@given(messages)
def test_few_spans_have_to_be_routed_and_each_says_something(message: str) -> None:
    found = spans(message)

    assert len(found) <= (MOST_CUTS + 1) * (MOST_CUTS + 2) // 2 - 1
    assert len(set(found)) == len(found)
    assert all(one.of(message).strip() for one in found)


@given(messages)
def test_a_message_for_one_agent_is_one_request(message: str) -> None:
    same = Heard(key("a"), 1.0, 20.0)

    found = parts(message, dict.fromkeys((Span(0, len(message)), *spans(message)), same))

    assert found == (Span(0, len(message)),)


def test_two_convincing_sides_for_different_agents_are_two_requests() -> None:
    message = "show me my latest bill and what is the weather tomorrow"
    left, right = spans(message)

    found = parts(
        message,
        {
            Span(0, len(message)): Heard(key("billing"), 0.6, -4.0),
            left: Heard(key("billing"), 0.99, 3.0),
            right: Heard(key("weather"), 0.99, 3.0),
        },
    )

    assert [one.of(message) for one in found] == [
        "show me my latest bill",
        "what is the weather tomorrow",
    ]


def test_three_requests_are_three_parts() -> None:
    message = "show me my bill. what is the weather tomorrow. play some old jazz"
    agents = {"bill": "billing", "weather": "weather", "jazz": "music"}
    routed: dict[Span, Heard] = {}
    for span in (Span(0, len(message)), *spans(message)):
        inside = [agent for word, agent in agents.items() if word in span.of(message)]
        several = len(inside) > 1
        routed[span] = Heard(key(inside[0]), 0.7 if several else 0.99, -4.0 if several else 3.0)

    found = parts(message, routed)

    assert len(found) == 3


def test_a_remark_beside_a_request_is_no_request() -> None:
    message = "I am in a hurry and need my latest bill"
    left, right = spans(message)

    found = parts(
        message,
        {
            Span(0, len(message)): Heard(key("billing"), 0.99, 2.5),
            left: Heard(key("travel"), 0.5, -6.0),
            right: Heard(key("billing"), 0.99, 3.0),
        },
    )

    assert len(found) == 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-20, 20))
def test_a_surer_side_never_speaks_against_splitting(a: float, b: float, scope: float) -> None:
    lower, higher = sorted((a, b))
    whole, right = Heard(key("a"), 0.5, 0.0), Heard(key("b"), 1.0, 1.0)

    odds = [odds_of_two(whole, Heard(key("a"), sure, scope), right, 3) for sure in (lower, higher)]

    assert odds[0] <= odds[1]


def test_spans_that_nobody_routed_are_not_split_off() -> None:
    message = "show my bill and play some jazz"

    assert parts(message, {}) == (Span(0, len(message)),)
    assert heard(Ranking()) is None


def asked_of(message: str, agents: dict[str, Heard]) -> tuple[str, ...]:
    """The requests in a message whose spans are heard as the words in them say."""
    routed: dict[Span, Heard] = {}
    for span in (Span(0, len(message)), *spans(message)):
        inside = [one for word, one in agents.items() if word in span.of(message)]
        routed[span] = inside[0]._replace(scope=-4.0 if len(inside) > 1 else 3.0)
    return tuple(one.of(message) for one in parts(message, routed))


BILL = Heard(key("billing"), 0.99, 3.0, capability="view")
PAY = Heard(key("billing"), 0.99, 3.0, capability="pay")
JAZZ = Heard(key("music"), 0.99, 3.0, capability="play")
HELP = Heard(key("contact"), 0.99, 3.0, capability="human")


@pytest.mark.parametrize(
    "message",
    [
        "show my bill, I need help",
        "show my bill, please help me",
        "hi, show my bill",
        "good morning, show my bill",
        "show my bill, thanks",
        "show my bill. can you help?",
        "hello, I need some help. show my bill. Thank you very much!",
        "zeig meine bill, ich brauche Hilfe",
        "zeig meine bill, danke",
        "guten Tag, zeig meine bill",
        "zeig meine bill. Können Sie mir helfen?",
    ],
)
def test_courtesy_beside_a_request_is_no_request(message: str) -> None:
    agents = {"bill": BILL}
    agents |= dict.fromkeys(
        ("elp", "hi", "ello", "hank", "elfen", "ilfe", "danke", "orning", "uten"), HELP
    )

    assert asked_of(message, agents) == (message,)


def test_courtesy_does_not_keep_two_requests_together() -> None:
    message = "hi, show my bill, please help me, and play some jazz"

    found = asked_of(message, {"bill": BILL, "jazz": JAZZ, "elp": HELP, "hi": HELP})

    assert found == ("hi, show my bill, please help me", "play some jazz")


def test_an_agent_that_is_there_to_be_greeted_is_greeted() -> None:
    greeter = HELP._replace(courteous=True)

    found = asked_of("hello my friend, show my bill", {"bill": BILL, "hello": greeter})

    assert found == ("hello my friend", "show my bill")


def test_what_only_tells_something_is_a_request_where_an_agent_is_for_that() -> None:
    far, near = JAZZ._replace(share=0.01), JAZZ._replace(share=0.6)

    remark = "show my bill, my daughter is waiting"
    lost = "show my bill, my card was stolen"
    wish = "show my bill, I want a sweater"

    assert asked_of(remark, {"bill": BILL, "daughter": far}) == (remark,)
    assert len(asked_of(lost, {"bill": BILL, "stolen": near})) == 2
    assert len(asked_of(wish, {"bill": BILL, "sweater": far})) == 2


def test_two_capabilities_of_one_agent_are_two_requests_where_both_are_plain() -> None:
    message = "show my latest bill now and pay what I owe you"

    assert len(asked_of(message, {"bill": BILL, "pay": PAY})) == 2
    assert len(asked_of(message, {"bill": BILL, "pay": PAY._replace(capability="")})) == 1
    assert len(asked_of(message, {"bill": BILL, "pay": PAY._replace(capability="view")})) == 1


def test_what_nobody_can_do_is_no_part_of_what_its_nearest_agent_does() -> None:
    message = "knit me a very warm sweater and show my latest bill"

    assert len(asked_of(message, {"sweater": BILL._replace(share=0.001), "bill": BILL})) == 2
    assert len(asked_of(message, {"sweater": BILL._replace(share=0.3), "bill": BILL})) == 1


@pytest.mark.parametrize(
    ("kind", "text", "courteous"),
    [
        ("example", "thanks for your help", True),
        ("name", "thank you", True),
        ("description", "thank you", False),
        ("example", "I need help with my order", False),
    ],
)
def test_an_agent_is_there_to_be_greeted_where_its_examples_or_names_are_courtesy(
    kind: str, text: str, courteous: bool
) -> None:
    a = key("a")
    ranked = Ranked(a, 0.9, "do", 1.0, 0.8, Evidence(a, "do", kind, text))

    found = heard(Ranking((ranked,)))

    assert found is not None
    assert (found.courteous, found.capability) == (courteous, "do")
