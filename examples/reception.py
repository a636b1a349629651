"""An agent that hands over, and one that has others work for it: `lmos run examples/reception.py`.

Run it beside `examples/billing.py`, `examples/travel.py` and `examples/weather.py`. Ask "I would
like to speak to somebody about my bill", and the conversation goes on with billing. Ask "plan a
weekend in Rome", and three agents answer with one voice.
"""

import asyncio
import re

from lmos_mesh import Agent, Context
from lmos_mesh.errors import MeshError

reception = Agent("reception", description="Receives people and takes them to the right agent.")
planner = Agent("planner", description="Plans weekends and short trips from start to end.")

DESKS = {"bill": "view_bill", "train": "find_train", "hotel": "find_hotel"}


@reception.capability(
    examples=[
        "I would like to speak to somebody",
        "connect me to somebody about my bill",
        "who is responsible for this?",
    ]
)
async def receive(question: str, context: Context) -> str:
    """Take somebody to whoever can help."""
    for word, capability in DESKS.items():
        if word in question.lower():
            await context.say("One moment, I take you there.")
            context.hand_over(capability=capability)
    return f"We have desks for: {', '.join(DESKS)}. Where shall I take you?"


@planner.capability(examples=["plan a weekend in Rome", "plan a short trip to Vienna for me"])
async def plan_weekend(question: str, context: Context) -> str:
    """Plan a weekend: how to get there, where to stay, and what the weather is like."""
    where = re.search(r"(?:in|to) (?P<city>[A-Z]\w+)", question)
    city = where["city"] if where else "Rome"
    asked = (
        f"find me a train from Berlin to {city}",
        f"find me a hotel in {city}",
        f"will it rain in {city}?",
    )
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(one_answer(context, each)) for each in asked]
    return "\n".join(f"- {one.result()}" for one in answers)


async def one_answer(context: Context, question: str) -> str:
    """What whoever can help says, or why nobody does."""
    try:
        return (await context.ask(question)).answer
    except MeshError as error:
        return f"{question}: {error.message}"
