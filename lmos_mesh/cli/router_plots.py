"""The pictures of `lmos router eval`, where matplotlib is installed."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmos_mesh.cli.metrics import BINS, Judged, Report, risk_coverage
from lmos_mesh.errors import SettingsError

_MOST_NAMES = 40


def check_plots(directory: Path) -> None:
    """Say before the work begins that pictures cannot be written.

    Raises:
        SettingsError: Nothing can draw them, or nowhere to put them.
    """
    if find_spec("matplotlib") is None:
        raise SettingsError("--plots needs matplotlib", hint="pip install 'lmos-mesh[plots]'")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(
            f"--plots {directory} is no directory that can be written to: {exc.strerror or exc}"
        ) from None


def write_plots(directory: Path, judged: Sequence[Judged], found: Report) -> list[Path]:
    """Draw what there is to draw, and say which files were written.

    Raises:
        SettingsError: They cannot be written.
    """
    rows = [one for one in judged if not one.failed]
    inside = [one for one in rows if one.truth]
    outside = [one for one in rows if not one.truth]
    pictures: list[tuple[str, Callable[[Any], None]]] = []
    if inside:
        pictures.append(("abstention", lambda axes: _abstention(axes, inside)))
        pictures.append(("calibration", lambda axes: _calibration(axes, found)))
        pictures.append(("confusion", lambda axes: _confusion(axes, rows)))
    if inside and outside:
        pictures.append(("scope", lambda axes: _scope(axes, inside, outside)))
    if rows:
        pictures.append(("latency", lambda axes: _latency(axes, rows)))
    return [_write(directory / f"{name}.png", draw) for name, draw in pictures]


def _write(path: Path, draw: Callable[[Any], None]) -> Path:
    # Not pyplot, which looks for a screen and keeps every figure.
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    draw(figure.add_subplot())
    try:
        figure.savefig(path)
    except OSError as exc:
        raise SettingsError(f"cannot write {path}: {exc.strerror or exc}") from None
    return path


def _abstention(axes: Any, inside: Sequence[Judged]) -> None:
    points = risk_coverage([(one.confidence, one.right) for one in inside])
    axes.plot([one.coverage for one in points], [1 - one.accuracy for one in points])
    axes.set(
        xlabel="share of messages that are routed, the surest first",
        ylabel="share of these that go wrong",
        title=f"Abstention, {len(inside)} messages",
        xlim=(0, 1),
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _calibration(axes: Any, found: Report) -> None:
    most = max(one.count for one in found.bins)
    axes.bar(
        [(one.low + one.high) / 2 for one in found.bins],
        [one.count / most for one in found.bins],
        width=0.9 / BINS,
        color="0.85",
        label="messages",
    )
    axes.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
    axes.plot(
        [one.confidence for one in found.bins],
        [one.accuracy for one in found.bins],
        "o-",
        label="right",
    )
    error = f", ECE {found.error:.3f}" if found.error is not None else ""
    axes.set(
        xlabel="confidence", ylabel="share", title=f"Calibration{error}", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(loc="upper left")


def _scope(axes: Any, inside: Sequence[Judged], outside: Sequence[Judged]) -> None:
    edges = [at / 20 for at in range(21)]
    for rows, name in ((inside, "for somebody"), (outside, "for nobody")):
        values = [one.in_scope for one in rows]
        weights = [1 / len(values)] * len(values)
        axes.hist(values, bins=edges, weights=weights, alpha=0.6, label=f"{name} ({len(values)})")
    axes.set(
        xlabel="share of messages in scope that are further out",
        ylabel="share",
        title="In and out of scope",
    )
    axes.legend()


def _confusion(axes: Any, rows: Sequence[Judged]) -> None:
    """Rows add up to one; for nobody is what was not routed, or should not have been."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in rows:
        counts[one.truth, one.first if one.truth or one.routed else ""] += 1
    seen: Counter[str] = Counter()
    for (truth, other), count in counts.items():
        seen[truth] += count
        seen[other] += count
    names = sorted(name for name, _ in seen.most_common(_MOST_NAMES))
    place = {name: at for at, name in enumerate(names)}
    cells = [[0.0] * len(names) for _ in names]
    for (truth, other), count in counts.items():
        if truth in place and other in place:
            cells[place[truth]][place[other]] = count
    for row in cells:
        total = sum(row) or 1
        row[:] = [count / total for count in row]
    image = axes.imshow(cells, cmap="Blues", vmin=0, vmax=1)
    labels = [(name[:20] or "nobody").replace("$", r"\$") for name in names]
    size = 8 if len(names) <= 20 else 5
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    axes.set(xlabel="named first", ylabel="for", title="Who is taken for whom")
    axes.figure.colorbar(image, ax=axes, fraction=0.04)


def _latency(axes: Any, rows: Sequence[Judged]) -> None:
    for name, values in (
        ("in the router", sorted(one.router_ms for one in rows)),
        ("round trip", sorted(one.took_ms for one in rows)),
    ):
        shares = [(at + 1) / len(values) for at in range(len(values))]
        axes.plot([max(one, 1e-3) for one in values], shares, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="milliseconds", ylabel="share of messages", title="Time per decision")
    axes.grid(alpha=0.3)
    axes.legend()
