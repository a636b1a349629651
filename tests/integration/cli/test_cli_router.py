"""`lmos route` and `lmos router …` on a mesh of processes: two routers, three agents."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from lmos_mesh import models
from lmos_mesh.cli.route import route
from lmos_mesh.cli.router_eval import router_eval
from lmos_mesh.cli.router_fit import router_feedback, router_fit
from lmos_mesh.cli.router_lint import router_lint
from lmos_mesh.errors import AgentNotFound, InvalidMessage, NotFound, SettingsError, Unavailable
from lmos_mesh.messages import DECIDE, ROUTER_STATUS, Decide, RouterStatus
from lmos_mesh.nats_config import Binary
from tests.conftest import session_server
from tests.integration.processes import Deployment, until

UTTERANCES = Path(__file__).parents[2] / "data" / "utterances.csv"
TENANT = "router-tools"
SOON_S = 10.0

AGENT = """
from lmos_mesh import Agent

agent = Agent({name!r}, description={description!r})

for id, examples in {capabilities!r}.items():
    @agent.capability(id=id, name=id, examples=examples)
    async def answer(question: str) -> str:
        return ""

agent.run()
"""

TRAINS = {
    "timetable": ["when does the train to Basel leave?", "is my train delayed?"],
    "booking": ["book a seat to Cologne", "what does a ticket cost?"],
}
GARDEN = {
    "plant_care": ["when should I plant potatoes?", "how do I look after an orchid?"],
    "pests": ["aphids are on my roses", "slugs eat everything", "is my train delayed?"],
}
VET = {
    "answer": ["my dog is limping", "the cat does not eat"],
    "vaccination": [],
}

Told = Callable[[], str]

pytestmark = [
    pytest.mark.skipif(models.installed_model() is None, reason=models.INSTALL),
    pytest.mark.timeout(300),  # fitting is work, and gives way to whatever else there is
]


@pytest.fixture(scope="module")
def model_url() -> Generator[str]:
    """A language model that chooses by the words that a card and a message share."""
    program = Path(__file__).parents[2] / "scripted_model.py"
    command = [sys.executable, str(program), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def town(
    nats_binary: Binary, tmp_path_factory: pytest.TempPathFactory, model_url: str
) -> Generator[Deployment]:
    """A mesh of its own, where outcomes are kept."""
    directory = tmp_path_factory.mktemp("router-tools")
    with session_server(nats_binary, directory) as url:
        deployment = Deployment(url, directory)
        try:
            deployment.service("registry")
            deployment.services(
                "router",
                "router",
                LMOS_ROUTER_FEEDBACK="true",
                LMOS_ROUTER_LLM_BASE_URL=model_url,
                LMOS_ROUTER_LLM_MODEL="scripted",
                LMOS_ROUTER_LLM_PRICE_PROMPT="100",
            )
            agents = [
                deployment.start_agent(
                    AGENT.format(name=name, description=description, capabilities=capabilities),
                    name=name,
                    LMOS_TENANT=TENANT,
                )
                for name, description, capabilities in (
                    ("trains", "Answers questions about journeys by rail.", TRAINS),
                    ("garden", "Advises on plants and garden pests.", GARDEN),
                    ("vet", "Looks after animals.", VET),
                )
            ]
            for one in agents:
                one.wait_ready()
            yield deployment
            deployment.check_stop()
        finally:
            deployment.stop()


@pytest.fixture
async def at(town: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The mesh that commands talk to, once its routers know everybody."""
    monkeypatch.setenv("LMOS_NATS_URL", town.url)
    monkeypatch.setenv("LMOS_TENANT", TENANT)
    monkeypatch.setenv("COLUMNS", "80")
    async with town.client(TENANT) as mesh:

        async def known() -> bool:
            # The first examples are known before the others, and decide otherwise than all do.
            for _ in range(8):
                if (await mesh.bus.call(ROUTER_STATUS, RouterStatus())).waiting:
                    return False
            found: set[str] = set()
            for _ in range(16):  # so that both routers are asked
                decision = await mesh.bus.call(DECIDE, Decide(message="my dog is limping"))
                if len(decision.candidates) < 3:
                    return False
                found.add(decision.agent)
            return found == {"vet"}

        await until(known, within_s=SOON_S)
    return town


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """What was said on standard output since it was last asked."""
    return lambda: capfd.readouterr().out


