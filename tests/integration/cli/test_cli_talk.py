"""`lmos ask`, `chat`, `agents`, `describe`, `logs`, `doctor`: what a person does with a mesh."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh.models import installed_model
from tests.integration.cli.conftest import Lmos, Mesh, Program

EXAMPLES = Path(__file__).parents[3] / "examples"

SLOW = """
import asyncio, os, pathlib, time
from lmos_mesh import Agent, Context

agent = Agent("slow", description="Counts sheep for people who cannot sleep.")
here = pathlib.Path(__file__).parent

@agent.capability(examples=["count sheep for me", "I cannot sleep", "help me sleep", "tired"])
async def count_sheep(question: str, context: Context):
    "Count sheep."
    try:
        for number in range(600):
            yield f"sheep {number} "
            (here / "counted").write_text(str(number))
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        (here / "cancelled").touch()
        raise

knowing = Agent("knowing", description="Says who is speaking.")

@knowing.capability(examples=["who am I?", "do you know my name?", "what is known of me?"])
async def say_who(question: str, context: Context):
    "Say who is speaking."
    known = sorted(context.attributes.items())
    yield f"{context.user} {known}"

frail = Agent("frail", description="Dies in the middle of a sentence, once.")

@frail.capability(examples=["drop dead", "please die now", "end yourself", "say your last words"])
async def speak(question: str, context: Context):
    "Say something, and perhaps die."
    yield "My last "
    try:
        (here / "died").touch(exist_ok=False)
    except FileExistsError:
        yield "words are many."
    else:
        await asyncio.sleep(0.3)
        os._exit(7)
"""


@pytest.fixture(scope="module", autouse=True)
def agents(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Agents on the shared mesh: two of the examples, and two with bad habits."""
    folder = tmp_path_factory.mktemp("agents")
    file = folder / "slow.py"
    file.write_text(SLOW)
    good = Program(
        ["run", "--no-reload", str(EXAMPLES / "billing.py"), str(EXAMPLES / "travel.py")],
        mesh.environ,
    )
    bad = Program(["run", "--no-reload", "--instances", "2", str(file)], mesh.environ)
    try:
        good.until("Ctrl-C ends it")
        bad.until("Ctrl-C ends it")
        yield folder
    finally:
        good.close()
        bad.close()


