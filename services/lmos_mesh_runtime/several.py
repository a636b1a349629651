"""A message of several requests: which wait for another, and what is said of those that fail. Pure.

Requests are answered side by side unless one builds on the one before it. That is read off its
words: what joins the two ("then", "danach"), or a word that points back ("send it to me", "wie
komme ich dorthin?"). In doubt it waits: that costs time, and the opposite a wrong answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmos_mesh.errors import AgentFailed, MeshError, error_for
from lmos_mesh.languages import OTHERWISE
from lmos_mesh.messages import AnsweredPart, Part

_I = re.IGNORECASE

_SEQUENCE = re.compile(
    r"\b(then|after (that|this|which)|afterwards|subsequently|once (that|this|it)|"
    r"dann|danach|anschlie(ß|ss)end|im anschluss|daraufhin|hinterher|nachher)\b",
    _I,
)
"""Between two requests, or at the beginning of the second: one after the other."""

_TIMES = (
    r"(week(end|day)?|month|year|morning|afternoon|evening|night|time|quarter|spring|summer|autumn|"
    r"fall|winter|(mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|"
    r"july|august|september|october|november|december)s?"
)
_ZEITEN = (
    r"(woche|wochenende|monat|jahr|morgen|vormittag|mittag|nachmittag|abend|nacht|mal|quartal|"
    r"frühling|frühjahr|sommer|herbst|winter|tage?|(mon|diens|donners|frei|sams|sonn)tag|mittwoch)"
)
_POINTS_BACK = tuple(
    re.compile(one, _I)
    for one in (
        # "it" of the weather, the time, and "is it true that …" points at nothing.
        r"\b(it|its)\b(?! (\w+ )?(possible|true|ok|okay|allowed|necessary|safe|worth)\b)"
        r"(?! takes? to\b)",
        r"\b(them|they|their|him|his|themselves|itself)\b",
        r"\b(her|she|he)\b",
        rf"\b(this|these|those)\b(?! {_TIMES}\b)",
        rf"(?<!know )(?<!think )(?<!sure )(?<!say )(?<!says )(?<!believe )(?<!so )\bthat\b"
        rf"(?! {_TIMES}\b)(?! (i|you|we|there|has|have|leaves?|goes|can|are|allows?|takes)\b)",
        r"(?<!is )(?<!are )(?<!was )(?<!were )(?<!will )\bthere\b"
        r"(?! (is|are|was|were|will)\b)(?!')",
        r"\bthe (same|results?|answer|outcome|total|sum|latter|former)\b",
        r"\bthe (cheap|fast|near|earli|b|lat)e(st|r)(?=\W*$| (please|for|to)\b)",
        r"\b(the|which|that|this|cheapest|first|last|best|earliest|fastest) one\b",
        r"\b(accordingly|so i can|based on)\b",
        # German: "es" of the weather is looked at below.
        r"(?<!gibt )(?<!geht )(?<!wie spät ist )(?<!ist )\bes\b(?! (gibt|geht)\b)",
        r"\b(ihn|ihm)\b",
        rf"\b(dies(e[nmrs]?)?)\b(?! {_ZEITEN}\b)(?!e)",
        r"\b(davon|damit|dafür|dazu|daraus|darauf|darin|daran|darüber|dabei|dahin|dorthin|dort)\b",
        r"\b(das|der|die)selbe[n]?\b|\bdemselben\b",
        r"\bdas( (bitte|mir|uns|ihm|per|an|auch|gleich|dann|ganze|alles|für|als|in|mit|kosten|"
        r"kostet|zu|noch|schon|von|aus|auf)\b|\W*$)",
        r"\b(den|die|das) (billigsten?|günstigsten?|ersten?|letzten?|besten?)"
        r"(?=\W*$| (davon|bitte)\b)",
    )
)
# Formal "Sie" is what is written with a capital letter, or follows its verb ("können sie").
_SIE = re.compile(r"(?:^|(?<!en) )(sie|ihnen)\b")
_WEATHER = re.compile(
    r"\b(rain|snow|hail|thunder|storm|freez|thaw|sunny|cloud|wind|cold|warm|hot|humid|fog|degrees|"
    r"what time|outside|weather|dark|light|late|o'clock|"
    r"regne|regen|schnei|hagel|gewitter|stürm|sonnig|kalt|heiß|neblig|grad|draußen|wetter|dunkel|hell|spät|uhr)\w*",
    _I,
)
_EXPLETIVE = re.compile(r"\b(it|es)\b|\bwhat time is it\b", _I)
_ELLIPSIS = re.compile(
    r"\W*(to|for|from|by|via|as|with|without|into|an|für|von|per|als|mit|ohne|nach|zu[rm]?)\b", _I
)
_ELLIPTIC_WORDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request of a message, and what it waits for.

    Attributes:
        needs: The number of the request whose answer it builds on; None if it waits for none.
        left_out: Whether there are too many before it.
    """

    part: Part
    needs: int | None = None
    left_out: bool = False


def plan(message: str, parts: Sequence[Part], most: int) -> tuple[Planned, ...]:
    """What to do about each request of a message.

    Args:
        message: All that was said.
        parts: Its requests, in order.
        most: How many are answered.
    """
    found: list[Planned] = []
    for at, (joint, part) in enumerate(zip(_joints(message, parts), parts, strict=True)):
        needs = at - 1 if at and follows_on(part.text, joint) else None
        found.append(Planned(part=part, needs=needs, left_out=at >= most))
    return tuple(found)


def follows_on(text: str, joint: str = "") -> bool:
    """Whether a request builds on the one before it.

    Args:
        text: Its words.
        joint: What stands between the two.
    """
    if _SEQUENCE.search(joint) or _SEQUENCE.match(text.lstrip(" ,")):
        return True
    if _ELLIPSIS.match(text) and len(text.split()) <= _ELLIPTIC_WORDS:
        return True
    if _WEATHER.search(text):
        text = _EXPLETIVE.sub("", text)
    return bool(_SIE.search(text)) or any(one.search(text) for one in _POINTS_BACK)


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


def heading(agent: str, capability: str) -> str:
    """What stands above an agent's answer; plain words, which may be spoken."""
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
