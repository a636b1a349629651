"""What both sides of a rollout have done lately, ready to be compared. Pure.

Turns of both sides are taken from the same stretch of time; an hour at most is held, and no more
than so many turns of each.
"""

import bisect
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from lmos_mesh.messages import LeftOut, TurnReport
from lmos_mesh.resources import Compared
from lmos_mesh_operator.judging import Sample

MOST_TURNS = 50_000
MOST_SECONDS = 5_000
"""How many answers a side's seconds are taken from: the latest; more change no verdict."""
KEPT_S = 3600.0


class Place(NamedTuple):
    """Whose turns: of a channel and release line, mirrored or real."""

    channel: str
    subset: str
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    at: float
    outcome: str
    total_s: float
    handed_over: bool
    rollout: str
    same: bool | None = None
    left_out: LeftOut = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure that somebody published.

    Attributes:
        name: Of the custom check that it is for, as `event#field`.
        channel: Empty for any.
    """

    at: float
    name: str
    subset: str
    value: float
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a rollout needs to be judged.

    Attributes:
        since: The turns from then on, in Unix seconds.
        events: Of its custom checks: `thing.event`, and what the figure is called.
    """

    tenant: str
    since: float
    events: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Window:
    """The turns and figures of one tenant. Filled as they come, read for any stretch of time."""

    _turns: dict[Place, deque[_Turn]] = field(default_factory=dict[Place, "deque[_Turn]"])
    _figures: dict[str, deque[Figure]] = field(default_factory=dict[str, "deque[Figure]"])

    def add(self, at: float, report: TurnReport) -> None:
        """Note a turn that ended at `at`."""
        if report.outcome == "cancelled" and not report.left_out:
            return  # whoever left says nothing of what there would have been
        place = Place(report.channel, report.subset, report.shadow)
        held = self._turns.setdefault(place, deque(maxlen=MOST_TURNS))
        turn = _Turn(
            at,
            _came_to(report),
            report.total_s,
            report.handovers > 0,
            report.rollout,
            report.same,
            report.left_out,
        )
        if held and at < held[-1].at:
            # From another process, whose clock or whose way is a little slower.
            place_in = bisect.bisect_right(held, at, key=_at)
            if len(held) < MOST_TURNS:
                held.insert(place_in, turn)
        else:
            held.append(turn)

    def add_figure(self, figure: Figure) -> None:
        """Note a figure."""
        self._figures.setdefault(figure.name, deque(maxlen=MOST_TURNS)).append(figure)

    def forget(self, *, before: float) -> None:
        """Drop what is too old for any judgement."""
        for held in self._turns.values():
            while held and held[0].at < before:
                held.popleft()
        for figures in self._figures.values():
            while figures and figures[0].at < before:
                figures.popleft()

    def sample(
        self,
        place: Place,
        *,
        since: float,
        until: float,
        rollouts: Iterable[str] | None = None,
        figures: Iterable[str] = (),
    ) -> Sample:
        """What was done in a place from `since` until `until`.

        Args:
            place: Whose turns.
            since: Unix seconds, itself included; as `until`.
            until: Unix seconds.
            rollouts: Only turns that one of these sent there; None for all.
            figures: The custom checks whose figures are wanted.
        """
        wanted = None if rollouts is None else frozenset(rollouts)
        found = [
            one
            for one in self._turns.get(place, ())
            if since <= one.at <= until
            and not one.left_out
            and (wanted is None or one.rollout in wanted)
        ]
        answered = [one for one in found if one.outcome == "answered"]
        return Sample(
            turns=len(found),
            answered=len(answered),
            failed=sum(one.outcome == "failed" for one in found),
            asked_back=sum(one.outcome == "asked_back" for one in found),
            handed_over=sum(one.handed_over for one in answered),
            seconds=tuple(one.total_s for one in answered[-MOST_SECONDS:]),
            figures={
                name: tuple(
                    one.value
                    # A copy: they go on coming while another thread reads.
                    for one in tuple(self._figures.get(name, ()))
                    if since <= one.at <= until
                    and one.subset == place.subset
                    and one.channel in ("", place.channel)
                )[-MOST_SECONDS:]
                for name in figures
            },
        )

    def compared(self, place: Place, *, since: float, until: float, rollout: str) -> Compared:
        """What became of the turns that a rollout had mirrored, or could not have."""
        counted: Counter[str] = Counter(
            one.left_out or _beside(one)
            for one in self._turns.get(place, ())
            if since <= one.at <= until and one.rollout == rollout
        )
        return Compared.model_validate(dict(counted))


def figure_from(name: str, data: Mapping[str, Any], *, at: float) -> Figure | None:
    """The figure in an event's data; None if it has none, or does not say whose it is.

    Args:
        name: The check's, as `event#field`; a field with dots goes into objects.
        data: Of the event.
        at: When it came, in Unix seconds.
    """
    value: Any = data
    for step in name.partition("#")[2].split("."):
        value = cast("Mapping[str, Any]", value).get(step) if isinstance(value, Mapping) else None
    subset, channel = data.get("subset"), data.get("channel", "")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    if not isinstance(subset, str) or not isinstance(channel, str):
        return None
    return Figure(at=at, name=name, subset=subset, value=float(value), channel=channel)


def _came_to(report: TurnReport) -> str:
    """What a turn counts as: one of which a request has failed is no answered one.

    Its user did not get what they asked for, and its seconds may be those of an early end.
    """
    if any(part.state == "failed" for part in report.parts):
        return "failed"
    return report.outcome


def _beside(turn: _Turn) -> str:
    if turn.same is None:
        return "failed"
    return "same" if turn.same else "different"


def _at(turn: _Turn) -> float:
    return turn.at
