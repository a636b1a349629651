"""Two meshes on one machine that find each other's agents, and lose them with each other."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.description import describe, description_faults
from lmos_mesh.errors import AgentNotFound, Conflict, NobodyAnswers, SettingsError
from lmos_mesh.mesh import Mesh
from lmos_mesh.messages import (
    DEREGISTER,
    FIND_THINGS,
    GET_THING,
    REGISTER,
    Deregister,
    FindThings,
    FoundThing,
    GetThing,
    Register,
)
from lmos_mesh.thing_faults import thing_from
from lmos_mesh_registry.federation import Peer, peers_in
from lmos_mesh_registry.mirroring import mirrored
from tests.conftest import StartServer, free_port
from tests.integration.processes import Deployment, until

SOON_S = 25.0
STALE_S = 5.0

LAMP: dict[str, Any] = {
    "@context": "https://www.w3.org/2022/wot/td/v1.1",
    "id": "urn:uuid:0804d572-cce8-422a-bb7c-4412fcd56f06",
    "title": "A lamp",
    "securityDefinitions": {"basic_sc": {"scheme": "basic", "in": "header"}},
    "security": "basic_sc",
    "properties": {"on": {"type": "boolean", "forms": [{"href": "https://lamp.example/on"}]}},
}


def record(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "capabilities": [{"id": "act", "version": "1.0.0"}], **more}


class City:
    """A mesh of processes of its own, with a directory for others."""

    def __init__(self, url: str, directory: Path, name: str, port: int) -> None:
        self.name = name
        self.port = port
        directory.mkdir()
        self.deployment = Deployment(url, directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *peers: "City", replicas: int = 2) -> None:
        settings = {
            "LMOS_REGISTRY_MESH": self.name,
            "LMOS_REGISTRY_PEERS": ",".join(f"{one.name}={one.url}" for one in peers),
            "LMOS_REGISTRY_PEER_STALE_S": str(STALE_S),
        }
        self.deployment.services(*["registry"] * replicas, **settings)

    async def open_directory(self) -> None:
        await self.deployment.start("http", LMOS_HTTP_PORT=str(self.port)).ready()

    def close_directory(self) -> None:
        for one in self.deployment.processes:
            if one.name == "http" and one.alive:
                one.kill()


@asynccontextmanager
async def cities(
    start_nats: StartServer, directory: Path, *names: str
) -> AsyncGenerator[list[City]]:
    made: list[City] = []
    try:
        for name in names:
            server = await start_nats()
            made.append(City(server.url, directory / name, name, free_port()))
        yield made
    finally:
        for one in made:
            one.deployment.stop()


async def things(mesh: Mesh, **more: Any) -> dict[str, FoundThing]:
    wanted = FindThings(live=None, descriptions=True, **more)
    return {one.name: one for one in (await mesh.bus.call(FIND_THINGS, wanted)).things}


async def are(mesh: Mesh, *names: str) -> bool:
    return set(await things(mesh)) == set(names)


async def test_two_meshes_find_each_others_agents(start_nats: StartServer, tmp_path: Path) -> None:
    async with cities(start_nats, tmp_path, "east", "west") as (east, west):
        east.start(west)
        west.start(east)
        await east.open_directory()
        await west.open_directory()
        async with east.deployment.client() as in_east, west.deployment.client() as in_west:
            for mesh in (in_east, in_west):
                await mesh.bus.call(REGISTER, Register(thing=record("billing")))
            await in_east.bus.call(REGISTER, Register(thing=record("weather", version="1.0.0")))
            await in_east.bus.call(REGISTER, Register(description=LAMP))

            await until(
                are, in_west, "billing", "billing@east", "weather@east", LAMP["id"], within_s=SOON_S
            )
            # What is mirrored there comes back to nobody.
            await until(
                are, in_east, "billing", "billing@west", "weather", LAMP["id"], within_s=SOON_S
            )

            found = await things(in_west)
            weather = found["weather@east"]
            assert (weather.origin, weather.external) == ("east", True)
            assert weather.id == "urn:lmos-mesh:demo:weather:stable"
            assert weather.description is not None
            assert description_faults(weather.description) == []
            assert "nats:" not in json.dumps(weather.description.get("actions"))
            assert found[LAMP["id"]].origin == "east"
            assert found["billing"].origin == ""
            assert len({one.id for one in found.values()}) == len(found)
            by_id = await in_west.bus.call(GET_THING, GetThing(id=weather.id))
            assert by_id.name == "weather@east"

            # It is known here, and reached there: whoever invokes it is told so.
            with pytest.raises(NobodyAnswers, match=r"'east' and is not reached over this bus"):
                await in_west.invoke(weather, "act")

            # Changes and removals are followed.
            await in_east.bus.call(REGISTER, Register(thing=record("weather", version="2.0.0")))
            await until(is_version, in_west, "weather@east", "2.0.0", within_s=SOON_S)
            await in_east.bus.call(DEREGISTER, Deregister(name="weather"))
            await until(are, in_west, "billing", "billing@east", LAMP["id"], within_s=SOON_S)

            with pytest.raises(Conflict, match="'east'"):
                await in_west.bus.call(REGISTER, Register(thing=record("billing@east")))
            with pytest.raises(Conflict, match="'east'"):
                await in_west.bus.call(DEREGISTER, Deregister(name="billing@east"))

            # It stays as long as it is there, and goes with its mesh.
            await asyncio.sleep(STALE_S + 1)
            assert await are(in_west, "billing", "billing@east", LAMP["id"])
            logs = [one for one in west.deployment.processes if one.name.startswith("registry")]
            lost = sum(len(one.entries("mesh east does not answer")) for one in logs)
            east.close_directory()
            await until(are, in_west, "billing", within_s=SOON_S)
            # That it is gone is said, once by each replica that mirrors.
            await asyncio.sleep(STALE_S)
            assert lost < sum(len(one.entries("mesh east does not answer")) for one in logs)
            assert all(len(one.entries("broke off")) <= 3 for one in logs), logs[0].log()
            await east.open_directory()
            await until(are, in_west, "billing", "billing@east", LAMP["id"], within_s=SOON_S)


async def is_version(mesh: Mesh, name: str, version: str) -> bool:
    return (await things(mesh))[name].version == version


async def test_a_chain_of_meshes_passes_nothing_on(start_nats: StartServer, tmp_path: Path) -> None:
    async with cities(start_nats, tmp_path, "a", "b", "c") as (a, b, c):
        for one, next in ((a, b), (b, c), (c, a)):
            one.start(next, replicas=1)
            await one.open_directory()
        async with a.deployment.client() as mesh:
            await mesh.bus.call(REGISTER, Register(thing=record("x")))
        async with (
            a.deployment.client() as in_a,
            b.deployment.client() as in_b,
            c.deployment.client() as in_c,
        ):
            await until(are, in_c, "x@a", within_s=SOON_S)
            await asyncio.sleep(STALE_S)
            assert await are(in_a, "x")
            assert await are(in_b)


async def test_the_replica_that_mirrors_is_followed_by_another(
    start_nats: StartServer, tmp_path: Path
) -> None:
    async with cities(start_nats, tmp_path, "east", "west") as (east, west):
        east.start(replicas=1)
        await east.open_directory()
        west.start(east, replicas=2)
        async with east.deployment.client() as in_east, west.deployment.client() as in_west:
            await in_east.bus.call(REGISTER, Register(thing=record("x")))
            await until(are, in_west, "x@east", within_s=SOON_S)
            west.deployment.processes[0].kill()
            await in_east.bus.call(REGISTER, Register(thing=record("y")))
            await until(are, in_west, "x@east", "y@east", within_s=2 * SOON_S)
            await asyncio.sleep(STALE_S + 1)
            assert await are(in_west, "x@east", "y@east")


async def test_an_agent_of_ours_takes_its_name_and_its_id_whatever_is_mirrored(
    start_nats: StartServer, tmp_path: Path
) -> None:
    async with cities(start_nats, tmp_path, "east", "west") as (east, west):
        east.start(replicas=1)
        await east.open_directory()
        west.start(east, replicas=1)
        async with east.deployment.client() as in_east, west.deployment.client() as in_west:
            await in_east.bus.call(REGISTER, Register(thing=record("billing")))
            await until(are, in_west, "billing@east", within_s=SOON_S)

            await in_west.bus.call(REGISTER, Register(thing=record("billing")))

            async def apart() -> bool:
                found = await things(in_west)
                return len({one.id for one in found.values()}) == len(found) == 2

            await until(apart, within_s=SOON_S)
            assert (await things(in_west))["billing"].id == "urn:lmos-mesh:demo:billing:stable"
            with pytest.raises(AgentNotFound):
                await in_west.bus.call(GET_THING, GetThing(name="x"))


# -- a directory that is not ours --


class Directory:
    """A directory that says what it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = request.split()[1]
        self.asked.append(path)
        body = self.answers.get(path.partition("?")[0])
        status = "200 OK" if body is not None else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + (body or b"{}"))
        writer.close()


