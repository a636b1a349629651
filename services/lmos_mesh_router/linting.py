"""Finds what will mislead the router before users do: examples that collide, and say nothing. Pure.

Every example is judged as if a user had said it, by a router that knows all the others but not it.
Only agents that can be chosen between are compared: of one release line, with a channel in common.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmos_mesh.messages import Finding
from lmos_mesh.things import ANY_CHANNEL, Capability, Thing, ThingKey
from lmos_mesh_router.calibration import probabilities
from lmos_mesh_router.evidence import ENOUGH_EXAMPLES, ClassKey, EvidenceMatrix, Mask
from lmos_mesh_router.head import train
from lmos_mesh_router.learning import query_of
from lmos_mesh_router.ranking import Learned, measure, ranking_of

MISROUTED = 0.5
"""How sure the router must be of another agent for an example to count as misrouted."""

COLLIDING = 0.25
"""The share of their examples that two capabilities must take from each other to collide."""

ALIKE = 0.92
"""The cosine of two capabilities' directions from which they collide, examples or not."""

SAME = 0.985
"""The cosine from which two examples are the same."""

MOST_CELLS = 1_000_000
"""Rows times classes up to which heads are trained to judge; above, the answer in closed form."""

MOST_COMPARED = 20_000
"""Examples that are compared with each other by meaning; above, by their words alone."""

