"""Who is shown by `lmos agents`: everybody, in as many answers as that takes."""

from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.cli.agents import find
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.messages import FIND_THINGS, FindThings, FoundThing, ThingsFound

EVERYBODY = 1500
PAGE = 400


async def registry(wanted: FindThings, _: Call) -> ThingsFound:
    end = min(EVERYBODY, wanted.offset + min(wanted.limit, PAGE))
    things = tuple(FoundThing(name=f"a{at}") for at in range(wanted.offset, end))
    following = end if end < EVERYBODY else None
    return ThingsFound(things=things, total=EVERYBODY, next=following, revision=1)


async def test_nobody_is_left_out_who_does_not_fit_into_one_answer() -> None:
    # Whoever is left out here would be shown as stopped.
    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="r") as bus:
        await bus.serve("registry", [route(FIND_THINGS, registry)])
        found = await find(bus)

    assert [one.name for one in found] == [f"a{at}" for at in range(EVERYBODY)]
