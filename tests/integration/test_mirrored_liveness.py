"""Of another mesh's agents it is known whether they are there."""

from pathlib import Path

from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    FIND_THINGS,
    REGISTER,
    REGISTRY_STATUS,
    FindThings,
    PeerState,
    Register,
    RegistryStatus,
)
from tests.conftest import StartServer
from tests.integration.processes import until
from tests.integration.test_federation import LAMP, SOON_S, cities, record

BILLING = """
from lmos_mesh import Agent

agent = Agent("billing", description="Answers questions about bills.")

@agent.capability(examples=["show my bill"])
async def view_bill(question: str) -> str:
    return "39.99"

agent.run()
"""


async def is_live(mesh: Mesh, name: str, live: bool | None) -> bool:
    wanted = FindThings(name=name, live=None)
    found = (await mesh.bus.call(FIND_THINGS, wanted)).things
    return len(found) == 1 and found[0].live is live


async def names(mesh: Mesh, live: bool | None) -> set[str]:
    found = await mesh.bus.call(FIND_THINGS, FindThings(live=live))
    return {one.name for one in found.things}


async def test_a_mirrored_agent_is_live_as_long_as_it_is(
    start_nats: StartServer, tmp_path: Path
) -> None:
    async with cities(start_nats, tmp_path, "east", "west") as (east, west):
        east.start(replicas=1)
        await east.open_directory()
        # Far longer than this takes: what is known comes by events.
        west.deployment.service(
            "registry",
            LMOS_REGISTRY_PEERS=f"east={east.url}",
            LMOS_REGISTRY_PEER_STALE_S="120",
        )
        async with east.deployment.client() as in_east, west.deployment.client() as in_west:
            await in_east.bus.call(REGISTER, Register(thing=record("gone")))
            await in_east.bus.call(REGISTER, Register(description=LAMP))
            agent = east.deployment.agent(BILLING, name="billing")

            await until(is_live, in_west, "billing@east", True, within_s=SOON_S)
            await until(is_live, in_west, "gone@east", False, within_s=SOON_S)
            await until(is_live, in_west, LAMP["id"], None, within_s=SOON_S)
            assert await names(in_west, True) == {"billing@east"}
            assert await names(in_west, False) == {"gone@east", LAMP["id"]}

            agent.kill()
            await until(is_live, in_west, "billing@east", False, within_s=SOON_S)
            east.deployment.agent(BILLING, name="billing")
            await until(is_live, in_west, "billing@east", True, within_s=SOON_S)


async def peer_of(mesh: Mesh) -> PeerState:
    (peer,) = (await mesh.bus.call(REGISTRY_STATUS, RegistryStatus())).peers
    return peer


async def answers(mesh: Mesh, does: bool) -> bool:
    return (await peer_of(mesh)).answers is does


async def test_any_replica_tells_how_a_peer_is(start_nats: StartServer, tmp_path: Path) -> None:
    async with cities(start_nats, tmp_path, "east", "west") as (east, west):
        east.start(replicas=1)
        west.start(east, replicas=2)
        async with east.deployment.client() as in_east, west.deployment.client() as in_west:
            await until(answers, in_west, False, within_s=3 * SOON_S)
            assert (await peer_of(in_west)).heard_at == 0
            await in_east.bus.call(REGISTER, Register(thing=record("x")))

            await east.open_directory()
            await until(answers, in_west, True, within_s=3 * SOON_S)
            told = [await peer_of(in_west) for _ in range(8)]
            assert {(one.origin, one.url, one.things) for one in told} == {("east", east.url, 1)}
            assert all(one.heard_at > 0 and not one.fault for one in told)

            east.close_directory()
            await until(answers, in_west, False, within_s=3 * SOON_S)
            assert "cannot be read" in (await peer_of(in_west)).fault
