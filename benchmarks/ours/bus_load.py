"""Asks our responder through our bus: `echo` or `stream`."""

import argparse
import functools

from closed_loop import Ask, load_options, report, run
from wire import ECHO, FRAMES, Wanted, Work
from work import FRAME_BYTES, WrongAnswer, check, frames, message_fields
from work import FRAMES as FRAME_COUNT

from lmos_mesh import Mesh
from lmos_mesh.bus import Bus


def echo(bus: Bus) -> Ask:
    """A typed message there and back, validated on both sides."""

    @functools.cache
    def sent(worker: int) -> Work:
        return Work(**message_fields(worker))

    async def ask(worker: int, number: int) -> None:
        check(sent(worker).number, (await bus.call(ECHO, sent(worker))).number)

    return ask


def stream(bus: Bus, count: int, size: int) -> Ask:
    """Many small frames as one reply, each checked."""
    wanted = Wanted(frames=count, bytes=size)
    expected = [frame.decode() for frame in frames(count, size)]

    async def ask(worker: int, number: int) -> None:
        at = 0
        async with bus.stream(FRAMES, wanted) as replies:
            async for frame in replies:
                if frame.kind == "delta":
                    if frame.body != expected[at]:
                        raise WrongAnswer(f"frame {at} is {frame.body!r:.100}")
                    at += 1
        check(count, at)

    return ask


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    async with Mesh.connect(options.nats_url, name="bench-load") as mesh:
        asks = {
            "echo": echo(mesh.bus),
            "stream": stream(mesh.bus, options.frames, options.bytes),
        }
        more = {"frames_per_call": options.frames} if options.mode == "stream" else {}
        packages = ["lmos-mesh", "nats-py", "pydantic", "ormsgpack", "uvloop"]
        await report(
            "lmos-mesh",
            options,
            asks[options.mode],
            codec="pydantic, msgpack",
            packages=packages,
            **more,
        )


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("echo", "stream"))
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    parser.add_argument("--bytes", type=int, default=FRAME_BYTES, help="of a frame's text")
    parser.add_argument("--frames", type=int, default=FRAME_COUNT, help="of a stream")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
