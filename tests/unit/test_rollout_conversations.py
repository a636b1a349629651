# pyright: reportUnknownMemberType=false
"""Ten thousand conversations through a whole rollout: exact weights, and nobody flips.

Two runtimes carry the turns of each conversation, in any order, and one of them hears of every
step later than the other.
"""

import itertools
import random
from typing import Any

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from lmos_mesh.messages import Converse, SteerRollout
from lmos_mesh.resource_index import ResourceIndex, key_of, value_of
from lmos_mesh.resources import Channel, ChannelRollout, Verdict
from lmos_mesh.weights import Side
from lmos_mesh_operator.plans import Channels
from lmos_mesh_operator.stepping import Stepped, next_step, steer
from lmos_mesh_runtime.routing import Ways

PASSED = (Verdict(metric="errors", outcome="pass", p=0.9),)
FAILED = (Verdict(metric="errors", outcome="fail", p=0.0, message="worse"),)
REQUEST = Converse(message="show my bill")


def channel(subset: str) -> Channel:
    labels = {"tenant": "acme", "channel": "web", "subset": subset}
    return Channel.model_validate(
        {
            "metadata": {"name": f"web-{subset}", "labels": labels},
            "spec": {"requiredCapabilities": []},
            "status": {"resolveStatus": "RESOLVED"},
        }
    )


