"""An answer that comes in pieces, by `yield`: `lmos run examples/support.py`."""

import asyncio
from collections.abc import AsyncIterator

from lmos_mesh import Agent, Context

agent = Agent("support", description="Helps with internet, router and phone problems.")

STEPS = (
    "Look at the router: is the light that is marked DSL or WAN on, without blinking?",
    "If it is off, unplug the power for half a minute and plug it in again. It takes about two "
    "minutes until all lights are back.",
    "If it blinks, check that the cable sits firmly in the wall and in the router.",
    "Connect a computer by cable. If that works, the line is fine and the Wi-Fi is not: move "
    "closer, or change its channel.",
    "Still nothing? Then it is our line. I have run a test, and a technician will call you.",
)


@agent.capability(
    examples=[
        "my internet does not work",
        "the Wi-Fi is very slow",
        "I have no connection since this morning",
        "the router is blinking red",
        "why is my internet down?",
    ]
)
async def fix_connection(question: str, context: Context) -> AsyncIterator[str]:
    """Find out why the internet or Wi-Fi does not work, step by step."""
    yield "Let us find out together.\n"
    for number, step in enumerate(STEPS, start=1):
        yield f"\n{number}. "
        for word in step.split():
            await asyncio.sleep(0.01)
            yield f"{word} "


@agent.capability(
    examples=[
        "I forgot my password",
        "reset my password",
        "I cannot log in to my account",
        "how do I change my PIN?",
    ]
)
async def reset_password(question: str) -> str:
    """Help somebody who cannot log in."""
    return "I have sent you a link to choose a new password. It is valid for one hour."
