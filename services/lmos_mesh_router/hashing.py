"""Turns text into a vector by its spelling alone, for a router that has no embedding model.

Texts that share words and parts of words come out alike; "bill" and "invoice" do not. Pure, and
the same in every process: nothing here depends on Python's own hash, which differs between runs.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

DIMENSIONS = 512
MAX_CHARACTERS = 8192

_WORD_WEIGHT = 1.0
_PIECES_WEIGHT = 1.0
_PIECE_SIZES = (3, 4, 5)
_MAX_PIECES_OF = 64  # of a longer word, only so many characters are cut into pieces
_TOKEN = re.compile(r"[^\W_]+|[^\w\s]")
_NOTHING = "\0nothing"
_NOWHERE = np.zeros(DIMENSIONS, np.float64)


def hash_text(text: str) -> npt.NDArray[np.float32]:
    """The vector of a text; its length is one, also for an empty text.

    Counts are damped (their square root), so that a word said nine times weighs three times.
    """
    places: list[npt.NDArray[np.intp]] = []
    weights: list[npt.NDArray[np.float64]] = []
    for token, count in Counter(_tokens(text)).items():
        where, heavy = _features(token)
        places.append(where)
        weights.append(heavy if count == 1 else heavy * count**0.5)
    vector = _NOWHERE
    if places:
        vector = np.bincount(np.concatenate(places), np.concatenate(weights), DIMENSIONS)
    length = math.sqrt(vector.dot(vector))
    if length < 1e-9:
        # No words at all, or words that cancel each other out: a place of its own, away from
        # every other text, because a vector of zeros has no direction to compare.
        where, _ = _features(_NOTHING)
        vector = _NOWHERE.copy()
        vector[where[0]] = length = 1.0
    return (vector / length).astype(np.float32)


def _tokens(text: str) -> Iterator[str]:
    plain = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold()
    for token in _TOKEN.findall(plain[:MAX_CHARACTERS]):
        # Emoji and signs such as € or + say something; commas and question marks do not.
        if token[0].isalnum() or unicodedata.category(token).startswith("S"):
            yield token


@lru_cache(maxsize=16_384)
def _features(token: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Where a token goes and how heavily: itself once, and the pieces of its spelling."""
    marked = f"<{token[:_MAX_PIECES_OF]}>"
    pieces = {
        marked[start : start + size]
        for size in _PIECE_SIZES
        for start in range(len(marked) - size + 1)
    }
    hashed = [_hash(f"word {token}")] + [_hash(f"piece {piece}") for piece in sorted(pieces)]
    places = np.array([value % DIMENSIONS for value in hashed], np.intp)
    signs = np.array([1.0 if value >> 63 else -1.0 for value in hashed])
    # The pieces together weigh as much as the word, however long it is.
    piece_weight = _PIECES_WEIGHT / max(1, len(pieces)) ** 0.5
    weights = np.array([_WORD_WEIGHT] + [piece_weight] * len(pieces))
    return places, signs * weights


def _hash(feature: str) -> int:
    # A lone surrogate, which JSON can carry, has no UTF-8 of its own.
    digest = blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
