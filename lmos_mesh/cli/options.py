"""The options that many commands share."""

from typing import Annotated

import typer

Mesh = Annotated[
    str | None,
    typer.Option("--mesh", metavar="NAME", help="Which mesh; else the only one that runs here."),
]
User = Annotated[
    str | None,
    typer.Option(help="Who speaks: rollouts may go by it, agents are told.", show_default=False),
]
Attributes = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        metavar="KEY=VALUE",
        help="What else is known of who speaks, likewise; may be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Where they are kept.", show_default=False),
]
Tenant = Annotated[str | None, typer.Option(help="Whose they are.", show_default=False)]
