"""What the image installs before our own code is what pyproject.toml asks for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def printed(extras: str) -> subprocess.CompletedProcess[str]:
    program = ROOT / "deploy" / "requirements.py"
    return subprocess.run(
        [sys.executable, program, ROOT / "pyproject.toml", extras], capture_output=True, text=True
    )


def test_the_dependencies_come_first_and_then_those_of_the_extras_that_are_wanted() -> None:
    none, http = printed("").stdout, printed("http").stdout

    assert "nats-py" in none
    assert "fastapi" not in none
    assert http.startswith(none)
    assert "fastapi" in http
    assert "faiss" not in http


def test_an_extra_made_of_others_is_followed() -> None:
    assert (
        printed("all").stdout
        == printed("server,registry,router,llm,operator,http,mdns,otel").stdout
    )


def test_an_extra_that_does_not_exist_is_named_with_those_that_do() -> None:
    done = printed("http,rooter")

    assert done.returncode == 1
    assert "no extra is called 'rooter'; there are server, registry, router" in done.stderr
