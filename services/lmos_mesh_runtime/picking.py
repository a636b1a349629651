"""Which of the choices that a user was offered is meant: "the first one", "Rechnung". Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lmos_mesh.messages import Utterance
from lmos_mesh_runtime.asking_back import choices_in
from lmos_mesh_runtime.following_on import stem

_MOST_WORDS = 8
"""What is longer is a request of its own."""

_WORD = re.compile(r"[^\W_]+")
_ORDINALS: Mapping[str, int] = {
    word: at
    for at, words in enumerate(
        (
            "1 1st first former one erste ersten erster erstes ersteres eins",
            "2 2nd second two zweite zweiten zweiter zweites zwei",
            "3 3rd third three dritte dritten dritter drittes drei",
            "4 4th fourth four vierte vierten vierter viertes vier",
            "5 5th fifth five fünfte fünften fünfter fünftes fünf",
        )
    )
    for word in words.split()
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LAST = _words("last latter letzte letzten letzter letztes letzteres")
_YES = _words("yes yeah yep sure ok okay right exactly correct ja genau gerne gern")
_BESIDE = _words("""
    the a an that this please pls i d m would like want mean meant take choose pick it is s number
    option choice of them these those with go for to me my do can you thanks and about
    der die das den dem ein eine bitte ich möchte meine meinte meinen will nehme nehm nummer option
    wahl ist es davon mir mit danke um geht zu zur zum von und
""")


class Pick(NamedTuple):
    """What a user chose, and of which message it is the answer."""

    capability: str
    agent: str
    message: str


def pick_of(message: str, history: Sequence[Utterance]) -> Pick | None:
    """What a user chose of what was offered just before; None if it is no such answer.

    Args:
        message: What was said.
        history: What was said before, oldest first.
    """
    if len(history) < 2:
        return None
    asked, question = history[-2:]
    if (asked.role, question.role, question.agent) != ("user", "assistant", ""):
        return None
    choices = choices_in(question.content)
    at = picked(message, choices)
    return None if at is None else Pick(*choices[at], asked.content)


def picked(message: str, choices: Sequence[tuple[str, str]]) -> int | None:
    """The number of the choice that is meant; None if it is none of them, or not clear.

    Args:
        message: What was said.
        choices: (capability, agent), as `asking_back.ask_back` offers them.
    """
    said = _WORD.findall(message.lower())
    if not said or len(said) > _MOST_WORDS:
        return None
    words = [one for one in said if one not in _BESIDE]
    if len(words) > 1 and "one" in words:
        words.remove("one")  # "the first one", "the billing one"
    if not words:
        return None
    if _YES.issuperset(words):
        return 0 if len(choices) == 1 else None
    by_name = _named(words, choices)
    if by_name is not None or len(words) > 1:
        return by_name
    (word,) = words
    if word in _LAST:
        return len(choices) - 1 if len(choices) > 1 else None
    at = _ORDINALS.get(word, len(choices))
    return at if at < len(choices) else None


def _named(words: Sequence[str], choices: Sequence[tuple[str, str]]) -> int | None:
    """The only choice that has all of these words in its name, or its agent's."""
    wanted = {stem(one) for one in words}
    found = [
        at
        for at, choice in enumerate(choices)
        if wanted <= {stem(one) for name in choice for one in _WORD.findall(name.lower())}
    ]
    return found[0] if len(found) == 1 else None
