"""Which Things fit a question, and in which order. Pure."""

import re
from collections.abc import Iterable

from lmos_mesh.errors import InvalidMessage
from lmos_mesh.membership import Entered, Membership
from lmos_mesh.messages import FindThings, FoundThing
from lmos_mesh.semver import BadVersion, Range
from lmos_mesh.things import Thing

_WORDS = re.compile(r"\w+", re.UNICODE)


def find(membership: Membership, tenant: str, wanted: FindThings) -> tuple[list[Entered], int]:
    """The entries that fit, best first, at most `limit` of them; and how many fit in all.

    Raises:
        InvalidMessage: The version range cannot be read, or names no capability.
    """
    if wanted.version is not None:
        if wanted.capability is None:
            raise InvalidMessage(
                "/version: a range is of a capability", hint="give `capability` too"
            )
        try:
            Range.parse(wanted.version)
        except BadVersion as exc:
            raise InvalidMessage(f"/version: {exc}", field="/version") from None
    fitting = [one for one in membership if _fits(one, membership, tenant, wanted)]
    if wanted.text:
        scored = [(_overlap(wanted.text, one.thing), one) for one in fitting]
        fitting = [
            one
            for score, one in sorted(scored, key=lambda pair: (-pair[0], pair[1].key))
            if score > 0
        ]
    else:
        fitting.sort(key=lambda one: one.key)
    return fitting[: wanted.limit], len(fitting)


def _fits(one: Entered, membership: Membership, tenant: str, wanted: FindThings) -> bool:
    thing = one.thing
    if one.key.tenant != tenant:
        return False
    if wanted.name is not None and one.key.name != wanted.name:
        return False
    if wanted.subset is not None and one.key.subset != wanted.subset:
        return False
    if wanted.kind is not None and thing.kind != wanted.kind:
        return False
    if wanted.channel is not None and not thing.serves(wanted.channel):
        return False
    if wanted.capability is not None and not thing.matching(wanted.capability, wanted.version):
        return False
    return wanted.live is None or membership.live(one.key) == wanted.live


def _overlap(text: str, thing: Thing) -> float:
    """The share of the words that the Thing has too."""
    words = _words([text])
    if not words:
        return 0.0
    return len(words & _words(_said_of(thing))) / len(words)


def _said_of(thing: Thing) -> Iterable[str]:
    yield thing.name
    yield thing.description
    for capability in thing.capabilities:
        yield capability.name
        yield capability.description
        yield from capability.tags
        yield from capability.examples


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORDS.findall(text.replace("_", " ").casefold())}


def shown(one: Entered, membership: Membership, *, whole: bool) -> FoundThing:
    """An entry as it is told to whoever asked."""
    thing = one.thing
    instances = membership.instances(one.key)
    return FoundThing(
        name=one.key.name,
        subset=one.key.subset,
        tenant=one.key.tenant,
        kind=thing.kind,
        version=thing.version,
        summary=thing.description,
        capabilities=thing.capabilities,
        channels=thing.supported_channels,
        external=thing.external,
        live=bool(instances),
        instances=instances,
        revision=one.revision,
        description=one.description if whole else None,
    )