_FOLDS = 5
_STEP = 1024
_LEAST_EITHER_WAY = 0.1
_GRAVITY = ("duplicate", "misrouted", "collision", "no_examples", "vague_name")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
_SAYS_NOTHING = re.compile(
    r"a|ability|act|action|agent|an|and|answer|any|api|ask|assistant|bar|baz|bot|call|capability|"
    r"chat|cmd|command|default|demo|do|echo|endpoint|example|execute|feature|fn|foo|func|function|"
    r"general|generic|get|go|handle|handler|help|input|invoke|main|message|method|misc|my|new|op|"
    r"operation|other|output|perform|process|prompt|query|question|reply|request|respond|response|"
    r"run|service|skill|stuff|task|temp|test|the|thing|tool|todo|tmp|unknown|untitled|use|user|util|"
    r"utils|v|work"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linted:
    """What was found.

    Attributes:
        findings: The gravest first.
        examples: How many there are; `judged` of them were held out and judged by the others.
        misrouted: How many of the judged go to another agent.
    """

    findings: tuple[Finding, ...]
    agents: int
    capabilities: int
    examples: int
    judged: int
    misrouted: int


class _Heard(NamedTuple):
    """What a router that does not know an example makes of it.

    Attributes:
        agent: Whom it would choose, and for which capability.
        probability: How sure it is of that agent.
        shares: The probability of each capability in question.
    """

    row: int
    agent: ThingKey
    capability: str
    probability: float
    in_scope: bool
    shares: Mapping[ClassKey, float]


def lint(learned: Learned, things: Mapping[ThingKey, Thing], *, seed: int = 0) -> Linted:
    """Everything that will mislead the router.

    Args:
        learned: What it knows; it need know nothing of some of the things yet.
        things: The agents to look at.
        seed: Which examples are held out together.
    """
    lines: dict[str, dict[ThingKey, Thing]] = defaultdict(dict)
    for key, thing in things.items():
        lines[key.subset][key] = thing
    findings: list[Finding] = []
    judged = misrouted = examples = 0
    for _, line in sorted(lines.items()):
        matrix = _only(learned.matrix, line)
        examples += len(_examples(matrix))
        heard = list(_judged(matrix, learned, line, seed))
        judged += len(heard)
        same = _duplicates(matrix, line)
        wrong = [one for one in heard if _goes_elsewhere(matrix, one)]
        misrouted += len(wrong)
        findings.extend(same)
        told = {(one.agent, one.text) for one in same}
        told |= {(one.other_agent, one.other_text) for one in same}
        strays = [_misrouted(matrix, one) for one in wrong]
        findings.extend(_causes(one for one in strays if (one.agent, one.text) not in told))
        findings.extend(_collisions(matrix, heard, line))
        for key, thing in sorted(line.items()):
            findings.extend(_about_descriptions(key, thing.capabilities))
    findings.sort(key=lambda one: (_GRAVITY.index(one.kind), -one.probability, -one.similarity))
    return Linted(
        findings=tuple(findings),
        agents=len(things),
        capabilities=sum(len(thing.capabilities) for thing in things.values()),
        examples=examples,
        judged=judged,
        misrouted=misrouted,
    )


def says_nothing(name: str) -> bool:
    """Whether the name of a capability could be that of any: `do`, `handle_request`, `c1`."""
    words = [word.casefold() for word in _WORD.findall(name)]
    return all(
        _SAYS_NOTHING.fullmatch(word) or (len(word) < 2 and word.isascii()) for word in words
    )


def _only(matrix: EvidenceMatrix, keys: Collection[ThingKey]) -> EvidenceMatrix:
    gone = [at for at, one in enumerate(matrix.evidence) if one.key not in keys]
    return matrix.without(gone) if gone else matrix


def _examples(matrix: EvidenceMatrix) -> list[int]:
    return [at for at, one in enumerate(matrix.evidence) if one.kind == "example"]


def _meet(one: Thing, other: Thing) -> bool:
    """Whether a channel has both."""
    first, second = set(one.supported_channels), set(other.supported_channels)
    return bool(first & second) or (bool(first and second) and ANY_CHANNEL in first | second)


# -- examples that are held out --


def _judged(
    matrix: EvidenceMatrix, learned: Learned, things: Mapping[ThingKey, Thing], seed: int
) -> Iterator[_Heard]:
    """Every example that is not the only thing said of its capability, judged by the others."""
    if len(matrix.agents) < 2:
        return
    trains = len(matrix) * len(matrix.classes) <= MOST_CELLS
    rivals = {
        key: [one for one in matrix.agents if one == key or _meet(things[key], things[one])]
        for key in matrix.agents
    }
    for held in _hands(matrix, seed):
        rest = matrix.without(held)
        head = train(rest) if trains else None
        known = Learned.of(rest, head, learned.calibration, learned.gate)
        masks: dict[ThingKey, Mask] = {}
        for row in held:
            key = matrix.evidence[row].key
            if key not in masks:
                masks[key] = rest.mask(rivals[key])
            measured = measure(query_of(matrix, row), known, masks[key])
            if measured is None:
                continue
            ranking = ranking_of(measured, known)
            shares = probabilities(
                measured.scores,
                rest.agent_of[measured.classes],
                known.calibration[measured.method].temperature,
            )
            first = ranking.ranked[0]
            yield _Heard(
                row,
                first.key,
                first.capability,
                first.probability,
                ranking.in_scope,
                {
                    rest.classes[at]: share
                    for at, share in zip(measured.classes.tolist(), shares, strict=True)
                },
            )


def _hands(matrix: EvidenceMatrix, seed: int) -> list[list[int]]:
    """The examples in five hands; those of a capability are dealt to as many as there are."""
    chance = np.random.default_rng(seed)
    hands: list[list[int]] = [[] for _ in range(_FOLDS)]
    place = 0
    for at in range(len(matrix.classes)):
        own = matrix.class_rows(at)
        if own.stop - own.start < 2:
            continue
        rows = [row for row in range(own.start, own.stop) if _is_example(matrix, row)]
        for row in chance.permutation(rows).tolist():
            hands[place % _FOLDS].append(row)
            place += 1
    return [hand for hand in hands if hand]


def _is_example(matrix: EvidenceMatrix, row: int) -> bool:
    return matrix.evidence[row].kind == "example"


def _goes_elsewhere(matrix: EvidenceMatrix, heard: _Heard) -> bool:
    return (
        heard.agent != matrix.evidence[heard.row].key
        and heard.in_scope
        and heard.probability >= MISROUTED
    )


def _misrouted(matrix: EvidenceMatrix, heard: _Heard) -> Finding:
    one = matrix.evidence[heard.row]
    at = matrix.classes.index(ClassKey(heard.agent, heard.capability))
    own = matrix.class_rows(at)
    rows = list(range(int(own.start), int(own.stop)))
    # People look for what they wrote; a phrase around a name they did not.
    rows = [row for row in rows if _is_example(matrix, row)] or rows
    near = matrix.vectors[rows] @ matrix.vectors[heard.row]
    nearest = int(near.argmax())
    other = matrix.evidence[rows[nearest]]
    return Finding(
        kind="misrouted",
        agent=one.key.name,
        subset=one.key.subset,
        capability=one.capability,
        text=one.text,
        other_agent=heard.agent.name,
        other_subset=heard.agent.subset,
        other_capability=heard.capability,
        other_text=other.text,
        similarity=round(float(near[nearest]), 4),
        probability=round(heard.probability, 4),
        message=(
            f"{_quoted(one.text)} of {one.key.name} would go to {heard.agent.name} "
            f"({heard.probability:.0%} sure, for {_quoted(other.text)}); give {one.key.name} more "
            "examples like it, or move it"
        ),
    )


def _causes(strays: Iterable[Finding]) -> Iterator[Finding]:
    """Of examples that go astray only because of each other, the one that most others follow."""
    left = list(strays)
    blamed = Counter((one.other_agent, one.other_text) for one in left)
    left.sort(key=lambda one: (-blamed[one.agent, one.text], -one.probability))
    named: set[tuple[str, str]] = set()
    for one in left:
        if (one.other_agent, one.other_text) not in named:
            named.add((one.agent, one.text))
            yield one


# -- examples of two agents --


def _duplicates(matrix: EvidenceMatrix, things: Mapping[ThingKey, Thing]) -> list[Finding]:
    rows = _examples(matrix)
    pairs = set(_of_same_words(matrix, rows))
    if len(rows) <= MOST_COMPARED:
        pairs |= set(_of_same_meaning(matrix, rows))
    found: list[Finding] = []
    for first, second in sorted(pairs):
        one, other = matrix.evidence[first], matrix.evidence[second]
        if one.key == other.key or not _meet(things[one.key], things[other.key]):
            continue
        similarity = float(matrix.vectors[first] @ matrix.vectors[second])
        also = "" if one.text == other.text else f" (there {_quoted(other.text)})"
        found.append(
            Finding(
                kind="duplicate",
                agent=one.key.name,
                subset=one.key.subset,
                capability=one.capability,
                text=one.text,
                other_agent=other.key.name,
                other_subset=other.key.subset,
                other_capability=other.capability,
                other_text=other.text,
                similarity=round(similarity, 4),
                probability=0.5,
                message=(
                    f"{_quoted(one.text)} is an example of {one.key.name} and of "
                    f"{other.key.name}{also}; take it from one of them"
                ),
            )
        )
    return found


def _of_same_words(matrix: EvidenceMatrix, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    said: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        text = matrix.evidence[row].text
        said[" ".join(re.findall(r"\w+", text.casefold())) or text].append(row)
    for same in said.values():
        yield from _first_of_each_pair(matrix, same)


def _first_of_each_pair(matrix: EvidenceMatrix, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """One pair of rows for every two agents."""
    first: dict[ThingKey, int] = {}
    for row in rows:
        first.setdefault(matrix.evidence[row].key, row)
    own = list(first.values())
    for number, one in enumerate(own):
        for other in own[number + 1 :]:
            yield min(one, other), max(one, other)


def _of_same_meaning(matrix: EvidenceMatrix, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    vectors = matrix.vectors[np.array(rows, np.int64)]
    for begin in range(0, len(rows), _STEP):
        near = vectors[begin : begin + _STEP] @ vectors[begin:].T
        for at, to in np.argwhere(near >= SAME).tolist():
            if to > at:
                yield rows[begin + at], rows[begin + to]


# -- capabilities of two agents --


def _collisions(
    matrix: EvidenceMatrix, heard: Iterable[_Heard], things: Mapping[ThingKey, Thing]
) -> list[Finding]:
    counts: dict[ClassKey, int] = defaultdict(int)
    taken: dict[tuple[ClassKey, ClassKey], float] = defaultdict(float)
    for one in heard:
        evidence = matrix.evidence[one.row]
        own = ClassKey(evidence.key, evidence.capability)
        counts[own] += 1
        for other, share in one.shares.items():
            if other.key != own.key:
                taken[own, other] += share
    found: dict[tuple[ClassKey, ClassKey], float] = {}
    for (own, other), sum in taken.items():
        if own < other and counts[other]:
            there, back = sum / counts[own], taken.get((other, own), 0.0) / counts[other]
            if min(there, back) >= _LEAST_EITHER_WAY and (there + back) / 2 >= COLLIDING:
                found[own, other] = (there + back) / 2
    place = {key: at for at, key in enumerate(matrix.classes)}
    for one, other in _alike(matrix, things):
        found.setdefault((one, other), 0.0)
    return [
        _collision(matrix, place, pair, share)
        for pair, share in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]


def _alike(
    matrix: EvidenceMatrix, things: Mapping[ThingKey, Thing]
) -> Iterator[tuple[ClassKey, ClassKey]]:
    """Capabilities of two agents that lie in the same direction."""
    if len(matrix.classes) > MOST_COMPARED:
        return
    for begin in range(0, len(matrix.classes), _STEP):
        near = matrix.means[begin : begin + _STEP] @ matrix.means[begin:].T
        for at, to in np.argwhere(near >= ALIKE).tolist():
            one, other = matrix.classes[begin + at], matrix.classes[begin + to]
            if to > at and one.key != other.key and _meet(things[one.key], things[other.key]):
                yield one, other


def _collision(
    matrix: EvidenceMatrix,
    place: Mapping[ClassKey, int],
    pair: tuple[ClassKey, ClassKey],
    share: float,
) -> Finding:
    one, other = pair
    first, second = matrix.class_rows(place[one]), matrix.class_rows(place[other])
    near = matrix.vectors[first] @ matrix.vectors[second].T
    at, to = divmod(int(near.argmax()), near.shape[1])
    text = matrix.evidence[int(first.start) + at].text
    other_text = matrix.evidence[int(second.start) + to].text
    how = f"take {share:.0%} of each other's examples" if share else "say nearly the same"
    return Finding(
        kind="collision",
        agent=one.key.name,
        subset=one.key.subset,
        capability=one.capability,
        text=text,
        other_agent=other.key.name,
        other_subset=other.key.subset,
        other_capability=other.capability,
        other_text=other_text,
        similarity=round(float(near[at, to]), 4),
        probability=round(share, 4),
        message=(
            f"{one.capability} of {one.key.name} and {other.capability} of {other.key.name} {how}, "
            f"nearest {_quoted(text)} and {_quoted(other_text)}; say in both what sets them apart"
        ),
    )


# -- what is said of a capability --


def _about_descriptions(key: ThingKey, capabilities: Iterable[Capability]) -> Iterator[Finding]:
    for one in capabilities:
        examples = [text for text in one.examples if text.strip()]
        if not examples:
            rest = "its name and description" if one.description.strip() else "its name"
            yield Finding(
                kind="no_examples",
                agent=key.name,
                subset=key.subset,
                capability=one.id,
                message=(
                    f"{one.id} of {key.name} has no examples, only {rest}; write down what users "
                    "say, five messages do a lot"
                ),
            )
        if len(examples) < ENOUGH_EXAMPLES and says_nothing(one.name or one.id):
            yield Finding(
                kind="vague_name",
                agent=key.name,
                subset=key.subset,
                capability=one.id,
                text=one.name or one.id,
                message=(
                    f"{_quoted(one.name or one.id)} of {key.name} could be the name of any "
                    "capability; name it for what it does, e.g. view_bill"
                ),
            )


def _quoted(text: str) -> str:
    said = " ".join(text.split())
    return f"“{said}”" if len(said) <= 60 else f"“{said[:59]}…”"
