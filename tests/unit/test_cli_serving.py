"""Finding the agents of a Python file, and saying in a few lines why there are none."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmos_mesh.cli.serving import load_agents, local_files
from lmos_mesh.errors import InvalidDescription, MeshError, SettingsError

GOOD = """
from lmos_mesh import Agent
agent = Agent("billing", description="Bills.")

@agent.capability(examples=["show my bill"])
def view_bill(question: str) -> str:
    "Show a bill."
    return "none"
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(tmp_path: Path, text: str, name: str = "agents.py") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_every_agent_of_a_file_is_found_once(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + "other = Agent('travel')\nagain = agent\n")

    assert [agent.name for agent in load_agents(file)] == ["billing", "travel"]


def test_an_agent_may_come_from_a_module_beside_the_file_which_then_counts_as_its_source(
    tmp_path: Path,
) -> None:
    beside = written(tmp_path, GOOD, "my_agents_of_bills.py")
    file = written(tmp_path, "from my_agents_of_bills import agent\nimport json\n")

    (agent,) = load_agents(file)

    assert agent.name == "billing"
    assert local_files(file) == sorted([str(file.resolve()), str(beside.resolve())])


def test_what_is_under_the_main_guard_does_not_run(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + "if __name__ == '__main__':\n    raise RuntimeError\n")

    assert load_agents(file)


def test_a_subset_is_given_to_every_agent(tmp_path: Path) -> None:
    (agent,) = load_agents(written(tmp_path, GOOD), subset="canary")

    assert agent.subset == "canary"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "has no agent"),
        ("def f(:\n    pass\n", "is not valid Python, line 1: "),
        ("PK\0\0\0", "is not "),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named"),
        ("def f():\n    raise ValueError('boom')\nf()\n", "ValueError: boom"),
        ("raise OSError(2, 'gone')\n", "gone"),
        ("import sys\nsys.exit(3)\n", "ends itself while it is loaded"),
        ("from lmos_mesh import Agent\nAgent('x', concurrency=0)\n", "concurrency is 0"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_in_a_few_lines(
    tmp_path: Path, text: str, said: str
) -> None:
    file = written(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        load_agents(file)

    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4
    assert "lmos_mesh/" not in str(caught.value), "none of our own lines"


def test_an_error_names_the_line_of_the_users_own_code(tmp_path: Path) -> None:
    file = written(tmp_path, "def broken():\n    raise ValueError('boom')\n\nbroken()\n")

    with pytest.raises(SettingsError, match=r"agents\.py, line 2: raise ValueError\('boom'\)"):
        load_agents(file)


def test_bytes_that_are_no_text_are_not_python(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")

    with pytest.raises(SettingsError, match=r"photo\.jpg is not (valid )?Python"):
        load_agents(file)


def test_an_invalid_agent_is_refused_with_every_reason(tmp_path: Path) -> None:
    file = written(tmp_path, "from lmos_mesh import Agent\nagent = Agent(' ', version='one')\n")

    with pytest.raises(InvalidDescription) as caught:
        load_agents(file)

    said = str(caught.value)
    assert "/name" in said
    assert "/version" in said
    assert str(file) in said


@pytest.mark.parametrize("name", ["billing", "concierge", "support", "travel", "weather"])
def test_the_example_agents_load_and_have_enough_examples(name: str) -> None:
    file = Path(__file__).parents[2] / "examples" / f"{name}.py"

    try:
        (agent,) = load_agents(file)
    except MeshError as exc:
        pytest.fail(str(exc))

    assert agent.name == name
    assert all(len(action.capability.examples) >= 4 for action in agent.actions)
