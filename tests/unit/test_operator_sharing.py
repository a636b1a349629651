"""How many instances each of those runs who can: exact, and nothing is moved for nothing."""

from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh_operator.sharing import Share, shared

FLEETS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 8), st.sampled_from([0.0, 1.0, 2.0])),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        Share(
            runner=f"run-{number}",
            file="/shop.py",
            started=started,
            instances=instances,
            limit=instances + room,
        )
        for number, (instances, room, started) in enumerate(rows)
    ]
)


def counts(shares: list[Share]) -> list[int]:
    return [one.instances for one in shares]


@given(fleet=FLEETS, data=st.data())
def test_there_are_as_many_as_wanted_and_nobody_is_moved(
    fleet: list[Share], data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(0, sum(one.limit for one in fleet)))

    found = shared(wanted, fleet)

    assert sum(counts(found)) == wanted
    assert all(0 <= one.instances <= one.limit for one in found)
    changes = [after.instances - before.instances for before, after in zip(fleet, found, strict=True)]  # fmt: skip # noqa: E501
    assert all(change >= 0 for change in changes) or all(change <= 0 for change in changes)
    assert shared(wanted, found) == found, "what is as wanted stays"


@given(fleet=FLEETS, data=st.data())
def test_nobody_gets_one_while_another_who_has_room_runs_fewer(
    fleet: list[Share], data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(0, sum(one.limit for one in fleet)))

    found = shared(wanted, fleet)

    for before, after in zip(fleet, found, strict=True):
        if after.instances > before.instances:
            assert all(
                other.instances >= after.instances - 1 or other.instances == other.limit
                for other in found
            )
        if after.instances < before.instances:
            assert all(other.instances <= after.instances + 1 for other in found)


@given(fleet=FLEETS, data=st.data())
def test_in_which_order_they_are_told_of_makes_no_difference(
    fleet: list[Share], data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(0, sum(one.limit for one in fleet)))
    mixed = data.draw(st.permutations(fleet))

    by_runner = {one.runner: one.instances for one in shared(wanted, fleet)}

    assert {one.runner: one.instances for one in shared(wanted, mixed)} == by_runner


def test_among_equals_the_newest_gives_and_the_oldest_gets() -> None:
    old = Share(runner="a", file="/x.py", started=1.0, instances=2)
    new = Share(runner="b", file="/x.py", started=2.0, instances=2)

    assert counts(shared(3, [new, old])) == [1, 2]
    assert counts(shared(5, [new, old])) == [2, 3]
