"""Which language a message is in, as far as the mesh has texts of its own to answer with. Pure."""

import re

OTHERWISE = "en"

_WORD = re.compile(r"[^\W\d_]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text))


_GERMAN = _words("""
ich du er wir ihr sie mich mir dich dir uns euch ihn ihm ihnen mein meine meinen meinem meiner dein
deine ihre ihren unser der die das den dem des ein eine einen einem einer eines und oder aber nicht
kein keine keinen ist sind war waren bin bist habe hast hat haben wurde wird werden kann kannst
können könnte möchte will wollen muss soll sollte bitte danke wie wo wer wann warum wieso welche
welcher welches für mit von vom zum zur bei nach aus auf über unter im am an ab seit noch schon auch
nur mal doch hallo ja nein gibt es etwas hier dort heute morgen gestern zeig zeige brauche geht
funktioniert
""")
_ENGLISH = _words("""
i you he she we they me him us them my your his our their the a an and or but not no is are am be
been do does did have has had can could would should will what where who when why how which for with
from to of on at in by about it this that these those please thanks hello hi yes there here today
tomorrow yesterday show need want get tell give much many
""")
_SPOTTED = 400  # words of a long message that are looked at


def language_of(*texts: str) -> str:
    """Whether a message is German, `de`, or, as far as we care, English, `en`.

    Args:
        texts: The message, and others to be looked at where those before it tell nothing.
    """
    for text in texts:
        german, english = _heard(text)
        if german != english:
            return "de" if german > english else "en"
    return OTHERWISE


def _heard(text: str) -> tuple[int, int]:
    german = english = 0
    for word in _WORD.findall(text[: _SPOTTED * 10].lower())[:_SPOTTED]:
        german += word in _GERMAN
        english += word in _ENGLISH
        if any(letter in word for letter in "äöüß"):
            german += 1
    return german, english
