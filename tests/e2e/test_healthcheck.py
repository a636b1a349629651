# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
"""The health check of the containers, as the engine runs it: a program with a status."""

import asyncio
import base64
import http.server
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
from nats.aio.msg import Msg

from lmos_mesh import micro
from lmos_mesh.bus import Bus
from lmos_mesh.nats_config import Binary
from lmos_mesh.service import announce_service
from tests.conftest import NatsMesh, new_name
from tests.integration.test_nats_defects import own_server

PROGRAM = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


async def check(
    what: str, *, nats_url: str = "nats://127.0.0.1:1", **env: str
) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        what,
        env={"LMOS_NATS_URL": nats_url, "LMOS_TENANT": "demo", **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def announce(bus: Bus, name: str, **metadata: str) -> None:
    await micro.announce(
        bus.transport,
        micro.MicroService(
            name=name,
            id=bus.instance,
            version="1.0.0",
            description="",
            endpoints=(),
            metadata=metadata,
        ),
    )


async def test_a_service_that_answers_on_the_bus_is_healthy(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce_service(bus, name, "A service.", ["find"])

        assert await check(f"lmos-{name}", nats_url=nats_mesh.url) == (0, "")


async def test_one_that_nobody_answers_for_is_not(nats_mesh: NatsMesh) -> None:
    status, said = await check("lmos-nobody", nats_url=nats_mesh.url)

    assert status == 1
    assert said == "unhealthy: lmos-nobody has not answered within 2 s\n"


async def test_a_replica_elsewhere_does_not_answer_for_this_host(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce(bus, name, host="elsewhere")
        assert (await check(name, nats_url=nats_mesh.url))[0] == 1

        async with nats_mesh.bus() as here:
            await announce(here, name, host=socket.gethostname())

            assert await check(name, nats_url=nats_mesh.url) == (0, "")


async def test_the_next_server_is_asked_when_one_is_gone(nats_mesh: NatsMesh) -> None:
    async with nats_mesh.bus() as bus:
        name = new_name("s")
        await announce(bus, name)

        assert await check(name, nats_url=f"nats://127.0.0.1:1,{nats_mesh.url}") == (0, "")


async def test_without_a_bus_it_says_so_and_keeps_the_password_to_itself() -> None:
    status, said = await check("lmos-registry", nats_url="nats://eve:secret@127.0.0.1:1")

    assert status == 1
    assert "refused" in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said


async def test_it_logs_in_with_credentials_as_the_processes_do(
    nats_binary: Binary, tmp_path: Path
) -> None:
    minted = Minted()
    credentials = tmp_path / "nats.creds"
    credentials.write_text(minted.credentials)

    async def answer(ping: Msg) -> None:
        await ping.respond(b"{}")

    with own_server(nats_binary, tmp_path, minted.config) as port:
        url = f"nats://127.0.0.1:{port}"
        client = await nats.connect(url, user_credentials=str(credentials))
        await client.subscribe("$SRV.PING.lmos-x", cb=answer)
        await client.flush()
        try:
            said = await check("lmos-x", nats_url=url, LMOS_NATS_CREDENTIALS=str(credentials))
            assert said == (0, "")
            status, said = await check("lmos-x", nats_url=url)
            assert status == 1
            assert "Authorization Violation" in said
            credentials.write_text("nonsense")
            status, said = await check(
                "lmos-x", nats_url=url, LMOS_NATS_CREDENTIALS=str(credentials)
            )
            assert status == 1
            assert f"{credentials} holds no NATS credentials" in said
        finally:
            await client.close()


class Minted:
    """A server's configuration that trusts one operator, and a user of its one account."""

    def __init__(self) -> None:
        operator, account, user = (
            self._key(kind)
            for kind in (
                nkeys.PREFIX_BYTE_OPERATOR,
                nkeys.PREFIX_BYTE_ACCOUNT,
                nkeys.PREFIX_BYTE_USER,
            )
        )
        limits = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1}
        of_operator = self._signed(operator[0], operator[0], {"type": "operator", "version": 2})
        of_account = self._signed(
            operator[0], account[0], {"type": "account", "version": 2, "limits": limits}
        )
        of_user = self._signed(
            account[0],
            user[0],
            {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1},
        )
        name = account[0].public_key.decode()
        self.config = (
            f"operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{{name}: {of_account}}}"
        )
        self.credentials = (
            f"-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user[1]}\n------END USER NKEY SEED------\n"
        )

    @staticmethod
    def _key(kind: int) -> tuple[Any, str]:
        seed = nkeys.encode_seed(os.urandom(32), kind)
        return nkeys.from_seed(bytearray(seed)), seed.decode()

    @staticmethod
    def _signed(issuer: Any, subject: Any, claims: dict[str, Any]) -> str:
        def packed(value: bytes) -> str:
            return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

        def packed_json(value: dict[str, Any]) -> str:
            return packed(json.dumps(value, separators=(",", ":")).encode())

        said = {
            "jti": secrets.token_hex(16),
            "iat": int(time.time()),
            "iss": issuer.public_key.decode(),
            "name": "test",
            "sub": subject.public_key.decode(),
            "nats": claims,
        }
        body = f"{packed_json({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{packed_json(said)}"
        return f"{body}.{packed(issuer.sign(body.encode()))}"


class Ready(http.server.BaseHTTPRequestHandler):
    """Ready at one path, not at others."""

    def do_GET(self) -> None:
        ready = self.path == "/readyz"
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"ok" if ready else b"no router answers")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Generator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_an_http_endpoint_is_healthy_when_it_answers_200(web: str) -> None:
    assert await check(f"{web}/readyz") == (0, "")
    assert await check(f"{web}/other") == (
        1,
        f"unhealthy: {web}/other: 503 no router answers\n",
    )


async def test_an_http_endpoint_that_is_not_there_is_not_healthy() -> None:
    status, said = await check("http://127.0.0.1:1/readyz")

    assert status == 1
    assert said.startswith("unhealthy: http://127.0.0.1:1/readyz: ")
