"""`lmos agents scale` and its like: as many processes as wanted, and nobody who asks notices."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmos_mesh import subjects
from lmos_mesh.audit import AUDIT
from lmos_mesh.errors import AgentFailed, Conflict, MeshError
from lmos_mesh.mesh import Mesh as Client
from lmos_mesh.messages import (
    CONVERSE,
    FIND_THINGS,
    GET_THING,
    STEER_AGENT,
    AgentSteered,
    Converse,
    FindThings,
    GetThing,
    Instance,
    SteerAgent,
)
from tests.integration.cli.conftest import Lmos, Mesh, Program, start_up
from tests.integration.processes import until

AGENT = """
import asyncio
from lmos_mesh import Agent

agent = Agent("{name}", description="{name}", version="{version}")

@agent.capability(examples=["one", "two", "three", "four"], idempotent=False)
async def answer(question: str) -> str:
    "Answer."
    await asyncio.sleep({takes_s})
    return agent.version
"""
ANOTHER = """
other = Agent("{name}-other", description="beside it")

@other.capability(examples=["one", "two", "three", "four"])
async def answer_too(question: str) -> str:
    "Answer."
    return "other"
"""

WAITS_WHILE_TOLD = """
import pathlib, time

while pathlib.Path(__file__).with_suffix(".wait").exists():
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Everything but a way in from outside."""
    started = start_up(tmp_path_factory.mktemp("scaled") / "state", "--no-http")
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


def agent_file(
    folder: Path, name: str, *, version: str = "1.0.0", takes_s: float = 0.0, another: bool = False
) -> Path:
    file = folder / f"{name}.py"
    text = AGENT.format(name=name, version=version, takes_s=takes_s)
    file.write_text(text + (ANOTHER.format(name=name) if another else ""))
    return file


def start(mesh: Mesh, running: list[Program], file: Path, *arguments: str) -> Program:
    program = Program(["run", *arguments, str(file)], mesh.environ)
    running.append(program)
    program.until("Ctrl-C ends it")
    return program


async def instances(mesh: Mesh, name: str, subset: str = "stable") -> list[Instance]:
    """The live instances of an agent, as the registry has them."""
    async with Client.connect(mesh.record.nats_url) as client:
        found = await client.bus.call(FIND_THINGS, FindThings(name=name, subset=subset))
    return list(found.things[0].instances) if found.things else []


async def ids(mesh: Mesh, name: str) -> set[str]:
    return {one.instance for one in await instances(mesh, name)}


async def steered(
    mesh: Mesh,
    name: str,
    action: str,
    *,
    tenant: str = "demo",
    timeout_s: float = 60.0,
    **more: Any,
) -> AgentSteered:
    """What the operator answers, whoever asks it."""
    request = SteerAgent.model_validate({"agent": name, "action": action, **more})
    async with Client.connect(mesh.record.nats_url) as client:
        return await client.bus.call(STEER_AGENT, request, tenant=tenant, timeout_s=timeout_s)


class Load:
    """Asks all the time, and what came of it."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []

    @classmethod
    @asynccontextmanager
    async def of(
        cls, mesh: Mesh, agent: str, *, subset: str = "stable", at_a_time: int = 8
    ) -> "AsyncGenerator[Load]":
        load = cls()
        stop, begun = asyncio.Event(), asyncio.Event()
        url = mesh.record.nats_url

        async def ask(client: Client) -> None:
            while not stop.is_set():
                try:
                    request = Converse(message="one", agent=agent, subset=subset, store=False)
                    answer = await client.bus.call(CONVERSE, request, timeout_s=20.0)
                    load.answers[answer.answer] += 1
                except Exception as exc:
                    load.failed.append(f"{type(exc).__name__}: {exc}")
                begun.set()

        async with Client.connect(url) as client, asyncio.TaskGroup() as tasks:
            for _ in range(at_a_time):
                tasks.create_task(ask(client))
            try:
                await begun.wait()
                yield load
            finally:
                stop.set()


