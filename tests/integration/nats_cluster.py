"""A NATS cluster of three servers, each of which a test may kill and start again."""

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lmos_mesh.nats_config import Binary, ServerSettings, config
from lmos_mesh.nats_transport import NatsTransport
from lmos_mesh.tether import tethered
from tests.conftest import free_port

UP_S = 30.0
_SERVERS = 3


class NatsCluster:
    """Three servers with JetStream that keep what is asked of them together.

    Args:
        binary: The program.
        directory: Where they keep it.
        alive: How many of them are started.
    """

    def __init__(self, binary: Binary, directory: Path, *, alive: int = _SERVERS) -> None:
        self.names = tuple(f"n{number}" for number in range(_SERVERS))
        self._binary = binary
        self._directory = directory
        self._ports = {name: free_port() for name in self.names}
        self._routes = [free_port() for _ in self.names]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for number, name in enumerate(self.names):
            self._configure(name, self._routes[number])
        for name in self.names[:alive]:
            self.start(name)

    @property
    def url(self) -> str:
        """All of them, as a client is told."""
        return ",".join(self.url_of(name) for name in self.names)

    def url_of(self, name: str) -> str:
        """One of them."""
        return f"nats://127.0.0.1:{self._ports[name]}"

    def start(self, name: str) -> None:
        """Start a server, again if it was killed; it is not ready yet."""
        log = (self._directory / f"{name}.out").open("ab")
        with log:
            self._processes[name] = subprocess.Popen(
                tethered(
                    [str(self._binary.path), "-c", str(self._directory / f"{name}.conf")],
                    signal.SIGKILL,
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """End a server at once."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self) -> None:
        """End all."""
        for name in self._processes:
            self.kill(name)

    async def ready(self) -> None:
        """Wait until the servers that are up have agreed who leads them."""
        until = time.monotonic() + UP_S
        async with NatsTransport.connect(self.url, name="cluster", timeout_s=UP_S) as transport:
            while True:
                # Nobody leads: nobody answers, or it is said.
                answer = await api(transport, "STREAM.NAMES")
                if "error" not in answer:
                    return
                assert time.monotonic() < until, answer
                await asyncio.sleep(0.05)

    def _configure(self, name: str, route: int) -> None:
        settings = ServerSettings(
            data_dir=self._directory / name, name=name, log_file=self._directory / f"{name}.log"
        )
        settings.data_dir.mkdir(parents=True)
        told: dict[str, Any] = json.loads(
            config(settings, port=self._ports[name], password="x").partition("\n")[2]
        )
        told["server_tags"] = [f"zone:{'east' if name == self.names[0] else 'west'}"]
        told["cluster"] = {
            "name": "mesh",
            "host": "127.0.0.1",
            "port": route,
            "routes": [f"nats://127.0.0.1:{one}" for one in self._routes],
        }
        (self._directory / f"{name}.conf").write_text(json.dumps(told))


async def api(
    transport: NatsTransport, operation: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What JetStream answers, an error included; that nobody answers is one."""
    payload = json.dumps(body).encode() if body is not None else b""
    try:
        packet = await transport.request(f"$JS.API.{operation}", payload, timeout_s=1.0)
    except Exception as exc:  # to be asked again
        return {"error": str(exc)}
    return json.loads(packet.payload)


async def stream(transport: NatsTransport, name: str) -> dict[str, Any]:
    """What JetStream says of a stream."""
    return await api(transport, f"STREAM.INFO.{name}")