def fits(shown: str) -> bool:
    """Whether tables are not wider than 80 columns; sentences are wrapped by a terminal only."""
    tables = shown.partition("\n\n")[2]
    return all(len(line) <= 80 for line in tables.splitlines())


def routed(message: str, *, as_json: bool = True, **more: Any) -> int:
    given: dict[str, Any] = {
        "method": None,
        "channel": "web",
        "subset": "stable",
        "agent": None,
        "language": None,
        "after": (),
        "limit": 5,
        "accept": False,
        "correct": None,
        "escalate": False,
        "timeout_s": 10.0,
        **more,
    }
    return route(message, as_json=as_json, mesh=None, **given)


def evaluated(file: Path | str, *, as_json: bool = True, **more: Any) -> int:
    given: dict[str, Any] = {
        "method": None,
        "channel": "web",
        "subset": "stable",
        "language": None,
        "limit": None,
        "seed": 0,
        "concurrency": 8,
        "timeout_s": 10.0,
        "plots": None,
        **more,
    }
    return router_eval(str(file), as_json=as_json, mesh=None, **given)


def fitted(file: Path | str | None, *, as_json: bool = True, **more: Any) -> int:
    given: dict[str, Any] = {
        "feedback": False,
        "channel": "web",
        "subset": "stable",
        "precision": 0.9,
        "limit": None,
        "seed": 0,
        "dry_run": False,
        "forget": False,
        "timeout_s": 60.0,
        **more,
    }
    return router_fit(None if file is None else str(file), as_json=as_json, mesh=None, **given)


def ours(tmp_path: Path) -> Path:
    """Of the utterances, those for the agents that are here, and those for nobody."""
    with UTTERANCES.open(newline="") as opened:
        rows = [
            row for row in csv.DictReader(opened) if row["agent"] in ("trains", "garden", "vet", "")
        ]
    file = tmp_path / "ours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# -- route --


@pytest.mark.usefixtures("at")
def test_route_explains_a_decision_in_80_columns(told: Told) -> None:
    assert routed("when does my train to Basel leave?", as_json=False) == 0
    shown = told()

    assert shown.splitlines()[0].startswith("→ trains · timetable · ")
    for said in ("▸  trains", "when does the train to Basel leave?", "in scope", "took", "embed"):
        assert said in shown
    assert fits(shown)

    assert routed("when does my train to Basel leave?") == 0
    decision = json.loads(told())
    assert (decision["outcome"], decision["agent"]) == ("routed", "trains")
    assert decision["candidates"][0]["evidence"]


@pytest.mark.usefixtures("at")
def test_route_shows_every_outcome(told: Told) -> None:
    for message, more, first in (
        ("who is president of France?", {}, ("out of scope", "ask back")),
        ("my dog is limping", {"channel": "nowhere", "subset": "canary"}, ("nobody",)),
        ("anything", {"agent": "vet"}, ("→ vet · ",)),
        ("\x00\x1b[31m" + "🙂" * 200, {}, ("out of scope", "ask back")),
    ):
        assert routed(message, as_json=False, **more) == 0
        shown = told()
        assert shown.startswith(first), shown
        assert "\x1b[31m" not in shown
        assert fits(shown)


