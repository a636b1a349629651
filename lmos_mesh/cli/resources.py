"""The commands about resources: channels, rollouts, and agents that were declared."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lmos_mesh.cli.options import Json, Mesh

rollout_app = typer.Typer(
    help="Move a channel's traffic to another release line, and back.", no_args_is_help=True
)

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Where they are kept.", show_default=False),
]
Tenant = Annotated[str | None, typer.Option(help="Whose they are.", show_default=False)]
Files = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", metavar="FILE", help="A file or folder; - is standard input."),
]
Words = Annotated[
    list[str], typer.Argument(metavar="KIND [NAME…]", help="channels, ch NAME, channel/NAME, …")
]
Which = Annotated[str, typer.Argument(help="A rollout, or channel/NAME of one of its Channels.")]
OfChannel = Annotated[str, typer.Argument(help="A Channel.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit.")]


class Output(StrEnum):
    """In which form resources are printed."""

    YAML = "yaml"
    JSON = "json"
    WIDE = "wide"
    NAME = "name"


def apply(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]…", help="Files or folders; - is standard input."),
    ] = None,
    files: Files = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would become of them.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what is different.")] = False,
    ttl: Annotated[
        float | None,
        typer.Option(help="Seconds after which Things are forgotten.", show_default=False),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="For resources that name none."),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whom they are for.", show_default=False)
    ] = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Apply channels, rollouts, agents and Descriptions that were written by hand."""
    from lmos_mesh.cli.apply import apply as command

    sys.exit(
        command(
            [*(paths or []), *(files or [])],
            ttl_s=ttl,
            tenant=tenant,
            namespace=namespace,
            dry_run=dry_run,
            diff=diff,
            as_json=as_json,
            mesh=mesh,
        )
    )


def get(
    words: Words,
    namespace: Namespace = None,
    tenant: Tenant = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--selector", "-l", metavar="LABEL=VALUE", help="Only with these labels."),
    ] = None,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help="Else a table.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow what changes.")] = False,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show channels, routings, rollouts or declared agents; `all` for everything."""
    from lmos_mesh.cli.get import get as command

    sys.exit(
        command(
            words,
            namespace=namespace,
            tenant=tenant,
            labels=labels or [],
            output="json" if as_json else output.value if output else None,
            watch=watch,
            mesh=mesh,
        )
    )


def delete(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND NAME…]", help="ch NAME, channel/NAME, …")
    ] = None,
    files: Files = None,
    ignore_missing: Annotated[
        bool, typer.Option("--ignore-not-found", help="Gone is gone.")
    ] = False,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Delete resources by name, or all that files describe."""
    from lmos_mesh.cli.delete import delete as command

    sys.exit(
        command(
            words or [],
            files=files or [],
            namespace=namespace,
            tenant=tenant,
            ignore_missing=ignore_missing,
            as_json=as_json,
            mesh=mesh,
        )
    )


def wait(
    words: Words,
    condition: Annotated[
        str,
        typer.Option(
            "--for",
            help="resolved, promoted, phase=PHASE, live, deleted or condition=TYPE[=STATUS].",
        ),
    ],
    timeout: Annotated[str, typer.Option(help="E.g. 30s or 5m; 0 looks once.")] = "30s",
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Wait until a resource is resolved, promoted, …; exit with 1 if it is not in time."""
    from lmos_mesh.cli.wait import wait as command

    sys.exit(
        command(
            words,
            condition=condition,
            timeout=timeout,
            namespace=namespace,
            tenant=tenant,
            as_json=as_json,
            mesh=mesh,
        )
    )


def channels(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow what changes.")] = False,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show who answers on which channel, and how the traffic is split."""
    from lmos_mesh.cli.channels import channels as command

    sys.exit(command(watch=watch, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh))


def crds(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND]…", help="Only these.")
    ] = None,
    schemas: Annotated[
        bool, typer.Option("--schema", help="As JSON Schemas, for an editor.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A file for each kind there.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the resources as Kubernetes' CustomResourceDefinitions."""
    from lmos_mesh.cli.crds import crds as command

    sys.exit(command(kinds or [], schemas=schemas, as_json=as_json, into=into))


@rollout_app.command("status")
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


@rollout_app.command("promote")
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


@rollout_app.command("pause")
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


@rollout_app.command("resume")
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


@rollout_app.command("abort")
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


@rollout_app.command("restart")
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


@rollout_app.command("history")
def history(
    name: Annotated[
        str, typer.Argument(help="channel/NAME for its Routings, NAME for a rollout's states.")
    ],
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Show earlier Routings of a Channel, or what a rollout went through."""
    from lmos_mesh.cli.rollout import history as command

    sys.exit(command(name, namespace=namespace, tenant=tenant, as_json=as_json, mesh=mesh))


@rollout_app.command("undo")
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


@rollout_app.command("release")
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
