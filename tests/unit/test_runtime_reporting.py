"""What is noted of a turn while its frames are passed on."""

from collections.abc import Iterator
from typing import Any

from lmos_mesh_runtime.reporting import Relay
from lmos_mesh_runtime.routing import Way

WAY = Way(tenant="acme", channel="web", subset="canary", rollout="default/web")


class Caller:
    """Somebody who hears frames."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    async def send(self, kind: str, body: Any) -> None:
        self.heard.append((kind, body))


def ticking() -> Iterator[float]:
    yield from (10.0, 10.25, 11.0, 12.0)


def relay(caller: Caller) -> Relay:
    clock = ticking()
    return Relay(WAY, caller.send, lambda: next(clock))


async def test_frames_are_passed_on_and_the_first_word_is_noted() -> None:
    caller = Caller()
    told = relay(caller)
    told.agent, told.capability = "billing", "view"

    await told.send("status", {"state": "routed"})
    await told.send("delta", "one ")
    await told.send("delta", "two")
    report = told.report("answered", conversation="c", turn="t")

    assert caller.heard == [("status", {"state": "routed"}), ("delta", "one "), ("delta", "two")]
    assert (report.first_s, report.total_s) == (0.25, 1.0)
    assert (report.channel, report.subset, report.rollout) == ("web", "canary", "default/web")
    assert (report.agent, report.capability, report.shadow) == ("billing", "view", False)


async def test_a_turn_without_a_word_has_no_first_one() -> None:
    report = relay(Caller()).report("failed", conversation="c", turn="t", error="unavailable")

    assert report.first_s is None
    assert (report.outcome, report.error, report.agent) == ("failed", "unavailable", "")


async def test_what_stands_for_what_goes_with_the_answer_and_not_before_it() -> None:
    caller = Caller()
    told = relay(caller)
    entity = {"type": "name", "value": "Ann", "replacement": "N-1"}

    await told.send("status", {"anonymization": [entity, "nonsense"]})
    first = told.anonymization
    await told.send("restart", {"reason": "lost"})
    restarted = told.anonymization
    await told.send("status", {"anonymization": []})

    assert first == (entity,)
    assert restarted is None
    assert told.anonymization == ()
    assert caller.heard == [("restart", {"reason": "lost"})]


async def test_any_other_status_is_the_callers_to_read() -> None:
    caller = Caller()
    told = relay(caller)

    for body in ({"anonymization": "no list"}, {"step": 1}, None, "text"):
        await told.send("status", body)

    assert [body for _, body in caller.heard] == [
        {"anonymization": "no list"},
        {"step": 1},
        None,
        "text",
    ]
    assert told.anonymization is None
