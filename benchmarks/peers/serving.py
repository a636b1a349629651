"""What the peers' server programs share: their options, the READY line, and leaving on SIGTERM."""

import argparse
import asyncio
import json
import os
import platform
import signal
from collections.abc import Sequence
from importlib.metadata import version

from closed_loop import loop_name


def server_options(description: str, roles: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options that every server program on the bus takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    if roles:
        parser.add_argument("--role", choices=roles, required=True)
    return parser


async def serve_until_told(packages: Sequence[str], **more: object) -> None:
    """Say READY, as one line of JSON, and return on SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    say_ready(packages, **more)
    await stop.wait()


def say_ready(packages: Sequence[str], **more: object) -> None:
    """Print the line that whoever started this program waits for."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    line = {"event": "READY", "pid": os.getpid(), "loop": loop_name(), "versions": versions}
    print(json.dumps({**line, **more}), flush=True)
