"""What the router is measured on: CLINC150 as ten agents, LMOS's own set, and their vectors.

`LMOS_BENCH_DATA` names a folder with `clinc150/data_full.json`, `clinc150/domains.json`,
`lmos/agentRoutingSpecs.json`, `lmos/train.csv` and `lmos/test.csv`, as they are published.
"""

import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmos_mesh.thing_faults import thing_from
from lmos_mesh.things import Thing, ThingKey
from lmos_mesh_router.encoder import Encoder, load_encoder
from lmos_mesh_router.evidence import EvidenceMatrix, Query, evidence_of
from lmos_mesh_router.hashing import hash_text

TENANT = "bench"


class Said(NamedTuple):
    """A message and whom it is for; an empty agent where it is for nobody."""

    text: str
    agent: str
    capability: str = ""


def key_of(agent: str) -> ThingKey:
    return ThingKey(TENANT, agent, "stable")


def folder() -> Path:
    """Where the data is."""
    named = os.environ.get("LMOS_BENCH_DATA")
    if not named:
        sys.exit(
            "benchmark: LMOS_BENCH_DATA is not set; it names the folder with clinc150/ and lmos/"
        )
    path = Path(named)
    if not (path / "clinc150" / "data_full.json").exists():
        sys.exit(f"benchmark: there is no clinc150/data_full.json in LMOS_BENCH_DATA={named}")
    return path


class Vectors:
    """Vectors of texts, kept in a file so that a second run embeds nothing."""

    def __init__(self, path: Path, encoder: Encoder | None = None) -> None:
        self._encoder = encoder or load_encoder(threads=1)
        self._path = path / f"{self._encoder.fingerprint}.npz"
        self._known: dict[str, np.ndarray] = {}
        self._words: dict[str, np.ndarray] = {}
        if self._path.exists():
            kept = np.load(self._path)
            texts = json.loads(bytes(kept["texts"]).decode())
            self._known = dict(zip(texts, kept["vectors"], strict=True))

    @property
    def encoder(self) -> Encoder:
        return self._encoder

    def prepare(self, texts: Iterable[str]) -> None:
        """Embed what is not known yet, and keep it."""
        missing = sorted(set(texts) - self._known.keys(), key=len)
        if not missing:
            return
        print(f"embedding {len(missing)} texts …", file=sys.stderr, flush=True)
        for begin in range(0, len(missing), 64):
            some = missing[begin : begin + 64]
            self._known.update(zip(some, self._encoder.encode(some), strict=True))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        packed = np.frombuffer(json.dumps(list(self._known)).encode(), np.uint8)
        kept = self._path.with_suffix(".new.npz")
        np.savez(kept, texts=packed, vectors=np.stack(list(self._known.values())))
        kept.replace(self._path)

    def all(self) -> np.ndarray:
        """The vectors of all texts that were ever embedded."""
        return np.stack(list(self._known.values()))

    def words(self, text: str) -> np.ndarray:
        found = self._words.get(text)
        if found is None:
            found = self._words[text] = hash_text(text)
        return found

    def query(self, text: str) -> Query:
        return Query(self._known[text], self.words(text))

    def queries(self, texts: Sequence[str]) -> list[Query]:
        self.prepare(texts)
        return [self.query(text) for text in texts]

    def matrix(self, things: Iterable[Thing]) -> EvidenceMatrix:
        """The evidence of agents."""
        evidence = [one for thing in things for one in evidence_of(key_of(thing.name), thing)]
        self.prepare(one.text for one in evidence)
        return EvidenceMatrix.build(
            evidence,
            np.stack([self._known[one.text] for one in evidence]),
            np.stack([self.words(one.text) for one in evidence]),
        )


@dataclass(frozen=True)
class Clinc:
    """CLINC150: its ten domains are agents of fifteen capabilities each."""

    domains: dict[str, list[str]]
    splits: dict[str, list[Said]]

    @classmethod
    def load(cls) -> "Clinc":
        path = folder() / "clinc150"
        domains: dict[str, list[str]] = json.loads((path / "domains.json").read_text())
        agent_of = {name: agent for agent, names in domains.items() for name in names}
        raw: dict[str, list[tuple[str, str]]] = json.loads((path / "data_full.json").read_text())
        return cls(
            domains,
            {
                split: [Said(text, agent_of.get(name, ""), name) for text, name in rows]
                for split, rows in raw.items()
            },
        )

    def things(self, each: int | None, seed: int) -> list[Thing]:
        """The agents with so many examples for each capability, all if None."""
        by_name: dict[str, list[str]] = {}
        for said in self.splits["train"]:
            by_name.setdefault(said.capability, []).append(said.text)
        chance = np.random.default_rng(seed)
        found: list[Thing] = []
        for agent, names in self.domains.items():
            capabilities: list[dict[str, Any]] = []
            for name in names:
                texts = by_name[name]
                chosen = (
                    texts
                    if each is None
                    else [texts[at] for at in chance.choice(len(texts), each, replace=False)]
                )
                capabilities.append({"id": name, "examples": list(dict.fromkeys(chosen))})
            found.append(thing_from({"name": agent, "capabilities": capabilities}))
        return found


