"""Versions and version ranges, as people write them in LMOS resources. Pure.

A version is SemVer 2.0; the short forms `1` and `1.0` are taken too, since LMOS uses them. A range
is in the notation of NPM (`^1.2`, `>=1.0 <3`, `1.x || 2.3.4 - 2.8`) or of Ivy (`[1.0,2.0[`,
`1.0.+`, `latest.integration`).
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, total_ordering
from typing import Any

MAX_LENGTH = 256

_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SUFFIX = (
    rf"(?:-(?P<prerelease>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+(?P<build>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
_VERSION = re.compile(
    rf"[v=]?(?P<major>{_NUMBER})(?:\.(?P<minor>{_NUMBER})(?:\.(?P<patch>{_NUMBER}){_SUFFIX})?)?"
)
_ANY_PART = rf"(?:{_NUMBER}|[xX*+])"
_PARTIAL = re.compile(
    rf"v?(?P<major>{_ANY_PART})(?:\.(?P<minor>{_ANY_PART})(?:\.(?P<patch>{_ANY_PART}){_SUFFIX})?)?"
)
_OPERATOR = re.compile(r"(?P<operator><=|>=|<|>|=|~>|~|\^|)(?P<partial>.+)")
_OPERATOR_GAP = re.compile(r"(<=|>=|<|>|=|~>|~|\^)\s+")
_HYPHEN = re.compile(r"(?P<low>\S+)\s+-\s+(?P<high>\S+)")
_BRACKETS = re.compile(
    r"(?P<opening>[\[\](])\s*(?P<low>[^,\s]*)\s*,\s*(?P<high>[^,\s]*)\s*(?P<closing>[\[\])])"
)
_LATEST_RELEASE = frozenset({"latest", "latest.release"})
_LATEST_ANY = frozenset({"latest.integration", "latest.milestone"})


class BadVersion(ValueError):
    """A text that is no version, or no version range; the message says which and what would do."""


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """A SemVer 2.0 version. Ordered and equal by precedence: build metadata does not count."""

    major: int
    minor: int = 0
    patch: int = 0
    prerelease: tuple[int | str, ...] = ()
    build: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> "Version":
        """Read a version; `1` and `1.0` mean `1.0.0`, a leading `v` or `=` is dropped.

        Raises:
            BadVersion: It is not one.
        """
        return _version(text)

    @property
    def release(self) -> tuple[int, int, int]:
        """The three numbers."""
        return self.major, self.minor, self.patch

    def __eq__(self, other: object) -> bool:
        return self.precedence == other.precedence if isinstance(other, Version) else False

    def __lt__(self, other: "Version") -> bool:
        return self.precedence < other.precedence

    def __hash__(self) -> int:
        return hash(self.precedence)

    def __str__(self) -> str:
        prerelease = "-" + ".".join(str(part) for part in self.prerelease)
        build = "+" + ".".join(self.build)
        return (
            f"{self.major}.{self.minor}.{self.patch}"
            f"{prerelease if self.prerelease else ''}{build if self.build else ''}"
        )

    @property
    def precedence(self) -> tuple[Any, ...]:
        """What versions are ordered by, for those who compare many."""
        # A release follows its prereleases; numbers precede words.
        parts = tuple((0, p, "") if isinstance(p, int) else (1, 0, p) for p in self.prerelease)
        return self.major, self.minor, self.patch, not self.prerelease, parts


@dataclass(frozen=True, slots=True)
class Comparator:
    """One bound: an operator of `< <= > >= =`, and a version."""

    operator: str
    version: Version

    def admits(self, version: Version) -> bool:
        """Whether a version is on the right side of this bound, prerelease or not."""
        return _COMPARE[self.operator](version, self.version)

    def __str__(self) -> str:
        return f"{self.operator}{self.version}"


Bounds = tuple[Comparator, ...]

_COMPARE: dict[str, Callable[[Version, Version], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Range:
    """Alternatives, each of them bounds that all hold; no bounds at all admit every release.

    Prereleases are admitted as NPM does it: only where a bound of the same three numbers is a
    prerelease itself, so that nobody gets `2.0.0-rc.1` for `>=1.0.0` unasked.
    """

    text: str
    alternatives: tuple[Bounds, ...]
    prereleases: bool = False

    @staticmethod
    def parse(text: str) -> "Range":
        """Read a range in NPM or Ivy notation; an empty one admits every release.

        Raises:
            BadVersion: It is not one.
        """
        return _range(text)

    def admits(self, version: Version) -> bool:
        """Whether a version is in the range."""
        return any(self._within(version, bounds) for bounds in self.alternatives)

    def __str__(self) -> str:
        return self.text

    def _within(self, version: Version, bounds: Bounds) -> bool:
        if not all(bound.admits(version) for bound in bounds):
            return False
        if not version.prerelease or self.prereleases:
            return True
        return any(b.version.prerelease and b.version.release == version.release for b in bounds)


def matches(version: str | Version, wanted: str | Range) -> bool:
    """Whether a version is in a range.

    Raises:
        BadVersion: One of them cannot be read.
    """
    found = Version.parse(version) if isinstance(version, str) else version
    admitted = Range.parse(wanted) if isinstance(wanted, str) else wanted
    return admitted.admits(found)


@lru_cache(maxsize=4096)
def _version(text: str) -> Version:
    match = None if len(text) > MAX_LENGTH else _VERSION.fullmatch(text.strip())
    if match is None:
        raise BadVersion(f"{_shown(text)} is not a version; write it like 1.4.2 or 2.0.0-beta.1")
    return Version(
        major=int(match["major"]),
        minor=int(match["minor"] or 0),
        patch=int(match["patch"] or 0),
        prerelease=_identifiers(match["prerelease"]),
        build=tuple(match["build"].split(".")) if match["build"] else (),
    )


def _identifiers(text: str | None) -> tuple[int | str, ...]:
    # isdecimal would take the digits of every script; the pattern has let in ASCII only.
    return tuple(int(p) if p.isdecimal() else p for p in text.split(".")) if text else ()


@lru_cache(maxsize=4096)
def _range(text: str) -> Range:
    if len(text) > MAX_LENGTH:
        raise BadVersion(f"{_shown(text)} is too long for a version range: over {MAX_LENGTH}")
    stated = text.strip()
    if stated in _LATEST_ANY:
        return Range(text, ((),), prereleases=True)
    try:
        return Range(text, tuple(_bounds(part.strip()) for part in stated.split("||")))
    except BadVersion as exc:
        raise BadVersion(
            f"{_shown(text)} is not a version range: {exc};"
            " write it like ^1.2, >=1.0 <3, 1.x, 1.0 - 2.3 or [1.0,2.0["
        ) from None


def _bounds(text: str) -> Bounds:
    if text in _LATEST_RELEASE:
        return ()
    if brackets := _BRACKETS.fullmatch(text):
        return _bracket_bounds(**brackets.groupdict())
    if hyphen := _HYPHEN.fullmatch(text):
        low, high = _Partial.parse(hyphen["low"]), _Partial.parse(hyphen["high"])
        return (*_at_least(low), *_at_most(high))
    tokens = _OPERATOR_GAP.sub(r"\1", text).split()
    return tuple(bound for token in tokens for bound in _token_bounds(token))


def _bracket_bounds(*, opening: str, low: str, high: str, closing: str) -> Bounds:
    """Ivy: `[` and `]` that face the bound include it, any other bracket leaves it out."""
    if (not low and opening != "(") or (not high and closing != ")"):
        raise BadVersion("an open end is written with a parenthesis, as in (,2.0] or [1.0,)")
    bounds: list[Comparator] = []
    if low:
        bounds.append(Comparator(">=" if opening == "[" else ">", Version.parse(low)))
    if high:
        bounds.append(Comparator("<=" if closing == "]" else "<", Version.parse(high)))
    return tuple(bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Partial:
    """A version of which only the first `given` of the three numbers are fixed."""

    given: int
    version: Version

    @staticmethod
    def parse(text: str) -> "_Partial":
        match = _PARTIAL.fullmatch(text)
        if match is None:
            raise BadVersion(f"{_shown(text)} is neither a version nor a pattern like 1.x")
        parts = [part for part in match.group("major", "minor", "patch") if part is not None]
        numbers = [int(part) for part in parts if part.isdecimal()]
        given = len(numbers)
        if any(part.isdecimal() for part in parts[given:]):
            raise BadVersion(f"{_shown(text)} has a number after a wildcard")
        major, minor, patch = (*numbers, 0, 0, 0)[:3]
        prerelease = _identifiers(match["prerelease"]) if given == 3 else ()
        version = Version(major=major, minor=minor, patch=patch, prerelease=prerelease)
        return _Partial(given=given, version=version)

    def ceiling(self, fixed: int) -> Version:
        """The lowest version beyond all that share the first `fixed` numbers.

        That is a prerelease `-0`, below which nothing of the next line lies.
        """
        numbers = [*self.version.release[: fixed - 1], self.version.release[fixed - 1] + 1, 0, 0]
        return _floor(Version(major=numbers[0], minor=numbers[1], patch=numbers[2]))


def _token_bounds(token: str) -> Bounds:
    match = _OPERATOR.fullmatch(token)
    if match is None:
        raise BadVersion(f"{_shown(token)} has no version after its operator")
    sign, partial = match["operator"], _Partial.parse(match["partial"])
    if partial.given == 0:
        # Nothing is above or below every version.
        return (_NOTHING,) if sign in ("<", ">") else ()
    if sign == "^":
        return _below(partial, _caret_fixed(partial))
    if sign in ("~", "~>"):
        return _below(partial, min(partial.given, 2))
    if sign in ("", "=") and partial.given < 3:
        return _below(partial, partial.given)
    if sign == "<=":
        return _at_most(partial)
    if sign == ">" and partial.given < 3:
        return (Comparator(">=", _release(partial.ceiling(partial.given))),)
    if sign == "<" and partial.given < 3:
        return (Comparator("<", _floor(partial.version)),)
    return (Comparator(sign or "=", partial.version),)


def _caret_fixed(partial: _Partial) -> int:
    """How many numbers a caret keeps: up to the first that is not zero, of those given."""
    for index, number in enumerate(partial.version.release[: partial.given], start=1):
        if number:
            return index
    return partial.given


def _below(partial: _Partial, fixed: int) -> Bounds:
    return Comparator(">=", partial.version), Comparator("<", partial.ceiling(fixed))


def _at_least(partial: _Partial) -> Bounds:
    return (Comparator(">=", partial.version),) if partial.given else ()


def _at_most(partial: _Partial) -> Bounds:
    if partial.given == 0:
        return ()
    if partial.given == 3:
        return (Comparator("<=", partial.version),)
    return (Comparator("<", partial.ceiling(partial.given)),)


def _floor(version: Version) -> Version:
    return Version(major=version.major, minor=version.minor, patch=version.patch, prerelease=(0,))


def _release(version: Version) -> Version:
    return Version(major=version.major, minor=version.minor, patch=version.patch)


_NOTHING = Comparator("<", Version(major=0, prerelease=(0,)))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
