"""What is said beside a request and asks for nothing: "hi", "I need help", "es eilt". Pure.

Only words that every request may come with are looked for, so that "help me", which names nothing
to help with, is one, and "help me find my phone" is not.
"""

import re

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_MOST_CHARACTERS = 100
"""What is longer is read as a request: it is hardly courtesy alone."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# One of these makes it courtesy …
_SAYS_IT = _words("""
hi hiya hello hey heya howdy greeting greetings dear thanks thank thx ty cheers please pls plz
kindly sorry excuse pardon help helps helping assist assistance assisting support hand appreciate
appreciated grateful welcome regards bye goodbye favour favor gratitude problem problems question
questions issue issues trouble troubles urgent urgently hurry asap quickly soon idea know
understand stuck clue sure
hallo hi hey moin servus guten gute grüß grüezi liebe lieber sehr danke dank dankeschön bitte
entschuldigung entschuldigen entschuldige sorry verzeihung hilfe helfen hilft hilf helfe
behilflich unterstützung unterstützen weiterhelfen dankbar gruß grüße grüßen tschüss tschüs
wiedersehen problem probleme frage fragen eilig eilt dringend schnell ahnung weiß weiss verstehe
""")
# … and none but these stand beside it.
_BESIDE = _words("""
i i'm i'd i've i'll im we we'd we're you you'd me us my our your it it's its is this that that's
them the a an some any bit little of to for with from in on out up at be am are was would will
won't can can't cannot could couldn't may might should do does don't dont doesn't didn't have
haven't has had got get getting give giving lend offer receive need needs needed want wanted wish
require like love hope just really so very much many lot lots all now here there someone somebody
anyone anybody everyone team folks sir madam ladies gentlemen if possible kind nice good great day
night advance not no and or but also too as ahead yes ok okay well oh ah um more one another quick
about able anything bother make makes feel feeling thing things because since
ich bin wir sie du ihr mir mich uns ihnen dir euch es das dies dabei damit dafür da daran ein eine
einen einem etwas bisschen mal kurz noch gern gerne brauche bräuchte brauchen bräuchten benötige
benötigen möchte möchten will wollen hätte hätten habe haben hab kann könnte können könnten kannst
könntest könnt würde würden würdest wäre wären sind ist sein werden wird mit im in voraus für zu
bei von vom auf jemand irgendwer wer der die den dem nicht kein keine keinen so sehr viel viele
vielen vielmals herzlichen schönen schöne freundlichen freundliche tag tage morgen mittag abend
nacht wochenende damen herren herr frau geehrte geehrter team leute zusammen alle und oder aber
auch ja nein ok okay gut also bitte wirklich leider jetzt gleich bald wenn möglich mein meine
meinem unser unsere unserem weiter mehr dringende schnelle kurze
""")
_GREETING = re.compile(
    r"\bgood (morning|afternoon|evening|day|night)\b|"
    r"\bhow['\u2019]?s (it going|life|everything)\b|\bhow are you( doing| today)?\b|"
    r"\bwie geht['\u2019]?(s| es)( dir| ihnen| euch)?\b"
)
_ASKS = _words("how what why wie was warum")
_UNKNOWING = _words("idea know understand clue sure ahnung weiß weiss verstehe")
_NOT = _words("no not haven't don't dont didn't cannot can't keine nicht")
_HELPING = _words("help assist support helfen hilft weiterhelfen unterstützen")
_WHO = _words("who der die wer")

_TELLS = re.compile(
    r"\W*(i|i['\u2019]?m|i['\u2019]ve|we|we['\u2019](re|ve)|my|our|it|it['\u2019]?s|that|that['\u2019]s|this|"
    r"he|she|they|there|ich|wir|mein|meine|unser|unsere|es|das|er|sie)\b",
    re.IGNORECASE,
)
_WISHES = re.compile(
    r"\b(want|wanna|need|would like|i['\u2019]d like|wish|looking for|wonder|wondering|have to|"
    r"must|möchte|möchten|will|wollen|brauche|brauchen|hätte|hätten|suche|suchen|muss|müssen)\b",
    re.IGNORECASE,
)


def is_remark(text: str) -> bool:
    """Whether words tell something, and neither ask nor wish for anything: "I am in a hurry".

    It may be a request nevertheless, as "my card was stolen" is.

    Args:
        text: As for `is_courtesy`.
    """
    tells = _TELLS.match(text) is not None and _WISHES.search(text) is None
    return tells and not text.rstrip().endswith("?")


def _greeted(text: str) -> str:
    return _GREETING.sub("hello", text.lower())


def is_courtesy(text: str) -> bool:
    """Whether words ask for nothing that could be told from them alone.

    Args:
        text: A part of a message, without what joins it to the others.
    """
    said = {one.replace("\u2019", "'") for one in _WORD.findall(_greeted(text))}
    if not said or len(text) > _MOST_CHARACTERS or _SAYS_IT.isdisjoint(said):
        return False
    beside = _BESIDE
    if said & _UNKNOWING and said & _NOT:
        beside |= _ASKS  # "I do not know how" asks nothing, "how much is it" does
    if said & _HELPING:
        beside |= _WHO
    return said <= beside | _SAYS_IT
