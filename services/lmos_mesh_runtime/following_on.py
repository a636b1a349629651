"""Which requests of a message build on earlier ones, read off their words. Pure.

What joins two requests says so ("then", "danach"), or a word that points back: to what was just
asked for ("send it to me", "wie komme ich dorthin?"), to a thing that was named before ("show my
bill and pay the bill"), or to all that was ("compare the two"). In doubt it waits: that costs
time, and the opposite a wrong answer.
"""

import re
from collections.abc import Sequence

_I = re.IGNORECASE

_AFTER = (
    r"after (that|this|which|it)|afterwards?|subsequently|danach|anschlie(ß|ss)end|im anschluss|"
    r"daraufhin|hinterher|nachher|im nachhinein"
)
_ONCE = (
    r"(once|when|as soon as|after|if) (that|this|it|you|they|all|everything)('s|'re| is| are| has| "
    r"have)? (been )?(done|finished|ready|paid|sent|booked|over|settled)|when (done|finished)|"
    r"(sobald|wenn|nachdem) (das|dies|du|sie|es|alles)( damit)? (erledigt|fertig|bezahlt|gebucht|"
    r"getan|geschehen|vorbei)"
)
_IN_ORDER = (
    rf"then|next|finally|lastly|at last|once (that|this|it)|{_ONCE}|{_AFTER}|dann|"
    r"als nächstes|zuletzt|schließlich|schliesslich|zum schluss|am ende"
)
_ORDER = re.compile(rf"\b({_IN_ORDER})\b", _I)
"""Between two requests: one after the other."""

_AT_FIRST = re.compile(rf"[\W]*(and |und )?({_IN_ORDER})\b(?! (week|month|year|time)\b)", _I)
"""At the beginning of the second."""

_AFTERWARDS = re.compile(rf"\b({_AFTER}|{_ONCE})\b|\b(then|dann)(?=\W*$)", _I)
"""Anywhere in it."""

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
        r"kostet|so|zu|noch|schon|von|aus|auf)\b|\W*$)",
        r"\b(die|den|dem)( (mir|uns|ihm|bitte|aus|ab|auch|gleich|dann|an|per|weg|ein)\b|\W*$)",
        r"\b(den|die|das) (billigsten?|günstigsten?|ersten?|letzten?|besten?)"
        r"(?=\W*$| (davon|bitte)\b)",
    )
)
# Formal "Sie" is what is written with a capital letter, or follows its verb ("können sie").
_SIE = re.compile(r"(?:^|(?<!en) )(sie|ihnen)\b")
_WEATHER = re.compile(
    r"\b(rain|snow|hail|thunder|storm|freez|thaw|sunny|cloud|wind|cold|warm|hot|humid|fog|degrees|"
    r"what time|outside|weather|dark|light|late(?!r)|o'clock|"
    r"regne|regen|schnei|hagel|gewitter|stürm|sonnig|kalt|heiß|neblig|grad|draußen|wetter|dunkel|hell|spät|uhr)\w*",
    _I,
)
_EXPLETIVE = re.compile(r"\b(it|es)\b|\bwhat time is it\b", _I)
_ELLIPSIS = re.compile(
    r"\W*(to|for|from|by|via|as|with|without|into|an|für|von|per|als|mit|ohne|nach|zu[rm]?)\b", _I
)
_ELLIPTIC_WORDS = 4

_WORD = re.compile(r"[^\W\d_]{3,}")
_ARTICLE = r"(?:the|this|that|these|those|die|der|das|den|dem|des|diese[nmrs]?)"
_DEFINITE = re.compile(rf"\b{_ARTICLE} (?=(\w+)(?: (\w+))?)", _I)
"""An article, and the one or two words after it: "the new bill", "den Zug"."""

