"""A message of several requests: which wait for another, and what is said of those that fail. Pure.

Requests are answered side by side, unless one builds on others; see `following_on`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmos_mesh.errors import AgentFailed, MeshError, error_for
from lmos_mesh.languages import OTHERWISE
from lmos_mesh.messages import AnsweredPart, Part
from lmos_mesh_runtime.following_on import built_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request of a message, and what it waits for.

    Attributes:
        waits_for: The numbers of the requests whose answers it builds on.
        left_out: Whether there are too many before it.
    """

    part: Part
    waits_for: tuple[int, ...] = ()
    left_out: bool = False

    @property
    def needs(self) -> int | None:
        """The last of the requests that it waits for; None if it waits for none."""
        return self.waits_for[-1] if self.waits_for else None


def plan(message: str, parts: Sequence[Part], most: int) -> tuple[Planned, ...]:
    """What to do about each request of a message.

    Args:
        message: All that was said.
        parts: Its requests, in order.
        most: How many are answered.
    """
    found: list[Planned] = []
    texts = [one.text for one in parts]
    for at, (joint, part) in enumerate(zip(_joints(message, parts), parts, strict=True)):
        waits_for = built_on(part.text, joint, texts[:at])
        found.append(Planned(part=part, waits_for=waits_for, left_out=at >= most))
    return tuple(found)


def _joints(message: str, parts: Sequence[Part]) -> list[str]:
    """What stands before each request; nothing where its words are not in the message."""
    found: list[str] = []
    at = 0
    for part in parts:
        start = message.find(part.text, at)
        if start < 0:
            found.append("")
            continue
        found.append(message[at:start])
        at = start + len(part.text)
    return found


# -- what is said of those that were not answered --

_MOST_TITLE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phrases:
    """One language's words; `{why}` is what went wrong, `{most}` how many requests there may be."""

    failed: str
    cut_short: str
    needs: str
    left_out: str


_SPOKEN: Mapping[str, _Phrases] = {
    "en": _Phrases(
        failed="This could not be answered: {why}.",
        cut_short="The rest could not be answered: {why}.",
        needs="This was not begun, as it needs what could not be answered.",
        left_out="This was left out: I can see to {most} requests at a time. Please ask again.",
    ),
    "de": _Phrases(
        failed="Das konnte nicht beantwortet werden: {why}.",
        cut_short="Der Rest konnte nicht beantwortet werden: {why}.",
        needs="Das wurde nicht begonnen, weil ihm fehlt, was nicht beantwortet werden konnte.",
        left_out="Das blieb liegen: Ich kann {most} Anliegen auf einmal erledigen. "
        "Bitte fragen Sie noch einmal.",
    ),
}


def apology(error: MeshError, *, language: str, begun: bool) -> str:
    """What the user is told of a request that has failed.

    Args:
        error: What went wrong.
        language: As `asking_back.spoken` gives it.
        begun: Whether some words of the answer are there.
    """
    words = _SPOKEN.get(language, _SPOKEN[OTHERWISE])
    why = error.message.rstrip(".")
    return (words.cut_short if begun else words.failed).format(why=why)


def skipped(planned: Planned, *, language: str, most: int) -> str:
    """What the user is told of a request that was not begun."""
    words = _SPOKEN.get(language, _SPOKEN[OTHERWISE])
    return words.left_out.format(most=most) if planned.left_out else words.needs


def heading(agent: str, capability: str, text: str = "") -> str:
    """What stands above an agent's answer; plain words, which may be spoken.

    Args:
        agent: Who answers; empty for nobody.
        capability: What it is asked for.
        text: The user's words, for what nobody answers.
    """
    if not agent:
        return f"{text if len(text) <= _MOST_TITLE else text[: _MOST_TITLE - 1] + '…'}:"
    return f"{capability} ({agent}):" if capability else f"{agent}:"


def all_failed(parts: Sequence[AnsweredPart]) -> MeshError:
    """The error of a turn of which nothing was answered."""
    failed = [one for one in parts if one.state == "failed" and one.error]
    codes = {str(one.error.get("code")) for one in failed if one.error}
    said = "; ".join(f"{one.agent}: {(one.error or {}).get('detail', '')}" for one in failed)
    code = codes.pop() if len(codes) == 1 else AgentFailed.code
    return error_for(
        code,
        f"none of {len(parts)} requests could be answered: {said}",
        hint="ask for one at a time",
    )
