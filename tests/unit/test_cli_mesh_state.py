"""What `lmos up` leaves for the other commands: who runs where, and who no longer does."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lmos_mesh.cli.up import plan_of
from lmos_mesh.errors import Conflict, NotFound, SettingsError
from lmos_mesh.mesh_state import (
    MeshPlace,
    MeshRecord,
    find_mesh,
    known_meshes,
    place_of,
    running_meshes,
    state_dir,
)
from lmos_mesh.ports import claim_port, is_free


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMOS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def record_of(place: MeshPlace) -> MeshRecord:
    return MeshRecord(
        name=place.name,
        pid=os.getpid(),
        version="0.1.0",
        started=1.0,
        ready=True,
        tenant="demo",
        nats_url="nats://127.0.0.1:4222",
        http_url=None,
        log_dir=place.log_dir,
        processes=(),
    )


def test_the_state_directory_is_the_named_one_then_xdg_then_the_home() -> None:
    assert state_dir({"LMOS_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert state_dir({"XDG_STATE_HOME": "/b"}) == Path("/b/lmos-mesh")
    assert state_dir({"XDG_STATE_HOME": "relative"}).parts[-3:] == (".local", "state", "lmos-mesh")


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", "a" * 65, "ä", "a/b"])
def test_a_name_that_no_directory_should_have_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a mesh"):
        place_of(name)


def test_a_mesh_runs_while_it_is_claimed() -> None:
    place = place_of("one")

    assert not place.running()
    with place.claim():
        place.write(record_of(place))
        assert place.running()
        assert find_mesh("one") == find_mesh(None) == record_of(place)
    assert not place.running()
    assert not place.record_path.exists()


def test_nobody_else_may_read_where_it_runs() -> None:
    place = place_of("one")
    with place.claim():
        place.write(record_of(place))
        place.write(record_of(place))
        mode = stat.S_IMODE(place.record_path.stat().st_mode)
        left = [path.name for path in place.directory.iterdir() if path.is_file()]

    assert mode == 0o600
    assert sorted(left) == ["mesh.json", "mesh.lock"]


def test_a_mesh_that_runs_is_not_started_twice() -> None:
    with place_of("one").claim():
        place_of("one").write(record_of(place_of("one")))
        with (
            pytest.raises(Conflict, match=f"runs already, as process {os.getpid()}"),
            place_of("one").claim(),
        ):
            pass


HOLD = """
import sys
from lmos_mesh.mesh_state import MeshRecord, place_of
record = MeshRecord.model_validate_json(sys.argv[1])
with place_of(record.name).claim():
    place_of(record.name).write(record)
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_mesh_that_was_killed_does_not_run_although_its_file_is_there() -> None:
    record = record_of(place_of("one")).model_dump_json()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, record], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        seen_running = place_of("one").running()
        process.kill()

    assert seen_running
    assert place_of("one").read() is not None
    assert not place_of("one").running()
    assert running_meshes() == []
    with place_of("one").claim():
        assert place_of("one").read() is None, "what it left is gone"


def test_without_a_mesh_the_sentence_says_how_to_start_one() -> None:
    with pytest.raises(NotFound, match=r"no mesh runs here.*lmos up"):
        find_mesh(None)
    with pytest.raises(NotFound, match=r"mesh 'two' does not run.*lmos up --name two"):
        find_mesh("two")


def test_of_several_meshes_one_must_be_named() -> None:
    with place_of("one").claim(), place_of("two").claim():
        for name in ("one", "two"):
            place_of(name).write(record_of(place_of(name)))
        with pytest.raises(NotFound, match=r"2 meshes run here: one, two.*--mesh NAME"):
            find_mesh(None)
        assert find_mesh("two").name == "two"
        with pytest.raises(NotFound, match="mesh 'three' does not run; one, two do"):
            find_mesh("three")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "one"}'])
def test_a_file_that_cannot_be_read_is_no_mesh(text: str) -> None:
    place = place_of("one")
    with place.claim():
        place.record_path.write_text(text)
        assert running_meshes() == []


def test_what_is_no_mesh_is_not_listed(home: Path) -> None:
    (home / "one").mkdir(parents=True)
    (home / "not a mesh").mkdir()
    (home / "file").write_text("")

    assert [one.name for one in known_meshes()] == ["one"]


def test_a_state_directory_that_cannot_be_written_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file where the folder should be")

    with (
        pytest.raises(SettingsError, match=r"cannot write to the state directory.*LMOS_STATE_DIR"),
        place_of("one").claim(),
    ):
        pass
    assert known_meshes() == []


def number_of(given: int | None, *, first: int = 1) -> int:
    claimed = claim_port("127.0.0.1", given, first=first, what="HTTP")
    claimed.release()
    return claimed.number


@pytest.mark.parametrize("peer", ["ftp://x", "north=nats://127.0.0.1:4222", "://"])
def test_a_peer_that_is_no_directory_is_refused_before_anything_starts(peer: str) -> None:
    with pytest.raises(SettingsError, match="directory"):
        plan_of("here", peers=[peer], no_http=True)


def test_a_peer_has_a_url_and_perhaps_a_name() -> None:
    peers = ["http://127.0.0.1:8421", "north=https://n.example/a=b"]
    plan = plan_of("here", peers=peers, no_http=True)
    registry = next(one for one in plan.programs if one.role == "registry")
    assert registry.env["LMOS_REGISTRY_PEERS"] == ",".join(peers)


def test_a_port_is_the_next_free_one_unless_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert not is_free("127.0.0.1", port)
        assert number_of(None, first=port) > port
        with pytest.raises(SettingsError, match=f"port {port} for HTTP is taken by process"):
            number_of(port)
    assert number_of(port) == port
    assert number_of(0) > 1023


def test_a_port_that_a_mesh_has_chosen_is_left_alone_before_anybody_listens_there() -> None:
    first = claim_port("127.0.0.1", 0, first=1, what="HTTP")

    assert is_free("127.0.0.1", first.number), "its adapter can listen"
    assert number_of(None, first=first.number) > first.number
    first.release()
    assert number_of(None, first=first.number) == first.number


@pytest.mark.parametrize("port", [70_000, -5])
def test_a_port_that_does_not_exist_is_one_sentence(port: int) -> None:
    with pytest.raises(SettingsError, match=f"there is no port {port}"):
        number_of(port)


def test_a_host_that_is_not_this_machine_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on no\.such\.host"):
        claim_port("no.such.host.invalid", 8420, first=1, what="HTTP")
