"""When the tour of `lmos demo` begins."""

from lmos_mesh.bus import Bus, route
from lmos_mesh.calls import Call
from lmos_mesh.cli.demo import until_routable
from lmos_mesh.memory_transport import MemoryBroker, MemoryTransport
from lmos_mesh.messages import (
    FIND_THINGS,
    ROUTER_STATUS,
    FindThings,
    FoundThing,
    RouterState,
    RouterStatus,
    ThingsFound,
)


async def test_it_waits_until_the_router_has_learned_of_every_agent() -> None:
    learned = RouterState(
        encoder="words", fingerprint="w", semantic=False, agents=2, evidence=9, version=3
    )
    states = [
        learned.model_copy(update=update)
        for update in (
            {"agents": 1, "trained": True},
            {"waiting": 4, "trained": True},
            {"trained": False},
            {"trained": True},
            {"agents": 0},
        )
    ]

    async def find(request: FindThings, call: Call) -> ThingsFound:
        return ThingsFound(
            things=(FoundThing(name="shop"), FoundThing(name="desk")), total=2, revision=1
        )

    async def status(request: RouterStatus, call: Call) -> RouterState:
        return states.pop(0)

    async with Bus(MemoryTransport(MemoryBroker()), tenant="t", instance="i") as bus:
        await bus.serve("registry", [route(FIND_THINGS, find)])
        await bus.serve("router", [route(ROUTER_STATUS, status)])

        await until_routable(bus)

    assert [one.agents for one in states] == [0]
