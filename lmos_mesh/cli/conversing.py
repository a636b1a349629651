"""A turn as the terminal shows it: who was chosen, why, and the answer as it comes."""

import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmos_mesh.bus import Bus
from lmos_mesh.cli.connection import answering
from lmos_mesh.cli.screen import err, out, plural
from lmos_mesh.errors import InvalidMessage, SettingsError, StreamBroken
from lmos_mesh.mesh import converse
from lmos_mesh.messages import Answer, Candidate, Converse, Decision
from lmos_mesh.reply_stream import Patience

_FIRST_S = 10.0
_IDLE_S = 60.0
_MOST_SAID = 40
# What an agent says is text; what would move the cursor or retitle the window is dropped.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class View(Protocol):
    """Shows a turn while it goes on."""

    def routed(self, decision: Decision) -> None:
        """It is decided who answers."""
        ...

    def handed_over(self, giver: str, taker: str, capability: str) -> None:
        """One agent has handed over to another."""
        ...

    def piece(self, text: str) -> None:
        """A piece of the answer."""
        ...

    def restarted(self, reason: str) -> None:
        """What was shown of the answer is void: it begins anew."""
        ...


class Silent:
    """Shows nothing."""

    def routed(self, decision: Decision) -> None:
        """See `View`."""

    def handed_over(self, giver: str, taker: str, capability: str) -> None:
        """See `View`."""

    def piece(self, text: str) -> None:
        """See `View`."""

    def restarted(self, reason: str) -> None:
        """See `View`."""


class Terminal:
    """Shows a turn in the terminal: the answer on standard output, the rest beside it."""

    def __init__(self, *, why: bool = False, indent: str = "") -> None:
        self._why = why
        self._indent = indent
        self._margin = Margin(indent, out().width) if indent else None
        self._at_line_start = True
        self._said = False

    def routed(self, decision: Decision) -> None:
        """See `View`."""
        if self._why:
            out().print(explained(decision))
            out().print()
        else:
            err().print(Text(f"{self._indent}{in_short(decision)}", "dim"))

    def piece(self, text: str) -> None:
        """See `View`."""
        text = _CONTROL.sub("", text)
        if not text:
            return
        self._said = True
        self._at_line_start = text.endswith("\n")
        self._write(self._margin.take(text) if self._margin else text)

    def handed_over(self, giver: str, taker: str, capability: str) -> None:
        """See `View`."""
        self.close()
        err().print(Text(f"{self._indent}{giver} → {taker} · {capability}", "dim"))

    def restarted(self, reason: str) -> None:
        """See `View`."""
        self.close()
        err().print(Text(f"{self._indent}↻ {reason}; the answer begins anew", "yellow"))

    def close(self) -> None:
        """End the line."""
        if self._margin:
            self._write(self._margin.flush())
            self._margin = Margin(self._indent, out().width)
        if self._said and not self._at_line_start:
            self._write("\n")
        self._at_line_start = True
        self._said = False

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Margin:
    """Breaks a text that comes in pieces into indented lines, between words. Pure."""

    def __init__(self, indent: str, width: int) -> None:
        self._indent = indent
        self._width = max(width - 1, len(indent) + 20)
        self._column = 0
        self._space = ""
        self._word = ""

    def take(self, text: str) -> str:
        """What to write for a piece; a word is held back until it is whole."""
        written: list[str] = []
        for character in text:
            if not character.isspace():
                self._word += character
                continue
            written.append(self.flush())
            if character == "\n":
                written.append("\n")
                self._column, self._space = 0, ""
            else:
                self._space += character
        return "".join(written)

    def flush(self) -> str:
        """The word that was held back."""
        word, self._word = self._word, ""
        if not word:
            return ""
        lead = self._space if self._column else self._indent
        if self._column and self._column + len(lead) + len(word) > self._width:
            lead, self._column = f"\n{self._indent}", 0
        self._column += len(lead.lstrip("\n")) + len(word)
        self._space = ""
        return lead + word


@contextmanager
def text_only(where: str) -> Generator[None]:
    """What is no text is refused with a sentence.

    Raises:
        SettingsError: It is none.
    """
    try:
        yield
    except UnicodeError as exc:
        raise SettingsError(
            f"{where} is not UTF-8 text ({exc.reason})"
            if isinstance(exc, UnicodeDecodeError | UnicodeEncodeError)
            else f"{where} is not UTF-8 text",
            hint="agents are asked in words; convert it first",
        ) from exc


async def answered(bus: Bus, request: Converse, view: View, *, timeout_s: float = 300.0) -> Answer:
    """Carry out a turn and show it. Leaving it calls the work off.

    Raises:
        MeshError: There is no answer.
    """
    patience = Patience(min(_FIRST_S, timeout_s), min(_IDLE_S, timeout_s), timeout_s)
    async with answering("runtime"), converse(bus, request, patience=patience) as frames:
        async for frame in frames:
            match frame.kind:
                case "status" if _state(frame.body) == "routed":
                    view.routed(Decision.model_validate(frame.body["decision"]))
                case "status" if _state(frame.body) == "handed_over":
                    body = frame.body
                    view.handed_over(body["from"], body["to"], body["capability"])
                case "delta":
                    view.piece(str(frame.body))
                case "restart":
                    view.restarted(_why_anew(frame.body))
                case "end":
                    return Answer.model_validate(frame.body)
                case _:
                    pass
    raise StreamBroken("the answer has no end")


