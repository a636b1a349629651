"""A process with many agents, each of which can do one thing."""

import argparse

from lmos_mesh import Agent, AgentHost
from lmos_mesh.hosting import AgentSettings
from lmos_mesh.service import run_service


def numbered(number: int) -> Agent:
    """The agent of that number."""
    agent = Agent(f"agent-{number}", description=f"Knows all about subject {number}.")
    examples = [f"tell me about subject {number}", f"what is subject {number}?"]

    @agent.capability(id="tell", examples=examples)
    async def tell(question: str) -> str:
        """Tell what there is to know."""
        return f"Subject {number} is the one between {number - 1} and {number + 1}."

    return agent


def main() -> None:
    """Serve the agents as this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    agents = [numbered(options.first + offset) for offset in range(options.count)]
    run_service("agents", AgentSettings, lambda settings: AgentHost(agents, settings))


if __name__ == "__main__":
    main()
