"""`lmos up`: a mesh starts, heals itself, says what is going on, and leaves nothing behind."""

import os
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from lmos_mesh.mesh_state import MeshPlace, ProcessRecord
from tests.conftest import StartServer
from tests.integration.cli.conftest import (
    LIGHT,
    LMOS,
    Lmos,
    Mesh,
    StartLmos,
    StartMesh,
    asked_by_commands,
    environ_of,
)


def all_gone(processes: Iterable[psutil.Process], *, within_s: float) -> bool:
    _, alive = psutil.wait_procs(list(processes), timeout=within_s)
    return not alive


def test_a_mesh_is_up_when_everything_answers_and_ctrl_c_leaves_nothing(
    start_mesh: StartMesh, lmos: Lmos
) -> None:
    mesh = start_mesh()
    record = mesh.record
    mode = stat.S_IMODE((mesh.home / "default" / "mesh.json").stat().st_mode)
    processes = mesh.processes()
    with urllib.request.urlopen(f"{record.http_url}/readyz", timeout=5) as reply:
        ready = reply.status
    doctor = lmos("doctor", environ=mesh.environ)

    mesh.program.interrupt()
    code = mesh.program.end()

    assert mesh.up["failing"] == []
    assert [one.name for one in record.processes] == [
        "nats",
        "operator",
        "registry",
        "router",
        "runtime",
        "http",
    ]
    assert record.ready
    assert mode == 0o600
    assert ready == 200
    assert doctor.returncode == 0, doctor.stdout
    assert code == 0, mesh.program.text
    assert all_gone(processes, within_s=10.0)
    assert not (mesh.home / "default" / "mesh.json").exists()


def test_the_screen_says_where_everything_is_and_what_to_try(start_lmos: StartLmos) -> None:
    program = start_lmos("up", "--nats-port", "0", "--http-port", "0", "--name", "seen")
    program.until("Ctrl-C stops everything")
    program.process.send_signal(signal.SIGTERM)

    assert program.end() == 0, program.text
    for part in ("nats://127.0.0.1:", "http://127.0.0.1:", "seen/logs", "lmos ask --mesh seen"):
        assert part in program.text
    assert program.lines[-1].endswith("everything is stopped")


def test_a_service_that_is_killed_is_named_and_started_again(
    start_mesh: StartMesh, lmos: Lmos
) -> None:
    mesh = start_mesh(*LIGHT)
    before = mesh.pid("registry")

    os.kill(before, signal.SIGKILL)
    died = mesh.event("died")
    serving = mesh.event("serving")

    assert (died["name"], died["how"], died["looping"]) == ("registry", "was killed by SIGKILL", False)  # fmt: skip # noqa: E501
    assert (serving["name"], serving["again"]) == ("registry", True)
    assert mesh.pid("registry") not in (before, None)
    assert lmos("agents", "--json", environ=mesh.environ).returncode == 0


def test_the_nats_server_that_is_killed_is_back_where_it_was(
    start_mesh: StartMesh, lmos: Lmos
) -> None:
    mesh = start_mesh(*LIGHT)
    url = mesh.record.nats_url

    os.kill(mesh.pid("nats"), signal.SIGKILL)
    died = mesh.event("died")
    serving = mesh.event("serving", name="nats")

    assert died["name"] == "nats"
    assert serving["again"]
    assert mesh.record.nats_url == url
    assert lmos("agents", environ=mesh.environ).returncode == 0


async def test_a_command_says_that_the_bus_is_lost_and_that_it_waits(
    start_mesh: StartMesh, start_lmos: StartLmos
) -> None:
    mesh = start_mesh(*LIGHT)
    async with asked_by_commands(mesh, "registry.find") as asked:
        watching = start_lmos("agents", "--watch")
        await asked()

    os.kill(mesh.pid("nats"), signal.SIGKILL)

    assert watching.until("the bus is lost") == "the bus is lost; waiting for it"
    watching.until("the bus is back")


def test_what_a_killed_lmos_up_leaves_behind_dies_and_the_mesh_starts_anew(
    start_mesh: StartMesh, home: Path
) -> None:
    mesh = start_mesh(*LIGHT)
    processes = mesh.processes()

    mesh.program.process.kill()

    assert all_gone(processes, within_s=5.0)
    place = MeshPlace("default", home / "default")
    assert place.read() is not None, "nobody was left to remove its file"
    assert not place.running()
    assert start_mesh(*LIGHT).up["failing"] == []