@pytest.mark.usefixtures("at")
@pytest.mark.parametrize(
    ("message", "more", "said"),
    [
        (" ", {}, "the message is empty"),
        ("x", {"method": "magic"}, "--method 'magic'"),
        ("x", {"method": "explicit"}, "needs --agent"),
        ("x", {"language": "x" * 50}, "--language"),
        ("x", {"limit": 0}, "--limit"),
        ("x", {"accept": True, "correct": "vet"}, "only one of"),
        ("x", {"correct": " "}, "--correct"),
        ("who is president of France?", {"accept": True}, "no agent was chosen"),
    ],
)
def test_what_route_cannot_do_is_one_sentence(
    message: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        routed(message, **more)


@pytest.mark.usefixtures("at")
def test_an_agent_that_is_not_there_is_said(told: Told) -> None:
    with pytest.raises(AgentNotFound, match="did you mean vet"):
        routed("x", agent="vets")


# -- eval --


@pytest.mark.usefixtures("at")
def test_eval_says_how_good_the_router_is(told: Told, tmp_path: Path) -> None:
    file = ours(tmp_path)

    assert evaluated(file) == 0
    found = json.loads(told())
    assert (found["rows"], found["strangers"], found["failed"]) == (44, 8, 0)
    assert found["accuracy"] > 0.6
    assert 0 <= found["error"] <= 1
    assert found["auroc"] > 0.7
    assert {one["agent"] for one in found["agents"]} == {"trains", "garden", "vet"}
    assert sum(one["rows"] for one in found["agents"]) == 36
    assert found["router"]["p50"] <= found["router"]["p99"]
    assert found["calls"] == 0

    assert evaluated(file, as_json=False) == 0
    shown = told()
    for said in ("accuracy", "AUROC", "ECE", "by agent, the worst first", "round trip"):
        assert said in shown
    assert fits(shown)


@pytest.mark.usefixtures("at")
def test_eval_says_how_often_a_language_model_was_asked_and_what_it_cost(
    told: Told, tmp_path: Path
) -> None:
    file = ours(tmp_path)

    assert evaluated(file, method="hybrid") == 0
    hybrid = json.loads(told())
    assert evaluated(file, method="llm") == 0
    always = json.loads(told())

    assert 0 < hybrid["asked_model"] < always["asked_model"] == 1
    assert 0 < hybrid["calls"] < always["calls"]
    assert 0 < hybrid["cost"] < always["cost"]
    assert evaluated(file, method="hybrid", as_json=False) == 0
    assert "asked a model" in told()
    assert routed("is there anything about my roses?", method="llm", as_json=False) == 0
    assert "scripted, 1 call, " in told()


@pytest.mark.usefixtures("at")
def test_the_same_seed_takes_the_same_messages(told: Told, tmp_path: Path) -> None:
    file = ours(tmp_path)
    runs: list[Any] = []
    for seed in (1, 1, 2):
        assert evaluated(file, limit=12, seed=seed) == 0
        found = json.loads(told())
        runs.append([found["accuracy"], found["strangers"], found["agents"]])

    assert runs[0] == runs[1] != runs[2]


@pytest.mark.usefixtures("at")
def test_eval_writes_plots(told: Told, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = tmp_path / "plots" / "here"

    assert evaluated(ours(tmp_path), plots=plots) == 0

    names = {"abstention", "calibration", "confusion", "latency", "scope"}
    assert {Path(one).stem for one in json.loads(told())["plots"]} == names
    for name in names:
        assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("at")
def test_labels_that_nobody_bears_are_named(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,agent\nmy dog is limping,vets\nthe cat is ill,vet\n")

    assert evaluated(file) == 0

    shown = capfd.readouterr()
    assert "no agent here is named vets" in shown.err
    assert json.loads(shown.out)["unknown_agents"] == ["vets"]


def test_without_a_router_it_says_so(
    services: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMOS_NATS_URL", "nats://127.0.0.1:1")
    with pytest.raises(Unavailable):
        evaluated(ours(tmp_path))
    with pytest.raises(NotFound, match="cannot read"):
        evaluated(tmp_path / "missing.csv")
    with pytest.raises(SettingsError, match="explicit"):
        evaluated(ours(tmp_path), method="explicit")


# -- lint --


@pytest.mark.usefixtures("at")
def test_lint_names_what_collides(told: Told) -> None:
    shown_json = router_lint(
        channel=None, subset=None, limit=100, timeout_s=90, strict=False, as_json=True, mesh=None
    )
    found = json.loads(told())

    assert shown_json == 1
    kinds = {one["kind"]: one for one in found["findings"]}
    assert kinds["duplicate"]["text"] == "is my train delayed?"
    assert {kinds["duplicate"]["agent"], kinds["duplicate"]["other_agent"]} == {"trains", "garden"}
    assert (kinds["no_examples"]["agent"], kinds["no_examples"]["capability"]) == (
        "vet",
        "vaccination",
    )
    assert kinds["vague_name"]["capability"] == "answer"
    assert (found["agents"], found["capabilities"]) == (3, 6)

    assert (
        router_lint(
            channel="web",
            subset="stable",
            limit=1,
            timeout_s=90,
            strict=False,
            as_json=False,
            mesh=None,
        )
        == 1
    )
    shown = told()
    assert "the same example at two agents" in shown
    assert fits(shown)


# -- feedback and fit --


@pytest.mark.usefixtures("at")
def test_what_is_reported_is_listed(told: Told) -> None:
    assert routed("my dog is limping badly", accept=True) == 0
    assert json.loads(told())["reported"]["kept"]
    assert routed("the hedge needs a trim", correct="garden") == 0
    assert routed("tell me a joke", correct="none") == 0
    assert routed("help me now", escalate=True) == 0
    told()
    with pytest.raises(InvalidMessage, match="no agent is named 'gardn'"):
        routed("the hedge needs a trim", correct="gardn")

    assert router_feedback(outcome=None, limit=10, as_json=True, mesh=None) == 0
    found = json.loads(told())
    assert [(one["outcome"], one["message"]) for one in found["outcomes"]] == [
        ("escalated", "help me now"),
        ("corrected", "tell me a joke"),
        ("corrected", "the hedge needs a trim"),
        ("accepted", "my dog is limping badly"),
    ]
    assert found["keeps"]
    assert router_feedback(outcome="corrected", limit=1, as_json=False, mesh=None) == 0
    assert "tell me a joke" in told()


@pytest.mark.usefixtures("at")
def test_what_is_fitted_holds_for_every_replica_until_it_is_forgotten(
    told: Told, tmp_path: Path
) -> None:
    file = ours(tmp_path)

    assert fitted(file, dry_run=True) == 0
    tried = json.loads(told())
    assert not tried["kept"]
    assert (tried["rows"], tried["strangers"]) == (44, 8)
    assert tried["before"]["threshold"] == 0.5

    assert fitted(file, feedback=True) == 0
    kept = json.loads(told())
    assert kept["kept"]
    assert kept["before"]["threshold"] == 0.5
    try:
        for _ in range(4):  # whichever replica answers
            assert fitted(file, dry_run=True) == 0
            again = json.loads(told())
            assert again["before"]["threshold"] == pytest.approx(kept["after"]["threshold"])
        assert fitted(file, as_json=False, dry_run=True) == 0
        shown = told()
        assert "threshold" in shown
        assert fits(shown)
    finally:
        assert fitted(None, forget=True) == 0
    assert json.loads(told())["kept"]
    assert fitted(file, dry_run=True) == 0
    assert json.loads(told())["before"]["threshold"] == 0.5


@pytest.mark.usefixtures("at")
def test_of_a_file_too_large_for_a_message_as_much_is_fitted_on_as_fits(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = [json.loads(line) for line in ours(tmp_path).read_text().splitlines()]
    file = tmp_path / "large.jsonl"
    filler = " " + 8_000 * "x"  # a single word, so that it takes no time to embed
    with file.open("w") as out:
        for number in range(500):
            row = small[number % len(small)]
            out.write(json.dumps({**row, "text": f"{row['text']} {number}{filler}"}) + "\n")
    assert file.stat().st_size > 3 * 1024**2

    assert fitted(file, dry_run=True) == 0

    said = capfd.readouterr()
    assert 60 < json.loads(said.out)["rows"] < 140
    assert "as many as go over the bus" in " ".join(said.err.split())


@pytest.mark.usefixtures("at")
def test_too_little_to_fit_on_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text("text,agent\nmy dog barks,vet\n")

    with pytest.raises(InvalidMessage, match="too few to fit on"):
        fitted(file)
    with pytest.raises(SettingsError, match="nothing to fit on"):
        fitted(None)
    with pytest.raises(SettingsError, match="--forget"):
        fitted(file, forget=True)
    with pytest.raises(SettingsError, match="--precision"):
        fitted(file, precision=1.0)
