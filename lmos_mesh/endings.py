"""How a child process has ended, and what it said last."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.05
_TAIL_BYTES = 16 * 1024


async def exit_of(process: "subprocess.Popen[bytes]") -> int:
    """Wait until a child has ended, without a moment's delay on Linux. Cancelling is safe."""
    if sys.platform == "linux":
        with suppress(OSError):
            watched = os.pidfd_open(process.pid)
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(watched, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
    while True:
        if (code := process.poll()) is not None:
            return code
        await asyncio.sleep(_POLL_S)


def how_it_ended(code: int) -> str:
    """What an exit status says, as the rest of a sentence."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with status {code}"


def last_words(log: Path, since: int = 0) -> str:
    """What the last line of a log says: its event if it is JSON, else the line itself."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    line = next((one.strip() for one in reversed(text.splitlines()) if one.strip()), "")
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict):
            return _event_of(told)  # pyright: ignore[reportUnknownArgumentType]
    return line


def _event_of(told: Mapping[str, object]) -> str:
    trace = str(told.get("exception") or "").strip().splitlines()
    said = str(told.get("event", ""))
    return f"{said}: {trace[-1]}" if trace else said
