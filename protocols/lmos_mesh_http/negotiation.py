"""What a request's headers ask for: the form of the answer, and under which conditions. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TAG = re.compile(r'(W/)?"([^"]*)"')
_REVISION = re.compile(r"[1-9][0-9]{0,17}")


def chosen(accept: str, offers: Sequence[str]) -> str | None:
    """The media type that a client likes best; of those that it likes alike, the first.

    Args:
        accept: The header `Accept`; empty for whatever there is.
        offers: What can be given, as `type/subtype`.

    Returns:
        One of `offers`, or None if it takes none of them.
    """
    if not accept.strip():
        return offers[0]
    liked = _liked(accept)
    best, best_quality = None, 0.0
    for offer in offers:
        whole = f"{offer.partition('/')[0]}/*"
        # The most exact range counts, whatever the others say.
        quality = next((liked[one] for one in (offer, whole, "*/*") if one in liked), 0.0)
        if quality > best_quality:
            best, best_quality = offer, quality
    return best


def _liked(accept: str) -> dict[str, float]:
    """How much each range of media types is liked, 0 to 1."""
    liked: dict[str, float] = {}
    for one in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in one.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        liked[media_type] = max(liked.get(media_type, 0.0), quality)
    return liked


def etag(revision: int) -> str:
    """The entity tag of a revision."""
    return f'"{revision}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The entity tags that a header names.

    Args:
        any: Whether it names whatever there is (`*`).
        revisions: Those of ours among them.
    """

    any: bool = False
    revisions: frozenset[int] = frozenset()

    def names(self, revision: int) -> bool:
        """Whether a revision is named; revision 0, which is nothing, never is."""
        return revision != 0 and (self.any or revision in self.revisions)


def tags(value: str | None, *, weak: bool) -> Tags | None:
    """What a header names; None without the header.

    Args:
        value: The header.
        weak: Whether a weak tag counts: for reading it does, for writing it does not.
    """
    if value is None:
        return None
    if value.strip() == "*":
        return Tags(any=True)
    return Tags(
        revisions=frozenset(
            int(tag)
            for is_weak, tag in _TAG.findall(value)
            if (weak or not is_weak) and _REVISION.fullmatch(tag)
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under which conditions something may be written (RFC 9110, section 13).

    Args:
        match: It must be one of these.
        none_match: It must be none of these.
    """

    match: Tags | None = None
    none_match: Tags | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Conditions":
        """The conditions that a request's headers set."""
        return cls(
            match=tags(headers.get("if-match"), weak=False),
            none_match=tags(headers.get("if-none-match"), weak=True),
        )

    def __bool__(self) -> bool:
        return self.match is not None or self.none_match is not None

    @property
    def revision(self) -> int | None:
        """The one revision that fits, 0 for nothing; None where that takes a look."""
        if self.none_match is None and self.match is not None and not self.match.any:
            return min(self.match.revisions) if len(self.match.revisions) == 1 else None
        if self.match is None and self.none_match is not None and self.none_match.any:
            return 0
        return None

    def hold(self, revision: int) -> bool:
        """Whether this revision may be replaced; 0 is nothing."""
        if self.match is not None and not self.match.names(revision):
            return False
        return self.none_match is None or not self.none_match.names(revision)