@dataclass(frozen=True)
class Lmos:
    """The set that LMOS publishes its table for: eleven agents."""

    specs: list[dict[str, Any]]
    train: list[Said]
    test: list[Said]

    @classmethod
    def load(cls) -> "Lmos":
        path = folder() / "lmos"

        def rows(name: str) -> list[Said]:
            with (path / name).open(newline="") as file:
                return [
                    Said(row["instruction"], row["agent"], row["intent"])
                    for row in csv.DictReader(file)
                ]

        specs = json.loads((path / "agentRoutingSpecs.json").read_text())
        return cls(specs, rows("train.csv"), rows("test.csv"))

    def sample(self, each: int | None, seed: int) -> list[Said]:
        """So many training rows of each agent, all if None."""
        if each is None:
            return self.train
        chance = np.random.default_rng(seed)
        found: list[Said] = []
        for spec in self.specs:
            own = [said for said in self.train if said.agent == spec["name"]]
            found.extend(own[at] for at in chance.choice(len(own), each, replace=False))
        return found

    def things(self, each: int | None, seed: int) -> list[Thing]:
        """The agents, their descriptions, and so many training rows of each as examples.

        A row is an example of the capability that it names; where its agent has none of that
        name, one is added that has this name and no description.
        """
        examples: dict[tuple[str, str], list[str]] = {}
        for said in self.sample(each, seed):
            examples.setdefault((said.agent, said.capability), []).append(said.text)
        found: list[Thing] = []
        for spec in self.specs:
            agent = spec["name"]
            capabilities: list[dict[str, Any]] = [
                {
                    "id": one["name"],
                    "description": one["description"],
                    "examples": list(dict.fromkeys(examples.pop((agent, one["name"]), []))),
                }
                for one in spec["capabilities"]
            ]
            for (owner, name), texts in examples.items():
                if owner == agent:
                    capabilities.append({"id": name, "examples": list(dict.fromkeys(texts))})
            found.append(
                thing_from(
                    {
                        "name": agent,
                        "description": spec["description"],
                        "capabilities": capabilities,
                    }
                )
            )
        return found


class Dialogue(NamedTuple):
    """Two messages of one person, and the agents that they are for."""

    before: str
    agent: str
    first: str
    second: str


def dialogues() -> tuple[list[Thing], list[Dialogue]]:
    """A small fleet, and pairs of messages to it: half follow-ups, half changes of topic."""
    raw = json.loads((Path(__file__).parent / "data" / "follow_ups.json").read_text())
    found = [
        Dialogue(agent, agent, first, second)
        for agent, pairs in raw["follow_ups"].items()
        for first, second in pairs
    ]
    found.extend(Dialogue(*one) for one in raw["changes"])
    return [thing_from(one) for one in raw["agents"]], found


Language = Literal["english", "german"]


def german(
    examples: Sequence[Language], *, without: int | None = None
) -> tuple[list[Thing], list[Said], list[str]]:
    """A small fleet with examples in these languages; messages to it and strangers, in German.

    Args:
        examples: The languages.
        without: Of each capability this example is left out, and is the message in place of those.
    """
    raw = json.loads((Path(__file__).parent / "data" / "german.json").read_text("utf-8"))
    things: list[Thing] = []
    found: list[Said] = []
    for agent in raw["agents"]:
        capabilities: list[dict[str, Any]] = []
        for one in agent["capabilities"]:
            texts = [text for language in examples for text in one[language]]
            said = one["said"] if without is None else [texts.pop(without)]
            capabilities.append({"id": one["id"], "examples": texts})
            found.extend(Said(text, agent["name"], one["id"]) for text in said)
        things.append(thing_from({"name": agent["name"], "capabilities": capabilities}))
    return things, found, raw["strangers"]
