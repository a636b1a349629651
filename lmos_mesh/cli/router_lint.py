"""`lmos router lint`: what is registered and will mislead the router."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.route import plain
from lmos_mesh.cli.screen import err, out, plural, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import LINT_EXAMPLES, Finding, LintExamples, LintFound
from lmos_mesh.things import DEFAULT_SUBSET

GRAVE = ("duplicate", "misrouted", "collision")
"""Findings by which messages go astray; the others only make it likelier."""

_TITLES = {
    "duplicate": "the same example at two agents",
    "misrouted": "examples that would go to another agent",
    "collision": "capabilities that claim each other's examples",
    "no_examples": "capabilities without examples",
    "vague_name": "names that say nothing",
}


def router_lint(
    *,
    channel: str | None,
    subset: str | None,
    limit: int,
    timeout_s: float,
    strict: bool,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Show what will mislead the router; 1 if messages go astray by it.

    Args:
        channel: Only among agents that serve it; None for all.
        subset: Only of this release line; None for all.
        limit: How many findings to show.
        timeout_s: How long to wait.
        strict: Whether anything at all that was found makes it 1.
        as_json: Print everything as JSON.
        mesh: Which mesh.

    Raises:
        SettingsError: What was asked for cannot be.
    """
    if not 1 <= limit <= 2000:
        raise SettingsError(f"--limit {limit} is not from 1 to 2000")
    found = run(
        _lint(LintExamples(channel=channel, subset=subset, limit=limit), timeout_s, mesh=mesh)
    )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out().print(shown(found))
        err().print(Text(summary(found), "dim"))
    # The gravest come first, so none is grave if the first is not.
    counts = found.findings if strict else [one for one in found.findings if one.kind in GRAVE]
    return 1 if counts else 0


async def _lint(request: LintExamples, timeout_s: float, *, mesh: str | None) -> LintFound:
    async with connected(mesh) as bus, answering("router"):
        return await bus.call(LINT_EXAMPLES, request, timeout_s=timeout_s)


def summary(found: LintFound) -> str:
    """How much was looked at."""
    looked = (
        f"{plural(found.agents, 'agent')}, {found.capabilities} capabilities, "
        f"{plural(found.examples, 'example')}"
    )
    if found.judged:
        astray = found.misrouted / found.judged
        looked += f"; of {found.judged} that were held out {astray:.1%} go to another agent"
    left = found.total - len(found.findings)
    return f"{looked}; {left} more findings: --limit" if left else looked


def shown(found: LintFound) -> RenderableType:
    """The findings by kind, in 80 columns. Pure."""
    if not found.findings:
        what = "Nothing collides." if found.agents else "No agent is registered."
        return Text(what, "green" if found.agents else "dim")
    counts = Counter(one.kind for one in found.findings)
    parts: list[RenderableType] = []
    for kind, count in counts.items():
        parts.append(Text(f"{_TITLES[kind]}: {count}", "bold red" if kind in GRAVE else "bold"))
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for one in found.findings:
            if one.kind == kind:
                table.add_row("  ✗" if kind in GRAVE else "  !", Text(_said(one)))
        parts.extend((table, Text()))
    return Group(*parts[:-1])


def _said(one: Finding) -> str:
    subset = "" if one.subset == DEFAULT_SUBSET else f" [{plain(one.subset)}]"
    return f"{plain(one.message)}{subset}"