async def test_a_hostile_directory_gives_nothing_that_is_not_valid(
    start_nats: StartServer, tmp_path: Path
) -> None:
    directory = Directory()
    good = describe(thing_from(record("good")))
    foreign_actions = {
        "act": {"forms": [{"href": "https://x.example/act"}, {"href": "nats:lmos.demo.x"}]}
    }
    good["actions"] = foreign_actions
    directory.answers["/things"] = json.dumps(
        [
            good,
            {**describe(thing_from(record("passed-on"))), "mesh:origin": "third"},
            {**good, "id": "urn:lmos-mesh:demo:bad:stable", "title": 7},
            {"id": "urn:x:1"},
            {"id": "urn:x:2", "a": [[[[]]]]},
            7,
            None,
            [],
        ]
    ).encode()
    async with await asyncio.start_server(directory.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        nats = await start_nats()
        deployment = Deployment(nats.url, tmp_path)
        try:
            process = await deployment.start(
                "registry",
                LMOS_REGISTRY_PEERS=f"http://127.0.0.1:{port}",
                LMOS_REGISTRY_PEER_STALE_S=str(STALE_S),
            ).ready()
            name = f"good@127.0.0.1:{port}"
            async with deployment.client() as mesh:
                await until(are, mesh, name, within_s=SOON_S)
                found = (await things(mesh))[name]
                assert found.description is not None
                forms = found.description["actions"]["act"]["forms"]
                assert [form["href"] for form in forms] == ["https://x.example/act"]

                for body in (b"{", b'{"a": 1}', b"[" * 100_000, b"\xff\xfe", b""):
                    directory.answers["/things"] = body
                    asked = len(directory.asked)

                    async def is_asked(before: int = asked) -> bool:
                        return len(directory.asked) > before + 1

                    await until(is_asked, within_s=SOON_S)
                await until(are, mesh, within_s=SOON_S)
            assert process.alive
            assert not [one for one in deployment.complaints() if "mesh" not in one]
        finally:
            deployment.stop()


# -- what is decided --


def test_peers_are_urls_with_or_without_a_name() -> None:
    assert peers_in(" east=https://a.example:1/ ,http://b.example:8420,", own="west") == [
        Peer(url="https://a.example:1", origin="east"),
        Peer(url="http://b.example:8420", origin="b.example:8420"),
    ]
    assert peers_in("", own="") == []


@pytest.mark.parametrize(
    "setting", ["east", "ftp://a", "http://", "a=http://x,a=http://y", "west=http://x"]
)
def test_peers_that_cannot_be_are_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match="LMOS_REGISTRY_PEERS"):
        peers_in(setting, own="west")


def test_a_name_that_is_long_already_stays_within_its_limit() -> None:
    theirs = describe(thing_from(record("ä" * 64)))

    entry = mirrored(theirs, origin="east", tenant="demo", taken=lambda _: False)

    assert entry is not None
    assert entry[0].name.endswith("@east")
    assert len(entry[0].name.encode()) <= 128
    assert theirs == describe(thing_from(record("ä" * 64)))


def test_what_a_mesh_mirrors_is_not_mirrored_on() -> None:
    theirs = {**describe(thing_from(record("x"))), "mesh:origin": "third"}

    assert mirrored(theirs, origin="east", tenant="demo", taken=lambda _: False) is None
