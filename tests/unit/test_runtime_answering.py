"""A turn answered by several agents, whose words a test chooses."""

import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from lmos_mesh.calls import Call
from lmos_mesh.errors import MeshError, NotFound
from lmos_mesh.messages import Answer, Converse, Decision, Part, Turn, Utterance
from lmos_mesh.resource_index import ResourceIndex
from lmos_mesh.things import Capability, ThingKey
from lmos_mesh.transport import Packet
from lmos_mesh_runtime.answering import Answering
from lmos_mesh_runtime.asking import Ask, Asker
from lmos_mesh_runtime.choosing import Chooser, Chosen
from lmos_mesh_runtime.reporting import Relay
from lmos_mesh_runtime.routing import Way, Ways
from lmos_mesh_runtime.settings import RuntimeSettings


class Town:
    """A router that takes messages apart at commas, and agents that repeat, or fail at "no"."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def choose(
        self, request: Converse, way: Way, history: Sequence[Utterance]
    ) -> tuple[Decision, tuple[Chosen | None, ...]]:
        parts = [Part(text=one, agent=f"a-{one}") for one in request.message.split(", ")]
        decision = Decision(outcome="several", parts=tuple(parts))
        keys = [ThingKey("t", one.agent, "stable") for one in parts]
        return decision, tuple(Chosen(key, Capability(id="do")) for key in keys)

    async def ask(self, one: Ask) -> str:
        one.attempts += 1
        self.asked.append(one.circumstances.message)
        if one.circumstances.message == "no":
            raise NotFound("there is none")
        if one.circumstances.message == "bug":
            raise ZeroDivisionError
        await one.send("status", {"anonymization": [{"value": one.circumstances.message}]})
        await one.send("delta", one.circumstances.message.upper())
        return ""


async def answered(town: Town, message: str, **settings: Any) -> tuple[Answer, list[Any], Relay]:
    frames: list[Any] = []

    async def send(kind: str, body: Any) -> None:
        frames.append((kind, body))

    relay = Relay(Way(tenant="t", channel="web", subset="stable"), send, time.perf_counter)
    answering = Answering(
        RuntimeSettings(**settings),
        cast("Chooser", town),
        cast("Asker", town),
        Ways(ResourceIndex()),
    )
    packet = Packet("lmos.t.runtime.converse", b"{}")
    call = Call(packet, cast("Any", None), task="task")
    request = Converse(message=message)
    turn = Turn(turn="t1", message=message)
    answer, _ = await answering.answer(request, call, turn, "c1", (), relay, now=time.monotonic())
    return answer, frames, relay


async def test_only_so_many_requests_are_answered_and_the_others_are_named() -> None:
    town = Town()

    answer, _, relay = await answered(town, "one, two, three", runtime_parts=2)

    assert town.asked == ["one", "two"]
    assert [one.state for one in answer.parts] == ["done", "done", "skipped"]
    assert answer.answer.endswith(
        "do (a-three):\nThis was left out: I can see to 2 requests at a time. Please ask again."
    )
    assert [one.state for one in relay.parts] == ["done", "done", "skipped"]


@pytest.mark.parametrize("fails", ["no", "bug"])
async def test_what_needs_a_part_that_failed_is_skipped_and_so_is_what_needs_that(
    fails: str,
) -> None:
    town = Town()

    answer, _, relay = await answered(town, f"{fails}, send it, file it, show my bill")

    assert town.asked == [fails, "show my bill"]
    assert [one.needs for one in answer.parts] == [None, 0, 1, None]
    assert [one.state for one in answer.parts] == ["failed", "skipped", "skipped", "done"]
    assert relay.agent == f"a-{fails},a-show my bill"
    code = "not-found" if fails == "no" else MeshError.code
    assert [one.error for one in relay.parts] == [code, "", "", ""]


async def test_what_all_agents_say_of_names_comes_back_together() -> None:
    answer, frames, _ = await answered(Town(), "one, two")

    assert answer.anonymization == ({"value": "one"}, {"value": "two"})
    assert [kind for kind, _ in frames] == ["status", "delta", "delta"]
    assert "".join(body for kind, body in frames if kind == "delta") == answer.answer
