import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmos_mesh.cli.documents import read_documents
from lmos_mesh.cli.lines import Lines, lines_in_json
from lmos_mesh.cli.validate import validate

CONTEXT = "https://www.w3.org/2022/wot/td/v1.1"
VALID = sorted((Path(__file__).parents[1] / "data" / "descriptions" / "valid").iterdir())

AGENT = f"""\
"@context":
  - {CONTEXT}
  - lmos: https://eclipse.dev/lmos/protocol/v1
"@type": lmos:Agent
title: weather
"""

TWO_LAMPS = f"""\
# Two of them, the second one broken.
"@context": {CONTEXT}
id: urn:example:lamp:1
title: Lamp
securityDefinitions: {{open: {{scheme: nosec}}}}
security: open
---
"@context": {CONTEXT}
id: urn:example:lamp:2
securityDefinitions: {{open: {{scheme: nosec}}}}
security: open
actions:
  fade:
    forms:
      - op: invokeaction
        href: fade
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return written


def said(capsys: pytest.CaptureFixture[str]) -> str:
    # The terminal's width is not what is tested.
    return " ".join(capsys.readouterr().out.split())


def test_every_description_of_the_corpus_is_said_to_be_valid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert validate(VALID, as_json=False) == 0

    shown = said(capsys)
    assert shown.count("✓") == len(VALID)
    assert "lamp.json is valid: thing Hall lamp" in shown


def test_each_fault_is_told_with_file_line_and_pointer(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("lamps.yaml", TWO_LAMPS)

    assert validate([path], as_json=False) == 1

    shown = said(capsys)
    assert f"✓ {path} (document 1) is valid: thing Lamp" in shown
    assert f"✗ {path} (document 2) is not valid: 2 faults" in shown
    # What is missing is told at what it is missing in.
    assert f"{path}:8 /title is missing" in shown
    assert f'{path}:16 /actions/fade/forms/0/href "fade" is relative' in shown


def test_what_programs_read_has_the_same_in_it(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("lamps.yaml", TWO_LAMPS)

    assert validate([path], as_json=True) == 1

    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "file": str(path),
        "document": 1,
        "valid": True,
        "kind": "thing",
        "name": "urn:example:lamp:1",
        "faults": [],
        "notes": [],
    }
    assert [(one["field"], one["line"]) for one in second["faults"]] == [
        ("/title", 8),
        ("/actions/fade/forms/0/href", 16),
    ]
    assert second["valid"] is False


def test_it_says_what_would_be_filled_in(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lamp = write("lamp.json", json.dumps({"@context": CONTEXT, "title": "Lamp"}))

    assert validate([write("agent.yaml", AGENT)], as_json=False) == 0
    assert "! `security` was missing; `nosec` was filled in" in said(capsys)

    # Of what is no agent of LMOS, nothing is guessed.
    assert validate([lamp], as_json=False) == 1
    shown = said(capsys)
    assert "/security is missing" in shown
    assert "! it has no `id`" in shown


def test_json_with_tabs_and_several_things_has_lines_too(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("things.json", '[\n\t{"title": "a"},\n\t{\n\t\t"title":\t3\n\t}\n]\n')

    assert validate([path], as_json=True) == 1

    first, second = json.loads(capsys.readouterr().out)
    assert {one["line"] for one in first["faults"]} == {2}
    assert [one["line"] for one in second["faults"] if one["field"] == "/title"] == [4]


def test_yaml_means_what_it_looks_like(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    more = "properties:\n  on: {type: boolean, forms: [{href: 'coap://lamp.example/on'}]}\n"
    path = write("lamp.yaml", AGENT + "created: 2026-01-02T03:04:05Z\n" + more)

    assert validate([path], as_json=False) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"title": ', "is no JSON that can be read"),
        ("a.yaml", "title: [", "is no YAML that can be read"),
        ("a.json", '{"title": "a", "title": "b"}', "is there twice"),
        ("a.yaml", "- 1\n- 2\n", "must be an object, not"),
        ("a.yaml", "", "is empty"),
        ("a.yaml", "a: &x [1]\nb: *x\n", "is a reference"),
        ("a.yaml", "[" * 5000, "nested more than 64 deep"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(
    write: Any, capsys: pytest.CaptureFixture[str], name: str, text: str, told: str
) -> None:
    assert validate([write(name, text)], as_json=False) == 1

    assert told in said(capsys)


def test_a_missing_file_does_not_keep_the_others_from_being_read(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate([Path("/nowhere/a.yaml"), write("agent.yaml", AGENT)], as_json=False) == 1

    shown = said(capsys)
    assert "cannot read /nowhere/a.yaml" in shown
    assert "agent.yaml is valid: agent weather" in shown


def test_the_standard_input_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = io.BytesIO((AGENT + "version: {instance: new}\n").encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=given))

    assert validate([Path("-")], as_json=True) == 1

    [verdict] = json.loads(capsys.readouterr().out)
    assert [(one["field"], one["line"]) for one in verdict["faults"]] == [("/version/instance", 6)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", 'a/b:\n  - c~d: 1\n  -\n    "": 2\n'),
        ("a.json", '{"a/b": [\n\t{"c~d": 1},\n\n\t{"": 2}\n]}'),
    ],
)
def test_lines_are_known_of_every_member_whatever_its_name(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    [document] = read_documents(str(tmp_path / name))
    lines = document.lines

    assert {
        at: lines.at(at) for at in ("", "/a~1b", "/a~1b/0", "/a~1b/0/c~0d", "/a~1b/1", "/a~1b/1/")
    } == {"": 1, "/a~1b": 1, "/a~1b/0": 2, "/a~1b/0/c~0d": 2, "/a~1b/1": 4, "/a~1b/1/": 4}
    assert lines.at("/a~1b/1/missing/deep") == 4
    assert lines.at("/other") == 1
    assert lines.below("a/b", "1").at("/") == 4
    assert Lines().at("/other") is None


@pytest.mark.parametrize("text", ["{", "a: *b", "\x00", "[" * 5000, ""])
def test_what_cannot_be_read_has_no_lines(text: str) -> None:
    assert lines_in_json(text) == []
