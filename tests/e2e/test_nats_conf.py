"""NATS in a container behaves as the one that `lmos up` starts: their configurations agree."""

import asyncio
import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmos_mesh.nats_config import DISCONNECT_SUBJECT, Binary, ServerSettings
from lmos_mesh.nats_server import NatsServer
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.transport import Packet
from tests.conftest import free_port

CONF = Path(__file__).parents[2] / "deploy" / "nats.conf"


class Container:
    """nats-server with the container's configuration; only its places are moved here."""

    def __init__(self, port: int, monitor_port: int) -> None:
        self.url = f"nats://127.0.0.1:{port}"
        self.monitor_url = f"http://127.0.0.1:{monitor_port}"


@pytest.fixture
def container(nats_binary: Binary, tmp_path: Path) -> Generator[Container]:
    moved = tmp_path / "nats.conf"
    text = CONF.read_text()
    assert text.count("/data") == 1
    moved.write_text(text.replace("/data", str(tmp_path / "data")))
    server = Container(free_port(), free_port())
    arguments = ["-c", moved, "-a", "127.0.0.1"]
    arguments += ["-p", server.url.rpartition(":")[2], "-m", server.monitor_url.rpartition(":")[2]]
    process = subprocess.Popen(
        [nats_binary.path, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield server
    finally:
        process.terminate()
        process.wait(timeout=10)


async def figures(monitor_url: str) -> dict[str, Any]:
    """What a server says of its configuration, without what may differ."""
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(retries=5), base_url=monitor_url
    ) as http:
        whole = (await http.get("/varz")).json()
        accounts = {
            name: (await http.get("/accountz", params={"acc": name})).json()["account_detail"]
            for name in ("SYS", "MESH")
        }
    jetstream = whole["jetstream"]["config"]
    return {
        **{
            name: whole[name]
            for name in ("max_payload", "ping_interval", "ping_max", "write_deadline")
        },
        "server_name": whole["server_name"],
        "system_account": whole["system_account"],
        "max_memory": jetstream["max_memory"],
        "max_storage": jetstream["max_storage"],
        "jetstream": {name: one["jetstream_enabled"] for name, one in accounts.items()},
        "exports": sorted(map(json.dumps, accounts["SYS"]["exports"])),
        "imports": sorted(map(json.dumps, accounts["MESH"]["imports"])),
    }


async def test_the_container_and_lmos_up_configure_their_servers_alike(
    container: Container, nats_binary: Binary, tmp_path: Path
) -> None:
    embedded = ServerSettings(data_dir=tmp_path / "embedded", port=0, monitor_port=free_port())

    async with NatsServer(embedded, binary=nats_binary):
        ours = await figures(f"http://127.0.0.1:{embedded.monitor_port}")
    theirs = await figures(container.monitor_url)

    assert theirs == ours
    assert DISCONNECT_SUBJECT in "".join(theirs["imports"])


async def test_the_container_tells_the_mesh_at_once_who_has_gone(container: Container) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def hear(packet: Packet) -> None:
        heard.put_nowait(json.loads(packet.payload)["client"]["name"])

    async with NatsTransport.connect(
        container.url, name="lmos/demo/watcher", inbox="_INBOX.demo.watcher"
    ) as watcher:
        await watcher.subscribe(DISCONNECT_SUBJECT, hear)
        async with NatsTransport.connect(
            container.url, name="lmos/demo/goer", inbox="_INBOX.demo.goer"
        ):
            pass

        async with asyncio.timeout(20):
            gone = await heard.get()

    assert gone == "lmos/demo/goer"
