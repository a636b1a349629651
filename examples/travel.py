r"""Typed parameters, and what was said before: `lmos run examples/travel.py`.

A message alone fills `question`. A program may give the rest, too:

    nats req lmos.demo.agent.travel.stable.invoke.find_train \
        '{"question": "from Berlin to Paris", "travellers": 2, "first_class": true}'
"""

import re
import zlib
from collections.abc import Iterable

from lmos_mesh import Agent, Context

agent = Agent("travel", description="Plans journeys by train and finds places to stay.")

ROUTE = re.compile(r"from (?P<origin>[A-Z]\w+) to (?P<destination>[A-Z]\w+)")
PEOPLE = re.compile(r"\b(?P<count>\d+|two|three|four|five|six) (people|persons|adults|of us)")
WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


@agent.capability(
    examples=[
        "find me a train from Vienna to Prague",
        "when does the next train to Rome leave?",
        "how much is a ticket from London to Paris?",
        "I want to travel from Munich to Berlin on Friday",
        "book a train for two people",
    ]
)
async def find_train(
    question: str, context: Context, travellers: int = 1, first_class: bool = False
) -> str:
    """Find a train between two cities, with its departure and its fare."""
    said = [question, *(one.content for one in reversed(context.history) if one.role == "user")]
    route = first_match(ROUTE, said)
    if route is None:
        return "From where to where? For example: from Berlin to Paris."
    people = first_match(PEOPLE, said)
    if people is not None:
        travellers = WORDS.get(people["count"]) or int(people["count"])
    origin, destination = route["origin"], route["destination"]
    seed = zlib.crc32(f"{origin}-{destination}".encode())
    fare = (29 + seed % 90) * travellers * (2 if first_class else 1)
    who = "one traveller" if travellers == 1 else f"{travellers} travellers"
    carriage = "first" if first_class else "second"
    return (
        f"The next train from {origin} to {destination} leaves at {6 + seed % 14}:{seed % 6}5. "
        f"For {who} in {carriage} class it is {fare} €."
    )


@agent.capability(
    examples=[
        "find me a hotel in Lisbon",
        "where can I stay in Rome?",
        "is there a room for tonight?",
        "I need a cheap place to sleep near the station",
    ]
)
async def find_hotel(question: str) -> str:
    """Find a hotel room."""
    return "The Station Hotel has a room for tonight: 84 €, with breakfast."


def first_match(pattern: re.Pattern[str], texts: Iterable[str]) -> re.Match[str] | None:
    """The first match, the newest text first."""
    return next(filter(None, map(pattern.search, texts)), None)
