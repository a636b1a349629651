"""Looks up which Things have a capability, a tag or a word, so that nobody has to search for them.

Pure. What is removed leaves nothing behind.
"""

import heapq
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from lmos_mesh.things import Thing

KeyT = TypeVar("KeyT", bound=tuple[str, ...])

_WORDS = re.compile(r"[^\W_]+")
_FEW = 100


def words_of(*texts: str) -> set[str]:
    """The words in texts, whatever their case, punctuation and underscores."""
    return {word for text in texts for word in _WORDS.findall(text.casefold())}


def folded(name: str) -> str:
    """What is the same for names that differ in case and punctuation only."""
    return " ".join(_WORDS.findall(name.casefold()))


def words_in(thing: Thing) -> set[str]:
    """Every word that speaks for a Thing."""
    return words_of(*_said_of(thing))


def _said_of(thing: Thing) -> Iterator[str]:
    yield thing.name
    yield thing.title
    yield thing.description
    for capability in thing.capabilities:
        yield capability.id
        yield capability.name
        yield capability.description
        yield from capability.tags
        yield from capability.examples


class Postings(Generic[KeyT]):
    """Which keys are listed under a term."""

    __slots__ = ("_listed",)

    def __init__(self) -> None:
        self._listed: dict[str, set[KeyT]] = {}

    def __len__(self) -> int:
        return len(self._listed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def get(self, term: str) -> Collection[KeyT]:
        """The keys that are listed under a term; not to be changed."""
        return self._listed.get(term, ())

    def add(self, terms: Iterable[str], key: KeyT) -> None:
        """List a key under each term."""
        for term in terms:
            listed = self._listed.get(term)
            if listed is None:
                self._listed[term] = {key}
            else:
                listed.add(key)

    def remove(self, terms: Iterable[str], key: KeyT) -> None:
        """List a key no more under any of the terms."""
        for term in terms:
            listed = self._listed.get(term)
            if listed is not None:
                listed.discard(key)
                if not listed:
                    del self._listed[term]

    def listed(self) -> dict[str, frozenset[KeyT]]:
        """Everything that is listed."""
        return {term: frozenset(keys) for term, keys in self._listed.items()}


class Index(Generic[KeyT]):
    """What one tenant's Things can be looked up by.

    Words take longer to list than all the rest, and many processes never look for any, so they
    are listed when somebody asks; until then it is only noted who is to be read.
    """

    __slots__ = ("_unread", "_words", "called", "capabilities", "ids", "kinds", "names", "tags")

    def __init__(self) -> None:
        self.names = Postings[KeyT]()
        self.called = Postings[KeyT]()
        self.ids = Postings[KeyT]()
        self.kinds = Postings[KeyT]()
        self.capabilities = Postings[KeyT]()
        self.tags = Postings[KeyT]()
        self._words = Words[KeyT]()
        self._unread: dict[KeyT, Thing] = {}

    def add(self, key: KeyT, id: str, thing: Thing) -> None:
        """List a Thing that is not listed."""
        for postings, terms in self._terms(id, thing):
            postings.add(terms, key)
        self._unread[key] = thing

    def remove(self, key: KeyT, id: str, thing: Thing) -> None:
        """List a Thing no more; `id` and `thing` are those that it was listed with."""
        for postings, terms in self._terms(id, thing):
            postings.remove(terms, key)
        if self._unread.pop(key, None) is None:
            self._words.remove(key, thing)

    def read(self, count: int | None = None) -> int:
        """List the words of `count` Things more, or of all; how many are left after it."""
        while self._unread and (count is None or count > 0):
            key, thing = self._unread.popitem()
            self._words.add(key, thing)
            count = None if count is None else count - 1
        return len(self._unread)

    def words(self) -> "Words[KeyT]":
        """The words of all Things."""
        self.read()
        return self._words

    def listed(self) -> dict[str, dict[str, frozenset[KeyT]]]:
        """Everything that is listed."""
        return {
            "names": self.names.listed(),
            "called": self.called.listed(),
            "ids": self.ids.listed(),
            "kinds": self.kinds.listed(),
            "capabilities": self.capabilities.listed(),
            "tags": self.tags.listed(),
            "words": self.words().listed(),
        }

    def _terms(self, id: str, thing: Thing) -> Iterator[tuple[Postings[KeyT], Iterable[str]]]:
        yield self.names, (thing.name,)
        yield self.called, {folded(thing.name), folded(thing.title)} - {""}
        yield self.ids, (id,)
        yield self.kinds, (thing.kind,)
        capabilities = thing.capabilities
        yield self.capabilities, {said for one in capabilities for said in (one.id, one.name)}
        yield self.tags, {tag for one in capabilities for tag in one.tags}


class Words(Generic[KeyT]):
    """Which Things use a word. They are numbered here: numbers are faster to count than keys."""

    __slots__ = ("_free", "_keys", "_listed", "_numbers")

    def __init__(self) -> None:
        self._listed: dict[str, set[int]] = {}
        self._numbers: dict[KeyT, int] = {}
        self._keys: list[KeyT | None] = []
        self._free: list[int] = []

    def add(self, key: KeyT, thing: Thing) -> None:
        """List the words of a Thing that is not listed."""
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            self._keys.append(key)
        self._numbers[key] = number
        for word in words_in(thing):
            listed = self._listed.get(word)
            if listed is None:
                self._listed[word] = {number}
            else:
                listed.add(number)

    def remove(self, key: KeyT, thing: Thing) -> None:
        """List a Thing no more; `thing` is the one that was listed."""
        number = self._numbers.pop(key)
        self._keys[number] = None
        self._free.append(number)
        for word in words_in(thing):
            listed = self._listed.get(word)
            if listed is not None:
                listed.discard(number)
                if not listed:
                    del self._listed[word]

    def scores(self, text: str, most: int | None = None) -> dict[KeyT, float]:
        """How much of a text each Thing shares, above 0 and up to 1; rare words weigh more.

        What shares only words that very many use is left out, unless the text has no others.

        Args:
            text: What to compare with.
            most: Only so many, those that share the most; None for all.
        """
        count = len(self._numbers)
        listed = {word: self._listed.get(word, frozenset[int]()) for word in words_of(text)}
        # In a fixed order, so that replicas come to the same sums.
        weighed = {
            word: math.log(1 + (1 + count) / (1 + len(listed[word])))
            for word in sorted(listed, key=lambda word: (len(listed[word]), word))
        }
        telling = {word for word in weighed if 0 < len(listed[word]) <= max(_FEW, count // 4)}
        shares: dict[int, float] = {}
        by_all = 0.0
        for word, weight in weighed.items():
            if word in telling or not telling:
                for number in listed[word]:
                    shares[number] = shares.get(number, 0.0) + weight
            elif len(listed[word]) * 2 < count:
                for number in shares.keys() & listed[word]:
                    shares[number] += weight
            else:
                # Of what nearly all use, those are counted that do not.
                by_all += weight
                for number in shares.keys() - listed[word]:
                    shares[number] -= weight
        whole = sum(weighed.values())
        return {
            key: min(1.0, (by_all + share) / whole)
            for number, share in self._best(shares, most)
            if (key := self._keys[number]) is not None
        }

    def _best(self, shares: Mapping[int, float], most: int | None) -> Iterable[tuple[int, float]]:
        if most is None or len(shares) <= most:
            return shares.items()
        least = sorted(shares.values())[-most] if most else math.inf
        best = [one for one in shares.items() if one[1] > least]
        # Many share as much as the last of them; replicas number them differently.
        tied = ((self._keys[number], number) for number in shares if shares[number] == least)
        places = heapq.nsmallest(most - len(best), tied)
        return [*best, *((number, least) for _, number in places)]

    def listed(self) -> dict[str, frozenset[KeyT]]:
        """Everything that is listed."""
        return {
            word: frozenset(key for number in numbers if (key := self._keys[number]) is not None)
            for word, numbers in self._listed.items()
        }