_NO_NOUN = re.compile(
    rf"{_TIMES}|{_ZEITEN}|\w\w?|for|and|but|with|from|into|that|this|what|when|where|please|now|today|"
    r"tomorrow|tonight|yesterday|first|next|last|new|same|best|für|und|oder|mit|von|aus|auf|nach|"
    r"bitte|jetzt|heute|gestern|gleich|mir|uns|mal|auch|noch|dann|neuen?|nächsten?|letzten?|besten?",
    _I,
)
_PLACING = (
    r"(?:(?:in|at|on|during|near|from|to|into|for|auf|bei|nach|vor|während|aus|zu) "
    r"(?:the|die|der|das|den|dem)|im|am|ins|zum|zur|beim|vom)"
)
_PART_OF_IT = re.compile(
    r"\bthe (price|costs?|address|details?|confirmation|link|amount|receipt|directions|"
    r"reservation|booking|outcome|translation|summary)"
    r"(?! (of|for|to|from|in|on|at|between|per|with|that|number)\b)\b"
    r"|\b(den|dem|der|die|das) (preis|kosten|adresse|einzelheiten|details|bestätigung|link|betrag|"
    r"quittung|wegbeschreibung|ergebnisse?|reservierung|buchung|übersetzung|zusammenfassung)"
    r"(?! (von|vom|für|der|des|zu[mr]?|nach|in|im|auf|am|zwischen|pro|mit|mein\w*)\b)\b",
    _I,
)
"""What something has, without saying of what."""

_ALL_OF_THEM = re.compile(
    r"\b(compare (them|these|those|both)|the two|both of (them|these|those)|both|all of (it|them|"
    r"this|that)|everything|all (three|four)|beides?|die beiden|(das|dies) alles|alles)\b",
    _I,
)


def built_on(text: str, joint: str = "", before: Sequence[str] = ()) -> tuple[int, ...]:
    """The numbers of the requests that one builds on, the first of all being 0.

    Args:
        text: Its words.
        joint: What stands between it and the one before it.
        before: The words of the requests before it, in order.
    """
    if not before:
        return ()
    if _ALL_OF_THEM.search(text):
        return tuple(range(len(before)))
    named = {at for noun in _definite(text) if (at := _where(noun, text, before)) is not None}
    if _follows_on(text, joint) or (not named and _PART_OF_IT.search(text)):
        named.add(len(before) - 1)
    return tuple(sorted(named))


def _follows_on(text: str, joint: str) -> bool:
    """Whether it comes after the one before it, or points back to something without a name."""
    if _ORDER.search(joint) or _AT_FIRST.match(text) or _AFTERWARDS.search(text):
        return True
    if _ELLIPSIS.match(text) and len(text.split()) <= _ELLIPTIC_WORDS:
        return True
    if _WEATHER.search(text):
        text = _EXPLETIVE.sub("", text)
    return bool(_SIE.search(text)) or any(one.search(text) for one in _POINTS_BACK)


def _definite(text: str) -> list[str]:
    """What may be nouns with a definite article: "the bill", "dem Zug"."""
    found = [word for match in _DEFINITE.finditer(text) for word in match.groups() if word]
    return [word for word in found if not _NO_NOUN.fullmatch(word)]


def _where(noun: str, text: str, before: Sequence[str]) -> int | None:
    """The latest request that names a thing which is then called "the …"; None if none does."""
    wanted = stem(noun)
    for at in reversed(range(len(before))):
        if any(stem(one) == wanted for one in _WORD.findall(before[at])):
            # Both may be of what everybody knows: "in the kitchen".
            everybodys = wanted in map(stem, _definite(before[at]))
            return None if everybodys and _placed(noun, text) else at
    return None


def _placed(noun: str, text: str) -> bool:
    """Whether a noun only says where or when."""
    return re.search(rf"\b{_PLACING} {re.escape(noun)}\b", text, _I) is not None


def stem(word: str) -> str:
    """A word without what its number and case add to it."""
    return re.sub(r"(?<=\w{3})(es|en|er|s|e|n)$", "", word.lower())
