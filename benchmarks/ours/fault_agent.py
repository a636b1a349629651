"""An agent process to be killed: it speaks word by word, and has an agent that nobody else has."""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from work import answer_chunks

from lmos_mesh import Agent, AgentHost, Bus
from lmos_mesh.hosting import AgentSettings
from lmos_mesh.service import run_service

# As a language model speaks, more or less.
PAUSE_S = 0.02

echo = Agent("echo", description="Repeats what it is told.")


@echo.capability(examples=["please echo no 000", "please echo no 999", "repeat after me"])
async def repeat(message: str) -> AsyncIterator[str]:
    """Repeat a message in ten chunks."""
    for chunk in answer_chunks(message):
        yield chunk
        await asyncio.sleep(PAUSE_S)


def alone(name: str, phrase: str) -> Agent:
    """An agent of this process only."""
    agent = Agent(name, description=f"Knows {phrase}.")

    @agent.capability(id="answer", examples=[phrase])
    async def answer(question: str) -> str:
        """Answer the one question."""
        return phrase

    return agent


class Announced:
    """Agents that say on standard output when they are registered."""

    def __init__(self, host: AgentHost) -> None:
        self._host = host

    async def run(self, bus: Bus, ready: Callable[[], None]) -> None:
        """Serve, and say READY with the time of it."""

        def registered() -> None:
            line = {"event": "READY", "instance": bus.instance, "at": time.monotonic()}
            print(json.dumps(line), flush=True)
            ready()

        await self._host.run(bus, registered)

    async def leave(self) -> None:
        """Say goodbye."""
        await self._host.leave()


def main() -> None:
    """Serve as this process until told, or made, to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of the agent that nobody else has")
    parser.add_argument("--phrase", required=True, help="what that agent is asked")
    options = parser.parse_args()
    agents = [echo, alone(options.name, options.phrase)]
    run_service("agent", AgentSettings, lambda settings: Announced(AgentHost(agents, settings)))


if __name__ == "__main__":
    main()