async def test_restarting_and_scaling_under_load_fails_no_ask(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "busy", takes_s=0.3)
    start(mesh, running, file, "--no-reload", "--instances", "2")
    before = await ids(mesh, "busy")

    async with Load.of(mesh, "busy") as load:
        restarted = await steered(mesh, "busy", "restart")
        after = await ids(mesh, "busy")
        more = await steered(mesh, "busy", "scale", instances=3)
        fewer = await steered(mesh, "busy", "scale", instances=1)

    left = await ids(mesh, "busy")
    assert load.failed == []
    assert load.answers["1.0.0"] > 20
    assert (restarted.instances, restarted.done) == (2, True)
    assert len(after) == 2
    assert not before & after
    assert (more.message, fewer.message) == ("scaled from 2 to 3", "scaled from 3 to 1")
    assert len(left) == 1
    assert left < after, "the newest leave first"


async def test_agents_of_one_file_are_scaled_together_and_that_is_said(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = start(mesh, running, agent_file(tmp_path, "pair", another=True))

    done = lmos("agents", "scale", "pair", "2", environ=mesh.environ)

    assert done.returncode == 0, done.stderr
    assert "pair scaled from 1 to 2; the same processes serve pair-other" in done.stdout
    assert f"lmos run {tmp_path / 'pair.py'} on " in done.stdout
    assert len(await instances(mesh, "pair-other")) == 2

    agent_file(tmp_path, "pair", version="1.1.0")
    run.until("pair 1.1.0, 2 instances, serves")

    as_json = lmos("agents", "--json", "scale", "pair", "2", environ=mesh.environ)
    assert json.loads(as_json.stdout)["message"] == "has 2 instances already"
    assert (await steered(mesh, "pair", "scale", instances=1)).also == ()


async def test_what_is_stopped_stays_so_until_it_is_started(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "sleeper")
    start(mesh, running, file, "--no-reload", "--instances", "2")
    first, second = sorted(await ids(mesh, "sleeper"))

    drained = await steered(mesh, "sleeper", "drain", instance=first)
    left = await ids(mesh, "sleeper")
    with pytest.raises(Conflict, match="is stopped already"):
        await steered(mesh, "sleeper", "stop", instance=first)
    back = await steered(mesh, "sleeper", "start", instance=first)
    both = await ids(mesh, "sleeper")
    stopped = await steered(mesh, "sleeper", "stop")
    none = await ids(mesh, "sleeper")
    with pytest.raises(Conflict, match="`lmos agents start sleeper` starts it"):
        await steered(mesh, "sleeper", "restart")
    agent_file(tmp_path, "sleeper", version="2.0.0")
    again = await steered(mesh, "sleeper", "start")

    assert (drained.message, drained.instances) == ("1 instance drained, 1 running", 1)
    assert left == {second}
    assert back.instances == 2
    assert second in both
    assert first not in both
    assert (stopped.instances, stopped.done, none) == (0, True, set())
    assert (again.instances, again.message) == (2, "2 instances started, 2 running")
    assert {one.version for one in await instances(mesh, "sleeper")} == {"2.0.0"}


async def test_draining_waits_as_long_as_the_work_takes_and_stopping_does_not(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "slow", takes_s=3.0)
    impatient = {**mesh.environ, "LMOS_DRAIN_TIMEOUT_S": "0.2"}
    program = Program(["run", "--no-reload", str(file)], impatient)
    running.append(program)
    program.until("Ctrl-C ends it")

    async with Load.of(mesh, "slow", at_a_time=2) as load:
        replaced = await steered(mesh, "slow", "restart")
    async with Client.connect(mesh.record.nats_url) as client, asyncio.TaskGroup() as tasks:
        outcome = tasks.create_task(_outcome(client, "slow"))
        await asyncio.sleep(0.5)
        stopped = await steered(mesh, "slow", "stop")

    assert load.failed == []
    assert replaced.done
    assert stopped.done
    assert outcome.result() != "1.0.0", "it was called off"


async def _outcome(client: Client, agent: str) -> str:
    try:
        asked = Converse(message="one", agent=agent, store=False)
        return (await client.bus.call(CONVERSE, asked, timeout_s=20.0)).answer
    except MeshError as exc:
        return f"{type(exc).__name__}: {exc}"


@asynccontextmanager
async def _at_work(mesh: Mesh, agent: str) -> AsyncGenerator[Client]:
    """Somebody waits for an answer of that agent as long as the block lasts."""
    async with Client.connect(mesh.record.nats_url) as client, asyncio.TaskGroup() as tasks:
        # Cancelled, it calls the work off.
        waiting = tasks.create_task(_asked(client, agent))
        await until(_is_busy, mesh, agent)
        yield client
        waiting.cancel()


async def _asked(client: Client, agent: str) -> None:
    with suppress(MeshError):
        await client.ask("one", agent=agent, store=False)


async def _is_busy(mesh: Mesh, agent: str) -> bool:
    return any(one.in_flight for one in await instances(mesh, agent))


async def test_what_is_not_done_in_time_goes_on_and_the_exit_status_says_so(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    start(mesh, running, agent_file(tmp_path, "lasting", takes_s=60), "--no-reload")

    async with _at_work(mesh, "lasting"):
        late = await asyncio.to_thread(
            lmos, "agents", "drain", "lasting", "--timeout", "1s", environ=mesh.environ
        )

    assert "1 instance still finishing what they are at, 0 running" in late.stdout
    assert late.returncode == 1


async def test_whoever_waits_is_told_at_once_that_the_operator_or_the_runner_has_died(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    run = start(
        mesh, running, agent_file(tmp_path, "endless", takes_s=60), "--no-reload", "--instances=2"
    )

    async with _at_work(mesh, "endless"):
        waiting = Program(["agents", "drain", "endless"], mesh.environ)
        running.append(waiting)
        run.until("2 of 2 instances finish what they are at and end")
        os.kill(mesh.pid("operator"), signal.SIGKILL)
        orphaned = await asyncio.to_thread(waiting.end)
        mesh.event("serving", name="operator", again=True)
        await steered(mesh, "endless", "start")
    async with _at_work(mesh, "endless"), asyncio.TaskGroup() as tasks:
        refused = tasks.create_task(_refused(mesh, "endless", "drain"))
        await asyncio.to_thread(run.until, "2 of 2 instances finish what they are at and end")
        run.process.kill()

    assert orphaned == 1
    assert "lmos: the operator has ended before it said what became of it (" in waiting.text
    assert f"endless.py on {socket.gethostname()} (pid {run.process.pid}) has ended" in (
        refused.result()
    )
    assert [one["failed"] for one in await _audited(mesh, "endless") if "failed" in one] == [
        refused.result()
    ]


async def _refused(mesh: Mesh, name: str, action: str, **more: Any) -> str:
    with pytest.raises(MeshError) as refused:
        await steered(mesh, name, action, **more)
    return str(refused.value)


async def _audited(mesh: Mesh, agent: str) -> list[dict[str, Any]]:
    """What was written down of an agent that was told how to run."""
    async with Client.connect(mesh.record.nats_url) as client:
        kept = await client.bus.transport.stream(AUDIT).read(subjects.audit("demo", "steered"))
    told: list[dict[str, Any]] = [json.loads(one.payload) for one in kept]
    return [one for one in told if one["agent"] == agent]


async def test_an_agent_that_is_stopped_is_known_and_who_asks_for_it_is_told_how_to_start_it(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    start(mesh, running, agent_file(tmp_path, "resting"), "--no-reload", "--subset", "canary")
    await steered(mesh, "resting", "stop", subset="canary")

    shown = lmos("agents", environ=mesh.environ)
    async with Client.connect(mesh.record.nats_url) as client:
        with pytest.raises(MeshError) as asked:
            await client.ask("one", agent="resting", subset="canary")
        with pytest.raises(MeshError) as described:
            await client.bus.call(GET_THING, GetThing(name="resting", subset="canary"))
    misspelt = await _refused(mesh, "resing", "start", subset="canary")
    elsewhere = await _refused(mesh, "resting", "start")
    started = await steered(mesh, "resting", "start", subset="canary")

    how = "`lmos agents start resting --subset canary` starts it"
    assert f"resting (canary) is stopped; {how}\n" in shown.stdout
    assert str(asked.value) == f"agent 'resting' is stopped in 'demo' ({how})"
    assert f"it is stopped; {how}" in str(described.value)
    assert "did you mean resting?" in misspelt
    assert "has no subset 'stable' in 'demo' (it has canary)" in elsewhere
    assert started.instances == 1


async def test_agents_of_another_tenant_are_shown_and_started_there(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    start(mesh, running, agent_file(tmp_path, "foreigner"), "--no-reload", "--tenant", "acme")

    live = lmos("agents", "--tenant", "acme", "--json", environ=mesh.environ)
    await steered(mesh, "foreigner", "stop", tenant="acme")
    stopped = lmos("agents", "--tenant", "acme", environ=mesh.environ)
    started = lmos("agents", "start", "foreigner", "--tenant", "acme", environ=mesh.environ)

    assert [one["name"] for one in json.loads(live.stdout)] == ["foreigner"]
    how = "`lmos agents start foreigner --tenant acme` starts it"
    assert f"foreigner is stopped; {how}\n" in stopped.stdout
    assert "1 instance started" in started.stdout, started.stderr


async def test_several_who_run_an_agent_share_it(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "shared")
    one = start(mesh, running, file, "--no-reload")
    other = start(mesh, running, file, "--no-reload")

    scaled = await steered(mesh, "shared", "scale", instances=5)
    found = Counter(psutil.Process(one.pid).ppid() for one in await instances(mesh, "shared"))
    other.process.kill()
    other.process.wait(5)
    left = await steered(mesh, "shared", "scale", instances=1)

    assert len(scaled.where) == 2
    assert found == {one.process.pid: 3, other.process.pid: 2}
    assert left.instances == 1
    assert len(left.where) == 1


async def test_two_who_scale_at_once_get_what_one_of_them_wants(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "contested")
    start(mesh, running, file, "--no-reload")
    start(mesh, running, file, "--no-reload")

    async with asyncio.TaskGroup() as tasks:
        for wanted in (3, 4):
            tasks.create_task(steered(mesh, "contested", "scale", instances=wanted))

    assert len(await instances(mesh, "contested")) in (3, 4)


async def test_a_file_that_cannot_be_started_leaves_what_runs(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "spoiled")
    start(mesh, running, file, "--no-reload")
    before = await ids(mesh, "spoiled")
    file.write_text("def broken(:\n")

    for action, instances in (("scale", 2), ("restart", None)):
        with pytest.raises(AgentFailed, match="and what was running goes on: ") as failed:
            await steered(mesh, "spoiled", action, instances=instances)
        assert "not valid Python, line 1" in str(failed.value)
        assert str(failed.value).endswith("def broken(:")

    assert await ids(mesh, "spoiled") == before


async def test_a_scaled_instance_that_crashes_is_started_again(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "fragile")
    file.write_text(file.read_text() + WAITS_WHILE_TOLD)
    run = start(mesh, running, file, "--no-reload")
    (first,) = await ids(mesh, "fragile")
    file.with_suffix(".wait").touch()
    begun = await steered(mesh, "fragile", "scale", instances=2, timeout_s=3.0)
    file.with_suffix(".wait").unlink()
    run.until("fragile 1.0.0, 2 instances, serves")
    (second,) = (one for one in await instances(mesh, "fragile") if one.instance != first)

    os.kill(second.pid, signal.SIGKILL)

    run.until("fragile.py was killed by SIGKILL; it is started again")
    run.until("fragile 1.0.0, 2 instances, serves")
    assert (begun.message, begun.done) == ("is being scaled from 1 to 2", False)
    assert len(await ids(mesh, "fragile")) == 2


async def test_who_was_away_from_the_bus_can_be_told_again(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    start(mesh, running, agent_file(tmp_path, "patient"), "--no-reload")

    os.kill(mesh.pid("nats"), signal.SIGKILL)
    mesh.event("serving", name="nats", again=True)

    await until(_scaled_to_two, mesh, "patient", within_s=30)
    assert len(await ids(mesh, "patient")) == 2


async def _scaled_to_two(mesh: Mesh, name: str) -> bool:
    try:
        await steered(mesh, name, "scale", instances=2)
    except MeshError:
        return False
    return True


async def test_what_cannot_be_done_is_said(
    mesh: Mesh, lmos: Lmos, running: list[Program], tmp_path: Path
) -> None:
    start(mesh, running, agent_file(tmp_path, "steady"), "--no-reload")

    async def said(action: str, name: str = "steady", **more: Any) -> str:
        with pytest.raises(MeshError) as refused:
            await steered(mesh, name, action, **more)
        return str(refused.value)

    many = lmos("agents", "scale", "steady", "1001", environ=mesh.environ)
    fewer = lmos("agents", "scale", "steady", "--", "-1", environ=mesh.environ)
    nobody = lmos("agents", "scale", "stedy", "2", environ=mesh.environ)

    assert (many.returncode, fewer.returncode, nobody.returncode) == (2, 2, 1)
    assert "'1001' is no number of instances; give one from 0 to 1000" in many.stderr
    assert "'-1' is no number of instances; give one from 0 to 1000" in fewer.stderr
    assert nobody.stderr == "lmos: agent 'stedy' does not exist in 'demo' (did you mean steady?)\n"
    assert "it has stable" in await said("stop", subset="canary")
    assert "does not exist in 'acme'" in await said("stop", tenant="acme")
    assert "more than the 100 that may run" in await said("scale", instances=101)
    assert "scale needs `instances`" in await said("scale")
    assert "cannot be scaled" in await said("scale", instances=1, instance="x")
    assert "has no instance 'nobody'" in await said("restart", instance="nobody")
    assert len(await ids(mesh, "steady")) == 1


async def test_who_started_an_agent_otherwise_is_told_what_can_be_done(
    mesh: Mesh, tmp_path: Path
) -> None:
    file = agent_file(tmp_path, "alone")
    file.write_text(file.read_text() + "\nagent.run()\n")
    alone = _started_by_itself(mesh, file)
    try:
        await until(_is_there, mesh, "alone", within_s=60)
        with pytest.raises(Conflict) as refused:
            await steered(mesh, "alone", "scale", instances=2)
    finally:
        alone.terminate()
        alone.wait(20)

    said = str(refused.value)
    assert f"no `lmos run` has started its 1 instance (pid {alone.pid} on " in said
    assert "have it run by `lmos run FILE`" in said


def _started_by_itself(mesh: Mesh, file: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(file)],
        env={**mesh.environ, "LMOS_NATS_URL": mesh.record.nats_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def _is_there(mesh: Mesh, name: str) -> bool:
    return bool(await instances(mesh, name))


async def test_two_versions_live_side_by_side_and_one_is_replaced_unnoticed(
    mesh: Mesh, running: list[Program], tmp_path: Path
) -> None:
    (tmp_path / "v2").mkdir()
    stable = agent_file(tmp_path, "two", version="1.0.0", takes_s=0.2)
    canary = agent_file(tmp_path / "v2", "two", version="2.0.0", takes_s=0.2)
    run = start(mesh, running, stable)
    start(mesh, running, canary, "--no-reload", "--subset", "canary")
    seen = [
        one.version
        for subset in ("stable", "canary")
        for one in await instances(mesh, "two", subset)
    ]

    async with (
        Load.of(mesh, "two", at_a_time=4) as of_stable,
        Load.of(mesh, "two", subset="canary", at_a_time=4) as of_canary,
    ):
        agent_file(tmp_path, "two", version="1.1.0", takes_s=0.2)
        await asyncio.to_thread(run.until, "two 1.1.0 serves")
        scaled = await steered(mesh, "two", "scale", instances=2, subset="canary")

    assert seen == ["1.0.0", "2.0.0"]
    assert of_stable.failed == []
    assert of_canary.failed == []
    assert set(of_stable.answers) == {"1.0.0", "1.1.0"}
    assert set(of_canary.answers) == {"2.0.0"}
    assert scaled.subset == "canary"
    assert len(await instances(mesh, "two")) == 1
    assert len(await instances(mesh, "two", "canary")) == 2
