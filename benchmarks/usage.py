"""What processes use: processor time and memory, of named processes and all that they started."""

import sys
from collections.abc import Mapping
from pathlib import Path

import psutil


def cpu_seconds(pids: Mapping[str, int], *, alone: bool = False) -> dict[str, float]:
    """User and system time of each named process and of all that it started, in seconds.

    The kernel counts in steps of 10 ms, per process and kind: ask for long enough that it does
    not matter (2,000 asks are few for a contender that spends 0.1 ms on one).

    Args:
        pids: By name.
        alone: Leave out what it started.
    """
    if alone:
        times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}
    return {name: sum(map(_cpu_of, _tree(pid))) for name, pid in pids.items()}


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    # A child that has ended is counted by its parent, so that no time goes missing.
    return times.user + times.system + times.children_user + times.children_system


def cpu_ms_per_ask(
    before: Mapping[str, float], after: Mapping[str, float], asked: int
) -> dict[str, float]:
    """What each named process spent on one ask, in milliseconds, and their `total`."""
    spent = {name: (after[name] - before[name]) * 1e3 / asked for name in before}
    return {**spent, "total": sum(spent.values())}


def pss_mb(pids: Mapping[str, int]) -> dict[str, float]:
    """Proportional set size of each named process tree, in MB: shared pages are shared out."""
    return {name: sum(_pss_kb(p.pid) for p in _tree(pid)) / 1e3 for name, pid in pids.items()}


def _pss_kb(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except FileNotFoundError:
        sys.exit("benchmark: PSS is read from /proc/PID/smaps_rollup, which only Linux has")
    # The kernel's kB are 1024 bytes.
    return next(
        int(line.split()[1]) * 1.024 for line in rollup.splitlines() if line.startswith("Pss:")
    )


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
