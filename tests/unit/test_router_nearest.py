"""What an approximate index leaves out is far from the message, whoever may be chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmos_mesh_router import nearest
from lmos_mesh_router.evidence import Block, Evidence, EvidenceMatrix, Mask, Query
from lmos_mesh_router.nearest import available
from lmos_mesh_router.ranking import Learned, measure, rank
from tests.router_fleets import DIMENSIONS, WORDS, key, unit

pytestmark = pytest.mark.skipif(not available(), reason="faiss is not installed")

AGENTS, CAPABILITIES = 400, 3


def block(agent: int, version: int = 0) -> Block:
    chance = np.random.default_rng([agent, version])
    middles = np.repeat(chance.normal(size=(CAPABILITIES, DIMENSIONS)), 2, axis=0)
    vectors = unit(middles + 0.1 * chance.normal(size=middles.shape))
    evidence = [
        Evidence(key(f"a{agent:05d}"), f"c{at // 2}", "example", f"{agent} {at} {version}")
        for at in range(2 * CAPABILITIES)
    ]
    return Block.build(evidence[0].key, evidence, vectors, unit(np.ones((len(evidence), WORDS))))


def matrix_of(blocks: list[Block]) -> EvidenceMatrix:
    return EvidenceMatrix.of(blocks, DIMENSIONS, WORDS)


BLOCKS = [block(agent) for agent in range(AGENTS)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "EXACT", 256)
    monkeypatch.setattr(nearest, "FEW", 64)


@pytest.fixture(scope="module")
def changed() -> tuple[EvidenceMatrix, EvidenceMatrix]:
    """The same agents twice, with an index that is older than some of them and without one."""
    frozen = matrix_of(BLOCKS).freeze()
    now = [*BLOCKS[20:], *(block(agent, 1) for agent in range(10)), *map(block, range(900, 920))]
    plain = matrix_of(now)
    return plain.indexed(frozen), plain


def message(seed: int) -> Query:
    chance = np.random.default_rng([seed, 3])
    return Query(unit(chance.normal(size=DIMENSIONS)), unit(chance.normal(size=WORDS)))


def some(matrix: EvidenceMatrix, share: float, seed: int) -> Mask:
    chosen: Mask = np.random.default_rng(seed).random(len(matrix.agents)) < share
    return chosen[matrix.agent_of]


def the_nearest(matrix: EvidenceMatrix, query: Query, eligible: Mask) -> set[int]:
    near = np.where(eligible, matrix.means @ query.vector, -9)
    order: list[int] = np.argsort(-near)[: min(10, int(eligible.sum()))].tolist()
    return set(order)


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 0.3, 0.6, 0.95, 1.0]))
@settings(max_examples=80, deadline=None)
def test_nearly_all_of_the_ten_nearest_are_worth_a_look_and_only_what_may_be_chosen(
    changed: tuple[EvidenceMatrix, EvidenceMatrix], seed: int, share: float
) -> None:
    matrix, _ = changed
    eligible = some(matrix, share, seed)
    query = message(seed)

    worth = matrix.nearest.worth(query.vector, eligible, int(eligible.sum()))

    assert matrix.nearest.approximates
    if worth is None:
        assert 0.05 < share < 1  # all are compared one by one
        return
    assert eligible[worth].all()
    assert len(np.unique(worth)) == len(worth)
    found = the_nearest(matrix, query, eligible)
    assert len(found & set(worth.tolist())) >= len(found) - 1


def test_whoever_is_named_first_is_the_same_with_an_index_and_without(
    changed: tuple[EvidenceMatrix, EvidenceMatrix],
) -> None:
    indexed, plain = (Learned.of(one) for one in changed)
    misses = 0
    for seed in range(200):
        here, there = rank(message(seed), indexed), rank(message(seed), plain)
        misses += here.ranked[0].key != there.ranked[0].key

    assert misses <= 1


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_changed_is_found_and_what_is_gone_is_not(
    changed: tuple[EvidenceMatrix, EvidenceMatrix], seed: int
) -> None:
    matrix, _ = changed
    agent = 900 + seed % 20 if seed % 2 else seed % 10
    new = block(agent, 0 if seed % 2 else 1)
    old = block(10 + seed % 10)

    found = rank(Query(new.means[1], unit(np.ones(WORDS))), Learned.of(matrix))
    gone = rank(Query(old.means[1], unit(np.ones(WORDS))), Learned.of(matrix))

    assert (found.ranked[0].key, found.ranked[0].capability) == (new.key, "c1")
    assert old.key not in {one.key for one in gone.ranked}


def test_ten_agents_of_a_channel_among_ten_thousand_are_decided_between_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the sizes as they are
    chance = np.random.default_rng(1)
    blocks: list[Block] = []
    for agent in range(10_000):
        one = Evidence(key(f"a{agent:05d}"), "c", "example", str(agent))
        vector = unit(chance.normal(size=(1, DIMENSIONS)))
        blocks.append(Block.build(one.key, [one], vector, unit(np.ones((1, WORDS)))))
    huge = matrix_of(blocks)
    huge = huge.indexed(huge.freeze())
    assert huge.nearest.approximates
    ten = blocks[::1_000]
    alone = Learned.of(matrix_of(ten))
    eligible = huge.mask(one.key for one in ten)
    for seed in range(50):
        found, wanted = rank(message(seed), Learned.of(huge), eligible), rank(message(seed), alone)
        assert [one.key for one in found.ranked] == [one.key for one in wanted.ranked]
        assert found.confidence == pytest.approx(wanted.confidence, abs=1e-5)
        assert found.scope == pytest.approx(wanted.scope, abs=1e-3)


def test_many_who_may_be_chosen_and_are_all_far_away_are_still_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "_MOST_ASKED", 300)
    chance = np.random.default_rng(2)
    here, there = unit(chance.normal(size=DIMENSIONS)), unit(chance.normal(size=DIMENSIONS))
    blocks: list[Block] = []
    for agent in range(1_000):
        middle = here if agent < 700 else there
        one = Evidence(key(f"a{agent:05d}"), "c", "example", str(agent))
        vector = unit(middle + 0.3 * chance.normal(size=(1, DIMENSIONS)))
        blocks.append(Block.build(one.key, [one], vector, unit(np.ones((1, WORDS)))))
    matrix = matrix_of(blocks)
    matrix = matrix.indexed(matrix.freeze())
    far = matrix.mask(one.key for one in blocks[700:])

    worth = matrix.nearest.worth(here, far, 300)

    assert worth is not None
    assert set(worth.tolist()) == set(range(700, 1_000))


def test_an_index_is_due_when_too_much_is_new_or_gone() -> None:
    frozen = matrix_of(BLOCKS).freeze()

    def due(blocks: list[Block]) -> bool:
        return matrix_of(blocks).indexed(frozen).nearest.due

    assert matrix_of(BLOCKS).nearest.due
    assert not matrix_of(BLOCKS[:80]).nearest.due  # so few need none
    assert not due(BLOCKS)
    assert not due([*BLOCKS, *map(block, range(900, 918))])
    assert due([*BLOCKS, *map(block, range(900, 925))])
    assert not due(BLOCKS[78:])
    assert due(BLOCKS[82:])
    assert frozen.recall >= nearest.RECALL


def test_a_message_that_is_no_number_is_out_of_scope(
    changed: tuple[EvidenceMatrix, EvidenceMatrix],
) -> None:
    nothing = message(1)._replace(vector=np.full(DIMENSIONS, np.nan, np.float32))

    assert measure(nothing, Learned.of(changed[0])) is not None
    assert not rank(nothing, Learned.of(changed[0])).in_scope
