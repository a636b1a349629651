"""Makes up any number of agents that read like agents, the same ones for the same seed.

python benchmarks/fleet.py 3        # shows three of them
"""

import json
import random
import sys
from collections.abc import Iterator
from typing import Any

SEED = 20
CAPABILITIES = 5

# Whom an agent works for; together with a place it makes a name.
_FIELDS: dict[str, tuple[str, ...]] = {
    "bakery": ("bread order", "cake design", "flour delivery", "allergen list", "oven schedule"),
    "bank": ("transfer", "standing order", "savings plan", "card limit", "account statement"),
    "bicycle": ("brake repair", "wheel alignment", "rental bike", "cargo bike", "tyre pressure"),
    "cinema": ("seat reservation", "film programme", "gift voucher", "subtitle request", "popcorn"),
    "clinic": ("appointment", "lab result", "prescription", "vaccination record", "sick note"),
    "council": ("building permit", "dog licence", "bulky waste pickup", "resident pass", "noise"),
    "energy": ("meter reading", "tariff", "power outage", "solar panel", "heating advice"),
    "farm": ("milk quota", "harvest forecast", "seed order", "tractor lease", "soil sample"),
    "ferry": ("crossing", "vehicle space", "cabin", "sailing delay", "island timetable"),
    "garden": ("pruning plan", "compost bin", "lawn sprinkler", "greenhouse climate", "rose order"),
    "grocery": ("shopping basket", "delivery slot", "bottle deposit", "recipe", "missing item"),
    "hotel": ("room booking", "late checkout", "breakfast", "room service", "lost property"),
    "insurance": ("accident report", "claim", "premium", "damage photo", "policy document"),
    "lawyer": ("contract review", "tenancy dispute", "will", "power of attorney", "court date"),
    "library": ("book loan", "overdue fine", "reading room", "interlibrary order", "audiobook"),
    "museum": ("guided tour", "exhibition", "school visit", "audio guide", "membership"),
    "parcel": ("shipment", "return label", "customs form", "pickup point", "delivery attempt"),
    "payroll": ("payslip", "overtime", "tax class", "travel expense", "holiday balance"),
    "pharmacy": ("medicine stock", "interaction check", "repeat prescription", "blood pressure"),
    "phone": ("roaming pack", "number transfer", "voicemail", "data usage", "broken screen"),
    "rail": ("train ticket", "seat upgrade", "connection", "season pass", "platform change"),
    "school": ("report card", "parent meeting", "homework", "lunch menu", "class trip"),
    "sports": ("court hire", "swimming lesson", "team roster", "match result", "locker"),
    "theatre": ("premiere ticket", "wheelchair place", "cloakroom", "season brochure", "encore"),
    "utility": ("water bill", "leak report", "hardness value", "pipe flushing", "pressure drop"),
    "vet": ("cat vaccination", "dog surgery", "pet passport", "flea treatment", "emergency visit"),
    "warehouse": ("pallet space", "stock count", "picking list", "forklift slot", "cold storage"),
    "weather": ("rain radar", "storm warning", "pollen count", "frost alert", "beach report"),
}
_PLACES = (
    "Aachen",
    "Bergen",
    "Cardiff",
    "Delft",
    "Esbjerg",
    "Faro",
    "Ghent",
    "Hull",
    "Innsbruck",
    "Jena",
    "Kaunas",
    "Lund",
    "Malmo",
    "Nantes",
    "Oulu",
    "Porto",
    "Quimper",
    "Riga",
    "Split",
    "Tartu",
    "Utrecht",
    "Varna",
    "Wels",
    "Xanten",
    "York",
    "Zadar",
    "Bilbao",
    "Cork",
    "Dresden",
    "Erfurt",
    "Florence",
    "Graz",
    "Halle",
    "Izmir",
    "Kiel",
    "Leeds",
    "Mainz",
    "Narva",
    "Olten",
    "Pisa",
    "Rouen",
    "Siena",
    "Trier",
    "Ulm",
)
_DEEDS: dict[str, tuple[str, str]] = {
    "arrange": ("Arranges a {} and confirms it.", "Could you arrange a {} for me in {}?"),
    "cancel": ("Calls off a {} and says what it costs.", "I no longer want the {} in {}"),
    "change": ("Changes a {} that was made before.", "Please move my {} in {} to another day"),
    "check": ("Says how a {} stands.", "What has become of my {} in {}?"),
    "compare": ("Sets offers for a {} side by side.", "Which {} is the better one in {}?"),
    "complain": ("Takes a complaint about a {}.", "The {} in {} was a disaster, and I am angry"),
    "confirm": ("Confirms a {} in writing.", "I need it in writing that my {} in {} is fixed"),
    "document": ("Writes down everything about a {}.", "Send me all papers of the {} from {}"),
    "estimate": ("Estimates what a {} takes.", "Roughly how much would a {} be in {}?"),
    "explain": ("Explains a {} in plain words.", "I do not understand the {} I got from {}"),
    "extend": ("Lets a {} last longer.", "May I keep the {} from {} for another week?"),
    "find": ("Finds a {} that suits.", "Where can I get a {} around {}?"),
    "forecast": ("Says how a {} will develop.", "How will the {} in {} look next month?"),
    "pay": ("Takes the money for a {}.", "I would like to pay for the {} in {} by card"),
    "print": ("Puts a {} on paper.", "Print the {} for {} twice please"),
    "refund": ("Gives back the money for a {}.", "I want my money back for the {} in {}"),
    "remind": ("Reminds people of a {} in time.", "Tell me the day before my {} in {} is due"),
    "reserve": ("Keeps a {} free until it is called for.", "Hold a {} in {} for two people"),
    "track": ("Follows a {} from beginning to end.", "Where exactly is the {} from {} right now?"),
    "translate": ("Renders a {} in another language.", "I need the {} from {} in Portuguese"),
}
_TAGS = ("billing", "booking", "complaints", "documents", "planning", "status", "advice", "money")


