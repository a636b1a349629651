"""`lmos route`: one decision of the router, with everything that led to it."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.cli.connection import answering, connected, run
from lmos_mesh.cli.conversing import percent
from lmos_mesh.cli.labelled import NOBODY
from lmos_mesh.cli.screen import err, out, plural, print_json
from lmos_mesh.errors import SettingsError
from lmos_mesh.messages import (
    DECIDE,
    REPORT_OUTCOME,
    Decide,
    Decision,
    Method,
    ModelUse,
    OutcomeNoted,
    ReportOutcome,
    Utterance,
)
from lmos_mesh.things import DEFAULT_SUBSET

METHODS: tuple[str, ...] = get_args(Method)

Verdict = Literal["accepted", "corrected", "escalated"]

# What an example says is text; what would move the cursor or end the line is dropped.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MOST_REPORTED = 16_384
_MOST_SAID = 90
_MOST_NAMED = 22


def route(
    message: str,
    *,
    method: str | None,
    channel: str,
    subset: str,
    agent: str | None,
    language: str | None,
    after: Sequence[str],
    limit: int,
    accept: bool,
    correct: str | None,
    escalate: bool,
    timeout_s: float,
    as_json: bool,
    mesh: str | None,
) -> int:
    """Show which agent a message goes to and why; say whether that was right, if asked to.

    Args:
        message: `-` is the standard input.
        method: None for the router's own.
        channel: Where it was said.
        subset: Of which release line.
        agent: Whom to take, whatever the router thinks.
        language: What to speak to a language model in.
        after: What the user said before, oldest first.
        limit: How many candidates to show.
        accept: Report that it is right.
        correct: Report that this agent would have been; `none` for nobody.
        escalate: Report that a person had to help.
        timeout_s: How long to wait.
        as_json: Print the decision as JSON.
        mesh: Which mesh.

    Raises:
        SettingsError: What was asked for cannot be.
    """
    if message == "-":
        message = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    if not message.strip():
        raise SettingsError("the message is empty", hint='lmos route "how much do I owe?"')
    verdict = _verdict(accept=accept, correct=correct, escalate=escalate)
    if verdict is not None and len(message) > _MOST_REPORTED:
        raise SettingsError(f"the message has more than the {_MOST_REPORTED} characters to report")
    if language is not None and not 2 <= len(language) <= 35:
        raise SettingsError(f"--language {language[:40]!r} is none", hint="e.g. de or en")
    if not 1 <= limit <= 100:
        raise SettingsError(f"--limit {limit} is not from 1 to 100")
    chosen = method_of(method)
    if chosen == "explicit" and agent is None:
        raise SettingsError("--method explicit needs --agent", hint="which agent should it be?")
    request = Decide(
        message=message,
        history=tuple(Utterance(role="user", content=one) for one in after),
        channel=channel,
        subset=subset,
        method=chosen,
        agent=agent,
        language=language,
        limit=limit,
        parts=agent is None,
    )
    decision, noted = run(
        _route(request, verdict, (correct or "").strip(), timeout_s=timeout_s, mesh=mesh)
    )
    if as_json:
        told = decision.model_dump(mode="json")
        print_json(told if noted is None else {**told, "reported": noted.model_dump(mode="json")})
    else:
        out().print(in_full(decision))
        if noted is not None:
            said = "noted" if noted.kept else f"not noted: {noted.reason or 'the router says no'}"
            err().print(Text(said, "dim" if noted.kept else "yellow"))
    return 0 if noted is None or noted.kept else 1


def method_of(name: str | None) -> Method | None:
    """The method of this name.

    Raises:
        SettingsError: There is none.
    """
    if name is not None and name not in METHODS:
        raise SettingsError(
            f"--method {name!r} is none that there is", hint=f"there are {', '.join(METHODS)}"
        )
    return cast("Method | None", name)


def _verdict(*, accept: bool, correct: str | None, escalate: bool) -> Verdict | None:
    told: list[Verdict] = []
    if accept:
        told.append("accepted")
    if correct is not None:
        told.append("corrected")
    if escalate:
        told.append("escalated")
    if len(told) > 1:
        raise SettingsError("only one of --accept, --correct and --escalate can be the case")
    if correct is not None and not correct.strip():
        raise SettingsError("--correct names no agent", hint="`none` if nobody here is for it")
    return told[0] if told else None


async def _route(
    request: Decide, verdict: Verdict | None, right: str, *, timeout_s: float, mesh: str | None
) -> tuple[Decision, OutcomeNoted | None]:
    async with connected(mesh) as bus, answering("router"):
        decision = await bus.call(DECIDE, request, timeout_s=timeout_s)
        if verdict is None:
            return decision, None
        if verdict == "accepted" and not decision.agent:
            raise SettingsError(
                f"no agent was chosen ({_OUTCOMES.get(decision.outcome, decision.outcome)}), so "
                "there is none to accept",
                hint="--correct AGENT says who it is for, --correct none that it is for nobody",
            )
        report = ReportOutcome(
            message=request.message,
            decided=decision.agent,
            outcome=verdict,
            agent="none" if right.casefold() in NOBODY else right,
            channel=request.channel,
            subset=request.subset,
        )
        return decision, await bus.call(REPORT_OUTCOME, report, timeout_s=timeout_s)


# -- how it looks --

_OUTCOMES = {
    "unsure": "nobody is convincing",
    "several": "several requests",
    "out_of_scope": "out of scope",
    "nobody": "nobody to choose from",
}


def in_full(decision: Decision) -> RenderableType:
    """A decision with everything that led to it; readable in 80 columns. Pure."""
    head = Text.assemble((_headline(decision), "bold"))
    if decision.reason:
        head.append(f"\n{plain(decision.reason)}")
    shown: list[RenderableType] = [head]
    if decision.parts:
        shown.extend((Text(), _parts(decision)))
    if decision.candidates:
        shown.extend((Text(), _candidates(decision)))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(decision):
        facts.add_row(name, Text(value))
    shown.extend((Text(), facts))
    return Group(*shown)


def plain(text: str, most: int = 0) -> str:
    """A text in one line, without what a terminal would obey, cut to `most` characters if given."""
    said = " ".join(_CONTROL.sub(" ", text).split())
    return said if not most or len(said) <= most else f"{said[: most - 1]}…"


def _headline(decision: Decision) -> str:
    match decision.outcome:
        case "routed":
            how = (
                "as you said"
                if decision.method == "explicit"
                else f"{percent(decision.confidence)} sure"
            )
            can = _capability(decision)
            name = _named(decision.agent, decision.subset)
            return " · ".join(part for part in (f"→ {name}", can, how) if part)
        case "several":
            return f"{plural(len(decision.parts), 'request')} in one message"
        case "unsure":
            others = ", ".join(plain(one, _MOST_NAMED) for one in decision.could_be)
            could = f"; it could be {others}" if len(decision.could_be) > 1 else ""
            return f"ask back: {percent(decision.confidence)} sure at best{could}"
        case "out_of_scope":
            return "out of scope: nobody here can do this"
        case "nobody":
            return "nobody: no agent may be chosen here"


def _capability(decision: Decision) -> str:
    return plain(
        next(
            (
                one.capability_name or one.capability
                for one in decision.candidates
                if (one.agent, one.subset) == (decision.agent, decision.subset)
            ),
            decision.capability,
        ),
        _MOST_SAID,
    )


def _named(agent: str, subset: str) -> str:
    name = plain(agent)
    return name if subset == DEFAULT_SUBSET else f"{name} ({plain(subset)})"


def _candidates(decision: Decision) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("agent", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("prob.", justify="right", no_wrap=True)
    table.add_column("sim.", justify="right", no_wrap=True)
    table.add_column("capability", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("what spoke for it", overflow="fold", style="dim")
    for one in decision.candidates:
        chosen = decision.outcome == "routed" and (one.agent, one.subset) == (
            decision.agent,
            decision.subset,
        )
        possible = one.agent in decision.could_be and decision.outcome != "routed"
        table.add_row(
            "▸" if chosen else "?" if possible else "",
            Text(_named(one.agent, one.subset)),
            percent(one.score),
            f"{one.similarity:.2f}",
            Text(plain(one.capability_name or one.capability)),
            Text(plain(one.evidence, _MOST_SAID)),
            style="bold" if chosen else "",
        )
    return table


def _parts(decision: Decision) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", justify="right")
    table.add_column("request", overflow="fold")
    table.add_column("agent", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("capability", no_wrap=True, max_width=_MOST_NAMED)
    table.add_column("sure", justify="right", no_wrap=True)
    for number, one in enumerate(decision.parts, start=1):
        table.add_row(
            f"{number}.",
            Text(plain(one.text)),
            Text(_named(one.agent, one.subset) if one.agent else "nobody"),
            Text(plain(one.capability)),
            percent(one.confidence),
        )
    return table


def _facts(decision: Decision) -> Iterator[tuple[str, str]]:
    if decision.method != "explicit" and decision.outcome != "nobody":
        further = f"{percent(decision.in_scope)} of the messages in scope are further out"
        # Who answers what nobody else is sure about says nothing of that.
        verdict = "no; " if decision.outcome == "out_of_scope" else "yes; "
        yield "in scope", further if decision.method == "fallback" else verdict + further
        if decision.could_be:
            yield "could be", ", ".join(map(plain, decision.could_be))
    yield "method", " · ".join(one for one in (decision.method, decision.encoder) if one)
    if decision.time_ms:
        total = decision.time_ms.get("total")
        steps = [f"{name} {ms:.1f}" for name, ms in decision.time_ms.items() if name != "total"]
        sum_ms = f"{total:.1f} ms" if total is not None else ""
        told = f"{', '.join(steps)} ms" if steps else ""
        yield "took", f"{sum_ms} ({told})" if sum_ms and told else sum_ms or told
    if decision.used is not None and decision.used.calls:
        yield "asked", model_use(decision.used)


def model_use(used: ModelUse) -> str:
    """What was asked of a language model, in one line."""
    cost = f", cost {used.cost:.6f}" if used.cost else ""
    return (
        f"{plain(used.model) or 'a language model'}, {plural(used.calls, 'call')}, "
        f"{used.prompt_tokens} + {used.completion_tokens} tokens{cost}"
    )