def test_a_mesh_is_not_started_twice(start_mesh: StartMesh, lmos: Lmos) -> None:
    mesh = start_mesh(*LIGHT)

    again = lmos("up", environ=mesh.environ)

    assert again.returncode == 1
    assert f"runs already, as process {mesh.program.process.pid}" in again.stderr
    assert "lmos down" in again.stderr
    assert lmos("agents", environ=mesh.environ).returncode == 0, "the first one is unharmed"


def test_two_meshes_run_side_by_side_and_each_is_found_by_its_name(
    start_mesh: StartMesh, lmos: Lmos
) -> None:
    one, two = start_mesh("--name", "one", *LIGHT), start_mesh("--name", "two", *LIGHT)

    either = lmos("agents", environ=one.environ)
    chosen = lmos("agents", "--mesh", "two", "--json", environ=one.environ)
    doctor = lmos("doctor", environ=one.environ)
    stopped = lmos("down", "--name", "one", environ=one.environ)
    left = lmos("agents", "--json", environ=one.environ)

    assert either.returncode == 1
    assert "2 meshes run here: one, two" in either.stderr
    assert chosen.returncode == 0
    assert stopped.returncode == 0, stopped.stderr
    assert one.program.end() == 0
    assert left.returncode == 0, "only `two` is left"
    assert doctor.returncode == 0, "that there is no router was asked for"
    assert "! router" in doctor.stdout
    assert "texts are searched by words" in " ".join(doctor.stdout.split())
    assert "one, " in doctor.stdout
    assert "two, " in doctor.stdout
    assert "meshes run here" not in doctor.stdout
    assert "is taken" not in doctor.stdout
    assert two.program.process.poll() is None


