"""How contenders compare: spreads over rounds and ratios within a round. Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"

Report = Mapping[str, Any]
"""What a load program printed; see `peers.closed_loop.report`."""

Round = Mapping[str, Report]
"""The reports of one round, by contender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over all rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.median):
            return "-"
        if self.low == self.high:
            return short(self.median)
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def spread(values: Iterable[float]) -> Spread:
    """The median and the range of what was measured; nan where nothing was."""
    measured = [value for value in values if not math.isnan(value)]
    if not measured:
        return Spread(median=math.nan, low=math.nan, high=math.nan)
    return Spread(median=statistics.median(measured), low=min(measured), high=max(measured))


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: each contender is first, second, … equally often."""
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]


def figure(report: Report, cell: str, measure: str) -> float:
    """One figure of a report, e.g. `p50_ms` of cell `16`; nan where it was not measured."""
    value = report["cells"].get(cell, {}).get(measure)
    return math.nan if value is None else float(value)


def figures(rounds: Sequence[Round], name: str, cell: str, measure: str) -> Spread:
    """One contender's figure over all rounds."""
    return spread(figure(reports[name], cell, measure) for reports in rounds)


def ratios(rounds: Sequence[Round], name: str, to: str, cell: str, measure: str) -> Spread:
    """How a contender compares with another: the ratio within each round, over all rounds."""
    return spread(
        _ratio(figure(reports[name], cell, measure), figure(reports[to], cell, measure))
        for reports in rounds
    )


def differences(rounds: Sequence[Round], name: str, to: str, cell: str, measure: str) -> Spread:
    """What a contender adds to another: the difference within each round, over all rounds."""
    return spread(
        figure(reports[name], cell, measure) - figure(reports[to], cell, measure)
        for reports in rounds
    )


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else math.nan


def short(value: float) -> str:
    """A figure as a table shows it: three digits, or whole where it is large."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a figure should be. Printed, never asserted: machines differ.

    Args:
        said: What is measured.
        measured: Over all rounds; the median counts.
        limit: What it should at most, or at least, be.
        at_least: Whether more is better.
        unit: What it is counted in.
    """

    said: str
    measured: Spread
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the median is within the limit; not if nothing was measured."""
        if self.at_least:
            return self.measured.median >= self.limit
        return self.measured.median <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        mark = "\N{CHECK MARK}" if self.met else "\N{BALLOT X}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{mark} {self.said}: {self.measured}{unit}; aim: {bound} {short(self.limit)}{unit}"
