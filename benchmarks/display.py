"""Shows what was measured: tables as plain text, everything as JSON, spreads as plots."""

# matplotlib is only partly typed; the checker is told so here and nowhere else.
# pyright: reportUnknownMemberType=false

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures import Aim, Report, Spread, short

RESULTS = Path(__file__).parent / "results"


def said_by(reports: Iterable[Report]) -> list[tuple[str, str, str, str]]:
    """One row per report for a table: the peer, its codec, its loop and its versions."""
    return [
        (
            str(report["peer"]),
            str(report["codec"]),
            str(report["loop"]),
            versions_of(report["versions"]),
        )
        for report in reports
    ]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Plain text in columns: words to the left, figures to the right."""
    shown = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(heads))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: object) -> str:
    return short(value) if isinstance(value, float) else str(value)


def show_conditions(found: Mapping[str, Any]) -> None:
    """Print under which conditions was measured."""
    for name, value in found.items():
        print(f"{name:<13} {versions_of(value) if name == 'versions' else value}")
    if found.get("quick"):
        print("a smoke run: it shows that all of it runs, and its figures compare nothing")
    print()


def versions_of(versions: Mapping[str, Any]) -> str:
    """Distributions and their versions in one line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def show_aims(
    aims: Sequence[Aim], counted: str = "medians over the rounds, ranges in brackets"
) -> list[dict[str, Any]]:
    """Print which aims are met; what of it is kept beside the figures."""
    print(f"\naims ({counted})")
    for aim in aims:
        print(f"  {aim}")
    return [{**asdict(aim), "met": aim.met} for aim in aims]


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Keep everything that was measured, as JSON under `results/`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path


def plot(
    name: str,
    title: str,
    unit: str,
    series: Mapping[str, Mapping[str, Spread]],
    *,
    log: bool = False,
) -> Path | None:
    """Draw grouped bars with their ranges, as PNG under `results/`.

    Args:
        name: The file's name, without its ending.
        title: What the plot shows.
        unit: What the figures are counted in.
        series: By contender, then by group (in flight, say).
        log: Whether the figures' axis is logarithmic.

    Returns:
        Where the plot is, or None where matplotlib is not installed, which is said.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no plot {name}.png: run `pip install 'lmos-mesh[bench]'` for matplotlib")
        return None
    # Loaded here, because a benchmark without plots must do without it.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(group for bars in series.values() for group in bars))
    width = 0.8 / len(series)
    shown, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for index, (contender, bars) in enumerate(series.items()):
        present = [group for group in groups if group in bars]
        spreads = [bars[group] for group in present]
        axes.bar(
            [groups.index(group) + (index - (len(series) - 1) / 2) * width for group in present],
            [s.median for s in spreads],
            width,
            label=contender,
            yerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            capsize=2,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_title(title)
    axes.set_ylabel(unit)
    if log:
        axes.set_yscale("log")
    axes.legend(fontsize="small")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.png"
    shown.savefig(path, dpi=120)
    pyplot.close(shown)
    return path