def agents(
    count: int, *, seed: int = SEED, first: int = 0, capabilities: int = CAPABILITIES
) -> Iterator[dict[str, Any]]:
    """Records of agents as `Register.thing` takes them, each with one example a capability.

    Args:
        count: How many.
        seed: Another one gives other agents.
        first: The number of the first; an agent is the same whoever comes before it.
        capabilities: How many each of them has.
    """
    for number in range(first, first + count):
        yield agent(number, seed=seed, capabilities=capabilities)


def agent(number: int, *, seed: int = SEED, capabilities: int = CAPABILITIES) -> dict[str, Any]:
    """The agent of that number."""
    dice = random.Random(f"{seed}/{number}")
    field = dice.choice(list(_FIELDS))
    place = dice.choice(_PLACES)
    deeds = dice.sample(
        [(deed, subject) for deed in _DEEDS for subject in _FIELDS[field]], capabilities
    )
    return {
        "name": f"{field}-{place.lower()}-{number}",
        "version": f"{dice.randrange(1, 4)}.{dice.randrange(10)}.{dice.randrange(10)}",
        "description": f"Looks after everything about a {field} in {place}.",
        "capabilities": [_capability(dice, place, deed, subject) for deed, subject in deeds],
        "metadata": {"vendor": {"name": f"{place} {field} services"}, "line": dice.randrange(100)},
    }


def _capability(dice: random.Random, place: str, deed: str, subject: str) -> dict[str, Any]:
    said, asked = _DEEDS[deed]
    return {
        "id": f"{deed}_{subject.replace(' ', '_')}",
        "name": f"{deed} {subject}",
        "version": f"{dice.randrange(1, 4)}.{dice.randrange(10)}.0",
        "description": said.format(subject),
        "examples": [asked.format(subject, place)],
        "tags": sorted(dice.sample(_TAGS, 2)),
    }


def main() -> None:
    """Show some."""
    for one in agents(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        print(json.dumps(one, indent=2))


if __name__ == "__main__":
    main()
