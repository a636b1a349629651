"""An agent in one release line, as good or as bad as it is told to be."""

import argparse
import asyncio
import random

from work import answer_chunks

from lmos_mesh import Agent, run_agents

ANSWER_S = 0.05
SPREAD = 0.4


def release(subset: str, errors: float, slow: float) -> Agent:
    """The agent of a release line.

    Args:
        subset: Which.
        errors: The share of turns that it fails at.
        slow: How many times its answers take as long.
    """
    agent = Agent("echo", description="Repeats what it is told.", subset=subset)
    dice = random.Random(subset)

    @agent.capability(examples=["please echo no 000", "please echo no 999", "repeat after me"])
    async def repeat(message: str) -> str:
        """Repeat a message."""
        await asyncio.sleep(slow * ANSWER_S * dice.lognormvariate(0, SPREAD))
        if dice.random() < errors:
            raise ValueError("this turn fails")
        return "".join(answer_chunks(message))

    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subset")
    parser.add_argument("--errors", type=float, default=0.01)
    parser.add_argument("--slow", type=float, default=1.0)
    options = parser.parse_args()
    run_agents([release(options.subset, options.errors, options.slow)])