def test_a_port_that_is_given_and_taken_is_one_sentence(lmos: Lmos) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        nats = lmos("up", "--nats-port", port, "--http-port", "0")
        http = lmos("up", "--nats-port", "0", "--http-port", port)

    for done, what in ((nats, f"port {port} of 127.0.0.1"), (http, f"port {port} for HTTP")):
        assert done.returncode == 1
        assert f"{what} is taken by process {os.getpid()}" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--name", "a b"], {}, "cannot be the name of a mesh"),
        (["--replicas", "regsitry=2"], {}, "no service is called 'regsitry'"),
        (["--replicas", "registry"], {}, "write it as registry=2"),
        ([], {"LMOS_LOG_LEVEL": "loud"}, "LMOS_LOG_LEVEL='loud'"),
        ([], {"LMOS_HTTP_PORT": "x"}, "LMOS_HTTP_PORT='x' is no port"),
        (["--nats-port", "0"], {"LMOS_NATS_URL": "nats://127.0.0.1:1"}, "give only one of them"),
        (
            [],
            {"LMOS_NATS_URL": "nats://127.0.0.1:1", "LMOS_CONNECT_TIMEOUT_S": "0.5"},
            "no NATS server answers",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_1(
    lmos: Lmos, home: Path, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    where = {**os.environ, "LMOS_STATE_DIR": str(home), **environ}

    done = lmos("up", *arguments, environ=where)

    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (home / "default" / "mesh.json").exists()


def test_a_service_that_cannot_start_is_named_with_its_reason_and_the_rest_serves(
    start_mesh: StartMesh, lmos: Lmos
) -> None:
    mesh = start_mesh("--no-http", LMOS_ROUTER_THRESHOLD="7")
    died = mesh.so_far("died")
    assert len(died) == 1, "what cannot heal is not tried again"
    assert died[-1]["given_up"]
    doctor = lmos("doctor", environ=mesh.environ)

    assert mesh.up["failing"] == ["router"]
    assert {one["name"] for one in died} == {"router"}
    assert "bad settings: LMOS_ROUTER_THRESHOLD='7'" in died[-1]["said"]
    assert doctor.returncode == 1
    assert "router does not run" in doctor.stdout
    assert "lmos logs router" in doctor.stdout

    mesh.program.interrupt()
    assert mesh.program.end() == 0


def test_the_screen_says_once_that_a_service_has_bad_settings(start_lmos: StartLmos) -> None:
    program = start_lmos(
        "up", "--nats-port", "0", "--no-http", "--replicas", "runtime=0", LMOS_ROUTER_THRESHOLD="7"
    )
    program.until("it is not started again")
    program.until("Ctrl-C stops everything")
    program.interrupt()

    assert program.end() == 0
    assert program.text.count("bad settings: LMOS_ROUTER_THRESHOLD='7'") == 1, program.text
    assert "router did not start" in program.text
    assert "trying goes on" not in program.text


def test_the_screen_says_once_that_a_service_loops(start_lmos: StartLmos, tmp_path: Path) -> None:
    """What is no matter of settings may be mended meanwhile."""
    broken = tmp_path / "lmos_mesh_router"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('out of order')")
    arguments = ["up", "--nats-port", "0", "--no-http", "--replicas", "runtime=0"]
    program = start_lmos(*arguments, PYTHONPATH=str(tmp_path))
    program.until("5 times in a row")
    program.until("Ctrl-C stops everything")
    program.interrupt()

    assert program.end() == 0
    assert program.text.count("RuntimeError: out of order") == 2, program.text
    assert "router did not start; trying goes on" in program.text


def test_a_second_ctrl_c_ends_what_does_not_want_to_end(start_mesh: StartMesh) -> None:
    mesh = start_mesh(*LIGHT, LMOS_DRAIN_TIMEOUT_S="60")
    processes = mesh.processes()
    os.kill(mesh.pid("registry"), signal.SIGSTOP)

    mesh.program.interrupt()
    mesh.event("stopping")
    began = time.monotonic()
    mesh.program.interrupt()

    assert mesh.program.end() == 130
    assert time.monotonic() - began < 30
    assert all_gone(processes, within_s=10.0)


def test_a_process_that_does_not_end_in_time_is_killed_and_named(start_mesh: StartMesh) -> None:
    mesh = start_mesh(*LIGHT, LMOS_DRAIN_TIMEOUT_S="0.1")
    processes = mesh.processes()
    os.kill(mesh.pid("registry"), signal.SIGSTOP)

    mesh.program.interrupt()
    stopped = mesh.event("stopped", name="registry")

    assert stopped["killed"]
    assert mesh.program.end() == 0
    assert all_gone(processes, within_s=10.0)


def test_replicas_are_processes_of_their_own(start_mesh: StartMesh) -> None:
    mesh = start_mesh("--no-http", "--replicas", "registry=2,router=0")

    names = [one.name for one in mesh.record.processes]

    assert names == ["nats", "operator", "registry", "registry-2", "runtime"]
    assert mesh.pid("registry") != mesh.pid("registry-2")
    assert mesh.record.processes[3].log.stat().st_size > 0


async def test_a_server_that_is_there_already_is_used_and_left_alone(
    start_mesh: StartMesh, start_nats: StartServer
) -> None:
    server = await start_nats()

    mesh: Mesh = start_mesh(*LIGHT, LMOS_NATS_URL=server.url)
    record = mesh.record
    mesh.program.interrupt()

    assert record.nats_url == server.url
    assert "nats" not in [one.name for one in record.processes]
    assert mesh.program.end() == 0
    assert server.alive()


def test_the_logs_of_the_last_run_are_kept_beside_those_of_this_one(
    start_mesh: StartMesh, home: Path
) -> None:
    for _ in range(2):
        mesh = start_mesh(*LIGHT)
        mesh.program.interrupt()
        assert mesh.program.end() == 0

    logs = home / "default" / "logs"
    assert (logs / "registry.log").read_text().count("registry is ready") == 1
    assert (logs / "registry.log.1").read_text().count("registry is ready") == 1


def test_a_mesh_goes_on_when_nobody_reads_what_it_says_any_more(home: Path) -> None:
    place = MeshPlace("default", home / "default")
    with subprocess.Popen(
        [*LMOS, "up", "--json", "--nats-port", "0", *LIGHT],
        stdout=subprocess.PIPE,
        env=environ_of(home),
        text=True,
    ) as up:
        assert up.stdout is not None
        assert any('"event": "up"' in line for line in up.stdout)
        up.stdout.close()
        before = registry_of(place)
        assert before.pid is not None

        os.kill(before.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while not (found := registry_of(place)).serving or found.pid == before.pid:
            assert time.monotonic() < until, "the registry is not back"
            time.sleep(0.1)
        up.send_signal(signal.SIGTERM)

        assert up.wait(20) == 0
    assert found.pid is not None
    assert not psutil.pid_exists(found.pid)


def registry_of(place: MeshPlace) -> ProcessRecord:
    record = place.read()
    assert record is not None
    return next(one for one in record.processes if one.name == "registry")
