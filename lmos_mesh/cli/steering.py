"""The commands about rollouts: where one is, and which way it goes on."""

import sys
from typing import Annotated

import typer

from lmos_mesh.cli.options import ChannelName, Json, Mesh, Namespace, Reason, RolloutName, Tenant

app = typer.Typer(
    help="Move a channel's traffic to another release line, and back.", no_args_is_help=True
)

_STEPS = {
    "pause": "Stay at this step, whatever is measured.",
    "resume": "Go on after a pause.",
    "abort": "Move all traffic back to stable, at once.",
    "restart": "Begin again at the first step.",
}


@app.command("status")
def status(
    name: RolloutName,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Until it has ended; exit with 1 unless promoted."),
    ] = False,
    timeout: Annotated[
        str | None, typer.Option(help="For how long, e.g. 10m.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show where a rollout is, and what was measured."""
    from lmos_mesh.cli.rollout import status as command

    sys.exit(
        command(
            name,
            watch=watch,
            timeout=timeout,
            namespace=namespace,
            tenant=tenant,
            as_json=as_json,
            mesh=mesh,
        )
    )


@app.command("promote")
def promote(
    name: RolloutName,
    full: Annotated[bool, typer.Option("--full", help="All traffic at once.")] = False,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Go on to the next step, or to the end."""
    action = "promote_fully" if full else "promote"
    _steer(name, action, reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


def step(
    context: typer.Context,
    name: RolloutName,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """What the command is called, done to a rollout."""
    action = context.command.name or ""
    _steer(name, action, reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


for _action, _said in _STEPS.items():
    app.command(_action, help=_said)(step)


@app.command("history")
def history(
    name: Annotated[str, typer.Argument(help="channel/NAME for a Channel, NAME for a rollout.")],
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show what a Channel or a rollout went through: what, when, by whom and why."""
    from lmos_mesh.cli.rollout import history as command

    sys.exit(command(name, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh))


@app.command("undo")
def undo(
    name: ChannelName,
    revision: Annotated[
        int | None,
        typer.Option("--to-revision", min=1, help="Else the one before.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Put an earlier Routing of a Channel back, and keep it until it is released."""
    from lmos_mesh.cli.rollout import restore as command

    sys.exit(
        command(name, revision, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)
    )


@app.command("release")
def release(
    name: ChannelName,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Let a Channel follow its agents again after an undo."""
    from lmos_mesh.cli.rollout import restore as command

    sys.exit(command(name, 0, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh))


def _steer(
    name: str,
    action: str,
    reason: str,
    *,
    namespace: str | None,
    tenant: str | None,
    as_json: bool,
    mesh: str | None,
) -> None:
    from lmos_mesh.cli.rollout import steer as command

    sys.exit(
        command(
            name,
            action,
            reason=reason,
            namespace=namespace,
            tenant=tenant,
            as_json=as_json,
            mesh=mesh,
        )
    )
