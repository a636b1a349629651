"""The mesh in containers: the image that we ship, brought up by docker-compose.yml.

Skips where no Docker engine is. `LMOS_E2E_REQUIRED=1`, which CI sets, makes that a failure.
"""

import itertools
import json
import os
import secrets
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from testcontainers.compose import DockerCompose

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
SERVICES = {"nats", "registry", "router", "runtime", "operator", "http", "billing"}
OURS = SERVICES - {"nats"}

# The first build fetches some 200 MB of packages and the embedding model.
pytestmark = pytest.mark.timeout(900)

_turns = itertools.count(1)


class Mesh(DockerCompose):
    """The containers of docker-compose.yml, as a project that nobody else uses."""

    url: str

    def do(self, *arguments: str) -> str:
        """Run `docker compose ARGUMENTS` and return what it prints."""
        command = [*self.docker_compose_command(), *arguments]
        done = subprocess.run(command, cwd=self.context, capture_output=True, text=True)
        assert done.returncode == 0, f"{command} failed: {done.stderr or done.stdout}"
        return done.stdout

    def told(self, *services: str) -> str:
        """What the processes have logged."""
        return self.do("logs", "--no-color", "--no-log-prefix", *services)

    def states(self) -> dict[str, dict[str, Any]]:
        """What the engine knows of each container, running or not, by service."""
        ids = self.do("ps", "--all", "--quiet").split()
        inspected = subprocess.run(["docker", "inspect", *ids], capture_output=True, check=True)
        return {
            one["Config"]["Labels"]["com.docker.compose.service"]: one
            for one in json.loads(inspected.stdout)
        }

    def ask(self, message: str, *, conversation: str = "c1") -> dict[str, Any]:
        """Ask as an LMOS client does; the last event is the whole answer and who gave it."""
        reply = httpx.post(
            f"{self.url}/apis/v1/demo/chat/{conversation}/message",
            headers={"x-turn-id": f"t{next(_turns)}", "accept": "text/event-stream"},
            json={
                "inputContext": {"messages": [{"role": "user", "content": message}]},
                "systemContext": {"channelId": "web"},
                "userContext": {"userId": "u1"},
            },
            timeout=30,
        )
        assert reply.status_code == 200, reply.text
        return dict(_events(reply.text))["end"]


def _events(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            yield fields.get("event", "message"), json.loads(fields["data"])


def _missing() -> str:
    """What keeps the containers from being started here; '' for nothing."""
    for command in (
        ["docker", "version", "--format", "{{.Server.Version}}"],
        ["docker", "compose", "version", "--short"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return str(exc)
        if done.returncode:
            return f"`{' '.join(command)}`: {(done.stderr or done.stdout).strip()}"
    return ""


@pytest.fixture(scope="module")
def mesh() -> Generator[Mesh]:
    if missing := _missing():
        if os.environ.get("LMOS_E2E_REQUIRED") == "1":
            pytest.fail(f"LMOS_E2E_REQUIRED is set, and no Docker engine is here: {missing}")
        pytest.skip(f"no Docker engine to start containers with: {missing}")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # Somebody may have a mesh of containers up already; its volume is not ours to remove.
        patch.setenv("COMPOSE_PROJECT_NAME", f"lmos-e2e-{secrets.token_hex(3)}")
        patch.setenv("LMOS_IMAGE", "lmos-mesh:e2e")
        patch.setenv("LMOS_HTTP_PORT", str(port))
        containers = Mesh(context=ROOT, build=True, wait=True)
        containers.url = f"http://127.0.0.1:{port}"
        try:
            try:
                containers.start()
            except subprocess.CalledProcessError as exc:
                said = (exc.stderr or b"").decode(errors="replace")
                pytest.fail(f"`docker compose up` failed:\n{said[-4000:]}\n{containers.told()}")
            yield containers
        finally:
            containers.stop()


def test_a_question_over_http_is_answered_by_the_agent_in_its_container(mesh: Mesh) -> None:
    answer = mesh.ask("how much do I owe this month?")

    assert answer["agent"] == "billing"
    assert "39.99" in answer["content"]


def test_the_router_has_its_embedding_model_in_the_image(mesh: Mesh) -> None:
    decided = json.loads(mesh.do("exec", "-T", "router", "lmos", "ask", "my bill", "--json"))

    assert decided["decision"]["encoder"] == "all-MiniLM-L6-v2"


def test_the_packages_in_the_image_fit_one_another(mesh: Mesh) -> None:
    assert mesh.do("exec", "-T", "router", "pip", "check").strip() == (
        "No broken requirements found."
    )


def test_every_process_is_healthy_and_none_of_ours_is_root_or_may_become_it(mesh: Mesh) -> None:
    states = mesh.states()

    assert {name: one["State"]["Health"]["Status"] for name, one in states.items()} == (
        dict.fromkeys(SERVICES, "healthy")
    )
    assert {states[name]["Config"]["User"] for name in OURS} == {"10001:10001"}
    assert all(states[name]["HostConfig"]["ReadonlyRootfs"] for name in OURS)
    assert mesh.do("exec", "-T", "runtime", "id", "-u").strip() == "10001"


def test_only_the_http_adapter_is_reached_from_outside_and_only_from_this_machine(
    mesh: Mesh,
) -> None:
    published = {
        name: [bound["HostIp"] for bindings in ports.values() for bound in bindings or ()]
        for name, one in mesh.states().items()
        if (ports := one["NetworkSettings"]["Ports"])
    }

    assert published.pop("http") == ["127.0.0.1"]
    assert not any(published.values())


def test_an_answer_comes_from_another_replica_when_a_runtime_is_killed(mesh: Mesh) -> None:
    mesh.do("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "runtime=2")
    first, *_ = mesh.do("ps", "--quiet", "runtime").split()

    subprocess.run(["docker", "kill", first], check=True, capture_output=True)
    answer = mesh.ask("how much do I owe?", conversation="c2")

    assert answer["agent"] == "billing"
    mesh.do("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "runtime=1")


def test_a_mesh_that_is_stopped_ends_at_once_and_remembers_its_conversations(mesh: Mesh) -> None:
    mesh.ask("show my bill", conversation="c3")

    began = time.monotonic()
    mesh.do("stop")
    took_s = time.monotonic() - began

    assert {name: one["State"]["ExitCode"] for name, one in mesh.states().items()} == (
        dict.fromkeys(SERVICES, 0)
    )
    assert took_s < 30
    mesh.do("up", "--detach", "--wait", "--no-build")
    kept = httpx.get(f"{mesh.url}/apis/v1/demo/chat/c3", timeout=10)
    assert "show my bill" in kept.text
    assert "39.99" in kept.text
