"""Asks the Synadia host with Synadia's own client."""

import argparse
import sys

import nats
from closed_loop import Ask, load_options, report, run
from synadia_ai.agents import Agent, Agents, DiscoverFilter, ResponseChunk
from work import answer, check, question

TIMEOUT_S = 10.0


def turn(agent: Agent) -> Ask:
    """A prompt whose answer comes in chunks."""

    async def ask(worker: int, number: int) -> None:
        asked = question(worker)
        parts = [
            chunk.text
            async for chunk in agent.prompt(asked, timeout=TIMEOUT_S)
            if isinstance(chunk, ResponseChunk)
        ]
        check(answer(asked), "".join(parts))

    return ask


async def load(options: argparse.Namespace) -> None:
    """Find the agent once, as discovery alone takes 0.2 s or more, then run the cells."""
    client = await nats.connect(options.nats_url, name="synadia/load")
    agents = Agents(nc=client)
    found = await agents.discover(filter=DiscoverFilter(agent="echo", owner="bench"))
    if not found:
        sys.exit(f"no agent 'echo' at {options.nats_url}; start synadia_server.py first")
    packages = ["synadia-ai-agents", "nats-py", "uvloop"]
    await report("synadia", options, turn(found[0]), codec="JSON chunks", packages=packages)
    await agents.close()
    await client.close()


def main() -> None:
    """Run the load and print one line of JSON."""
    parser = load_options(__doc__ or "", ("turn",))
    parser.add_argument("--nats-url", default="nats://127.0.0.1:4222")
    options = parser.parse_args()
    run(options.loop, load(options))


if __name__ == "__main__":
    main()
