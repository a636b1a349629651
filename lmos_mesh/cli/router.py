"""The commands about routing: which agent a message goes to, and how well that goes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmos_mesh.cli.options import (
    AmongLine,
    Json,
    Language,
    Mesh,
    Method,
    SaidOn,
    Sample,
    Seconds,
    Seed,
)

app = typer.Typer(
    help="How good the router is, and what would make it better.", no_args_is_help=True
)


def route(
    message: Annotated[str, typer.Argument(help="What a user says; - is standard input.")],
    method: Annotated[
        str | None, typer.Option(help="vector, llm, hybrid or explicit.", show_default=False)
    ] = None,
    channel: SaidOn = "web",
    subset: AmongLine = "stable",
    agent: Annotated[str | None, typer.Option(help="Take this one.", show_default=False)] = None,
    language: Language = None,
    after: Annotated[
        list[str] | None, typer.Option("--after", help="What the user said before.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many candidates.")] = 5,
    accept: Annotated[bool, typer.Option("--accept", help="Report that it is right.")] = False,
    correct: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT", help="Report who is right; none: nobody.", show_default=False
        ),
    ] = None,
    escalate: Annotated[
        bool, typer.Option("--escalate", help="Report that a person had to help.")
    ] = False,
    timeout: Seconds = 30.0,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Explain which agent a message goes to."""
    from lmos_mesh.cli.route import route as command

    sys.exit(
        command(
            message,
            method=method,
            channel=channel,
            subset=subset,
            agent=agent,
            language=language,
            after=after or [],
            limit=limit,
            accept=accept,
            correct=correct,
            escalate=escalate,
            timeout_s=timeout,
            as_json=as_json,
            mesh=mesh,
        )
    )


@app.command("eval")
def evaluate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV or JSON lines of messages and agents.")
    ],
    method: Method = None,
    channel: SaidOn = "web",
    subset: AmongLine = "stable",
    language: Language = None,
    limit: Sample = None,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each.")] = 30.0,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw PNGs there.", show_default=False)
    ] = None,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Measure the router on labelled messages."""
    from lmos_mesh.cli.router_eval import router_eval as command

    sys.exit(
        command(
            file,
            method=method,
            channel=channel,
            subset=subset,
            language=language,
            limit=limit,
            seed=seed,
            concurrency=concurrency,
            timeout_s=timeout,
            plots=plots,
            as_json=as_json,
            mesh=mesh,
        )
    )


@app.command("lint")
def lint(
    channel: Annotated[
        str | None, typer.Option(help="Only agents that serve it.", show_default=False)
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Only this release line.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=2000, help="How many findings.")] = 50,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 whatever was found.")
    ] = False,
    timeout: Seconds = 300.0,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Find examples and names that mislead the router."""
    from lmos_mesh.cli.router_lint import router_lint as command

    sys.exit(
        command(
            channel=channel,
            subset=subset,
            limit=limit,
            timeout_s=timeout,
            strict=strict,
            as_json=as_json,
            mesh=mesh,
        )
    )


@app.command("fit")
def fit(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="CSV or JSON lines of messages and agents."),
    ] = None,
    use_feedback: Annotated[
        bool, typer.Option("--feedback", help="Use what was reported, too.")
    ] = False,
    channel: Annotated[str, typer.Option(help="Which channel it holds for.")] = "web",
    subset: AmongLine = "stable",
    precision: Annotated[
        float, typer.Option(help="How many of what is routed shall go right.")
    ] = 0.95,
    limit: Sample = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Keep nothing.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Drop what was fitted.")] = False,
    timeout: Seconds = 300.0,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """Set how sure the router must be, by labelled messages."""
    from lmos_mesh.cli.router_fit import router_fit as command

    sys.exit(
        command(
            file,
            feedback=use_feedback,
            channel=channel,
            subset=subset,
            precision=precision,
            limit=limit,
            seed=seed,
            dry_run=dry_run,
            forget=forget,
            timeout_s=timeout,
            as_json=as_json,
            mesh=mesh,
        )
    )


@app.command("feedback")
def feedback(
    outcome: Annotated[
        str | None, typer.Option(help="accepted, corrected or escalated.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    as_json: Json = False,
    mesh: Mesh = None,
) -> None:
    """List what was reported of decisions."""
    from lmos_mesh.cli.router_fit import router_feedback as command

    sys.exit(command(outcome=outcome, limit=limit, as_json=as_json, mesh=mesh))
