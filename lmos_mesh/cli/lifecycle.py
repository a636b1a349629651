"""The commands about how agents run: `lmos agents`, and what it is followed by."""

import sys
from typing import Annotated

import typer

from lmos_mesh.cli.options import Json, Mesh, Tenant

app = typer.Typer(help="Show who is on the mesh, and change how they run.")

Name = Annotated[str, typer.Argument(help="An agent.")]
Subset = Annotated[str, typer.Option(help="Its release line.")]
One = Annotated[
    str, typer.Option("--instance", metavar="ID", help="Only this one.", show_default=False)
]
Timeout = Annotated[str, typer.Option(help="How long to wait until it is done.")]

_WAITED = "5m"
_MOST = 1000


def _count(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or not 0 <= int(text) <= _MOST:
        raise typer.BadParameter(f"{text!r} is no number of instances; give one from 0 to {_MOST}")
    return int(text)


@app.callback(invoke_without_command=True)
def agents(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow what changes.")] = False,
    all: Annotated[bool, typer.Option("--all", "-a", help="Those that are not live, too.")] = False,
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
    name: Name,
    instances: Annotated[int, typer.Argument(parser=_count, metavar="N", help="How many.")],
    subset: Subset = "stable",
    timeout: Timeout = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Have so many instances run; those that are too many finish what they are at."""
    _steer(context, name, "scale", subset, "", timeout, tenant, as_json, mesh, instances=instances)


@app.command()
def restart(
    context: typer.Context,
    name: Name,
    subset: Subset = "stable",
    instance: One = "",
    timeout: Timeout = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Replace the instances one after the other; nobody who asks notices."""
    _steer(context, name, "restart", subset, instance, timeout, tenant, as_json, mesh)


@app.command()
def drain(
    context: typer.Context,
    name: Name,
    subset: Subset = "stable",
    instance: One = "",
    timeout: Timeout = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Take nothing new, finish what is running however long that takes, and end."""
    _steer(context, name, "drain", subset, instance, timeout, tenant, as_json, mesh)


@app.command()
def stop(
    context: typer.Context,
    name: Name,
    subset: Subset = "stable",
    instance: One = "",
    timeout: Timeout = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Like drain, but call off what takes longer than LMOS_DRAIN_TIMEOUT_S."""
    _steer(context, name, "stop", subset, instance, timeout, tenant, as_json, mesh)


@app.command()
def start(
    context: typer.Context,
    name: Name,
    subset: Subset = "stable",
    instance: One = "",
    timeout: Timeout = _WAITED,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Start again what was drained or stopped."""
    _steer(context, name, "start", subset, instance, timeout, tenant, as_json, mesh)


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
