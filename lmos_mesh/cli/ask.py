"""`lmos ask`: one question, its answer as it comes."""

import sys
from collections.abc import Sequence

from rich.text import Text

from lmos_mesh.cli.connection import connected, run
from lmos_mesh.cli.conversing import (
    Silent,
    Terminal,
    answered,
    attributes_of,
    text_only,
    unanswered,
)
from lmos_mesh.cli.screen import err, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import Answer, Converse


def ask(
    message: str,
    *,
    agent: str | None,
    conversation: str | None,
    channel: str,
    subset: str | None,
    user: str | None = None,
    attributes: Sequence[str] = (),
    why: bool,
    timeout_s: float,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Ask the mesh and show its answer."""
    if message == "-":
        with text_only("standard input"):
            message = sys.stdin.read()
    with text_only("the message"):
        message.encode()
    if not message.strip():
        raise SettingsError("the message is empty", hint='lmos ask "how much do I owe?"')
    request = Converse(
        message=message,
        agent=agent,
        conversation=conversation,
        channel=channel,
        subset=subset,
        user=user,
        attributes=attributes_of(attributes),
    )
    terminal = Terminal(why=why)
    view = Silent() if as_json else terminal
    try:
        answer = run(_ask(request, view, timeout_s=timeout_s, mesh=mesh))
    except KeyboardInterrupt:
        terminal.close()
        err().print("[dim]called off[/dim]")
        return 130
    finally:
        terminal.close()
    if not as_json:
        for one in unanswered(answer):
            err().print(Text(one, "yellow"))
    if as_json:
        print_json(answer.model_dump(mode="json"))
    return 0


async def _ask(
    request: Converse, view: Silent | Terminal, *, timeout_s: float, mesh: str | None
) -> Answer:
    async with connected(mesh) as bus:
        return await answered(bus, request, view, timeout_s=timeout_s)