def _why_anew(body: dict[str, Any]) -> str:
    return str(body.get("reason") or f"{body.get('lost') or 'who answered'} was lost")


def _state(body: Any) -> str:
    return str(body.get("state", "")) if isinstance(body, dict) else ""  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]


def attributes_of(given: Sequence[str]) -> dict[str, str]:
    """What is known of who speaks, from `KEY=VALUE` as it is typed.

    Raises:
        InvalidMessage: One has no key or no `=`, or a key is given two values.
    """
    found: dict[str, str] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise InvalidMessage(
                f"--attribute {one!r} is no KEY=VALUE", hint="say, e.g., --attribute staff=true"
            )
        if found.setdefault(key, value) != value:
            raise InvalidMessage(f"--attribute {key} has two values: {found[key]!r} and {value!r}")
    return found


def in_short(decision: Decision) -> str:
    """A decision in one line."""
    if decision.outcome == "nobody":
        return "no agent is there to answer"
    if decision.outcome == "out_of_scope":
        return "no agent here can do this, so it asks back"
    if decision.outcome == "unsure":
        return f"no agent is convincing ({percent(decision.confidence)} at best), so it asks back"
    if decision.outcome == "several":
        return " + ".join(
            f"{one.agent} · {one.capability}" if one.agent else f"nobody for “{_cut(one.text)}”"
            for one in decision.parts
        )
    subset = "" if decision.subset == "stable" else f" ({decision.subset})"
    can = next(
        (one.capability_name for one in decision.candidates if one.agent == decision.agent),
        decision.capability,
    )
    sure = (
        "as you said" if decision.method == "explicit" else f"{percent(decision.confidence)} sure"
    )
    return f"{decision.agent}{subset} · {can or decision.capability} · {sure}"


def unanswered(answer: Answer) -> list[str]:
    """What became of the requests of several that were not answered, one line each."""
    found: list[str] = []
    for one in answer.parts:
        said = f"{one.agent or 'nobody'} · “{_cut(one.text)}”"
        if one.state == "failed":
            detail = (one.error or {}).get("detail") or "the reason is not known"
            found.append(f"failed: {said}: {_CONTROL.sub('', str(detail))}")
        elif one.state == "skipped":
            found.append(f"not begun: {said}")
        elif one.state == "asked_back":
            found.append(f"nobody can, or who is not clear: “{_cut(one.text)}”")
    return found


def _cut(text: str) -> str:
    text = " ".join(_CONTROL.sub("", text).split())
    return text if len(text) <= _MOST_SAID else f"{text[: _MOST_SAID - 1]}…"


def explained(decision: Decision) -> RenderableType:
    """A decision with its candidates and the evidence for each."""
    head = Text.assemble((in_short(decision), "bold"))
    if decision.reason:
        head.append(f"\n{decision.reason}")
    parts: list[RenderableType] = [head]
    if decision.candidates:
        parts.append(_candidates(decision))
    parts.append(Text(" · ".join(_how(decision)), "dim"))
    return Group(*parts)


def _candidates(decision: Decision) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("", "agent", "capability"):
        table.add_column(column, no_wrap=True)
    table.add_column("likely", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("nearest evidence", overflow="ellipsis", style="dim")
    for one in decision.candidates:
        chosen = _chosen(one, decision)
        table.add_row(
            "▸" if chosen else "",
            one.agent if one.subset == "stable" else f"{one.agent} ({one.subset})",
            one.capability_name or one.capability,
            percent(one.score),
            f"{one.similarity:.2f}",
            one.evidence,
            style="bold" if chosen else "",
        )
    return table


def _chosen(candidate: Candidate, decision: Decision) -> bool:
    return (
        decision.outcome == "routed"
        and candidate.agent == decision.agent
        and candidate.subset == decision.subset
    )


def _how(decision: Decision) -> list[str]:
    took = decision.time_ms.get("total")
    asked = decision.used
    return [
        part
        for part in (
            decision.method,
            f"{percent(decision.in_scope)} of what is in scope is further out"
            if decision.candidates and decision.method != "explicit"
            else "",
            f"{asked.model}: {plural(asked.calls, 'call')}, "
            f"{plural(asked.prompt_tokens + asked.completion_tokens, 'token')}"
            if asked
            else "",
            decision.encoder,
            f"{took:.1f} ms" if took is not None else "",
        )
        if part
    ]


def percent(share: float) -> str:
    """`93 %`."""
    return f"{share * 100:.0f} %"
