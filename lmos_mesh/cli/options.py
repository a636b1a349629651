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
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow what changes.")]
All = Annotated[bool, typer.Option("--all", "-a", help="Those that are not live, too.")]
Conversation = Annotated[
    str | None, typer.Option(help="Go on with a conversation.", show_default=False)
]
WayIn = Annotated[str, typer.Option(help="The way in.")]
PinnedLine = Annotated[
    str | None,
    typer.Option(help="The release line, whatever a rollout says.", show_default=False),
]

AgentName = Annotated[str, typer.Argument(help="An agent.")]
ReleaseLine = Annotated[str, typer.Option(help="Its release line.")]
OneInstance = Annotated[
    str, typer.Option("--instance", metavar="ID", help="Only this one.", show_default=False)
]
UntilDone = Annotated[str, typer.Option(help="How long to wait until it is done.")]

Files = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", metavar="FILE", help="A file or folder; - is standard input."),
]
Words = Annotated[
    list[str], typer.Argument(metavar="KIND [NAME…]", help="channels, ch NAME, channel/NAME, …")
]
RolloutName = Annotated[
    str, typer.Argument(help="A rollout, or channel/NAME of one of its Channels.")
]
ChannelName = Annotated[str, typer.Argument(help="A Channel.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit.")]

SaidOn = Annotated[str, typer.Option(help="As if said there.")]
AmongLine = Annotated[str, typer.Option(help="Among the agents of this release line.")]
Method = Annotated[
    str | None, typer.Option("--method", help="vector, llm or hybrid.", show_default=False)
]
Language = Annotated[
    str | None, typer.Option(help="To speak to a language model in.", show_default=False)
]
Sample = Annotated[
    int | None, typer.Option(min=1, help="How many, drawn by chance.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Which ones.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")]
