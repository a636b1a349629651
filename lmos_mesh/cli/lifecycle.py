"""The commands about how agents run: `lmos agents`, and what it is followed by."""

import sys
from typing import Annotated

import typer

from lmos_mesh.cli.options import (
    AgentName,
    All,
    Json,
    Mesh,
    OneInstance,
    ReleaseLine,
    Tenant,
    UntilDone,
    Watch,
)

app = typer.Typer(help="Show who is on the mesh, and change how they run.")

_WAITED = "5m"
_MOST = 1000
_STEPS = {
    "restart": "Replace the instances one after the other; nobody who asks notices.",
    "drain": "Take nothing new, finish what is running however long that takes, and end.",
    "stop": "Like drain, but call off what takes longer than LMOS_DRAIN_TIMEOUT_S.",
    "start": "Start again what was drained or stopped.",
}


def _count(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or not 0 <= int(text) <= _MOST:
        raise typer.BadParameter(f"{text!r} is no number of instances; give one from 0 to {_MOST}")
    return int(text)


@app.callback(invoke_without_command=True)
def agents(
    context: typer.Context,
    watch: Watch = False,
    all: All = False,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show who is on the mesh, and change how they run."""
    if context.invoked_subcommand is not None:
        return
    from lmos_mesh.cli.agents import agents as command

    sys.exit(command(watch=watch, everyone=all, tenant=tenant, as_json=as_json, mesh=mesh))


@app.command()
def scale(
    context: typer.Context,
    name: AgentName,
    instances: Annotated[int, typer.Argument(parser=_count, metavar="N", help="How many.")],
    subset: ReleaseLine = "stable",
    timeout: UntilDone = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Have so many instances run; those that are too many finish what they are at."""
    _steer(context, name, "scale", subset, "", timeout, tenant, as_json, mesh, instances=instances)


def step(
    context: typer.Context,
    name: AgentName,
    subset: ReleaseLine = "stable",
    instance: OneInstance = "",
    timeout: UntilDone = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """What the command is called, done to an agent."""
    action = context.command.name or ""
    _steer(context, name, action, subset, instance, timeout, tenant, as_json, mesh)


for _action, _said in _STEPS.items():
    app.command(_action, help=_said)(step)


def _steer(
    context: typer.Context,
    name: str,
    action: str,
    subset: str,
    instance: str,
    timeout: str,
    tenant: str | None,
    as_json: bool,
    mesh: str | None,
    *,
    instances: int | None = None,
) -> None:
    from lmos_mesh.cli.scaling import steer as command

    # `lmos agents --mesh M scale …` is understood as well.
    given = context.parent.params if context.parent is not None else {}
    sys.exit(
        command(
            name,
            action,
            subset=subset,
            instances=instances,
            instance=instance,
            timeout=timeout,
            tenant=tenant or given.get("tenant"),
            as_json=as_json or bool(given.get("as_json")),
            mesh=mesh or given.get("mesh"),
        )
    )
