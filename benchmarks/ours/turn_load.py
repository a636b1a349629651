"""Asks a whole mesh for turns on the bus: question, decision, agent, streamed answer.

`stored` begins a conversation with each question and has it kept; `unstored` keeps nothing;
`continued` gives each worker one conversation, which goes on and on.
"""

import argparse
import secrets

from closed_loop import Ask, load_options, report, run
from work import WrongAnswer, answer, check, question

from lmos_mesh import Mesh


def turn(mesh: Mesh, mode: str) -> Ask:
    """A question whose answer comes in chunks."""
    run_id = secrets.token_hex(4)

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        conversation = f"{run_id}-{worker}" if mode == "continued" else None
        parts: list[str] = []
        ended = False
        async with mesh.converse(
            asked, conversation=conversation, store=mode != "unstored"
        ) as frames:
            async for frame in frames:
                if frame.kind == "delta":
                    parts.append(frame.body)
                elif frame.kind == "end":
                    ended = True
        if not ended:
            raise WrongAnswer("the stream has no end")
        check(answer(asked), "".join(parts))

    return ask


async def load(options: argparse.Namespace) -> None:
    """Run the cells and print the report."""
    async with Mesh.connect(options.nats_url, name="bench-load") as mesh:
        packages = ["lmos-mesh", "nats-py", "pydantic", "ormsgpack", "uvloop"]
        await report(
            "lmos-mesh", options, turn(mesh, options.mode), codec="msgpack", packages=packages
        )


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("stored", "unstored", "continued"))
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
