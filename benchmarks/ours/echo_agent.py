"""The agent that every contender has, and four others that the router must tell it from."""

from collections.abc import AsyncIterator

from work import answer_chunks

from lmos_mesh import Agent, run_agents

BYSTANDERS = {
    "billing": ("Questions about bills.", ("show my bill", "how much do I owe this month?")),
    "travel": ("Journeys by train.", ("book a train to Hamburg", "when does my train leave?")),
    "weather": ("The weather.", ("will it rain tomorrow?", "how cold is it outside?")),
    "parcels": ("Where parcels are.", ("where is my parcel?", "send this parcel back")),
}

echo = Agent("echo", description="Repeats what it is told.")


@echo.capability(examples=["please echo no 000", "please echo no 999", "repeat after me"])
async def repeat(message: str) -> AsyncIterator[str]:
    """Repeat a message in ten chunks."""
    for chunk in answer_chunks(message):
        yield chunk


def bystander(name: str) -> Agent:
    """An agent that is never asked, but always a candidate."""
    description, examples = BYSTANDERS[name]
    agent = Agent(name, description=description)

    @agent.capability(id=f"answer_{name}", description=description, examples=examples)
    async def answer(question: str) -> str:
        return f"Nobody asks about {name} here."

    return agent


if __name__ == "__main__":
    run_agents([echo, *map(bystander, BYSTANDERS)])
