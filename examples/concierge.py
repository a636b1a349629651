"""An agent that finds who can help, and asks: `lmos run examples/concierge.py`, with others.

It can do nothing by itself. Whoever joins the mesh is found a moment later by what they can do:
run it beside `examples/billing.py` and ask "let the concierge see to my bill".
"""

from pydantic import BaseModel

from lmos_mesh import Agent, Context

agent = Agent("concierge", description="Knows everybody on the mesh and asks for you.")


class Arrival(BaseModel):
    """Somebody who can help from now on."""

    name: str
    can: list[str]


arrived = agent.event("arrived", data=Arrival, description="Another agent has joined.")
colleagues: dict[str, list[str]] = {}


@agent.property
def guest_book() -> dict[str, list[str]]:
    """Who is here, and what they can do."""
    return colleagues


@agent.background
async def keep_guest_book() -> None:
    """Follow who comes and goes, for as long as the concierge is here."""
    async with agent.mesh.watch(kind="agent") as changes:
        async for change in changes:
            name = change.thing.name
            if name == agent.name:
                continue
            if change.kind == "left":
                colleagues.pop(name, None)
                continue
            colleagues[name] = [one.name for one in change.thing.capabilities]
            if change.kind == "joined":
                await agent.emit(arrived, Arrival(name=name, can=colleagues[name]))


@agent.capability(
    examples=[
        "let the concierge see to it",
        "concierge, find somebody for me",
        "I do not know whom to ask",
        "who can help me with this?",
    ]
)
async def find_help(question: str, context: Context) -> str:
    """Find somebody who can help, and pass the question on."""
    found = [one for one in await context.mesh.find(question, origin="") if one.name != agent.name]
    if not found:
        return "Nobody here can help with that."
    answer = await context.mesh.ask(question, agent=found[0], store=False)
    return f"I have asked {found[0].name}: {answer.answer}"
