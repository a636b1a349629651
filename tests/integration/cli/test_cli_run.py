"""`lmos run`: an agent file joins, follows its edits, and is told apart from what is none."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.cli.conftest import LIGHT, Lmos, Mesh, Program, start_up

AGENT = """
from lmos_mesh import Agent

agent = Agent("{name}", description="{description}", version="{version}")

@agent.capability(examples=["one", "two", "three", "four"])
async def answer(question: str) -> str:
    "Answer."
    return "42"
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A registry is all that joining needs."""
    started = start_up(tmp_path_factory.mktemp("light") / "state", *LIGHT)
    try:
        yield started
    finally:
        started.program.close()


@pytest.fixture
def running() -> Iterator[list[Program]]:
    """What a test has started; ended after it."""
    started: list[Program] = []
    yield started
    for program in started:
        program.close()


def agent_file(folder: Path, name: str, *, version: str = "1.0.0", description: str = "x") -> Path:
    file = folder / f"{name}.py"
    file.write_text(AGENT.format(name=name, version=version, description=description))
    return file


def listed(mesh: Mesh, lmos: Lmos) -> dict[str, dict[str, Any]]:
    done = lmos("agents", "--json", "--all", environ=mesh.environ)
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)}


def test_an_edit_replaces_the_agent_without_a_gap_and_a_bad_one_does_not(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "edited")
    run = Program(["run", str(file)], mesh.environ)
    running.append(run)
    run.until("watching")
    (first,) = listed(mesh, lmos)["edited"]["instances"]
    before = psutil.Process(first["pid"])

    agent_file(tmp_path, "edited", version="1.1.0", description="better")
    run.until("edited 1.1.0 serves on mesh default")
    before.wait(30)
    better = listed(mesh, lmos)["edited"]

    file.write_text("def broken(:\n")
    run.until("the version before goes on serving")
    kept = listed(mesh, lmos)["edited"]

    file.write_text(AGENT.format(name="edited", version="one", description="invalid"))
    run.until("/version")
    run.until("the version before goes on serving")

    agent_file(tmp_path, "edited", version="1.2.0")
    run.until("edited 1.2.0 serves")

    assert (better["version"], better["summary"], len(better["instances"])) == ("1.1.0", "better", 1)  # fmt: skip # noqa: E501
    assert kept["instances"][0]["instance"] == better["instances"][0]["instance"]
    assert "is not valid Python, line 1" in run.text
    assert "Traceback" not in run.text


def test_an_edit_of_a_module_beside_the_file_counts(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    beside = tmp_path / "words_of_wisdom.py"
    beside.write_text('VERSION = "2.0.0"\n')
    file = agent_file(tmp_path, "wise")
    file.write_text(
        "from words_of_wisdom import VERSION\n" + file.read_text().replace('"1.0.0"', "VERSION")
    )
    run = Program(["run", str(file)], mesh.environ)
    running.append(run)
    run.until("wise 2.0.0 serves")
    run.until("watching")

    beside.write_text('VERSION = "2.1.0"\n')

    run.until("wise 2.1.0 serves")


def test_ctrl_c_takes_the_agents_leave(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = Program(["run", "--no-reload", str(agent_file(tmp_path, "leaver"))], mesh.environ)
    running.append(run)
    run.until("Ctrl-C ends it")
    (instance,) = listed(mesh, lmos)["leaver"]["instances"]

    run.interrupt()
    code = run.end()

    assert code == 0
    assert not psutil.pid_exists(instance["pid"])
    assert "leaver" not in listed(mesh, lmos)


def test_an_agent_whose_lmos_run_is_killed_does_not_stay(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = Program(["run", str(agent_file(tmp_path, "orphan"))], mesh.environ)
    running.append(run)
    run.until("watching")
    (instance,) = listed(mesh, lmos)["orphan"]["instances"]

    orphan = psutil.Process(instance["pid"])

    run.process.kill()

    psutil.wait_procs([orphan], timeout=30)
    for _ in range(20):
        if not listed(mesh, lmos).get("orphan", {}).get("live"):
            return
    raise AssertionError("it is still live")


def test_an_agent_that_crashes_is_named_and_started_again(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = Program(["run", "--no-reload", str(agent_file(tmp_path, "crasher"))], mesh.environ)
    running.append(run)
    run.until("Ctrl-C ends it")
    (instance,) = listed(mesh, lmos)["crasher"]["instances"]

    os.kill(instance["pid"], signal.SIGKILL)

    run.until("crasher.py was killed by SIGKILL; it is started again")
    run.until("crasher 1.0.0 serves")
    assert listed(mesh, lmos)["crasher"]["live"]


def test_instances_subset_and_tenant_are_chosen_on_the_command_line(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = Program(
        [
            "run", "--no-reload", "--instances", "2", "--subset", "canary", "--tenant", "acme",
            str(agent_file(tmp_path, "many")),
        ],
        mesh.environ,
    )  # fmt: skip
    running.append(run)
    run.until("many 1.0.0 (canary), 2 instances, serves")

    acme = lmos("agents", "--json", environ={**mesh.environ, "LMOS_TENANT": "acme"})

    (many,) = json.loads(acme.stdout)
    assert (many["name"], many["subset"], len(many["instances"])) == ("many", "canary", 2)
    assert "many" not in listed(mesh, lmos)


def test_what_an_agent_prints_and_logs_is_shown_and_kept(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "talker")
    file.write_text(
        file.read_text()
        + "import logging\nprint('a plain line')\nlogging.warning('a serious line')\n"
    )
    run = Program(["run", "--no-reload", str(file)], mesh.environ)
    running.append(run)
    run.until("a plain line")
    run.until("Ctrl-C ends it")

    logs = lmos("logs", "talker", environ=mesh.environ)

    assert "a plain line" in logs.stdout
    assert "talker is ready" in logs.stdout
    assert "talker is ready" not in run.text, "what all is well says goes to the log only"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.py", None, "there is no file"),
        ("empty.py", "x = 1\n", "has no agent"),
        ("notes.md", "# Notes\n\nNot Python.\n", "is not valid Python"),
        ("broken.py", "import nothing_of_that_name\n", "ModuleNotFoundError"),
        ("invalid.py", AGENT.format(name="a", version="x", description=""), "/version"),
    ],
)
def test_a_file_without_an_agent_is_told_at_once(
    mesh: Mesh, lmos: Lmos, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)

    done = lmos("run", str(file), environ=mesh.environ)

    assert done.returncode == 1
    assert done.stderr.startswith("lmos: ")
    assert said in done.stderr
    assert name in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr


def test_without_a_mesh_it_says_how_to_start_one(lmos: Lmos, tmp_path: Path) -> None:
    done = lmos("run", str(agent_file(tmp_path, "lonely")))

    assert done.returncode == 1
    assert "no mesh runs here (start one with `lmos up`" in done.stderr


def test_an_agent_for_several_tenants_says_where_it_is_served(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    file = tmp_path / "helpdesk.py"
    text = AGENT.format(name="helpdesk", version="1.0.0", description="x")
    file.write_text(text.replace('version="1.0.0"', 'tenants=("acme", "beta")'))
    run = Program(["run", str(file)], mesh.environ)
    running.append(run)
    run.until("helpdesk 1.0.0 serves on mesh default")

    run.until("from tenant shared, for demo, acme, beta")

    for tenant, there in (("demo", True), ("beta", True), ("gamma", False)):
        shown = lmos("agents", environ={**mesh.environ, "LMOS_TENANT": tenant}).stdout
        assert ("helpdesk" in shown, "shared" in shown) == (there, there)
    described = lmos("describe", "helpdesk", environ={**mesh.environ, "LMOS_TENANT": "acme"})
    assert json.loads(described.stdout)["id"] == "urn:lmos-mesh:shared:helpdesk:stable"