class World:
    """An operator that steps, two runtimes that hear of it, and the conversations they carry."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.dice = random.Random(1)
        self.kept: dict[str, tuple[Side, float]] = {}
        self.channels = Channels(canary=channel("canary"), stable=channel("stable"))
        self._numbers = itertools.count()
        self._revision = 0
        self._late: list[tuple[str, bytes, int]] = []
        self._indices = (ResourceIndex(), ResourceIndex())
        self._ways = [Ways(index) for index in self._indices]
        for one in (channel("stable"), channel("canary")):
            self._write(one)
        self.catch_up()

    def roll_out(self, name: str) -> None:
        """Apply a rollout."""
        sides = {f"{side}Channel": {"name": f"web-{side}"} for side in ("canary", "stable")}
        steps = [{"weight": weight} for weight in (10, 30, 60, 100)]
        said: dict[str, Any] = {"steps": steps, "analysis": {"windowSeconds": 60}}
        self.rollout = ChannelRollout.model_validate(
            {
                "metadata": {"name": name, "labels": {"tenant": "acme"}, "generation": 1},
                "spec": {"strategy": {"canary": {**sides, **said}}},
            }
        )
        self._become(next_step(self.rollout, self.channels, now=self.now))

    def step(self, verdicts: tuple[Verdict, ...] = PASSED) -> None:
        """A window later, with what a look shows."""
        self.now += 60
        self._become(next_step(self.rollout, self.channels, now=self.now, verdicts=verdicts))

    def steer(self, action: str) -> None:
        """A person says so."""
        self.now += 1
        request = SteerRollout.model_validate({"name": "web", "action": action})
        self._become(steer(self.rollout, self.channels, request, now=self.now))

    def catch_up(self) -> None:
        """The second runtime has heard of everything."""
        for token, value, revision in self._late:
            self._indices[1].apply(token, value, revision)
            self._ways[1].forget()
        self._late.clear()

    def turn(self, conversation: str) -> str:
        """A turn, carried by either runtime; the subset that it goes to."""
        kept, at = self.kept.get(conversation, (None, 0.0))
        ways = self.dice.choice(self._ways)
        side = ways.side(REQUEST, "acme", conversation, kept, age_s=self.now - at)
        assert side is not None
        self.kept[conversation] = (side, self.now)
        return ways.way(REQUEST, "acme", side).subset

    def begin(self, count: int) -> dict[str, str]:
        """So many new conversations, and where each is."""
        return {
            name: self.turn(name) for name in (f"c-{next(self._numbers)}" for _ in range(count))
        }

    def _become(self, stepped: Stepped | None) -> None:
        assert stepped is not None
        self.rollout = self.rollout.model_copy(update={"status": stepped.status})
        self._write(self.rollout)

    def _write(self, resource: Channel | ChannelRollout) -> None:
        self._revision += 1
        change = (key_of(resource).token, value_of(resource), self._revision)
        self._indices[0].apply(*change)
        self._ways[0].forget()
        self._late.append(change)


def check_kept(world: World, began: dict[str, str]) -> None:
    """Three more turns of each conversation are where its first was."""
    for _ in range(3):
        assert {name: world.turn(name) for name in began} == began


def share_is(found: dict[str, str], weight: int) -> bool:
    drawn = sum(subset == "canary" for subset in found.values())
    if weight in (0, 100):
        return drawn == len(found) * weight // 100
    return float(stats.binomtest(drawn, len(found), weight / 100).pvalue) > 0.001


def test_weights_are_exact_and_nobody_flips_until_all_are_promoted() -> None:
    world = World()
    older = world.begin(300)
    began: dict[str, str] = dict(older)
    world.roll_out("first")
    for weight in (10, 30, 60, 100):
        # One runtime knows, the other does not yet.
        early = world.begin(300)
        check_kept(world, began | early)
        world.catch_up()
        found = world.begin(10_000)
        assert share_is(found, weight), weight
        some = dict(itertools.islice(found.items(), 300))
        began |= early | some
        check_kept(world, began)
        assert set(older.values()) == {"stable"}
        world.step()

    assert world.rollout.status is not None
    assert world.rollout.status.phase == "Promoted"
    moved: set[str] = set()
    for _ in range(4):
        # Whoever is on the canary stays there, whoever has heard of what.
        for name in began:
            if world.turn(name) == "canary":
                moved.add(name)
            else:
                assert name not in moved
    world.catch_up()
    assert {world.turn(name) for name in began} == {"canary"}


def test_after_a_roll_back_nobody_is_on_the_canary_and_the_next_rollout_draws_anew() -> None:
    world = World()
    world.roll_out("first")
    world.catch_up()
    first = world.begin(10_000)
    assert share_is(first, 10)
    some = dict(itertools.islice(first.items(), 2000))
    world.step(FAILED)
    left: set[str] = set()
    for _ in range(3):
        for name in some:
            if world.turn(name) == "stable":
                left.add(name)
            else:
                assert name not in left
    world.catch_up()
    assert {world.turn(name) for name in some} == {"stable"}

    # A second rollout of the same channel, at once; its draws have nothing to do with the first's.
    world.roll_out("second")
    early = world.begin(300)
    check_kept(world, early | dict.fromkeys(some, "stable"))
    world.catch_up()
    second = world.begin(10_000)
    assert share_is(second, 10)
    check_kept(world, early | dict(itertools.islice(second.items(), 1000)))
    salts = {side.salt for side, _ in world.kept.values()} - {""}
    assert len(salts) == 2
    drawn_again = World()
    drawn_again.roll_out("second")
    drawn_again.catch_up()
    both = sum(
        one == other == "canary"
        for one, other in zip(first.values(), drawn_again.begin(10_000).values(), strict=True)
    )
    assert float(stats.binomtest(both, 10_000, 0.01).pvalue) > 0.001


def test_a_restart_begins_at_its_first_weight_and_leaves_running_conversations_alone() -> None:
    world = World()
    world.roll_out("first")
    world.catch_up()
    began = world.begin(1000)
    world.steer("restart")
    check_kept(world, began | world.begin(300))
    world.catch_up()

    assert share_is(world.begin(10_000), 10)
    check_kept(world, began)


def test_a_store_that_was_made_anew_is_believed_in_the_end() -> None:
    world = World()
    world.roll_out("first")
    world.catch_up()
    kept = Side(subset="canary", rollout="default/first", salt="of another life", as_of=10_000)
    world.step(FAILED)
    world.catch_up()

    world.kept["c"] = (kept, world.now)
    assert world.turn("c") == "canary"
    world.kept["c"] = (kept, world.now - 60)
    assert world.turn("c") == "stable"
