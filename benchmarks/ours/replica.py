"""A fresh replica of the registry's view: says how long it took to read, and then what it sees.

Its first line says how long reading everything took; every other one, that Things have changed,
and when, by the clock that all processes of a machine share.
"""

import asyncio
import json
import os
import sys
import time

import uvloop

from lmos_mesh import Mesh
from lmos_mesh.directory import Directory
from lmos_mesh.things import ThingKey


def on_change(changed: list[ThingKey]) -> None:
    """Say it at once."""
    now = time.monotonic()
    print(json.dumps({"at": now, "names": [key.name for key in changed]}), flush=True)


async def main() -> None:
    """Read, say so, and follow until told to end."""
    async with Mesh.connect(os.environ["LMOS_NATS_URL"], name="replica") as mesh:
        directory = Directory(mesh.bus)
        began = time.perf_counter()
        await directory.follow()
        took = time.perf_counter() - began
        directory.on_change(on_change)
        said = {"event": "READY", "took_s": took, "things": len(directory.membership)}
        print(json.dumps(said), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
