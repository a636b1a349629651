"""When a crashed process is started again, and in which order processes stop."""

import sys
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmos_mesh.endings import how_it_ended
from lmos_mesh.errors import SettingsError
from lmos_mesh.programs import (
    Kind,
    Program,
    command_of,
    installed_programs,
    replicas_from,
    stopping_stages,
)
from lmos_mesh.restarts import LOOPING_AFTER, STEADY_S, Crashes

LIVES = st.lists(st.floats(min_value=0, max_value=3600), min_size=1, max_size=60)


def program(kind: Kind, role: str, name: str = "") -> Program:
    return Program(name=name or role, kind=kind, role=role, command=("true",))


def test_the_first_restart_is_almost_immediate_and_later_ones_wait_longer() -> None:
    crashes = Crashes()
    delays: list[float] = []
    for _ in range(10):
        crashes = crashes.one_more(lived_s=0.5)
        delays.append(crashes.delay_s)

    assert delays[0] <= 0.2
    assert delays == sorted(delays)
    assert delays[-1] == 15.0


def test_a_process_that_keeps_crashing_is_called_looping_once_it_is_no_accident() -> None:
    crashes = Crashes()
    looping: list[bool] = []
    for _ in range(LOOPING_AFTER + 1):
        crashes = crashes.one_more(lived_s=1.0)
        looping.append(crashes.looping)

    assert looping == [False] * (LOOPING_AFTER - 1) + [True, True]


def test_a_process_that_lived_long_has_recovered() -> None:
    crashes = Crashes(in_a_row=9).one_more(lived_s=STEADY_S)

    assert crashes.in_a_row == 1
    assert not crashes.looping


@given(LIVES)
def test_no_history_makes_it_wait_for_ever_or_not_at_all(lives: list[float]) -> None:
    crashes = Crashes()
    for lived_s in lives:
        crashes = crashes.one_more(lived_s=lived_s)
        assert 0.1 <= crashes.delay_s <= 15.0
        assert 1 <= crashes.in_a_row <= len(lives)


def test_adapters_stop_first_then_runtime_and_operator_agents_and_the_registry_last() -> None:
    programs = [
        program("service", "operator"),
        program("service", "registry"),
        program("service", "registry", "registry-2"),
        program("service", "router"),
        program("service", "memory"),
        program("service", "runtime"),
        program("adapter", "http"),
        program("adapter", "mqtt"),
        program("agent", "billing"),
    ]

    stages = [[one.name for one in stage] for stage in stopping_stages(programs)]

    assert stages == [
        ["http", "mqtt"],
        ["operator", "runtime"],
        ["billing"],
        ["memory"],
        ["router"],
        ["registry", "registry-2"],
    ]


def test_an_agent_called_registry_is_no_registry() -> None:
    stages = stopping_stages([program("service", "router"), program("agent", "registry")])

    assert [one.name for one in stages[0]] == ["registry"]


def test_everything_installed_is_started_once_unless_told_otherwise() -> None:
    names = [one.name for one in installed_programs({"registry": 2, "router": 0})]

    assert {"registry", "registry-2", "runtime", "http"} <= set(names)
    assert "router" not in names
    assert "http" not in [one.name for one in installed_programs({}, adapters=[])]


def test_replicas_of_a_service_that_is_not_there_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"'regsitry'.*there are operator, registry"):
        installed_programs({"regsitry": 2})


def test_replicas_are_read_from_pairs() -> None:
    assert replicas_from("registry=2, router=0,") == {"registry": 2, "router": 0}
    assert replicas_from("") == {}


@pytest.mark.parametrize("text", ["registry", "registry=", "registry=two", "registry=-1", "=1000"])
def test_replicas_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="registry=2"):
        replicas_from(text)


def test_a_main_module_is_run_as_its_package_and_anything_else_by_its_function() -> None:
    ours = EntryPoint("registry", "lmos_mesh_registry.__main__:main", "lmos_mesh.services")
    others = EntryPoint("fax", "acme_fax.adapter:start", "lmos_mesh.protocols")

    assert command_of(ours) == (sys.executable, "-P", "-m", "lmos_mesh_registry")
    assert "from acme_fax.adapter import start as main" in command_of(others)[-1]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "was killed by SIGKILL"),
        (3, "ended with status 3"),
        (-1000, "was killed by signal 1000"),
    ],
)
def test_how_a_process_ended_is_said_in_words(code: int, said: str) -> None:
    assert how_it_ended(code) == said
