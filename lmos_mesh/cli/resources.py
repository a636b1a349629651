"""The commands about what people write: resources, and Descriptions."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lmos_mesh.cli.options import Files, Json, Mesh, Namespace, Tenant, Watch, Words
from lmos_mesh.errors import NotFound, SettingsError


class DescriptionForm(StrEnum):
    """In which form a Thing is printed."""

    description = "description"
    card = "card"
    capabilities = "capabilities"
    agent_json = "agent-json"


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
    watch: Watch = False,
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
    watch: Watch = False,
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


def describe(
    name: Annotated[
        str,
        typer.Argument(help="Name of an agent, the id of any Thing, or KIND/NAME of a resource."),
    ],
    second: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Of a resource, if its kind comes first."),
    ] = None,
    subset: Annotated[str, typer.Option(help="Release line of a Thing.")] = "stable",
    revision: Annotated[
        int | None, typer.Option(help="As it was at this revision.", show_default=False)
    ] = None,
    form: Annotated[
        DescriptionForm, typer.Option("--as", help="In which form others know it.")
    ] = DescriptionForm.description,
    versions: Annotated[
        bool, typer.Option("--history", help="The versions that are kept, instead.")
    ] = False,
    namespace: Namespace = None,
    tenant: Tenant = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Print a Thing's Description, or all there is to say of a resource."""
    from lmos_mesh.cli.resource_calls import resource_target

    if target := resource_target(name, second):
        from lmos_mesh.cli.channels import describe_resource

        sys.exit(
            describe_resource(
                target,
                revision=revision,
                versions=versions,
                namespace=namespace,
                tenant=tenant,
                as_json=as_json,
                mesh=mesh,
            )
        )
    if namespace or tenant:
        raise SettingsError(
            "--namespace and --tenant are for resources", hint="for Things, set LMOS_TENANT"
        )
    from lmos_mesh.cli.agents import describe as command
    from lmos_mesh.cli.agents import history

    if versions:
        sys.exit(history(name, subset=subset, as_json=as_json, mesh=mesh))
    try:
        sys.exit(command(name, subset=subset, revision=revision, form=form.value, mesh=mesh))
    except NotFound as exc:
        from lmos_mesh.resources import kind_named

        if (kind := kind_named(name)) is None:
            raise
        raise NotFound(exc.message, hint=f"of a {kind} say its name, too: {name}/NAME") from None


def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="YAML or JSON; - is standard input.")
    ],
    as_json: Json = False,
) -> None:
    """Say whether resources and Descriptions are valid, with every fault and its line."""
    from lmos_mesh.cli.validate import validate as command

    sys.exit(command(files, as_json=as_json))