def answered(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_answer_is_on_standard_output_and_who_gave_it_beside_it(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "how much do I owe this month?", environ=mesh.environ)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "Your bill is 39.99 €, due on the 1st.\n"
    assert done.stderr.startswith("billing · view bill · ")


def test_why_shows_the_candidates_with_their_shares_and_evidence(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "--why", "show my bill", environ=mesh.environ)

    assert "▸  billing" in done.stdout
    assert "travel" in done.stdout
    assert "show my bill" in done.stdout
    assert done.stdout.endswith("Your bill is 39.99 €, due on the 1st.\n")


def test_json_is_the_whole_answer_with_its_decision(mesh: Mesh, lmos: Lmos) -> None:
    answer = answered(lmos("ask", "--json", "show my bill", environ=mesh.environ))

    assert (answer["agent"], answer["capability"]) == ("billing", "view_bill")
    assert answer["decision"]["outcome"] == "routed"
    assert answer["decision"]["candidates"]


def test_a_conversation_goes_on_where_it_was(mesh: Mesh, lmos: Lmos) -> None:
    first = answered(
        lmos("ask", "--json", "find me a train from Rome to Paris", environ=mesh.environ)
    )
    following = answered(
        lmos(
            "ask",
            "--json",
            "--conversation",
            first["conversation"],
            "and a train for three people?",
            environ=mesh.environ,
        )
    )

    assert following["agent"] == "travel"
    assert "from Rome to Paris" in following["answer"]
    assert "3 travellers" in following["answer"]


def test_a_message_can_come_from_standard_input(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "-", environ=mesh.environ, stdin="show my bill\n")

    assert "39.99" in done.stdout


def test_a_named_agent_is_asked_and_one_that_is_not_there_is_told_with_near_names(
    mesh: Mesh, lmos: Lmos
) -> None:
    there = lmos("ask", "--agent", "billing", "anything at all", environ=mesh.environ)
    not_there = lmos("ask", "--agent", "biling", "show my bill", environ=mesh.environ)

    assert "39.99" in there.stdout
    assert not_there.returncode == 1
    assert "biling" in not_there.stderr
    assert "billing" in not_there.stderr.replace("biling", "")
    assert len(not_there.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(installed_model() is None, reason="the hashing embedder knows no meaning")
def test_what_nobody_can_answer_is_asked_back(mesh: Mesh, lmos: Lmos) -> None:
    answer = answered(
        lmos("ask", "--json", "who won the chess world cup of 1972?", environ=mesh.environ)
    )

    assert answer["asked_back"]
    assert "view bill (billing)" in answer["answer"]


def test_an_answer_comes_as_it_is_made_and_ctrl_c_calls_the_work_off(
    mesh: Mesh, agents: Path
) -> None:
    counted, cancelled = agents / "counted", agents / "cancelled"
    counted.unlink(missing_ok=True)
    asking = Program(["ask", "--agent", "slow", "count sheep for me"], mesh.environ)
    asking.until("slow · count sheep")
    # A line is read when it is whole: the first words of it are shown well before the twentieth.
    comes(lambda: counted.exists() and int(counted.read_text() or 0) >= 20)

    asking.process.send_signal(signal.SIGINT)
    code = asking.end()
    comes(cancelled.exists)

    assert code == 130
    assert "sheep 0 sheep 1 " in asking.text
    assert "called off" in asking.text
    asking.close()


def comes(true: Callable[[], bool], *, within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, f"not within {within_s:g} s"
        time.sleep(0.05)


def test_an_agent_that_dies_in_its_answer_is_seen_to_be_replaced(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "--agent", "frail", "say your last words", environ=mesh.environ)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "My last \nMy last words are many.\n"
    assert "has disconnected; the answer begins anew" in done.stderr


def test_a_timeout_is_one_sentence(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "--timeout", "1", "--agent", "slow", "count sheep", environ=mesh.environ)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lmos: ")


def test_an_empty_message_is_one_sentence(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("ask", "  ", environ=mesh.environ)

    assert done.returncode == 1
    assert done.stderr == 'lmos: the message is empty (lmos ask "how much do I owe?")\n'


def test_a_chat_from_a_pipe_keeps_its_context(mesh: Mesh, lmos: Lmos) -> None:
    said = (
        "find me a train from Oslo to Rome\nand a train for two people?\n/why\n/new\n"
        "find me a train please\n/agents\n/nonsense\n/quit\nnever read\n"
    )

    done = lmos("chat", environ=mesh.environ, stdin=said)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "from Oslo to Rome" in lines[0]
    assert "from Oslo to Rome" in lines[1]
    assert "2 travellers" in lines[1]
    assert any("▸  travel" in line for line in lines)
    assert any(line.startswith("From where to where?") for line in lines), "/new forgets"
    assert any("● live" in line for line in lines)
    assert "there is no command /nonsense" in done.stderr
    assert "never read" not in done.stderr


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_agents_and_rollouts_are_told_who_speaks(mesh: Mesh, lmos: Lmos, command: str) -> None:
    given = ["--agent", "knowing", "--user", "ada", "--attribute", "staff=true"]
    given += ["--attribute", "note=a=b"]
    message = ["who am I?"] if command == "ask" else []

    done = lmos(command, *given, *message, environ=mesh.environ, stdin="who am I?\n")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "ada [('note', 'a=b'), ('staff', 'true')]\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["staff"], "--attribute 'staff' is no KEY=VALUE (say, e.g., --attribute staff=true)"),
        (["=true"], "--attribute '=true' is no KEY=VALUE (say, e.g., --attribute staff=true)"),
        (["a=1", "a=2"], "--attribute a has two values: '1' and '2'"),
    ],
)
def test_an_attribute_that_is_none_is_one_sentence(lmos: Lmos, given: list[str], said: str) -> None:
    options = [word for one in given for word in ("--attribute", one)]

    done = lmos("ask", "who am I?", *options)

    assert (done.returncode, done.stderr) == (1, f"lmos: {said}\n")


def test_a_chat_goes_on_after_an_error_and_says_so_with_its_status(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("chat", "--agent", "nobody", environ=mesh.environ, stdin="one\ntwo\n")

    assert done.returncode == 1
    assert done.stderr.count("lmos: ") == 2


def test_agents_are_listed_with_what_they_can_do(mesh: Mesh, lmos: Lmos) -> None:
    table = lmos("agents", environ=mesh.environ)
    listed = json.loads(lmos("agents", "--json", environ=mesh.environ).stdout)

    (billing,) = (line for line in table.stdout.splitlines() if line.startswith("billing"))
    assert billing.split() == ["billing", "1.0.0", "stable", "view", "bill", "1", "0", "●", "live"]
    by_name = {one["name"]: one for one in listed}
    assert {"billing", "travel", "slow", "frail"} <= set(by_name)
    assert by_name["slow"]["live"]
    assert len(by_name["slow"]["instances"]) == 2


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_who_watches_through_a_pipe_sees_at_once_who_is_there(
    mesh: Mesh, arguments: tuple[str, ...]
) -> None:
    watching = Program(["agents", "--watch", *arguments], mesh.environ)
    try:
        line = watching.until("billing")
        watching.process.send_signal(signal.SIGINT)
        code = watching.end()
    finally:
        watching.close()

    assert code == 0
    assert "\x1b" not in watching.text
    assert "Traceback" not in watching.text
    if arguments:
        assert "billing" in {one["name"] for one in json.loads(line)}


def test_a_description_is_printed_as_json(mesh: Mesh, lmos: Lmos) -> None:
    description = json.loads(lmos("describe", "billing", environ=mesh.environ).stdout)
    missing = lmos("describe", "biling", environ=mesh.environ)

    assert description["title"] == "billing"
    assert "view_bill" in description["actions"]
    assert missing.returncode == 1
    assert "did you mean billing?" in missing.stderr


def test_logs_are_shown_by_process_and_those_of_agents_too(mesh: Mesh, lmos: Lmos) -> None:
    everything = lmos("logs", environ=mesh.environ)
    registry = lmos("logs", "registry", "-n", "1", environ=mesh.environ)
    as_json = lmos("logs", "billing", "--json", "-n", "50", environ=mesh.environ)
    wrong = lmos("logs", "regsitry", environ=mesh.environ)

    for name in ("registry", "router", "runtime", "http", "nats", "billing", "slow"):
        assert any(line.startswith(name) for line in everything.stdout.splitlines()), name
    assert len(registry.stdout.splitlines()) == 1
    assert "billing is ready" in [json.loads(line)["event"] for line in as_json.stdout.splitlines()]
    assert wrong.returncode == 1
    assert "registry" in wrong.stderr.replace("'regsitry'", "")


def test_logs_are_followed_as_they_grow(mesh: Mesh) -> None:
    following = Program(["logs", "-f", "-n", "0", "billing"], mesh.environ)
    log = mesh.record.log_dir / "billing.log"
    over = threading.Event()

    def keep_writing() -> None:
        while not over.wait(0.2):
            with log.open("a") as file:
                file.write('{"event": "it follows", "level": "info"}\n')

    writing = threading.Thread(target=keep_writing)
    writing.start()
    try:
        following.until("it follows")
    finally:
        over.set()
        writing.join()
    with log.open("a") as file:
        file.write('{"event": "half a ')
        file.flush()
        time.sleep(0.4)
        file.write('line", "level": "info"}\n')

    following.until("half a line")
    following.process.send_signal(signal.SIGINT)

    assert following.end() == 0
    following.close()


def test_the_doctor_finds_a_healthy_mesh_healthy(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("doctor", "--json", environ=mesh.environ)

    told = json.loads(done.stdout)
    by_check = {one["check"]: one for one in told["findings"]}
    assert done.returncode == 0, done.stdout
    assert told["ok"]
    for check in ("nats-server", "mesh", "bus", "JetStream", "registry", "router", "runtime"):
        assert by_check[check]["verdict"] == "fine", by_check[check]
    assert "at once" in by_check["deaths"]["said"]
    assert "billing" in by_check["agents"]["said"]


def test_the_doctor_names_a_misspelt_setting_and_what_was_meant(mesh: Mesh, lmos: Lmos) -> None:
    done = lmos("doctor", environ={**mesh.environ, "LMOS_DRAIN_TIMEOUT": "3"})

    assert done.returncode == 1
    assert "LMOS_DRAIN_TIMEOUT means nothing" in done.stdout
    assert "did you mean LMOS_DRAIN_TIMEOUT_S?" in done.stdout


def test_the_doctor_sees_that_a_file_is_no_place_for_state(lmos: Lmos, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = lmos("doctor", environ={**os.environ, "LMOS_STATE_DIR": str(file)})

    assert done.returncode == 1
    assert f"✗ disk         the mesh's state cannot be written to {file}" in done.stdout
    assert f"{file} is no folder" in done.stdout


def test_the_doctor_of_a_machine_without_a_mesh_says_how_to_start_one(lmos: Lmos) -> None:
    done = lmos("doctor")

    assert done.returncode == 0, done.stdout
    assert "no mesh runs here" in done.stdout
    assert "lmos up" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["agents"], ["ask", "hello"], ["chat"], ["describe", "x"], ["logs"], ["down"]]
)
def test_without_a_mesh_every_command_says_how_to_start_one(
    lmos: Lmos, arguments: list[str]
) -> None:
    done = lmos(*arguments)

    assert done.returncode == 1
    assert done.stderr.startswith("lmos: no mesh runs here (start one with `lmos up`")
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_does_not_answer_is_one_sentence(lmos: Lmos, home: Path) -> None:
    environ = {**os.environ, "LMOS_STATE_DIR": str(home), "LMOS_NATS_URL": "nats://127.0.0.1:1"}

    done = lmos("agents", environ={**environ, "LMOS_CONNECT_TIMEOUT_S": "0.3"})
    named = lmos("agents", "--mesh", "x", environ={**environ, "LMOS_CONNECT_TIMEOUT_S": "0.3"})
    doctor = lmos("doctor", environ=environ)

    assert done.returncode == 1
    assert "no NATS server answers at nats://127.0.0.1:1" in done.stderr
    assert "LMOS_NATS_URL is set, so mesh 'x' is not looked for" in named.stderr
    assert doctor.returncode == 1
    assert "✗ bus" in doctor.stdout


def test_versions_and_the_model_are_told(lmos: Lmos) -> None:
    version = json.loads(lmos("version", "--json").stdout)
    models = json.loads(lmos("models", "--json").stdout)

    assert version["lmos-mesh"]
    assert version["nats-server"]
    assert models["model"] == "all-MiniLM-L6-v2"


def test_an_option_that_does_not_exist_is_status_2(lmos: Lmos) -> None:
    done = lmos("ask", "--wyh", "x")

    assert done.returncode == 2
    assert "--why" in done.stderr
