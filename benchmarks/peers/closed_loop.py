"""Asks again and again with a fixed number of asks in flight, and sums up how long they took.

Standard library only (and uvloop where it is wanted), so that it runs in every environment.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

# An ask takes milliseconds: one that is still open this long after the end is lost.
GRACE_S = 20.0

Ask = Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How hard to ask: until `calls` are made or `seconds` are over, whichever is first."""

    calls: int = 5_000
    seconds: float = 5.0
    warm_up: int = 50


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of an ascending sequence does not exceed; nan of an empty one."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def run_cell(ask: Ask, in_flight: int, plan: Plan) -> dict[str, Any]:
    """Run one cell: `in_flight` workers, each asking again when it has its answer.

    Args:
        ask: Asks once and raises unless the answer is right; told the worker and a running number.
        in_flight: How many asks are open at any time.
        plan: When to stop.
    """
    warmed, lost_warming, _ = await _ask_until(ask, in_flight, plan.warm_up, plan.seconds)
    cpu_before = time.process_time()
    began = time.perf_counter()
    took, lost, first_error = await _ask_until(ask, in_flight, plan.calls, plan.seconds)
    elapsed = time.perf_counter() - began
    cpu = time.process_time() - cpu_before
    took.sort()
    asked = len(took) + lost
    return {
        "in_flight": in_flight,
        "n": len(took),
        "errors": lost,
        "first_error": first_error,
        "p50_ms": round(percentile(took, 0.5) * 1e3, 4) if took else None,
        "p99_ms": round(percentile(took, 0.99) * 1e3, 4) if took else None,
        "per_s": round(len(took) / elapsed, 2),
        "elapsed_s": round(elapsed, 3),
        # Servers work for the warm-up too: this is what their CPU time is divided by.
        "asked": asked + len(warmed) + lost_warming,
        "client_cpu_ms": round(cpu * 1e3 / asked, 4) if asked else None,
        "loop": loop_name(),
    }


async def _ask_until(
    ask: Ask, in_flight: int, calls: int, seconds: float
) -> tuple[list[float], int, str]:
    took: list[float] = []
    failures: list[str] = []
    numbers = itertools.count()
    begun = 0
    deadline = time.perf_counter() + seconds

    async def work(worker: int) -> None:
        nonlocal begun
        while (number := next(numbers)) < calls and (start := time.perf_counter()) < deadline:
            begun += 1
            try:
                await ask(worker, number)
            except Exception as exc:
                failures.append(f"{type(exc).__name__}: {exc}")
            else:
                took.append(time.perf_counter() - start)

    try:
        async with asyncio.timeout(seconds + GRACE_S), asyncio.TaskGroup() as workers:
            for worker in range(in_flight):
                workers.create_task(work(worker))
    except TimeoutError:
        failures.append(f"TimeoutError: unanswered {GRACE_S:g} s after the end")
    return took, begun - len(took), failures[0] if failures else ""


def loop_name() -> str:
    """The event loop that is running: `asyncio` or `uvloop`."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a program's main coroutine on the event loop of that name."""
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def load_options(description: str, modes: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every load program takes."""
    default = Plan()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--mode", choices=modes, default=modes[0])
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--in-flight", default="1,16,64", help="one cell each, e.g. 1,16,64")
    parser.add_argument("--calls", type=int, default=default.calls)
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--warm-up", type=int, default=default.warm_up)
    return parser


async def report(
    peer: str,
    options: argparse.Namespace,
    ask: Ask,
    *,
    codec: str,
    packages: Sequence[str],
    **more: Any,
) -> None:
    """Run every cell and print the one line of JSON that a load program is there for.

    Args:
        peer: Whose figures these are.
        options: What `load_options` parsed.
        ask: Asks once, as for `run_cell`.
        codec: What is on the wire.
        packages: Distributions whose versions belong beside the figures.
        more: Further members of the report.
    """
    plan = Plan(calls=options.calls, seconds=options.seconds, warm_up=options.warm_up)
    cells = {
        str(in_flight): await run_cell(ask, in_flight, plan)
        for in_flight in map(int, options.in_flight.split(","))
    }
    line: Mapping[str, Any] = {
        "peer": peer,
        "mode": options.mode,
        "codec": codec,
        "loop": loop_name(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "load_average": os.getloadavg()[0],
        "cells": cells,
        **more,
    }
    print(json.dumps(line), flush=True)
