"""The commands about rollouts: where one is, and which way it goes on."""

import sys
from typing import Annotated

import typer

from lmos_mesh.cli.options import Json, Mesh, Namespace, Tenant

app = typer.Typer(
    help="Move a channel's traffic to another release line, and back.", no_args_is_help=True
)

Which = Annotated[str, typer.Argument(help="A rollout, or channel/NAME of one of its Channels.")]
OfChannel = Annotated[str, typer.Argument(help="A Channel.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit.")]


@app.command("status")
def status(
    name: Which,
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
    name: Which,
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


@app.command("pause")
def pause(
    name: Which,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Stay at this step, whatever is measured."""
    _steer(name, "pause", reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


@app.command("resume")
def resume(
    name: Which,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Go on after a pause."""
    _steer(name, "resume", reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


@app.command("abort")
def abort(
    name: Which,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Move all traffic back to stable, at once."""
    _steer(name, "abort", reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


@app.command("restart")
def restart(
    name: Which,
    reason: Reason = "",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Begin again at the first step."""
    _steer(name, "restart", reason, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh)


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
    name: OfChannel,
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
    name: OfChannel,
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
