"""What is said to a user when no agent is convincing, in the language of the user. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmos_mesh.languages import OTHERWISE, language_of
from lmos_mesh.messages import Candidate, Decision, Part

_CHOICES = 5
_CHOICES_OF_A_PART = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phrases:
    """One language's words.

    Attributes:
        offer: `{choices}` is what can be done.
    """

    nobody: str
    out_of_scope: str
    unsure: str
    offer: str


_SPOKEN: Mapping[str, _Phrases] = {
    "en": _Phrases(
        nobody="Nobody here can help with that yet: no agent is there for it.",
        out_of_scope="I do not think that anybody here can help with that.",
        unsure="I am not sure who can help with that.",
        offer="I could do this: {choices}. What would you like?",
    ),
    "de": _Phrases(
        nobody="Dabei kann hier noch niemand helfen: Es ist kein Agent dafür da.",
        out_of_scope="Ich glaube nicht, dass hier jemand dabei helfen kann.",
        unsure="Ich bin nicht sicher, wer dabei helfen kann.",
        offer="Das könnte ich tun: {choices}. Was möchten Sie?",
    ),
}
LANGUAGES = tuple(_SPOKEN)


def spoken(message: str, *wanted: str | None, before: Sequence[str] = ()) -> str:
    """The language to answer in: the first that is wanted, else that of the message.

    One that there are no words in is answered in English.

    Args:
        message: What the user says.
        wanted: What the caller and the channel say, if anything.
        before: What the user said before, oldest first, for a message that tells nothing.
    """
    for one in wanted:
        if one:
            primary = one.strip().lower().replace("_", "-").partition("-")[0]
            return primary if primary in _SPOKEN else OTHERWISE
    return language_of(message, *reversed(before))


def ask_back(
    choices: Sequence[tuple[str, str]], *, out_of_scope: bool = False, language: str = OTHERWISE
) -> str:
    """What to say when no agent is convincing.

    Args:
        choices: (capability, agent) of what the mesh could do, the nearest first.
        out_of_scope: Whether it is about something that nobody here can do.
        language: As `spoken` gives it.
    """
    words = _SPOKEN.get(language, _SPOKEN[OTHERWISE])
    if not choices:
        return words.nobody
    named = "; ".join(f"{capability} ({agent})" for capability, agent in choices)
    doubt = words.out_of_scope if out_of_scope else words.unsure
    return f"{doubt} {words.offer.format(choices=named)}"


def likely(decision: Decision) -> Sequence[Candidate]:
    """What to offer when no agent was chosen: those that it could be, then the others."""
    could_be = set(decision.could_be) if decision.outcome == "unsure" else set[str]()
    return sorted(decision.candidates, key=lambda one: one.agent not in could_be)


def question_for(decision: Decision, language: str) -> str:
    """What to ask the user instead of answering."""
    choices = [
        (one.capability_name or one.capability, one.agent) for one in likely(decision)[:_CHOICES]
    ]
    return ask_back(choices, out_of_scope=decision.outcome == "out_of_scope", language=language)


def question_for_part(part: Part, language: str) -> str:
    """What to say in the place of one request of several that nobody is sure about."""
    choices = [
        (one.capability_name or one.capability, one.agent)
        for one in part.candidates[:_CHOICES_OF_A_PART]
    ]
    return ask_back(choices, out_of_scope=part.outcome == "out_of_scope", language=language)


_CHOICE = re.compile(r"(.+) \(([^()]+)\)", re.DOTALL)


def choices_in(question: str) -> tuple[tuple[str, str], ...]:
    """What `ask_back` has offered with these words; nothing if they are not its own."""
    for words in _SPOKEN.values():
        before, after = words.offer.split("{choices}")
        for doubt in (words.out_of_scope, words.unsure):
            begin = f"{doubt} {before}"
            if question.startswith(begin) and question.endswith(after):
                named = question[len(begin) : -len(after)].split("; ")
                found = [_CHOICE.fullmatch(one) for one in named]
                return tuple((one[1], one[2]) for one in found if one is not None)
    return ()
